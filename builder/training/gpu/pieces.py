"""Building blocks of the kernels: activations, dropout, batch-norm, and what models of a cohort differ in.

Axes: M slots, B images.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from builder.philox import LANES, Purpose
from builder.training.backend import ACTIVATION_NUMBERS
from nws_dataset.networks.cnn import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM

RELU = tl.constexpr(ACTIVATION_NUMBERS["relu"])
ELU = tl.constexpr(ACTIVATION_NUMBERS["elu"])
SIGMOID = tl.constexpr(ACTIVATION_NUMBERS["sigmoid"])
EPSILON = tl.constexpr(BATCH_NORM_EPSILON)
MOMENTUM = tl.constexpr(BATCH_NORM_MOMENTUM)
LANES_OF_WORDS = tl.constexpr(LANES)
DRAWN_GROUPS = 512  # groups of units per program of `draw`
DROPOUT_PURPOSE = tl.constexpr(int(Purpose.DROPOUT) << 24)


class Slots(NamedTuple):
    """What a cohort's models differ in, on the device: [M] each, integers are int64."""

    active: torch.Tensor  # 1 where a model takes part
    activation: torch.Tensor  # from ACTIVATION_NUMBERS
    key: torch.Tensor  # Philox's two words
    number: torch.Tensor  # the model's number
    epoch: torch.Tensor
    threshold: torch.Tensor  # dropout's rate in 16 bits; 0: none
    keep: torch.Tensor  # floating point: dropout's factor of the kept units

    @classmethod
    def of(cls, integers: torch.Tensor, keep: torch.Tensor) -> Slots:
        """From the rows of a table [6, M] and `keep`."""
        active, activation, key, number, epoch, threshold = integers
        return cls(active, activation, key, number, epoch, threshold, keep)


class Dropout(NamedTuple):
    """A layer's dropout: its random numbers, and the units kept for a step's images."""

    # [M, B, groups] uint8, a bit per unit; eight units share a block of Philox's counter, so one draw does
    kept: torch.Tensor
    indices: torch.Tensor  # [M, B] int32: the images' indices in their data sets
    block: int  # the layer's first counter block

    @classmethod
    def of(cls, indices: torch.Tensor, block: int, units: int) -> Dropout:
        """For a layer of so many units per image."""
        return cls(
            torch.empty(*indices.shape, triton.cdiv(units, LANES), dtype=torch.uint8, device=indices.device),
            indices,
            block,
        )


def kernel(*, aligned: str = "", ones: str = "") -> Callable[[Callable[..., None]], Any]:
    """A decorator for kernels that the host launches: `triton.jit` with what all our kernels need.

    Multiplications and additions are fused, whatever Triton's version does by default. And Triton by itself
    compiles a kernel again whenever 16 divides another address or number, or a number is 1, which multiplies
    a build's waiting time: here it does so only for the named parameters.

    Args:
        aligned: space-separated parameters whose divisibility by 16 makes loads and stores wide: strides and
            addresses that are almost always aligned.
        ones: numbers that simplify the kernel when they are 1, as where a map has one pixel.
    """

    def decorate(function: Callable[..., None]) -> Any:
        parameters = inspect.signature(function).parameters.items()
        plain = [
            name
            for name, p in parameters
            if name not in aligned.split() and "constexpr" not in str(p.annotation)
        ]
        decorated = triton.jit(
            function,
            do_not_specialize=[name for name in plain if name not in ones.split()],
            do_not_specialize_on_alignment=plain,
        )
        decorated.run = functools.partial(decorated.run, enable_fp_fusion=True)
        return decorated

    return decorate


@triton.jit
def _tanh(x):
    """Lambert's continued fraction to x**13 near 0, where 1 - 2 / (exp(2 x) + 1) would lose digits."""
    square = x * x
    above = 135135.0 + square * (17325.0 + square * (378.0 + square))
    below = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(square < 0.1, x * above / below, tl.where(x < 0, -far, far))


@triton.jit
def activate(x, activation):
    if activation == RELU:
        y = tl.where(x <= 0, 0.0, x)  # NaN stays NaN
    elif activation == ELU:
        half = _tanh(0.5 * tl.where(x <= 0, x, 0.0))
        y = tl.where(x <= 0, 2.0 * half / (1.0 - half), x)  # exp(x) - 1
    elif activation == SIGMOID:
        y = 1.0 / (1.0 + tl.exp(-x))
    else:
        y = _tanh(x)
    return y


@triton.jit
def derivative(x, activation):
    """The activation's derivative."""
    if activation == RELU:
        y = tl.where(x <= 0, 0.0, 1.0).to(x.dtype)
    elif activation == ELU:
        y = tl.where(x <= 0, tl.exp(tl.where(x <= 0, x, 0.0)), 1.0)
    elif activation == SIGMOID:
        s = 1.0 / (1.0 + tl.exp(-x))
        y = s * (1.0 - s)
    else:
        t = _tanh(x)
        y = 1.0 - t * t
    return y


@triton.jit
def _keep_bits(word, threshold):
    """The bits of the two units whose random numbers are in a word."""
    low, high = (word & 0xFFFF).to(tl.int32), (word >> 16).to(tl.int32)
    return (low >= threshold).to(tl.int32) | (high >= threshold).to(tl.int32) << 1


@kernel(aligned="kept indices")
def draw_kernel(
    kept, indices, active, keys, numbers, epochs, thresholds, images, groups, block, BLOCK: tl.constexpr
):
    """The bits of BLOCK groups of eight units."""
    m = tl.program_id(1).to(tl.int64)
    threshold = tl.load(thresholds + m).to(tl.int32)
    if (tl.load(active + m) == 0) | (threshold == 0):
        return
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = at < images * groups
    index = tl.load(indices + m * images + at // groups, mask=valid, other=0)
    epoch, number = tl.load(epochs + m).to(tl.int32), tl.load(numbers + m).to(tl.int32)
    w0, w1, w2, w3 = tl.philox(tl.load(keys + m), index, epoch, number, block + at % groups + DROPOUT_PURPOSE)
    bits = (
        _keep_bits(w0, threshold)
        | _keep_bits(w1, threshold) << 2
        | _keep_bits(w2, threshold) << 4
        | _keep_bits(w3, threshold) << 6
    )
    tl.store(kept + m * images * groups + at, bits.to(tl.uint8), mask=valid)


def draw(dropout: Dropout, slots: Slots) -> None:
    """Draw the units of a layer that are kept in this step."""
    models, images, groups = dropout.kept.shape
    draw_kernel[(triton.cdiv(images * groups, DRAWN_GROUPS), models)](
        dropout.kept, dropout.indices, slots.active, slots.key, slots.number, slots.epoch, slots.threshold,
        images, groups, dropout.block, BLOCK=DRAWN_GROUPS,
    )  # fmt: skip


def dropout_bits(dropout: Dropout | None, slots: Slots) -> tuple[torch.Tensor, int]:
    """A dropout's bits and groups per image, as kernels take them; without dropout, unused values."""
    return (slots.active, 0) if dropout is None else (dropout.kept, dropout.kept.shape[2])


@triton.jit
def drop(x, kept, unit, valid, threshold, keep):
    """x with dropout; `kept` points to the bits of x's images, and `unit` is x's index in an image."""
    if threshold > 0:
        bits = tl.load(kept + unit // LANES_OF_WORDS, mask=valid, other=0).to(tl.int32)
        x = tl.where((bits >> unit % LANES_OF_WORDS) & 1 == 1, x * keep, 0.0)
    return x


@triton.jit
def image_row_column(pixel, SIZE: tl.constexpr):
    """A pixel's image, row and column; unsigned numbers are faster to divide."""
    pixel = pixel.to(tl.uint32)
    return (
        (pixel // (SIZE * SIZE)).to(tl.int32),
        (pixel % (SIZE * SIZE) // SIZE).to(tl.int32),
        (pixel % SIZE).to(tl.int32),
    )


@triton.jit
def batch_norm(y, at, mean, deviation, weight, bias, NORM: tl.constexpr):
    """Batch-norm of y, or just y; `at` is the channel's index in mean and deviation."""
    if NORM:
        y = (y - tl.load(mean + at)) * tl.load(deviation + at) * tl.load(weight) + tl.load(bias)
    return y


@triton.jit
def winner(z, y, best_z, best_y, best, number):
    """The larger so far, as torch chooses: the first if equal, and NaN wins."""
    wins = (z > best_z) | (z != z)
    return tl.where(wins, z, best_z), tl.where(wins, y, best_y), tl.where(wins, number, best)


@triton.jit
def update_running(running, channels, mean, variance, mask):
    """Update the running mean, and the running variance behind the means."""
    old_mean, old_variance = tl.load(running, mask=mask), tl.load(running + channels, mask=mask)
    tl.store(running, old_mean * (1.0 - MOMENTUM) + mean * MOMENTUM, mask=mask)
    tl.store(running + channels, old_variance * (1.0 - MOMENTUM) + variance * MOMENTUM, mask=mask)
