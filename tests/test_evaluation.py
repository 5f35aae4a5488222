"""The experiments: intervals, folds, and both commands from a zoo to their files."""

import dataclasses
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from nws_dataset.errors import ZooError
from nws_dataset.evaluation import meta_classifier, predictors, report
from nws_dataset.evaluation.folds import NUM_FOLDS, SMALL_ZOO, Fold, balanced, check_models, describe, folds_of
from nws_dataset.predictors import DenseNet, GradientBoosting, LogitLinear
from nws_dataset.zoo import Zoo
from zoo_factory import make_zoo

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """24 networks of random weights, 3 snapshots each."""
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", models=24, snapshots=3)


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


@pytest.mark.parametrize("num_models", [4, 6, 8, 13])
def test_tiny_zoos_have_fewer_folds(num_models):
    """Every fold trains on each class, and on equally many of each where they can be shared out."""
    labels = np.array(["a", "b"] * num_models)[:num_models]
    folds = folds_of(np.array(["train"] * num_models), 0, small=True, labels=labels)
    assert len(folds) == min(NUM_FOLDS, num_models // 2)
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(num_models))
    for fold in folds:
        assert set(labels[fold.training]) == {"a", "b"} and not set(fold.training) & set(fold.test)
    assert len(folds_of(np.array(["train"] * num_models), 0, small=True)) == min(NUM_FOLDS, num_models)


def test_folds_in_words():
    assert describe([5, 5]).startswith("5-fold") and describe([2, 3]).startswith("2- or 3-fold")
    assert "own splits" in describe([1]) and describe([]) == "no model"


def test_zoos_that_cannot_be_held_out():
    with pytest.raises(ZooError, match="nws: expected 4 models or more, found 3; build more"):
        check_models("nws", np.array(["train"] * 3))
    with pytest.raises(ZooError, match="found none in test"):
        check_models("nws", np.array(["train"] * SMALL_ZOO))
    check_models("nws", np.array(["train"] * 4))


def test_large_zoos_keep_their_splits():
    splits = np.array(["train", "test", "validation", "train"])
    (fold,) = folds_of(splits, 0, small=False)
    assert [fold.training.tolist(), fold.validation.tolist(), fold.test.tolist()] == [[0, 3], [2], [1]]


def test_balancing_within_splits():
    labels, splits = np.array(list("aaabbbaab")), np.array(["train"] * 6 + ["test"] * 3)
    kept = balanced(labels, splits, seed=0)
    assert sorted(labels[kept[kept < 6]]) == list("aaabbb") and sorted(labels[kept[kept >= 6]]) == ["a", "b"]


def test_guesses_from_the_architecture():
    """Each fold guesses by its own training models alone, and by all of them for an architecture that they do not have."""
    architectures, truth = np.array(list("aaabbbc")), np.array(["x", "x", "y", "y", "y", "x", "y"])
    folds = [Fold(np.array([0, 1, 3, 4]), np.array([2, 5]), np.array([6])), Fold(np.array([2, 5, 6]), np.array([]), np.array([0, 1, 3, 4]))]
    guessed = meta_classifier.guesses_from_architecture(architectures, truth, folds)
    assert guessed[[6, 0, 1, 3, 4]].tolist() == ["x", "y", "y", "x", "x"]


def test_curves_compare_the_same_parts_of_trainings():
    """A model of 5 snapshots and one of 9: their first, middle and last ones are together."""
    model, snapshot = np.repeat([0, 1], [5, 9]), np.concatenate([np.arange(1, 6), np.arange(1, 10)])
    weights = [np.array([m, s]) for m, s in zip(model, snapshot, strict=True)]
    snapshots = meta_classifier.Snapshots(model, snapshot, np.repeat([5, 9], [5, 9]), weights)
    for number, expected in ((1, [[1, 1], [0, 1]]), (5, [[1, 5], [0, 3]]), (9, [[1, 9], [0, 5]])):
        assert [w.tolist() for w in snapshots.at(np.array([1, 0]), number)] == expected


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
    assert activation["num_folds"] == NUM_FOLDS and 0 <= activation["from_architecture"] <= 1
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


@pytest.mark.parametrize("models", [4, 8])
def test_tiny_zoos(models, tmp_path):
    """What has too few models is skipped, with the reason, and the rest is tested."""
    tiny = make_zoo(tmp_path / "nws", models=models, snapshots=2)
    output = run(meta_classifier.main, tiny) + run(predictors.main, tiny)
    results = json.loads((tmp_path / "nws-results" / "meta_classifier.json").read_text())
    assert results["results"]["activation"]["num_models"] == models
    assert results["skipped"]["optimizer"] == "one value with 2 models or more"
    assert "optimizer (skipped)" in output and "one value with 2 models or more" in output
    scores = json.loads((tmp_path / "nws-results" / "predictors.json").read_text())["results"][0]["all"]
    assert scores["num_models"] == models and np.isfinite(scores["r2"]) and scores["r2_interval_95"] is None


def test_a_zoo_without_any_usable_property(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(meta_classifier, "PROPERTIES", ("optimizer", "batch_size"))
    assert "Nothing could be tested" in run(meta_classifier.main, zoo, "--out", tmp_path)
    results = json.loads((tmp_path / "meta_classifier.json").read_text())
    assert results["results"] == {} and list(results["skipped"]) == ["optimizer", "batch_size"]


@pytest.mark.parametrize("command", [meta_classifier.main, predictors.main])
def test_fewer_than_four_models_are_refused(command, tmp_path):
    result = CliRunner().invoke(command, [str(make_zoo(tmp_path / "nws", models=3))])
    assert result.exit_code == 2 and "nws: expected 4 models or more, found 3" in result.stderr and len(result.stderr.splitlines()) == 1


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


def test_rare_values_are_left_out(zoo):
    final = Zoo(zoo).filter(is_final=True)
    tasks, skipped = meta_classifier.tasks_of(final, None, seed=0)
    assert [task.name for task in tasks] == ["activation"] and set(skipped) == {"optimizer", "initialization", "batch_size"}
    (task,), _ = meta_classifier.tasks_of(final.filter(model_number=[0, 1, 2, 3, 4]), ["dataset"], seed=0)
    assert task.num_values == 3 and task.classes == ["cifar10", "mnist"]  # and one of svhn
    assert np.unique(task.truth, return_counts=True)[1].tolist() == [2, 2] and len(task.folds) == 2
    assert len(final) < SMALL_ZOO
