"""The benchmark of reading: from a folder beside the original's one file a snapshot, and from a Hub beside the stock library.

All sides of a measurement take turns, and what is told are medians. Files are in the page cache, hash checks off, as the numbers of weights
are those of real networks. Axes: N rows, P weights.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa

from builder.benchmark.tables import MET, number
from builder.plan import Model, select
from builder.store import metadata, shard_of
from nws_dataset import Rows, Zoo, shards
from nws_dataset.command import Command
from nws_dataset.evaluation.report import Table
from nws_dataset.files import sha256_file
from nws_dataset.layout import layout_of
from nws_dataset.manifest import INDEX_PATH, FileEntry, Manifest, SubsetEntry, configs
from nws_dataset.recipe import NWS_FIXED, SMALL_CNN, Choice, Family, Subset
from nws_dataset.schema import METADATA_SCHEMA

SLICE, SLICES = 5000, 64  # of the meta-classifier's batch
REPOSITORY = "org/bench"
SMALL: Family = {**SMALL_CNN, "dataset": "mnist"}  # 4,970 weights
FIXED: Family = {**NWS_FIXED, "dataset": Choice(("mnist",))}  # 92,218 weights
HUB: Family = {**FIXED, "filter_size": 3, "width_fc": 64}  # about 40,000 weights


@dataclass(frozen=True)
class Line:
    """A measured number beside what it should be."""

    what: str
    network: str
    unit: str
    value: float
    target: float | None = None
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else (self.value <= self.target if self.at_most else self.value >= self.target)


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--quick", is_flag=True, help="Smaller zoos and fewer repetitions.")
@click.option("--json", "report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write every number there.")
@click.pass_obj
def main(hub: Any, quick: bool, report: Path | None) -> None:
    """Measure how fast a zoo is read.

    Zoos of random weights are written to a temporary folder (2 GB, with --quick less), read from there and from a Hub on this
    machine.
    """
    part, repetitions = (10, 5) if quick else (1, 15)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, family, models in (("small", SMALL, 500), ("fixed", FIXED, 100)):
            zoo, files = write_zoo(Path(scratch) / name, family, max(20, models // part)), Path(scratch) / f"{name}-files"
            lines += local_lines(zoo, write_original(zoo, files), repetitions)
        lines += hub_lines(hub, write_zoo(Path(scratch) / "hub", HUB, max(110, 250 // part), snapshots=20), Path(scratch) / "cache")
    tell("Reading", lines, report)


def tell(title: str, lines: list[Line], report: Path | None) -> None:
    """Print lines as a table; write them as JSON to `report` if it is given."""
    if report is not None:
        report.write_text(json.dumps([{**asdict(line), "met": line.met} for line in lines], indent=1) + "\n", encoding="utf-8")
    columns = ("", "network", "measured", "target", "met")
    rows = [(line.what, line.network, f"{number(line.value)} {line.unit}", _target(line), MET[line.met]) for line in lines]
    Table(title, columns, rows).print()


def _target(line: Line) -> str:
    return "" if line.target is None else f"{'<=' if line.at_most else '>='} {line.target:g}"


# The zoos


def write_zoo(folder: Path, family: Family, models: int, snapshots: int = 10) -> Zoo:
    """A zoo of one architecture with random weights, in one shard.

    Args:
        folder: made.
        family: what its recipes are drawn from.
        models: of the zoo; all are in the split train.
        snapshots: of each model.
    """
    subset = Subset("bench", models, (family,), num_snapshots=snapshots)
    drawn = list(select(subset, 0))
    relative = shard_of(drawn[0]).replace(drawn[0].split, "train")
    rows = sorted((row for model in drawn for row in _rows(model, snapshots)), key=lambda row: (row["snapshot"], row["model_id"]))
    architecture, random = drawn[0].recipe.architecture, np.random.default_rng(0)
    num_weights = layout_of(architecture).num_weights
    values = (shards.pack(architecture, random.standard_normal(num_weights, np.float32)) for _ in rows)
    index = shards.write_snapshots(folder / relative, pa.Table.from_pylist(rows, METADATA_SCHEMA), values, relative=relative)
    index_path = INDEX_PATH.format(subset=subset.name, split="train")
    shards.write_index(folder / index_path, index)
    files = {path: FileEntry((folder / path).stat().st_size, sha256_file(folder / path)) for path in (relative, index_path)}
    manifest = Manifest("benchmark", {subset.name: SubsetEntry(0, models)}, files)
    manifest.write(folder)
    (folder / "README.md").write_text(f"---\n{json.dumps(configs(manifest, index))}\n---\n", encoding="utf-8")  # JSON is YAML
    return Zoo(folder)


def _rows(model: Model, snapshots: int) -> list[dict[str, Any]]:
    results = {name: 0.5 for name in METADATA_SCHEMA.names if name.endswith(("_accuracy", "_loss")) and not name.startswith("class")}
    told = [{"epoch": s, "step": s, **results, "converged": True, "diverged": False} for s in range(snapshots)]
    return [{**row, "split": "train"} for row in metadata(model, told)]


def write_original(zoo: Zoo, folder: Path) -> list[Path]:
    """The same weights as the original release has them: a file a snapshot, raw float64. Returns the files, in the order of the rows."""
    folder.mkdir()
    paths = []
    for i, row in enumerate(zoo.filter()):
        paths.append(folder / f"{i:06d}.bin")
        zoo.row(row).astype(np.float64).tofile(paths[-1])
    return paths


# From a folder


def local_lines(zoo: Zoo, files: Sequence[Path], repetitions: int) -> list[Line]:
    """One snapshot, a pass over all, and a batch of slices."""
    rows, random = zoo.filter(), np.random.default_rng(1)
    network = f"{rows[0]['num_weights']:,} weights"
    chosen = iter(random.integers(len(rows), size=100_000).tolist())
    one = alternate({"ours": lambda: zoo.row(rows[next(chosen)]).copy(), "files": lambda: np.fromfile(files[next(chosen)])}, 300)
    source = np.concatenate([weights for _, weights in zoo.stacks()])
    target = source.copy()

    def ours() -> None:
        for _, _ in zoo.stacks():
            pass

    def original() -> None:
        for file in files:
            np.fromfile(file)

    whole = alternate({"ours": ours, "memory": lambda: np.copyto(target, source), "files": original}, repetitions)
    return [
        Line("a random snapshot", network, "ms", 1e3 * one["ours"], 0.1 if source.shape[1] < SLICE else 0.2),
        Line("a random snapshot, np.fromfile of the original's file / ours", network, "x", one["files"] / one["ours"]),
        Line("a pass over all rows, speed / that of a memory copy", network, "x", whole["memory"] / whole["ours"], 0.5, at_most=False),
        Line("a pass over all rows, np.fromfile of the original's files / ours", network, "x", whole["files"] / whole["ours"]),
        *slice_lines(zoo, files, network, min(SLICE, source.shape[1]), repetitions),
    ]


def slice_lines(zoo: Zoo, files: Sequence[Path], network: str, length: int, repetitions: int) -> list[Line]:
    """A batch of random slices: time, and bytes read."""
    rows, random = zoo.filter(), np.random.default_rng(2)
    numbers = random.integers(len(rows), size=SLICES)
    chosen = Rows(rows.table.take(numbers))
    starts = random.integers(chosen["num_weights"] - length + 1)

    def original() -> None:
        np.stack([np.fromfile(files[number])[start : start + length] for number, start in zip(numbers, starts, strict=True)])

    before = bytes_read()
    slices = zoo.slices(chosen, starts, length)
    read = bytes_read() - before
    times = alternate({"ours": lambda: zoo.slices(chosen, starts, length), "files": original}, repetitions)
    what = f"{SLICES} random slices of {length:,}"
    return [
        Line(f"{what}, bytes read / their bytes", network, "x", read / slices.nbytes, 2.0),
        Line(what, network, "ms", 1e3 * times["ours"]),
        Line(f"{what}, np.fromfile of the original's files / ours", network, "x", times["files"] / times["ours"]),
    ]


def bytes_read() -> int:
    """Bytes that this process has read from files so far, the page cache included (Linux)."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(counters["rchar"])


def alternate(sides: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """The median seconds of each side; they take turns, and a first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn, (name, side) in itertools.product(range(repetitions + 1), sides.items()):
        start = time.perf_counter()
        side()
        if turn:
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


# From a Hub


def hub_lines(hub: Any, zoo: Zoo, cache: Path) -> list[Line]:
    """The final networks of 50 neighbouring and of 50 scattered models: requests and bytes, ours and the stock library's."""
    hub.put(REPOSITORY, zoo.path)
    network = f"{zoo.filter()[0]['num_weights']:,} weights"
    final = zoo.filter(is_final=True)
    step = len(final) // 50
    lines = []
    for name, wanted in (("neighbouring", final[10:60]), ("scattered", final[: 50 * step : step])):
        hub.clear()
        start = time.perf_counter()
        there = Zoo(REPOSITORY, cache_dir=cache / name)
        rows = there.filter(is_final=True, model_id=wanted["model_id"])
        index = sum(request.sent for request in hub.requests)
        filtered = len(hub.requests)
        weights = there.weights(rows)
        seconds = time.perf_counter() - start
        assert np.array_equal(weights, zoo.weights(wanted))
        fetched, sent = hub.requests[filtered:], sum(request.sent for request in hub.requests[filtered:])
        ranges = sum(request.status == 206 for request in fetched)
        stock_seconds, stock_sent = stock(hub, wanted, cache / f"{name}-stock")
        what = f"final networks of 50 {name} models"
        lines += [
            Line(f"{what}, bytes fetched / weights", network, "x", sent / weights.nbytes, 1.1),
            Line(f"{what}, range requests", network, "", ranges, 1.0 if name == "neighbouring" else 50.0),
            Line(f"{what}, index and nws.json", network, "MB", index / 1e6),
            Line(f"{what}, bytes that datasets fetches with filters= / ours", network, "x", stock_sent / (sent + index)),
            Line(f"{what}, time of datasets with filters= / ours", network, "x", stock_seconds / seconds),
        ]
    return lines


def stock(hub: Any, wanted: Rows, cache: Path) -> tuple[float, int]:
    """Seconds and bytes of the same query through the stock library."""
    import datasets

    hub.clear()
    start = time.perf_counter()
    filters = [("is_final", "==", True), ("model_id", "in", wanted["model_id"].tolist())]
    found = datasets.load_dataset(
        REPOSITORY, "bench", split="train", filters=filters, cache_dir=str(cache), download_mode="force_redownload"
    )
    assert found.num_rows == len(wanted)
    return time.perf_counter() - start, sum(request.sent for request in hub.requests)
