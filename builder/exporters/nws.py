"""Writes a zoo in the layout of the original neural weight space, see `builder.releases.nws`.

Models of the validation split are in the file of the train split, since the original held out a part of that;
an extra column marks them. Other extra columns let an import restore the same models.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from builder.exporters.export_folder import ExportFolder
from builder.exporters.exporter import (
    Exporter,
    Misfits,
    chunks,
    no_final_step,
    note_recipes,
    only_one_of,
    subset_of_recipes,
)
from builder.releases import OWN_DIVERGED, OWN_MAX_EPOCHS, OWN_NUMBER, OWN_SEED, OWN_SPLIT
from builder.releases import nws as layout
from nws_dataset.console import Progress
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks import architecture_from_json
from nws_dataset.networks.cnn import convolutional
from nws_dataset.reading.snapshots import Snapshots

CHUNK_SNAPSHOTS = 200  # read at once: 300 MB of the largest networks
OWN = (OWN_NUMBER, OWN_SPLIT, OWN_SEED, OWN_DIVERGED, OWN_MAX_EPOCHS)
HEADER = (*layout.PROPERTIES, layout.PATH, *layout.COUNTS, *OWN)
DATASET_NAMES = {ours: theirs for theirs, ours in layout.DATASETS.items()}
SPLIT_OF = {"train": "train", "validation": "train", "test": "test"}  # our split -> the listing file's split
PART = "|".join(layout.PARTS)
FILES = "|".join(map(re.escape, (layout.META, layout.ERRORS, layout.STATISTICS)))
ACCURACIES = ("train_accuracy", "validation_accuracy", "test_accuracy")


class NwsExporter(Exporter):
    """Writes a zoo in the layout of the neural weight space."""

    title = "the neural weight space's layout"
    names = re.compile(
        rf"nws_({PART})_({'|'.join(layout.LISTED_SPLITS)})\.csv|({PART})/\d{{6,}}/({FILES}|{layout.WEIGHTS}/\d{{3}}\.bin)"
    )

    def note_misfits(self, snapshots: Snapshots, misfits: Misfits) -> None:
        for part in layout.PARTS:
            of_part = snapshots[np.array([_part_of(name) == part for name in snapshots["subset"].tolist()])]
            (family,) = SUBSETS[part].families
            note_recipes(misfits, of_part[of_part["is_final"]], family)
        for snapshots_of_model in _models(snapshots):
            reason = _misfit(snapshots_of_model)
            if reason:
                misfits.models[reason].append(str(snapshots_of_model[0]["model_id"]))

    def files(self) -> list[str]:
        no_final_step(self.options, "nws")
        names: list[str] = []
        for part, snapshots in self._parts():
            only_one_of(self.zoo, sorted(set(snapshots["subset"].tolist())))
            finals = snapshots[snapshots["is_final"]]
            names += sorted({f"nws_{part}_{SPLIT_OF[split]}.csv" for split in finals["split"].tolist()})
            for number in finals["model_number"].tolist():
                folder = _folder_of(part, number)
                names += [f"{folder}/{name}" for name in (layout.META, layout.ERRORS, layout.STATISTICS)]
                snapshots_of_net = range(SUBSETS[part].num_snapshots)
                names += [f"{folder}/{layout.WEIGHTS}/{s + 1:03d}.bin" for s in snapshots_of_net]
        return names

    def _parts(self) -> Iterator[tuple[str, Snapshots]]:
        """The parts with models, and their snapshots."""
        subsets = self.snapshots["subset"].tolist()
        for part in layout.PARTS:
            chosen = np.array([_part_of(name) == part for name in subsets])
            if chosen.any():
                yield part, self.snapshots[chosen]

    def write(self, folder: ExportFolder, progress: Progress) -> list[str]:
        for part, snapshots in self._parts():
            rows: dict[str, list[dict[str, Any]]] = {}
            for chunk in chunks(snapshots, CHUNK_SNAPSHOTS):
                for net, weights in zip(_models(chunk), self._weights(chunk), strict=True):
                    row = _row(net, part)
                    self._write_net(folder, net, row, weights)
                    rows.setdefault(SPLIT_OF[net[0]["split"]], []).append(row)
                    progress.advance(note=part)
            for split, listed in rows.items():
                folder.put(f"nws_{part}_{split}.csv", _table(HEADER, listed))
        return []

    def _weights(self, snapshots: Snapshots) -> Iterator[list[np.ndarray]]:
        """The weights of each net, snapshot by snapshot."""
        arrays = iter(self.zoo.arrays(snapshots))
        for net in _models(snapshots):
            yield [next(arrays) for _ in range(len(net))]

    def _write_net(
        self, folder: ExportFolder, net: Snapshots, row: dict[str, Any], weights: Sequence[np.ndarray]
    ) -> None:
        """Write a net's folder."""
        name, order = row[layout.PATH], np.argsort(layout.row_order(self.zoo.architecture(net[0])))
        for snapshot, numbers in enumerate(weights, 1):
            file = f"{name}/{layout.WEIGHTS}/{snapshot:03d}.bin"
            folder.put(file, numbers[order].astype(layout.DTYPE).tobytes())
        epochs, steps = net["epoch"], net["step"]
        exports = _exports(net)
        chosen = layout.epochs_of(_part_of(net[0]["subset"]), exports, exports)
        errors = np.full((exports, layout.ERROR_COLUMNS), math.nan)  # other epochs are unknown
        errors[chosen, 0] = steps
        for column, accuracy in enumerate(ACCURACIES, 1):
            errors[chosen, column] = [percent(value) for value in net[accuracy].tolist()]
        statistics = np.array([exports, steps[-1], epochs[-1], math.nan], layout.DTYPE)
        folder.put(f"{name}/{layout.ERRORS}", errors.astype(layout.DTYPE).tobytes())
        folder.put(f"{name}/{layout.STATISTICS}", statistics.tobytes())
        folder.put(f"{name}/{layout.META}", _table(layout.PROPERTIES, [row]))


def percent(accuracy: float) -> float:
    """An error in percent that readers turn into the same accuracy (to 2e-16), and back into this error."""
    error = 100 * (1 - accuracy)
    while (again := 100 * (1 - (1 - error / 100))) != error:
        error = again
    return error


def _part_of(subset: str) -> str:
    """The part of the release with the same recipes as a subset, or main if there is none."""
    name = subset_of_recipes(subset)
    return name if name in layout.PARTS else "main"


def _folder_of(part: str, number: int) -> str:
    return f"{part}/{number:06d}"


def _models(snapshots: Snapshots) -> Iterator[Snapshots]:
    """Each model's snapshots in order."""
    ids, numbers = snapshots["model_id"].astype(str), snapshots["snapshot"]
    order = np.lexsort((numbers, ids))
    groups = np.split(order, np.flatnonzero(ids[order][1:] != ids[order][:-1]) + 1) if len(order) else []
    for group in sorted(groups, key=lambda group: int(group[0])):
        yield snapshots[group]


def _exports(net: Snapshots) -> int:
    """The number of epochs at which a net was exported; its snapshots if it diverged earlier."""
    return max(int(net["epoch"][-1]) + 1, len(net))


def _misfit(net: Snapshots) -> str:
    """Why a net's snapshots do not fit into the layout; empty if they do."""
    part = _part_of(net[0]["subset"])
    count = SUBSETS[part].num_snapshots
    if len(net) != count:
        return f"{len(net)} snapshots, not {count}"
    if net.select(["validation_accuracy"])["validation_accuracy"].null_count:
        return "no validation accuracy"
    if net[0]["num_outputs"] not in layout.OUTPUTS:
        return f"num_outputs {net[0]['num_outputs']}"
    epochs, exports = net["epoch"].tolist(), _exports(net)
    last = epochs[-1] if net[0]["diverged"] else exports
    if epochs != [min(epoch, last) for epoch in layout.epochs_of(part, exports, exports)]:
        return "snapshots of other epochs"
    return ""


def _row(net: Snapshots, part: str) -> dict[str, Any]:
    """A net's line in a split file."""
    row = net[len(net) - 1]
    (family,) = SUBSETS[part].families
    codes = {name: family[name].values.index(row[name]) for name in layout.CODED}
    convolutions, dense = layout.counts(convolutional(architecture_from_json(row["architecture_json"])))
    return {
        **{name: row[name] for name in layout.WHOLE},
        "dataset": DATASET_NAMES.get(row["dataset"], row["dataset"]),
        "lrate": row["learning_rate"],
        **codes,
        layout.PATH: _folder_of(part, row["model_number"]),
        layout.NUM_CONV: convolutions,
        layout.NUM_DENSE: dense,
        OWN_NUMBER: row["model_number"],
        OWN_SPLIT: row["split"],
        OWN_SEED: row["seed"],
        OWN_DIVERGED: int(row["diverged"]),
        OWN_MAX_EPOCHS: row["max_epochs"],
    }


def _table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> bytes:
    """A CSV file whose numbers read back unchanged."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
