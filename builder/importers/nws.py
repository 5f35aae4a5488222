"""Reads the original neural weight space, whose layout is in `builder.releases.nws`.

Axes: P weights, S snapshots, E exports.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from builder.importers.release import (
    REFETCH,
    BlockNumbers,
    LeftOut,
    Release,
    ReleasedModel,
    checked_recipe,
    number,
    own_number,
    own_split,
    read_table,
    whole_number,
)
from builder.releases import (
    MAX_EPOCHS,
    MAX_STEPS,
    OWN_DIVERGED,
    OWN_MAX_EPOCHS,
    OWN_NUMBER,
    OWN_SEED,
    OWN_SPLIT,
)
from builder.releases import nws as layout
from nws_dataset.errors import ZooError
from nws_dataset.files import path_type, resolve_inside
from nws_dataset.format.recipe import Recipe
from nws_dataset.format.schema import DIGITS
from nws_dataset.format.shards import ROW_DTYPE
from nws_dataset.format.subsets import SUBSETS, Family
from nws_dataset.networks.cnn import convolutional
from nws_dataset.networks.layout import layout_of

COLUMNS = ("dataset", "lrate", *layout.WHOLE, *layout.CODED, layout.PATH)  # required in a split file
SEED_RANGE = -(2**63), 2**63 - 1


@dataclass(frozen=True, eq=False)
class NwsNet(ReleasedModel):
    """A net of the release."""

    folder: Path
    part: str

    @property
    def num_snapshots(self) -> int:
        return SUBSETS[self.part].num_snapshots

    def check(self) -> None:
        num_weights = layout_of(self.recipe.architecture).num_weights
        for snapshot in range(self.num_snapshots):
            file = layout.weights_file(self.folder, snapshot)
            _check_size(file, num_weights, f"{self.recipe.architecture.id}'s weights")
        self.results()

    def results(self) -> list[dict[str, Any]]:
        file = self.folder / layout.STATISTICS
        exports, _, last_epoch, _ = _read(file, layout.STAT_NUMBERS, "numbers of a training").tolist()
        if not (self.num_snapshots <= exports <= MAX_EPOCHS and exports.is_integer()):
            raise ZooError(
                file,
                expected=f"{self.num_snapshots} or more exported epochs",
                found=f"{exports:g}",
                do=REFETCH,
            )
        epochs = chosen = layout.epochs_of(self.part, MAX_EPOCHS, int(exports))
        if self.diverged:  # in our exports, the last epoch is repeated
            if not 0 <= last_epoch <= MAX_EPOCHS:
                raise ZooError(file, expected="a last epoch", found=f"{last_epoch:g}", do=REFETCH)
            epochs = [int(min(epoch, last_epoch)) for epoch in chosen]
        return [
            {"epoch": epoch, **columns}
            for epoch, columns in zip(epochs, self._errors(int(exports), chosen), strict=True)
        ]

    def _errors(self, exports: int, chosen: list[int]) -> Iterator[dict[str, Any]]:
        """Step and accuracies of the chosen epochs."""
        file = self.folder / layout.ERRORS
        errors = _read(file, exports * layout.ERROR_COLUMNS, f"errors of {exports} epochs").reshape(
            exports, layout.ERROR_COLUMNS
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
        order = layout.row_order(self.recipe.architecture)
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
            file = layout.weights_file(self.folder, snapshot)
            return _read(file, len(order), "weights").astype(ROW_DTYPE)[order]

    def where_weights(self, snapshot: int) -> str:
        return str(layout.weights_file(self.folder, snapshot))


def read(root: Path) -> Release:
    """List the nets of the parts (main, fixed) whose split files are in a folder.

    A part's nets are numbered alternately from its train and its test file, so that the first few are from
    both splits; nets that we exported keep their numbers.

    Args:
        root: the folder with the split files. Their paths are relative to it; a path that does not exist
            means the only folder below `root` that ends in the same names.

    Raises:
        ZooError: if no split file lists a net, or one is damaged.
    """
    left_out, notes = LeftOut(), list[str]()
    folders = _Folders(root)
    nets: list[NwsNet] = []
    for part in layout.PARTS:
        if any(layout.split_file(root, part, split).exists() for split in layout.LISTED_SPLITS):
            nets += _read_part(root, part, folders, left_out, notes)
    if not nets and not left_out.names:
        first = layout.LISTED_SPLITS[0]
        names = " or ".join(layout.split_file(root, part, first).name for part in layout.PARTS)
        raise ZooError(
            root,
            expected=f"split files, such as {names}",
            found=", ".join(notes) or "none",
            do="give the folder that holds them",
        )
    listed = Counter(net.folder for net in nets)
    numbered = Counter(net.id for net in nets)
    once = [net for net in nets if listed[net.folder] == numbered[net.id] == 1]
    twice = sorted({net.name for net in nets} - {net.name for net in once})
    left_out.add("nets that the split files list twice", *twice)
    if not once:
        why, names_left_out = next(iter(left_out.names.items()))
        found = f"none but {len(names_left_out)} {why}, e.g. {names_left_out[0]}"
        raise ZooError(root, expected="nets that can be imported", found=found, do=REFETCH)
    unlisted = sorted(folders.name(folder) for folder in folders.all - listed.keys())
    left_out.add("nets that no split file lists", *unlisted)
    return Release(once, left_out, notes=notes)


class _Folders:
    """The nets' folders that are present.

    Args:
        root: the release's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = root.resolve()
        self.all = set(self._found())
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for folder in sorted(self.all):
            self._by_name[folder.name].append(folder)

    def _found(self) -> Iterator[Path]:
        for folder, below, files in os.walk(self.top):
            if layout.META in files or layout.WEIGHTS in below:
                below.clear()
                yield Path(folder)

    def name(self, folder: Path) -> str:
        """A folder's path in the release."""
        return folder.relative_to(self.top).as_posix()

    def of(self, path: str) -> Path:
        """Find the folder that a split file names.

        Args:
            path: relative, or from another machine: then its last names identify the folder, at least those
                of net and part, because nets of other parts may have the same name.

        Raises:
            ZooError: if there is none, or several end in the same names.
        """
        if not path.startswith("/") and "\\" not in path and ".." not in path.split("/"):
            folder = resolve_inside(self.root, path)
            if path_type(folder) != "nothing":
                return folder
        names = tuple(name for name in re.split(r"[\\/]+", path) if name not in ("", "."))
        alike = self._by_name.get(names[-1], []) if names else []
        found = [folder for folder in alike if self._fits(folder, names)]
        for length in range(3, len(names) + 1):
            longer = [folder for folder in found if folder.parts[-length:] == names[-length:]]
            if len(found) < 2 or not longer:
                break
            found = longer
        if len(found) != 1:
            expected = f"one folder that ends as {path!r} does"
            raise ZooError(self.root, expected=expected, found=str(len(found) or "none"), do=REFETCH)
        return found[0]

    def _fits(self, folder: Path, names: tuple[str, ...]) -> bool:
        """Whether a path ends in the names of a folder and of its parent, if that is below the root."""
        own = folder.relative_to(self.top).parts
        length = min(2, len(own), len(names))
        return own[-length:] == names[-length:]


def _read_part(
    root: Path, part: str, folders: _Folders, left_out: LeftOut, notes: list[str]
) -> Iterator[NwsNet]:
    """List a part's nets, numbered; add what is left out, and notes for the user."""
    (family,) = SUBSETS[part].families
    blocks = BlockNumbers(SUBSETS[part].num_snapshots)
    files = ((split, layout.split_file(root, part, split)) for split in layout.LISTED_SPLITS)
    tables = [
        [(split, f"{file} line {line}", row) for line, row in enumerate(read_table(file, COLUMNS, notes), 2)]
        for split, file in files
        if file.exists()
    ]
    in_turn = filter(None, itertools.chain.from_iterable(itertools.zip_longest(*tables)))
    for index, (split, where, row) in enumerate(in_turn):
        recipe = _recipe_of(where, family, row)
        own = _own_columns(where, index, split, row)
        block = blocks.next(own["split"], recipe.architecture)
        try:
            folder = folders.of(row[layout.PATH])
        except ZooError:
            left_out.add("nets whose folder is missing or ambiguous", row[layout.PATH])
            continue
        yield NwsNet(
            subset=layout.PARTS[part],
            recipe=recipe,
            block=block,
            name=row[layout.PATH],
            folder=folder,
            part=part,
            **own,
        )


def _own_columns(where: str, index: int, split: str, row: Mapping[str, str]) -> dict[str, Any]:
    """The values of our extra columns in an export, or defaults."""
    told = {name: row[name] for name in (OWN_NUMBER, OWN_SPLIT, OWN_SEED, OWN_DIVERGED) if row.get(name)}
    own: dict[str, Any] = {"number": index, "split": split, "seed": None, "diverged": False}
    if OWN_NUMBER in told:
        own["number"] = own_number(where, OWN_NUMBER, told[OWN_NUMBER], 0, 10**DIGITS - 1)
    if OWN_SPLIT in told:
        own["split"] = own_split(where, told[OWN_SPLIT])
    if OWN_SEED in told:
        own["seed"] = own_number(where, OWN_SEED, told[OWN_SEED], *SEED_RANGE)
    if OWN_DIVERGED in told:
        own["diverged"] = bool(whole_number(where, OWN_DIVERGED, told[OWN_DIVERGED]))
    return own


def _recipe_of(where: str, family: Family, row: Mapping[str, str]) -> Recipe:
    """The recipe in a line of a split file."""
    values: dict[str, Any] = {name: whole_number(where, name, row[name]) for name in layout.WHOLE}
    values["dataset"] = layout.DATASETS.get(row["dataset"], row["dataset"])
    for name in (*layout.CODED, *["dataset"] * row["dataset"].isdigit()):
        legal, code = family[name].values, whole_number(where, name, row[name])
        if code not in range(len(legal)):
            raise ZooError(where, expected=f"{name} 0 to {len(legal) - 1}", found=str(code), do=REFETCH)
        values[name] = legal[code]
    values["learning_rate"] = number(where, "lrate", row["lrate"])
    recipe = checked_recipe(where, family, {**values, "num_outputs": layout.OUTPUTS[0]})
    if row.get(OWN_MAX_EPOCHS):
        max_epochs = own_number(where, OWN_MAX_EPOCHS, row[OWN_MAX_EPOCHS], 1, MAX_EPOCHS)
        recipe = replace(recipe, max_epochs=max_epochs)
    if all(row.get(name) for name in layout.COUNTS):
        told = tuple(whole_number(where, name, row[name]) for name in layout.COUNTS)
        for outputs in layout.OUTPUTS:
            architecture = replace(convolutional(recipe.architecture), num_outputs=outputs)
            if layout.counts(architecture) == told:
                return replace(recipe, architecture=architecture)
    return recipe


def _check_size(file: Path, count: int, what: str) -> None:
    """Raise a ZooError unless a file has exactly `count` numbers."""
    expected = f"{count * layout.DTYPE.itemsize} bytes ({what})"
    found = f"{file.stat().st_size} bytes" if file.is_file() else "no file"
    if found != f"{count * layout.DTYPE.itemsize} bytes":
        raise ZooError(file, expected=expected, found=found, do=REFETCH)


def _read(file: Path, count: int, what: str) -> np.ndarray:
    """Read all numbers of a file, float64 [count]."""
    _check_size(file, count, what)
    return np.fromfile(file, layout.DTYPE)
