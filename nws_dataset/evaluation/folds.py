"""Which models are trained on and which are held out. Always by model: snapshots of one model are never on both sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALL_ZOO = 1000  # models; below, a tenth of them would be too few to test on, so that all are held out in turn
NUM_FOLDS = 5


@dataclass(frozen=True)
class Fold:
    """Places of models, disjoint."""

    training: np.ndarray
    validation: np.ndarray  # empty: the estimator cuts off a part of training
    test: np.ndarray


def is_small(num_models: int) -> bool:
    return num_models < SMALL_ZOO


def describe(small: bool) -> str:
    """How models are held out, in words."""
    if small:
        return f"{NUM_FOLDS}-fold cross-validation over models: each one is held out exactly once"
    return "the zoo's own splits by model: trained on train, tested on test"


def folds_of(splits: np.ndarray, seed: int, *, small: bool, labels: np.ndarray | None = None) -> list[Fold]:
    """The folds of an experiment.

    Args:
        splits: [M] the zoo's split of each model.
        seed: of the cross-validation.
        small: cross-validate, in place of the zoo's own splits.
        labels: [M] classes of the models, which every fold then holds in equal parts.

    Returns:
        five folds that hold out each model once, or the one fold of the zoo's splits.

    Example:
        >>> sorted(np.concatenate([fold.test for fold in folds_of(np.array(["train"] * 10), 0, small=True)]).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if not small:
        return [Fold(*(np.flatnonzero(splits == split) for split in ("train", "validation", "test")))]
    order = np.random.default_rng(seed).permutation(len(splits))
    if labels is not None:  # dealing the models class by class gives every fold its part of each
        order = order[np.argsort(labels[order], kind="stable")]
    dealt = np.empty(len(splits), dtype=np.intp)
    dealt[order] = np.arange(len(splits)) % NUM_FOLDS
    nobody = np.empty(0, dtype=np.intp)
    return [Fold(np.flatnonzero(dealt != fold), nobody, np.flatnonzero(dealt == fold)) for fold in range(NUM_FOLDS)]


def balanced(labels: np.ndarray, strata: np.ndarray, seed: int) -> np.ndarray:
    """Places of models of which every class has equally many within each stratum (split); the others are dropped at random.

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
