"""`ZooError`, for users' mistakes and damaged files: one line that says what is wrong and what to do."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

MAX_NAMES = 10  # in a list
MAX_LETTERS = 1000  # of each part of a message, which may quote a damaged file


class ZooError(Exception):
    """A mistake that the user can correct.

    Its message is one line: the file, what was expected and found, and what to do.

    Args:
        where: what the error is about, such as a file.
        expected: what was expected there.
        found: what is there instead.
        do: what the user can do about it.

    Example:
        >>> error = ZooError("nws.json", expected="a file", found="nothing", do="build the zoo")
        >>> print(error)
        nws.json: expected a file, found nothing; build the zoo
        >>> print(error.adding(found="and no repository"))
        nws.json: expected a file, found nothing, and no repository; build the zoo
    """

    def __init__(self, where: object, *, expected: str, found: str, do: str) -> None:
        parts = {
            "where": one_line(where),
            "expected": one_line(expected),
            "found": one_line(found),
            "do": one_line(do),
        }
        super().__init__("{where}: expected {expected}, found {found}; {do}".format(**parts))
        self._parts: dict[str, Any] = parts

    def adding(self, *, found: str) -> ZooError:
        """The same error with a further finding.

        Args:
            found: text to append to what was found.

        Returns:
            A new error of the same class.
        """
        return type(self)(**{**self._parts, "found": f"{self._parts['found']}, {found}"})

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling, so that worker processes can pass on their errors."""
        return functools.partial(type(self), **self._parts), ()


class ValueZooError(ZooError, ValueError):
    """A mistake in a caller's parameters or data; a ValueError too, which users of scikit-learn expect."""


def one_line(text: object) -> str:
    r"""A text as one line that any terminal can print.

    Line breaks become spaces, control characters are escaped, a long text is shortened.

    Example:
        >>> one_line("two\n  lines"), one_line("\x1b[1m \udcff")
        ('two lines', '\\x1b[1m \\udcff')
    """
    joined = re.sub(r"\s*[\r\n\u0085\u2028\u2029]\s*", " ", str(text).strip())
    shown = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in joined
    )
    half = MAX_LETTERS // 2
    return shown if len(shown) <= MAX_LETTERS else f"{shown[:half]} ... {shown[-half:]}"


def listed(names: Sequence[str]) -> str:
    r"""Names joined by commas, only the first of many. They may come from a damaged file.

    Example:
        >>> listed(["a", "b\n", ""])
        "a, b, ''"
    """
    more = len(names) - MAX_NAMES
    return ", ".join(one_line(name) or "''" for name in names[:MAX_NAMES]) + f" and {more} more" * (more > 0)


def reason(error: BaseException) -> str:
    """An exception's type and message, for the `found` of a ZooError.

    Example:
        >>> reason(KeyError("files"))
        "KeyError: 'files'"
    """
    return one_line(f"{type(error).__name__}: {error}")
