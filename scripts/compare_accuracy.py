#!/usr/bin/env python
"""Compare final accuracies of the fast step and the plain loop for the same recipes, and of another seed.

    python scripts/compare_accuracy.py --images DIR

By default: MNIST and Fashion-MNIST, 20 `fixed` recipes, 10 epochs of 10,000 images.

Each recipe is trained three times: by the fast step; by the plain loop with the same random numbers; by the
plain loop with another seed's. The first two diverge after some steps, as they round differently; they should
differ no more than the last two do.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from builder.images import load_image_set
from builder.plan import Model, select
from builder.training.bank import Images, bank_of
from builder.training.device import make_backend
from builder.training.plain import PlainLoop
from builder.training.train import Cohort, evaluate_rows
from nws_dataset.console import Command
from nws_dataset.format.subsets import SUBSETS

CPU = torch.device("cpu")
SUBSET = SUBSETS["fixed"]
OTHER_SEED = 1


def by_fast_step(model: Model, images: Images) -> torch.Tensor:
    """The row after the last epoch."""
    (trained,) = Cohort(SUBSET, model.recipe.architecture, {model.recipe.dataset: images}, device=CPU).train(
        [model]
    )
    return torch.from_numpy(trained.rows[-1])


def by_plain_loop(model: Model, images: Images) -> torch.Tensor:
    loop = PlainLoop(model, images, torch.float32)
    for epoch in range(model.recipe.max_epochs):
        for step in loop.epoch(epoch):
            loop.step(*step)
    return loop.row


def accuracies(model: Model, folder: Path, train_images: int) -> list[float]:
    """Test accuracies of one recipe's three trainings, all evaluated in the same way."""
    torch.set_num_threads(1)
    name = model.recipe.dataset
    images = bank_of({name: load_image_set(name, folder)}, model.recipe.architecture, CPU, train_images)[name]
    other = dataclasses.replace(model, seed=OTHER_SEED)  # the same recipe, other random numbers
    rows = torch.stack(
        [by_fast_step(model, images), by_plain_loop(model, images), by_plain_loop(other, images)]
    )
    backend = make_backend(model.recipe.architecture, CPU)
    return [accuracy for accuracy, _, _ in evaluate_rows(backend, rows, model, images, None)]


@click.command(cls=Command)
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of image files.",
)
@click.option("--datasets", default="mnist,fashion_mnist", show_default=True)
@click.option("--models", default=20, show_default=True)
@click.option("--epochs", default=10, show_default=True)
@click.option("--train-images", default=10_000, show_default=True)
@click.option("--processes", default=2, show_default=True)
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write every accuracy there.")
def main(
    images: Path,
    datasets: str,
    models: int,
    epochs: int,
    train_images: int,
    processes: int,
    target: Path | None,
) -> None:
    """Compare final accuracies of the fast step and of the plain loop."""
    chosen = select(SUBSET, 0, models=models, datasets=tuple(datasets.split(",")), epochs=epochs)
    task, found = partial(accuracies, folder=images, train_images=train_images), []
    click.echo(f"{'recipe':58s}{'fast':>9s}{'plain':>9s}{'other seed':>12s}")
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for model, three in zip(chosen, pool.imap(task, chosen), strict=True):
            found.append(three)
            recipe = model.recipe
            words = [
                recipe.dataset,
                recipe.optimizer,
                recipe.activation,
                recipe.initialization,
                recipe.batch_size,
            ]
            click.echo(f"{' '.join(map(str, words)):58s}{three[0]:9.4f}{three[1]:9.4f}{three[2]:12.4f}")
    fast, plain, other = np.array(found).T
    for name, gap in (("fast - plain", fast - plain), ("other seed - plain", other - plain)):
        error = gap.std(ddof=1) / len(gap) ** 0.5
        click.echo(
            f"{name:20s} mean {gap.mean():+.4f} (standard error {error:.4f}), mean size "
            f"{abs(gap).mean():.4f}, largest {abs(gap).max():.4f}"
        )
    if target:
        target.write_text(
            json.dumps(
                {
                    "models": [model.id for model in chosen],
                    "fast": [*fast],
                    "plain": [*plain],
                    "other": [*other],
                }
            )
        )


if __name__ == "__main__":
    main()
