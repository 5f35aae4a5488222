"""Arrays that say which number of a row is where in a view.

They are made once for an architecture, by reshaping indices as the tensors would be reshaped; index P, one
beyond the row, is padding. Rows to view and back are then single gathers.

Axes: P weights of a row, O units of a layer, I inputs of a layer, K side of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.views.gather import check_axes, concatenate, flatten, take
from nws_dataset.views.permutations import tensor_indices

# a unit's numbers beside its incoming weights
VECTOR_ROLES = ("bias", "norm_weight", "norm_bias", "norm_mean", "norm_variance")


def unit_vectors(architecture: BaseArchitecture) -> list[np.ndarray]:
    """Each layer's bias [1, O], or with batch-norm VECTOR_ROLES [5, O]."""
    indices = tensor_indices(architecture)
    return [
        np.stack([indices[vector.name] for vector in vectors])
        for _, *vectors in layout_of(architecture).by_layer.values()
    ]


def kernels(architecture: BaseArchitecture) -> list[np.ndarray]:
    """Each layer's weight [O, I, k, k]; a dense kernel is one number, or the map after the flatten."""
    indices = tensor_indices(architecture)
    weights = [indices[weight.name] for weight, *_ in layout_of(architecture).by_layer.values()]
    return [weight.reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1))) for weight in weights]


def smallest_side(architecture: BaseArchitecture) -> int:
    """The smallest odd K that holds all kernels."""
    # odd, so that odd kernels can be centred
    return max(kernel.shape[-1] for kernel in kernels(architecture)) | 1


def padded_kernels(architecture: BaseArchitecture, side: int) -> list[np.ndarray]:
    """Each layer's kernels [O, I, K * K], centred in squares of this side."""
    padded = []
    for kernel in kernels(architecture):
        before, after = (side - kernel.shape[-1]) // 2, (side - kernel.shape[-1] + 1) // 2
        margins = ((0, 0), (0, 0), (before, after), (before, after))
        square = np.pad(kernel, margins, constant_values=layout_of(architecture).num_weights)
        padded.append(square.reshape(*kernel.shape[:2], side * side))
    return padded


def rows_from(architecture: BaseArchitecture, parts: Mapping[str, tuple[Any, np.ndarray]]) -> Any:
    """The rows [..., P] of the numbers in arrays.

    Args:
        architecture: that of the rows.
        parts: name -> (array [..., *shape], indices [*shape]); together they cover the whole row.

    Raises:
        ZooError: if an array's last axes are not its indices', or leading axes differ.
    """
    num_weights = layout_of(architecture).num_weights
    leads = {}
    for name, (array, indices) in parts.items():
        check_axes(name, array, *indices.shape)
        leads[name] = list(array.shape[: len(array.shape) - indices.ndim])
    (first, lead), *others = leads.items()
    for name, other in others:
        if other != lead:
            expected = f"the leading axes {lead} of {first}"
            raise ZooError(
                name, expected=expected, found=str(other), do="give what belongs to the same networks"
            )
    numbers: list[Any] = []
    order: list[np.ndarray] = []
    # in the row's order: consecutive tensors then need no sorting
    for array, indices in sorted(parts.values(), key=lambda part: part[1].min()):
        flat, index = flatten(array, len(lead)), indices.reshape(-1)
        filled = np.flatnonzero(index < num_weights)
        numbers.append(flat if len(filled) == len(index) else take(flat, filled))
        order.append(index[filled])
    joined, index = concatenate(numbers), np.concatenate(order)
    return joined if (np.diff(index) > 0).all() else take(joined, np.argsort(index, kind="stable"))
