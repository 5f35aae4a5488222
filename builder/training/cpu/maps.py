"""Products of maps: dense layers of networks whose inputs are many and small, a lane an input.

A map is what a unit gives for a chunk of inputs (pixels, images); the maps of a layer stand one behind the
other. A chunk's maps stay in the core's cache. Sums over inputs go lane by lane, chunk by chunk, so that they
are the same whatever vectors a processor has.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from builder.training.cpu.vectors import (
    CHANNELS,
    LANES,
    barrier,
    channels,
    fill,
    inputs_of_tile,
    jit,
    load,
    make_tile,
    make_totals,
    part_of,
    raw,
    registers,
    total,
)

POSITIONS = 4  # vectors of inputs in a tile
TILE = POSITIONS * LANES  # inputs of a tile
CHUNK = 4 * TILE  # inputs that go through the network together
_PART, _PART_LANES = part_of(POSITIONS)
TAPS, NARROW = min(4, inputs_of_tile()), 2  # maps in a tile of gradients; of layers with few
SCRATCH = max(TAPS, NARROW) * CHANNELS * LANES

_tile = make_tile(_PART, _PART_LANES)
_offsets, _zeros, _filled, _multiply, _put = (
    _tile.offsets,
    _tile.zeros,
    _tile.filled,
    _tile.multiply,
    _tile.put,
)


@jit
def product(
    net: Any,
    count: int,
    start: int,
    taps: int,
    tap_stride: int,
    weight: int,
    units: int,
    unit_stride: int,
    bias: int,
    to: int,
) -> None:
    """The maps of `units` units from those of `taps` inputs: sums of products with weights.

    Args:
        net: has row [P], x with all maps, and `vectors`.
        count: vectors of the maps, a multiple of POSITIONS.
        start: of the inputs' maps in x.
        taps: how many there are.
        tap_stride: from the weight of one of them to the next's.
        weight: index of the first weight in the row.
        units: how many maps are made.
        unit_stride: from the weight of one of them to the next's.
        bias: index of the first unit's; negative: there is none.
        to: where the maps go in x.
    """
    x, row = raw(net.x), raw(net.row)
    for q in range(0, units, CHANNELS):
        weights, outputs = channels(weight, q, units, unit_stride), channels(to, q, units, CHUNK)
        biases = channels(max(bias, 0), q, units, 1)
        for i in range(0, count, _PART):
            for lane in range(0, LANES, _PART_LANES):
                acc = _zeros(x) if bias < 0 else _filled(row, biases)
                bases = _offsets(net.vectors, i, start + lane)
                for t in range(taps):
                    barrier()
                    acc = _multiply(acc, x, bases, t * CHUNK, row, weights, t * tap_stride)
                _put(acc, x, _offsets(net.vectors, i, lane), outputs, -np.inf)


def _make_weight_gradient(width: int) -> Any:
    lanes = registers().lanes
    tile, totals = make_tile(width, lanes), make_totals(width * CHANNELS)
    offsets, zeros, outer, spill = tile.offsets, tile.zeros, tile.outer, tile.spill

    @jit
    def weight_gradient(
        net: Any,
        count: int,
        d: int,
        units: int,
        unit_stride: int,
        start: int,
        taps: int,
        tap_stride: int,
        weight: int,
    ) -> None:
        """Adds the products of the gradients' maps, at `d`, and the inputs', summed over a chunk; else as
        `product`.
        """
        x, scratch = raw(net.x), raw(net.scratch)
        for q in range(0, units, CHANNELS):
            for t in range(0, taps, width):
                for lane in range(0, LANES, lanes):
                    acc, gradients, inputs = (
                        zeros(x),
                        channels(d + lane, q, units, CHUNK),
                        offsets(net.units, t, 0),
                    )
                    for i in range(0, count * LANES, LANES):
                        barrier()
                        acc = outer(acc, x, gradients, i, start + lane + i, inputs)
                    spill(acc, scratch, lane, width * LANES)
                totals(scratch)
                for c in range(min(CHANNELS, units - q)):
                    for p in range(min(width, taps - t)):
                        net.gradient[weight + (q + c) * unit_stride + (t + p) * tap_stride] += net.scratch[
                            c * width + p
                        ]

    return weight_gradient


weight_gradient, narrow_gradient = _make_weight_gradient(TAPS), _make_weight_gradient(NARROW)


@jit
def vectors_of(inputs: int) -> int:
    """Vectors of the maps of so many inputs, filled up to whole tiles."""
    return -(-inputs // TILE) * POSITIONS


def tables(width: int) -> tuple[np.ndarray, np.ndarray]:
    """`vectors` and `units` of networks with layers of at most so many units."""
    # past the last unit, the last one again: a tile may ask for more
    units = np.minimum(np.arange(width + TAPS), width - 1)
    return np.arange(CHUNK // LANES, dtype=np.int32) * LANES, units.astype(np.int32) * CHUNK


@jit
def bias_gradient(net: Any, count: int, d: int, units: int, bias: int) -> None:
    """Adds the sums of the gradients' maps over a chunk."""
    x = raw(net.x)
    for u in range(units):
        acc = fill(x, 0.0)
        for i in range(0, count * LANES, LANES):
            acc = acc + load(x, d + u * CHUNK + i)
        net.gradient[bias + u] += total(acc)
