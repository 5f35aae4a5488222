"""What is read off the weights: a property of the training, and the models by which this is learned and
tested.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.evaluation.folds import NUM_FOLDS, Fold, balanced, folds_of, with_validation
from nws_dataset.format.subsets import SUBSETS, LogUniform

if TYPE_CHECKING:
    from nws_dataset.reading.snapshots import Snapshots

CLASSES = (
    "dataset",
    "batch_size",
    "augmentation",
    "optimizer",
    "activation",
    "initialization",
    "filter_size",
    "depth_conv",
    "depth_fc",
    "width_conv",
    "width_fc",
)
NUMBERS = ("learning_rate",)  # properties that are told as numbers
PROPERTIES = (*CLASSES, *NUMBERS)
# A value that fewer models have is left out, for balancing by it would leave few of the others: a tenth of
# the zoo within these bounds.
RARE, RAREST = 10, 2


@dataclass(frozen=True)
class Task:
    """A property that is to be told, and the models by which this is learned and tested: equally many of each
    class.
    """

    name: str
    classes: list[Any]  # empty for a number
    num_values: int  # that the zoo has; more than classes if some are rare
    models: np.ndarray  # [M] their places among the final rows
    truth: np.ndarray  # [M] the property's values
    folds: list[Fold]  # places in models
    logarithmic: bool = False  # of a number: truth is its log10

    @property
    def is_number(self) -> bool:
        return not self.classes

    @property
    def words(self) -> str:
        """What tables and figures call it."""
        if self.is_number:
            return f"{self.name} (log10)" if self.logarithmic else self.name
        classes = len(self.classes)
        return (
            f"{self.name} "
            f"({classes if classes == self.num_values else f'{classes} of {self.num_values}'} values)"
        )


def tasks_of(
    final: Snapshots,
    properties: Sequence[str] | None,
    seed: int,
    *,
    small: bool,
    models: np.ndarray | None = None,
    num_folds: int = NUM_FOLDS,
) -> tuple[list[Task], dict[str, str]]:
    """The properties that can be told apart, those of which two values or more are not rare, and why the
    others cannot.

    Args:
        final: final rows of a zoo.
        properties: columns of the index with few values, or of NUMBERS; None: PROPERTIES.
        seed: of balancing and folds.
        small: cross-validate, in place of the zoo's own splits.
        models: places in `final` of the models that may be used; None: all.
        num_folds: see `folds_of`.

    Returns:
        the tasks, and the reason for each property that was skipped.

    Raises:
        ZooError: if a property that was asked for has to be skipped.
    """
    models = np.arange(len(final)) if models is None else models
    tasks, skipped, fewest = [], {}, _fewest(len(models))
    for name in properties or PROPERTIES:
        task = (_number if name in NUMBERS else _classes)(final, name, models, seed, small, num_folds)
        if task.folds:
            tasks.append(task)
            continue
        skipped[name] = f"{'one value' if task.num_values else 'no value'} with {fewest} models or more"
        if properties:
            expected, do = (
                f"two values or more with {fewest} models or more each",
                ("choose another property, or build more models"),
            )
            raise ZooError(f"property {name}", expected=expected, found=skipped[name], do=do)
    return tasks, skipped


def _classes(final: Snapshots, name: str, models: np.ndarray, seed: int, small: bool, num_folds: int) -> Task:
    """The task of a property with classes; without folds if it has fewer than two."""
    values, splits = np.asarray(final[name])[models], np.asarray(final["split"])[models]
    names, counts = np.unique(
        [value for value in values.tolist() if value is not None and value == value], return_counts=True
    )
    needed = () if small else ("train", "test")  # of the zoo's own splits
    frequent = names[counts >= _fewest(len(models))].tolist()
    common = [value for value in frequent if set(needed) <= set(splits[values == value])]
    places = np.flatnonzero(np.isin(values, common))
    truth = np.array(values[places].tolist())  # strings of one length, not objects
    if len(common) < 2:
        return Task(name, common, len(frequent), models[places], truth, [])
    kept = balanced(truth, np.zeros(len(places)) if small else splits[places], seed)
    places, truth = places[kept], truth[kept]
    folds = folds_of(splits[places], seed, small=small, labels=truth, num_folds=num_folds)
    return Task(
        name,
        common,
        len(names),
        models[places],
        truth,
        [with_validation(fold, seed, truth) for fold in folds],
    )


def _number(final: Snapshots, name: str, models: np.ndarray, seed: int, small: bool, num_folds: int) -> Task:
    """The task of a number; without folds if all models have the same, or one has none."""
    truth, splits = np.asarray(final[name], dtype=np.float64)[models], np.asarray(final["split"])[models]
    distinct = len(np.unique(truth))
    if distinct < 2 or not np.isfinite(truth).all():
        return Task(name, [], min(distinct, 1), models, truth, [])
    logarithmic = is_logarithmic(name, set(final["subset"]))
    folds = [with_validation(fold, seed) for fold in folds_of(splits, seed, small=small, num_folds=num_folds)]
    return Task(name, [], distinct, models, np.log10(truth) if logarithmic else truth, folds, logarithmic)


def is_logarithmic(name: str, subsets: Collection[str]) -> bool:
    """Whether a recipe's number was drawn uniformly in its logarithm, in one of the subsets at least.

    Example:
        >>> is_logarithmic("learning_rate", ["fixed"]), is_logarithmic("learning_rate", ["small_cnn"])
        (False, True)
    """
    families = [family for subset in subsets if subset in SUBSETS for family in SUBSETS[subset].families]
    return any(isinstance(family[name], LogUniform) for family in families)


def _fewest(num_models: int) -> int:
    """Models that a value must have to be a class."""
    return min(RARE, max(RAREST, num_models // 10))


def constant_guess(truth: np.ndarray, of: np.ndarray) -> np.ndarray:
    """For all of truth the best guess of one who knows only the values `of`: the most frequent class, or the
    median number.

    Example:
        >>> constant_guess(np.array(["a", "b"]), np.array(["b", "b", "a"])).tolist()
        ['b', 'b']
        >>> constant_guess(np.zeros(1), np.arange(3.0)).tolist()
        [1.0]
    """
    if of.dtype.kind == "f" and truth.dtype.kind == "f":
        return np.full(len(truth), np.median(of))
    classes, counts = np.unique(of, return_counts=True)
    return np.full(len(truth), classes[counts.argmax()])


def guesses_from_architecture(
    architectures: np.ndarray, truth: np.ndarray, folds: Sequence[Fold]
) -> np.ndarray:
    """The best guess of one who sees a model's architecture and none of its weights.

    Args:
        architectures: [M] names of the models' architectures.
        truth: [M] their classes, or numbers.
        folds: as the methods'.

    Returns:
        [M] for each held-out model the best constant guess (see `constant_guess`) from its fold's training
        models of its architecture; from them all if none has it.

    Example:
        >>> fold = Fold(training=np.array([0, 1, 2, 3]), validation=np.array([]), test=np.array([4]))
        >>> optimizers = np.array(["adam", "adam", "sgd", "sgd", "sgd"])
        >>> str(guesses_from_architecture(np.array(list("aabba")), optimizers, [fold])[4])
        'adam'
    """
    guessed = np.empty_like(truth)
    for fold in folds:
        for place in fold.test:
            alike = fold.training[architectures[fold.training] == architectures[place]]
            guessed[[place]] = constant_guess(truth[[place]], truth[alike if len(alike) else fold.training])
    return guessed
