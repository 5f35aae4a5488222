"""Random units are networks of the same function with their hidden units in another order, cut to a
length.
"""

from __future__ import annotations

import numpy as np
import pytest

from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.views.permutations import permute, random_permutations
from nws_dataset.views.slices import RandomUnits, SomeRows

ARCHITECTURES = [Architecture(), Architecture(batch_norm=False, depth_conv=5, depth_fc=4, filter_size=3)]
FIRST = np.array([0])


def row_of(architecture: Architecture) -> np.ndarray:
    """[P] weights of which no two are alike."""
    return np.arange(1, 1 + layout_of(architecture).num_weights, dtype=np.float32)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=["fixed", "deep"])
def test_uncut_they_are_the_permuted_network(architecture: Architecture) -> None:
    row = row_of(architecture)
    units = RandomUnits([row], [architecture], len(row) + 7, seed=3)
    drawn = units.slices(FIRST, np.zeros(1, int), len(row) + 7)[0]
    expected = permute(architecture, row, random_permutations(architecture, np.random.default_rng(3)))
    assert units.lengths.tolist() == [len(row)]
    np.testing.assert_array_equal(drawn, np.append(expected, np.zeros(7, np.float32)))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=["fixed", "deep"])
@pytest.mark.parametrize("length", [1, 2000, 5000, 20_000])
def test_cut_each_tensor_keeps_whole_units(architecture: Architecture, length: int) -> None:
    """As many weights as fit, none twice, in the order of the tensors; where they fit at all, each tensor has
    some.
    """
    row, layout = row_of(architecture), layout_of(architecture)
    units = RandomUnits([row], [architecture], length, seed=0)
    drawn = units.slices(FIRST, np.zeros(1, int), int(units.lengths[0]))[0].astype(int) - 1
    assert len(drawn) <= length and len(set(drawn.tolist())) == len(drawn) and drawn.min() >= 0
    counts = [int(((drawn >= spec.offset) & (drawn < spec.stop)).sum()) for spec in layout.tensors]
    smallest = sum(spec.size // spec.shape[0] for spec in layout.tensors)
    if smallest <= length:
        assert all(
            0 < count <= spec.size and count % (spec.size // spec.shape[0]) == 0
            for count, spec in zip(counts, layout.tensors, strict=True)
        )
        assert (
            np.diff(np.searchsorted([spec.offset for spec in layout.tensors], drawn, side="right")) >= 0
        ).all()
        assert len(drawn) > length / 2 or len(drawn) == len(row)
    else:
        assert len(drawn) == length


def test_each_time_others_and_the_same_for_a_seed() -> None:
    """Of rows of two architectures, also when some are chosen."""
    rows = list(map(row_of, ARCHITECTURES))
    numbers, starts = np.array([1, 0, 1]), np.zeros(3, int)
    first, second = (
        SomeRows(RandomUnits(rows, ARCHITECTURES, 3000, seed=5), np.array([1, 0])) for _ in range(2)
    )
    drawn = first.slices(numbers, starts, 3000)
    assert not first.fixed and not np.array_equal(drawn[0], drawn[2])
    np.testing.assert_array_equal(drawn, second.slices(numbers, starts, 3000))
    assert not np.array_equal(drawn, second.slices(numbers, starts, 3000))
