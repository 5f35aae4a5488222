"""How far predictors of accuracies carry: to another data set or architecture, to a value of the recipe that
was held out, and to an earlier snapshot.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nws_dataset.evaluation.folds import NOBODY, Fold, is_small
from nws_dataset.evaluation.inputs import LAYERS, THEN, Inputs
from nws_dataset.evaluation.models import BOOSTING, PREDICTORS, FeatureModel, TunedPredictor
from nws_dataset.evaluation.run import Answers, Method, Outcome, Predictions, Question, Trial
from nws_dataset.evaluation.scores import Record, records_of_accuracies
from nws_dataset.evaluation.tasks import TEST_ACCURACY, Task, accuracy_task, dataset_tasks, tasks_by

ACROSS = ("dataset", "architecture")  # between whose values a matrix is drawn
HELD_OUT = ("dataset", "architecture", "optimizer")  # of which one value at a time is never trained on
MAX_SNAPSHOTS = 10  # of early prediction


def accuracy_trial(
    inputs: Inputs,
    experiment: str,
    method: Method,
    task: Task,
    seed: int,
    *,
    between: tuple[str, str],
    intervals: bool = False,
    described: bool = False,
    parts: Mapping[str, np.ndarray] | None = None,
    **labels: Any,
) -> Trial:
    """A method that predicts accuracies.

    Args:
        inputs: of the zoo.
        experiment: what it is part of.
        method: the method.
        task: the networks.
        seed: of the method.
        between: what is trained on, and what is tested on.
        intervals: add 95 % intervals.
        described: add the method's setting to the records, and to the outcome, with `intervals`, the
            predictions.
        parts: what is tested on -> its indices in the task's models; None: all that is tested.
        labels: more fields of the records, among them num_train where the task is not all that is told.
    """
    names = {"experiment": experiment, "target": TEST_ACCURACY, "method": method.name, "input": method.input}
    about = {"trained_on": between[0], "tested_on": between[1], "num_train": len(task.folds[0].training)}
    score = functools.partial(_score, inputs, parts or {between[1]: task.tested}, intervals, described)
    return Trial(task, method, seed, score, {**names, **about, "seed": seed, **labels})


def _score(
    inputs: Inputs,
    parts: Mapping[str, np.ndarray],
    intervals: bool,
    described: bool,
    trial: Trial,
    answers: Answers,
) -> Outcome:
    task, model, predicted = trial.task, answers.model, answers.predicted[Question()]
    converged = np.asarray(inputs.final["converged"], bool)[task.models]
    labels, records = dict(trial.labels), list[Record]()
    if described and isinstance(model, FeatureModel):
        labels |= {"num_features": model.X.shape[1], "setting": model.setting}
    for name, part in parts.items():
        values = task.truth[part], predicted[part], converged[part]
        records += records_of_accuracies({**labels, "tested_on": name}, *values, intervals=intervals)
    if not (described and intervals):
        return Outcome(records)
    columns = inputs.final["model_id"][task.models], task.truth, predicted
    lists = [column[task.tested].tolist() for column in columns]
    return Outcome(
        records, Predictions(task.words, trial.method.input, trial.method.name, trial.seed, *lists)
    )


def between(task: Task, splits: tuple[str, str]) -> tuple[str, str]:
    """What is trained on and what is tested on, in words; of a large task the zoo's own splits."""
    trained, tested = ("other folds", "each fold in turn") if task.cross_validated else splits
    return f"{task.words}, {trained}", f"{task.words}, {tested}"


def predictor(inputs: Inputs, name: str, task: Task, features: str = LAYERS) -> Method:
    """A predictor on features of final networks, in the setting that suits a task."""
    X = functools.partial(inputs.X, features)
    return Method(name, features, TunedPredictor(inputs, name, X, task, (features,)))


def _sides(task: Task) -> Fold:
    """The models, among the final snapshots, that another task's predictor learns from, and those that it is
    tested on. Of tasks that are cross-validated, all.
    """
    if task.cross_validated:
        return Fold(task.models, NOBODY, task.models)
    (fold,) = task.folds
    return Fold(*(task.models[part] for part in (fold.training, fold.validation, fold.test)))


def transfer_trials(inputs: Inputs, seeds: range) -> Iterator[Trial]:
    """Train on networks of one value, test on those of another, without retraining; all methods, statistics
    of all layers. On the diagonal of the matrix networks of the same value are held out.
    """
    everyone = np.arange(len(inputs.final))
    for column in ACROSS:
        by_seed = [tasks_by(inputs.final, column, seed) for seed in seeds]
        sources = by_seed[0] if len(by_seed[0]) > 1 else []
        for name, (i, source) in itertools.product(PREDICTORS, enumerate(sources)):
            method, own, trained_on = predictor(inputs, name, source), _sides(source), source.words
            parts = {other.words: _sides(other).test for other in sources if other is not source}
            folds = [Fold(own.training, own.validation, part) for part in parts.values()]
            whole = replace(accuracy_task(inputs.final, trained_on, everyone, 0), folds=folds)
            options: dict[str, Any] = {"across": column, "num_train": len(own.training)}
            for seed, tasks in zip(seeds, by_seed, strict=True):
                options["intervals"] = seed == seeds[0]
                within, between = tasks[i], (trained_on, trained_on)
                yield accuracy_trial(inputs, "transfer", method, within, seed, between=between, **options)
                between = trained_on, "others"
                yield accuracy_trial(
                    inputs, "transfer", method, whole, seed, between=between, parts=parts, **options
                )


def held_out_trials(inputs: Inputs, seeds: range) -> Iterator[Trial]:
    """Train on all but one value of a field of the recipe, test on networks of that value; boosting,
    statistics of all layers.
    """
    final, everyone = inputs.final, np.arange(len(inputs.final))
    splits, small = np.asarray(final["split"]), is_small(len(final))
    for column in HELD_OUT:
        tasks = tasks_by(final, column, seeds[0])
        for task in tasks if len(tasks) > 2 else ():  # of two, it is the matrix
            others = np.setdiff1d(everyone, task.models)
            training = others if small else others[splits[others] == "train"]
            validation = others[:0] if small else others[splits[others] == "validation"]
            fold, between = Fold(training, validation, task.models), (f"all but {task.words}", task.words)
            whole = replace(accuracy_task(final, between[0], everyone, 0), folds=[fold])
            method = predictor(inputs, BOOSTING, whole)
            for seed in seeds:
                options: dict[str, Any] = {"intervals": seed == seeds[0], "across": column}
                yield accuracy_trial(inputs, "held_out", method, whole, seed, between=between, **options)


def early_trials(inputs: Inputs, seeds: range) -> tuple[list[Trial], list[str]]:
    """Predict the final accuracy from the weights of a snapshot, and from the accuracy at that snapshot; and
    sentences about what is left out.
    """
    trials, skipped, final = [], [], inputs.final
    by_seed = {seed: dataset_tasks(final, seed)[0] for seed in seeds}
    for i, first in enumerate(by_seed[seeds[0]]):
        numbers = np.unique(final["num_snapshots"][first.models])
        if len(numbers) > 1:
            words = f"No early prediction on {first.words}: its networks have different numbers of snapshots."
            skipped.append(words)
            continue
        snapshots = np.linspace(1, numbers[0], min(MAX_SNAPSHOTS, numbers[0])).round().astype(int)
        for snapshot in np.unique(snapshots).tolist():
            for name in (LAYERS, THEN):
                X = functools.partial(inputs.X_then, name, snapshot, first.models)
                method = Method(BOOSTING, name, TunedPredictor(inputs, BOOSTING, X, first, (name, snapshot)))
                epoch = int(inputs.then(snapshot, first.models)[0]["epoch"])
                for seed in seeds:
                    task, between = by_seed[seed][i], (first.words, first.words)
                    labels: dict[str, Any] = {
                        "snapshot": snapshot,
                        "epoch": epoch,
                        "intervals": seed == seeds[0],
                    }
                    trials.append(
                        accuracy_trial(inputs, "early", method, task, seed, between=between, **labels)
                    )
    return trials, skipped
