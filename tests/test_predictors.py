"""The predictors are scikit-learn estimators, stay within their range, and are deterministic."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from nws_dataset.predictors import DenseNet, GradientBoosting, LogitLinear, Standardizer

# scikit-learn's checks use targets of any range, so that they are run without the range of accuracies.
CHECKED = [
    LogitLinear(target_range=None),
    GradientBoosting(target_range=None, num_trees=50, num_threads=1),
    DenseNet(target_range=None, num_units=32, max_epochs=50),
]
PREDICTORS = [
    LogitLinear(random_state=1),
    GradientBoosting(num_trees=100, num_threads=1, random_state=1),
    DenseNet(max_epochs=30, random_state=1),
]


@parametrize_with_checks(CHECKED)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


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
    short = GradientBoosting(num_trees=500, patience=5, num_threads=1, random_state=0).fit(X[:300], y[:300], X[300:], shuffled)
    long = GradientBoosting(num_trees=500, patience=5, num_threads=1, random_state=0).fit(X[:300], y[:300], X[300:], y[300:])
    assert short.booster_.best_iteration < long.booster_.best_iteration


def test_standardizer_ignores_outliers_and_constants():
    X = np.column_stack([np.linspace(0, 1, 1000), np.full(1000, 7.0)])
    X[0, 0] = 1e30
    Z = Standardizer.fit(X)(X)
    assert abs(Z).max() < 3 and np.allclose(Z[:, 1], 0) and abs(Z[1:, 0].std() - 1) < 0.02
