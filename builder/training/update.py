"""The optimizers' update, as TensorFlow defines it: one formula with coefficients for each optimizer.

The plain loop, the CPU's step and the GPU's share it. For momentum and SGD the second moment stays at 1, so
that dividing by its root changes nothing. On torch tensors the axes are K models, P weights: rows [K, P], a
coefficient [K, 1] or a number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


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
    "momentum": Coefficients(0.95, 1.0, 1.0, 0.0, 0.0, 0.0),
    "sgd": Coefficients(0.0, 1.0, 1.0, 0.0, 0.0, 0.0),
}
# rmsprop's mean square starts at 1 in TensorFlow 1
SECOND_START = {"adam": 0.0, "rmsprop": 1.0, "momentum": 1.0, "sgd": 1.0}


def learning_rate(base: float, decay: float, epoch: int) -> float:
    """The learning rate of an epoch (counted from 0)."""
    return base * decay**epoch


def step_size(optimizer: str, rate: float, step: int) -> float:
    """The factor of a step (counted from 1), in double precision; it includes Adam's bias correction."""
    if optimizer == "adam":
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
) -> None:
    """Take one step of models that share an optimizer: `rule` in place.

    Args:
        optimizer: "adam", "rmsprop", "momentum" or "sgd".
        rows: [K, P], changed in place.
        gradients: [K, P]; zero for an untrained weight, which then does not change.
        first: [K, P], changed in place.
        second: [K, P], changed in place.
        rate: [K, 1], from `step_size`.
    """
    for x, new in zip(
        (rows, first, second),
        rule(rows, gradients, first, second, rate, COEFFICIENTS[optimizer]),
        strict=True,
    ):
        x.copy_(new)
