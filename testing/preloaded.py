"""What a process that builds on a CPU imports, loads from Numba's cache, and needs for the zoo's page: once,
where such processes are forked from (testing/forked.py).
"""

from builder import cli, gallery
from builder.training import workers
from builder.training.cpu.backend import compile_step
from builder.training.cpu.compiled import cache_folder
from nws_dataset.explorer import missing_libraries
from nws_dataset.explorer.page import charts_library

__all__ = ["cli", "gallery", "workers"]

if any(cache_folder().glob("kernels.train-*")):  # else it would be compiled, needed or not
    compile_step()
if not missing_libraries():
    charts_library()
