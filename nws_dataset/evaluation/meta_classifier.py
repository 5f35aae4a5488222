"""How often the deep meta-classifier reads a property of the training (optimizer, initialization, ...) off the weights of models held out.

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
from nws_dataset.evaluation.folds import Fold, balanced, describe, folds_of, is_small
from nws_dataset.meta_classifier import DeepMetaClassifier

if TYPE_CHECKING:
    from nws_dataset.zoo import Rows, Zoo

PROPERTIES = ("optimizer", "activation", "initialization", "batch_size")
MIN_MODELS = 10  # a value that fewer models have is left out: balancing by it would leave too few
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
    device: str = "cpu"


SETTINGS_HELP = "Network and training.  [default: small under 1,000 models, else paper]"
# A slim network that sees many snapshots of few models: fits two CPU cores and a small zoo, of which no model is spared for validation.
SMALL_SETTINGS = Settings(epochs=5, snapshots="late", width=1 / 8, dropout=0.1, batch_size=32, learning_rate=2e-3, validation_fraction=0.0)


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
        """Weights of models at a snapshot number, in the models' order."""
        places = np.flatnonzero((self.snapshot == number) & np.isin(self.model, models))
        by_model = dict(zip(self.model[places], places, strict=True))
        return [self.weights[by_model[model]] for model in models]


def evaluate(
    zoo: Zoo, properties: Sequence[str], settings: Settings, seed: int, advance: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """Train and test a classifier for every property.

    Args:
        zoo: the zoo.
        properties: columns of the index with few values; see `usable`.
        settings: of the classifier.
        seed: of balancing, folds and classifiers.
        advance: called after every epoch; `num_steps` in all.

    Returns:
        what `meta_classifier.json` holds: settings, and under "results" a dict for each property.
    """
    started = time.monotonic()
    final = zoo.filter(is_final=True)
    snapshots = Snapshots.read(zoo, final)
    results = {name: _evaluate_property(final, snapshots, name, settings, seed, advance) for name in properties}
    return {
        "experiment": "meta_classifier",
        "seed": seed,
        "held_out": describe(is_small(len(final))),
        "settings": dataclasses.asdict(settings),
        "results": results,
        "seconds": round(time.monotonic() - started, 1),
    }


def num_steps(num_models: int, num_properties: int, settings: Settings) -> int:
    """Epochs that `evaluate` trains in all."""
    return num_properties * settings.epochs * (len(folds_of(np.empty(num_models), 0, small=True)) if is_small(num_models) else 1)


def usable(final: Rows, properties: Sequence[str] | None) -> list[str]:
    """The properties that can be told apart: columns of a recipe of which two values or more have MIN_MODELS models.

    Args:
        final: final rows of a zoo.
        properties: names; None: those of PROPERTIES that are usable.

    Raises:
        ZooError: if a property that was asked for, or each of PROPERTIES, is not usable.
    """
    found = {name: _classes(np.asarray(final[name])) for name in properties or PROPERTIES}
    for name, classes in found.items():
        if properties and len(classes) < 2:
            expected = f"two values or more with at least {MIN_MODELS} models each"
            raise ZooError(
                f"property {name}", expected=expected, found=f"{len(classes)}", do="choose another property, or build more models"
            )
    names = [name for name, classes in found.items() if len(classes) > 1]
    if not names:
        raise ZooError("zoo", expected=f"{MIN_MODELS} models or more of two values", found=f"{len(final)} models", do="build more models")
    return names


def _classes(values: np.ndarray) -> list[Any]:
    """The values that MIN_MODELS models or more have; null is none."""
    names, counts = np.unique([value for value in values.tolist() if value is not None and value == value], return_counts=True)
    return names[counts >= MIN_MODELS].tolist()


def _evaluate_property(
    final: Rows, snapshots: Snapshots, name: str, settings: Settings, seed: int, advance: Callable[[str], None]
) -> dict[str, Any]:
    small = is_small(len(final))
    classes = _classes(np.asarray(final[name]))
    models = np.flatnonzero(np.isin(np.asarray(final[name]), classes))
    truth, splits = np.array(final[name][models].tolist()), np.asarray(final["split"])[models]  # strings of one length, not objects
    kept = balanced(truth, np.zeros(len(models)) if small else splits, seed)
    models, truth, splits = models[kept], truth[kept], splits[kept]
    folds = folds_of(splits, seed, small=small, labels=truth)
    numbers = np.unique(np.linspace(1, snapshots.last.min(), CURVE_POINTS).round().astype(int)).tolist()
    predicted = {number: np.empty_like(truth) for number in numbers}
    for i, fold in enumerate(folds):
        classifier = _fit(snapshots, models, truth, fold, settings, seed + i, functools.partial(_advance, advance, f"{name}, fold {i + 1}"))
        for number in numbers:
            predicted[number][fold.test] = classifier.predict(snapshots.at(models[fold.test], number))
    tested = np.sort(np.concatenate([fold.test for fold in folds]))
    converged = tested[np.asarray(final["converged"], dtype=bool)[models[tested]]]
    last = predicted[numbers[-1]]
    return {
        **report.accuracy(truth[tested], last[tested]),
        "chance": 1 / len(classes),
        "classes": classes,
        "converged": report.accuracy(truth[converged], last[converged]),
        "by_snapshot": [{"snapshot": n, **report.accuracy(truth[tested], predicted[n][tested])} for n in numbers],
        "predictions": {
            "model_id": np.asarray(final["model_id"])[models[tested]].tolist(),
            "fold": [int(next(i for i, fold in enumerate(folds) if place in fold.test)) for place in tested],
            "true": truth[tested].tolist(),
            "predicted": last[tested].tolist(),
        },
    }


def _advance(advance: Callable[[str], None], what: str, epoch: dict[str, Any]) -> None:
    advance(what)


def _fit(
    snapshots: Snapshots, models: np.ndarray, truth: np.ndarray, fold: Fold, settings: Settings, seed: int, advance: Callable[[Any], None]
) -> DeepMetaClassifier:
    """A classifier trained on the training models of a fold."""
    label_of = dict(zip(models, truth.tolist(), strict=True))
    places = snapshots.places(models[fold.training], settings.snapshots)
    groups = snapshots.model[places]
    options = dataclasses.asdict(settings)
    del options["snapshots"]
    classifier = DeepMetaClassifier(**options, random_state=seed, progress=advance)
    return classifier.fit([snapshots.weights[i] for i in places], [label_of[model] for model in groups], groups)


def table_of(results: dict[str, Any]) -> report.Table:
    """The summary: a row for each property."""

    def cells(result: dict[str, Any]) -> tuple[str, ...]:
        converged = result["converged"]
        return (
            report.with_interval(result["accuracy"], result["interval_95"], percent=True),
            f"{result['chance']:.1%}".replace("%", " %"),
            str(result["num_models"]),
            report.with_interval(converged["accuracy"], converged["interval_95"], percent=True),
            str(converged["num_models"]),
        )

    columns = ("property", "accuracy (95 % interval)", "chance", "models", "converged only", "models")
    rows = [(f"{name} ({len(result['classes'])} values)", *cells(result)) for name, result in results["results"].items()]
    return report.Table(f"Properties read off the weights by the deep meta-classifier: {results['zoo']}", columns, rows)


def notes_of(results: dict[str, Any]) -> list[str]:
    """How the numbers were taken, for the Markdown file and the terminal."""
    settings = results["settings"]
    kind = "the paper's network" if settings["width"] == 1 else f"the paper's network, {settings['width']:g} as wide"
    return [
        f"Held out: {results['held_out']}. Tested on final snapshots; seed {results['seed']}; {results['seconds']:.0f} s.",
        f"Trained on {SNAPSHOTS[settings['snapshots']]} of the other models, {settings['epochs']} epochs, {kind}.",
        "Intervals are Wilson's over models. Chance is one over the number of values: models were dropped until each has equally many.",
    ]


def plots_of(results: dict[str, Any]) -> dict[str, Any]:
    """The figures, by name."""
    from nws_dataset.evaluation import plots

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
    """Read properties of the training off the weights of ZOO, a folder or a Hub repository, with the deep meta-classifier.

    Prints the accuracy on held-out models beside chance, and writes it as JSON, Markdown and plots.
    """
    from nws_dataset.zoo import Zoo

    opened = Zoo(zoo)
    final = opened.filter(is_final=True)
    settings = SMALL_SETTINGS if name == "small" or (name is None and is_small(len(final))) else Settings()
    changes: dict[str, Any] = {"epochs": epochs, "snapshots": snapshots, "device": device}
    settings = dataclasses.replace(settings, **{key: value for key, value in changes.items() if value is not None})
    names = usable(final, properties.split(",") if properties else None)
    for skipped in sorted(set(PROPERTIES) - set(names)) if properties is None else ():
        click.echo(f"Skipped {skipped}: fewer than two values with {MIN_MODELS} models or more.")
    with report.progress(num_steps(len(final), len(names), settings)) as advance:
        results = {"zoo": report.name_of(zoo), **evaluate(opened, names, settings, seed, advance)}
    report.conclude(results, report.results_folder(zoo, out), table_of(results), notes_of(results), plots_of(results))
