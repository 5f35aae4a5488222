"""The plain PyTorch network of one model: the reference that everything fast is tested against."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F

from nws_dataset.errors import ValueZooError, ZooError
from nws_dataset.format.layout import NORM_SUFFIX, OUTPUT, layout_of
from nws_dataset.format.recipe import Architecture

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1  # weight of the newest batch in the running statistics (a decay of 0.9)


class Network(nn.Module):
    """A network of the zoo, with the tensor names of its row.

    Args:
        architecture: fixes the shapes.
        activation: one of "relu", "elu", "sigmoid", "tanh".
        dropout: probability that a unit is dropped in training mode.

    Raises:
        ZooError: if one of the two is not legal.

    Example:
        >>> net = Network(Architecture(), "relu").eval()
        >>> net(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 10])
        >>> row = net.row()
        >>> row.shape, torch.equal(Network(Architecture(), "relu").load_row(row).row(), row)
        (torch.Size([92218]), True)
    """

    def __init__(self, architecture: Architecture, activation: str, dropout: float = 0.0) -> None:
        super().__init__()
        check_activation(activation)
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise ZooError("dropout", expected="a probability, 0 to 1", found=repr(dropout), do="choose one")
        self.architecture, self.activation, self.dropout = architecture, activation, dropout
        for layer in layout_of(architecture).layers:
            self._add(layer)

    def _add(self, layer: str) -> None:
        architecture, is_conv = self.architecture, layer.startswith("conv")
        units, width, *_ = layout_of(architecture)[f"{layer}.weight"].shape
        if is_conv:
            module: nn.Module = nn.Conv2d(
                width, units, architecture.filter_size, architecture.stride, architecture.pad
            )
        else:
            module = nn.Linear(width, units)
        self.add_module(layer, module)
        if architecture.batch_norm and layer != OUTPUT:
            norm = nn.BatchNorm2d if is_conv else nn.BatchNorm1d
            self.add_module(layer + NORM_SUFFIX, norm(units, BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM))

    def load_row(self, row: torch.Tensor) -> Network:
        """Take the weights of a row.

        Args:
            row: [P] floating point.

        Returns:
            self.

        Raises:
            ValueZooError: if it is no row of this architecture.
        """
        shape = (layout_of(self.architecture).num_weights,)
        if not isinstance(row, torch.Tensor) or row.shape != shape or not row.is_floating_point():
            found = f"{list(row.shape)} {row.dtype}" if isinstance(row, torch.Tensor) else type(row).__name__
            raise ValueZooError(
                "row",
                expected=f"a tensor {list(shape)} of floating point",
                found=found,
                do="give a row of this architecture",
            )
        self.load_state_dict(layout_of(self.architecture).views(row), strict=True)
        return self

    def row(self) -> torch.Tensor:
        """The weights as a row.

        Returns:
            [P], a copy.
        """
        state = self.state_dict()
        return torch.cat([state[spec.name].reshape(-1) for spec in layout_of(self.architecture).tensors])

    def forward(
        self, images: torch.Tensor, masks: dict[str, torch.Tensor] | None = None, *, scaled: bool = False
    ) -> torch.Tensor:
        """Logits of images.

        Args:
            images: [B, C, H, W]. Pixels: uint8 0..255, or floating point 0..1, which are scaled to the
                architecture's range (pixel_min..1) here. With `scaled`: what enters the first convolution, as
                it is, e.g. a probe of any values.
            masks: layer -> [B, units...], factors of dropout (0 or 1 / (1 - rate)), in place of torch's own
                draws.
            scaled: whether `images` are in the network's range already; then they must be floating point.

        Returns:
            [B, num_outputs], before the softmax.

        Raises:
            ZooError: if images are integers other than uint8, have another shape, or `scaled` ones are no
                floating point.

        Example:
            >>> net = Network(Architecture(pixel_min=-1), "tanh").eval()
            >>> images = torch.rand(2, 3, 32, 32)
            >>> bool(torch.equal(net(images), net(2 * images - 1, scaled=True)))
            True
        """
        architecture, output = self.architecture, self.get_submodule(OUTPUT)
        assert isinstance(output, nn.Linear)
        x = network_input(architecture, images, output.bias.dtype, scaled=scaled)
        activation = ACTIVATIONS[self.activation]
        for i, pool in enumerate(architecture.pooled, 1):
            x = self.get_submodule(f"conv{i}")(x)
            x = self.get_submodule(f"conv{i}{NORM_SUFFIX}")(x) if architecture.batch_norm else x
            x = activation(x)
            x = F.max_pool2d(x, 2) if pool else x
            x = self._drop(x, f"conv{i}", masks)
        x = x.mean((2, 3)) if architecture.head == "average" else x.flatten(1)
        for i in range(1, architecture.depth_fc + 1):
            x = activation(self.get_submodule(f"dense{i}")(x))
            x = self.get_submodule(f"dense{i}{NORM_SUFFIX}")(x) if architecture.batch_norm else x
            x = self._drop(x, f"dense{i}", masks)
        logits: torch.Tensor = output(x)
        return logits

    def _drop(self, x: torch.Tensor, layer: str, masks: dict[str, torch.Tensor] | None) -> torch.Tensor:
        if not layer.startswith(self.architecture.dropout_place):
            return x
        return F.dropout(x, self.dropout, self.training) if masks is None else x * masks[layer]


def check_activation(activation: str) -> None:
    """Raise a ZooError unless it is one of ACTIVATIONS."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ZooError(
            "activation",
            expected=f"one of {', '.join(ACTIVATIONS)}",
            found=repr(activation),
            do="choose one of them",
        )


def network_input(
    architecture: Architecture, images: torch.Tensor, dtype: torch.dtype, *, scaled: bool
) -> torch.Tensor:
    """What enters the first convolution: images [B, C, H, W] as `Network.forward` takes them, checked and
    scaled; of integers, `dtype` is made.

    Raises:
        ZooError: as `Network.forward`.
    """
    low = architecture.pixel_min
    _check_images(architecture, images, scaled)
    if not images.is_floating_point():
        images = images.to(dtype) / 255
    return images * (1 - low) + low if low and not scaled else images


def _check_images(architecture: Architecture, images: torch.Tensor, scaled: bool) -> None:
    shape = (architecture.image_channels, architecture.image_size, architecture.image_size)
    if not isinstance(images, torch.Tensor):
        raise ValueZooError(
            "images", expected="a tensor of torch", found=type(images).__name__, do="convert them"
        )
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        expected, found = f"images [B, {', '.join(map(str, shape))}]", str(list(images.shape))
        raise ZooError(
            f"a network {architecture.id}", expected=expected, found=found, do="resize or stack them"
        )
    if not images.is_floating_point() and (scaled or images.dtype != torch.uint8):
        expected = "floating point" if scaled else "uint8 0..255, or floating point 0..1"
        raise ZooError(
            f"a network {architecture.id}", expected=expected, found=str(images.dtype), do="convert them"
        )
