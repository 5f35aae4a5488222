"""The end of a dense layer with batch-norm in one kernel: activation, batch-norm, dropout; and backward.

In training a program processes a whole batch.

Axes: M slots, B images, U units, P weights. Maps are [M, B, U].
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from builder.training.gpu.pieces import (
    EPSILON,
    Dropout,
    Slots,
    activate,
    derivative,
    drop,
    dropout_bits,
    kernel,
    update_running,
)

TILE = 2048  # numbers that a program processes
EVALUATION_IMAGES = 32  # images that a program processes when no statistics are taken


@kernel(aligned="x out x_model x_image")
def dense_epilogue_forward_kernel(
    x, out, mean, deviation, weight, kept, active, activations, thresholds, keeps,
    x_model, x_image, weight_model, images, units, groups,
    TRAINING: tl.constexpr, DROP: tl.constexpr, IMAGES: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """x -> out [M, B, U], with the same strides.

    In a row weight, bias, running mean and running variance follow each other.
    """
    m = tl.program_id(1).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    image = tl.program_id(2) * IMAGES + tl.arange(0, IMAGES).to(tl.int64)
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    valid = (image < images)[:, None] & (unit < units)[None, :]
    at = m * x_model + image[:, None] * x_image + unit[None, :]
    h = activate(tl.load(x + at, mask=valid, other=0.0), tl.load(activations + m))
    gain = weight + m * weight_model + unit
    if TRAINING:
        average = tl.sum(tl.where(valid, h, 0.0), 0) / images
        distance = tl.where(valid, h - average[None, :], 0.0)
        square = tl.sum(distance * distance, 0)
        scale = 1.0 / tl.sqrt(square / images + EPSILON)
        tl.store(mean + m * units + unit, average, mask=unit < units)
        tl.store(deviation + m * units + unit, scale, mask=unit < units)
        update_running(gain + 2 * units, units, average, square / (images - 1), unit < units)
    else:
        average = tl.load(gain + 2 * units, mask=unit < units, other=0.0)
        scale = 1.0 / tl.sqrt(tl.load(gain + 3 * units, mask=unit < units, other=1.0) + EPSILON)
    g = tl.load(gain, mask=unit < units, other=0.0)
    b = tl.load(gain + units, mask=unit < units, other=0.0)
    h = (h - average[None, :]) * scale[None, :] * g[None, :] + b[None, :]
    if DROP:
        bits = kept + (m * images + image[:, None]) * groups
        h = drop(h, bits, unit[None, :], valid, tl.load(thresholds + m), tl.load(keeps + m))
    tl.store(out + at, h, mask=valid)


@kernel(aligned="dout x dx x_model x_image")
def dense_epilogue_backward_kernel(
    dout, x, dx, mean, deviation, weight, gradient, kept, active, activations, thresholds, keeps,
    x_model, x_image, weight_model, gradient_model, images, units, groups,
    DROP: tl.constexpr, IMAGES: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """dout -> dx and the gradients of batch-norm's weight and bias; all maps have x's strides."""
    m = tl.program_id(1).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    image = tl.arange(0, IMAGES).to(tl.int64)
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    valid = (image < images)[:, None] & (unit < units)[None, :]
    at = m * x_model + image[:, None] * x_image + unit[None, :]
    step = tl.load(dout + at, mask=valid, other=0.0)
    if DROP:
        bits = kept + (m * images + image[:, None]) * groups
        step = drop(step, bits, unit[None, :], valid, tl.load(thresholds + m), tl.load(keeps + m))
    before = tl.load(x + at, mask=valid, other=0.0)
    activation = tl.load(activations + m)
    average = tl.load(mean + m * units + unit, mask=unit < units, other=0.0)
    scale = tl.load(deviation + m * units + unit, mask=unit < units, other=0.0)
    normal = tl.where(valid, (activate(before, activation) - average[None, :]) * scale[None, :], 0.0)
    bias, gain = tl.sum(step, 0), tl.sum(step * normal, 0)
    target = gradient + m * gradient_model + unit
    tl.store(target, gain, mask=unit < units)
    tl.store(target + units, bias, mask=unit < units)
    step = step - (bias[None, :] + normal * gain[None, :]) / images
    step = (
        step
        * scale[None, :]
        * tl.load(weight + m * weight_model + unit, mask=unit < units, other=0.0)[None, :]
    )
    tl.store(dx + at, step * derivative(before, activation), mask=valid)


# Launches


def dense_epilogue_forward(
    x: torch.Tensor, out: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor, weight: torch.Tensor,
    dropout: Dropout | None,
    slots: Slots, *, training: bool,
) -> None:  # fmt: skip
    """x -> out, [M, B, U] of the same strides.

    `weight` [M, 4 U..], a part of the rows, has batch-norm's weights, biases, running means and variances. In
    training the batch's statistics are used and stored in mean and deviation (1 / standard deviation), [M, U]
    each, and the running ones are updated.
    """
    models, images, units = x.shape
    blocks = _blocks(images if training else EVALUATION_IMAGES, units)
    kept, groups = dropout_bits(dropout, slots)
    grid = triton.cdiv(units, blocks["UNITS"]), models, triton.cdiv(images, blocks["IMAGES"])
    dense_epilogue_forward_kernel[grid](
        x, out, mean, deviation, weight, kept, slots.active, slots.activation, slots.threshold, slots.keep,
        x.stride(0), x.stride(1), weight.stride(0), images, units, groups,
        TRAINING=training, DROP=dropout is not None, **blocks,
    )  # fmt: skip


def dense_epilogue_backward(
    dout: torch.Tensor, x: torch.Tensor, dx: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor,
    weight: torch.Tensor,
    gradient: torch.Tensor, dropout: Dropout | None, slots: Slots,
) -> None:  # fmt: skip
    """dout -> dx, both as x; the gradients of batch-norm's weights and biases in gradient [M, 2 U..]."""
    models, images, units = x.shape
    blocks = _blocks(images, units)
    kept, groups = dropout_bits(dropout, slots)
    dense_epilogue_backward_kernel[(triton.cdiv(units, blocks["UNITS"]), models)](
        dout, x, dx, mean, deviation, weight, gradient, kept, slots.active, slots.activation, slots.threshold,
        slots.keep,
        x.stride(0), x.stride(1), weight.stride(0), gradient.stride(0), images, units, groups,
        DROP=dropout is not None, **blocks,
    )  # fmt: skip


def _blocks(images: int, units: int) -> dict[str, int]:
    images_at_once = triton.next_power_of_2(images)
    return {
        "IMAGES": images_at_once,
        "UNITS": max(1, min(triton.next_power_of_2(units), TILE // images_at_once)),
    }
