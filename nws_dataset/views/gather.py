"""Operations on the last axes of numpy arrays and torch tensors alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nws_dataset.errors import ValueZooError, ZooError


def check_axes(name: str, array: Any, *shape: int) -> None:
    """Raise a ZooError unless it is an array or tensor whose last axes are these."""
    if not hasattr(array, "shape"):
        raise ValueZooError(name, expected="an array or a tensor", found=type(array).__name__, do="give one")
    if tuple(array.shape[-len(shape) :]) != shape:
        expected = f"[..., {', '.join(map(str, shape))}]"
        raise ZooError(
            name, expected=expected, found=str(list(array.shape)), do="give what belongs to this architecture"
        )


def check_choice(name: str, value: Any, legal: Sequence[str]) -> None:
    """Raise a ZooError unless a value is legal."""
    if value not in legal:
        raise ZooError(
            name, expected=f"one of {', '.join(legal)}", found=repr(value), do="choose one of them"
        )


def concatenate(arrays: Sequence[Any]) -> Any:
    """Arrays joined along the last axis."""
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays, axis=-1)
    import torch  # not needed for numpy arrays

    return torch.cat(tuple(arrays), dim=-1)


def flatten(array: Any, axes: int) -> Any:
    """An array with its first `axes` axes, the others joined into one."""
    return array.reshape(*array.shape[:axes], math.prod(array.shape[axes:]))


def with_zero(rows: Any) -> Any:
    """[..., P + 1]: rows with a zero appended, which indices of padding refer to."""
    zero = (
        np.zeros_like(rows[..., :1])
        if isinstance(rows, np.ndarray)
        else rows.new_zeros((*rows.shape[:-1], 1))
    )
    return concatenate([rows, zero])


def take(array: Any, indices: np.ndarray) -> Any:
    """[..., n] -> [..., *indices.shape], the numbers at these indices."""
    if isinstance(array, np.ndarray):
        return array.take(indices, axis=-1)
    import torch

    index = torch.as_tensor(indices.reshape(-1), device=array.device)
    return array.index_select(-1, index).reshape(*array.shape[:-1], *indices.shape)


def like(array: Any, structure: np.ndarray) -> Any:
    """`structure` as the array's kind: a numpy array, or a tensor on its device."""
    if isinstance(array, np.ndarray):
        return structure
    import torch

    return torch.as_tensor(structure, device=array.device)
