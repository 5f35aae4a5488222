"""Imports an original release into a zoo's folder, shard by shard and directly from its files.

`nws.read` and `small_cnn.read` list the release's models; the rest is the same for both. A complete shard is
not written again, so an import may stop at any moment, and another part of the release can be added later.

Axes: P weights, S snapshots.
"""

from __future__ import annotations

import csv
import io
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
from nws_dataset.format.recipe import Recipe
from nws_dataset.format.schema import SPLITS, model_id
from nws_dataset.format.subsets import Choice, Cycle, Family, LogUniform, Uniform
from nws_dataset.networks.base import BaseArchitecture

MAX_TABLE_BYTES = 1 << 24  # of a small table: the split file of 16,000 nets needs a tenth
REFETCH = "fetch the release again"  # advice for a damaged file
REEXPORT = "export the zoo again"


@dataclass(frozen=True, eq=False)
class ReleasedModel(ABC):
    """A model of a release: what `builder.store` needs to know about it, and how to read its snapshots."""

    subset: str
    number: int
    seed: int | None  # of its training; None if the release does not have it
    split: str
    recipe: Recipe
    block: int
    name: str  # the release's name for it
    diverged: bool  # whether the release says so; the snapshots may show it too

    @property
    def id(self) -> str:
        return model_id(self.subset, self.number)

    @property
    def image(self) -> None:
        """The image that it represents: none, since it classifies images."""
        return None

    @property
    @abstractmethod
    def num_snapshots(self) -> int: ...

    @abstractmethod
    def check(self) -> None:
        """Raise a ZooError unless its files exist with the right sizes."""

    @abstractmethod
    def results(self) -> list[dict[str, Any]]:
        """The columns epoch, step, accuracies and losses of each snapshot; they may be non-finite."""

    @abstractmethod
    def row(self, snapshot: int) -> np.ndarray:
        """[P] float32: a snapshot's weights in network order, not necessarily finite; counted from 0."""

    @abstractmethod
    def where_weights(self, snapshot: int) -> str:
        """Where a snapshot's weights are, for errors."""


@dataclass(frozen=True)
class LeftOut:
    """What an import leaves out: counted and named."""

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # reason -> names

    def add(self, why: str, *names: str) -> None:
        """Note names as left out; `why` is e.g. "nets that no split file lists"."""
        if names:
            self.names[why] += names

    def lines(self) -> list[str]:
        """One line per reason."""
        return [f"left out: {len(names)} {why}: {listed(names)}" for why, names in self.names.items()]


@dataclass(frozen=True)
class Release:
    """The models of a release, by subset and number, and what was left out."""

    models: Sequence[ReleasedModel]
    left_out: LeftOut
    seed: int | None = None  # its splits depend on this; None if it has its own splits
    notes: Sequence[str] = ()  # other messages, one sentence each


@dataclass
class BlockNumbers:
    """Numbers the shards of a subset; `streams` of them are filled in parallel, so that none waits."""

    num_snapshots: int
    streams: int = 1
    counts: Counter[tuple[str, BaseArchitecture, int]] = field(default_factory=Counter)

    def next(self, split: str, architecture: BaseArchitecture, stream: int = 0) -> int:
        """The block of the next model of a split, architecture and stream."""
        shard = (split, architecture, stream)
        self.counts[shard] += 1
        return (self.counts[shard] - 1) // models_per_shard(
            architecture, self.num_snapshots
        ) * self.streams + stream


# Shared by both readers


def checked_recipe(where: object, family: Family, given: Mapping[str, Any]) -> Recipe:
    """Make the recipe of a model; fields that the release lacks are the same in the whole family.

    Args:
        where: file and line to name in an error.
        family: the distributions from which the release was drawn; other values are errors.
        given: field of Recipe or Architecture -> the release's value.

    Raises:
        ZooError: for a value that no model of the family has.
    """
    return recipe_of(
        {
            **family,
            **{name: _legal(where, name, family.get(name, value), value) for name, value in given.items()},
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
    """Read a finite number of a table; True and False count as 1 and 0.

    Raises:
        ZooError: if the text is not such a number.
    """
    try:
        value = float({"True": "1", "False": "0"}.get(text, text))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ZooError(where, expected=f"a number as {name}", found=repr(text), do=REFETCH)
    return value


def whole_number(where: object, name: str, text: str) -> int:
    """Read an integer of a table, also if written as 3.0.

    Raises:
        ZooError: if the text is not an integer.
    """
    value = number(where, name, text)
    if value != int(value):
        raise ZooError(where, expected=f"a whole number as {name}", found=repr(text), do=REFETCH)
    return int(value)


def read_table(path: Path, columns: Sequence[str], notes: list[str] | None = None) -> list[dict[str, str]]:
    """Read the lines of a small CSV file.

    Args:
        path: of the file.
        columns: that each line must have.
        notes: if given, a file that was cut short is read up to its last whole line, and a note is
            added; otherwise a last line without a line break counts.

    Raises:
        ZooError: if it cannot be read, or a line lacks one of the columns.
    """
    try:
        check_file(path)
        if path.stat().st_size > MAX_TABLE_BYTES:
            found = f"{path.stat().st_size} bytes"
            raise ZooError(
                path, expected=f"a table of at most {MAX_TABLE_BYTES} bytes", found=found, do=REFETCH
            )
        text = path.read_bytes().decode("utf-8-sig")
        whole = text if notes is None else text[: text.rfind("\n") + 1]
        rows = list(csv.DictReader(io.StringIO(whole, newline=""), strict=True))
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
    if notes is None and not rows:
        raise ZooError(path, expected="at least one line", found="none", do=REFETCH)
    if notes is not None and (whole != text or not rows):
        notes.append(f"{path} is cut short: {len(rows)} whole lines are left")
    return rows


def own_split(where: object, text: str) -> str:
    """Read a split from one of our exports.

    Raises:
        ZooError: if the text is not a split.
    """
    if text not in SPLITS:
        raise ZooError(where, expected=f"a split, {', '.join(SPLITS)}", found=repr(text), do=REEXPORT)
    return text


def own_number(where: object, name: str, text: str, low: int, high: int) -> int:
    """Read an integer from low to high from one of our exports; unlike in `whole_number`, of any size.

    Raises:
        ZooError: if the text is not such an integer.
    """
    value = int(text) if re.fullmatch(r"-?\d{1,19}", text) else whole_number(where, name, text)
    if not low <= value <= high:
        raise ZooError(where, expected=f"{low} to {high} as {name}", found=str(value), do=REFETCH)
    return value
