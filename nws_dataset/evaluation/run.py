"""Run trials of methods on tasks, in parallel, and save each outcome when it is done.

An experiment is a list of trials; `Trial.run` has the only loop over folds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import joblib
import numpy as np
from joblib.externals.loky import process_executor

from nws_dataset import __version__
from nws_dataset.errors import ZooError, reason
from nws_dataset.evaluation.inputs import digest_of
from nws_dataset.evaluation.scores import Predictions, Record
from nws_dataset.evaluation.tasks import Labelled, Task
from nws_dataset.files import atomic_write, read_json


@dataclass(frozen=True)
class Question:
    """What a fitted model predicts from."""

    snapshot: int | None = None  # None: the networks' features
    position: float | None = None  # in the row, from 0 to 1; None: the average over several


class MethodModel(Protocol):
    """A model to fit; networks are given by their indices among the final snapshots."""

    def fit(self, training: Labelled, validation: Labelled) -> Any:
        """Learn from training networks; choose settings on validation networks, if there are any."""

    def predict(self, networks: np.ndarray, question: Question) -> np.ndarray:
        """Predict the target of each network."""


@dataclass(frozen=True)
class Method:
    """A way to predict a target from networks."""

    name: str
    input: str  # what it reads from a network
    make: Callable[[Task, int], MethodModel]  # task, seed -> an unfitted model
    layer: str | None = None  # if it reads only one
    # expected seconds of fitting it to a task, on one core; None: a second, or not worth measuring
    seconds: Callable[[Task], float] | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a trial."""

    records: list[Record]
    predictions: Predictions | None = None

    def to_json(self) -> dict[str, Any]:
        predictions = self.predictions and vars(self.predictions)
        return {"records": [record.to_json() for record in self.records], "predictions": predictions}

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Outcome:
        predictions = content["predictions"] and Predictions(**content["predictions"])
        return cls([Record(**{"value": None, **record}) for record in content["records"]], predictions)


@dataclass(frozen=True)
class Answers:
    """The predictions of a trial's models."""

    # [M] of the task's models, or [M, E] of their edges; only tested ones are set
    predicted: dict[Question, np.ndarray]
    model: MethodModel  # the last one fitted
    seconds: float  # of fitting and predicting, of the processor


@dataclass(frozen=True)
class Trial:
    """A method on a task with a seed, fitted in each fold and tested on the held-out models."""

    task: Task
    method: Method
    seed: int
    score: Callable[[Trial, Answers], Outcome]
    labels: Mapping[str, Any]  # fields of the records known beforehand
    questions: Sequence[Question] = (Question(),)

    @property
    def words(self) -> str:
        return f"{self.task.words}, {self.method.name} on {self.method.input}"

    @functools.cached_property
    def seconds(self) -> float:
        """Expected seconds of each fold on one core."""
        return 1.0 if self.method.seconds is None else self.method.seconds(self.task)

    def run(self, advance: Callable[[str, float], None]) -> Outcome:
        """Fit, predict and score; calls `advance` after each fold. Folds with equal training share a fit."""
        task, started = self.task, time.process_time()
        # of edges a probability each
        dtype = np.float32 if task.of_edges else task.truth.dtype
        predicted = {question: np.empty(task.truth.shape, dtype) for question in self.questions}
        alike = itertools.groupby(task.folds, lambda fold: fold.training.tobytes())
        for i, (_, folds) in enumerate(alike):
            model = None
            for fold in folds:
                if model is None:
                    model = self.method.make(task, self.seed + i)
                    model.fit(task.part(fold.training), task.part(fold.validation))
                for question, answers in predicted.items():
                    answers[fold.test] = model.predict(task.models[fold.test], question)
                advance(self.words, self.seconds)
        assert model is not None, "a task has folds"
        return self.score(self, Answers(predicted, model, time.process_time() - started))

    @property
    def facts(self) -> list[Any]:
        """Everything the outcome depends on, except the zoo and the settings."""
        task, questions = self.task, [dataclasses.astuple(question) for question in self.questions]
        folds = [
            [part.tolist() for part in (fold.training, fold.validation, fold.test)] for fold in task.folds
        ]
        asked = [dict(self.labels), self.method.name, self.method.input, self.seed, questions]
        return [*asked, task.target, task.words, task.models.tolist(), folds]


@dataclass(frozen=True)
class Kept:
    """A folder of saved outcomes, from which an interrupted run resumes."""

    folder: Path  # created when needed
    facts: Any  # what all outcomes depend on, as JSON: the zoo and the settings

    def _file(self, trial: Trial) -> Path:
        return self.folder / f"{digest_of([__version__, self.facts, *trial.facts])}.json"

    def write(self, trial: Trial, outcome: Outcome) -> None:
        """Save an outcome atomically, with its digest."""
        text = json.dumps(outcome.to_json())
        with atomic_write(self._file(trial)) as temporary:
            temporary.write_text(json.dumps({"sha256": digest_of(text), "outcome": text}), encoding="utf-8")

    def read(self, trial: Trial) -> Outcome | None:
        """Load an outcome; None if it is missing or damaged and must be computed again."""
        with contextlib.suppress(ZooError, TypeError, KeyError):
            kept = read_json(self._file(trial), "an outcome")
            if kept["sha256"] == digest_of(kept["outcome"]):
                return Outcome.of_json(json.loads(kept["outcome"]))
        return None


def run(
    trials: Sequence[Trial],
    progress: Callable[[Sequence[float], int, int], Any],
    *,
    jobs: int = 1,
    kept: Kept | None = None,
    ray: str | None = None,
) -> list[Outcome]:
    """Run all trials, and return their outcomes in the same order.

    Args:
        trials: to run; neither their order nor the number of processes changes an outcome.
        progress: called with the expected seconds of each fold, the number of those that are kept, and the
            number of processes; returns a context manager whose value is called with a description and the
            expected seconds after each fold.
        jobs: number of processes that share the trials and the cores.
        kept: where outcomes are saved; those already there are not computed again.
        ray: address of a Ray cluster whose cores share the trials, instead of local processes.
    """
    found = [kept.read(trial) if kept else None for trial in trials]
    outcomes = {i: outcome for i, outcome in enumerate(found) if outcome is not None}
    missing = [(i, trial) for i, trial in enumerate(trials) if i not in outcomes]
    # the longest first: at the end they would run alone
    missing.sort(key=lambda numbered: -numbered[1].seconds * len(numbered[1].task.folds))
    expected = [trial.seconds for _, trial in missing for _ in trial.task.folds]
    with progress(expected, sum(len(trials[i].task.folds) for i in outcomes), jobs) as advance:
        for i, outcome in _done(missing, jobs, ray, advance):
            outcomes[i] = outcome
            if kept:
                kept.write(trials[i], outcome)
    return [outcomes[i] for i in range(len(trials))]


def _done(
    numbered: Sequence[tuple[int, Trial]], jobs: int, ray: str | None, advance: Callable[[str, float], None]
) -> Iterator[tuple[int, Outcome]]:
    """Yield the outcomes of numbered trials as they finish."""
    jobs = min(jobs, len(numbered))
    if not numbered or (ray is None and jobs == 1):
        yield from ((i, trial.run(advance)) for i, trial in numbered)
        return
    trials = dict(numbered)
    with _backend(ray, jobs) as options:
        calls = (joblib.delayed(_run)(i, trial) for i, trial in numbered)
        with _interrupts_ignored():
            found = joblib.Parallel(return_as="generator_unordered", **options)(calls)
        for i, outcome in found:
            yield i, outcome
            for _ in trials[i].task.folds:
                advance(trials[i].words, trials[i].seconds)


def _run(i: int, trial: Trial) -> tuple[int, Outcome]:
    """Run a trial in a worker process."""
    # Where psutil is installed, loky ends a worker that has grown by 300 MB, as if it leaked. Ours grow by
    # what they have read of the zoo, and another would read it again.
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    return i, trial.run(lambda words, seconds: None)


@contextlib.contextmanager
def _backend(address: str | None, jobs: int) -> Iterator[dict[str, Any]]:
    """Options of `joblib.Parallel` for local processes, or for all cores of a Ray cluster."""
    if address is None:
        yield {"n_jobs": jobs, "pre_dispatch": jobs}
        return
    try:
        import ray
        from ray.util.joblib.ray_backend import RayBackend
    except ImportError as error:
        do = "pip install 'nws-dataset[cluster]'"
        raise ZooError("--ray", expected="the package ray", found="none", do=do) from error
    try:
        ray.init(None if address == "local" else address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        do = "start one, or name its head as HOST:PORT"
        raise ZooError(f"--ray {address}", expected="a Ray cluster", found=reason(error), do=do) from error
    backend = RayBackend(nesting_level=0)
    backend.supports_return_generator = True  # it does, but does not declare it
    try:
        yield {"n_jobs": -1, "backend": backend}
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Make processes started in this block ignore Ctrl-C; the main process stops them.

    Blocking the signal is not enough: loky's resource tracker unblocks it.
    """
    in_main = threading.current_thread() is threading.main_thread()  # other threads get no Ctrl-C
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
