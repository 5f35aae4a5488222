"""Rows as each layer's tensors, for permutation-equivariant networks.

    view = LayerTuples.from_rows(architecture, rows)  # rows [P] or [N, P], a numpy array or a torch tensor
    view.rows()                                       # the same rows

Axes: N networks (any leading axes), P weights of a row, O units of a layer, I inputs of a layer, K side of a
kernel, W numbers on the last axis, the same in all layers.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.views.gather import check_axes, check_choice, take, with_zero
from nws_dataset.views.indices import VECTOR_ROLES, padded_kernels, rows_from, smallest_side, unit_vectors
from nws_dataset.views.permutations import CACHED, tensor_indices

CONVENTIONS = ("nfn", "dws")
NORMS = ("apart", "channels")  # where batch-norm's numbers are


@dataclass(frozen=True, eq=False)
class LayerTuples:
    """The tensors of each layer, from input to output: the input of permutation-equivariant networks.

    | convention | weights | biases | norms |
    |---|---|---|---|
    | "nfn" | [N, 1, O, I], convolutions [N, 1, O, I, K, K] | [N, 1, O] | [N, 4, O] |
    | "dws" | [N, I, O, W], W = K * K | [N, O, W] | [N, O, 4] |

    "nfn" is for neural functionals (NFN, Zhou et al., arXiv 2302.14040):
    `WeightSpaceFeatures(view.weights, view.biases)`. "dws" is for DWSNets (Navon et al., arXiv 2301.12780):
    `model((view.weights, view.biases))`. Its last axis is the same in all layers: kernels and dense weights
    are centred in squares of zeros, biases are followed by zeros.

    `norms` are batch-norm's weight, bias, mean and variance of each hidden layer, or () without batch-norm.
    Permutations of units move them with the bias, so `norms="channels"` joins them to it: biases have five
    channels (four are zero in the output layer), weights four more channels of zeros ("dws": W is at least
    nine), and `norms` is ().

    Raises:
        ZooError: if there is no such convention.
    """

    architecture: BaseArchitecture  # of all of them
    weights: tuple[Any, ...]  # of every layer
    biases: tuple[Any, ...]  # of every layer
    norms: tuple[Any, ...] = ()  # of every hidden layer, or none
    convention: str = CONVENTIONS[0]  # the order of axes, see above
    joined: bool = False  # whether the norms are channels of the biases

    def __post_init__(self) -> None:
        check_choice("convention", self.convention, CONVENTIONS)

    @classmethod
    def from_rows(
        cls,
        architecture: BaseArchitecture,
        rows: Any,
        convention: str = CONVENTIONS[0],
        width: int | None = None,
        norms: str = NORMS[0],
    ) -> LayerTuples:
        """The tensors of rows; for "nfn" with norms "apart" views, not copies.

        Args:
            architecture: that of the rows.
            rows: [..., P], a numpy array or torch tensor.
            convention: "nfn" or "dws", the order of axes.
            width: W of "dws", the square of an odd number; None for the smallest that holds all kernels and
                the last map. A larger one gives several architectures the same width.
            norms: "apart", or "channels": batch-norm's numbers joined to the biases.

        Returns:
            The view; its arrays are of the same type as `rows`.

        Raises:
            ZooError: if there is no such convention or choice, a width is not such a square or too small, or
                rows are not of this architecture.

        Example:
            >>> from nws_dataset import Architecture
            >>> architecture = Architecture()
            >>> rows = np.zeros((2, layout_of(architecture).num_weights), np.float32)
            >>> view = LayerTuples.from_rows(architecture, rows)
            >>> [array.shape for array in (view.weights[0], view.weights[3], view.weights[4])]
            [(2, 1, 8, 3, 5, 5), (2, 1, 128, 32, 4, 4), (2, 1, 64, 128)]
            >>> view.biases[4].shape, view.norms[4].shape
            ((2, 1, 64), (2, 4, 64))
            >>> view.rows().shape == rows.shape
            True
            >>> view = LayerTuples.from_rows(architecture, rows, norms="channels")
            >>> view.weights[4].shape, view.biases[4].shape, view.norms
            ((2, 5, 64, 128), (2, 5, 64), ())
            >>> view = LayerTuples.from_rows(architecture, rows, "dws")
            >>> view.weights[3].shape, view.weights[4].shape, view.biases[4].shape
            ((2, 32, 128, 25), (2, 128, 64, 25), (2, 64, 25))
        """
        check_choice("convention", convention, CONVENTIONS)
        check_choice("norms", norms, NORMS)
        check_axes("rows", rows, layout_of(architecture).num_weights)
        joined = norms == "channels"
        indices = _indices(architecture, convention, joined, width)
        if convention == "dws" or joined:
            rows = with_zero(rows)
        weights, biases, norm_vectors = (tuple(_view_or_copy(rows, i) for i in part) for part in indices)
        return cls(architecture, weights, biases, norm_vectors, convention, joined)

    def rows(self) -> Any:
        """The rows [..., P] of these tensors, a copy without the padding.

        Returns:
            [..., P], an array or tensor as the view has them.

        Raises:
            ZooError: if their shapes are not those of this architecture.
        """
        indices = _indices(self.architecture, self.convention, self.joined, self._width())
        parts: dict[str, tuple[Any, np.ndarray]] = {}
        for name, expected in zip(("weights", "biases", "norms"), indices, strict=True):
            found = getattr(self, name)
            if len(found) != len(expected):
                raise ZooError(
                    name,
                    expected=f"{len(expected)} tensors",
                    found=str(len(found)),
                    do="give one of each layer that has it",
                )
            parts |= {f"{name}[{i}]": pair for i, pair in enumerate(zip(found, expected, strict=True))}
        return rows_from(self.architecture, parts)

    def _width(self) -> int | None:
        """W of these tensors; None (the smallest) if theirs is impossible, which `rows` refuses."""
        if self.convention != "dws" or not self.weights:
            return None
        width = self.weights[0].shape[-1]
        return width if _is_width(width, _least_side(self.architecture, self.joined)) else None


def _is_width(width: Any, least_side: int) -> bool:
    if not isinstance(width, int | np.integer) or width < least_side**2:
        return False
    return width % 2 == 1 and math.isqrt(width) ** 2 == width


def _least_side(architecture: BaseArchitecture, joined: bool) -> int:
    """The smallest K such that K * K numbers hold a kernel, and with joined norms a bias and its norms."""
    return max(smallest_side(architecture), 3 if joined and layout_of(architecture).has_batch_norm else 1)


@functools.lru_cache(CACHED)
def _indices(
    architecture: BaseArchitecture, convention: str, joined: bool, width: int | None
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """The indices of weights, biases and norms."""
    layers = layout_of(architecture).by_layer.values()
    if any([spec.role for spec in tensors[:2]] != ["weight", "bias"] for tensors in layers):
        raise ZooError(
            architecture.id,
            expected="layers of a weight and a bias",
            found=f"a {architecture.kind}",
            do="take Graph or Tokens",
        )
    zero, least = layout_of(architecture).num_weights, _least_side(architecture, joined)
    if width is not None and (convention != "dws" or not _is_width(width, least)):
        legal = f"an odd number squared, at least {least**2}" if convention == "dws" else 'none but for "dws"'
        raise ZooError("width", expected=legal, found=repr(width), do="choose such a number, or leave it out")

    def padded(array: np.ndarray, length: int) -> np.ndarray:
        """Padded to this length on the first axis."""
        return np.pad(array, ((0, length - len(array)), *[(0, 0)] * (array.ndim - 1)), constant_values=zero)

    vectors = unit_vectors(architecture)
    biases = vectors if joined else [vector[:1] for vector in vectors]
    norms = [] if joined else [vector[1:] for vector in vectors if len(vector) > 1]
    if convention == "dws":
        width = width or least**2
        weights = [w.swapaxes(0, 1) for w in padded_kernels(architecture, math.isqrt(width))]
        return weights, [padded(bias, width).T for bias in biases], [norm.T for norm in norms]
    channels = len(VECTOR_ROLES) if joined and layout_of(architecture).has_batch_norm else 1
    tensors = tensor_indices(architecture)
    weights = [tensors[weight.name][None] for weight, *_ in layout_of(architecture).by_layer.values()]
    return [padded(w, channels) for w in weights], [padded(b, channels) for b in biases], norms


def _view_or_copy(rows: Any, indices: np.ndarray) -> Any:
    """[..., *indices.shape], the numbers at these indices; a view if these are consecutive."""
    first = int(indices.flat[0])
    if np.array_equal(indices.reshape(-1), np.arange(first, first + indices.size)):
        return rows[..., first : first + indices.size].reshape(*rows.shape[:-1], *indices.shape)
    return take(rows, indices)
