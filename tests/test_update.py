"""The update rule, against numbers worked out by hand from TensorFlow's definitions."""

from __future__ import annotations

import pytest
import torch

from builder.training import update


@pytest.mark.parametrize(
    ("optimizer", "after_one", "after_two"),
    [
        ("sgd", 1 - 0.1 * 0.5, 1 - 0.1 * 0.5 - 0.1 * 0.25),
        ("momentum", 1 - 0.1 * 0.5, 1 - 0.1 * 0.5 - 0.1 * (0.95 * 0.5 + 0.25)),
        ("rmsprop", 1 - 0.1 * 0.5 / (0.9 + 0.1 * 0.25 + 1e-10) ** 0.5, None),
        ("adam", 1 - 0.1 * (1 - 0.999) ** 0.5 / (1 - 0.9) * 0.05 / ((0.001 * 0.25) ** 0.5 + 1e-8), None),
    ],
)
def test_update_rules(optimizer: str, after_one: float, after_two: float | None) -> None:
    row, first = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    second = torch.full((1, 1), update.SECOND_START[optimizer], dtype=torch.float64)
    for step, (gradient, expected) in enumerate(((0.5, after_one), (0.25, after_two)), 1):
        rate = torch.tensor([[update.step_size(optimizer, 0.1, step)]], dtype=torch.float64)
        update.update(optimizer, row, torch.tensor([[gradient]], dtype=torch.float64), first, second, rate)
        if expected is not None:
            assert row.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("optimizer", update.COEFFICIENTS)
def test_a_weight_without_gradient_stays(optimizer: str) -> None:
    row, first = torch.ones(1, 3), torch.zeros(1, 3)
    second = torch.full((1, 3), update.SECOND_START[optimizer])
    for step in range(1, 400):
        update.update(
            optimizer,
            row,
            torch.zeros(1, 3),
            first,
            second,
            torch.tensor([[update.step_size(optimizer, 0.1, step)]]),
        )
    assert torch.equal(row, torch.ones(1, 3))


def test_learning_rate_falls_per_epoch() -> None:
    assert [update.learning_rate(1.0, 0.96, epoch) for epoch in range(3)] == pytest.approx([1, 0.96, 0.9216])
