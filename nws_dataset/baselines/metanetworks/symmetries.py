"""What may be changed in a row without changing what the network computes, as arrays of indices.

Axes: B rows of a batch, P weights of a row, A axes of hidden units (of a tensor, at most), U hidden units.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.views.permutations import CACHED, permutation_spec, tensor_indices

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Symmetries:
    """Where the hidden units of an architecture stand in its row."""

    sizes: tuple[int, ...]  # units of each hidden layer
    units: np.ndarray  # [A, P]: the hidden unit, 0 .. U - 1, along each axis of a weight's tensor; U for none
    strides: np.ndarray  # [A, P]: from a weight to that of the next unit along an axis
    fixed: np.ndarray  # [P]: the place in the row of the weight of the first hidden units of its tensor
    orbits: np.ndarray  # [P]: a number shared by the weights that permutations of units exchange

    @property
    def num_units(self) -> int:
        """U."""
        return sum(self.sizes)

    def permuted(self, rows: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Rows [B, P] whose hidden units stand in another random order, each row's its own."""
        import torch

        orders = [
            torch.rand(len(rows), size, generator=generator, device=rows.device).argsort(1)
            for size in self.sizes
        ]
        order = torch.cat([*orders, rows.new_zeros((len(rows), 1), dtype=torch.int64)], 1)  # [B, U + 1]
        index = torch.from_numpy(self.fixed).to(rows.device).expand(rows.shape)
        for units, strides in zip(self.units, self.strides, strict=True):
            places = order[:, torch.from_numpy(units).to(rows.device)]
            index = index + places * torch.from_numpy(strides).to(rows.device)
        return rows.gather(1, index)

    def flipped(self, rows: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Rows [B, P] in which the sign of each hidden unit is random: of all its weights, in and out.

        Networks whose hidden units are odd functions compute the same.
        """
        import torch

        shape = len(rows), self.num_units + 1
        signs = torch.randint(2, shape, generator=generator, device=rows.device, dtype=rows.dtype) * 2 - 1
        signs[:, -1] = 1
        for units in self.units:
            rows = rows * signs[:, torch.from_numpy(units).to(rows.device)]
        return rows


@functools.lru_cache(CACHED)
def symmetries_of(architecture: BaseArchitecture) -> Symmetries:
    """The symmetries of an architecture's rows.

    Args:
        architecture: of any kind.

    Returns:
        Its hidden units' places in the row.

    Example:
        >>> from nws_dataset.networks import siren
        >>> found = symmetries_of(siren.Architecture(width_hidden=3))
        >>> found.sizes, found.orbits.tolist()[:9]  # [3, 2] weights of two coordinates, and the biases
        ((3, 3), [0, 1, 0, 1, 0, 1, 2, 2, 2])
    """
    spec, indices = permutation_spec(architecture), tensor_indices(architecture)
    first = dict(zip(spec.sizes, np.cumsum([0, *spec.sizes.values()]).tolist(), strict=False))
    num_weights, num_units = layout_of(architecture).num_weights, sum(spec.sizes.values())
    most = max(sum(name is not None for name in names) for names in spec.axes_to_perm.values())
    units = np.full((most, num_weights), num_units)
    strides = np.zeros((most, num_weights), np.int64)
    fixed, orbits = np.empty(num_weights, np.int64), np.empty(num_weights, np.int64)
    num_orbits = 0
    for tensor, places in indices.items():
        names = spec.axes_to_perm[tensor]
        hidden = [axis for axis, name in enumerate(names) if name is not None]
        firsts = places[tuple(slice(0, 1) if name else slice(None) for name in names)]
        fixed[places] = firsts
        orbits[places] = num_orbits + np.arange(firsts.size).reshape(firsts.shape)
        num_orbits += firsts.size
        for a, axis in enumerate(hidden):
            units[a][places] = first[str(names[axis])] + np.indices(places.shape, sparse=True)[axis]
            strides[a][places] = int(np.prod(places.shape[axis + 1 :]))
    return Symmetries(tuple(spec.sizes.values()), units, strides, fixed, orbits)
