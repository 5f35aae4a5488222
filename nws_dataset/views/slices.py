"""Rows -> slices of consecutive weights, the input of the deep meta-classifier, gathered batch by batch.

Axes: N rows, P weights of a row, B slices of a batch, L weights of a slice.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np

from nws_dataset.errors import ValueZooError, ZooError, reason
from nws_dataset.networks.layout import layout_of
from nws_dataset.views.permutations import permutation_spec

if TYPE_CHECKING:
    from nws_dataset.networks.base import BaseArchitecture

WEIGHT_BYTES = 4  # of a weight
Item = TypeVar("Item")
Made = TypeVar("Made")


class Source(Protocol):
    """Rows of any lengths that give slices."""

    lengths: np.ndarray  # [N]
    fixed: bool  # whether the same slice is always the same weights

    def slices(self, indices: np.ndarray, starts: np.ndarray, length: int) -> Any:
        """Slices of length L of rows `indices` [B] from `starts` [B]: [B, L] float32, an array or tensor.

        After a row's end they are zero.
        """


class Indexed:
    """Indexing for scikit-learn's cross-validation: `source[indices]` is a source of some rows.

    Example:
        >>> rows = ArrayRows([np.arange(6, dtype=np.float32), np.ones(2, np.float32), np.ones(3, np.float32)])
        >>> len(rows), rows[[2, 0]].lengths.tolist()
        (3, [3, 6])
    """

    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def shape(self) -> tuple[int]:
        """(N,): tells scikit-learn that arrays can index it."""
        return (len(self),)

    def __getitem__(self, key: Any) -> SomeRows:
        (key, *_) = key if isinstance(key, tuple) else (key,)  # scikit-learn asks for [indices, ...]
        return SomeRows(cast(Source, self), np.atleast_1d(np.arange(len(self))[key]))


class ArrayRows(Indexed):
    """Rows in arrays: a matrix [N, P], or views of a zoo's files (`zoo.arrays(snapshots)`).

    Only slices are copied.

    Example:
        >>> rows = ArrayRows([np.arange(6, dtype=np.float32), np.ones(2, np.float32)])
        >>> rows.slices(np.array([0, 1]), np.array([2, 0]), 3).tolist()
        [[2.0, 3.0, 4.0], [1.0, 1.0, 0.0]]
    """

    fixed = True

    def __init__(self, rows: Sequence[np.ndarray] | np.ndarray) -> None:
        self.rows = rows
        self.lengths = np.array([len(row) for row in rows], dtype=np.intp)

    def slices(self, indices: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        # A loop that copies L consecutive weights is faster than an index per weight: 64 copies take a third
        # of a millisecond.
        batch_BL = np.empty((len(indices), length), np.float32)
        for slice_L, index, start in zip(batch_BL, indices.tolist(), starts.tolist(), strict=True):
            part = self.rows[index][start : start + length]
            slice_L[: len(part)] = part
            slice_L[len(part) :] = 0
        return batch_BL


class RandomUnits(Indexed):
    """Rows of randomly chosen hidden units, chosen anew for each slice.

    The units are put into a random order, and the first few of each tensor are taken. The order does not
    change a network's function, but a model that always sees a weight at the same position memorizes its
    training networks. Here a position identifies only a tensor, not a unit, and no row is seen twice.

    Args:
        rows: N arrays [P_i], whole rows.
        architectures: N of them.
        length: weights of a choice at most. Each tensor is cut to the same size, unless it is smaller, but
            keeps at least one unit; what is still too much is cut off.
        seed: of the choices.

    Raises:
        ValueZooError: if the length is not a positive whole number, or a row is not of its architecture.

    Example:
        >>> from nws_dataset.networks.cnn import Architecture
        >>> rows = RandomUnits([np.arange(92_218, dtype=np.float32)], [Architecture()], 5000, seed=0)
        >>> rows.lengths.tolist(), rows.slices(np.array([0]), np.array([0]), 5000).shape
        ([4770], (1, 5000))
    """

    fixed = False

    def __init__(
        self, rows: Sequence[np.ndarray], architectures: Sequence[BaseArchitecture], length: int, seed: int
    ) -> None:
        if not isinstance(length, int | np.integer) or not 1 <= length < 1 << 31:
            raise ValueZooError(
                "length",
                expected="a whole number of at least 1",
                found=repr(length),
                do="choose how many weights it has",
            )
        if len(rows) != len(architectures):
            found = f"{len(rows)} rows and {len(architectures)} architectures"
            raise ValueZooError(
                "rows", expected="an architecture of each", found=found, do="give one to each row"
            )
        for i, (row, architecture) in enumerate(zip(rows, architectures, strict=True)):
            if row.shape != (layout_of(architecture).num_weights,):
                expected = f"[{layout_of(architecture).num_weights}] weights"
                raise ValueZooError(
                    f"row {i}",
                    expected=expected,
                    found=str(list(row.shape)),
                    do="give whole rows of these architectures",
                )
        self.rows, self.random = rows, np.random.default_rng(seed)
        self._units = [_Units.of(architecture, int(length)) for architecture in architectures]
        self.lengths = np.array([min(length, units.num_weights) for units in self._units], dtype=np.intp)

    def slices(self, indices: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """Slices of newly chosen units.

        Args:
            indices: [B], which rows.
            starts: [B], the position of each slice's first weight in its row.
            length: L, weights in a slice.

        Returns:
            [B, L] float32, padded with zeros after a row's end.
        """
        batch_BL = np.zeros((len(indices), length), np.float32)
        for slice_L, index, start in zip(batch_BL, indices.tolist(), starts.tolist(), strict=True):
            part = self.rows[index][self._units[index].draw(self.random)[start : start + length]]
            slice_L[: len(part)] = part
        return batch_BL


@dataclass(frozen=True, eq=False)
class _Units:
    """How units of an architecture are drawn."""

    sizes: dict[str, int]  # hidden layer -> number of units
    # indices of the weights, hidden layer of each axis, number of units taken
    tensors: list[tuple[np.ndarray, tuple[str | None, ...], int]]

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def of(cls, architecture: BaseArchitecture, length: int) -> _Units:
        """As many units of each tensor as fit into `length` weights in total."""
        spec = permutation_spec(architecture)
        indices = [
            s.offset + np.arange(s.size).reshape(spec.shapes[s.name]) for s in layout_of(architecture).tensors
        ]

        def taken(most: int) -> list[int]:
            return [min(len(p), max(1, most * len(p) // p.size)) for p in indices]

        def total(most: int) -> int:
            return sum(p.size // len(p) * units for p, units in zip(indices, taken(most), strict=True))

        most = bisect.bisect_right(range(length + 1), length, key=total) - 1
        axes = [spec.axes_to_perm[s.name] for s in layout_of(architecture).tensors]
        return cls(dict(spec.sizes), list(zip(indices, axes, taken(max(0, most)), strict=True)))

    @functools.cached_property
    def num_weights(self) -> int:
        return sum(indices.size // len(indices) * units for indices, _, units in self.tensors)

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Indices of random units' weights, tensor by tensor; network inputs and outputs keep their order."""
        orders = {layer: random.permutation(size) for layer, size in self.sizes.items()}
        drawn = []
        for indices, (own, *others), units in self.tensors:
            chosen = indices[:units] if own is None else indices[orders[own][:units]]
            for axis, layer in enumerate(others, 1):
                chosen = chosen if layer is None else chosen.take(orders[layer], axis)
            drawn.append(chosen.reshape(-1))
        return np.concatenate(drawn)


class SomeRows(Indexed):
    """Some rows of a source."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source, self.indices, self.lengths, self.fixed = (
            source,
            indices,
            source.lengths[indices],
            source.fixed,
        )

    def slices(self, indices: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        return self.source.slices(self.indices[indices], starts, length)


class DeviceRows(Indexed):
    """All weights of a source as one tensor on a device, where slices are gathered by indices.

    Args:
        source: the rows.
        device: torch device.
    """

    fixed = True

    def __init__(self, source: Source, device: str) -> None:
        import torch

        self.lengths = source.lengths
        self._ends = torch.from_numpy(np.cumsum(self.lengths)).to(device)
        # the last one, zero, pads all rows
        self._weights = torch.zeros(int(self.lengths.sum()) + 1, device=device)
        for index, (length, end) in enumerate(
            zip(self.lengths.tolist(), np.cumsum(self.lengths).tolist(), strict=True)
        ):
            row_BL = source.slices(np.array([index]), np.array([0]), length)
            check_finite(row_BL, np.array([index]))
            self._weights[end - length : end] = torch.from_numpy(row_BL[0])

    def slices(self, indices: np.ndarray, starts: np.ndarray, length: int) -> Any:
        """As `Source.slices`; a tensor on the device."""
        import torch

        device = self._weights.device
        ends = self._ends[torch.from_numpy(indices).to(device)]
        first = ends - torch.from_numpy(self.lengths[indices] - starts).to(device)
        indices_BL = first[:, None] + torch.arange(length, device=device)
        return self._weights[torch.where(indices_BL < ends[:, None], indices_BL, len(self._weights) - 1)]


def check_device(where: object, device: str, do: str) -> None:
    """Raise a ZooError if torch cannot compute on a device here.

    Args:
        where: what the error is about.
        device: its name in torch.
        do: the error's advice.
    """
    import torch

    try:
        if not isinstance(device, str):
            raise TypeError(f"{device!r} is no text")
        torch.ones(1, device=device).item()
    except (
        AssertionError,
        ImportError,
        RuntimeError,
        TypeError,
    ) as error:  # AssertionError, ImportError: torch is built without it
        raise ZooError(
            where, expected="a device of torch on this machine", found=reason(error), do=do
        ) from error


def on_device(source: Source, device: str) -> Source:
    """A source as `DeviceRows` if it is fixed and fits into half of a GPU's free memory, else unchanged."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return (
        DeviceRows(source, device)
        if source.fixed and 2 * WEIGHT_BYTES * int(source.lengths.sum()) < free
        else source
    )


def even_starts(
    lengths: np.ndarray, slice_length: int, positions: Sequence[float] | np.ndarray
) -> np.ndarray:
    """The positions of the first weights of slices at relative `positions` of rows.

    Args:
        lengths: [N], of the rows.
        slice_length: L.
        positions: S numbers, 0 at a row's beginning and 1 at its end.

    Returns:
        [N, S].

    Example:
        >>> even_starts(np.array([11, 3]), 5, [0, 0.5, 1]).tolist()
        [[0, 3, 6], [0, 0, 0]]
    """
    return np.rint(np.outer(np.maximum(0, lengths - slice_length), positions)).astype(np.intp)


def check_finite(batch_BL: np.ndarray, indices: np.ndarray) -> None:
    """Raise a ZooError that names the first row with a weight that is not finite."""
    finite = np.isfinite(batch_BL).all(axis=1)
    if not finite.all():
        row = int(indices[np.flatnonzero(~finite)[0]])
        raise ZooError(
            f"row {row}", expected="finite weights", found="NaN or infinity", do="leave it out or rebuild it"
        )


def prefetched(make: Callable[[Item], Made], items: Sequence[Item]) -> Iterator[Made]:
    """`make(item)` of each item, in order; a thread makes the next while one is used.

    Example:
        >>> list(prefetched(str, [1, 2]))
        ['1', '2']
    """
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(make, item) for item in items[:1]]
        for item in items[1:]:
            ready, coming = coming[0].result(), [thread.submit(make, item)]
            yield ready
        yield from (future.result() for future in coming)
