"""The base class of each kind's `Architecture`, and the checks of its fields."""

from __future__ import annotations

import abc
import dataclasses
import functools
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from nws_dataset.errors import ZooError
from nws_dataset.networks.layout import TensorSpec

if TYPE_CHECKING:
    import torch
    import torch.nn as nn

NUM_CLASSES = 10


@dataclass(frozen=True)
class Draw:
    """How a tensor's initial values are drawn: `mean` + `scale` * values of a distribution.

    "uniform": in -1 .. 1; "normal"; "truncated_normal": within two deviations; "orthogonal": the rows or
    columns of a matrix, whichever are fewer, are orthonormal; "constant": all are 1.
    """

    distribution: str
    scale: float = 1.0
    mean: float = 0.0


class PlainNetwork(Protocol):
    """What a kind's `forward` uses of a `nws_dataset.networks.network.Network`."""

    def get_submodule(self, target: str) -> nn.Module: ...

    def activate(self, x: torch.Tensor) -> torch.Tensor: ...

    def drop(self, x: torch.Tensor, layer: str, masks: Mapping[str, torch.Tensor] | None) -> torch.Tensor: ...


@dataclass(frozen=True)
class BaseArchitecture(abc.ABC):
    """The part of a recipe that fixes the shapes of a network, and so of its row.

    A subclass is a kind of network: a frozen dataclass whose fields are numbers and strings, each a column of
    the index. It checks its fields, and defines the tensors, what the plain PyTorch network computes, and how
    its weights are initialized.
    """

    kind: ClassVar[str]  # its name, unique
    activations: ClassVar[tuple[str, ...]]  # legal values of the recipe's `activation`
    initializations: ClassVar[tuple[str, ...]]  # legal values of the recipe's `initialization`
    # whether hidden units compute odd functions: then the sign of all weights of a unit may be changed
    odd_units: ClassVar[bool] = False
    # field -> its legal values, if it is a choice; or (low, high), if it is a number
    legal_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_types(self)
        check_legal(self, self.legal_values)
        for field, (low, high) in self.bounds.items():
            found = getattr(self, field)
            if found is not None and not low <= found <= high:
                raise ZooError(
                    f"{name}.{field}",
                    expected=f"{low} to {high}",
                    found=shown(found),
                    do="choose a number in between",
                )

    @property
    def num_outputs(self) -> int:
        """Units of the output layer: classes, or the channels of a pixel."""
        return self.image_channels if self.reads == "coordinates" else NUM_CLASSES

    @property
    @abc.abstractmethod
    def id(self) -> str:
        """A short name, unique among architectures and usable as a file name."""

    @property
    def reads(self) -> str:
        """The network's input.

        "images", which it classifies, or "coordinates" of pixels, whose values it computes: it represents one
        image.
        """
        return "images"

    @property
    def image_channels(self) -> int:
        """C, channels of the images that it reads or represents: 1 gray, 3 colour (gray images tiled)."""
        raise NotImplementedError

    @property
    def image_size(self) -> int:
        """Height and width of these images in pixels."""
        raise NotImplementedError

    @property
    def pixel_range(self) -> tuple[float, float]:
        """The network's numbers for pixel values 0 and 255."""
        return 0.0, 1.0

    @abc.abstractmethod
    def tensors(self) -> list[TensorSpec]:
        """The tensors of a row in network order; `layout_of` adds their offsets."""

    @abc.abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """The plain network's modules by name; their parameters have the tensors' names."""

    @abc.abstractmethod
    def forward(
        self, network: PlainNetwork, x: torch.Tensor, masks: Mapping[str, torch.Tensor] | None
    ) -> Any:
        """The plain network's output.

        Args:
            network: has the `modules`, and `activate` and `drop`.
            x: [B, C, H, W] images in `pixel_range`, or [B, 2] coordinates.
            masks: layer -> [B, units...], dropout factors in place of random ones; None for random ones.

        Returns:
            [B, num_outputs] logits, or [B, C] values of pixels.
        """

    def edge_scores(self) -> list[TensorSpec]:
        """Scores of edges, [out, in] per layer, that a snapshot has besides its row; most kinds have none."""
        return []

    def scores_of(self, network: PlainNetwork, x: torch.Tensor) -> torch.Tensor:
        """[E]: the plain network's scores for inputs in its range, in the order of `edge_scores`."""
        raise NotImplementedError

    def dropped_layers(self) -> dict[str, tuple[int, ...]]:
        """Layer that ends in dropout -> shape of its output for one input."""
        return {}

    def uses(self, tensor: TensorSpec) -> int:
        """How often each number of a tensor is used per input, e.g. at how many positions of a kernel."""
        return 1

    @abc.abstractmethod
    def initial(self, initialization: str, tensor: TensorSpec, init_std: float | None) -> Draw:
        """How an initialization draws a tensor; `init_std` is the recipe's."""

    def scale(self, pixels: Any) -> Any:
        """Scale pixels [..., C, H, W] from 0 .. 1 to the range of the network's input or output."""
        low, high = self.pixel_range
        return pixels if (low, high) == (0, 1) else pixels * (high - low) + low

    def to_json(self) -> str:
        """The kind and the fields as JSON, in their order.

        Returns:
            The text, which `nws_dataset.networks.architecture_from_json` reads.
        """
        return json.dumps({"kind": self.kind, **dataclasses.asdict(self)}, separators=(",", ":"))


def number(value: float) -> str:
    """A number as part of an architecture's short name."""
    return repr(value).removesuffix(".0")


def shown(found: object) -> str:
    """A value as text for a message; Python refuses to print numbers of thousands of digits."""
    return "a number of more than 64 bits" if isinstance(found, int) and abs(found) >= 2**64 else repr(found)


@functools.cache
def _legal_types(dataclass: type) -> dict[str, tuple[type, ...]]:
    """The types of a dataclass's fields, cached because resolving their names takes a millisecond."""
    hints = typing.get_type_hints(dataclass)
    return {
        field.name: typing.get_args(hints[field.name]) or (hints[field.name],)
        for field in dataclasses.fields(dataclass)
    }


def check_types(value: Any) -> None:
    """Raise a ZooError if a field of a dataclass has a wrong type; numpy's numbers have one."""
    dataclass: type = type(value)
    for name, legal in _legal_types(dataclass).items():
        found = getattr(value, name)
        if not (type(found) in legal or (type(found) is int and float in legal)):
            expected = " or ".join("None" if k is type(None) else k.__name__ for k in legal)
            raise ZooError(
                f"{type(value).__name__}.{name}",
                expected=expected,
                found=shown(found),
                do="give a value of this type",
            )


def check_legal(value: object, legal_values: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise a ZooError if a field of a dataclass has an illegal value."""
    for name, legal in legal_values.items():
        found = getattr(value, name, legal[0])
        if found not in legal:
            expected = "one of " + ", ".join(map(str, legal))
            raise ZooError(
                f"{type(value).__name__}.{name}",
                expected=expected,
                found=shown(found),
                do="choose a legal value",
            )
