"""What a model sees at each step: images, their order and augmentation, and which units are dropped.

Everything here is a pure function of model, epoch and image, so a batch does not depend on how many are
prepared at once.

Axes: N images of a data set, B images prepared together, C channels, H W pixels, U units of a layer.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from builder import philox
from builder.philox import Purpose
from builder.plan import Model
from builder.training.bank import Images
from nws_dataset.errors import ZooError
from nws_dataset.networks.base import NUM_CLASSES
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.resnet import PIXEL_MEAN

# Ranges of the augmentation (scale 3 of Eilertsen et al.).
SHIFT = 3.0  # pixels
ROTATION = math.radians(15)
ZOOM = 0.099
SHEAR = math.radians(3)
BRIGHTNESS = 0.2
CONTRAST = (0.5, 1.5)
HUE = 0.08  # turns of the colour wheel
SATURATION = (0.3, 1.5)
NOISE = 0.03  # largest standard deviation
PADDING, CUTOUT = 2, 4  # pixels, of the policy flip_shift_cutout


def words(
    model: Model, purpose: Purpose, *, index: torch.Tensor, epoch: int = 0, block: Any = 0
) -> tuple[torch.Tensor, ...]:
    """`philox.draw` on an index tensor's device; on the CPU through numpy, which is twice as fast there."""
    key = philox.key_of(model.seed, model.subset)
    on_host = index.device.type == "cpu"
    indices, block = (x.numpy() if on_host and isinstance(x, torch.Tensor) else x for x in (index, block))
    drawn = philox.draw(key, purpose, index=indices, epoch=epoch, model=model.number, block=block)
    return tuple(torch.from_numpy(word) for word in drawn) if on_host else drawn


# Which images


@dataclass(frozen=True)
class Parts:
    """A model's images, as ascending indices of its data set's training images."""

    train: torch.Tensor  # [n] int64
    validation: torch.Tensor  # [v] int64, may be empty


def part_sizes(train_fraction: float, validation_fraction: float, images: int) -> tuple[int, int]:
    """How many training and validation images a recipe with these fractions takes from `images`."""
    count = max(1, round(images * train_fraction))
    held_out = round(count * validation_fraction)
    return count - held_out, held_out


def split_images(model: Model, labels: torch.Tensor) -> Parts:
    """Choose the model's training and validation images.

    Args:
        model: gives train_fraction and validation_fraction.
        labels: [N] int64, of the training images.

    Raises:
        ZooError: if a class would be missing among the training images, or a batch would have fewer than
            two images.
    """
    recipe = model.recipe
    trained, held_out = part_sizes(recipe.train_fraction, recipe.validation_fraction, len(labels))
    index = torch.arange(trained + held_out, device=labels.device)
    drawn = words(model, Purpose.VALIDATION, index=index)
    order = torch.argsort(philox.key64(drawn[0], drawn[1]), stable=True)
    train = order[held_out:].sort().values
    parts = Parts(train, order[:held_out].sort().values)
    classes = len(labels[train].unique())
    if (recipe.balanced and classes < NUM_CLASSES) or len(train) < 2:
        raise ZooError(
            f"{model.id} on {recipe.dataset}",
            expected=f"training images of {NUM_CLASSES} classes",
            found=f"{len(train)} images of {classes} classes",
            do="use more --train-images",
        )
    return parts


def epoch_order(model: Model, parts: Parts, labels: torch.Tensor, epoch: int) -> torch.Tensor:
    """The images of one epoch in order: indices in the data set, [n] int64.

    A balanced recipe takes as many images of each class as the smallest class has, drawn anew each epoch.
    """
    drawn = words(model, Purpose.ORDER, index=parts.train, epoch=epoch)
    chosen = parts.train
    shuffle = philox.key64(drawn[2], drawn[3])
    if model.recipe.balanced:
        lottery = philox.key64(drawn[0], drawn[1])
        by_key = torch.argsort(lottery, stable=True)
        by_class = by_key[torch.argsort(labels[chosen][by_key], stable=True)]
        counts = torch.bincount(labels[chosen], minlength=NUM_CLASSES)
        starts = torch.cumsum(counts, 0) - counts
        taken = (starts[:, None] + torch.arange(int(counts.min()), device=labels.device)).ravel()
        chosen, shuffle = chosen[by_class[taken]], shuffle[by_class[taken]]
    return chosen[torch.argsort(shuffle, stable=True)]


# Augmentation


def training_images(
    model: Model, images: Images, index: torch.Tensor, epoch: int, dtype: torch.dtype
) -> torch.Tensor:
    """Training images as a model sees them in an epoch: [n, C, H, W] in 0 .. 1, perhaps augmented."""
    x = images.train_images[index].to(dtype).div_(255)
    if model.recipe.augmentation and model.recipe.augmentation_policy == "flip_shift_cutout":
        return flip_shift_cutout(model, x, index, epoch)
    return augment(model, x, index, epoch, gray=images.gray) if model.recipe.augmentation else x


def augment(
    model: Model, images: torch.Tensor, index: torch.Tensor, epoch: int, *, gray: bool = False
) -> torch.Tensor:
    """Augment copies of images: shift, rotation, zoom, shear; brightness, contrast, hue, saturation; noise.

    The result is clipped to 0 .. 1.

    Args:
        model: its random numbers are used.
        images: [B, C, H, W] floating point in 0 .. 1, one or three channels.
        index: [B] int64, the images' indices in the data set.
        epoch: the training epoch.
        gray: whether the channels of each image are equal; the noise still differs.
    """
    drawn = distortions(model, index, epoch, images.shape[-1], images.dtype)
    d = Distortion(*(part.to(images.device)[:, None, None, None] for part in drawn))
    x = _recolour(_warp(images[:, :1] if gray else images, d), d)
    noise = _normals(model, index, epoch, math.prod(images.shape[1:])).to(images).view(images.shape)
    return (x + noise * d.deviation).clamp_(0, 1)


def flip_shift_cutout(model: Model, images: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
    """Copies of images of which half are flipped from left to right, all are shifted by up to PADDING pixels
    down or up and left or right, and lose a square of CUTOUT pixels; what is missing has the mean colour (Lim
    et al. 2024).

    Args:
        model: whose random numbers to use.
        images: [B, C, H, W] floating point in 0 .. 1.
        index: [B] int64, of the images in the data set.
        epoch: of the training.
    """
    size, device = images.shape[-1], images.device
    flips, *drawn = (word.to(device) for word in words(model, Purpose.AUGMENT, index=index, epoch=epoch))
    corners = words(model, Purpose.AUGMENT, index=index, epoch=epoch, block=1)
    corners = tuple(word.to(device) for word in corners[:2])
    downward, leftward = (((word * (2 * PADDING + 1)) >> 32) - PADDING for word in drawn[:2])
    top, left = ((word * (size - CUTOUT + 1)) >> 32 for word in corners)
    return moved_and_cut(images, flips & 1 == 1, downward, leftward, top, left)


def moved_and_cut(
    images: torch.Tensor,
    flips: torch.Tensor,
    downward: torch.Tensor,
    leftward: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
) -> torch.Tensor:
    """What `flip_shift_cutout` makes of images.

    Args:
        images: [B, C, H, W] floating point in 0 .. 1.
        flips: [B] bool, whether each is flipped.
        downward: [B] int64, rows further down from which its pixels come.
        leftward: [B] int64, columns further to the right, before it is flipped.
        top: [B] int64, first row of the square that it loses.
        left: [B] int64, first column.
    """
    size, device = images.shape[-1], images.device
    along = torch.arange(size, device=device)
    row, column = along + downward[:, None], along + leftward[:, None]  # where output looks, [B, size]
    seen = ((row >= 0) & (row < size))[:, :, None] & ((column >= 0) & (column < size))[:, None, :]
    flipped = torch.where(flips[:, None], size - 1 - column, column)
    there = row.clamp(0, size - 1)[:, :, None] * size + flipped.clamp(0, size - 1)[:, None, :]
    moved = images.flatten(2).gather(2, there.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    in_rows, in_columns = (
        (along >= start[:, None]) & (along < start[:, None] + CUTOUT) for start in (top, left)
    )
    kept = (seen & ~(in_rows[:, :, None] & in_columns[:, None, :]))[:, None]
    mean = images.new_tensor([int(channel) for channel in PIXEL_MEAN]) / 255
    mean = mean if images.shape[1] == len(mean) else mean.mean(0, keepdim=True)
    return torch.where(kept, moved.view_as(images), mean[:, None, None])


def with_label_noise(model: Model, images: Images) -> Images:
    """The images as a model is trained on them: of each training image the label is drawn anew with the
    probability of the recipe's label_noise, from all classes, its own among them.
    """
    noise = model.recipe.label_noise
    if not noise:
        return images
    labels = images.train_labels
    drawn = words(model, Purpose.LABEL, index=torch.arange(len(labels)))
    u, others = philox.unit_interval(drawn[0], drawn[1]), (drawn[2] * NUM_CLASSES) >> 32
    return replace(images, train_labels=torch.where(u.to(labels.device) < noise, others.to(labels), labels))


class Distortion(NamedTuple):
    """The augmentation of each image, [B] each."""

    # output (x, y) comes from input across_x * x + down_x * y + shift_x; coordinates from -1 to 1
    across_x: torch.Tensor
    down_x: torch.Tensor
    shift_x: torch.Tensor
    across_y: torch.Tensor
    down_y: torch.Tensor
    shift_y: torch.Tensor
    brightness: torch.Tensor  # added
    contrast: torch.Tensor  # factor about each channel's mean
    turn: torch.Tensor  # of the hue
    saturation: torch.Tensor  # factor
    deviation: torch.Tensor  # standard deviation of the noise


def distortions(model: Model, index: torch.Tensor, epoch: int, size: int, dtype: torch.dtype) -> Distortion:
    """Draw the augmentation of images of `size` pixels: geometry, colour and the noise's deviation."""
    draws = [words(model, Purpose.AUGMENT, index=index, epoch=epoch, block=block) for block in range(3)]
    return _distortion(
        torch.stack([word for group in draws for word in group]).to(dtype).add(0.5).mul(2.0**-32), size
    )


def _distortion(u: torch.Tensor, size: int) -> Distortion:
    """From uniform draws in 0 .. 1, [12, B]; the last two are not used."""
    s = u[:5] * 2 - 1
    angle, zoom, shear = s[2] * ROTATION, 1 + s[3] * ZOOM, s[4] * SHEAR
    shift = s[:2] * (2 * SHIFT / size)
    return Distortion(
        across_x=torch.cos(angle) / zoom,
        down_x=-torch.sin(angle + shear) / zoom,
        shift_x=shift[0],
        across_y=torch.sin(angle) / zoom,
        down_y=torch.cos(angle + shear) / zoom,
        shift_y=shift[1],
        brightness=(u[5] * 2 - 1) * BRIGHTNESS,
        contrast=CONTRAST[0] + u[6] * (CONTRAST[1] - CONTRAST[0]),
        turn=(u[7] * 2 - 1) * HUE,
        saturation=SATURATION[0] + u[8] * (SATURATION[1] - SATURATION[0]),
        deviation=NOISE * u[9],
    )


def _warp(images: torch.Tensor, d: Distortion) -> torch.Tensor:
    """Warp bilinearly (affine, about the centre); pixels from outside are black."""
    theta = torch.stack([part.flatten() for part in d[:6]], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _recolour(x: torch.Tensor, d: Distortion) -> torch.Tensor:
    """Change brightness, contrast about each channel's mean, then hue and saturation (HSV)."""
    x = x + d.brightness
    mean = x.mean((2, 3), keepdim=True)
    x = ((x - mean) * d.contrast + mean).clamp_(0, 1)  # colours are defined in 0 .. 1
    if x.shape[1] == 1:  # gray has neither hue nor saturation
        return x
    return _recolour_hsv(x, d.turn[:, 0], d.saturation[:, 0])


def _recolour_hsv(x: torch.Tensor, turn: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Turn the hue by `turn` of the colour wheel and scale the saturation by `factor`.

    x: [B, 3, H, W] in 0 .. 1; turn, factor: [B, 1, 1].
    """
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    safe = torch.where(chroma > 0, chroma, 1)
    sextant = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sextant = torch.where(value == red, (green - blue) / safe, sextant) + 6 * turn
    chroma = torch.minimum(chroma * factor, value)  # saturation = chroma / value is at most 1
    distances = [(n + sextant).remainder(6) for n in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in distances], 1)


@functools.cache
def normal_table(device: torch.device) -> torch.Tensor:
    """Quantiles of the standard normal distribution at the centres of 2**16 equal parts."""
    u = (np.arange(1 << 16) + 0.5) / (1 << 16)
    return torch.from_numpy(philox.normal(u).astype(np.float32)).to(device)


def _normals(model: Model, index: torch.Tensor, epoch: int, count: int) -> torch.Tensor:
    """[B, count] standard normal numbers for each image, float32."""
    lanes = _lanes(model, Purpose.NOISE, index, epoch, 0, count)
    return normal_table(index.device)[lanes]


def _lanes(
    model: Model, purpose: Purpose, index: torch.Tensor, epoch: int, first_block: int, count: int
) -> torch.Tensor:
    """[B, count] numbers of 16 bits for each image."""
    blocks = first_block + torch.arange(-(-count // philox.LANES), device=index.device)
    drawn = words(model, purpose, index=index[:, None], epoch=epoch, block=blocks)
    return torch.stack(philox.lanes16(drawn), dim=-1).flatten(1)[:, :count]


# Dropout

DROPOUT_LAYER_BLOCKS = 1 << 20  # counter blocks per layer


def dropout_threshold(rate: float) -> int:
    """A unit is dropped if its 16-bit random number is below this."""
    return round(rate * (1 << 16))


def dropout_masks(
    model: Model, index: torch.Tensor, epoch: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Dropout factors: layer -> [B, units...], 0 where a unit is dropped, else 1 / (1 - rate).

    The rate is rounded to 16 bits.
    """
    architecture, rate = model.recipe.architecture, model.recipe.dropout
    layers = layout_of(architecture).layers
    masks = {}
    for layer, shape in architecture.dropped_layers().items():
        lanes = _lanes(
            model, Purpose.DROPOUT, index, epoch, layers.index(layer) * DROPOUT_LAYER_BLOCKS, math.prod(shape)
        )
        kept = lanes >= dropout_threshold(rate)
        masks[layer] = kept.to(dtype).mul_(1 / (1 - rate)).view(len(index), *shape)
    return masks
