"""The peers that train several models of one recipe together: mapped over models, or batched by hand.

Axes: M models, B images or pixels, I inputs and O outputs of a layer, F features of an input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from builder.benchmark.pytorch import Data, Peer, Pictures, Pixels, loss_of, network_of, optimizer_of
from builder.forecasting.pace import Case
from builder.plan import Model
from builder.training.bank import Bank, Images
from nws_dataset.networks import kan, siren
from nws_dataset.networks.layout import OUTPUT
from nws_dataset.networks.network import Network

STACKED_MODELS = 16  # batches of 64 leave a core's cache, and are slower

Weights = dict[str, torch.Tensor]  # [M, ...] by name


class Stacked(Peer):
    """Models of one recipe, their weights stacked, and one optimizer on the stack.

    Args:
        case: its model is the first, others follow it in number (and image).
        bank: image sets by name.
        device: where to train.
        dtype: float32; float64 for tests.
    """

    models = STACKED_MODELS

    def __init__(
        self, case: Case, bank: Bank, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.recipe = case.model.recipe
        together = [_neighbour(case.model, m) for m in range(self.models)]
        networks = [network_of(model, dtype).to(device) for model in together]
        self.network = networks[0]
        self.weights = {name: _stack(networks, name) for name, _ in self.network.named_parameters()}
        # Batch-norm's running statistics and counter, [M, ...] too: vmap changes only mapped tensors in
        # place.
        self.buffers = {name: _stack(networks, name) for name, _ in self.network.named_buffers()}
        self.data = self.data_of(together, bank[self.recipe.dataset], dtype)
        self.optimizer = optimizer_of(self.recipe, self.weights.items(), tuned=True)
        # [M, B] for each step: every model is at another position in the order.
        self.follow(torch.stack([self.data.order.roll(m, 0) for m in range(self.models)], 1))

    def data_of(self, models: list[Model], images: Images, dtype: torch.dtype) -> Data:
        """What the models see."""
        if self.recipe.architecture.reads == "coordinates":
            return Pixels(models, images, dtype)
        return Pictures(models[0], images, dtype, gray=True)

    def step(self, index: torch.Tensor) -> None:
        for name, gradient in self.gradients(*self.data.batch(index)).items():
            # fused optimizers take a gradient's numbers as they lie in memory
            self.weights[name].grad = gradient.contiguous()
        self.optimizer.step()

    def gradients(self, inputs: torch.Tensor, targets: torch.Tensor) -> Weights:
        """Of each model's loss, by the weights' names."""
        raise NotImplementedError


def _neighbour(model: Model, m: int) -> Model:
    image = None if model.image is None else model.image + m
    return dataclasses.replace(model, number=model.number + m, image=image)


def _stack(networks: list[Network], name: str) -> torch.Tensor:
    return torch.stack([network.state_dict()[name] for network in networks])


class Vmapped(Stacked):
    """The gradient by torch.func's vmap."""

    def gradients(self, inputs: torch.Tensor, targets: torch.Tensor) -> Weights:
        """See `Stacked.gradients`."""
        of_each = None if isinstance(self.data, Pixels) else 0
        mapped = vmap(grad(self._loss), in_dims=(0, 0, of_each, 0), randomness="different")
        found: Weights = mapped(self.weights, self.buffers, inputs, targets)
        return found

    def _loss(
        self,
        weights: Weights,
        buffers: Weights,
        inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        return loss_of(self.recipe, functional_call(self.network, (weights, buffers), (inputs,)), targets)


class Batched(Stacked):
    """By someone who knows torch: a product of batches of matrices for each layer of all models."""

    def gradients(self, inputs: torch.Tensor, targets: torch.Tensor) -> Weights:
        """See `Stacked.gradients`."""
        weights = {name: weight.detach().requires_grad_() for name, weight in self.weights.items()}
        outputs = self.outputs(weights, inputs)
        loss = loss_of(self.recipe, outputs.flatten(0, 1), targets.flatten(0, 1))
        total = self.models * loss  # the sum of the models' means
        return dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True))

    def outputs(self, weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
        """The networks' outputs [M, B, O]."""
        raise NotImplementedError


class BatchedSirens(Batched):
    """A layer's frequency goes into its product."""

    def outputs(self, weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
        """Of coordinates [B, 2]."""
        x, a = inputs.expand(self.models, -1, -1), self.recipe.architecture
        assert isinstance(a, siren.Architecture)
        for i in range(1, a.depth_hidden + 1):
            frequency = a.frequency_first if i == 1 else a.frequency_hidden
            x = torch.sin(self._layer(weights, f"dense{i}", x, frequency))
        return self._layer(weights, OUTPUT, x, 1) + a.output_offset

    def _layer(self, weights: Weights, name: str, x: torch.Tensor, factor: float) -> torch.Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return torch.baddbmm(bias[:, None], x, weight.mT, beta=factor, alpha=factor)


class BatchedKans(Batched):
    """Splines are in closed form; the features of the first layer's inputs are made once."""

    def data_of(self, models: list[Model], images: Images, dtype: torch.dtype) -> Data:
        data = super().data_of(models, images, dtype)
        if isinstance(data, Pixels):
            data.inputs = self._features(data.inputs)
            return data
        return Levels(models[0], images, dtype, self._features)

    def outputs(self, weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
        """Of features of the first layer's inputs, [B, I * F] or [M, B, I * F]."""
        a = self.recipe.architecture
        assert isinstance(a, kan.Architecture)
        x = inputs @ self._edges(weights, a.layers[0])
        for layer in a.layers[1:]:
            x = torch.bmm(self._features(x), self._edges(weights, layer))
        return x

    def _edges(self, weights: Weights, layer: str) -> torch.Tensor:
        """A layer's weights of features, [M, I * F, O]."""
        base, scale, coefficients = (
            weights[f"{layer}.{role}"] for role in ("base_weight", "spline_weight", "coefficients")
        )
        return torch.cat([base[..., None], (scale / 6)[..., None] * coefficients], -1).flatten(2).mT

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        """silu(x) and 6 times the cubic splines at inputs x [..., I]: [..., I * F]."""
        a = self.recipe.architecture
        assert isinstance(a, kan.Architecture) and a.spline_order == 3
        centres = torch.arange(-1, a.grid + 2, dtype=x.dtype, device=x.device)  # in steps of the grid
        place = (x - a.grid_min) * (a.grid / (a.grid_max - a.grid_min))
        away = (place[..., None] - centres).abs()
        splines = torch.sub(F.relu(2 - away).pow(3), F.relu(1 - away).pow(3), alpha=4)
        return torch.cat([F.silu(x)[..., None], splines], -1).flatten(-2)


class Levels(Pictures):
    """Images to classify by KANs, as features of their pixels: from a table, as a pixel has 256 values."""

    def __init__(
        self,
        model: Model,
        images: Images,
        dtype: torch.dtype,
        features: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__(model, images, dtype)
        values = torch.arange(256, dtype=dtype, device=images.train_images.device)[:, None] / 255
        self.table = features(self.recipe.architecture.scale(values))

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Data.batch`: features [..., B, I * F]."""
        levels = self.images.train_images[index].flatten(-3).int()
        return F.embedding(levels, self.table).flatten(-2), self.images.train_labels[index]


BATCHED: dict[str, type[Batched]] = {
    siren.Architecture.kind: BatchedSirens,
    kan.Architecture.kind: BatchedKans,
}


def batched(case: Case, bank: Bank, device: torch.device, dtype: torch.dtype = torch.float32) -> Batched:
    """The batched contender for a kind of networks."""
    return BATCHED[case.model.recipe.architecture.kind](case, bank, device, dtype)
