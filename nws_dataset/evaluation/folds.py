"""Splits into training and held-out models; all snapshots of a model are on the same side."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from nws_dataset.errors import ZooError

MIN_MODELS = 4  # too few below this to conclude anything
SMALL_ZOO = 1000  # models; below this, a tenth is too small a test set: cross-validate instead
NUM_FOLDS = 5  # fewer if a class, or the zoo, has fewer models
VALIDATION_FRACTION = 0.1  # of the training models, unless the zoo's own splits are used
NOBODY = np.empty(0, np.intp)


@dataclass(frozen=True)
class Fold:
    """Indices of models for training, validation and test."""

    training: np.ndarray
    validation: np.ndarray  # if empty, the estimator sets aside a part of training
    test: np.ndarray


def is_small(num_models: int) -> bool:
    """Whether cross-validation replaces the zoo's own splits."""
    return num_models < SMALL_ZOO


def check_models(zoo: object, splits: np.ndarray) -> None:
    """Raise a ZooError if a zoo has too few models, or none to train or test on."""
    if len(splits) < MIN_MODELS:
        expected, found = f"{MIN_MODELS} models or more", str(len(splits))
        raise ZooError(zoo, expected=expected, found=found, do="build more models")
    missing = {"train", "test"} - set(splits)
    if missing and not is_small(len(splits)):
        found = "none in " + " and ".join(sorted(missing))
        raise ZooError(zoo, expected="models in train and in test", found=found, do="build a whole subset")


def describe(num_folds: Collection[int]) -> str:
    """Describe how models are held out, given the experiments' numbers of folds."""
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
    """Cross-validation folds for a small zoo, else one fold from its splits [M].

    Folds are stratified by the labels [M]; there are at most as many as the rarest class has models.
    """
    if not small:
        return [Fold(*(np.flatnonzero(splits == split) for split in ("train", "validation", "test")))]
    order = np.random.default_rng(seed).permutation(len(splits))
    rarest = len(splits) if labels is None else int(np.unique(labels, return_counts=True)[1].min())
    num_folds = min(num_folds, rarest)
    if labels is not None:  # dealing the models class by class stratifies the folds
        order = order[np.argsort(labels[order], kind="stable")]
    fold_of = np.empty(len(splits), dtype=np.intp)
    fold_of[order] = np.arange(len(splits)) % num_folds
    return [
        Fold(np.flatnonzero(fold_of != i), NOBODY, np.flatnonzero(fold_of == i)) for i in range(num_folds)
    ]


def with_validation(fold: Fold, seed: int, labels: np.ndarray | None = None) -> Fold:
    """Add a validation part to a fold without one: a tenth of its training models, stratified by labels [M].

    If every class has a single training model, the validation part is the training part.
    """
    if len(fold.validation):
        return fold
    random = np.random.default_rng(seed)
    classes = np.zeros(len(fold.training)) if labels is None else labels[fold.training]
    cut = []
    for label in np.unique(classes):
        members = random.permutation(fold.training[classes == label])
        # the only model of a class stays in training
        cut.append(members[: max(len(members) > 1, round(VALIDATION_FRACTION * len(members)))])
    validation = np.sort(np.concatenate(cut))
    if not len(validation):
        return Fold(fold.training, fold.training, fold.test)
    return Fold(np.setdiff1d(fold.training, validation), validation, fold.test)


def balanced(labels: np.ndarray, strata: np.ndarray, seed: int) -> np.ndarray:
    """Indices of equally many models of each class in each stratum, chosen at random."""
    random = np.random.default_rng(seed)
    kept: list[np.ndarray] = []
    for stratum in np.unique(strata):
        members = [np.flatnonzero((strata == stratum) & (labels == label)) for label in np.unique(labels)]
        count = min(map(len, members))
        kept += [random.permutation(indices)[:count] for indices in members]
    return np.sort(np.concatenate(kept))
