"""Convolutional networks that classify images, as in the papers of both zoos.

Eilertsen et al. 2020, arXiv 2002.05688; Unterthiner et al. 2020, arXiv 2002.11448.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nws_dataset.errors import ZooError
from nws_dataset.networks.base import NUM_CLASSES, BaseArchitecture, Draw, PlainNetwork
from nws_dataset.networks.layout import INPUT, NORM_SUFFIX, OUTPUT, TensorSpec

if TYPE_CHECKING:
    import torch
    import torch.nn as nn

NUM_BLOCKS = 3  # convolutional blocks; each may double the channels and end in a max-pool
CONSTANT = 0.1  # every weight under "constant"
NORM_WEIGHT_STD = 0.002  # batch-norm's weight starts at normal(1, 0.002), as in Eilertsen et al.'s code
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1  # weight of the newest batch in the running statistics (decay 0.9)


@dataclass(frozen=True)
class Architecture(BaseArchitecture):
    """The part of a recipe that fixes the shapes of a network, and so of its row.

    Three blocks of convolutions (conv -> batch-norm -> activation), then hidden dense layers (dense ->
    activation -> batch-norm), then the output layer. This covers both papers' networks; the defaults are
    Eilertsen et al.'s `fixed` architecture.

    Raises:
        ZooError: if a value is illegal, or the values do not fit together.

    Example:
        >>> Architecture().id
        'conv3x8k5-max-dense2x128-bn-in3x32'
        >>> Architecture(filter_size=3, width_conv=4).conv_widths
        (4, 8, 16)
        >>> Architecture(width_fc=64).dense_widths
        (64, 32)
        >>> Architecture(width_fc=64).to_json()[:40]
        '{"kind":"cnn","filter_size":5,"depth_con'
    """

    kind: ClassVar[str] = "cnn"
    activations: ClassVar[tuple[str, ...]] = ("relu", "elu", "sigmoid", "tanh")
    initializations: ClassVar[tuple[str, ...]] = (
        "constant",
        "normal",
        "glorot_uniform",
        "glorot_normal",
        "he_normal",
        "orthogonal",
        "random_normal",
        "truncated_normal",
    )
    legal_values: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "padding": ("same", "valid"),
        "pooling": ("max", "none"),
        "head": ("flatten", "average"),
        "dropout_place": ("dense", "conv"),
        "pixel_min": (-1, 0),
    }
    # so that no file can ask for more than a machine can hold
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "filter_size": (1, 255),
        "depth_conv": (NUM_BLOCKS, 300),
        "width_conv": (1, 1 << 16),
        "width_growth": (1, 64),
        "stride": (1, 255),
        "depth_fc": (0, 300),
        "width_fc": (1, 1 << 24),
        "image_channels": (1, 255),
        "image_size": (1, 1 << 16),
        "num_outputs": (NUM_CLASSES, 1 << 16),
    }

    filter_size: int = 5  # kernels are filter_size x filter_size, odd
    depth_conv: int = 3  # convolutions in total; later blocks have one more if it is no multiple of 3
    width_conv: int = 8  # channels of the first block
    width_growth: int = 2  # block c = 0, 1, 2 has width_conv * width_growth**c channels
    stride: int = 1  # of every convolution
    padding: str = "same"  # "same": filter_size // 2 on every side; "valid": none
    pooling: str = "max"  # "max": each block ends in a 2x2 max-pool; "none": no pooling
    head: str = "flatten"  # after the convolutions: "flatten" (channel, height, width) or global "average"
    depth_fc: int = 2  # hidden dense layers
    # units of the first hidden dense layer, halved in each further one; None without hidden layers
    width_fc: int | None = 128
    batch_norm: bool = True  # before the activation of a convolution, after that of a dense layer
    # which layers end in dropout: the hidden "dense" or the "conv" layers; the recipe has the rate
    dropout_place: str = "dense"
    image_channels: int = 3  # 1: gray, 3: colour (gray images tiled)
    image_size: int = 32  # pixels, height = width
    pixel_min: int = 0  # pixels are scaled to pixel_min .. 1
    # units of the output layer; some networks of Eilertsen et al.'s release have two for each class
    num_outputs: int = NUM_CLASSES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filter_size % 2 == 0:
            raise ZooError(
                "Architecture.filter_size",
                expected="an odd number",
                found=str(self.filter_size),
                do="choose 3, 5, 7, ...",
            )
        if (self.width_fc is None) != (self.depth_fc == 0):
            raise ZooError(
                "Architecture.width_fc",
                expected="None without hidden dense layers, else a number",
                found=str(self.width_fc),
                do="set both",
            )
        if not all(self.dense_widths):
            found = f"{self.width_fc}, halved to {', '.join(map(str, self.dense_widths))}"
            raise ZooError(
                "Architecture.width_fc",
                expected="a unit in each hidden layer",
                found=found,
                do="widen them, or have fewer",
            )
        if self.map_sizes[-1] < 1:
            raise ZooError(
                "Architecture",
                expected="an image large enough for the convolutions",
                found=f"{self.image_size} pixels",
                do="enlarge it",
            )

    @property
    def convs_per_block(self) -> tuple[int, ...]:
        """Convolutions in each block; depth 4 adds a second one to block 3, depth 5 to blocks 2 and 3."""
        base, extra = divmod(self.depth_conv, NUM_BLOCKS)
        return tuple(base + (block >= NUM_BLOCKS - extra) for block in range(NUM_BLOCKS))

    @property
    def conv_widths(self) -> tuple[int, ...]:
        """Output channels of each convolution."""
        return tuple(
            self.width_conv * self.width_growth**b
            for b, n in enumerate(self.convs_per_block)
            for _ in range(n)
        )

    @property
    def pooled(self) -> tuple[bool, ...]:
        """Whether each convolution is followed by a 2x2 max-pool."""
        return tuple(self.pooling == "max" and i == n - 1 for n in self.convs_per_block for i in range(n))

    @property
    def pad(self) -> int:
        """Zeros on every side of a convolution's input."""
        return self.filter_size // 2 if self.padding == "same" else 0

    @property
    def map_sizes(self) -> tuple[int, ...]:
        """Height (= width) of each convolution's output before pooling, then of the last after pooling."""
        sizes, size = [], self.image_size
        for pool in self.pooled:
            size = (size + 2 * self.pad - self.filter_size) // self.stride + 1
            sizes.append(size)
            size = size // 2 if pool else size
        return (*sizes, size)

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """Units of each hidden dense layer."""
        return tuple((self.width_fc or 0) >> i for i in range(self.depth_fc))

    @property
    def id(self) -> str:
        """A short name, unique among architectures and usable as a file name."""
        conv = f"conv{self.depth_conv}x{self.width_conv}k{self.filter_size}"
        conv += (
            f"s{self.stride}" * (self.stride != 1)
            + f"g{self.width_growth}" * (self.width_growth != 2)
            + "v" * (self.padding == "valid")
        )
        parts = [
            conv,
            self.pooling if self.pooling != "none" else "",
            "avg" if self.head == "average" else "",
        ]
        parts += [
            f"dense{self.depth_fc}x{self.width_fc}" if self.depth_fc else "",
            "bn" if self.batch_norm else "",
        ]
        parts += ["convdrop" if self.dropout_place == "conv" else ""]
        # c: pixels centred on 0
        parts += [f"in{self.image_channels}x{self.image_size}" + "c" * (self.pixel_min == -1)]
        parts += [f"out{self.num_outputs}" if self.num_outputs != NUM_CLASSES else ""]
        return "-".join(filter(None, parts))

    @property
    def pixel_range(self) -> tuple[float, float]:
        return float(self.pixel_min), 1.0

    def tensors(self) -> list[TensorSpec]:
        """Each layer's weight and bias, then batch-norm's weight, bias, running mean and variance."""
        specs: list[TensorSpec] = []

        def add_layer(
            layer: str, inputs: str, *weight_shape: int, unfolded: tuple[int, ...] | None = None
        ) -> None:
            folds = (None,) * len((unfolded or weight_shape)[2:])
            weight = TensorSpec(
                f"{layer}.weight", layer, "weight", weight_shape, (layer, inputs, *folds), unfolded=unfolded
            )
            vectors = {"bias": f"{layer}.bias"}
            if self.batch_norm and layer != OUTPUT:
                vectors |= {
                    "norm_weight": f"{layer}{NORM_SUFFIX}.weight",
                    "norm_bias": f"{layer}{NORM_SUFFIX}.bias",
                    "norm_mean": f"{layer}{NORM_SUFFIX}.running_mean",
                    "norm_variance": f"{layer}{NORM_SUFFIX}.running_var",
                }
            specs.extend(
                (
                    weight,
                    *(
                        TensorSpec(name, layer, role, weight_shape[:1], (layer,))
                        for role, name in vectors.items()
                    ),
                )
            )

        inputs, width, k = INPUT, self.image_channels, self.filter_size
        for i, channels in enumerate(self.conv_widths, 1):
            add_layer(f"conv{i}", inputs, channels, width, k, k)
            inputs, width = f"conv{i}", channels
        side = self.map_sizes[-1] if self.head == "flatten" else 1
        for layer, units in (
            *((f"dense{i}", units) for i, units in enumerate(self.dense_widths, 1)),
            (OUTPUT, self.num_outputs),
        ):
            unfolded = (units, width, side, side) if side > 1 else None
            add_layer(layer, inputs, units, width * side**2, unfolded=unfolded)
            inputs, width, side = layer, units, 1
        return specs

    def modules(self) -> dict[str, nn.Module]:
        import torch.nn as nn

        modules: dict[str, nn.Module] = {}
        for spec in self.tensors():
            if spec.role == "weight":
                units, width, *kernel = spec.shape
                modules[spec.layer] = (
                    nn.Conv2d(width, units, self.filter_size, self.stride, self.pad)
                    if kernel
                    else nn.Linear(width, units)
                )
            elif spec.role == "norm_weight":
                norm = nn.BatchNorm2d if spec.layer.startswith("conv") else nn.BatchNorm1d
                modules[spec.layer + NORM_SUFFIX] = norm(spec.size, BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM)
        return modules

    def forward(
        self, network: PlainNetwork, x: torch.Tensor, masks: Mapping[str, torch.Tensor] | None
    ) -> torch.Tensor:
        import torch.nn.functional as F

        for i, pool in enumerate(self.pooled, 1):
            x = network.get_submodule(f"conv{i}")(x)
            x = network.get_submodule(f"conv{i}{NORM_SUFFIX}")(x) if self.batch_norm else x
            x = network.activate(x)
            x = F.max_pool2d(x, 2) if pool else x
            x = network.drop(x, f"conv{i}", masks) if self.dropout_place == "conv" else x
        x = x.mean((2, 3)) if self.head == "average" else x.flatten(1)
        for i in range(1, self.depth_fc + 1):
            x = network.activate(network.get_submodule(f"dense{i}")(x))
            x = network.get_submodule(f"dense{i}{NORM_SUFFIX}")(x) if self.batch_norm else x
            x = network.drop(x, f"dense{i}", masks) if self.dropout_place == "dense" else x
        logits: torch.Tensor = network.get_submodule(OUTPUT)(x)
        return logits

    def dropped_layers(self) -> dict[str, tuple[int, ...]]:
        if self.dropout_place == "dense":
            return {f"dense{i}": (units,) for i, units in enumerate(self.dense_widths, 1)}
        sizes = [size // 2 if pool else size for size, pool in zip(self.map_sizes, self.pooled, strict=False)]
        return {
            f"conv{i}": (c, s, s) for i, (c, s) in enumerate(zip(self.conv_widths, sizes, strict=True), 1)
        }

    def uses(self, tensor: TensorSpec) -> int:
        convolution = tensor.layer.removeprefix("conv")
        return self.map_sizes[int(convolution) - 1] ** 2 if convolution != tensor.layer else 1

    def initial(self, initialization: str, tensor: TensorSpec, init_std: float | None) -> Draw:
        """How an initialization draws a tensor; only weights depend on it.

        Biases and running means are 0, running variances 1, batch-norm's weights normal(1, 0.002).
        "glorot_normal" and "he_normal" are not truncated.
        """
        if tensor.role != "weight":
            return {
                "norm_weight": Draw("normal", NORM_WEIGHT_STD, mean=1.0),
                "norm_variance": Draw("constant", 1.0),
            }.get(tensor.role, Draw("constant", 0.0))
        fan_in, fan_out = tensor.fans
        match initialization:
            case "constant":
                return Draw("constant", CONSTANT)
            case "normal" | "orthogonal":
                return Draw(initialization)
            case "glorot_uniform":
                return Draw("uniform", math.sqrt(6 / (fan_in + fan_out)))
            case "glorot_normal":
                return Draw("normal", math.sqrt(2 / (fan_in + fan_out)))
            case "he_normal":
                return Draw("normal", math.sqrt(2 / fan_in))
        assert init_std is not None
        return Draw(initialization.removeprefix("random_"), init_std)


def convolutional(architecture: BaseArchitecture) -> Architecture:
    """Return the architecture, if it is of this kind.

    Raises:
        ZooError: if it is of another kind.
    """
    if not isinstance(architecture, Architecture):
        raise ZooError(
            architecture.id,
            expected="a convolutional network",
            found=f"a network of kind {architecture.kind}",
            do="choose snapshots of kind cnn",
        )
    return architecture
