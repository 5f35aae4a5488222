"""A zoo as the predictors' experiments see it: final networks, their features and accuracies, by data set.

Axes: N final networks, F features. Places are places among the final rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nws_dataset.evaluation import trials
from nws_dataset.evaluation.folds import Fold, check_models, folds_of, is_small
from nws_dataset.evaluation.inputs import WEIGHTS, read_inputs
from nws_dataset.views.statistics import Features

if TYPE_CHECKING:
    from nws_dataset.reading.snapshots import Snapshots
    from nws_dataset.reading.zoo import Zoo

FEWEST_OF_DATASET = 50  # models; where no data set has as many, all data sets are one group
ALL_DATASETS = "all data sets"
META, META_EPOCHS = "meta-regressor", 30
Step = tuple[str, Callable[[], list[trials.Record]]]  # what it is, and what gives its records


@dataclass(frozen=True)
class Group:
    """Final networks that are predicted together: those of a data set."""

    name: str
    places: np.ndarray
    splits: np.ndarray  # of those places

    @property
    def small(self) -> bool:
        """Whether its models are held out in turn, in place of the zoo's own splits."""
        return is_small(len(self.places))

    def folds(self, seed: int) -> list[Fold]:
        """Who is trained on and who is tested, as places among all final rows."""
        folds = folds_of(self.splits, seed, small=self.small)
        return [
            Fold(self.places[fold.training], self.places[fold.validation], self.places[fold.test])
            for fold in folds
        ]

    def sides(self) -> tuple[Fold, np.ndarray]:
        """For transfer: the models that another group's predictor learns from, and those that it is tested
        on. Of small groups, all.
        """
        nobody = np.empty(0, np.intp)
        fold = Fold(self.places, nobody, self.places) if self.small else self.folds(0)[0]
        return Fold(fold.training, fold.validation, nobody), fold.test


@dataclass(frozen=True)
class Study:
    """What all experiments share."""

    zoo: Zoo
    rows: Snapshots  # final ones
    inputs: dict[str, Features]
    skipped: list[str]  # sentences: what could not be
    groups: list[Group]
    truth: np.ndarray  # [N]
    converged: np.ndarray  # [N]
    seeds: range
    meta: bool  # whether the meta-regressor takes part
    # settings that were found, to choose them once
    chosen: dict[tuple[str, str, str], trials.Method] = field(default_factory=dict)
    # [N] of the first seed, for the plots
    predictions: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, zoo: Zoo, seeds: range, meta: bool = False) -> Study:
        """Read all inputs of a zoo.

        Raises:
            ZooError: if it has too few models.
        """
        rows = zoo.filter(is_final=True)
        check_models(zoo.name, rows["split"])
        inputs, skipped = read_inputs(zoo, rows)
        truth = np.asarray(rows["test_accuracy"], np.float64)
        groups, left_out = groups_of(rows)
        return cls(
            zoo,
            rows,
            inputs,
            skipped + left_out,
            groups,
            truth,
            np.asarray(rows["converged"], bool),
            seeds,
            meta,
        )

    def pairs(self) -> list[tuple[str, str]]:
        """Every input with every method that reads it."""
        pairs = [(name, method) for name in self.inputs for method in trials.PREDICTORS]
        return pairs + [(WEIGHTS, META)] * (self.meta and WEIGHTS in self.inputs)

    def method(self, group: Group, name: str, method: str) -> trials.Method:
        """A method with the setting that does best on the group's validation models."""
        key = (group.name, name, method)
        if key not in self.chosen:
            X = self.inputs[name][0]
            self.chosen[key] = (
                meta_regressor(X.shape[1])
                if method == META
                else trials.tuned(method, X, self.truth, group.folds(self.seeds[0]))
            )
        return self.chosen[key]


def meta_regressor(num_weights: int) -> trials.Method:
    """The deep meta-classifier as a regressor on whole rows or slices of 5,000 weights, in a width that suits
    a CPU.
    """
    from nws_dataset.baselines.meta_classifier import DeepMetaRegressor
    from nws_dataset.evaluation.readers import SMALL_SETTINGS

    options = {
        **SMALL_SETTINGS.of_estimator(),
        "slice_length": min(SMALL_SETTINGS.slice_length, num_weights),
        "epochs": META_EPOCHS,
    }
    return trials.Method(META, DeepMetaRegressor(**options, loss="squared_error"))


def groups_of(rows: Any) -> tuple[list[Group], list[str]]:
    """The groups of a zoo, and sentences about what was left out."""
    datasets, splits = np.asarray(rows["dataset"]), np.asarray(rows["split"])
    names, counts = np.unique(datasets, return_counts=True)
    if len(names) > 1 and counts.max() < FEWEST_OF_DATASET:
        return [Group(ALL_DATASETS, np.arange(len(rows)), splits)], [
            "The data sets have too few networks each to be looked at one by one."
        ]
    groups = [Group(str(name), np.flatnonzero(datasets == name), splits[datasets == name]) for name in names]
    if len(groups) == 1:
        return groups, []
    few = [group.name for group, count in zip(groups, counts, strict=True) if count < FEWEST_OF_DATASET]
    left_out = [f"Too few networks of {', '.join(few)} (fewer than {FEWEST_OF_DATASET})."] if few else []
    return [group for group in groups if group.name not in few], left_out
