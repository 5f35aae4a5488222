"""Which models of a zoo fit into a release's layout, and why the others do not."""

from __future__ import annotations

import dataclasses
import itertools
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from builder.exporters.export_folder import ExportFolder
from nws_dataset.console import Progress
from nws_dataset.errors import ZooError, listed
from nws_dataset.format.recipe import INITIALIZATIONS_WITH_STD, Recipe
from nws_dataset.format.subsets import IMPORTED, ByDataset, Choice, Cycle, Family, LogUniform, Uniform
from nws_dataset.networks.cnn import Architecture
from nws_dataset.reading.byte_ranges import BYTE_RANGE_COLUMNS, ByteRanges
from nws_dataset.reading.index import Columns
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo

FETCHED_SNAPSHOTS = 100_000  # at a time
FREE = ("max_epochs", "num_outputs", "init_std")  # fields that fit into every layout


@dataclass
class Misfits:
    """Models that do not fit into a layout: counted by reason, named by model."""

    models: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # reason -> model_ids

    def with_names(self) -> str:
        """All reasons, each with its models."""
        return "; ".join(
            f"{reason} ({len(ids)} models: {listed(ids)})" for reason, ids in self.models.items()
        )

    def with_counts(self) -> str:
        """All reasons with counts only, the most frequent first."""
        by_count = sorted(self.models.items(), key=lambda reason: -len(reason[1]))
        return ", ".join(f"{reason} ({len(ids)})" for reason, ids in by_count)

    def ids(self) -> set[str]:
        """The models, each once."""
        return {identifier for ids in self.models.values() for identifier in ids}


def subset_of_recipes(subset: str) -> str:
    """Our own subset that draws the same recipes as a subset."""
    return IMPORTED[subset].recipe_of if subset in IMPORTED else subset


def note_recipes(misfits: Misfits, snapshots: Snapshots, family: Family) -> None:
    """Note the models with recipes that a family does not draw.

    Args:
        misfits: added to.
        snapshots: one per model.
        family: the distributions from which the release was drawn.
    """
    columns = snapshots.select(["model_id", *_fields()]).to_pydict()
    datasets, ids = columns["dataset"], columns["model_id"]
    for name, default in _fields().items():
        if name in FREE:
            continue
        draw = family.get(name, default)
        if isinstance(draw, Uniform | LogUniform):
            continue
        for identifier, dataset, value in zip(ids, datasets, columns[name], strict=True):
            legal = _legal(draw, dataset)
            if value not in legal:
                found = f"other than {' or '.join(map(str, legal))}" if isinstance(value, float) else value
                misfits.models[f"{name} {found}"].append(identifier)
    for identifier, initialization, deviation in zip(
        ids, columns["initialization"], columns["init_std"], strict=True
    ):
        if (initialization in INITIALIZATIONS_WITH_STD) == (deviation is None):
            misfits.models[f"init_std {deviation} of {initialization}"].append(identifier)


def _fields() -> dict[str, Any]:
    """The fields of a recipe and its architecture, with their defaults."""
    return {
        field.name: field.default
        for kind in (Recipe, Architecture)
        for field in dataclasses.fields(kind)
        if field.name != "architecture"
    }


def _legal(draw: Any, dataset: str) -> Sequence[Any]:
    """The values that a draw can give."""
    if isinstance(draw, ByDataset):
        return [draw.values.get(dataset)]
    return draw.values if isinstance(draw, Choice | Cycle) else [draw]


def identity_of(zoo: Zoo, release: str, snapshots: Snapshots) -> dict[str, Any]:
    """What identifies exports of the same zoo; a zoo that has grown is the same.

    Args:
        zoo: the zoo to export.
        release: the layout's release.
        snapshots: the snapshots to export, model by model.
    """
    entries = zoo.manifest.subsets
    return {
        "layout": release,
        "generator_version": zoo.manifest.generator_version,
        "subsets": {name: entries[name].settings for name in sorted(set(snapshots["subset"].tolist()))},
        "first_snapshot": snapshots[0]["sha256"],
    }


@dataclass(frozen=True)
class Options:
    """Options of an export besides the layout."""

    partial: bool = False  # whether to leave out what does not fit
    final_step: int | None = None  # what the layout states instead of each model's last epoch


class Exporter(ABC):
    """Writes a zoo in a layout.

    Args:
        zoo: the zoo to export.
        snapshots: those of the chosen subsets.
        options: the export's options.

    Raises:
        ZooError: if models do not fit into the layout and `options.partial` does not leave them out.
    """

    title: ClassVar[str]  # the layout's name in messages
    names: ClassVar[re.Pattern[str]]  # matches all files that an export of any zoo can write

    def __init__(self, zoo: Zoo, snapshots: Snapshots, options: Options) -> None:
        self.zoo, self.options = zoo, options
        misfits = Misfits()
        self.note_misfits(snapshots, misfits)
        ids, wrong = snapshots["model_id"], misfits.ids()
        fit = np.array([identifier not in wrong for identifier in ids.tolist()], bool)
        self.misfits = misfits
        if wrong and not (options.partial and fit.any()):
            refuse(zoo, self.title, misfits, len(set(ids[fit].tolist())))
        # model by model, each from its first snapshot to its last
        fitting = snapshots[fit]
        self.snapshots = fitting[np.lexsort((fitting["snapshot"], fitting["model_number"]))]
        self.subsets = sorted(set(self.snapshots["subset"].tolist()))
        self.num_models = len(set(self.snapshots["model_id"].tolist()))

    @abstractmethod
    def note_misfits(self, snapshots: Snapshots, misfits: Misfits) -> None:
        """Note the models that do not fit into the layout."""

    @abstractmethod
    def files(self) -> list[str]:
        """All files that `write` writes."""

    def fetch(self) -> None:
        """Fetch all values from the Hub into the cache, if it can hold them.

        An export reads them in another order than that in which they are stored next to each other.
        """
        columns = Columns.of(self.snapshots.select(BYTE_RANGE_COLUMNS))
        byte_ranges = ByteRanges.of(columns, range(len(self.snapshots)))
        if byte_ranges.lengths.sum() > self.zoo.files.cache_bytes:
            return
        order = np.lexsort((byte_ranges.offsets, byte_ranges.file_indices))
        for start in range(0, len(order), FETCHED_SNAPSHOTS):
            self.zoo.files.prefetch(byte_ranges[order[start : start + FETCHED_SNAPSHOTS]])

    @abstractmethod
    def write(self, folder: ExportFolder, progress: Progress) -> list[str]:
        """Write all files; return messages, one per line.

        Args:
            folder: where to write.
            progress: advanced for each finished model.
        """


def no_final_step(options: Options, layout: str) -> None:
    """Raise a ZooError if an export in a layout that states no last epoch is asked to state one."""
    if options.final_step is not None:
        do = "leave it out, or export small_cnn"
        raise ZooError("--final-step", expected="the layout small_cnn", found=layout, do=do)


def only_one_of(zoo: Zoo, subsets: Sequence[str]) -> None:
    """Raise a ZooError for several subsets, as their models would have the same numbers."""
    if len(subsets) > 1:
        do = f"add --subsets {subsets[0]}, or another of them"
        raise ZooError(zoo.name, expected="models of one subset", found=", ".join(subsets), do=do)


def chunks(snapshots: Snapshots, size: int) -> Iterator[Snapshots]:
    """Split snapshots into pieces of whole models, in order.

    Args:
        snapshots: snapshots, model by model.
        size: snapshots per piece, roughly.
    """
    numbers = snapshots["model_number"]
    firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
    starts = [int(firsts[0])] if len(firsts) else []
    for first in firsts.tolist():
        if first - starts[-1] >= size:
            starts.append(first)
    for start, stop in itertools.pairwise([*starts, len(snapshots)]):
        yield snapshots[start:stop]


def refuse(zoo: Zoo, layout: str, misfits: Misfits, others: int) -> None:
    """Raise a ZooError for models that do not fit.

    Args:
        zoo: the zoo to export.
        layout: the layout's name.
        misfits: at least one.
        others: how many models fit.
    """
    found = f"{misfits.with_counts()} models, e.g. {min(misfits.ids())}"
    do = (
        f"add --partial to export the other {others} models"
        if others
        else "export another zoo, or another --subsets"
    )
    raise ZooError(zoo.name, expected=f"models that {layout} can hold", found=found, do=do)
