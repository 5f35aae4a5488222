"""Which models are trained on and which are held out.

Always by model: snapshots of one model are never on both sides.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from nws_dataset.errors import ZooError

SMALLEST_ZOO = 4  # models; of fewer nothing can be said
# models; below, a tenth of them would be too few to test on, so that all are held out in turn
SMALL_ZOO = 1000
NUM_FOLDS = 5  # fewer where a class, or the zoo, has fewer models
VALIDATION_FRACTION = 0.1  # of the training models, where the zoo's own splits are not used


@dataclass(frozen=True)
class Fold:
    """Places of models, disjoint."""

    training: np.ndarray
    validation: np.ndarray  # empty: the estimator cuts off a part of training
    test: np.ndarray


def is_small(num_models: int) -> bool:
    return num_models < SMALL_ZOO


def check_models(zoo: object, splits: np.ndarray) -> None:
    """Raise a ZooError that names the zoo if its models, of splits [M], are too few or leave nothing to train
    on or to test on.
    """
    if len(splits) < SMALLEST_ZOO:
        raise ZooError(
            zoo, expected=f"{SMALLEST_ZOO} models or more", found=str(len(splits)), do="build more models"
        )
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
    return "- or ".join(map(str, sorted(set(num_folds)))) + (
        "-fold cross-validation over models: each one is held out exactly once"
    )


def folds_of(
    splits: np.ndarray,
    seed: int,
    *,
    small: bool,
    labels: np.ndarray | None = None,
    num_folds: int = NUM_FOLDS,
) -> list[Fold]:
    """The folds of an experiment.

    Args:
        splits: [M] the zoo's split of each model.
        seed: of the cross-validation.
        small: cross-validate, in place of the zoo's own splits.
        labels: [M] classes of the models, which every fold then holds in equal parts, as nearly as can be.
        num_folds: of the cross-validation, where the rarest class has as many models.

    Returns:
        folds that hold out each model once, or the one fold of the zoo's splits.

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
    dealt = np.empty(len(splits), dtype=np.intp)
    dealt[order] = np.arange(len(splits)) % num_folds
    nobody = np.empty(0, dtype=np.intp)
    return [
        Fold(np.flatnonzero(dealt != fold), nobody, np.flatnonzero(dealt == fold))
        for fold in range(num_folds)
    ]


def with_validation(fold: Fold, seed: int, labels: np.ndarray | None = None) -> Fold:
    """A fold that has a validation part: its own, or a tenth of its training models, of every class; all of
    them if there are so few.

    Args:
        fold: the fold.
        seed: of the draw.
        labels: [M] classes of the models; None: they have none.

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
    """Places of models of which every class has equally many within each stratum (split); the others are
    dropped at random.

    Example:
        >>> balanced(np.array(["a", "b", "a"]), np.array(["train"] * 3), seed=0).tolist() in ([0, 1], [1, 2])
        True
    """
    random = np.random.default_rng(seed)
    kept: list[np.ndarray] = []
    for stratum in np.unique(strata):
        members = [np.flatnonzero((strata == stratum) & (labels == label)) for label in np.unique(labels)]
        fewest = min(map(len, members))
        kept += [random.permutation(places)[:fewest] for places in members]
    return np.sort(np.concatenate(kept))
