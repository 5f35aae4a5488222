"""The cache of code compiled by Numba, which is deleted when its sources have changed."""

from __future__ import annotations

import functools
from pathlib import Path

from builder import philox
from builder.training import backend, cpu, sources, update
from nws_dataset import networks
from nws_dataset.files import atomic_write

SOURCES = (cpu, backend, update, philox, networks)  # of the compiled steps


@functools.cache
def drop_stale_kernels() -> None:
    """Delete code that Numba compiled from other sources.

    Numba itself only checks the file of a compiled function, not the modules that it imports.
    """
    folder = cache_folder()
    digest = sources.digest(SOURCES)
    mark = folder / "sources.sha256"
    if not mark.exists() or mark.read_text(encoding="ascii", errors="replace") != digest:
        for compiled in folder.glob("*.nb[ic]"):
            compiled.unlink(missing_ok=True)
        with atomic_write(mark) as temporary:
            temporary.write_text(digest, encoding="ascii")


def cache_folder() -> Path:
    """The folder of Numba's compiled code."""
    from builder.training.cpu import kernels

    return Path(kernels.train.stats.cache_path)
