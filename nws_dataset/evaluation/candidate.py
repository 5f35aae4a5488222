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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import ClassifierMixin

from nws_dataset import console
from nws_dataset.errors import ZooError, reason
from nws_dataset.evaluation import commands
from nws_dataset.evaluation.accuracies import between, trials_by_seed
from nws_dataset.evaluation.folds import is_small
from nws_dataset.evaluation.inputs import WEIGHTS, Inputs, Settings
from nws_dataset.evaluation.recipes import property_trial
from nws_dataset.evaluation.results import Results, facts_of
from nws_dataset.evaluation.run import Kept, Method, Question, Trial, run
from nws_dataset.evaluation.tasks import Labelled, Task, dataset_tasks, tasks_of
from nws_dataset.files import atomic_write, path_type, sha256_file

if TYPE_CHECKING:
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
    do = "mend it, and run it alone to see more"
    return ZooError(path, expected=expected, found=reason(error) + at, do=do)


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
            found, do = path_type(path) if file else "no colon", "name a Python file and a class in it"
            raise ZooError(f"--method {text}", expected="FILE.py:Class", found=found, do=do)
        free = path.stem.isidentifier() and path.stem not in sys.modules
        free = free and importlib.util.find_spec(path.stem) is None
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
            do = "name a class of the file after the colon"
            raise ZooError(path, expected=f"a class {name!r}", found="none of that name", do=do)
        missing = [verb for verb in ("fit", "predict") if not callable(getattr(made, verb, None))]
        if missing:
            found, do = f"{name} without {' and '.join(missing)}", "write fit(rows, y) and predict(rows)"
            raise ZooError(path, expected="a class with fit and predict", found=found, do=do)
        return cls(path, made, modules)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as what loads it again: its modules are not importable."""
        return Candidate.load, (f"{self.path}:{self.name}",)

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
        files = {os.path.realpath(module.__file__) for module in self.modules.values() if module.__file__}
        beside = sorted(files - {os.path.realpath(self.path)})
        digests = [sha256_file(file) for file in (str(self.path), *beside)]
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

    def predicted(self, estimator: Any, rows: Weights, known: np.ndarray) -> np.ndarray:
        """[N] predictions of rows, by one that learned from `known`: classes of it, or finite numbers.

        Raises:
            ZooError: if they are not, or not one for each row, or if its code raises.
        """
        try:
            with _beside(self.path, self.modules):
                found = np.asarray(estimator.predict(rows))
        except (Exception, SystemExit) as error:  # someone's code may raise anything
            raise _failed(self.path, error, f"{self.name} to predict {len(rows)} rows") from error
        numbers = known.dtype.kind == "f"
        legal = found.shape == (len(rows),)
        if legal and numbers:
            legal = found.dtype.kind in "fiu" and bool(
                (np.abs(found.astype(np.float64)) <= MAX_PREDICTION).all()
            )
        elif legal:  # a class of another type or length would be cut to one that is known
            classes, kinds = set(known.tolist()), (str, int, float, np.generic)
            legal = all(isinstance(one, kinds) and one in classes for one in found.tolist())
        if not legal:
            expected = (
                f"an array of {len(rows)} {'finite numbers' if numbers else 'classes that it was given'}"
            )
            infinite = ", not all finite" if found.dtype.kind == "f" and numbers else ""
            shown = f"{found.dtype} of shape {found.shape}{infinite}, as {reprlib.repr(found.tolist())}"
            do = "give one prediction for each row"
            raise ZooError(f"{self.name}.predict", expected=expected, found=shown, do=do)
        return found.astype(known.dtype)


@dataclass
class CandidateModel:
    """A candidate as a model of the engine; it is given the models for validation to learn from too."""

    candidate: Candidate
    weights: Weights  # of all final networks
    seed: int

    def fit(self, training: Labelled, validation: Labelled) -> CandidateModel:
        self.known = np.concatenate([training.y, validation.y])
        rows = _chosen(self.weights, np.concatenate([training.indices, validation.indices]))
        self.estimator = self.candidate.fitted(rows, self.known, self.seed)
        return self

    def predict(self, networks: np.ndarray, question: Question) -> np.ndarray:
        return self.candidate.predicted(
            self.estimator, _chosen(self.weights, networks), np.unique(self.known)
        )


def _chosen(weights: Weights, networks: np.ndarray) -> Weights:
    """Copies of the weights of some networks: a method that changes what it is given changes nothing for the
    next.
    """
    return (
        weights[networks]
        if isinstance(weights, np.ndarray)
        else [weights[i].copy() for i in networks.tolist()]
    )


def trials_of(inputs: Inputs, candidate: Candidate, seeds: int) -> list[Trial]:
    """A method on the standard tasks of a zoo, with the balanced classes and splits of our own.

    Args:
        inputs: of the zoo.
        candidate: the method.
        seeds: repetitions, each with its own balancing, folds and random_state.
    """
    final = inputs.final
    method = Method(candidate.name, WEIGHTS, functools.partial(_model, inputs, candidate))
    trials: list[Trial] = []
    by_seed = [] if candidate.is_classifier else [dataset_tasks(final, seed)[0] for seed in range(seeds)]
    for of_dataset in zip(*by_seed, strict=True):
        first = of_dataset[0]
        labels: dict[str, Any] = {"between": between(first, ("train and validation", "test"))}
        labels |= {"num_train": len(first.folds[0].training) + len(first.folds[0].validation)}
        labels |= {"dataset": first.words}
        trials += trials_by_seed(inputs, "accuracy", method, of_dataset, range(seeds), **labels)
    for seed in range(seeds):
        tasks, _ = tasks_of(final, None, seed, small=is_small(len(final)))
        chosen = [task for task in tasks if task.is_number != candidate.is_classifier]
        trials += [property_trial(inputs, method, task, seed) for task in chosen]
    return trials


def _model(inputs: Inputs, candidate: Candidate, task: Task, seed: int) -> CandidateModel:
    return CandidateModel(candidate, inputs.weights, seed)


def results_file(
    zoo: Zoo,
    called: str,
    candidate: Candidate,
    folder: Path,
    *,
    seeds: int,
    again: bool = False,
    jobs: int | None = None,
    ray: str | None = None,
) -> Path:
    """folder / "method_<Class>.json", written only if it is missing, or the method's file or the zoo has
    changed; with `again` in any case. Seeds are repetitions; jobs and ray are those of `run`.

    Raises:
        ZooError: if the zoo is too small, or a prediction is not one for each row.
    """
    path = folder / f"method_{candidate.name}.json"
    method = f"{candidate.path.name}:{candidate.name}"
    same = {
        "zoo": facts_of(zoo, called),
        "command": shlex.join(["leaderboard.py", called, "--method", method, "--seeds", str(seeds)]),
        "settings": {"seeds": list(range(seeds)), "sha256": candidate.sha256},
    }
    if not again and _are_of(path, same):
        return path
    found = path_type(path)
    if found not in ("nothing", "a file"):  # said before the work, not after it
        do = "remove it, or choose another folder (--out)"
        raise ZooError(path, expected="a file, or none", found=found, do=do)
    inputs = Inputs.of(zoo, Settings())
    kept = Kept(folder / f"method_{candidate.name}.part", [inputs.digest, candidate.sha256])
    with commands.keeping(kept):
        trials = trials_of(inputs, candidate, seeds)
        outcomes = run(trials, console.progress, jobs=jobs or 1, kept=kept, ray=ray)
        records = [record.to_json() for outcome in outcomes for record in outcome.records]
        with atomic_write(path) as temporary:
            results = {**same, "results": records, "plots": []}
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
