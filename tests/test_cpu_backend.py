"""The CPU's step against the plain loop: in float64 step by step, in float32 the gradient of a step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from builder.plan import Model
from builder.training import batches, update
from builder.training.backend import Segment
from builder.training.bank import Images
from builder.training.cpu import compiled
from builder.training.cpu.backend import CpuBackend, groups_of
from builder.training.plain import PlainLoop
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network
from training_cases import ARCHITECTURES, every_combination, images_for, make_model

TOLERANCE = 1e-9  # of a row after a step, relative to the row's largest weight where that is above 1
GRADIENT_TOLERANCE = 5e-6  # of a tensor's gradient in float32, relative to its norm
EPOCHS = 3
# of one training under constant initialization: equal units tie exactly, and a tie may fall either way
EXEMPT_STEPS = 2

POOLED = {"filter_size": 5, "width_conv": 5, "depth_fc": 2, "width_fc": 33, "image_size": 27}
STRIDED = {
    "pooling": "none",
    "head": "average",
    "depth_fc": 0,
    "width_fc": None,
    "width_growth": 1,
    "width_conv": 7,
}
ODD = {
    "norm": Architecture(**POOLED),
    "no_norm": Architecture(**POOLED, batch_norm=False, pixel_min=-1),
    "dropout_between_maps": Architecture(**POOLED, dropout_place="conv", image_channels=1),
    "stride_2": Architecture(
        **STRIDED,
        filter_size=3,
        stride=2,
        padding="valid",
        batch_norm=False,
        dropout_place="conv",
        image_size=29,
    ),
    "stride_3_norm": Architecture(**STRIDED, filter_size=5, stride=3, image_size=31, dropout_place="conv"),
    "stride_2_same": Architecture(
        filter_size=7, stride=2, pooling="none", width_conv=3, width_fc=10, depth_fc=1, image_size=23
    ),
    "pooled_average": Architecture(
        filter_size=3,
        head="average",
        width_conv=3,
        depth_fc=1,
        width_fc=11,
        image_size=19,
        dropout_place="conv",
    ),
    "between_strides": Architecture(
        filter_size=1, stride=2, pooling="none", width_conv=5, depth_fc=0, width_fc=None, image_size=27
    ),
    "one_by_one": Architecture(
        filter_size=1, width_conv=6, depth_conv=4, width_fc=17, depth_fc=1, image_size=17
    ),
}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two rows; nothing where both are not finite."""
    finite = torch.isfinite(b)
    assert torch.equal(torch.isfinite(a), finite)
    if not finite.any():
        return 0.0
    return float((a - b)[finite].abs().max() / b[finite].abs().max().clamp(min=1))


def steps_of(loop: PlainLoop, epoch: int) -> Iterator[tuple[Segment, tuple[torch.Tensor, ...]]]:
    """Each step of an epoch: as a segment, and as the plain loop's arguments."""
    order = batches.epoch_order(loop.model, loop.parts, loop.images.train_labels, epoch)
    batch = min(loop.model.recipe.batch_size, len(order))
    for i, arguments in enumerate(loop.epoch(epoch)):
        yield (
            Segment(
                loop.model, loop.images, order[i * batch : (i + 1) * batch], batch, epoch, loop.steps - 1
            ),
            arguments,
        )


def parted_steps(model: Model, images: Images, epochs: int = EPOCHS) -> list[int]:
    """The steps after which row, moments or loss differ; each step starts from the plain loop's state."""
    loop, backend, parted = PlainLoop(model, images), CpuBackend(model.recipe.architecture, torch.float64), []
    for epoch in range(epochs):
        for segment, arguments in steps_of(loop, epoch):
            row, first, second = state = tuple(x[None].clone() for x in (loop.row, loop.first, loop.second))
            loss = backend.train(state, {0: segment})
            assert loss.item() == pytest.approx(loop.step(*arguments), rel=1e-9, nan_ok=True)
            pairs = ((row, loop.row), (first, loop.first), (second, loop.second))
            if max(difference(mine[0], plain) for mine, plain in pairs) > TOLERANCE:
                parted.append(loop.steps)
    return parted


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", update.COEFFICIENTS)
def test_every_step_equals_the_plain_loop(name: str, optimizer: str) -> None:
    for model in every_combination(ARCHITECTURES[name]):
        if model.recipe.optimizer == optimizer:
            parted = parted_steps(model, images_for(ARCHITECTURES[name])["digits"])
            allowed = EXEMPT_STEPS if model.recipe.initialization == "constant" else 0
            assert len(parted) <= allowed, f"{model.recipe} parts at steps {parted}"


@pytest.mark.parametrize("batch_size", [2, 33, 200, 512])
@pytest.mark.parametrize("name", ODD)
def test_odd_shapes_and_batches_equal_the_plain_loop(name: str, batch_size: int) -> None:
    """Batches that fill no whole group, more images than go through the network at once, maps that pooling
    does not divide.
    """
    activation = dict(zip(ODD, itertools.cycle(Architecture.activations), strict=False))[name]
    fields = {
        "activation": activation,
        "augmentation": True,
        "l2": 1e-3,
        "batch_size": batch_size,
        "balanced": False,
        "dropout": 0.3,
    }
    model = make_model(
        ODD[name], optimizer="momentum", train_fraction=min(1.0, 2 * batch_size / 1000), **fields
    )
    assert parted_steps(model, images_for(ODD[name], 600)["digits"], epochs=1) == []


@pytest.mark.parametrize("activation", Architecture.activations)
@pytest.mark.parametrize("name", ODD)
def test_gradients_in_float32(name: str, activation: str) -> None:
    """Of the whole row, and of each layer no worse than torch's float32 where batch-norm magnifies rounding.

    SGD's first moment is the gradient.
    """
    architecture = ODD[name]
    model = make_model(
        architecture,
        optimizer="sgd",
        activation=activation,
        batch_size=50,
        dropout=0.3,
        balanced=False,
        l2=1e-4,
    )
    images = images_for(architecture)["digits"]
    exact, rounded = (PlainLoop(model, images, dtype) for dtype in (torch.float64, torch.float32))
    exact.row, rounded.row = exact.row.float().double(), exact.row.float()
    segment, (x, labels, masks, rate) = next(steps_of(exact, 0))
    row, first = exact.row[None].float(), torch.zeros(1, len(exact.row))
    CpuBackend(architecture).train((row, first, torch.ones_like(row)), {0: segment})
    exact.step(x, labels, masks, rate)
    rounded.step(x.float(), labels, {layer: mask.float() for layer, mask in masks.items()}, rate)

    def error(gradient: torch.Tensor, part: slice = slice(None)) -> float:
        return float((gradient - exact.first)[part].norm() / exact.first[part].norm())

    assert error(first[0]) < max(GRADIENT_TOLERANCE, 2 * error(rounded.first))
    tensors = [spec for spec in layout_of(architecture).tensors if spec.trained]
    for _, group in itertools.groupby(tensors, key=lambda spec: spec.layer):
        specs = list(group)
        part = slice(specs[0].offset, specs[-1].stop)
        assert error(first[0], part) < max(GRADIENT_TOLERANCE, 3 * error(rounded.first, part)), specs[0].layer


def test_gradients_agree_with_finite_differences() -> None:
    architecture = ARCHITECTURES["nws_plain"]
    model = make_model(architecture, optimizer="sgd", activation="tanh", l2=0.01, dropout=0.0)
    loop, backend = (
        PlainLoop(model, images_for(architecture)["digits"]),
        CpuBackend(architecture, torch.float64),
    )
    segment, _ = next(steps_of(loop, 0))

    def loss_and_gradient(row: torch.Tensor) -> tuple[float, torch.Tensor]:
        state = (row[None].clone(), torch.zeros_like(row)[None], torch.ones_like(row)[None])
        kernels = [
            v.square().sum()
            for name, v in layout_of(architecture).views(row).items()
            if name.endswith(".weight")
        ]
        return float(backend.train(state, {0: segment})[0] + model.recipe.l2 * sum(kernels)), state[1][0]

    _, gradient = loss_and_gradient(loop.row)
    for i in range(0, len(loop.row), len(loop.row) // 25):
        nudge = torch.zeros_like(loop.row)
        nudge[i] = 1e-6
        numeric = (loss_and_gradient(loop.row + nudge)[0] - loss_and_gradient(loop.row - nudge)[0]) / 2e-6
        assert gradient[i].item() == pytest.approx(numeric, rel=1e-4, abs=1e-8)


def test_running_statistics_have_no_gradient_and_still_move() -> None:
    architecture = ARCHITECTURES["nws"]
    loop = PlainLoop(make_model(architecture, optimizer="sgd"), images_for(architecture)["digits"])
    segment, _ = next(steps_of(loop, 0))
    row, gradient = loop.row[None].clone(), torch.zeros(1, len(loop.row), dtype=torch.float64)
    CpuBackend(architecture, torch.float64).train((row, gradient, torch.ones_like(gradient)), {0: segment})
    for spec in layout_of(architecture).tensors:
        part = slice(spec.offset, spec.stop)
        assert spec.trained == bool(gradient[0, part].any())
        assert not torch.equal(row[0, part], loop.row[part])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ODD)
def test_evaluation_equals_the_plain_network(name: str, dtype: torch.dtype) -> None:
    architecture = ODD[name]
    model, images = make_model(architecture, activation="elu"), images_for(architecture)["digits"]
    loop = PlainLoop(model, images)
    for batch in loop.epoch(0):
        loop.step(*batch)
    rows = torch.stack([loop.row, loop.row / 2]).to(dtype)
    correct, losses = CpuBackend(architecture, dtype).evaluate(
        rows, "elu", images.test_images, images.test_labels
    )
    network = Network(architecture, "elu").double()
    for k, row in enumerate(rows):
        logits = network.load_row(row.double()).eval()(images.test_images)
        expected = torch.nn.functional.cross_entropy(logits, images.test_labels, reduction="none")
        sure = logits.topk(2).values.diff().abs()[:, 0] > 1e-5
        assert (
            torch.equal(correct[k][sure], (logits.argmax(1) == images.test_labels)[sure])
            and sure.float().mean() > 0.95
        )
        tight = dtype == torch.float64
        torch.testing.assert_close(
            losses[k].double(), expected, rtol=1e-10 if tight else 1e-5, atol=1e-12 if tight else 1e-5
        )


def test_kernels_of_other_sources_are_dropped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "SOURCES", (batches, update))
    monkeypatch.setattr(compiled, "cache_folder", lambda: tmp_path)
    stale, other = tmp_path / "kernels.train-1.py311.1.nbc", tmp_path / "something.txt"
    for drops in (True, False):
        stale.touch()
        other.touch()
        compiled.drop_stale_kernels.__wrapped__()
        assert stale.exists() != drops and other.exists()


def test_groups_share_the_batch_equally() -> None:
    plain, norm = Architecture(batch_norm=False), Architecture()
    assert [groups_of(plain, batch) for batch in (1, 16, 64, 80, 512)] == [1, 1, 4, 3, 4]
    assert [groups_of(norm, batch) for batch in (1, 32, 256, 257)] == [1, 2, 16, 17]


def test_dropped_layers_have_the_networks_shapes() -> None:
    for architecture in ARCHITECTURES.values():
        loop = PlainLoop(make_model(architecture), images_for(architecture)["digits"])
        _, _, masks, _ = next(iter(loop.epoch(0)))
        assert {
            layer: tuple(mask.shape[1:]) for layer, mask in masks.items()
        } == architecture.dropped_layers()
