"""A step's batch: from uint8 images on the device to what each model sees, augmented if its recipe is.

`builder.training.batches.augment` as one kernel, with one program per image; a test compares the two.

Axes: M slots, B images, C channels, S height = width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from builder.philox import LANES, Purpose
from builder.training import batches
from builder.training.gpu.pieces import Slots, kernel

_SHIFT = tl.constexpr(batches.SHIFT)
_ROTATION = tl.constexpr(batches.ROTATION)
_ZOOM = tl.constexpr(batches.ZOOM)
_SHEAR = tl.constexpr(batches.SHEAR)
_BRIGHTNESS = tl.constexpr(batches.BRIGHTNESS)
_CONTRAST_LOW, _CONTRAST_RANGE = (
    tl.constexpr(batches.CONTRAST[0]),
    tl.constexpr(batches.CONTRAST[1] - batches.CONTRAST[0]),
)
_HUE = tl.constexpr(batches.HUE)
_SATURATION_LOW, _SATURATION_RANGE = (
    tl.constexpr(batches.SATURATION[0]),
    tl.constexpr(batches.SATURATION[1] - batches.SATURATION[0]),
)
_NOISE = tl.constexpr(batches.NOISE)
_AUGMENT_PURPOSE, _NOISE_PURPOSE = (
    tl.constexpr(int(Purpose.AUGMENT) << 24),
    tl.constexpr(int(Purpose.NOISE) << 24),
)
_LANES = tl.constexpr(LANES)


@triton.jit
def _uniform(word, dtype):
    """A word -> the centre of its part of 0 .. 1."""
    return (word.to(dtype) + 0.5) * 2.3283064365386963e-10


@triton.jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _pixel(image, row, column, size, dtype):
    """Pixels of a channel in 0 .. 1; black outside."""
    inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    return tl.load(image + (row * size + column).to(tl.int32), mask=inside, other=0).to(dtype) / 255.0


@triton.jit
def _bilinear(image, x, y, size, dtype):
    """A channel at the positions x, y, interpolated."""
    left, top = tl.floor(x), tl.floor(y)
    right_part, low_part = x - left, y - top
    above = (
        _pixel(image, top, left, size, dtype) * (1.0 - right_part)
        + _pixel(image, top, left + 1.0, size, dtype) * right_part
    )
    below = (
        _pixel(image, top + 1.0, left, size, dtype) * (1.0 - right_part)
        + _pixel(image, top + 1.0, left + 1.0, size, dtype) * right_part
    )
    return above * (1.0 - low_part) + below * low_part


@triton.jit
def _contrast(x, brightness, contrast, valid, area):
    """Brightness, then contrast about the channel's mean."""
    x = x + (brightness * 2.0 - 1.0) * _BRIGHTNESS
    mean = tl.sum(tl.where(valid, x, 0.0)) / area
    return _clamp((x - mean) * (contrast * _CONTRAST_RANGE + _CONTRAST_LOW) + mean)


@triton.jit
def _colour(n: tl.constexpr, sextant, value, chroma):
    """A channel of the HSV model."""
    k = sextant + n
    k = k - 6.0 * tl.floor(k / 6.0)
    return value - chroma * _clamp(tl.minimum(k, 4.0 - k))


@triton.jit
def _turn(red, green, blue, hue, saturation):
    """Turn the hue and scale the saturation."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    safe = tl.where(chroma > 0, chroma, 1.0)
    sextant = tl.where(value == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0)
    sextant = tl.where(value == red, (green - blue) / safe, sextant) + 6.0 * ((hue * 2.0 - 1.0) * _HUE)
    chroma = tl.minimum(chroma * (saturation * _SATURATION_RANGE + _SATURATION_LOW), value)
    return (
        _colour(5, sextant, value, chroma),
        _colour(3, sextant, value, chroma),
        _colour(1, sextant, value, chroma),
    )


@triton.jit
def _noisy(x, pixel, key, index, epoch, number, strength, table):
    """Add noise to the pixels x and clip to 0 .. 1."""
    w0, w1, w2, w3 = tl.philox(key, index, epoch, number, pixel // _LANES + _NOISE_PURPOSE)
    lane = pixel % _LANES
    word = tl.where(lane < 4, tl.where(lane < 2, w0, w1), tl.where(lane < 6, w2, w3))
    bits = tl.where(lane % 2 == 0, word & 0xFFFF, word >> 16).to(tl.int32)
    return _clamp(x + tl.load(table + bits).to(x.dtype) * strength)


@triton.jit
def _warp_positions(pixel, key, index, epoch, number, size, dtype):
    """Where in the original the pixels of the shifted, rotated, zoomed and sheared image come from."""
    w0, w1, w2, w3 = tl.philox(key, index, epoch, number, _AUGMENT_PURPOSE)
    v0, _, _, _ = tl.philox(key, index, epoch, number, _AUGMENT_PURPOSE + 1)
    angle, zoom = (
        (_uniform(w2, dtype) * 2.0 - 1.0) * _ROTATION,
        1.0 + (_uniform(w3, dtype) * 2.0 - 1.0) * _ZOOM,
    )
    slant = angle + (_uniform(v0, dtype) * 2.0 - 1.0) * _SHEAR
    side = size.to(dtype)
    shift = 1.0 / side * (2.0 * _SHIFT)
    x, y = ((pixel % size) * 2 + 1).to(dtype) / side - 1.0, ((pixel // size) * 2 + 1).to(dtype) / side - 1.0
    to_x = tl.cos(angle) / zoom * x - tl.sin(slant) / zoom * y + (_uniform(w0, dtype) * 2.0 - 1.0) * shift
    to_y = tl.sin(angle) / zoom * x + tl.cos(slant) / zoom * y + (_uniform(w1, dtype) * 2.0 - 1.0) * shift
    return ((to_x + 1.0) * side - 1.0) * 0.5, ((to_y + 1.0) * side - 1.0) * 0.5


@kernel(aligned="x_model x_image")
def load_kernel(
    addresses, label_addresses, order_addresses, step, index, labels, x, table, augmented, active, keys,
    numbers, epochs,
    x_model, x_image, x_channel, x_row, images, size, low,
    CHANNELS: tl.constexpr, AREA: tl.constexpr,
):  # fmt: skip
    """One image of one model's batch, its index in the data set and its label."""
    b, m = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    dtype: tl.constexpr = x.dtype.element_ty
    order = tl.load(order_addresses + m).to(tl.pointer_type(tl.int64))
    index_in_set = tl.load(order + tl.load(step + m) * images + b).to(tl.int32)
    tl.store(index + m * images + b, index_in_set)
    tl.store(
        labels + m * images + b,
        tl.load(tl.load(label_addresses + m).to(tl.pointer_type(tl.int64)) + index_in_set),
    )
    area, pixel = size * size, tl.arange(0, AREA)
    valid = pixel < area
    image = tl.load(addresses + m).to(tl.pointer_type(tl.uint8)) + index_in_set.to(tl.int64) * CHANNELS * area
    target = x + m * x_model + b.to(tl.int64) * x_image + pixel // size * x_row + pixel % size
    if tl.load(augmented + m) == 0:
        for channel in tl.static_range(CHANNELS):
            plain = tl.load(image + channel * area + pixel, mask=valid, other=0).to(dtype) / 255.0
            tl.store(target + channel * x_channel, plain * (1.0 - low) + low, mask=valid)
    else:
        key, epoch, number = (
            tl.load(keys + m),
            tl.load(epochs + m).to(tl.int32),
            tl.load(numbers + m).to(tl.int32),
        )
        at_x, at_y = _warp_positions(pixel, key, index_in_set, epoch, number, size, dtype)
        _, v1, v2, v3 = tl.philox(key, index_in_set, epoch, number, _AUGMENT_PURPOSE + 1)
        t0, t1, _, _ = tl.philox(key, index_in_set, epoch, number, _AUGMENT_PURPOSE + 2)
        brightness, contrast, strength = (
            _uniform(v1, dtype),
            _uniform(v2, dtype),
            _uniform(t1, dtype) * _NOISE,
        )
        first = _contrast(_bilinear(image, at_x, at_y, size, dtype), brightness, contrast, valid, area)
        if CHANNELS == 3:
            second = _contrast(
                _bilinear(image + area, at_x, at_y, size, dtype), brightness, contrast, valid, area
            )
            third = _contrast(
                _bilinear(image + 2 * area, at_x, at_y, size, dtype), brightness, contrast, valid, area
            )
            # leaves gray as it is
            first, second, third = _turn(first, second, third, _uniform(v3, dtype), _uniform(t0, dtype))
            second = _noisy(second, pixel + area, key, index_in_set, epoch, number, strength, table)
            third = _noisy(third, pixel + 2 * area, key, index_in_set, epoch, number, strength, table)
            tl.store(target + x_channel, second * (1.0 - low) + low, mask=valid)
            tl.store(target + 2 * x_channel, third * (1.0 - low) + low, mask=valid)
        first = _noisy(first, pixel, key, index_in_set, epoch, number, strength, table)
        tl.store(target, first * (1.0 - low) + low, mask=valid)


def load(
    sources: torch.Tensor, step: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    augmented: torch.Tensor,
    slots: Slots, low: int,
) -> None:  # fmt: skip
    """Load the batches of all models.

    Args:
        sources: [3, M] int64: addresses of each model's images [N, C, S, S] uint8, labels [N] int64, and
            order [n B] int64, the indices of the images of n steps.
        step: [M] int64: which step of the order it is.
        batch: where the results go: images [M, B, C, S, S], labels [M, B] int64, indices [M, B] int32.
        augmented: [M].
        slots: the models.
        low: the value of black; white is 1.
    """
    x, labels, index = batch
    models, images, channels, size, _ = x.shape
    load_kernel[(images, models)](
        *sources, step, index, labels, x, batches.normal_table(x.device), augmented, slots.active, slots.key,
        slots.number, slots.epoch, *x.stride()[:4], images, size, low,
        CHANNELS=channels, AREA=triton.next_power_of_2(size**2),
    )  # fmt: skip
