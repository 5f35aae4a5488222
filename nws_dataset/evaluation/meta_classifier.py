"""How often the deep meta-classifier reads a property of the training (optimizer, initialization, ...) off the weights of models held out.

Beside it stand two who read no weights: chance, and the best guess from the architecture alone. Where architectures differ in the values
that they were trained with, the architecture gives a property away, and only what goes beyond its guess was read off the training.

python scripts/evaluate_meta_classifier.py ZOO
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from nws_dataset.command import Command
from nws_dataset.errors import ZooError
from nws_dataset.evaluation import report
from nws_dataset.evaluation.folds import Fold, balanced, check_models, describe, folds_of, is_small
from nws_dataset.meta_classifier import DeepMetaClassifier

if TYPE_CHECKING:
    from nws_dataset.zoo import Rows, Zoo

PROPERTIES = ("optimizer", "activation", "initialization", "batch_size")
# A value that fewer models have is left out, for balancing by it would leave few of the others: a tenth of the zoo within these bounds.
RARE, RAREST = 10, 2
CURVE_POINTS = 8  # snapshots at which held-out models are also tested
SNAPSHOTS = {"final": "final snapshots", "late": "the later half of the snapshots", "all": "all snapshots"}


@dataclass(frozen=True)
class Settings:
    """Of the classifier and its training; the defaults are the paper's."""

    epochs: int = 50
    snapshots: str = "final"  # of training models: "final", "late" or "all"
    slices_per_row: int = 1
    slices_per_prediction: int = 8
    width: float = 1.0
    dropout: float = 0.5
    batch_size: int = 64
    learning_rate: float = 1e-3
    validation_fraction: float = 0.1
    linear_below: float | None = None
    device: str = "cpu"


SETTINGS_HELP = "Network and training.  [default: small under 1,000 models, else paper]"
# A slim network that sees many snapshots of few models: fits two CPU cores and a small zoo, of which no model is spared for validation.
SMALL_SETTINGS = Settings(
    epochs=2,
    snapshots="late",
    width=1 / 8,
    dropout=0.1,
    batch_size=32,
    learning_rate=2e-3,
    validation_fraction=0.0,
    linear_below=0.01,
)


@dataclass(frozen=True)
class Snapshots:
    """All rows that the experiment may read, one entry a snapshot, and their models."""

    model: np.ndarray  # place of the row's model among the final rows
    snapshot: np.ndarray  # 1..last
    last: np.ndarray  # num_snapshots of the row's model
    weights: list[np.ndarray]  # views of the files

    @classmethod
    def read(cls, zoo: Zoo, final: Rows) -> Snapshots:
        rows = zoo.filter()
        place = {model: i for i, model in enumerate(final["model_id"])}
        model = np.array([place[name] for name in rows["model_id"]])
        return cls(model, rows["snapshot"], rows["num_snapshots"], [zoo.row(row) for row in rows])

    def places(self, models: np.ndarray, which: str) -> np.ndarray:
        """Places of the final, later half ("late") or all snapshots of models."""
        wanted = {"final": self.snapshot == self.last, "late": 2 * self.snapshot > self.last, "all": self.snapshot > 0}[which]
        return np.flatnonzero(np.isin(self.model, models) & wanted)

    def at(self, models: np.ndarray, number: int) -> list[np.ndarray]:
        """Weights of models, in their order, at a snapshot number of the longest training; at the same part of a shorter one."""
        last = np.zeros(self.model.max() + 1, dtype=np.intp)
        last[self.model] = self.last
        wanted = 1 + np.rint((number - 1) * (last - 1) / max(1, self.last.max() - 1)).astype(np.intp)
        places = np.flatnonzero((self.snapshot == wanted[self.model]) & np.isin(self.model, models))
        by_model = dict(zip(self.model[places], places, strict=True))
        return [self.weights[by_model[model]] for model in models]


@dataclass(frozen=True)
class Task:
    """A property that is to be told, and the models by which this is learned and tested: equally many of each class."""

    name: str
    classes: list[Any]
    num_values: int  # that the zoo has; more than classes if some are rare
    models: np.ndarray  # [M] their places among the final rows
    truth: np.ndarray  # [M] the property's values
    folds: list[Fold]  # places in models


def tasks_of(final: Rows, properties: Sequence[str] | None, seed: int) -> tuple[list[Task], dict[str, str]]:
    """The properties that can be told apart, those of which two values or more are not rare, and why the others cannot.

    Args:
        final: final rows of a zoo.
        properties: columns of the index with few values; None: PROPERTIES.
        seed: of balancing and folds.

    Returns:
        the tasks, and the reason for each property that was skipped.

    Raises:
        ZooError: if a property that was asked for has to be skipped.
    """
    tasks, skipped, fewest = [], {}, _fewest(len(final))
    for name in properties or PROPERTIES:
        task = _task_of(final, name, seed)
        if len(task.classes) > 1:
            tasks.append(task)
            continue
        skipped[name] = f"{'one value' if task.classes else 'no value'} with {fewest} models or more"
        if properties:
            expected, do = f"two values or more with {fewest} models or more each", "choose another property, or build more models"
            raise ZooError(f"property {name}", expected=expected, found=skipped[name], do=do)
    return tasks, skipped


def _task_of(final: Rows, name: str, seed: int) -> Task:
    """A property's task; without folds if it has fewer than two classes."""
    values, splits, small = np.asarray(final[name]), np.asarray(final["split"]), is_small(len(final))
    names, counts = np.unique([value for value in values.tolist() if value is not None and value == value], return_counts=True)
    needed = () if small else ("train", "test")  # of the zoo's own splits
    common = [value for value in names[counts >= _fewest(len(final))].tolist() if set(needed) <= set(splits[values == value])]
    models = np.flatnonzero(np.isin(values, common))
    truth = np.array(values[models].tolist())  # strings of one length, not objects
    if len(common) < 2:
        return Task(name, common, len(names), models, truth, [])
    kept = balanced(truth, np.zeros(len(models)) if small else splits[models], seed)
    models, truth = models[kept], truth[kept]
    folds = folds_of(splits[models], seed, small=small, labels=truth)
    return Task(name, common, len(names), models, truth, folds)


def _fewest(num_models: int) -> int:
    """Models that a value must have to be a class."""
    return min(RARE, max(RAREST, num_models // 10))


def num_steps(tasks: Sequence[Task], settings: Settings) -> int:
    """Epochs that `evaluate` trains in all."""
    return settings.epochs * sum(len(task.folds) for task in tasks)


def evaluate(
    zoo: Zoo, final: Rows, tasks: Sequence[Task], settings: Settings, seed: int, advance: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """Train and test a classifier for every task.

    Args:
        zoo: the zoo.
        final: its final rows.
        tasks: see `tasks_of`.
        settings: of the classifier.
        seed: of the classifiers.
        advance: called after every epoch; `num_steps` in all.

    Returns:
        what `meta_classifier.json` holds: settings, and under "results" a dict for each property.
    """
    started = time.monotonic()
    snapshots = Snapshots.read(zoo, final)
    results = {task.name: _evaluate_task(task, final, snapshots, settings, seed, advance) for task in tasks}
    return {
        "experiment": "meta_classifier",
        "seed": seed,
        "held_out": describe([len(task.folds) for task in tasks]),
        "settings": dataclasses.asdict(settings),
        "results": results,
        "seconds": round(time.monotonic() - started, 1),
    }


def _evaluate_task(
    task: Task, final: Rows, snapshots: Snapshots, settings: Settings, seed: int, advance: Callable[[str], None]
) -> dict[str, Any]:
    numbers = np.unique(np.linspace(1, snapshots.last.max(), CURVE_POINTS).round().astype(int)).tolist()
    predicted = {number: np.empty_like(task.truth) for number in numbers}
    for i, fold in enumerate(task.folds):
        words = f"{task.name}, fold {i + 1}"
        classifier = _fit(task, fold, snapshots, settings, seed + i, functools.partial(_advance, advance, words))
        for number in numbers:
            predicted[number][fold.test] = classifier.predict(snapshots.at(task.models[fold.test], number))
    guessed = guesses_from_architecture(np.asarray(final["architecture"])[task.models], task.truth, task.folds)
    tested = np.sort(np.concatenate([fold.test for fold in task.folds]))
    truth, last, guessed = task.truth[tested], predicted[numbers[-1]][tested], guessed[tested]
    converged = np.asarray(final["converged"], dtype=bool)[task.models[tested]]
    return {
        "classes": task.classes,
        "num_values": task.num_values,
        "num_folds": len(task.folds),
        **_scores(truth, last, guessed),
        "converged": _scores(truth[converged], last[converged], guessed[converged]),
        "by_snapshot": [{"snapshot": n, **report.accuracy(truth, predicted[n][tested])} for n in numbers],
        "predictions": {
            "model_id": np.asarray(final["model_id"])[task.models[tested]].tolist(),
            "fold": [int(next(i for i, fold in enumerate(task.folds) if place in fold.test)) for place in tested],
            "true": truth.tolist(),
            "predicted": last.tolist(),
            "from_architecture": guessed.tolist(),
        },
    }


def _scores(truth: np.ndarray, predicted: np.ndarray, guessed: np.ndarray) -> dict[str, Any]:
    """Accuracy of the classifier, of a constant guess (the most frequent class) and of the guess from the architecture."""
    counts = np.unique(truth, return_counts=True)[1]
    return {
        **report.accuracy(truth, predicted),
        "chance": float(counts.max() / len(truth)) if len(truth) else None,
        "from_architecture": report.accuracy(truth, guessed)["accuracy"],
    }


def guesses_from_architecture(architectures: np.ndarray, truth: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:
    """The best guess of one who sees a model's architecture and none of its weights.

    Args:
        architectures: [M] names of the models' architectures.
        truth: [M] their classes.
        folds: as the classifier's.

    Returns:
        [M] for each held-out model the most frequent class among its fold's training models of its architecture; among them all if none
        has it.

    Example:
        >>> fold = Fold(training=np.array([0, 1, 2, 3]), validation=np.array([]), test=np.array([4]))
        >>> str(guesses_from_architecture(np.array(list("aabba")), np.array(["adam", "adam", "sgd", "sgd", "sgd"]), [fold])[4])
        'adam'
    """
    guessed = np.empty_like(truth)
    for fold in folds:
        for place in fold.test:
            alike = fold.training[architectures[fold.training] == architectures[place]]
            classes, counts = np.unique(truth[alike if len(alike) else fold.training], return_counts=True)
            guessed[place] = classes[counts.argmax()]
    return guessed


def _advance(advance: Callable[[str], None], what: str, epoch: dict[str, Any]) -> None:
    advance(what)


def _fit(task: Task, fold: Fold, snapshots: Snapshots, settings: Settings, seed: int, advance: Callable[[Any], None]) -> DeepMetaClassifier:
    """A classifier trained on the training models of a fold."""
    label_of = dict(zip(task.models, task.truth.tolist(), strict=True))
    places = snapshots.places(task.models[fold.training], settings.snapshots)
    groups = snapshots.model[places]
    options = dataclasses.asdict(settings)
    del options["snapshots"]
    classifier = DeepMetaClassifier(**options, random_state=seed, progress=advance)
    return classifier.fit([snapshots.weights[i] for i in places], [label_of[model] for model in groups], groups)


def table_of(results: dict[str, Any]) -> report.Table:
    """The summary: for each property a row for all held-out models, and one for those that converged."""

    def cells(part: str, scores: dict[str, Any]) -> tuple[str, ...]:
        accuracy = report.with_interval(scores["accuracy"], scores["interval_95"], percent=True)
        return f"{part} {scores['num_models']}", accuracy, report.percent(scores["chance"]), report.percent(scores["from_architecture"])

    rows: list[tuple[str, ...]] = []
    for name, result in results["results"].items():
        classes, values = len(result["classes"]), result["num_values"]
        rows.append((f"{name} ({classes if classes == values else f'{classes} of {values}'} values)", *cells("all", result)))
        rows.append(("", *cells("converged", result["converged"])))
    rows += [(f"{name} (skipped)", "", reason, "", "") for name, reason in results["skipped"].items()]
    columns = ("property", "held-out models", "accuracy (95 % interval)", "chance", "from the architecture alone")
    return report.Table(f"Properties read off the weights by the deep meta-classifier: {results['zoo']}", columns, rows)


def notes_of(results: dict[str, Any]) -> list[str]:
    """How the numbers were taken, for the Markdown file and the terminal."""
    if not results["results"]:
        return ["Nothing could be tested: build more models."]
    settings = results["settings"]
    kind = "the paper's network" if settings["width"] == 1 else f"the paper's network, {settings['width']:g} as wide"
    if settings["linear_below"] is not None:
        kind += f", on asinh(weight / {settings['linear_below']:g})"
    return [
        f"Held out: {results['held_out']}. Tested on final snapshots; seed {results['seed']}; {results['seconds']:.0f} s.",
        f"Trained on {SNAPSHOTS[settings['snapshots']]} of the other models, {settings['epochs']} epochs, {kind}.",
        "Intervals are Wilson's over models. Models were dropped until each value has equally many: chance is one over the number of"
        " values, and among converged models the share of the most frequent value.",
        "From the architecture alone: the most frequent value among the training models of the same architecture. Where this is well above"
        " chance, architectures differ in their values, and only accuracy beyond it was read off what training left in the weights.",
    ]


def plots_of(results: dict[str, Any]) -> dict[str, Any]:
    """The figures, by name."""
    from nws_dataset.evaluation import plots

    if not results["results"]:
        return {}
    return {
        "accuracy": plots.accuracy_bars(results["results"], f"What the weights tell of their training: {results['zoo']}"),
        "snapshots": plots.accuracy_curves(results["results"], f"When the weights tell it: {results['zoo']}"),
    }


@click.command(cls=Command)
@click.argument("zoo")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help=report.OUT_HELP)
@click.option("--properties", help=f"Columns to predict, comma-separated.  [default: {','.join(PROPERTIES)}, where they vary]")
@click.option("--seed", default=0, show_default=True, help="Of balancing, folds and classifiers.")
@click.option("--settings", "name", type=click.Choice(["paper", "small"]), help=SETTINGS_HELP)
@click.option("--epochs", type=click.IntRange(1), help="In place of the settings' epochs.")
@click.option("--snapshots", type=click.Choice(list(SNAPSHOTS)), help="Snapshots to train on, in place of the settings'.")
@click.option("--device", default="cpu", show_default=True, help="Torch device.")
def main(
    zoo: str, out: Path | None, properties: str | None, seed: int, name: str | None, epochs: int | None, snapshots: str | None, device: str
) -> None:
    """Read properties of the training off the weights of ZOO, a folder that nws-build wrote, with the deep meta-classifier.

    Prints the accuracy on held-out models beside chance and beside the best guess from the architecture alone, and writes them as JSON,
    Markdown and plots.
    """
    from nws_dataset.zoo import Zoo

    report.be_patient()
    opened = Zoo(zoo)
    final = opened.filter(is_final=True)
    check_models(opened.name, final["split"])
    settings = SMALL_SETTINGS if name == "small" or (name is None and is_small(len(final))) else Settings()
    changes: dict[str, Any] = {"epochs": epochs, "snapshots": snapshots, "device": device}
    settings = dataclasses.replace(settings, **{key: value for key, value in changes.items() if value is not None})
    tasks, skipped = tasks_of(final, properties.split(",") if properties else None, seed)
    with report.progress(num_steps(tasks, settings)) as advance:
        results = {"zoo": report.name_of(zoo), **evaluate(opened, final, tasks, settings, seed, advance), "skipped": skipped}
    report.conclude(results, report.results_folder(zoo, out), table_of(results), notes_of(results), plots_of(results))
