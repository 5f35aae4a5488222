"""What a build would make: models, cohorts, weights, bytes, FLOPs, and how often each value is drawn. Nothing is trained or loaded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from builder.plan import Model
from builder.train import least_epochs, num_snapshots
from nws_dataset import shards
from nws_dataset.layout import layout_of
from nws_dataset.recipe import Architecture, Choice, Cycle, Subset

if TYPE_CHECKING:
    from builder.build import Request

TRAIN_IMAGES = {
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "kmnist": 60_000,
    "cifar10": 50_000,
    "svhn": 73_257,
    "stl10": 5_000,
    "digits": 1_437,
}
METADATA_BYTES = 870  # of a snapshot beside its weights, in its shard and in the index; as measured
ROW_GROUP_BYTES = 11_300  # that Parquet adds to each row group: page headers, statistics, indexes, footer; as measured
BACKWARD = 2  # a training step costs so many forward passes more


def forward_flops(architecture: Architecture) -> int:
    """FLOPs of one image's forward pass, counted from the layout: two for each use of a convolution's or dense layer's weight."""
    sizes = iter(architecture.map_sizes)
    weights = [spec for spec in layout_of(architecture).tensors if spec.kind == "weight"]
    return sum(2 * spec.size * (next(sizes) ** 2 if spec.layer.startswith("conv") else 1) for spec in weights)


def epoch_flops(model: Model, train_images: int | None) -> float:
    """FLOPs of one epoch of training."""
    recipe = model.recipe
    available = TRAIN_IMAGES[recipe.dataset]
    images = min(available, train_images or available) * recipe.train_fraction * (1 - recipe.validation_fraction)
    return images * (1 + BACKWARD) * forward_flops(recipe.architecture)


def forecast(request: Request) -> str:
    """The text that `nws-build --dry-run` prints."""
    return "\n\n".join("\n".join(_subset_lines(request, subset, models)) for subset, models in request.plan())


def _subset_lines(request: Request, subset: Subset, models: Sequence[Model]) -> Iterator[str]:
    architectures = Counter(model.recipe.architecture for model in models)
    cohorts = Counter(model.cohort for model in models)
    snapshots = sum(num_snapshots(subset, model.recipe.max_epochs) for model in models)
    weights = {architecture: layout_of(architecture).num_weights for architecture in architectures}
    least = sum(epoch_flops(model, request.train_images) * least_epochs(model.recipe) for model in models)
    yield f"{subset.name}: {len(models):,} models, {snapshots:,} snapshots, seed {request.seed}"
    yield f"  splits         {_told(Counter(model.split for model in models), len(models))}"
    smallest, largest = min(cohorts.values()), max(cohorts.values())
    yield f"  cohorts        {len(cohorts):,} of one architecture and batch size, {smallest} to {largest} models each"
    yield f"  weights        {min(weights.values()):,} to {max(weights.values()):,} a network, {len(architectures)} architectures"
    yield f"  on disk        {disk_bytes(subset, models) / 1e6:,.1f} MB"
    yield f"  training       {least:.3g} FLOPs at the least ({_told_epochs(models)}), evaluation not counted"
    yield "  drawn"
    for field in _drawn_fields(subset):
        yield f"    {field:<19}{_told_field([_value(model, field) for model in models], field, subset)}"


def disk_bytes(subset: Subset, models: Sequence[Model]) -> int:
    """Bytes of the shards and the index of some models: values, other columns, and what Parquet adds to each row group."""
    size = 0
    for (_, architecture, _, epochs), count in Counter(
        (m.split, m.recipe.architecture, m.block, m.recipe.max_epochs) for m in models
    ).items():
        value = len(shards.header(architecture)) + shards.ROW_DTYPE.itemsize * layout_of(architecture).num_weights
        group = min(shards.GROUP_ROWS, max(1, shards.GROUP_BYTES // value))
        size += num_snapshots(subset, epochs) * (count * (value + METADATA_BYTES) + math.ceil(count / group) * ROW_GROUP_BYTES)
    return size


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
        if len(all_) < len(subset.families) or any(hasattr(d, "__dataclass_fields__") or d != all_[0] for d in all_)
    ]


def _value(model: Model, field: str) -> Any:
    return getattr(model.recipe, field, None) if hasattr(model.recipe, field) else getattr(model.recipe.architecture, field)


def _told_field(values: list[Any], field: str, subset: Subset) -> str:
    listed = any(isinstance(family.get(field), Choice | Cycle) for family in subset.families) or not any(
        isinstance(v, float) for v in values
    )
    if listed:
        return _told(Counter(values), len(values))
    numbers = sorted(value for value in values if value is not None)
    return f"{numbers[0]:.3g} to {numbers[-1]:.3g}, mean {math.fsum(numbers) / len(numbers):.3g}, median {numbers[len(numbers) // 2]:.3g}"


def _told(counts: Counter[Any], total: int) -> str:
    """Each value with its share."""
    ordered = sorted(counts.items(), key=lambda item: (item[0] is None, item[0]) if not isinstance(item[0], str) else (False, item[0]))
    return ", ".join(f"{value} {count} ({100 * count / total:.1f} %)" for value, count in ordered)
