#!/usr/bin/env python
"""Find the constants of the preset `kan` that were not published: label noise and edge threshold.

    python scripts/calibrate_kans.py --images DIR

Trains the preset's networks with label noise from all of 0 .. 1. Printed are, for each image set, the lowest
label noise from which test accuracies spread as published (`nws_dataset/format/subsets.py` draws from there
up to 1), and the score below which 75 % of the edges of those networks lie.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
from pathlib import Path

import click
import numpy as np
import torch

from builder.images import load_image_set
from builder.plan import Model, select
from builder.training.bank import Bank, bank_of
from builder.training.train import Cohort
from nws_dataset.console import Command, Progress
from nws_dataset.format.subsets import KAN, SUBSETS, Uniform
from nws_dataset.networks.base import BaseArchitecture

CPU = torch.device("cpu")
ANY_NOISE = dataclasses.replace(SUBSETS["kan"], families=({**KAN, "label_noise": Uniform(0, 1)},))
# standard deviations of test accuracy (Bar-Shalom et al. 2026, arXiv 2602.16316); of image sets that are not
# theirs, that of the one most like it
PUBLISHED = {"mnist": 0.252, "fashion_mnist": 0.195, "kmnist": 0.183, "kmnist_10k": 0.183, "digits": 0.252}
PRUNED = 0.75
LOWEST = np.arange(0, 0.951, 0.05)
MIN_MODELS = 10  # that a spread is taken from


@functools.cache
def bank(name: str, architecture: BaseArchitecture, folder: Path | None) -> Bank:
    return bank_of({name: load_image_set(name, folder)}, architecture, CPU)


def trained(model: Model, folder: Path | None) -> tuple[float, float, np.ndarray]:
    """Label noise, final test accuracy and final edge scores [E] of a model."""
    torch.set_num_threads(1)
    architecture = model.recipe.architecture
    images = bank(model.recipe.dataset, architecture, folder)
    (result,) = Cohort(ANY_NOISE, architecture, images, device=CPU).train([model])
    assert result.edge_scores is not None
    return model.recipe.label_noise, result.snapshots[-1]["test_accuracy"], result.edge_scores[-1]


@click.command(cls=Command)
@click.option(
    "--images", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of image files."
)
@click.option("--datasets", default="mnist,fashion_mnist,kmnist_10k", show_default=True)
@click.option("--models", default=120, show_default=True, help="Networks of each image set.")
@click.option("--processes", default=2, show_default=True)
def main(images: Path | None, datasets: str, models: int, processes: int) -> None:
    """Find label noise and edge threshold of the preset kan."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for name in datasets.split(","):
            chosen = select(ANY_NOISE, 0, models=models, datasets=(name,))
            with Progress(name, total=len(chosen), unit="models") as progress:
                found = []
                for result in pool.imap(functools.partial(trained, folder=images), chosen):
                    found.append(result)
                    progress.advance()
            _report(name, *map(np.array, zip(*found, strict=True)))


def _report(name: str, noise_M: np.ndarray, accuracy_M: np.ndarray, scores_ME: np.ndarray) -> None:
    """Print the spread from each lowest noise, then what was chosen."""
    spreads = {
        low: accuracy_M[noise_M >= low].std() for low in LOWEST if (noise_M >= low).sum() >= MIN_MODELS
    }
    for low, spread in spreads.items():
        kept = accuracy_M[noise_M >= low]
        click.echo(
            f"  noise from {low:.2f}: accuracies {kept.mean():.3f} +- {spread:.3f} ({len(kept)} models)"
        )
    errors = {low: abs(spread - PUBLISHED[name]) for low, spread in spreads.items()}
    # the lowest whose spread is the published one, as far as so few networks can tell
    chosen = next(
        (low for low, error in errors.items() if error < spreads[low] / (2 * (noise_M >= low).sum()) ** 0.5),
        min(errors, key=lambda low: errors[low]),
    )
    scores = scores_ME[noise_M >= chosen]
    threshold = np.quantile(scores, PRUNED)
    kept_M = (scores >= threshold).mean(axis=1)
    click.echo(
        f"{name}: label noise {chosen:.2f} .. 1, standard deviation {spreads[chosen]:.3f} (published "
        f"{PUBLISHED[name]}); threshold {threshold:.3g}, which keeps {kept_M.mean():.2f} of the edges "
        f"({kept_M.min():.2f} to {kept_M.max():.2f} of a network's)"
    )


if __name__ == "__main__":
    main()
