"""Permutations of hidden units, which do not change a network's function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import INPUT, OUTPUT, Array, layout_of
from nws_dataset.views.gather import check_axes, take

CACHED = 32  # architectures whose indices are kept: up to some 10 MB each, remade in milliseconds
# hidden layer -> [O] integers: unit i of the new row is unit permutation[i] of the old one
Permutations = Mapping[str, Any]


@dataclass(frozen=True)
class PermutationSpec:
    """Which permutation reorders which axis of which tensor.

    The terms are those of Git Re-Basin (Ainsworth et al., arXiv 2209.04836). A permutation is named after its
    hidden layer. Inputs and outputs are not permuted.
    """

    # tensor -> its shape, [units, channels, map, map] where a dense layer follows the flatten
    shapes: dict[str, tuple[int, ...]]
    # tensor -> the permutation of each axis of that shape, or None
    axes_to_perm: dict[str, tuple[str | None, ...]]

    @property
    def perm_to_axes(self) -> dict[str, list[tuple[str, int]]]:
        """Permutation -> the (tensor, axis) that it reorders."""
        axes: dict[str, list[tuple[str, int]]] = {}
        for tensor, permutations in self.axes_to_perm.items():
            for axis, permutation in enumerate(permutations):
                if permutation:
                    axes.setdefault(permutation, []).append((tensor, axis))
        return axes

    @property
    def sizes(self) -> dict[str, int]:
        """Permutation -> its number of units."""
        return {
            permutation: self.shapes[tensor][axis]
            for permutation, ((tensor, axis), *_) in self.perm_to_axes.items()
        }


def permutation_spec(architecture: BaseArchitecture) -> PermutationSpec:
    """Which axis of which tensor each hidden layer's permutation reorders.

    Args:
        architecture: of the networks.

    Returns:
        Each tensor's shape, and the permutation of each of its axes.

    Example:
        >>> from nws_dataset import Architecture
        >>> spec = permutation_spec(Architecture(batch_norm=False))
        >>> spec.shapes["dense1.weight"], spec.axes_to_perm["dense1.weight"]
        ((128, 32, 4, 4), ('dense1', 'conv3', None, None))
        >>> spec.perm_to_axes["dense2"]
        [('dense2.weight', 0), ('dense2.bias', 0), ('output.weight', 1)]
    """
    tensors = layout_of(architecture).tensors
    return PermutationSpec(
        {tensor.name: tensor.unit_shape for tensor in tensors},
        {tensor.name: tuple(None if u in (INPUT, OUTPUT) else u for u in tensor.units) for tensor in tensors},
    )


def tensor_indices(architecture: BaseArchitecture) -> dict[str, np.ndarray]:
    """Each tensor's indices in the row, in its shape of `PermutationSpec`."""
    layout, shapes = layout_of(architecture), permutation_spec(architecture).shapes
    return {
        name: indices.reshape(shapes[name])
        for name, indices in layout.views(np.arange(layout.num_weights)).items()
    }


def random_permutations(architecture: BaseArchitecture, random: np.random.Generator) -> dict[str, np.ndarray]:
    """A random permutation of every hidden layer.

    Args:
        architecture: fixes the layers.
        random: the generator.

    Returns:
        hidden layer -> [O] integers, for `permute`.

    Example:
        >>> from nws_dataset import Architecture
        >>> permutations = random_permutations(Architecture(), np.random.default_rng(0))
        >>> {layer: len(permutation) for layer, permutation in permutations.items()}
        {'conv1': 8, 'conv2': 16, 'conv3': 32, 'dense1': 128, 'dense2': 64}
    """
    return {layer: random.permutation(size) for layer, size in permutation_spec(architecture).sizes.items()}


def inverse_permutations(permutations: Permutations) -> dict[str, np.ndarray]:
    """The permutations that restore the order of the units.

    Args:
        permutations: hidden layer -> [O] integers, as in `permute`.

    Returns:
        hidden layer -> [O] integers.

    Raises:
        ZooError: if one is not a permutation.

    Example:
        >>> inverse_permutations({"dense1": [2, 0, 1]})
        {'dense1': array([1, 2, 0])}
    """
    return {
        layer: np.argsort(_permutation(layer, permutation)) for layer, permutation in permutations.items()
    }


def compose_permutations(first: Permutations, second: Permutations) -> dict[str, Any]:
    """The permutations that are equal to `first`, then `second`.

    A layer that is missing in one of them keeps its order there.

    Args:
        first: hidden layer -> [O] integers, applied first.
        second: likewise, applied second.

    Returns:
        hidden layer -> [O] integers.

    Raises:
        ZooError: if one is not a permutation, or two of a layer differ in length.

    Example:
        >>> compose_permutations({"dense1": [2, 0, 1]}, {"dense1": [1, 0, 2]})
        {'dense1': array([0, 2, 1])}
    """
    both = {
        layer: _permutation(layer, first[layer])[_permutation(layer, second[layer], len(first[layer]))]
        for layer in first
        if layer in second
    }
    return {**first, **second, **both}


def permute(architecture: BaseArchitecture, rows: Array, permutations: Permutations) -> Array:
    """Rows with reordered hidden units: networks of the same function.

    Args:
        architecture: that of the rows.
        rows: [..., P], a numpy array or torch tensor.
        permutations: hidden layer -> [O] integers; unit i of the result is unit permutation[i] of rows. A
            missing layer keeps its order.

    Returns:
        [..., P], a copy of rows' dtype and device.

    Raises:
        ZooError: if there is no such hidden layer, a permutation is invalid, or rows are not of this
            architecture.

    Example:
        >>> from nws_dataset import Architecture
        >>> architecture, random = Architecture(), np.random.default_rng(0)
        >>> rows = random.standard_normal((2, layout_of(architecture).num_weights))
        >>> permutations = random_permutations(architecture, random)
        >>> permuted = permute(architecture, rows, permutations)
        >>> back = permute(architecture, permuted, inverse_permutations(permutations))
        >>> bool((permuted == rows).all()), bool((back == rows).all())
        (False, True)
    """
    check_axes("rows", rows, layout_of(architecture).num_weights)
    spec = permutation_spec(architecture)
    orders = {layer: _order(layer, permutation, spec.sizes) for layer, permutation in permutations.items()}
    index = []
    for tensor, indices in tensor_indices(architecture).items():
        for axis, permutation in enumerate(spec.axes_to_perm[tensor]):
            indices = indices.take(orders[permutation], axis) if permutation in orders else indices
        index.append(indices.reshape(-1))
    return take(rows, np.concatenate(index))


def _order(layer: str, permutation: Any, sizes: Mapping[str, int]) -> np.ndarray:
    """A layer's permutation, [O] integers, checked."""
    if layer not in sizes:
        expected = f"some of the hidden layers {', '.join(sizes)}"
        raise ZooError(
            "permutations",
            expected=expected,
            found=repr(layer),
            do="leave it out: inputs and outputs keep their order",
        )
    return _permutation(layer, permutation, sizes[layer])


def _permutation(layer: str, permutation: Any, size: int | None = None) -> np.ndarray:
    """[O] integers, checked to be a permutation of `size` units (None: of any number)."""
    try:
        order = np.asarray(permutation)
    except (RuntimeError, TypeError, ValueError):  # ragged lists, tensors on a GPU
        order = np.empty(0)
    if size is None:
        size = order.size
    if order.dtype.kind not in "iu" or not np.array_equal(np.sort(order), np.arange(size)):
        expected = f"each of 0 .. {size - 1} once"
        raise ZooError(
            f"permutations[{layer!r}]",
            expected=expected,
            found=str(permutation)[:80],
            do="give a permutation of its units",
        )
    return order
