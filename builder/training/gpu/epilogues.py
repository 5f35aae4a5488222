"""The end of a convolution in one kernel: batch-norm, 2 x 2 max-pool, activation, dropout; and backward.

As every activation is monotone, pooling first gives the same maxima. Batch-norm's statistics come from
moments of parts of the pixels (mean, and sum of squared distances from it), which the product may already
have computed.

Axes: M slots, B images, C channels, S height = width, Q the same after pooling, T parts of a sum, P weights.
Maps are [M, B, C, S, S]; those that a product reads may have a border, the others are contiguous in their
last three axes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from builder.training.gpu.pieces import (
    EPSILON,
    Dropout,
    Slots,
    activate,
    batch_norm,
    derivative,
    drop,
    dropout_bits,
    image_row_column,
    kernel,
    update_running,
    winner,
)

BLOCK = 1024  # numbers that a program processes
MOMENT_PIXELS = 4096  # pixels per part of `moments`
MIN_PARTS = 256


# Batch-norm's statistics


@kernel(aligned="y y_model y_image")
def moments_kernel(y, moments, active, y_model, y_image, num_pixels, channels, area, BLOCK: tl.constexpr):
    """Mean, and sum of squared distances from it, of BLOCK pixels of a channel."""
    m = tl.program_id(2).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    channel = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < num_pixels
    x = tl.load(
        y + m * y_model + (pixel // area).to(tl.int64) * y_image + channel * area + pixel % area,
        mask=valid,
        other=0.0,
    )
    mean = tl.sum(x) / tl.minimum(BLOCK, num_pixels - tl.program_id(0) * BLOCK)
    distance = tl.where(valid, x - mean, 0.0)
    part = moments + ((m * channels + channel) * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(part, mean)
    tl.store(part + 1, tl.sum(distance * distance))


@kernel()
def statistics_kernel(
    moments,
    mean,
    deviation,
    running,
    active,
    running_model,
    num_pixels,
    channels,
    parts,
    PIXELS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Moments of a channel's parts -> its mean and 1 / standard deviation; updates running statistics."""
    m = tl.program_id(1).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    channel = tl.program_id(0)
    part = tl.arange(0, PARTS)
    count = tl.maximum(tl.minimum(PIXELS, num_pixels - part * PIXELS), 0)
    source = moments + ((m * channels + channel) * parts + part) * 2
    means = tl.load(source, mask=part < parts, other=0.0)
    squares = tl.load(source + 1, mask=part < parts, other=0.0)
    average = tl.sum(means * count) / num_pixels
    distance = tl.where(part < parts, means - average, 0.0)
    square = tl.sum(squares + distance * distance * count)
    tl.store(mean + m * channels + channel, average)
    tl.store(deviation + m * channels + channel, 1.0 / tl.sqrt(square / num_pixels + EPSILON))
    update_running(running + m * running_model + channel, channels, average, square / (num_pixels - 1), True)


@kernel(aligned="y top y_model y_image top_model top_image out_model out_image")
def conv_epilogue_forward_kernel(
    y, top, out, mean, deviation, weight, kept, active, activations, thresholds, keeps,
    y_model, y_image, top_model, top_image, out_model, out_image, out_channel, out_row, weight_model,
    images, channels, groups,
    SIZE: tl.constexpr, OUT_SIZE: tl.constexpr, NORM: tl.constexpr, POOL: tl.constexpr, DROP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """y -> out; `top` gets the windows' winners before batch-norm, where the backward pass starts."""
    m = tl.program_id(2).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    channel = tl.program_id(1)
    AREA: tl.constexpr = OUT_SIZE * OUT_SIZE
    STEP: tl.constexpr = 2 if POOL else 1
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < images * AREA
    image, row, column = image_row_column(pixel, OUT_SIZE)
    inner = row * OUT_SIZE + column
    corner = (
        y + m * y_model + (image * y_image + channel * (SIZE * SIZE) + row * (STEP * SIZE) + column * STEP)
    )
    gain = weight + m * weight_model + channel
    best_y = tl.load(corner, mask=valid, other=0.0)
    best_z = batch_norm(best_y, m * channels + channel, mean, deviation, gain, gain + channels, NORM)
    if POOL:
        best = tl.zeros((BLOCK,), tl.int32)
        for number in tl.static_range(1, 4):
            next_y = tl.load(corner + number // 2 * SIZE + number % 2, mask=valid, other=0.0)
            next_z = batch_norm(next_y, m * channels + channel, mean, deviation, gain, gain + channels, NORM)
            best_z, best_y, best = winner(next_z, next_y, best_z, best_y, best, number)
        tl.store(top + m * top_model + (image * top_image + channel * AREA + inner), best_y, mask=valid)
    x = activate(best_z, tl.load(activations + m))
    if DROP:
        bits = kept + (m * images + image) * groups
        x = drop(x, bits, channel * AREA + inner, valid, tl.load(thresholds + m), tl.load(keeps + m))
    target = out + m * out_model + (image * out_image + channel * out_channel + row * out_row + column)
    tl.store(target, x, mask=valid)


@kernel(aligned="dout top dout_model dout_image dz_model dz_image top_model top_image")
def conv_epilogue_backward_kernel(
    dout, dz, top, sums, mean, deviation, weight, kept, active, activations, thresholds, keeps,
    dout_model, dout_image, dz_model, dz_image, dz_channel, dz_row, top_model, top_image, weight_model,
    images, channels, groups,
    OUT_SIZE: tl.constexpr, NORM: tl.constexpr, AVERAGE: tl.constexpr, DROP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Backward through dropout and activation at the winners; with NORM also sums for batch-norm's gradient.

    They are of dz, and of dz times the normalized value. With AVERAGE `dout` is the gradient of each
    channel's average, [M, B, C].
    """
    m = tl.program_id(2).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    channel = tl.program_id(1)
    AREA: tl.constexpr = OUT_SIZE * OUT_SIZE
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < images * AREA
    image, row, column = image_row_column(pixel, OUT_SIZE)
    inner = channel * AREA + row * OUT_SIZE + column
    y = tl.load(top + m * top_model + (image * top_image + inner), mask=valid, other=0.0)
    gain = weight + m * weight_model + channel
    z = batch_norm(y, m * channels + channel, mean, deviation, gain, gain + channels, NORM)
    if AVERAGE:
        gradient = (
            tl.load(dout + m * dout_model + (image * dout_image + channel), mask=valid, other=0.0) / AREA
        )
    else:
        gradient = tl.load(dout + m * dout_model + (image * dout_image + inner), mask=valid, other=0.0)
    if DROP:
        bits = kept + (m * images + image) * groups
        gradient = drop(gradient, bits, inner, valid, tl.load(thresholds + m), tl.load(keeps + m))
    gradient = gradient * derivative(z, tl.load(activations + m))
    target = dz + m * dz_model + (image * dz_image + channel * dz_channel + row * dz_row + column)
    tl.store(target, gradient, mask=valid)
    if NORM:
        at = m * channels + channel
        normal = tl.where(valid, (y - tl.load(mean + at)) * tl.load(deviation + at), 0.0)
        gradient = tl.where(valid, gradient, 0.0)
        part = sums + (at * tl.num_programs(0) + tl.program_id(0)) * 2
        tl.store(part, tl.sum(gradient))
        tl.store(part + 1, tl.sum(gradient * normal))


@kernel()
def norm_gradient_kernel(
    sums, totals, gradient, active, gradient_model, channels, parts, PARTS: tl.constexpr
):
    """The sums of a channel's parts -> totals [M, C, 2] and the gradients of batch-norm's weight and bias."""
    m = tl.program_id(1).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    channel = tl.program_id(0)
    part = tl.arange(0, PARTS)
    source = sums + ((m * channels + channel) * parts + part) * 2
    bias = tl.sum(tl.load(source, mask=part < parts, other=0.0))
    weight = tl.sum(tl.load(source + 1, mask=part < parts, other=0.0))
    tl.store(totals + (m * channels + channel) * 2, bias)
    tl.store(totals + (m * channels + channel) * 2 + 1, weight)
    target = gradient + m * gradient_model + channel
    tl.store(target, weight)
    tl.store(target + channels, bias)


@kernel(aligned="dz y dz_model dz_image y_model y_image dy_model dy_image")
def scatter_to_windows_kernel(
    dz, y, dy, mean, deviation, weight, totals, active,
    dz_model, dz_image, y_model, y_image, dy_model, dy_image, dy_channel, dy_row, weight_model, images,
    channels,
    SIZE: tl.constexpr, OUT_SIZE: tl.constexpr, NORM: tl.constexpr, POOL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Backward through max-pool, to the first winner of each window, and batch-norm: dz -> dy."""
    m = tl.program_id(2).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    channel = tl.program_id(1)
    STEP: tl.constexpr = 2 if POOL else 1
    SIDE: tl.constexpr = (SIZE + STEP - 1) // STEP  # windows, including an incomplete one at an odd end
    window = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = window < images * (SIDE * SIDE)
    image, row, column = image_row_column(window, SIDE)
    whole = valid & (row < OUT_SIZE) & (column < OUT_SIZE)
    source = image * dz_image + channel * (OUT_SIZE * OUT_SIZE) + row * OUT_SIZE + column
    gradient = tl.load(dz + m * dz_model + source, mask=whole, other=0.0)
    at, gain = m * channels + channel, weight + m * weight_model + channel
    corner = (
        y + m * y_model + (image * y_image + channel * (SIZE * SIZE) + row * (STEP * SIZE) + column * STEP)
    )
    target = (
        dy + m * dy_model + (image * dy_image + channel * dy_channel + row * STEP * dy_row + column * STEP)
    )
    best = tl.zeros((BLOCK,), tl.int32)
    if POOL:
        best_y = tl.load(corner, mask=whole, other=0.0)
        best_z = batch_norm(best_y, at, mean, deviation, gain, gain + channels, NORM)
        for number in tl.static_range(1, 4):
            next_y = tl.load(corner + number // 2 * SIZE + number % 2, mask=whole, other=0.0)
            next_z = batch_norm(next_y, at, mean, deviation, gain, gain + channels, NORM)
            best_z, best_y, best = winner(next_z, next_y, best_z, best_y, best, number)
    for number in tl.static_range(STEP * STEP):
        down, right = number // STEP, number % STEP
        exists = valid & (row * STEP + down < SIZE) & (column * STEP + right < SIZE)
        step = tl.where(best == number, gradient, 0.0)
        if NORM:
            here = tl.load(corner + down * SIZE + right, mask=exists, other=0.0)
            scale, pixels = tl.load(deviation + at), images * (SIZE * SIZE)
            normal = (here - tl.load(mean + at)) * scale
            step = step - (tl.load(totals + at * 2) + normal * tl.load(totals + at * 2 + 1)) / pixels
            step = step * scale * tl.load(gain)
        tl.store(target + down * dy_row + right, step, mask=exists)


# Launches


def moments(y: torch.Tensor, out: torch.Tensor, active: torch.Tensor) -> None:
    """Moments of y [M, B, C, S, S] in parts of MOMENT_PIXELS pixels: out [M, C, T, 2]."""
    models, images, channels, size, _ = y.shape
    moments_kernel[(out.shape[2], channels, models)](
        y,
        out,
        active,
        y.stride(0),
        y.stride(1),
        images * size * size,
        channels,
        size * size,
        BLOCK=MOMENT_PIXELS,
    )


def statistics(
    parts: torch.Tensor,
    pixels: int,
    of_part: int,
    mean: torch.Tensor,
    deviation: torch.Tensor,
    running: torch.Tensor,
    active: torch.Tensor,
) -> None:
    """Moments [M, C, T, 2] of `pixels`, `of_part` per part -> mean, 1 / standard deviation: [M, C] each.

    `running` [M, 2 C..], a part of the rows, has the running means and variances, which are updated.
    """
    models, channels, count, _ = parts.shape
    statistics_kernel[(channels, models)](
        parts, mean, deviation, running, active, running.stride(0), pixels, channels, count,
        PIXELS=of_part, PARTS=_parts(count),
    )  # fmt: skip


def _parts(count: int) -> int:
    """Parts that one program reads at once: at least one per thread, so that small layers share a kernel."""
    return max(MIN_PARTS, triton.next_power_of_2(count))


class Norm(NamedTuple):
    """A layer's batch-norm."""

    mean: torch.Tensor  # [M, C]
    deviation: torch.Tensor  # [M, C]: 1 / standard deviation
    weight: torch.Tensor  # [M, 2 C..], a part of the rows: weights, then biases


def conv_epilogue_forward(
    y: torch.Tensor,
    top: torch.Tensor,
    out: torch.Tensor,
    norm: Norm | None,
    dropout: Dropout | None,
    slots: Slots,
    *,
    pool: bool,
) -> None:
    """y [M, B, C, S, S] -> out [M, B, C, Q, Q]; with `pool`, `top` (as out) gets each winner in y."""
    models, images, channels, size, _ = y.shape
    out_size = out.shape[-1]
    mean, deviation, weight = norm or (y, y, y)  # not read
    kept, groups = dropout_bits(dropout, slots)
    conv_epilogue_forward_kernel[(triton.cdiv(images * out_size**2, BLOCK), channels, models)](
        y, top, out, mean, deviation, weight, kept, slots.active, slots.activation, slots.threshold,
        slots.keep,
        *y.stride()[:2], *top.stride()[:2], *out.stride()[:4], weight.stride(0), images, channels, groups,
        SIZE=size, OUT_SIZE=out_size, NORM=norm is not None, POOL=pool, DROP=dropout is not None, BLOCK=BLOCK,
    )  # fmt: skip


def conv_epilogue_backward(
    dout: torch.Tensor, top: torch.Tensor, dz: torch.Tensor, sums: torch.Tensor, norm: Norm | None,
    dropout: Dropout | None, slots: Slots,
    *, average: bool,
) -> None:  # fmt: skip
    """The gradient before activation at the winners, dz [M, B, C, Q, Q]; with batch-norm also its `sums`.

    `dout` is as dz, or [M, B, C, 1, 1] if the network averages over the map. `sums`: [M, C, T, 2] for T
    `sum_parts`.
    """
    models, images, channels, out_size, _ = dz.shape
    mean, deviation, weight = norm or (top, top, top)  # not read
    kept, groups = dropout_bits(dropout, slots)
    conv_epilogue_backward_kernel[(sum_parts(dz), channels, models)](
        dout, dz, top, sums, mean, deviation, weight, kept, slots.active, slots.activation, slots.threshold,
        slots.keep,
        *dout.stride()[:2], *dz.stride()[:4], *top.stride()[:2], weight.stride(0), images, channels, groups,
        OUT_SIZE=out_size, NORM=norm is not None, AVERAGE=average, DROP=dropout is not None, BLOCK=BLOCK,
    )  # fmt: skip


def sum_parts(dz: torch.Tensor) -> int:
    """T of `conv_epilogue_backward`'s sums."""
    return triton.cdiv(dz.shape[1] * dz.shape[-1] ** 2, BLOCK)


def norm_gradient(
    sums: torch.Tensor, totals: torch.Tensor, gradient: torch.Tensor, active: torch.Tensor
) -> None:
    """Sums [M, C, T, 2] -> totals [M, C, 2], and batch-norm's part of the gradient, [M, 2 C..]."""
    models, channels, count, _ = sums.shape
    norm_gradient_kernel[(channels, models)](
        sums, totals, gradient, active, gradient.stride(0), channels, count, PARTS=_parts(count)
    )


def scatter_to_windows(
    dz: torch.Tensor,
    y: torch.Tensor,
    dy: torch.Tensor,
    totals: torch.Tensor,
    norm: Norm | None,
    active: torch.Tensor,
    *,
    pool: bool,
) -> None:
    """dz [M, B, C, Q, Q] -> dy [M, B, C, S, S]."""
    models, images, channels, size, _ = y.shape
    side = triton.cdiv(size, 2) if pool else size
    mean, deviation, weight = norm or (y, y, y)  # not read
    scatter_to_windows_kernel[(triton.cdiv(images * side**2, BLOCK), channels, models)](
        dz, y, dy, mean, deviation, weight, totals, active,
        *dz.stride()[:2], *y.stride()[:2], *dy.stride()[:4], weight.stride(0), images, channels,
        SIZE=size, OUT_SIZE=dz.shape[-1], NORM=norm is not None, POOL=pool, BLOCK=BLOCK,
    )  # fmt: skip
