"""Writes a release as subsets of a zoo."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builder.image_sets import IMAGE_SETS
from builder.importers.release import REFETCH, LeftOut, Release, ReleasedModel
from builder.rules import CONVERGED_MARGIN
from builder.store import Store, metadata, open_store, shard_of
from nws_dataset.console import Progress
from nws_dataset.errors import ZooError, listed
from nws_dataset.files import path_type
from nws_dataset.format import shards
from nws_dataset.format.manifest import SubsetEntry
from nws_dataset.format.schema import METADATA_SCHEMA
from nws_dataset.format.subsets import IMPORTED, RELEASES


def import_zoo(release: str, source: Path, out: Path, models: int | None = None) -> str:
    """Write a release, or the part of it that is present, as subsets of a zoo; keep existing models.

    Args:
        release: "nws" (the original neural weight space) or "small_cnn" (the Small CNN Zoo).
        source: the folder of the release.
        out: the zoo's folder, created if missing.
        models: only the first N models.

    Returns:
        What was imported and what was left out, one line each.

    Raises:
        ZooError: if a file is missing, damaged or not in the release's layout, or the folder contains
            something else.

    Example:
        >>> print(import_zoo("small_cnn", Path("smallcnnzoo"), Path("imported")))
        small_cnn_2020: 2 models, 2 of them imported now
    """
    from builder.importers import nws, small_cnn

    readers: dict[str, Callable[[Path], Release]] = {"nws": nws.read, "small_cnn": small_cnn.read}
    assert tuple(readers) == RELEASES
    if release not in readers:
        raise ZooError(
            "--import", expected=f"one of {', '.join(readers)}", found=repr(release), do="choose one of them"
        )
    if path_type(source) != "a folder":
        raise ZooError(
            source, expected="the folder of a release", found=path_type(source), do="correct the path"
        )
    try:
        found = readers[release](source)
        lines = _write(found, models, out)
    except OSError as error:
        do = "permit it or free space, then run again"
        raise ZooError(
            error.filename or source, expected="files that can be read and written", found=str(error), do=do
        ) from error
    return "\n".join([*lines, *found.left_out.lines(), *found.notes])


def _write(release: Release, models: int | None, out: Path) -> list[str]:
    """Write the first models that are missing; return a report, line by line."""
    subsets: dict[str, list[ReleasedModel]] = defaultdict(list)
    for model in release.models[:models]:
        subsets[model.subset].append(model)
    damaged = _Damaged(release.left_out)
    with open_store(out) as store:
        parts = [
            _SubsetImport(store, name, members, release.seed, damaged) for name, members in subsets.items()
        ]
        total = sum(map(len, subsets.values()))
        with Progress("Checking", total, unit="models", transient=True) as progress:
            for part in parts:  # refuse before anything is written
                part.check(progress)
        if damaged.first is not None and not any(part.models for part in parts):
            raise damaged.first
        return [line for part in parts for line in part.write()]


class _Damaged:
    """Models with damaged files, which are left out.

    Args:
        left_out: reports them.
    """

    def __init__(self, left_out: LeftOut) -> None:
        self.left_out, self.first = left_out, None

    first: ZooError | None  # the first model's error

    def is_damaged(self, model: ReleasedModel) -> bool:
        """Whether a model cannot be imported; if so, it is noted."""
        try:
            model.check()
            if not _is_finite(model, model.results(), 0):
                raise _not_finite(model)
        except ZooError as error:
            self.first = self.first or error
            why = f"models of {model.subset} whose files are missing or damaged (the first: {self.first})"
            self.left_out.add(why, model.name)
            return True
        return False


class _SubsetImport:
    """The import of a release's subset into a zoo."""

    def __init__(
        self, store: Store, name: str, models: Sequence[ReleasedModel], seed: int | None, damaged: _Damaged
    ) -> None:
        self.store, self.name, self.damaged = store, name, damaged
        self.models = 0  # that can be imported, or already are
        self.entry = SubsetEntry(seed, 0, {"imported": IMPORTED[name].release})
        self.shards: dict[str, list[ReleasedModel]] = defaultdict(list)
        for model in models:
            self.shards[shard_of(model)].append(model)

    def check(self, progress: Progress) -> None:
        """Keep the shards that lack a model; raise a ZooError if zoo and release do not fit together."""
        self.store.check(self.name, self.entry)
        for path, models in list(self.shards.items()):
            present = self.store.models_in(path)
            models = [
                model
                for model in progress.track(models)
                if model.id in present or not self.damaged.is_damaged(model)
            ]
            wanted = {model.id for model in models}
            self.models += len(wanted | present)
            self.shards[path] = models
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
            else:
                for model in models:
                    if model.id in present:  # the shard, and so the model, is written again
                        model.check()

    def write(self) -> list[str]:
        """Write the shards, list those that exist even if one cannot be written, and return what was done."""
        self.store.declare(self.name, self.entry)
        present = self.store.manifest.subsets[self.name].num_models
        total = sum(model.num_snapshots for models in self.shards.values() for model in models)
        not_finite: list[str] = []
        try:
            with Progress(self.name, total, unit="snapshots") as progress:
                for path, models in self.shards.items():
                    whole = [_whole_snapshots(model) for model in models]
                    not_finite += [
                        model.name
                        for model, count in zip(models, whole, strict=True)
                        if count < model.num_snapshots
                    ]
                    rows, values = _shard(models, whole)
                    self.store.put(path, rows, progress.track(values))
        finally:
            self.store.commit()
        here = self.store.manifest.subsets[self.name].num_models
        lines = [f"{self.name}: {here} models, {here - present} of them imported now"]
        if not_finite:
            told = "models have snapshots that are not finite, which repeat the last finite one"
            lines.append(f"{self.name}: {len(not_finite)} {told}: {listed(not_finite)}")
        return lines


def _shard(models: Sequence[ReleasedModel], whole: Sequence[int]) -> tuple[pa.Table, Iterator[bytes]]:
    """A shard's snapshots and values, by (snapshot, model_id).

    Args:
        models: the shard's models.
        whole: how many snapshots of each are finite.
    """
    columns = [_columns(model, count) for model, count in zip(models, whole, strict=True)]
    rows = [row for snapshot in zip(*columns, strict=True) for row in snapshot]
    values = (
        shards.pack(model.recipe.architecture, model.row(min(snapshot, count - 1)))
        for snapshot in range(len(columns[0]))
        for model, count in zip(models, whole, strict=True)
    )
    return pa.Table.from_pylist(rows, METADATA_SCHEMA), values


def _whole_snapshots(model: ReleasedModel) -> int:
    """How many snapshots come before the first one with weights or results that are not finite."""
    results = model.results()
    finite = (_is_finite(model, results, snapshot) for snapshot in range(len(results)))
    whole = sum(1 for _ in itertools.takewhile(bool, finite))
    if not whole:
        raise _not_finite(model)
    return whole


def _is_finite(model: ReleasedModel, results: Sequence[dict[str, Any]], snapshot: int) -> bool:
    """Whether a snapshot's weights and results are finite."""
    finite = all(map(math.isfinite, results[snapshot].values()))
    return finite and bool(np.isfinite(model.row(snapshot)).all())


def _not_finite(model: ReleasedModel) -> ZooError:
    """The error for a model without a finite snapshot."""
    expected = "finite weights and results of the initial network"
    return ZooError(
        model.where_weights(0),
        expected=expected,
        found="a number that is not finite in float32, or no number",
        do=REFETCH,
    )


def _columns(model: ReleasedModel, whole: int) -> list[dict[str, Any]]:
    """The columns of a model's snapshots; snapshot `whole` - 1 replaces all that follow."""
    results = model.results()
    accuracy = results[whole - 1]["test_accuracy"]
    converged = accuracy >= IMAGE_SETS[model.recipe.dataset].majority_rate + CONVERGED_MARGIN
    flags = {"converged": converged, "diverged": model.diverged or whole < len(results)}
    return metadata(
        model, [{**results[min(snapshot, whole - 1)], **flags} for snapshot in range(len(results))]
    )
