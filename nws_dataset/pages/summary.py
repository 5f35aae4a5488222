"""Reports of an experiment: numbers as JSON, tables as Markdown and on the terminal, and plots."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from matplotlib.figure import Figure

from nws_dataset.console import Cell, Table
from nws_dataset.errors import one_line
from nws_dataset.evaluation.inputs import LAYERS, RECIPE, WHOLE, words_of
from nws_dataset.evaluation.results import write_results
from nws_dataset.evaluation.scores import (
    ALL,
    METRICS,
    OF_ACCURACIES,
    SIZED,
    Predictions,
    Record,
    groups,
    scores_of,
    select,
)
from nws_dataset.evaluation.tasks import EDGES, LABEL
from nws_dataset.files import atomic_write
from nws_dataset.pages import paper, plots
from nws_dataset.pages.charts import Figure as Chart
from nws_dataset.pages.pictures import pictures_of
from nws_dataset.pages.sections import RANKS, Section, property_panels, sections_of, transfer_matrices

if TYPE_CHECKING:
    from nws_dataset.reading.zoo import Zoo

MAX_TENSORS = 16  # of the matrix of gains
SHOWN = (LAYERS, WHOLE, RECIPE)  # inputs of the scatter plots


def _write(
    folder: Path,
    contents: dict[str, Any],
    title: str,
    notes: Sequence[str],
    sections: Sequence[Section],
    draw: Callable[[], Mapping[str, Figure]],
) -> None:
    """Write `<experiment>.json`, `<experiment>.md` and `<experiment>_<plot>.png`; print tables and paths.

    Args:
        folder: created if it is missing.
        contents: of the JSON file, without the names of the plots.
        title: of the Markdown file.
        notes: how the numbers were obtained.
        sections: with the tables.
        draw: returns name -> figure; called when the numbers are on disk.
    """
    name = contents["experiment"]
    data, text = folder / f"{name}.json", folder / f"{name}.md"
    write_results(data, {**contents, "plots": []})
    figures = draw()
    images = {plot: folder / f"{name}_{plot}.png" for plot in figures}
    for plot, path in images.items():
        with atomic_write(path) as temporary:
            figures[plot].savefig(temporary, dpi=150, format="png")
    write_results(data, {**contents, "plots": [path.name for path in images.values()]})
    parts = [f"# {title}", *notes, *(f"![{plot}]({path.name})" for plot, path in images.items())]
    tables = [(section, [*section.tables, *section.more]) for section in sections]
    for section, own in tables:
        parts += [f"## {section.title}", *(f"**{table.title}**\n\n{table.markdown()}" for table in own)]
    with atomic_write(text) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    for table in (table for _, own in tables for table in own):
        table.print()
    for line in (*notes, f"Written: {', '.join(map(one_line, (data, text, *images.values())))}"):
        click.echo(line)


def report_properties(folder: Path, contents: dict[str, Any], notes: Sequence[str]) -> None:
    """Report how well properties of the training are predicted from weights."""
    name, scores = contents["zoo"]["name"], scores_of(contents["results"])
    title = f"What the weights tell of their training: {name}"

    def draw() -> dict[str, Figure]:
        shown = select(scores, nets=ALL, metric="accuracy")
        where, label = select(shown, experiment="where"), "accuracy on held-out models"
        figures: dict[str, Figure] = {}
        if what := select(shown, experiment="what"):
            figures["accuracy"] = plots.dots(what, title, label, panel="metric", line="target")
        if when := select(shown, experiment="when"):
            chart = Chart("", property_panels(when, "snapshot"))
            figures["snapshots"] = plots.lines(chart, f"When the weights tell it: {name}", label)
        if along := [s for s in where if s.first.position is not None]:
            chart, words = Chart("", property_panels(along, "position")), f"Where the weights tell it: {name}"
            figures["positions"] = plots.lines(chart, words, label, contents["layers"])
        if parts := [s for s in where if s.first.layer is not None]:
            words = f"Which layers tell it: {name}"
            figures["layers"] = plots.dots(parts, words, label, panel="target", line="layer")
        numbers = [record for record in contents["results"] if record.pairs and record.seed == 0]
        if clouds := [plots.Cloud(_words(record), *np.array(record.pairs).T) for record in numbers]:
            words = f"The learning rate, read off the weights: {name}"
            figures["learning_rate"] = plots.clouds(clouds, words, ("true", "read off the weights"))
        return figures

    _write(folder, contents, title, notes, sections_of(scores), draw)


def _words(record: Record) -> str:
    """A method that predicts numbers, and its error."""
    scores = f"mean error {record.value:.3g}, chance {record.chance:.3g}"
    return f"{record.method}, {words_of(record.input)}\n{scores}"


def report_accuracies(
    folder: Path,
    contents: dict[str, Any],
    notes: Sequence[str],
    predictions: Sequence[Predictions],
    converged: Mapping[str, bool],
) -> None:
    """Report how well accuracies are predicted; `converged` maps a model's ID to whether it converged."""
    records = contents["results"]
    scores = scores_of(record for record in records if record.feature is None)
    sections = sections_of(scores)
    departed = [Section("departures", table.title, "", [table]) for table in paper.departures(scores)]

    def draw() -> dict[str, Figure]:
        chosen = select(scores, experiment="accuracy", metric="r2", nets=ALL)
        label = "R² on held-out networks"
        title = "Test accuracy, predicted (below 0: at 0)"
        figures = {"r2": plots.dots(chosen, title, label, panel="dataset", line="input")}
        title = "What boosting gains from each statistic, % of all"
        figures["importance"] = plots.matrices(_gains(records), title, 0)
        charts = {section.id: figure for section in sections for figure in section.figures if figure.panels}
        if SIZED in charts:
            figures[SIZED] = plots.lines(charts[SIZED], "Fewer networks to learn from", label)
        if "early" in charts:
            figures["early"] = plots.lines(charts["early"], "The final accuracy, predicted early", "")
        transferred = select(scores, experiment="transfer")
        for (column,), part in groups(transferred, "across").items():
            tables = transfer_matrices(part, ["kendall_tau"])
            title = f"Kendall's τ of transfer across {column}s, without retraining"
            figures[f"transfer_{column}"] = plots.matrices(tables, title, 2, 1.0)
        for dataset in dict.fromkeys(one.dataset for one in predictions):
            shown = [one for one in predictions if one.dataset == dataset and one.input in SHOWN]
            clouds = [plots.Cloud(*_cloud(one, converged)) for one in shown]
            title = f"Accuracy read off features, held-out {dataset} networks"
            sides, limits = ("true test accuracy", "predicted"), (-0.03, 1.03)
            file_name = re.sub(r"[^\w-]+", "_", dataset).strip("_")
            figures[f"scatter_{file_name}"] = plots.clouds(clouds, title, sides, limits)
        return figures

    title = f"Test accuracy of networks, predicted: {contents['zoo']['name']}"
    contents = {**contents, "predictions": [vars(one) for one in predictions]}
    _write(folder, contents, title, notes, [*sections, *departed], draw)


def report_evaluation(folder: Path, contents: dict[str, Any], notes: Sequence[str], zoo: Zoo) -> None:
    """Report what was asked of a zoo, by every method."""
    name, scores = contents["zoo"]["name"], scores_of(contents["results"])
    sections = sections_of(scores, contents["kinds"])

    def draw() -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        titles = {section.id: section.title for section in sections}
        for experiment, metric in ((LABEL, "accuracy"), ("accuracy", "r2"), (EDGES, "edge_accuracy")):
            if part := select(scores, nets=ALL, experiment=experiment, metric=metric):
                figures[experiment] = plots.ranking(part, titles[experiment])
        if part := select(scores, nets=ALL, experiment="what", metric="accuracy"):
            label = "accuracy on held-out networks"
            figures["what"] = plots.dots(part, titles["what"], label, panel="metric", line="target")
        charts = {section.id: figure for section in sections for figure in section.figures if figure.panels}
        if SIZED in charts:
            figures[SIZED] = plots.lines(charts[SIZED], "Fewer networks to learn from", "")
        return figures | {picture.name: picture.figure for picture in pictures_of(zoo, scores)}

    _write(folder, contents, f"What the weights tell: {name}", notes, sections, draw)


def _cloud(one: Predictions, converged: Mapping[str, bool]) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """The title of a method's scatter plot, true and predicted accuracies, and which networks converged."""
    true, predicted = np.array(one.true), np.array(one.predicted)
    tau, r2 = (METRICS[name].text(OF_ACCURACIES[name](true, predicted)) for name in RANKS)
    title = f"{words_of(one.input)}\n{one.method}: R² {r2}, τ {tau}"
    return title, true, predicted, np.array([converged[name] for name in one.model_id], bool)


def _gains(records: Sequence[Record]) -> list[Table]:
    """Boosting's gain from each statistic of the tensors with most gain: a table for each data set."""
    part = [(*(r.feature or "").rpartition(".")[::2], r) for r in records if r.experiment == "importance"]
    gained = dict.fromkeys((tensor for tensor, _, _ in part), 0.0)
    for tensor, _, record in part:
        gained[tensor] += record.value or 0.0
    most = sorted(gained, key=lambda tensor: -gained[tensor])[:MAX_TENSORS]
    tensors = [tensor for tensor in gained if tensor in most]  # in network order
    statistics = tuple(dict.fromkeys(statistic for _, statistic, _ in part))
    tables = []
    for dataset in dict.fromkeys(record.dataset for *_, record in part):
        share = {(t, s): 100 * (r.value or 0.0) for t, s, r in part if r.dataset == dataset}
        rows = [(t, *(Cell(order=share.get((t, s))) for s in statistics)) for t in tensors]
        tables.append(Table(dataset or "", ("tensor", *statistics), rows, shaded=True))
    return tables
