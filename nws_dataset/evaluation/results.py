"""Result files of the evaluation commands or of others; files with illegal values are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nws_dataset.errors import ZooError
from nws_dataset.evaluation.scores import MAX_EXAMPLES, SIZED, Record
from nws_dataset.files import atomic_write, read_json

if TYPE_CHECKING:
    from nws_dataset.reading.zoo import Zoo

LIMIT = 1e100  # of numbers, so that their squares are finite
MAX_DEPTH = 20  # of nested settings
EXPECTED = "results of an evaluation"
DO = "give files that nws-evaluate, the commands for one question or nws-leaderboard wrote"
# experiment -> horizontal axis of its curves
AXES = {"when": "snapshot", "early": "snapshot", SIZED: "num_train"}


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number, small enough to be squared."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LIMIT <= value <= LIMIT


def _are_plain(values: list[Any]) -> bool:
    return all(isinstance(value, str) or is_number(value) for value in values)


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "a text"),
    "float": (is_number, "a finite number"),
    "int": (
        lambda value: is_number(value) and isinstance(value, int) and value >= 0,
        "a whole number from 0",
    ),
    "Interval": (
        lambda value: isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value)),
        "two finite numbers",
    ),
    "Seed": (lambda value: isinstance(value, str) or is_number(value), "a number or a text"),
    "Examples": (
        lambda value: (
            isinstance(value, list)
            and len(value) <= MAX_EXAMPLES
            and all(isinstance(one, list) and len(one) == 3 and _are_plain(one) for one in value)
        ),
        f"at most {MAX_EXAMPLES} networks, each with its ID and what is true and predicted",
    ),
    "Any": (lambda value: True, "anything"),
}  # annotation of a record's field -> check of a value that is not null, and what it expects
FIELDS = {field.name: KINDS[str(field.type).removesuffix(" | None")] for field in dataclasses.fields(Record)}
REQUIRED = [f.name for f in dataclasses.fields(Record) if f.default is dataclasses.MISSING]


def record_of(where: object, given: Any, i: int) -> Record:
    """Parse record number `i` of a file; unknown fields are ignored.

    Raises:
        ZooError: if it is not a legal record; names `where` and its number.
    """
    missing = [name for name in REQUIRED if not isinstance(given, Mapping) or name not in given]
    missing += [] if missing else [name for name in REQUIRED if given[name] is None and name != "value"]
    axis = None if missing else AXES.get(str(given["experiment"]))
    missing += [axis] if axis and given.get(axis) is None else []
    if missing:
        expected, found = f"records with {', '.join(REQUIRED)}", f"record {i} without {', '.join(missing)}"
        raise ZooError(where, expected=expected, found=found, do=DO)
    for name, (legal, words) in FIELDS.items():
        if given.get(name) is not None and not legal(given[name]):
            found = f"{reprlib.repr(given[name])} in record {i}"
            raise ZooError(where, expected=f"for {name} {words}", found=found, do=DO)
    return Record(**{name: given.get(name) for name in FIELDS})


def _is_deep(value: Any) -> bool:
    """Whether a value is nested deeper than MAX_DEPTH, found without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        outer = [tuple(part.values()) if isinstance(part, dict) else part for part in level]
        level = [inner for part in outer if isinstance(part, list | tuple) for inner in part]
    return bool(level)


@dataclass(frozen=True)
class Results:
    """The contents of a result file."""

    path: Path
    contents: dict[str, Any]
    records: list[Record]  # only those with a value

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file; raises a ZooError if something is missing or illegal."""
        contents = read_json(path, f"a JSON file with {EXPECTED}")
        given = contents if isinstance(contents, dict) else {}
        kinds = {"zoo": dict, "command": str, "results": list}
        wrong = [repr(name) for name, kind in kinds.items() if not isinstance(given.get(name), kind)]
        if wrong:
            raise ZooError(path, expected=EXPECTED, found=f"no legal {', '.join(wrong)}", do=DO)
        records = [record_of(path, record, i) for i, record in enumerate(given["results"])]
        if _is_deep(given.get("settings")):
            expected = f"settings nested at most {MAX_DEPTH} deep"
            raise ZooError(path, expected=expected, found="deeper ones", do=DO)
        return cls(path, given, [record for record in records if record.value is not None])


def write_results(path: Path, contents: dict[str, Any]) -> None:
    """Write a result file atomically; the "results" of its contents are records."""
    records = [record.to_json() for record in contents["results"]]
    with atomic_write(path) as temporary:
        text = json.dumps({**contents, "results": records}, indent=1) + "\n"
        temporary.write_text(text, encoding="utf-8")


def facts_of(zoo: Zoo, name: str) -> dict[str, Any]:
    """A zoo in result files: its name, a digest of its weights, each subset's seed, options and models."""
    subsets = {
        subset: {"seed": entry.seed, "options": entry.options, "num_models": entry.num_models}
        for subset, entry in zoo.manifest.subsets.items()
    }
    digests = sorted(zoo.filter()["sha256"].tolist())  # files differ with the library that wrote them
    weights = hashlib.sha256("".join(digests).encode()).hexdigest()
    return {"name": name, "weights": weights, "subsets": subsets}
