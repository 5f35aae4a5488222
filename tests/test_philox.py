"""The generator against its authors' known answers; the transforms against scipy and against literal
values.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from builder import philox
from builder.philox import Purpose

ONES = 0xFFFFFFFF
# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
@pytest.mark.parametrize(
    "kind",
    [int, lambda word: np.array([word]), lambda word: torch.tensor([word])],
    ids=["int", "numpy", "torch"],
)
def test_known_answers(counter, key, answer, kind) -> None:
    words = philox.philox(key, tuple(map(kind, counter)))
    assert tuple(word if kind is int else word.item() for word in words) == answer


def test_mixed_arguments_broadcast_and_agree() -> None:
    index = np.arange(5)[:, None]
    words = philox.draw((3, 4), Purpose.NOISE, index=index, epoch=7, model=2**31, block=np.arange(3))
    on_torch = philox.draw(
        (3, 4), Purpose.NOISE, index=torch.arange(5)[:, None], epoch=7, model=2**31, block=torch.arange(3)
    )
    for i in range(5):
        for b in range(3):
            alone = philox.philox((3, 4), (i, 7, 2**31, b | Purpose.NOISE << 24))
            assert (
                [int(word[i, b]) for word in words] == list(alone) == [int(word[i, b]) for word in on_torch]
            )


def test_key_and_field_block_are_golden() -> None:
    assert philox.key_of(0, "main") == (0x32DF9C34, 0x789E3D21)
    assert philox.field_block("optimizer") == 0x3408E0


def test_log_exp_and_normal_agree_with_scipy() -> None:
    u = (np.arange(100_000) + 0.5) / 100_000
    np.testing.assert_allclose(philox.log(u), np.log(u), rtol=1e-14, atol=1e-15)
    x = 60 * u - 40
    np.testing.assert_allclose(philox.exp(x), np.exp(x), rtol=1e-14)
    tails = np.array([1e-300, 1e-100, 1e-20, 1e-10, 1 - 1e-10])
    both = np.concatenate([u, tails])
    np.testing.assert_allclose(philox.normal(both), scipy.special.ndtri(both), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("transform", "distribution"),
    [
        (philox.normal, scipy.stats.norm()),
        (philox.truncated_normal, scipy.stats.truncnorm(-2, 2)),
        (lambda u: philox.log_uniform(u, 1e-3, 0.5), scipy.stats.loguniform(1e-3, 0.5)),
    ],
    ids=["normal", "truncated_normal", "log_uniform"],
)
def test_distributions(transform, distribution) -> None:
    words = philox.draw((1, 2), Purpose.INITIAL, index=np.arange(20_000))
    assert (
        scipy.stats.kstest(transform(philox.unit_interval(words[0], words[1])), distribution.cdf).pvalue
        > 0.01
    )


def test_transforms_are_golden() -> None:
    """The bytes of what recipes and initial rows are made of: they must not change with a library or a
    machine.
    """
    words = philox.draw(philox.key_of(0, "main"), Purpose.INITIAL, index=np.arange(4096), model=5)
    u = philox.unit_interval(words[0], words[1])
    numbers = np.concatenate(
        [u, philox.normal(u), philox.truncated_normal(u), philox.log_uniform(u, 5e-4, 5e-2)]
    )
    assert (
        hashlib.sha256(numbers.astype("<f8").tobytes()).hexdigest()
        == "22ddeec0069db6d6c5034d3a8c302f62b70103d12aa464a87fe84b1ec6dd50d0"
    )


def test_words_are_used_as_documented() -> None:
    low, high = np.array([0, ONES]), np.array([0, ONES])
    u = philox.unit_interval(high, low)
    assert 0 < u[0] < u[1] < 1
    assert philox.key64(high, low).tolist() == [0, 2**63 - 1]
    assert philox.lanes16((0x00020001,)) == [1, 2]
