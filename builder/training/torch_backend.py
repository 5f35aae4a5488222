"""Training and evaluation in plain torch, on any device: several networks stacked with `torch.func`.

On a CPU a cohort trains one model at a time, so a row has the same bits whatever else is trained. On a GPU
torch's libraries choose kernels by the number of stacked models, so the other models may change a row, but
only by rounding.

Axes: M slots, K stacked models, B images, C channels, H W pixels, P weights.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from builder.training import batches, update
from builder.training.backend import Segment, State
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network

# most models that go through the network together: gradients need memory for each
STACKED = 16
# of a model, prepared at once: on a GPU preparing many takes no more kernels than preparing one
PREPARED_IMAGES = 1024
EVALUATION_IMAGES = 1000  # per forward pass
PART_IMAGES = 64  # of a batch, that go together through a network that `_gradient_in_parts` trains


class TorchBackend:
    """`builder.training.backend.Backend` for models of one architecture by
    `nws_dataset.networks.network.Network`; models with the same activation are stacked.

    Nothing on the device is more precise than the rows, as Apple's GPUs have no float64; what needs float64
    is computed on the CPU.

    Args:
        architecture: the models' architecture.
        device: where the rows are.
        dtype: type of the rows.
    """

    def __init__(
        self, architecture: BaseArchitecture, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.architecture, self.device, self.dtype = architecture, device, dtype
        self.layout = layout_of(architecture)

    def train(self, state: State, segments: Mapping[int, Segment]) -> torch.Tensor:
        """See `builder.training.backend.Backend`."""
        stacks: dict[str, list[int]] = defaultdict(list)
        for m, segment in segments.items():
            stacks[segment.model.recipe.activation].append(m)
        losses = torch.zeros(len(state[0]), dtype=self.dtype, device=self.device)
        with library_precision():
            for activation, slots in stacks.items():
                for group in (slots[start : start + STACKED] for start in range(0, len(slots), STACKED)):
                    stack = [x[group] for x in state]
                    losses[group] = self._train_stack(activation, stack, [segments[m] for m in group])
                    for x, trained in zip(state, stack, strict=True):
                        x[group] = trained
        return losses[list(segments)]

    def _train_stack(
        self, activation: str, state: Sequence[torch.Tensor], segments: Sequence[Segment]
    ) -> torch.Tensor:
        """Take the steps of models with the same activation; rows and moments, [K, P] each, change in place.

        Returns the summed losses, [K].
        """
        network, recipes = (
            _network(self.architecture, activation).train(),
            [segment.model.recipe for segment in segments],
        )
        objective = functools.partial(self._objective, network)
        gradient = self._mapped(grad(objective, has_aux=True), len(recipes))
        if self.device.type == "cpu" and len(recipes) == 1 and _normalizes_each_image(network):
            gradient = functools.partial(_gradient_in_parts, objective)
        rows, first, second = state
        gradients = torch.zeros_like(rows)  # stays 0 at the running statistics, which have no gradient
        tensors, slopes = self.layout.views(rows), self.layout.views(gradients)
        weights = {name: x for name, x in tensors.items() if self.layout[name].trained}
        # contiguous, as they are changed in place
        statistics = {name: x.clone() for name, x in tensors.items() if name not in weights}
        l2 = self._numbers([recipe.l2 for recipe in recipes])
        smoothing = self._numbers([recipe.label_smoothing for recipe in recipes])
        coefficients = self._numbers([update.COEFFICIENTS[recipe.optimizer] for recipe in recipes]).T[
            :, :, None
        ]
        rates = self._numbers([segment.rates() for segment in segments])
        decays = self._numbers(
            [[r * s.model.recipe.weight_decay for r in s.learning_rates()] for s in segments]
        )
        trained = [torch.full((spec.size,), spec.trained) for spec in self.layout.tensors]
        trained_P = torch.cat(trained).to(rows)
        losses = torch.zeros_like(l2)
        for step, batch in enumerate(self._batches(segments)):
            found, loss = gradient(weights, statistics, *batch, l2, smoothing)
            for name, slope in found.items():
                slopes[name].copy_(slope)
            rows.mul_(1 - decays[:, step, None] * trained_P)
            new = update.rule(rows, gradients, first, second, rates[:, step, None], coefficients)
            for x, value in zip(state, new, strict=True):
                x.copy_(value)
            losses += loss
        for name, x in statistics.items():
            tensors[name].copy_(x)
        return losses

    def _objective(
        self,
        network: Network,
        weights: dict[str, torch.Tensor],
        statistics: dict[str, torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        masks: dict[str, torch.Tensor],
        l2: torch.Tensor,
        smoothing: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One model's loss with L2, and without; moves the running statistics."""
        logits = functional_call(network, {**weights, **statistics}, (images, masks))
        loss = F.cross_entropy(logits, labels)
        loss = loss - smoothing * (loss + F.log_softmax(logits, 1).mean())
        edges = (weight for name, weight in weights.items() if len(self.layout[name].units) > 1)
        return loss + l2 * torch.stack([weight.square().sum() for weight in edges]).sum(), loss

    def _mapped(self, function: Callable[..., Any], count: int) -> Callable[..., Any]:
        """A function of one model for several; a single one on a CPU goes through it as it is, which is
        faster.
        """
        if count > 1 or self.device.type != "cpu":
            return vmap(function)

        def alone(*arguments: Any) -> Any:
            found = function(*(tree_map(lambda x: x[0], argument) for argument in arguments))
            return tree_map(lambda x: x[None], found)

        return alone

    def _batches(
        self, segments: Sequence[Segment]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]:
        """Images [K, B, C, H, W], labels [K, B] and dropout factors of each step."""
        size = segments[0].batch
        for orders in zip(
            *(segment.order.split(max(1, PREPARED_IMAGES // size) * size) for segment in segments),
            strict=True,
        ):
            images, labels, masks = [], [], []
            for segment, index in zip(segments, orders, strict=True):
                model, epoch = segment.model, segment.epoch
                images.append(batches.training_images(model, segment.images, index, epoch, self.dtype))
                labels.append(segment.images.train_labels[index])
                masks.append(batches.dropout_masks(model, index, epoch, self.dtype))
            factors = {
                layer: torch.stack([mask[layer] for mask in masks]).to(self.device) for layer in masks[0]
            }
            stacked = torch.stack(images), torch.stack(labels).to(self.device)
            for start in range(0, len(orders[0]), size):
                here = slice(start, start + size)
                yield (
                    stacked[0][:, here],
                    stacked[1][:, here],
                    {layer: factor[:, here] for layer, factor in factors.items()},
                )

    def _numbers(self, numbers: Sequence[object]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=self.dtype, device=self.device)

    @torch.no_grad()
    def evaluate(
        self, rows: torch.Tensor, activation: str, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `builder.training.backend.Backend`; one network at a time, so none depends on the others.

        The results are on the CPU.
        """
        network = _network(self.architecture, activation).eval()
        blocks, expected = images.split(EVALUATION_IMAGES), labels.to(self.device)
        correct, losses = [], []
        with library_precision():
            for row in rows:
                weights = self.layout.views(row)
                logits = torch.cat(
                    [functional_call(network, weights, (block.to(self.dtype).div_(255),)) for block in blocks]
                )
                correct.append(logits.argmax(1) == expected)
                losses.append(F.cross_entropy(logits, expected, reduction="none"))
        return torch.stack(correct).cpu(), torch.stack(losses).cpu()


def _normalizes_each_image(network: Network) -> bool:
    return any(isinstance(module, nn.GroupNorm) for module in network.modules())


def _gradient_in_parts(
    objective: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    *arguments: Any,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The gradient of the objective of one model whose images do not depend on each other, and its loss.

    It is faster on a CPU than `torch.func.grad`, which differentiates such that one could do so again, with
    many steps for each norm. A part of the batch goes through at a time, so that its maps stay in a core's
    cache, and maps lie as convolutions take them.
    """
    weights, statistics, images, labels, masks, *rates = tree_map(lambda x: x[0], arguments)
    weights, images = tree_map(_channels_last, (weights, images))
    for weight in weights.values():
        weight.requires_grad_()
    found, losses = [], []
    for start in range(0, len(images), PART_IMAGES):
        here = slice(start, start + PART_IMAGES)
        part = images[here], labels[here], {layer: factor[here] for layer, factor in masks.items()}
        share = len(part[0]) / len(images)
        value, loss = objective(weights, statistics, *part, *rates)
        found.append(torch.autograd.grad(share * value, list(weights.values())))
        losses.append(share * loss.detach())
    sums = [torch.stack(slopes).sum(0)[None] for slopes in zip(*found, strict=True)]
    return dict(zip(weights, sums, strict=True)), torch.stack(losses).sum(0)[None]


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _network(architecture: BaseArchitecture, activation: str) -> Network:
    """A network without numbers of its own, for `functional_call`."""
    with torch.device("meta"):
        network = Network(architecture, activation)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked = None  # `torch.func` forbids counting in place
    return network


@contextmanager
def library_precision(tf32: bool = False, *, fastest: bool = False) -> Iterator[None]:
    """Set the precision of cuDNN's and cuBLAS's products: float32, or TF32 with `tf32`.

    Args:
        tf32: whether factors are cut to 10 bits.
        fastest: time cuDNN's algorithms for each shape and take the fastest; else take one whose results
            repeat.
    """
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=fastest, deterministic=not fastest, allow_tf32=tf32
    ):
        matmul.allow_tf32 = tf32
        try:
            yield
        finally:
            matmul.allow_tf32 = before
