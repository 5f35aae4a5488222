"""KANs' fast step on a CPU beside the plain loop, step by step in float64."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from builder.training import update
from builder.training.backend import Segment
from builder.training.cpu.vectors import Registers
from builder.training.plain import PlainLoop
from nws_dataset.networks.kan import Architecture
from nws_dataset.networks.network import Network, coordinates
from test_cpu_registers import ELSEWHERE, NAMED, digests_elsewhere, print_digests
from training_cases import images_for, make_model, plain_step, state_of, targets_of

INRS = (  # blocks of pixels that are full or not, widths of whole vectors or not, one layer
    Architecture(),
    Architecture(image_channels=3, image_size=9, width_hidden=17, depth_hidden=1),
    Architecture(image_size=7, depth_hidden=0, pixel_min=-1),
    Architecture(image_channels=3, image_size=10, width_hidden=33, depth_hidden=3, grid_min=-2, grid_max=1.5),
)
SPLINES = (
    Architecture(image_size=9, grid=1, spline_order=0),
    Architecture(image_size=9, grid=3, spline_order=1),
    Architecture(image_size=9, grid=17, spline_order=2),
)
CLASSIFIERS = (
    Architecture(reads="images", image_size=14, depth_hidden=1, pixel_min=-1),
    Architecture(reads="images", image_size=5, depth_hidden=2, width_hidden=20, image_channels=3),
    Architecture(reads="images", image_size=4, depth_hidden=0),
)
STEPS = 4


@pytest.mark.parametrize("architecture", INRS, ids=lambda a: a.id)
def test_steps_equal_the_plain_loop(architecture: Architecture) -> None:
    check_steps(architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SPLINES, ids=lambda a: a.id)
def test_steps_of_other_splines(architecture: Architecture) -> None:
    check_steps(architecture)


def check_steps(architecture: Architecture) -> None:
    from builder.training.cpu.kan import KanBackend

    backend, state = KanBackend(architecture, torch.float64), state_of(architecture, 2)
    targets = targets_of(architecture, 2)
    for step in range(1, STEPS + 1):
        rate = update.step_size("adam", 1e-2, step)
        found = tuple(x.clone() for x in state)
        losses = backend.train_images((found[0], found[1], found[2]), targets, [rate])
        for m in range(2):
            loss = plain_step(architecture, (state[0][m], state[1][m], state[2][m]), targets[m], rate)
            assert losses[m] == pytest.approx(loss, rel=1e-12)
        for x, expected in zip(found, state, strict=True):
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)
    plain = Network(architecture).double().load_row(state[0][1])(coordinates(architecture, torch.float64))
    torch.testing.assert_close(backend.evaluate_images(state[0])[1], plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", CLASSIFIERS, ids=lambda a: a.id)
def test_steps_of_classifiers_equal_the_plain_loop(architecture: Architecture) -> None:
    from builder.training.cpu.kan import KanBackend

    model = make_model(
        architecture, batch_size=70, dropout=0.0, activation="silu", initialization="kan", balanced=False
    )
    images = images_for(architecture, 300)["digits"]
    loop, backend = PlainLoop(model, images), KanBackend(architecture, torch.float64)
    loop.row = state_of(architecture, 1)[0][0]
    draw = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        order = torch.randperm(300, generator=draw)[:70]
        state = tuple(x.clone()[None] for x in (loop.row, loop.first, loop.second))
        segment = Segment(model, images, order, 70, 0, step)
        (loss,) = backend.train((state[0], state[1], state[2]), {0: segment})
        pixels = images.train_images[order].double() / 255
        expected = loop.step(pixels, images.train_labels[order], {}, segment.rates()[0])
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        for x, y in zip(state, (loop.row, loop.first, loop.second), strict=True):
            torch.testing.assert_close(x[0], y, rtol=0, atol=1e-9)
    labels, logits = images.train_labels, loop.network.load_row(loop.row)(images.train_images)
    correct, losses = backend.evaluate(loop.row[None], "silu", images.train_images, labels)
    assert torch.equal(correct[0], logits.argmax(1) == labels)
    plain = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses[0], plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", (*INRS, *CLASSIFIERS), ids=lambda a: a.id)
def test_edge_scores_equal_plain_ones(architecture: Architecture) -> None:
    from builder.training.cpu.kan import KanBackend

    rows = state_of(architecture, 2)[0]
    if architecture.reads == "images":
        images = images_for(architecture, 100)["digits"].train_images
        x = architecture.scale(images.double() / 255).flatten(1)
    else:
        images, x = None, coordinates(architecture, torch.float64)
    network, expected = Network(architecture).double().load_row(rows[1]), []
    for layer in architecture.layers:
        edges = network.get_submodule(layer)
        base = edges.get_parameter("base_weight") * F.silu(x)[:, None]
        splines = (architecture.splines(x)[:, None] * edges.get_parameter("coefficients")).sum(-1)
        values = base + edges.get_parameter("spline_weight") * splines
        expected.append(values.abs().mean(0).flatten())
        x = values.sum(-1)
    found = KanBackend(architecture, torch.float64).edge_scores(rows, images)
    assert found.shape == (2, architecture.num_edges)
    torch.testing.assert_close(found[1], torch.cat(expected), rtol=1e-11, atol=1e-12)


def test_a_model_trains_as_if_alone() -> None:
    """Beside others, of which one diverges and stays as it was; in one call or step by step."""
    from builder.training.cpu.kan import KanBackend

    architecture = INRS[1]
    rates = [update.step_size("adam", 1e-2, step) for step in range(1, 6)]
    state, targets = state_of(architecture, 3, torch.float32), targets_of(architecture, 3, torch.float32)
    state[0][1, 5] = torch.nan
    before = state[0][1].clone()
    alone = [tuple(x[m : m + 1].clone() for x in state) for m in range(3)]
    losses = KanBackend(architecture).train_images(state, targets, rates)
    assert losses[1].isnan() and torch.equal(state[0][1].nan_to_num(9), before.nan_to_num(9))
    backend = KanBackend(architecture)
    backend.train_images(tuple(x.clone() for x in alone[1]), targets[1:2], rates)  # leaves nothing behind
    for m in (0, 2):
        row, first, second = alone[m]
        sums = [backend.train_images((row, first, second), targets[m : m + 1], [r]).item() for r in rates]
        assert losses[m] == pytest.approx(sum(sums), rel=1e-12)
        assert all(torch.equal(x[m], y[0]) for x, y in zip(state, alone[m], strict=True))


def test_float32_trains_as_well() -> None:
    from builder.training.cpu.kan import KanBackend

    architecture, steps = Architecture(image_size=9), 200
    rates, found = [update.step_size("adam", 1e-2, step) for step in range(1, steps + 1)], []
    for dtype in (torch.float32, torch.float64):
        row, first, second = state_of(architecture, 2, dtype)
        state = row / 3, first * 0, second * 0
        KanBackend(architecture, dtype).train_images(state, targets_of(architecture, 2, dtype), rates)
        values = KanBackend(architecture, dtype).evaluate_images(state[0]).double()
        found.append(F.mse_loss(values, targets_of(architecture, 2)).item())
    assert found[0] < 0.03 and found[0] == pytest.approx(found[1], rel=0.2)


def digests() -> list[str]:
    """Of what a model of each architecture becomes."""
    from builder.training.cpu.kan import KanBackend

    rates, found = [update.step_size("adam", 1e-2, step) for step in range(1, 4)], []
    for architecture in (*INRS, *CLASSIFIERS):
        state, backend = state_of(architecture, 1, torch.float32), KanBackend(architecture)
        if architecture.reads == "images":
            images = images_for(architecture, 150)["digits"]
            model = make_model(
                architecture, dropout=0.0, activation="silu", initialization="kan", balanced=False
            )
            backend.train(state, {0: Segment(model, images, torch.arange(150), 75, 0, 0)})
        else:
            backend.train_images(state, targets_of(architecture, 1, torch.float32), rates)
        found.append(hashlib.sha256(b"".join(x.numpy().tobytes() for x in state)).hexdigest())
    return found


@functools.cache
def digests_here() -> list[str]:
    return digests()


def main(forced: list[int]) -> None:
    """In a process of its own: train with other tiles."""
    print_digests(forced, digests)
    from builder.training.cpu import products

    chosen = products.WIDE, products.MIDDLE, products.NARROW
    assert products.columns_of(Registers(*forced)) == chosen


@pytest.mark.parametrize("name", NAMED)
def test_tiles_fit_the_registers(name: str) -> None:
    from builder.training.cpu.kan import BLOCK
    from builder.training.cpu.products import MAX_ROWS, columns_of, rows_of

    those = NAMED[name]
    for columns in columns_of(those):
        count, rows = columns // those.lanes, rows_of(those, columns)
        # fewer sums than eight wait for each other
        assert 8 <= count * rows < those.number - count and columns % those.lanes == 0
    assert BLOCK % MAX_ROWS == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ELSEWHERE)
def test_rows_are_bit_identical(name: str, tmp_path: Path) -> None:
    """Compiled for other registers where this processor has them; else their tiles on its own."""
    assert digests_elsewhere("test_kan_step", name, tmp_path) == digests_here()
