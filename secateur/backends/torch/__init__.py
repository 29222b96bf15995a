"""PyTorch tensors: `driver`, greedy in plain PyTorch, and Triton kernels for CUDA."""
