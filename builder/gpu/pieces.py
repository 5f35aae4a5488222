"""What the kernels are made of: activations, dropout, batch-norm; and what tells the models of a cohort apart.

Axes: M slots, B images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from builder.philox import LANES, Purpose
from builder.step import ACTIVATION_NUMBERS
from nws_dataset.network import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM

RELU = tl.constexpr(ACTIVATION_NUMBERS["relu"])
ELU = tl.constexpr(ACTIVATION_NUMBERS["elu"])
SIGMOID = tl.constexpr(ACTIVATION_NUMBERS["sigmoid"])
EPSILON = tl.constexpr(BATCH_NORM_EPSILON)
MOMENTUM = tl.constexpr(BATCH_NORM_MOMENTUM)
LANES_OF_WORDS = tl.constexpr(LANES)
DROPOUT_PURPOSE = tl.constexpr(int(Purpose.DROPOUT) << 24)


class Slots(NamedTuple):
    """What the models of a cohort differ in, on the device: [M] each, whole numbers int64."""

    active: torch.Tensor  # 1 where a model takes part
    activation: torch.Tensor  # of ACTIVATION_NUMBERS
    key: torch.Tensor  # Philox's two words
    number: torch.Tensor  # the model's
    epoch: torch.Tensor
    threshold: torch.Tensor  # dropout's rate to 16 bits; 0: none
    keep: torch.Tensor  # floating point: what dropout multiplies the kept units by

    @classmethod
    def of(cls, integers: torch.Tensor, keep: torch.Tensor) -> Slots:
        """From the rows of a table [6, M] and `keep`."""
        active, activation, key, number, epoch, threshold = integers
        return cls(active, activation, key, number, epoch, threshold, keep)


class Dropout(NamedTuple):
    """Which of the random numbers a layer's dropout takes."""

    places: torch.Tensor  # [M, B] int32: the images' places in their data sets
    block: int  # the layer's first block of the counter


@triton.jit
def _tanh(x):
    """Lambert's continued fraction to x**13 near 0, where 1 - 2 / (exp(2 x) + 1) would lose digits."""
    square = x * x
    above = 135135.0 + square * (17325.0 + square * (378.0 + square))
    below = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(square < 0.1, x * above / below, tl.where(x < 0, -far, far))


@triton.jit
def activate(x, kind):
    if kind == RELU:
        y = tl.where(x <= 0, 0.0, x)  # NaN stays
    elif kind == ELU:
        half = _tanh(0.5 * tl.where(x <= 0, x, 0.0))
        y = tl.where(x <= 0, 2.0 * half / (1.0 - half), x)  # exp(x) - 1
    elif kind == SIGMOID:
        y = 1.0 / (1.0 + tl.exp(-x))
    else:
        y = _tanh(x)
    return y


@triton.jit
def slope(x, kind):
    """The activation's derivative."""
    if kind == RELU:
        y = tl.where(x <= 0, 0.0, 1.0).to(x.dtype)
    elif kind == ELU:
        y = tl.where(x <= 0, tl.exp(tl.where(x <= 0, x, 0.0)), 1.0)
    elif kind == SIGMOID:
        s = 1.0 / (1.0 + tl.exp(-x))
        y = s * (1.0 - s)
    else:
        t = _tanh(x)
        y = 1.0 - t * t
    return y


@triton.jit
def drop(x, unit, image, key, number, epoch, threshold, keep, block):
    """x with dropout; `unit` and `image` (its place in the data set) broadcast against x."""
    if threshold > 0:
        counter = block + unit // LANES_OF_WORDS + DROPOUT_PURPOSE
        w0, w1, w2, w3 = tl.philox(key, image, epoch.to(tl.int32), number.to(tl.int32), counter)
        lane = unit % LANES_OF_WORDS
        word = tl.where(lane < 4, tl.where(lane < 2, w0, w1), tl.where(lane < 6, w2, w3))
        bits = tl.where(lane % 2 == 0, word & 0xFFFF, word >> 16).to(tl.int32)
        x = tl.where(bits >= threshold.to(tl.int32), x * keep, 0.0)
    return x


@triton.jit
def places(pixel, SIZE: tl.constexpr):
    """A pixel's image, row and column; unsigned numbers are faster to divide."""
    pixel = pixel.to(tl.uint32)
    return (pixel // (SIZE * SIZE)).to(tl.int32), (pixel % (SIZE * SIZE) // SIZE).to(tl.int32), (pixel % SIZE).to(tl.int32)


@triton.jit
def affine(y, at, mean, deviation, weight, bias, NORM: tl.constexpr):
    """Batch-norm of y, or y; `at` is the channel's place in mean and deviation."""
    if NORM:
        y = (y - tl.load(mean + at)) * tl.load(deviation + at) * tl.load(weight) + tl.load(bias)
    return y


@triton.jit
def winner(z, y, best_z, best_y, best, number):
    """The larger so far in torch's order: the first of equals, and NaN wins."""
    wins = (z > best_z) | (z != z)
    return tl.where(wins, z, best_z), tl.where(wins, y, best_y), tl.where(wins, number, best)


@triton.jit
def move_running(running, channels, mean, variance, mask):
    """The running mean, and behind the means the running variance."""
    old_mean, old_variance = tl.load(running, mask=mask), tl.load(running + channels, mask=mask)
    tl.store(running, old_mean * (1.0 - MOMENTUM) + mean * MOMENTUM, mask=mask)
    tl.store(running + channels, old_variance * (1.0 - MOMENTUM) + variance * MOMENTUM, mask=mask)
