"""The peers: PyTorch as most people write it, as a careful user writes it, and mapped over models.

All train the network of `nws_dataset.networks.network` from the same row on the same batches, with torch's
own random numbers, optimizers (whose epsilons stand elsewhere than in TensorFlow's forms) and convolutions,
on a GPU in TF32 as torch does by default.

Axes: M models, B images, C channels, H W pixels, P weights.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from builder.forecasting.pace import Case, order_of
from builder.plan import Model
from builder.training import batches, update
from builder.training.bank import Bank
from builder.training.initial import initial_row
from nws_dataset.format.recipe import Recipe
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network

VMAPPED_MODELS = 16  # models
GRAPH_WARM_UP = 3  # steps before a CUDA graph is captured, as torch's documentation advises


def network_of(model: Model) -> Network:
    """A model's network at its initial row, for training."""
    recipe = model.recipe
    network = Network(recipe.architecture, recipe.activation, recipe.dropout)
    return network.load_row(torch.from_numpy(initial_row(model))).train()


def optimizer_of(
    recipe: Recipe, weights: Iterable[tuple[str, torch.Tensor]], *, tuned: bool = False
) -> torch.optim.Optimizer:
    """Torch's optimizer for a recipe.

    Args:
        recipe: gives the optimizer, the learning rate and L2, which becomes weight decay of the kernels.
        weights: by name, all on one device.
        tuned: use torch's fastest implementation, one that works in a CUDA graph.
    """
    layout, named = layout_of(recipe.architecture), list(weights)
    is_kernel = [layout[name].role == "weight" for name, _ in named]
    groups: list[dict[str, Any]] = [
        {
            "params": [x for (_, x), kernel in zip(named, is_kernel, strict=True) if kernel],
            "weight_decay": 2 * recipe.l2,
        },
        {"params": [x for (_, x), kernel in zip(named, is_kernel, strict=True) if not kernel]},
    ]
    rate, c = recipe.learning_rate, update.COEFFICIENTS[recipe.optimizer]
    in_graph = tuned and named[0][1].device.type == "cuda"
    if recipe.optimizer == "adam":
        fused = True if tuned else None
        return torch.optim.Adam(
            groups, rate, betas=update.ADAM_DECAYS, eps=c.outer_epsilon, fused=fused, capturable=in_graph
        )
    if recipe.optimizer == "rmsprop":  # torch has no fused RMSprop
        foreach = True if tuned else None
        return torch.optim.RMSprop(
            groups, rate, alpha=c.second_decay, eps=c.inner_epsilon, foreach=foreach, capturable=in_graph
        )
    return torch.optim.SGD(groups, rate, momentum=c.first_decay, fused=True if tuned else None)


class Plain:
    """One model, as most people write it."""

    models = 1

    def __init__(self, case: Case, bank: Bank, device: torch.device) -> None:
        self.recipe = case.model.recipe
        self.images = bank[self.recipe.dataset]
        self.batches = itertools.cycle(order_of(case.model, self.images))
        self.network = network_of(case.model).to(device)
        self.optimizer = optimizer_of(self.recipe, self.network.named_parameters())

    def run(self, steps: int) -> None:
        for index in itertools.islice(self.batches, steps):
            self.step(index)

    def step(self, index: torch.Tensor) -> None:
        images = self.images.train_images[index].float() / 255
        if self.recipe.augmentation:
            images = augment(images)
        loss = F.cross_entropy(self.network(images), self.images.train_labels[index])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Careful:
    """One model, by someone who knows torch: channels last, images made float once, fused optimizer."""

    models = 1

    def __init__(self, case: Case, bank: Bank, device: torch.device) -> None:
        self.recipe = case.model.recipe
        images = bank[self.recipe.dataset]
        self.order = order_of(case.model, images)
        self.batches = itertools.cycle(self.order)
        self.labels, self.gray = images.train_labels, images.gray
        self.pixels = images.train_images.permute(0, 2, 3, 1).contiguous().float().div_(255)  # [N, H, W, C]
        self.batch = torch.empty(self.order.shape[1], *self.pixels.shape[1:], device=device)
        self.network = network_of(case.model).to(device)
        for parameter in self.network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.optimizer = optimizer_of(self.recipe, self.network.named_parameters(), tuned=True)

    def run(self, steps: int) -> None:
        for index in itertools.islice(self.batches, steps):
            self.step(index)

    def step(self, index: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        images = torch.index_select(self.pixels, 0, index, out=self.batch).permute(0, 3, 1, 2)
        if self.recipe.augmentation:
            images = augment(images, gray=self.gray)
        F.cross_entropy(self.network(images), self.labels[index]).backward()
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


class Vmapped:
    """Models of one recipe, stacked: the gradient by torch.func's vmap, and one optimizer on the stack."""

    models = VMAPPED_MODELS

    def __init__(self, case: Case, bank: Bank, device: torch.device) -> None:
        self.recipe = case.model.recipe
        self.images = bank[self.recipe.dataset]
        order = order_of(case.model, self.images)
        # [M, B] for each step: every model is at another position in the order.
        self.batches = itertools.cycle(torch.stack([order.roll(m, 0) for m in range(VMAPPED_MODELS)], 1))
        networks = [
            network_of(dataclasses.replace(case.model, number=case.model.number + m)).to(device)
            for m in range(VMAPPED_MODELS)
        ]
        self.network = networks[0]
        self.weights = {name: _stack(networks, name) for name, _ in self.network.named_parameters()}
        # Batch-norm's running statistics and counter, [M, ...] too: vmap changes only mapped tensors in
        # place.
        self.buffers = {name: _stack(networks, name) for name, _ in self.network.named_buffers()}
        self.optimizer = optimizer_of(self.recipe, self.weights.items(), tuned=True)
        self.gradient = vmap(grad(self._loss), randomness="different")

    def _loss(
        self,
        weights: dict[str, torch.Tensor],
        buffers: dict[str, torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        return F.cross_entropy(functional_call(self.network, (weights, buffers), (images,)), labels)

    def run(self, steps: int) -> None:
        for index in itertools.islice(self.batches, steps):
            self.step(index)

    def step(self, index: torch.Tensor) -> None:
        images = self.images.train_images[index].float() / 255
        if self.recipe.augmentation:
            images = augment(images.flatten(0, 1), gray=self.images.gray).view(images.shape)
        gradients = self.gradient(self.weights, self.buffers, images, self.images.train_labels[index])
        for name, weight in self.weights.items():
            weight.grad = gradients[name]
        self.optimizer.step()


def _stack(networks: list[Network], name: str) -> torch.Tensor:
    return torch.stack([network.state_dict()[name] for network in networks])


# Augmentation as usual in torch: `builder.training.batches.augment` with torch's random numbers.


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
