"""How far predictors of accuracies carry: to another data set or architecture, to a value of the recipe that
was held out, and to an earlier snapshot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
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


def scorer(
    inputs: Inputs, *, intervals: bool, parts: Mapping[str, np.ndarray] | None = None, described: bool = False
) -> Callable[[Trial, Answers], Outcome]:
    """Scores predicted accuracies.

    Args:
        inputs: of the zoo.
        intervals: add 95 % intervals.
        parts: what is tested on -> its indices in the task's models; None: all that is tested.
        described: add the method's setting to the records, and to the outcome, with `intervals`, the
            predictions.
    """

    def score(trial: Trial, answers: Answers) -> Outcome:
        task, model, predicted = trial.task, answers.model, answers.predicted[Question()]
        converged = np.asarray(inputs.final["converged"], bool)[task.models]
        labels, records = dict(trial.labels), list[Record]()
        if described and isinstance(model, FeatureModel):
            labels |= {"num_features": model.X.shape[1], "setting": model.setting}
        for name, part in (parts or {labels["tested_on"]: task.tested}).items():
            about = {**labels, "tested_on": name}
            values = task.truth[part], predicted[part], converged[part]
            records += records_of_accuracies(about, *values, intervals=intervals)
        if not (described and intervals):
            return Outcome(records)
        tested = task.tested
        columns = inputs.final["model_id"][task.models[tested]], task.truth[tested], predicted[tested]
        lists = [column.tolist() for column in columns]
        return Outcome(
            records, Predictions(task.words, trial.method.input, trial.method.name, trial.seed, *lists)
        )

    return score


def labels_of(
    experiment: str, method: Method, seed: int, trained_on: str, tested_on: str, num_train: int, **more: Any
) -> dict[str, Any]:
    """Fields of the records of a trial."""
    names = {"experiment": experiment, "target": TEST_ACCURACY, "method": method.name, "input": method.input}
    return {
        **names,
        "trained_on": trained_on,
        "tested_on": tested_on,
        "num_train": num_train,
        "seed": seed,
        **more,
    }


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
    final = inputs.final
    for column in ACROSS:
        by_seed = {seed: tasks_by(final, column, seed) for seed in seeds}
        sources = by_seed[seeds[0]]
        for name in PREDICTORS:
            for i, source in enumerate(sources if len(sources) > 1 else ()):
                method, own = predictor(inputs, name, source), _sides(source)
                for seed in seeds:
                    intervals = seed == seeds[0]
                    labels = labels_of(
                        "transfer", method, seed, source.words, source.words, len(own.training), across=column
                    )
                    within = by_seed[seed][i]
                    yield Trial(within, method, seed, scorer(inputs, intervals=intervals), labels)
                    parts = {other.words: _sides(other).test for other in sources if other is not source}
                    folds = [Fold(own.training, own.validation, part) for part in parts.values()]
                    everyone = replace(
                        accuracy_task(final, source.words, np.arange(len(final)), seed), folds=folds
                    )
                    labels = {**labels, "tested_on": "others"}
                    yield Trial(
                        everyone, method, seed, scorer(inputs, intervals=intervals, parts=parts), labels
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
            words = f"all but {task.words}"
            whole = replace(
                accuracy_task(final, words, everyone, 0), folds=[Fold(training, validation, task.models)]
            )
            method = predictor(inputs, BOOSTING, whole)
            for seed in seeds:
                labels = labels_of("held_out", method, seed, words, task.words, len(training), across=column)
                yield Trial(whole, method, seed, scorer(inputs, intervals=seed == seeds[0]), labels)


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
                for seed in seeds:
                    task = by_seed[seed][i]
                    labels = labels_of(
                        *("early", method, seed, task.words, task.words, len(task.folds[0].training)),
                        snapshot=snapshot,
                        epoch=int(inputs.then(snapshot, first.models)[0]["epoch"]),
                    )
                    score = scorer(inputs, intervals=seed == seeds[0])
                    trials.append(Trial(task, method, seed, score, labels))
    return trials, skipped
