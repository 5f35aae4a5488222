"""The experiments' figures. Colours are those of Okabe and Ito, which colour-blind readers can tell apart."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # drawn with Agg when saved; pyplot's global state is not touched
from matplotlib.lines import Line2D

from nws_dataset.evaluation import paper, report
from nws_dataset.plot_style import BLACK, BLUE, CYCLE, GREEN, GREY, MARKERS, ORANGE, PURPLE, RED, STYLE, TICKS

LEGEND_INCHES = 2.9  # that an entry of a legend takes


def accuracy_bars(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Accuracy of each property by each method, with its 95 % interval, beside chance and the guess from the
    architecture alone.

    Args:
        records: means over seeds: target, method, input, value, interval_95, chance, from_architecture,
            num_test.
        title: of the figure.
    """
    targets, methods = _distinct(records, "target"), _methods(records)
    width = 0.8 / len(methods)
    with matplotlib.rc_context(STYLE):
        across = 1.4 + (0.5 + 0.22 * len(methods)) * max(3, len(targets))
        figure = Figure(figsize=(across, 4.2), layout="constrained")
        axes = figure.subplots()
        for i, method in enumerate(methods):
            of_method = {r["target"]: r for r in records if (r["method"], r["input"]) == method}
            places = np.array([targets.index(target) for target in of_method]) - 0.4 + width * (i + 0.5)
            values = np.array([r["value"] for r in of_method.values()])
            axes.bar(places, values, 0.92 * width, color=CYCLE[i], label=_words(method))
            ends = np.array([r["interval_95"] for r in of_method.values()]).T
            axes.errorbar(
                places, values, np.abs(ends - values), fmt="none", ecolor=BLACK, capsize=2, linewidth=0.9
            )
        for key, style, label in (
            ("chance", "-", "chance"),
            ("from_architecture", "--", "from the architecture alone"),
        ):
            levels = [next(r[key] for r in records if r["target"] == target) for target in targets]
            ends = np.arange(len(targets)) + 0.45
            axes.hlines(
                levels,
                ends - 0.9,
                ends,
                color=GREY if key == "chance" else BLACK,
                linestyle=style,
                linewidth=1.6,
                label=label,
            )
        axes.set_xticks(
            np.arange(len(targets)), [f"{t}\n{_num_test(records, t)} models" for t in targets], fontsize=8.5
        )
        _percent(axes, "accuracy on held-out models")
        columns = max(1, int(across / LEGEND_INCHES))
        figure.legend(
            frameon=False, loc="outside lower center", ncols=columns, columnspacing=1.2, handlelength=1.4
        )
        figure.suptitle(title, fontsize=11)
    return figure


def accuracy_curves(
    records: Sequence[Mapping[str, Any]], over: str, title: str, borders: Mapping[str, float] | None = None
) -> Figure:
    """Accuracy of each property over snapshots, or over positions along the row; dashed: from the
    architecture alone; grey: chance.

    Args:
        records: means over seeds: target, method, input, value, interval_95, chance, from_architecture, and
            what it is `over`.
        over: "snapshot" or "position".
        title: of the figure.
        borders: over positions: layer -> its beginning as a part of the row.
    """
    targets, methods = _distinct(records, "target"), _methods(records)
    with matplotlib.rc_context(STYLE):
        figure, grid = _panels(len(targets), title, "accuracy on held-out models")
        for axes, target in zip(grid, targets, strict=True):
            for i, method in enumerate(methods):
                line = [r for r in records if r["target"] == target and (r["method"], r["input"]) == method]
                x, y = [r[over] for r in line], [r["value"] for r in line]
                axes.fill_between(
                    x, *np.array([r["interval_95"] for r in line]).T, color=CYCLE[i], alpha=0.14, linewidth=0
                )
                axes.plot(
                    x,
                    y,
                    color=CYCLE[i],
                    marker=MARKERS[i],
                    markersize=3.5,
                    linewidth=1.4,
                    label=_words(method),
                )
            axes.axhline(line[0]["chance"], color=GREY, linewidth=1.6, zorder=1, label="chance")
            axes.axhline(
                line[0]["from_architecture"],
                color=BLACK,
                linestyle="--",
                linewidth=1,
                label="from the architecture alone",
            )
            _mark(axes, borders or {})
            axes.set_title(target)
            _percent(axes, "")
        words = {
            "snapshot": "snapshot (1: before training)",
            "position": "position in the row (0: the input layer, 1: the output)",
        }
        _finish(figure, grid, words[over])
    return figure


def accuracy_by_layer(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Accuracy of each property from the weights of one layer, or of the convolutional or the dense part.

    Args:
        records: means over seeds: target, method, layer, value, interval_95, chance.
        title: of the figure.
    """
    targets, layers, methods = (
        _distinct(records, "target"),
        _distinct(records, "layer"),
        _distinct(records, "method"),
    )
    layers = sorted(layers, key=lambda layer: " part" in layer)  # the parts stand behind the layers
    with matplotlib.rc_context(STYLE):
        figure, grid = _panels(len(targets), title, "accuracy on held-out models")
        for axes, target in zip(grid, targets, strict=True):
            for i, method in enumerate(methods):
                points = [r for r in records if (r["target"], r["method"]) == (target, method)]
                x = np.array([layers.index(r["layer"]) for r in points]) + 0.16 * (i - (len(methods) - 1) / 2)
                y, ends = (
                    np.array([r["value"] for r in points]),
                    np.array([r["interval_95"] for r in points]).T,
                )
                bars = np.abs(ends - y)
                axes.errorbar(
                    x,
                    y,
                    bars,
                    fmt=MARKERS[i],
                    color=CYCLE[i],
                    markersize=4.5,
                    capsize=2,
                    linewidth=1,
                    label=method,
                )
            axes.axhline(points[0]["chance"], color=BLACK, linestyle=":", linewidth=1, label="chance")
            axes.set_xticks(range(len(layers)), layers, rotation=40, ha="right", fontsize=8)
            axes.set_title(target)
            _percent(axes, "")
        _finish(figure, grid, "")
    return figure


def told_against_true(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """A number that was read off the weights against the true one, a panel for each method.

    Args:
        records: of one seed: task, method, input, value (mean absolute error), chance, pairs: [M, 2] true and
            told.
        title: of the figure.
    """
    with matplotlib.rc_context(STYLE):
        columns = min(3, len(records))
        figure, grid = _panels(len(records), title, "read off the weights", columns, square=True)
        pairs = np.concatenate([np.array(r["pairs"]) for r in records])
        low, high = pairs[:, 0].min(), pairs[:, 0].max()
        margin = 0.06 * (high - low)
        for axes, record, colour in zip(grid, records, CYCLE, strict=False):
            true, told = np.array(record["pairs"]).T
            axes.plot([low, high], [low, high], color=GREY, linewidth=1, zorder=0)
            size = float(np.clip(3000 / len(true), 3, 14))
            axes.scatter(
                true, told.clip(low - margin, high + margin), size, color=colour, alpha=0.6, linewidths=0
            )
            axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
            axes.set_title(
                f"{_words((record['method'], record['input']))}\nmean error {record['value']:.3g}, chance "
                f"{record['chance']:.3g}"
            )
            axes.grid(color="#EEEEEE")
        _finish(figure, grid, f"true {records[0]['task']}", columns)
    return figure


def _distinct(records: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Values of a key in their order."""
    return list(dict.fromkeys(record[key] for record in records))


def _methods(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Methods and what they read, in their order."""
    return list(dict.fromkeys((record["method"], record["input"]) for record in records))


def _words(method: tuple[str, str]) -> str:
    """What a legend calls a method and its input."""
    return f"{method[0]}, {INPUT_WORDS.get(method[1], method[1])}"


INPUT_WORDS = {
    "slice": "slices",
    "row": "whole rows",
    "statistics of the slice": "statistics of slices",
    "layers": "statistics of layers",
}


def _num_test(records: Sequence[Mapping[str, Any]], target: str) -> int:
    return max(record["num_test"] for record in records if record["target"] == target)


def _panels(count: int, title: str, label: str, columns: int = 3, square: bool = False) -> tuple[Figure, Any]:
    """A figure of panels that share their axes, and these, row by row."""
    columns = min(columns, count)
    lines = -(-count // columns)
    figure = Figure(
        figsize=(1.0 + 3.0 * columns, 1.4 + (2.9 if square else 2.2) * lines), layout="constrained"
    )
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    figure.supylabel(label, fontsize=9.5)
    figure.suptitle(title, fontsize=11)
    return figure, grid[:count]


def _finish(figure: Figure, grid: Any, label: str, columns: int = 3) -> None:
    """Ticks below the lowest panel of each column, one label and one legend for all."""
    for axes in grid[-min(columns, len(grid)) :]:
        axes.tick_params(labelbottom=True)
    handles, labels = grid[0].get_legend_handles_labels()
    if handles:  # the label as its title: a legend of several rows would be drawn over one below the panels
        figure.legend(
            handles,
            labels,
            title=label,
            title_fontsize=9.5,
            frameon=False,
            loc="outside lower center",
            ncols=3,
        )
    else:
        figure.supxlabel(label, fontsize=9.5)


def _mark(axes: Axes, borders: Mapping[str, float]) -> None:
    """Lines where layers begin; a name where there is room for it."""
    starts = [*borders.values(), 1.0]
    for layer, start, end in zip(borders, starts, starts[1:], strict=False):
        axes.axvline(start, color=GREY, linewidth=0.8, zorder=0)
        if end - start > 0.12:
            axes.text((start + end) / 2, 0.01, layer, ha="center", va="bottom", fontsize=7.5, color="#666666")


def predicted_against_true(
    panels: Sequence[Mapping[str, Any]], converged: np.ndarray, columns: int, title: str
) -> Figure:
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
            for part, colour, marker, label in (
                (converged, BLUE, "o", "converged"),
                (~converged, RED, "^", "not converged"),
            ):
                axes.scatter(
                    panel["true"][part],
                    panel["predicted"][part],
                    size,
                    color=colour,
                    marker=marker,
                    alpha=0.6,
                    linewidths=0,
                    label=label,
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


# Predictors

METHOD_COLOURS = {
    "linear": (ORANGE, "s"),
    "boosting": (BLUE, "o"),
    "dense net": (GREEN, "D"),
    "meta-regressor": (PURPLE, "v"),
}
MOST_TENSORS = 16  # of the matrix of gains
LOWEST_R2 = 0.0  # of an axis; what is worse stands at its edge


def r2_by_input(found: Sequence[Mapping[str, Any]], words_of: Callable[[str], str]) -> Figure:
    """R2 on held-out networks by input and method, a panel a data set; the paper's as open markers.

    Args:
        found: records of the experiment "accuracy".
        words_of: an input -> its name for people.
    """
    part = [r for r in found if r["experiment"] == "accuracy" and r["metric"] == "r2" and r["nets"] == "all"]
    datasets, inputs = _distinct(part, "dataset"), _distinct(part, "input")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 + 3.4 * len(datasets), 1.6 + 0.34 * len(inputs)), layout="constrained")
        grid = figure.subplots(1, len(datasets), sharey=True, sharex=True, squeeze=False).ravel()
        for axes, dataset in zip(grid, datasets, strict=True):
            for i, name in enumerate(inputs):
                own = [r for r in part if r["dataset"] == dataset and r["input"] == name]
                methods = _distinct(own, "method")
                for method, offset in zip(methods, np.linspace(-0.24, 0.24, len(methods)), strict=True):
                    colour, marker = METHOD_COLOURS[method]
                    values = np.array([r["value"] for r in own if r["method"] == method]).clip(LOWEST_R2)
                    low, high = (
                        max(0.0, float(end))
                        for end in (values.mean() - values.min(), values.max() - values.mean())
                    )  # of equal values, rounding
                    style: Any = {"fmt": marker, "color": colour, "markersize": 5, "capsize": 2}
                    axes.errorbar([values.mean()], [i + offset], xerr=[[low], [high]], **style)
                    papers = [r["paper"] for r in own if r["method"] == method and "paper" in r]
                    if papers:
                        axes.plot(
                            papers[0], i + offset, marker, mfc="white", mec=colour, markersize=5, zorder=1
                        )
            for line in range(len(inputs) - 1):
                axes.axhline(line + 0.5, color="#EEEEEE", linewidth=0.8, zorder=0)
            axes.set_yticks(range(len(inputs)), [words_of(name) for name in inputs])
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color="#E6E6E6")
            axes.set(
                title=dataset,
                xlabel="R² on held-out networks (below 0: at 0)",
                ylim=(len(inputs) - 0.5, -0.5),
            )
        keys = [(method, *METHOD_COLOURS[method]) for method in _distinct(part, "method")]
        handles = [
            Line2D([], [], marker=marker, color=colour, linestyle="", label=method)
            for method, colour, marker in keys
        ]
        if any("paper" in r for r in part):
            words = f"the paper, {paper.NUM_TRAIN:,} networks"
            handles.append(Line2D([], [], marker="o", mfc="white", mec=BLACK, linestyle="", label=words))
        figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=len(handles))
    return figure


def learning_curves(curves: Mapping[tuple[str, str], Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """R2 over the number of networks to learn from; a line an input, mean and range over seeds.

    Args:
        curves: (data set, method) -> input for people -> numbers of networks [S], R2 [S, seeds].
    """
    datasets, methods = (list(dict.fromkeys(key[i] for key in curves)) for i in (0, 1))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.8 + 2.9 * len(methods), 1.5 + 2.4 * len(datasets)), layout="constrained")
        grid = figure.subplots(len(datasets), len(methods), sharex=True, sharey=True, squeeze=False)
        for (dataset, method), lines in curves.items():
            axes = grid[datasets.index(dataset), methods.index(method)]
            for (name, (sizes, values)), colour, marker in zip(
                lines.items(), CYCLE * 2, MARKERS * 2, strict=False
            ):
                values = values.clip(LOWEST_R2)
                axes.fill_between(
                    sizes, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, linewidth=0
                )
                axes.plot(sizes, values.mean(axis=1), color=colour, marker=marker, markersize=4, label=name)
            axes.set(xscale="log", title=f"{dataset}, {method}", ylim=(LOWEST_R2, 1.02))
            ticks = sorted({int(size) for sizes, _ in lines.values() for size in sizes})
            kept = [
                tick
                for tick, after in itertools.zip_longest(ticks, ticks[1:])
                if after is None or after > 1.3 * tick
            ]
            axes.set_xticks(kept, [f"{tick:,}" for tick in kept])
            axes.minorticks_off()
            axes.grid(axis="y", color="#E6E6E6")
        for axes in grid[-1]:
            axes.set_xlabel("networks to learn from")
        for axes in grid[:, 0]:
            axes.set_ylabel("R² on held-out networks")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3)
    return figure


def transfer_matrices(found: Sequence[Mapping[str, Any]], across: str) -> Figure:
    """Kendall's tau of predictors trained on one value and tested on another, a panel a method.

    Args:
        found: records of the experiment "transfer" across one column.
        across: that column.
    """
    part = [
        r
        for r in found
        if r["experiment"] == "transfer" and r["metric"] == "kendall_tau" and r["nets"] == "all"
    ]
    names, methods = _distinct(part, "trained_on"), _distinct(part, "method")
    with matplotlib.rc_context(STYLE):
        side = 1.2 + 0.75 * len(names)
        figure = Figure(figsize=(1.6 + side * len(methods), 1.3 + side), layout="constrained")
        grid = figure.subplots(1, len(methods), sharey=True, squeeze=False).ravel()
        for axes, method in zip(grid, methods, strict=True):
            tau = np.full((len(names), len(names)), np.nan)
            for i, j in np.ndindex(*tau.shape):
                cell = [
                    r["value"]
                    for r in part
                    if (r["method"], r["trained_on"], r["tested_on"]) == (method, names[i], names[j])
                ]
                tau[i, j] = np.mean(cell) if cell else np.nan
            image = _annotated(axes, tau, names, names, "{:.2f}", (0.0, 1.0))
            axes.set(title=method, xlabel="tested on")
        grid[0].set_ylabel("trained on")
        figure.colorbar(image, ax=grid, label="Kendall's τ", shrink=0.8)
        figure.suptitle(f"Transfer across {across}s, without retraining", fontsize=11)
    return figure


def early_curves(found: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> Figure:
    """R2 and Kendall's tau of the final accuracy, predicted from an earlier snapshot.

    Args:
        found: records of the experiment "early".
        words: input -> its name for people.
    """
    part = [r for r in found if r["experiment"] == "early" and r["nets"] == "all"]
    datasets, metrics = _distinct(part, "trained_on"), {"r2": "R²", "kendall_tau": "Kendall's τ"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.4 + 3.2 * len(datasets), 1.2 + 2.2 * len(metrics)), layout="constrained")
        grid = figure.subplots(len(metrics), len(datasets), sharex="col", sharey=True, squeeze=False)
        for (i, metric), (j, dataset) in itertools.product(enumerate(metrics), enumerate(datasets)):
            axes = grid[i, j]
            for (name, label), colour, marker in zip(words.items(), CYCLE, MARKERS, strict=False):
                own = [
                    r for r in part if (r["trained_on"], r["metric"], r["input"]) == (dataset, metric, name)
                ]
                snapshots = _distinct(own, "snapshot")
                values = [
                    np.clip([r["value"] for r in own if r["snapshot"] == s], LOWEST_R2, 1) for s in snapshots
                ]
                axes.fill_between(
                    snapshots,
                    [min(v) for v in values],
                    [max(v) for v in values],
                    color=colour,
                    alpha=0.18,
                    linewidth=0,
                )
                axes.plot(
                    snapshots,
                    [np.mean(v) for v in values],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    label=label,
                )
            epochs = {r["snapshot"]: r["epoch"] for r in part if r["trained_on"] == dataset}
            axes.set_xticks(list(epochs), [f"{s}\n({e})" for s, e in epochs.items()])
            axes.set(ylim=(LOWEST_R2, 1.02))
            axes.grid(axis="y", color="#E6E6E6")
            if not i:
                axes.set_title(dataset)
        for axes in grid[-1]:
            axes.set_xlabel("snapshot (epochs trained)")
        for axes, label in zip(grid[:, 0], metrics.values(), strict=True):
            axes.set_ylabel(label)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2)
        figure.suptitle("The final accuracy, predicted early", fontsize=11)
    return figure


def gain_matrix(found: Sequence[Mapping[str, Any]]) -> Figure:
    """What boosting gains from each statistic of the tensors from which it gains most, a panel a data set.

    Args:
        found: records of the experiment "importance".
    """
    part = [r for r in found if r["experiment"] == "importance"]
    datasets = _distinct(part, "dataset")
    gained = Counter[str]()
    for r in part:
        gained[r["feature"].rpartition(".")[0]] += r["value"]
    most = {tensor for tensor, _ in gained.most_common(MOST_TENSORS)}
    tensors = [tensor for tensor in gained if tensor in most]  # in network order
    statistics = list(dict.fromkeys(r["feature"].rpartition(".")[2] for r in part))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 + 3.6 * len(datasets), 1.3 + 0.3 * len(tensors)), layout="constrained")
        grid = figure.subplots(1, len(datasets), sharey=True, squeeze=False).ravel()
        for axes, dataset in zip(grid, datasets, strict=True):
            share = {r["feature"]: 100 * r["value"] for r in part if r["dataset"] == dataset}
            gain = np.array(
                [
                    [share.get(f"{tensor}.{statistic}", np.nan) for statistic in statistics]
                    for tensor in tensors
                ]
            )
            _annotated(axes, gain, tensors, statistics, "{:.0f}", (0.0, np.nanmax(gain)), aspect="auto")
            axes.set_title(dataset)
        figure.suptitle("What boosting gains from each statistic, % of all gain", fontsize=11)
    return figure


def _annotated(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    form: str,
    limits: tuple[float, float],
    aspect: Literal["equal", "auto"] = "equal",
) -> Any:
    """A heat map with its numbers; the text is white on dark cells."""
    low, high = limits
    image = axes.imshow(values, cmap="Blues", vmin=low, vmax=high, aspect=aspect)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = value > low + 0.6 * (high - low)
            axes.text(
                j,
                i,
                form.format(value),
                ha="center",
                va="center",
                fontsize=8.5,
                color="white" if dark else BLACK,
            )
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image
