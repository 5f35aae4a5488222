"""Architecture -> the layout of its row: the name, shape and offset of each tensor in the flat vector.

A row holds a network's weights in network order: layers from input to output; in each layer weight [out, in,
height, width], bias, then batch-norm's weight, bias, running_mean, running_var. All offsets come from here.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from nws_dataset.errors import ZooError

Array = TypeVar("Array")  # a numpy array or torch tensor; only slicing and reshape are used

MAX_WEIGHTS = 1 << 32  # of a network, so that no file can ask for more than a machine can hold
INPUT = "input"  # name of the input units: channels, pixels or coordinates
OUTPUT = "output"  # name of the output layer, and of its units
NORM_SUFFIX = "_norm"  # a layer's batch-norm is named after the layer


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a row."""

    name: str  # as in the state_dict of `nws_dataset.networks.network.Network`, e.g. "conv1.weight"
    layer: str  # "conv1", "dense2", "output"; batch-norm belongs to the layer it follows
    # "weight", "bias", "norm_weight", "norm_bias", "norm_mean", "norm_variance"; in a KAN "base_weight",
    # "spline_weight", "coefficients"
    role: str
    shape: tuple[int, ...]
    # the units along each axis of `unit_shape`: a layer's name, INPUT, or None (e.g. for a kernel's axes).
    # Axes with the same units are permuted together; a tensor with two axes of units describes edges
    units: tuple[str | None, ...]
    offset: int = 0  # index of its first number in the row
    # the shape with one axis for each of `units`, if `shape` joins some: after a flatten [units, channels,
    # height, width]
    unfolded: tuple[int, ...] | None = None

    @property
    def unit_shape(self) -> tuple[int, ...]:
        return self.unfolded or self.shape

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        return self.offset + self.size

    @property
    def trained(self) -> bool:
        """False for batch-norm's running statistics, which have no gradient."""
        return self.role not in ("norm_mean", "norm_variance")

    @property
    def fans(self) -> tuple[int, int]:
        """(fan in, fan out) of a weight, as Glorot's and He's initializations count them."""
        field = math.prod(self.shape[2:])
        return self.shape[1] * field, self.shape[0] * field


@dataclass(frozen=True)
class Layout:
    """The tensors of a row in network order.

    Example:
        >>> import numpy as np
        >>> from nws_dataset.networks.cnn import Architecture
        >>> layout = layout_of(Architecture(batch_norm=False))
        >>> layout.layers
        ('conv1', 'conv2', 'conv3', 'dense1', 'dense2', 'output')
        >>> rows = np.zeros((2, layout.num_weights))
        >>> layout.views(rows)["conv1.weight"].shape
        (2, 8, 3, 5, 5)
    """

    tensors: tuple[TensorSpec, ...]  # from input to output

    @property
    def num_weights(self) -> int:
        """P, the length of a row."""
        return self.tensors[-1].stop

    def __getitem__(self, name: str) -> TensorSpec:
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.tensors}

    @property
    def has_batch_norm(self) -> bool:
        """Whether any layer has batch-norm."""
        return any(spec.role == "norm_mean" for spec in self.tensors)

    @functools.cached_property
    def unit_counts(self) -> dict[str, int]:
        """Name of units that are permuted together (inputs, a layer's, outputs) -> their number."""
        counts: dict[str, int] = {}
        for spec in self.tensors:
            for unit, size in reversed(list(zip(spec.units, spec.unit_shape, strict=True))):
                if unit is not None:
                    counts.setdefault(unit, size)
                    assert counts[unit] == size, f"{spec.name}: {size} of {counts[unit]} units {unit}"
        return counts

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers from input to output."""
        return tuple(dict.fromkeys(spec.layer for spec in self.tensors))

    @functools.cached_property
    def by_layer(self) -> dict[str, tuple[TensorSpec, ...]]:
        """Layer -> its tensors in network order."""
        return {
            layer: tuple(tensors)
            for layer, tensors in itertools.groupby(self.tensors, lambda tensor: tensor.layer)
        }

    def views(self, rows: Array) -> dict[str, Array]:
        """Each tensor as a view of rows.

        Args:
            rows: [..., P], a numpy array or torch tensor.

        Returns:
            name -> [..., *shape], in network order; no copy is made.

        Raises:
            ValueError: if the last axis is not P long.
        """
        array: Any = rows
        if array.shape[-1] != self.num_weights:
            raise ValueError(
                f"rows: expected [..., {self.num_weights}] (this architecture's row), found "
                f"{list(array.shape)}"
            )
        return {
            s.name: array[..., s.offset : s.stop].reshape(*array.shape[:-1], *s.shape) for s in self.tensors
        }


class HasTensors(Protocol):
    """The part of `nws_dataset.networks.base.BaseArchitecture` that a layout needs."""

    @property
    def id(self) -> str: ...

    def tensors(self) -> list[TensorSpec]: ...


@functools.cache
def layout_of(architecture: HasTensors) -> Layout:
    """The layout of an architecture's row.

    Args:
        architecture: of any kind.

    Returns:
        The names, shapes and offsets of its tensors.

    Raises:
        ZooError: if it has more than MAX_WEIGHTS.

    Example:
        >>> from nws_dataset import Architecture
        >>> layout = layout_of(Architecture(batch_norm=False))
        >>> layout.num_weights, layout["conv1.weight"].shape, layout["output.bias"].offset
        (91226, (8, 3, 5, 5), 91216)
    """
    specs: list[TensorSpec] = []
    for spec in architecture.tensors():
        specs.append(dataclasses.replace(spec, offset=specs[-1].stop if specs else 0))
    if specs[-1].stop > MAX_WEIGHTS:
        found = f"{specs[-1].stop} ({architecture.id})"
        raise ZooError(
            "an architecture",
            expected=f"at most {MAX_WEIGHTS} weights",
            found=found,
            do="choose fewer layers or units",
        )
    return Layout(tuple(specs))
