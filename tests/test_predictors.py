"""The predictors are scikit-learn estimators, stay within their range, are deterministic, and are saved
without pickle.
"""

import huggingface_hub
import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from nws_dataset.baselines.dropout import Dropout
from nws_dataset.baselines.meta_classifier import DeepMetaRegressor
from nws_dataset.baselines.predictors import DenseNet, GradientBoosting, LogitLinear, Standardizer
from nws_dataset.baselines.saving import ARRAYS, CARD, FACTS
from nws_dataset.errors import ZooError
from testing.loopback_hub import READ_TOKEN

# scikit-learn's checks use targets of any range, so that they are run without the range of accuracies.
CHECKED = [
    LogitLinear(target_range=None),
    GradientBoosting(target_range=None, num_trees=200, num_threads=1),
    DenseNet(target_range=None, num_units=32, max_epochs=50),
]
PREDICTORS = [
    LogitLinear(random_state=1),
    GradientBoosting(num_trees=400, num_threads=1, random_state=1),
    DenseNet(max_epochs=30, random_state=1),
]


@parametrize_with_checks(CHECKED)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1 - 1e-9])
def test_dropout(p):
    torch.manual_seed(0)
    module, x = Dropout(p), torch.ones(401, 403, requires_grad=True)
    y = module(x)
    y.sum().backward()
    y = y.detach()
    assert torch.equal(x.grad, y), "what is dropped gets no gradient"
    left = min(1.0, max(1 - p, 2**-16))
    assert len(y.unique()) <= 2 and (y != 0).float().mean() == pytest.approx(left, abs=4e-3)
    assert y[y != 0].mean() == pytest.approx(1 / left, rel=1e-2)
    rows = (y != 0).double()
    if 0 < p < 0.9:  # neighbours are independent, also those of one draw
        for shift in (1, 2, 3, 4):
            both = torch.stack([rows[:, shift:].ravel(), rows[:, :-shift].ravel()])
            assert abs(float(torch.corrcoef(both)[0, 1])) < 0.02
    assert torch.equal(module.eval()(x), x)


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    X = random.normal(size=(400, 6))
    y = 1 / (1 + np.exp(-(2 * X[:, 0] - X[:, 1] + 0.1 * random.normal(size=400))))
    return X, y


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: type(p).__name__)
def test_learns_stays_in_range_and_is_deterministic(predictor, data):
    X, y = data
    first = predictor.fit(X[:300], y[:300]).predict(X[300:])
    assert predictor.score(X[300:], y[300:]) > 0.8
    far = predictor.predict(1e6 * X[300:])
    assert min(first.min(), far.min()) >= 0 and max(first.max(), far.max()) <= 1
    np.testing.assert_array_equal(predictor.fit(X[:300], y[:300]).predict(X[300:]), first)


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: type(p).__name__)
def test_takes_absent_tensors_and_outliers(predictor, data):
    X, y = data
    X = np.column_stack([X, np.full(len(X), np.nan)])
    X[::7, 2] = np.nan
    X[5, 3] = 1e30
    assert predictor.fit(X[:300], y[:300]).score(X[300:], y[300:]) > 0.8


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: type(p).__name__)
def test_targets_in_percent_are_refused(predictor, data):
    X, y = data
    with pytest.raises(ValueError, match=r"0\.0 \.\. 1\.0"):
        predictor.fit(X, 100 * y)


def test_validation_rows_stop_the_fit(data):
    X, y = data
    shuffled = np.random.default_rng(1).permutation(y[300:])
    short = GradientBoosting(num_trees=500, patience=5, num_threads=1, random_state=0).fit(
        X[:300], y[:300], X[300:], shuffled
    )
    long = GradientBoosting(num_trees=500, patience=5, num_threads=1, random_state=0).fit(
        X[:300], y[:300], X[300:], y[300:]
    )
    assert short.booster_.best_iteration < long.booster_.best_iteration


def test_standardizer_ignores_outliers_and_constants():
    X = np.column_stack([np.linspace(0, 1, 1000), np.full(1000, 7.0)])
    X[0, 0] = 1e30
    Z = Standardizer.fit(X)(X)
    assert abs(Z).max() < 3 and np.allclose(Z[:, 1], 0) and abs(Z[1:, 0].std() - 1) < 0.02


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: type(p).__name__)
def test_saved_and_loaded(predictor, data, tmp_path):
    """The loaded one says the same, is the same, and its files hold no pickle."""
    X, y = data
    X[::7, 2] = np.nan
    predictor.fit(X[:300], y[:300])
    loaded = type(predictor).load(predictor.save(tmp_path / "saved"))
    np.testing.assert_array_equal(loaded.predict(X), predictor.predict(X))
    assert loaded.get_params() == predictor.get_params() and loaded.n_features_in_ == 6
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} <= {".json", ".safetensors", ".txt"}
    again = type(predictor).load(loaded.save(tmp_path / "again"))
    np.testing.assert_array_equal(again.predict(X), predictor.predict(X))


def test_names_of_features_and_generators(data, tmp_path):
    """Names are kept; a random generator, which JSON cannot hold, is not."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(data[0], columns=list("abcdef"))
    predictor = LogitLinear(random_state=np.random.RandomState(0), target_range=None).fit(frame, data[1])
    loaded = LogitLinear.load(predictor.save(tmp_path))
    assert (
        loaded.feature_names_in_.tolist() == list("abcdef")
        and loaded.random_state is None
        and loaded.target_range is None
    )
    np.testing.assert_array_equal(loaded.predict(frame), predictor.predict(frame))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda folder: (folder / FACTS).unlink(), "FileNotFoundError"),
        (lambda folder: _cut(folder / FACTS), "JSONDecodeError"),
        (lambda folder: (folder / FACTS).write_text("[]"), "TypeError"),
        (lambda folder: _cut(folder / ARRAYS), "is not the file that estimator.json names"),
        (lambda folder: (folder / ARRAYS).unlink(), "FileNotFoundError"),
        (
            lambda folder: (folder / FACTS).write_text(
                (folder / FACTS).read_text().replace("GradientBoosting", "DenseNet")
            ),
            "a DenseNet",
        ),
    ],
)
def test_damaged_files_are_refused(damage, found, data, tmp_path):
    folder = GradientBoosting(num_trees=3, num_threads=1).fit(*data).save(tmp_path / "saved")
    damage(folder)
    with pytest.raises(ZooError, match=found):
        GradientBoosting.load(folder)


def test_what_is_not_fitted_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError):
        LogitLinear().save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_pushed_with_a_card(data, hub, tmp_path):
    """What goes to the Hub: the files of `save` and a card that says how to load them; private, and again,
    and by whom it may.
    """
    predictor = LogitLinear(l2=0.25, random_state=0).fit(*data)
    address = predictor.push_to_hub("org/linear", about="Of 800 MNIST networks: R2 0.9.", private=True)
    repo = hub.repos["org/linear"]
    first = repo.branches["main"]
    assert address == f"{hub.url}/org/linear/commit/{first}" and repo.kind == "model" and repo.private
    assert {".gitattributes", CARD, FACTS, ARRAYS} == set(repo.commits[first].tree)
    card = huggingface_hub.ModelCard(hub.file("org/linear", CARD).decode())
    assert (
        card.data.library_name == "nws-dataset" and "LogitLinear.from_pretrained('org/linear')" in card.text
    )
    assert "Of 800 MNIST networks" in card.text and "| l2 | 0.25 |" in card.text
    LogitLinear(l2=0.5, random_state=0).fit(*data).push_to_hub("org/linear")
    for where, revision in (("org/linear", first), (predictor.save(tmp_path), None)):
        np.testing.assert_array_equal(
            LogitLinear.from_pretrained(where, revision=revision).predict(data[0]), predictor.predict(data[0])
        )
    assert LogitLinear.from_pretrained("org/linear").l2 == 0.5
    with pytest.raises(ZooError, match="org/linear"):
        predictor.push_to_hub("org/linear", token=READ_TOKEN)
    with pytest.raises(ZooError, match="org/none"):
        LogitLinear.from_pretrained("org/none")


SHARED = [
    GradientBoosting(num_trees=5, random_state=0),
    DeepMetaRegressor(slice_length=6, epochs=2, width=1 / 32, random_state=0),
]


@pytest.mark.parametrize("estimator", SHARED, ids=lambda e: type(e).__name__)
def test_pushed_trees_and_networks(data, hub, estimator):
    """Texts and tensors come back from the Hub as they went, though the Hub is busy at first and then a
    connection is lost.
    """
    estimator.fit(*data)
    hub.faults = lambda number, method, path: {1: 503, 4: "drop"}.get(number)
    estimator.push_to_hub("org/estimator")
    loaded = type(estimator).from_pretrained("org/estimator")
    assert {request.status for request in hub.requests} >= {503, 0}
    np.testing.assert_array_equal(loaded.predict(data[0]), estimator.predict(data[0]))
