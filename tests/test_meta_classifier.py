"""The meta-classifier and meta-regressor: the paper's network, learning, determinism, rows of any length,
saving.
"""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from nws_dataset.baselines.meta_classifier import DeepMetaClassifier, DeepMetaRegressor, build_network
from nws_dataset.errors import ZooError
from nws_dataset.reading.zoo import Zoo
from nws_dataset.reading.zoo_rows import ZooRows
from nws_dataset.views.slices import ArrayRows, DeviceRows, prefetched
from testing.zoo_factory import make_zoo

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
        if isinstance(module, torch.nn.Conv2d | torch.nn.MaxPool2d):
            shapes.append((x.shape[1], x.shape[3]))
    return shapes


def test_network_of_the_paper():
    network = build_network(5000, 4)
    shapes = signal_lengths(network, 5000)
    assert [c for c, _ in shapes] == [
        8,
        8,
        16,
        16,
        32,
        64,
        64,
        128,
        256,
        256,
        256,
        256,
        256,
        256,
        256,
        256,
        256,
        256,
        256,
        256,
    ]
    assert shapes[-1] == (256, 19)
    dense = [module.out_features for module in network if isinstance(module, torch.nn.Linear)]
    assert dense == [1024, 1024, 1024, 1024, 64, 4]


def test_deeper_network_for_long_slices():
    network = build_network(40_001, 4, width=1 / 32)
    assert sum(isinstance(module, torch.nn.MaxPool2d) for module in network) == 12
    assert sum(isinstance(module, torch.nn.Conv2d) for module in network) == 15
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
    np.testing.assert_allclose(
        fitted.predict_proba([row]),
        fitted.predict_proba([np.append(row, np.zeros(50, np.float32))]),
        rtol=1e-5,
    )


def test_a_model_is_in_training_or_in_validation(data):
    groups = np.repeat(np.arange(40), 3)
    training, validation = DeepMetaClassifier()._split(groups, np.random.RandomState(0))
    assert len(validation) == 12 and not set(groups[training]) & set(groups[validation])


def test_history_and_progress(data):
    rows, labels = data
    seen: list[dict[str, Any]] = []
    classifier = DeepMetaClassifier(**{**SLIM, "epochs": 2}, progress=seen.append).fit(rows, labels)
    assert seen == classifier.history_ and [entry["epoch"] for entry in seen] == [1, 2]
    assert 0 <= seen[-1]["validation_score"] <= 1 and 0 <= seen[-1]["waited"] <= seen[-1]["seconds"]
    (only,) = DeepMetaClassifier(**{**SLIM, "epochs": 1, "validation_fraction": 0}).fit(rows, labels).history_
    assert only["validation_score"] is None


@pytest.mark.parametrize("linear_below", [None, 0.01])
def test_huge_weights_are_tamed(data, linear_below):
    rows, labels = data
    rows = [row if i else np.full(300, 1e30, np.float32) for i, row in enumerate(rows)]
    assert np.isfinite(
        DeepMetaClassifier(**{**SLIM, "epochs": 1}, linear_below=linear_below)
        .fit(rows, labels)
        .predict_proba(rows)
    ).all()


def test_mistakes_are_told(data):
    rows, labels = data
    with pytest.raises(ValueError, match="inconsistent numbers"):
        DeepMetaClassifier(**SLIM).fit(rows, labels[:5])
    with pytest.raises(ZooError, match="two classes"):
        DeepMetaClassifier(**SLIM).fit(rows, ["one"] * len(rows))
    with pytest.raises(ZooError, match=r"row \d+: expected finite"):
        DeepMetaClassifier(**SLIM).fit([np.full(300, np.nan, np.float32)] * 20, ["a", "b"] * 10)


# scikit-learn's data have few columns: a slice holds them all.
CHECKED: dict[str, Any] = {"slice_length": 16, "epochs": 2, "width": 1 / 32, "batch_size": 16}
NOT_APPLICABLE = {
    "check_estimators_nan_inf": "a ZooError names the row",
    "check_classifiers_one_label": "a ZooError says that two classes are needed",
    "check_fit2d_1sample": "a ZooError says that two rows are needed",
}


@parametrize_with_checks(
    [DeepMetaClassifier(**CHECKED), DeepMetaRegressor(**CHECKED)],
    expected_failed_checks=lambda e: NOT_APPLICABLE,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def numbers():
    """120 rows and the logarithm of their spread."""
    random = np.random.default_rng(1)
    spread = random.uniform(-1, 1, 120)
    return [(10**s * random.normal(size=300)).astype(np.float32) for s in spread], spread


@pytest.mark.parametrize("loss", ["absolute_error", "squared_error"])
def test_regressor(loss, numbers):
    rows, spread = numbers
    regressor = DeepMetaRegressor(**{**SLIM, "epochs": 40}, linear_below=0.1, loss=loss).fit(
        rows[:90], 1e-3 * spread[:90]
    )
    assert regressor.score(rows[90:], 1e-3 * spread[90:]) > 0.7
    assert regressor.predict(rows[90:]).shape == (30,)
    again = clone(regressor).fit(rows[:90], 1e-3 * spread[:90])
    np.testing.assert_array_equal(again.predict(rows), regressor.predict(rows))
    with pytest.raises(ZooError, match="absolute_error or squared_error"):
        clone(regressor).set_params(loss="huber").fit(rows, spread)


def test_the_epoch_that_is_best_on_validation_rows_is_kept(data):
    rows, labels = data
    classifier = DeepMetaClassifier(**SLIM).fit(rows[:60], labels[:60], None, rows[60:90], labels[60:90])
    losses = [entry["validation_loss"] for entry in classifier.history_]
    assert classifier.best_epoch_ == 1 + int(np.argmin(losses))
    kept = -np.log(
        classifier.predict_proba(rows[60:90])[
            np.arange(30), np.searchsorted(classifier.classes_, labels[60:90])
        ]
    ).mean()
    assert kept == pytest.approx(min(losses), rel=1e-4)


def test_saved_and_loaded(fitted, data, numbers, tmp_path):
    rows, _ = data
    loaded = DeepMetaClassifier.load(fitted.save(tmp_path / "classifier"))
    np.testing.assert_array_equal(loaded.predict_proba(rows), fitted.predict_proba(rows))
    regressor = DeepMetaRegressor(**{**SLIM, "epochs": 1}).fit(*numbers)
    np.testing.assert_array_equal(
        DeepMetaRegressor.load(regressor.save(tmp_path / "r")).predict(numbers[0]),
        regressor.predict(numbers[0]),
    )
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pt", ".bin")]


def test_sources_give_the_same_slices(tmp_path):
    """Views of the files, the zoo's own slices, and all weights on a device; short rows are filled up."""
    zoo = Zoo(make_zoo(tmp_path / "nws", models=6, snapshots=2))
    snapshots = zoo.filter()
    views = ArrayRows(zoo.arrays(snapshots))
    random = np.random.default_rng(0)
    numbers = random.integers(len(snapshots), size=40)
    length = int(views.lengths.min()) + 10
    starts = random.integers(np.maximum(0, views.lengths[numbers] - length) + 1)
    expected = views.slices(numbers, starts, length)
    assert (expected[views.lengths[numbers] < length, -10:] == 0).all() and (
        views.lengths[numbers] < length
    ).any()
    np.testing.assert_array_equal(ZooRows(zoo, snapshots).slices(numbers, starts, length), expected)
    np.testing.assert_array_equal(DeviceRows(views, "cpu").slices(numbers, starts, length).numpy(), expected)


def test_a_zoo_is_read_lazily(tmp_path):
    zoo = Zoo(make_zoo(tmp_path / "nws", models=8, snapshots=1))
    snapshots = zoo.filter()
    options = {**SLIM, "epochs": 2, "validation_fraction": 0.25}
    lazy = DeepMetaClassifier(**options).fit(ZooRows(zoo, snapshots), snapshots["activation"])
    views = DeepMetaClassifier(**options).fit(zoo.arrays(snapshots), snapshots["activation"])
    np.testing.assert_array_equal(
        lazy.predict_proba(ZooRows(zoo, snapshots)), views.predict_proba(zoo.arrays(snapshots))
    )


def test_prefetching_keeps_the_order_and_hands_errors_on():
    assert list(prefetched(lambda i: i * i, range(5))) == [0, 1, 4, 9, 16] and list(prefetched(str, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(prefetched(lambda i: 1 / i, [1, 0]))
