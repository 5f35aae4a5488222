"""Reads the original neural weight space (Eilertsen et al. 2020): split files, and a folder a net with raw
float64 weights.

    nws_<part>_<split>.csv          one line a net: its recipe, and its folder `path`
    <path>/weights/001.bin ...      the snapshots, float64, layer by layer
    <path>/error.bin                five float64 an epoch: step, errors in percent (training, validation,
                                    test, smoothed validation)
    <path>/stat.bin                 four float64; the first is the number of epochs that were exported

Axes: P weights, S snapshots, E exports, O units, H W height and width, C channels.
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from builder.importers.base import (
    MAX_EPOCHS,
    MAX_STEPS,
    REFETCH,
    BlockNumbers,
    Release,
    ReleasedModel,
    checked_recipe,
    number,
    read_table,
    whole_number,
)
from builder.rules import chosen_exports
from nws_dataset.errors import ZooError
from nws_dataset.files import resolve_inside
from nws_dataset.format.layout import layout_of
from nws_dataset.format.recipe import Architecture, Recipe
from nws_dataset.format.shards import ROW_DTYPE
from nws_dataset.format.subsets import SUBSETS, Family, subsets_of

PARTS = subsets_of("nws")  # "main" and "fixed", as the release and we name them -> imported subset
SPLITS = ("train", "test")
NUM_OUTPUTS = 20
DTYPE = np.dtype("<f8")
# of a layer's tensors in the release
ROLE_ORDER = ("weight", "bias", "norm_bias", "norm_weight", "norm_mean", "norm_variance")
ERROR_COLUMNS = 5  # of error.bin
STAT_NUMBERS = 4  # of stat.bin
DATASETS = {"fashion": "fashion_mnist"}  # the release's name -> ours, where they differ
# given as indices of the family's values; a data set may be, too
CODED = ("optimizer", "activation", "initialization")
WHOLE = (
    "batch_size",
    "batch_norm",
    "augmentation",
    "filter_size",
    "depth_conv",
    "depth_fc",
    "width_conv",
    "width_fc",
)
COLUMNS = ("dataset", "lrate", *WHOLE, *CODED, "path")
META_NAME = "meta.csv"  # each net's folder has one


@dataclass(frozen=True, eq=False)
class Net(ReleasedModel):
    """A net of the release."""

    folder: Path
    part: str

    def check(self) -> None:
        num_weights = layout_of(self.recipe.architecture).num_weights
        for snapshot in range(SUBSETS[self.part].num_snapshots):
            _check_size(self._weights(snapshot), num_weights, f"{self.recipe.architecture.id}'s weights")
        self.results()

    def results(self) -> list[dict[str, Any]]:
        file = self.folder / "stat.bin"
        exports = float(_read(file, STAT_NUMBERS, "numbers of a training")[0])
        subset = SUBSETS[self.part]
        if not (subset.num_snapshots <= exports <= MAX_EPOCHS and exports.is_integer()):
            raise ZooError(
                file,
                expected=f"{subset.num_snapshots} or more exported epochs",
                found=f"{exports:g}",
                do=REFETCH,
            )
        chosen = chosen_exports(subset, self.recipe.max_epochs, int(exports))
        return [
            {"epoch": export, **columns}
            for export, columns in zip(chosen, self._errors(int(exports), chosen), strict=True)
        ]

    def _errors(self, exports: int, chosen: list[int]) -> Iterator[dict[str, Any]]:
        """Step and accuracies of the chosen epochs."""
        file = self.folder / "error.bin"
        errors = _read(file, exports * ERROR_COLUMNS, f"errors of {exports} epochs").reshape(
            exports, ERROR_COLUMNS
        )
        for step, train, validation, test, _ in errors[chosen].tolist():
            if not (
                0 <= step <= MAX_STEPS
                and step.is_integer()
                and all(0 <= error <= 100 for error in (train, validation, test))
            ):
                found = f"step {step:g}, errors {train:g}, {validation:g}, {test:g}"
                raise ZooError(file, expected="a whole step and errors in percent", found=found, do=REFETCH)
            accuracies = {"train_accuracy": train, "validation_accuracy": validation, "test_accuracy": test}
            yield {"step": int(step), **{name: 1 - error / 100 for name, error in accuracies.items()}}

    def row(self, snapshot: int) -> np.ndarray:
        order = _order(self.recipe.architecture)
        with np.errstate(over="ignore"):  # what float32 cannot hold is not finite
            return _read(self._weights(snapshot), len(order), "weights").astype(ROW_DTYPE)[order]

    def where_weights(self, snapshot: int) -> str:
        return str(self._weights(snapshot))

    def _weights(self, snapshot: int) -> Path:
        return self.folder / "weights" / f"{snapshot + 1:03d}.bin"


def read(root: Path) -> Release:
    """List the nets of the parts (main, fixed) whose split files are in a folder.

    A part's nets are numbered in turn from its train and its test file, so that the first few are of both
    splits.

    Args:
        root: the folder with the split files; their paths are relative to it.

    Raises:
        ZooError: if there is no split file, one is missing or damaged, or a net is listed twice.
    """
    nets: list[Net] = []
    for part in PARTS:
        if any(_split_file(root, part, split).exists() for split in SPLITS):
            nets += _read_part(root, part)
    if not nets:
        names = " or ".join(f"{_split_file(root, part, SPLITS[0]).name}" for part in PARTS)
        raise ZooError(
            root, expected=f"split files, such as {names}", found="none", do="give the folder that holds them"
        )
    listed: set[Path] = set()
    for net in nets:
        if net.folder in listed:
            raise ZooError(
                net.folder, expected="a net that the split files list once", found="it twice", do=REFETCH
            )
        listed.add(net.folder)
    unlisted = sum(folder not in listed for folder in _net_folders(root.resolve()))
    return Release(nets, [f"left out: {unlisted} nets that no split file lists"])


def _split_file(root: Path, part: str, split: str) -> Path:
    return root / f"nws_{part}_{split}.csv"


def _net_folders(root: Path) -> Iterator[Path]:
    """The folders of all nets, listed or not."""
    for folder, below, files in os.walk(root):
        if META_NAME in files:
            below.clear()
            yield Path(folder)


def _read_part(root: Path, part: str) -> Iterator[Net]:
    """The nets of a part, numbered."""
    (family,) = SUBSETS[part].families
    blocks = BlockNumbers(SUBSETS[part].num_snapshots)
    tables = [
        [(split, f"{file} line {line}", entry) for line, entry in enumerate(read_table(file, COLUMNS), 2)]
        for split, file in ((split, _split_file(root, part, split)) for split in SPLITS)
        if file.exists()
    ]
    in_turn = filter(None, itertools.chain.from_iterable(itertools.zip_longest(*tables)))
    for index, (split, where, entry) in enumerate(in_turn):
        recipe = _recipe_of(where, family, entry)
        block = blocks.next(split, recipe.architecture)
        yield Net(
            PARTS[part],
            index,
            None,
            split,
            recipe,
            block,
            folder=_folder(root, where, entry["path"]),
            part=part,
        )


def _folder(root: Path, where: str, path: str) -> Path:
    """The folder that a split file names."""
    try:
        return resolve_inside(root, path)
    except ZooError as error:
        raise ZooError(
            where,
            expected="a path below the split file's folder",
            found=repr(path),
            do="do not trust this file",
        ) from error


def _recipe_of(where: str, family: Family, entry: dict[str, str]) -> Recipe:
    """The recipe of an entry of a split file."""
    values: dict[str, Any] = {name: whole_number(where, name, entry[name]) for name in WHOLE}
    values["dataset"] = DATASETS.get(entry["dataset"], entry["dataset"])
    for name in (*CODED, *["dataset"] * entry["dataset"].isdigit()):
        legal, code = family[name].values, whole_number(where, name, entry[name])
        if code not in range(len(legal)):
            raise ZooError(where, expected=f"{name} 0 to {len(legal) - 1}", found=str(code), do=REFETCH)
        values[name] = legal[code]
    values["learning_rate"] = number(where, "lrate", entry["lrate"])
    return checked_recipe(where, family, {**values, "num_outputs": NUM_OUTPUTS})


def _check_size(file: Path, count: int, what: str) -> None:
    """Raise a ZooError unless a file holds so many numbers."""
    expected = f"{count * DTYPE.itemsize} bytes ({what})"
    found = f"{file.stat().st_size} bytes" if file.is_file() else "no file"
    if found != f"{count * DTYPE.itemsize} bytes":
        raise ZooError(file, expected=expected, found=found, do=REFETCH)


def _read(file: Path, count: int, what: str) -> np.ndarray:
    """All the numbers of a file, float64 [count]."""
    _check_size(file, count, what)
    return np.fromfile(file, DTYPE)


@functools.cache
def _order(architecture: Architecture) -> np.ndarray:
    """Where each number of our row stands in the release's: [P]."""
    found, start = {}, 0
    layout = layout_of(architecture)
    for _, layer in itertools.groupby(layout.tensors, operator.attrgetter("layer")):
        for spec in sorted(layer, key=lambda spec: ROLE_ORDER.index(spec.role)):
            found[spec.name] = np.arange(start, start + spec.size)
            start += spec.size
    size = architecture.map_sizes[-1]
    first_OHWC = found["dense1.weight"].reshape(-1, size, size, architecture.conv_widths[-1])
    found["dense1.weight"] = first_OHWC.transpose(0, 3, 1, 2).ravel()
    return np.concatenate([found[spec.name] for spec in layout.tensors])
