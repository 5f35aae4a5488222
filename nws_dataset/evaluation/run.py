"""The engine of all experiments: trials of methods on tasks, side by side, kept as they are done.

An experiment is a list of trials. Whatever is asked of which networks, `run` is the only loop that fits over
folds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import joblib
import numpy as np

from nws_dataset import __version__
from nws_dataset.errors import ZooError, reason
from nws_dataset.evaluation.inputs import digest_of
from nws_dataset.evaluation.scores import Record
from nws_dataset.evaluation.tasks import Labelled, Task
from nws_dataset.files import atomic_write, path_type, read_json


@dataclass(frozen=True)
class Question:
    """What a fitted model is asked: to read networks at a snapshot (None: their features), at one position of
    their rows (None: at all that it averages over).
    """

    snapshot: int | None = None
    position: float | None = None


class Model(Protocol):
    """What is fitted. Networks are given by their indices among the final snapshots."""

    def fit(self, training: Labelled, validation: Labelled) -> Any:
        """Learn from networks for training; choose by those for validation, which may be none."""

    def predict(self, networks: np.ndarray, question: Question) -> np.ndarray:
        """The target of each network."""


@dataclass(frozen=True)
class Method:
    """A way to read a target off networks."""

    name: str
    input: str  # what it reads of a network
    make: Callable[[Task, int], Model]  # task, seed -> a model that is not fitted yet
    layer: str | None = None  # that alone is read


@dataclass(frozen=True)
class Predictions:
    """What a method said of each held-out network."""

    dataset: str
    input: str
    method: str
    seed: int
    model_id: list[str]
    true: list[float]
    predicted: list[float]


@dataclass(frozen=True)
class Outcome:
    """What a trial found."""

    records: list[Record]
    predictions: Predictions | None = None  # where they are wanted

    def to_json(self) -> dict[str, Any]:
        told = None if self.predictions is None else vars(self.predictions)
        return {"records": [record.to_json() for record in self.records], "predictions": told}

    @classmethod
    def of_json(cls, told: dict[str, Any]) -> Outcome:
        predictions = told["predictions"] and Predictions(**told["predictions"])
        return cls([Record(**{"value": None, **record}) for record in told["records"]], predictions)


@dataclass(frozen=True)
class Answers:
    """What the models of a trial said."""

    predicted: dict[Question, np.ndarray]  # [M] of the task's models; only those that a fold tests are set
    model: Model  # the one that was fitted last


@dataclass(frozen=True)
class Trial:
    """A method on a task with a seed: it is fitted in each fold, and asked about those held out."""

    task: Task
    method: Method
    seed: int
    score: Callable[[Trial, Answers], Outcome]
    labels: Mapping[str, Any]  # fields of the records that are known beforehand
    questions: Sequence[Question] = (Question(),)

    @property
    def words(self) -> str:
        return f"{self.task.words}, {self.method.name} on {self.method.input}"

    def run(self, advance: Callable[[str], None]) -> Outcome:
        """Fit, ask and score; `advance` is called after every fold. Folds that train on the same models share
        one fit.
        """
        task, predicted = self.task, {question: np.empty_like(self.task.truth) for question in self.questions}
        alike = itertools.groupby(task.folds, lambda fold: fold.training.tobytes())
        for i, (_, folds) in enumerate(alike):
            model = None
            for fold in folds:
                if model is None:
                    model = self.method.make(task, self.seed + i)
                    model.fit(task.part(fold.training), task.part(fold.validation))
                for question, answers in predicted.items():
                    answers[fold.test] = model.predict(task.models[fold.test], question)
                advance(self.words)
        assert model is not None, "a task has folds"
        return self.score(self, Answers(predicted, model))

    @property
    def facts(self) -> list[Any]:
        """All that its outcome follows from, but for the zoo and the settings."""
        task, questions = self.task, [dataclasses.astuple(question) for question in self.questions]
        folds = [
            [part.tolist() for part in (fold.training, fold.validation, fold.test)] for fold in task.folds
        ]
        asked = [dict(self.labels), self.method.name, self.method.input, self.seed, questions]
        return [*asked, task.target, task.words, task.models.tolist(), folds]


@dataclass(frozen=True)
class Kept:
    """A folder in which outcomes are kept as they come, for a run that goes on after an interruption.

    Args:
        folder: made when it is needed.
        facts: what all outcomes follow from, as JSON holds it: the zoo and the settings. Outcomes of others
            are not taken.
    """

    folder: Path
    facts: Any

    def _file(self, trial: Trial) -> Path:
        return self.folder / f"{digest_of([__version__, self.facts, *trial.facts])}.json"

    def write(self, trial: Trial, outcome: Outcome) -> None:
        """Keep an outcome, whole or not at all, with its digest: what is read is what was written."""
        text = json.dumps(outcome.to_json())
        with atomic_write(self._file(trial)) as temporary:
            temporary.write_text(json.dumps({"sha256": digest_of(text), "outcome": text}), encoding="utf-8")

    def read(self, trial: Trial) -> Outcome | None:
        """An outcome; None where it is missing or damaged, so that it is found anew."""
        file = self._file(trial)
        if path_type(file) == "nothing":
            return None
        try:
            kept = read_json(file, "an outcome")
        except ZooError:
            return None
        if not isinstance(kept, dict) or not isinstance(kept.get("outcome"), str):
            return None
        return (
            Outcome.of_json(json.loads(kept["outcome"]))
            if kept.get("sha256") == digest_of(kept["outcome"])
            else None
        )


def run(
    trials: Sequence[Trial],
    progress: Callable[[int], Any],
    *,
    jobs: int = 1,
    kept: Kept | None = None,
    ray: str | None = None,
) -> list[Outcome]:
    """The outcomes of all trials, in their order.

    Args:
        trials: each is done by itself: neither order nor number of processes changes an outcome.
        progress: called with a number of folds; gives a context manager whose value is called with words
            after each.
        jobs: processes that share the trials, and the cores.
        kept: where outcomes are kept, and taken from in place of doing a trial again.
        ray: address of a Ray cluster whose cores share the trials, in place of processes of this machine.
    """
    outcomes: dict[int, Outcome] = {}
    with progress(sum(len(trial.task.folds) for trial in trials)) as advance:
        for i, trial in enumerate(trials):
            outcome = kept and kept.read(trial)
            if outcome:
                outcomes[i] = outcome
                _advance(trial, advance)
        missing = [i for i in range(len(trials)) if i not in outcomes]
        for i, outcome in _done([(i, trials[i]) for i in missing], jobs, ray, advance):
            outcomes[i] = outcome
            if kept:
                kept.write(trials[i], outcome)
    return [outcomes[i] for i in range(len(trials))]


def _done(
    numbered: Sequence[tuple[int, Trial]], jobs: int, ray: str | None, advance: Callable[[str], None]
) -> Iterator[tuple[int, Outcome]]:
    """The outcomes of trials, each with its number, as they come."""
    if not numbered or (ray is None and min(jobs, len(numbered)) == 1):
        yield from ((i, trial.run(advance)) for i, trial in numbered)
        return
    trials = dict(numbered)
    with _backend(ray, min(jobs, len(numbered))) as options:
        calls = (joblib.delayed(_run)(i, trial) for i, trial in numbered)
        with _interrupts_ignored():
            found = joblib.Parallel(return_as="generator_unordered", **options)(calls)
        for i, outcome in found:
            yield i, outcome
            _advance(trials[i], advance)


def _run(i: int, trial: Trial) -> tuple[int, Outcome]:
    """A trial, in a process of its own."""
    return i, trial.run(lambda words: None)


def _advance(trial: Trial, advance: Callable[[str], None]) -> None:
    """Note that all of a trial is done."""
    for _ in trial.task.folds:
        advance(trial.words)


@contextlib.contextmanager
def _backend(address: str | None, jobs: int) -> Iterator[dict[str, Any]]:
    """Options of `joblib.Parallel`: processes of this machine, or all cores of a Ray cluster."""
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
    backend.supports_return_generator = True  # it calls back with each outcome, but does not say so
    try:
        yield {"n_jobs": -1, "backend": backend}
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that are started meanwhile ignore Ctrl-C.

    It reaches all processes of a terminal, and this one ends the others.

    What blocks signals would not do: loky's tracker of resources unblocks them.
    """
    in_main = threading.current_thread() is threading.main_thread()  # elsewhere Ctrl-C interrupts nothing
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
