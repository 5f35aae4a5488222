"""Prediction tasks: a target, and the models to train and test a method on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.evaluation.folds import NUM_FOLDS, Fold, balanced, folds_of, is_small, with_validation
from nws_dataset.format.subsets import SUBSETS, LogUniform

if TYPE_CHECKING:
    from nws_dataset.reading.snapshots import Snapshots

CLASSES = (
    *("dataset", "batch_size", "augmentation", "optimizer", "activation", "initialization", "filter_size"),
    *("depth_conv", "depth_fc", "width_conv", "width_fc"),
)
# properties predicted as numbers
NUMBERS = ("learning_rate", "weight_decay", "label_smoothing", "label_noise", "max_epochs")
PROPERTIES = (*CLASSES, *NUMBERS)
# A value with fewer models than a tenth of the zoo, clipped to these bounds, is left out: balancing would
# drop most other models.
RARE, RAREST = 10, 2
TEST_ACCURACY = "test_accuracy"
LABEL, EDGES = "label", "edges"  # the class of a network's image; which edges are kept
ALL_DATASETS = "all data sets"
MIN_OF_DATASET = 50  # models; if no data set has that many, all data sets are one task
MIN_OF_VALUE, MAX_VALUES = 50, 6  # models of a value; values, the most frequent ones
CURVE_POINTS = 8  # snapshots tested in the experiment "when"


class Labelled(NamedTuple):
    """Indices of networks or snapshots, and the true value of each."""

    indices: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Task:
    """A target, and the models to train and test a method on."""

    target: str  # column of the index
    words: str  # name in tables: the property and its values, or the networks whose accuracy is predicted
    models: np.ndarray  # [M] indices among the final snapshots
    truth: np.ndarray  # [M] true values of the target; [M, E] bool for edges
    folds: list[Fold]  # indices in models
    classes: tuple[Any, ...] = ()  # empty for a number

    @property
    def is_number(self) -> bool:
        return not self.classes and not self.of_edges

    @property
    def of_edges(self) -> bool:
        """Whether each edge has a true value."""
        return self.truth.ndim == 2

    @property
    def cross_validated(self) -> bool:
        """Whether cross-validation replaces the zoo's own splits."""
        return len(self.folds) > 1

    def part(self, chosen: np.ndarray) -> Labelled:
        """Select models by their indices in `models`."""
        return Labelled(self.models[chosen], self.truth[chosen])

    @property
    def tested(self) -> np.ndarray:
        """Indices in `models` of all tested models."""
        return np.sort(np.concatenate([fold.test for fold in self.folds]))


# The accuracy of networks


def accuracy_task(final: Snapshots, name: str, models: np.ndarray, seed: int) -> Task:
    """The task for the test accuracy of some final networks; tables show them as `name`."""
    folds = folds_of(np.asarray(final["split"])[models], seed, small=is_small(len(models)))
    return Task(TEST_ACCURACY, name, models, np.asarray(final[TEST_ACCURACY], np.float64)[models], folds)


def dataset_tasks(final: Snapshots, datasets: np.ndarray, seed: int) -> tuple[list[Task], list[str]]:
    """An accuracy task for each of the data sets [M], and notes on data sets that are left out."""
    names, counts = np.unique(datasets, return_counts=True)
    if len(names) > 1 and counts.max() < MIN_OF_DATASET:
        words = f"The data sets have too few networks each for tasks of their own: {', '.join(names)}."
        return [accuracy_task(final, ALL_DATASETS, np.arange(len(final)), seed)], [words]
    few = names[counts < MIN_OF_DATASET].tolist() if len(names) > 1 else []
    tasks = [
        accuracy_task(final, str(name), np.flatnonzero(datasets == name), seed)
        for name in names.tolist()
        if name not in few
    ]
    return tasks, [f"Too few networks of {', '.join(few)} (fewer than {MIN_OF_DATASET})."] if few else []


def label_tasks(final: Snapshots, datasets: np.ndarray, seed: int) -> list[Task]:
    """A task for each of the data sets [M]: the class of the image of it that a network represents.

    Classes are not balanced, as in the published benchmarks.
    """
    labels = np.asarray(final[LABEL], np.float64)  # NaN of networks that classify
    splits, tasks = np.asarray(final["split"]), []
    for dataset in np.unique(datasets).tolist():
        names, counts = np.unique(labels[(datasets == dataset) & ~np.isnan(labels)], return_counts=True)
        classes = names[counts >= RAREST]
        if len(classes) < 2:
            continue
        models = np.flatnonzero((datasets == dataset) & np.isin(labels, classes))
        truth = labels[models].astype(np.int64)
        folds = folds_of(splits[models], seed, small=is_small(len(models)), labels=truth)
        folds = [with_validation(fold, seed, truth) for fold in folds]
        known = tuple(classes.astype(int).tolist())
        tasks.append(Task(LABEL, f"class of the image ({dataset})", models, truth, folds, known))
    return tasks


def edge_task(task: Task, final: Snapshots, scores: np.ndarray) -> Task:
    """The task for which edges are kept, of the networks of another task.

    Args:
        task: of networks with the same edges.
        final: the final snapshots.
        scores: [M, E] of the task's networks, from `Zoo.edge_scores`.
    """
    thresholds = np.asarray(final["edge_threshold"], np.float64)[task.models]
    return replace(task, target=EDGES, truth=scores >= thresholds[:, None], classes=())


def tasks_by(final: Snapshots, values: np.ndarray, seed: int) -> list[Task]:
    """An accuracy task for each common value of a column [M], the most frequent first."""
    names, counts = np.unique(values, return_counts=True)
    by_count = sorted(zip(-counts, names, strict=True))
    common = [name for less, name in by_count if -less >= MIN_OF_VALUE][:MAX_VALUES]
    return [accuracy_task(final, str(name), np.flatnonzero(values == name), seed) for name in common]


# Properties of the training


def tasks_of(
    final: Snapshots,
    properties: Sequence[str] | None,
    seed: int,
    *,
    models: np.ndarray | None = None,
    num_folds: int = NUM_FOLDS,
) -> tuple[list[Task], dict[str, str]]:
    """Tasks for the properties with two or more frequent values, and why the others are skipped.

    Args:
        final: final snapshots of a zoo.
        properties: columns of the index with few values, or of NUMBERS; None: PROPERTIES.
        seed: of balancing and folds.
        models: indices in `final` of the models to use; None: all.
        num_folds: see `folds_of`.

    Raises:
        ZooError: if a requested property has to be skipped.
    """
    models, small = np.arange(len(final)) if models is None else models, is_small(len(final))
    tasks: list[Task] = []
    skipped: dict[str, str] = {}
    enough = f"with {_min_models(len(models))} models or more"
    for name in properties or PROPERTIES:
        found = (_number if name in NUMBERS else _classes)(final, name, models, seed, small, num_folds)
        if isinstance(found, Task):
            tasks.append(found)
            continue
        skipped[name] = f"{'one value' if found else 'no value'} {enough}"
        if properties:
            expected = f"two values or more {enough} each"
            do = "choose another property, or build more models"
            raise ZooError(f"property {name}", expected=expected, found=skipped[name], do=do)
    return tasks, skipped


def _classes(
    final: Snapshots, name: str, models: np.ndarray, seed: int, small: bool, num_folds: int
) -> Task | int:
    """The task for a property, balanced over its classes; or the number of frequent values, if too few."""
    values, splits = np.asarray(final[name])[models], np.asarray(final["split"])[models]
    known = [value for value in values.tolist() if value is not None and value == value]
    names, counts = np.unique(known, return_counts=True)
    needed = () if small else ("train", "test")
    frequent = names[counts >= _min_models(len(models))].tolist()
    common = [value for value in frequent if set(needed) <= set(splits[values == value])]
    if len(common) < 2:
        return len(frequent)
    chosen = np.flatnonzero(np.isin(values, common))
    truth = np.array(values[chosen].tolist())  # fixed-length strings, not objects
    kept = balanced(truth, np.zeros(len(chosen)) if small else splits[chosen], seed)
    chosen, truth = chosen[kept], truth[kept]
    folds = folds_of(splits[chosen], seed, small=small, labels=truth, num_folds=num_folds)
    folds = [with_validation(fold, seed, truth) for fold in folds]
    count = str(len(common)) if len(common) == len(names) else f"{len(common)} of {len(names)}"
    return Task(name, f"{name} ({count} values)", models[chosen], truth, folds, tuple(common))


def _number(
    final: Snapshots, name: str, models: np.ndarray, seed: int, small: bool, num_folds: int
) -> Task | int:
    """The task for a number; or its number of values, 0 or 1, if it is constant or missing."""
    truth, splits = np.asarray(final[name], dtype=np.float64)[models], np.asarray(final["split"])[models]
    distinct = len(np.unique(truth))
    if distinct < 2 or not np.isfinite(truth).all():
        return min(distinct, 1)
    folds = [with_validation(fold, seed) for fold in folds_of(splits, seed, small=small, num_folds=num_folds)]
    if is_logarithmic(name, set(final["subset"])):
        return Task(name, f"{name} (log10)", models, np.log10(truth), folds)
    return Task(name, name, models, truth, folds)


def is_logarithmic(name: str, subsets: Collection[str]) -> bool:
    """Whether any of the subsets draws a number of the recipe log-uniformly.

    Example:
        >>> is_logarithmic("learning_rate", ["fixed"]), is_logarithmic("learning_rate", ["small_cnn"])
        (False, True)
    """
    families = [family for subset in subsets if subset in SUBSETS for family in SUBSETS[subset].families]
    return any(isinstance(family[name], LogUniform) for family in families)


def _min_models(num_models: int) -> int:
    """The number of models that a value needs to be a class."""
    return min(RARE, max(RAREST, num_models // 10))


# Fewer networks to learn from


def with_fewer(task: Task, size: int, seed: int) -> Task:
    """A task with `size` training models in each fold; for one seed, fewer are a part of more."""
    random = np.random.default_rng(seed)
    parts = [random.permutation(fold.training)[:size] for fold in task.folds]
    folds = [replace(fold, training=part) for fold, part in zip(task.folds, parts, strict=True)]
    return replace(task, folds=folds)


# Guesses that read no weights


def guesses_from_architecture(architectures: np.ndarray, truth: np.ndarray, folds: list[Fold]) -> np.ndarray:
    """The best guesses [M] from the models' architectures [M] alone, without their weights.

    A guess is the most frequent class, or the median number, of the fold's training models of the same
    architecture, or of all its training models if there are none.
    """
    guessed = np.empty_like(truth)
    for fold in folds:
        for name in np.unique(architectures[fold.test]):
            test = fold.test[architectures[fold.test] == name]
            alike = fold.training[architectures[fold.training] == name]
            known = truth[alike if len(alike) else fold.training]
            values, counts = np.unique(known, return_counts=True)
            guessed[test] = np.median(known) if known.dtype.kind == "f" else values[counts.argmax()]
    return guessed


# Earlier snapshots


@dataclass(frozen=True)
class SnapshotSeries:
    """The snapshots of a zoo, and the model of each."""

    model: np.ndarray  # [N] indices among the final snapshots
    snapshot: np.ndarray  # [N] 1..last
    last: np.ndarray  # [N] num_snapshots of its model

    @classmethod
    def of(cls, snapshots: Snapshots, final: Snapshots) -> SnapshotSeries:
        model = {name: i for i, name in enumerate(final["model_id"])}
        models = np.array([model[name] for name in snapshots["model_id"]])
        return cls(models, snapshots["snapshot"], snapshots["num_snapshots"])

    def indices(self, models: np.ndarray, which: str) -> np.ndarray:
        """Indices of the models' snapshots: the final ones, the later half ("late"), or all."""
        late = 2 * self.snapshot > self.last
        wanted = {"final": self.snapshot == self.last, "late": late, "all": self.snapshot > 0}[which]
        return np.flatnonzero(np.isin(self.model, models) & wanted)

    def at(self, models: np.ndarray, number: int) -> np.ndarray:
        """Index of each model's snapshot with a number in the longest series, scaled to a shorter one."""
        last = self.last.astype(np.intp)
        wanted = 1 + np.rint((number - 1) * (last - 1) / max(1, last.max() - 1))
        indices = np.flatnonzero(self.snapshot == wanted)
        by_model = dict(zip(self.model[indices], indices, strict=True))
        return np.array([by_model[model] for model in models], dtype=np.intp)

    @property
    def curve(self) -> list[int]:
        """The snapshot numbers of a curve's points; the last is the final one."""
        return np.unique(np.linspace(1, self.last.max(), CURVE_POINTS).round().astype(int)).tolist()
