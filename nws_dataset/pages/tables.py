"""Tables of scores, with the best ones marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from nws_dataset.console import Cell, Table
from nws_dataset.errors import ZooError
from nws_dataset.evaluation.inputs import words_of
from nws_dataset.evaluation.scores import Score


class Given(NamedTuple):
    """A column for a field that the scores of a row share."""

    field: str
    group: str
    name: str
    text: Callable[[float], str] | None = None  # None: that of the scores' metric


def words(score: Score, name: str) -> str:
    """A field of a score as text."""
    value = score.words if name == "property" else getattr(score.first, name)
    return "" if value is None else words_of(value) if name == "input" else str(value)


def table_of(
    title: str,
    scores: Sequence[Score],
    heads: Mapping[str, str],
    column_of: Callable[[Score], tuple[str, str]],
    *,
    given: Sequence[Given] = (),
    best_of_row: bool = False,
    ranked: bool = False,
    shaded: bool = False,
) -> Table:
    """Arrange scores in a table.

    Args:
        title: of the table.
        scores: each fills one cell.
        heads: name -> field; together they label a row.
        column_of: score -> group and name of its column.
        given: columns before the others; a column without values is left out.
        best_of_row: mark the best cell of each row, not of each column.
        ranked: sort the rows by their first score, best first.
        shaded: colour the cells.

    Raises:
        ZooError: if two scores share a cell, as the table does not show how their records differ.
    """
    at = {(tuple(words(score, name) for name in heads.values()), column_of(score)): score for score in scores}
    if len(at) < len(scores):
        found, do = f"two in one of {title!r}", "give results of one run only (--results)"
        raise ZooError("results", expected="one score in each cell", found=found, do=do)
    lines = list(dict.fromkeys(head for head, _ in at))
    columns = list(dict.fromkeys(column for _, column in at))
    if ranked:
        lines.sort(key=lambda head: _goodness(at.get((head, columns[0]))), reverse=True)
    rivals: dict[tuple[str, ...], list[float]] = {}
    for key, score in at.items():
        rivals.setdefault(key[not best_of_row], []).append(_goodness(score))
    best = {line: max(values) for line, values in rivals.items() if len(values) > 1}
    extra = [column for column in given if any(score.values(column.field) for score in scores)]
    rows = []
    for head in lines:
        of_row = {column: at[head, column] for column in columns if (head, column) in at}
        cells = [_given_cell(list(of_row.values()), column) for column in extra]
        for column in columns:
            one = of_row.get(column)
            cells.append(_cell(one, best.get(head if best_of_row else column)) if one else Cell())
        rows.append((*head, *cells))
    before = [("", name) for name in heads] + [(column.group, column.name) for column in extra]
    groups, names = zip(*before, *columns, strict=True)
    return Table(title, names, rows, len(heads), groups, ranked, shaded)


def _goodness(score: Score | None) -> float:
    """Higher is better; a missing score is worst."""
    if score is None:
        return -math.inf
    return -score.value if score.metric.lower_is_better else score.value


def _cell(score: Score, best: float | None) -> Cell:
    text, spread = score.metric.text, "" if score.spread is None else score.metric.text(score.spread)
    share = min(max(score.value, 0.0), 1.0) if score.metric.is_share else None
    is_best = _goodness(score) == best
    return Cell(text(score.value), score.value, score.source, spread, score.interval, share, is_best)


def _given_cell(scores: Sequence[Score], column: Given) -> Cell:
    """A cell of the first score that has the field."""
    for score in scores:
        mean = score.mean(column.field)
        if mean is not None:
            text = column.text or score.metric.text
            return Cell(text(mean), mean, f"{column.group}: {column.name}".strip(": "))
    return Cell()
