"""Measure how fast the baselines read a zoo.

    python scripts/bench_baselines.py [--quick] [--part PART] [--json FILE]

A part is a function in PARTS that makes what it needs in a folder and returns lines. All contenders of a
measurement are interleaved; figures are medians. Axes: N rows, P weights, F features.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from builder.benchmark.reading import FIXED, SMALL, Finding, alternate, show, write_zoo
from nws_dataset.baselines.meta_classifier import DeepMetaClassifier
from nws_dataset.console import Command
from nws_dataset.evaluation.inputs import SMALL_SETTINGS
from nws_dataset.networks.layout import Layout
from nws_dataset.views.slices import ArrayRows
from nws_dataset.views.statistics import QUANTILES, zoo_features


def features(folder: Path, quick: bool) -> list[Finding]:
    """Statistics of all tensors of 20,000 networks of 4,970 weights, beside a loop over both."""
    tenth = 10
    zoo = write_zoo(folder, SMALL, 200 if quick else 2000, num_snapshots=10)
    snapshots = zoo.filter()
    part, layout = (
        snapshots[: len(snapshots) // tenth],
        zoo.layout(snapshots[0]),
    )  # the loop is timed on a tenth of the rows
    expected, (found, _) = loop(zoo.weights(part), layout), zoo_features(zoo, part, "layers")
    difference = float(np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected))))
    contenders: dict[str, Callable[[], object]] = {
        "loop": lambda: loop(zoo.weights(part), layout),
        "one thread": lambda: zoo_features(zoo, snapshots, "layers", threads=1),
        "all cores": lambda: zoo_features(zoo, snapshots, "layers"),
    }
    seconds = alternate(contenders, 3 if quick else 5)
    seconds["loop"] *= len(snapshots) / len(part)
    network, what = f"{layout.num_weights:,} weights", f"statistics of {len(snapshots):,} networks"
    return [
        Finding(f"{what}, difference from the loop", network, "", difference, 1e-6),
        *(Finding(f"{what}, {name}", network, "s", value) for name, value in seconds.items()),
        Finding(f"{what}, loop / one thread", network, "x", seconds["loop"] / seconds["one thread"]),
        Finding(
            f"{what}, loop / all cores",
            network,
            "x",
            seconds["loop"] / seconds["all cores"],
            20.0,
            at_most=False,
        ),
    ]


def loop(weights_NP: np.ndarray, layout: Layout) -> np.ndarray:
    """Statistics [N, F] by the obvious loop: each tensor of each network."""
    percents = [100 * quantile for quantile in QUANTILES]
    return np.array(
        [
            [f for w in layout.views(row).values() for f in (*np.percentile(w, percents), w.mean(), w.std())]
            for row in weights_NP
        ]
    )


def input_of_training(folder: Path, quick: bool) -> list[Finding]:
    """How long the smallest meta-classifier (shortest steps) waits for slices, or for whole rows instead."""
    zoo = write_zoo(folder, FIXED, 40 if quick else 200)
    snapshots = zoo.filter()
    settings, network = SMALL_SETTINGS, f"{zoo.layout(snapshots[0]).num_weights:,} weights"
    options = {**settings.of_estimator(), "epochs": 1 if quick else 3}
    views, batch, length = zoo.arrays(snapshots), settings.batch_size, settings.slice_length
    epochs = (
        DeepMetaClassifier(**options, validation_fraction=0, random_state=0)
        .fit(views, snapshots["activation"])
        .history_
    )
    source, random = ArrayRows(views), np.random.default_rng(0)
    batches = (random.integers(len(snapshots), size=batch) for _ in itertools.count())
    contenders: dict[str, Callable[[], object]] = {
        "slices": lambda: source.slices(next(batches), np.zeros(batch, int), length),
        "rows": lambda: np.stack([views[number] for number in next(batches)])[:, :length],
    }
    seconds = alternate(contenders, 5 if quick else 20)
    step = float(np.median([epoch["seconds"] for epoch in epochs])) / (len(snapshots) // batch)
    waited = float(np.median([epoch["waited"] / epoch["seconds"] for epoch in epochs]))
    return [
        Finding(f"meta-classifier on slices of {length:,}, a step of {batch} slices", network, "s", step),
        Finding("of which it waits for slices", network, "of the step", waited, 0.1),
        Finding("whole rows of a batch / slices of it", network, "x", seconds["rows"] / seconds["slices"]),
    ]


PARTS: dict[str, Callable[[Path, bool], list[Finding]]] = {"features": features, "input": input_of_training}


@click.command(cls=Command)
@click.option("--quick", is_flag=True, help="Smaller zoos and fewer repetitions.")
@click.option(
    "--part",
    "parts",
    type=click.Choice(list(PARTS)),
    multiple=True,
    help="Run only this part; may be repeated.  [default: all]",
)
@click.option(
    "--json",
    "report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write all measurements to this file.",
)
def main(quick: bool, parts: tuple[str, ...], report: Path | None) -> None:
    """Measure how fast the baselines read a zoo of random weights.

    The zoo is written to a temporary folder (740 MB, with --quick 150 MB).
    """
    lines: list[Finding] = []
    for name in parts or PARTS:
        with tempfile.TemporaryDirectory() as scratch:
            lines += PARTS[name](Path(scratch) / "zoo", quick)
    show("Baselines", lines, report)


if __name__ == "__main__":
    main()
