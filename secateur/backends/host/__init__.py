"""NumPy arrays: `driver` on the library itself, `compiled` where Numba is, with its kernels."""
