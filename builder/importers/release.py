"""Imports an original release into a zoo's folder, shard by shard and straight from its files.

`nws.read` and `small_cnn.read` list the release's models; what follows is the same for both. A shard that is
complete is not written again, so an import may stop at any moment, and another part of the release adds to
the folder.

Axes: P weights, S snapshots.
"""

from __future__ import annotations

import csv
import math
import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from builder.plan import models_per_shard, recipe_of
from nws_dataset.errors import ZooError, listed, reason
from nws_dataset.files import check_file
from nws_dataset.format.recipe import Architecture, Recipe
from nws_dataset.format.schema import SPLITS, model_id
from nws_dataset.format.subsets import Choice, Cycle, Family, LogUniform, Uniform

MAX_TABLE_BYTES = 1 << 24  # of a small table: the split file of 16,000 nets has a tenth of that
MAX_EPOCHS, MAX_STEPS = 10**6, 10**12  # of a training: they have 1,000 epochs at most
REFETCH = "fetch the release again"  # what helps against a damaged file
REEXPORT = "export the zoo again"


@dataclass(frozen=True, eq=False)
class ReleasedModel(ABC):
    """A model of a release: what `builder.store` wants to know of a model, and how its snapshots are read."""

    subset: str
    number: int
    seed: int | None  # of its training; None if the release does not tell it
    split: str
    recipe: Recipe
    block: int
    name: str  # in the release
    diverged: bool  # whether the release says so; it may be seen from the snapshots, too

    @property
    def id(self) -> str:
        return model_id(self.subset, self.number)

    @property
    @abstractmethod
    def num_snapshots(self) -> int: ...

    @abstractmethod
    def check(self) -> None:
        """Raise a ZooError unless its files are there and have the right sizes."""

    @abstractmethod
    def results(self) -> list[dict[str, Any]]:
        """Of each snapshot the columns epoch, step, accuracies and losses; a number may be not finite."""

    @abstractmethod
    def row(self, snapshot: int) -> np.ndarray:
        """The weights of a snapshot (counted from 0), [P] float32 in network order; they may be not
        finite.
        """

    @abstractmethod
    def where_weights(self, snapshot: int) -> str:
        """Where the weights of a snapshot stand, for errors."""


@dataclass(frozen=True)
class LeftOut:
    """What an import leaves out: counted and named."""

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # why -> which

    def add(self, why: str, *names: str) -> None:
        """Leave out what has these names, e.g. "nets that no split file lists"."""
        if names:
            self.names[why] += names

    def lines(self) -> list[str]:
        """One line for each reason."""
        return [f"left out: {len(names)} {why}: {listed(names)}" for why, names in self.names.items()]


@dataclass(frozen=True)
class Release:
    """The models of a release, by subset and number, and what is not among them."""

    models: Sequence[ReleasedModel]
    left_out: LeftOut
    seed: int | None = None  # what its splits follow from; None if it has splits of its own
    notes: Sequence[str] = ()  # what else is to be said, one sentence each


@dataclass
class BlockNumbers:
    """Numbers the shards of a subset; `streams` of them are filled side by side, so that one does not wait
    for another.
    """

    num_snapshots: int
    streams: int = 1
    counts: Counter[tuple[str, Architecture, int]] = field(default_factory=Counter)

    def next(self, split: str, architecture: Architecture, stream: int = 0) -> int:
        """The block of the next model of a split, architecture and stream."""
        shard = (split, architecture, stream)
        self.counts[shard] += 1
        return (self.counts[shard] - 1) // models_per_shard(
            architecture, self.num_snapshots
        ) * self.streams + stream


# What both readers need


def checked_recipe(where: object, family: Family, told: Mapping[str, Any]) -> Recipe:
    """The recipe of what a release tells of a model; the rest is what all of its family have in common.

    Args:
        where: what an error names.
        family: what the release was drawn from; a value that it does not draw is an error.
        told: field of Recipe or Architecture -> value.

    Raises:
        ZooError: for a value that no model of the family has.
    """
    return recipe_of(
        {
            **family,
            **{name: _legal(where, name, family.get(name, value), value) for name, value in told.items()},
        }
    )


def _legal(where: object, name: str, draw: object, value: Any) -> Any:
    """The value as the family draws it (True where a release writes 1)."""
    if isinstance(draw, Uniform | LogUniform):
        return value
    legal = draw.values if isinstance(draw, Choice | Cycle) else (draw,)
    if value not in legal:
        expected = f"{name} {' or '.join(map(str, legal))}"
        raise ZooError(
            where, expected=expected, found=repr(value), do="not of this release, or damaged: " + REFETCH
        )
    return legal[legal.index(value)]


def number(where: object, name: str, text: str) -> float:
    """A finite number of a table; True and False count as 1 and 0.

    Raises:
        ZooError: if the text is none.
    """
    try:
        value = float({"True": "1", "False": "0"}.get(text, text))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ZooError(where, expected=f"a number as {name}", found=repr(text), do=REFETCH)
    return value


def whole_number(where: object, name: str, text: str) -> int:
    """An integer of a table, also when it is written as 3.0.

    Raises:
        ZooError: if the text is none.
    """
    value = number(where, name, text)
    if value != int(value):
        raise ZooError(where, expected=f"a whole number as {name}", found=repr(text), do=REFETCH)
    return int(value)


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a small CSV file.

    Raises:
        ZooError: if it cannot be read, or a row lacks one of the columns.
    """
    try:
        check_file(path)
        if path.stat().st_size > MAX_TABLE_BYTES:
            found = f"{path.stat().st_size} bytes"
            raise ZooError(
                path, expected=f"a table of at most {MAX_TABLE_BYTES} bytes", found=found, do=REFETCH
            )
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise ZooError(path, expected="a table that can be read", found=reason(error), do=REFETCH) from error
    for line, row in enumerate(rows, 2):
        missing = [name for name in columns if row.get(name) is None]
        if missing:
            raise ZooError(
                f"{path} line {line}",
                expected=f"the columns {', '.join(columns)}",
                found=f"no {', '.join(missing)}",
                do=REFETCH,
            )
    if not rows:
        raise ZooError(path, expected="at least one line", found="none", do=REFETCH)
    return rows


def own_split(where: object, text: str) -> str:
    """A split that an export of ours tells.

    Raises:
        ZooError: if it is none.
    """
    if text not in SPLITS:
        raise ZooError(where, expected=f"a split, {', '.join(SPLITS)}", found=repr(text), do=REEXPORT)
    return text


def own_number(where: object, name: str, text: str, low: int, high: int) -> int:
    """A whole number that an export of ours tells, from low to high; of any size, other than `whole_number`.

    Raises:
        ZooError: if it is none.
    """
    value = int(text) if re.fullmatch(r"-?\d{1,19}", text) else whole_number(where, name, text)
    if not low <= value <= high:
        raise ZooError(where, expected=f"{low} to {high} as {name}", found=str(value), do=REFETCH)
    return value
