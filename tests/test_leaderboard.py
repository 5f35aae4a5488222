"""The page of all methods: from result files to HTML, and a method of one's own from a file to the page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from nws_dataset.evaluation.inputs import words_of
from nws_dataset.evaluation.results import facts_of, record_of
from nws_dataset.evaluation.scores import metric_of, scores_of
from nws_dataset.experiments import leaderboard
from nws_dataset.experiments.candidate import Candidate
from nws_dataset.pages import plots
from nws_dataset.pages.charts import LEFT, RIGHT, Figure, Line, Panel
from nws_dataset.pages.sections import SECTIONS, accuracy_section, curve_section
from nws_dataset.pages.tables import Given, table_of
from nws_dataset.reading.zoo import Zoo
from testing.zoo_factory import make_zoo, use_copy

VOID = {"meta", "line", "polyline", "polygon", "circle"}  # elements without an end
REGRESSOR = '''"""Nine quantiles of a network's weights, read by a forest."""
import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

class Quantiles:
    def __init__(self, random_state=0):
        self.forest = ExtraTreesRegressor(50, random_state=random_state)

    def fit(self, rows, y):
        self.forest.fit([np.quantile(row, np.linspace(0, 1, 9)) for row in rows], y)
        return self

    def predict(self, rows):
        return self.forest.predict([np.quantile(row, np.linspace(0, 1, 9)) for row in rows])
'''
CLASSIFIER = """
import numpy as np
from sklearn.base import ClassifierMixin

class MostFrequent(ClassifierMixin):
    def fit(self, rows, y):
        assert len(rows) == len(y) and all(row.ndim == 1 for row in rows)
        values, counts = np.unique(y, return_counts=True)
        self.value = values[counts.argmax()]

    def predict(self, rows):
        return np.full(len(rows), self.value)
"""


class Page(HTMLParser):
    """A parsed page: that its elements close in order, its cells, its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[tuple[str, str]] = []  # title and text
        self.heads: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.addresses: list[str] = []
        self.title = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.ids += [named["id"]] if "id" in named else []
        self.anchors += [named["href"]] if tag == "a" else []
        self.addresses += [
            value
            for name, value in attributes
            if name in ("src", "href", "srcset", "action", "data") and tag != "a"
        ]
        self.open += [] if tag in VOID else [tag]
        if tag == "td" and "title" in named:
            self.cells.append((named["title"], ""))
        if tag == "th":
            assert named["scope"] in ("col", "row", "colgroup")
            self.heads.append("")

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "th":
            self.heads[-1] += data
        if "td" in self.open and self.cells and data.strip():
            title, text = self.cells[-1]
            self.cells[-1] = title, text + data


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """20 networks of random weights, of 3 data sets and 2 architectures."""
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", models=20, snapshots=2)


def record(value, **fields):
    """A record as the evaluation commands write it."""
    names = {
        "experiment": "accuracy",
        "target": "test_accuracy",
        "method": "boosting",
        "input": "layers",
        "nets": "all",
        "metric": "r2",
    }
    sides = {
        "trained_on": "mnist, train",
        "tested_on": "mnist, test",
        "num_train": 80,
        "num_test": 10,
        "seed": 0,
    }
    return {**names, **sides, "value": value, **fields}


def told(experiment, value, **fields):
    """A record of a property."""
    names = {
        "target": "optimizer",
        "metric": "accuracy",
        "input": "slice",
        "chance": 0.25,
        "from_architecture": 0.375,
    }
    return record(value, experiment=experiment, **{**names, **fields})


RECORDS = [
    record(0.9011, dataset="mnist", paper=0.993, interval_95=[0.8, 0.95]),
    record(0.9031, dataset="mnist", paper=0.993, seed=1),
    record(0.7123, dataset="mnist", method="linear", paper=0.92),
    record(0.00213, dataset="mnist", metric="mse"),
    record(0.6543, dataset="mnist", nets="converged"),
    told("what", 0.8125, interval_95=[0.7, 0.9]),
    told("what", 0.5, method="linear SVM", input="layers"),
    told("what", 0.6875, nets="converged"),
    record(
        0.312,
        experiment="what",
        target="learning_rate",
        task="learning_rate (log10)",
        metric="mae",
        chance=0.4,
        pairs=[[0, 1]],
    ),
    told("label", 0.8875, target="label", task="class of the image (mnist)", seconds=12.5),
    told("label", 0.3125, target="label", task="class of the image (mnist)", method="MLP"),
    *(
        told("learning_curve", value, target="label", task="class of the image (mnist)", num_train=size)
        for size, value in ((500, 0.4375), (1000, 0.5625))
    ),
    *(
        told("edges", value, target="edges", dataset="mnist", metric=metric, kept=0.25, chance=chance)
        for metric, value, chance in (("edge_accuracy", 0.9321, 0.75), ("roc_auc", 0.9754, 0.5))
    ),
    record(0.8123, dataset="svhn", metric="kendall_tau", ceiling=0.9031),
    *(told("when", value, snapshot=snapshot) for snapshot, value in ((1, 0.26), (10, 0.51), (20, 0.812))),
    *(told("where", value, snapshot=20, position=position) for position, value in ((0.0, 0.41), (1.0, 0.62))),
    told("where", 0.7321, snapshot=20, layer="convolutional part"),
    *(
        record(
            value,
            experiment="transfer",
            metric="kendall_tau",
            trained_on=source,
            tested_on=target,
            across="dataset",
        )
        for source, target, value in (("a", "a", 0.91), ("a", "b", 0.62), ("b", "a", 0.63), ("b", "b", 0.92))
    ),
    record(0.5678, experiment="held_out", trained_on="all but adam", tested_on="adam", across="optimizer"),
    *(
        record(value, experiment="early", snapshot=snapshot, epoch=snapshot)
        for snapshot, value in ((1, -0.2), (5, 0.77))
    ),
    *(
        record(value, experiment="learning_curve", dataset="mnist", num_train=size)
        for size, value in ((20, 0.31), (40, 0.64))
    ),
]


def records_of(told):
    """Records as they are read from a file."""
    return [record_of("results", one, i) for i, one in enumerate(told)]


def results_of(zoo, records=RECORDS, **more):
    facts = facts_of(Zoo(zoo), "nws")
    return {
        "zoo": facts,
        "command": "evaluate_predictors.py nws",
        "settings": {"seeds": [0]},
        "results": records,
        "plots": [],
        **more,
    }


def write(path, contents):
    path.parent.mkdir(exist_ok=True)
    path.write_text(contents if isinstance(contents, str) else json.dumps(contents))
    return path


def run(*arguments, mistake=None):
    """The output, or of a mistake the one line that tells it."""
    result = CliRunner().invoke(leaderboard.main, [str(argument) for argument in arguments])
    assert result.exit_code == (2 if mistake else 0), result.output
    if mistake:
        assert mistake in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    return result.output


def page_at(path):
    html = path.read_text()
    page = Page(html)
    assert page.open == [] and len(set(page.ids)) == len(page.ids)
    assert page.addresses == [] and not re.search(r"(?:https?:)?//[a-z]", html)  # nothing is fetched
    assert all(anchor.removeprefix("#") in page.ids for anchor in page.anchors)
    return page


def test_every_result_is_on_the_page_once(zoo, tmp_path):
    write(tmp_path / "results" / "predictors.json", results_of(zoo, unknown=[{"field": 1}]))
    assert str(tmp_path / "page.html") in run(
        zoo, "--results", tmp_path / "results", "--out", tmp_path / "page.html"
    )
    page = page_at(tmp_path / "page.html")
    assert {name for name in SECTIONS} <= set(page.ids)
    for score in scores_of(records_of(RECORDS)):
        shown = [
            text
            for title, text in page.cells
            if title == score.source and text.startswith(score.metric.text(score.mean()))
        ]
        twins = [other for other in scores_of(records_of(RECORDS)) if other.source == score.source]
        assert len(shown) == len(twins), score.source
    text = (tmp_path / "page.html").read_text()
    assert (
        "0.901 (seed 0), 0.903 (seed 1); 95 % interval 0.800 to 0.950; trained on mnist, train (80 networks)"
    ) in text
    assert "evaluate_predictors.py nws" in text and "demo: 20 networks, seed 7" in text
    assert {"statistics of all layers", "boosting", "optimizer"} <= set(page.heads)
    assert {"majority", "kept", "CPU seconds", "highest τ"} <= set(page.heads)


def test_the_order_of_the_ranking():
    found = records_of(r for r in RECORDS if r["experiment"] == "accuracy")
    table = accuracy_section(scores_of(found)).tables[0]
    assert [row[1] for row in table.rows] == ["boosting", "linear"]
    assert table.columns == ("input", "method", "R²", "R²", table.columns[4], "R²")
    assert table.groups == ("", "", "Paper", "All networks", "All networks", "Converged networks")
    (_, _, *first), (_, _, *second) = table.rows
    assert [cell.text for cell in first] == ["0.993", "0.902", "2.13", "0.654"] and first[1].spread == "0.001"
    assert first[1].best and not second[1].best and not first[2].best  # of a single one there is no best
    assert second[2].order is None and first[1].share == pytest.approx(0.9021)
    assert table.spans == [("Paper", 1), ("All networks", 2), ("Converged networks", 1)]
    header, rule, row, _ = table.markdown().splitlines()
    assert header.startswith("| input | method | Paper: R² | All networks: R² | ")
    assert rule == "| --- | --- | ---: | ---: | ---: | ---: |" and " | 0.902 ± 0.001 | " in row


def test_lower_errors_are_better():
    told = (record(value, metric="mse", method=name) for name, value in (("a", 0.2), ("b", 0.1)))
    scores = scores_of(records_of(told))
    column, given = lambda s: ("", s.first.metric), [Given("paper", "", "")]
    table = table_of("", scores, {"method": "method"}, column, given=given, ranked=True)
    assert [(name, cell.best) for name, cell in table.rows] == [("b", True), ("a", False)]
    assert table.columns == ("method", "mse")


def test_small_errors_keep_their_digits():
    """Of learning rates, whose errors of 0.001 would else all look the same."""
    text = metric_of("mae").text
    assert list(map(text, (0.0011596, 0.00054826, 0.0000213))) == ["0.00116", "0.000548", "0.000021"]
    assert list(map(text, (0.0, 0.4, 12.3456, -0.02))) == ["0.000", "0.400", "12.346", "\N{MINUS SIGN}0.0200"]
    assert metric_of("mse").text(0.0000123) == "0.01"


def test_blanks_and_unknown_names(zoo, tmp_path):
    """Only what a record must have is asked for; what the page does not know is named or shown as it is."""
    least = {
        name: record(0.25)[name]
        for name in ("experiment", "target", "method", "input", "nets", "metric", "value")
    }
    records = [
        least,
        {**least, "value": None, "method": "failed"},
        {**least, "experiment": "another_question"},
    ]
    records.append({**least, "metric": "my_score", "input": "<b>features</b>", "nets": "odd"})
    path = write(tmp_path / "one.json", results_of(zoo, records))
    run(zoo, "--results", path, "--out", tmp_path / "page.html")
    page = page_at(tmp_path / "page.html")
    assert len(page.cells) == 2 and "<b>features</b>" in page.heads and "failed" not in page.heads
    assert "in the files: another question" in (tmp_path / "page.html").read_text()
    assert metric_of("my_score").words == "my_score" and words_of("layer conv1") == "statistics of conv1"


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        ("not JSON", "expected a JSON file"),
        ("[1]", "no legal 'zoo', 'command', 'results'"),
        ({"zoo": {}, "command": "c"}, "no legal 'results'"),
        ({"zoo": {}, "command": "c", "results": [{"method": "m"}]}, "record 0 without experiment, target"),
        ({"zoo": {}, "command": "c", "results": [record("high")]}, "'high' in record 0"),
        (
            {"zoo": {"name": "other", "subsets": {}}, "command": "c", "results": []},
            "expected results of nws with subsets",
        ),
        ("other weights", "expected results of nws with weights"),
    ],
)
def test_files_that_are_no_results(zoo, tmp_path, contents, found):
    if contents == "other weights":  # as of another revision of the zoo
        contents = results_of(zoo)
        contents["zoo"]["weights"] = "0" * 64
    run(
        zoo,
        "--results",
        write(tmp_path / "results" / "bad.json", contents).parent,
        "--out",
        tmp_path / "page.html",
        mistake=found,
    )
    assert not (tmp_path / "page.html").exists()


def test_contradictions_and_nothing_at_all(zoo, tmp_path):
    write(tmp_path / "results" / "a.json", results_of(zoo, [record(0.5)]))
    write(tmp_path / "results" / "b.json", results_of(zoo, [record(0.6)]))
    run(zoo, "--results", tmp_path / "results", mistake="found 0.5 and 0.6 for accuracy")
    run(zoo, mistake="run nws evaluate")
    run(zoo, "--results", tmp_path / "missing", mistake="missing: expected a JSON file")


def test_a_method_from_a_file(zoo, tmp_path):
    """As in the guide: one class, one command; a second run takes what is there, until the file changes."""
    method, page = write(tmp_path / "my_method.py", REGRESSOR), tmp_path / "page.html"
    assert len(REGRESSOR.splitlines()) <= 15
    arguments = (zoo, "--method", f"{method}:Quantiles", "--seeds", 2, "--out", page)
    run(*arguments)
    path = tmp_path / "method_Quantiles.json"
    first = path.read_bytes()
    results = json.loads(first)
    assert results["command"] == "leaderboard.py nws --method my_method.py:Quantiles --seeds 2"
    found = results["results"]
    assert {(r["target"], r["seed"]) for r in found} == {
        (name, seed) for name in ("test_accuracy", "learning_rate") for seed in (0, 1)
    }
    assert {r["num_test"] for r in found if r["target"] == "test_accuracy" and r["nets"] == "all"} == {20}
    assert str(tmp_path) not in first.decode() and "Quantiles" in page_at(page).heads

    marked = {**results, "results": [{**r, "value": 0.125} for r in found]}
    write(path, marked)
    run(*arguments)
    assert json.loads(path.read_text()) == marked  # not tried again
    run(*arguments, "--again")
    assert path.read_bytes() == first  # tried again, with the same numbers
    write(path, marked)
    write(method, REGRESSOR + "\n")
    run(*arguments)
    assert json.loads(path.read_text())["results"] == found


def test_a_copy_of_an_image_set_names_the_results(tmp_path):
    zoo = make_zoo(tmp_path / "nws", models=20, snapshots=2)
    name = use_copy(zoo)
    method = write(tmp_path / "my_method.py", REGRESSOR)
    run(zoo, "--method", f"{method}:Quantiles", "--seeds", 1, "--out", tmp_path / "page.html")
    assert f"<dd>{name}, mnist, svhn</dd>" in (tmp_path / "page.html").read_text()
    results = json.loads((tmp_path / "method_Quantiles.json").read_text())["results"]
    (of_numbers,) = {r["trained_on"] for r in results if r["target"] == "learning_rate"}
    assert of_numbers.endswith(f"{name}, mnist, svhn") and "cifar10" not in json.dumps(results)


def test_a_classifier_is_asked_for_classes(zoo, tmp_path):
    method = write(tmp_path / "my_method.py", CLASSIFIER)
    run(zoo, "--method", f"{method}:MostFrequent", "--seeds", 1, "--out", tmp_path / "page.html")
    found = json.loads((tmp_path / "method_MostFrequent.json").read_text())["results"]
    targets = {r["target"] for r in found}
    assert {"activation", "dataset"} <= targets and {r["metric"] for r in found} == {"accuracy"}
    # balanced: no better than chance
    assert all(r["value"] <= 0.5 for r in found if r["target"] == "activation" and r["nets"] == "all")
    assert "activation (2 values)" in page_at(tmp_path / "page.html").heads


PAGE = (Path(__file__).parent.parent / "docs/guides/method.md").read_text()
(GRAPH_METHOD,) = re.findall(r"^```python\n(.\"\"my_graph_method.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_a_class_may_read_graphs(zoo, tmp_path):
    """The page's method, in at most 15 lines of a class."""
    code = GRAPH_METHOD[GRAPH_METHOD.index("class ") :].splitlines()
    assert len([line for line in code if line.strip()]) <= 15
    method = write(tmp_path / "my_graph_method.py", GRAPH_METHOD)
    run(zoo, "--method", f"{method}:EdgeSizes", "--seeds", 1, "--out", tmp_path / "page.html")
    found = json.loads((tmp_path / "method_EdgeSizes.json").read_text())["results"]
    assert {"activation", "dataset"} <= {r["target"] for r in found}
    # the two architectures have activations of their own, which the sizes of edges give away
    (told,) = (r for r in found if r["target"] == "activation" and r["nets"] == "all")
    assert told["value"] > 0.8


@pytest.mark.parametrize(
    ("code", "name", "found"),
    [
        ("class A:\n    reads = 1\n    fit = predict = lambda self, *given: 0", "A", "found 1"),
        ("class A: pass", "A", "A without fit and predict"),
        ("class A:\n    def fit(self, rows, y): pass", "A", "A without predict"),
        ("class A: pass", "B", "expected a class 'B', found none of that name"),
        ("A = 1", "A", "found none of that name"),
        (
            "class A:\n    fit = lambda self, rows, y: self\n    predict = lambda self, rows: [0.5]",
            "A",
            "of shape (1,)",
        ),
        (
            "class A:\n    fit = lambda self, rows, y: self\n    predict = lambda self, rows: "
            "[float('nan')] * len(rows)",
            "A",
            "not all finite",
        ),
    ],
)
def test_methods_that_are_none(zoo, tmp_path, code, name, found):
    run(
        zoo,
        "--method",
        f"{write(tmp_path / 'bad.py', code)}:{name}",
        "--out",
        tmp_path / "page.html",
        mistake=found,
    )
    assert not (tmp_path / "page.html").exists() and not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("text", ["", "nothing.py", "nothing.py:A", "notes.txt:A"])
def test_files_that_are_no_methods(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("notes.txt"), "class A: pass")
    with pytest.raises(leaderboard.ZooError, match=r"expected FILE\.py:Class"):
        Candidate.load(text)


def test_charts():
    panel = Panel(
        "optimizer",
        [Line("svm", [(1, 0.25, 0.0), (10, 0.5, 0.1), (100, 2.0, 0.0)])],
        "snapshot",
        0.0,
        1.0,
        logarithmic=True,
    )
    middle = (LEFT + RIGHT) / 2
    assert [panel.x(value) for value in (1, 10, 100)] == [LEFT, middle, RIGHT]
    assert panel.y(2.0) == panel.y(1.0) < panel.y(0.5)  # above the top is drawn on it
    assert panel.path(panel.lines[0]).split()[1] == f"{middle},{panel.y(0.5)}"
    assert panel.band(panel.lines[0]).split()[1] == f"{middle},{panel.y(0.6)}"
    assert [words for _, words in panel.x_ticks] == ["1", "10", "100"] and [
        words for _, words in panel.y_ticks
    ] == ["0", "0.5", "1"]
    assert "svm from 0.25 to 2.00" in panel.words
    other = Panel(
        "activation", [Line("boosting", [(1, 0.5, 0.0)]), Line("svm", [(1, 0.5, 0.0)])], "snapshot", 0.0, 1.0
    )
    # one colour in all panels
    assert Figure("", [panel, other]).styles == {"svm": 0, "boosting": 1}


def curves_of(inputs, methods=("boosting",), **others):
    """The figure of learning curves of some methods on some inputs of MNIST, and of other data sets."""
    made = [
        record(value, experiment=experiment, dataset=dataset, input=name, method=method, num_train=size)
        for experiment, size, value in (("learning_curve", 20, 0.3), ("accuracy", 80, 0.6))
        for dataset, names in {"mnist": inputs, **others}.items()
        for name in names
        for method in methods
    ]
    (figure,) = curve_section(scores_of(records_of(made))).figures
    return figure


def test_learning_curves_of_few_methods_are_in_one_panel():
    figure = curves_of(("graph", "layers", "row"))
    (panel,) = figure.panels
    assert panel.title == "mnist" and list(figure.styles) == [
        f"boosting, {words_of(name)}" for name in ("graph", "layers", "row")
    ]
    assert [line.points for line in panel.lines] == 3 * [[(20, 0.3, 0.0), (80, 0.6, 0.0)]]
    many = curves_of(("norms", "layers", "row"), ("boosting", "dense net", "linear"))
    assert [panel.title for panel in many.panels] == [
        f"mnist: {words_of(name)}" for name in ("norms", "layers", "row")
    ]
    assert list(many.styles) == ["boosting", "dense net", "linear"]


def test_each_line_of_a_panel_looks_different():
    """Also where few lines are in a panel, but more in the figure than there are looks."""
    figure = curves_of("abcdefg", fashion_mnist="ah")
    assert len(figure.panels) == 9 and set(figure.styles) == {"boosting"}
    figure = curves_of("abcdef", fashion_mnist="ag")
    assert [len(panel.lines) for panel in figure.panels] == [6, 2] and len(figure.styles) == 7


def test_a_legend_names_what_is_in_any_panel():
    parts = [Panel(name, [Line(name, [(1, 0.5, 0.0), (2, 0.6, 0.0)])], "", 0.0, 1.0) for name in "ab"]
    (legend,) = plots.lines(Figure("", parts), "", "").legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
