"""One wrapper of LightGBM fits numbers and classes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from nws_dataset.baselines.boosting import boost
from nws_dataset.errors import ValueZooError, ZooError

OPTIONS = {"num_trees": 200, "patience": 10, "seed": 3, "num_leaves": 7, "num_threads": 1}


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    """[300, 5] features, of which some are missing, and [300] classes 0..2 that follow from the first."""
    random = np.random.default_rng(0)
    X = random.standard_normal((300, 5))
    y = np.digitize(X[:, 0], (-0.5, 0.5))
    X[::7, 1] = np.nan
    return X, y


def test_numbers(rows: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = rows
    for objective in ("regression", "regression_l1"):
        fits = [boost(X[:200], y[:200], X[200:], y[200:], objective=objective, **OPTIONS) for _ in range(2)]
        values = fits[0].predict(X[200:])
        assert values.shape == (100,) and np.mean(np.abs(values - y[200:])) < 0.1
        assert values.tobytes() == fits[1].predict(X[200:]).tobytes()
        assert 0 < fits[0].best_iteration <= OPTIONS["num_trees"]


def test_classes(rows: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = rows
    fit = boost(X[:200], y[:200], X[200:], y[200:], num_classes=3, **OPTIONS)
    shares = fit.predict(X[200:])
    assert shares.shape == (100, 3) and np.allclose(shares.sum(axis=1), 1)
    assert np.mean(shares.argmax(axis=1) == y[200:]) > 0.95
    assert fit.best_iteration < OPTIONS["num_trees"]  # it stopped


def test_what_cannot_be_fitted(rows: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = rows
    with pytest.raises(ValueZooError, match=r"^boosted trees: expected what LightGBM can fit, found .*Label"):
        boost(X, y + 5, X, y, num_classes=3, **OPTIONS)


def test_without_lightgbm(rows: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ZooError, match="expected the package lightgbm, found none; pip install 'nws-data"):
        boost(*rows, *rows, **OPTIONS)
