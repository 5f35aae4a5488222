"""Plots of the experiments: line charts, scores with intervals, scatter plots and matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # drawn with Agg when saved; pyplot's global state is not touched

from nws_dataset.console import Table
from nws_dataset.evaluation.inputs import words_of
from nws_dataset.evaluation.scores import Score, distinct, groups
from nws_dataset.pages import charts, paper
from nws_dataset.pages.sections import method_of
from nws_dataset.plot_style import BLACK, BLUE, CYCLE, GREY, MARKERS, RED, STYLE

LEGEND_INCHES = 2.9  # width of an entry
COLUMNS = 3  # of panels
MOST_TICKS = 5  # with a label, on an axis of numbers of networks
LIGHT = "#E6E6E6"
GIVEN = {
    "chance": ("chance", "|", GREY),
    "from_architecture": ("from the architecture alone", "|", BLACK),
    "paper": (f"the paper, {paper.NUM_TRAIN:,} networks", "o", "white"),
}  # field of a record -> label, marker and face colour of a reference beside a score


@matplotlib.rc_context(STYLE)
def lines(
    figure: charts.Figure, title: str, label: str, borders: Mapping[str, float] | None = None
) -> Figure:
    """Draw line charts of the page; `borders` gives the start of each layer on the horizontal axis."""
    names, low = list(figure.styles), min(panel.low for panel in figure.panels)
    high = 1.04 * max(panel.high for panel in figure.panels)
    entries = len(names) + len(figure.panels[0].levels)
    picture, grid = _grid(len(figure.panels), title, label, entries=entries)
    for axes, panel in zip(grid, figure.panels, strict=True):
        for line in panel.lines:
            i = names.index(line.name)
            x, y, spread = np.array(line.points).T
            y = y.clip(low)
            colour, marker = CYCLE[i % len(CYCLE)], MARKERS[i % len(MARKERS)]
            axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.14, linewidth=0)
            axes.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=line.name)
        for name, level in panel.levels.items():
            axes.axhline(level, color=BLACK, linestyle="--", linewidth=1, zorder=1, label=name)
        _mark(axes, borders or {})
        axes.set(title=panel.title.replace(": ", "\n"), ylim=(low, high))
        axes.grid(axis="y", color=LIGHT)
        if panel.logarithmic:
            axes.set_xscale("log")
            ticks = sorted({point[0] for line in panel.lines for point in line.points})
            shown = ticks if len(ticks) <= MOST_TICKS else ticks[::2]
            axes.set_xticks(shown, [f"{tick:,.0f}" for tick in shown])
            axes.minorticks_off()
    _finish(picture, grid, figure.panels[0].x_label)
    return picture


@matplotlib.rc_context(STYLE)
def dots(
    scores: Sequence[Score], title: str, label: str, *, panel: str, line: str, low: float = 0.0
) -> Figure:
    """Draw scores of one metric with their 95 % intervals, beside the references in GIVEN.

    Each value of the field `panel` gets a panel, and each value of the field `line` a row in it. Scores
    below `low` are drawn at `low`.
    """
    panels, heads = distinct(scores, panel), distinct(scores, line)
    methods = list(dict.fromkeys(_method(score, line) for score in scores))
    offsets = np.linspace(-0.3, 0.3, len(methods))
    size = 2.6 + 3.4 * len(panels), 1.8 + (0.2 + 0.1 * len(methods)) * len(heads)
    figure, grid = _figure(size, title, 1, len(panels))
    for score in scores:
        axes, i = grid[panels.index(getattr(score.first, panel))], methods.index(_method(score, line))
        y, value = heads.index(getattr(score.first, line)) + offsets[i], max(score.value, low)
        ends = np.mean(score.values("interval_95") or [(value, value)], axis=0).clip(low)
        error, colour = np.abs(ends - value)[:, None], CYCLE[i % len(CYCLE)]
        style: Any = {"fmt": MARKERS[i % len(MARKERS)], "color": colour, "markersize": 5, "capsize": 2}
        axes.errorbar([value], [y], xerr=error, label=_method(score, line), **style)
        for field, (words, marker, face) in GIVEN.items():
            mark = score.mean(field)
            if mark is not None:
                edge: Any = {"mec": colour} if field == "paper" else {"color": face}
                axes.plot(mark, y, marker, mfc=face, markersize=5, zorder=1, label=words, **edge)
    for axes, name in zip(grid, panels, strict=True):
        for i in range(len(heads) - 1):
            axes.axhline(i + 0.5, color="#EEEEEE", linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(heads)), [words_of(head) for head in heads])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=LIGHT)
        axes.set(title=name, xlabel=label, ylim=(len(heads) - 0.5, -0.5))
    _legend(figure, grid, max(1, int(size[0] / LEGEND_INCHES)))
    return figure


@matplotlib.rc_context(STYLE)
def ranking(scores: Sequence[Score], title: str) -> Figure:
    """Draw scores of one metric with their 95 % intervals, the best on top; a panel for each data set.

    A dashed line is the score without reading weights, if there is one.
    """
    parts = list(groups(scores, "dataset").values())
    height = 1.2 + 0.28 * max(map(len, parts))
    figure = Figure(figsize=(7.5, height * len(parts)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, part in zip(figure.subplots(len(parts), squeeze=False).ravel(), parts, strict=True):
        metric = part[0].metric
        ranked = sorted(part, key=lambda score: score.value * (-1 if metric.lower_is_better else 1))
        for y, score in enumerate(ranked):
            value = score.value * metric.scale
            ends = np.mean(score.values("interval_95") or [(score.value,) * 2], axis=0) * metric.scale
            # the interval is that of the first seed, the dot the mean of all
            error = np.maximum(0, [[value - ends[0]], [ends[1] - value]])
            axes.errorbar([value], [y], xerr=error, fmt="o", color=BLUE, markersize=5, capsize=2)
        chance = part[0].mean("chance")
        if chance is not None:
            axes.axvline(chance * metric.scale, color=GREY, linestyle="--", linewidth=1, zorder=0)
        axes.set_yticks(range(len(ranked)), [", ".join(method_of(score)) for score in ranked])
        axes.set_ylim(-0.6, len(ranked) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=LIGHT)
        axes.set(title=part[0].first.dataset or "", xlabel=f"{metric.words}, held-out networks")
    return figure


def _method(score: Score, line: str) -> str:
    """A method's name in a legend, with its input unless the lines are inputs."""
    return score.first.method if line in ("input", "layer") else ", ".join(method_of(score))


@dataclass(frozen=True)
class Cloud:
    """A method's predictions for held-out networks."""

    title: str
    true: np.ndarray  # [M]
    predicted: np.ndarray  # [M]
    converged: np.ndarray | None = None  # [M]; None: not shown


@matplotlib.rc_context(STYLE)
def clouds(
    parts: Sequence[Cloud], title: str, labels: tuple[str, str], limits: tuple[float, float] | None = None
) -> Figure:
    """Draw predictions over true values, with a panel for each method.

    Both axes have the same limits, by default the range of the true values; predictions beyond are drawn on
    the edge.
    """
    if limits is None:
        ends = [end for part in parts for end in (part.true.min(), part.true.max())]
        margin = 0.06 * (max(ends) - min(ends))
        limits = min(ends) - margin, max(ends) + margin
    figure, grid = _grid(len(parts), title, labels[1], square=True)
    for axes, part in zip(grid, parts, strict=True):
        axes.plot(limits, limits, color=GREY, linewidth=1, zorder=0)
        groups = {"held-out networks": np.ones(len(part.true), bool)}
        if part.converged is not None:
            groups = {"converged": part.converged, "not converged": ~part.converged}
        for (words, chosen), colour, marker in zip(groups.items(), (BLUE, RED), "o^", strict=False):
            style: Any = {"color": colour, "marker": marker, "alpha": 0.6, "linewidths": 0}
            style["s"] = float(np.clip(3000 / max(1, len(part.true)), 2, 14))
            axes.scatter(part.true[chosen], part.predicted[chosen].clip(*limits), label=words, **style)
        axes.set(title=part.title, xlim=limits, ylim=limits, aspect="equal")
        axes.grid(color="#EEEEEE")
    _finish(figure, grid, labels[0])
    return figure


@matplotlib.rc_context(STYLE)
def matrices(tables: Sequence[Table], title: str, decimals: int, high: float | None = None) -> Figure:
    """Draw tables of one shape as heat maps; the darkest colour is `high`, or the maximum of each table."""
    rows, columns = [row[0] for row in tables[0].rows], tables[0].columns[1:]
    width = max(2.4, 1.2 + 0.5 * len(columns))
    size = 2.0 + width * len(tables), 1.6 + 0.4 * len(rows)
    figure, grid = _figure(size, title, 1, len(tables), sharex=False)
    for axes, table in zip(grid, tables, strict=True):
        values = np.array([[cell.order for cell in row[1:]] for row in table.rows], float)
        top = np.nanmax(values) if high is None else high
        axes.imshow(values, cmap="Blues", vmin=0.0, vmax=top, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            style: Any = {"color": "white" if value > 0.6 * top else BLACK, "fontsize": 8.5}
            text = "" if np.isnan(value) else f"{value:.{decimals}f}"
            axes.text(j, i, text, ha="center", va="center", **style)
        axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(table.title, fontsize=9.5)
    return figure


def _figure(
    size: tuple[float, float], title: str, rows: int, columns: int, sharex: bool = True
) -> tuple[Figure, Any]:
    """A figure of a size in inches, and its panels, row by row, with a shared vertical axis."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, columns, sharex=sharex, sharey=True, squeeze=False).ravel()


def _grid(count: int, title: str, label: str, square: bool = False, entries: int = 2) -> tuple[Figure, Any]:
    """A figure with room for a legend of some entries, and its panels with shared axes, row by row."""
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    size = 1.0 + 3.0 * columns, 1.1 + 0.2 * -(-entries // columns) + (2.9 if square else 2.2) * rows
    figure, grid = _figure(size, title, rows, columns)
    for axes in grid[count:]:
        axes.set_visible(False)
    figure.supylabel(label, fontsize=9.5)
    return figure, grid[:count]


def _finish(figure: Figure, grid: Any, label: str) -> None:
    """Add ticks below each column of panels, and one label and legend for all."""
    for axes in grid[-min(COLUMNS, len(grid)) :]:
        axes.tick_params(labelbottom=True)
    # the legend's title is the label: a legend of several rows would cover a label below the panels
    _legend(figure, grid, min(COLUMNS, len(grid)), title=label, title_fontsize=9.5)


def _legend(figure: Figure, grid: Sequence[Axes], columns: int, **options: Any) -> None:
    """Add a legend below all panels, of what is in any of them."""
    legends = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in grid]
    handles = {word: handle for legend in legends for handle, word in legend}
    style: Any = {"frameon": False, "loc": "outside lower center", "ncols": columns}
    figure.legend(list(handles.values()), list(handles), **style, **options)


def _mark(axes: Axes, borders: Mapping[str, float]) -> None:
    """Mark where layers begin, with their names where there is room."""
    starts = [*borders.values(), 1.0]
    for layer, start, end in zip(borders, starts, starts[1:], strict=False):
        axes.axvline(start, color=GREY, linewidth=0.8, zorder=0)
        if end - start > 0.12:
            style: Any = {"ha": "center", "va": "bottom", "fontsize": 7.5, "color": "#666666"}
            axes.text((start + end) / 2, 0.01, layer, **style)
