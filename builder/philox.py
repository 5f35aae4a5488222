"""Random numbers as a pure function of (seed, subset, model number, purpose, epoch, image or unit).

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a counter of four
32-bit words and a key of two into four random words. There is no state, so neither slot, cohort, batching nor
device can change a draw. The same code runs on numpy int64 arrays and torch int64 tensors.

The transforms from bits to distributions use only additions, multiplications, divisions and square roots,
whose rounding IEEE 754 fixes: a plan and an initial row are the same on every machine and with every version
of a library.
"""

from __future__ import annotations

import enum
import hashlib
import math
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF
LANES = 8  # 16-bit numbers in the output of one counter

Key = tuple[int, int]
Words = Any  # numpy int64 array, torch int64 tensor or int, with values in 0 .. 2**32 - 1


class Purpose(enum.IntEnum):
    """What a draw is for: the highest byte of the counter's last word.

    A number is never reused for another purpose.
    """

    RECIPE = 1  # block: field
    INITIAL = 2  # block: tensor, index: number in the tensor
    VALIDATION = 3  # index: image
    ORDER = 4  # index: image
    AUGMENT = 5  # block: group of four parameters, index: image
    NOISE = 6  # block: pixel // LANES, index: image
    DROPOUT = 7  # block: layer and unit // LANES, index: image
    IMAGES = 8  # the order of an image set, of all zoos; index: image
    LABEL = 9  # index: image


def key_of(seed: int, subset: str) -> Key:
    """The generator's key for a subset built with a seed."""
    digest = hashlib.sha256(f"{seed}/{subset}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def field_block(name: str) -> int:
    """The block of a recipe field, from its name: a new field leaves the draws of the others unchanged."""
    return zlib.crc32(name.encode()) & 0xFFFFFF


def philox(key: Key, counter: tuple[Words, Words, Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10.

    Args:
        key: two 32-bit words.
        counter: four arrays (or ints) of 32-bit words that broadcast against each other.

    Returns:
        Four arrays of 32-bit words, as int64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # An int64 product wraps, but its bits are right; the mask also removes the arithmetic shift's sign
        # bits.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) ^ c1 ^ k0) & WORD, _fit(p1)
        c2, c3 = ((p0 >> 32) ^ c3 ^ k1) & WORD, _fit(p0)
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1 & WORD, c2, c3 & WORD


def _fit(product: Words) -> Words:
    """Cut a Python int, which does not wrap as an array does, to a size that arrays can be combined with."""
    return product & WORD if isinstance(product, int) else product


def draw(
    key: Key, purpose: Purpose, *, index: Words, epoch: Words = 0, model: Words = 0, block: Words = 0
) -> tuple[Words, Words, Words, Words]:
    """Four random words for each combination of the broadcast arguments; `block` is less than 2**24."""
    return philox(key, (index, epoch, model, block | (int(purpose) << 24)))


def unit_interval(high: Words, low: Words) -> Any:
    """Two words -> float64 in the open interval 0 .. 1, from 52 bits at their centres."""
    return ((high << 20 | low >> 12) + 0.5) * 2.0**-52


def key64(high: Words, low: Words) -> Words:
    """Two words -> a 63-bit sort key (int64 has no more non-negative values)."""
    return high << 31 | low >> 1


def lanes16(words: Iterable[Words]) -> list[Words]:
    """Four words -> LANES numbers of 16 bits each."""
    return [part for word in words for part in (word & 0xFFFF, word >> 16)]


# Transforms of float64 arrays on the CPU.

_LOG2 = math.log(2.0)


def log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm, relative error about 1e-15, from the series of atanh around 1."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa, exponent = np.where(small, mantissa * 2, mantissa), exponent - small
    s = (mantissa - 1) / (mantissa + 1)
    square, series = s * s, np.zeros_like(s)
    for n in range(23, 0, -2):
        series = series * square + 1.0 / n
    return exponent * _LOG2 + 2 * s * series


def exp(x: np.ndarray) -> np.ndarray:
    """Exponential, relative error about 1e-15, from its series after taking out powers of 2."""
    exponent = np.rint(x * (1 / _LOG2))
    rest, series = x - exponent * _LOG2, np.ones_like(x)
    for n in range(18, 0, -1):
        series = 1 + rest * series / n
    return np.ldexp(series, exponent.astype(np.int64))


# Coefficients of Wichura's AS 241 (1988), PPND16: rational functions for the centre, the tails and the far
# tails; lowest power first.
_CENTRE = (
    (
        *(3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4),
        *(4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    ),
    (
        *(1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3),
        *(2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
    ),
)
_TAIL = (
    (
        *(
            1.42343711074968357734e0,
            4.63033784615654529590e0,
            5.76949722146069140550e0,
            3.64784832476320460504e0,
        ),
        *(
            1.27045825245236838258e0,
            2.41780725177450611770e-1,
            2.27238449892691845833e-2,
            7.74545014278341407640e-4,
        ),
    ),
    (
        *(1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1),
        *(
            1.48103976427480074590e-1,
            1.51986665636164571966e-2,
            5.47593808499534494600e-4,
            1.05075007164441684324e-9,
        ),
    ),
)
_FAR_TAIL = (
    (
        *(
            6.65790464350110377720e0,
            5.46378491116411436990e0,
            1.78482653991729133580e0,
            2.96560571828504891230e-1,
        ),
        *(
            2.65321895265761230930e-2,
            1.24266094738807843860e-3,
            2.71155556874348757815e-5,
            2.01033439929228813265e-7,
        ),
    ),
    (
        *(1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2),
        *(
            7.86869131145613259100e-4,
            1.84631831751005468180e-5,
            1.42151175831644588870e-7,
            2.04426310338993978564e-15,
        ),
    ),
)


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: np.ndarray) -> np.ndarray:
    above, below = np.zeros_like(x), np.zeros_like(x)
    for a, b in zip(reversed(coefficients[0]), reversed(coefficients[1]), strict=True):
        above, below = above * x + a, below * x + b
    return above / below


def normal(u: np.ndarray) -> np.ndarray:
    """Uniform in 0 .. 1 -> standard normal: its quantile function (AS 241, relative error about 1e-16)."""
    q = u - 0.5
    centre = q * _ratio(_CENTRE, 0.180625 - q * q)
    r = np.sqrt(-log(np.minimum(u, 1 - u)))
    tail = np.where(r <= 5, _ratio(_TAIL, r - 1.6), _ratio(_FAR_TAIL, r - 5))
    return np.where(np.abs(q) <= 0.425, centre, np.where(q < 0, -tail, tail))


TWO_SIGMA = 0.022750131948179209  # probability of a standard normal below -2


def truncated_normal(u: np.ndarray) -> np.ndarray:
    """Standard normal cut at two standard deviations."""
    return normal(TWO_SIGMA + u * (1 - 2 * TWO_SIGMA))


def log_uniform(u: np.ndarray, low: float, high: float) -> np.ndarray:
    """Uniform in the logarithm, in low .. high."""
    ends = log(np.array([low, high]))
    return exp(ends[0] + u * (ends[1] - ends[0]))
