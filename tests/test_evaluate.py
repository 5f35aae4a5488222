"""nws-evaluate: what is asked follows from the zoo; from the command to its files and the leaderboard."""

import dataclasses
import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import kendalltau
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from nws_dataset import Zoo
from nws_dataset.baselines import learners
from nws_dataset.errors import ZooError
from nws_dataset.evaluation import inputs as kinds
from nws_dataset.evaluation import metanetworks, models, scores
from nws_dataset.evaluation.inputs import Inputs
from nws_dataset.evaluation.tasks import EDGES, LABEL, TEST_ACCURACY, label_tasks
from nws_dataset.experiments import evaluate, leaderboard
from testing.planned_zoo import make_planned_zoo

OF_ROWS = {name for name, _ in metanetworks.METANETWORKS}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is tested here is the way from the zoo to the files, not how well is learned."""
    for name in ("FEWEST", "MOST"):
        monkeypatch.setattr(metanetworks, name, 1)
    slim = dataclasses.replace(
        kinds.SMALL_SETTINGS, epochs=1, width=1 / 64, slices_per_prediction=2, slice_length=300
    )
    monkeypatch.setattr(evaluate, "SMALL_SETTINGS", slim)
    monkeypatch.setattr(evaluate, "LEAST_STEPS", 0)
    monkeypatch.setattr(evaluate, "FIRST_POINT", 10)
    monkeypatch.setattr(learners, "TREES", 5)
    monkeypatch.setattr(models, "MAX_EDGES", 2000)
    monkeypatch.setattr(scores, "RESAMPLES", 20)


@pytest.fixture(scope="module")
def sirens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sirens") / "sirens"
    return make_planned_zoo(folder, "siren", 40, epochs=2, keep=lambda model: model.recipe.dataset == "mnist")


@pytest.fixture(scope="module")
def kans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kans") / "kans"
    return make_planned_zoo(folder, "kan", 12, epochs=1, keep=lambda model: model.recipe.dataset == "mnist")


def run(zoo, *options):
    result = CliRunner().invoke(evaluate.main, [str(zoo), "--jobs", "1", *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def records_of(folder):
    contents = json.loads((folder / "evaluation.json").read_text())
    return contents, [scores.Record(**{"value": None, **record}) for record in contents["results"]]


def test_a_zoo_of_images_is_asked_for_their_class(sirens, tmp_path):
    result = run(sirens, "--seeds", "2", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    contents, records = records_of(tmp_path)
    assert {record.target for record in records} == {LABEL}  # nothing else varies
    assert {record.experiment for record in records} == {LABEL, scores.SIZED}
    methods = {record.method for record in records}
    assert methods == OF_ROWS | {models.DEEP, models.SVM, models.BOOSTING}
    for record in records:
        repeated = record.method in evaluate.REPEATED
        assert record.seed in ((0, 1) if repeated else (0,))
        assert record.seconds is not None and record.chance == pytest.approx(0.1, abs=0.1)
    curve = {(r.method, r.input, r.num_train) for r in records if r.experiment == scores.SIZED}
    assert {size for _, _, size in curve} == {10} and {name for name, _, _ in curve} == {*evaluate.REPEATED}
    assert len(contents["tested"]) == 1
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "evaluation_label.png", "evaluation_learning_curve.png", "evaluation_told_wrong.png",
    }  # fmt: skip
    text = (tmp_path / "evaluation.md").read_text()
    assert "graph network" in text and "± " in text
    assert "Published, on other networks" in text and "NG-GNN, no probes" in text and "WS-KAN" not in text
    page = tmp_path / "page.html"
    done = CliRunner().invoke(leaderboard.main, [str(sirens), "--results", str(tmp_path), "--out", str(page)])
    assert done.exit_code == 0, done.output
    html = page.read_text()
    assert "What does a network show?" in html and "class of the image" in html
    assert html.count("data:image/png;base64,") == 1 and "told wrong" in html


def test_examples_are_networks_told_wrong(sirens, tmp_path):
    assert run(sirens, "--seeds", "1", "--methods", models.SVM, "--out", str(tmp_path)).exit_code == 0
    _, records = records_of(tmp_path)
    zoo = Zoo(sirens)
    for record in records:
        labels = [zoo.filter(model_id=name, is_final=True)["label"][0] for name, _, _ in record.examples]
        assert labels == [true for _, true, _ in record.examples]
        assert all(true != told for _, true, told in record.examples)
        wrong = round((1 - record.value) * record.num_test)
        assert len(record.examples) == min(wrong, scores.MAX_EXAMPLES)


@pytest.mark.parametrize(
    ("target", "example", "found"),
    [
        (LABEL, ["siren-unknown", 1, 2], "siren-unknown"),
        (LABEL, [3, 1, 2], "3"),
        (EDGES, None, "networks that represent images, found a kan"),
    ],
)
def test_examples_that_are_not_of_the_zoo_are_one_line(sirens, kans, tmp_path, target, example, found):
    """Results are the files of strangers."""
    zoo = kans if target == EDGES else sirens
    options = "--seeds", "1", "--methods", "convolutions", "--sizes", "none", "--out", str(tmp_path)
    assert run(zoo, *options).exit_code == 0
    path = tmp_path / "evaluation.json"
    contents = json.loads(path.read_text())
    for record in contents["results"]:
        if "examples" in record:
            ids = [one for one, *_ in record["examples"]]
            record["examples"] = [example or [ids[0], 1, 2]]
            record |= {"experiment": LABEL, "metric": "accuracy"}
    path.write_text(json.dumps(contents))
    page = str(tmp_path / "page.html")
    result = CliRunner().invoke(leaderboard.main, [str(zoo), "--results", str(path), "--out", page])
    assert result.exit_code == 2 and found in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("digits", ["", "zz", "8c8c", "8"])
def test_digits_of_other_edges_are_refused(digits):
    assert scores.edges_of_hex("8c", 6).tolist() == [True, False, False, False, True, True]
    with pytest.raises(ZooError, match="expected digits of 6 edges"):
        scores.edges_of_hex(digits, 6)


def test_expected_seconds_are_those_of_a_step_times_steps(sirens, monkeypatch):
    inputs = Inputs.of(Zoo(sirens))
    inputs = dataclasses.replace(inputs, settings=evaluate.settings_for(inputs, "final"))
    (task,) = label_tasks(inputs.final, inputs.datasets, 0)
    methods = [*models.property_methods(inputs, by_layer=False), *metanetworks.metanetworks(inputs, "class")]
    measured = {method.name for method in methods if method.seconds}
    assert measured == OF_ROWS | {models.DEEP}
    assert {method.seconds(task) for method in methods if method.seconds} == {1.0}  # few steps
    monkeypatch.setattr(models, "FEW_STEPS", 0)
    once = [method.seconds(task) for method in methods if method.name in OF_ROWS]
    for name in ("FEWEST", "MOST"):
        monkeypatch.setattr(metanetworks, name, 3)
    thrice = [method.seconds(task) for method in methods if method.name in OF_ROWS]
    assert min(once) > 0 and thrice == pytest.approx([3 * seconds for seconds in once])
    deep = methods[0].seconds(task)
    assert deep > 0 and deep == methods[0].seconds(task)


def test_classes_of_images_are_not_balanced(sirens):
    inputs = Inputs.of(Zoo(sirens))
    (task,) = label_tasks(inputs.final, inputs.datasets, 0)
    labels, counts = np.unique(inputs.final["label"], return_counts=True)
    assert task.classes == tuple(labels[counts > 1]) and len(task.models) == counts[counts > 1].sum()
    assert sorted(task.tested) == list(range(len(task.models)))
    assert (task.truth == np.asarray(inputs.final["label"])[task.models]).all()


def test_kans_are_asked_for_accuracy_edges_and_recipe(kans, tmp_path):
    options = "--methods", "boosting,deep sets", "--seeds", "1", "--sizes", "none"
    result = run(kans, *options, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    contents, records = records_of(tmp_path)
    assert contents["command"].endswith("--seeds 1 --sizes none --jobs 1")
    targets = {record.target for record in records}
    assert targets >= {TEST_ACCURACY, EDGES, "learning_rate", "label_noise"}
    assert scores.SIZED not in {record.experiment for record in records}
    of_edges = [record for record in records if record.target == EDGES]
    assert {record.metric for record in of_edges} == {"edge_accuracy", "balanced_accuracy", "roc_auc"}
    for record in of_edges:
        assert record.kept == pytest.approx(math.exp(-1), abs=0.01)  # scores are exponential
        expected = 1 - record.kept if record.metric == "edge_accuracy" else 0.5
        assert record.chance == pytest.approx(expected) and 0 <= record.value <= 1
    assert {record.method for record in of_edges} == {models.BOOSTING, "deep sets"}
    taus = [record for record in records if record.metric == "kendall_tau"]
    assert taus and all(record.ceiling is not None for record in taus)
    assert (tmp_path / "evaluation_edges.png").exists()
    assert (tmp_path / "evaluation_of_one_network.png").exists()


def test_methods_for_edges_are_those_that_tell_them_apart(kans):
    methods = metanetworks.metanetworks(Inputs.of(Zoo(kans)), "edges")
    assert [(method.name, method.input) for method in methods] == [
        ("convolutions", kinds.ROW),
        ("deep sets", kinds.EDGE_SET),
        ("set transformer", kinds.EDGE_SET),
        ("graph network", kinds.GRAPH),
    ]


def test_tasks_and_methods_can_be_chosen(kans, tmp_path):
    run(kans, "--tasks", "edges", "--methods", "deep sets", "--seeds", "1", "--out", str(tmp_path))
    _, records = records_of(tmp_path)
    assert {record.target for record in records} == {EDGES}
    assert {record.method for record in records} == {"deep sets"}


def test_properties_by_name_and_their_learning_curves(kans, tmp_path):
    """From the later snapshots, as in the paper; curves of what reads slices are there if sizes are given."""
    methods = ",".join((models.DEEP, models.SVM, models.BOOSTING, "deep sets"))
    options = "--methods", methods, "--seeds", "1", "--snapshots", "late", "--out", str(tmp_path)
    options += "--steps", "7", "--width", "0.02"
    result = run(kans, "--tasks", "label_noise,learning_rate", "--sizes", "3,5", *options)
    assert result.exit_code == 0, result.output
    contents, records = records_of(tmp_path)
    assert (contents["settings"]["least_steps"], contents["settings"]["width"]) == (7, 0.02)
    assert ", 7 steps" in result.output.replace("\n", " ")
    assert {record.target for record in records} == {"label_noise", "learning_rate"}
    curve = [record for record in records if record.experiment == scores.SIZED and record.nets == scores.ALL]
    assert {(r.method, r.input, r.num_train) for r in curve if r.target == "learning_rate"} == {
        (method, name, size)
        for method, name in (
            (models.DEEP, kinds.SLICE),
            (models.DEEP, kinds.UNITS),
            (models.SVM, kinds.SLICE_STATISTICS),
            (models.BOOSTING, kinds.SLICE_STATISTICS),
            (models.BOOSTING, kinds.LAYERS),
        )
        for size in (3, 5)
    }
    assert all("later half" in (record.trained_on or "") for record in records)
    assert "the later half of the snapshots, the others from final ones" in result.output.replace("\n", " ")


@pytest.mark.parametrize("sizes", ["0", "1", "ten", "3;5", "3,,5", "-3", "3.5"])
def test_wrong_sizes_are_one_line(kans, sizes):
    result = run(kans, "--sizes", sizes)
    assert result.exit_code == 2 and "expected numbers of at least 2, separated by commas" in result.output


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--tasks", "colour"), "--tasks"),
        (("--tasks", "label"), "expected tasks among label, found none"),
        (("--methods", "guessing"), "found none"),
    ],
)
def test_nothing_to_ask_is_one_line(kans, tmp_path, options, found):
    result = run(kans, *options, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2 and found in result.output and len(result.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_goes_on(sirens, tmp_path, monkeypatch):
    options = ("--methods", "boosting,deep sets", "--sizes", "none", "--seeds", "1")
    run(sirens, *options, "--out", str(tmp_path / "whole"))
    plain, calls = metanetworks.RowModel.fit, []

    def fit(self, training, validation):
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, training, validation)

    monkeypatch.setattr(metanetworks.RowModel, "fit", fit)
    assert run(sirens, *options, "--out", str(tmp_path / "cut")).exit_code != 0
    before = len(calls)
    run(sirens, *options, "--out", str(tmp_path / "cut"))
    assert len(calls) - before < before
    whole, cut = (records_of(tmp_path / name)[1] for name in ("whole", "cut"))
    assert whole == cut


def test_the_same_networks_are_tested_whatever_is_asked(kans, tmp_path):
    """Two results with one digest are on the same networks."""
    run(kans, "--tasks", "edges", "--methods", "boosting", "--seeds", "1", "--out", str(tmp_path / "a"))
    run(kans, "--tasks", "edges", "--methods", "convolutions", "--seeds", "1", "--out", str(tmp_path / "b"))
    first, second = (records_of(tmp_path / name)[0]["tested"] for name in "ab")
    assert first == second and all(len(digest) == 64 for digest in first.values())


def test_the_ceiling_of_tau_is_that_of_a_ranking_without_ties():
    random = np.random.default_rng(0)
    truth = random.integers(0, 12, 300) / 12
    ranks = np.lexsort((random.random(300), truth)).argsort()  # in the right order, ties broken
    assert scores.tau_ceiling(truth) == pytest.approx(kendalltau(truth, ranks).statistic, abs=1e-12)
    assert scores.tau_ceiling(random.random(50)) == 1.0


def test_scores_of_edges_are_scikit_learns():
    random = np.random.default_rng(0)
    truth, predicted = random.random((20, 30)) < 0.2, random.random((20, 30))
    labels = {"experiment": EDGES, "target": EDGES, "method": "m", "input": "i", "seed": 0}
    records = scores.records_of_edges(labels, truth, predicted, intervals=True)
    found = {record.metric: record for record in records}
    told = predicted > 0.5
    assert found["edge_accuracy"].value == pytest.approx((told == truth).mean())
    assert found["balanced_accuracy"].value == pytest.approx(
        balanced_accuracy_score(truth.ravel(), told.ravel())
    )
    assert found["roc_auc"].value == pytest.approx(roc_auc_score(truth.ravel(), predicted.ravel()))
    assert found["edge_accuracy"].chance == pytest.approx(max(truth.mean(), 1 - truth.mean()))
    low, high = found["edge_accuracy"].interval_95
    assert low < found["edge_accuracy"].value < high
