"""The peers that train a model at a time: PyTorch as most people write it, and as a careful user writes it.

All train the network of `nws_dataset.networks.network` from the same row on the same batches, with torch's
own random numbers, optimizers (whose epsilons stand elsewhere than in TensorFlow's forms) and convolutions,
on a GPU in TF32 as torch does by default.

Axes: M stacked models, B images or pixels, C channels, H W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR

from builder.forecasting.pace import Case, order_of, targets_of
from builder.plan import Model
from builder.training import batches, update
from builder.training.bank import Bank, Images
from builder.training.initial import initial_row
from nws_dataset.format.recipe import Recipe
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network, coordinates

GRAPH_WARM_UP = 3  # steps before a CUDA graph is captured, as torch's documentation advises


def network_of(model: Model, dtype: torch.dtype = torch.float32) -> Network:
    """A model's network at its initial row, for training."""
    recipe = model.recipe
    network = Network(recipe.architecture, recipe.activation, recipe.dropout).to(dtype)
    return network.load_row(torch.from_numpy(initial_row(model))).train()


def optimizer_of(
    recipe: Recipe, weights: Iterable[tuple[str, torch.Tensor]], *, tuned: bool = False
) -> torch.optim.Optimizer:
    """Torch's optimizer for a recipe.

    Args:
        recipe: gives the optimizer, the learning rate and L2, which becomes weight decay of the kernels;
            AdamW has a weight decay of its own, of all weights.
        weights: by name, all on one device.
        tuned: use torch's fastest implementation, one that works in a CUDA graph.
    """
    layout, named = layout_of(recipe.architecture), list(weights)
    is_kernel = [len(layout[name].units) > 1 for name, _ in named]
    groups: list[dict[str, Any]] = [
        {
            "params": [x for (_, x), kernel in zip(named, is_kernel, strict=True) if kernel],
            "weight_decay": 2 * recipe.l2,
        },
        {"params": [x for (_, x), kernel in zip(named, is_kernel, strict=True) if not kernel]},
    ]
    rate, c = recipe.learning_rate, update.COEFFICIENTS[recipe.optimizer]
    fused = True if tuned else None
    in_graph = tuned and named[0][1].device.type == "cuda"
    if recipe.optimizer == "adam":
        return torch.optim.Adam(
            groups, rate, betas=update.ADAM_DECAYS, eps=c.outer_epsilon, fused=fused, capturable=in_graph
        )
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            [x for _, x in named],
            rate,
            betas=update.ADAM_DECAYS,
            eps=c.outer_epsilon,
            weight_decay=recipe.weight_decay,
            fused=fused,
            capturable=in_graph,
        )
    if recipe.optimizer == "rmsprop":  # torch has no fused RMSprop
        foreach = True if tuned else None
        return torch.optim.RMSprop(
            groups, rate, alpha=c.second_decay, eps=c.inner_epsilon, foreach=foreach, capturable=in_graph
        )
    return torch.optim.SGD(groups, rate, momentum=c.first_decay, fused=fused)


def loss_of(recipe: Recipe, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean squared error of pixels, or the mean cross-entropy of images with labels."""
    if recipe.architecture.reads == "coordinates":
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs, targets, label_smoothing=recipe.label_smoothing)


# What is seen


class Data(Protocol):
    """What one model sees, or each of several stacked ones."""

    order: torch.Tensor  # [steps, B] int64, of an epoch

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of the network and targets of `loss_of`, for one step's part of `order`.

        Args:
            index: [B], or [M, B] for stacked models.
        """
        ...


class Pictures:
    """Images to classify: made float and augmented when they are needed.

    Args:
        model: whose images and order of these.
        images: its image set.
        dtype: of the network.
        gray: whether to augment only one channel if all are equal.
    """

    def __init__(self, model: Model, images: Images, dtype: torch.dtype, *, gray: bool = False) -> None:
        self.recipe, self.images, self.dtype, self.gray = model.recipe, images, dtype, gray
        self.order = order_of(model, images)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Data.batch`."""
        images = self.images.train_images[index].to(self.dtype) / 255
        changed = augmented(self.recipe, images.flatten(0, -4), gray=self.gray and self.images.gray)
        return changed.view(images.shape), self.images.train_labels[index]


class Pixels:
    """All pixels of the images that models represent, in every step.

    Args:
        models: of one architecture.
        images: their image set.
        dtype: of the networks.
    """

    def __init__(self, models: Sequence[Model], images: Images, dtype: torch.dtype) -> None:
        self.order = torch.zeros(1, 1, dtype=torch.int64)
        self.targets = targets_of(models, images, dtype)  # [M, B, C]
        self.inputs = coordinates(models[0].recipe.architecture, dtype).to(self.targets.device)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Data.batch`; inputs are the same for all models, [B, 2]."""
        return self.inputs, self.targets if index.ndim > 1 else self.targets[0]


# The peers


class Peer:
    """A training in torch, whose learning rate follows the recipe's schedule."""

    recipe: Recipe
    optimizer: torch.optim.Optimizer

    def follow(self, order: torch.Tensor) -> None:
        """Say how an epoch goes, [steps, ...]; when a training would end, the schedule begins anew."""
        recipe, per_epoch = self.recipe, len(order)

        def share(step: int) -> float:
            step %= recipe.max_epochs * per_epoch
            return update.rate_of(recipe, step, per_epoch) / recipe.learning_rate

        self.order, self.batches = order, itertools.cycle(order)
        self.schedule = LambdaLR(self.optimizer, share)

    def run(self, steps: int) -> None:
        for index in itertools.islice(self.batches, steps):
            self.step(index)
            self.schedule.step()

    def step(self, index: torch.Tensor) -> None:
        """A step on the images of these numbers."""
        raise NotImplementedError


class Plain(Peer):
    """One model, as most people write it."""

    models = 1

    def __init__(
        self, case: Case, bank: Bank, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.recipe, images = case.model.recipe, bank[case.model.recipe.dataset]
        of_pixels = self.recipe.architecture.reads == "coordinates"
        self.data: Data = (
            Pixels([case.model], images, dtype) if of_pixels else Pictures(case.model, images, dtype)
        )
        self.network = network_of(case.model, dtype).to(device)
        self.optimizer = optimizer_of(self.recipe, self.network.named_parameters())
        self.follow(self.data.order)

    def step(self, index: torch.Tensor) -> None:
        inputs, targets = self.data.batch(index)
        loss = loss_of(self.recipe, self.network(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Careful(Peer):
    """One model that classifies images, by someone who knows torch: channels last, images made float once,
    fused optimizer.
    """

    models = 1

    def __init__(self, case: Case, bank: Bank, device: torch.device) -> None:
        self.recipe = case.model.recipe
        images = bank[self.recipe.dataset]
        order = order_of(case.model, images)
        self.labels, self.gray = images.train_labels, images.gray
        self.pixels = images.train_images.permute(0, 2, 3, 1).contiguous().float().div_(255)  # [N, H, W, C]
        self.batch = torch.empty(order.shape[1], *self.pixels.shape[1:], device=device)
        self.network = network_of(case.model).to(device)
        for parameter in self.network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.optimizer = optimizer_of(self.recipe, self.network.named_parameters(), tuned=True)
        self.follow(order)

    def step(self, index: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        images = torch.index_select(self.pixels, 0, index, out=self.batch).permute(0, 3, 1, 2)
        images = augmented(self.recipe, images, gray=self.gray)
        loss_of(self.recipe, self.network(images), self.labels[index]).backward()
        self.optimizer.step()


class CudaGraphs:
    """Several models of the careful kind on a GPU, each a CUDA graph with its own stream."""

    def __init__(self, case: Case, bank: Bank, device: torch.device, *, models: int) -> None:
        self.models = models
        self.trainings = [Careful(case, bank, device) for _ in range(models)]
        self.batches = itertools.cycle(self.trainings[0].order)
        self.indices = [torch.zeros_like(training.order[0]) for training in self.trainings]
        self.streams = [torch.cuda.Stream(device) for _ in range(models)]
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=True, allow_tf32=torch.backends.cudnn.allow_tf32
        ):
            self.graphs = [
                self._capture(*x) for x in zip(self.trainings, self.indices, self.streams, strict=True)
            ]

    @staticmethod
    def _capture(training: Careful, index: torch.Tensor, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(GRAPH_WARM_UP):
                training.step(index)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            training.step(index)
        return graph

    def run(self, steps: int) -> None:
        for batch in itertools.islice(self.batches, steps):
            for index, stream, graph in zip(self.indices, self.streams, self.graphs, strict=True):
                with torch.cuda.stream(stream):
                    index.copy_(batch)
                    graph.replay()


# Augmentation as usual in torch: that of `builder.training.batches` with torch's random numbers.


def augmented(recipe: Recipe, images: torch.Tensor, *, gray: bool = False) -> torch.Tensor:
    """Images [B, C, H, W] in 0 .. 1 as a recipe wants them: as they are, or changed at random."""
    if not recipe.augmentation:
        return images
    if recipe.augmentation_policy == "flip_shift_cutout":
        return flip_shift_cutout(images)
    return augment(images, gray=gray)


def flip_shift_cutout(images: torch.Tensor) -> torch.Tensor:
    """Flip half the images, shift all, and cut a square out of each."""

    def drawn(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high + 1, (len(images),), device=images.device)

    shifts = (drawn(-batches.PADDING, batches.PADDING) for _ in range(2))
    corner = (drawn(0, images.shape[-1] - batches.CUTOUT) for _ in range(2))
    return batches.moved_and_cut(images, drawn(0, 1) == 1, *shifts, *corner)


def augment(images: torch.Tensor, *, gray: bool = False) -> torch.Tensor:
    """Randomly warp, recolour and add noise to copies of images [B, C, H, W] in 0 .. 1.

    Args:
        images: the images to augment.
        gray: all channels of an image are equal; one of them is enough until the noise.
    """

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(low, high)

    x = warp(images[:, :1] if gray else images)
    x = x + uniform(-batches.BRIGHTNESS, batches.BRIGHTNESS)
    mean = x.mean((2, 3), keepdim=True)
    x = ((x - mean) * uniform(*batches.CONTRAST) + mean).clamp(0, 1)
    if x.shape[1] > 1:
        x = shift_colours(x, uniform(-batches.HUE, batches.HUE)[:, 0], uniform(*batches.SATURATION)[:, 0])
    return (x + torch.randn_like(images) * uniform(0, batches.NOISE)).clamp(0, 1)


def warp(images: torch.Tensor) -> torch.Tensor:
    """Shift, rotate, zoom and shear each image at random."""

    def uniform(limit: float) -> torch.Tensor:
        return torch.empty(len(images), device=images.device).uniform_(-limit, limit)

    angle, zoom, shear = uniform(batches.ROTATION), 1 + uniform(batches.ZOOM), uniform(batches.SHEAR)
    shift = 2 * batches.SHIFT / images.shape[-1]
    along = torch.stack([torch.cos(angle) / zoom, -torch.sin(angle + shear) / zoom, uniform(shift)], 1)
    down = torch.stack([torch.sin(angle) / zoom, torch.cos(angle + shear) / zoom, uniform(shift)], 1)
    grid = F.affine_grid(torch.stack([along, down], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def shift_colours(images: torch.Tensor, hue: torch.Tensor, saturation: torch.Tensor) -> torch.Tensor:
    """Add to the hue (in turns) and scale the saturation, [B, 1, 1] each, of images [B, 3, H, W] (by HSV)."""
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    spread = value - least
    divisor = torch.where(spread == 0, 1, spread)
    angle = torch.where(value == red, (green - blue) / divisor % 6, (red - green) / divisor + 4)
    angle = torch.where((value == green) & (value != red), (blue - red) / divisor + 2, angle) + 6 * hue
    chroma = value * (spread / value.clamp(min=1e-8) * saturation).clamp(0, 1)
    parts = [(offset + angle) % 6 for offset in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(part, 4 - part).clamp(0, 1) for part in parts], 1)
