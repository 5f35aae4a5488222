"""The experiments' figures. Colours are those of Okabe and Ito, which colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # drawn with Agg when saved; pyplot's global state is not touched

from nws_dataset.evaluation import report

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222"
CYCLE = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "osD^vPX"
GREY = "#BBBBBB"
TICKS = (0, 0.25, 0.5, 0.75, 1)
STYLE: Any = {"font.size": 9.5, "axes.titlesize": 10.5, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}


def accuracy_bars(results: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Accuracy of each property, with its 95 % interval, beside chance and the guess from the architecture alone.

    Args:
        results: property -> accuracy, interval_95, chance, from_architecture, num_models.
        title: of the figure.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.4 + 1.5 * max(3, len(results)), 4.0), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(results))
        values = np.array([result["accuracy"] for result in results.values()])
        ends = np.array([result["interval_95"] for result in results.values()]).T
        axes.bar(places - 0.27, values, 0.25, color=BLUE, label="meta-classifier, 95 % interval")
        axes.errorbar(places - 0.27, values, np.abs(ends - values), fmt="none", ecolor=BLACK, capsize=4, linewidth=1.2)
        for key, offset, colour, label in (("from_architecture", 0, SKY, "from the architecture alone"), ("chance", 0.27, GREY, "chance")):
            axes.bar(places + offset, [result[key] for result in results.values()], 0.25, color=colour, label=label)
        words = [f"{name}\n{100 * result['accuracy']:.0f} % of {result['num_models']} models" for name, result in results.items()]
        axes.set_xticks(places, words)
        _percent(axes, "accuracy on held-out models")
        figure.legend(frameon=False, loc="outside lower center", ncols=3, columnspacing=1.2, handlelength=1.4)
        figure.suptitle(title, fontsize=11)
    return figure


def accuracy_curves(results: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Accuracy of each property over the snapshots of held-out models; dashed: from the architecture alone; dotted: chance.

    Args:
        results: property -> chance, from_architecture, by_snapshot: list of {snapshot, accuracy, interval_95}.
        title: of the figure.
    """
    with matplotlib.rc_context(STYLE):
        columns = min(2, len(results))
        lines = -(-len(results) // columns)
        figure = Figure(figsize=(1.0 + 3.4 * columns, 1.2 + 2.3 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (name, result), colour, marker in zip(grid, results.items(), CYCLE * 9, MARKERS * 9, strict=False):
            snapshots = [point["snapshot"] for point in result["by_snapshot"]]
            low, high = np.array([point["interval_95"] for point in result["by_snapshot"]]).T
            axes.fill_between(snapshots, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(snapshots, [point["accuracy"] for point in result["by_snapshot"]], color=colour, marker=marker, markersize=4)
            axes.axhline(result["from_architecture"], color=BLACK, linestyle="--", linewidth=1, label="from the architecture alone")
            axes.axhline(result["chance"], color=BLACK, linestyle=":", linewidth=1, label="chance")
            axes.set_title(name)
            _percent(axes, "")
        for axes in grid[len(results) :]:
            axes.set_visible(False)
        for axes in grid[: len(results)][-columns:]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("snapshot (1: before training)")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2)
        figure.supylabel("accuracy on held-out models", fontsize=9.5)
        figure.suptitle(title, fontsize=11)
    return figure


def predicted_against_true(panels: Sequence[Mapping[str, Any]], converged: np.ndarray, columns: int, title: str) -> Figure:
    """A scatter for each predictor and set of features.

    Args:
        panels: dicts of title, true [M], predicted [M], r2, kendall_tau; row by row.
        converged: [M] whether each model did.
        columns: panels in a row.
        title: of the figure.
    """
    with matplotlib.rc_context(STYLE):
        lines = -(-len(panels) // columns)
        figure = Figure(figsize=(0.5 + 2.7 * columns, 0.8 + 2.6 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        size = float(np.clip(3000 / max(1, len(converged)), 2, 14))
        for axes, panel in zip(grid, panels, strict=True):
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, zorder=0)
            for part, colour, marker, label in ((converged, BLUE, "o", "converged"), (~converged, RED, "^", "not converged")):
                axes.scatter(
                    panel["true"][part], panel["predicted"][part], size, color=colour, marker=marker, alpha=0.6, linewidths=0, label=label
                )
            scores = ("R²", panel["r2"]), ("τ", panel["kendall_tau"])
            words = [f"{name} {report.with_interval(value, None)}" for name, value in scores]
            axes.set_title(f"{panel['title']}: {', '.join(words)}")  # a text among the points would hide some
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xticks=TICKS, yticks=TICKS)
            axes.grid(color="#EEEEEE")
        for axes in grid[-columns:]:
            axes.set_xlabel("true test accuracy")
        for axes in grid[::columns]:
            axes.set_ylabel("predicted")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2)
        figure.suptitle(title, fontsize=11)
    return figure


def _percent(axes: Axes, label: str) -> None:
    axes.set(ylim=(0, 1.04), ylabel=label)
    axes.set_yticks(TICKS, [f"{100 * tick:.0f} %" for tick in TICKS])
    axes.grid(axis="y", color="#E6E6E6")
