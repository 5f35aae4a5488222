"""Rules of a build, without torch: when training stops, which exports become snapshots, what is evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from nws_dataset.format.recipe import Recipe
from nws_dataset.format.subsets import Subset

TRAIN_EVALUATION_IMAGES = 5000  # training accuracy is measured on the model's first N training images
SCORED_IMAGES = 1000  # an edge's score is measured on the model's first N training images
CONVERGED_MARGIN = 0.05  # how far final test accuracy must be above the majority class's rate
# The stopping rule of Eilertsen et al.
MIN_EPOCHS = 20
WORSE_IN_A_ROW = 5
BELOW_AVERAGE_IN_ALL = 30
UNCHANGED_IN_A_ROW = 30


def should_stop(accuracies: Sequence[float]) -> bool:
    """Whether the validation accuracies at the start of each epoch (first: the initialization) say to stop.

    After at least 20 epochs: 5 in a row are each worse than the one before, or 30 in total are below the
    running half-half average, or 30 in a row are unchanged.
    """
    worse = below = unchanged = 0
    average = accuracies[0]
    for before, now in itertools.pairwise(accuracies):
        average = 0.5 * average + 0.5 * now
        worse = worse + 1 if now < before else 0
        unchanged = unchanged + 1 if now == before else 0
        below += now < average
    epochs = len(accuracies) - 1
    return epochs >= MIN_EPOCHS and (
        worse >= WORSE_IN_A_ROW or below >= BELOW_AVERAGE_IN_ALL or unchanged >= UNCHANGED_IN_A_ROW
    )


def min_epochs(recipe: Recipe) -> int:
    """The fewest epochs that a model trains, unless it diverges."""
    return min(MIN_EPOCHS, recipe.max_epochs) if recipe.early_stopping else recipe.max_epochs


def num_snapshots(subset: Subset, max_epochs: int) -> int:
    """Snapshots per model: the subset's number, or fewer if a cap on the epochs leaves fewer exports."""
    return len(chosen_exports(subset, max_epochs, max_epochs + 1))


def chosen_exports(subset: Subset, max_epochs: int, exports: int) -> list[int]:
    """Choose the exports that become a model's snapshots; export e (from 0) has the weights after e epochs.

    The 20-of-E rule is round(linspace(1, E, 20)); a subset with `snapshot_epochs` takes those. If training
    diverged and ended before there were enough exports, the last one repeats.
    """
    if subset.snapshot_epochs is None:
        count = min(subset.num_snapshots, max_epochs + 1)
        wanted = [int(e) - 1 for e in np.round(np.linspace(1, max(exports, count), count))]
    else:
        wanted = sorted({min(epoch, max_epochs) for epoch in subset.snapshot_epochs})
    return [min(export, exports - 1) for export in wanted]
