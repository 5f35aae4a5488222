"""The experiments' figures. Colours are those of Okabe and Ito, which colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # drawn with Agg when saved; pyplot's global state is not touched

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222"
CYCLE = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "osD^vPX"
GREY = "#BBBBBB"
TICKS = (0, 0.25, 0.5, 0.75, 1)
STYLE: Any = {"font.size": 9.5, "axes.titlesize": 10.5, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}


def accuracy_bars(results: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Accuracy of each property beside chance, with its 95 % interval.

    Args:
        results: property -> accuracy, interval_95, chance, num_models.
        title: of the figure.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 1.35 * max(3, len(results)), 4.0), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(results))
        values = np.array([result["accuracy"] for result in results.values()])
        ends = np.array([result["interval_95"] for result in results.values()]).T
        axes.bar(places - 0.19, values, 0.36, color=BLUE, label="meta-classifier, 95 % interval")
        axes.errorbar(places - 0.19, values, np.abs(ends - values), fmt="none", ecolor=BLACK, capsize=4, linewidth=1.2)
        axes.bar(places + 0.19, [result["chance"] for result in results.values()], 0.36, color=GREY, label="chance")
        for place, value, top in zip(places, values, ends[1], strict=True):
            axes.annotate(f"{value:.0%}", (place - 0.19, top), (0, 3), textcoords="offset points", ha="center", va="bottom")
        axes.set_xticks(places, [f"{name}\n{result['num_models']} models" for name, result in results.items()])
        _percent(axes, "accuracy on held-out models")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        figure.suptitle(title, fontsize=11)
    return figure


def accuracy_curves(results: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Accuracy of each property over the snapshots of held-out models; dashed: its chance.

    Args:
        results: property -> chance, by_snapshot: list of {snapshot, accuracy, interval_95}.
        title: of the figure.
    """
    with matplotlib.rc_context(STYLE):
        columns = min(2, len(results))
        lines = -(-len(results) // columns)
        figure = Figure(figsize=(0.6 + 3.4 * columns, 0.6 + 2.4 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (name, result), colour, marker in zip(grid, results.items(), CYCLE * 9, MARKERS * 9, strict=False):
            snapshots = [point["snapshot"] for point in result["by_snapshot"]]
            low, high = np.array([point["interval_95"] for point in result["by_snapshot"]]).T
            axes.fill_between(snapshots, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(snapshots, [point["accuracy"] for point in result["by_snapshot"]], color=colour, marker=marker, markersize=4)
            axes.axhline(result["chance"], color=BLACK, linestyle="--", linewidth=1)
            axes.annotate(
                "chance", (snapshots[-1], result["chance"]), (0, -3), textcoords="offset points", ha="right", va="top", fontsize=8
            )
            axes.set_title(name)
            _percent(axes, "")
        for axes in grid[len(results) :]:
            axes.set_visible(False)
        figure.supxlabel("snapshot of the held-out model (1: before training)", fontsize=9.5)
        figure.supylabel("accuracy", fontsize=9.5)
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
            text = "\n".join(f"{name} {value:.2f}" for name, value in scores if value is not None)
            axes.annotate(
                text, (0.04, 0.97), xycoords="axes fraction", va="top", bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1.5}
            )
            axes.set(title=panel["title"], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xticks=TICKS, yticks=TICKS)
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
