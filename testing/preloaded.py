"""What a process that trains on a CPU imports, and loads from Numba's cache: once, where such processes are
forked from (testing/forked.py).
"""

from builder import cli, gallery
from builder.training import workers
from builder.training.cpu.backend import compile_step
from builder.training.cpu.compiled import cache_folder

__all__ = ["cli", "gallery", "workers"]

if any(cache_folder().glob("kernels.train-*")):  # else it would be compiled, needed or not
    compile_step()
