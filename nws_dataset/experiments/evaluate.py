"""Everything that can be asked of a zoo's networks, by every method: properties, accuracies, edges.

What is asked follows from the zoo: the class of the image that a network represents, its test accuracy, which
of its edges are kept, and each property of the recipe that varies.

python scripts/evaluate.py ZOO
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import joblib

from nws_dataset import console
from nws_dataset.baselines.metanetworks.base import CLASS, NUMBER
from nws_dataset.baselines.metanetworks.base import EDGES as OF_EDGES
from nws_dataset.console import Command
from nws_dataset.errors import ZooError
from nws_dataset.evaluation.folds import describe
from nws_dataset.evaluation.inputs import (
    GRAPH,
    GRAPH_STATISTICS,
    LAYERS,
    ROW,
    SLICE,
    SLICE_STATISTICS,
    SMALL_SETTINGS,
    SNAPSHOTS,
    UNITS,
    Inputs,
    Settings,
    digest_of,
)
from nws_dataset.evaluation.metanetworks import (
    FEWEST,
    GRAPH_NETWORK,
    HYBRID,
    MOST,
    PERMUTED_MLP,
    PLAIN_MLP,
    metanetworks,
)
from nws_dataset.evaluation.models import BOOSTING, edge_boosting, predictor, property_methods
from nws_dataset.evaluation.results import facts_of
from nws_dataset.evaluation.run import Answers, Kept, Method, Outcome, Question, Trial
from nws_dataset.evaluation.scores import SIZED, hex_of_edges, records_of_edges
from nws_dataset.evaluation.tasks import (
    EDGES,
    LABEL,
    PROPERTIES,
    TEST_ACCURACY,
    Task,
    edge_task,
    label_tasks,
    tasks_of,
    with_fewer,
)
from nws_dataset.experiments import commands
from nws_dataset.experiments.accuracies import between, run_tuned, tasks_by_dataset, trials_by_seed
from nws_dataset.experiments.recipes import property_trial
from nws_dataset.pages.summary import report_evaluation

ALL_PROPERTIES = "properties"
ASKED = (LABEL, TEST_ACCURACY, EDGES, ALL_PROPERTIES)
FIRST_POINT = 500  # networks at the first point of a learning curve; the number doubles at each further point
FULL = 0.9  # of the training part: a curve's next-to-last point has fewer networks
# with several seeds, and with a learning curve of the first, where they read whole networks
REPEATED = (GRAPH_NETWORK, HYBRID, PLAIN_MLP, PERMUTED_MLP, BOOSTING)
WHOLE_NETWORK = (GRAPH, GRAPH_STATISTICS, ROW, LAYERS)
OF_SLICES = (SLICE, UNITS, SLICE_STATISTICS)  # with learning curves for properties
LEAST_STEPS = 3000  # of the deep meta-classifier
TASKS_HELP = f"What to ask, any of {','.join(ASKED)}, or properties by name.  [default: what the zoo holds]"
SNAPSHOTS_HELP = "Snapshots that methods on slices and statistics learn from."
SIZES_HELP = (
    "Numbers of networks to learn from in learning curves, separated by commas, or none.  [default: for "
    f"classes of images and accuracies {FIRST_POINT}, doubled as often as the zoo allows]"
)
STEPS_HELP = (
    f"Steps of the deep meta-classifier, at most {Settings.epochs} epochs, as in the paper.  "
    f"[default: {LEAST_STEPS}]"
)
WIDTH_HELP = (
    f"Width of the deep meta-classifier, as a share of the paper's.  [default: {SMALL_SETTINGS.width:g}]"
)
METHODS_HELP = "Methods to try, by name, separated by commas.  [default: all]"


def settings_for(
    inputs: Inputs, snapshots: str, steps: int | None = None, width: float | None = None
) -> Settings:
    """The meta-classifier's settings: slices are no longer than rows; `steps` are LEAST_STEPS by default."""
    longest = int(inputs.final["num_weights"].max())
    length = min(SMALL_SETTINGS.slice_length, longest)
    return dataclasses.replace(
        SMALL_SETTINGS,
        snapshots=snapshots,
        slice_length=length,
        least_steps=LEAST_STEPS if steps is None else steps,
        width=SMALL_SETTINGS.width if width is None else width,
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of a zoo."""

    inputs: Inputs
    seeds: range
    asked: Sequence[str]  # of ASKED, or properties
    methods: Sequence[str] | None = None  # by name; None: all
    sizes: Sequence[int] | None = None  # of learning curves; None: chosen by the zoo

    def trials(self) -> tuple[list[Trial], list[str]]:
        """All trials, and notes on what is left out."""
        parts: dict[str, Callable[[], Iterator[Trial]]] = {
            LABEL: self._of_label,
            TEST_ACCURACY: self._of_accuracies,
            EDGES: self._of_edges,
            ALL_PROPERTIES: functools.partial(self._of_properties, None),
        }
        named = [name for name in self.asked if name not in parts]
        groups = [parts[name]() for name in self.asked if name in parts]
        groups += [self._of_properties(named)] if named else []
        trials = list(itertools.chain(*groups))
        trials = [
            _timed(trial)
            for trial in trials
            if (self.methods is None or trial.method.name in self.methods)
            and (trial.method.name in REPEATED or trial.seed == self.seeds[0])
        ]
        return trials, self.inputs.skipped

    def _of_label(self) -> Iterator[Trial]:
        for seed in self.seeds:
            for task in label_tasks(self.inputs.final, self.inputs.datasets, seed):
                yield from self._of_values(task, seed, LABEL)

    def _of_properties(self, names: Sequence[str] | None) -> Iterator[Trial]:
        for seed in self.seeds:
            for task in tasks_of(self.inputs.final, names, seed)[0]:
                yield from self._of_values(task, seed, "what")

    def _of_values(self, task: Task, seed: int, experiment: str) -> Iterator[Trial]:
        """All methods, for a class or a number of the recipe."""
        target = NUMBER if task.is_number else CLASS
        for method in [*property_methods(self.inputs, by_layer=False), *metanetworks(self.inputs, target)]:
            yield property_trial(self.inputs, method, task, seed, (experiment,))
            for size in self._sizes(method, task, seed):
                yield property_trial(self.inputs, method, with_fewer(task, size, seed), seed, (SIZED,))

    def _sizes(self, method: Method, task: Task, seed: int) -> list[int]:
        """The sizes of a method's learning curve, but for the whole training part."""
        of_property = task.target in PROPERTIES
        shown = method.name in REPEATED and method.input in WHOLE_NETWORK
        if seed != self.seeds[0] or not (shown or (of_property and method.input in OF_SLICES)):
            return []
        usual = [] if of_property else [FIRST_POINT << i for i in range(20)]
        whole = min(len(fold.training) for fold in task.folds)
        return [size for size in (usual if self.sizes is None else self.sizes) if size < FULL * whole]

    def _of_accuracies(self) -> Iterator[Trial]:
        for tasks in tasks_by_dataset(self.inputs, self.seeds):
            methods = [predictor(self.inputs, BOOSTING, tasks[0]), *metanetworks(self.inputs, NUMBER)]
            labels: dict[str, Any] = {**between(tasks[0]), "dataset": tasks[0].words}
            for method in methods:
                yield from trials_by_seed(self.inputs, "accuracy", method, tasks, self.seeds, **labels)
                for size in self._sizes(method, tasks[0], self.seeds[0]):
                    fewer, first = [with_fewer(tasks[0], size, self.seeds[0])], self.seeds[:1]
                    about = labels | {"num_train": size}
                    yield from trials_by_seed(self.inputs, SIZED, method, fewer, first, **about)

    def _of_edges(self) -> Iterator[Trial]:
        if self.inputs.skipped or not self.inputs.architecture.edge_scores():
            return
        final = self.inputs.final
        for tasks in tasks_by_dataset(self.inputs, self.seeds):
            scores = self.inputs.zoo.edge_scores(final[tasks[0].models])
            of_edges = [edge_task(task, final, scores) for task in tasks]
            methods = [edge_boosting(self.inputs), *metanetworks(self.inputs, OF_EDGES)]
            for method, (task, seed) in itertools.product(methods, zip(of_edges, self.seeds, strict=True)):
                about: dict[str, Any] = {"experiment": EDGES, "target": EDGES, "task": "edges that are kept"}
                about |= {"method": method.name, "input": method.input, "dataset": task.words}
                about |= {**between(task), "num_train": len(task.folds[0].training), "seed": seed}
                score = functools.partial(_score_edges, self.inputs, seed == self.seeds[0])
                yield Trial(task, method, seed, score, about)


def _score_edges(inputs: Inputs, first: bool, trial: Trial, answers: Answers) -> Outcome:
    """Scores of the edges of all held-out networks; of the first seed an interval and one network."""
    task, tested = trial.task, trial.task.tested
    truth, predicted = task.truth[tested], answers.predicted[Question()][tested]
    records = records_of_edges(trial.labels, truth, predicted, intervals=first)
    if first:
        shown = str(inputs.final["model_id"][task.models[tested[0]]])
        edges = [hex_of_edges(truth[0]), hex_of_edges(predicted[0] > 0.5)]
        records[0] = dataclasses.replace(records[0], examples=[[shown, *edges]])
    return Outcome(records)


def _timed(trial: Trial) -> Trial:
    """The trial, whose records also say how long it took."""
    return dataclasses.replace(trial, score=functools.partial(_with_seconds, trial.score))


def _with_seconds(score: Callable[[Trial, Answers], Outcome], trial: Trial, answers: Answers) -> Outcome:
    outcome = score(trial, answers)
    seconds = round(answers.seconds, 2)
    records = [dataclasses.replace(record, seconds=seconds) for record in outcome.records]
    return dataclasses.replace(outcome, records=records)


def tested_networks(inputs: Inputs, trials: Sequence[Trial]) -> dict[str, str]:
    """A task in words -> the SHA-256 of its test networks' IDs, in which two results can be compared."""
    ids = inputs.final["model_id"]
    return {
        trial.task.words: digest_of(sorted(ids[trial.task.models[trial.task.tested]].tolist()))
        for trial in reversed(trials)
    }


def notes_of(outcome: dict[str, Any], settings: Settings, seeds: int) -> list[str]:
    """Notes on how the numbers were obtained, for the Markdown file and the terminal."""
    repeated = (
        f"{'; '.join(REPEATED)}: mean over {seeds} seeds, ± their standard deviation, and learning curves of "
        "the first seed; the others one seed."
    )
    return [
        f"Held out: {outcome['held_out']}. {repeated if seeds > 1 else 'One seed.'} "
        f"{outcome['seconds']:,.0f} CPU seconds of fitting and predicting.",
        f"Methods on slices and statistics learn from {SNAPSHOTS[settings.snapshots]}, the others from final "
        "ones. Networks on rows, sets and graphs are trained with AdamW "
        f"for {FEWEST} epochs (on few networks for more, up to {MOST}), on inputs standardised by the "
        "training networks: a weight by itself for what reads rows, else together with those that a "
        "permutation of units exchanges. The epoch is chosen on validation networks. Of sines, units get "
        "random signs in training, as these do not change a network.",
        f"Deep meta-classifier: the paper's network, {settings.width:g} as wide, slices of "
        f"{settings.slice_length:,} weights, {settings.least_steps:,} steps (or {Settings.epochs} epochs, if "
        "these are fewer).",
        *outcome["skipped"],
    ]


def evaluate(
    plan: Plan, *, progress: Callable[[Sequence[float], int, int], Any] = console.progress, **options: Any
) -> dict[str, Any]:
    """Fit and test all methods on all tasks; `options` are those of `run`.

    Returns:
        "results", the records; "tested", digests of the test networks; "held_out", "skipped", "seconds".

    Raises:
        ZooError: if there is nothing to ask.
    """
    trials, skipped = plan.trials()
    if not trials:
        found, do = "none", "choose other tasks or methods, or build a zoo that has some"
        raise ZooError(
            plan.inputs.zoo.name, expected=f"tasks among {', '.join(plan.asked)}", found=found, do=do
        )
    outcomes = run_tuned(trials, progress, **options)
    return {
        "held_out": describe([len(trial.task.folds) for trial in trials]),
        "results": [record for outcome in outcomes for record in outcome.records],
        "tested": tested_networks(plan.inputs, trials),
        "skipped": skipped,
        # of all trials, also those that an interrupted run had done
        "seconds": round(sum(outcome.records[0].seconds or 0 for outcome in outcomes if outcome.records), 1),
    }


def _numbers(value: str | None) -> list[int] | None:
    """Numbers of networks from text; an empty list for "none"."""
    if not value:
        return None
    words = [] if value == "none" else value.split(",")
    if not all(word.isdecimal() and int(word) > 1 for word in words):
        expected, do = "numbers of at least 2, separated by commas, or none", "choose such numbers"
        raise ZooError("--sizes", expected=expected, found=repr(value), do=do)
    return [int(word) for word in words]


@click.command(cls=Command)
@commands.zoo_argument
@commands.out_option
@commands.list_option("--tasks", "asked", legal=(*ASKED, *PROPERTIES), help=TASKS_HELP)
@commands.list_option("--methods", help=METHODS_HELP)
@commands.seeds_option("Number of seeds; methods that are not compared in detail get one.")
@commands.option("--snapshots", default="final", type=click.Choice(list(SNAPSHOTS)), help=SNAPSHOTS_HELP)
@commands.option("--steps", type=click.IntRange(1), metavar="N", help=STEPS_HELP)
@commands.option("--width", type=click.FloatRange(0, 1, min_open=True), metavar="X", help=WIDTH_HELP)
@commands.option("--sizes", metavar="N,N|none", help=SIZES_HELP)
@commands.jobs_options("one per core")
def main(
    zoo: str,
    revision: str | None,
    out: Path | None,
    asked: list[str] | None,
    methods: list[str] | None,
    seeds: int,
    snapshots: str,
    steps: int | None,
    width: float | None,
    sizes: str | None,
    jobs: int | None,
    ray: str | None,
) -> None:
    """Ask all that can be asked of the networks of ZOO, by every method.

    ZOO is a folder, or ORG/NAME on the Hub.

    \b
    Tasks, where the zoo has them:
      label          the class of the image that a network represents
      test_accuracy  a network's test accuracy, for each data set
      edges          which edges of a KAN are kept
      properties     each property of the recipe that varies

    Prints tables, and writes JSON, Markdown and plots. An interrupted run resumes where it stopped.
    """
    numbers = _numbers(sizes)
    opened, folder = commands.begin(zoo, revision, out, ray)
    inputs = Inputs.of(opened)
    inputs = dataclasses.replace(inputs, settings=settings_for(inputs, snapshots, steps, width))
    kept = Kept(folder / "evaluation.part", [inputs.digest, dataclasses.asdict(inputs.settings)])
    plan = Plan(inputs, range(seeds), asked or ASKED, methods, numbers)
    with commands.keeping(kept):
        outcome = evaluate(plan, jobs=jobs or joblib.cpu_count(), kept=kept, ray=ray)
        contents = {
            "experiment": "evaluation",
            "zoo": facts_of(opened, commands.name_of(zoo)),
            "command": commands.command_line(),
            "kinds": sorted(set(inputs.final["kind"])),
            "settings": dataclasses.asdict(inputs.settings),
            **outcome,
        }
        report_evaluation(folder, contents, notes_of(outcome, inputs.settings, seeds), opened)
