"""Files of results, as the evaluation commands write them and as anyone may: read only when all that a page
shows of them is legal.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nws_dataset.errors import ZooError
from nws_dataset.evaluation.tables import REQUIRED, SIZED, Record
from nws_dataset.files import read_json

LIMIT = 1e100  # of all numbers: their squares are finite too
MAX_DEPTH = 20  # of settings, which the page shows whole
EXPECTED = "results of an evaluation"
DO = "give files of nws-evaluate-predictors, nws-evaluate-meta-classifier or nws-leaderboard"


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number that can be reckoned with.

    Example:
        >>> [is_number(value) for value in (1, 0.5, True, "1", float("nan"), 10**400)]
        [True, True, False, False, False, False]
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and -LIMIT <= value <= LIMIT


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and value >= 0


def _is_interval(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))


def _is_seed(value: Any) -> bool:
    return _is_text(value) or is_number(value)


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(REQUIRED[:-1], (_is_text, "a text")),
    **dict.fromkeys(
        ("dataset", "across", "trained_on", "tested_on", "layer", "task", "setting"), (_is_text, "a text")
    ),
    **dict.fromkeys(
        ("value", "position", "chance", "from_architecture", "paper"), (is_number, "a finite number")
    ),
    **dict.fromkeys(("snapshot", "epoch", "num_train", "num_test"), (_is_count, "a whole number from 0")),
    "interval_95": (_is_interval, "two finite numbers"),
    "seed": (_is_seed, "a number or a text"),
}  # field of a record -> what it must be, where it is there and not null
# experiment -> along what its curves are drawn
AXES = {"when": "snapshot", "early": "snapshot", SIZED: "num_train"}


def check_record(where: object, record: Any, i: int) -> None:
    """Raise a ZooError that names the place if a record is none."""
    missing = [name for name in REQUIRED if not isinstance(record, Mapping) or name not in record]
    missing += [] if missing else [name for name in REQUIRED[:-1] if record[name] is None]
    axis = None if missing or not _is_text(record["experiment"]) else AXES.get(record["experiment"])
    missing += [axis] if axis and record.get(axis) is None else []
    if missing:
        raise ZooError(
            where,
            expected=f"records with {', '.join(REQUIRED)}",
            found=f"record {i} without {', '.join(missing)}",
            do=DO,
        )
    for name, (legal, words) in KINDS.items():
        if record.get(name) is not None and not legal(record[name]):
            found = f"{reprlib.repr(record[name])} in record {i}"
            raise ZooError(where, expected=f"for {name} {words}", found=found, do=DO)


def _is_deep(value: Any) -> bool:
    """Whether a value is nested deeper than MAX_DEPTH.

    A level at a time, for recursion would be what is guarded against.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for outer in level
            if isinstance(outer, list | dict)
            for part in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


@dataclass(frozen=True)
class Results:
    """One file of an evaluation command."""

    path: Path
    contents: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file.

        Raises:
            ZooError: if it does not hold results; it names what is missing or of a wrong kind.
        """
        contents = read_json(path, f"a JSON file with {EXPECTED}")
        kinds = {"zoo": dict, "command": str, "results": list}
        wrong = [
            name
            for name, kind in kinds.items()
            if not isinstance(contents, dict) or not isinstance(contents.get(name), kind)
        ]
        if wrong:
            raise ZooError(path, expected=EXPECTED, found=f"no legal {', '.join(map(repr, wrong))}", do=DO)
        for i, record in enumerate(contents["results"]):
            check_record(path, record, i)
        if _is_deep(contents.get("settings")):
            raise ZooError(
                path, expected=f"settings nested at most {MAX_DEPTH} deep", found="deeper ones", do=DO
            )
        return cls(path, contents)

    @property
    def records(self) -> list[Record]:
        """Those that have a value."""
        return [record for record in self.contents["results"] if record["value"] is not None]
