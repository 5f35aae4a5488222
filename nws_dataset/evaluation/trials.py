"""Predictors fitted on some networks and scored on others: tuning, held-out predictions, and records of the
scores.

Axes: M models, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.base import clone

from nws_dataset.baselines.predictors import DenseNet, GradientBoosting, LogitLinear
from nws_dataset.evaluation import report
from nws_dataset.evaluation.folds import Fold

Record = dict[str, Any]
TARGET = "test_accuracy"
# Method -> what is tried; on the validation models one is chosen. The first is taken where there are none.
PREDICTORS: dict[str, tuple[Any, ...]] = {
    "linear": (LogitLinear(), LogitLinear(l2=1e-3), LogitLinear(l2=1e-7, max_iter=2000)),
    "boosting": (
        GradientBoosting(),
        GradientBoosting(max_depth=4),
        GradientBoosting(max_depth=8, min_rows_in_leaf=5),
    ),
    "dense net": (DenseNet(), DenseNet(num_units=512, dropout=0.2), DenseNet(num_layers=5, dropout=0.0)),
}
WIDE = 1000  # features; of more, nothing is tried out
WIDE_BOOSTING = {"feature_fraction": 0.05, "learning_rate": 0.1}


@dataclass(frozen=True)
class Method:
    """A predictor that is not fitted yet."""

    name: str
    estimator: Any

    def fit(self, X: np.ndarray, y: np.ndarray, fold: Fold, seed: int) -> Any:
        """A fitted copy; early stopping looks at the fold's validation models, or at a part that the
        estimator cuts off.
        """
        held_out = (
            {"X_validation": X[fold.validation], "y_validation": y[fold.validation]}
            if len(fold.validation)
            else {}
        )
        return (
            clone(self.estimator)
            .set_params(random_state=seed)
            .fit(X[fold.training], y[fold.training], **held_out)
        )


def tuned(name: str, X: np.ndarray, y: np.ndarray, folds: Sequence[Fold], seed: int = 0) -> Method:
    """The method's setting that has the smallest squared error on the validation models; the test models are
    not looked at.

    Args:
        name: of PREDICTORS.
        X: [M, F].
        y: [M].
        folds: of several (cross-validation) none has validation models: the first setting is taken.
        seed: of the fits.
    """
    settings, validation = PREDICTORS[name], folds[0].validation
    if X.shape[1] > WIDE:  # for time: one setting, and few trees that look at few of the features
        wide = WIDE_BOOSTING if isinstance(settings[0], GradientBoosting) else {}
        return Method(name, clone(settings[0]).set_params(**wide))
    if len(settings) == 1 or not len(validation):
        return Method(name, settings[0])

    def error(estimator: Any) -> float:
        return float(
            np.mean(
                (Method(name, estimator).fit(X, y, folds[0], seed).predict(X[validation]) - y[validation])
                ** 2
            )
        )

    return Method(name, min(settings, key=error))


def held_out_predictions(
    method: Method, X: np.ndarray, y: np.ndarray, folds: Sequence[Fold], seed: int
) -> np.ndarray:
    """[M] predictions of the models that some fold tests; NaN for the others."""
    predicted = np.full(len(y), np.nan)
    for i, fold in enumerate(folds):
        predicted[fold.test] = method.fit(X, y, fold, seed + i).predict(X[fold.test])
    return predicted


def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The part of the variance that is explained; NaN of constant truths."""
    total = np.sum((truth - truth.mean()) ** 2)
    return float(1 - np.sum((truth - predicted) ** 2) / total) if total > 0 else float("nan")


def kendall_tau(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Kendall's tau-b; NaN if either is constant."""
    return float(kendalltau(truth, predicted).statistic)


def mse(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean squared error."""
    return float(np.mean((truth - predicted) ** 2))


def true_rank_of_best(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The place in truth, from 1, of the model that was predicted best.

    Example:
        >>> true_rank_of_best(np.array([0.9, 0.8, 0.1]), np.array([0.5, 0.7, 0.2]))
        2.0
    """
    return float(1 + np.sum(truth > truth[np.argmax(predicted)]))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "r2": r2,
    "mse": mse,
    "kendall_tau": kendall_tau,
    "true_rank_of_best": true_rank_of_best,
}
WITH_INTERVAL = ("r2", "kendall_tau")
FEWEST = 3  # models that a score is of


def records(
    common: Mapping[str, Any],
    truth: np.ndarray,
    predicted: np.ndarray,
    converged: np.ndarray,
    *,
    intervals: bool = False,
) -> list[Record]:
    """Scores of predictions, on all nets and on the converged ones.

    Args:
        common: what all records say; "seed" is that of the intervals.
        truth: [M].
        predicted: [M].
        converged: [M] whether each did.
        intervals: add 95 % intervals of R2 and tau, from resampling the models.

    Returns:
        a record for each metric and part. A score that does not exist (of constant truths, of fewer than
        three models) is left out.
    """
    found = []
    for nets, part in (("all", np.ones(len(truth), bool)), ("converged", converged)):
        if part.sum() < FEWEST:
            continue
        for metric, statistic in METRICS.items():
            value = statistic(truth[part], predicted[part])
            if not np.isfinite(value):
                continue
            record = {
                "target": TARGET,
                **common,
                "nets": nets,
                "num_test": int(part.sum()),
                "metric": metric,
                "value": value,
            }
            if intervals and metric in WITH_INTERVAL:
                record["interval_95"] = report.bootstrap_interval(
                    statistic, truth[part], predicted[part], common["seed"]
                )
            found.append(record)
    return found


def values(found: Sequence[Record], **conditions: Any) -> list[float]:
    """The values of the records that fulfil all conditions.

    Example:
        >>> values([{"metric": "r2", "value": 0.5}, {"metric": "mse", "value": 0.1}], metric="r2")
        [0.5]
    """
    return [
        record["value"]
        for record in found
        if all(record.get(name) == wanted for name, wanted in conditions.items())
    ]
