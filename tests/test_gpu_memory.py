"""The GPU's kernels read and write only what is theirs: steps and evaluations under a checker, in Triton's
interpreter.
"""

from __future__ import annotations

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("kernels are compiled where there is a GPU", allow_module_level=True)
pytest.importorskip("triton")

import triton
import triton.language as tl

from builder.training.backend import Segment
from builder.training.gpu.backend import GpuBackend
from builder.training.initial import initial_row
from builder.training.update import SECOND_START
from memory_checker import Fault, checked
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of
from training_cases import CPU, SMALL_CNN, images_for, make_model

BATCH = 4
NETS = {
    "pooled, batch-norm in both positions, dense dropout": Architecture(
        filter_size=3, width_conv=4, depth_fc=2, width_fc=16, image_size=12
    ),
    "odd sizes, no batch-norm": Architecture(
        filter_size=5, width_conv=3, width_fc=8, batch_norm=False, image_size=11
    ),
    "strides, average, convolutional dropout": SMALL_CNN,
    "strides with borders": Architecture(
        filter_size=5, stride=2, width_conv=2, pooling="none", image_size=9, width_fc=8
    ),
    "average after batch-norm": Architecture(
        filter_size=3,
        stride=3,
        padding="valid",
        pooling="none",
        head="average",
        depth_fc=0,
        width_fc=None,
        image_size=27,
        width_conv=2,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_a_step_and_an_evaluation_keep_to_their_memory(name: str) -> None:
    """Two models of different recipes, one augmented, beside a slot whose row is NaN."""
    architecture = NETS[name]
    images = images_for(architecture)["digits"]
    kinds = [("adam", "relu"), ("momentum", "sigmoid")]
    models = [
        make_model(
            architecture,
            n,
            optimizer=optimizer,
            activation=activation,
            augmentation=n == 1,
            batch_size=BATCH,
            dropout=0.4 * n,
        )
        for n, (optimizer, activation) in enumerate(kinds)
    ]
    weights = layout_of(architecture).num_weights
    rows, first, second = torch.zeros(3, 3, weights + 5)[:, :, :weights]
    rows[1] = torch.nan
    slots = 0, 2
    for m, model in zip(slots, models, strict=True):
        rows[m] = torch.from_numpy(initial_row(model))
        second[m] = SECOND_START[model.recipe.optimizer]
    backend = GpuBackend(architecture, CPU)

    def beside() -> list[torch.Tensor]:
        epochs = [epoch for run in backend._runs.values() for epoch in run.epochs.values()]
        return [
            images.train_images,
            images.train_labels,
            *(x for epoch in epochs for x in (epoch.order, epoch.rates)),
        ]

    with checked(beside) as faults:
        segments = {
            m: Segment(model, images, torch.arange(BATCH), BATCH, 0, 0)
            for m, model in zip(slots, models, strict=True)
        }
        losses = backend.train((rows, first, second), segments)
        _, evaluated = backend.evaluate(rows[::2], "elu", images.test_images[:5], images.test_labels[:5])
    assert faults == []
    assert all(torch.isfinite(x).all() for x in (losses, evaluated, rows[::2], first[::2], second[::2]))


# The checker itself


@triton.jit
def _double_kernel(x, out, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, 2 * tl.load(x + i, mask=i < size), mask=i < size)


@triton.jit
def _sum_kernel(x, out, BLOCK: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))))


@triton.jit
def _shift_kernel(x, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + i, tl.load(x + i + 1, mask=i + 1 < size), mask=i < size)


def test_the_checker_finds_nothing_where_all_is_well() -> None:
    x = torch.arange(10.0)
    with checked() as faults:
        out = torch.empty(10)
        _double_kernel[(3,)](x, out, 10, BLOCK=4)
    assert faults == []
    assert torch.equal(out, 2 * x)


def test_the_checker_shows_numbers_that_were_never_set() -> None:
    out = torch.zeros(10)
    with checked() as faults:
        _double_kernel[(3,)](torch.empty(10), out, 10, BLOCK=4)
    assert out.isnan().all()
    assert faults == []


def test_the_checker_finds_what_lies_out_of_bounds() -> None:
    with checked() as faults:
        _double_kernel[(3,)](torch.zeros(10), torch.zeros(9), 11, BLOCK=4)
    assert faults == [
        Fault("_double_kernel", "reads out of bounds", 1),
        Fault("_double_kernel", "writes out of bounds", 2),
    ]


def test_the_checker_finds_races() -> None:
    with checked() as faults:
        _sum_kernel[(2,)](torch.ones(8), torch.zeros(1), BLOCK=4)
        _shift_kernel[(3,)](torch.zeros(10), 10, BLOCK=4)
    assert faults == [
        Fault("_sum_kernel", "two programs write", 1),
        Fault("_shift_kernel", "one program reads, another writes", 2),
    ]
