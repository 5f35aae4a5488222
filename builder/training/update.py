"""The optimizers' update, as TensorFlow defines it: one formula with coefficients for each optimizer.

The plain loop, the CPU's step and the GPU's share it. For momentum and SGD the second moment stays at 1, so
that dividing by its root changes nothing. On torch tensors the axes are K models, P weights: rows [K, P], a
coefficient [K, 1] or a number.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from nws_dataset.format.recipe import Recipe


class Coefficients(NamedTuple):
    """The coefficients of `rule` that make up an optimizer."""

    first_decay: float
    first_gain: float
    second_decay: float
    second_gain: float
    inner_epsilon: float  # inside the root
    outer_epsilon: float  # outside the root


ADAM_DECAYS = 0.9, 0.999
COEFFICIENTS = {
    "adam": Coefficients(ADAM_DECAYS[0], 1 - ADAM_DECAYS[0], ADAM_DECAYS[1], 1 - ADAM_DECAYS[1], 0.0, 1e-8),
    "rmsprop": Coefficients(0.0, 1.0, 0.9, 1 - 0.9, 1e-10, 0.0),
    "adamw": Coefficients(ADAM_DECAYS[0], 1 - ADAM_DECAYS[0], ADAM_DECAYS[1], 1 - ADAM_DECAYS[1], 0.0, 1e-8),
    "momentum": Coefficients(0.95, 1.0, 1.0, 0.0, 0.0, 0.0),
    "sgd": Coefficients(0.0, 1.0, 1.0, 0.0, 0.0, 0.0),
}
# rmsprop's mean square starts at 1 in TensorFlow 1
SECOND_START = {"adam": 0.0, "adamw": 0.0, "rmsprop": 1.0, "momentum": 1.0, "sgd": 1.0}


def learning_rate(base: float, decay: float, epoch: int) -> float:
    """The learning rate of an epoch (counted from 0)."""
    return base * decay**epoch


def rate_of(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (counted from 0) by the recipe's schedule.

    A triangle of at most twice its warm-up's epochs has its peak half-way.
    """
    base, total = recipe.learning_rate, recipe.max_epochs * steps_per_epoch
    if recipe.schedule == "cosine":
        end = recipe.learning_rate_end
        return end + (base - end) * (1 - half_turn(step / total))
    if recipe.schedule == "triangle":
        warm = min(recipe.warmup_epochs, recipe.max_epochs / 2) * steps_per_epoch
        return base * (step / warm if step < warm else (total - step) / (total - warm))
    return learning_rate(base, recipe.learning_rate_decay, step // steps_per_epoch)


def half_turn(x: float) -> float:
    """(1 - cos(pi * x)) / 2 for x from 0 to 1, by additions and products alone: a library's cosine may differ
    between machines.
    """
    angle = x * math.pi / 2
    term = sine = angle
    for n in range(1, 12):
        term *= -angle * angle / ((2 * n) * (2 * n + 1))
        sine += term
    return sine * sine


def step_size(optimizer: str, rate: float, step: int) -> float:
    """The factor of a step (counted from 1): Adam's bias correction goes into the learning rate, in double
    precision.
    """
    if optimizer in ("adam", "adamw"):
        return rate * (1 - ADAM_DECAYS[1] ** step) ** 0.5 / (1 - ADAM_DECAYS[0] ** step)
    return rate


def rule(row: Any, gradient: Any, first: Any, second: Any, rate: Any, c: Any) -> tuple[Any, Any, Any]:
    """Compute new weights and moments, for tensors or single numbers.

    Args:
        row, gradient, first, second: the weights, the loss's gradient, the first moment (or momentum) and the
            mean square.
        rate: from `step_size`.
        c: `Coefficients`, or anything with its fields in the same order.

    Returns:
        row, first, second.
    """
    first = c[0] * first + c[1] * gradient
    second = c[2] * second + c[3] * (gradient * gradient)
    return row - rate * first / (torch.sqrt(second + c[4]) + c[5]), first, second


def update(
    optimizer: str,
    rows: torch.Tensor,
    gradients: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    rate: torch.Tensor,
    decay: torch.Tensor | None = None,
) -> None:
    """Take one step of models that share an optimizer: `rule` in place.

    Args:
        optimizer: "adam", "rmsprop", "momentum" or "sgd".
        rows: [K, P], changed in place.
        gradients: [K, P]; zero for an untrained weight, which then does not change.
        first: [K, P], changed in place.
        second: [K, P], changed in place.
        rate: [K, 1], from `step_size`.
        decay: [K, P], the learning rate times the weight decay: the part of each weight that goes before the
            step, as in AdamW (Loshchilov & Hutter 2019).
    """
    if decay is not None:
        rows.mul_(1 - decay)
    for x, new in zip(
        (rows, first, second),
        rule(rows, gradients, first, second, rate, COEFFICIENTS[optimizer]),
        strict=True,
    ):
        x.copy_(new)
