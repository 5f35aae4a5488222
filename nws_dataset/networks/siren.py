"""SIRENs (Sitzmann et al. 2020, arXiv 2006.09661), which represent one image: coordinates -> pixel value.

This covers both published conventions of such zoos: DWSNets' (arXiv 2301.12780; the defaults), and NFN's
(arXiv 2302.14040: no offset, pixels in -1 .. 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nws_dataset.networks.base import BaseArchitecture, Draw, PlainNetwork, number
from nws_dataset.networks.layout import INPUT, OUTPUT, TensorSpec

if TYPE_CHECKING:
    import torch
    import torch.nn as nn

COORDINATES = 2  # row and column


@dataclass(frozen=True)
class Architecture(BaseArchitecture):
    """A multi-layer perceptron with sine layers, from (row, column) to the channels of a pixel.

    A hidden layer is x -> sin(frequency * (W x + b)), the output layer x -> W x + b + `output_offset`.

    Raises:
        ZooError: if a value is illegal.

    Example:
        >>> Architecture().id, Architecture(image_channels=3, output_offset=0.0, pixel_min=-1).id
        ('siren2x32w30-plus0.5-in1x28', 'siren2x32w30-in3x28c')
    """

    kind: ClassVar[str] = "siren"
    activations: ClassVar[tuple[str, ...]] = ("sine",)
    odd_units: ClassVar[bool] = True
    # "siren": Sitzmann et al.'s, biases as in PyTorch; "siren_uniform": one rule for all layers, biases 0
    initializations: ClassVar[tuple[str, ...]] = ("siren", "siren_uniform")
    legal_values: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "image_channels": (1, 3),
        "pixel_min": (-1, 0),
    }
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "image_size": (2, 1 << 12),
        "width_hidden": (1, 1 << 16),
        "depth_hidden": (1, 300),
        "frequency_first": (1e-6, 1e6),
        "frequency_hidden": (1e-6, 1e6),
        "output_offset": (-1e6, 1e6),
    }

    image_channels: int = 1  # 1 gray, 3 colour
    image_size: int = 28  # pixels, height = width
    width_hidden: int = 32  # units of each hidden layer
    depth_hidden: int = 2  # hidden layers
    frequency_first: float = 30.0  # of the first layer
    frequency_hidden: float = 30.0  # of the other hidden layers
    output_offset: float = 0.5  # added to the output
    pixel_min: int = 0  # pixels are pixel_min .. 1

    @property
    def id(self) -> str:
        """A short name, unique among architectures and usable as a file name."""
        first, hidden = number(float(self.frequency_first)), number(float(self.frequency_hidden))
        offset = number(float(self.output_offset))
        return (
            f"siren{self.depth_hidden}x{self.width_hidden}w{first}"
            + f"h{hidden}" * (first != hidden)
            + f"-plus{offset}" * (offset != "0")
            + f"-in{self.image_channels}x{self.image_size}"
            + "c" * (self.pixel_min == -1)
        )

    @property
    def reads(self) -> str:
        return "coordinates"

    @property
    def pixel_range(self) -> tuple[float, float]:
        return float(self.pixel_min), 1.0

    def tensors(self) -> list[TensorSpec]:
        """Each layer's weight [out, in] and bias."""
        specs, inputs, width = [], INPUT, COORDINATES
        hidden = ((f"dense{i}", self.width_hidden) for i in range(1, self.depth_hidden + 1))
        for layer, units in (*hidden, (OUTPUT, self.image_channels)):
            specs += [
                TensorSpec(f"{layer}.weight", layer, "weight", (units, width), (layer, inputs)),
                TensorSpec(f"{layer}.bias", layer, "bias", (units,), (layer,)),
            ]
            inputs, width = layer, units
        return specs

    def modules(self) -> dict[str, nn.Module]:
        import torch.nn as nn

        return {
            spec.layer: nn.Linear(spec.shape[1], spec.shape[0])
            for spec in self.tensors()
            if spec.role == "weight"
        }

    def forward(
        self, network: PlainNetwork, x: torch.Tensor, masks: Mapping[str, torch.Tensor] | None
    ) -> torch.Tensor:
        for i in range(1, self.depth_hidden + 1):
            frequency = self.frequency_first if i == 1 else self.frequency_hidden
            x = network.activate(frequency * network.get_submodule(f"dense{i}")(x))
        values: torch.Tensor = network.get_submodule(OUTPUT)(x) + self.output_offset
        return values

    def initial(self, initialization: str, tensor: TensorSpec, init_std: float | None) -> Draw:
        """Weights are uniform in +- sqrt(6 / inputs) / frequency.

        With "siren", the first layer's weights are uniform in +- 1 / inputs, and biases in +- 1 /
        sqrt(inputs), as in PyTorch. With "siren_uniform", biases are 0.
        """
        inputs = COORDINATES if tensor.layer == "dense1" else self.width_hidden
        if tensor.role == "bias":
            return Draw("uniform", inputs**-0.5) if initialization == "siren" else Draw("constant", 0.0)
        if initialization == "siren" and tensor.layer == "dense1":
            return Draw("uniform", 1 / inputs)
        return Draw("uniform", math.sqrt(6 / inputs) / self.frequency_hidden)
