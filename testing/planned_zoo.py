"""A zoo as a build leaves it, but with random weights: planned recipes, splits and epochs; some diverged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builder.image_sets import IMAGE_SETS
from builder.plan import Model, select
from builder.rules import chosen_exports, num_snapshots
from builder.store import metadata, open_store, shard_of
from nws_dataset.format import shards
from nws_dataset.format.manifest import SubsetEntry
from nws_dataset.format.schema import METADATA_SCHEMA
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.base import NUM_CLASSES
from nws_dataset.networks.layout import layout_of

OF_CLASSIFIERS = (
    *("train_accuracy", "validation_accuracy", "test_accuracy", "validation_loss", "test_loss"),
    *("class_test_accuracy", "converged"),
)
IMAGES = 10_000  # in a test set: accuracies are multiples of 1 / IMAGES


def make_planned_zoo(
    folder: Path,
    subset: str,
    models: int,
    *,
    seed: int = 0,
    epochs: int | None = None,
    diverged: Mapping[int, int] | None = None,
    keep: Callable[[Model], bool] = lambda model: True,
) -> Path:
    """Write a zoo.

    Args:
        folder: where to write; created if missing.
        subset: one that the builder draws.
        models: number of models.
        seed: of the plan and the weights.
        epochs: the most epochs a model trains.
        diverged: position among the models -> the last finite epoch.
        keep: which models of the plan to keep.
    """
    plan = [
        model for model in select(SUBSETS[subset], seed, models=40 * models, epochs=epochs) if keep(model)
    ]
    by_shard: dict[str, list[tuple[Model, list[dict[str, Any]], np.ndarray]]] = defaultdict(list)
    for place, model in enumerate(plan[:models]):
        last = (diverged or {}).get(place)
        by_shard[shard_of(model)].append((model, *_trained(model, place, last)))
    with open_store(folder) as store:
        store.declare(subset, SubsetEntry(seed, 0, {"epochs": epochs}))
        for path, members in by_shard.items():
            snapshots = range(len(members[0][1]))
            rows = [metadata(model, results) for model, results, _ in members]
            values = (
                shards.pack(model.recipe.architecture, weights[s])
                for s in snapshots
                for model, _, weights in members
            )
            scores = [_edge_scores(model) for _ in snapshots for model, _, _ in members]
            table = [row[s] for s in snapshots for row in rows]
            store.put(path, pa.Table.from_pylist(table, METADATA_SCHEMA), values, scores)
        store.commit()
    return folder


def _edge_scores(model: Model) -> bytes | None:
    """Random scores of a model's edges, if its kind has any: about a third are kept."""
    architecture, thresholds = model.recipe.architecture, SUBSETS[model.subset].edge_thresholds
    if not thresholds:
        return None
    random, threshold = np.random.default_rng([model.seed, model.number]), thresholds[model.recipe.dataset]
    scores = random.exponential(threshold, shards.num_scores(architecture)).astype(np.float32)
    return shards.pack_scores(architecture, scores)


def _trained(model: Model, place: int, last: int | None) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The results and weights of a model's snapshots."""
    random = np.random.default_rng([model.seed, model.number])
    subset, max_epochs = SUBSETS[model.subset], model.recipe.max_epochs
    exports = 1 + (min(max_epochs, 20 + 3 * place) if model.recipe.early_stopping else max_epochs)
    exports = exports if last is None else last + 1
    chosen = chosen_exports(subset, max_epochs, exports)
    assert len(chosen) == num_snapshots(subset, max_epochs)
    images = int(model.recipe.train_fraction * IMAGE_SETS[model.recipe.dataset].train_images)
    weights: dict[int, np.ndarray] = {}
    results: dict[int, dict[str, Any]] = {}
    for epoch in chosen:
        if epoch not in results:
            accuracies = random.integers(0, IMAGES + 1, 3) / IMAGES
            held_out = model.recipe.validation_fraction > 0
            results[epoch] = {
                "epoch": epoch,
                "step": images // model.recipe.batch_size * epoch,
                "train_accuracy": accuracies[0],
                "validation_accuracy": accuracies[1] if held_out else None,
                "test_accuracy": accuracies[2],
                "train_loss": random.exponential(),
                "validation_loss": random.exponential() if held_out else None,
                "test_loss": random.exponential(),
                "class_test_accuracy": random.random(10).tolist(),
                "converged": True,
                "diverged": last is not None,
            }
            if model.image is not None:
                results[epoch] |= {**dict.fromkeys(OF_CLASSIFIERS), "label": model.image % NUM_CLASSES}
                results[epoch]["psnr"] = 20.0 + random.random()
            weights[epoch] = random.standard_normal(
                layout_of(model.recipe.architecture).num_weights, np.float32
            )
    return [results[epoch] for epoch in chosen], np.stack([weights[epoch] for epoch in chosen])
