"""Reads the Small CNN Zoo (Unterthiner et al. 2020): a folder an image set, with three files.

    weights.npy       float32, one row a snapshot, its tensors in Keras' shapes (kernels: height, width,
                      in, out)
    layout.csv        which numbers of a row are which tensor
    metrics.csv.gz    one line a snapshot, in the rows' order: the recipe (config.*), the model (modeldir),
                      the epoch (step), the results

Axes: N rows, P weights, S snapshots, O units, I inputs, H W height and width.
"""

from __future__ import annotations

import math
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from builder.image_sets import IMAGE_SETS
from builder.importers.base import (
    MAX_EPOCHS,
    REFETCH,
    BlockNumbers,
    Release,
    ReleasedModel,
    checked_recipe,
    number,
    read_table,
    whole_number,
)
from builder.plan import split_of
from nws_dataset.errors import ZooError, reason
from nws_dataset.files import check_file, path_type
from nws_dataset.format.layout import Layout, layout_of
from nws_dataset.format.recipe import INITIALIZATIONS_WITH_STD, Recipe
from nws_dataset.format.schema import model_id
from nws_dataset.format.shards import ROW_DTYPE
from nws_dataset.format.subsets import SUBSETS, subsets_of

((RECIPE_OF, SUBSET),) = subsets_of("small_cnn").items()
SEED = 42  # what the splits follow from; imported models keep theirs
RANDOM_SEED = "config.random_seed"  # of a model's training
WEIGHTS, LAYOUT, METRICS = FILES = ("weights.npy", "layout.csv", "metrics.csv.gz")
PLAN = SUBSETS[RECIPE_OF]
(FAMILY,) = PLAN.families
DATASETS = {"svhn_cropped": "svhn"}  # the release's name -> ours, where they differ
INITIALIZATIONS = {"RandomNormal": "random_normal", "TruncatedNormal": "truncated_normal"}
TEXTS = ("config.dataset", "config.optimizer", "config.activation", "config.w_init")
NUMBERS = {
    "config.learning_rate": "learning_rate",
    "config.init_std": "init_std",
    "config.l2reg": "l2",
    "config.dropout": "dropout",
    "config.train_fraction": "train_fraction",
}
MIN_LINES, LINE_BYTES = 1000, 2000  # of the metrics; what is inflated beyond is no table of theirs
MIN_ROW_BYTES = 4000  # of the weights
# of numpy
NPY_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
)
ROUNDING = 1e-6  # of accuracies in float32
RESULTS = ("train_accuracy", "test_accuracy", "train_loss", "test_loss")
LAYOUT_COLUMNS = ("varname", "start_idx", "end_idx", "shape")


@dataclass(frozen=True, eq=False)
class DataSet:
    """The networks of one image set."""

    weights: np.ndarray  # [N, P], mapped
    path: Path  # of the weights
    order: np.ndarray  # [P]: where each number of our row stands in the release's
    results: dict[str, np.ndarray]  # name -> [N]
    epochs: list[int]  # [S], of the snapshots of each network


@dataclass(frozen=True, eq=False)
class Net(ReleasedModel):
    """A network of the release."""

    data: DataSet
    rows: np.ndarray  # [S] of the weights

    def check(self) -> None:
        """Its data set was checked as a whole."""

    def results(self) -> list[dict[str, Any]]:
        images = int(self.recipe.train_fraction * IMAGE_SETS[self.recipe.dataset].train_images)
        steps = images // self.recipe.batch_size  # an epoch's: a partial last batch is dropped
        results = {name: values[self.rows].tolist() for name, values in self.data.results.items()}
        return [
            {"epoch": epoch, "step": epoch * steps, **{name: values[s] for name, values in results.items()}}
            for s, epoch in enumerate(self.data.epochs)
        ]

    def row(self, snapshot: int) -> np.ndarray:
        return self.data.weights[self.rows[snapshot]][self.data.order]

    def where_weights(self, snapshot: int) -> str:
        return f"{self.data.path} row {self.rows[snapshot]}"


def read(source: Path) -> Release:
    """List the networks of the image sets that are in a folder.

    A network's number does not depend on which image sets are there: within its image set it is that of its
    first row among the models, and the image sets take turns, in the order in which our own subset
    draws them.

    Args:
        source: an image set's folder, or one that holds several of them.

    Raises:
        ZooError: if there is none, a file is missing or damaged, or an image set or a model's epoch is there
            twice.
    """
    folders = [
        folder
        for folder in (source, *sorted(source.iterdir()))
        if any(path_type(folder / name) != "nothing" for name in FILES)
    ]
    if not folders:
        raise ZooError(
            source,
            expected=f"folders with {', '.join(FILES)}",
            found="none",
            do="unpack the release, give its folder",
        )
    nets: list[Net] = []
    left_out: list[str] = []
    seen: dict[str, Path] = {}
    for folder in folders:
        read_here, dataset, epochs, incomplete = _read_folder(folder)
        if dataset in seen:
            raise ZooError(
                folder,
                expected=f"networks of another image set than {seen[dataset]}",
                found=dataset,
                do="remove one of them",
            )
        seen[dataset] = folder
        nets += read_here
        planned = [*(PLAN.snapshot_epochs or ())]
        left_out += [f"models on {dataset} are of the epochs {epochs}, not of the plan's {planned}"] * (
            epochs != planned
        )
        left_out += [
            f"left out: {incomplete} models on {dataset} without a row for each of the epochs {epochs}"
        ] * bool(incomplete)
    return Release(sorted(nets, key=lambda net: net.number), left_out, SEED)


def _read_folder(folder: Path) -> tuple[list[Net], str, list[int], int]:
    """An image set's networks, its name, the epochs of its snapshots, and how many networks lack one."""
    metrics = folder / METRICS
    table = _read_metrics(metrics)
    models, epochs, incomplete = _rows_of_models(metrics, table)
    firsts = np.array([rows[0] for rows in models.values()], np.int64)
    configs = table.select([*TEXTS, *NUMBERS, RANDOM_SEED]).take(firsts).to_pylist()
    recipes = [
        _recipe_of(f"{metrics} line {first + 2}", config)
        for first, config in zip(firsts, configs, strict=True)
    ]
    names = sorted({recipe.dataset for recipe in recipes})
    if len(names) != 1:
        raise ZooError(
            metrics, expected="complete models of one image set", found=", ".join(names) or "none", do=REFETCH
        )
    layout = layout_of(recipes[0].architecture)
    weights = _open_weights(folder / WEIGHTS, (len(table), layout.num_weights))
    seeds = [
        _seed(f"{metrics} line {first + 2}", config[RANDOM_SEED])
        for first, config in zip(firsts, configs, strict=True)
    ]
    results = {name: table[name].to_numpy() for name in RESULTS}
    for name in (name for name in RESULTS if name.endswith("accuracy")):
        # one that is not a number is no wrong one
        wrong = np.flatnonzero(np.abs(results[name] - 0.5) > 0.5 + ROUNDING)
        if len(wrong):
            expected, found = f"0 to 1 as {name}", f"{results[name][wrong[0]]:g}"
            raise ZooError(f"{metrics} line {wrong[0] + 2}", expected=expected, found=found, do=REFETCH)
    data = DataSet(weights, folder / WEIGHTS, _order(folder / LAYOUT, layout), results, epochs)
    return list(_number(data, models, recipes, seeds)), names[0], epochs, incomplete


def _number(
    data: DataSet, models: dict[int, np.ndarray], recipes: Sequence[Recipe], seeds: Sequence[int]
) -> Iterator[Net]:
    """The networks with numbers, splits and shards; an image set has shards of its own, so that it does not
    wait for another.
    """
    datasets = FAMILY["dataset"].values
    blocks = BlockNumbers(PLAN.num_snapshots, streams=len(datasets))
    for (index, rows), recipe, seed in zip(models.items(), recipes, seeds, strict=True):
        position = datasets.index(recipe.dataset)
        number = index * len(datasets) + position
        split = split_of(model_id(SUBSET, number), SEED)
        block = blocks.next(split, recipe.architecture, position)
        yield Net(SUBSET, number, seed, split, recipe, block, data=data, rows=rows)


def _open_weights(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """The weights, mapped: [N, P] float32."""
    expected = f"an array {list(shape)} of float32, a row for each line of {METRICS}"
    try:
        check_file(file)
        weights = np.lib.format.open_memmap(file, mode="r")  # reads no archive and unpickles nothing
    except NPY_ERRORS as error:
        raise ZooError(file, expected=expected, found=reason(error), do=REFETCH) from error
    if weights.dtype != ROW_DTYPE or weights.shape != shape:
        raise ZooError(file, expected=expected, found=f"{list(weights.shape)} of {weights.dtype}", do=REFETCH)
    return np.asarray(weights)


def _read_metrics(file: Path) -> pa.Table:
    """The columns of the metrics that we need, a number that is missing is not a number."""
    types = {"modeldir": pa.string(), "step": pa.float64(), RANDOM_SEED: pa.float64()}
    types |= {name: pa.string() for name in TEXTS} | {name: pa.float64() for name in (*NUMBERS, *RESULTS)}
    options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types))
    batches: list[pa.RecordBatch] = []
    weights = file.with_name(WEIGHTS)  # of which a row has more bytes than we take for a line
    max_lines = MIN_LINES + (weights.stat().st_size // MIN_ROW_BYTES if weights.is_file() else 0)
    try:
        check_file(file)
        with pyarrow.csv.open_csv(file, convert_options=options) as reader:
            for batch in reader:
                batches.append(batch)
                rows, size = sum(map(len, batches)), sum(part.nbytes for part in batches)
                if rows > max_lines or size > LINE_BYTES * max_lines:
                    raise ZooError(
                        file,
                        expected=f"at most {max_lines} lines, as many as {WEIGHTS} has rows",
                        found=f"{rows} or more",
                        do=REFETCH,
                    )
            return pa.Table.from_batches(batches, reader.schema)
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        expected = f"a table with the columns {', '.join(types)}"
        raise ZooError(file, expected=expected, found=reason(error), do=REFETCH) from error


def _seed(where: str, value: float) -> int:
    """The seed of a model's training."""
    seed = whole_number(where, RANDOM_SEED, repr(value))
    if not 0 <= seed < 2**63:
        raise ZooError(where, expected=f"0 to {2**63 - 1} as {RANDOM_SEED}", found=str(seed), do=REFETCH)
    return seed


def _rows_of_models(file: Path, table: pa.Table) -> tuple[dict[int, np.ndarray], list[int], int]:
    """The rows of each complete model by epoch, [S], by the model's index among all; the epochs; and how many
    are not complete.

    A model is complete that has the plan's epochs, or, if none has, as many others as most such models have.
    """
    encoded = table["modeldir"].combine_chunks().dictionary_encode()
    model_N, step_N = encoded.indices.to_numpy(), table["step"].to_numpy()
    order = np.lexsort((step_N, model_N))
    again = np.flatnonzero((np.diff(model_N[order]) == 0) & (np.diff(step_N[order]) == 0))
    if len(again):
        row = order[again[0]]
        found = f"step {step_N[row]:g} of {encoded[row]} twice"
        raise ZooError(file, expected="one row a model and step", found=found, do=REFETCH)
    groups = np.split(order, np.flatnonzero(np.diff(model_N[order])) + 1)
    counts = Counter(tuple(step_N[rows].tolist()) for rows in groups)
    planned = tuple(map(float, PLAN.snapshot_epochs or ()))
    fitting = [epochs for epochs, _ in counts.most_common() if len(epochs) == PLAN.num_snapshots]
    if not fitting:
        ((most, number_of),) = counts.most_common(1)
        expected = (
            f"{PLAN.num_snapshots} rows for each modeldir, of the epochs "
            f"{', '.join(map(str, PLAN.snapshot_epochs or ()))}"
        )
        found = f"{number_of} of {len(groups)} with {len(most)}"
        raise ZooError(
            file, expected=expected, found=found, do="see that modeldir names a model, not a checkpoint"
        )
    epochs = planned if planned in counts else fitting[0]
    if not all(0 <= step <= MAX_EPOCHS and step.is_integer() for step in epochs):
        raise ZooError(
            file, expected=f"whole numbers up to {MAX_EPOCHS} as step", found=str(epochs)[:80], do=REFETCH
        )
    complete = {model: rows for model, rows in enumerate(groups) if tuple(step_N[rows].tolist()) == epochs}
    return complete, [int(step) for step in epochs], len(groups) - len(complete)


def _recipe_of(where: str, config: dict[str, Any]) -> Recipe:
    """The recipe of a line of the metrics."""
    dataset, optimizer, activation, initialization = (config[name] for name in TEXTS)
    values: dict[str, Any] = {
        "dataset": DATASETS.get(dataset, dataset),
        "optimizer": optimizer,
        "activation": activation,
        "initialization": INITIALIZATIONS.get(initialization, initialization),
    }
    for column, name in NUMBERS.items():
        if name != "init_std" or values["initialization"] in INITIALIZATIONS_WITH_STD:
            values[name] = number(where, column, str(config[column]))
    return checked_recipe(where, FAMILY, values)


@dataclass(frozen=True)
class Entry:
    """A line of layout.csv: one tensor."""

    role: str  # "kernel" or "bias"
    start: int
    stop: int
    shape: tuple[int, ...]


def _order(file: Path, layout: Layout) -> np.ndarray:
    """Where each number of our row stands in the release's: [P]."""
    lines = read_table(file, LAYOUT_COLUMNS)
    entries = sorted(
        (_entry(f"{file} line {number}", line) for number, line in enumerate(lines, 2)),
        key=lambda entry: entry.start,
    )
    kernels, biases = ([entry for entry in entries if entry.role == role] for role in ("kernel", "bias"))
    # (H, W,) I, O
    wanted = [(*spec.shape[2:], *spec.shape[1::-1]) for spec in layout.tensors if spec.role == "weight"]
    stops = [0, *(entry.stop for entry in entries)]
    in_one_piece = [entry.start for entry in entries] == stops[:-1] and stops[-1] == layout.num_weights
    if (
        not in_one_piece
        or [e.shape for e in kernels] != wanted
        or [e.shape for e in biases] != [shape[-1:] for shape in wanted]
    ):
        expected = f"kernels {wanted} and a bias for each, in {layout.num_weights} numbers without a gap"
        found = f"{[(entry.role, entry.start, entry.stop, entry.shape) for entry in entries]}"
        raise ZooError(file, expected=expected, found=found, do=REFETCH)
    indices, parts = np.arange(layout.num_weights), []
    for kernel, bias in zip(kernels, biases, strict=True):
        indices_HWIO = indices[kernel.start : kernel.stop].reshape(kernel.shape)
        parts += [np.moveaxis(indices_HWIO, (-1, -2), (0, 1)).ravel(), indices[bias.start : bias.stop]]
    return np.concatenate(parts)


def _entry(where: str, line: dict[str, str]) -> Entry:
    """A tensor of layout.csv."""
    role = line["varname"].split("/")[-1].split(":")[0]
    shape = tuple(int(size) for size in re.findall(r"\d{1,9}", line["shape"]))
    start, stop = (whole_number(where, name, line[name]) for name in ("start_idx", "end_idx"))
    if role not in ("kernel", "bias") or stop - start != math.prod(shape):
        found = f"{line['varname']}, {start} to {stop}, {line['shape']}"
        raise ZooError(
            where, expected="a kernel or bias, and as many numbers as its shape has", found=found, do=REFETCH
        )
    return Entry(role, start, stop, shape)
