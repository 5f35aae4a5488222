"""Predicts a build: models, cohorts, weights, bytes, FLOPs, time, and how often each value is drawn.

Nothing is loaded.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from builder.forecasting.costs import disk_bytes, epoch_flops, num_snapshots_of
from builder.plan import Model
from builder.rules import min_epochs
from nws_dataset.format.subsets import Choice, Cycle, Subset
from nws_dataset.networks.layout import layout_of

if TYPE_CHECKING:
    from builder.forecasting.calibration import Calibration
    from builder.plan import Request

    # models of a subset, --train-images -> how fast they train
    Calibrate = Callable[[Sequence[Model], int | None], Calibration]


def forecast(request: Request, calibrate: Calibrate) -> str:
    """The text that `nws build --dry-run` prints.

    Args:
        request: what would be built.
        calibrate: `builder.forecasting.calibration.calibrate` on a device.
    """
    return "\n\n".join(
        "\n".join(_subset_lines(request, subset, models, calibrate)) for subset, models in request.plan()
    )


def _subset_lines(
    request: Request, subset: Subset, models: Sequence[Model], calibrate: Calibrate
) -> Iterator[str]:
    architectures = Counter(model.recipe.architecture for model in models)
    cohorts = Counter(model.cohort for model in models)
    snapshots = sum(num_snapshots_of(subset.name, model.recipe.max_epochs) for model in models)
    weights = {architecture: layout_of(architecture).num_weights for architecture in architectures}
    least = sum(epoch_flops(model, request.train_images) * min_epochs(model.recipe) for model in models)
    yield f"{subset.name}: {len(models):,} models, {snapshots:,} snapshots, seed {request.seed}"
    yield f"  splits         {_shares(Counter(model.split for model in models), len(models))}"
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
    yield f"  training       {least:.3g} FLOPs at the least ({_epochs_text(models)}), evaluation not counted"
    yield (
        "  time           "
        f"{_time_text(models, request.train_images, calibrate(models, request.train_images))}"
    )
    yield "  drawn"
    for field in _drawn_fields(subset):
        yield f"    {field:<19}{_field_text([_value(model, field) for model in models], field, subset)}"


def _time_text(models: Sequence[Model], train_images: int | None, calibration: Calibration) -> str:
    """The models' least training time, and what each further epoch of those that may train longer adds."""
    least = [calibration.seconds(model, train_images, min_epochs(model.recipe)) for model in models]
    evaluation = sum(seconds.evaluation for seconds in least) / sum(seconds.total for seconds in least)
    whole = makespan([seconds.total for seconds in least], calibration.workers)
    pace = f"{format_number(60 * len(models) / whole)} models a minute"
    where = f"{calibration.description} (trainings of {_epochs_text(models)})"
    text = f"{format_duration(whole)} on {where}, {pace}, of that evaluation {100 * evaluation:.0f} %"
    further = [
        calibration.seconds(model, train_images, min_epochs(model.recipe) + 1).total - seconds.total
        for model, seconds in zip(models, least, strict=True)
        if model.recipe.max_epochs > min_epochs(model.recipe)
    ]
    return (
        (
            f"{text}; each further epoch of every model adds "
            f"{format_duration(sum(further) / calibration.workers)}"
        )
        if further
        else text
    )


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last task ends, if each in turn goes to the first free worker.

    Example:
        >>> makespan([3, 1, 1, 4], workers=2)
        6.0
    """
    ends = [0.0] * workers
    for length in seconds:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def format_duration(seconds: float) -> str:
    """Format a duration in its largest units, with no more digits than a forecast deserves.

    Example:
        >>> format_duration(7.4), format_duration(754), format_duration(4980), format_duration(4_000_000)
        ('7 s', '13 min', '1 h 23 min', '1,111 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours >= 10:
        return f"{seconds / 3600:,.0f} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def format_number(value: float) -> str:
    """Format three digits, or all those before the point.

    Example:
        >>> format_number(0.1234), format_number(12.34), format_number(12345.6)
        ('0.123', '12.3', '12,346')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _epochs_text(models: Sequence[Model]) -> str:
    epochs = sorted({min_epochs(model.recipe) for model in models})
    return f"{epochs[0]} epochs" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]} epochs"


def _drawn_fields(subset: Subset) -> list[str]:
    """The fields that are not constant in the subset."""
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


def _field_text(values: list[Any], field: str, subset: Subset) -> str:
    listed = any(isinstance(family.get(field), Choice | Cycle) for family in subset.families) or not any(
        isinstance(v, float) for v in values
    )
    if listed:
        return _shares(Counter(values), len(values))
    numbers = sorted(value for value in values if value is not None)
    return (
        f"{numbers[0]:.3g} to {numbers[-1]:.3g}, mean {math.fsum(numbers) / len(numbers):.3g}, median "
        f"{numbers[len(numbers) // 2]:.3g}"
    )


def _shares(counts: Counter[Any], total: int) -> str:
    """Each value with its share."""
    ordered = sorted(
        counts.items(),
        key=lambda item: (item[0] is None, item[0]) if not isinstance(item[0], str) else (False, item[0]),
    )
    return ", ".join(f"{value} {count} ({100 * count / total:.1f} %)" for value, count in ordered)
