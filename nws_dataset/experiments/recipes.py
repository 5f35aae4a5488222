"""Predict properties of the training from weights: the experiments of Eilertsen et al. 2020.

The deep meta-classifier predicts each property (optimizer, learning rate, ...) of held-out models from slices
and random units of weights, a linear SVM and boosting from statistics. Compare with chance and with the best
guess from the architecture alone: if recipes differ between architectures, only a better score than this
guess means that the weights were read.

python scripts/evaluate_meta_classifier.py ZOO
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import joblib
import numpy as np

from nws_dataset import console
from nws_dataset.baselines.meta_classifier import MAX_LENGTH
from nws_dataset.console import Command
from nws_dataset.evaluation import models
from nws_dataset.evaluation.folds import NUM_FOLDS, describe, is_small
from nws_dataset.evaluation.inputs import SLICE, SLICE_STATISTICS, SMALL_SETTINGS, SNAPSHOTS, Inputs, Settings
from nws_dataset.evaluation.results import facts_of
from nws_dataset.evaluation.run import Answers, Kept, Method, Outcome, Question, Trial, run
from nws_dataset.evaluation.scores import ALL, CONVERGED, MAX_EXAMPLES, SIZED, Record, property_scores
from nws_dataset.evaluation.tasks import LABEL, PROPERTIES, Task, guesses_from_architecture, tasks_of
from nws_dataset.experiments import commands
from nws_dataset.pages.summary import report_properties
from nws_dataset.views.slices import check_device

EXPERIMENTS = ("what", "when", "where", "layers")
NUM_POSITIONS = 16  # of slices along a row, in the experiment "where"
MIN_ALIKE = 20  # models of one architecture, for whole rows
FOLDS_HELP = "Folds of the cross-validation that replaces the splits of a small zoo."
LENGTH_HELP = "Weights of a slice (overrides --settings)."
SNAPSHOTS_HELP = "Snapshots to train on (overrides --settings)."
SETTINGS_HELP = "Size and training of the networks.  [default: small for fewer than 1,000 models, else paper]"


def trials_of(
    inputs: Inputs,
    properties: Sequence[str] | None,
    experiments: Sequence[str],
    *,
    seeds: int = 3,
    num_folds: int = NUM_FOLDS,
    rows: bool = False,
) -> tuple[list[Trial], dict[str, str]]:
    """The trials of every method on every property with every seed, and why properties are skipped.

    Args:
        inputs: of the zoo, with the settings of the meta-classifier.
        properties: see `tasks_of`.
        experiments: "what" (of final snapshots), "when" (by snapshot), "where" (by position), "layers" (by
            part and layer).
        seeds: repetitions, each with its own balancing, folds and networks.
        num_folds: of the cross-validation of a small zoo.
        rows: also try the meta-classifier on whole rows, for models of the most frequent architecture.
    """
    final = inputs.final
    methods = models.property_methods(inputs, "layers" in experiments)
    names, counts = np.unique(final["architecture"].astype(str), return_counts=True)
    alike = np.flatnonzero(final["architecture"] == names[counts.argmax()])
    pairs: list[tuple[Method, Task, int]] = []
    skipped: dict[str, str] = {}
    for seed in range(seeds):
        tasks, skipped = tasks_of(final, properties, seed, num_folds=num_folds)
        pairs += [(method, task, seed) for task in tasks for method in methods]
        if rows and len(alike) >= MIN_ALIKE:
            tasks, _ = tasks_of(final, None, seed, models=alike, num_folds=num_folds)
            method = models.row_method(inputs, int(final["num_weights"][alike[0]]))
            pairs += [(method, task, seed) for task in tasks if not properties or task.target in properties]
    trials = [property_trial(inputs, method, task, seed, experiments) for method, task, seed in pairs]
    return [trial for trial in trials if trial.questions], skipped


def property_trial(
    inputs: Inputs, method: Method, task: Task, seed: int, experiments: Sequence[str] = ("what",)
) -> Trial:
    """The trial of a method on a property, in all experiments that apply to the method."""
    numbers = inputs.series.curve
    last, asked = Question(numbers[-1]), list[tuple[str, Question]]()
    if method.layer is not None:
        asked += [("where", last)] if "layers" in experiments else []
    else:
        asked += [(name, last) for name in ("what", LABEL, SIZED) if name in experiments]
        asked += [("when", Question(number)) for number in numbers if "when" in experiments]
        has_positions = inputs.final["num_weights"].max() > inputs.settings.slice_length
        if "where" in experiments and method.input in (SLICE, SLICE_STATISTICS) and has_positions:
            positions = np.linspace(0, 1, NUM_POSITIONS).tolist()
            asked += [("where", Question(numbers[-1], position)) for position in positions]
    labels = {"target": task.target, "task": task.words, "method": method.name, "input": method.input}
    questions = tuple(dict.fromkeys(question for _, question in asked))  # each is asked once
    score = functools.partial(_score, inputs, asked)
    return Trial(task, method, seed, score, {**labels, "seed": seed, "layer": method.layer}, questions)


def _score(inputs: Inputs, asked: Sequence[tuple[str, Question]], trial: Trial, answers: Answers) -> Outcome:
    """Records of every experiment and question, for all held-out models and for converged ones."""
    task, tested, final = trial.task, trial.task.tested, inputs.final
    converged = np.asarray(final["converged"], dtype=bool)[task.models]
    architectures = np.asarray(final["architecture"])[task.models]
    guessed, constant = (
        guesses_from_architecture(kinds, task.truth, task.folds)
        for kinds in (architectures, np.zeros(len(task.models)))
    )
    held_out = "cross-validation over models" if task.cross_validated else "the zoo's splits"
    where = f"{held_out}, {', '.join(sorted(set(inputs.datasets[task.models])))}"
    trained_on = f"{SNAPSHOTS[inputs.settings.snapshots]}, {where}"
    num_train = round(np.mean([len(fold.training) for fold in task.folds]))
    records = []
    for experiment, question in asked:
        truth, predicted = task.truth, answers.predicted[question]
        about: dict[str, Any] = {**trial.labels, "experiment": experiment, "trained_on": trained_on}
        about["tested_on"] = f"{'one snapshot' if experiment == 'when' else 'final snapshots'}, {where}"
        about |= {"num_train": num_train, "position": question.position}
        about["snapshot"] = None if experiment in ("what", LABEL, SIZED) else question.snapshot
        for nets, part in ((ALL, tested), (CONVERGED, tested[converged[tested]])):
            if not len(part):
                continue
            arrays = (values[part] for values in (truth, predicted, guessed, constant))
            scores = property_scores(*arrays, is_number=task.is_number, seed=trial.seed)
            if task.is_number and experiment == "what" and nets == ALL:
                scores["pairs"] = np.column_stack([truth, predicted])[part].round(6).tolist()
            if experiment == LABEL and nets == ALL:
                wrong = part[truth[part] != predicted[part]][:MAX_EXAMPLES]
                ids = final["model_id"][task.models[wrong]].tolist()
                told = truth[wrong].tolist(), predicted[wrong].tolist()
                scores["examples"] = list(map(list, zip(ids, *told, strict=True)))
            records.append(Record(**about, **scores, nets=nets, num_test=len(part)))
    return Outcome(records)


def evaluate(
    inputs: Inputs,
    properties: Sequence[str] | None = None,
    experiments: Sequence[str] = EXPERIMENTS,
    *,
    seeds: int = 3,
    num_folds: int = NUM_FOLDS,
    rows: bool = False,
    progress: Callable[[Sequence[float], int, int], Any] = console.progress,
    **options: Any,
) -> dict[str, Any]:
    """Fit and test all methods on all properties, with the parameters of `trials_of` and `run`.

    Returns:
        "results", the records; "skipped", the reason for each property; "held_out", "layers", "seconds".
    """
    started = time.monotonic()
    trials, skipped = trials_of(inputs, properties, experiments, seeds=seeds, num_folds=num_folds, rows=rows)
    outcomes = run(trials, progress, **options)
    return {
        "held_out": describe([len(trial.task.folds) for trial in trials]),
        "results": [record for outcome in outcomes for record in outcome.records],
        "skipped": skipped,
        "layers": layer_borders(inputs) if inputs.alike else {},
        "seconds": round(time.monotonic() - started, 1),
    }


def layer_borders(inputs: Inputs) -> dict[str, float]:
    """Layer -> its start in the row, from 0 to 1, in a zoo of one architecture."""
    layout = inputs.zoo.layout(inputs.final[0])
    first = {layer: min(s.offset for s in layout.tensors if s.layer == layer) for layer in layout.layers}
    return {layer: offset / layout.num_weights for layer, offset in first.items()}


def notes_of(outcome: dict[str, Any], settings: Settings, seeds: int) -> list[str]:
    """Notes on how the numbers were obtained, for the Markdown file and the terminal."""
    skipped = [f"{name} (skipped): {reason}." for name, reason in outcome["skipped"].items()]
    if not outcome["results"]:
        return ["Nothing could be tested: build more models.", *skipped]
    kind = "the paper's network" + (f", {settings.width:g} as wide" if settings.width != 1 else "")
    if settings.linear_below is not None:
        kind += f", on asinh(weight / {settings.linear_below:g})"
    more = f", or as many more as make {settings.least_steps:,} steps" if settings.least_steps else ""
    return [
        f"Held out: {outcome['held_out']}. Mean over {seeds} seeds, ± their standard deviation; "
        f"{outcome['seconds']:.0f} s.",
        f"All methods are trained on {SNAPSHOTS[settings.snapshots]} of the other models and tested on "
        "final ones. The epoch of the network, the C of the SVM and the rounds of boosting are chosen on a "
        "tenth of the training models, or on the zoo's validation split.",
        f"Deep meta-classifier: {kind}, {settings.epochs} epochs{more}, slices of {settings.slice_length:,} "
        f"weights; a model's prediction averages over {settings.slices_per_prediction} slices, also for "
        "statistics of slices. A shorter row is one slice, padded with zeros. Random units: instead of a "
        "slice, the weights of a few hidden units from each tensor, chosen at random each time; the order of "
        "units does not change what a network computes, so nothing can be memorized.",
        "Models were dropped until all values have equally many: chance is 1 / number of values, and among "
        "converged models the share of the most frequent value. Learning rates: mean absolute error, lower "
        "is better, of log10 where the recipe draws log-uniformly; chance is the error of the training "
        "models' median.",
        "From the architecture: the most frequent value among the training models of the same architecture. "
        "Where this is well above chance, values differ between architectures, and only accuracy beyond it "
        "was read from the weights.",
        "The paper's figures give no numbers to compare with; --settings paper uses its network and "
        "settings.",
        *skipped,
    ]


@click.command(cls=Command)
@commands.zoo_argument
@commands.out_option
@commands.list_option(
    "--experiments",
    default="what,when",
    legal=EXPERIMENTS,
    help=f"Experiments to run: any of {','.join(EXPERIMENTS)}.",
)
@commands.list_option(
    "--properties",
    help=f"Properties to predict.  [default: {','.join(PROPERTIES)}, where they vary]",
)
@commands.seeds_option("Number of seeds.")
@commands.option(
    "--folds", "num_folds", default=NUM_FOLDS, type=click.IntRange(2), metavar="N", help=FOLDS_HELP
)
@click.option(
    "--rows", is_flag=True, help="Also read whole rows, for models of the most frequent architecture."
)
@commands.option("--settings", "name", type=click.Choice(["paper", "small"]), help=SETTINGS_HELP)
@commands.option(
    "--epochs", type=click.IntRange(1), metavar="N", help="Train exactly N epochs (overrides --settings)."
)
@commands.option("--slice-length", type=click.IntRange(1, MAX_LENGTH), metavar="N", help=LENGTH_HELP)
@commands.option("--snapshots", type=click.Choice(list(SNAPSHOTS)), help=SNAPSHOTS_HELP)
@commands.option("--device", default="cpu", help="Device that PyTorch trains on.")
@commands.jobs_options("one per core; one on a GPU")
def main(
    zoo: str,
    revision: str | None,
    out: Path | None,
    seeds: int,
    name: str | None,
    device: str,
    jobs: int | None,
    ray: str | None,
    epochs: int | None,
    slice_length: int | None,
    snapshots: str | None,
    **chosen: Any,
) -> None:
    """Predict how networks were trained from the weights of ZOO, a folder or ORG/NAME on the Hub.

    Prints how well three methods predict each property of held-out models: the deep meta-classifier, and a
    linear SVM and boosting on statistics; for comparison, also chance and the best guess from the
    architecture alone. Writes JSON, Markdown and plots. An interrupted run resumes where it stopped.

    \b
    Experiments:
      what    from final snapshots
      when    from each snapshot
      where   by the slice's position in the row
      layers  from the convolutions or the dense layers alone, and from each layer
    """
    opened, folder = commands.begin(zoo, revision, out, ray)
    small = is_small(len(opened.filter(is_final=True)))
    settings = SMALL_SETTINGS if name == "small" or (name is None and small) else Settings()
    settings = dataclasses.replace(settings, device=device, snapshots=snapshots or settings.snapshots)
    settings = dataclasses.replace(settings, epochs=epochs, least_steps=0) if epochs else settings
    settings = dataclasses.replace(settings, slice_length=slice_length or settings.slice_length)
    check_device(f"--device {device}", device, "leave the option out, or name one that is there")
    inputs = Inputs.of(opened, settings)
    kept = Kept(folder / "meta_classifier.part", [inputs.digest, dataclasses.asdict(settings)])
    processes = jobs or (joblib.cpu_count() if device == "cpu" else 1)
    with commands.keeping(kept):
        outcome = evaluate(inputs, **chosen, seeds=seeds, jobs=processes, kept=kept, ray=ray)
        contents = {
            "experiment": "meta_classifier",
            "zoo": facts_of(opened, commands.name_of(zoo)),
            "command": commands.command_line(),
            "settings": dataclasses.asdict(settings),
            **outcome,
        }
        report_properties(folder, contents, notes_of(outcome, settings, seeds))
