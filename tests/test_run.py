"""The engine: trials that are killed and go on, processes that share them, folds that share a fit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib.externals.loky import process_executor

from nws_dataset.baselines.predictors import GradientBoosting, LogitLinear
from nws_dataset.console import progress
from nws_dataset.evaluation import models, scores, tasks
from nws_dataset.evaluation.folds import Fold
from nws_dataset.evaluation.inputs import Inputs
from nws_dataset.evaluation.run import Answers, Kept, Method, Outcome, Question, Trial, run
from nws_dataset.evaluation.scores import Predictions, Record
from nws_dataset.evaluation.tasks import Labelled, Task
from nws_dataset.experiments import accuracies
from nws_dataset.experiments.accuracies import trials_of
from nws_dataset.reading.zoo import Zoo
from testing.forked import FORKED
from testing.zoo_factory import make_zoo


@dataclasses.dataclass
class Mean:
    """Predicts the mean of what it learned from, plus its seed and what it is asked."""

    seed: int

    def fit(self, training: Labelled, validation: Labelled) -> Mean:
        self.mean = float(training.y.mean())
        return self

    def predict(self, networks: np.ndarray, question: Question) -> np.ndarray:
        return np.full(len(networks), self.mean + 100 * self.seed + (question.snapshot or 0))


def score(trial: Trial, answers: Answers) -> Outcome:
    """What was predicted, as it is."""
    told = {"experiment": "e", "target": "t", "method": "m", "input": "i", "nets": "all", "metric": "m"}
    records = [
        Record(**told, value=value, snapshot=question.snapshot, seed=trial.seed)
        for question, values in answers.predicted.items()
        for value in values.tolist()
    ]
    return Outcome(records, Predictions("d", "i", "m", trial.seed, ["a"], [0.1], [1 / 3]))


def make_trial(seed: int = 0) -> Trial:
    none = np.empty(0, np.intp)
    folds = [Fold(np.array([0, 1]), none, np.array([2])), Fold(np.array([0, 1]), none, np.array([3]))]
    folds.append(Fold(np.array([2, 3]), none, np.array([0, 1])))
    task = Task("t", "words", np.arange(4), np.array([1.0, 2.0, 5.0, 8.0]), folds)
    questions = (Question(), Question(snapshot=7))
    return Trial(task, Method("m", "i", lambda task, seed: Mean(seed)), seed, score, {}, questions)


def test_folds_share_a_fit_and_questions_share_it_too() -> None:
    """The third fold is the second fit: its seed is one more."""
    (outcome,) = run([make_trial()], progress)
    values = [record.value for record in outcome.records]
    assert values == [106.5, 106.5, 1.5, 1.5, 113.5, 113.5, 8.5, 8.5]


def test_processes_find_the_same() -> None:
    trials = [make_trial(seed) for seed in range(3)]
    assert run(trials, progress, jobs=2) == run(trials, progress)


def test_what_is_kept_is_what_was_found(tmp_path: Path) -> None:
    """And it is not taken for that of another seed, other settings or another zoo."""
    kept, trial = Kept(tmp_path, ["zoo", {"width": 1}]), make_trial()
    (outcome,) = run([trial], progress, kept=kept)
    assert kept.read(trial) == outcome and outcome.predictions is not None
    assert kept.read(make_trial(1)) is None and Kept(tmp_path, ["zoo", {"width": 2}]).read(trial) is None
    other = dataclasses.replace(trial, labels={"experiment": "another"})
    assert kept.read(other) is None


def test_what_is_kept_does_not_count_for_the_time_left(tmp_path: Path) -> None:
    kept, trials, calls = Kept(tmp_path, []), [make_trial(seed) for seed in range(3)], []

    @contextlib.contextmanager
    def counted(expected: list[float], done: int, at_once: int) -> Iterator[Any]:
        advanced = list[float]()
        yield lambda words, seconds: advanced.append(seconds)
        assert advanced == expected and at_once == 1
        calls.append((len(expected), done))

    run(trials[:2], counted, kept=kept)
    run(trials, counted, kept=kept)
    folds = len(trials[0].task.folds)
    assert calls == [(2 * folds, 0), (folds, 2 * folds)]


def test_processes_share_a_zoo(tmp_path: Path) -> None:
    """Trials of all experiments; a process reads the zoo for itself."""
    inputs = Inputs.of(Zoo(make_zoo(tmp_path / "nws", models=24, snapshots=2)))
    trials = [trial for trial in trials_of(inputs, range(2))[0] if trial.method.name != "dense net"][::9]
    assert {trial.labels["experiment"] for trial in trials} >= {"accuracy", "early"}
    assert run(trials, progress, jobs=2) == run(trials, progress)


def test_joblib_has_the_limit_that_workers_lift() -> None:
    """It is private there: under another name, setting it would do nothing."""
    assert hasattr(process_executor, "_MAX_MEMORY_LEAK_SIZE")


def learn(zoo: Path, out: Path) -> None:
    """The command on a zoo of random weights, with predictors that learn little: the way is tested."""
    predictors = {
        "linear": [LogitLinear(max_iter=5)],
        "boosting": [GradientBoosting(num_trees=3, num_threads=1)],
    }
    for module in (models, accuracies):
        vars(module)["PREDICTORS"] = predictors
    scores.RESAMPLES = 2
    tasks.MIN_OF_DATASET = tasks.MIN_OF_VALUE = 8
    accuracies.main([str(zoo), "--seeds", "1", "--out", str(out), "--jobs", "1"], standalone_mode=False)


def command(zoo: Path, out: Path) -> BaseProcess:
    process = FORKED.Process(target=learn, args=(zoo, out))
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    process.join()
    return process.exitcode


def found(out: Path) -> dict[str, Any]:
    results = json.loads((out / "predictors.json").read_text())
    return {name: results[name] for name in ("results", "predictions", "settings")}


@pytest.mark.slow
def test_killed_runs_go_on(tmp_path: Path) -> None:
    """Killed five times at random moments, the command ends with what an undisturbed run finds."""
    zoo = make_zoo(tmp_path / "nws", models=24, snapshots=2)
    assert ended(command(zoo, tmp_path / "whole")) == 0
    part, counts, random_ = tmp_path / "killed" / "predictors.part", [], random.Random(0)
    for _ in range(5):
        process = command(zoo, tmp_path / "killed")
        before, deadline = len(list(part.glob("*.json"))), time.monotonic() + 60
        while len(list(part.glob("*.json"))) == before and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random_.random() / 4)
        process.kill()
        process.join()
        counts.append(len(list(part.glob("*.json"))))
    assert counts == sorted(counts) and 0 < counts[0] < counts[-1]  # each run began where the last one ended
    assert ended(command(zoo, tmp_path / "killed")) == 0
    assert found(tmp_path / "killed") == found(tmp_path / "whole") and not part.exists()
