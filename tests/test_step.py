"""The fused step against the plain loop, in float64: step by step, every optimizer, activation and initialization."""

from __future__ import annotations

import itertools

import pytest
import torch

from builder import update
from builder.batches import dropped_layers
from builder.plain import PlainLoop
from builder.plan import Model
from builder.step import FusedStep
from nws_dataset.layout import layout_of
from nws_dataset.network import Network
from training_cases import ARCHITECTURES, CPU, NWS, NWS_PLAIN, SMALL_CNN, every_combination, images_for, make_model

TOLERANCE = 1e-9  # of a row after a step, relative to the row's largest weight where that is above 1
EPOCHS = 3
EXEMPT_STEPS = 2  # of one training under constant initialization: equal units tie exactly, and a tie may fall either way


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two rows; nothing where both are not finite."""
    finite = torch.isfinite(b)
    assert torch.equal(torch.isfinite(a), finite)
    if not finite.any():
        return 0.0
    return float((a - b)[finite].abs().max() / b[finite].abs().max().clamp(min=1))


def fused_steps(models: list[Model], epochs: int = EPOCHS):
    """(model number, step, difference after it) of stacked models, each step starting from the plain loops' state."""
    loops = [PlainLoop(model, images_for(model.recipe.architecture)["digits"]) for model in models]
    stepper = FusedStep(models[0].recipe.architecture, [model.recipe for model in models], CPU, torch.float64)
    for epoch in range(epochs):
        for batches in zip(*(loop.epoch(epoch) for loop in loops), strict=True):
            rows, first, second = (torch.stack([getattr(loop, name) for loop in loops]) for name in ("row", "first", "second"))
            images, labels = (torch.stack([batch[i] for batch in batches]) for i in (0, 1))
            masks = {layer: torch.stack([batch[2][layer] for batch in batches]) for layer in batches[0][2]}
            rates = torch.tensor([[batch[3]] for batch in batches], dtype=torch.float64)
            losses = stepper.train(rows, (first, second), images, labels, masks, rates)
            for k, (loop, batch) in enumerate(zip(loops, batches, strict=True)):
                loss = loop.step(*batch)
                assert losses[k].item() == pytest.approx(loss, rel=1e-9, nan_ok=True)
                yield models[k], loop.steps, max(difference(rows[k], loop.row), difference(first[k], loop.first))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", update.SECOND_START)
def test_every_step_equals_the_plain_loop(name: str, optimizer: str) -> None:
    for model in every_combination(ARCHITECTURES[name]):
        if model.recipe.optimizer == optimizer:
            parted = [step for _, step, found in fused_steps([model]) if found > TOLERANCE]
            allowed = EXEMPT_STEPS if model.recipe.initialization == "constant" else 0
            assert len(parted) <= allowed, f"{model.recipe} parts at steps {parted}"


@pytest.mark.parametrize("architecture", [NWS, NWS_PLAIN, SMALL_CNN], ids=list(ARCHITECTURES))
def test_stacked_models_equal_the_plain_loop(architecture) -> None:
    """What a GPU runs: models of different recipes in one step."""
    kinds = zip(itertools.cycle(update.SECOND_START), ("relu", "elu", "sigmoid", "tanh", "relu"), strict=False)
    models = [
        make_model(architecture, n, optimizer=optimizer, activation=activation, l2=1e-3 * (n % 2), balanced=False, augmentation=n == 2)
        for n, (optimizer, activation) in enumerate(kinds)
    ]
    assert max(found for _, _, found in fused_steps(models)) <= TOLERANCE


@pytest.mark.parametrize("architecture", [NWS, NWS_PLAIN, SMALL_CNN], ids=list(ARCHITECTURES))
def test_evaluation_equals_the_plain_network(architecture) -> None:
    model = make_model(architecture, activation="elu")
    images = images_for(architecture)["digits"]
    loop = PlainLoop(model, images)
    for batch in loop.epoch(0):
        loop.step(*batch)
    correct, losses = FusedStep(architecture, [model.recipe], CPU, torch.float64).evaluate(
        loop.row[None], images.test_images[None], images.test_labels[None]
    )
    logits = Network(architecture, "elu").double().load_row(loop.row).eval()(images.test_images)
    expected = torch.nn.functional.cross_entropy(logits, images.test_labels, reduction="none")
    assert torch.equal(correct[0], logits.argmax(1) == images.test_labels)
    torch.testing.assert_close(losses[0], expected, rtol=1e-10, atol=1e-12)


def test_gradients_agree_with_finite_differences() -> None:
    model = make_model(NWS_PLAIN, activation="tanh", l2=0.01, dropout=0.0)
    images = images_for(NWS_PLAIN)["digits"]
    loop = PlainLoop(model, images)
    x, y, masks, _ = next(iter(loop.epoch(0)))
    stepper = FusedStep(NWS_PLAIN, [model.recipe], CPU, torch.float64)
    masks = {layer: mask[None] for layer, mask in masks.items()}

    def loss(row: torch.Tensor) -> torch.Tensor:
        kernels = [v.square().sum() for name, v in layout_of(NWS_PLAIN).views(row).items() if name.endswith(".weight")]
        return stepper.gradients(row[None].clone(), x[None], y[None], masks)[0][0] + model.recipe.l2 * sum(kernels)

    _, gradients = stepper.gradients(loop.row[None].clone(), x[None], y[None], masks)
    for place in range(0, len(loop.row), len(loop.row) // 25):
        nudge = torch.zeros_like(loop.row)
        nudge[place] = 1e-6
        numeric = (loss(loop.row + nudge) - loss(loop.row - nudge)) / 2e-6
        assert gradients[0, place].item() == pytest.approx(numeric.item(), rel=1e-4, abs=1e-8)


def test_running_statistics_have_no_gradient_and_still_move() -> None:
    model = make_model(NWS)
    loop = PlainLoop(model, images_for(NWS)["digits"])
    x, y, masks, _ = next(iter(loop.epoch(0)))
    row = loop.row[None].clone()
    _, gradients = FusedStep(NWS, [model.recipe], CPU, torch.float64).gradients(
        row, x[None], y[None], {k: m[None] for k, m in masks.items()}
    )
    for spec in layout_of(NWS).tensors:
        place = slice(spec.offset, spec.stop)
        assert spec.trained == bool(gradients[0, place].any())
        assert spec.trained == torch.equal(row[0, place], loop.row[place])


def test_dropped_layers_have_the_networks_shapes() -> None:
    for architecture in ARCHITECTURES.values():
        model = make_model(architecture)
        loop = PlainLoop(model, images_for(architecture)["digits"])
        _, _, masks, _ = next(iter(loop.epoch(0)))
        assert {layer: tuple(mask.shape[1:]) for layer, mask in masks.items()} == dropped_layers(architecture)


# The update rules, against numbers worked out by hand from TensorFlow's definitions.


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


def test_learning_rate_falls_per_epoch() -> None:
    assert [update.learning_rate(1.0, 0.96, epoch) for epoch in range(3)] == pytest.approx([1, 0.96, 0.9216])


def test_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="nadam"):
        update.update("nadam", *(torch.zeros(1, 1) for _ in range(5)))
