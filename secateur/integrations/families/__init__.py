"""What a model is: geometry, parts, merge order, pooling, time. No host is known here."""
