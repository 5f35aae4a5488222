"""The meta-classifier: the paper's network, learning, determinism, rows of any length."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone

from nws_dataset.errors import ZooError
from nws_dataset.meta_classifier import DeepMetaClassifier, build_network

SLIM: dict[str, Any] = {
    "slice_length": 200,
    "epochs": 12,
    "width": 1 / 8,
    "dropout": 0.0,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def data():
    """120 rows of different lengths, some shorter than a slice, whose spread tells their class."""
    random = np.random.default_rng(0)
    labels = np.array(["narrow", "middle", "wide"])[np.arange(120) % 3]
    spread = {"narrow": 0.05, "middle": 0.3, "wide": 2.0}
    rows = [random.normal(0, spread[label], random.integers(150, 500)).astype(np.float32) for label in labels]
    return rows, labels


@pytest.fixture(scope="module")
def fitted(data):
    rows, labels = data
    return DeepMetaClassifier(**SLIM).fit(rows[:90], labels[:90])


def signal_lengths(network, slice_length):
    """Channels and length after every convolution or pool."""
    x, shapes = torch.zeros(2, slice_length), []
    for module in network.eval():
        x = module(x)
        if isinstance(module, torch.nn.Conv1d | torch.nn.MaxPool1d):
            shapes.append(tuple(x.shape[1:]))
    return shapes


def test_network_of_the_paper():
    network = build_network(5000, 4)
    shapes = signal_lengths(network, 5000)
    assert [c for c, _ in shapes] == [8, 8, 16, 16, 32, 64, 64, 128, 256, 256, 256, 256, 256, 256, 256, 256, 256, 256, 256, 256]
    assert shapes[-1] == (256, 19)
    dense = [module.out_features for module in network if isinstance(module, torch.nn.Linear)]
    assert dense == [1024, 1024, 1024, 1024, 64, 4]


def test_deeper_network_for_long_slices():
    network = build_network(40_001, 4, width=1 / 32)
    assert sum(isinstance(module, torch.nn.MaxPool1d) for module in network) == 12
    assert sum(isinstance(module, torch.nn.Conv1d) for module in network) == 15
    assert signal_lengths(network, 40_001)[-1] == (8, 9)


@pytest.mark.parametrize("slice_length", [1, 7, 300, 4970])
def test_short_slices(slice_length):
    assert build_network(slice_length, 3, width=1 / 16)(torch.zeros(2, slice_length)).shape == (2, 3)


def test_beats_chance_on_held_out_rows(fitted, data):
    rows, labels = data
    assert fitted.score(rows[90:], labels[90:]) > 0.8
    probabilities = fitted.predict_proba(rows[90:])
    assert probabilities.shape == (30, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_same_seed_same_result(fitted, data):
    rows, labels = data
    torch.rand(3)  # the caller's random numbers change nothing, and are not changed
    state = torch.random.get_rng_state()
    again = clone(fitted).fit(rows[:90], labels[:90])
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(again.predict_proba(rows), fitted.predict_proba(rows))
    other = clone(fitted).set_params(random_state=1, epochs=1).fit(rows[:90], labels[:90])
    assert not np.array_equal(other.predict_proba(rows), fitted.predict_proba(rows))


def test_a_prediction_is_the_mean_over_slices(fitted):
    row = np.random.default_rng(0).normal(size=500).astype(np.float32)
    slices = [row[start : start + 200] for start in (0, 150, 300)]
    mean = fitted.predict_proba(slices).mean(axis=0)
    np.testing.assert_allclose(fitted.predict_proba([row], positions=[0, 0.5, 1])[0], mean, rtol=1e-5)


def test_short_rows_are_filled_with_zeros_at_their_end(fitted):
    row = np.random.default_rng(0).normal(size=150).astype(np.float32)
    np.testing.assert_allclose(fitted.predict_proba([row]), fitted.predict_proba([np.append(row, np.zeros(50, np.float32))]), rtol=1e-5)


def test_a_model_is_in_training_or_in_validation(data):
    groups = np.repeat(np.arange(40), 3)
    training, validation = DeepMetaClassifier()._split(groups, np.random.RandomState(0))
    assert len(validation) == 12 and not set(groups[training]) & set(groups[validation])


def test_history_and_progress(data):
    rows, labels = data
    seen: list[dict[str, Any]] = []
    classifier = DeepMetaClassifier(**{**SLIM, "epochs": 2}, progress=seen.append).fit(rows, labels)
    assert seen == classifier.history_ and [entry["epoch"] for entry in seen] == [1, 2]
    assert 0 <= seen[-1]["validation_accuracy"] <= 1
    assert (
        DeepMetaClassifier(**{**SLIM, "epochs": 1, "validation_fraction": 0}).fit(rows, labels).history_[0]["validation_accuracy"] is None
    )


@pytest.mark.parametrize("linear_below", [None, 0.01])
def test_huge_weights_are_tamed(data, linear_below):
    rows, labels = data
    rows = [row if i else np.full(300, 1e30, np.float32) for i, row in enumerate(rows)]
    assert np.isfinite(DeepMetaClassifier(**{**SLIM, "epochs": 1}, linear_below=linear_below).fit(rows, labels).predict_proba(rows)).all()


def test_mistakes_are_told(data):
    rows, labels = data
    with pytest.raises(ZooError, match="one label"):
        DeepMetaClassifier(**SLIM).fit(rows, labels[:5])
    with pytest.raises(ZooError, match="two classes"):
        DeepMetaClassifier(**SLIM).fit(rows, ["one"] * len(rows))
    with pytest.raises(ZooError, match=r"row \d+: expected finite"):
        DeepMetaClassifier(**SLIM).fit([np.full(300, np.nan, np.float32)] * 20, ["a", "b"] * 10)
