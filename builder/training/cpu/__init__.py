"""The CPU's step: one model a core, sixteen images in the lanes of a vector, the whole step in the core's
cache; compiled by Numba.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from numba import config
from numba.misc.appdirs import AppDirs


def find_cache() -> None:
    """See that Numba has somewhere to keep what it compiles; it looks when a function is declared, and fails
    where it finds nothing.

    It tries NUMBA_CACHE_DIR, the folder of the sources and the user's cache. Where none can be written, as in
    a read-only installation of a user without a home, a temporary folder serves, for this process and those
    that it starts.
    """
    given = [Path(config.CACHE_DIR)] if config.CACHE_DIR else []
    tried = [*given, Path(__file__).parent / "__pycache__", Path(AppDirs("numba", False).user_cache_dir)]
    if any(map(_writable, tried)):
        return
    config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="nws-numba-")
    print(f"{tried[0]} cannot be written: what is compiled is kept in {config.CACHE_DIR}", file=sys.stderr)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


find_cache()
