"""Sirens' fast step on a CPU beside the plain loop, step by step in float64."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from builder.training import update
from builder.training.initial import initial_row
from nws_dataset.networks.network import Network, coordinates
from nws_dataset.networks.siren import Architecture
from test_cpu_registers import ELSEWHERE, digests_elsewhere, print_digests
from training_cases import State, make_model, plain_step, state_of, targets_of

ARCHITECTURES = (  # blocks of pixels that are full or not, widths of whole vectors or not, one to four layers
    Architecture(),
    Architecture(image_channels=3, image_size=32, output_offset=0.0, pixel_min=-1),
    Architecture(image_channels=3, image_size=9, width_hidden=17, depth_hidden=1),
    Architecture(image_size=7, width_hidden=33, depth_hidden=4, frequency_first=9, frequency_hidden=1.5),
    Architecture(image_size=2, width_hidden=1, depth_hidden=3, frequency_hidden=10.0),
    Architecture(image_size=11, width_hidden=64, frequency_hidden=5.0),
)
STEPS = 4
RATE = 5e-4


def rates_of(steps: int) -> list[float]:
    return [update.step_size("adam", RATE, step) for step in range(1, steps + 1)]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.id)
def test_steps_equal_the_plain_loop(architecture: Architecture) -> None:
    from builder.training.cpu.siren import SirenBackend

    backend, state = SirenBackend(architecture, torch.float64), state_of(architecture, 2)
    targets = targets_of(architecture, 2)
    for rate in rates_of(STEPS):
        found = tuple(x.clone() for x in state)
        losses = backend.train_images((found[0], found[1], found[2]), targets, [rate])
        for m in range(2):
            loss = plain_step(architecture, (state[0][m], state[1][m], state[2][m]), targets[m], rate)
            assert losses[m] == pytest.approx(loss, rel=1e-12)
        for x, expected in zip(found, state, strict=True):
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)
    plain = Network(architecture).double().load_row(state[0][1])(coordinates(architecture, torch.float64))
    torch.testing.assert_close(backend.evaluate_images(state[0])[1], plain, rtol=0, atol=1e-11)


def started(architecture: Architecture, models: int) -> State:
    """Models that begin to train, in float32."""
    values = {"dropout": 0.0, "activation": "sine", "initialization": "siren", "balanced": False}
    rows = [torch.from_numpy(initial_row(make_model(architecture, m, **values))) for m in range(models)]
    row = torch.stack(rows)
    return row, torch.zeros_like(row), torch.zeros_like(row)


def test_a_model_trains_as_if_alone() -> None:
    """Beside others, of which two diverge and stay as they were; in one call or step by step."""
    from builder.training.cpu.siren import SirenBackend

    architecture, rates = ARCHITECTURES[2], rates_of(5)
    state, targets = started(architecture, 5), targets_of(architecture, 5, torch.float32)
    state[0][1, 5], state[0][3] = torch.nan, 1e36
    before = state[0][1].clone(), state[0][3].clone()
    alone = [tuple(x[m : m + 1].clone() for x in state) for m in range(5)]
    losses = SirenBackend(architecture).train_images(state, targets, rates)
    assert losses.isfinite().tolist() == [True, False, True, False, True]
    assert torch.equal(state[0][1].nan_to_num(9), before[0].nan_to_num(9))
    assert torch.equal(state[0][3], before[1])
    backend = SirenBackend(architecture)
    for m in (1, 3):
        spoiled = tuple(x.clone() for x in alone[m])
        backend.train_images((spoiled[0], spoiled[1], spoiled[2]), targets[m : m + 1], rates)
        assert backend.evaluate_images(alone[0][0]).isfinite().all()  # it leaves nothing behind
    for m in (0, 2, 4):
        row, first, second = alone[m]
        sums = [backend.train_images((row, first, second), targets[m : m + 1], [r]).item() for r in rates]
        assert losses[m] == pytest.approx(sum(sums), rel=1e-12)
        assert all(torch.equal(x[m], y[0]) for x, y in zip(state, alone[m], strict=True))


def test_gradients_that_overflow_spoil_no_other_model() -> None:
    """The loss is still finite in the step in which the weights stop being so."""
    from builder.training.cpu.siren import SirenBackend

    architecture = Architecture(image_size=4, width_hidden=3)
    state, targets = started(architecture, 2), targets_of(architecture, 2, torch.float32)
    row = state[0][0].clone()
    alone = tuple(x[1:].clone() for x in state)
    SirenBackend(architecture).train_images((alone[0], alone[1], alone[2]), targets[1:], rates_of(3))
    state[2][0] = -1.0  # a root of a negative number
    losses = SirenBackend(architecture).train_images(state, targets, rates_of(3))
    assert losses[0].isnan() and not state[0][0].isfinite().all() and row.isfinite().all()
    assert all(torch.equal(x[1:], y) for x, y in zip(state, alone, strict=True))


def test_float32_trains_as_well() -> None:
    from builder.training.cpu.siren import SirenBackend

    architecture, rates, found = Architecture(image_size=16), rates_of(300), []
    rows, targets = started(architecture, 2)[0], targets_of(architecture, 2)
    targets = F.avg_pool1d(targets.transpose(1, 2), 9, 1, 4).transpose(1, 2)  # smooth: can be learnt
    for dtype in (torch.float32, torch.float64):
        row = rows.to(dtype)
        state = row, torch.zeros_like(row), torch.zeros_like(row)
        backend = SirenBackend(architecture, dtype)
        backend.train_images(state, targets.to(dtype), rates)
        found.append(F.mse_loss(backend.evaluate_images(state[0]).double(), targets).item())
    assert found[0] < 0.3 * targets.var().item() and found[0] == pytest.approx(found[1], rel=0.05)


def digests() -> list[str]:
    """Of what two models of each architecture become."""
    from builder.training.cpu.siren import SirenBackend

    found = []
    for architecture in ARCHITECTURES:
        state, backend = started(architecture, 2), SirenBackend(architecture)
        backend.train_images(state, targets_of(architecture, 2, torch.float32), rates_of(3))
        told = (*state, backend.evaluate_images(state[0]))
        found.append(hashlib.sha256(b"".join(x.numpy().tobytes() for x in told)).hexdigest())
    return found


@functools.cache
def digests_here() -> list[str]:
    return digests()


def main(forced: list[int]) -> None:
    """In a process of its own: train with other tiles."""
    print_digests(forced, digests)


@pytest.mark.slow
@pytest.mark.parametrize("name", ELSEWHERE)
def test_rows_are_bit_identical(name: str, tmp_path: Path) -> None:
    """Compiled for other registers where this processor has them; else their tiles on its own."""
    assert digests_elsewhere("test_siren_step", name, tmp_path) == digests_here()
