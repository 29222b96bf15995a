"""CuPy arrays: `driver` and CUDA kernels."""
