"""Reads the Small CNN Zoo, whose layout is in `builder.releases.small_cnn`.

Axes: N rows, P weights, S snapshots.
"""

from __future__ import annotations

import io
import math
import re
import tokenize
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from builder.image_sets import IMAGE_SETS
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
from builder.plan import split_of
from builder.releases import (
    MAX_EPOCHS,
    OWN_DIVERGED,
    OWN_EPOCH,
    OWN_NUMBER,
    OWN_SEED,
    OWN_SNAPSHOTS,
    OWN_SPLIT,
)
from builder.releases import small_cnn as layout
from builder.releases.small_cnn import FAMILY, PLAN, RANDOM_SEED, RESULTS, SUBSET, Entry
from nws_dataset.errors import ZooError, reason
from nws_dataset.files import open_file, path_type
from nws_dataset.format.recipe import INITIALIZATIONS_WITH_STD, Recipe
from nws_dataset.format.schema import DIGITS, model_id
from nws_dataset.format.shards import ROW_DTYPE
from nws_dataset.networks.layout import Layout, layout_of

SEED = 42  # splits depend on it; imported models keep theirs
MIN_LINES, LINE_BYTES = 1000, 2000  # limits of the metrics, so that a file cannot inflate without bound
MAX_CUT_LINES = 300_000  # of the metrics if weights are cut short; a whole image set has 270,000
MIN_ROW_BYTES = 4000  # of the weights
CHUNK_BYTES = 1 << 18  # of the metrics, inflated at a time
# what numpy may raise
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
OWN_TEXTS = (OWN_NUMBER, OWN_SPLIT, OWN_SEED, OWN_DIVERGED, OWN_SNAPSHOTS)


@dataclass(frozen=True, eq=False)
class DataSet:
    """The networks of one image set."""

    weights: np.ndarray  # [N, P], mapped
    path: Path  # of the weights
    order: np.ndarray  # [P]: index in the release's row of each weight of ours
    results: dict[str, np.ndarray]  # name -> [N]


@dataclass(frozen=True, eq=False)
class SmallCnnNet(ReleasedModel):
    """A network of the release."""

    data: DataSet
    rows: np.ndarray  # [S] rows of the weights
    epochs: Sequence[int]  # [S]
    has_own_split: bool  # whether it has a split from our export

    @property
    def num_snapshots(self) -> int:
        return len(self.epochs)

    def check(self) -> None:
        """Do nothing: the data set was checked as a whole."""

    def results(self) -> list[dict[str, Any]]:
        images = int(self.recipe.train_fraction * IMAGE_SETS[self.recipe.dataset].train_images)
        steps = images // self.recipe.batch_size  # per epoch; a partial last batch is dropped
        results = {name: values[self.rows].tolist() for name, values in self.data.results.items()}
        return [
            {"epoch": epoch, "step": epoch * steps, **{name: values[s] for name, values in results.items()}}
            for s, epoch in enumerate(self.epochs)
        ]

    def row(self, snapshot: int) -> np.ndarray:
        return self.data.weights[self.rows[snapshot]][self.data.order]

    def where_weights(self, snapshot: int) -> str:
        return f"{self.data.path} row {self.rows[snapshot]}"


def read(source: Path) -> Release:
    """List the networks of the image sets in a folder.

    A network's number does not depend on which image sets are present: within its image set it is the
    position of its first row among the models, and the image sets take turns, in the order in which our own
    subset draws them. Networks that we exported keep their numbers and splits.

    Args:
        source: an image set's folder, or one that contains several of them.

    Raises:
        ZooError: if there is none, all are incomplete or damaged, or an image set occurs twice.
    """
    folders = [
        _Folder(folder)
        for folder in (source, *sorted(source.iterdir()))
        if any(path_type(folder / name) != "nothing" for name in (*layout.FILES, *layout.NOTEBOOK_FILES))
    ]
    if not folders:
        raise ZooError(
            source,
            expected=f"folders with {', '.join(layout.FILES)}",
            found="none",
            do="unpack the release, give its folder",
        )
    left_out, notes = LeftOut(), list[str]()
    whole = [folder for folder in folders if not folder.missing] or folders[:1]
    for folder in folders:
        if folder not in whole:
            left_out.add("image sets with a missing file", f"{folder.path} (no {folder.missing[0]})")
    nets: list[SmallCnnNet] = []
    seen: dict[str, Path] = {}
    first: ZooError | None = None  # what is wrong with an image set
    for folder in whole:
        left_out_here, notes_here = LeftOut(), list[str]()
        try:
            read_here, dataset = folder.read(left_out_here, notes_here)
        except ZooError as error:
            first = first or error
            left_out.add(f"image sets that cannot be read (the first: {first})", str(folder.path))
            continue
        for why, names in left_out_here.names.items():
            left_out.add(why, *names)
        notes += notes_here
        if dataset in seen:
            raise ZooError(
                folder.path,
                expected=f"networks of another image set than {seen[dataset]}",
                found=dataset,
                do="remove one of them",
            )
        seen[dataset] = folder.path
        nets += read_here
    if first is not None and not nets:
        raise first
    counts = Counter(net.number for net in nets)
    once = [net for net in nets if counts[net.number] == 1]
    left_out.add("models with the number of another", *(net.name for net in nets if counts[net.number] > 1))
    own = any(net.has_own_split for net in once)
    return Release(sorted(once, key=lambda net: net.number), left_out, None if own else SEED, notes)


class _Folder:
    """An image set's folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = layout.file_of(path, layout.WEIGHTS, layout.NOTEBOOK_WEIGHTS)
        self.metrics = layout.file_of(path, layout.METRICS, layout.NOTEBOOK_METRICS)
        self.layout = path / layout.LAYOUT
        needed = [self.metrics, self.weights, *[self.layout] * (self.weights.name == layout.WEIGHTS)]
        self.missing = [file.name for file in needed if path_type(file) == "nothing"]

    def read(self, left_out: LeftOut, notes: list[str]) -> tuple[list[SmallCnnNet], str]:
        """Read the networks and the image set's name; add what is left out, and messages."""
        table, table_is_cut = _read_metrics(self.metrics, self.weights)
        weights, there = _open_weights(self.weights, len(table), table_is_cut)
        models = _Models(self.metrics, table, there)
        given = {
            name: table[name].take(np.array([rows[0] for rows in models.complete.values()], np.int64))
            for name in (*layout.TEXTS, *layout.NUMBERS, layout.EPOCHS, RANDOM_SEED, *OWN_TEXTS)
        }
        configs = pa.table(given).to_pylist()
        lines = [f"{self.metrics} line {rows[0] + 2}" for rows in models.complete.values()]
        recipes = [_recipe_of(where, config) for where, config in zip(lines, configs, strict=True)]
        names = sorted({recipe.dataset for recipe in recipes})
        if len(names) != 1:
            raise ZooError(
                self.metrics,
                expected="complete models of one image set",
                found=", ".join(names) or "none",
                do=REFETCH,
            )
        if table_is_cut:
            notes.append(f"{self.metrics} is cut short: {len(table)} whole lines are left")
        if there < len(table):
            notes.append(f"{self.weights} is cut short: {there} whole rows are left")
        models.leave_out(names[0], left_out, notes)
        needs_no_layout = self.weights.name == layout.NOTEBOOK_WEIGHTS
        order = _order(self.layout, layout_of(recipes[0].architecture), needs_no_layout)
        data = DataSet(weights, self.weights, order, _results(self.metrics, table))
        own = [_own_columns(where, config) for where, config in zip(lines, configs, strict=True)]
        return list(_number(data, models, recipes, own)), names[0]


class _Models:
    """The models in an image set's metrics.

    A model is complete if it has the planned epochs or, if no model does, the most common ones of the same
    number. In one of our exports it is complete if it has as many epochs as stated, or diverged: then its
    last row replaces those that are missing.

    Args:
        file: the metrics' file.
        table: its content.
        there: rows of the weights that are present.
    """

    def __init__(self, file: Path, table: pa.Table, there: int) -> None:
        self.file, self.table = file, table
        encoded = table[layout.MODEL].combine_chunks().dictionary_encode()
        self.names: list[str] = encoded.dictionary.to_pylist()
        self.own = table[OWN_EPOCH].null_count < len(table)
        step_N = table[OWN_EPOCH if self.own else layout.STEP].to_numpy()[:there]
        model_N = encoded.indices.to_numpy()[:there]
        order = np.lexsort((step_N, model_N))
        groups = np.split(order, np.flatnonzero(np.diff(model_N[order])) + 1)
        epochs = {int(model_N[rows[0]]): tuple(step_N[rows].tolist()) for rows in groups if len(rows)}
        rows_of = {int(model_N[rows[0]]): rows for rows in groups if len(rows)}
        self.twice = [model for model, steps in epochs.items() if len(set(steps)) < len(steps)]
        for model in self.twice:
            del epochs[model]
        self.complete: dict[int, np.ndarray] = {}  # index among all models -> rows [S]
        self.epochs: dict[int, list[int]] = {}  # the same index -> epochs [S]
        self.planned = self._planned(epochs)
        for model, steps in epochs.items():
            count = self._count(rows_of[model]) if self.own else len(self.planned)
            if len(steps) == count if self.own else steps == self.planned:
                missing = 0
            elif self.own and len(steps) < count and self._diverged(rows_of[model]):
                missing = count - len(steps)
            else:
                continue
            self.complete[model] = np.pad(rows_of[model], (0, missing), "edge")
            self.epochs[model] = [self._epoch(step) for step in (*steps, *steps[-1:] * missing)]

    def _planned(self, epochs: Mapping[int, tuple[float, ...]]) -> tuple[float, ...]:
        """The epochs that the release's models have."""
        planned = tuple(map(float, PLAN.snapshot_epochs or ()))
        counts = Counter(epochs.values())
        if planned in counts or self.own:
            return planned
        fitting = [steps for steps, _ in counts.most_common() if len(steps) == PLAN.num_snapshots]
        if not fitting:
            ((most, number_of),) = counts.most_common(1) or [((), 0)]
            expected = (
                f"{PLAN.num_snapshots} rows for each modeldir, of the epochs "
                f"{', '.join(map(str, PLAN.snapshot_epochs or ()))}"
            )
            found = f"{number_of} of {len(epochs)} with {len(most)}"
            raise ZooError(
                self.file,
                expected=expected,
                found=found,
                do="make sure that modeldir names a model, not a checkpoint",
            )
        return fitting[0]

    def _epoch(self, step: float) -> int:
        if not (0 <= step <= MAX_EPOCHS and step.is_integer()):
            expected = f"whole numbers up to {MAX_EPOCHS} as step"
            raise ZooError(self.file, expected=expected, found=f"{step:g}", do=REFETCH)
        return int(step)

    def _count(self, rows: np.ndarray) -> int:
        where = f"{self.file} line {rows[0] + 2}"
        return own_number(where, OWN_SNAPSHOTS, self._text(OWN_SNAPSHOTS, rows), 1, MAX_EPOCHS)

    def _diverged(self, rows: np.ndarray) -> bool:
        where = f"{self.file} line {rows[0] + 2}"
        return bool(own_number(where, OWN_DIVERGED, self._text(OWN_DIVERGED, rows), 0, 1))

    def _text(self, column: str, rows: np.ndarray) -> str:
        return self.table[column][int(rows[0])].as_py() or ""

    def leave_out(self, dataset: str, left_out: LeftOut, notes: list[str]) -> None:
        """Report incomplete models, and epochs that differ from the plan's."""
        planned = [*(PLAN.snapshot_epochs or ())]
        epochs = [int(epoch) for epoch in self.planned]
        if epochs != planned:
            notes.append(f"models on {dataset} are of the epochs {epochs}, not of the plan's {planned}")
        why = "as many rows as stated" if self.own else f"a row for each of the epochs {epochs}"
        incomplete = [
            name
            for model, name in enumerate(self.names)
            if model not in self.complete and model not in self.twice
        ]
        left_out.add(f"models on {dataset} without {why}", *incomplete)
        left_out.add(f"models on {dataset} with an epoch twice", *(self.names[model] for model in self.twice))


def _results(file: Path, table: pa.Table) -> dict[str, np.ndarray]:
    """The results of all rows, [N] each."""
    results = {name: table[name].to_numpy() for name in RESULTS}
    for name in (name for name in RESULTS if name.endswith("accuracy")):
        # nan is not a wrong value
        wrong = np.flatnonzero(np.abs(results[name] - 0.5) > 0.5 + ROUNDING)
        if len(wrong):
            expected, found = f"0 to 1 as {name}", f"{results[name][wrong[0]]:g}"
            raise ZooError(f"{file} line {wrong[0] + 2}", expected=expected, found=found, do=REFETCH)
    return results


def _own_columns(where: str, config: Mapping[str, str | None]) -> dict[str, Any]:
    """The seed; in our exports also number, split and whether the model diverged."""
    own: dict[str, Any] = {"seed": _seed(where, config[OWN_SEED] or config[RANDOM_SEED])}
    number_told, split_told = config[OWN_NUMBER], config[OWN_SPLIT]
    own["diverged"] = bool(own_number(where, OWN_DIVERGED, config[OWN_DIVERGED] or "0", 0, 1))
    if number_told:
        own["number"] = own_number(where, OWN_NUMBER, number_told, 0, 10**DIGITS - 1)
    if split_told:
        own["split"] = own_split(where, split_told)
    return own


def _number(
    data: DataSet, models: _Models, recipes: Sequence[Recipe], given: Sequence[dict[str, Any]]
) -> Iterator[SmallCnnNet]:
    """Give networks numbers, splits and shards; each image set has its own shards, so that none waits."""
    datasets = FAMILY["dataset"].values
    blocks = BlockNumbers(PLAN.num_snapshots, streams=len(datasets))
    for (index, rows), recipe, own in zip(models.complete.items(), recipes, given, strict=True):
        position = datasets.index(recipe.dataset)
        model_number = index * len(datasets) + position
        split = split_of(model_id(SUBSET, own.get("number", model_number)), SEED)
        fields = {"number": model_number, "split": split, **own}
        block = blocks.next(fields["split"], recipe.architecture, position)
        yield SmallCnnNet(
            subset=SUBSET,
            recipe=recipe,
            block=block,
            name=models.names[index],
            data=data,
            rows=rows,
            epochs=models.epochs[index],
            has_own_split="split" in own,
            **fields,
        )


def _open_weights(file: Path, lines: int, table_is_cut: bool) -> tuple[np.ndarray, int]:
    """Map the weights [N, P] float32; return them and the number of rows that the file really has."""
    num_weights = layout.num_weights()
    expected = f"an array {[lines, num_weights]} of float32, a row for each line of the metrics"
    try:
        rows, width, dtype, start, size = _read_header(file)
    except NPY_ERRORS as error:
        raise ZooError(file, expected=expected, found=reason(error), do=REFETCH) from error
    fits = rows >= lines if table_is_cut else rows == lines
    if dtype != ROW_DTYPE or width != num_weights or not fits:
        raise ZooError(file, expected=expected, found=f"{[rows, width]} of {dtype}", do=REFETCH)
    there = min((size - start) // (num_weights * ROW_DTYPE.itemsize), lines)
    if not there:
        raise ZooError(file, expected=expected, found=f"{size} bytes", do=REFETCH)
    return np.asarray(np.memmap(file, ROW_DTYPE, "r", start, (there, num_weights))), there


def _read_header(file: Path) -> tuple[int, int, np.dtype, int, int]:
    """Rows, columns and type that a .npy file states, where its data starts, and its size in bytes."""
    with open_file(file) as opened:  # no archive is read and nothing is unpickled
        version = np.lib.format.read_magic(opened)
        if version not in NPY_HEADERS:
            raise ValueError(f"version {version}")
        shape, by_column, dtype = NPY_HEADERS[version](opened)
        if by_column or len(shape) != 2:
            raise ValueError(f"shape {shape}" + ", column by column" * by_column)
        return *shape, dtype, opened.tell(), opened.seek(0, io.SEEK_END)


NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class _Lines(io.RawIOBase):
    """The whole lines of a file, inflated if it is gzip; a file cut short ends with its last whole line."""

    def __init__(self, file: Path) -> None:
        self._file, self.is_cut = open_file(file), False
        self._inflate = zlib.decompressobj(31) if file.suffix == ".gz" else None
        self._left = b""  # to be inflated
        self._ready, self._line = b"", b""  # to be read: whole lines, and the start of the next one
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            self._fill()
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _fill(self) -> None:
        """Make more lines ready, or find the end."""
        content = self._next()
        if content is None:
            self._ended = True
            if not self.is_cut:
                self._ready = self._line
            return
        whole, newline, rest = (self._line + content).rpartition(b"\n")
        self._ready, self._line = whole + newline, rest
        if len(rest) > 2 * CHUNK_BYTES:
            raise ValueError("a line that does not end")

    def _next(self) -> bytes | None:
        """More of the content, None at the end."""
        if self._inflate is None:
            content = self._file.read(CHUNK_BYTES)
            self.is_cut = not content and bool(self._line)
            return content or None
        if self._inflate.eof:
            self._left = self._inflate.unused_data or self._file.read(CHUNK_BYTES)
            if not self._left:
                return None
            self._inflate = zlib.decompressobj(31)
        self._left = self._left or self._file.read(CHUNK_BYTES)
        if not self._left:
            self.is_cut = True
            return None
        content = self._inflate.decompress(self._left, CHUNK_BYTES)
        self._left = self._inflate.unconsumed_tail
        return content

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_metrics(file: Path, weights: Path) -> tuple[pa.Table, bool]:
    """Read the metrics' columns that we need (missing numbers as nan), and whether the file was cut short."""
    texts = (layout.CHECKPOINT, layout.MODEL, *layout.TEXTS, layout.EPOCHS, RANDOM_SEED, *OWN_TEXTS)
    numbers = (layout.STEP, OWN_EPOCH, *layout.NUMBERS, *RESULTS)
    types = {name: pa.string() for name in texts} | {name: pa.float64() for name in numbers}
    options = pyarrow.csv.ConvertOptions(
        column_types=types, include_columns=list(types), include_missing_columns=True
    )
    batches: list[pa.RecordBatch] = []
    most = _most_lines(weights)
    needed = [layout.MODEL, layout.STEP, RANDOM_SEED, *layout.TEXTS, *layout.NUMBERS, *RESULTS]
    try:
        with _Lines(file) as lines:
            with pyarrow.csv.open_csv(pa.PythonFile(lines, "r"), convert_options=options) as reader:
                for batch in reader:
                    batches.append(batch)
                    rows, size = sum(map(len, batches)), sum(part.nbytes for part in batches)
                    if rows > most or size > LINE_BYTES * most:
                        raise ZooError(
                            file,
                            expected=f"at most {most} lines, as many as {weights.name} has rows",
                            found=f"{rows} or more",
                            do=REFETCH,
                        )
                table = _with_models(pa.Table.from_batches(batches, reader.schema))
            missing = [name for name in needed if table[name].null_count == len(table)]
            missing += [layout.MODEL] * bool(table[layout.MODEL].null_count)
            if missing or not len(table):
                raise ValueError(f"no {', '.join(missing) or 'line'}")
            return table, lines.is_cut
    except (pa.ArrowException, KeyError, OSError, ValueError, zlib.error) as error:
        expected = f"a table with the columns {', '.join(needed)}"
        raise ZooError(file, expected=expected, found=reason(error), do=REFETCH) from error


def _with_models(table: pa.Table) -> pa.Table:
    """Add missing modeldir and step columns to the table, from the checkpoints' names."""
    for name, group in ((layout.MODEL, "model"), (layout.STEP, "epoch")):
        if table[name].null_count < len(table):
            continue
        names = (
            layout.CHECKPOINT_NAME.fullmatch(text or "") for text in table[layout.CHECKPOINT].to_pylist()
        )
        given = [match and match[group] for match in names]
        column = pa.array(given, pa.string())
        column = column if name == layout.MODEL else column.cast(pa.float64())
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _most_lines(weights: Path) -> int:
    """The most lines that the metrics may have, from the size of the weights."""
    size = weights.stat().st_size if weights.is_file() else 0
    most = MIN_LINES + size // MIN_ROW_BYTES
    try:
        return max(most, min(_read_header(weights)[0], MAX_CUT_LINES))
    except NPY_ERRORS:
        return most  # `_open_weights` reports what is wrong with it


def _seed(where: str, given: str | None) -> int:
    """The seed of a model's training."""
    return own_number(where, RANDOM_SEED, given or "", -(2**63), 2**63 - 1)


def _recipe_of(where: str, config: Mapping[str, Any]) -> Recipe:
    """The recipe in a line of the metrics."""
    given: dict[str, Any] = {name: config[column] for column, name in layout.TEXTS.items()}
    given["dataset"] = layout.DATASETS.get(given["dataset"], given["dataset"])
    given["initialization"] = layout.INITIALIZATIONS.get(given["initialization"], given["initialization"])
    for column, name in layout.NUMBERS.items():
        if name != "init_std" or given["initialization"] in INITIALIZATIONS_WITH_STD:
            given[name] = number(where, column, str(config[column]))
    recipe = checked_recipe(where, FAMILY, given)
    if config[layout.EPOCHS]:
        max_epochs = own_number(where, layout.EPOCHS, config[layout.EPOCHS], 1, MAX_EPOCHS)
        return replace(recipe, max_epochs=max_epochs)
    return recipe


def _order(file: Path, of_a_row: Layout, needs_no_file: bool) -> np.ndarray:
    """[P]: index in the release's row of each weight of ours."""
    if needs_no_file and path_type(file) == "nothing":
        return layout.row_order(layout.published_entries(of_a_row), of_a_row.num_weights)
    rows = read_table(file, layout.LAYOUT_COLUMNS)
    entries = sorted(
        (_entry(f"{file} line {line}", row) for line, row in enumerate(rows, 2)),
        key=lambda entry: entry.start,
    )
    kernels, biases = ([entry for entry in entries if entry.kind == kind] for kind in ("kernel", "bias"))
    wanted = [layout.keras_shape(spec.shape) for spec in of_a_row.tensors if spec.role == "weight"]
    stops = [0, *(entry.stop for entry in entries)]
    in_one_piece = [entry.start for entry in entries] == stops[:-1] and stops[-1] == of_a_row.num_weights
    if (
        not in_one_piece
        or [e.shape for e in kernels] != wanted
        or [e.shape for e in biases] != [shape[-1:] for shape in wanted]
    ):
        expected = f"kernels {wanted} and a bias for each, in {of_a_row.num_weights} numbers without a gap"
        found = f"{[(entry.kind, entry.start, entry.stop, entry.shape) for entry in entries]}"
        raise ZooError(file, expected=expected, found=found, do=REFETCH)
    return layout.row_order(entries, of_a_row.num_weights)


def _entry(where: str, row: dict[str, str]) -> Entry:
    """A tensor listed in layout.csv."""
    shape = tuple(int(size) for size in re.findall(r"\d{1,9}", row["shape"]))
    start, stop = (whole_number(where, name, row[name]) for name in ("start_idx", "end_idx"))
    entry = Entry(row["varname"], start, stop, shape)
    if entry.kind not in ("kernel", "bias") or stop - start != math.prod(shape):
        found = f"{row['varname']}, {start} to {stop}, {row['shape']}"
        raise ZooError(
            where, expected="a kernel or bias, and as many numbers as its shape has", found=found, do=REFETCH
        )
    return entry
