"""Inside models of transformers: rows of models, attaching, encoding, shortening, layers."""
