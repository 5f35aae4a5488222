"""Measure how training scales with the nodes of a Ray cluster, beside plain processes.

    python scripts/bench_cluster.py [--quick]

Nodes of one core each run on this machine. One node, two nodes, one process and two take turns; a rate counts
the steps of models that finish while all of them work, after each has compiled and finished one. Figures are
medians.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import ray
import torch
from ray.cluster_utils import Cluster as Nodes
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from builder.cluster import Cluster, connected
from builder.forecasting.costs import epoch_steps
from builder.images import load_image_set
from builder.plan import Model, Request
from builder.progress import Occupancy
from builder.trained import Summary
from builder.training import bank
from builder.training.cpu.backend import compile_step
from builder.training.workers import LocalTraining, run_on_processes
from nws_dataset.console import Command
from nws_dataset.format.subsets import SUBSETS

EPOCHS = 20
CPU = torch.device("cpu")


def equal_models(count: int) -> list[Model]:
    """Models of one recipe that all train equally long."""
    ((_, (model, *_)),) = Request("demo", 1, epochs=EPOCHS).plan()
    recipe = dataclasses.replace(model.recipe, early_stopping=False)
    return [dataclasses.replace(model, number=number, recipe=recipe) for number in range(count)]


def rate(trained: Iterator[Summary | None], workers: int, models: int) -> float:
    """Models per second, from when each worker has finished one until no models are left."""
    with closing(trained):  # type: ignore[type-var]
        ends = [time.perf_counter() for result in trained if result is not None]
    # equal models end together: when the last one ends, each worker has trained the same number
    first, last = workers - 1, models - 1
    return (last - first) / (ends[last] - ends[first])


@contextmanager
def occupied(cluster: Cluster) -> Iterator[None]:
    """Let something else take one core of the cluster."""
    node = next(iter(cluster.capacity(CPU)))
    remote: Any = ray.remote(_Holder)  # Ray's types do not include methods of actors
    holder = remote.options(
        num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    ).remote()
    ray.get(holder.ready.remote())
    yield
    ray.kill(holder)
    while ray.available_resources().get("CPU", 0) < sum(cluster.capacity(CPU).values()):
        time.sleep(0.1)


class _Holder:
    def ready(self) -> None:
        pass


@click.command(cls=Command)
@click.option("--quick", is_flag=True, help="Fewer models and turns.")
def main(quick: bool) -> None:
    """Measure how training scales with the nodes of a Ray cluster, beside plain processes."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    per_worker, turns = (6, 3) if quick else (12, 7)
    image_set = load_image_set("digits")
    compile_step()
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        with tempfile.TemporaryDirectory() as folder, connected(nodes.address) as cluster:
            number = itertools.count()

            def measure(
                workers: int, start: Callable[[LocalTraining, list[Model]], Iterator[Summary | None]]
            ) -> float:
                models = equal_models(per_worker * workers)
                training = LocalTraining(SUBSETS["demo"], "cpu", out=Path(folder) / str(next(number)))
                bank.save(image_set, models[0].recipe.architecture, None, training.images)
                return rate(start(training, models), workers, len(models))

            def on_nodes(workers: int) -> float:
                return measure(
                    workers,
                    lambda training, models: cluster.train(
                        training, models, {"digits": image_set}, None, Occupancy()
                    ),
                )

            def on_one_node() -> float:
                with occupied(cluster):
                    return on_nodes(1)

            def in_processes(workers: int) -> float:
                return measure(
                    workers, lambda training, models: run_on_processes(training, models, workers, Occupancy())
                )

            contenders: dict[str, Callable[[], float]] = {
                "one node": on_one_node,
                "two nodes": lambda: on_nodes(2),
                "one process": lambda: in_processes(1),
                "two processes": lambda: in_processes(2),
            }
            rates: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(turns):
                for name, contender in contenders.items():
                    rates[name].append(contender())
    finally:
        nodes.shutdown()
    steps = EPOCHS * epoch_steps(equal_models(1)[0], None)
    for name, found in rates.items():
        click.echo(
            f"{name:<14} {steps * statistics.median(found):8,.0f} model-steps a second "
            f"({', '.join(f'{steps * r:,.0f}' for r in found)})"
        )
    for two, one in (
        ("two nodes", "one node"),
        ("two processes", "one process"),
        ("two nodes", "two processes"),
    ):
        ratios = [b / a for a, b in zip(rates[one], rates[two], strict=True)]
        click.echo(
            f"{two} / {one}: {statistics.median(ratios):.2f} "
            f"({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
        )


if __name__ == "__main__":
    main()
