"""Writes a zoo in the layout of the Small CNN Zoo, see `builder.releases.small_cnn`.

Each image set has a folder with rows model by model, as the authors' notebook expects. The metrics have extra
columns besides the release's, so that an import restores the same models.
"""

from __future__ import annotations

import csv
import gzip
import io
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, cast

import numpy as np

from builder.exporters.export_folder import ExportFolder
from builder.exporters.exporter import Exporter, Misfits, chunks, note_recipes, only_one_of
from builder.releases import (
    EPOCHS_NOTE,
    MAX_EPOCHS,
    OWN_DIVERGED,
    OWN_EPOCH,
    OWN_NUMBER,
    OWN_SEED,
    OWN_SNAPSHOTS,
    OWN_SPLIT,
)
from builder.releases import small_cnn as layout
from nws_dataset.console import Progress
from nws_dataset.errors import ZooError, listed
from nws_dataset.format.schema import SPLITS
from nws_dataset.format.shards import ROW_DTYPE
from nws_dataset.networks.layout import layout_of
from nws_dataset.reading.snapshots import Snapshots

CHUNK_SNAPSHOTS = 2000  # read at once: 40 MB
COLUMNS = (
    "dataset", "model_id", "model_number", "split", "seed", "snapshot", "num_snapshots", "is_final", "epoch",
    "max_epochs", "diverged", *layout.TEXTS.values(), *layout.NUMBERS.values(), *layout.RESULTS,
)  # fmt: skip
HEADER = (
    layout.CHECKPOINT,
    *sorted((*layout.TEXTS, *layout.NUMBERS, *layout.CONSTANT, layout.EPOCHS, layout.RANDOM_SEED)),
    layout.MODEL,
    layout.STEP,
    *layout.RESULTS,
    OWN_NUMBER,
    OWN_SPLIT,
    OWN_SEED,
    OWN_EPOCH,
    OWN_SNAPSHOTS,
    OWN_DIVERGED,
)
FILES = (*layout.FILES, layout.SPLIT, *layout.NOTEBOOK_FILES)  # of an image set
DATASET_NAMES = {ours: theirs for theirs, ours in layout.DATASETS.items()}
INITIALIZATION_NAMES = {ours: theirs for theirs, ours in layout.INITIALIZATIONS.items()}
# Loaders take the first half of the rows in SPLIT for training and validation, shuffle its positions with
# this seed, and train on this share of them
LOADERS_SEED, LOADERS_SHARE = 0, 0.8
NOTE = """\
In {metrics} the column "{step}" says {final_step} for the last snapshot of each of the {models} models,
because the export was asked to (--final-step): loaders of the Small CNN Zoo look for that number.
The epoch that was really trained is in the column "{epoch}" and in the first column
(.../permanent_ckpt-EPOCH).
"""


class SmallCnnExporter(Exporter):
    """Writes a zoo in the layout of the Small CNN Zoo."""

    title = "the Small CNN Zoo's layout"
    names = re.compile(
        rf"({'|'.join(DATASET_NAMES.get(name, name) for name in layout.FAMILY['dataset'].values)})"
        rf"/({'|'.join(map(re.escape, (*FILES, EPOCHS_NOTE)))})"
    )

    def note_misfits(self, snapshots: Snapshots, misfits: Misfits) -> None:
        finals = snapshots[snapshots["is_final"]]
        note_recipes(misfits, finals, layout.FAMILY)
        shapes = dict(zip(finals["model_id"].tolist(), finals["num_weights"].tolist(), strict=True))
        for identifier, count in shapes.items():
            if count != layout.num_weights():
                misfits.models[f"a network of {count} weights"].append(identifier)
        unlike = _repeats(snapshots) & ~snapshots["diverged"]
        for identifier in dict.fromkeys(snapshots["model_id"][unlike].tolist()):
            misfits.models["an epoch twice"].append(identifier)

    def files(self) -> list[str]:
        only_one_of(self.zoo, self.subsets)
        self._check_final_step()
        names = [*FILES, *[EPOCHS_NOTE] * (self.options.final_step is not None)]
        datasets = sorted(set(self.snapshots["dataset"].tolist()))
        return [f"{_folder_of(dataset)}/{name}" for dataset in datasets for name in names]

    def _check_final_step(self) -> None:
        """Raise a ZooError for a step that loaders would find at other snapshots too."""
        if self.options.final_step is None:
            return
        snapshots = self.snapshots[~_repeats(self.snapshots)]
        lowest = int(snapshots["epoch"][~_is_last(snapshots)].max(initial=-1)) + 1
        if not lowest <= self.options.final_step <= MAX_EPOCHS:
            raise ZooError(
                "--final-step",
                expected=f"{lowest} to {MAX_EPOCHS}, after the epochs of all snapshots but the final ones",
                found=str(self.options.final_step),
                do="give another epoch, or leave it out",
            )

    def write(self, folder: ExportFolder, progress: Progress) -> list[str]:
        lines: list[str] = []
        for dataset in sorted(set(self.snapshots["dataset"].tolist())):
            snapshots = self.snapshots.filter(dataset=dataset)
            lines += self._write_dataset(folder, dataset, snapshots[~_repeats(snapshots)], progress)
        return lines

    def _write_dataset(
        self, folder: ExportFolder, dataset: str, snapshots: Snapshots, progress: Progress
    ) -> list[str]:
        """Write an image set's files.

        Args:
            folder: the export's folder.
            dataset: the image set.
            snapshots: model by model, each epoch once.
            progress: advanced for each model.
        """
        name = _folder_of(dataset)
        of_a_row = layout_of(self.zoo.architecture(snapshots[0]))
        entries = layout.published_entries(of_a_row)
        order = np.argsort(layout.row_order(entries, of_a_row.num_weights))

        def fill_weights(file: BinaryIO) -> None:
            header = {"descr": ROW_DTYPE.str, "fortran_order": False}
            shape = (len(snapshots), of_a_row.num_weights)
            np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
            for part in chunks(snapshots, CHUNK_SNAPSHOTS):
                file.write(self.zoo.weights(part)[:, order].tobytes())
                for _ in range(len(set(part["model_number"].tolist()))):
                    progress.advance(note=name)

        folder.write(f"{name}/{layout.WEIGHTS}", fill_weights)
        folder.same(f"{name}/{layout.NOTEBOOK_WEIGHTS}", f"{name}/{layout.WEIGHTS}")
        rows = [
            (entry.name, entry.start, entry.stop, entry.stop - entry.start, entry.shape) for entry in entries
        ]
        columns = (*layout.LAYOUT_COLUMNS[:-1], "size", layout.LAYOUT_COLUMNS[-1])
        folder.write(f"{name}/{layout.LAYOUT}", _csv([columns, *rows]))
        lines = [HEADER, *(line for part in chunks(snapshots, CHUNK_SNAPSHOTS) for line in self._lines(part))]
        folder.write(f"{name}/{layout.METRICS}", _gzipped(_csv(lines)))
        folder.write(f"{name}/{layout.NOTEBOOK_METRICS}", _csv(lines))
        listed_rows, complaint = self._split(snapshots)
        folder.write(f"{name}/{layout.SPLIT}", _csv([row] for row in listed_rows))
        if self.options.final_step is not None:
            note = NOTE.format(
                metrics=layout.METRICS,
                step=layout.STEP,
                final_step=self.options.final_step,
                models=int(_is_last(snapshots).sum()),
                epoch=OWN_EPOCH,
            )
            folder.put(f"{name}/{EPOCHS_NOTE}", note.encode())
        return [f"{name}: {complaint}"] if complaint else []

    def _steps(self, snapshots: Snapshots) -> np.ndarray:
        """The metrics' step column, [N]."""
        epochs = snapshots["epoch"]
        if self.options.final_step is None:
            return epochs
        return np.where(_is_last(snapshots), self.options.final_step, epochs)

    def _lines(self, snapshots: Snapshots) -> Iterator[Sequence[Any]]:
        """The metrics' lines."""
        rows = snapshots.select(COLUMNS).to_pylist()
        for row, step in zip(rows, self._steps(snapshots).tolist(), strict=True):
            model = f"{_folder_of(row['dataset'])}/{row['model_number']:06d}"
            names = {
                "dataset": _folder_of(row["dataset"]),
                "initialization": INITIALIZATION_NAMES.get(row["initialization"], row["initialization"]),
            }
            line = {
                layout.CHECKPOINT: layout.checkpoint_name(model, row["epoch"]),
                **{column: names.get(name, row[name]) for column, name in layout.TEXTS.items()},
                **{column: row[name] for column, name in layout.NUMBERS.items()},
                **layout.CONSTANT,
                layout.EPOCHS: row["max_epochs"],
                layout.RANDOM_SEED: row["seed"],
                layout.MODEL: model,
                layout.STEP: step,
                **{name: row[name] for name in layout.RESULTS},
                OWN_NUMBER: row["model_number"],
                OWN_SPLIT: row["split"],
                OWN_SEED: row["seed"],
                OWN_EPOCH: row["epoch"],
                OWN_SNAPSHOTS: row["num_snapshots"],
                OWN_DIVERGED: int(row["diverged"]),
            }
            yield [line[column] for column in HEADER]

    def _split(self, snapshots: Snapshots) -> tuple[list[int], str]:
        """The rows to list in SPLIT, and what is wrong with them, if anything."""
        last = np.flatnonzero(_is_last(snapshots))
        steps = self._steps(snapshots)[last]
        (values, counts) = np.unique(steps, return_counts=True)
        step = values[counts.argmax()]
        splits = snapshots["split"][last]
        rows = {split: last[(steps == step) & (splits == split)].tolist() for split in SPLITS}
        complaints = []
        if (steps != step).any():
            ended = listed(snapshots["model_id"][last[steps != step]].tolist())
            complaints.append(f"{layout.SPLIT} does not list models whose last step is not {step}: {ended}")
        empty = [split for split in SPLITS if not rows[split]]
        if empty:
            complaints.append(
                f"{layout.SPLIT} cannot keep the zoo's splits: no models for {', '.join(empty)}"
            )
            return [row for split in SPLITS for row in rows[split]], "; ".join(complaints)
        return split_order(*(rows[split] for split in SPLITS)), "; ".join(complaints)


def split_order(train: Sequence[int], validation: Sequence[int], test: Sequence[int]) -> list[int]:
    """An order of rows for which the loaders' splits equal ours.

    Loaders take the first half of the rows for training and validation, shuffle it, train on four fifths of
    it, and test on the second half, whatever the zoo's own splits are. To keep our splits, rows are placed
    where the shuffle will take them from, and rows of the smaller splits are repeated until the parts have
    these sizes: metrics change little or not at all, and no network is in two parts.

    Args:
        train: rows of the weights; like the others, at least one.
        validation: rows.
        test: rows.

    Returns:
        Rows, for the loaders' idcs_file.

    Example:
        >>> order = split_order([0, 1, 2, 3], [4], [5])
        >>> len(order), sorted(order[:5]), order[5:]
        (10, [0, 1, 2, 3, 4], [5, 5, 5, 5, 5])
    """
    half = len(train)
    while (
        int(LOADERS_SHARE * half) < len(train)
        or half < len(test)
        or (half - int(LOADERS_SHARE * half) < len(validation))
    ):
        half += 1
    positions = list(range(half))
    random.Random(LOADERS_SEED).shuffle(positions)
    cut = int(LOADERS_SHARE * half)
    first_half = [0] * half
    for part, rows in ((positions[:cut], train), (positions[cut:], validation)):
        for i, position in enumerate(part):
            first_half[position] = rows[i % len(rows)]
    return first_half + [test[i % len(test)] for i in range(half)]


def _folder_of(dataset: str) -> str:
    """An image set's name in the release, which is also its folder's."""
    return DATASET_NAMES.get(dataset, dataset)


def _repeats(snapshots: Snapshots) -> np.ndarray:
    """[N] bool: whether a snapshot repeats the previous one because the model had diverged."""
    model, snapshot, epoch = (snapshots[name] for name in ("model_id", "snapshot", "epoch"))
    order = np.lexsort((snapshot, model.astype(str)))
    again = np.zeros(len(order), bool)
    again[order[1:]] = (model[order][1:] == model[order][:-1]) & (epoch[order][1:] == epoch[order][:-1])
    return again


def _is_last(snapshots: Snapshots) -> np.ndarray:
    """[N] bool: whether a snapshot is its model's last; snapshots are sorted by model."""
    numbers = snapshots["model_number"]
    return np.append(numbers[1:] != numbers[:-1], True)


def _csv(rows: Iterable[Sequence[Any]]) -> Callable[[BinaryIO], None]:
    """Write a table as CSV whose numbers read back unchanged."""
    kept = list(rows)

    def fill(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        csv.writer(text, lineterminator="\n").writerows(kept)
        text.flush()
        text.detach()

    return fill


def _gzipped(fill: Callable[[BinaryIO], None]) -> Callable[[BinaryIO], None]:
    """Write the same content compressed, with the same bytes every time."""

    def fill_gzipped(file: BinaryIO) -> None:
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped:
            fill(cast(BinaryIO, zipped))

    return fill_gzipped
