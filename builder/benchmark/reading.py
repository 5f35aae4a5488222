"""Benchmarks reading: a folder beside the original's one file per snapshot, a Hub beside `datasets`.

All contenders of a measurement are interleaved; figures are medians. Files are in the page cache and hashes
are not checked; the numbers of weights are those of real networks. Axes: N rows, P weights.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa

from builder.benchmark.report import MET
from builder.forecasting.forecast import format_number
from builder.plan import Model, select
from builder.store import metadata, shard_of
from nws_dataset.console import Command, Table
from nws_dataset.files import sha256_file
from nws_dataset.format import shards
from nws_dataset.format.manifest import INDEX_PATH, FileEntry, Manifest, SubsetEntry, configs
from nws_dataset.format.schema import INDEX_SCHEMA, METADATA_SCHEMA
from nws_dataset.format.subsets import NWS_FIXED, NWS_MAIN, SMALL_CNN, Choice, Family, Subset
from nws_dataset.networks.base import NUM_CLASSES
from nws_dataset.networks.layout import layout_of
from nws_dataset.reading.byte_ranges import BYTE_RANGE_COLUMNS
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo

SLICE, SLICES = 5000, 64  # in the meta-classifier's batch
REPOSITORY = "org/bench"
MODELS = 16_000  # in the original zoo
RESULTS = {
    name: 0.5
    for name in METADATA_SCHEMA.names
    if name.endswith(("_accuracy", "_loss")) and not name.startswith("class")
}
SMALL: Family = {**SMALL_CNN, "dataset": "mnist"}  # 4,970 weights
FIXED: Family = {**NWS_FIXED, "dataset": Choice(("mnist",))}  # 92,218 weights
HUB: Family = {**FIXED, "filter_size": 3, "width_fc": 64}  # about 40,000 weights


@dataclass(frozen=True)
class Finding:
    """A measured number and its target."""

    what: str
    network: str
    unit: str
    value: float
    target: float | None = None
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        return (
            None
            if self.target is None
            else (self.value <= self.target if self.at_most else self.value >= self.target)
        )


@click.command(cls=Command)
@click.option("--quick", is_flag=True, help="Smaller zoos and fewer repetitions.")
@click.option(
    "--json",
    "report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write all measurements to this file.",
)
@click.pass_obj
def main(hub: Any, quick: bool, report: Path | None) -> None:
    """Measure how fast a zoo is read.

    Zoos of random weights are written to a temporary folder (2 GB, with --quick less), read from there and
    from a Hub on this machine; and the index of a zoo of 320,000 snapshots (with --quick 32,000), whose
    weights are holes in sparse files.
    """
    part, repetitions = (10, 5) if quick else (1, 15)
    lines: list[Finding] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, family, models in (("small", SMALL, 500), ("fixed", FIXED, 100)):
            zoo, files = (
                write_zoo(Path(scratch) / name, family, max(20, models // part)),
                Path(scratch) / f"{name}-files",
            )
            lines += local_lines(zoo, write_original(zoo, files), repetitions)
        lines += index_lines(write_large_index(Path(scratch) / "large", MODELS // part), repetitions)
        lines += hub_lines(
            hub,
            write_zoo(Path(scratch) / "hub", HUB, max(110, 250 // part), num_snapshots=20),
            Path(scratch) / "cache",
        )
    show("Reading", lines, report)


def show(title: str, lines: list[Finding], report: Path | None) -> None:
    """Print lines as a table; also write them as JSON to `report` if given."""
    if report is not None:
        report.write_text(
            json.dumps([{**asdict(line), "met": line.met} for line in lines], indent=1) + "\n",
            encoding="utf-8",
        )
    columns = ("", "network", "measured", "target", "met")
    cells = [
        (line.what, line.network, f"{format_number(line.value)} {line.unit}", _target(line), MET[line.met])
        for line in lines
    ]
    Table(title, columns, cells).print()


def _target(line: Finding) -> str:
    return "" if line.target is None else f"{'<=' if line.at_most else '>='} {line.target:g}"


# The zoos


def write_zoo(folder: Path, family: Family, models: int, num_snapshots: int = 10) -> Zoo:
    """Write a zoo of one architecture with random weights, in one shard.

    Args:
        folder: the folder to create.
        family: what its recipes are drawn from.
        models: number of models; all are in the split train.
        num_snapshots: snapshots per model.
    """
    subset = Subset("bench", models, (family,), num_snapshots=num_snapshots)
    drawn = list(select(subset, 0))
    relative = shard_of(drawn[0]).replace(drawn[0].split, "train")
    snapshots = sorted(
        (snapshot for model in drawn for snapshot in _lines(model, num_snapshots)),
        key=lambda snapshot: (snapshot["snapshot"], snapshot["model_id"]),
    )
    architecture, random = drawn[0].recipe.architecture, np.random.default_rng(0)
    num_weights = layout_of(architecture).num_weights
    values = (shards.pack(architecture, random.standard_normal(num_weights, np.float32)) for _ in snapshots)
    index = shards.write_snapshots(
        folder / relative, pa.Table.from_pylist(snapshots, METADATA_SCHEMA), values, relative=relative
    )
    index_path = INDEX_PATH.format(subset=subset.name, split="train")
    shards.write_index(folder / index_path, index)
    files = {
        path: FileEntry((folder / path).stat().st_size, sha256_file(folder / path))
        for path in (relative, index_path)
    }
    manifest = Manifest("benchmark", {subset.name: SubsetEntry(0, models)}, files)
    manifest.write(folder)
    # JSON is YAML
    (folder / "README.md").write_text(f"---\n{json.dumps(configs(manifest, index))}\n---\n", encoding="utf-8")
    return Zoo(folder)


def _lines(model: Model, snapshots: int) -> list[dict[str, Any]]:
    results = [
        {"epoch": s, "step": s, **RESULTS, "converged": True, "diverged": False} for s in range(snapshots)
    ]
    return [{**line, "split": "train"} for line in metadata(model, results)]


def write_original(zoo: Zoo, folder: Path) -> list[Path]:
    """Write the same weights as in the original release: one file per snapshot, raw float64.

    Returns the files, in the order of the snapshots.
    """
    folder.mkdir()
    paths = []
    for i, snapshot in enumerate(zoo.filter()):
        paths.append(folder / f"{i:06d}.bin")
        zoo.row(snapshot).astype(np.float64).tofile(paths[-1])
    return paths


def write_large_index(folder: Path, models: int) -> Path:
    """Write the index of a zoo as large as the original, without weights: `main`, 20 snapshots per model.

    Args:
        folder: the folder to create.
        models: number of models.
    """
    subset, random = Subset("main", models, (NWS_MAIN,)), np.random.default_rng(0)
    plan = select(subset, 0)
    snapshots = [
        snapshot
        for model in plan
        for snapshot in metadata(
            model, [{"epoch": 0, "step": 0, **RESULTS, "converged": True, "diverged": False}]
        )
    ]
    table, sizes = (
        pa.Table.from_pylist(snapshots, METADATA_SCHEMA),
        {model.id: shards.value_bytes(model.recipe.architecture) for model in plan},
    )
    by_split: dict[str, list[pa.Table]] = {}
    files = {}
    for shard, numbers in itertools.groupby(
        sorted(range(models), key=lambda i: shard_of(plan[i])), key=lambda i: shard_of(plan[i])
    ):
        chosen = list(numbers)
        part = pa.concat_tables(
            [
                _at_snapshot(table.take(chosen), s, subset.num_snapshots, random)
                for s in range(1, subset.num_snapshots + 1)
            ]
        )
        length, count = sizes[plan[chosen[0]].id], part.num_rows
        digests = [random.bytes(32).hex() for _ in range(count)]
        byte_ranges = [
            [shard] * count,
            [4 + i * (length + 4) for i in range(count)],
            [length] * count,
            digests,
        ]
        ranges = dict(zip(BYTE_RANGE_COLUMNS, byte_ranges, strict=True))
        columns = [
            part[field.name]
            if field.name in part.column_names
            else pa.array(ranges.get(field.name, [None] * count), field.type)
            for field in INDEX_SCHEMA
        ]
        by_split.setdefault(plan[chosen[0]].split, []).append(pa.table(columns, schema=INDEX_SCHEMA))
        (folder / shard).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / shard, "wb") as file:
            file.truncate(count * (length + 4))
        files[shard] = FileEntry(count * (length + 4), "")
    for split, tables in by_split.items():
        path = INDEX_PATH.format(subset=subset.name, split=split)
        shards.write_index(folder / path, pa.concat_tables(tables))
        files[path] = FileEntry((folder / path).stat().st_size, sha256_file(folder / path))
    Manifest("benchmark", {subset.name: SubsetEntry(0, models)}, files).write(folder)
    return folder


def _at_snapshot(table: pa.Table, snapshot: int, snapshots: int, random: np.random.Generator) -> pa.Table:
    """The metadata of models at a snapshot, with random results."""
    changed: dict[str, Any] = {
        "snapshot": snapshot,
        "num_snapshots": snapshots,
        "is_final": snapshot == snapshots,
        "epoch": snapshot,
    }
    for i, field in enumerate(METADATA_SCHEMA):
        if field.name in changed:
            table = table.set_column(i, field, pa.array([changed[field.name]] * len(table), field.type))
        elif field.name in RESULTS:
            table = table.set_column(i, field, pa.array(random.random(len(table)), field.type))
        elif field.name == "class_test_accuracy":
            table = table.set_column(
                i, field, pa.array(list(random.random((len(table), NUM_CLASSES))), field.type)
            )
    return table


# The index


def index_lines(folder: Path, repetitions: int) -> list[Finding]:
    """The cost of opening a zoo and choosing snapshots: CPU seconds and memory, each in a new process."""
    measured = [_measured_by(folder, what) for what in ("filter", "all") for _ in range(3)]
    few, every = (
        {name: float(np.median([t[name] for t in part])) for name in measured[0]}
        for part in (measured[:3], measured[3:])
    )
    zoo = Zoo(folder)
    snapshots = zoo.filter()
    what = f"{len(snapshots):,} snapshots"
    random = iter(np.random.default_rng(3).integers(len(snapshots), size=100_000).tolist())
    contenders: dict[str, Callable[[], object]] = {
        "value": lambda: zoo.filter(is_final=True, dataset="mnist", optimizer=["adam", "momentum"]),
        "function": lambda: zoo.filter(test_accuracy=lambda accuracy: accuracy > 0.5),
        "snapshot": lambda: [snapshots[next(random)]["model_id"] for _ in range(100)],
    }
    times = alternate(contenders, repetitions)
    return [
        Finding("open a zoo and filter by three columns, processor time", what, "s", few["seconds"], 0.4),
        Finding("the same, memory beyond that of the import", what, "MB", few["megabytes"], 80),
        Finding("read all columns, memory beyond that of the import", what, "MB", every["megabytes"], 200),
        Finding("read all columns, processor time", what, "s", every["seconds"]),
        Finding("filter by values of three columns that were read", what, "ms", 1e3 * times["value"], 30),
        Finding(
            "filter by a function of a column with as many values as snapshots",
            what,
            "ms",
            1e3 * times["function"],
        ),
        Finding("a snapshot and one of its values", what, "us", 1e4 * times["snapshot"], 50),
    ]


_PROGRAM = """
import json, sys, time
from nws_dataset.format.schema import INDEX_SCHEMA
from nws_dataset.reading.zoo import Zoo

def peak():  # kB; what getrusage says goes back to before this program
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

before, start = peak(), time.process_time()
snapshots = Zoo(sys.argv[1]).filter(is_final=True, dataset="mnist", optimizer=["adam", "momentum"])
if sys.argv[2] == "all":
    snapshots = Zoo(sys.argv[1]).filter()
    for name in INDEX_SCHEMA.names:
        snapshots[name]
seconds, megabytes = time.process_time() - start, (peak() - before) / 1e3
print(json.dumps({"seconds": seconds, "megabytes": megabytes, "snapshots": len(snapshots)}))
"""


def _measured_by(folder: Path, what: str) -> dict[str, float]:
    """What a new process measures of itself."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder), what], check=True, capture_output=True, text=True
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


# From a folder


def local_lines(zoo: Zoo, files: Sequence[Path], repetitions: int) -> list[Finding]:
    """One snapshot, a pass over all, and a batch of slices."""
    snapshots, random = zoo.filter(), np.random.default_rng(1)
    network = f"{snapshots[0]['num_weights']:,} weights"
    chosen = iter(random.integers(len(snapshots), size=100_000).tolist())
    one = alternate(
        {
            "ours": lambda: zoo.row(snapshots[next(chosen)]).copy(),
            "files": lambda: np.fromfile(files[next(chosen)]),
        },
        300,
    )
    source = np.concatenate([weights for _, weights in zoo.stacks()])
    target = source.copy()

    def ours() -> None:
        for _, _ in zoo.stacks():
            pass

    def original() -> None:
        for file in files:
            np.fromfile(file)

    whole = alternate(
        {"ours": ours, "memory": lambda: np.copyto(target, source), "files": original}, repetitions
    )
    return [
        Finding(
            "a random snapshot", network, "ms", 1e3 * one["ours"], 0.025 if source.shape[1] < SLICE else 0.06
        ),
        Finding(
            "a random snapshot, np.fromfile of the original's file / ours",
            network,
            "x",
            one["files"] / one["ours"],
            1.0,
            at_most=False,
        ),
        Finding(
            "a pass over all rows, speed / that of a memory copy",
            network,
            "x",
            whole["memory"] / whole["ours"],
            0.7,
            at_most=False,
        ),
        Finding(
            "a pass over all rows, np.fromfile of the original's files / ours",
            network,
            "x",
            whole["files"] / whole["ours"],
        ),
        *slice_lines(zoo, files, network, min(SLICE, source.shape[1]), repetitions),
    ]


def slice_lines(
    zoo: Zoo, files: Sequence[Path], network: str, length: int, repetitions: int
) -> list[Finding]:
    """A batch of random slices: time, and bytes read."""
    snapshots, random = zoo.filter(), np.random.default_rng(2)
    numbers = random.integers(len(snapshots), size=SLICES)
    chosen = snapshots[numbers]
    starts = random.integers(chosen["num_weights"] - length + 1)

    def original() -> None:
        np.stack(
            [
                np.fromfile(files[number])[start : start + length]
                for number, start in zip(numbers, starts, strict=True)
            ]
        )

    before = bytes_read()
    slices = zoo.slices(chosen, starts, length)
    read = bytes_read() - before
    times = alternate({"ours": lambda: zoo.slices(chosen, starts, length), "files": original}, repetitions)
    what = f"{SLICES} random slices of {length:,}"
    return [
        Finding(f"{what}, bytes read / their bytes", network, "x", read / slices.nbytes, 2.0),
        Finding(what, network, "ms", 1e3 * times["ours"]),
        Finding(
            f"{what}, np.fromfile of the original's files / ours",
            network,
            "x",
            times["files"] / times["ours"],
        ),
    ]


def bytes_read() -> int:
    """Bytes that this process has read from files so far, including the page cache (Linux)."""
    counters = dict(
        line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    )
    return int(counters["rchar"])


def alternate(contenders: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """The median seconds of each contender; they are interleaved, and the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn, (name, contender) in itertools.product(range(repetitions + 1), contenders.items()):
        start = time.perf_counter()
        contender()
        if turn:
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


# From a Hub


def hub_lines(hub: Any, zoo: Zoo, cache: Path) -> list[Finding]:
    """The final networks of 50 adjacent and 50 scattered models: requests and bytes, ours and `datasets`'."""
    hub.put(REPOSITORY, zoo.path)
    network = f"{zoo.filter()[0]['num_weights']:,} weights"
    final = zoo.filter(is_final=True)
    step = len(final) // 50
    lines = []
    for name, wanted in (("neighbouring", final[10:60]), ("scattered", final[: 50 * step : step])):
        hub.clear()
        start = time.perf_counter()
        there = Zoo(REPOSITORY, cache_dir=cache / name)
        snapshots = there.filter(is_final=True, model_id=wanted["model_id"])
        index = sum(request.sent for request in hub.requests)
        filtered = len(hub.requests)
        weights = there.weights(snapshots)
        seconds = time.perf_counter() - start
        assert np.array_equal(weights, zoo.weights(wanted))
        fetched, sent = hub.requests[filtered:], sum(request.sent for request in hub.requests[filtered:])
        ranges = sum(request.status == 206 for request in fetched)
        stock_seconds, stock_sent = stock(hub, wanted, cache / f"{name}-stock")
        what = f"final networks of 50 {name} models"
        lines += [
            Finding(f"{what}, bytes fetched / weights", network, "x", sent / weights.nbytes, 1.1),
            Finding(f"{what}, range requests", network, "", ranges, 1.0 if name == "neighbouring" else 50.0),
            Finding(f"{what}, index and nws.json", network, "MB", index / 1e6),
            Finding(
                f"{what}, bytes that datasets fetches with filters= / ours",
                network,
                "x",
                stock_sent / (sent + index),
            ),
            Finding(f"{what}, time of datasets with filters= / ours", network, "x", stock_seconds / seconds),
        ]
    return lines


def stock(hub: Any, wanted: Snapshots, cache: Path) -> tuple[float, int]:
    """Seconds and bytes of the same query through `datasets`."""
    import datasets

    hub.clear()
    start = time.perf_counter()
    filters = [("is_final", "==", True), ("model_id", "in", wanted["model_id"].tolist())]
    # the card counts the snapshots without filters
    options = {"download_mode": "force_redownload", "verification_mode": "no_checks"}
    found = datasets.load_dataset(
        REPOSITORY, "bench", split="train", filters=filters, cache_dir=str(cache), **options
    )
    assert found.num_rows == len(wanted)
    return time.perf_counter() - start, sum(request.sent for request in hub.requests)
