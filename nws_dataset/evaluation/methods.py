"""A method of one's own beside ours: one class with `fit(rows, y)` and `predict(rows)`, tried on the standard tasks of a zoo.

A class that inherits scikit-learn's `ClassifierMixin` is asked for the properties of the recipe that are classes; any other is a regressor,
and is asked for the test accuracy, and for the properties that are numbers. `rows` is what `DeepMetaClassifier` takes: weights of final
networks, an array [N, P] of one architecture or a list of [P_i] arrays. A method that chooses settings cuts a validation part off its rows:
it is given the models that ours train on together with those that ours choose by, and never those that it is tested on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import ClassifierMixin

from nws_dataset.errors import ZooError
from nws_dataset.evaluation import report, study, trials
from nws_dataset.evaluation.folds import check_models, is_small
from nws_dataset.evaluation.inputs import WEIGHTS
from nws_dataset.evaluation.meta_classifier import Experiment, Snapshots
from nws_dataset.evaluation.properties import tasks_of
from nws_dataset.evaluation.readers import Method, Settings
from nws_dataset.files import atomic_write

if TYPE_CHECKING:
    from nws_dataset.evaluation.properties import Task
    from nws_dataset.zoo import Rows, Zoo

Weights = np.ndarray | list[np.ndarray]


@dataclass(frozen=True)
class Candidate:
    """A class that someone wants to see beside ours."""

    path: Path
    make: Any  # the class; with a parameter random_state, it is given the seed

    @classmethod
    def load(cls, text: str) -> Candidate:
        """Import a class from a file.

        Args:
            text: "FILE.py:Class".

        Raises:
            ZooError: if there is no such file or class, or the class has no fit or no predict.
        """
        file, _, name = text.rpartition(":")
        path = Path(file)
        if not path.is_file() or path.suffix != ".py":
            raise ZooError(f"--method {text}", expected="FILE.py:Class", found="no such file", do="name a Python file and a class in it")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, name, None)
        if not inspect.isclass(found):
            raise ZooError(path, expected=f"a class {name!r}", found="none of that name", do="name a class of the file after the colon")
        missing = [verb for verb in ("fit", "predict") if not callable(getattr(found, verb, None))]
        if missing:
            do = "write fit(rows, y) and predict(rows)"
            raise ZooError(path, expected="a class with fit and predict", found=f"{name} without {' and '.join(missing)}", do=do)
        return cls(path, found)

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def is_classifier(self) -> bool:
        return issubclass(self.make, ClassifierMixin)

    @property
    def sha256(self) -> str:
        """Of its file: when it changes, the method is tried again."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def fitted(self, rows: Weights, y: np.ndarray, seed: int) -> Any:
        """A new object that learned from rows."""
        seeded = "random_state" in inspect.signature(self.make).parameters
        estimator = self.make(random_state=seed) if seeded else self.make()
        estimator.fit(rows, y)
        return estimator

    def told(self, estimator: Any, rows: Weights, y: np.ndarray) -> np.ndarray:
        """[N] predictions of rows of which y is true.

        Raises:
            ZooError: if they are not one for each row, or numbers that are not finite.
        """
        told = np.asarray(estimator.predict(rows))
        legal = told.shape == y.shape and (y.dtype.kind != "f" or (told.dtype.kind in "fiu" and np.isfinite(told).all()))
        if not legal:
            expected = f"an array of {len(y)} {'finite numbers' if y.dtype.kind == 'f' else 'classes'}"
            found = f"{told.dtype} of shape {told.shape}" + (", not all finite" if told.dtype.kind == "f" else "")
            raise ZooError(f"{self.name}.predict", expected=expected, found=found, do="give one prediction for each row")
        return told


@dataclass
class _Reader:
    """A candidate behind the interface of our own readers: it is given places of rows."""

    candidate: Candidate
    weights: Weights
    seed: int

    def fit(self, training: np.ndarray, y: np.ndarray, validation: np.ndarray, y_validation: np.ndarray) -> _Reader:
        places = np.concatenate([training, validation])
        self.known = np.concatenate([y, y_validation])
        self.estimator = self.candidate.fitted(_chosen(self.weights, places), self.known, self.seed)
        return self

    def predict(self, places: np.ndarray, positions: Any = None) -> np.ndarray:
        rows = _chosen(self.weights, places)
        return self.candidate.told(self.estimator, rows, np.empty(len(places), self.known.dtype))


def _chosen(weights: Weights, places: np.ndarray) -> Weights:
    """The weights of some rows."""
    return weights[places] if isinstance(weights, np.ndarray) else [weights[place] for place in places.tolist()]


def evaluate(zoo: Zoo, candidate: Candidate, seeds: int, progress: Callable[[int], Any] = report.progress) -> list[trials.Record]:
    """Try a method on the standard tasks of a zoo, with the balanced classes and splits of our own.

    Args:
        zoo: the zoo.
        candidate: the method.
        seeds: repetitions, each with its own balancing, folds and random_state.
        progress: gives a context manager whose value is called with words after each step.

    Returns:
        Records as the evaluation commands write them.

    Raises:
        ZooError: if the zoo is too small, or a prediction is not one for each row.
    """
    final = zoo.filter(is_final=True)
    check_models(zoo.name, final["split"])
    small, weights = is_small(len(final)), _weights_of(zoo, final)
    experiment = Experiment(final, Snapshots.of(final, final), Settings(), small)
    work: list[tuple[Task, int]] = []
    for seed in range(seeds):
        tasks, _ = tasks_of(final, None, seed, small=small)
        work += [(task, seed) for task in tasks if task.is_number != candidate.is_classifier]
    groups = [] if candidate.is_classifier else study.groups_of(final)[0]
    with progress(len(groups) * seeds + sum(len(task.folds) for task, _ in work)) as advance:
        found = []
        for group in groups:
            for seed in range(seeds):
                found += _accuracy(final, group, candidate, weights, seed)
                advance(f"accuracy of {group.name}, {candidate.name}")
        for task, seed in work:
            method = Method(candidate.name, WEIGHTS, lambda _, seed: _Reader(candidate, weights, seed), frozenset({"what"}))
            found += experiment.run(method, task, seed, advance)
    return found


def _weights_of(zoo: Zoo, rows: Rows) -> Weights:
    """An array of one architecture, a list of several."""
    return zoo.weights(rows) if len(set(rows["architecture"])) == 1 else zoo.arrays(rows)


def _accuracy(final: Rows, group: study.Group, candidate: Candidate, weights: Weights, seed: int) -> list[trials.Record]:
    """How well it predicts the accuracy of a group's networks."""
    truth, predicted = np.asarray(final["test_accuracy"], np.float64), np.full(len(final), np.nan)
    folds = group.folds(seed)
    for i, fold in enumerate(folds):
        reader = _Reader(candidate, weights, seed + i)
        reader.fit(fold.training, truth[fold.training], fold.validation, truth[fold.validation])
        predicted[fold.test] = reader.predict(fold.test)
    tested = np.flatnonzero(np.isfinite(predicted))
    trained_on, tested_on = ("other folds", "each fold in turn") if group.small else ("train and validation", "test")
    common = {
        "experiment": "accuracy",
        "method": candidate.name,
        "input": WEIGHTS,
        "trained_on": f"{group.name}, {trained_on}",
        "tested_on": f"{group.name}, {tested_on}",
        "dataset": group.name,
        "num_train": len(folds[0].training) + len(folds[0].validation),
        "seed": seed,
    }
    converged = np.asarray(final["converged"], bool)
    return trials.records(common, truth[tested], predicted[tested], converged[tested], intervals=seed == 0)


def results_file(zoo: Zoo, called: str, candidate: Candidate, seeds: int, folder: Path, again: bool = False) -> Path:
    """The file of a method's results; it is written only if it is missing, the method's file has changed, or the zoo has.

    Args:
        zoo: the zoo.
        called: what results call it.
        candidate: the method.
        seeds: repetitions.
        folder: where results lie.
        again: try the method in any case.

    Returns:
        folder / "method_<Class>.json".
    """
    path = folder / f"method_{candidate.name}.json"
    same = {
        "zoo": report.facts_of(zoo, called),
        "command": shlex.join(["leaderboard.py", called, "--method", f"{candidate.path.name}:{candidate.name}", "--seeds", str(seeds)]),
        "settings": {"seeds": list(range(seeds)), "sha256": candidate.sha256},
    }
    if not again and path.exists() and same.items() <= json.loads(path.read_text(encoding="utf-8")).items():
        return path
    results = {**same, "results": evaluate(zoo, candidate, seeds), "plots": []}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return path
