"""Many networks of one architecture as one module, faster than one by one, with gradients of all weights.

The feature maps of several networks are groups of channels in one map, so a layer of all of them is one call
of torch. `nws_dataset.networks.network.Network` is the reference.

Axes: N networks, P weights, B images, C channels of a network, H W pixels, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call, vmap

from nws_dataset.errors import ValueZooError
from nws_dataset.networks import cnn
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.cnn import BATCH_NORM_EPSILON
from nws_dataset.networks.layout import NORM_SUFFIX, OUTPUT, layout_of
from nws_dataset.networks.network import ACTIVATIONS, Network, check_activation, network_input

# largest feature map, in bytes, of networks that run together; on a CPU it should stay in the cache
CPU_MAP_BYTES = 2 << 20
MAP_BYTES = 1 << 28


class Networks(nn.Module):
    """Networks of one architecture in evaluation mode: one call gives all logits. See `Zoo.networks`.

    Gradients reach the `images` and all `weights` of a call, batch-norm's running statistics included. The
    networks' own weights are a buffer: `.to(...)` moves it, but no optimizer trains it.

    Args:
        architecture: of all the networks.
        activations: N of the architecture's `activations`, e.g. "relu".
        weights: [N, P] floating point, a row for each network.

    Raises:
        ZooError: if an activation is illegal.
        ValueZooError: if there are no networks, or weights are not a row of this architecture for each
            activation.

    Example:
        >>> from nws_dataset import Architecture
        >>> from nws_dataset import Network
        >>> architecture = Architecture(pixel_min=-1)
        >>> weights = torch.stack([Network(architecture, "tanh").row() for _ in range(3)])
        >>> networks = Networks(architecture, ["tanh"] * 3, weights)
        >>> probes = torch.randn(2, 3, 32, 32, requires_grad=True)
        >>> logits = networks(probes, scaled=True)
        >>> logits.shape, torch.autograd.grad(logits.sum(), probes)[0].shape
        (torch.Size([3, 2, 10]), torch.Size([2, 3, 32, 32]))
    """

    weights: torch.Tensor

    def __init__(
        self, architecture: BaseArchitecture, activations: Sequence[str], weights: torch.Tensor
    ) -> None:
        super().__init__()
        self.architecture, self.activations = architecture, tuple(activations)
        for activation in self.activations:
            check_activation(activation, architecture)
        if not self.activations:
            raise ValueZooError(
                "activations", expected="one for each network", found="none", do="choose networks"
            )
        self._check(weights)
        self.register_buffer("weights", weights)

    def forward(
        self, images: torch.Tensor, weights: torch.Tensor | None = None, *, scaled: bool = False
    ) -> torch.Tensor:
        """Each network's logits of the images, or pixel values at the coordinates.

        Args:
            images: [B, C, H, W] or [B, 2], the same for all networks, as in `Network.forward`.
            weights: [N, P] floating point, in place of the networks' own; None for their own.
            scaled: whether `images` are already in the networks' range.

        Returns:
            [N, B, num_outputs], before the softmax.

        Raises:
            ZooError: if images are illegal, as in `Network.forward`.
            ValueZooError: if weights are not a row of this architecture for each network.

        Example:
            >>> from nws_dataset import Architecture
            >>> architecture = Architecture(batch_norm=False)
            >>> weights = torch.zeros(2, layout_of(architecture).num_weights, requires_grad=True)
            >>> networks = Networks(architecture, ["relu", "tanh"], weights.detach())
            >>> logits = networks.forward(torch.zeros(3, 3, 32, 32), weights)
            >>> torch.autograd.grad(logits.sum(), weights)[0][:, -10:].sum(1)
            tensor([30., 30.])
        """
        if weights is None:
            weights = self.weights
        else:
            self._check(weights)
        x = network_input(self.architecture, images, weights.dtype, scaled=scaled)
        # grouped convolutions are faster in this format, twice as fast on a CPU
        if isinstance(self.architecture, cnn.Architecture):
            x = x.contiguous(memory_format=torch.channels_last)
        alike: dict[str, list[int]] = {}  # networks of each activation
        for n, activation in enumerate(self.activations):
            alike.setdefault(activation, []).append(n)
        if len(alike) == 1:
            return self._logits(x, weights, self.activations[0])
        logits = [self._logits(x, weights[chosen], activation) for activation, chosen in alike.items()]
        order = torch.tensor([n for chosen in alike.values() for n in chosen], device=weights.device)
        return torch.cat(logits)[order.argsort()]

    def _logits(self, x: torch.Tensor, weights: torch.Tensor, activation: str) -> torch.Tensor:
        """[N, B, O]: outputs of networks with the same activation, computed a few networks at a time."""
        architecture = self.architecture
        if not isinstance(architecture, cnn.Architecture):
            return self._logits_mapped(x, weights, activation)
        maps = zip(architecture.conv_widths, architecture.map_sizes, strict=False)
        bytes_per_network = len(x) * max(width * size**2 for width, size in maps) * x.element_size()
        most = CPU_MAP_BYTES if x.device.type == "cpu" else MAP_BYTES
        parts = weights.split(max(1, most // max(1, bytes_per_network)))
        return torch.cat([_convolutional(architecture, x, part, activation) for part in parts])

    def _logits_mapped(self, x: torch.Tensor, weights: torch.Tensor, activation: str) -> torch.Tensor:
        """[N, B, O]: outputs of networks of any kind, by vmap of the plain network."""
        architecture = self.architecture
        with torch.device("meta"):
            network = Network(architecture, activation).eval()

        def outputs(row: torch.Tensor) -> torch.Tensor:
            tensors = layout_of(architecture).views(row)
            found: torch.Tensor = functional_call(network, tensors, (x,), {"scaled": True})
            return found

        mapped: torch.Tensor = vmap(outputs)(weights)
        return mapped

    def _check(self, weights: torch.Tensor) -> None:
        """Raise a ValueZooError unless weights are a row for each network."""
        shape = [len(self.activations), layout_of(self.architecture).num_weights]
        if (
            not isinstance(weights, torch.Tensor)
            or list(weights.shape) != shape
            or not weights.is_floating_point()
        ):
            found = (
                f"{list(weights.shape)} {weights.dtype}"
                if isinstance(weights, torch.Tensor)
                else type(weights).__name__
            )
            raise ValueZooError(
                "weights",
                expected=f"a floating-point tensor {shape}",
                found=found,
                do="give a row of this architecture to each network",
            )


def _convolutional(
    architecture: cnn.Architecture, x: torch.Tensor, weights: torch.Tensor, activation: str
) -> torch.Tensor:
    """[N, B, O]: outputs of convolutional networks, computed layer by layer for all of them."""
    tensors = layout_of(architecture).views(weights)
    count, activate = len(weights), ACTIVATIONS[activation]
    for i, pool in enumerate(architecture.pooled, 1):
        kernels, biases = tensors[f"conv{i}.weight"].flatten(0, 1), tensors[f"conv{i}.bias"].flatten()
        # all networks see the same images, so the first convolution has one group
        x = F.conv2d(x, kernels, biases, architecture.stride, architecture.pad, groups=1 if i == 1 else count)
        if architecture.batch_norm:
            scale, shift = _norm(tensors, f"conv{i}")
            x = x * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)
        x = activate(x)
        x = F.max_pool2d(x, 2) if pool else x
    x = x.unflatten(1, (count, -1)).transpose(0, 1)  # [N, B, C, H, W]
    x = x.mean((3, 4)) if architecture.head == "average" else x.flatten(2)
    for i in range(1, architecture.depth_fc + 1):
        x = activate(_dense(x, tensors, f"dense{i}"))
        if architecture.batch_norm:
            scale, shift = _norm(tensors, f"dense{i}")
            x = x * scale[:, None] + shift[:, None]
    return _dense(x, tensors, OUTPUT)


def _norm(tensors: dict[str, torch.Tensor], layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch-norm as x * scale + shift, [N, O] each: torch's has no gradient for running statistics."""
    weight, bias, mean, variance = (
        tensors[f"{layer}{NORM_SUFFIX}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight * (variance + BATCH_NORM_EPSILON).rsqrt()
    return scale, bias - mean * scale


def _dense(x: torch.Tensor, tensors: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    """[N, B, I] -> [N, B, O]."""
    return torch.baddbmm(tensors[f"{layer}.bias"][:, None], x, tensors[f"{layer}.weight"].transpose(1, 2))
