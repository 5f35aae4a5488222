"""The small kernels of a step: the average over a map, the loss, the update.

Each program processes one model; a model whose flag in `active` is 0 is not changed.

Axes: M slots, B images, C channels, S height = width, P weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from builder.training.gpu.pieces import kernel
from nws_dataset.networks.base import NUM_CLASSES

_CLASSES = tl.constexpr(NUM_CLASSES)
CLASSES = triton.next_power_of_2(NUM_CLASSES)
BLOCK = 1024  # numbers that a program processes
TILE = 2048  # numbers of a batch that a program processes at once


@kernel(aligned="x x_model x_image")
def average_kernel(
    x,
    out,
    active,
    x_model,
    x_image,
    out_model,
    out_image,
    images,
    channels,
    area,
    IMAGES: tl.constexpr,
    AREA: tl.constexpr,
):
    """The average of each channel, [M, B, C]."""
    m = tl.program_id(2).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    channel = tl.program_id(1)
    image = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES).to(tl.int64)
    at = tl.arange(0, AREA)
    source = x + m * x_model + image * x_image + channel * area
    numbers = tl.load(
        source[:, None] + at[None, :], mask=(image < images)[:, None] & (at < area)[None, :], other=0.0
    )
    tl.store(
        out + m * out_model + image * out_image + channel, tl.sum(numbers, 1) / area, mask=image < images
    )


@kernel(aligned="logits dlogits logits_model logits_image")
def cross_entropy_kernel(
    logits,
    labels,
    dlogits,
    losses,
    active,
    logits_model,
    logits_image,
    images,
    IMAGES: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Add each model's mean cross-entropy to its losses; write its gradient to `dlogits` (same strides)."""
    m = tl.program_id(0).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    total = tl.zeros((IMAGES,), logits.dtype.element_ty)
    for start in range(0, images, IMAGES):
        image = start + tl.arange(0, IMAGES).to(tl.int64)
        of_class = tl.arange(0, CLASSES)
        valid = (image < images)[:, None] & (of_class < _CLASSES)[None, :]
        at = m * logits_model + image[:, None] * logits_image + of_class[None, :]
        x = tl.where(
            (of_class < _CLASSES)[None, :], tl.load(logits + at, mask=valid, other=0.0), float("-inf")
        )
        x = x - tl.max(x, 1)[:, None]
        power = tl.exp(x)
        power_sum = tl.sum(power, 1)
        chosen = (
            tl.load(labels + m * images + image, mask=image < images, other=0)[:, None] == of_class[None, :]
        )
        loss = tl.log(power_sum) - tl.sum(tl.where(chosen, x, 0.0), 1)
        total += tl.where(image < images, loss, 0.0)
        tl.store(dlogits + at, (power / power_sum[:, None] - tl.where(chosen, 1.0, 0.0)) / images, mask=valid)
    tl.store(losses + m, tl.load(losses + m) + tl.sum(total) / images)


@kernel(aligned="rows gradients first second kernels row_stride gradient_stride")
def update_kernel(
    rows, gradients, first, second, kernels, rate_addresses, step, l2, coefficients, active,
    row_stride, gradient_stride, num_weights, models, BLOCK: tl.constexpr,
):  # fmt: skip
    """`builder.training.update.rule` on a block of a row, with L2 on the kernels; coefficients [6, M]."""
    m = tl.program_id(1).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid, at = i < num_weights, m * row_stride + i
    row = tl.load(rows + at, mask=valid, other=0.0)
    is_kernel = tl.load(kernels + i, mask=valid, other=0.0)
    gradient = (
        tl.load(gradients + m * gradient_stride + i, mask=valid, other=0.0)
        + 2.0 * tl.load(l2 + m) * is_kernel * row
    )
    c = coefficients + m
    a = tl.load(c) * tl.load(first + at, mask=valid, other=0.0) + tl.load(c + models) * gradient
    b = tl.load(c + 2 * models) * tl.load(second + at, mask=valid, other=1.0) + tl.load(c + 3 * models) * (
        gradient * gradient
    )
    rate = tl.load(tl.load(rate_addresses + m).to(tl.pointer_type(rows.dtype.element_ty)) + tl.load(step + m))
    row = row - rate * a / (tl.sqrt(b + tl.load(c + 4 * models)) + tl.load(c + 5 * models))
    tl.store(rows + at, row, mask=valid)
    tl.store(first + at, a, mask=valid)
    tl.store(second + at, b, mask=valid)


# Launches


def average(x: torch.Tensor, out: torch.Tensor, active: torch.Tensor) -> None:
    """x [M, B, C, S, S] -> out [M, B, C], the average of each channel."""
    models, images, channels, size, _ = x.shape
    area = triton.next_power_of_2(size**2)
    images_at_once = max(1, TILE // area)
    average_kernel[(triton.cdiv(images, images_at_once), channels, models)](
        x,
        out,
        active,
        x.stride(0),
        x.stride(1),
        out.stride(0),
        out.stride(1),
        images,
        channels,
        size**2,
        IMAGES=images_at_once,
        AREA=area,
    )


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    dlogits: torch.Tensor,
    losses: torch.Tensor,
    active: torch.Tensor,
) -> None:
    """Add the mean cross-entropies of logits [M, B, 10] to losses [M]; write the gradient to dlogits.

    logits and dlogits have the same strides.
    """
    models, images, _ = logits.shape
    cross_entropy_kernel[(models,)](
        logits,
        labels,
        dlogits,
        losses,
        active,
        logits.stride(0),
        logits.stride(1),
        images,
        IMAGES=TILE // CLASSES,
        CLASSES=CLASSES,
    )


def update(
    state: tuple[torch.Tensor, torch.Tensor, torch.Tensor], gradients: torch.Tensor, kernels: torch.Tensor,
    rate_addresses: torch.Tensor,
    step: torch.Tensor, l2: torch.Tensor, coefficients: torch.Tensor, active: torch.Tensor,
) -> None:  # fmt: skip
    """Update rows, first and second moments, [M, P] of the same strides.

    Args:
        state: the three.
        gradients: [M, P], without L2.
        kernels: [P], 1 at the weights that L2 applies to, else 0.
        rate_addresses: [M] int64: address of each model's rates, from `builder.training.update.step_size`,
            in the rows' dtype.
        step: [M] int64: which of the rates to use.
        l2: [M].
        coefficients: [6, M], the fields of `builder.training.update.Coefficients`.
        active: [M].
    """
    rows, first, second = state
    update_kernel[(triton.cdiv(rows.shape[1], BLOCK), len(rows))](
        rows, gradients, first, second, kernels, rate_addresses, step, l2, coefficients, active,
        rows.stride(0), gradients.stride(0), rows.shape[1], len(rows), BLOCK=BLOCK,
    )  # fmt: skip
