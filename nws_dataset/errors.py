"""The one error that a user's mistake or a damaged file raises: it names what, and says what to do."""

from __future__ import annotations

import functools
from typing import Any


class ZooError(Exception):
    """A mistake that the user can mend. Its message is one line: the file, what was expected and found, and what to do."""

    def __init__(self, where: object, *, expected: str, found: str, do: str) -> None:
        super().__init__(f"{where}: expected {expected}, found {found}; {do}")
        self._parts: dict[str, Any] = {"where": str(where), "expected": expected, "found": found, "do": do}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles: worker processes hand their errors over."""
        return functools.partial(ZooError, **self._parts), ()
