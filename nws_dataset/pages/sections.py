"""Sections of the page and of reports: tables and charts of each experiment's scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from nws_dataset.console import Table
from nws_dataset.evaluation.inputs import words_of
from nws_dataset.evaluation.scores import ALL, METRICS, NETS, SIZED, Score, groups, select
from nws_dataset.evaluation.tasks import EDGES, LABEL
from nws_dataset.pages.charts import NUM_STYLES, Figure, Line, Panel, round_up
from nws_dataset.pages.published import published_tables
from nws_dataset.pages.tables import Given, table_of, words

PAPER = Given("paper", "Paper", METRICS["r2"].words)
GUESSES = (
    Given("chance", "No weights read", "chance"),
    Given("from_architecture", "No weights read", "architecture"),
)
CEILING = Given("ceiling", "No ties", "highest τ")
SECONDS = Given("seconds", "", "CPU seconds", "{:,.0f}".format)
LEARNED_FROM = "networks to learn from"  # the axis of learning curves
RANKS = ("kendall_tau", "r2")  # the metrics shown first
FLOOR_STEP = 0.25  # the bottom of an axis is a multiple of it


@dataclass(frozen=True)
class Section:
    """A question, and the tables and figures that answer it."""

    id: str
    title: str
    lead: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    more: list[Table] = field(default_factory=list)  # collapsed until clicked


# Columns of a table: group and name


def method_of(score: Score) -> tuple[str, str]:
    """Method and input."""
    return words(score, "method"), words(score, "input")


def _measure(score: Score) -> tuple[str, str]:
    """Networks and metric."""
    return score.nets, score.metric.words


def _tested_on(score: Score) -> tuple[str, str]:
    return "tested on", words(score, "tested_on")


def by_measure(scores: Iterable[Score]) -> list[Score]:
    """Sort scores as columns: all networks before converged ones, then metrics in the order of METRICS."""

    def rank(score: Score) -> list[int]:
        pairs = (score.first.nets, list(NETS)), (score.first.metric, list(METRICS))
        return [order.index(name) if name in order else len(order) for name, order in pairs]

    return sorted(scores, key=rank)


# Experiments


def accuracy_section(scores: list[Score]) -> Section:
    """The ranking of methods and their inputs, for each data set."""
    tables = []
    for (dataset,), part in groups(scores, "dataset").items():
        title = f"Networks trained on {dataset}, by R²" if dataset else "By R²"
        tables.append(_ranking(title, part, [PAPER, CEILING, SECONDS]))
    lead = (
        "The test accuracy of held-out networks, predicted from their final weights or from the input named "
        "in the table."
    )
    return Section("accuracy", "How accurate is this network?", lead, tables)


def _ranking(title: str, scores: list[Score], given: Sequence[Given]) -> Table:
    """Methods and their inputs by measure, the best first."""
    heads = {"input": "input", "method": "method"}
    return table_of(title, by_measure(scores), heads, _measure, given=given, ranked=True)


def _property_tables(scores: list[Score], title: str) -> tuple[list[Table], list[Table]]:
    """Properties by methods, a table for each metric: for all networks, and for converged ones."""
    tables: tuple[list[Table], list[Table]] = ([], [])
    for (nets, _), part in groups(by_measure(scores), "nets", "metric").items():
        full = title.format(nets=part[0].nets, metric=part[0].metric.words)
        full += ", lower is better" if part[0].metric.lower_is_better else ""
        table = table_of(full, part, {"property": "property"}, method_of, given=GUESSES, best_of_row=True)
        tables[nets != ALL].append(table)
    return tables


def what_section(scores: list[Score]) -> Section:
    """Properties by methods; converged networks are collapsed."""
    tables, more = _property_tables(scores, "{nets}: {metric}")
    lead = (
        "Properties of the training, predicted from the final weights of held-out networks. Chance is the "
        "share of the most frequent value, or the error of the median number. Beside it is the best guess "
        "from a network's architecture alone. Only a better score than both shows that the weights were read."
    )
    return Section("what", "What do the weights tell of their training?", lead, tables, more=more)


def when_section(scores: list[Score]) -> Section:
    """Curves over snapshots."""
    caption = "All held-out networks; dashed: chance. Bands: one standard deviation over seeds."
    lead = (
        "The same methods, trained as above, predict from earlier snapshots of the held-out networks; the "
        "first is the initialization."
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
        "Predictions from one slice of the weights at a time, from the convolutional or the dense part, and "
        "from the statistics of single layers."
    )
    tables, more = _property_tables(parts, "By part and layer, {nets}: {metric}")
    more += _pivots(along, "position")
    return Section("where", "Where do the weights tell it?", lead, tables, figures, more)


def property_panels(scores: Iterable[Score], axis: str) -> list[Panel]:
    """A panel for each property, of all networks."""
    panels = []
    for (_, metric), part in groups(select(scores, nets=ALL), "target", "metric").items():
        lines, chance = _lines(part, axis, "method", "input"), part[0].mean("chance")
        title = part[0].words + ("" if metric == "accuracy" else f", {part[0].metric.words}")
        top = max(y + spread for line in lines for _, y, spread in line.points)
        high = 1.0 if part[0].metric.is_share or top <= 0 else round_up(top)
        panels.append(Panel(title, lines, axis, 0.0, high, {} if chance is None else {"chance": chance}))
    return panels


def _pivots(scores: Iterable[Score], axis: str) -> list[Table]:
    """The numbers of curves: a table for each metric and kind of networks, a column for each point."""
    heads = {name: name for name in ("property", "method", "input")}
    ordered, tables = sorted(scores, key=lambda score: getattr(score.first, axis)), []
    for part in groups(by_measure(ordered), "nets", "metric").values():
        title = f"{part[0].nets}: {part[0].metric.words} by {axis}"
        tables.append(table_of(title, part, heads, lambda score: (axis, f"{getattr(score.first, axis):.3g}")))
    return tables


def _lines(scores: Iterable[Score], axis: str, *names: str) -> list[Line]:
    """A line for the scores that share the values of some fields."""
    lines = []
    for part in groups(scores, *names).values():
        points = [(getattr(score.first, axis), score.value, score.spread or 0.0) for score in part]
        lines.append(Line(", ".join(words(part[0], name) for name in names), sorted(points)))
    return lines


def transfer_section(scores: list[Score]) -> Section:
    """Matrices of rank correlation and R2; all other measures are collapsed."""
    lead = "A predictor learns from networks of one kind and is tested on another kind, without retraining."
    shown = transfer_matrices(scores, RANKS)
    others = [s for s in scores if s.first.nets != ALL or s.first.metric not in RANKS]
    more = _crossings("Other measures across {}", others)
    return Section("transfer", "Does it carry over?", lead, shown, more=more)


def transfer_matrices(scores: list[Score], metrics: Sequence[str]) -> list[Table]:
    """Training by test networks, for all networks: a table for each column crossed, method and metric."""
    heads, tables = {"trained on": "trained_on"}, []
    for (across, method), part in groups(select(scores, nets=ALL), "across", "method").items():
        for metric in metrics:
            if cells := select(part, metric=metric):
                title = f"{METRICS[metric].words} across {_kinds(across)}: {method}"
                tables.append(table_of(title, cells, heads, _tested_on, shaded=True))
    return tables


def _kinds(across: str | None) -> str:
    """The plural of a column's name, such as "data sets"."""
    return f"{(across or 'kind').replace('dataset', 'data set')}s"


def held_out_section(scores: list[Score]) -> Section:
    """Tests on values of the recipe that were never trained on, one at a time."""
    lead = "Predictors learn from networks of all values but one, and are tested on networks of that one."
    tables = _crossings("One of the {} held out at a time", scores)
    return Section("held_out", "And to what was never trained on?", lead, tables)


def _crossings(title: str, scores: list[Score]) -> list[Table]:
    """All measures: a table for each column crossed, with a row for each pair of training and test."""
    heads = {name.replace("_", " "): name for name in ("trained_on", "tested_on", "method", "input")}
    return [
        table_of(title.format(_kinds(across)), by_measure(part), heads, _measure)
        for (across,), part in groups(scores, "across").items()
    ]


def early_section(scores: list[Score]) -> Section:
    """R2 and tau of the final accuracy over snapshots."""
    panels = []
    for (networks,), part in groups(select(scores, nets=ALL), "trained_on").items():
        for metric in reversed(RANKS):
            title = f"{networks}: {METRICS[metric].words}"
            panels += _score_panels(title, select(part, metric=metric), "snapshot", "input")
    lead = (
        "The final accuracy, predicted from the weights of an earlier snapshot, beside a prediction from the "
        "accuracy at that snapshot: the difference is what the weights add. Values below the axis are drawn "
        "on it."
    )
    heads = {"networks": "trained_on", **{name: name for name in ("snapshot", "epoch", "method", "input")}}
    table = table_of("All numbers", by_measure(scores), heads, _measure)
    figures = [Figure("All held-out networks.", panels)]
    return Section("early", "How early can one tell?", lead, figures=figures, more=[table])


def label_section(scores: list[Score]) -> Section:
    """Methods by measure, for the class of the image that a network represents."""
    tables = []
    for (target,), part in groups(scores, "task").items():
        title = f"{(target or LABEL)[:1].upper()}{(target or LABEL)[1:]}"
        tables.append(_ranking(title, part, [GUESSES[0], SECONDS]))
    lead = (
        "Each network represents one image. Its class is predicted from the final weights of held-out "
        "networks, which represent test images. CPU seconds are those of fitting and predicting."
    )
    return Section(LABEL, "What does a network show?", lead, tables)


def edges_section(scores: list[Score]) -> Section:
    """Methods by measure, for each data set; beside them what a constant guess reaches."""
    given = [
        Given("chance", "No weights read", "majority"),
        Given("kept", "", "kept", "{:.1%}".format),
        SECONDS,
    ]
    tables = [
        _ranking(f"Networks trained on {dataset}", part, given)
        for (dataset,), part in groups(scores, "dataset").items()
    ]
    lead = (
        "Which edges of held-out networks are kept, and which pruned, predicted from the weights: an edge is "
        "kept where its mean activation over training images is at least a threshold. The majority rate is "
        "the share of edges that a constant guess tells right."
    )
    return Section(EDGES, "Which edges are kept?", lead, tables)


def curve_section(scores: list[Score]) -> Section:
    """Scores over the number of training networks; curves end at those with all training networks."""
    sizes = select(scores, experiment=SIZED)
    panels = _panels_of_classes(scores, sizes)
    panels += _panels_of_accuracies(scores, sizes)
    heads = {"task": "property", "networks": "dataset", "input": "input", "method": "method"}
    heads["trained on"] = "num_train"
    ordered = sorted(sizes, key=lambda score: (score.first.input, score.first.method, score.first.num_train))
    table = table_of("All numbers", by_measure(ordered), heads, _measure)
    lead = (
        "Scores over the number of networks to learn from: R² of accuracies, or the share of classes told "
        "right. Values below the axis are drawn on it."
    )
    figures = [Figure("All held-out networks.", panels)]
    return Section(SIZED, "How many networks does it take?", lead, figures=figures, more=[table])


def _panels_of_accuracies(scores: list[Score], sizes: list[Score]) -> list[Panel]:
    """A panel for each data set, with a line for each method; for each input too, if there are many lines."""
    panels = []
    few = len({method_of(score) for score in sizes}) <= NUM_STYLES  # then each line looks different
    for (dataset,), sized in groups(select(sizes, metric="r2", nets=ALL), "dataset").items():
        shown = {method_of(score) for score in sized}
        part = select(scores, dataset=dataset, metric="r2", nets=ALL)
        part = [score for score in part if method_of(score) in shown and score.first.num_train]
        for (name,), lines in ({("",): part} if few else groups(part, "input")).items():
            title = (dataset or "") if few else f"{dataset or ''}: {words_of(name)}"
            names = ("method", "input") if few else ("method",)
            panels += _score_panels(title, lines, "num_train", *names, logarithmic=True)
    return panels


def _panels_of_classes(scores: list[Score], sizes: list[Score]) -> list[Panel]:
    """A panel for each target that is a class, with a line for each method."""
    panels = []
    for (target,), sized in groups(select(sizes, metric="accuracy", nets=ALL), "target").items():
        shown = {method_of(score) for score in sized}
        part = select(scores, target=target, metric="accuracy", nets=ALL)
        part = [score for score in part if method_of(score) in shown]
        panels += [
            replace(panel, x_label=LEARNED_FROM, logarithmic=True)
            for panel in property_panels(part, "num_train")
        ]
    return panels


def _score_panels(
    title: str, scores: list[Score], axis: str, *names: str, logarithmic: bool = False
) -> list[Panel]:
    """A panel of R2 or tau, if there are scores, from a round number of at least zero up to one."""
    if not scores:
        return []
    lines = _lines(scores, axis, *names)
    lowest = min(y for line in lines for _, y, _ in line.points)
    low = min(max(0.0, lowest // FLOOR_STEP * FLOOR_STEP), 1 - FLOOR_STEP)
    label = LEARNED_FROM if axis == "num_train" else axis
    return [Panel(title, lines, label, low, 1.0, logarithmic=logarithmic)]


SECTIONS: dict[str, Callable[[list[Score]], Section]] = {
    "accuracy": accuracy_section,
    "what": what_section,
    LABEL: label_section,
    EDGES: edges_section,
    "when": when_section,
    "where": where_section,
    "transfer": transfer_section,
    "held_out": held_out_section,
    "early": early_section,
    SIZED: curve_section,
}  # experiment -> its part of the page, in the page's order


def sections_of(scores: Iterable[Score], kinds: Collection[str] = ()) -> list[Section]:
    """The sections of all experiments that have scores, with what is published on networks of these kinds."""
    known = list(scores)
    parts = {name: select(known, experiment=name) for name in SECTIONS}
    if parts[SIZED]:
        parts[SIZED] += parts["accuracy"] + parts["what"] + parts[LABEL]
    sections = [SECTIONS[name](part) for name, part in parts.items() if part]
    return [replace(one, more=[*one.more, *published_tables(one.id, kinds)]) for one in sections]
