"""Small residual networks that classify images: three stages of one basic block each, with GroupNorm.

This is "resnet8" of Lim et al. 2024 (arXiv 2405.20231); names and order of the tensors are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nws_dataset.networks.base import NUM_CLASSES, BaseArchitecture, Draw, PlainNetwork
from nws_dataset.networks.layout import INPUT, OUTPUT, TensorSpec

if TYPE_CHECKING:
    import torch
    import torch.nn as nn

STAGES = 3  # all but the first halve the map's sides and double the channels
KERNEL = 3
NORM_EPSILON = 1e-5
# of CIFAR-10's colour channels, in 0 .. 255, to normalise pixels
PIXEL_MEAN = (125.307, 122.961, 113.8575)
PIXEL_STD = (51.5865, 50.847, 51.255)


@dataclass(frozen=True)
class Architecture(BaseArchitecture):
    """Convolution - norm - relu, three blocks, global average, dense layer.

    A block is convolution - norm - relu - convolution - norm - add its input - relu. The first block adds its
    input unchanged, the others after a 1 x 1 convolution and a norm. Norms are GroupNorm with one group.

    Raises:
        ZooError: if a value is illegal.

    Example:
        >>> from nws_dataset import layout_of
        >>> Architecture().id, [layout_of(Architecture(width_conv=w)).num_weights for w in (16, 14)]
        ('resnet8w16-in3x32', [78042, 59944])
    """

    kind: ClassVar[str] = "resnet"
    activations: ClassVar[tuple[str, ...]] = ("relu",)
    initializations: ClassVar[tuple[str, ...]] = ("kaiming_normal",)
    legal_values: ClassVar[Mapping[str, tuple[str | int, ...]]] = {"image_channels": (3,)}
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "image_size": (4, 1 << 12),
        "width_conv": (1, 1 << 12),
    }

    image_channels: int = 3
    image_size: int = 32  # pixels, height = width
    width_conv: int = 16  # channels of the first stage

    @property
    def id(self) -> str:
        """A short name, unique among architectures and usable as a file name."""
        return f"resnet8w{self.width_conv}-in{self.image_channels}x{self.image_size}"

    def scale(self, pixels: Any) -> Any:
        import torch

        mean, std = (pixels.new_tensor(x)[:, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
        return torch.sub(255 * pixels, mean) / std

    def _blocks(self) -> Iterator[tuple[str, int, int, int, str, str]]:
        """Each block's name, numbers of inputs and units, stride, names of its input and output units."""
        width, entering = self.width_conv, "conv1"
        for stage in range(STAGES):
            units, leaving = self.width_conv << stage, "conv1" if stage == 0 else f"layer{stage + 1}"
            yield f"layer{stage + 1}.0", width, units, 1 if stage == 0 else 2, entering, leaving
            width, entering = units, leaving

    def _convolutions(self) -> Iterator[tuple[str, str, tuple[int, int, int], int, tuple[str, str]]]:
        """Each convolution's name, its norm's, (units, inputs, kernel), stride, (output, input) units' names.

        Layers whose outputs are added share their units.
        """
        yield "conv1", "ln1", (self.width_conv, self.image_channels, KERNEL), 1, ("conv1", INPUT)
        for block, width, units, stride, entering, leaving in self._blocks():
            inner = f"{block}.conv1"
            yield inner, f"{block}.ln1", (units, width, KERNEL), stride, (inner, entering)
            yield f"{block}.conv2", f"{block}.ln2", (units, units, KERNEL), 1, (leaving, inner)
            if entering != leaving:
                names = f"{block}.shortcut.0", f"{block}.shortcut.1"
                yield *names, (units, width, 1), stride, (leaving, entering)

    def tensors(self) -> list[TensorSpec]:
        """Each convolution's weight, norm weight and norm bias, then the dense layer's weight and bias."""
        specs = []
        for name, norm, (units, inputs, kernel), _, axes in self._convolutions():
            shape = units, inputs, kernel, kernel
            specs += [
                TensorSpec(f"{name}.weight", name, "weight", shape, (*axes, None, None)),
                TensorSpec(f"{norm}.weight", name, "norm_weight", (units,), axes[:1]),
                TensorSpec(f"{norm}.bias", name, "norm_bias", (units,), axes[:1]),
            ]
        width, stream = self.width_conv << (STAGES - 1), axes[0]
        return [
            *specs,
            TensorSpec(f"{OUTPUT}.weight", OUTPUT, "weight", (NUM_CLASSES, width), (OUTPUT, stream)),
            TensorSpec(f"{OUTPUT}.bias", OUTPUT, "bias", (NUM_CLASSES,), (OUTPUT,)),
        ]

    def modules(self) -> dict[str, nn.Module]:
        import torch.nn as nn

        modules: dict[str, nn.Module] = {}
        for name, norm, (units, inputs, kernel), stride, _ in self._convolutions():
            modules[name] = nn.Conv2d(inputs, units, kernel, stride, kernel // 2, bias=False)
            modules[norm] = nn.GroupNorm(1, units, NORM_EPSILON)
        modules[OUTPUT] = nn.Linear(self.width_conv << (STAGES - 1), NUM_CLASSES)
        return modules

    def forward(
        self, network: PlainNetwork, x: torch.Tensor, masks: Mapping[str, torch.Tensor] | None
    ) -> torch.Tensor:
        def layer(name: str, norm: str, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = network.get_submodule(norm)(network.get_submodule(name)(x))
            return y

        x = network.activate(layer("conv1", "ln1", x))
        for block, *_, entering, leaving in self._blocks():
            inner = network.activate(layer(f"{block}.conv1", f"{block}.ln1", x))
            if entering != leaving:
                x = layer(f"{block}.shortcut.0", f"{block}.shortcut.1", x)
            x = network.activate(layer(f"{block}.conv2", f"{block}.ln2", inner) + x)
        logits: torch.Tensor = network.get_submodule(OUTPUT)(x.mean((2, 3)))
        return logits

    def uses(self, tensor: TensorSpec) -> int:
        size = self.image_size
        for name, _, _, stride, _ in self._convolutions():
            # a shortcut reads the same map as the first convolution of its block, whose stride counts already
            size = -(-size // (1 if name.endswith("shortcut.0") else stride))
            if name == tensor.layer:
                return size**2
        return 1

    def initial(self, initialization: str, tensor: TensorSpec, init_std: float | None) -> Draw:
        """Weights are normal with He's deviation, norms 1 and 0, the dense bias uniform as in PyTorch."""
        if tensor.role == "weight":
            return Draw("normal", math.sqrt(2 / tensor.fans[0]))
        if tensor.role == "bias":
            return Draw("uniform", (self.width_conv << (STAGES - 1)) ** -0.5)
        return Draw("constant", 1.0 if tensor.role == "norm_weight" else 0.0)
