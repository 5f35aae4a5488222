"""What models cost in images, steps, FLOPs and bytes, computed from the plan alone."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

from builder.image_sets import IMAGE_SETS
from builder.plan import Model
from builder.rules import TRAIN_EVALUATION_IMAGES, num_snapshots
from nws_dataset.format import shards
from nws_dataset.format.subsets import SUBSETS, Subset
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import layout_of

# Bytes beside the values: what Parquet adds (headers, statistics, indexes, footers), and the other columns of
# shard and index. Fitted to built zoos.
METADATA_BYTES = 640  # per snapshot
ROW_GROUP_BYTES = 10_300
SHARD_BYTES = 16_100
INDEX_BYTES = 28_600
BACKWARD = 2  # a training step costs this many forward passes more


@functools.cache
def forward_flops(architecture: BaseArchitecture) -> int:
    """FLOPs of one input's forward pass: two for each use of a number of an edge."""
    tensors = layout_of(architecture).tensors
    return sum(2 * spec.size * architecture.uses(spec) for spec in tensors if len(spec.unit_shape) > 1)


def drawn_images(model: Model, train_images: int | None) -> float:
    """Training images that a model has, its validation images among them; `train_images` is that of
    `--train-images`.
    """
    if model.image is not None:  # then a training image is a pixel of the one that it represents
        return float(model.recipe.architecture.image_size**2)
    available = IMAGE_SETS[model.recipe.dataset].train_images
    return min(available, train_images or available) * model.recipe.train_fraction


def epoch_images(model: Model, train_images: int | None) -> float:
    """Images in one epoch of training, roughly: whole batches."""
    images = _epoch_images(model, train_images)
    batch = min(model.recipe.batch_size, images)
    return images // batch * batch


def epoch_steps(model: Model, train_images: int | None) -> int:
    """Steps in one epoch of training, roughly."""
    return max(1, int(_epoch_images(model, train_images) // model.recipe.batch_size))


def _epoch_images(model: Model, train_images: int | None) -> float:
    """Images from which batches are made; with balancing as many per class as the smallest class has."""
    recipe = model.recipe
    images = drawn_images(model, train_images) * (1 - recipe.validation_fraction)
    facts = IMAGE_SETS[recipe.dataset]
    return images * facts.classes * facts.smallest_class / facts.train_images if recipe.balanced else images


def epoch_flops(model: Model, train_images: int | None) -> float:
    """FLOPs of one epoch of training."""
    return epoch_images(model, train_images) * (1 + BACKWARD) * forward_flops(model.recipe.architecture)


def evaluated_images(model: Model, train_images: int | None, epochs: int) -> float:
    """Images evaluated if a model trains for `epochs`: validation before each and at the end; snapshots."""
    recipe = model.recipe
    drawn = drawn_images(model, train_images)
    if model.image is not None:
        return num_snapshots_of(model.subset, recipe.max_epochs) * drawn
    held_out = drawn * recipe.validation_fraction
    snapshot = IMAGE_SETS[recipe.dataset].test_images + min(TRAIN_EVALUATION_IMAGES, drawn - held_out)
    return (epochs + 1) * held_out + num_snapshots_of(model.subset, recipe.max_epochs) * snapshot


@functools.cache
def num_snapshots_of(subset: str, max_epochs: int) -> int:
    return num_snapshots(SUBSETS[subset], max_epochs)


def disk_bytes(subset: Subset, models: Sequence[Model]) -> int:
    """Bytes of some models' shards and index: values, other columns, and what Parquet adds to each file."""
    shard_names = {(m.split, m.recipe.architecture, m.block) for m in models}
    size = len({m.split for m in models}) * INDEX_BYTES + len(shard_names) * SHARD_BYTES
    for (_, architecture, _, epochs), count in Counter(
        (m.split, m.recipe.architecture, m.block, m.recipe.max_epochs) for m in models
    ).items():
        value = shards.value_bytes(architecture)
        group = min(shards.GROUP_SNAPSHOTS, max(1, shards.GROUP_BYTES // value))
        if subset.edge_thresholds:
            value += shards.scores_bytes(architecture)
        size += num_snapshots(subset, epochs) * (
            count * (value + METADATA_BYTES) + math.ceil(count / group) * ROW_GROUP_BYTES
        )
    return size
