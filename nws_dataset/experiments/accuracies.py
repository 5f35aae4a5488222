"""Predict test accuracy from weights: all inputs and methods, learning curves, transfer, early prediction.

python scripts/evaluate_predictors.py ZOO
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import joblib
import numpy as np

from nws_dataset import console
from nws_dataset.console import Command
from nws_dataset.errors import ZooError
from nws_dataset.evaluation.folds import NOBODY, Fold, describe, is_small
from nws_dataset.evaluation.inputs import LAYERS, THEN, WEIGHTS, Inputs
from nws_dataset.evaluation.models import (
    BOOSTING,
    META,
    PREDICTORS,
    FeatureModel,
    TunedPredictor,
    predictor,
)
from nws_dataset.evaluation.results import facts_of
from nws_dataset.evaluation.run import Answers, Kept, Method, Outcome, Question, Trial, run
from nws_dataset.evaluation.scores import ALL, SIZED, Predictions, Record, records_of_accuracies
from nws_dataset.evaluation.tasks import (
    TEST_ACCURACY,
    Task,
    accuracy_task,
    dataset_tasks,
    tasks_by,
    with_fewer,
)
from nws_dataset.experiments import commands
from nws_dataset.pages import paper
from nws_dataset.pages.summary import report_accuracies

ACROSS = ("dataset", "architecture")  # columns with a matrix of transfer between their values
HELD_OUT = ("dataset", "architecture", "optimizer")  # columns whose values are held out one at a time
MAX_SNAPSHOTS, FEW_SNAPSHOTS = 10, 5  # of early prediction; in cross-validation
MIN_CURVE = 100  # networks at the first point of a learning curve; the number doubles at each further point
SEED_HELP = "The first seed."
META_HELP = "Also fit the deep meta-classifier as a regressor (slow without a GPU)."


def trials_of(inputs: Inputs, seeds: range, meta: bool = False) -> tuple[list[Trial], list[str]]:
    """The trials of all experiments in order, and notes on what is left out.

    Args:
        inputs: of the zoo.
        seeds: repetitions, each with its own folds.
        meta: also try the deep meta-classifier as a regressor.
    """
    if not tasks_by_dataset(inputs, seeds):
        do = "choose networks that classify, or ask for what they have: nws-evaluate"
        raise ZooError(inputs.zoo.name, expected="networks with a test accuracy", found="none", do=do)
    trials = [
        *accuracy_trials(inputs, seeds, meta),
        *curve_trials(inputs, seeds),
        *transfer_trials(inputs, seeds),
        *held_out_trials(inputs, seeds),
        *early_trials(inputs, seeds),
        *importance_trials(inputs, seeds),
    ]
    tasks, few = dataset_tasks(inputs.final, inputs.datasets, seeds[0])
    mixed = [task.words for task in tasks if len(_num_snapshots(inputs, task)) > 1]
    why = "its networks have different numbers of snapshots"
    return trials, [*inputs.skipped, *few, *(f"No early prediction on {name}: {why}." for name in mixed)]


def with_settings(
    trials: Sequence[Trial], run_all: Callable[[Sequence[Trial]], list[Outcome]]
) -> list[Trial]:
    """The trials, with the settings of their predictors chosen beforehand, each of them once.

    Else each process would choose for itself.

    Args:
        trials: of predictors, or others, which stay as they are.
        run_all: runs trials of settings, as `run` does.
    """
    made = [trial.method.make for trial in trials]
    makers = {make.key: make for make in made if isinstance(make, TunedPredictor)}
    asked = {key: make.trials() for key, make in makers.items()}
    to_run = [*itertools.chain.from_iterable(asked.values())]
    outcomes = iter(run_all(to_run) if to_run else [])
    best = {key: make.best([*itertools.islice(outcomes, len(asked[key]))]) for key, make in makers.items()}
    return [
        replace(trial, method=replace(make, setting=best[make.key]).method)
        if isinstance(make, TunedPredictor)
        else trial
        for trial, make in zip(trials, made, strict=True)
    ]


def run_tuned(
    trials: Sequence[Trial], progress: Callable[[Sequence[float], int, int], Any], **options: Any
) -> list[Outcome]:
    """Run trials with the parameters of `run`; the settings of their predictors are chosen first."""

    def run_all(trials: Sequence[Trial]) -> list[Outcome]:
        return run(trials, progress, **options)

    return run_all(with_settings(trials, run_all))


def trials_by_seed(
    inputs: Inputs,
    experiment: str,
    method: Method,
    tasks: Sequence[Task],
    seeds: range,
    parts: Mapping[str, np.ndarray] | None = None,
    **labels: Any,
) -> Iterator[Trial]:
    """Yield a trial for each seed of a method that predicts accuracies.

    Args:
        inputs: of the zoo.
        experiment: its name.
        method: to try.
        tasks: a task for each seed.
        seeds: of the method.
        parts: name of a test set -> its indices in the task's models; None: all tested models.
        labels: further fields of the records, such as `trained_on` and `tested_on`.
    """
    names = {"experiment": experiment, "target": TEST_ACCURACY, "method": method.name, "input": method.input}
    for task, seed in zip(tasks, seeds, strict=True):
        tested = parts or {labels["tested_on"]: task.tested}
        score = functools.partial(_score, inputs, tested, seed == seeds[0])
        known = {**names, "num_train": len(task.folds[0].training), "seed": seed, **labels}
        yield Trial(task, method, seed, score, known)


def _score(
    inputs: Inputs, parts: Mapping[str, np.ndarray], first: bool, trial: Trial, answers: Answers
) -> Outcome:
    """Score each part, with intervals for the first seed.

    The main experiment also records the setting, and the predictions of the first seed.
    """
    task, model, predicted = trial.task, answers.model, answers.predicted[Question()]
    converged = np.asarray(inputs.final["converged"], bool)[task.models]
    labels, records = dict(trial.labels), list[Record]()
    is_main, intervals = labels["experiment"] == "accuracy", first and labels["experiment"] != SIZED
    if is_main and isinstance(model, FeatureModel):
        labels |= {"num_features": model.X.shape[1], "setting": model.setting}
    for name, part in parts.items():
        values = task.truth[part], predicted[part], converged[part]
        records += records_of_accuracies({**labels, "tested_on": name}, *values, intervals=intervals)
    if not (is_main and first):
        return Outcome(records)
    columns = inputs.final["model_id"][task.models], task.truth, predicted
    lists = [column[task.tested].tolist() for column in columns]
    method = trial.method
    return Outcome(records, Predictions(task.words, method.input, method.name, trial.seed, *lists))


def between(task: Task, splits: tuple[str, str] = ("train", "test")) -> dict[str, str]:
    """Names of the training and test networks; `splits` is used unless the task is cross-validated."""
    trained, tested = ("other folds", "each fold in turn") if task.cross_validated else splits
    return {"trained_on": f"{task.words}, {trained}", "tested_on": f"{task.words}, {tested}"}


def accuracy_trials(inputs: Inputs, seeds: range, meta: bool = False) -> Iterator[Trial]:
    """Every input with every method, on the networks of each data set."""
    pairs = [(name, method) for name in inputs.features for method in PREDICTORS]
    pairs += [(WEIGHTS, META)] * (meta and WEIGHTS in inputs.features)
    for tasks, (name, kind) in itertools.product(tasks_by_dataset(inputs, seeds), pairs):
        method = predictor(inputs, kind, tasks[0], name)
        labels = _labels(inputs, tasks[0], method)
        yield from trials_by_seed(inputs, "accuracy", method, tasks, seeds, **labels)


def curve_trials(inputs: Inputs, seeds: range) -> Iterator[Trial]:
    """Train on fewer networks, with the paper's inputs; in small zoos with statistics of all layers.

    For one seed, a smaller training set is a part of each larger one.
    """
    for tasks in tasks_by_dataset(inputs, seeds):
        largest = len(tasks[0].folds[0].training)
        sizes = [MIN_CURVE << i for i in range(20) if MIN_CURVE << i < largest]
        names = [name for name in inputs.features if name in paper.R2]
        names = [LAYERS] if tasks[0].cross_validated else names
        for name, kind, size in itertools.product(names, PREDICTORS, sizes):
            method = predictor(inputs, kind, tasks[0], name)
            fewer = [with_fewer(task, size, seed) for task, seed in zip(tasks, seeds, strict=True)]
            labels = {**_labels(inputs, tasks[0], method), "num_train": size}
            yield from trials_by_seed(inputs, SIZED, method, fewer, seeds, **labels)


def transfer_trials(inputs: Inputs, seeds: range) -> Iterator[Trial]:
    """Train on networks of one value, test on another value; all methods, statistics of all layers.

    On the diagonal of the matrix, networks of the same value are held out.
    """
    for column in ACROSS:
        known = inputs.values(column)
        values = list(zip(*(tasks_by(inputs.final, known, seed) for seed in seeds), strict=True))
        for name, tasks in itertools.product(PREDICTORS, values if len(values) > 1 else ()):
            source, own = tasks[0], _sides(tasks[0])
            parts = {other.words: _sides(other).test for other, *_ in values if other is not source}
            folds = [Fold(own.training, own.validation, part) for part in parts.values()]
            others = [_with_folds(inputs, source.words, folds)] * len(seeds)
            trials = functools.partial(trials_by_seed, inputs, "transfer", predictor(inputs, name, source))
            about = {"across": column, "trained_on": source.words, "num_train": len(own.training)}
            within = trials(tasks, seeds, tested_on=source.words, **about)
            across = trials(others, seeds, parts, **about)
            yield from itertools.chain.from_iterable(zip(within, across, strict=True))


def _with_folds(inputs: Inputs, name: str, folds: list[Fold]) -> Task:
    """An accuracy task of all networks with these folds."""
    return replace(accuracy_task(inputs.final, name, np.arange(len(inputs.final)), 0), folds=folds)


def _sides(task: Task) -> Fold:
    """Training, validation and test networks of a task, as indices among the final snapshots.

    If the task is cross-validated, training and test are all of its models.
    """
    if task.cross_validated:
        return Fold(task.models, NOBODY, task.models)
    (fold,) = task.folds
    return Fold(*(task.models[part] for part in (fold.training, fold.validation, fold.test)))


def held_out_trials(inputs: Inputs, seeds: range) -> Iterator[Trial]:
    """Hold out one value of a recipe's field at a time for testing; boosting, statistics of all layers."""
    final, everyone = inputs.final, np.arange(len(inputs.final))
    splits = np.asarray(final["split"])
    for column in HELD_OUT:
        tasks = tasks_by(final, inputs.values(column), seeds[0])
        for task in tasks if len(tasks) > 2 else ():  # the transfer matrix covers two values
            others, name = np.setdiff1d(everyone, task.models), f"all but {task.words}"
            training, validation = (others[splits[others] == split] for split in ("train", "validation"))
            if is_small(len(final)):
                training, validation = others, NOBODY
            whole = _with_folds(inputs, name, [Fold(training, validation, task.models)])
            method, repeated = predictor(inputs, BOOSTING, whole), [whole] * len(seeds)
            about: dict[str, Any] = {"across": column, "trained_on": name, "tested_on": task.words}
            yield from trials_by_seed(inputs, "held_out", method, repeated, seeds, **about)


def early_trials(inputs: Inputs, seeds: range) -> Iterator[Trial]:
    """Predict the final accuracy from the weights of a snapshot, and from the accuracy at that snapshot."""
    for tasks in tasks_by_dataset(inputs, seeds):
        first, numbers = tasks[0], _num_snapshots(inputs, tasks[0])
        if len(numbers) > 1:
            continue
        most = FEW_SNAPSHOTS if first.cross_validated else MAX_SNAPSHOTS
        snapshots = np.linspace(1, numbers[0], min(most, numbers[0])).round().astype(int)
        for snapshot, name in itertools.product(np.unique(snapshots).tolist(), (LAYERS, THEN)):
            method = predictor(inputs, BOOSTING, first, name, snapshot)
            about = {"snapshot": snapshot, "epoch": inputs.epoch(snapshot, first.models)}
            about |= {"trained_on": first.words, "tested_on": first.words}
            yield from trials_by_seed(inputs, "early", method, tasks, seeds, **about)


def _num_snapshots(inputs: Inputs, task: Task) -> np.ndarray:
    """The distinct numbers of snapshots of a task's networks."""
    return np.unique(inputs.final["num_snapshots"][task.models])


def importance_trials(inputs: Inputs, seeds: range) -> Iterator[Trial]:
    """Each statistic's share of the loss reduction in boosting."""
    for tasks in tasks_by_dataset(inputs, seeds[:1]):
        method, fold = predictor(inputs, BOOSTING, tasks[0]), tasks[0].folds[0]
        task = replace(tasks[0], folds=[Fold(fold.training, fold.validation, NOBODY)])
        labels = _labels(inputs, tasks[0], method)
        for trial in trials_by_seed(inputs, "importance", method, [task], seeds[:1], **labels):
            yield replace(trial, score=functools.partial(_importance, inputs), questions=())


def _importance(inputs: Inputs, trial: Trial, answers: Answers) -> Outcome:
    assert isinstance(answers.model, FeatureModel)
    names = inputs.features[LAYERS][1]
    gain = answers.model.estimator.trees_.importance(len(names))
    shares = (gain / max(gain.sum(), np.finfo(float).tiny)).tolist()
    about: dict[str, Any] = {**trial.labels, "nets": ALL, "num_test": 0, "metric": "gain_share"}
    pairs = zip(names, shares, strict=True)
    return Outcome([Record(**about, feature=name, value=share) for name, share in pairs])


def tasks_by_dataset(inputs: Inputs, seeds: range) -> list[tuple[Task, ...]]:
    """The accuracy tasks of each data set, one for each seed; none if networks classify nothing."""
    final, datasets = inputs.final, inputs.datasets
    if np.isnan(np.asarray(final[TEST_ACCURACY], np.float64)).any():
        return []
    return list(zip(*(dataset_tasks(final, datasets, seed)[0] for seed in seeds), strict=True))


def _labels(inputs: Inputs, task: Task, method: Method) -> dict[str, Any]:
    """Fields of the records that trials on a data set share."""
    subsets = set(inputs.final["subset"][task.models])
    of_paper = paper.r2(subsets.pop() if len(subsets) == 1 else "", task.words, method.input, method.name)
    return {**between(task), "dataset": task.words, "paper": of_paper}


def notes_of(tasks: list[Task], seeds: range, skipped: list[str], seconds: float, papers: bool) -> list[str]:
    """Notes on how the numbers were obtained, for the Markdown file and the terminal."""
    held_out = describe([len(task.folds) for task in tasks])
    return [
        f"Held out: {held_out}. Mean and standard deviation over {len(seeds)} seeds; {seconds:.0f} s in all.",
        "Settings are chosen on validation models (in cross-validation the first one is used), and early "
        "stopping uses them or a part of the training models. `converged` scores the same predictions on the "
        "models whose accuracy is at least 5 points above the majority class's rate. Rank of best: the true "
        "rank of the test model predicted best. Learning curves have fewer training models; validation and "
        "test models stay the same.",
        *skipped,
        *([paper.CAUTION] if papers else []),
    ]


@click.command(cls=Command)
@commands.zoo_argument
@commands.out_option
@commands.option(
    *("--seed", "first"), default=0, type=click.IntRange(0, commands.MAX_SEED), metavar="N", help=SEED_HELP
)
@commands.seeds_option("Number of seeds, for predictors and folds; scores show the spread.")
@click.option("--meta-regressor", "meta", is_flag=True, help=META_HELP)
@commands.jobs_options("one per core")
def main(
    zoo: str,
    revision: str | None,
    out: Path | None,
    first: int,
    seeds: int,
    meta: bool,
    jobs: int | None,
    ray: str | None,
) -> None:
    """Predict test accuracy from the final weights of ZOO, a folder or ORG/NAME on the Hub.

    Evaluates three predictors on all inputs, learning curves, transfer and early prediction. Prints tables,
    and writes JSON, Markdown and plots. An interrupted run resumes where it stopped.
    """
    started, numbers = time.monotonic(), range(first, first + seeds)
    opened, folder = commands.begin(zoo, revision, out, ray)
    inputs = Inputs.of(opened)
    kept = Kept(folder / "predictors.part", [inputs.digest, first])
    with commands.keeping(kept):
        trials, skipped = trials_of(inputs, numbers, meta)
        options: dict[str, Any] = {"jobs": jobs or joblib.cpu_count(), "kept": kept, "ray": ray}
        outcomes = run_tuned(trials, console.progress, **options)
        records = [record for outcome in outcomes for record in outcome.records]
        tasks = [task for task, *_ in tasks_by_dataset(inputs, numbers)]
        contents = {
            "experiment": "predictors",
            "zoo": facts_of(opened, commands.name_of(zoo)),
            "command": commands.command_line(),
            "settings": {
                "seeds": list(numbers),
                "held_out": {task.words: describe([len(task.folds)]) for task in tasks},
            },
            "results": records,
        }
        papers = any(record.paper is not None for record in records)
        notes = notes_of(tasks, numbers, skipped, time.monotonic() - started, papers)
        converged = dict(zip(inputs.final["model_id"], inputs.final["converged"], strict=True))
        predictions = [outcome.predictions for outcome in outcomes if outcome.predictions]
        report_accuracies(folder, contents, notes, predictions, converged)
