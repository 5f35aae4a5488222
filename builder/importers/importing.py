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
from builder.importers.base import REFETCH, Release, ReleasedModel
from builder.rules import CONVERGED_MARGIN
from builder.store import Store, metadata, open_store, shard_of
from nws_dataset.console import Progress
from nws_dataset.errors import ZooError
from nws_dataset.files import path_type
from nws_dataset.format import shards
from nws_dataset.format.manifest import SubsetEntry
from nws_dataset.format.schema import METADATA_SCHEMA
from nws_dataset.format.subsets import IMPORTED, RELEASES, SUBSETS


def import_zoo(release: str, source: Path, out: Path, models: int | None = None) -> str:
    """Write a release, or the part of it that is there, as subsets of a zoo; what the zoo has already is
    kept.

    Args:
        release: "nws" (the original neural weight space) or "small_cnn" (the Small CNN Zoo).
        source: the folder of the release.
        out: the zoo's folder, made when missing.
        models: only the first so many.

    Returns:
        What was imported and what was left out, one line each.

    Raises:
        ZooError: if a file is missing, damaged or not of the release's layout, or the folder holds something
            else.

    Example:
        >>> print(import_zoo("small_cnn", Path("smallcnnzoo"), Path("imported")))
        small_cnn_2020: 2 models, 2 of them imported now
    """
    from builder.importers import nws, small_cnn  # they build on this module

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
        lines = _write(found.models[:models], out, found.seed)
    except OSError as error:
        do = "permit it or free space, then run again"
        raise ZooError(
            error.filename or source, expected="files that can be read and written", found=str(error), do=do
        ) from error
    return "\n".join([*lines, *found.left_out])


def _write(models: Sequence[ReleasedModel], out: Path, seed: int | None) -> list[str]:
    """Write what is missing of the models; returns a line of what was done for each subset."""
    subsets: dict[str, list[ReleasedModel]] = defaultdict(list)
    for model in models:
        subsets[model.subset].append(model)
    with open_store(out) as store:
        parts = [_SubsetImport(store, name, members, seed) for name, members in subsets.items()]
        for part in parts:  # refused before anything is written
            part.check()
        return [part.write() for part in parts]


class _SubsetImport:
    """A subset of a release on its way into a zoo."""

    def __init__(self, store: Store, name: str, models: Sequence[ReleasedModel], seed: int | None) -> None:
        self.store, self.name = store, name
        self.entry = SubsetEntry(seed, 0, {"imported": IMPORTED[name].release})
        self.shards: dict[str, list[ReleasedModel]] = defaultdict(list)
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
        total = sum(map(len, self.shards.values())) * SUBSETS[IMPORTED[self.name].recipe_of].num_snapshots
        try:
            with Progress(self.name, total, unit="snapshots") as progress:
                for path, models in self.shards.items():
                    metadata_table, values = _shard(models)
                    self.store.put(path, metadata_table, progress.track(values))
        finally:
            self.store.commit()
        here = self.store.manifest.subsets[self.name].num_models
        return f"{self.name}: {here} models, {here - present} of them imported now"


def _shard(models: Sequence[ReleasedModel]) -> tuple[pa.Table, Iterator[bytes]]:
    """The metadata and values of a shard, by (snapshot, model_id)."""
    whole = [_whole_snapshots(model) for model in models]
    columns = [_columns(model, count) for model, count in zip(models, whole, strict=True)]
    lines = [line for snapshot in zip(*columns, strict=True) for line in snapshot]
    values = (
        shards.pack(model.recipe.architecture, model.row(min(snapshot, count - 1)))
        for snapshot in range(len(columns[0]))
        for model, count in zip(models, whole, strict=True)
    )
    return pa.Table.from_pylist(lines, METADATA_SCHEMA), values


def _whole_snapshots(model: ReleasedModel) -> int:
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
            model.where_weights(0),
            expected=expected,
            found="a number that is not (in float32), or none",
            do=REFETCH,
        )
    return whole


def _columns(model: ReleasedModel, whole: int) -> list[dict[str, Any]]:
    """The columns of a model's snapshots; the last of the `whole` ones stands for those that follow it."""
    results = model.results()
    accuracy = results[whole - 1]["test_accuracy"]
    converged = accuracy >= IMAGE_SETS[model.recipe.dataset].majority_rate + CONVERGED_MARGIN
    flags = {"converged": converged, "diverged": whole < len(results)}
    return metadata(
        model, [{**results[min(snapshot, whole - 1)], **flags} for snapshot in range(len(results))]
    )
