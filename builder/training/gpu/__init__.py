"""The step of a cohort on a GPU: Triton kernels for the layers of M models with weights of their own,
captured in a CUDA graph.
"""
