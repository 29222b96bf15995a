"""The algorithms, on anybody's arrays."""
