"""The optimizers' update rules, in TensorFlow's forms: one place, shared by the plain loop and the fast step.

Axes: K models, P weights. A rule changes rows [K, P] in place from gradients [K, P]; `rate` is [K, 1].
"""

from __future__ import annotations

import torch

ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8
RMSPROP_DECAY, RMSPROP_EPSILON = 0.9, 1e-10  # TensorFlow 1: the epsilon stands inside the root, the mean square starts at 1
MOMENTUM = 0.95

SECOND_START = {"adam": 0.0, "rmsprop": 1.0, "momentum": 0.0, "sgd": 0.0}  # what the second moment starts at


def learning_rate(base: float, decay: float, epoch: int) -> float:
    """The learning rate of an epoch (counted from 0)."""
    return base * decay**epoch


def step_size(optimizer: str, rate: float, step: int) -> float:
    """The factor of a step (counted from 1): Adam's bias correction goes into the learning rate, in double precision."""
    if optimizer == "adam":
        return rate * (1 - ADAM_BETA2**step) ** 0.5 / (1 - ADAM_BETA1**step)
    return rate


def update(
    optimizer: str, rows: torch.Tensor, gradients: torch.Tensor, first: torch.Tensor, second: torch.Tensor, rate: torch.Tensor
) -> None:
    """One step of models that share an optimizer.

    Args:
        optimizer: "adam", "rmsprop", "momentum" or "sgd".
        rows: [K, P], changed in place.
        gradients: [K, P]; zero where a weight is not trained, which leaves it as it is.
        first: [K, P], Adam's first moment or the accumulated momentum; changed in place.
        second: [K, P], the mean square; changed in place.
        rate: [K, 1], from `step_size`.
    """
    match optimizer:
        case "adam":
            first.mul_(ADAM_BETA1).add_(gradients, alpha=1 - ADAM_BETA1)
            second.mul_(ADAM_BETA2).addcmul_(gradients, gradients, value=1 - ADAM_BETA2)
            rows.sub_(rate * first / (second.sqrt() + ADAM_EPSILON))
        case "rmsprop":
            second.mul_(RMSPROP_DECAY).addcmul_(gradients, gradients, value=1 - RMSPROP_DECAY)
            rows.sub_(rate * gradients / (second + RMSPROP_EPSILON).sqrt())
        case "momentum":
            first.mul_(MOMENTUM).add_(gradients)
            rows.sub_(rate * first)
        case "sgd":
            rows.sub_(rate * gradients)
        case _:
            raise ValueError(f"no optimizer {optimizer!r}")
