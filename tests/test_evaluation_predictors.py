"""The predictors' experiments: from a zoo to their files, and what they say about the paper's order."""

import functools
import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from nws_dataset.baselines.meta_classifier import DeepMetaRegressor
from nws_dataset.baselines.predictors import DenseNet, GradientBoosting, LogitLinear
from nws_dataset.console import progress
from nws_dataset.evaluation import folds, models, scores, tasks
from nws_dataset.evaluation.folds import Fold
from nws_dataset.evaluation.inputs import (
    FIRST_LAST,
    LAYER,
    LAYERS,
    RECIPE,
    THEN,
    WEIGHTS,
    WITH_RECIPE,
    Inputs,
)
from nws_dataset.evaluation.models import META, PREDICTORS
from nws_dataset.evaluation.run import Trial
from nws_dataset.evaluation.run import run as run_trials
from nws_dataset.evaluation.scores import (
    Record,
    kendall_tau,
    mse,
    r2,
    records_of_accuracies,
    true_rank_of_best,
)
from nws_dataset.evaluation.tasks import Task
from nws_dataset.experiments import accuracies
from nws_dataset.experiments.accuracies import accuracy_trials
from nws_dataset.format.shards import write_index
from nws_dataset.networks.layout import layout_of
from nws_dataset.pages import paper, summary
from nws_dataset.reading.zoo import Zoo
from testing.zoo_factory import PLAIN, make_shard, make_zoo, use_copy, write_manifest

PNG = b"\x89PNG"
CONTRACT = {
    "experiment",
    "target",
    "method",
    "input",
    "nets",
    "trained_on",
    "tested_on",
    "num_train",
    "num_test",
    "seed",
    "metric",
    "value",
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """24 networks of random weights, 2 snapshots each, of 3 data sets and 2 architectures."""
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", models=24, snapshots=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is tested here is the way from the zoo to the files, not how well is learned."""
    boosting, dense_net = GradientBoosting(num_trees=3, num_threads=1), DenseNet(max_epochs=1, num_units=8)
    fast = {
        "linear": (LogitLinear(max_iter=5), LogitLinear(max_iter=6)),
        "boosting": (boosting,),
        "dense net": (dense_net,),
    }
    monkeypatch.setattr(models, "PREDICTORS", fast)
    monkeypatch.setattr(scores, "RESAMPLES", 2)
    monkeypatch.setattr(tasks, "folds_of", functools.partial(folds.folds_of, num_folds=2))
    monkeypatch.setattr(accuracies, "MIN_CURVE", 3)
    monkeypatch.setattr(summary, "SHOWN", (LAYERS,))
    monkeypatch.setattr(tasks, "MIN_OF_DATASET", 8)
    monkeypatch.setattr(tasks, "MIN_OF_VALUE", 8)


def run(*arguments):
    result = CliRunner().invoke(accuracies.main, [str(argument) for argument in (*arguments, "--jobs", 1)])
    assert result.exit_code == 0, result.output
    return result.output


def check(folder, zoo):
    """The files of a run: complete, and every record as the contract has it."""
    results = json.loads((folder / "predictors.json").read_text())
    assert (
        set(results) >= {"zoo", "command", "settings", "results", "plots"} and results["zoo"]["name"] == "nws"
    )
    for record in results["results"]:
        assert set(record) >= CONTRACT and np.isfinite(record["value"])
    text = (folder / "predictors.md").read_text()
    assert str(zoo.parent) not in text + json.dumps(results)
    links = re.findall(r"\((\S+\.png)\)", text)
    assert links == results["plots"]
    for plot in links:
        assert (folder / plot).read_bytes().startswith(PNG)
    return results, text


def test_command_on_a_small_zoo(zoo):
    output = run(zoo, "--seeds", 1)
    folder = zoo.parent / "nws-results"
    assert str(folder / "predictors.md") in output
    results, text = check(folder, zoo)
    found = results["results"]
    assert {record["experiment"] for record in found} == {
        "accuracy",
        "learning_curve",
        "transfer",
        "held_out",
        "early",
        "importance",
    }
    assert {r["dataset"] for r in found if r["experiment"] == "accuracy"} == {"mnist", "cifar10", "svhn"}
    transferred = [
        r for r in found if r["experiment"] == "transfer" and r["metric"] == "r2" and r["nets"] == "all"
    ]
    assert {r["across"] for r in transferred} == {"dataset", "architecture"}
    assert len(transferred) == 3 * (3 * 3 + 2 * 2)  # methods, both matrices
    assert {r["tested_on"] for r in found if r["experiment"] == "held_out"} == {"mnist", "cifar10", "svhn"}
    assert {r["snapshot"] for r in found if r["experiment"] == "early"} == {1, 2}
    shares = [r["value"] for r in found if r["experiment"] == "importance" and r["dataset"] == "mnist"]
    assert sum(shares) == pytest.approx(1) or sum(shares) == 0
    # each network is held out once
    assert all(len(told["predicted"]) == 8 for told in results["predictions"])
    assert "All weights and single layers are no inputs" in text and "cross-validation" in text


def test_the_same_seeds_give_the_same_numbers(zoo):
    def records_of(seed):
        read, seeds = Inputs.of(Zoo(zoo)), range(seed, seed + 2)
        chosen = (
            [*accuracy_trials(read, seeds)][:12]
            + [*accuracies.transfer_trials(read, seeds)][:12]
            + [*accuracies.early_trials(read, seeds)][:4]
        )
        return [record for outcome in run_trials(chosen, progress) for record in outcome.records]

    first = records_of(0)
    assert first == records_of(0) != records_of(5) and {record.seed for record in first} == {0, 1}


@pytest.fixture
def large(monkeypatch):
    """All zoos count as large: their own splits are used."""
    monkeypatch.setattr(tasks, "is_small", lambda num_models: False)
    monkeypatch.setattr(accuracies, "is_small", lambda num_models: False)


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    """48 networks of one data set and architecture, in the subset that the paper's numbers are of; half
    train, a quarter tests.
    """
    folder, paths = tmp_path_factory.mktemp("uniform") / "nws", []
    numbers = range(0, 144, 3)  # of which make_recipe makes MNIST networks
    for split, part in (("train", numbers[:24]), ("validation", numbers[24:36]), ("test", numbers[36:])):
        paths.append(f"snapshots/small_cnn/{split}-{PLAIN.id}-00000.parquet")
        table, _ = make_shard(
            folder, paths[-1], PLAIN, subset="small_cnn", split=split, numbers=part, snapshots=1
        )
        paths.append(f"index/small_cnn/{split}.parquet")
        write_index(folder / paths[-1], table)
    write_manifest(folder, ("small_cnn",), len(numbers), paths)
    return folder


def test_the_papers_numbers_stand_beside_ours(uniform, tmp_path, large):
    run(uniform, "--out", tmp_path, "--seeds", 1)
    results, text = check(tmp_path, uniform)
    found = results["results"]
    assert {r["input"] for r in found if "paper" in r} == set(paper.R2) <= {r["input"] for r in found}
    assert {
        r["paper"] for r in found if r["input"] == LAYERS and r["method"] == "boosting" and "paper" in r
    } == {0.993}
    sizes = {r["num_train"] for r in found if r["experiment"] == "learning_curve"}
    assert sizes == {3, 6, 12} and {r["num_train"] for r in found if r["experiment"] == "accuracy"} == {24}
    assert {r["num_test"] for r in found if r["experiment"] == "accuracy" and r["nets"] == "all"} == {12}
    # random weights know nothing
    assert "## Another order than the paper's" in text and re.search(r"\| mnist \| .* \| by 0\.", text)
    split_of = {row["model_id"]: row["split"] for row in Zoo(uniform).filter(is_final=True)}
    assert {split_of[name] for told in results["predictions"] for name in told["model_id"]} == {
        "test"
    } and "own splits" in text


def test_meta_regressor_reads_all_weights(uniform, monkeypatch):
    slim = DeepMetaRegressor(slice_length=100, epochs=1, width=1 / 64)
    monkeypatch.setattr(models, "meta_regressor", lambda num_weights: slim)
    trials = accuracy_trials(Inputs.of(Zoo(uniform)), range(1), meta=True)
    (chosen,) = [trial for trial in trials if trial.method.name == META]
    (outcome,) = run_trials([chosen], progress)
    assert chosen.method.input == WEIGHTS
    assert {record.metric for record in outcome.records} >= {"mse", "r2"}


def test_inputs(zoo, uniform):
    mixed = Inputs.of(Zoo(zoo))
    assert WEIGHTS not in mixed.features and "several architectures" in mixed.skipped[0]
    assert not any(name.startswith(LAYER) for name in mixed.features)
    alike = Inputs.of(Zoo(uniform))
    inputs = alike.features
    assert not alike.skipped and inputs[WEIGHTS][0].shape == (48, layout_of(PLAIN).num_weights)
    assert set(inputs[FIRST_LAST][1]) == set(inputs["layer conv1"][1]) | set(inputs["layer output"][1])
    for name in inputs:
        X, names = inputs[name]
        assert X.shape == (48, len(names))
    np.testing.assert_array_equal(
        inputs[WITH_RECIPE][0], np.column_stack([inputs[LAYERS][0], inputs[RECIPE][0]])
    )


def test_tuning_looks_at_validation_models_only(monkeypatch):
    """The setting that is best on the validation models wins, whatever the test models say."""
    random = np.random.default_rng(0)
    X = random.normal(size=(120, 1))
    y = 1 / (1 + np.exp(-3 * X[:, 0]))
    y[100:] = 0.5  # the test models would have the one that learns nothing
    learns, idle = LogitLinear(), LogitLinear(l2=1e3)
    monkeypatch.setitem(models.PREDICTORS, "linear", (idle, learns))
    inputs = SimpleNamespace(features={"all": (X, ["x"])}, memory={})

    def chosen(*fold):
        task = Task("test_accuracy", "all", np.arange(120), y, [Fold(*fold)])
        tuned = models.TunedPredictor(inputs, "linear", task, "all", None)
        setting = tuned.best(alone(tuned.trials()))
        assert tuned(task, 7).setting == repr(setting) and inputs.memory.pop(tuned.key) is setting
        return setting

    assert chosen(np.arange(80), np.arange(80, 100), np.arange(100, 120)) is learns
    assert chosen(np.arange(100), np.empty(0, int), np.arange(100, 120)) is idle  # nothing to choose by


def alone(trials):
    """The outcomes of trials."""
    return [trial.run(lambda words, seconds: None) for trial in trials]


def test_a_setting_is_chosen_once_for_all_trials(monkeypatch):
    """And before them, so that no process chooses for itself; it is the one that a trial would choose."""
    y = np.random.default_rng(0).uniform(size=120)
    inputs = SimpleNamespace(features={"layers": (y[:, None], ["x"])}, memory={})
    monkeypatch.setitem(models.PREDICTORS, "linear", (LogitLinear(l2=1e3), LogitLinear()))
    task = Task("test_accuracy", "all", np.arange(120), y, [Fold(*np.split(np.arange(120), [80, 100]))])
    method, tried = models.predictor(inputs, "linear", task), []

    def run_all(trials):
        tried.extend(trials)
        return alone(trials)

    trials = [
        Trial(task, method, seed, lambda trial, answers: answers.model.setting, {}) for seed in range(3)
    ]
    found = accuracies.with_settings(trials, run_all)
    assert [trial.labels["setting"] for trial in tried] == [repr(s) for s in models.PREDICTORS["linear"]]
    assert inputs.memory == {} and {trial.labels["experiment"] for trial in tried} == {"setting"}
    assert set(alone([*found, *trials])) == {repr(LogitLinear())}


def test_settings_and_seconds_are_known_without_reading_early_snapshots(monkeypatch):
    """Reading them is what the processes are for; a dense net of few steps is no shorter than the others."""
    y = np.random.default_rng(0).uniform(size=120)
    inputs = SimpleNamespace(features={"layers": (np.column_stack([y, y]), ["x", "z"])}, memory={})
    task = Task("test_accuracy", "all", np.arange(120), y, [Fold(*np.split(np.arange(120), [80, 100]))])
    for name, features in itertools.product(models.PREDICTORS, ("layers", THEN)):
        tuned = models.TunedPredictor(inputs, name, task, features, 1)
        assert tuned.num_features == (1 if features == THEN else 2)
        assert len(tuned.settings()) == len(models.PREDICTORS[name]) and tuned.seconds(task) == 1.0
    monkeypatch.setattr(models, "FEW_STEPS", 0)
    monkeypatch.setattr(models, "TYPICAL_EPOCHS", 5)
    few = tuned.seconds(task)
    monkeypatch.setattr(models, "TYPICAL_EPOCHS", 10)
    assert few > 0 and tuned.seconds(task) == pytest.approx(2 * few)
    assert tuned.name == "dense net"


def test_scores_by_hand():
    truth, predicted = np.array([0.9, 0.5, 0.1, 0.3]), np.array([0.6, 0.7, 0.1, 0.2])
    assert r2(truth, predicted) == pytest.approx(1 - (0.09 + 0.04 + 0.01) / 0.35)
    assert mse(truth, predicted) == pytest.approx(0.14 / 4)
    assert kendall_tau(truth, predicted) == pytest.approx((5 - 1) / 6)
    assert true_rank_of_best(truth, predicted) == 2
    labels = {"experiment": "accuracy", "target": "test_accuracy", "method": "m", "input": "i", "seed": 0}
    found = records_of_accuracies(labels, truth, predicted, truth > 0.2)
    assert {(r.nets, r.num_test) for r in found} == {("all", 4), ("converged", 3)}
    assert records_of_accuracies(labels, np.ones(3), np.ones(3), np.zeros(3, bool)) == [
        Record(**labels, nets="all", num_test=3, metric=metric, value=value)
        for metric, value in (("mse", 0.0), ("true_rank_of_best", 1.0))
    ]  # of constant truths there is no R2 and no tau


@pytest.mark.parametrize(
    ("gaps", "spread", "words"),
    [
        ([0.06, 0.04, 0.02], 0.0, "closes it at about 1,600: more networks would mend it"),
        ([0.031, 0.030, 0.0295], 0.0, "would take more than the paper's 15,000"),
        ([0.01, 0.02, 0.03], 0.0, "more networks alone would not mend it"),
        ([0.06, 0.04, 0.02], 0.01, "no departure"),
    ],
)
def test_what_a_learning_curve_says(gaps, spread, words):
    assert words in paper.trend(np.array([200, 400, 800]), np.array(gaps), spread)
    assert "too few networks" in paper.trend(np.array([200]), np.array([0.1]), 0.0)


def test_a_copy_of_an_image_set_names_the_results(tmp_path):
    folder = make_zoo(tmp_path / "nws", subsets=("small_cnn",), models=24, snapshots=2)
    name = use_copy(folder)
    run(folder, "--seeds", 1)
    results, text = check(tmp_path / "nws-results", folder)
    found = results["results"]
    called = {"mnist", name, "svhn"}
    assert {one["dataset"] for one in results["predictions"]} == called
    for experiment, field in (("accuracy", "dataset"), ("transfer", "trained_on"), ("held_out", "tested_on")):
        told = {r[field] for r in found if r["experiment"] == experiment}
        assert told & {*called, "cifar10"} == called, experiment
    assert "cifar10" not in text + json.dumps(found)
    assert "predictors_scatter_CIFAR-10_JPEG_q75.png" in results["plots"]
    # the paper's numbers are those of the original
    papers = {r["dataset"] for r in found if r["experiment"] == "accuracy" and "paper" in r}
    assert papers == {"mnist", "svhn"}


def test_the_papers_table():
    assert paper.r2("small_cnn", "svhn", WEIGHTS, "dense net") == 0.931
    assert paper.r2("small_cnn", "svhn", LAYERS, "other") is None
    for rows in paper.R2.values():
        assert len(rows) == len(paper.DATASETS) and all(
            len(row) == len(paper.METHODS) == len(PREDICTORS) for row in rows
        )


def test_the_smallest_zoo(tmp_path):
    count = 4
    run(make_zoo(tmp_path / "nws", models=count, snapshots=2), "--seeds", 1)
    results, text = check(tmp_path / "nws-results", tmp_path / "nws")
    scored = [
        r
        for r in results["results"]
        if r["experiment"] == "accuracy" and r["metric"] == "r2" and r["nets"] == "all"
    ]
    assert {(r["dataset"], r["num_test"]) for r in scored} == {
        (tasks.ALL_DATASETS, count)
    } and "interval_95" not in scored[0]
    assert "too few networks each" in text


def test_what_cannot_be_held_out_is_refused(tmp_path):
    result = CliRunner().invoke(accuracies.main, [str(make_zoo(tmp_path / "nws", models=3))])
    assert (
        result.exit_code == 2
        and "nws: expected 4 models or more, found 3" in result.stderr
        and len(result.stderr.splitlines()) == 1
    )
