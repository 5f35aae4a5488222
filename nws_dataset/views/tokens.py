"""Rows as sequences of tokens.

    view = Tokens.from_rows(architecture, rows)  # rows [P] or [N, P], a numpy array or a torch tensor
    view.rows()                                  # the same rows

Axes: N networks (any leading axes), P weights of a row, O units of a layer, T tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import NORM_SUFFIX, Array, TensorSpec, layout_of
from nws_dataset.views.gather import check_axes, check_choice, like, take, with_zero
from nws_dataset.views.indices import VECTOR_ROLES, rows_from, unit_vectors
from nws_dataset.views.permutations import CACHED, tensor_indices

TOKEN_SIZE = 288  # as in Schürholt et al.
BATCH_NORM = ("unit", "own", "none")  # which tokens have batch-norm's numbers
SANE_NORM = "_bn"  # SANE recognizes batch-norm's tensors by "bn" in the name


@dataclass(frozen=True, eq=False)
class Tokens:
    """Networks as sequences of tokens of one size, for sequence models of weights.

    A unit's incoming weights and its bias are cut into tokens, the last one padded with zeros. `batch_norm`
    says where the unit's four batch-norm numbers are:

    | batch_norm | |
    |---|---|
    | "unit" | after the unit's bias |
    | "own" | in their own tokens after those of the layer: weight and bias, then means, then variances |
    | "none" | nowhere |

    The last two are SANE's tokens (Schürholt et al., arXiv 2406.09997) without and with its `ignore_bn`.

    Raises:
        ZooError: if there is no such choice.
    """

    architecture: BaseArchitecture  # of all of them
    tokens: Any  # [N, T, size]
    batch_norm: str = BATCH_NORM[0]  # where batch-norm's numbers are, see above

    def __post_init__(self) -> None:
        check_choice("batch_norm", self.batch_norm, BATCH_NORM)

    @classmethod
    def from_rows(
        cls,
        architecture: BaseArchitecture,
        rows: Any,
        size: int = TOKEN_SIZE,
        batch_norm: str = BATCH_NORM[0],
    ) -> Tokens:
        """The tokens of rows.

        Args:
            architecture: that of the rows.
            rows: [..., P], a numpy array or torch tensor.
            size: numbers in a token.
            batch_norm: "unit", "own" or "none", where batch-norm's numbers are.

        Returns:
            The view; its arrays are of the same type as `rows`.

        Raises:
            ZooError: if the size is not positive, there is no such choice, or rows are not of this
                architecture.

        Example:
            >>> from nws_dataset import Architecture
            >>> architecture = Architecture()
            >>> rows = np.zeros((2, layout_of(architecture).num_weights), np.float32)
            >>> view = Tokens.from_rows(architecture, rows)
            >>> view.tokens.shape, view.mask.shape, view.position[[0, 24, 25]].tolist(), view.rows().shape
            ((2, 418, 288), (418, 288), [[0, 0, 0], [24, 2, 0], [25, 2, 0]], (2, 92218))
            >>> own = Tokens.from_rows(architecture, rows, batch_norm="own")
            >>> own.tokens.shape, own.position[[7, 8, 16, 24, 32]].tolist()
            ((2, 1162, 288), [[7, 0, 7], [8, 1, 0], [16, 2, 0], [24, 3, 0], [32, 4, 0]])
        """
        check_choice("batch_norm", batch_norm, BATCH_NORM)
        check_axes("rows", rows, layout_of(architecture).num_weights)
        indices = _token_indices(architecture, size, batch_norm)
        return cls(architecture, take(with_zero(rows), indices), batch_norm)

    def rows(self, norms: Sequence[Any] | None = None) -> Any:
        """The rows [..., P] of these tokens, a copy without the padding.

        Args:
            norms: only for tokens without batch-norm: [..., 4, O] of each hidden layer, as in
                `LayerTuples.from_rows(architecture, rows).norms`.

        Returns:
            [..., P], an array or tensor as the view has them.

        Raises:
            ZooError: if tokens or norms are not of this architecture, or norms are missing.
        """
        indices = _token_indices(self.architecture, self.tokens.shape[-1], self.batch_norm)
        parts = {"tokens": (self.tokens, indices)}
        left_out = self.batch_norm == "none" and layout_of(self.architecture).has_batch_norm
        hidden = [vectors[1:] for vectors in unit_vectors(self.architecture)[:-1]] if left_out else []
        if (norms is not None) != left_out or len(norms or ()) != len(hidden):
            raise ZooError(
                "norms",
                expected=f"{len(hidden)} arrays, as these tokens hold no batch-norm" if left_out else "none",
                found="none" if norms is None else str(len(norms)),
                do="give LayerTuples.from_rows(architecture, rows).norms" if left_out else "leave it out",
            )
        parts |= {f"norms[{i}]": pair for i, pair in enumerate(zip(norms or (), hidden, strict=True))}
        return rows_from(self.architecture, parts)

    @functools.cached_property
    def mask(self) -> Any:
        """[T, size] bool: False for the zeros that pad a token."""
        indices = _token_indices(self.architecture, self.tokens.shape[-1], self.batch_norm)
        return like(self.tokens, indices < layout_of(self.architecture).num_weights)

    @functools.cached_property
    def position(self) -> Any:
        """[T, 3] integers: index in the sequence, layer, unit in the layer.

        With "own", batch-norm's tokens count as further layers: a hidden layer has four in all.
        """
        size, units_of_layers = self.tokens.shape[-1], []
        for layer, tensors in enumerate(_together(self.architecture, self.batch_norm)):
            units = tensors[0].shape[0]
            tokens_per_unit = -(-sum(tensor.size for tensor in tensors) // (units * size))
            unit = np.repeat(np.arange(units), tokens_per_unit)
            units_of_layers.append(np.stack([np.full_like(unit, layer), unit], axis=1))
        position = np.concatenate(units_of_layers)
        return like(self.tokens, np.insert(position, 0, np.arange(len(position)), axis=1))


def sane_state_dict(architecture: BaseArchitecture, row: Array) -> dict[str, Array]:
    """A network's tensors with names that SANE recognizes as batch-norm's, e.g. "conv1_bn.weight".

    Args:
        architecture: that of the row.
        row: [P], a numpy array or torch tensor.

    Returns:
        name -> a view of the row, in order: concatenated, they are the row again.

    Raises:
        ZooError: if the row is not of this architecture.

    Example:
        >>> from nws_dataset import Architecture
        >>> architecture = Architecture()
        >>> names = list(sane_state_dict(architecture, np.zeros(layout_of(architecture).num_weights)))
        >>> names[:4]
        ['conv1.weight', 'conv1.bias', 'conv1_bn.weight', 'conv1_bn.bias']
    """
    check_axes("row", row, layout_of(architecture).num_weights)
    tensors = layout_of(architecture).views(row)
    return {name.replace(f"{NORM_SUFFIX}.", f"{SANE_NORM}."): tensor for name, tensor in tensors.items()}


def _together(architecture: BaseArchitecture, batch_norm: str) -> list[list[TensorSpec]]:
    """Groups of tensors whose numbers of a unit are together."""
    groups = []
    for tensors in layout_of(architecture).by_layer.values():
        # of batch-norm alone: other norms stay with their units
        norm = [spec for spec in tensors if spec.role in VECTOR_ROLES[1:]]
        norm = norm if any(not spec.trained for spec in norm) else []
        if batch_norm == "unit":
            groups.append([*tensors])
        else:
            groups.append([spec for spec in tensors if spec not in norm])
            if batch_norm == "own" and norm:
                groups += [norm[:2], norm[2:3], norm[3:]]
    return groups


@functools.lru_cache(CACHED)
def _token_indices(architecture: BaseArchitecture, size: int, batch_norm: str) -> np.ndarray:
    """[T, size]"""
    if not isinstance(size, int | np.integer) or size < 1:
        raise ZooError(
            "size", expected="at least 1", found=repr(size), do="say how many numbers a token holds"
        )
    indices, num_weights = tensor_indices(architecture), layout_of(architecture).num_weights
    tokens = []
    for tensors in _together(architecture, batch_norm):
        units = np.concatenate(
            [indices[tensor.name].reshape(tensor.shape[0], -1) for tensor in tensors], axis=1
        )
        padded = np.pad(units, ((0, 0), (0, -units.shape[1] % size)), constant_values=num_weights)
        tokens.append(padded.reshape(-1, size))
    return np.concatenate(tokens)
