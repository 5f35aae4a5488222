"""Measure how long the page of a large zoo takes to write and, where Playwright is installed, to filter.

python scripts/bench_explorer.py [--models N] [--zoo DIR] [--chromium FILE]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow as pa

from builder.plan import Model, select
from builder.store import metadata, open_store, shard_of
from nws_dataset.console import Command
from nws_dataset.explorer.page import page_of_zoo
from nws_dataset.format import shards
from nws_dataset.format.manifest import SubsetEntry
from nws_dataset.format.schema import METADATA_SCHEMA
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.base import NUM_CLASSES
from nws_dataset.networks.layout import layout_of
from nws_dataset.reading.zoo import Zoo

SUBSET = "small_cnn"
FILTERS = 20  # that are measured
# from the event to the frame after the one that it was drawn in
MEASURE = """
async () => {
  const box = document.querySelector('[data-field=optimizer] input');
  const event = () => new Promise((done) => {
    const begun = performance.now();
    box.checked = !box.checked;
    box.dispatchEvent(new Event('input', { bubbles: true }));
    requestAnimationFrame(() => { const channel = new MessageChannel();
      channel.port1.onmessage = () => done(performance.now() - begun); channel.port2.postMessage(0); });
  });
  return event();
}
"""


def write_zoo(folder: Path, models: int) -> Path:
    """Write a zoo as `small_cnn` is planned, with random weights and results that improve over training."""
    plan = select(SUBSETS[SUBSET], 0, models=models)
    by_shard: dict[str, list[Model]] = defaultdict(list)
    for model in plan:
        by_shard[shard_of(model)].append(model)
    with open_store(folder) as store:
        store.declare(SUBSET, SubsetEntry(0, 0, {"epochs": None}))
        for path, members in by_shard.items():
            table = [_results(model) for model in members]
            count = len(table[0])
            rows = [table[m][s] for s in range(count) for m in range(len(members))]
            store.put(path, pa.Table.from_pylist(rows, METADATA_SCHEMA), _values(members, count))
        store.commit()
    return folder


def _results(model: Model) -> list[dict[str, object]]:
    random = np.random.default_rng(model.number)
    top, rate = 0.1 + 0.85 * random.beta(3, 2), random.uniform(0.05, 0.5)
    results = []
    for epoch in SUBSETS[SUBSET].snapshot_epochs or ():
        accuracy = top - (top - 0.1) * np.exp(-rate * epoch) + random.normal(0, 0.003)
        results.append(
            {
                "epoch": epoch,
                "step": 100 * epoch,
                "train_accuracy": min(1.0, accuracy + 0.02),
                "validation_accuracy": None,
                "test_accuracy": accuracy,
                "train_loss": -np.log(min(accuracy + 0.02, 0.99)),
                "validation_loss": None,
                "test_loss": -np.log(min(accuracy, 0.99)),
                "class_test_accuracy": [accuracy] * NUM_CLASSES,
                "converged": bool(top > 0.15),
                "diverged": False,
            }
        )
    return metadata(model, results)


def _values(members: list[Model], snapshots: int) -> Iterator[bytes]:
    for snapshot in range(snapshots):
        for model in members:
            architecture = model.recipe.architecture
            random = np.random.default_rng([model.number, snapshot])
            row = random.standard_normal(layout_of(architecture).num_weights, np.float32)
            yield shards.pack(architecture, row * np.float32(0.1 + 0.02 * snapshot))


def measure_filter(page: Path, chromium: str) -> list[float]:
    """Milliseconds from the input of a filter to the next frame."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        begun = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_selector("body[data-state=ready]", timeout=60_000)
        click.echo(f"page ready after {time.perf_counter() - begun:.1f} s")
        found = []
        for _ in range(FILTERS):
            tab.wait_for_timeout(1000)
            found.append(tab.evaluate(MEASURE))
        browser.close()
    return found


@click.command(cls=Command)
@click.option("--models", default=16_000, show_default=True, help="Models of the zoo.")
@click.option("--zoo", type=click.Path(path_type=Path), help="Keep the zoo there, or use the one that is.")
@click.option("--chromium", help="A Chromium that filters are measured in.")
def main(models: int, zoo: Path | None, chromium: str | None) -> None:
    """Measure the page of a zoo of many small networks; 3 GB on the disk for 16,000."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = zoo or Path(scratch) / "nws"
        if not (folder / "nws.json").exists():
            begun = time.perf_counter()
            write_zoo(folder, models)
            click.echo(f"zoo written in {time.perf_counter() - begun:.0f} s")
        begun = time.perf_counter()
        html, _ = page_of_zoo(Zoo(folder), "benchmark")
        click.echo(f"page: {time.perf_counter() - begun:.1f} s, {len(html) / 1e6:.2f} MB")
        page = Path(scratch) / "page.html"
        page.write_text(html, encoding="utf-8")
        if chromium:
            found = measure_filter(page, chromium)
            words = f"median {statistics.median(found):.0f} ms, slowest {max(found):.0f} ms"
            click.echo(f"filter, from the input to the next frame: {words}")


if __name__ == "__main__":
    main()
