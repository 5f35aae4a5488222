"""Evaluate a user's class with `fit(rows, y)` and `predict(rows)` on the standard tasks of a zoo.

A class that inherits scikit-learn's `ClassifierMixin` predicts the properties of the recipe that are classes;
any other class predicts the test accuracy and the properties that are numbers. `rows` are weights of final
networks: an array [N, P] for one architecture, or a list of [P_i] arrays. A class with `reads = "graph"` gets
a list of N `nws_dataset.Graph` views instead. They are our training and validation models together; to choose
settings, a method sets a part of them aside.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib.util
import inspect
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
from nws_dataset.evaluation.inputs import GRAPH, WEIGHTS, Inputs, Settings
from nws_dataset.evaluation.results import Results, facts_of, write_results
from nws_dataset.evaluation.run import Kept, Method, Question, Trial, run
from nws_dataset.evaluation.tasks import LABEL, Labelled, Task, label_tasks, tasks_of
from nws_dataset.experiments import commands
from nws_dataset.experiments.accuracies import between, tasks_by_dataset, trials_by_seed
from nws_dataset.experiments.recipes import property_trial
from nws_dataset.files import check_output_file, path_type, sha256_file
from nws_dataset.views.graph import Graph

if TYPE_CHECKING:
    from nws_dataset.reading.zoo import Zoo

Given = np.ndarray | list[np.ndarray] | list[Graph]  # rows or graphs
ROWS = "rows"  # what a class reads, if its attribute `reads` does not say GRAPH
MAX_PREDICTION = float(np.finfo(np.float32).max)  # the squares of larger ones are infinite


@contextlib.contextmanager
def _running(path: Path, own: dict[str, ModuleType], expected: str) -> Iterator[None]:
    """Run a method's code, whose imports find the modules in its folder but none of another method.

    Args:
        path: of the method's file.
        own: the method's modules; new ones that it imports from its folder are added.
        expected: what should succeed, for the ZooError, which names the failing line of the file.
    """
    folder = os.path.realpath(path.parent)
    before = set(sys.modules)
    sys.modules.update({name: module for name, module in own.items() if name not in before})
    sys.path.insert(0, folder)
    try:
        yield
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if os.path.dirname(os.path.realpath(frame.filename)) == folder]
        at = f" in line {theirs[-1].lineno} of {os.path.basename(theirs[-1].filename)}" if theirs else ""
        do = "fix it, and run it alone to see more"
        raise ZooError(path, expected=expected, found=reason(error) + at, do=do) from error
    finally:
        with contextlib.suppress(ValueError):  # the method's code may have removed it
            sys.path.remove(folder)
        for name in set(sys.modules) - before:
            # not every module below the folder is the method's: there may be an environment
            top = name.partition(".")[0]
            homes = (os.path.join(folder, f"{top}.py"), os.path.join(folder, top, ""))
            file = getattr(sys.modules[name], "__file__", None)
            is_beside = isinstance(file, str) and os.path.realpath(file).startswith(homes)
            if name in own or (top not in before and is_beside):
                own[name] = sys.modules.pop(name)


@dataclass(frozen=True)
class Candidate:
    """A user's class."""

    path: Path
    make: Any  # the class; its parameter random_state, if any, gets the seed
    modules: dict[str, ModuleType]  # its own, and those it imported from its folder

    @classmethod
    def load(cls, text: str) -> Candidate:
        """Import a class given as "FILE.py:Class", as Python does when it runs the file.

        Raises:
            ZooError: if that fails, or the class lacks fit or predict.
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
        # in sys.modules while its code runs, where dataclasses and pickle look it up
        modules = {called: module}
        with _running(path, modules, "a Python file that can be imported"):
            spec.loader.exec_module(module)
        made = getattr(module, name, None)
        if not inspect.isclass(made):
            do = "name a class of the file after the colon"
            raise ZooError(path, expected=f"a class {name!r}", found="none of that name", do=do)
        missing = [verb for verb in ("fit", "predict") if not callable(getattr(made, verb, None))]
        if missing:
            found, do = f"{name} without {' and '.join(missing)}", "write fit(rows, y) and predict(rows)"
            raise ZooError(path, expected="a class with fit and predict", found=found, do=do)
        reads = getattr(made, "reads", ROWS)
        if reads not in (ROWS, GRAPH):
            expected, do = f'reads = "{ROWS}" or "{GRAPH}"', "choose one of them, or leave it out"
            raise ZooError(path, expected=expected, found=reprlib.repr(reads), do=do)
        return cls(path, made, modules)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a call of `load`, as the class's module is not importable."""
        return Candidate.load, (f"{self.path}:{self.name}",)

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def is_classifier(self) -> bool:
        return issubclass(self.make, ClassifierMixin)

    @property
    def reads_graphs(self) -> bool:
        """Whether it takes graphs instead of rows."""
        return bool(getattr(self.make, "reads", ROWS) == GRAPH)

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of its file and those it imports from its folder; if it changes, the method is run again."""
        files = {os.path.realpath(module.__file__) for module in self.modules.values() if module.__file__}
        beside = sorted(files - {os.path.realpath(self.path)})
        digests = [sha256_file(file) for file in (str(self.path), *beside)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclass
class CandidateModel:
    """A new object of a user's class as a `MethodModel`; it learns from the validation models too.

    Both methods raise a ZooError if the class raises an exception.
    """

    candidate: Candidate
    given: Given  # of all final networks
    seed: int

    def fit(self, training: Labelled, validation: Labelled) -> CandidateModel:
        candidate, self.known = self.candidate, np.concatenate([training.y, validation.y])
        rows = _chosen(self.given, np.concatenate([training.indices, validation.indices]))
        with _running(candidate.path, candidate.modules, f"{candidate.name} to fit {len(rows)} rows"):
            seeded = "random_state" in inspect.signature(candidate.make).parameters
            self.estimator = candidate.make(random_state=self.seed) if seeded else candidate.make()
            self.estimator.fit(rows, self.known)
        return self

    def predict(self, networks: np.ndarray, question: Question) -> np.ndarray:
        """Predict known classes or finite numbers; raises a ZooError if the class predicts anything else."""
        candidate, rows = self.candidate, _chosen(self.given, networks)
        with _running(candidate.path, candidate.modules, f"{candidate.name} to predict {len(rows)} rows"):
            found = np.asarray(self.estimator.predict(rows))
        numbers = self.known.dtype.kind == "f"
        if found.shape != (len(rows),):
            legal = False
        elif numbers:
            legal = found.dtype.kind in "fiu" and (np.abs(found.astype(float)) <= MAX_PREDICTION).all()
        else:  # a cast could turn another type or a longer string into a known class
            classes, kinds = set(self.known.tolist()), (str, int, float, np.generic)
            legal = all(isinstance(one, kinds) and one in classes for one in found.tolist())
        if not legal:
            words = "finite numbers" if numbers else "classes that it was given"
            infinite = ", not all finite" if found.dtype.kind == "f" and numbers else ""
            shown = f"{found.dtype} of shape {found.shape}{infinite}, as {reprlib.repr(found.tolist())}"
            expected, do = f"an array of {len(rows)} {words}", "give one prediction for each row"
            raise ZooError(f"{candidate.name}.predict", expected=expected, found=shown, do=do)
        return found.astype(self.known.dtype)


def _chosen(given: Given, networks: np.ndarray) -> Given:
    """Copy what is given of some networks, as a method may change its input."""
    if isinstance(given, np.ndarray):
        return given[networks]
    return [copy.deepcopy(given[i]) for i in networks.tolist()]


def trials_of(inputs: Inputs, candidate: Candidate, seeds: int) -> list[Trial]:
    """The trials of a method on the standard tasks of a zoo, with our balanced classes and splits.

    Each of the `seeds` repetitions has its own balancing, folds and random_state.
    """
    final = inputs.final

    def make(task: Task, seed: int) -> CandidateModel:
        given = inputs.graphs if candidate.reads_graphs else inputs.weights
        return CandidateModel(candidate, given, seed)

    method = Method(candidate.name, WEIGHTS, make)
    trials: list[Trial] = []
    for of_dataset in () if candidate.is_classifier else tasks_by_dataset(inputs, range(seeds)):
        first = of_dataset[0]
        labels: dict[str, Any] = between(first, ("train and validation", "test"))
        num_train = len(first.folds[0].training) + len(first.folds[0].validation)
        labels |= {"dataset": first.words, "num_train": num_train}
        trials += trials_by_seed(inputs, "accuracy", method, of_dataset, range(seeds), **labels)
    for seed in range(seeds):
        shown = label_tasks(final, inputs.datasets, seed) if candidate.is_classifier else []
        trials += [property_trial(inputs, method, task, seed, (LABEL,)) for task in shown]
        tasks, _ = tasks_of(final, None, seed)
        chosen = [task for task in tasks if task.is_number != candidate.is_classifier]
        trials += [property_trial(inputs, method, task, seed) for task in chosen]
    return trials


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
    """The path of "method_<Class>.json" in a folder, written anew if the method or the zoo has changed.

    `seeds` is the number of repetitions; `again` always writes it anew; `jobs` and `ray` are those of `run`.
    """
    path = folder / f"method_{candidate.name}.json"
    method = f"{candidate.path.name}:{candidate.name}"
    same = {
        "zoo": facts_of(zoo, called),
        "command": shlex.join(["leaderboard.py", called, "--method", method, "--seeds", str(seeds)]),
        "settings": {"seeds": list(range(seeds)), "sha256": candidate.sha256},
    }
    with contextlib.suppress(ZooError):  # a damaged file is written anew
        if not again and Results.read(path).contents.items() >= same.items():
            return path
    check_output_file(path)
    inputs = Inputs.of(zoo, Settings())
    kept = Kept(folder / f"method_{candidate.name}.part", [inputs.digest, candidate.sha256])
    with commands.keeping(kept):
        trials = trials_of(inputs, candidate, seeds)
        outcomes = run(trials, console.progress, jobs=jobs or 1, kept=kept, ray=ray)
        records = [record for outcome in outcomes for record in outcome.records]
        write_results(path, {**same, "results": records, "plots": []})
    return path
