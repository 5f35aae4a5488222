"""The meta-classifier's experiments: intervals, folds, readers, and the command from a zoo to its files."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from nws_dataset.baselines import learners
from nws_dataset.errors import ZooError
from nws_dataset.evaluation import inputs, models, scores, tasks
from nws_dataset.evaluation.folds import (
    NUM_FOLDS,
    SMALL_ZOO,
    Fold,
    balanced,
    check_models,
    describe,
    folds_of,
    with_validation,
)
from nws_dataset.evaluation.run import Kept, Trial
from nws_dataset.experiments import recipes
from nws_dataset.reading.zoo import Zoo
from testing.zoo_factory import make_zoo

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """24 networks of random weights, 3 snapshots each."""
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", models=24, snapshots=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is tested here is the way from the zoo to the files, not how well is learned."""
    slim = dataclasses.replace(
        inputs.SMALL_SETTINGS,
        epochs=1,
        least_steps=0,
        width=1 / 64,
        slices_per_prediction=2,
        slice_length=500,
    )
    monkeypatch.setattr(recipes, "SMALL_SETTINGS", slim)
    monkeypatch.setattr(learners, "TREES", 10)
    monkeypatch.setattr(scores, "RESAMPLES", 20)


def test_wilson_interval_of_the_textbook():
    # Newcombe 1998, table I, method 3
    assert scores.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert scores.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert scores.wilson_interval(0, 0) == (0.0, 1.0)


def test_bootstrap_interval_holds_the_mean():
    truth = np.random.default_rng(0).normal(size=400)
    interval = scores.bootstrap_interval(lambda t, p: float(t.mean()), truth, truth, seed=0)
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


def test_a_tenth_of_the_training_models_validates():
    labels = np.array(["a"] * 30 + ["b"] * 30 + ["c"])
    fold = Fold(np.arange(1, 61), np.array([], dtype=int), np.array([0]))
    cut = with_validation(fold, 0, labels)
    assert sorted(labels[cut.validation]) == ["a"] * 3 + ["b"] * 3  # a class of a single model keeps it
    assert sorted([*cut.training, *cut.validation]) == fold.training.tolist()
    assert with_validation(cut, 1, labels) is cut


def test_guesses_from_the_architecture():
    """Each fold guesses by its own training models alone, and by all of them for an architecture that they do
    not have.
    """
    architectures, truth = np.array(list("aaabbbc")), np.array(["x", "x", "y", "y", "y", "x", "y"])
    folds = [
        Fold(np.array([0, 1, 3, 4]), np.array([2, 5]), np.array([6])),
        Fold(np.array([2, 5, 6]), np.array([]), np.array([0, 1, 3, 4])),
    ]
    guessed = tasks.guesses_from_architecture(architectures, truth, folds)
    assert guessed[[6, 0, 1, 3, 4]].tolist() == ["x", "y", "y", "x", "x"]
    numbers = tasks.guesses_from_architecture(architectures, np.arange(7.0), folds)
    assert numbers[[6, 0, 3]].tolist() == [2.0, 2.0, 5.0]


def test_curves_compare_the_same_parts_of_trainings():
    """A model of 5 snapshots and one of 9: their first, middle and last ones are together."""
    model, snapshot = np.repeat([0, 1], [5, 9]), np.concatenate([np.arange(1, 6), np.arange(1, 10)])
    snapshots = tasks.SnapshotSeries(model, snapshot, np.repeat([5, 9], [5, 9]))
    for number, expected in ((1, [1, 1]), (5, [5, 3]), (9, [9, 5])):
        places = snapshots.at(np.array([1, 0]), number)
        assert model[places].tolist() == [1, 0] and snapshot[places].tolist() == expected


@pytest.mark.parametrize("model", models.LEARNERS.values())
@pytest.mark.parametrize("is_class", [True, False])
def test_statistics_readers_learn(model, is_class):
    """Of two slices a row, one tells; the third feature is 1e30 in a row."""
    random = np.random.default_rng(0)
    y = random.integers(3, size=200) if is_class else random.uniform(0, 3, 200)
    X = random.normal(size=(200, 2, 3))
    X[:, :, 0] = 4 * np.eye(3)[y][:, None, 0] if is_class else y[:, None]
    X[:, :, 1] = 4 * np.eye(3)[y][:, None, 1] if is_class else 0
    X[0, 0, 2] = 1e30
    labels = np.array(["a", "b", "c"])[y] if is_class else y
    reader = models.StatisticsReader(lambda indices, positions: X[indices], model(is_class, 0))
    parts = [tasks.Labelled(part, labels[part]) for part in (np.arange(120), np.arange(120, 150))]
    test = np.arange(150, 200)
    predicted = reader.fit(*parts).predict(test)
    assert (predicted == labels[test]).mean() > 0.9 if is_class else np.abs(predicted - y[test]).mean() < 0.5


def test_parts_and_layers_are_all_of_the_row(zoo):
    opened = Zoo(zoo)
    read = inputs.Inputs.of(opened, inputs.Settings(slice_length=500, slices_per_prediction=2))
    for i in (0, 7):
        halves = [read.part(name) for name in inputs.PARTS]
        joined = np.concatenate(
            [half.slices(np.array([i]), np.array([0]), int(half.lengths[i]))[0] for half in halves]
        )
        np.testing.assert_array_equal(joined, opened.row(read.snapshots[i]))
        described = read.slice_statistics(np.array([i]))[0]
        np.testing.assert_allclose(
            described[1, [0, 5]], [joined[-500:].min(), joined[-500:].mean()], rtol=1e-4
        )
    widths = [read.layer_statistics(layer, np.arange(3)).shape[2] for layer in read.layer_names]
    assert read.layer_names[0] == "conv1" and read.layer_names[-1] == "output"
    assert sum(widths) == read.layer_statistics(None, np.arange(3)).shape[2]


def run(command, *arguments):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_command(zoo, tmp_path):
    options = (
        "--properties",
        "activation,learning_rate",
        "--experiments",
        "what,when,where,layers",
        "--seeds",
        2,
    )
    output = run(recipes.main, zoo, "--jobs", 1, "--out", tmp_path, *options)
    results = json.loads((tmp_path / "meta_classifier.json").read_text())
    records = results["results"]
    assert (
        results["zoo"]["name"] == "nws"
        and str(zoo.parent) not in json.dumps(results)
        and results["command"].endswith("--seeds 2 --jobs 1")
    )
    what = [r for r in records if (r["experiment"], r["target"], r["nets"]) == ("what", "activation", "all")]
    assert {(r["method"], r["input"], r["seed"]) for r in what} == {
        (method, read, seed)
        for seed in (0, 1)
        for method, read in [("deep meta-classifier", "slice"), ("deep meta-classifier", "random units")]
        + [(m, i) for m in models.LEARNERS for i in ("statistics of the slice", "layers")]
    }
    for record in what:
        assert record["chance"] == 0.5 and record["num_test"] == 24 and record["metric"] == "accuracy"
        assert record["interval_95"][0] <= record["value"] <= record["interval_95"][1]
        (last,) = [
            r
            for r in records
            if r["experiment"] == "when" and r.get("snapshot") == 3 and all(r[k] == record[k] for k in SAME)
        ]
        assert last["value"] == record["value"]
    where = [r for r in records if r["experiment"] == "where" and r["target"] == "activation"]
    assert {"convolutional part", "dense part", "conv1", "output"} <= {r.get("layer") for r in where}
    assert {r["position"] for r in where if r["input"] == "slice"} == set(
        np.linspace(0, 1, recipes.NUM_POSITIONS)
    )
    assert {r["metric"] for r in records if r["target"] == "learning_rate"} == {"mae"}
    text = (tmp_path / "meta_classifier.md").read_text()
    assert "| activation (2 values) |" in text and "5-fold" in text and str(tmp_path) not in text
    assert "activation (2 values)" in output and {f"meta_classifier_{p}.png" for p in PLOTS} == set(
        results["plots"]
    )
    for plot in results["plots"]:
        assert (tmp_path / plot).read_bytes().startswith(PNG)


SAME = ("target", "method", "input", "nets", "seed")
PLOTS = ("accuracy", "snapshots", "positions", "layers", "learning_rate")
ONE = ("--properties", "activation", "--experiments", "what", "--seeds", 1)


def test_fewer_folds(zoo, tmp_path):
    run(recipes.main, zoo, "--jobs", 1, "--out", tmp_path, *ONE, "--folds", 2)
    results = json.loads((tmp_path / "meta_classifier.json").read_text())
    assert results["held_out"].startswith("2-fold") and {
        r["num_test"] for r in results["results"] if r["nets"] == "all"
    } == {24}


def test_whole_rows(zoo, tmp_path):
    run(recipes.main, zoo, "--jobs", 1, "--out", tmp_path, *ONE, "--rows")
    records = json.loads((tmp_path / "meta_classifier.json").read_text())["results"]
    architectures = np.unique(Zoo(zoo).filter(is_final=True)["architecture"], return_counts=True)[1]
    assert any(r["input"] == "row" for r in records) == (architectures.max() >= recipes.MIN_ALIKE)


@pytest.mark.parametrize("models", [4, 8])
def test_tiny_zoos(models, tmp_path):
    """What has too few models is skipped, with the reason, and the rest is tested."""
    tiny = make_zoo(tmp_path / "nws", models=models, snapshots=2)
    output = run(recipes.main, tiny, "--jobs", 1, "--seeds", 1)
    results = json.loads((tmp_path / "nws-results" / "meta_classifier.json").read_text())
    assert results["skipped"]["optimizer"] == "one value with 2 models or more"
    assert {
        r["num_test"] for r in results["results"] if r["target"] == "activation" and r["nets"] == "all"
    } == {models}
    assert "optimizer (skipped)" in output and "one value with 2 models or more" in output


def test_fewer_than_four_models_are_refused(tmp_path):
    result = CliRunner().invoke(recipes.main, [str(make_zoo(tmp_path / "nws", models=3))])
    assert (
        result.exit_code == 2
        and "nws: expected 4 models or more, found 3" in result.stderr
        and len(result.stderr.splitlines()) == 1
    )


def test_zoos_with_splits(zoo, monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "is_small", lambda num_models: False)
    monkeypatch.setattr(recipes, "is_small", lambda num_models: False)
    monkeypatch.setattr(recipes, "Settings", lambda: recipes.SMALL_SETTINGS)
    run(recipes.main, zoo, "--jobs", 1, "--out", tmp_path, *ONE)
    results = json.loads((tmp_path / "meta_classifier.json").read_text())
    assert "own splits" in results["held_out"]
    tested = {r["num_test"] for r in results["results"] if r["nets"] == "all"}
    assert max(tested) <= len(Zoo(zoo).filter(is_final=True, split="test"))


def test_the_same_seed_gives_the_same_numbers(zoo, tmp_path):
    def results(folder):
        run(recipes.main, zoo, "--jobs", 1, "--out", folder, *ONE)
        return json.loads((folder / "meta_classifier.json").read_text())["results"]

    assert results(tmp_path / "a") == results(tmp_path / "b")


def test_processes_share_the_work(zoo):
    """In another order, with the same results. (The number of trees, which is changed here, is not in other
    processes.)
    """
    records = []
    for jobs in (1, 2):
        read = inputs.Inputs.of(Zoo(zoo), recipes.SMALL_SETTINGS)
        found = recipes.evaluate(read, ["activation"], ["what"], seeds=2, jobs=jobs)
        records.append([r for r in found["results"] if r.method != models.BOOSTING])
    assert records[0] == records[1] and {r.input for r in records[0]} >= {
        "slice",
        "random units",
        "layers",
    }


def test_an_interrupted_run_goes_on(zoo, tmp_path, monkeypatch):
    """What was done is not done again, and is not mistaken for what was done otherwise."""

    def evaluate(settings=recipes.SMALL_SETTINGS):
        kept = Kept(tmp_path, dataclasses.asdict(settings))
        read = inputs.Inputs.of(Zoo(zoo), settings)
        return recipes.evaluate(read, ["activation"], ["what"], seeds=1, kept=kept)

    whole_trial, done = Trial.run, []

    def counted(trial, advance):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(trial.words)
        return whole_trial(trial, advance)

    monkeypatch.setattr(Trial, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate()
    monkeypatch.setattr(
        Trial, "run", lambda trial, advance: done.append(trial.words) or whole_trial(trial, advance)
    )
    resumed = evaluate()
    assert len(set(done)) == len(done) == len(list(tmp_path.glob("*.json")))
    damaged = next(tmp_path.glob("*.json"))
    again = evaluate(dataclasses.replace(recipes.SMALL_SETTINGS, batch_size=16))
    assert len(list(tmp_path.glob("*.json"))) == len(done) and again["held_out"] == resumed["held_out"]
    whole = damaged.read_text()
    # what is damaged is made again
    for text in ("[", "[]", whole[:-9], whole.replace("accuracy", "accurate")):
        damaged.write_text(text)
        done.clear()
        found = evaluate()["results"]
        assert len(done) == 1 and damaged.read_text() == whole
        assert json.dumps([r.to_json() for r in found]) == json.dumps(
            [r.to_json() for r in resumed["results"]]
        )


def test_steps_make_epochs():
    settings = inputs.Settings(epochs=3, least_steps=100, batch_size=8, slices_per_row=2)
    assert [settings.epochs_of(rows) for rows in (4, 40, 10_000)] == [50, 10, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--properties", "optimizer"], "two values or more"),
        (["--properties", "optimiser"], "optimiser"),
        (["--experiments", "why"], "some of what,when,where,layers"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, words, zoo):
    result = CliRunner().invoke(recipes.main, [str(zoo), *arguments])
    assert result.exit_code == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_missing_zoo_is_one_line_and_exit_code_2(tmp_path):
    result = CliRunner().invoke(recipes.main, [str(tmp_path / "nothing")])
    assert result.exit_code == 2 and "nothing" in result.stderr and len(result.stderr.splitlines()) == 1


def test_rare_values_are_left_out(zoo):
    final = Zoo(zoo).filter(is_final=True)
    found, skipped = tasks.tasks_of(final, None, seed=0)
    assert "activation" in {task.target for task in found} and {
        "optimizer",
        "initialization",
        "batch_size",
    } <= set(skipped)
    few = final.filter(model_number=[0, 1, 2, 3, 4])
    (task,), _ = tasks.tasks_of(few, ["dataset"], seed=0)
    assert task.words == "dataset (2 of 3 values)" and task.classes == ("cifar10", "mnist")  # and one of svhn
    assert np.unique(task.truth, return_counts=True)[1].tolist() == [2, 2] and len(task.folds) == 2
    assert len(final) < SMALL_ZOO
