"""A cohort's step on a GPU: Triton kernels for M models with their own weights, in a CUDA graph."""
