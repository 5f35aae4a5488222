"""Which models are trained on and which are held out.

Always by model: snapshots of one model are never on both sides.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from nws_dataset.errors import ZooError

MIN_MODELS = 4  # of fewer nothing can be said
SMALL_ZOO = 1000  # models; of fewer, a tenth would be too few to test on, so that all are held out in turn
NUM_FOLDS = 5  # fewer where a class, or the zoo, has fewer models
VALIDATION_FRACTION = 0.1  # of the training models, where the zoo's own splits are not used
NOBODY = np.empty(0, np.intp)


@dataclass(frozen=True)
class Fold:
    """Indices of models, disjoint."""

    training: np.ndarray
    validation: np.ndarray  # empty: the estimator cuts off a part of training
    test: np.ndarray


def is_small(num_models: int) -> bool:
    """Whether models are held out in turn, in place of the zoo's own splits."""
    return num_models < SMALL_ZOO


def check_models(zoo: object, splits: np.ndarray) -> None:
    """Raise a ZooError that names the zoo if its models, of splits [M], are too few or leave nothing to train
    on or to test on.
    """
    if len(splits) < MIN_MODELS:
        expected, found = f"{MIN_MODELS} models or more", str(len(splits))
        raise ZooError(zoo, expected=expected, found=found, do="build more models")
    missing = {"train", "test"} - set(splits)
    if missing and not is_small(len(splits)):
        found = "none in " + " and ".join(sorted(missing))
        raise ZooError(zoo, expected="models in train and in test", found=found, do="build a whole subset")


def describe(num_folds: Collection[int]) -> str:
    """How models are held out, in words, by experiments of so many folds.

    Example:
        >>> describe([2, 5, 5])
        '2- or 5-fold cross-validation over models: each one is held out exactly once'
    """
    if not num_folds:
        return "no model"
    if set(num_folds) == {1}:
        return "the zoo's own splits by model: trained on train, tested on test"
    counts = "- or ".join(map(str, sorted(set(num_folds))))
    return f"{counts}-fold cross-validation over models: each one is held out exactly once"


def folds_of(
    splits: np.ndarray,
    seed: int,
    *,
    small: bool,
    labels: np.ndarray | None = None,
    num_folds: int = NUM_FOLDS,
) -> list[Fold]:
    """Folds that hold out each model once, if the zoo is small; else the one fold of its splits [M].

    Every fold has an equal part of each class of the labels [M], as nearly as can be; if the rarest class has
    fewer models than `num_folds`, there are as many folds.

    Example:
        >>> folds = folds_of(np.array(["train"] * 10), 0, small=True)
        >>> sorted(np.concatenate([fold.test for fold in folds]).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if not small:
        return [Fold(*(np.flatnonzero(splits == split) for split in ("train", "validation", "test")))]
    order = np.random.default_rng(seed).permutation(len(splits))
    rarest = len(splits) if labels is None else int(np.unique(labels, return_counts=True)[1].min())
    num_folds = min(num_folds, rarest)
    if labels is not None:  # dealing the models class by class gives every fold its part of each
        order = order[np.argsort(labels[order], kind="stable")]
    fold_of = np.empty(len(splits), dtype=np.intp)
    fold_of[order] = np.arange(len(splits)) % num_folds
    return [
        Fold(np.flatnonzero(fold_of != i), NOBODY, np.flatnonzero(fold_of == i)) for i in range(num_folds)
    ]


def with_validation(fold: Fold, seed: int, labels: np.ndarray | None = None) -> Fold:
    """A fold that has a validation part: its own, or a tenth of its training models, of every class of the
    labels [M]; all of them if there are so few.

    Example:
        >>> fold = with_validation(Fold(np.arange(20), np.array([], int), np.array([20])), seed=0)
        >>> len(fold.training), len(fold.validation)
        (18, 2)
    """
    if len(fold.validation):
        return fold
    random = np.random.default_rng(seed)
    classes = np.zeros(len(fold.training)) if labels is None else labels[fold.training]
    cut = []
    for label in np.unique(classes):
        members = random.permutation(fold.training[classes == label])
        # of a single one, none
        cut.append(members[: max(len(members) > 1, round(VALIDATION_FRACTION * len(members)))])
    validation = np.sort(np.concatenate(cut))
    if not len(validation):  # each class has a single model
        return Fold(fold.training, fold.training, fold.test)
    return Fold(np.setdiff1d(fold.training, validation), validation, fold.test)


def balanced(labels: np.ndarray, strata: np.ndarray, seed: int) -> np.ndarray:
    """Indices of models of which every class has equally many within each stratum (split); the others are
    dropped at random.

    Example:
        >>> balanced(np.array(["a", "b", "a"]), np.array(["train"] * 3), seed=0).tolist() in ([0, 1], [1, 2])
        True
    """
    random = np.random.default_rng(seed)
    kept: list[np.ndarray] = []
    for stratum in np.unique(strata):
        members = [np.flatnonzero((strata == stratum) & (labels == label)) for label in np.unique(labels)]
        count = min(map(len, members))
        kept += [random.permutation(indices)[:count] for indices in members]
    return np.sort(np.concatenate(kept))
