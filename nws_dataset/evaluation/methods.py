"""A method of one's own beside ours: one class with `fit(rows, y)` and `predict(rows)`, tried on the standard
tasks of a zoo.

A class that inherits scikit-learn's `ClassifierMixin` is asked for the properties of the recipe that are
classes; any other is a regressor, and is asked for the test accuracy, and for the properties that are
numbers. `rows` is what `DeepMetaClassifier` takes: weights of final networks, an array [N, P] of one
architecture or a list of [P_i] arrays. A method that chooses settings cuts a validation part off its rows: it
is given the models that ours train on together with those that ours choose by, and never those that it is
tested on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import reprlib
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import ClassifierMixin

from nws_dataset import console
from nws_dataset.errors import ZooError, reason
from nws_dataset.evaluation import report, study, trials
from nws_dataset.evaluation.folds import check_models, is_small
from nws_dataset.evaluation.inputs import WEIGHTS
from nws_dataset.evaluation.meta_classifier import Experiment, SnapshotSeries
from nws_dataset.evaluation.properties import tasks_of
from nws_dataset.evaluation.readers import Method, Settings
from nws_dataset.evaluation.results import Results
from nws_dataset.files import atomic_write, path_type, sha256_file

if TYPE_CHECKING:
    from nws_dataset.evaluation.properties import Task
    from nws_dataset.reading.snapshots import Snapshots
    from nws_dataset.reading.zoo import Zoo

Weights = np.ndarray | list[np.ndarray]
MAX_PREDICTION = float(np.finfo(np.float32).max)  # the squares of larger ones are infinite


@contextlib.contextmanager
def _beside(path: Path, own: dict[str, ModuleType]) -> Iterator[None]:
    """Imports find the modules beside a method's file, as when Python runs it; those of another method's
    folder they do not find.

    Args:
        path: of the method's file.
        own: its modules: what is imported from its folder is added.
    """
    folder = os.path.realpath(path.parent)
    before = set(sys.modules)
    sys.modules.update({name: module for name, module in own.items() if name not in before})
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the method's code may have removed it
            sys.path.remove(folder)
        for name in set(sys.modules) - before:
            # an environment may lie below the folder: what it holds is not the method's
            top = name.partition(".")[0]
            homes = (os.path.join(folder, f"{top}.py"), os.path.join(folder, top, ""))
            file = getattr(sys.modules[name], "__file__", None)
            if name in own or (
                top not in before and isinstance(file, str) and os.path.realpath(file).startswith(homes)
            ):
                own[name] = sys.modules.pop(name)


def _failed(path: Path, error: BaseException, expected: str) -> ZooError:
    """An error of someone's code, with the line of their file in which it came up."""
    folder = os.path.realpath(path.parent)
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.dirname(os.path.realpath(frame.filename)) == folder
    ]
    at = f" in line {own[-1].lineno} of {os.path.basename(own[-1].filename)}" if own else ""
    return ZooError(
        path, expected=expected, found=reason(error) + at, do="mend it, and run it alone to see more"
    )


@dataclass(frozen=True)
class Candidate:
    """A class that someone wants to see beside ours."""

    path: Path
    make: Any  # the class; with a parameter random_state, it is given the seed
    modules: dict[str, ModuleType]  # its own, and those that it imported from beside the file

    @classmethod
    def load(cls, text: str) -> Candidate:
        """Import a class from a file.

        Dataclasses, annotations as texts and imports from beside the file work as when Python runs it.

        Args:
            text: "FILE.py:Class".

        Raises:
            ZooError: if there is no such file or class, the file cannot be imported, or the class has no fit
                or no predict.
        """
        file, _, name = text.rpartition(":")
        path = Path(file).absolute()
        if path.suffix != ".py" or path_type(path) != "a file":
            found = path_type(path) if file else "no colon"
            raise ZooError(
                f"--method {text}",
                expected="FILE.py:Class",
                found=found,
                do="name a Python file and a class in it",
            )
        free = (
            path.stem.isidentifier()
            and path.stem not in sys.modules
            and importlib.util.find_spec(path.stem) is None
        )
        called = path.stem if free else f"method_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
        spec = importlib.util.spec_from_file_location(called, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # in sys.modules while its code runs: dataclasses and pickle look it up there
        modules = {called: module}
        try:
            with _beside(path, modules):
                spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # someone's code may raise anything
            raise _failed(path, error, "a Python file that can be imported") from error
        made = getattr(module, name, None)
        if not inspect.isclass(made):
            raise ZooError(
                path,
                expected=f"a class {name!r}",
                found="none of that name",
                do="name a class of the file after the colon",
            )
        missing = [verb for verb in ("fit", "predict") if not callable(getattr(made, verb, None))]
        if missing:
            do = "write fit(rows, y) and predict(rows)"
            raise ZooError(
                path,
                expected="a class with fit and predict",
                found=f"{name} without {' and '.join(missing)}",
                do=do,
            )
        return cls(path, made, modules)

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def is_classifier(self) -> bool:
        return issubclass(self.make, ClassifierMixin)

    @functools.cached_property
    def sha256(self) -> str:
        """Of its file and of those that it imports from beside it: when one changes, the method is tried
        again.
        """
        beside: set[str] = {
            os.path.realpath(module.__file__) for module in self.modules.values() if module.__file__
        }
        digests = [
            sha256_file(file) for file in (str(self.path), *sorted(beside - {os.path.realpath(self.path)}))
        ]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def fitted(self, rows: Weights, y: np.ndarray, seed: int) -> Any:
        """A new object that learned from rows.

        Raises:
            ZooError: if its code raises.
        """
        try:
            with _beside(self.path, self.modules):
                seeded = "random_state" in inspect.signature(self.make).parameters
                estimator = self.make(random_state=seed) if seeded else self.make()
                estimator.fit(rows, y)
        except (Exception, SystemExit) as error:  # someone's code may raise anything
            raise _failed(self.path, error, f"{self.name} to fit {len(rows)} rows") from error
        return estimator

    def told(self, estimator: Any, rows: Weights, known: np.ndarray) -> np.ndarray:
        """[N] predictions of rows, by one that learned from `known`: classes of it, or finite numbers.

        Raises:
            ZooError: if they are not, or not one for each row, or if its code raises.
        """
        try:
            with _beside(self.path, self.modules):
                told = np.asarray(estimator.predict(rows))
        except (Exception, SystemExit) as error:  # someone's code may raise anything
            raise _failed(self.path, error, f"{self.name} to predict {len(rows)} rows") from error
        numbers = known.dtype.kind == "f"
        legal = told.shape == (len(rows),)
        if legal and numbers:
            legal = told.dtype.kind in "fiu" and bool(
                (np.abs(told.astype(np.float64)) <= MAX_PREDICTION).all()
            )
        elif legal:  # a class of another type or length would be cut to one that is known
            classes = set(known.tolist())
            legal = all(
                isinstance(one, str | int | float | np.generic) and one in classes for one in told.tolist()
            )
        if not legal:
            expected = (
                f"an array of {len(rows)} {'finite numbers' if numbers else 'classes that it was given'}"
            )
            found = f"{told.dtype} of shape {told.shape}" + (
                ", not all finite" if told.dtype.kind == "f" and numbers else ""
            )
            found += f", as {reprlib.repr(told.tolist())}"
            raise ZooError(
                f"{self.name}.predict", expected=expected, found=found, do="give one prediction for each row"
            )
        return told.astype(known.dtype)


@dataclass
class _Reader:
    """A candidate behind the interface of our own readers: it is given places of rows."""

    candidate: Candidate
    weights: Weights
    seed: int

    def fit(
        self, training: np.ndarray, y: np.ndarray, validation: np.ndarray, y_validation: np.ndarray
    ) -> _Reader:
        places = np.concatenate([training, validation])
        self.known = np.concatenate([y, y_validation])
        self.estimator = self.candidate.fitted(_chosen(self.weights, places), self.known, self.seed)
        return self

    def predict(self, places: np.ndarray, positions: Any = None) -> np.ndarray:
        rows = _chosen(self.weights, places)
        return self.candidate.told(self.estimator, rows, np.unique(self.known))


def _chosen(weights: Weights, places: np.ndarray) -> Weights:
    """Copies of the weights of some rows: a method that changes what it is given changes nothing for the
    next.
    """
    return (
        weights[places]
        if isinstance(weights, np.ndarray)
        else [weights[place].copy() for place in places.tolist()]
    )


def evaluate(
    zoo: Zoo, candidate: Candidate, seeds: int, progress: Callable[[int], Any] = console.progress
) -> list[trials.Record]:
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
    experiment = Experiment(final, SnapshotSeries.of(final, final), Settings(), small)
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
            method = Method(
                candidate.name,
                WEIGHTS,
                lambda _, seed: _Reader(candidate, weights, seed),
                frozenset({"what"}),
            )
            found += experiment.run(method, task, seed, advance)
    return found


def _weights_of(zoo: Zoo, rows: Snapshots) -> Weights:
    """An array of one architecture, a list of several."""
    return zoo.weights(rows) if len(set(rows["architecture"])) == 1 else zoo.arrays(rows)


def _accuracy(
    final: Snapshots, group: study.Group, candidate: Candidate, weights: Weights, seed: int
) -> list[trials.Record]:
    """How well it predicts the accuracy of a group's networks."""
    truth, predicted = np.asarray(final["test_accuracy"], np.float64), np.full(len(final), np.nan)
    folds = group.folds(seed)
    for i, fold in enumerate(folds):
        reader = _Reader(candidate, weights, seed + i)
        reader.fit(fold.training, truth[fold.training], fold.validation, truth[fold.validation])
        predicted[fold.test] = reader.predict(fold.test)
    tested = np.flatnonzero(np.isfinite(predicted))
    trained_on, tested_on = (
        ("other folds", "each fold in turn") if group.small else ("train and validation", "test")
    )
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


def results_file(
    zoo: Zoo, called: str, candidate: Candidate, seeds: int, folder: Path, again: bool = False
) -> Path:
    """The file of a method's results; it is written only if it is missing, the method's file has changed, or
    the zoo has.

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
        "command": shlex.join(
            [
                "leaderboard.py",
                called,
                "--method",
                f"{candidate.path.name}:{candidate.name}",
                "--seeds",
                str(seeds),
            ]
        ),
        "settings": {"seeds": list(range(seeds)), "sha256": candidate.sha256},
    }
    if not again and _are_of(path, same):
        return path
    if path_type(path) not in ("nothing", "a file"):  # said before the work, not after it
        raise ZooError(
            path,
            expected="a file, or none",
            found=path_type(path),
            do="remove it, or choose another place (--out)",
        )
    results = {**same, "results": evaluate(zoo, candidate, seeds), "plots": []}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return path


def _are_of(path: Path, same: dict[str, Any]) -> bool:
    """Whether results are there, whole, and of the same method on the same zoo.

    What is damaged is made again.
    """
    try:
        contents = Results.read(path).contents
    except ZooError:
        return False
    return all(contents.get(name) == value for name, value in same.items())
