"""What is shown of each experiment, on the page and in reports: tables and charts of scores."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nws_dataset.console import Table
from nws_dataset.evaluation.inputs import words_of
from nws_dataset.evaluation.pages.charts import Figure, Line, Panel, round_up
from nws_dataset.evaluation.pages.tables import Given, table_of
from nws_dataset.evaluation.scores import ALL, METRICS, NETS, SIZED, Score, distinct, select

METRIC_ORDER = tuple(METRICS)
PAPER = Given("paper", "Paper", METRICS["r2"].words)
GUESSES = (
    Given("chance", "No weights read", "chance"),
    Given("from_architecture", "No weights read", "architecture"),
)
FLOOR_STEP = 0.25  # the bottom of an axis is a multiple of it


@dataclass(frozen=True)
class Section:
    """A question, and what answers it."""

    id: str
    title: str
    lead: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    more: list[Table] = field(default_factory=list)  # behind a click


def _words(score: Score, name: str) -> str:
    """A field for people."""
    value = score.words if name == "property" else getattr(score.first, name)
    return "" if value is None else words_of(value) if name == "input" else str(value)


def method_of(score: Score) -> tuple[str, str]:
    """Who reads what: a column."""
    return _words(score, "method"), _words(score, "input")


def _measure(score: Score) -> tuple[str, str]:
    """Which networks are scored by what: a column."""
    return score.nets, score.metric.words


def by_measure(scores: Iterable[Score]) -> list[Score]:
    """All networks before converged ones, then metrics in the page's order; the columns of a table come in
    this order.
    """

    def rank(score: Score) -> tuple[int, int]:
        orders = (score.first.nets, list(NETS)), (score.first.metric, list(METRICS))
        nets, metric = (order.index(name) if name in order else len(order) for name, order in orders)
        return nets, metric

    return sorted(scores, key=rank)


def _table(
    title: str,
    scores: list[Score],
    heads: Mapping[str, str],
    column_of: Callable[[Score], Any],
    **options: Any,
) -> Table:
    """A table of scores; the heads of its rows are fields, each under a name."""

    def head_of(score: Score) -> tuple[str, ...]:
        return tuple(_words(score, name) for name in heads.values())

    return table_of(title, scores, tuple(heads), head_of, column_of, **options)


def accuracy_section(scores: list[Score]) -> Section:
    """The ranking of methods by what they read, for each data set."""
    heads, tables = {"input": "input", "method": "method"}, []
    for dataset in distinct(scores, "dataset"):
        title = f"Networks trained on {dataset}, by R²" if dataset else "By R²"
        part = by_measure(select(scores, dataset=dataset))
        tables.append(_table(title, part, heads, _measure, given=[PAPER], ranked=True))
    lead = (
        "The test accuracy of networks that no method has seen, predicted from their final weights, or from "
        "what is named as input."
    )
    return Section("accuracy", "How accurate is this network?", lead, tables)


def _property_tables(scores: list[Score], words: str) -> tuple[list[Table], list[Table]]:
    """Properties by methods, a table for each metric: of all networks, and of others."""
    tables: tuple[list[Table], list[Table]] = ([], [])
    for nets, metric in distinct(by_measure(scores), "nets", "metric"):
        part = select(scores, nets=nets, metric=metric)
        title = words.format(nets=part[0].nets, metric=part[0].metric.words)
        title += ", lower is better" if part[0].metric.lower_is_better else ""
        options = {"given": GUESSES, "best_of_row": True}
        tables[nets != ALL].append(_table(title, part, {"property": "property"}, method_of, **options))
    return tables


def what_section(scores: list[Score]) -> Section:
    """A table of properties by methods for each metric; converged networks behind a click."""
    tables, more = _property_tables(scores, "{nets}: {metric}")
    lead = (
        "Properties of the training, told from the final weights of held-out networks. Chance is the share "
        "of the most frequent value, or the error of the median number. Beside it stands the best guess of "
        "one who knows a network's architecture and none of its weights. Only what is beyond both was read "
        "off the weights."
    )
    return Section("what", "What do the weights tell of their training?", lead, tables, more=more)


def when_section(scores: list[Score]) -> Section:
    """Curves over snapshots."""
    caption = "All held-out networks; dashed: chance. Bands: one standard deviation over seeds."
    lead = (
        "The same methods, trained as above, read the held-out networks at earlier snapshots; the first is "
        "the initialization."
    )
    figures, more = [Figure(caption, property_panels(scores, "snapshot"))], _pivots(scores, "snapshot")
    return Section("when", "When do the weights tell it?", lead, figures=figures, more=more)


def where_section(scores: list[Score]) -> Section:
    """Curves over positions, and tables of parts and layers."""
    along = [score for score in scores if score.first.position is not None]
    parts = sorted(select(scores, position=None), key=lambda score: score.first.method)
    caption = "Slices along the row of weights, from input (0) to output (1)."
    figures = [Figure(caption, property_panels(along, "position"))] if along else []
    lead = (
        "From one slice of the weights at a time, from the convolutional or the dense part, and from the "
        "statistics of single layers."
    )
    tables, more = _property_tables(parts, "By part and layer, {nets}: {metric}")
    more += _pivots(along, "position") if along else []
    return Section("where", "Where do the weights tell it?", lead, tables, figures, more)


def property_panels(scores: Iterable[Score], axis: str) -> list[Panel]:
    """A panel for each property, of all networks."""
    everyone, panels = select(scores, nets=ALL), []
    for target, metric in distinct(everyone, "target", "metric"):
        part = select(everyone, target=target, metric=metric)
        lines, chance = _lines(part, axis, method_of), part[0].mean("chance")
        words = part[0].words + ("" if metric == "accuracy" else f", {part[0].metric.words}")
        top = max(y + spread for line in lines for _, y, spread in line.points)
        high = 1.0 if part[0].metric.is_share or top <= 0 else round_up(top)
        panels.append(Panel(words, lines, axis, 0.0, high, {} if chance is None else {"chance": chance}))
    return panels


def _pivots(scores: Iterable[Score], axis: str) -> list[Table]:
    """The numbers of curves: a table for each kind of networks and metric, a column for each value of the
    axis.
    """
    heads = {name: name for name in ("property", "method", "input")}
    ordered, tables = sorted(scores, key=lambda score: getattr(score.first, axis)), []
    for nets, metric in distinct(by_measure(ordered), "nets", "metric"):
        part = select(ordered, nets=nets, metric=metric)
        title = f"{part[0].nets}: {part[0].metric.words} by {axis}"
        tables.append(_table(title, part, heads, lambda score: (axis, f"{getattr(score.first, axis):.3g}")))
    return tables


def _lines(scores: Iterable[Score], axis: str, name_of: Callable[[Score], Iterable[str]]) -> list[Line]:
    """A line for each name."""
    by_name: dict[str, list[Score]] = {}
    for score in scores:
        by_name.setdefault(", ".join(name_of(score)), []).append(score)
    return [
        Line(name, sorted((getattr(score.first, axis), score.value, score.spread or 0.0) for score in part))
        for name, part in by_name.items()
    ]


def _kinds(across: str | None) -> str:
    """What a matrix lies across, in words.

    Example:
        >>> _kinds("dataset"), _kinds("architecture"), _kinds(None)
        ('data sets', 'architectures', 'kinds')
    """
    return f"{(across or 'kind').replace('dataset', 'data set')}s"


def transfer_section(scores: list[Score]) -> Section:
    """Matrices of rank correlation and R2, and all other measures behind a click."""
    lead = "A predictor learns from networks of one kind and is asked about another, without training again."
    shown = [
        table
        for across, method in distinct(scores, "across", "method")
        for metric in ("kendall_tau", "r2")
        for table in transfer_matrices(select(scores, across=across, method=method), metric)
    ]
    others = [s for s in scores if s.first.nets != ALL or s.first.metric not in ("kendall_tau", "r2")]
    more = _crossings("Other measures across {}", others)
    return Section("transfer", "Does it carry over?", lead, shown, more=more)


def transfer_matrices(scores: list[Score], metric: str) -> list[Table]:
    """Who was trained on by who was tested, for each method; all across the same."""
    heads, tables = {"trained on": "trained_on"}, []
    for method in distinct(scores, "method"):
        part = select(scores, method=method, nets=ALL, metric=metric)
        if part:
            title = f"{METRICS[metric].words} across {_kinds(part[0].first.across)}: {method}"
            tables.append(
                _table(title, part, heads, lambda s: ("tested on", _words(s, "tested_on")), shaded=True)
            )
    return tables


def held_out_section(scores: list[Score]) -> Section:
    """One value of the recipe at a time that was never trained on."""
    lead = "All values but one train; networks of that one are tested."
    tables = _crossings("One of the {} held out at a time", scores)
    return Section("held_out", "And to what was never trained on?", lead, tables)


def _crossings(title: str, scores: list[Score]) -> list[Table]:
    """For each kind of crossing, rows of who was trained on, who was tested and by which method."""
    heads = {name.replace("_", " "): name for name in ("trained_on", "tested_on", "method", "input")}
    kinds = distinct(scores, "across")
    parts = {_kinds(across): by_measure(select(scores, across=across)) for across in kinds}
    return [_table(title.format(kind), part, heads, _measure) for kind, part in parts.items()]


def early_section(scores: list[Score]) -> Section:
    """Final accuracy from early weights: R2 and tau over snapshots."""
    panels = []
    for group, metric in itertools.product(distinct(scores, "trained_on"), ("r2", "kendall_tau")):
        part = select(scores, trained_on=group, metric=metric, nets=ALL)
        title = f"{group}: {METRICS[metric].words}"
        panels += [_score_panel(title, part, "snapshot", "input")] if part else []
    lead = (
        "The final accuracy, predicted from the weights of an earlier snapshot, beside a prediction from the "
        "accuracy at that snapshot: what weights know beyond what the network already shows. Values below "
        "the axis are drawn on it."
    )
    heads = {"networks": "trained_on", **{name: name for name in ("snapshot", "epoch", "method", "input")}}
    table = _table("All numbers", by_measure(scores), heads, _measure)
    figures = [Figure("All held-out networks.", panels)]
    return Section("early", "How early can one tell?", lead, figures=figures, more=[table])


def curve_section(scores: list[Score]) -> Section:
    """R2 over the number of networks that were trained on; the curves end in the scores of all."""
    sizes, panels = select(scores, experiment=SIZED), []
    for dataset, name in distinct(sizes, "dataset", "input"):
        methods = distinct(select(sizes, dataset=dataset, input=name), "method")
        part = select(scores, dataset=dataset, input=name, metric="r2", nets=ALL)
        part = [score for score in part if score.first.method in methods and score.first.num_train]
        title = f"{dataset or ''}: {words_of(name)}"
        panels += [_score_panel(title, part, "num_train", "method", logarithmic=True)] if part else []
    heads = {"networks": "dataset", "input": "input", "method": "method", "trained on": "num_train"}
    table = _table("All numbers", by_measure(sizes), heads, _measure)
    lead = "R² over the number of networks to learn from. Values below the axis are drawn on it."
    figures = [Figure("All held-out networks.", panels)]
    return Section(SIZED, "How many networks does it take?", lead, figures=figures, more=[table])


def _score_panel(title: str, scores: list[Score], axis: str, name: str, logarithmic: bool = False) -> Panel:
    """Lines of R2 or tau, from a round number below the lowest, zero at least, to one."""
    lines = _lines(scores, axis, lambda score: (_words(score, name),))
    lowest = min(y for line in lines for _, y, _ in line.points)
    low = min(max(0.0, lowest // FLOOR_STEP * FLOOR_STEP), 1 - FLOOR_STEP)
    label = "networks to learn from" if axis == "num_train" else axis
    return Panel(title, lines, label, low, 1.0, logarithmic=logarithmic)


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


def sections_of(scores: Iterable[Score]) -> list[Section]:
    """The sections of all experiments that scores are of."""
    known = list(scores)
    parts = {name: select(known, experiment=name) for name in SECTIONS}
    if parts[SIZED]:
        parts[SIZED] += parts["accuracy"]
    return [SECTIONS[name](part) for name, part in parts.items() if part]
