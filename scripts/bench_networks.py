"""Measure how fast networks run together, and how fast a DataLoader delivers them as graphs.

    python scripts/bench_networks.py [--quick] [--part PART] [--json FILE]

All contenders of a measurement are interleaved; figures are medians. Axes: N networks, B probes, O outputs, P
weights.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from builder.benchmark.reading import SMALL, Finding, alternate, show, write_zoo
from nws_dataset.console import Command
from nws_dataset.reading.dataset import SnapshotDataset
from nws_dataset.views.graph import Graph

NETWORKS, PROBES = 200, 8
SNAPSHOTS, BATCH, WORKERS = 4000, 64, 2


def together(folder: Path, quick: bool) -> list[Finding]:
    """Logits of probes, and their gradients: all networks together, and one after the other."""
    zoo = write_zoo(folder, SMALL, NETWORKS // 10, num_snapshots=10)
    snapshots, seed = zoo.filter(), torch.Generator().manual_seed(0)
    networks, singles = zoo.networks(snapshots), [zoo.network(snapshot) for snapshot in snapshots]
    architecture = networks.architecture
    size = architecture.image_size
    probes = torch.rand(PROBES, architecture.image_channels, size, size, generator=seed)
    factors = torch.randn(NETWORKS, PROBES, architecture.num_outputs, generator=seed)

    @torch.no_grad()
    def of_snapshots() -> torch.Tensor:
        return torch.stack([zoo.network(snapshot)(probes) for snapshot in snapshots])

    @torch.no_grad()
    def of_singles() -> torch.Tensor:
        return torch.stack([network(probes) for network in singles])

    def gradients_of_singles() -> tuple[torch.Tensor, ...]:
        asked = probes.clone().requires_grad_()
        logits = torch.stack([network(asked) for network in singles])
        parameters = [parameter for network in singles for parameter in network.parameters()]
        return torch.autograd.grad((logits * factors).sum(), [asked, *parameters])

    def gradients_together() -> tuple[torch.Tensor, ...]:
        asked, weights = probes.clone().requires_grad_(), networks.weights.clone().requires_grad_()
        return torch.autograd.grad((networks(asked, weights) * factors).sum(), [asked, weights])

    contenders: dict[str, Callable[[], object]] = {
        "zoo.network of each": of_snapshots,
        "networks that are ready": of_singles,
        "zoo.networks": torch.no_grad()(lambda: zoo.networks(snapshots)(probes)),
        "zoo.networks that are ready": torch.no_grad()(lambda: networks(probes)),
        "gradients of each": gradients_of_singles,
        "gradients together": gradients_together,
    }
    seconds = alternate(contenders, 5 if quick else 15)
    difference = float((networks(probes) - of_singles()).abs().max())
    ours, theirs = gradients_together()[0], gradients_of_singles()[0]
    slope = float((ours - theirs).abs().max() / theirs.abs().max())
    what = f"{networks.weights.shape[1]:,} weights"

    def ratio(slow: str, fast: str, target: float | None = None) -> Finding:
        return Finding(f"{slow} / {fast}", what, "x", seconds[slow] / seconds[fast], target, at_most=False)

    return [
        *(Finding(f"{NETWORKS} networks, {name}", what, "s", value) for name, value in seconds.items()),
        Finding("logits, difference from single networks", what, "", difference, 1e-6),
        Finding("gradients of probes, difference from single networks", what, "", slope, 1e-5),
        ratio("zoo.network of each", "zoo.networks", 5.0),
        ratio("networks that are ready", "zoo.networks that are ready"),
        ratio("gradients of each", "gradients together"),
    ]


def loading(folder: Path, quick: bool) -> list[Finding]:
    """A shuffled pass of a DataLoader over graphs, including the start of its workers."""
    snapshots = SNAPSHOTS // 10 if quick else SNAPSHOTS
    zoo = write_zoo(folder, SMALL, snapshots // 10, num_snapshots=10)
    dataset = zoo.dataset(zoo.filter(), view=Graph)

    def run(workers: int) -> Callable[[], object]:
        loader = loader_of(dataset, batch_size=BATCH, shuffle=True, num_workers=workers)
        return lambda: sum(len(batch["y"]) for batch in loader)

    contenders = {f"{workers} workers": run(workers) for workers in (0, WORKERS)}
    seconds = alternate(contenders, 3 if quick else 7)
    what, kind = f"{zoo.layout(zoo.filter()[0]).num_weights:,} weights", type(dataset[0]).__name__
    targets = {f"{WORKERS} workers": 2000.0}
    return [
        Finding(
            f"{snapshots:,} graphs, each a {kind}, {name}",
            what,
            "a second",
            snapshots / value,
            targets.get(name),
            at_most=False,
        )
        for name, value in seconds.items()
    ]


def loader_of(dataset: SnapshotDataset, **options: Any) -> Any:
    """PyTorch Geometric's DataLoader if it is installed, else torch's."""
    if isinstance(dataset[0], dict):
        from torch.utils.data import DataLoader

        return DataLoader(dataset, **options)
    from torch_geometric.loader import DataLoader as GraphLoader

    return GraphLoader(dataset, **options)


PARTS: dict[str, Callable[[Path, bool], list[Finding]]] = {"together": together, "loading": loading}


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
    """Measure how fast networks of a zoo of random weights run together, and how fast they are loaded.

    The zoo is written to a temporary folder (80 MB).
    """
    lines: list[Finding] = []
    for name in parts or PARTS:
        with tempfile.TemporaryDirectory() as scratch:
            lines += PARTS[name](Path(scratch) / "zoo", quick)
    show(f"Networks, {torch.get_num_threads()} threads of {os.cpu_count()}", lines, report)


if __name__ == "__main__":
    main()
