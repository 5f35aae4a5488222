"""The plain PyTorch network of one model, the reference that all fast code is tested against."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F

from nws_dataset.errors import ValueZooError, ZooError
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import layout_of

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "sine": torch.sin,
    "silu": F.silu,
}


class Network(nn.Module):
    """A network of the zoo, with the tensor names of its row.

    Args:
        architecture: of any kind; fixes the shapes.
        activation: one of the architecture's `activations`, e.g. "relu"; None for a kind that has only one.
        dropout: probability that a unit is dropped in training mode.

    Raises:
        ZooError: if `activation` or `dropout` is illegal, or the network is too large.

    Example:
        >>> from nws_dataset import Architecture
        >>> net = Network(Architecture(), "relu").eval()
        >>> net(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 10])
        >>> row = net.row()
        >>> row.shape, torch.equal(Network(Architecture(), "relu").load_row(row).row(), row)
        (torch.Size([92218]), True)
    """

    def __init__(
        self, architecture: BaseArchitecture, activation: str | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if activation is None and len(architecture.activations) == 1:
            (activation,) = architecture.activations
        check_activation(activation, architecture)
        assert activation is not None
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise ZooError("dropout", expected="a probability, 0 to 1", found=repr(dropout), do="choose one")
        self.architecture, self.activation, self.dropout = architecture, activation, dropout
        layout_of(architecture)  # refuses networks that are too large
        for name, module in architecture.modules().items():
            *parents, last = name.split(".")
            parent: nn.Module = self
            for part in parents:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, module)

    def load_row(self, row: torch.Tensor) -> Network:
        """Load the weights of a row.

        Args:
            row: [P] floating point.

        Returns:
            self.

        Raises:
            ValueZooError: if it is not a row of this architecture.
        """
        shape = (layout_of(self.architecture).num_weights,)
        if not isinstance(row, torch.Tensor) or row.shape != shape or not row.is_floating_point():
            found = f"{list(row.shape)} {row.dtype}" if isinstance(row, torch.Tensor) else type(row).__name__
            raise ValueZooError(
                "row",
                expected=f"a floating-point tensor {list(shape)}",
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
        self, images: torch.Tensor, masks: Mapping[str, torch.Tensor] | None = None, *, scaled: bool = False
    ) -> torch.Tensor:
        """The logits of images, or the pixel values at coordinates if the network represents an image.

        Args:
            images: [B, C, H, W] pixels, uint8 0..255 or floating point 0..1, which are scaled to the
                architecture's range; with `scaled` any floating-point values, which the first layer gets
                unchanged. If the network represents an image: [B, 2] coordinates, row and column in -1..1.
            masks: layer -> [B, units...], dropout factors (0 or 1 / (1 - rate)); None for random ones.
            scaled: whether `images` are already in the network's range.

        Returns:
            [B, num_outputs], before the softmax; or [B, C] values in the architecture's range.

        Raises:
            ZooError: if images are integers other than uint8, have another shape, or are `scaled` but not
                floating point.

        Example:
            >>> from nws_dataset import Architecture
            >>> net = Network(Architecture(pixel_min=-1), "tanh").eval()
            >>> images = torch.rand(2, 3, 32, 32)
            >>> bool(torch.equal(net(images), net(2 * images - 1, scaled=True)))
            True
        """
        dtype = next(self.parameters()).dtype
        x = network_input(self.architecture, images, dtype, scaled=scaled)
        outputs: torch.Tensor = self.architecture.forward(self, x, masks)
        return outputs

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the network's activation function.

        Args:
            x: any tensor.

        Returns:
            A tensor of the same shape.

        Example:
            >>> from nws_dataset import Architecture
            >>> Network(Architecture(), "relu").activate(torch.tensor([-1.0, 1.0]))
            tensor([0., 1.])
        """
        return ACTIVATIONS[self.activation](x)

    def drop(self, x: torch.Tensor, layer: str, masks: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
        """Apply dropout to a layer's units.

        Args:
            x: [B, units...], the layer's output.
            layer: its name.
            masks: as in `forward`.

        Returns:
            A tensor of the same shape.

        Example:
            >>> from nws_dataset import Architecture
            >>> mask = torch.tensor([[0.0, 2.0]])
            >>> Network(Architecture(), "relu").drop(torch.ones(1, 2), "dense1", {"dense1": mask})
            tensor([[0., 2.]])
        """
        return F.dropout(x, self.dropout, self.training) if masks is None else x * masks[layer]


def check_activation(activation: str | None, architecture: BaseArchitecture) -> None:
    """Raise a ZooError unless the activation is legal for the architecture."""
    if not isinstance(activation, str) or activation not in architecture.activations:
        raise ZooError(
            "activation",
            expected=f"one of {', '.join(architecture.activations)}",
            found=repr(activation),
            do="choose one of them",
        )


def network_input(
    architecture: BaseArchitecture, images: torch.Tensor, dtype: torch.dtype, *, scaled: bool
) -> torch.Tensor:
    """Check the images of `Network.forward` and scale them for the first layer; uint8 becomes `dtype`.

    Raises:
        ZooError: as `Network.forward`.
    """
    _check_inputs(architecture, images, scaled)
    if architecture.reads == "coordinates":
        return images
    if not images.is_floating_point():
        images = images.to(dtype) / 255
    return images if scaled else architecture.scale(images)


def parameters(**shapes: tuple[int, ...]) -> nn.Module:
    """A module that only has parameters, initialized with small random numbers."""
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.randn(shape) / shape[-1]))
    return module


def coordinates(architecture: BaseArchitecture, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The coordinates of an image's pixels: [H * W, 2], row by row, each (row, column) in -1 .. 1."""
    side = torch.linspace(-1, 1, architecture.image_size, dtype=torch.float64).to(dtype)
    return torch.stack(torch.meshgrid(side, side, indexing="ij"), dim=-1).reshape(-1, 2)


def _check_inputs(architecture: BaseArchitecture, images: torch.Tensor, scaled: bool) -> None:
    if not isinstance(images, torch.Tensor):
        raise ValueZooError(
            "images", expected="a torch tensor", found=type(images).__name__, do="convert them"
        )
    if architecture.reads == "coordinates":
        if images.ndim != 2 or images.shape[1] != 2 or not images.is_floating_point():
            found = f"{list(images.shape)} {images.dtype}"
            expected, do = "floating-point coordinates [B, 2]", "give rows and columns in -1..1"
            raise ZooError(f"a network {architecture.id}", expected=expected, found=found, do=do)
        return
    channels, size = architecture.image_channels, architecture.image_size
    if images.ndim != 4 or tuple(images.shape[1:]) != (channels, size, size):
        expected, found = f"images [B, {channels}, {size}, {size}]", str(list(images.shape))
        raise ZooError(
            f"a network {architecture.id}", expected=expected, found=found, do="resize or stack them"
        )
    if not images.is_floating_point() and (scaled or images.dtype != torch.uint8):
        expected = "floating point" if scaled else "uint8 0..255, or floating point 0..1"
        raise ZooError(
            f"a network {architecture.id}", expected=expected, found=str(images.dtype), do="convert them"
        )
