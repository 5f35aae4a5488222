"""Scores as a page shows them: means over seeds that know where they come from, in tables of which the best
cells are marked.

Its input are records as the evaluation commands write them: flat dicts, of which a reader needs only
REQUIRED.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nws_dataset.errors import ZooError
from nws_dataset.evaluation.inputs import LAYER, WORDS, words_of
from nws_dataset.evaluation.report import spread

Record = Mapping[str, Any]
Key = tuple[Any, ...]
REQUIRED = ("experiment", "target", "method", "input", "nets", "metric", "value")
# Two records that agree in these differ by their seed only.
IDENTITY = (*REQUIRED[:-1], "dataset", "across", "trained_on", "tested_on", "snapshot", "position", "layer")
SIZED = "learning_curve"  # the experiment whose records differ in num_train too
ALL, CONVERGED = "all", "converged"
NETS = {ALL: "All networks", CONVERGED: "Converged networks"}
# what `words_of` does not know
INPUT_WORDS = {"slice": "slices", "row": "whole rows", "statistics of the slice": "statistics of slices"}


@dataclass(frozen=True)
class Metric:
    """A measure of a reader, and how its values are written."""

    words: str
    explanation: str
    scale: float = 1.0  # values are shown times this
    places: int = 3
    lower_is_better: bool = False
    is_share: bool = True  # from 0 to 1, so that a bar can show it

    def text(self, value: float) -> str:
        """A value as the page shows it; no minus before a zero."""
        shown = round(value * self.scale, self.places) + 0.0
        return f"{shown:.{self.places}f}".replace("-", "\N{MINUS SIGN}")


METRICS = {
    "accuracy": Metric(
        "accuracy, %", "The share of held-out networks of which the property was told right.", 100, 1
    ),
    "r2": Metric(
        "R²",
        "The part of the variance of the true values that is explained: 1 is perfect, 0 is no better than "
        "always saying the mean; worse"
        " than that is negative.",
    ),
    "kendall_tau": Metric(
        "τ",
        "Kendall's rank correlation of true and predicted values: 1 if all pairs of networks are in their "
        "right order, 0 for a random one.",
    ),
    "mse": Metric(
        "MSE \N{MULTIPLICATION SIGN} 10³",
        "The mean squared error of predicted accuracies (from 0 to 1), times 1,000.",
        1000,
        2,
        lower_is_better=True,
        is_share=False,
    ),
    "mae": Metric(
        "mean error",
        "The mean absolute error, in the number's own unit.",
        lower_is_better=True,
        is_share=False,
    ),
    "true_rank_of_best": Metric(
        "rank of best",
        "The true place, from 1, of the held-out network that was predicted best: whoever picks by the "
        "prediction gets this one.",
        places=1,
        lower_is_better=True,
        is_share=False,
    ),
}


def metric_of(name: str) -> Metric:
    """The metric of a name; an unknown one is shown as it is."""
    return METRICS.get(name) or Metric(name, "A measure that this page has no words for.", is_share=False)


def input_words(name: str) -> str:
    """What a method reads, for people.

    Example:
        >>> input_words("layers"), input_words("slice"), input_words("my own features")
        ('statistics of all layers', 'slices', 'my own features')
    """
    return words_of(name) if name in WORDS or name.startswith(LAYER) else INPUT_WORDS.get(name, name)


@dataclass(frozen=True)
class Score:
    """Records that differ in nothing but the seed."""

    records: Mapping[Any, Record]  # seed -> record

    @property
    def first(self) -> Record:
        return next(iter(self.records.values()))

    def __getitem__(self, name: str) -> Any:
        """A field; "" where the records do not have it."""
        value = self.first.get(name)
        return "" if value is None else value

    @property
    def metric(self) -> Metric:
        return metric_of(self["metric"])

    def mean(self, name: str = "value") -> float | None:
        """The mean over seeds of a field; None where no record has it."""
        values = [record[name] for record in self.records.values() if record.get(name) is not None]
        return sum(values) / len(values) if values else None

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds; None of a single one."""
        return spread([record["value"] for record in self.records.values()])

    @property
    def source(self) -> str:
        """Where the number comes from: seeds, interval, splits, setting."""
        text, first = self.metric.text, self.first
        seeds = ", ".join(f"{text(record['value'])} (seed {seed})" for seed, record in self.records.items())
        numbers = {
            side: f" ({first[key]} networks)" if key in first else ""
            for side, key in (("trained", "num_train"), ("tested", "num_test"))
        }
        parts = [
            f"{NETS.get(self['nets'], self['nets'])}, {self.metric.words}: {seeds}",
            self.interval and f"95 % interval {self.interval}",
            *(self[f"{side}_on"] and f"{side} on {self[f'{side}_on']}{numbers[side]}" for side in numbers),
            self["setting"],
        ]
        return "; ".join(str(part) for part in parts if part)

    @property
    def interval(self) -> str:
        """The 95 % interval of the first seed that has one, as text."""
        ends = next(
            (record["interval_95"] for record in self.records.values() if record.get("interval_95")), ()
        )
        return " to ".join(map(self.metric.text, ends))


def scores_of(records: Iterable[Record]) -> list[Score]:
    """The records of several seeds together, in the order in which they come.

    Raises:
        ZooError: if two records say different things of the same.
    """
    groups: dict[Key, dict[Any, Record]] = {}
    for record in records:
        key = tuple(record.get(name) for name in IDENTITY) + (
            (record.get("num_train"),) if record["experiment"] == SIZED else ()
        )
        seed = record.get("seed", "unknown")
        known = groups.setdefault(key, {}).setdefault(seed, record)
        if known["value"] != record["value"]:
            what = ", ".join(str(part) for part in key if part is not None)
            found = f"{known['value']} and {record['value']} for {what}, seed {seed}"
            raise ZooError(
                "results",
                expected="one value for each seed",
                found=found,
                do="give results of one run only (--results)",
            )
    return [Score(group) for group in groups.values()]


@dataclass(frozen=True)
class Cell:
    """A number in a table."""

    text: str = "\N{EN DASH}"
    order: float | None = None  # what the column is sorted by
    source: str = ""
    spread: str = ""
    interval: str = ""
    share: float | None = None  # length of its bar, from 0 to 1
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows by columns of cells."""

    caption: str
    names: tuple[str, ...]  # what the rows' heads are
    columns: tuple[tuple[str, str], ...]  # group and name
    rows: tuple[tuple[tuple[str, ...], tuple[Cell, ...]], ...]  # heads and cells
    ranked: bool = False  # whether the order of the rows says who is better
    shaded: bool = False  # a matrix whose cells are coloured by their value

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns of one group: its name and their number."""
        found: list[tuple[str, int]] = []
        for group, _ in self.columns:
            if found and found[-1][0] == group:
                found[-1] = group, found[-1][1] + 1
            else:
                found.append((group, 1))
        return found


@dataclass(frozen=True)
class Given:
    """A column that is not a method's: a field that the scores of a row share."""

    field: str
    group: str
    name: str


def table_of(
    caption: str,
    scores: Sequence[Score],
    names: tuple[str, ...],
    row_of: Callable[[Score], tuple[str, ...]],
    column_of: Callable[[Score], tuple[str, str]],
    *,
    given: Sequence[Given] = (),
    best_of_row: bool = False,
    ranked: bool = False,
    shaded: bool = False,
) -> Table:
    """A table of scores.

    Args:
        caption: of the table.
        scores: each has a cell of its own.
        names: what the heads of a row are.
        row_of: a score -> the heads of its row.
        column_of: a score -> group and name of its column.
        given: columns before the others; one that no score has is left out.
        best_of_row: mark the best cell of each row; else of each column.
        ranked: sort the rows by their first column.
        shaded: colour the cells.

    Raises:
        ZooError: if two scores share a cell: the records differ in what the table does not show.
    """
    at = {(row_of(score), column_of(score)): score for score in scores}
    if len(at) < len(scores):
        do = "give results of one run only (--results)"
        raise ZooError(
            "results", expected="one score in each cell", found=f"two in one of {caption!r}", do=do
        )
    rows, columns = list(dict.fromkeys(map(row_of, scores))), list(dict.fromkeys(map(column_of, scores)))
    if ranked:
        rows.sort(key=lambda row: _goodness(at.get((row, columns[0]))), reverse=True)
    lines: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        lines.setdefault((row_of if best_of_row else column_of)(score), []).append(score)
    tops = {line: max(map(_goodness, rivals)) for line, rivals in lines.items() if len(rivals) > 1}
    best = {
        place
        for place, score in at.items()
        if _goodness(score) == tops.get(place[0] if best_of_row else place[1])
    }  # none of a single score
    of_row = {row: [at[row, column] for column in columns if (row, column) in at] for row in rows}
    shown = [column for column in given if any(score.mean(column.field) is not None for score in scores)]
    return Table(
        caption,
        names,
        (*((column.group, column.name) for column in shown), *columns),
        tuple(
            (
                row,
                (
                    *(_given_cell(of_row[row], column) for column in shown),
                    *(_cell(at.get((row, column)), (row, column) in best) for column in columns),
                ),
            )
            for row in rows
        ),
        ranked,
        shaded,
    )


def _goodness(score: Score | None) -> float:
    """Higher is better; a missing score is worst."""
    if score is None:
        return -math.inf
    mean = score.mean()
    assert mean is not None
    return -mean if score.metric.lower_is_better else mean


def _cell(score: Score | None, best: bool) -> Cell:
    if score is None:
        return Cell()
    mean, spread, text = score.mean(), score.spread, score.metric.text
    assert mean is not None
    share = min(max(mean, 0.0), 1.0) if score.metric.is_share else None
    return Cell(
        text(mean), mean, score.source, "" if spread is None else text(spread), score.interval, share, best
    )


def _given_cell(scores: Sequence[Score], column: Given) -> Cell:
    """The first score that has the field tells it."""
    for score in scores:
        mean = score.mean(column.field)
        if mean is not None:
            return Cell(score.metric.text(mean), mean, f"{column.group}: {column.name}".strip(": "))
    return Cell()
