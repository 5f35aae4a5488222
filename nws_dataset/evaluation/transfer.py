"""How far predictors carry: to another data set or architecture, to a value of the recipe that was held out,
and to an earlier snapshot.

Axes: N final networks, F features.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from nws_dataset.evaluation import trials
from nws_dataset.evaluation.folds import Fold, is_small
from nws_dataset.evaluation.inputs import LAYERS
from nws_dataset.evaluation.study import Group, Step, Study
from nws_dataset.views.statistics import zoo_features

BOOSTING = "boosting"  # the method of what is done with one only
ACROSS = ("dataset", "architecture")  # between whose values a matrix is drawn
HELD_OUT = ("dataset", "architecture", "optimizer")  # of which one value at a time is never trained on
FEWEST_OF_VALUE = 50  # models
MOST_VALUES = 6  # those that most models have
MOST_SNAPSHOTS = 10  # of early prediction
THEN = "accuracy then"  # the input that an early prediction must beat: the accuracy at that snapshot


def transfer_steps(study: Study) -> Iterator[Step]:
    """Train on networks of one value, test on those of another, without retraining; all methods, statistics
    of all layers.
    """
    for column in ACROSS:
        groups = _groups_by(study, column)
        for method in trials.PREDICTORS:
            for source in groups if len(groups) > 1 else ():
                yield (
                    f"transfer from {source.name}, {method}",
                    partial(_transfer, study, source, groups, method, column),
                )


def held_out_steps(study: Study) -> Iterator[Step]:
    """Train on all but one value of a field of the recipe, test on networks of that value; boosting,
    statistics of all layers.
    """
    for column in HELD_OUT:
        groups = _groups_by(study, column)
        for group in groups if len(groups) > 2 else ():  # of two, it is the matrix
            yield f"without {column} {group.name}", partial(_held_out, study, group, column)


def early_steps(study: Study) -> Iterator[Step]:
    """Predict the final accuracy from the weights of a snapshot, and from the accuracy at that snapshot."""
    for group in study.groups:
        numbers = np.unique(study.rows["num_snapshots"][group.places])
        if len(numbers) > 1:
            study.skipped.append(
                f"No early prediction on {group.name}: its networks have different numbers of snapshots."
            )
            continue
        snapshots = np.unique(
            np.linspace(1, numbers[0], min(MOST_SNAPSHOTS, numbers[0])).round().astype(int)
        ).tolist()
        for snapshot in snapshots:
            yield (
                f"final accuracy of {group.name} from snapshot {snapshot}",
                partial(_early, study, group, snapshot),
            )


def _groups_by(study: Study, column: str) -> list[Group]:
    """The models of each common value of a column."""
    values, splits = np.asarray(study.rows[column]), np.asarray(study.rows["split"])
    names, counts = np.unique(values, return_counts=True)
    common = [
        name
        for _, name in sorted(zip(-counts, names, strict=True))
        if (values == name).sum() >= FEWEST_OF_VALUE
    ][:MOST_VALUES]
    return [Group(str(name), np.flatnonzero(values == name), splits[values == name]) for name in common]


def _transfer(
    study: Study, source: Group, groups: list[Group], method: str, column: str
) -> list[trials.Record]:
    """One row of the matrix; its place on the diagonal is within a group, on models held out."""
    training, _ = source.sides()
    chosen, found = study.method(source, LAYERS, method), []
    for seed in study.seeds:
        inside = trials.held_out_predictions(chosen, *_data(study), source.folds(seed), seed)
        fitted = chosen.fit(*_data(study), training, seed)
        for target in groups:
            same = target.name == source.name
            tested = np.flatnonzero(np.isfinite(inside)) if same else target.sides()[1]
            predicted = inside[tested] if same else fitted.predict(study.inputs[LAYERS][0][tested])
            common = _common(
                "transfer", method, seed, source.name, target.name, len(training.training), across=column
            )
            found += _records(study, common, tested, predicted)
    return found


def _held_out(study: Study, group: Group, column: str) -> list[trials.Record]:
    """Everything else trains, one value is tested."""
    splits, others = np.asarray(study.rows["split"]), np.setdiff1d(np.arange(len(study.truth)), group.places)
    small = is_small(len(study.truth))
    training = others if small else others[splits[others] == "train"]
    validation = others[:0] if small else others[splits[others] == "validation"]
    fold = Fold(training, validation, group.places)
    chosen, found = trials.tuned(BOOSTING, *_data(study), [fold]), []
    for seed in study.seeds:
        predicted = chosen.fit(*_data(study), fold, seed).predict(study.inputs[LAYERS][0][group.places])
        common = _common(
            "held_out", BOOSTING, seed, f"all but {group.name}", group.name, len(training), across=column
        )
        found += _records(study, common, group.places, predicted)
    return found


def _early(study: Study, group: Group, snapshot: int) -> list[trials.Record]:
    """From one snapshot of the group's models."""
    rows = study.zoo.filter(snapshot=snapshot, model_id=study.rows["model_id"][group.places].tolist())
    place = {name: i for i, name in enumerate(study.rows["model_id"])}
    places = np.array([place[name] for name in rows["model_id"]])
    read = {
        LAYERS: zoo_features(study.zoo, rows, LAYERS)[0],
        THEN: np.asarray(rows["test_accuracy"], np.float64)[:, None],
    }
    found = []
    for name, values in read.items():
        X = np.full((len(study.truth), values.shape[1]), np.nan)
        X[places] = values
        chosen = trials.tuned(BOOSTING, X, study.truth, group.folds(study.seeds[0]))
        for seed in study.seeds:
            folds = group.folds(seed)
            predicted = trials.held_out_predictions(chosen, X, study.truth, folds, seed)
            tested = np.flatnonzero(np.isfinite(predicted))
            common = _common(
                "early", BOOSTING, seed, group.name, group.name, len(folds[0].training), snapshot=snapshot
            )
            common |= {"input": name, "epoch": int(rows[0]["epoch"])}
            found += _records(study, common, tested, predicted[tested])
    return found


def _data(study: Study) -> tuple[np.ndarray, np.ndarray]:
    """Statistics of all layers, and the truth."""
    return study.inputs[LAYERS][0], study.truth


def _common(
    experiment: str, method: str, seed: int, trained_on: str, tested_on: str, num_train: int, **more: object
) -> trials.Record:
    names = {
        "experiment": experiment,
        "method": method,
        "input": LAYERS,
        "trained_on": trained_on,
        "tested_on": tested_on,
    }
    return {**names, "num_train": num_train, "seed": seed, **more}


def _records(
    study: Study, common: trials.Record, tested: np.ndarray, predicted: np.ndarray
) -> list[trials.Record]:
    intervals = common["seed"] == study.seeds[0]
    return trials.records(
        common, study.truth[tested], predicted, study.converged[tested], intervals=intervals
    )
