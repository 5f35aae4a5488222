"""What an experiment leaves: all numbers as JSON, tables as Markdown and on the terminal, plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from nws_dataset.console import Cell, Table
from nws_dataset.errors import one_line
from nws_dataset.evaluation import paper
from nws_dataset.evaluation.inputs import LAYERS, RECIPE, WHOLE, words_of
from nws_dataset.evaluation.pages.charts import Figure as Chart
from nws_dataset.evaluation.pages.sections import Section, property_panels, sections_of, transfer_matrices
from nws_dataset.evaluation.run import Predictions
from nws_dataset.evaluation.scores import (
    ALL,
    METRICS,
    SIZED,
    Record,
    distinct,
    kendall_tau,
    r2,
    scores_of,
    select,
)
from nws_dataset.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_TENSORS = 16  # of the matrix of gains
SHOWN = (LAYERS, WHOLE, RECIPE)  # inputs of the scatter plots


@dataclass(frozen=True)
class Report:
    """Results of an experiment, on their way to files.

    Args:
        contents: of the JSON file: "experiment", which names the files; "zoo" (see `facts_of`); "command",
            "settings"; "results", the records. The plots' names are added as "plots".
        title: of the Markdown file.
        notes: sentences that say how the numbers were taken.
        sections: with the tables.
        draw: gives name -> picture; called when the numbers are safe on disk.
    """

    contents: dict[str, Any]
    title: str
    notes: Sequence[str]
    sections: Sequence[Section]
    draw: Callable[[], Mapping[str, Figure]]

    def write(self, folder: Path) -> None:
        """Write `<experiment>.json`, `<experiment>.md` and `<experiment>_<plot>.png`; print tables and paths.

        Args:
            folder: made if it is not there.
        """
        name = self.contents["experiment"]
        data, text = folder / f"{name}.json", folder / f"{name}.md"
        _write(data, self._json([]))
        plots = self.draw()
        images = {plot: folder / f"{name}_{plot}.png" for plot in plots}
        for plot, path in images.items():
            with atomic_write(path) as temporary:
                plots[plot].savefig(temporary, dpi=150, format="png")
        _write(data, self._json([path.name for path in images.values()]))
        links = [f"![{plot}]({path.name})" for plot, path in images.items()]
        tables = [
            part
            for section in self.sections
            for part in (
                f"## {section.title}",
                *(f"**{t.title}**\n\n{t.markdown()}" for t in _tables(section)),
            )
        ]
        _write(text, "\n\n".join([f"# {self.title}", *self.notes, *links, *tables]))
        for section in self.sections:
            for table in _tables(section):
                table.print()
        written = ", ".join(map(one_line, (data, text, *images.values())))
        for line in (*self.notes, f"Written: {written}"):
            click.echo(line)

    def _json(self, plots: list[str]) -> str:
        told = {**self.contents, "plots": plots}
        return json.dumps({**told, "results": [record.to_json() for record in told["results"]]}, indent=1)


def _tables(section: Section) -> list[Table]:
    return [*section.tables, *section.more]


def _write(path: Path, content: str) -> None:
    """A text file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(content + "\n", encoding="utf-8")


def report_of_properties(contents: dict[str, Any], notes: Sequence[str]) -> Report:
    """What the weights tell of their training."""
    name, layers, scores = contents["zoo"]["name"], contents["layers"], scores_of(contents["results"])
    title = f"What the weights tell of their training: {name}"

    def draw() -> dict[str, Figure]:
        from nws_dataset.evaluation.pages import plots

        told = select(scores, nets=ALL, metric="accuracy")
        where = select(told, experiment="where")
        along = [s for s in where if s.first.position is not None]
        label = "accuracy on held-out models"
        figures: dict[str, Figure] = {}
        if what := select(told, experiment="what"):
            figures["accuracy"] = plots.dots(what, title, label, panel="metric", line="target")
        if when := select(told, experiment="when"):
            chart = Chart("", property_panels(when, "snapshot"))
            figures["snapshots"] = plots.lines(chart, f"When the weights tell it: {name}", label)
        if along:
            chart = Chart("", property_panels(along, "position"))
            figures["positions"] = plots.lines(chart, f"Where the weights tell it: {name}", label, layers)
        if parts := [s for s in where if s.first.layer is not None]:
            words = f"Which layers tell it: {name}"
            figures["layers"] = plots.dots(parts, words, label, panel="target", line="layer")
        numbers = [record for record in contents["results"] if record.pairs and record.seed == 0]
        if numbers:
            clouds = [plots.Cloud(_words(r), *np.array(r.pairs).T) for r in numbers]
            words = f"The learning rate, read off the weights: {name}"
            figures["learning_rate"] = plots.clouds(clouds, words, ("true", "read off the weights"))
        return figures

    return Report(contents, title, notes, sections_of(scores), draw)


def _words(record: Record) -> str:
    """Of predicted numbers: who predicts, and how well."""
    scores = f"mean error {record.value:.3g}, chance {record.chance:.3g}"
    return f"{record.method}, {words_of(record.input)}\n{scores}"


def report_of_accuracies(
    contents: dict[str, Any],
    predictions: Sequence[Predictions],
    converged: Mapping[str, bool],
    notes: Sequence[str],
) -> Report:
    """How accurate networks are; `converged` tells of each model whether it did."""
    records, scores = contents["results"], scores_of(r for r in contents["results"] if r.feature is None)
    sections = sections_of(scores)
    departed = [Section("departures", t.title, "", [t]) for t in paper.departures(scores)]

    def draw() -> dict[str, Figure]:
        from nws_dataset.evaluation.pages import plots

        chosen, label = (
            select(scores, experiment="accuracy", metric="r2", nets=ALL),
            "R² on held-out networks",
        )
        figures = {
            "r2": plots.dots(
                chosen, "Test accuracy, predicted (below 0: at 0)", label, panel="dataset", line="input"
            ),
            "importance": plots.matrices(
                _gains(records), "What boosting gains from each statistic, % of all", 0
            ),
        }
        charts = {section.id: figure for section in sections for figure in section.figures if figure.panels}
        for name, title in (
            (SIZED, "Fewer networks to learn from"),
            ("early", "The final accuracy, predicted early"),
        ):
            if name in charts:
                figures[name] = plots.lines(charts[name], title, label if name == SIZED else "")
        transferred = select(scores, experiment="transfer")
        for column in distinct(transferred, "across"):
            tables = transfer_matrices(select(transferred, across=column), "kendall_tau")
            title = f"Kendall's τ of transfer across {column}s, without retraining"
            figures[f"transfer_{column}"] = plots.matrices(tables, title, 2, 1.0)
        for dataset in dict.fromkeys(one.dataset for one in predictions):
            clouds = []
            for one in predictions:
                if one.dataset == dataset and one.input in SHOWN:
                    true, predicted = np.array(one.true), np.array(one.predicted)
                    tau, r = METRICS["kendall_tau"].text(kendall_tau(true, predicted)), r2(true, predicted)
                    words = f"{words_of(one.input)}\n{one.method}: R² {METRICS['r2'].text(r)}, τ {tau}"
                    which = np.array([converged[name] for name in one.model_id], bool)
                    clouds.append(plots.Cloud(words, true, predicted, which))
            title = f"Accuracy read off features, held-out {dataset} networks"
            labels = ("true test accuracy", "predicted")
            figures[f"scatter_{dataset.replace(' ', '_')}"] = plots.clouds(
                clouds, title, labels, (-0.03, 1.03)
            )
        return figures

    title = f"Test accuracy of networks, predicted: {contents['zoo']['name']}"
    told = {**contents, "predictions": [vars(one) for one in predictions]}
    return Report(told, title, notes, [*sections, *departed], draw)


def _gains(records: Sequence[Record]) -> list[Table]:
    """What boosting gains from each statistic of the tensors from which it gains most, a table a data set."""
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
