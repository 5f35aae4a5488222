"""What a build would make: models, cohorts, weights, bytes, FLOPs, time, and how often each value is drawn.

Nothing is loaded.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from builder.plan import Model
from builder.train import TRAIN_EVALUATION_IMAGES, least_epochs, num_snapshots
from nws_dataset import shards
from nws_dataset.layout import layout_of
from nws_dataset.recipe import NUM_CLASSES, SUBSETS, Architecture, Choice, Cycle, Subset

if TYPE_CHECKING:
    from builder.build import Request
    from builder.calibration import Calibration

    # models of a subset, --train-images -> how fast they train
    Calibrate = Callable[[Sequence[Model], int | None], Calibration]

TRAIN_IMAGES = {
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "kmnist": 60_000,
    "cifar10": 50_000,
    "svhn": 73_257,
    "stl10": 5_000,
    "digits": 1_437,
}
SMALLEST_CLASS = {
    "mnist": 5_421,
    "fashion_mnist": 6_000,
    "kmnist": 6_000,
    "cifar10": 5_000,
    "svhn": 4_659,
    "stl10": 500,
    "digits": 141,
}  # training images of the class that has the fewest
TEST_IMAGES = {
    "mnist": 10_000,
    "fashion_mnist": 10_000,
    "kmnist": 10_000,
    "cifar10": 10_000,
    "svhn": 26_032,
    "stl10": 8_000,
    "digits": 360,
}
METADATA_BYTES = 870  # of a snapshot beside its weights, in its shard and in the index; as measured
# that Parquet adds to each row group: page headers, statistics, indexes, footer; as measured
ROW_GROUP_BYTES = 11_300
BACKWARD = 2  # a training step costs so many forward passes more


@functools.cache
def forward_flops(architecture: Architecture) -> int:
    """FLOPs of one image's forward pass, counted from the layout: two for each use of a convolution's or
    dense layer's weight.
    """
    sizes = iter(architecture.map_sizes)
    weights = [spec for spec in layout_of(architecture).tensors if spec.kind == "weight"]
    return sum(2 * spec.size * (next(sizes) ** 2 if spec.layer.startswith("conv") else 1) for spec in weights)


def drawn_images(model: Model, train_images: int | None) -> float:
    """Training images that a model has, its validation images among them; `train_images` is that of
    `--train-images`.
    """
    available = TRAIN_IMAGES[model.recipe.dataset]
    return min(available, train_images or available) * model.recipe.train_fraction


def epoch_images(model: Model, train_images: int | None) -> float:
    """Images of one epoch of training, about: whole batches."""
    images = _epoch_images(model, train_images)
    batch = min(model.recipe.batch_size, images)
    return images // batch * batch


def epoch_steps(model: Model, train_images: int | None) -> int:
    """Steps of one epoch of training, about."""
    return max(1, int(_epoch_images(model, train_images) // model.recipe.batch_size))


def _epoch_images(model: Model, train_images: int | None) -> float:
    """Of which batches are made; with balancing as many of each class as the smallest class has."""
    recipe = model.recipe
    images = drawn_images(model, train_images) * (1 - recipe.validation_fraction)
    return (
        images * NUM_CLASSES * SMALLEST_CLASS[recipe.dataset] / TRAIN_IMAGES[recipe.dataset]
        if recipe.balanced
        else images
    )


def epoch_flops(model: Model, train_images: int | None) -> float:
    """FLOPs of one epoch of training."""
    return epoch_images(model, train_images) * (1 + BACKWARD) * forward_flops(model.recipe.architecture)


def evaluated_images(model: Model, train_images: int | None, epochs: int) -> float:
    """Images that are evaluated if a model trains so many epochs: validation at each one's start and the end,
    and snapshots on two sets.
    """
    recipe = model.recipe
    drawn = drawn_images(model, train_images)
    held_out = drawn * recipe.validation_fraction
    snapshot = TEST_IMAGES[recipe.dataset] + min(TRAIN_EVALUATION_IMAGES, drawn - held_out)
    return (epochs + 1) * held_out + _snapshots(model.subset, recipe.max_epochs) * snapshot


@functools.cache
def _snapshots(subset: str, max_epochs: int) -> int:
    return num_snapshots(SUBSETS[subset], max_epochs)


def forecast(request: Request, calibrate: Calibrate) -> str:
    """The text that `nws-build --dry-run` prints.

    Args:
        request: what would be built.
        calibrate: `builder.calibration.calibrate` on a device.
    """
    return "\n\n".join(
        "\n".join(_subset_lines(request, subset, models, calibrate)) for subset, models in request.plan()
    )


def _subset_lines(
    request: Request, subset: Subset, models: Sequence[Model], calibrate: Calibrate
) -> Iterator[str]:
    architectures = Counter(model.recipe.architecture for model in models)
    cohorts = Counter(model.cohort for model in models)
    snapshots = sum(_snapshots(subset.name, model.recipe.max_epochs) for model in models)
    weights = {architecture: layout_of(architecture).num_weights for architecture in architectures}
    least = sum(epoch_flops(model, request.train_images) * least_epochs(model.recipe) for model in models)
    yield f"{subset.name}: {len(models):,} models, {snapshots:,} snapshots, seed {request.seed}"
    yield f"  splits         {_told(Counter(model.split for model in models), len(models))}"
    smallest, largest = min(cohorts.values()), max(cohorts.values())
    yield (
        f"  cohorts        {len(cohorts):,} of one architecture and batch size, {smallest} to {largest} "
        "models each"
    )
    yield (
        f"  weights        {min(weights.values()):,} to {max(weights.values()):,} a network, "
        f"{len(architectures)} architectures"
    )
    yield f"  on disk        {disk_bytes(subset, models) / 1e6:,.1f} MB"
    yield f"  training       {least:.3g} FLOPs at the least ({_told_epochs(models)}), evaluation not counted"
    yield (
        "  time           "
        f"{_told_time(models, request.train_images, calibrate(models, request.train_images))}"
    )
    yield "  drawn"
    for field in _drawn_fields(subset):
        yield f"    {field:<19}{_told_field([_value(model, field) for model in models], field, subset)}"


def disk_bytes(subset: Subset, models: Sequence[Model]) -> int:
    """Bytes of the shards and the index of some models: values, other columns, and what Parquet adds to each
    row group.
    """
    size = 0
    for (_, architecture, _, epochs), count in Counter(
        (m.split, m.recipe.architecture, m.block, m.recipe.max_epochs) for m in models
    ).items():
        value = (
            len(shards.header(architecture)) + shards.ROW_DTYPE.itemsize * layout_of(architecture).num_weights
        )
        group = min(shards.GROUP_ROWS, max(1, shards.GROUP_BYTES // value))
        size += num_snapshots(subset, epochs) * (
            count * (value + METADATA_BYTES) + math.ceil(count / group) * ROW_GROUP_BYTES
        )
    return size


def _told_time(models: Sequence[Model], train_images: int | None, calibration: Calibration) -> str:
    """How long the models train at the least, and what more epochs of those would add that may train
    longer.
    """
    least = [calibration.seconds(model, train_images, least_epochs(model.recipe)) for model in models]
    evaluation = sum(seconds.evaluation for seconds in least) / sum(seconds.total for seconds in least)
    whole = makespan([seconds.total for seconds in least], calibration.workers)
    pace = f"{told_number(60 * len(models) / whole)} models a minute"
    place = f"{calibration.place} (trainings of {_told_epochs(models)})"
    told = f"{told_duration(whole)} on {place}, {pace}, of that evaluation {100 * evaluation:.0f} %"
    further = [
        calibration.seconds(model, train_images, least_epochs(model.recipe) + 1).total - seconds.total
        for model, seconds in zip(models, least, strict=True)
        if model.recipe.max_epochs > least_epochs(model.recipe)
    ]
    return (
        (
            f"{told}; each further epoch of every model adds "
            f"{told_duration(sum(further) / calibration.workers)}"
        )
        if further
        else told
    )


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last of some tasks ends, if each in turn goes to the worker that is free first.

    Example:
        >>> makespan([3, 1, 1, 4], workers=2)
        6.0
    """
    ends = [0.0] * workers
    for length in seconds:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def told_duration(seconds: float) -> str:
    """A duration in its largest units, without more digits than a forecast deserves.

    Example:
        >>> told_duration(7.4), told_duration(754), told_duration(4980), told_duration(4_000_000)
        ('7 s', '13 min', '1 h 23 min', '1,111 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours >= 10:
        return f"{seconds / 3600:,.0f} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def told_number(value: float) -> str:
    """Three digits, or all those before the point.

    Example:
        >>> told_number(0.1234), told_number(12.34), told_number(12345.6)
        ('0.123', '12.3', '12,346')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _told_epochs(models: Sequence[Model]) -> str:
    epochs = sorted({least_epochs(model.recipe) for model in models})
    return f"{epochs[0]} epochs" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]} epochs"


def _drawn_fields(subset: Subset) -> list[str]:
    """The fields that are not constant over the subset."""
    fields: dict[str, list[Any]] = {}
    for family in subset.families:
        for key, distribution in family.items():
            for name in key.split(","):
                fields.setdefault(name, []).append(distribution)
    return [
        name
        for name, all_ in fields.items()
        if len(all_) < len(subset.families)
        or any(hasattr(d, "__dataclass_fields__") or d != all_[0] for d in all_)
    ]


def _value(model: Model, field: str) -> Any:
    return (
        getattr(model.recipe, field, None)
        if hasattr(model.recipe, field)
        else getattr(model.recipe.architecture, field)
    )


def _told_field(values: list[Any], field: str, subset: Subset) -> str:
    listed = any(isinstance(family.get(field), Choice | Cycle) for family in subset.families) or not any(
        isinstance(v, float) for v in values
    )
    if listed:
        return _told(Counter(values), len(values))
    numbers = sorted(value for value in values if value is not None)
    return (
        f"{numbers[0]:.3g} to {numbers[-1]:.3g}, mean {math.fsum(numbers) / len(numbers):.3g}, median "
        f"{numbers[len(numbers) // 2]:.3g}"
    )


def _told(counts: Counter[Any], total: int) -> str:
    """Each value with its share."""
    ordered = sorted(
        counts.items(),
        key=lambda item: (item[0] is None, item[0]) if not isinstance(item[0], str) else (False, item[0]),
    )
    return ", ".join(f"{value} {count} ({100 * count / total:.1f} %)" for value, count in ordered)
