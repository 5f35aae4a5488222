"""Training steps of SIRENs that represent one image each, compiled by Numba.

One model is trained at a time, on all pixels in every step. Pixels pass through the network in blocks, so
that a block's activations stay in the core's cache. Lanes are the units of a layer, padded with zeros to
whole vectors; where outputs are compared with targets, lanes are pixels. A padding unit's sine is 0, and so
are all of its gradients.

sin(f * (W x + b)) is computed as sin((f * W) x + f * b): the frequency multiplies weights and gradient once a
step.

Axes: M models, B pixels, C channels, H hidden units, P weights. The packed row has, in this order, the first
layer's weights [2, H] and biases [H]; each further hidden layer's [H, H] and [H]; the output layer's [C, H]
and [C]; all padded.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from builder.training import update
from builder.training.cpu.compiled import drop_stale_kernels
from builder.training.cpu.kernels import change_weights, lanes_of
from builder.training.cpu.products import product, whole_vectors
from builder.training.cpu.vectors import (
    LANES,
    entry,
    fill,
    fma,
    jit,
    keep,
    load,
    make_totals,
    raw,
    sine_cosine,
    store,
    total,
)
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import coordinates
from nws_dataset.networks.siren import COORDINATES, Architecture

BLOCK = 64  # pixels that pass through the network together


class SirenArrays(NamedTuple):
    """One model; all arrays are flat."""

    x: np.ndarray  # all buffers; the first are the packed row and its gradient
    row: np.ndarray  # the packed row, a view of x; so is the gradient
    gradient: np.ndarray
    first: np.ndarray  # the optimizer's moments
    second: np.ndarray
    scratch: np.ndarray  # for LANES vectors
    depth: int  # hidden layers
    width: int  # units of each hidden layer, padded
    outputs: int  # C
    pixels: int  # B
    stride: int  # B, padded
    # starts of the buffers in x
    weights: int  # the packed row, each layer times its frequency
    turned: int  # the hidden layers' (without the first's), transposed: [inputs, outputs]
    places: int  # coordinates, [2, B padded]
    targets: int  # [C, B padded]
    y: int  # outputs of a block, [C, BLOCK]; then the gradient by them
    sines: int  # outputs of each hidden layer for a block, [BLOCK, H]
    slopes: int  # the cosines, their derivatives; then the gradient by the sines' arguments
    change: int  # a layer's linear part, then the gradient by its sines: [BLOCK, H]
    frequency_first: float
    frequency_hidden: float
    offset: float


@jit
def start_of(net: Any, layer: int) -> int:
    """Start of a layer in the packed row; layer `depth` is the output."""
    h = net.width
    return 0 if layer == 0 else (COORDINATES + 1) * h + (layer - 1) * (h + 1) * h


@jit
def frequency_of(net: Any, layer: int) -> float:
    """The factor of a layer's weights, which saves multiplying every pixel's sum."""
    return net.frequency_first if layer == 0 else net.frequency_hidden if layer < net.depth else 1.0


@jit
def multiply(net: Any, of: int, to: int) -> None:
    """x[to :] = x[of :], each layer times its frequency; both are as long as the packed row."""
    x, end = raw(net.x), len(net.row)
    for k in range(net.depth + 1):
        factor = fill(x, frequency_of(net, k))
        for i in range(start_of(net, k), start_of(net, k + 1) if k < net.depth else end, LANES):
            store(x, to + i, load(x, of + i) * factor)


@jit
def make_weights(net: Any) -> None:
    """Compute the buffers `weights` and `turned` from the row."""
    x, h = raw(net.x), net.width
    multiply(net, 0, net.weights)
    for k in range(1, net.depth):
        start, to = net.weights + start_of(net, k), net.turned + (k - 1) * h * h
        for i in range(h):
            for j in range(h):
                net.x[to + i * h + j] = entry(x, start + j * h + i)


# Forward


@jit
def first_layer(net: Any, begin: int, count: int) -> None:
    """The first layer's sines and cosines for a block, from its coordinates."""
    x, h, w = raw(net.x), net.width, net.weights
    rows, columns = net.places + begin, net.places + net.stride + begin
    for v in range(0, h, LANES):
        by_row, by_column, bias = load(x, w + v), load(x, w + h + v), load(x, w + 2 * h + v)
        for p in range(count):
            z = fma(by_row, fill(x, entry(x, rows + p)), bias)
            z = fma(by_column, fill(x, entry(x, columns + p)), z)
            sine, cosine = sine_cosine(z)
            store(x, net.sines + p * h + v, sine)
            store(x, net.slopes + p * h + v, cosine)


@jit
def hidden_layer(net: Any, k: int, count: int) -> None:
    """A hidden layer's sines and cosines for a block, from the previous layer's sines."""
    x, h = raw(net.x), net.width
    sines, slopes = net.sines + k * h * BLOCK, net.slopes + k * h * BLOCK
    product(
        *(x, sines - h * BLOCK, h, 1, net.turned + (k - 1) * h * h, h),
        *(net.change, h, count, h, h, False),
    )
    for v in range(0, h, LANES):
        bias = load(x, net.weights + start_of(net, k) + h * h + v)
        for i in range(v, v + count * h, h):
            sine, cosine = sine_cosine(load(x, net.change + i) + bias)
            store(x, sines + i, sine)
            store(x, slopes + i, cosine)


_totals = make_totals(LANES)


@jit
def output_layer(net: Any, count: int) -> None:
    """The network's outputs for a block; lanes are units, which are summed at the end."""
    x, scratch, h = raw(net.x), raw(net.scratch), net.width
    start, sines = net.weights + start_of(net, net.depth), net.sines + (net.depth - 1) * h * BLOCK
    for c in range(net.outputs):
        constant = fill(x, entry(x, start + net.outputs * h + c)) + fill(x, net.offset)
        for first in range(0, count, LANES):
            for p in range(LANES):
                at, acc = sines + (first + p) * h, fill(x, 0.0)
                for v in range(0, h, LANES):
                    acc = fma(load(x, at + v), load(x, start + c * h + v), acc)
                store(scratch, p * LANES, acc)
            _totals(scratch)
            store(x, net.y + c * BLOCK + first, load(scratch, 0) + constant)


@jit
def forward(net: Any, begin: int, count: int) -> None:
    """From a block's coordinates to its outputs."""
    first_layer(net, begin, count)
    for k in range(1, net.depth):
        hidden_layer(net, k, count)
    output_layer(net, count)


# Backward


@jit
def squared_error(net: Any, begin: int, count: int) -> float:
    """The sum over a block; the gradient of the image's mean error replaces the outputs."""
    x, acc = raw(net.x), fill(net.x, 0.0)
    scale = fill(x, 2.0 / (net.pixels * net.outputs))
    for c in range(net.outputs):
        for first in range(0, count, LANES):
            at, of = net.y + c * BLOCK + first, net.targets + c * net.stride + begin + first
            error = keep(lanes_of(net.pixels, (begin + first) // LANES), load(x, at) - load(x, of))
            acc = fma(error, error, acc)
            store(x, at, error * scale)
    return float(total(acc))


@jit
def output_gradients(net: Any, count: int) -> None:
    """Add the gradient of the output layer's weights; put that by its inputs into `change`."""
    x, h, C = raw(net.x), net.width, net.outputs
    start, sines = start_of(net, net.depth), net.sines + (net.depth - 1) * h * BLOCK
    slopes = len(net.row) + start
    for c in range(C):
        y, acc = net.y + c * BLOCK, fill(x, 0.0)
        for p in range(0, count, LANES):
            acc = acc + load(x, y + p)
        net.gradient[start + C * h + c] += total(acc)
        for v in range(0, h, LANES):
            even, odd = load(x, slopes + c * h + v), fill(x, 0.0)  # two sums: an addition takes four cycles
            weight = load(x, start + c * h + v)
            for p in range(0, count, 2):
                i = p * h + v
                g, more = fill(x, entry(x, y + p)), fill(x, entry(x, y + p + 1))
                even, odd = fma(g, load(x, sines + i), even), fma(more, load(x, sines + i + h), odd)
                if c == 0:
                    store(x, net.change + i, g * weight)
                    store(x, net.change + i + h, more * weight)
                else:
                    store(x, net.change + i, fma(g, weight, load(x, net.change + i)))
                    store(x, net.change + i + h, fma(more, weight, load(x, net.change + i + h)))
            store(x, slopes + c * h + v, even + odd)


@jit
def hidden_gradients(net: Any, k: int, count: int) -> None:
    """Add the gradient of a hidden layer's weights; put that by its inputs into `change`."""
    x, h, size = raw(net.x), net.width, net.width * BLOCK
    slopes, start = net.slopes + k * size, start_of(net, k)
    biases = len(net.row) + start + h * h
    for v in range(0, h, LANES):
        even, odd = load(x, biases + v), fill(x, 0.0)
        for i in range(v, v + count * h, 2 * h):
            d = load(x, slopes + i) * load(x, net.change + i)
            more = load(x, slopes + i + h) * load(x, net.change + i + h)
            even, odd = even + d, odd + more
            store(x, slopes + i, d)
            store(x, slopes + i + h, more)
        store(x, biases + v, even + odd)
    product(
        *(x, slopes, 1, h, net.sines + (k - 1) * size, h),
        *(len(net.row) + start, h, h, h, count, True),
    )
    product(
        *(x, slopes, h, 1, net.weights + start, h),
        *(net.change, h, count, h, h, False),
    )


@jit
def first_gradients(net: Any, begin: int, count: int) -> None:
    """Add the gradient of the first layer's weights."""
    x, h, zero = raw(net.x), net.width, fill(net.x, 0.0)
    rows, columns, to = net.places + begin, net.places + net.stride + begin, len(net.row)
    for v in range(0, h, LANES):
        r0, c0, b0 = load(x, to + v), load(x, to + h + v), load(x, to + 2 * h + v)
        r1, c1, b1 = zero, zero, zero
        for p in range(0, count, 2):
            i = p * h + v
            d = load(x, net.slopes + i) * load(x, net.change + i)
            more = load(x, net.slopes + i + h) * load(x, net.change + i + h)
            r0, r1 = fma(d, fill(x, entry(x, rows + p)), r0), fma(more, fill(x, entry(x, rows + p + 1)), r1)
            c0 = fma(d, fill(x, entry(x, columns + p)), c0)
            c1 = fma(more, fill(x, entry(x, columns + p + 1)), c1)
            b0, b1 = b0 + d, b1 + more
        store(x, to + v, r0 + r1)
        store(x, to + h + v, c0 + c1)
        store(x, to + 2 * h + v, b0 + b1)


@jit
def backward(net: Any, begin: int, count: int) -> None:
    """Add the gradient of a block, given the gradient by its outputs in `y`."""
    output_gradients(net, count)
    for k in range(net.depth - 1, 0, -1):
        hidden_gradients(net, k, count)
    first_gradients(net, begin, count)


# Steps


@jit
def train(net: Any, rates: Any, coefficients: Any) -> float:
    """Take steps with one model, until its loss is not finite.

    Args:
        net: the model.
        rates: [steps] step sizes, from `update.step_size`.
        coefficients: of `update.rule`.

    Returns:
        The sum of the steps' mean squared errors.
    """
    losses = 0.0
    for s in range(len(rates)):
        make_weights(net)
        for i in range(len(net.gradient)):
            net.gradient[i] = 0.0
        loss = 0.0
        for begin in range(0, net.stride, BLOCK):
            count = min(BLOCK, net.stride - begin)
            forward(net, begin, count)
            loss += squared_error(net, begin, count)
            backward(net, begin, count)
        losses += loss / (net.pixels * net.outputs)
        if not math.isfinite(losses):
            break
        multiply(net, len(net.row), len(net.row))  # the gradient, in place
        change_weights(net.row, net.gradient, net.first, net.second, len(net.row), rates[s], coefficients)
    return losses


@jit
def evaluate(net: Any, values: Any) -> None:
    """Write the network's outputs at all pixels into `values` [B * C]."""
    make_weights(net)
    for begin in range(0, net.pixels, BLOCK):
        forward(net, begin, min(BLOCK, net.stride - begin))
        for p in range(min(BLOCK, net.pixels - begin)):
            for c in range(net.outputs):
                values[(begin + p) * net.outputs + c] = net.x[net.y + c * BLOCK + p]


class SirenBackend:
    """`builder.training.implicit.ImageBackend` for SIRENs on a CPU: one model at a time on one core.

    A model whose loss is not finite keeps the weights from before that step.

    Args:
        architecture: of the models.
        dtype: float32; float64 for tests.
    """

    def __init__(self, architecture: Architecture, dtype: torch.dtype = torch.float32) -> None:
        drop_stale_kernels()
        self.architecture, self.dtype = architecture, dtype
        self.positions, packed = _packed(architecture)
        depth, width, size = architecture.depth_hidden, whole_vectors(architecture.width_hidden), 2 * packed
        pixels, outputs = architecture.image_size**2, architecture.image_channels
        starts: dict[str, Any] = {}
        for name, numbers in {
            "weights": packed,
            "turned": (depth - 1) * width * width,
            "places": COORDINATES * whole_vectors(pixels),
            "targets": outputs * whole_vectors(pixels),
            "y": outputs * BLOCK,
            "sines": depth * BLOCK * width,
            "slopes": depth * BLOCK * width,
            "change": BLOCK * width,
        }.items():
            starts[name] = size
            size += numbers
        # torch aligns arrays as vectors need it
        x, first, second, scratch = (
            torch.zeros(n, dtype=dtype).numpy() for n in (size, packed, packed, LANES * LANES)
        )
        self._net = SirenArrays(
            *(x, x[:packed], x[packed : 2 * packed], first, second, scratch),
            *(depth, width, outputs, pixels, whole_vectors(pixels)),
            **starts,
            frequency_first=float(architecture.frequency_first),
            frequency_hidden=float(architecture.frequency_hidden),
            offset=float(architecture.output_offset),
        )
        self._planes("places", COORDINATES)[:, :pixels] = coordinates(architecture, dtype).numpy().T

    def train_images(
        self,
        state: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        targets: torch.Tensor,
        rates: list[float],
    ) -> torch.Tensor:
        """See `ImageBackend.train_images`."""
        net, number, losses = self._net, self._net.x.dtype.type, []
        steps, coefficients = np.array(rates, number), tuple(number(c) for c in update.COEFFICIENTS["adam"])
        packed, planes = (net.row, net.first, net.second), self._planes("targets", net.outputs)
        for *model, target in zip(*state, targets, strict=True):
            for own, x in zip(packed, model, strict=True):
                self._pack(own, x)
            planes[:, : net.pixels] = target.numpy().T
            losses.append(train(net, steps, coefficients))
            for own, x in zip(packed, model, strict=True):
                x.copy_(torch.from_numpy(own[self.positions]))
        return torch.tensor(losses, dtype=torch.float64)

    def evaluate_images(self, rows: torch.Tensor) -> torch.Tensor:
        """See `ImageBackend.evaluate_images`."""
        net = self._net
        values = torch.empty(len(rows), net.pixels, net.outputs, dtype=self.dtype)
        for row, found in zip(rows, values, strict=True):
            self._pack(net.row, row)
            evaluate(net, found.view(-1).numpy())
        return values

    def _pack(self, own: np.ndarray, x: torch.Tensor) -> None:
        own[:] = 0  # a model that diverged may have left NaN between the numbers of a row
        own[self.positions] = x.numpy()

    def _planes(self, name: str, count: int) -> np.ndarray:
        """A buffer with `count` numbers per pixel: [count, B padded]."""
        start = getattr(self._net, name)
        return self._net.x[start : start + count * self._net.stride].reshape(count, -1)


def _packed(architecture: Architecture) -> tuple[np.ndarray, int]:
    """The index [P] of each weight of a row in the packed row, and the packed row's length."""
    layout, size = layout_of(architecture), 0
    width = whole_vectors(architecture.width_hidden)
    positions = np.zeros(layout.num_weights, np.int64)
    for spec in layout.tensors:
        if spec.role == "bias":
            at, room = np.arange(spec.size), whole_vectors(spec.size)
        elif spec.layer == "dense1":  # transposed: [2, H]
            at = np.arange(spec.shape[0])[:, None] + np.arange(COORDINATES) * width
            room = COORDINATES * width
        else:
            units = spec.shape[0] if spec.layer == "output" else width
            at = np.arange(spec.shape[0])[:, None] * width + np.arange(spec.shape[1])
            room = units * width
        positions[spec.offset : spec.offset + spec.size] = size + at.ravel()
        size += room
    return positions, size
