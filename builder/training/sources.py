"""A digest of modules' sources: results of other sources are no longer valid."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


def digest(modules: Iterable[ModuleType]) -> str:
    """The SHA-256 of the modules' names and files, in hexadecimal; a package stands for all its modules."""
    found = hashlib.sha256()
    for module in modules:
        file = Path(inspect.getfile(module))
        for path in sorted(file.parent.rglob("*.py")) if hasattr(module, "__path__") else [file]:
            name = f"{module.__name__} {path.relative_to(file.parent).as_posix()} {path.stat().st_size}"
            found.update(f"{name}\n".encode() + path.read_bytes())
    return found.hexdigest()
