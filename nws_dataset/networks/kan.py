"""Kolmogorov-Arnold networks (Liu et al. 2024, arXiv 2404.19756), which have a function on every edge.

It is w_b * silu(x) + w_s * sum_j c_j B_j(x), with B-splines B_j on a uniform grid. A network classifies
images, or represents one image: it maps coordinates to pixel values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nws_dataset.errors import ZooError
from nws_dataset.networks.base import BaseArchitecture, Draw, PlainNetwork, number, shown
from nws_dataset.networks.layout import INPUT, OUTPUT, TensorSpec

if TYPE_CHECKING:
    import torch
    import torch.nn as nn

COORDINATES = 2  # row and column
COEFFICIENT_STD = 0.1  # of the splines' initial coefficients


@dataclass(frozen=True)
class Architecture(BaseArchitecture):
    """Layers of edges without biases.

    Their widths are [2, width_hidden, ..., channels] for coordinates as input, and
    [channels * pixels, width_hidden, ..., 10] for images.

    Raises:
        ZooError: if a value is illegal.

    Example:
        >>> inr, classifier = Architecture(), Architecture(reads="images", image_size=14, depth_hidden=1)
        >>> inr.id, classifier.id
        ('kan2x32g5o3-inr1x28', 'kan1x32g5o3-in1x14')
        >>> inr.widths, classifier.widths
        ((2, 32, 32, 1), (196, 32, 10))
    """

    kind: ClassVar[str] = "kan"
    activations: ClassVar[tuple[str, ...]] = ("silu",)
    initializations: ClassVar[tuple[str, ...]] = ("kan",)
    legal_values: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "reads": ("coordinates", "images"),
        "image_channels": (1, 3),
        "pixel_min": (-1, 0),
    }
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "image_size": (2, 1 << 12),
        "width_hidden": (1, 1 << 16),
        "depth_hidden": (0, 300),
        "grid": (1, 1 << 10),
        "spline_order": (0, 9),
        "grid_min": (-1e6, 1e6),
        "grid_max": (-1e6, 1e6),
    }

    reads: str = "coordinates"  # of a pixel, to compute its value; or "images", to classify them
    image_channels: int = 1  # 1 gray, 3 colour
    image_size: int = 28  # pixels, height = width
    width_hidden: int = 32  # units of each hidden layer
    depth_hidden: int = 2  # hidden layers
    grid: int = 5  # intervals between grid_min and grid_max
    spline_order: int = 3  # degree of the splines' pieces
    grid_min: float = -1.0
    grid_max: float = 1.0
    pixel_min: int = 0  # pixels are pixel_min .. 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.grid_min < self.grid_max:
            raise ZooError(
                "Architecture.grid_max",
                expected=f"more than grid_min, {shown(self.grid_min)}",
                found=shown(self.grid_max),
                do="widen the grid",
            )

    @property
    def id(self) -> str:
        """A short name, unique among architectures and usable as a file name."""
        low, high = number(float(self.grid_min)), number(float(self.grid_max))
        return (
            f"kan{self.depth_hidden}x{self.width_hidden}g{self.grid}o{self.spline_order}"
            + f"-from{low}to{high}" * ((low, high) != ("-1", "1"))
            + ("-inr" if self.reads == "coordinates" else "-in")
            + f"{self.image_channels}x{self.image_size}"
            + "c" * (self.pixel_min == -1)
        )

    @property
    def pixel_range(self) -> tuple[float, float]:
        return float(self.pixel_min), 1.0

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of inputs, of units in each hidden layer, and of outputs."""
        inputs = COORDINATES if self.reads == "coordinates" else self.image_channels * self.image_size**2
        return inputs, *(self.width_hidden,) * self.depth_hidden, self.num_outputs

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers of edges."""
        return *(f"layer{i}" for i in range(1, self.depth_hidden + 1)), OUTPUT

    @property
    def num_splines(self) -> int:
        """Number of B-splines of an edge."""
        return self.grid + self.spline_order

    @property
    def num_edges(self) -> int:
        """E, the number of edges of a network."""
        return sum(a * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    def tensors(self) -> list[TensorSpec]:
        """Each layer's w_b [out, in], w_s [out, in] and c [out, in, splines]."""
        specs, inputs = [], INPUT
        for layer, width, units in zip(self.layers, self.widths, self.widths[1:], strict=False):
            for role in ("base_weight", "spline_weight", "coefficients"):
                shape, axes = (units, width), (layer, inputs)
                if role == "coefficients":
                    specs.append(
                        TensorSpec(f"{layer}.{role}", layer, role, (*shape, self.num_splines), (*axes, None))
                    )
                else:
                    specs.append(TensorSpec(f"{layer}.{role}", layer, role, shape, axes))
            inputs = layer
        return specs

    def edge_scores(self) -> list[TensorSpec]:
        """For a classifier, each edge's mean |phi(x)| over training images; phi is its function."""
        specs: list[TensorSpec] = []
        for spec in self.tensors():
            if spec.role == "base_weight" and self.reads == "images":
                name, offset = f"{spec.layer}.edge_scores", specs[-1].stop if specs else 0
                specs.append(TensorSpec(name, spec.layer, "edge_scores", spec.shape, spec.units, offset))
        return specs

    def scores_of(self, network: PlainNetwork, x: torch.Tensor) -> torch.Tensor:
        """[E]: each edge's mean |phi(x)| over inputs in the network's range; phi is its function."""
        import torch

        x, scores = x.flatten(1), []
        for layer in self.layers:
            edges: Any = network.get_submodule(layer)
            splines = edges.spline_weight[..., None] * edges.coefficients
            phi = network.activate(x)[:, None] * edges.base_weight
            phi = phi + torch.einsum("bis,ois->boi", self.splines(x), splines)
            scores.append(phi.abs().mean(0).flatten())
            x = phi.sum(2)
        return torch.cat(scores)

    def modules(self) -> dict[str, nn.Module]:
        from nws_dataset.networks.network import parameters

        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for spec in self.tensors():
            shapes.setdefault(spec.layer, {})[spec.role] = spec.shape
        return {layer: parameters(**of_layer) for layer, of_layer in shapes.items()}

    def forward(
        self, network: PlainNetwork, x: torch.Tensor, masks: Mapping[str, torch.Tensor] | None
    ) -> torch.Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            edges: Any = network.get_submodule(layer)
            splines = edges.spline_weight[..., None] * edges.coefficients
            base = network.activate(x) @ edges.base_weight.T
            x = base + self.splines(x).flatten(1) @ splines.flatten(1).T
        return x

    def splines(self, x: torch.Tensor) -> torch.Tensor:
        """[..., I, splines]: the B-splines at x [..., I], by Cox-de Boor recursion; 0 outside the knots."""
        import torch

        step, order = (self.grid_max - self.grid_min) / self.grid, self.spline_order
        numbers = torch.arange(-order, self.grid + order + 1, dtype=x.dtype, device=x.device)
        knots = numbers * step + self.grid_min
        x = x[..., None]
        values = ((x >= knots[:-1]) & (x < knots[1:])).to(x.dtype)
        for degree in range(1, order + 1):
            rising = (x - knots[: -degree - 1]) / (knots[degree:-1] - knots[: -degree - 1])
            falling = (knots[degree + 1 :] - x) / (knots[degree + 1 :] - knots[1:-degree])
            values = rising * values[..., :-1] + falling * values[..., 1:]
        return values

    def initial(self, initialization: str, tensor: TensorSpec, init_std: float | None) -> Draw:
        """w_b is Glorot-uniform, w_s is 1, the coefficients are normal with standard deviation 0.1."""
        if tensor.role == "base_weight":
            units, inputs = tensor.shape
            return Draw("uniform", math.sqrt(6 / (inputs + units)))
        return Draw("constant", 1.0) if tensor.role == "spline_weight" else Draw("normal", COEFFICIENT_STD)
