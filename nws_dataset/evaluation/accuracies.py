"""How well predictors read a network's test accuracy off its weights: all inputs and methods, learning
curves, transfer, early prediction.

python scripts/evaluate_predictors.py ZOO
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from nws_dataset import console
from nws_dataset.console import Command
from nws_dataset.evaluation import commands, paper
from nws_dataset.evaluation.folds import NOBODY, Fold, describe
from nws_dataset.evaluation.inputs import LAYERS, WEIGHTS, Inputs
from nws_dataset.evaluation.models import BOOSTING, META, PREDICTORS, FeatureModel
from nws_dataset.evaluation.pages.summary import report_of_accuracies
from nws_dataset.evaluation.results import facts_of
from nws_dataset.evaluation.run import Answers, Kept, Method, Outcome, Trial, run
from nws_dataset.evaluation.scores import ALL, SIZED, Record
from nws_dataset.evaluation.tasks import Task, dataset_tasks
from nws_dataset.evaluation.transfer import (
    accuracy_trial,
    between,
    early_trials,
    held_out_trials,
    predictor,
    transfer_trials,
)

SEED_HELP = "The first seed."
META_HELP = "Also fit the deep meta-classifier as a regressor (slow without a GPU)."
MIN_CURVE = 100  # networks, and then twice as many each time


def trials_of(inputs: Inputs, seeds: range, meta: bool = False) -> tuple[list[Trial], list[str]]:
    """All experiments, in the order in which they are done, and sentences about what is left out.

    Args:
        inputs: of the zoo.
        seeds: repetitions, each with its own folds.
        meta: also the deep meta-classifier as a regressor.
    """
    early, skipped = early_trials(inputs, seeds)
    trials = [
        *accuracy_trials(inputs, seeds, meta),
        *curve_trials(inputs, seeds),
        *transfer_trials(inputs, seeds),
        *held_out_trials(inputs, seeds),
        *early,
        *importance_trials(inputs, seeds),
    ]
    return trials, [*inputs.skipped, *dataset_tasks(inputs.final, seeds[0])[1], *skipped]


def accuracy_trials(inputs: Inputs, seeds: range, meta: bool = False) -> Iterator[Trial]:
    """Every input with every method, on the networks of each data set."""
    pairs = [(name, method) for name in inputs.features for method in PREDICTORS]
    pairs += [(WEIGHTS, META)] * (meta and WEIGHTS in inputs.features)
    for tasks, (name, kind) in itertools.product(_tasks(inputs, seeds), pairs):
        method = predictor(inputs, kind, tasks[0], name)
        for task, seed in zip(tasks, seeds, strict=True):
            options = {**_labels(inputs, task, method), "intervals": seed == seeds[0], "described": True}
            yield accuracy_trial(inputs, "accuracy", method, task, seed, **options)


def curve_trials(inputs: Inputs, seeds: range) -> Iterator[Trial]:
    """Fewer networks to learn from: for the paper's inputs; in small zoos for the statistics of all layers
    only. The networks of a smaller number are among those of a larger one of the same seed.
    """
    for tasks in _tasks(inputs, seeds):
        largest = len(tasks[0].folds[0].training)
        sizes = [MIN_CURVE << i for i in range(20) if MIN_CURVE << i < largest]
        names = [name for name in inputs.features if name in paper.R2]
        names = [LAYERS] if tasks[0].cross_validated else names
        for name, kind, size in itertools.product(names, PREDICTORS, sizes):
            method = predictor(inputs, kind, tasks[0], name)
            for task, seed in zip(tasks, seeds, strict=True):
                random = np.random.default_rng(seed)
                parts = [(random.permutation(fold.training)[:size], fold) for fold in task.folds]
                fewer = replace(task, folds=[replace(fold, training=part) for part, fold in parts])
                labels = {**_labels(inputs, task, method), "num_train": size}
                yield accuracy_trial(inputs, SIZED, method, fewer, seed, **labels)


def importance_trials(inputs: Inputs, seeds: range) -> Iterator[Trial]:
    """Which statistics boosting gains from: their part of the reduction of its loss."""
    for tasks in _tasks(inputs, seeds[:1]):
        method, fold = predictor(inputs, BOOSTING, tasks[0]), tasks[0].folds[0]
        task = replace(tasks[0], folds=[Fold(fold.training, fold.validation, NOBODY)])
        labels = _labels(inputs, tasks[0], method)
        trial = accuracy_trial(inputs, "importance", method, task, seeds[0], **labels)
        yield replace(trial, score=functools.partial(_importance, inputs), questions=())


def _importance(inputs: Inputs, trial: Trial, answers: Answers) -> Outcome:
    assert isinstance(answers.model, FeatureModel)
    names = inputs.features[LAYERS][1]
    gain = answers.model.estimator.trees_.importance(len(names))
    shares = (gain / max(gain.sum(), np.finfo(float).tiny)).tolist()
    told: dict[str, Any] = {**trial.labels, "nets": ALL, "num_test": 0, "metric": "gain_share"}
    return Outcome(
        [Record(**told, feature=name, value=share) for name, share in zip(names, shares, strict=True)]
    )


def _tasks(inputs: Inputs, seeds: range) -> list[tuple[Task, ...]]:
    """The networks of each data set, as a task for each seed."""
    return list(zip(*(dataset_tasks(inputs.final, seed)[0] for seed in seeds), strict=True))


def _labels(inputs: Inputs, task: Task, method: Method) -> dict[str, Any]:
    """What the records of a data set's networks have in common."""
    subsets = set(inputs.final["subset"][task.models])
    of_paper = paper.r2(subsets.pop() if len(subsets) == 1 else "", task.words, method.input, method.name)
    return {"between": between(task, ("train", "test")), "dataset": task.words, "paper": of_paper}


def notes_of(tasks: list[Task], seeds: range, skipped: list[str], seconds: float, papers: bool) -> list[str]:
    """How the numbers were taken, for the Markdown file and the terminal."""
    held_out = describe([len(task.folds) for task in tasks])
    return [
        f"Held out: {held_out}. Mean and standard deviation over {len(seeds)} seeds; {seconds:.0f} s in all.",
        "Settings are chosen on validation models (in cross-validation the first one is taken), training "
        "stops by them or by a part of the training models. `converged` scores the same predictions on the "
        "models whose accuracy is at least 5 points above the majority class's rate. Rank of best: the true "
        "rank of the test model predicted best. Learning curves have fewer models to learn from; those for "
        "validation and test stay the same.",
        *skipped,
        *([paper.CAUTION] if papers else []),
    ]


@click.command(cls=Command)
@click.argument("zoo")
@commands.out_option
@commands.option("--seed", "first", default=0, type=click.IntRange(0, commands.MAX_SEED), help=SEED_HELP)
@commands.seeds_option("Number of seeds, for predictors and folds; scores show the spread.")
@click.option("--meta-regressor", "meta", is_flag=True, help=META_HELP)
@commands.jobs_options("1")
def main(
    zoo: str, out: Path | None, first: int, seeds: int, meta: bool, jobs: int | None, ray: str | None
) -> None:
    """Predict test accuracy from the final weights of ZOO, a folder that nws-build wrote.

    Three predictors by all inputs, learning curves, transfer, early prediction. Prints tables, and writes
    JSON, Markdown and plots. A run that was interrupted goes on where it stopped.
    """
    started, numbers = time.monotonic(), range(first, first + seeds)
    opened, folder = commands.begin(zoo, out, ray)
    inputs = Inputs.of(opened)
    kept = Kept(folder / "predictors.part", [inputs.digest, first])
    with commands.keeping(kept):
        trials, skipped = trials_of(inputs, numbers, meta)
        outcomes = run(trials, console.progress, jobs=jobs or 1, kept=kept, ray=ray)
        records = [record for outcome in outcomes for record in outcome.records]
        tasks = [task for task, *_ in _tasks(inputs, numbers)]
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
        report_of_accuracies(contents, predictions, converged, notes).write(folder)
