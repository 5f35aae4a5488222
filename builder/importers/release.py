"""Imports an original release into a zoo's folder, shard by shard and straight from its files.

`nws.read` and `small_cnn.read` list the release's models; what follows is the same for both. A shard that is
complete is not written again, so an import may stop at any moment, and another part of the release adds to
the folder.

Axes: P weights, S snapshots.
"""

from __future__ import annotations

import csv
import itertools
import math
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builder.importers import IMPORTED, KINDS
from builder.importers.progress import Progress
from builder.plan import models_per_shard, recipe_of
from builder.store import Store, metadata, open_store, shard_of
from builder.train import CONVERGED_MARGIN
from nws_dataset import shards
from nws_dataset.errors import ZooError, reason
from nws_dataset.files import check_file, what_is_at
from nws_dataset.manifest import SubsetEntry
from nws_dataset.recipe import SUBSETS, Architecture, Choice, Cycle, Family, LogUniform, Recipe, Uniform
from nws_dataset.schema import METADATA_SCHEMA, model_id

MAX_TABLE_BYTES = 1 << 24  # of a small table: the split file of 16,000 nets has a tenth of that
MAX_EPOCHS, MAX_STEPS = 10**6, 10**12  # of a training: they have 1,000 epochs at most
REFETCH = "fetch the release again"  # what helps against a damaged file


@dataclass(frozen=True)
class ImageFacts:
    """Counts of an image set, which a release does not tell."""

    training: int  # images
    test: int
    majority: int  # test images of the commonest class

    @property
    def majority_rate(self) -> float:
        """The test accuracy of a constant answer."""
        return self.majority / self.test


IMAGE_FACTS = {
    "mnist": ImageFacts(60_000, 10_000, 1135),
    "fashion_mnist": ImageFacts(60_000, 10_000, 1000),
    "cifar10": ImageFacts(50_000, 10_000, 1000),
    "svhn": ImageFacts(73_257, 26_032, 5099),
    "stl10": ImageFacts(5_000, 8_000, 800),
}


@dataclass(frozen=True, eq=False)
class Original(ABC):
    """A model of a release: what `builder.store` wants to know of a model, and how its snapshots are read."""

    subset: str
    number: int
    seed: int | None  # of its training; None if the release does not tell it
    split: str
    recipe: Recipe
    block: int

    @property
    def id(self) -> str:
        return model_id(self.subset, self.number)

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
    def place(self, snapshot: int) -> str:
        """Where the weights of a snapshot stand, for errors."""


@dataclass(frozen=True)
class Release:
    """The models of a release, by subset and number, and what is not among them."""

    models: Sequence[Original]
    left_out: Sequence[str]  # how many and why, one sentence each
    seed: int | None = None  # what its splits follow from; None if it has splits of its own


@dataclass
class Blocks:
    """Numbers the shards of a subset; `streams` of them are filled side by side, so that one does not wait
    for another.
    """

    num_snapshots: int
    streams: int = 1
    counts: Counter[tuple[str, Architecture, int]] = field(default_factory=Counter)

    def next(self, split: str, architecture: Architecture, stream: int = 0) -> int:
        """The block of the next model of a split, architecture and stream."""
        place = (split, architecture, stream)
        self.counts[place] += 1
        return (self.counts[place] - 1) // models_per_shard(
            architecture, self.num_snapshots
        ) * self.streams + stream


def import_zoo(kind: str, source: Path, out: Path, models: int | None = None) -> str:
    """Write a release, or the part of it that is there, as subsets of a zoo; what the zoo has already is
    kept.

    Args:
        kind: "nws" (the original neural weight space) or "small_cnn" (the Small CNN Zoo).
        source: the folder of the release.
        out: the zoo's folder, made when missing.
        models: only the first so many.

    Returns:
        What was imported and what was left out, one line each.

    Raises:
        ZooError: if a file is missing, damaged or not of the release's layout, or the folder holds something
            else.

    Example:
        >>> print(import_zoo("small_cnn", Path("smallcnnzoo"), Path("nws")))  # doctest: +SKIP
        small_cnn_2020: 119985 models, 119985 of them imported now
    """
    from builder.importers import nws, small_cnn  # they build on this module

    readers: dict[str, Callable[[Path], Release]] = {"nws": nws.read, "small_cnn": small_cnn.read}
    assert tuple(readers) == KINDS
    if kind not in readers:
        raise ZooError(
            "--import", expected=f"one of {', '.join(readers)}", found=repr(kind), do="choose one of them"
        )
    if what_is_at(source) != "a folder":
        raise ZooError(
            source, expected="the folder of a release", found=what_is_at(source), do="correct the path"
        )
    try:
        release = readers[kind](source)
        lines = _write(release.models[:models], out, release.seed)
    except OSError as error:
        do = "permit it or free space, then run again"
        raise ZooError(
            error.filename or source, expected="files that can be read and written", found=str(error), do=do
        ) from error
    return "\n".join([*lines, *release.left_out])


def _write(models: Sequence[Original], out: Path, seed: int | None) -> list[str]:
    """Write what is missing of the models; returns a line of what was done for each subset."""
    subsets: dict[str, list[Original]] = defaultdict(list)
    for model in models:
        subsets[model.subset].append(model)
    with open_store(out) as store:
        parts = [_Part(store, name, members, seed) for name, members in subsets.items()]
        for part in parts:  # refused before anything is written
            part.check()
        return [part.write() for part in parts]


class _Part:
    """A subset of a release on its way into a zoo."""

    def __init__(self, store: Store, name: str, models: Sequence[Original], seed: int | None) -> None:
        self.store, self.name = store, name
        self.entry = SubsetEntry(seed, 0, {"imported": IMPORTED[name].kind})
        self.shards: dict[str, list[Original]] = defaultdict(list)
        for model in models:
            self.shards[shard_of(model)].append(model)

    def check(self) -> None:
        """Keep the shards that lack a model, and raise a ZooError if the zoo or the release is not fit for
        them.
        """
        self.store.check(self.name, self.entry)
        for path, models in list(self.shards.items()):
            wanted, present = {model.id for model in models}, self.store.models_in(path)
            if wanted <= present:
                del self.shards[path]
            elif not present <= wanted:
                found = f"{len(present - wanted)} others"
                raise ZooError(
                    self.store.out / path,
                    expected="models that this release has too",
                    found=found,
                    do="import into another folder",
                )
        for model in itertools.chain.from_iterable(self.shards.values()):
            model.check()

    def write(self) -> str:
        """Write the shards, and list those that are there even if one cannot be written; returns what was
        done.
        """
        self.store.declare(self.name, self.entry)
        present = self.store.manifest.subsets[self.name].num_models
        total = sum(map(len, self.shards.values())) * SUBSETS[IMPORTED[self.name].like].num_snapshots
        try:
            with Progress(self.name, total) as progress:
                for path, models in self.shards.items():
                    rows, values = _shard(models)
                    self.store.put(path, rows, progress.track(values))
        finally:
            self.store.commit()
        here = self.store.manifest.subsets[self.name].num_models
        return f"{self.name}: {here} models, {here - present} of them imported now"


def _shard(models: Sequence[Original]) -> tuple[pa.Table, Iterator[bytes]]:
    """The rows and values of a shard, by (snapshot, model_id)."""
    whole = [_whole_snapshots(model) for model in models]
    columns = [_columns(model, count) for model, count in zip(models, whole, strict=True)]
    rows = [row for snapshot in zip(*columns, strict=True) for row in snapshot]
    values = (
        shards.pack(model.recipe.architecture, model.row(min(snapshot, count - 1)))
        for snapshot in range(len(columns[0]))
        for model, count in zip(models, whole, strict=True)
    )
    return pa.Table.from_pylist(rows, METADATA_SCHEMA), values


def _whole_snapshots(model: Original) -> int:
    """How many snapshots come before the first whose weights or results are not finite; all, if there is none
    such.
    """
    results = model.results()

    def is_whole(snapshot: int) -> bool:
        return all(map(math.isfinite, results[snapshot].values())) and bool(
            np.isfinite(model.row(snapshot)).all()
        )

    whole = sum(1 for _ in itertools.takewhile(is_whole, range(len(results))))
    if not whole:
        expected = "finite weights and results of the initial network"
        raise ZooError(
            model.place(0), expected=expected, found="a number that is not (in float32), or none", do=REFETCH
        )
    return whole


def _columns(model: Original, whole: int) -> list[dict[str, Any]]:
    """The columns of a model's snapshots; the last of the `whole` ones stands for those that follow it."""
    results = model.results()
    accuracy = results[whole - 1]["test_accuracy"]
    converged = accuracy >= IMAGE_FACTS[model.recipe.dataset].majority_rate + CONVERGED_MARGIN
    flags = {"converged": converged, "diverged": whole < len(results)}
    return metadata(
        model, [{**results[min(snapshot, whole - 1)], **flags} for snapshot in range(len(results))]
    )


# What both readers need


def told_recipe(where: object, family: Family, told: Mapping[str, Any]) -> Recipe:
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
        raise ZooError(path, expected="at least one row", found="none", do=REFETCH)
    return rows
