"""Reproducible boosted trees by LightGBM, for numbers or classes.

Axes: N samples, V samples for validation, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nws_dataset.errors import ValueZooError, ZooError, reason

# the same trees for the same number of threads, without output
REPEATABLE = {"deterministic": True, "force_row_wise": True, "verbosity": -1}


def boost(
    X: np.ndarray,
    y: np.ndarray,
    X_validation: np.ndarray,
    y_validation: np.ndarray,
    *,
    num_trees: int,
    patience: int,
    seed: int,
    num_classes: int | None = None,
    where: object = "boosted trees",
    **parameters: Any,
) -> Any:
    """Fit boosted trees; stop `patience` rounds after the best one on the validation samples.

    Args:
        X: [N, F] features; NaN are allowed.
        y: [N] numbers, or classes 0..C-1.
        X_validation: [V, F]
        y_validation: [V]
        num_trees: rounds at most; a round grows one tree, or one per class.
        patience: rounds without a better validation loss.
        seed: of the samples and features that a tree sees.
        num_classes: C, fitted by cross-entropy; None: numbers, fitted by the parameter `objective`.
        where: what errors are about.
        parameters: LightGBM's own.

    Returns:
        A lightgbm.Booster, which predicts with its best round: numbers [N], or probabilities [N, C].

    Raises:
        ZooError: if the package lightgbm is missing.
        ValueZooError: if LightGBM cannot fit the samples.
    """
    try:
        import lightgbm
    except ModuleNotFoundError:
        do = "pip install 'nws-dataset[baselines]'"
        raise ZooError(where, expected="the package lightgbm", found="none", do=do) from None
    goal: Mapping[str, Any] = (
        {} if num_classes is None else {"objective": "multiclass", "num_class": num_classes}
    )
    options = {**parameters, **goal, **REPEATABLE, "seed": seed}
    training = lightgbm.Dataset(X, y, params=options)
    validation = training.create_valid(X_validation, y_validation)
    stop = lightgbm.early_stopping(patience, verbose=False)
    try:
        return lightgbm.train(options, training, num_trees, valid_sets=[validation], callbacks=[stop])
    except lightgbm.basic.LightGBMError as error:
        do = "check the parameters and the samples"
        raise ValueZooError(where, expected="what LightGBM can fit", found=reason(error), do=do) from error
