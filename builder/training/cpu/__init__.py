"""The CPU's training step: one model per core, 16 images per vector, all in the core's cache; uses Numba."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from numba import config
from numba.misc.appdirs import AppDirs


def find_cache() -> None:
    """Make sure that Numba has a folder for what it compiles: it looks for one when a function is declared.

    It tries NUMBA_CACHE_DIR, the sources' folder and the user's cache. If none can be written, as in a
    read-only installation of a user without a home, a temporary folder serves this process and those that it
    starts.
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
