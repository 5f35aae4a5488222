"""The steps of networks of sine layers that stand for an image each, compiled by Numba: one model at a time,
all pixels in every step.

A lane is a pixel; see `builder.training.cpu.maps`.

Axes: M models, B pixels, C channels, P weights.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch

from builder.training import update
from builder.training.cpu.compiled import drop_stale_kernels
from builder.training.cpu.kernels import rule
from builder.training.cpu.maps import (
    CHUNK,
    SCRATCH,
    bias_gradient,
    narrow_gradient,
    product,
    tables,
    vectors_of,
    weight_gradient,
)
from builder.training.cpu.vectors import LANES, fill, jit, load, raw, sine_cosine, store
from nws_dataset.networks.network import coordinates
from nws_dataset.networks.siren import COORDINATES, Architecture


class Net(NamedTuple):
    """One model; all arrays are flat."""

    row: np.ndarray  # [P]
    gradient: np.ndarray  # [P]
    first: np.ndarray  # [P], the optimizer's moments
    second: np.ndarray  # [P]
    x: np.ndarray  # maps of a chunk: coordinates, each hidden layer's sines and their slopes, the output
    scratch: np.ndarray
    vectors: np.ndarray  # int32: where each vector of a map begins
    units: np.ndarray  # int32: where the map of each unit begins
    depth: int  # hidden layers
    width: int  # units of each
    outputs: int  # C
    first_frequency: float
    frequency: float
    offset: float


@jit
def sines(net: Any, count: int, at: int, frequency: Any) -> None:
    """Maps of a layer's linear part become their sines, and behind them the slopes of these."""
    x, size = raw(net.x), net.width * CHUNK
    factor = fill(x, frequency)
    for start in range(at, at + size, CHUNK):
        for i in range(start, start + count * LANES, LANES):
            sine, cosine = sine_cosine(load(x, i) * factor)
            store(x, i, sine)
            store(x, i + size, cosine * factor)


@jit
def forward(net: Any, count: int) -> None:
    """The maps of a chunk from its coordinates, which stand first; the offset is not added."""
    h, size = net.width, 2 * net.width * CHUNK
    start, taps, weight = 0, COORDINATES, 0
    for i in range(net.depth):
        to = COORDINATES * CHUNK + i * size
        product(net, count, start, taps, 1, weight, h, taps, weight + h * taps, to)
        sines(net, count, to, net.first_frequency if i == 0 else net.frequency)
        start, weight, taps = to, weight + h * (taps + 1), h
    output = COORDINATES * CHUNK + net.depth * size
    product(net, count, start, h, 1, weight, net.outputs, h, weight + net.outputs * h, output)


@jit
def squared_error(net: Any, targets: Any, begin: int, pixels: int) -> float:
    """Of a chunk of an image of so many pixels; the output's map becomes its gradient."""
    output = (COORDINATES + 2 * net.depth * net.width) * CHUNK
    loss, scale = 0.0, 2.0 / (pixels * net.outputs)
    for c in range(net.outputs):
        for i in range(CHUNK):
            at = output + c * CHUNK + i
            if begin + i < pixels:
                error = net.x[at] + net.offset - targets[(begin + i) * net.outputs + c]
                loss += float(error) * float(error)
                net.x[at] = net.x.dtype.type(scale) * error
            else:
                net.x[at] = 0.0
    return loss


@jit
def multiply_maps(net: Any, count: int, g: int, slopes: int) -> None:
    """Slopes times the gradient of the sines, in place of the slopes."""
    x = raw(net.x)
    for start in range(0, net.width * CHUNK, CHUNK):
        for i in range(start, start + count * LANES, LANES):
            store(x, slopes + i, load(x, slopes + i) * load(x, g + i))


@jit
def backward(net: Any, count: int, spare: int) -> None:
    """Adds the gradient of a chunk, of whose output that stands in the output's map."""
    h, size, C = net.width, 2 * net.width * CHUNK, net.outputs
    output, inputs = (COORDINATES + 2 * net.depth * h) * CHUNK, COORDINATES * CHUNK
    weight = h * (COORDINATES + 1) + (net.depth - 1) * h * (h + 1)
    last = inputs + (net.depth - 1) * size
    bias_gradient(net, count, output, C, weight + C * h)
    narrow_gradient(net, count, last, h, 1, output, C, h, weight)
    product(net, count, output, C, h, weight, h, 1, -1, spare)
    for i in range(net.depth - 1, -1, -1):
        at = inputs + i * size
        d = at + h * CHUNK
        multiply_maps(net, count, spare, d)
        weight -= h * ((h if i else COORDINATES) + 1)
        if i:
            bias_gradient(net, count, d, h, weight + h * h)
            weight_gradient(net, count, d, h, h, at - size, h, 1, weight)
            product(net, count, d, h, h, weight, h, 1, -1, spare)
        else:
            bias_gradient(net, count, d, h, weight + h * COORDINATES)
            narrow_gradient(net, count, d, h, COORDINATES, 0, COORDINATES, 1, weight)


@jit
def load_coordinates(net: Any, places: Any, begin: int, pixels: int) -> None:
    """Those of a chunk; past the end, zeros."""
    for k in range(COORDINATES):
        for i in range(CHUNK):
            net.x[k * CHUNK + i] = places[(begin + i) * COORDINATES + k] if begin + i < pixels else 0.0


@jit
def train(net: Any, places: Any, targets: Any, rates: Any, coefficients: Any) -> float:
    """Steps of one model.

    Args:
        net: the model.
        places: [B * 2] coordinates of the pixels.
        targets: [B * C] their values.
        rates: [steps], of `update.step_size`.
        coefficients: of `update.rule`.

    Returns:
        The sum of the steps' mean squared errors.
    """
    pixels, losses = len(places) // COORDINATES, 0.0
    spare = (COORDINATES + 2 * net.depth * net.width + net.outputs) * CHUNK
    for s in range(len(rates)):
        for i in range(len(net.row)):
            net.gradient[i] = 0.0
        loss = 0.0
        for begin in range(0, pixels, CHUNK):
            count = vectors_of(min(CHUNK, pixels - begin))
            load_coordinates(net, places, begin, pixels)
            forward(net, count)
            loss += squared_error(net, targets, begin, pixels)
            backward(net, count, spare)
        losses += loss / (pixels * net.outputs)
        for i in range(len(net.row)):
            net.row[i], net.first[i], net.second[i] = rule(
                net.row[i], net.gradient[i], net.first[i], net.second[i], rates[s], coefficients
            )
    return losses


@jit
def evaluate(net: Any, places: Any, values: Any) -> None:
    """[B * C] what the network gives at coordinates."""
    pixels = len(places) // COORDINATES
    output = (COORDINATES + 2 * net.depth * net.width) * CHUNK
    for begin in range(0, pixels, CHUNK):
        load_coordinates(net, places, begin, pixels)
        forward(net, vectors_of(min(CHUNK, pixels - begin)))
        for c in range(net.outputs):
            for i in range(min(CHUNK, pixels - begin)):
                values[(begin + i) * net.outputs + c] = net.x[output + c * CHUNK + i] + net.offset


class SirenBackend:
    """`builder.training.images.ImageBackend` for sirens on a CPU: one model at a time on one core.

    Args:
        architecture: of the models.
        dtype: float32; float64 for tests.
    """

    def __init__(self, architecture: Architecture, dtype: torch.dtype = torch.float32) -> None:
        drop_stale_kernels()
        self.architecture, self.dtype = architecture, dtype
        self.places = coordinates(architecture, dtype).contiguous().view(-1).numpy()

    def train_images(
        self,
        state: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        targets: torch.Tensor,
        rates: list[float],
    ) -> torch.Tensor:
        """See `ImageBackend.train_images`."""
        losses = []
        for row, first, second, target in zip(*state, targets, strict=True):
            net = self._net(row, first, second)
            number = net.row.dtype.type
            coefficients = tuple(number(c) for c in update.COEFFICIENTS["adam"])
            flat = target.to(self.dtype).contiguous().view(-1).numpy()
            losses.append(train(net, self.places, flat, np.array(rates, number), coefficients))
            for x, new in zip((row, first, second), (net.row, net.first, net.second), strict=True):
                x.copy_(torch.from_numpy(new))
        return torch.tensor(losses, dtype=torch.float64)

    def evaluate_images(self, rows: torch.Tensor) -> torch.Tensor:
        """See `ImageBackend.evaluate_images`."""
        a = self.architecture
        values = torch.empty(len(rows), a.image_size**2, a.image_channels, dtype=self.dtype)
        for row, found in zip(rows, values, strict=True):
            evaluate(self._net(row, row, row), self.places, found.view(-1).numpy())
        return values

    def _net(self, row: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> Net:
        a, number = self.architecture, torch.zeros(0, dtype=self.dtype).numpy().dtype.type
        h, maps = a.width_hidden, self._maps
        # copies: of the same alignment wherever a row comes from
        own, *moments = (x.to(self.dtype).clone().numpy() for x in (row, first, second))
        fields: list[Any] = [own, np.zeros_like(own), *moments, *maps]
        fields += [*tables(max(h, a.image_channels, COORDINATES)), a.depth_hidden, h, a.image_channels]
        fields += [number(x) for x in (a.frequency_first, a.frequency_hidden, a.output_offset)]
        return Net(*fields)

    @functools.cached_property
    def _maps(self) -> list[Any]:
        """Buffers; torch aligns them as vectors need it."""
        a = self.architecture
        numbers = (COORDINATES + (2 * a.depth_hidden + 1) * a.width_hidden + a.image_channels) * CHUNK
        return [torch.zeros(n, dtype=self.dtype).numpy() for n in (numbers, SCRATCH)]
