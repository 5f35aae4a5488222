"""What Numba has compiled, kept on disk: dropped when what it follows from has changed."""

from __future__ import annotations

import functools
from pathlib import Path

from builder import philox
from builder.training import cpu, sources, update
from nws_dataset.files import atomic_write
from nws_dataset.networks import cnn

SOURCES = (cpu, update, philox, cnn)  # what the compiled steps follow from


@functools.cache
def drop_stale_kernels() -> None:
    """Delete what Numba compiled from other sources: it looks only at the file that a function stands in, not
    at what that imports.
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
    """Where Numba keeps what it compiled."""
    from builder.training.cpu import kernels

    return Path(kernels.train.stats.cache_path)
