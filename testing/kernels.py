"""`python -m testing.kernels` has Numba compile what most tests train with, or finds it in its cache."""

import torch

from builder.training.cpu.backend import compile_step

if __name__ == "__main__":
    for dtype in (torch.float32, torch.float64):
        compile_step(dtype=dtype)
