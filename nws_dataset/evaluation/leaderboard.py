"""All methods of a zoo on one HTML page that opens without a server, from the files that the evaluation
commands wrote.

python scripts/leaderboard.py ZOO
"""

from __future__ import annotations

import functools
import itertools
import os
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nws_dataset.console import Command
from nws_dataset.errors import ZooError, one_line, reason
from nws_dataset.evaluation import charts, report
from nws_dataset.evaluation.charts import Line, Panel, round_up
from nws_dataset.evaluation.results import Results
from nws_dataset.evaluation.tables import (
    ALL,
    METRICS,
    NETS,
    SIZED,
    Given,
    Score,
    Table,
    input_words,
    scores_of,
    table_of,
)
from nws_dataset.files import atomic_write, path_type

if TYPE_CHECKING:
    import jinja2

    from nws_dataset.reading.zoo import Zoo

PAGE = "leaderboard.html"
TEMPLATE = f"{PAGE}.j2"  # beside this file
NUM_STYLES = 7  # colours and dashes of lines
METRIC_ORDER = tuple(METRICS)
PAPER = Given("paper", "Paper", METRICS["r2"].words)
GUESSES = (
    Given("chance", "No weights read", "chance"),
    Given("from_architecture", "No weights read", "architecture"),
)
FLOOR_STEP = 0.25  # the bottom of an axis is a multiple of it


@dataclass(frozen=True)
class Figure:
    """Charts side by side, with one legend."""

    caption: str
    panels: list[Panel]

    @property
    def styles(self) -> dict[str, int]:
        """The number of each line's colour and dash, which are the same in all panels."""
        names = dict.fromkeys(line.name for panel in self.panels for line in panel.lines)
        return {name: i % NUM_STYLES for i, name in enumerate(names)}


@dataclass(frozen=True)
class Section:
    """A question, and what answers it."""

    id: str
    title: str
    lead: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    more: list[Table] = field(default_factory=list)  # behind a click


# What is shown of each experiment


def _select(scores: Iterable[Score], **conditions: Any) -> list[Score]:
    """The scores whose fields have these values."""
    return [score for score in scores if all(score[name] == value for name, value in conditions.items())]


def _distinct(scores: Iterable[Score], name: str) -> list[Any]:
    return list(dict.fromkeys(score[name] for score in scores))


def _reader(score: Score) -> tuple[str, str]:
    """Who reads what: a column."""
    return score["method"], input_words(score["input"])


def _measure(score: Score) -> tuple[str, str]:
    """Which networks are scored by what: a column."""
    return NETS.get(score["nets"], score["nets"]), score.metric.words


def _by_measure(scores: Iterable[Score]) -> list[Score]:
    """All networks before converged ones, then metrics in the page's order; the columns of a table come in
    this order.
    """
    nets = list(NETS)

    def place(score: Score) -> tuple[int, int]:
        known = METRIC_ORDER.index(score["metric"]) if score["metric"] in METRIC_ORDER else len(METRIC_ORDER)
        return nets.index(score["nets"]) if score["nets"] in nets else len(nets), known

    return sorted(scores, key=place)


def accuracy_section(scores: list[Score]) -> Section:
    """The ranking of methods by what they read, for each data set."""
    tables = []
    for dataset in _distinct(scores, "dataset"):
        ranked = table_of(
            f"Networks trained on {dataset}, by R²" if dataset else "By R²",
            _by_measure(_select(scores, dataset=dataset)),
            ("input", "method"),
            lambda score: (input_words(score["input"]), score["method"]),
            _measure,
            given=[PAPER],
            ranked=True,
        )
        tables.append(ranked)
    lead = (
        "The test accuracy of networks that no method has seen, predicted from their final weights, or "
        "from what is named as input."
    )
    return Section("accuracy", "How accurate is this network?", lead, tables)


def what_section(scores: list[Score]) -> Section:
    """A table of properties by methods for each metric; converged networks behind a click."""

    def table(part: list[Score], nets: str) -> Table:
        caption = f"{NETS.get(nets, nets)}: {part[0].metric.words}" + (
            ", lower is better" if part[0].metric.lower_is_better else ""
        )
        return table_of(
            caption,
            part,
            ("property",),
            lambda score: (_property(score),),
            _reader,
            given=GUESSES,
            best_of_row=True,
        )

    kinds = list(dict.fromkeys((score["nets"], score["metric"]) for score in _by_measure(scores)))
    tables = {
        (nets, metric): table(_select(scores, nets=nets, metric=metric), nets) for nets, metric in kinds
    }
    lead = (
        "Properties of the training, told from the final weights of held-out networks. Chance is the share "
        "of the most frequent value,"
        " or the error of the median number. Beside it stands the best guess of one who knows a network's "
        "architecture and none of its"
        " weights. Only what is beyond both was read off the weights."
    )
    return Section(
        "what",
        "What do the weights tell of their training?",
        lead,
        [table for (nets, _), table in tables.items() if nets == ALL],
        more=[table for (nets, _), table in tables.items() if nets != ALL],
    )


def _property(score: Score) -> str:
    return str(score["task"] or score["target"]).replace("_", " ")


def when_section(scores: list[Score]) -> Section:
    """Curves over snapshots."""
    figure = Figure(
        "All held-out networks; dashed: chance. Bands: one standard deviation over seeds.",
        _told_panels(scores, "snapshot"),
    )
    lead = (
        "The same methods, trained as above, read the held-out networks at earlier snapshots; the first "
        "is the initialization."
    )
    return Section(
        "when", "When do the weights tell it?", lead, figures=[figure], more=_pivots(scores, "snapshot")
    )


def where_section(scores: list[Score]) -> Section:
    """Curves over positions, and tables of parts and layers."""
    along = [score for score in scores if score["position"] != ""]
    parts = sorted((score for score in scores if score["position"] == ""), key=lambda score: score["method"])
    figures = (
        [
            Figure(
                "Slices along the row of weights, from input (0) to output (1).",
                _told_panels(along, "position"),
            )
        ]
        if along
        else []
    )
    tables = []
    for nets, metric in dict.fromkeys((score["nets"], score["metric"]) for score in _by_measure(parts)):
        part = _select(parts, nets=nets, metric=metric)
        caption = f"By part and layer, {NETS.get(nets, nets).lower()}: {part[0].metric.words}"
        tables.append(
            (
                nets,
                table_of(
                    caption,
                    part,
                    ("property",),
                    lambda score: (_property(score),),
                    _reader,
                    given=GUESSES,
                    best_of_row=True,
                ),
            )
        )
    lead = (
        "From one slice of the weights at a time, from the convolutional or the dense part, and from "
        "the statistics of single layers."
    )
    shown, more = ([table for nets, table in tables if (nets == ALL) == first] for first in (True, False))
    return Section(
        "where",
        "Where do the weights tell it?",
        lead,
        shown,
        figures,
        more + (_pivots(along, "position") if along else []),
    )


def _told_panels(scores: Iterable[Score], axis: str) -> list[Panel]:
    """A panel for each property, of all networks."""
    everyone = _select(scores, nets=ALL)
    panels = []
    for target, metric in dict.fromkeys((score["target"], score["metric"]) for score in everyone):
        part = _select(everyone, target=target, metric=metric)
        lines = _lines(part, axis, _reader)
        chance = part[0].mean("chance")
        words = "" if metric == "accuracy" else f", {part[0].metric.words}"
        top = max(y + spread for line in lines for _, y, spread in line.points)
        high = 1.0 if part[0].metric.is_share or top <= 0 else round_up(top)
        panels.append(Panel(_property(part[0]) + words, lines, axis, 0.0, high, chance))
    return panels


def _pivots(scores: Iterable[Score], axis: str) -> list[Table]:
    """The numbers of curves: a table for each kind of networks and metric, a column for each place on the
    axis.
    """
    tables = []
    ordered = sorted(scores, key=lambda score: score[axis])
    for nets, metric in dict.fromkeys((score["nets"], score["metric"]) for score in _by_measure(ordered)):
        part = _select(ordered, nets=nets, metric=metric)
        tables.append(
            table_of(
                f"{NETS.get(nets, nets)}: {part[0].metric.words} by {axis}",
                part,
                ("property", "method", "input"),
                lambda score: (_property(score), *_reader(score)),
                lambda score: (axis, f"{score[axis]:.3g}"),
            )
        )
    return tables


def _lines(scores: Iterable[Score], axis: str, name_of: Callable[[Score], Sequence[str]]) -> list[Line]:
    """A line for each name."""
    by_name: dict[str, list[Score]] = {}
    for score in scores:
        by_name.setdefault(", ".join(name_of(score)), []).append(score)
    return [
        Line(name, sorted((score[axis], score.mean() or 0.0, score.spread or 0.0) for score in part))
        for name, part in by_name.items()
    ]


def _kinds(across: str) -> str:
    """What a matrix lies across, in words.

    Example:
        >>> _kinds("dataset"), _kinds("architecture"), _kinds("")
        ('data sets', 'architectures', 'kinds')
    """
    return f"{across.replace('dataset', 'data set') or 'kind'}s"


def transfer_section(scores: list[Score]) -> Section:
    """Matrices of rank correlation and R2, and all other measures behind a click."""
    shown, more, lead = (
        [],
        [],
        ("A predictor learns from networks of one kind and is asked about another, without training again."),
    )
    for across, method in dict.fromkeys((score["across"], score["method"]) for score in scores):
        for metric in ("kendall_tau", "r2"):
            part = _select(scores, across=across, method=method, nets=ALL, metric=metric)
            caption = f"{METRICS[metric].words} across {_kinds(across)}: {method}"
            row, column = (
                (lambda score: (score["trained_on"],)),
                (lambda score: ("tested on", score["tested_on"])),
            )
            shown += [table_of(caption, part, ("trained on",), row, column, shaded=True)] if part else []
    others = [
        score
        for score in scores
        if (score["nets"], score["metric"]) not in {(ALL, "kendall_tau"), (ALL, "r2")}
    ]
    for across in _distinct(others, "across"):
        more.append(_crossings(f"Other measures across {_kinds(across)}", _select(others, across=across)))
    return Section("transfer", "Does it carry over?", lead, shown, more=more)


def held_out_section(scores: list[Score]) -> Section:
    """One value of the recipe at a time that was never trained on."""
    tables = [
        _crossings(f"One of the {_kinds(across)} held out at a time", _select(scores, across=across))
        for across in _distinct(scores, "across")
    ]
    return Section(
        "held_out",
        "And to what was never trained on?",
        "All values but one train; networks of that one are tested.",
        tables,
    )


def _crossings(caption: str, scores: Iterable[Score]) -> Table:
    """Rows of who was trained on, who was tested and by which method."""
    names = ("trained_on", "tested_on", "method", "input")
    heads = tuple(name.replace("_", " ") for name in names)
    return table_of(
        caption,
        _by_measure(scores),
        heads,
        lambda score: (*(score[name] for name in names[:3]), input_words(score["input"])),
        _measure,
    )


def early_section(scores: list[Score]) -> Section:
    """Final accuracy from early weights: R2 and tau over snapshots."""
    panels = [
        _score_panel(
            f"{group}: {METRICS[metric].words}",
            part,
            "snapshot",
            lambda score: (input_words(score["input"]),),
        )
        for group, metric in itertools.product(_distinct(scores, "trained_on"), ("r2", "kendall_tau"))
        if (part := _select(scores, trained_on=group, metric=metric, nets=ALL))
    ]
    lead = (
        "The final accuracy, predicted from the weights of an earlier snapshot, beside a prediction from "
        "the accuracy at that snapshot:"
        " what weights know beyond what the network already shows. Values below the axis are drawn on it."
    )
    names = ("networks", "snapshot", "epoch", "method", "input")
    table = table_of(
        "All numbers",
        _by_measure(scores),
        names,
        lambda score: (
            score["trained_on"],
            *(str(score[name]) for name in names[1:4]),
            input_words(score["input"]),
        ),
        _measure,
    )
    return Section(
        "early",
        "How early can one tell?",
        lead,
        figures=[Figure("All held-out networks.", panels)],
        more=[table],
    )


def curve_section(scores: list[Score]) -> Section:
    """R2 over the number of networks that were trained on; the curves end in the scores of all."""
    sizes = _select(scores, experiment=SIZED)
    panels = []
    for dataset, name in dict.fromkeys((score["dataset"], score["input"]) for score in sizes):
        methods = _distinct(_select(sizes, dataset=dataset, input=name), "method")
        part = _select(scores, dataset=dataset, input=name, metric="r2", nets=ALL)
        part = [score for score in part if score["method"] in methods and score["num_train"]]
        title = f"{dataset}: {input_words(name)}"
        panels += (
            [_score_panel(title, part, "num_train", lambda score: (score["method"],), logarithmic=True)]
            if part
            else []
        )
    names = ("networks", "input", "method", "trained on")
    table = table_of(
        "All numbers",
        _by_measure(sizes),
        names,
        lambda score: (
            score["dataset"],
            input_words(score["input"]),
            score["method"],
            str(score["num_train"]),
        ),
        _measure,
    )
    lead = (
        "R² of the test accuracy over the number of networks to learn from. Values below the axis are "
        "drawn on it."
    )
    return Section(
        SIZED,
        "How many networks does it take?",
        lead,
        figures=[Figure("All held-out networks.", panels)],
        more=[table],
    )


def _score_panel(
    title: str,
    scores: list[Score],
    axis: str,
    name_of: Callable[[Score], Sequence[str]],
    logarithmic: bool = False,
) -> Panel:
    """Lines of R2 or tau, from a round number below the lowest, zero at least, to one."""
    lines = _lines(scores, axis, name_of)
    lowest = min(y for line in lines for _, y, _ in line.points)
    low = min(max(0.0, lowest // FLOOR_STEP * FLOOR_STEP), 1 - FLOOR_STEP)
    return Panel(
        title,
        lines,
        "networks to learn from" if axis == "num_train" else axis,
        low,
        1.0,
        logarithmic=logarithmic,
    )


SECTIONS: dict[str, Callable[[list[Score]], Section]] = {
    "accuracy": accuracy_section,
    "what": what_section,
    "when": when_section,
    "where": where_section,
    "transfer": transfer_section,
    "held_out": held_out_section,
    "early": early_section,
    SIZED: curve_section,
}  # experiment -> its part of the page, in the page's order


# The page


@functools.cache
def _template() -> jinja2.Template:
    """The page, without what is on it."""
    import jinja2

    text = resources.files(__package__ or "").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(text)


def page_of(facts: Facts, results: Sequence[Results]) -> str:
    """The HTML of all results of a zoo.

    Args:
        facts: of the zoo.
        results: the files; experiments that the page does not know are named at its end.

    Raises:
        ZooError: if two files say different things of the same.
    """
    records = [record for part in results for record in part.records]
    scores = scores_of(record for record in records if record["experiment"] in SECTIONS)
    by_experiment = {name: _select(scores, experiment=name) for name in SECTIONS}
    if by_experiment[SIZED]:
        by_experiment[SIZED] += by_experiment["accuracy"]
    used = {score["metric"] for score in scores}
    return _template().render(
        facts=facts,
        sections=[SECTIONS[name](part) for name, part in by_experiment.items() if part],
        measures=[metric for name, metric in METRICS.items() if name in used],
        results=results,
        splits=sorted({(score["trained_on"], score["tested_on"]) for score in scores} - {("", "")}),
        seeds=sorted({str(record["seed"]) for record in records if "seed" in record}),
        left_out=sorted({record["experiment"] for record in records} - SECTIONS.keys()),
        chart={
            name: getattr(charts, name.upper())
            for name in ("width", "height", "left", "right", "top", "bottom")
        },
    )


@dataclass(frozen=True)
class Facts:
    """What the head of the page says of a zoo."""

    name: str
    subsets: dict[str, Any]  # seed, options and num_models of each
    num_models: int
    num_snapshots: int  # rows
    datasets: list[str]
    architectures: int
    splits: dict[str, int]  # models of each

    @classmethod
    def of(cls, zoo: Zoo, called: str) -> Facts:
        final = zoo.filter(is_final=True)
        splits = final["split"].tolist()
        return cls(
            **report.facts_of(zoo, called),
            num_models=len(final),
            num_snapshots=len(zoo.filter()),
            datasets=sorted(set(final["dataset"])),
            architectures=len(set(final["architecture"])),
            splits={split: splits.count(split) for split in dict.fromkeys(splits)},
        )


def check_zoo(facts: Facts, results: Results) -> None:
    """Raise a ZooError if results are those of another zoo, or of this one before it grew."""
    told = results.contents["zoo"].get("subsets")
    if told != facts.subsets:
        do = "evaluate this zoo again, or choose other results (--results)"
        raise ZooError(
            results.path,
            expected=f"results of {facts.name} with {facts.subsets}",
            found=reprlib.repr(told),
            do=do,
        )


def _files(paths: Iterable[Path]) -> list[Path]:
    """Files of results, and those in folders of results.

    Raises:
        ZooError: for a folder that cannot be listed. What is no file is left to `Results.read`.
    """
    found = []
    for path in paths:
        try:
            found += sorted(
                path / name
                for name in os.listdir(path)
                if name.endswith(".json") and not name.startswith(".")
            )
        except NotADirectoryError:
            found.append(path)
        except OSError as error:
            if path_type(path) == "a folder":
                do = "permit reading, or choose other results (--results)"
                raise ZooError(
                    path, expected="a folder that can be listed", found=reason(error), do=do
                ) from error
            found.append(path)
    return found


@click.command(cls=Command)
@click.argument("zoo")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Folder with results, or one of their files.  [default: ZOO-results]",
)
@click.option(
    "--method",
    "methods",
    metavar="FILE.py:Class",
    multiple=True,
    help="A class with fit(rows, y) and predict(rows), to try too.",
)
@click.option(
    "--seeds",
    default=3,
    show_default=True,
    type=click.IntRange(1, report.MAX_SEEDS),
    help="Repetitions of a method.",
)
@click.option("--again", is_flag=True, help="Try methods again, though their results are there.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help=f"The page.  [default: ZOO-results/{PAGE}]"
)
def main(
    zoo: str, results: tuple[Path, ...], methods: tuple[str, ...], seeds: int, again: bool, out: Path | None
) -> None:
    """Put all methods of ZOO on one HTML page that opens without a server.

    Reads what nws-evaluate-predictors and nws-evaluate-meta-classifier wrote. A METHOD is one class, tried on
    the zoo's standard tasks: if it inherits scikit-learn's ClassifierMixin, on the properties that are
    classes; else on the test accuracy and on properties that are numbers. Its results are kept beside the
    page, and taken from there until its file changes.
    """
    from nws_dataset.reading.zoo import Zoo

    report.be_patient()
    opened, called = Zoo(zoo), report.name_of(zoo)
    folder = report.results_folder(zoo, None)
    page = out or folder / PAGE
    report.check_folder(page.parent)
    if path_type(page) not in ("nothing", "a file"):
        raise ZooError(
            page, expected="a file, or none", found=path_type(page), do="choose another page (--out)"
        )
    paths = _files(results or (folder,) * (path_type(folder) != "nothing"))
    if methods:
        from nws_dataset.evaluation.methods import Candidate, results_file

        candidates = [Candidate.load(text) for text in methods]
        names = [candidate.name for candidate in candidates]
        if len(set(names)) < len(names):
            raise ZooError(
                "--method",
                expected="classes of different names",
                found=", ".join(names),
                do="rename one of them",
            )
        paths += [
            results_file(opened, called, candidate, seeds, page.parent, again) for candidate in candidates
        ]
    read = [Results.read(Path(path)) for path in dict.fromkeys(map(os.path.realpath, paths))]
    if not read:
        do = f"run nws-evaluate-predictors {zoo} first, or give --results or --method"
        raise ZooError(folder, expected="results of an evaluation", found="none", do=do)
    facts = Facts.of(opened, called)
    for part in read:
        check_zoo(facts, part)
    html = page_of(facts, read)
    with atomic_write(page) as temporary:
        # results may hold half a character
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")
    click.echo(f"Written: {one_line(page)}")
