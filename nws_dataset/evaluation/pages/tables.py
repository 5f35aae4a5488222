"""Tables of scores: a cell for each, the best ones marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nws_dataset.console import Cell, Table
from nws_dataset.errors import ZooError
from nws_dataset.evaluation.scores import Score

Head = tuple[str, ...]  # the names of a row
Column = tuple[str, str]  # group and name


@dataclass(frozen=True)
class Given:
    """A column that is not a method's: a field that the scores of a row share."""

    field: str
    group: str
    name: str


def table_of(
    title: str,
    scores: Sequence[Score],
    names: tuple[str, ...],
    head_of: Callable[[Score], Head],
    column_of: Callable[[Score], Column],
    *,
    given: Sequence[Given] = (),
    best_of_row: bool = False,
    ranked: bool = False,
    shaded: bool = False,
) -> Table:
    """A table of scores.

    Args:
        title: of the table.
        scores: each has a cell of its own.
        names: what the heads of a row are.
        head_of: a score -> the heads of its row.
        column_of: a score -> group and name of its column.
        given: columns before the others; one that no score has is left out.
        best_of_row: mark the best cell of each row; else of each column.
        ranked: sort the rows by their first column.
        shaded: colour the cells.

    Raises:
        ZooError: if two scores share a cell: the records differ in what the table does not show.
    """
    at = {(head_of(score), column_of(score)): score for score in scores}
    if len(at) < len(scores):
        found, do = f"two in one of {title!r}", "give results of one run only (--results)"
        raise ZooError("results", expected="one score in each cell", found=found, do=do)
    heads, columns = list(dict.fromkeys(map(head_of, scores))), list(dict.fromkeys(map(column_of, scores)))
    if ranked:
        heads.sort(key=lambda head: _goodness(at.get((head, columns[0]))), reverse=True)
    rivals: dict[tuple[str, ...], list[float]] = {}
    for (head, column), score in at.items():
        rivals.setdefault(head if best_of_row else column, []).append(_goodness(score))
    best = {line: max(values) for line, values in rivals.items() if len(values) > 1}  # none of a single score
    extra = [column for column in given if any(score.values(column.field) for score in scores)]
    rows = []
    for head in heads:
        of_row = [at[head, column] for column in columns if (head, column) in at]
        cells = [_given_cell(of_row, column) for column in extra]
        for column in columns:
            one = at.get((head, column))
            is_best = one is not None and _goodness(one) == best.get(head if best_of_row else column)
            cells.append(_cell(one, is_best))
        rows.append((*head, *cells))
    before = [("", name) for name in names] + [(column.group, column.name) for column in extra]
    groups, words = zip(*before, *columns, strict=True)
    return Table(title, words, rows, len(names), groups, ranked, shaded)


def _goodness(score: Score | None) -> float:
    """Higher is better; a missing score is worst."""
    if score is None:
        return -math.inf
    return -score.value if score.metric.lower_is_better else score.value


def _cell(score: Score | None, best: bool) -> Cell:
    if score is None:
        return Cell()
    spread, text = score.spread, score.metric.text
    share = min(max(score.value, 0.0), 1.0) if score.metric.is_share else None
    shown = "" if spread is None else text(spread)
    return Cell(text(score.value), score.value, score.source, shown, score.interval, share, best)


def _given_cell(scores: Sequence[Score], column: Given) -> Cell:
    """The first score that has the field tells it."""
    for score in scores:
        mean = score.mean(column.field)
        if mean is not None:
            return Cell(score.metric.text(mean), mean, f"{column.group}: {column.name}".strip(": "))
    return Cell()
