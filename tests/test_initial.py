"""Initial rows: the papers' distributions, and golden bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest
import scipy.stats

from builder.training.initial import initial_row, orthogonal
from nws_dataset.networks.cnn import CONSTANT, Architecture
from nws_dataset.networks.layout import layout_of
from training_cases import NWS, SMALL_CNN, make_model

WIDE = dataclasses.replace(Architecture(), width_fc=64)
FAN_IN, FAN_OUT = 8 * 25, 16 * 25  # of conv2


def conv2(initialization: str, **fields) -> np.ndarray:
    row = initial_row(make_model(WIDE, initialization=initialization, **fields))
    return layout_of(WIDE).views(row)["conv2.weight"].ravel()


@pytest.mark.parametrize(
    ("initialization", "distribution"),
    [
        ("normal", scipy.stats.norm(0, 1)),
        (
            "glorot_uniform",
            scipy.stats.uniform(-math.sqrt(6 / (FAN_IN + FAN_OUT)), 2 * math.sqrt(6 / (FAN_IN + FAN_OUT))),
        ),
        ("glorot_normal", scipy.stats.norm(0, math.sqrt(2 / (FAN_IN + FAN_OUT)))),
        ("he_normal", scipy.stats.norm(0, math.sqrt(2 / FAN_IN))),
        ("random_normal", scipy.stats.norm(0, 0.1)),
        ("truncated_normal", scipy.stats.truncnorm(-2, 2, 0, 0.1)),
    ],
)
def test_distributions(initialization: str, distribution) -> None:
    assert scipy.stats.kstest(conv2(initialization), distribution.cdf).pvalue > 0.01


def test_constant_and_orthogonal() -> None:
    assert np.all(conv2("constant") == np.float32(CONSTANT))
    vectors = conv2("orthogonal").reshape(16, -1).astype(np.float64)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(16), atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (5, 5)])
def test_orthogonal_on_the_shorter_axis(shape: tuple[int, int]) -> None:
    matrix = orthogonal(np.random.default_rng(0).standard_normal(shape))
    product = matrix @ matrix.T if shape[0] <= shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, np.eye(min(shape)), atol=1e-14)


def test_biases_and_batch_norm() -> None:
    views = layout_of(WIDE).views(initial_row(make_model(WIDE)))
    assert (
        not views["conv1.bias"].any()
        and not views["conv1_norm.bias"].any()
        and not views["conv1_norm.running_mean"].any()
    )
    assert np.all(views["conv1_norm.running_var"] == 1)
    scale = np.concatenate([view for name, view in views.items() if name.endswith("_norm.weight")])
    assert scale.mean() == pytest.approx(1, abs=5e-4) and scale.std() == pytest.approx(0.002, rel=0.3)


def test_models_and_layers_differ() -> None:
    assert not np.array_equal(initial_row(make_model(NWS, 0)), initial_row(make_model(NWS, 1)))
    views = layout_of(NWS).views(initial_row(make_model(NWS, initialization="normal")))
    assert not np.array_equal(views["conv1.weight"].ravel()[:9], views["conv2.weight"].ravel()[:9])


def test_rows_are_golden() -> None:
    digests = {}
    for initialization in Architecture.initializations:
        for architecture in (NWS, SMALL_CNN):
            row = initial_row(make_model(architecture, 11, initialization=initialization))
            digests[f"{initialization} {architecture.id}"] = hashlib.sha256(
                row.astype("<f4").tobytes()
            ).hexdigest()[:16]
    assert digests == GOLDEN_ROWS


GOLDEN_ROWS = {
    "constant conv3x4k3-max-dense2x16-bn-in3x12": "8efc20e85941f795",
    "constant conv3x8k3s2g1v-avg-convdrop-in1x21c": "90374c2e25c5add5",
    "normal conv3x4k3-max-dense2x16-bn-in3x12": "7f92d322d31f1ab2",
    "normal conv3x8k3s2g1v-avg-convdrop-in1x21c": "6799041b7b96b29a",
    "glorot_uniform conv3x4k3-max-dense2x16-bn-in3x12": "e8e6908733212f4f",
    "glorot_uniform conv3x8k3s2g1v-avg-convdrop-in1x21c": "248aaf6dbf3835dc",
    "glorot_normal conv3x4k3-max-dense2x16-bn-in3x12": "da493e66f88c6cdb",
    "glorot_normal conv3x8k3s2g1v-avg-convdrop-in1x21c": "11852423d5403a0a",
    "he_normal conv3x4k3-max-dense2x16-bn-in3x12": "f1499be768acc94b",
    "he_normal conv3x8k3s2g1v-avg-convdrop-in1x21c": "a04c9f3d5a89f50e",
    "orthogonal conv3x4k3-max-dense2x16-bn-in3x12": "580d441a1b0c68d1",
    "orthogonal conv3x8k3s2g1v-avg-convdrop-in1x21c": "3eb6a46757fe8ad1",
    "random_normal conv3x4k3-max-dense2x16-bn-in3x12": "51281f70abb87c9d",
    "random_normal conv3x8k3s2g1v-avg-convdrop-in1x21c": "d91605a34c7a6f8e",
    "truncated_normal conv3x4k3-max-dense2x16-bn-in3x12": "b00dec6d1a77ebdf",
    "truncated_normal conv3x8k3s2g1v-avg-convdrop-in1x21c": "11ce074696a54ccb",
}
