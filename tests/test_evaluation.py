"""The experiments: intervals, folds, and both commands from a zoo to their files."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from nws_dataset.errors import ZooError
from nws_dataset.evaluation import meta_classifier, predictors, report
from nws_dataset.evaluation.folds import NUM_FOLDS, SMALL_ZOO, balanced, folds_of
from nws_dataset.predictors import DenseNet, GradientBoosting, LogitLinear
from nws_dataset.zoo import Zoo
from zoo_factory import make_zoo

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """24 networks of random weights, 3 snapshots each."""
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", models=24, snapshots=3)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny networks gain nothing from more threads, and lose much where other processes compete for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is tested here is the way from the zoo to the files, not how well is learned."""
    slim = dataclasses.replace(meta_classifier.SMALL_SETTINGS, epochs=1, width=1 / 64, slices_per_prediction=1)
    monkeypatch.setattr(meta_classifier, "SMALL_SETTINGS", slim)
    fast = {"linear": LogitLinear(), "boosting": GradientBoosting(num_trees=10, num_threads=1), "dense net": DenseNet(max_epochs=2)}
    monkeypatch.setattr(predictors, "PREDICTORS", fast)
    monkeypatch.setattr(report, "RESAMPLES", 20)


def test_wilson_interval_of_the_textbook():
    assert report.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)  # Newcombe 1998, table I, method 3
    assert report.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert report.wilson_interval(0, 0) == (0.0, 1.0)


def test_bootstrap_interval_holds_the_mean():
    truth = np.random.default_rng(0).normal(size=400)
    interval = report.bootstrap_interval(lambda t, p: float(t.mean()), truth, truth, seed=0)
    assert interval is not None
    low, high = interval
    assert low < truth.mean() < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.4)


def test_small_zoos_hold_out_each_model_once():
    labels = np.array(["a", "b", "c"] * 20)
    folds = folds_of(np.array(["train"] * 60), 0, small=True, labels=labels)
    assert len(folds) == NUM_FOLDS
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(60))
    for fold in folds:
        assert not set(fold.training) & set(fold.test) and len(fold.training) + len(fold.test) == 60
        assert np.unique(labels[fold.test], return_counts=True)[1].tolist() == [4, 4, 4]


def test_large_zoos_keep_their_splits():
    splits = np.array(["train", "test", "validation", "train"])
    (fold,) = folds_of(splits, 0, small=False)
    assert [fold.training.tolist(), fold.validation.tolist(), fold.test.tolist()] == [[0, 3], [2], [1]]


def test_balancing_within_splits():
    labels, splits = np.array(list("aaabbbaab")), np.array(["train"] * 6 + ["test"] * 3)
    kept = balanced(labels, splits, seed=0)
    assert sorted(labels[kept[kept < 6]]) == list("aaabbb") and sorted(labels[kept[kept >= 6]]) == ["a", "b"]


def run(command, *arguments):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_meta_classifier_command(zoo, tmp_path):
    output = run(meta_classifier.main, zoo, "--out", tmp_path, "--properties", "activation")
    results = json.loads((tmp_path / "meta_classifier.json").read_text())
    activation = results["results"]["activation"]
    assert activation["classes"] == ["relu", "tanh"] and activation["chance"] == 0.5
    assert activation["num_models"] == 24 == len(set(activation["predictions"]["model_id"]))
    assert [point["snapshot"] for point in activation["by_snapshot"]] == [1, 2, 3]
    assert activation["by_snapshot"][-1]["accuracy"] == activation["accuracy"]
    assert activation["interval_95"][0] < activation["accuracy"] < activation["interval_95"][1]
    text = (tmp_path / "meta_classifier.md").read_text()
    assert "| activation (2 values) |" in text and "5-fold" in text and str(tmp_path) not in text
    assert "activation (2 values)" in output and "5/5" in output
    for plot in re.findall(r"\((\S+\.png)\)", text):
        assert (tmp_path / plot).read_bytes().startswith(PNG)


def test_predictors_command(zoo):
    output = run(predictors.main, zoo)
    folder = zoo.parent / "nws-results"
    results = json.loads((folder / "predictors.json").read_text())
    assert len(results["results"]) == 9 and "9/9" in output and str(folder / "predictors.md") in output
    assert sorted(name for fold in results["folds"] for name in fold) == sorted(results["models"]["model_id"])
    for result in results["results"]:
        assert len(result["predicted"]) == 24 and all(0 <= value <= 1 for value in result["predicted"])
    assert (folder / "predictors_scatter.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("experiment", [meta_classifier, predictors])
def test_zoos_with_splits(experiment, zoo, monkeypatch, tmp_path):
    for module in (meta_classifier, predictors):
        monkeypatch.setattr(module, "is_small", lambda num_models: False)
    monkeypatch.setattr(meta_classifier, "Settings", lambda: meta_classifier.SMALL_SETTINGS)
    run(experiment.main, zoo, "--out", tmp_path)
    name = experiment.__name__.rpartition(".")[2]
    results = json.loads((tmp_path / f"{name}.json").read_text())
    tested = results["models"] if name == "predictors" else results["results"]["activation"]["predictions"]
    split_of = {row["model_id"]: row["split"] for row in Zoo(zoo).filter(is_final=True)}
    assert {split_of[name] for name in tested["model_id"]} == {"test"} and "own splits" in results["held_out"]


def test_the_same_seed_gives_the_same_files(zoo, tmp_path):
    def results(folder, seed):
        run(meta_classifier.main, zoo, "--out", folder, "--properties", "activation", "--seed", seed)
        return json.loads((folder / "meta_classifier.json").read_text())["results"]

    assert results(tmp_path / "a", 0) == results(tmp_path / "b", 0) != results(tmp_path / "c", 1)


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (meta_classifier.main, ["--properties", "optimizer"], "two values or more"),
        (meta_classifier.main, ["--properties", "optimiser"], "optimiser"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(command, arguments, words, zoo):
    result = CliRunner().invoke(command, [str(zoo), *arguments])
    assert result.exit_code == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [meta_classifier.main, predictors.main])
def test_a_missing_zoo_is_one_line_and_exit_code_2(command, tmp_path):
    result = CliRunner().invoke(command, [str(tmp_path / "nothing")])
    assert result.exit_code == 2 and "nothing" in result.stderr and len(result.stderr.splitlines()) == 1


def test_usable_properties(zoo):
    final = Zoo(zoo).filter(is_final=True)
    assert meta_classifier.usable(final, None) == ["activation"]
    with pytest.raises(ZooError, match="10 models"):
        meta_classifier.usable(final[:3], None)
    assert len(final) < SMALL_ZOO
