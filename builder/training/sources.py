"""A digest of what modules say: what was compiled or found out with other sources is not valid any more."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


def digest(modules: Iterable[ModuleType]) -> str:
    """The SHA-256 of the modules' files, one behind the other, in hexadecimal."""
    return hashlib.sha256(
        b"".join(Path(inspect.getfile(module)).read_bytes() for module in modules)
    ).hexdigest()
