"""The vectors' own operations: exact sums, the exponential's error, random numbers and pixels as the host has
them.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import pytest

from builder import philox
from builder.training.cpu import vectors as v


@numba.njit
def _exponentials(x, out, out1):
    for i in range(0, len(x), v.LANES):
        v.store(out, i, v.exp(v.load(x, i)))
        v.store(out1, i, v.expm1(v.load(x, i)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponential(dtype: type) -> None:
    x = np.concatenate(
        [np.linspace(-80, 80, 4000), np.logspace(-12, 0, 48), -np.logspace(-12, 0, 48)]
    ).astype(dtype)
    out, out1 = np.empty_like(x), np.empty_like(x)
    _exponentials(x, out, out1)
    unit = np.finfo(dtype).eps
    np.testing.assert_allclose(out, np.exp(x.astype(np.float64)), rtol=2 * unit)
    np.testing.assert_allclose(out1, np.expm1(x.astype(np.float64)), rtol=2 * unit)


def test_exponential_at_the_ends() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0, -0.0, 1] * 2, np.float32)
    out, out1 = np.empty_like(x), np.empty_like(x)
    _exponentials(x, out, out1)
    assert np.isnan(out[0]) and np.isnan(out1[0])
    assert out[1] == out[3] > 1e38 and 0 <= out[2] == out[4] < 1e-37
    assert out1[2] == -1 and out[5] == out[6] == 1 and out1[5] == 0


@numba.njit
def _sines(x, sine, cosine):
    for i in range(0, len(x), v.LANES):
        found = v.sine_cosine(v.load(x, i))
        v.store(sine, i, found[0])
        v.store(cosine, i, found[1])


@pytest.mark.parametrize(("dtype", "exact"), [(np.float32, np.float64), (np.float64, np.longdouble)])
def test_sine_and_cosine(dtype: type, exact: type) -> None:
    if np.finfo(exact).eps >= np.finfo(dtype).eps:
        pytest.skip("no wider type here")
    quarters = np.pi / 2 * np.arange(1 << 14)  # near to where one of them is 0
    draw = np.random.default_rng(0)
    drawn = [draw.uniform(-size, size, 1 << 14) for size in (1e-3, 1, 300, 1e6)]
    x = np.concatenate([quarters, -quarters, *drawn]).astype(dtype)
    sine, cosine = np.empty_like(x), np.empty_like(x)
    _sines(x, sine, cosine)
    expected = np.sin(x.astype(exact))
    assert (np.abs(sine - expected) / np.spacing(np.abs(expected).astype(dtype))).max() < 2
    assert np.abs(cosine - np.cos(x.astype(exact))).max() < 2 * np.finfo(dtype).eps


def test_sine_and_cosine_at_the_ends() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0] * 4, np.float32)
    sine, cosine = np.empty_like(x), np.empty_like(x)
    _sines(x, sine, cosine)
    assert np.isnan(sine[:3]).all() and np.isnan(cosine[:3]).all() and sine[3] == 0 and cosine[3] == 1


def _sums(lanes: int) -> Callable[..., None]:
    tile, totals = v.make_tile(5, lanes), v.make_totals(5 * v.CHANNELS)
    zeros, outer, spill, taken = tile.zeros, tile.outer, tile.spill, tile.taken

    @numba.njit
    def sums(x, rows, taps, out):
        for lane in range(0, v.LANES, lanes):
            spill(outer(zeros(x), x, rows, lane, lane, taps), out, lane, 5 * v.LANES)
            spill(taken(out, lane, 5 * v.LANES), out, lane, 5 * v.LANES)
        totals(out)

    return sums


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_totals_of_a_tile(lanes: int) -> None:
    x = np.random.default_rng(0).normal(size=9 * v.LANES)
    rows, taps = tuple(v.LANES * i for i in range(4)), tuple(v.LANES * (4 + i) for i in range(5))
    out = np.empty(5 * v.CHANNELS * v.LANES)
    _sums(lanes)(x, rows, taps, out)
    lines = x.reshape(9, v.LANES)
    np.testing.assert_allclose(out[:20].reshape(4, 5), lines[:4] @ lines[4:].T, rtol=1e-12)


@numba.njit
def _total(x):
    return v.total(v.load(x, 0))


def test_total_of_a_vector() -> None:
    assert _total(np.arange(v.LANES, dtype=float)) == 120


@numba.njit
def _words(index, epoch, model, block, key, out):
    drawn = v.words(index, 0, epoch, model, block, key)
    for i in range(4):
        for high in range(2):
            part = v.high_half(drawn[i]) if high else v.low_half(drawn[i])
            for bit in range(16):  # the word's bits, read by comparisons
                for lane in range(v.LANES):
                    if v.at_least(part, np.int64(out[2 * i + high, lane]) + (1 << (15 - bit))) >> lane & 1:
                        out[2 * i + high, lane] += 1 << (15 - bit)


def test_words_are_philox() -> None:
    index, key = np.arange(1000, 1016) * 77_777_777 % 2**32, np.array([0xDEADBEEF, 0x12345678], np.uint32)
    out = np.zeros((8, v.LANES), np.int64)
    _words(index, 3, 12_345, 7 << 24 | 9, key, out)
    expected = philox.philox((0xDEADBEEF, 0x12345678), (index, 3, 12_345, 7 << 24 | 9))
    np.testing.assert_array_equal(out, philox.lanes16(expected))


@numba.njit
def _samples(images, starts, size, y, x, out):
    v.store(out, 0, v.sample(images, 1, starts, 0, size, v.load(y, 0), v.load(x, 0)))
    v.store(out, v.LANES, v.pixels(out, images, starts, 0, 3))


def test_pixels_outside_are_black() -> None:
    images, starts = np.arange(1, 251, dtype=np.uint8), np.arange(16) * 10
    y, x = np.array([-1, 0, 1, 2, 3, 0, 1, 2] * 2, float), np.array([0, -1, 1, 2, 0, 3, 0, 1] * 2, float)
    out = np.empty(32)
    _samples(images, starts, 3, y, x, out)
    inside = (y >= 0) & (y < 3) & (x >= 0) & (x < 3)
    expected = np.where(inside, images[(starts + 1 + 3 * y * inside + x * inside).astype(int)], 0)
    np.testing.assert_array_equal(out[:16], expected)
    np.testing.assert_array_equal(out[16:], images[starts + 3])
