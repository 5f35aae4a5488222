"""Learners on statistics of weights, for classes or numbers, each tuned on validation rows.

Axes: N rows, F features, C classes or 1.
"""

from __future__ import annotations

import numpy as np

from nws_dataset.baselines.boosting import boost
from nws_dataset.baselines.predictors import Standardizer

SVM_STRENGTHS = (0.001, 0.01, 0.1)  # C; the best on the validation rows is kept
SVM_SOLVER = {"dual": False, "tol": 2e-2, "max_iter": 10_000}
TREES, PATIENCE = 300, 20  # of boosting: rounds at most, and without a gain on the validation rows
BOOSTED = {"learning_rate": 0.1, "num_leaves": 15, "feature_fraction": 0.5}


class LinearSVM:
    """A linear support vector machine on standardised features; C is chosen on the validation rows.

    Args:
        classification: classes 0..C-1, one against the rest; else numbers, with squared loss outside a tube.
        seed: unused: the solution is unique.
    """

    def __init__(self, classification: bool, seed: int) -> None:
        self.classification = classification

    def fit(self, X: np.ndarray, y: np.ndarray, X_validation: np.ndarray, y_validation: np.ndarray) -> None:
        from sklearn.svm import LinearSVC, LinearSVR

        self.standardizer = Standardizer.fit(X)
        plain = self.classification
        self.mean, self.scale = (0.0, 1.0) if plain else (float(y.mean()), float(y.std()) or 1.0)
        Z, Z_validation = self.standardizer(X), self.standardizer(X_validation)
        candidates = []
        for strength in SVM_STRENGTHS:
            if self.classification:
                machine = LinearSVC(C=strength, **SVM_SOLVER).fit(Z, y)
                score = np.mean(machine.predict(Z_validation) == y_validation)
            else:
                machine = LinearSVR(C=strength, loss="squared_epsilon_insensitive", **SVM_SOLVER)
                machine.fit(Z, (y - self.mean) / self.scale)
                score = -np.mean(
                    (machine.predict(Z_validation) - (y_validation - self.mean) / self.scale) ** 2
                )
            candidates.append((score, machine))
        self.machine = max(candidates, key=lambda candidate: candidate[0])[1]

    def scores(self, X: np.ndarray) -> np.ndarray:
        """[N, C]: distances from the hyperplanes, or numbers."""
        Z = self.standardizer(X)
        if not self.classification:
            return (self.mean + self.scale * self.machine.predict(Z))[:, None]
        distances = self.machine.decision_function(Z)
        return distances if distances.ndim == 2 else np.column_stack([-distances, distances])


class Boosting:
    """LightGBM's boosted trees, stopped early on the validation rows.

    Args:
        classification: classes 0..C-1 by cross-entropy; else numbers by mean absolute error.
        seed: of the features of a tree.
    """

    def __init__(self, classification: bool, seed: int) -> None:
        self.classification, self.seed = classification, seed

    def fit(self, X: np.ndarray, y: np.ndarray, X_validation: np.ndarray, y_validation: np.ndarray) -> None:
        self.booster = boost(
            X,
            y,
            X_validation,
            y_validation,
            num_trees=TREES,
            patience=PATIENCE,
            seed=self.seed,
            num_classes=int(y.max()) + 1 if self.classification else None,
            objective="regression_l1",
            min_data_in_leaf=max(1, min(20, len(X) // 20)),
            **BOOSTED,
        )

    def scores(self, X: np.ndarray) -> np.ndarray:
        """[N, C]: probabilities, or numbers."""
        scores = np.asarray(self.booster.predict(X))
        return scores if self.classification else scores[:, None]
