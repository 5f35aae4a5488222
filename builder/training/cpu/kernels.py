"""One model's step: forward, backward and update, compiled by Numba.

A batch is split into groups of 16 images, one per lane of a vector (see `builder.training.cpu.offsets`).
Kernels keep a tile of a few pixels and four channels in registers; what follows a linear part (pooling,
activation, dropout) happens as its tile is stored. Without batch-norm a step processes a few groups at a
time, so that their maps stay in the core's cache; batch-norm needs the whole batch in each layer.

A layer is: linear part -> [batch-norm] -> max-pool -> activation -> [batch-norm] -> dropout. Activations are
monotone, so pooling first gives the same numbers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba.extending import overload

from builder.philox import LANES as HALVES
from builder.philox import Purpose
from builder.training import update
from builder.training.backend import ACTIVATION_NUMBERS
from builder.training.cpu.offsets import GRADIENT_TAPS, NO_NORM, NORM_AFTER, NORM_BEFORE, POOL_TILE, TILES
from builder.training.cpu.vectors import (
    CHANNELS,
    LANES,
    Tile,
    at_least,
    barrier,
    channels,
    choose,
    entry,
    equal,
    exp,
    expm1,
    fill,
    floor,
    fma,
    greater,
    high_half,
    inline,
    inputs_of_tile,
    jit,
    keep,
    load,
    lookup,
    low_half,
    make_tile,
    make_totals,
    maximum,
    minimum,
    part_of,
    pixels,
    raw,
    registers,
    sample,
    store,
    total,
    words,
)
from nws_dataset.networks.cnn import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM

RELU, ELU, SIGMOID = (ACTIVATION_NUMBERS[name] for name in ("relu", "elu", "sigmoid"))
ALL_LANES = np.uint16(0xFFFF)
SCRATCH = max(*TILES, GRADIENT_TAPS) * CHANNELS * LANES  # numbers in the largest tile
NOISE_BLOCK, DROPOUT_BLOCK = int(Purpose.NOISE) << 24, int(Purpose.DROPOUT) << 24
u64 = np.uint64  # for non-negative indices


class Work(NamedTuple):
    """Tables and buffers; all arrays are flat."""

    layers: np.ndarray  # records of `tables.LAYER`
    classes: np.ndarray  # records of `tables.CLASS`
    offsets: np.ndarray  # int32
    x: np.ndarray  # every feature map and gradient
    masks: np.ndarray  # uint16, one bit per image
    scratch: np.ndarray
    statistics: np.ndarray  # float64: batch-norm's mean and 1 / standard deviation of each channel
    groups: int  # processed together


class CnnArrays(NamedTuple):
    """One model in training or evaluation."""

    row: np.ndarray  # [P]
    gradient: np.ndarray  # [P]
    size: int  # P
    activation: int
    pixel_min: float
    training: bool
    dropping: bool  # whether this pass has dropout
    dropout_threshold: int  # a unit is dropped if its 16-bit random number is below this
    dropout_factor: float  # factor of the kept units
    key: np.ndarray  # [2] uint32: Philox's key
    number: int  # the model's number
    epoch: int


class Pictures(NamedTuple):
    """The images of some steps, in order; each step is padded to whole groups."""

    images: np.ndarray  # uint8, the whole data set
    starts: np.ndarray  # [n] int64: where each image starts in `images`
    labels: np.ndarray  # [n] int64
    indices: np.ndarray  # [n] int64: the images' indices in the data set
    distortions: np.ndarray  # [11 * n], or [0] without augmentation: `batches.Distortion`, field after field
    quantiles: np.ndarray  # of the normal distribution, for noise
    gray: bool
    augmented: bool
    length: int  # n


@inline
def with_pointers(work: Any, net: Any, pictures: Any) -> Any:
    """The same tuples, with addresses in place of the arrays that every vector needs."""
    work = Work(
        work.layers,
        work.classes,
        raw(work.offsets),
        raw(work.x),
        raw(work.masks),
        raw(work.scratch),
        raw(work.statistics),
        work.groups,
    )
    net = CnnArrays(
        *(raw(net.row), raw(net.gradient), net.size, net.activation, net.pixel_min, net.training),
        *(net.dropping, net.dropout_threshold, net.dropout_factor, raw(net.key), net.number, net.epoch),
    )
    pictures = Pictures(
        *(raw(pictures.images), raw(pictures.starts), raw(pictures.labels), raw(pictures.indices)),
        *(
            raw(pictures.distortions),
            raw(pictures.quantiles),
            pictures.gray,
            pictures.augmented,
            pictures.length,
        ),
    )
    return work, net, pictures


@overload(torch.sqrt, strict=False)
def _sqrt(x: Any) -> Any:  # lets `update.rule` be compiled unchanged
    return lambda x: np.sqrt(x)


rule = inline(update.rule)


# Elementwise


@inline
def activate(like: Any, activation: int, v: Any) -> Any:
    zero, one = fill(like, 0.0), fill(like, 1.0)
    if activation == RELU:
        return maximum(zero, v)
    if activation == ELU:
        return choose(greater(v, zero), v, expm1(v))
    if activation == SIGMOID:
        return one / (exp(zero - v) + one)
    e = expm1(v + v)
    return e / (e + fill(like, 2.0))


@inline
def activation_gradient(like: Any, activation: int, y: Any, g: Any) -> Any:
    """g times the activation's derivative, from the activation's value y."""
    zero, one = fill(like, 0.0), fill(like, 1.0)
    if activation == RELU:
        return keep(greater(y, zero), g)
    if activation == ELU:
        return choose(greater(y, zero), g, g * (y + one))
    if activation == SIGMOID:
        return g * (y * (one - y))
    return g * (one - y * y)


@inline
def lanes_of(images: int, group: int) -> Any:
    """The mask of a group's lanes that have an image, when there are `images` in all."""
    left = images - group * LANES
    return ALL_LANES if left >= LANES else np.uint16((1 << max(left, 0)) - 1)


@inline
def pool(masks: Any, at: int, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The largest of a window's four pixels; four masks at `at` say which one it was, the first if equal.

    A NaN beside numbers may get lost here; the weights show it at the epoch's end.
    """
    v = maximum(maximum(a, b), maximum(c, d))
    is_a = equal(a, v)
    is_b = equal(b, v) & ~is_a
    is_c = equal(c, v) & ~(is_a | is_b)
    masks[u64(at)], masks[u64(at + 1)], masks[u64(at + 2)] = is_a, is_b, is_c
    masks[u64(at + 3)] = ~(is_a | is_b | is_c)
    return v


# Forward


@inline
def finish(work: Any, net: Any, L: Any, v: Any, to: int, kept: int) -> None:
    """Apply activation and dropout to a vector and store it at `to`.

    Batch-norm after the activation comes before dropout and is done elsewhere.
    """
    v = activate(work.x, net.activation, v)
    if net.dropping and L.drops and L.norm != NORM_AFTER:
        v = keep(work.masks[u64(kept)], v * fill(work.x, net.dropout_factor))
    store(work.x, to, v)


def _make_sums(tile: Tile) -> Any:
    offsets, filled, multiply = tile.offsets, tile.filled, tile.multiply

    @inline
    def sums(work: Any, row: Any, L: Any, pixels: int, start: int, q: int, first: int, stop: int) -> Any:
        """Bias + sum over taps of input * weight, for four channels; `pixels`: where the offsets are."""
        x, tab = work.x, work.offsets
        weights, bases = channels(L.weight, q, L.units, L.taps), offsets(tab, pixels, start)
        acc = filled(row, channels(L.bias, q, L.units, 1))
        for run in range(0, L.taps, L.run):
            for t in range(run + first, run + stop):
                barrier()
                acc = multiply(acc, x, bases, entry(tab, L.tap_x + t), row, weights, t)
        return acc

    return sums


def _make_forward(count: int) -> Any:
    part, lanes = part_of(count)
    tile = make_tile(part, lanes)
    sums, offsets, put, spill = _make_sums(tile), tile.offsets, tile.put, tile.spill

    @jit
    def forward(work: Any, net: Any, L: Any) -> None:
        """The linear part, bias + sum over taps of input * weight; with its activation if that is next."""
        x, tab, row = work.x, work.offsets, net.row
        relu = L.hidden and L.norm == NO_NORM and net.activation == RELU and not (L.drops and net.dropping)
        direct = relu or not L.hidden or L.norm == NORM_BEFORE
        lowest = 0.0 if relu else -np.inf
        to, to_group, to_channel = (L.z, L.z_group, L.z_channel) if L.norm else (L.y, L.y_group, L.y_channel)
        for r in range(L.rounds):
            for q in range(0, L.units, CHANNELS):
                outputs = channels(to + r * to_group, q, L.units, to_channel)
                for i in range(0, L.tiled, count):
                    first, stop = entry(tab, L.tile_first + i // count), entry(tab, L.tile_stop + i // count)
                    for p in range(0, count, part):
                        for lane in range(0, LANES, lanes):
                            acc = sums(
                                work, row, L, L.tile_x + i + p, L.x + r * L.x_group + lane, q, first, stop
                            )
                            if direct:
                                put(acc, x, offsets(tab, L.tile_out + i + p, lane), outputs, lowest)
                            else:
                                spill(acc, work.scratch, p * LANES + lane, count * LANES)
                    if direct:
                        continue
                    for c in range(CHANNELS):
                        channel = min(q + c, L.units - 1)
                        out, kept = (
                            to + r * to_group + channel * to_channel,
                            L.kept + r * L.kept_group + channel * L.kept_channel,
                        )
                        for p in range(count):
                            v = load(work.scratch, (c * count + p) * LANES)
                            finish(
                                work,
                                net,
                                L,
                                v,
                                out + entry(tab, L.tile_out + i + p),
                                kept + entry(tab, L.tile_kept + i + p),
                            )

    return forward


_forward1, _forward2, _forward4, _forward6 = (_make_forward(count) for count in (1, 2, 4, 6))
_WINDOW_PART, _WINDOW_LANES = part_of(POOL_TILE)
_window = make_tile(_WINDOW_PART, _WINDOW_LANES)
_window_sums, _window_spill = _make_sums(_window), _window.spill


@jit
def forward_pooled(work: Any, net: Any, L: Any) -> None:
    """The linear part with max-pooling, without batch-norm: a tile's four pixels are one window."""
    tab, row = work.offsets, net.row
    for r in range(L.rounds):
        for q in range(0, L.units, CHANNELS):
            for i in range(0, L.tiled, POOL_TILE):
                first, stop = (
                    entry(tab, L.tile_first + i // POOL_TILE),
                    entry(tab, L.tile_stop + i // POOL_TILE),
                )
                for p in range(0, POOL_TILE, _WINDOW_PART):
                    for lane in range(0, LANES, _WINDOW_LANES):
                        acc = _window_sums(
                            work, row, L, L.tile_x + i + p, L.x + r * L.x_group + lane, q, first, stop
                        )
                        _window_spill(acc, work.scratch, p * LANES + lane, POOL_TILE * LANES)
                for c in range(min(CHANNELS, L.units - q)):
                    k, channel, s = c * POOL_TILE * LANES, q + c, work.scratch
                    chosen = (
                        L.chosen
                        + r * L.chosen_group
                        + channel * L.chosen_channel
                        + entry(tab, L.tile_chosen + i)
                    )
                    kept = L.kept + r * L.kept_group + channel * L.kept_channel + entry(tab, L.tile_kept + i)
                    v = pool(
                        work.masks,
                        chosen,
                        load(s, k),
                        load(s, k + LANES),
                        load(s, k + 2 * LANES),
                        load(s, k + 3 * LANES),
                    )
                    finish(
                        work,
                        net,
                        L,
                        v,
                        L.y + r * L.y_group + channel * L.y_channel + entry(tab, L.tile_out + i),
                        kept,
                    )


@jit
def forward_linear(work: Any, net: Any, L: Any) -> None:
    if L.pool and L.norm == NO_NORM:
        forward_pooled(work, net, L)
    elif L.tile == 6:
        _forward6(work, net, L)
    elif L.tile == 4:
        _forward4(work, net, L)
    elif L.tile == 2:
        _forward2(work, net, L)
    else:
        _forward1(work, net, L)


@jit
def average_forward(work: Any, L: Any, after: Any) -> None:
    """Write the mean of each channel's map to the next layer's input."""
    x, count = work.x, L.pooled // (POOL_TILE if L.pool else 1)
    share = fill(x, 1.0 / count)
    for g in range(work.groups):
        for c in range(L.units):
            start, s = L.y + g * L.y_group + c * L.y_channel, fill(x, 0.0)
            for i in range(count):
                s = s + load(x, start + i * LANES)
            store(x, after.x + g * after.x_group + c * after.x_channel, s * share)


# Batch-norm


@jit
def shifted_sums(x: Any, start: int, count: int, shift: Any, mask: Any) -> Any:
    """Sums of z - shift and of its square over the mask's lanes of `count` vectors."""
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = fill(x, 0.0)
    # four sums at once, as an addition takes four cycles
    for i in range(start, start + count // 4 * 4 * LANES, 4 * LANES):
        v0, v1 = keep(mask, load(x, i) - shift), keep(mask, load(x, i + LANES) - shift)
        v2, v3 = keep(mask, load(x, i + 2 * LANES) - shift), keep(mask, load(x, i + 3 * LANES) - shift)
        s0, s1, s2, s3 = s0 + v0, s1 + v1, s2 + v2, s3 + v3
        q0, q1, q2, q3 = fma(v0, v0, q0), fma(v1, v1, q1), fma(v2, v2, q2), fma(v3, v3, q3)
    for i in range(start + count // 4 * 4 * LANES, start + count * LANES, LANES):
        v0 = keep(mask, load(x, i) - shift)
        s0, q0 = s0 + v0, fma(v0, v0, q0)
    return total((s0 + s1) + (s2 + s3)), total((q0 + q1) + (q2 + q3))


@jit
def batch_statistics(work: Any, L: Any, c: int, images: int) -> Any:
    """A channel's mean and biased variance over the batch, summed about a rough mean against cancellation."""
    x, start = work.x, L.z + c * L.z_channel
    stride, seen = max(1, L.pixels // LANES), min(LANES, L.pixels)
    rough = fill(x, 0.0)
    for i in range(seen):
        rough = rough + load(x, start + i * stride * LANES)
    first = lanes_of(images, 0)
    k = total(keep(first, rough)) / (seen * min(images, LANES))
    s = q = 0.0
    for g in range(work.groups):
        more = shifted_sums(x, start + g * L.z_group, L.pixels, fill(x, k), lanes_of(images, g))
        s, q = s + more[0], q + more[1]
    count = images * L.pixels
    offset = s / count
    return k + offset, max(q / count - offset * offset, 0.0)


@jit
def channel_scale(work: Any, net: Any, L: Any, c: int, images: int) -> Any:
    """Batch-norm's mean and factor for a channel.

    In training these are the batch's, and the running statistics are updated.
    """
    row = net.row
    if net.training:
        mean, variance = batch_statistics(work, L, c, images)
        count = images * L.pixels
        row[L.mean + c] += BATCH_NORM_MOMENTUM * (mean - row[L.mean + c])
        row[L.variance + c] += BATCH_NORM_MOMENTUM * (variance * count / (count - 1) - row[L.variance + c])
    else:
        mean, variance = np.float64(row[L.mean + c]), np.float64(row[L.variance + c])
    inverse = 1.0 / math.sqrt(variance + BATCH_NORM_EPSILON)
    work.statistics[L.statistics + c], work.statistics[L.statistics + L.units + c] = mean, inverse
    return mean, row[L.gamma + c] * inverse


@jit
def norm_forward(work: Any, net: Any, L: Any, images: int) -> None:
    """Apply batch-norm, and what follows it, and store the output."""
    x, tab = work.x, work.offsets
    for c in range(L.units):
        mean, factor = channel_scale(work, net, L, c, images)
        m, a, b = fill(x, mean), fill(x, factor), fill(x, net.row[L.beta + c])
        for g in range(work.groups):
            z, y = L.z + g * L.z_group + c * L.z_channel, L.y + g * L.y_group + c * L.y_channel
            kept, chosen = (
                L.kept + g * L.kept_group + c * L.kept_channel,
                L.chosen + g * L.chosen_group + c * L.chosen_channel,
            )
            if L.norm == NORM_AFTER:
                for i in range(L.pixels):
                    v = fma(load(x, z + entry(tab, L.pixel_z + i)) - m, a, b)
                    if net.dropping and L.drops:
                        v = keep(
                            work.masks[u64(kept + entry(tab, L.pixel_kept + i))],
                            v * fill(x, net.dropout_factor),
                        )
                    store(x, y + entry(tab, L.pixel_y + i), v)
            elif L.pool:
                for i in range(0, L.pooled, POOL_TILE):
                    v0 = fma(load(x, z + entry(tab, L.pixel_z + i)) - m, a, b)
                    v1 = fma(load(x, z + entry(tab, L.pixel_z + i + 1)) - m, a, b)
                    v2 = fma(load(x, z + entry(tab, L.pixel_z + i + 2)) - m, a, b)
                    v3 = fma(load(x, z + entry(tab, L.pixel_z + i + 3)) - m, a, b)
                    v = pool(work.masks, chosen + entry(tab, L.pixel_chosen + i), v0, v1, v2, v3)
                    finish(
                        work, net, L, v, y + entry(tab, L.pixel_y + i), kept + entry(tab, L.pixel_kept + i)
                    )
            else:
                for i in range(L.pixels):
                    v = fma(load(x, z + entry(tab, L.pixel_z + i)) - m, a, b)
                    finish(
                        work, net, L, v, y + entry(tab, L.pixel_y + i), kept + entry(tab, L.pixel_kept + i)
                    )


@jit
def norm_sums(work: Any, L: Any, c: int, mean: Any) -> Any:
    """Sums of the gradient d and of d * (z - mean) over a channel."""
    x, tab = work.x, work.offsets
    s = q = 0.0
    for g in range(work.groups):
        z, d = L.z + g * L.z_group + c * L.z_channel, L.d + g * L.d_group + c * L.d_channel
        s0 = s1 = q0 = q1 = fill(x, 0.0)
        for i in range(0, L.pixels - 1, 2):
            v0, v1 = load(x, d + entry(tab, L.pixel_d + i)), load(x, d + entry(tab, L.pixel_d + i + 1))
            q0 = fma(v0, load(x, z + entry(tab, L.pixel_z + i)) - mean, q0)
            q1 = fma(v1, load(x, z + entry(tab, L.pixel_z + i + 1)) - mean, q1)
            s0, s1 = s0 + v0, s1 + v1
        if L.pixels % 2:
            v0 = load(x, d + entry(tab, L.pixel_d + L.pixels - 1))
            s0, q0 = s0 + v0, fma(v0, load(x, z + entry(tab, L.pixel_z + L.pixels - 1)) - mean, q0)
        s, q = s + total(s0 + s1), q + total(q0 + q1)
    return s, q


@jit
def norm_backward(work: Any, net: Any, L: Any, images: int) -> None:
    """Turn the gradient in d from batch-norm's output to the linear one, in place; also gamma, beta, bias."""
    x, tab, count = work.x, work.offsets, images * L.pixels
    for c in range(L.units):
        mean, inverse = work.statistics[L.statistics + c], work.statistics[L.statistics + L.units + c]
        middle = fill(x, mean)
        for g in range(work.groups):  # pixels outside all pooling windows get no gradient from above
            for i in range(L.pooled, L.pixels):
                store(x, L.d + g * L.d_group + c * L.d_channel + entry(tab, L.pixel_d + i), fill(x, 0.0))
        d_beta, product = norm_sums(work, L, c, middle)
        d_gamma = product * inverse
        net.gradient[L.gamma + c] += d_gamma
        net.gradient[L.beta + c] += d_beta
        factor = net.row[L.gamma + c] * inverse
        a, b, e = (
            fill(x, factor),
            fill(x, -factor * inverse * d_gamma / count),
            fill(x, -factor * d_beta / count),
        )
        bias = 0.0
        for g in range(work.groups):
            z, d = L.z + g * L.z_group + c * L.z_channel, L.d + g * L.d_group + c * L.d_channel
            mask, s = lanes_of(images, g), fill(x, 0.0)
            for i in range(L.pixels):
                at, value = d + entry(tab, L.pixel_d + i), load(x, z + entry(tab, L.pixel_z + i))
                v = fma(load(x, at), a, fma(value - middle, b, e))
                if L.norm == NORM_AFTER:
                    v = activation_gradient(x, net.activation, value, v)
                v = keep(mask, v)
                store(x, at, v)
                s = s + v
            bias += total(s)
        net.gradient[L.bias + c] += bias


# Backward


@inline
def hand_back(work: Any, net: Any, L: Any, g: Any, d: int, y: int, chosen: int, kept: int) -> None:
    """Pass a vector of the output's gradient through dropout, activation and pooling into the layer's d."""
    x = work.x
    dropped = net.dropping and L.drops
    if dropped:
        g = keep(work.masks[u64(kept)], g * fill(x, net.dropout_factor))
    if L.norm != NORM_AFTER:
        value = load(x, y)
        if dropped:
            value = value * fill(x, 1.0 / net.dropout_factor)
        g = activation_gradient(x, net.activation, value, g)
    if L.pool:
        store(x, d, keep(work.masks[u64(chosen)], g))
        store(x, d + LANES, keep(work.masks[u64(chosen + 1)], g))
        store(x, d + L.d_row, keep(work.masks[u64(chosen + 2)], g))
        store(x, d + L.d_row + LANES, keep(work.masks[u64(chosen + 3)], g))
    else:
        store(x, d, g)


def _make_backward(count: int) -> Any:
    part, lanes = part_of(count)
    tile = make_tile(part, lanes)
    offsets, zeros, multiply, spill = tile.offsets, tile.zeros, tile.multiply, tile.spill

    @jit
    def backward(work: Any, net: Any, L: Any, before: Any, K: Any) -> None:
        """The input's gradient for a class of pixels: sum over taps of d * weight; then the layer before."""
        x, tab, row = work.x, work.offsets, net.row
        to, to_group = (before.slope, before.slope_group) if before.average else (before.d, before.d_group)
        for r in range(K.rounds):
            for q in range(0, L.inputs, CHANNELS):
                weights = channels(L.weight, q, L.inputs, L.kernel)
                for i in range(0, K.tiled, count):
                    first, stop = entry(tab, K.tile_first + i // count), entry(tab, K.tile_stop + i // count)
                    for p in range(0, count, part):
                        for lane in range(0, LANES, lanes):
                            bases = offsets(tab, K.tile_d + i + p, L.d + r * L.d_group + lane)
                            acc = zeros(x)
                            for start in range(0, K.runs * K.run, K.run):
                                for t in range(start + first, start + stop):
                                    barrier()
                                    acc = multiply(
                                        acc,
                                        x,
                                        bases,
                                        entry(tab, K.tap_d + t),
                                        row,
                                        weights,
                                        entry(tab, K.tap_weight + t),
                                    )
                            spill(acc, work.scratch, p * LANES + lane, count * LANES)
                    for c in range(CHANNELS):
                        channel = min(q + c, L.inputs - 1)
                        d = to + r * to_group + entry(tab, L.to_d + channel)
                        y = L.x + r * L.x_group + entry(tab, L.to_x + channel)
                        chosen = before.chosen + r * before.chosen_group + entry(tab, L.to_chosen + channel)
                        kept = before.kept + r * before.kept_group + entry(tab, L.to_kept + channel)
                        for p in range(count):
                            g, k = load(work.scratch, (c * count + p) * LANES), i + p
                            if before.average:
                                store(x, d + entry(tab, K.tile_to + k), g)
                                continue
                            targets = (d + entry(tab, K.tile_to + k), y + entry(tab, K.tile_x + k))
                            bits = (
                                chosen + entry(tab, K.tile_chosen + k),
                                kept + entry(tab, K.tile_kept + k),
                            )
                            hand_back(work, net, before, g, targets[0], targets[1], bits[0], bits[1])

    return backward


_backward1, _backward2, _backward4, _backward6 = (_make_backward(count) for count in (1, 2, 4, 6))


@jit
def backward_linear(work: Any, net: Any, L: Any, before: Any) -> None:
    for j in range(L.first_class, L.first_class + L.classes):
        K = work.classes[j]
        if K.tile == 6:
            _backward6(work, net, L, before, K)
        elif K.tile == 4:
            _backward4(work, net, L, before, K)
        elif K.tile == 2:
            _backward2(work, net, L, before, K)
        else:
            _backward1(work, net, L, before, K)


@jit
def average_backward(work: Any, net: Any, L: Any) -> None:
    x, tab, window = work.x, work.offsets, POOL_TILE if L.pool else 1
    share = fill(x, 1.0 * window / L.pooled)
    for g in range(work.groups):
        for c in range(L.units):
            slope = load(x, L.slope + g * L.slope_group + c * LANES) * share
            d, y = L.d + g * L.d_group + c * L.d_channel, L.y + g * L.y_group + c * L.y_channel
            chosen, kept = (
                L.chosen + g * L.chosen_group + c * L.chosen_channel,
                L.kept + g * L.kept_group + c * L.kept_channel,
            )
            for i in range(0, L.pooled, window):
                targets = (d + entry(tab, L.pixel_d + i), y + entry(tab, L.pixel_y + i))
                bits = (chosen + entry(tab, L.pixel_chosen + i), kept + entry(tab, L.pixel_kept + i))
                hand_back(work, net, L, slope, targets[0], targets[1], bits[0], bits[1])


# Pixels to sum before the next part of the lanes, so that the first-level cache holds them; all pixels if
# there is only one part.
SHARED_PIXELS = 64 if registers().lanes < LANES else 1 << 30


def _make_weight_gradient(count: int) -> Any:
    lanes = registers().lanes
    tile, totals = make_tile(count, lanes), make_totals(count * CHANNELS)
    offsets, zeros, outer, spill, taken = tile.offsets, tile.zeros, tile.outer, tile.spill, tile.taken

    @jit
    def weight_gradient(work: Any, net: Any, L: Any, q: int, t: int, first: int, stop: int) -> None:
        """The gradient of `count` taps of four channels: a sum over some groups' pixels, in registers."""
        x, tab = work.x, work.offsets
        taps, seen, end = offsets(tab, L.tap_x + t, 0), L.summed, 0
        for p in range(count):
            seen, end = min(seen, entry(tab, L.tap_first + t + p)), max(end, entry(tab, L.tap_stop + t + p))
        for lane in range(0, LANES, lanes):
            spill(zeros(x), work.scratch, lane, count * LANES)
        together = max(1, SHARED_PIXELS // L.summed)
        for group in range(first, stop, together):
            for begin in range(seen, end, SHARED_PIXELS):
                for lane in range(0, LANES, lanes):
                    gradients, acc = (
                        channels(L.d + lane, q, L.units, L.d_channel),
                        taken(work.scratch, lane, count * LANES),
                    )
                    for g in range(group, min(group + together, stop)):
                        d, inputs = g * L.d_group, g * L.x_group + L.x + lane
                        for i in range(begin, min(begin + SHARED_PIXELS, end)):
                            barrier()
                            acc = outer(
                                acc,
                                x,
                                gradients,
                                d + entry(tab, L.sum_d + i),
                                inputs + entry(tab, L.sum_x + i),
                                taps,
                            )
                    spill(acc, work.scratch, lane, count * LANES)
        totals(work.scratch)
        for c in range(min(CHANNELS, L.units - q)):
            for p in range(min(count, L.taps - t)):
                net.gradient[u64(L.weight + (q + c) * L.taps + t + p)] += work.scratch[u64(c * count + p)]

    return weight_gradient


TAPS = min(GRADIENT_TAPS, inputs_of_tile())
_weight_gradient, _weight_gradient2 = _make_weight_gradient(TAPS), _make_weight_gradient(2)


@jit
def weight_gradients(work: Any, net: Any, L: Any) -> None:
    for first in range(0, L.sum_rounds, L.block):
        stop = min(first + L.block, L.sum_rounds)
        for q in range(0, L.units, CHANNELS):
            t = 0
            while t + 2 < L.taps:
                _weight_gradient(work, net, L, q, t, first, stop)
                t += TAPS
            if t < L.taps:
                _weight_gradient2(work, net, L, q, t, first, stop)


@jit
def bias_gradients(work: Any, net: Any, L: Any) -> None:
    x, tab = work.x, work.offsets
    for q in range(0, L.units, CHANNELS):
        d0, d1, d2, d3 = channels(L.d, q, L.units, L.d_channel)
        s0 = s1 = s2 = s3 = fill(x, 0.0)
        for g in range(L.sum_rounds):
            for i in range(L.summed):
                at = g * L.d_group + entry(tab, L.sum_d + i)
                s0, s1, s2, s3 = (
                    s0 + load(x, d0 + at),
                    s1 + load(x, d1 + at),
                    s2 + load(x, d2 + at),
                    s3 + load(x, d3 + at),
                )
        sums = (total(s0), total(s1), total(s2), total(s3))
        for c in range(min(CHANNELS, L.units - q)):
            net.gradient[L.bias + q + c] += sums[c]


# Input


@inline
def scaled(like: Any, net: Any, v: Any) -> Any:
    """Scale a pixel from 0 .. 1 to the network's range."""
    low = net.pixel_min
    return v * fill(like, 1.0 - low) + fill(like, low)


@jit
def load_images(work: Any, net: Any, L: Any, pictures: Any, first: int) -> None:
    x, tab, count = work.x, work.offsets, L.inputs * L.size * L.size
    for g in range(work.groups):
        for e in range(count):
            v = pixels(x, pictures.images, pictures.starts, first + g * LANES, e) / fill(x, 255.0)
            store(x, L.x + g * L.x_group + entry(tab, L.input_at + e), scaled(x, net, v))


@jit
def warp(work: Any, L: Any, pictures: Any, c: int, first: int, to: int) -> Any:
    """Warp (bilinear, black outside) and brighten a channel of a group's images at `to`; return its mean."""
    x, tab, n, p, size = work.x, work.offsets, pictures.length, pictures.distortions, L.size
    a, b, shift_x = load(p, first), load(p, n + first), load(p, 2 * n + first)
    d, e, shift_y = load(p, 3 * n + first), load(p, 4 * n + first), load(p, 5 * n + first)
    brightness, scale, half = load(p, 6 * n + first), fill(x, size / 2.0), fill(x, 0.5)
    one, sums = fill(x, 1.0), fill(x, 0.0)
    for i in range(size):
        v = fill(x, (2.0 * i + 1.0) / size - 1.0)
        for j in range(size):
            u = fill(x, (2.0 * j + 1.0) / size - 1.0)
            column = (fma(a, u, fma(b, v, shift_x)) + one) * scale - half
            row = (fma(d, u, fma(e, v, shift_y)) + one) * scale - half
            left, top = floor(column), floor(row)
            right_share, bottom_share = column - left, row - top
            upper = sample(pictures.images, c * size * size, pictures.starts, first, size, top, left) * (
                one - right_share
            )
            upper = fma(
                sample(pictures.images, c * size * size, pictures.starts, first, size, top, left + one),
                right_share,
                upper,
            )
            lower = sample(
                pictures.images, c * size * size, pictures.starts, first, size, top + one, left
            ) * (one - right_share)
            lower = fma(
                sample(pictures.images, c * size * size, pictures.starts, first, size, top + one, left + one),
                right_share,
                lower,
            )
            value = fma(lower, bottom_share, upper * (one - bottom_share)) / fill(x, 255.0) + brightness
            sums = sums + value
            store(x, to + entry(tab, L.input_at + (c * size + i) * size + j), value)
    return sums / fill(x, 1.0 * size * size)


@inline
def contrasted(v: Any, mean: Any, contrast: Any, zero: Any, one: Any) -> Any:
    return minimum(maximum(fma(v - mean, contrast, mean), zero), one)


@inline
def rising(x: Any, distance: Any, value: Any, chroma: Any) -> Any:
    """A colour channel, from its distance on the colour wheel (in sixths of a turn) to where it is dark."""
    six, zero, one = fill(x, 6.0), fill(x, 0.0), fill(x, 1.0)
    k = distance - six * floor(distance / six)
    return value - chroma * minimum(maximum(minimum(k, fill(x, 4.0) - k), zero), one)


@inline
def recolour(x: Any, red: Any, green: Any, blue: Any, turn: Any, saturation: Any) -> Any:
    """Turn the hue and scale the saturation, as `batches._recolour_hsv` does."""
    zero, one, two = fill(x, 0.0), fill(x, 1.0), fill(x, 2.0)
    value = maximum(maximum(red, green), blue)
    chroma = value - minimum(minimum(red, green), blue)
    safe = choose(greater(chroma, zero), chroma, one)
    sextant = choose(equal(value, green), (blue - red) / safe + two, (red - green) / safe + fill(x, 4.0))
    sextant = choose(equal(value, red), (green - blue) / safe, sextant) + fill(x, 6.0) * turn
    chroma = minimum(chroma * saturation, value)
    r = rising(x, sextant + fill(x, 5.0), value, chroma)
    g = rising(x, sextant + fill(x, 3.0), value, chroma)
    return r, g, rising(x, sextant + one, value, chroma)


@jit
def colour(work: Any, L: Any, pictures: Any, first: int, to: int, means: Any) -> None:
    """Change contrast about each channel's mean, and, of colour images, hue and saturation."""
    x, tab, n, p, area = work.x, work.offsets, pictures.length, pictures.distortions, L.size * L.size
    contrast, turn, saturation = load(p, 7 * n + first), load(p, 8 * n + first), load(p, 9 * n + first)
    zero, one = fill(x, 0.0), fill(x, 1.0)
    for i in range(area):
        r = to + entry(tab, L.input_at + i)
        red = contrasted(load(x, r), means[0], contrast, zero, one)
        if L.inputs == 3 and not pictures.gray:
            g, b = to + entry(tab, L.input_at + area + i), to + entry(tab, L.input_at + 2 * area + i)
            green = contrasted(load(x, g), means[1], contrast, zero, one)
            blue = contrasted(load(x, b), means[2], contrast, zero, one)
            red, green, blue = recolour(x, red, green, blue, turn, saturation)
            store(x, g, green)
            store(x, b, blue)
        store(x, r, red)


@inline
def noisy(work: Any, net: Any, L: Any, pictures: Any, deviation: Any, halves: Any, to: int, e: int) -> None:
    """Add noise to pixel e of a group's images; all channels of a gray set start from the first one."""
    x, tab, area = work.x, work.offsets, L.size * L.size
    source = e % area if pictures.gray else e
    v = fma(lookup(pictures.quantiles, halves), deviation, load(x, to + entry(tab, L.input_at + source)))
    v = minimum(maximum(v, fill(x, 0.0)), fill(x, 1.0))
    store(x, to + entry(tab, L.input_at + e), scaled(x, net, v))


@jit
def add_noise(work: Any, net: Any, L: Any, pictures: Any, first: int, to: int) -> None:
    count = L.inputs * L.size * L.size
    deviation = load(pictures.distortions, 10 * pictures.length + first)
    # from the last channel on, as a gray set's first one is read by all
    for block in range((count - 1) // HALVES, -1, -1):
        drawn = words(pictures.indices, first, net.epoch, net.number, NOISE_BLOCK + block, net.key)
        for j in range(3, -1, -1):
            e = block * HALVES + 2 * j
            if e + 1 < count:
                noisy(work, net, L, pictures, deviation, high_half(drawn[j]), to, e + 1)
            if e < count:
                noisy(work, net, L, pictures, deviation, low_half(drawn[j]), to, e)


@jit
def load_augmented(work: Any, net: Any, L: Any, pictures: Any, first: int) -> None:
    """Load images augmented as by `batches.augment`."""
    for g in range(work.groups):
        start, to = first + g * LANES, L.x + g * L.x_group
        mean = warp(work, L, pictures, 0, start, to)
        means = (mean, mean, mean)
        if L.inputs == 3 and not pictures.gray:
            means = (mean, warp(work, L, pictures, 1, start, to), warp(work, L, pictures, 2, start, to))
        colour(work, L, pictures, start, to, means)
        add_noise(work, net, L, pictures, start, to)


@jit
def draw_dropout(work: Any, net: Any, L: Any, pictures: Any, first: int) -> None:
    """Draw the units to keep, as `batches.dropout_masks` does."""
    for g in range(work.groups):
        kept = L.kept + g * L.kept_group
        for block in range(L.kept_group // HALVES):
            drawn = words(
                pictures.indices,
                first + g * LANES,
                net.epoch,
                net.number,
                DROPOUT_BLOCK + L.kept_block + block,
                net.key,
            )
            for j in range(4):
                at = kept + block * HALVES + 2 * j
                work.masks[u64(at)] = at_least(low_half(drawn[j]), net.dropout_threshold)
                work.masks[u64(at + 1)] = at_least(high_half(drawn[j]), net.dropout_threshold)


# A step


@jit
def forward(work: Any, net: Any, pictures: Any, first: int, images: int) -> None:
    """From the images at `first` to the logits; `images` of the groups' lanes are in use."""
    layers = work.layers
    if net.training and pictures.augmented:
        load_augmented(work, net, layers[0], pictures, first)
    else:
        load_images(work, net, layers[0], pictures, first)
    for i in range(len(layers)):
        L = layers[i]
        if net.dropping and L.drops:
            draw_dropout(work, net, L, pictures, first)
        forward_linear(work, net, L)
        if L.norm:
            norm_forward(work, net, L, images)
        if L.average:
            average_forward(work, L, layers[i + 1])


@jit
def cross_entropy(work: Any, L: Any, pictures: Any, first: int, images: int, batch: int) -> float:
    """Write the gradient of the mean cross-entropy to the output layer's d; return the sum over images."""
    x, scratch, loss = work.x, work.scratch, 0.0
    for g in range(work.groups):
        y, d = L.y + g * L.y_group, L.d + g * L.d_group
        largest, s = load(x, y), fill(x, 0.0)
        for k in range(1, L.units):
            largest = maximum(load(x, y + k * L.y_channel), largest)
        for k in range(L.units):
            e = exp(load(x, y + k * L.y_channel) - largest)
            s = s + e
            store(x, d + k * L.d_channel, e)
        mask, share = lanes_of(images, g), fill(x, 1.0) / (s * fill(x, 1.0 * batch))
        for k in range(L.units):
            store(x, d + k * L.d_channel, keep(mask, load(x, d + k * L.d_channel) * share))
        store(scratch, 0, s)
        store(scratch, LANES, largest)
        for j in range(min(LANES, images - g * LANES)):
            label = pictures.labels[first + g * LANES + j]
            loss += math.log(scratch[j]) + scratch[LANES + j] - x[y + label * L.y_channel + j]
            x[d + label * L.d_channel + j] -= 1.0 / batch
    return loss


@jit
def gradients(work: Any, net: Any, pictures: Any, first: int, batch: int) -> float:
    """Add the gradient of a batch's mean cross-entropy to `net.gradient`; return that mean."""
    layers, loss = work.layers, 0.0
    for start in range(0, batch, work.groups * LANES):
        images = min(batch - start, work.groups * LANES)
        forward(work, net, pictures, first + start, images)
        loss += cross_entropy(work, layers[len(layers) - 1], pictures, first + start, images, batch)
        for i in range(len(layers) - 1, -1, -1):
            L = layers[i]
            if L.average:
                average_backward(work, net, L)
            if L.norm:
                norm_backward(work, net, L, images)
            else:
                bias_gradients(work, net, L)
            weight_gradients(work, net, L)
            if i:
                backward_linear(work, net, L, layers[i - 1])
    return loss / batch


@jit
def change_weights(
    row: Any, gradient: Any, first: Any, second: Any, size: int, rate: Any, coefficients: Any
) -> None:
    """Take an optimizer's step: `rule` for each of `size` weights, in place."""
    for i in range(size):
        row[i], first[i], second[i] = rule(row[i], gradient[i], first[i], second[i], rate, coefficients)


@jit
def train(
    work: Any,
    net: Any,
    pictures: Any,
    first: Any,
    second: Any,
    rates: Any,
    coefficients: Any,
    decay: Any,
    batch: int,
) -> float:
    """Take steps of one model.

    Args:
        work, net, pictures: see their classes.
        first, second: [P], the optimizer's moments.
        rates: [steps], from `update.step_size`.
        coefficients: for `update.rule`.
        decay: 2 * l2, for the kernels.
        batch: images per step.

    Returns:
        The sum of the steps' mean cross-entropies.
    """
    work, net, pictures = with_pointers(work, net, pictures)
    losses, stride = 0.0, pictures.length // len(rates)
    for s in range(len(rates)):
        for i in range(net.size):
            net.gradient[i] = 0.0
        losses += gradients(work, net, pictures, s * stride, batch)
        if decay > 0.0:
            for i in range(len(work.layers)):
                L = work.layers[i]
                for k in range(L.weight, L.weight + L.units * L.taps):
                    net.gradient[k] += decay * net.row[k]
        change_weights(net.row, net.gradient, first, second, net.size, rates[s], coefficients)
    return losses


@jit
def evaluate(work: Any, net: Any, pictures: Any, correct: Any, losses: Any) -> None:
    """Find whether each of len(correct) images is classified correctly, and its cross-entropy."""
    work, net, pictures = with_pointers(work, net, pictures)
    L, x = work.layers[len(work.layers) - 1], work.x
    for start in range(0, len(correct), work.groups * LANES):
        images = min(len(correct) - start, work.groups * LANES)
        forward(work, net, pictures, start, images)
        for i in range(images):
            y, label = L.y + i // LANES * L.y_group + i % LANES, pictures.labels[start + i]
            best, s = 0, 0.0
            for k in range(1, L.units):
                if x[y + k * L.y_channel] > x[y + best * L.y_channel]:
                    best = k
            largest = np.float64(x[y + best * L.y_channel])
            for k in range(L.units):
                s += math.exp(x[y + k * L.y_channel] - largest)
            correct[start + i] = best == label
            losses[start + i] = math.log(s) + largest - x[y + label * L.y_channel]


# The processor's peak rate


_part, _lanes = part_of(max(TILES))
TILE_SUMS = _part * _lanes * CHANNELS  # in the largest part of a tile
_peak = make_tile(_part, _lanes)
_peak_offsets, _peak_zeros, _peak_multiply, _peak_spill = (
    _peak.offsets,
    _peak.zeros,
    _peak.multiply,
    _peak.spill,
)


@jit
def multiply_add(x: Any, rounds: int) -> None:
    """Do TILE_SUMS multiply-adds per round on x[:16] and x[0] in the first-level cache.

    The sums go to x[SCRATCH].
    """
    bases = _peak_offsets(np.zeros(_part, np.int32), 0, 0)
    weights, acc = channels(0, 0, CHANNELS, 0), _peak_zeros(x)
    for _ in range(rounds):
        barrier()
        acc = _peak_multiply(acc, x, bases, 0, x, weights, 0)
    _peak_spill(acc, x, 0, _part * LANES)
