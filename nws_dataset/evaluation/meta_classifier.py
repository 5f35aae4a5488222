"""What the weights tell of their training (optimizer, learning rate, ...), when, and where: the experiments
of Eilertsen et al. 2020.

Every property is read off the weights of models held out, by the deep meta-classifier, on slices and on
random units, and by linear SVM and gradient boosting on statistics. Beside them stand two who read no
weights: chance, and the best guess from the architecture alone. Where architectures differ in the values that
they were trained with, it gives a property away, and only what goes beyond its guess was read off the
training.

python scripts/evaluate_meta_classifier.py ZOO
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import joblib
import numpy as np

from nws_dataset import __version__, console
from nws_dataset.console import Command, Interrupted
from nws_dataset.errors import ZooError, reason
from nws_dataset.evaluation import report
from nws_dataset.evaluation.folds import NUM_FOLDS, check_models, describe, is_small
from nws_dataset.evaluation.properties import (
    PROPERTIES,
    Task,
    constant_guess,
    guesses_from_architecture,
    tasks_of,
)
from nws_dataset.evaluation.readers import (
    SLICE,
    SLICE_STATISTICS,
    SMALL_SETTINGS,
    SNAPSHOTS,
    Inputs,
    Method,
    Settings,
    methods_of,
    row_method,
)
from nws_dataset.files import atomic_write, path_type, read_json

if TYPE_CHECKING:
    from nws_dataset.reading.snapshots import Snapshots

EXPERIMENTS = ("what", "when", "where", "layers")
CURVE_POINTS = 8  # snapshots at which held-out models are tested: when
NUM_POSITIONS = 16  # at which slices of their rows are: where
KEPT = "meta_classifier.part"  # folder of what is done, until all is
SETTINGS_HELP = "Network and training.  [default: small under 1,000 models, else paper]"


@dataclass(frozen=True)
class SnapshotSeries:
    """The snapshots of a zoo [N] and their models [M], which are places among the final rows."""

    model: np.ndarray  # [N] each snapshot's model
    snapshot: np.ndarray  # [N] 1..last
    last: np.ndarray  # [N] num_snapshots of its model

    @classmethod
    def of(cls, rows: Snapshots, final: Snapshots) -> SnapshotSeries:
        place = {model: i for i, model in enumerate(final["model_id"])}
        return cls(
            np.array([place[name] for name in rows["model_id"]]), rows["snapshot"], rows["num_snapshots"]
        )

    def places(self, models: np.ndarray, which: str) -> np.ndarray:
        """Places of the final, later half ("late") or all snapshots of models."""
        wanted = {
            "final": self.snapshot == self.last,
            "late": 2 * self.snapshot > self.last,
            "all": self.snapshot > 0,
        }[which]
        return np.flatnonzero(np.isin(self.model, models) & wanted)

    def at(self, models: np.ndarray, number: int) -> np.ndarray:
        """Places for models, in their order, at a snapshot number of the longest training; at the same part
        of a shorter one.
        """
        last = np.zeros(self.model.max() + 1, dtype=np.intp)
        last[self.model] = self.last
        wanted = 1 + np.rint((number - 1) * (last - 1) / max(1, self.last.max() - 1)).astype(np.intp)
        places = np.flatnonzero((self.snapshot == wanted[self.model]) & np.isin(self.model, models))
        by_model = dict(zip(self.model[places], places, strict=True))
        return np.array([by_model[model] for model in models], dtype=np.intp)

    @property
    def curve(self) -> list[int]:
        """Numbers at which a curve has its points; the last is the final one."""
        return np.unique(np.linspace(1, self.last.max(), CURVE_POINTS).round().astype(int)).tolist()


@dataclass(frozen=True)
class Question:
    """What a fitted reader is asked: to read models at a snapshot, at one position of their rows or at all
    that it averages over.
    """

    experiment: str
    snapshot: int
    position: float | None = None

    @property
    def asked(self) -> tuple[int, float | None]:
        """What a reader is asked for, once, though several experiments tell of it."""
        return self.snapshot, self.position


@dataclass(frozen=True)
class Experiment:
    """A zoo as all methods see it."""

    final: Snapshots  # [M]
    snapshots: SnapshotSeries  # [N]
    settings: Settings
    small: bool  # cross-validated

    def questions(self, method: Method) -> list[Question]:
        """All that a method is asked."""
        numbers, asked = self.snapshots.curve, method.experiments
        questions = [Question("what", numbers[-1])] if "what" in asked else []
        questions += [Question("when", number) for number in numbers if "when" in asked]
        if "layers" in asked:
            questions.append(Question("where", numbers[-1]))
        if "where" in asked and self.positions is not None:
            questions += [Question("where", numbers[-1], position) for position in self.positions]
        return questions

    @property
    def positions(self) -> list[float] | None:
        """Where single slices are asked for; None where rows are as short as a slice."""
        longest = self.final["num_weights"].max()
        return np.linspace(0, 1, NUM_POSITIONS).tolist() if longest > self.settings.slice_length else None

    def run(
        self, method: Method, task: Task, seed: int, advance: Callable[[str], None]
    ) -> Iterator[dict[str, Any]]:
        """Fit a method in all folds of a task, ask it, and give the records.

        Args:
            method: the method.
            task: the property.
            seed: of the method.
            advance: called after every fold.

        Yields:
            A flat record for every question, for all held-out models and for those that converged.
        """
        questions = self.questions(method)
        predicted = {question.asked: np.empty_like(task.truth) for question in questions}
        for i, fold in enumerate(task.folds):
            reader = method.make(task, seed + i)
            training, validation = (self._training(task, part) for part in (fold.training, fold.validation))
            reader.fit(*training, *validation)
            for (snapshot, position), answers in predicted.items():
                places = self.snapshots.at(task.models[fold.test], snapshot)
                answers[fold.test] = reader.predict(places, None if position is None else [position])
            advance(f"{task.name}, {method.name} on {method.input}, fold {i + 1}")
        for question in questions:
            yield from self._records(question, method, task, predicted[question.asked], seed)

    def _training(self, task: Task, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of the snapshots of a part of a task's models, and what is true of them."""
        places = self.snapshots.places(task.models[part], self.settings.snapshots)
        truth = dict(zip(task.models.tolist(), task.truth, strict=True))
        return places, np.array(
            [truth[model] for model in self.snapshots.model[places].tolist()], dtype=task.truth.dtype
        )

    def _records(
        self, question: Question, method: Method, task: Task, predicted: np.ndarray, seed: int
    ) -> Iterator[dict[str, Any]]:
        tested = np.sort(np.concatenate([fold.test for fold in task.folds]))
        converged = np.asarray(self.final["converged"], dtype=bool)[task.models]
        guessed = guesses_from_architecture(
            np.asarray(self.final["architecture"])[task.models], task.truth, task.folds
        )
        constant = np.empty_like(task.truth)
        for fold in task.folds:
            constant[fold.test] = constant_guess(task.truth[fold.test], task.truth[fold.training])
        held_out = "cross-validation over models" if self.small else "the zoo's splits"
        data = ", ".join(sorted(set(self.final["dataset"][task.models])))
        pairs = np.column_stack([task.truth, predicted])[tested].round(6).tolist() if task.is_number else []
        for nets, part in (("all", tested), ("converged", tested[converged[tested]])):
            if len(part):
                yield {
                    "experiment": question.experiment,
                    "target": task.name,
                    "task": task.words,
                    "method": method.name,
                    "input": method.input,
                    "nets": nets,
                    "trained_on": f"{SNAPSHOTS[self.settings.snapshots]}, {held_out}, {data}",
                    "tested_on": f"{'one snapshot' if question.experiment == 'when' else 'final snapshots'}, "
                    f"{held_out}, {data}",
                    "num_train": round(np.mean([len(fold.training) for fold in task.folds])),
                    "num_test": len(part),
                    "seed": seed,
                    **(mistaken if task.is_number else told)(
                        task.truth[part], predicted[part], guessed[part], constant[part], seed
                    ),
                    **({} if question.experiment == "what" else {"snapshot": question.snapshot}),
                    **({} if question.position is None else {"position": question.position}),
                    **({} if method.layer is None else {"layer": method.layer}),
                    **(
                        {"pairs": pairs}
                        if task.is_number and nets == "all" and question.experiment == "what"
                        else {}
                    ),
                }


def told(
    truth: np.ndarray, predicted: np.ndarray, guessed: np.ndarray, constant: np.ndarray, seed: int
) -> dict[str, Any]:
    """Accuracy on held-out models [M]; chance is the share of the most frequent class among them."""
    scores = report.accuracy(truth, predicted)
    return {
        "metric": "accuracy",
        "value": scores["accuracy"],
        "interval_95": scores["interval_95"],
        "chance": float(np.unique(truth, return_counts=True)[1].max() / len(truth)),
        "from_architecture": report.accuracy(truth, guessed)["accuracy"],
    }


def mistaken(
    truth: np.ndarray, predicted: np.ndarray, guessed: np.ndarray, constant: np.ndarray, seed: int
) -> dict[str, Any]:
    """Mean absolute error on held-out models [M]; chance is that of the training models' median."""

    def error(true: np.ndarray, told: np.ndarray) -> float:
        return float(np.abs(true - told).mean())

    return {
        "metric": "mae",
        "value": error(truth, predicted),
        "interval_95": report.bootstrap_interval(error, truth, predicted, seed),
        "chance": error(truth, constant),
        "from_architecture": error(truth, guessed),
    }


@dataclass(frozen=True)
class Plan:
    """All that is fitted and asked; every process of a run works out the same."""

    zoo: Any = field(compare=False)
    digest: str  # of the zoo's files
    settings: Settings
    properties: tuple[str, ...] | None
    experiments: tuple[str, ...]
    seeds: int
    num_folds: int  # of a small zoo
    rows: bool  # whether whole rows too

    @functools.cached_property
    def experiment(self) -> Experiment:
        final = self.zoo.filter(is_final=True)
        check_models(self.zoo.name, final["split"])
        return Experiment(
            final, SnapshotSeries.of(self.zoo.filter(), final), self.settings, is_small(len(final))
        )

    @functools.cached_property
    def architectures(self) -> dict[str, int]:
        """Architecture -> its models, the most frequent one first."""
        names, counts = np.unique(self.experiment.final["architecture"].astype(str), return_counts=True)
        return {str(names[i]): int(counts[i]) for i in np.argsort(-counts, kind="stable")}

    def tasks(self, seed: int) -> tuple[list[Task], dict[str, str]]:
        """The properties that can be told, and why others cannot."""
        return tasks_of(
            self.experiment.final,
            self.properties,
            seed,
            small=self.experiment.small,
            num_folds=self.num_folds,
        )

    @functools.cached_property
    def work(self) -> list[tuple[Method, Task, int]]:
        """Every method with every task and seed."""
        final, small = self.experiment.final, self.experiment.small
        inputs = Inputs(self.zoo, self.zoo.filter(), self.settings)
        work = []
        most, count = next(iter(self.architectures.items()))
        for seed in range(self.seeds):
            work += [
                (method, task, seed)
                for task in self.tasks(seed)[0]
                for method in methods_of(inputs, self.experiments)
            ]
            if self.rows and count >= MOST_ALIKE:
                alike = np.flatnonzero(final["architecture"] == most)
                tasks, _ = tasks_of(final, None, seed, small=small, models=alike, num_folds=self.num_folds)
                method = row_method(inputs, int(final["num_weights"][alike[0]]), self.experiments)
                work += [
                    (method, task, seed)
                    for task in tasks
                    if self.properties is None or task.name in self.properties
                ]
        return work

    def records(self, number: int, advance: Callable[[str], None]) -> list[dict[str, Any]]:
        """Do one piece of the work."""
        method, task, seed = self.work[number]
        return list(self.experiment.run(method, task, seed, advance))

    def key(self, number: int) -> str:
        """A name of a piece of the work that differs wherever its records may."""
        method, task, seed = self.work[number]
        facts = [
            __version__,
            self.digest,
            dataclasses.asdict(self.settings),
            method.name,
            method.input,
            sorted(method.experiments),
            seed,
        ]
        return _digest([*facts, task.name, task.models.tolist(), [fold.test.tolist() for fold in task.folds]])


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _shared(plan: Plan) -> Plan:
    """The first of equal plans, so that a process works it out once."""
    return plan


def _piece(plan: Plan, number: int) -> tuple[int, list[dict[str, Any]]]:
    """A piece of the work, in a process of its own."""
    return number, _shared(plan).records(number, lambda words: None)


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


def _pieces(
    plan: Plan, numbers: Sequence[int], jobs: int, advance: Callable[[str], None]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Pieces of the work, as they are done."""
    if jobs == 1:
        yield from ((number, plan.records(number, advance)) for number in numbers)
        return
    calls = (joblib.delayed(_piece)(dataclasses.replace(plan), number) for number in numbers)
    with _interrupts_ignored():
        done = joblib.Parallel(jobs, return_as="generator_unordered", pre_dispatch=jobs)(calls)
    for number, records in done:
        yield number, records
        _tell(plan, number, advance)


def _keep(file: Path, records: list[dict[str, Any]]) -> None:
    """The records of a piece of the work, with their digest: what is read again is what was written."""
    text = json.dumps(records)
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps({"sha256": _digest(text), "records": text}), encoding="utf-8")


def _kept(file: Path) -> list[dict[str, Any]] | None:
    """The records of an interrupted run; None where they are missing or damaged, so that they are made
    again.
    """
    if path_type(file) == "nothing":
        return None
    try:
        kept = read_json(file, "records")
    except ZooError:
        return None
    if (
        not isinstance(kept, dict)
        or not isinstance(kept.get("records"), str)
        or kept.get("sha256") != _digest(kept["records"])
    ):
        return None
    return json.loads(kept["records"])


def _tell(plan: Plan, number: int, advance: Callable[[str], None]) -> None:
    """Note that all of a piece is done."""
    method, task, _ = plan.work[number]
    for fold in range(len(task.folds)):
        advance(f"{task.name}, {method.name} on {method.input}, fold {fold + 1}")


def evaluate(
    zoo: Any,
    settings: Settings,
    properties: Sequence[str] | None = None,
    experiments: Sequence[str] = EXPERIMENTS,
    *,
    seeds: int = 3,
    num_folds: int = NUM_FOLDS,
    rows: bool = False,
    jobs: int = 1,
    kept: Path | None = None,
    progress: Callable[[int], Any] = console.progress,
) -> dict[str, Any]:
    """Fit and test all methods on all properties.

    Args:
        zoo: a `Zoo`.
        settings: of the meta-classifier.
        properties: see `tasks_of`.
        experiments: of EXPERIMENTS.
        seeds: repetitions, each with its own balancing, folds and networks.
        num_folds: of the cross-validation of a small zoo.
        rows: also the meta-classifier on whole rows, of the models of the most frequent architecture.
        jobs: processes that share the work, and the cores.
        kept: folder in which records are kept as they come, and from which those of an interrupted run are
            taken.
        progress: gives a context manager whose value is called with words after each fit.

    Returns:
        What the JSON file holds: "results", the records; "skipped", why properties could not be told;
        "held_out", "layers".
    """
    started = time.monotonic()
    digest = _digest({path: entry.sha256 for path, entry in zoo.manifest.files.items()})
    plan = Plan(
        zoo,
        digest,
        settings,
        None if properties is None else tuple(properties),
        tuple(experiments),
        seeds,
        num_folds,
        rows,
    )
    folds = [len(task.folds) for _, task, _ in plan.work]
    found: dict[int, list[dict[str, Any]]] = {}
    files = {number: kept / f"{plan.key(number)}.json" for number in range(len(folds))} if kept else {}
    with progress(sum(folds)) as advance:
        for number, file in files.items():
            records = _kept(file)
            if records is not None:
                found[number] = records
                _tell(plan, number, advance)
        missing = [number for number in range(len(folds)) if number not in found]
        for number, records in _pieces(plan, missing, max(1, min(jobs, len(missing))), advance):
            found[number] = records
            if number in files:
                _keep(files[number], records)
    final = plan.experiment.final
    return {
        "held_out": describe(folds),
        "results": [record for number in range(len(folds)) for record in found[number]],
        "skipped": plan.tasks(seeds - 1)[1],
        "layers": layer_borders(zoo, final, settings.slice_length) if len(plan.architectures) == 1 else {},
        "seconds": round(time.monotonic() - started, 1),
    }


MOST_ALIKE = 20  # models of one architecture that whole rows need at least


def layer_borders(zoo: Any, final: Snapshots, slice_length: int) -> dict[str, float]:
    """Layer -> its first weight, as a part of the row, in a zoo of one architecture."""
    layout = zoo.layout(final[0])
    return {
        layer: min(s.offset for s in layout.tensors if s.layer == layer) / layout.num_weights
        for layer in layout.layers
    }


def table_of(results: Mapping[str, Any], name: str) -> console.Table:
    """What: for each property a row for all held-out models, and one for those that converged."""
    return _table(
        results,
        f"What the weights tell of their training: {name}",
        [r for r in results["results"] if r["experiment"] == "what"],
    )


def places_table(results: Mapping[str, Any], name: str) -> console.Table:
    """Where: the same by part and by layer."""
    records = [r for r in results["results"] if r["experiment"] == "where" and "layer" in r]
    return _table(results, f"Where the weights tell it: {name}", records)


def _table(results: Mapping[str, Any], title: str, records: Sequence[Mapping[str, Any]]) -> console.Table:
    """A row for each property and kind of nets, a column for each method and input."""
    means = report.over_seeds(records)
    methods = list(dict.fromkeys((r["method"], r["input"]) for r in means))
    rows: list[tuple[str, ...]] = []
    for target, nets in dict.fromkeys((r["target"], r["nets"]) for r in means):
        of_row = {(r["method"], r["input"]): r for r in means if (r["target"], r["nets"]) == (target, nets)}
        first = next(iter(of_row.values()))
        given = [_text(first, first[key]) for key in ("chance", "from_architecture")]
        cells = [
            _text(of_row[m], of_row[m]["value"], of_row[m]["spread"] or None) if m in of_row else "-"
            for m in methods
        ]
        rows.append((first["task"] if nets == "all" else "", f"{nets} {first['num_test']}", *given, *cells))
    rows += [
        (f"{name} (skipped)", reason, *["-"] * (2 + len(methods)))
        for name, reason in results["skipped"].items()
    ]
    columns = (
        "property",
        "held-out models",
        "chance",
        "from the architecture",
        *(f"{m}: {i}" for m, i in methods),
    )
    return console.Table(title, columns, rows)


def _text(record: Mapping[str, Any], value: float, spread: float | None = None) -> str:
    """A value, with the spread over seeds if there is one: accuracies in percent, errors in the number's
    unit.
    """
    percent = record["metric"] == "accuracy"
    parts = [f"{100 * v:.1f}" if percent else f"{v:.3g}" for v in (value, spread) if v is not None]
    return " ± ".join(parts) + " %" * percent


def notes_of(results: Mapping[str, Any], settings: Settings, seeds: int) -> list[str]:
    """How the numbers were taken, for the Markdown file and the terminal."""
    if not results["results"]:
        return ["Nothing could be tested: build more models."]
    kind = (
        "the paper's network" if settings.width == 1 else (f"the paper's network, {settings.width:g} as wide")
    )
    if settings.linear_below is not None:
        kind += f", on asinh(weight / {settings.linear_below:g})"
    more = f", or as many more as make {settings.least_steps:,} steps" if settings.least_steps else ""
    return [
        f"Held out: {results['held_out']}. Mean over {seeds} seeds, ± their standard deviation; "
        f"{results['seconds']:.0f} s.",
        f"All methods are trained on {SNAPSHOTS[settings.snapshots]} of the other models and tested on "
        "final ones. A tenth of the training"
        " models, or the zoo's validation split, chooses the epoch of the network, the C of the SVM and "
        "the rounds of boosting.",
        f"Deep meta-classifier: {kind}, {settings.epochs} epochs{more}, slices of "
        f"{settings.slice_length:,} weights; a model's prediction"
        f" averages over {settings.slices_per_prediction} slices, and so do those from the statistics of "
        "the same slices. A row that is"
        " shorter is one slice, filled with zeros. Random units: in place of a slice, of each tensor the "
        "weights of a few hidden units,"
        " those chosen at random each time; their order does not change what a network computes, and so "
        "nothing can be learned by heart.",
        "Models were dropped until each value has equally many: chance is one over the number of values, "
        "and among converged models the"
        " share of the most frequent value. Learning rates: mean absolute error, lower is better, of log10 "
        "where the recipe draws it so;"
        " chance is the training models' median.",
        "From the architecture: the most frequent value among the training models of the same "
        "architecture. Where this is well above"
        " chance, architectures differ in their values, and only accuracy beyond it was read off what "
        "training left in the weights.",
        "The paper's figures give no numbers to stand beside these; its network and settings are "
        "--settings paper.",
    ]


def plots_of(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The figures, by name."""
    from nws_dataset.evaluation import plots

    records = [r for r in report.over_seeds(results["results"]) if r["nets"] == "all"]
    accuracies = [r for r in records if r["metric"] == "accuracy"]
    by = {e: [r for r in accuracies if r["experiment"] == e] for e in EXPERIMENTS}
    slices = (SLICE, SLICE_STATISTICS)
    figures: dict[str, Any] = {}
    if by["what"]:
        figures["accuracy"] = plots.accuracy_bars(
            by["what"], f"What the weights tell of their training: {name}"
        )
    if by["when"]:
        figures["snapshots"] = plots.accuracy_curves(
            by["when"], "snapshot", f"When the weights tell it: {name}"
        )
    positions = [r for r in by["where"] if "position" in r and r["input"] in slices]
    if positions:
        figures["positions"] = plots.accuracy_curves(
            positions, "position", f"Where the weights tell it: {name}", results["layers"]
        )
    layers = [r for r in by["where"] if "layer" in r]
    if layers:
        figures["layers"] = plots.accuracy_by_layer(layers, f"Which layers tell it: {name}")
    numbers = [
        r
        for r in results["results"]
        if r["nets"] == "all" and r["experiment"] == "what" and "pairs" in r and r["seed"] == 0
    ]
    if numbers:
        figures["learning_rate"] = plots.told_against_true(
            numbers, f"The learning rate, read off the weights: {name}"
        )
    return figures


def _listed(legal: Sequence[str]) -> Callable[[click.Context, click.Parameter, str | None], list[str] | None]:
    """A click callback: comma-separated names, of the legal ones if there are such."""

    def split(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
        names = value.split(",") if value else None
        for name in names or ():
            if legal and name not in legal:
                raise ZooError(
                    f"--{parameter.name}",
                    expected=f"some of {','.join(legal)}",
                    found=repr(name),
                    do="choose among them",
                )
        return names

    return split


@click.command(cls=Command)
@click.argument("zoo")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help=report.OUT_HELP)
@click.option(
    "--experiments",
    default="what,when",
    show_default=True,
    callback=_listed(EXPERIMENTS),
    help=f"Some of {','.join(EXPERIMENTS)}.",
)
@click.option(
    "--properties",
    callback=_listed(()),
    help=f"Columns to tell.  [default: {','.join(PROPERTIES)}, where they vary]",
)
@click.option(
    "--seeds", default=3, show_default=True, type=click.IntRange(1, report.MAX_SEEDS), help="Repetitions."
)
@click.option(
    "--folds",
    default=NUM_FOLDS,
    show_default=True,
    type=click.IntRange(2),
    help="Of the cross-validation of a small zoo.",
)
@click.option(
    "--rows", is_flag=True, help="Also whole rows, of the models of the most frequent architecture."
)
@click.option("--settings", "name", type=click.Choice(["paper", "small"]), help=SETTINGS_HELP)
@click.option("--epochs", type=click.IntRange(1), help="Just as many, in place of the settings'.")
@click.option(
    "--snapshots",
    type=click.Choice(list(SNAPSHOTS)),
    help="Snapshots to train on, in place of the settings'.",
)
@click.option("--device", default="cpu", show_default=True, help="Torch device.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Processes that share the work.  [default: one a core; one on a GPU]",
)
def main(
    zoo: str,
    out: Path | None,
    experiments: list[str],
    properties: list[str] | None,
    seeds: int,
    folds: int,
    rows: bool,
    name: str | None,
    epochs: int | None,
    snapshots: str | None,
    device: str,
    jobs: int | None,
) -> None:
    """Read properties of the training off the weights of ZOO, a folder that nws-build wrote.

    Prints how well the deep meta-classifier, and linear SVM and boosting on statistics, tell them of held-out
    models, beside chance and the best guess from the architecture alone, and writes it as JSON, Markdown and
    plots. What: from final snapshots. When: by snapshot. Where: by position in the row. Layers: by part, and
    by layer. A run that was interrupted goes on where it stopped.
    """
    from nws_dataset.reading.zoo import Zoo

    report.be_patient()
    opened, called = Zoo(zoo), report.name_of(zoo)
    small = is_small(len(opened.filter(is_final=True)))
    settings = SMALL_SETTINGS if name == "small" or (name is None and small) else Settings()
    changes: dict[str, Any] = {
        "epochs": epochs,
        "least_steps": epochs and 0,
        "snapshots": snapshots,
        "device": device,
    }
    settings = dataclasses.replace(
        settings, **{key: value for key, value in changes.items() if value is not None}
    )
    folder = report.results_folder(zoo, out)
    report.check_folder(folder)
    report.check_device(device)
    kept, processes = folder / KEPT, jobs or (joblib.cpu_count() if device == "cpu" else 1)
    try:
        told = evaluate(
            opened,
            settings,
            properties,
            experiments,
            seeds=seeds,
            num_folds=folds,
            rows=rows,
            jobs=processes,
            kept=kept,
        )
    except KeyboardInterrupt as error:
        words = (
            f"what is done is kept in {kept}: run the same command to go on"
            if any(kept.glob("*.json"))
            else "nothing was done yet"
        )
        raise Interrupted(f"interrupted; {words}") from error
    results = {
        "experiment": "meta_classifier",
        "zoo": report.facts_of(opened, called),
        "command": report.command_line(),
        "settings": dataclasses.asdict(settings),
        **told,
    }
    tables = (
        [table_of(results, called), places_table(results, called)]
        if "layers" in experiments
        else [table_of(results, called)]
    )
    report.conclude(
        results,
        folder,
        tables[0],
        notes_of(results, settings, seeds),
        lambda: plots_of(results, called),
        tables[1:],
    )
    if path_type(kept) != "nothing":  # where no property can be told, nothing was kept
        try:
            shutil.rmtree(kept)
        except OSError as error:
            do = "remove it: the results are written"
            raise ZooError(
                kept, expected="a folder that can be removed", found=reason(error), do=do
            ) from error
