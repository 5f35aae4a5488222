"""Saved estimators from anyone: refused in one line, or they predict; nothing of a size that they ask for is
made.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas
import pytest
import torch
from safetensors import numpy as safetensors
from sklearn.model_selection import GridSearchCV, cross_val_score

from nws_dataset.baselines.meta_classifier import DeepMetaClassifier, DeepMetaRegressor
from nws_dataset.baselines.metanetworks.graph import GraphNetwork
from nws_dataset.baselines.metanetworks.rows import MLP
from nws_dataset.baselines.metanetworks.sets import DeepSets, SetTransformer
from nws_dataset.baselines.predictors import DenseNet, GradientBoosting, LogitLinear
from nws_dataset.baselines.saving import ARRAYS, FACTS, SaveMixin
from nws_dataset.baselines.trees import Trees
from nws_dataset.errors import ZooError
from nws_dataset.networks import siren
from nws_dataset.views.slices import ArrayRows

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((60, 7)).astype(np.float32)  # rows of SMALLEST too
Y = 1 / (1 + np.exp(-X[:, 0]))
SLIM: dict[str, Any] = {"slice_length": 6, "epochs": 1, "width": 1 / 32, "random_state": 0, "batch_size": 16}
SMALLEST = siren.Architecture(width_hidden=1)
FEW: dict[str, Any] = {"width": 4, "epochs": 2, "batch_size": 8, "random_state": 0}
KINDS: dict[str, Any] = {
    "linear": LogitLinear(random_state=0),
    "boosting": GradientBoosting(num_trees=4, num_threads=1, random_state=0),
    "dense": DenseNet(num_layers=1, num_units=4, max_epochs=2, random_state=0),
    "classifier": DeepMetaClassifier(**SLIM),
    "regressor": DeepMetaRegressor(**SLIM),
    "graph": GraphNetwork(SMALLEST, target="number", heads=2, statistics=True, **FEW),
    "graph of classes": GraphNetwork(SMALLEST, heads=2, rounds=1, **FEW),
    "sets": DeepSets(SMALLEST, target="number", **FEW),
    "transformer": SetTransformer(SMALLEST, target="number", heads=2, points=2, **FEW),
    "rows": MLP(SMALLEST, target="number", **FEW),
}
CLASSIFIERS = ("classifier", "graph of classes")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for name, estimator in KINDS.items():
        estimator.fit(X, np.where(Y > 0.5, "adam", "sgd") if name in CLASSIFIERS else Y).save(folder / name)
    return folder


def load(kind: str, folder: Path) -> SaveMixin:
    return type(KINDS[kind]).load(folder)


def rewritten(
    saved: Path,
    kind: str,
    folder: Path,
    *,
    facts: Callable[[dict[str, Any]], Any] = lambda f: f,
    arrays: Any = lambda a: a,
) -> Path:
    """A copy with other facts and arrays, whose digests agree."""
    shutil.copytree(saved / kind, folder)
    content = safetensors.save(arrays(safetensors.load((folder / ARRAYS).read_bytes())))
    (folder / ARRAYS).write_bytes(content)
    told = json.loads((folder / FACTS).read_text())
    told["files"] = {ARRAYS: hashlib.sha256(content).hexdigest()}
    (folder / FACTS).write_text(json.dumps(facts(told)))
    return folder


def refused(kind: str, folder: Path, message: str = "") -> None:
    with pytest.raises(ZooError, match=message) as raised:
        load(kind, folder)
    assert "\n" not in str(raised.value) and str(raised.value).isprintable()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_predicts_the_same(saved: Path, kind: str) -> None:
    expected = KINDS[kind].predict(X)
    np.testing.assert_array_equal(load(kind, saved / kind).predict(X), expected)  # type: ignore[attr-defined]


# --- trees ---


@pytest.mark.parametrize("seed", range(4))
def test_trees_predict_as_lightgbm_does(seed: int) -> None:
    random = np.random.default_rng(seed)
    features, target = random.standard_normal((300, 5)), random.random(300)
    features[random.random(features.shape) < 0.2] = np.nan
    features[random.random(features.shape) < 0.2] = 0.0
    parameters = {
        "objective": "regression",
        "verbosity": -1,
        "num_leaves": 15,
        "zero_as_missing": seed % 2 == 1,
        "use_missing": seed < 3,
        "num_threads": 1,
    }
    booster = lightgbm.train(parameters, lightgbm.Dataset(features, target), 30)
    trees = Trees.of(booster)
    trees.check(5)
    probes = np.concatenate(
        [
            features,
            [[np.nan] * 5, [0.0] * 5, [-0.0] * 5, [np.inf] * 5, [-np.inf] * 5, [1e-36] * 5, [1e-34] * 5],
        ]
    )
    np.testing.assert_array_equal(trees.predict(probes), booster.predict(probes))
    np.testing.assert_allclose(trees.importance(5), booster.feature_importance("gain"), rtol=1e-4)
    assert trees.predict(np.empty((0, 5))).shape == (0,)


def test_trees_of_one_leaf() -> None:
    parameters = {"objective": "regression", "verbosity": -1, "min_data_in_leaf": 50}
    booster = lightgbm.train(parameters, lightgbm.Dataset(X[:20].astype(np.float64), Y[:20]), 3)
    trees = Trees.of(booster)
    trees.check(6)
    np.testing.assert_array_equal(trees.predict(X.astype(np.float64)), booster.predict(X.astype(np.float64)))


def changed(name: str, index: int, value: float) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    def change(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays[f"trees_.{name}"] = arrays[f"trees_.{name}"].copy()
        arrays[f"trees_.{name}"][index] = value
        return arrays

    return change


def cut(name: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda arrays: {**arrays, f"trees_.{name}": arrays[f"trees_.{name}"][:-1]}


DAMAGE: dict[str, Any] = {
    "child 0: endless": changed("left", 0, 0),
    "child outside": changed("left", 0, 10_000),
    "leaf outside": changed("right", 0, -10_000),
    "least leaf": changed("right", 0, -(2**31)),
    "feature outside": changed("feature", 1, X.shape[1]),
    "feature negative": changed("feature", 0, -1),
    "two leaves": changed("num_leaves", 0, 2),
    "no leaves": changed("num_leaves", 0, 0),
    "negative leaves": changed("num_leaves", 0, -5),
    "huge leaves": changed("num_leaves", 0, 2**31 - 1),
    "threshold": changed("threshold", 0, np.nan),
    "value": changed("value", 0, np.inf),
    "categorical": changed("decision", 0, 1),
    "unknown decision": changed("decision", 0, 64),
    "both missing": changed("decision", 0, 12),
    **{f"short {field.name}": cut(field.name) for field in dataclasses.fields(Trees)},
    "wrong type": lambda a: {**a, "trees_.left": a["trees_.left"].astype(np.int64)},
    "a matrix": lambda a: {**a, "trees_.value": a["trees_.value"][None]},
    "none": lambda a: {name: value for name, value in a.items() if "feature" not in name},
    "empty": lambda a: {name: value[:0] for name, value in a.items()},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_trees_that_are_none(saved: Path, tmp_path: Path, damage: Any) -> None:
    folder = rewritten(saved, "boosting", tmp_path / "x", arrays=damage)
    if "empty" in str(tmp_path):  # no trees at all predict nothing
        assert (load("boosting", folder).predict(X) == 0).all()  # type: ignore[attr-defined]
    else:
        refused("boosting", folder, "a saved GradientBoosting, found (ValueError|KeyError)")


def test_a_leaf_that_two_nodes_share(saved: Path, tmp_path: Path) -> None:
    def share(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        left = arrays["trees_.left"].copy()
        leaves = np.flatnonzero(left < 0)
        left[leaves[0]] = left[leaves[1]]
        return {**arrays, "trees_.left": left}

    refused(
        "boosting",
        rewritten(saved, "boosting", tmp_path / "x", arrays=share),
        "each node and leaf once|same tree",
    )


# --- facts and arrays ---

WRONG = (
    None,
    -1,
    0,
    1e400,
    10**30,
    "x",
    [],
    {},
    [1],
    True,
    "<U9999999999",
    {"strings": [1], "dtype": "object"},
)


@pytest.mark.parametrize("kind", KINDS)
def test_facts_of_wrong_types(saved: Path, tmp_path: Path, kind: str) -> None:
    """Whatever stands in estimator.json: one line, or an estimator that predicts."""
    told = json.loads((saved / kind / FACTS).read_text())
    keys = [(name,) for name in told] + [
        (part, name) for part in ("parameters", "learned", "files") for name in told[part]
    ]
    number = 0
    for key in keys:
        for wrong in WRONG:
            number += 1

            def change(
                facts: dict[str, Any], key: tuple[str, ...] = key, wrong: Any = wrong
            ) -> dict[str, Any]:
                functools.reduce(lambda part, name: part[name], key[:-1], facts)[key[-1]] = wrong
                return facts

            folder = rewritten(saved, kind, tmp_path / str(number), facts=change)
            try:
                estimator = load(kind, folder)
                assert len(estimator.predict(X)) == len(X)  # type: ignore[attr-defined]
            except ZooError as error:
                assert "\n" not in str(error)
            except (ValueError, IndexError) as error:  # of predict: parameters that it refuses by name
                assert key[0] == "parameters", (key, wrong, error)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_that_are_missing_or_misshapen(saved: Path, tmp_path: Path, kind: str) -> None:
    names = list(safetensors.load((saved / kind / ARRAYS).read_bytes()))
    changes: list[Callable[[np.ndarray], np.ndarray | None]] = [
        lambda array: None,
        lambda array: array[None],
        lambda array: np.concatenate([array.reshape(-1), array.reshape(-1)[:1]]),
        lambda array: array.astype(np.float16),
    ]
    # of a network of many tensors each suffers one of them
    pairs = itertools.product(names, changes) if len(names) < 20 else zip(names, itertools.cycle(changes))
    for number, (name, change) in enumerate(pairs):

        def damage(
            arrays: dict[str, np.ndarray], name: str = name, change: Any = change
        ) -> dict[str, np.ndarray]:
            found = change(arrays.pop(name))
            return arrays if found is None else {**arrays, name: found}

        refused(kind, rewritten(saved, kind, tmp_path / str(number), arrays=damage), "a saved")


def test_a_network_of_a_terabyte(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by the shapes of its arrays, before any of it is made."""
    monkeypatch.setattr(torch.nn.Module, "double", lambda self: pytest.fail("made"))
    for kind, parameters in (
        ("dense", {"num_units": 10**6, "num_layers": 3}),
        ("dense", {"num_layers": 10**9}),
        ("classifier", {"slice_length": 10**9}),
        ("classifier", {"slice_length": 10**18}),
        ("regressor", {"width": 1000.0}),
        ("regressor", {"width": 1e300}),
    ):

        def change(facts: Any, parameters: Any = parameters) -> Any:
            return {**facts, "parameters": {**facts["parameters"], **parameters}}

        folder = rewritten(saved, kind, tmp_path / f"{kind}{len(list(tmp_path.iterdir()))}", facts=change)
        refused(kind, folder, "a saved")


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_were_changed(saved: Path, tmp_path: Path, kind: str) -> None:
    """The digest tells, before anything is read; with a digest that fits, the format's own reader does."""
    random, content = np.random.default_rng(1), (saved / kind / ARRAYS).read_bytes()
    for number in range(30):
        folder = Path(shutil.copytree(saved / kind, tmp_path / str(number)))
        damaged = bytearray(content)
        damaged[random.integers(len(damaged) if number % 2 else 300)] ^= int(random.integers(1, 256))
        (folder / ARRAYS).write_bytes(
            damaged[: random.integers(len(damaged))] if number % 3 == 0 else damaged
        )
        refused(kind, folder, "is not the file that estimator.json names")
        told = json.loads((folder / FACTS).read_text())
        told["files"][ARRAYS] = hashlib.sha256((folder / ARRAYS).read_bytes()).hexdigest()
        (folder / FACTS).write_text(json.dumps(told))
        try:
            load(kind, folder)
        except ZooError as error:
            assert "\n" not in str(error)


def test_an_earlier_format(saved: Path, tmp_path: Path) -> None:
    folder = rewritten(saved, "linear", tmp_path / "x", facts=lambda facts: {**facts, "format": 1})
    refused(
        "linear",
        folder,
        "expected a LogitLinear in format 2, found a LogitLinear in format 1; .* fit and save it again",
    )


@pytest.mark.parametrize("name", [ARRAYS, FACTS])
@pytest.mark.parametrize(
    ("make", "found"),
    [
        (os.mkfifo, "found neither a file nor a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "found neither a file nor a folder"),
        (lambda path: path.mkdir(), "found a folder"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 40)), "found 1099511627776 bytes"),
    ],
    ids=["pipe", "endless", "folder", "terabyte"],
)
def test_files_that_are_none(
    saved: Path, tmp_path: Path, name: str, make: Callable[[Path], Any], found: str
) -> None:
    folder = rewritten(saved, "linear", tmp_path / "x")
    (folder / name).unlink()
    make(folder / name)
    refused("linear", folder, f"{name}: expected .*{found}")


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
@pytest.mark.parametrize("device", ["meta", "hpu", "xpu", "cuda:99", "privateuseone", "nonsense", "", "a\nb"])
def test_devices_that_are_not_there(saved: Path, tmp_path: Path, kind: str, device: str) -> None:
    folder = rewritten(
        saved,
        kind,
        tmp_path / "x",
        facts=lambda f: {**f, "parameters": {**f["parameters"], "device": device}},
    )
    refused(
        kind,
        folder,
        '^device: expected a device of torch on this machine, .*; set "device" to "cpu" in estimator.json$',
    )
    with pytest.raises(ZooError, match=r"^device: expected a device of torch"):
        type(KINDS[kind])(**{**SLIM, "device": device}).fit(X, Y > 0.5)


# --- what is given to fit and predict ---


@pytest.fixture(scope="module")
def fitted() -> DeepMetaClassifier:
    return DeepMetaClassifier(**SLIM).fit(X, np.where(Y > 0.5, "adam", "sgd"))


def test_rows_of_every_kind(fitted: DeepMetaClassifier) -> None:
    rows = [np.array(row, np.float32) for row in X[:5]] + [np.ones(9, np.float32)]
    expected = fitted.predict_proba(rows)
    objects = np.empty(6, object)
    objects[:] = rows
    for given in (
        objects,
        pandas.Series(rows),
        [row.tolist() for row in rows],
        tuple(rows),
        [row.astype(np.float64) for row in rows],
        ArrayRows(rows),
    ):
        np.testing.assert_array_equal(fitted.predict_proba(given), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected rows of weights, found none"),
        (np.array([], object), "found none"),
        ([[1.0, 2.0], ["a", "b", "c"]], "row 1 of X: expected numbers in one dimension"),
        ([np.ones(6, np.float32), np.ones((2, 3), np.float32)], "row 1 of X"),
        ([np.ones(6, np.float32), None], "row 1 of X"),
        ([np.ones(6, np.float32), {}], "row 1 of X"),
        ([np.ones(6, np.float32), np.full(7, np.nan, np.float32)], "row 1: expected finite weights"),
    ],
)
def test_rows_that_are_none(fitted: DeepMetaClassifier, given: Any, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        fitted.predict(given)
    with pytest.raises(ZooError, match=message):
        DeepMetaClassifier(**{**SLIM, "batch_size": 2}).fit(given, ["a", "b"][: len(given)])


@pytest.mark.parametrize(
    "name", ["batch_size", "slice_length", "epochs", "slices_per_row", "slices_per_prediction"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "x", None, True])
def test_parameters_that_are_no_counts(name: str, value: Any) -> None:
    with pytest.raises(ZooError, match=rf"^{name}: expected a whole number"):
        DeepMetaClassifier(**{**SLIM, name: value}).fit(X, Y > 0.5)
    with pytest.raises(ZooError, match=r"^batch_size: expected a whole number of at least 2, found 1"):
        DeepMetaClassifier(**{**SLIM, "batch_size": 1}).fit(X, Y > 0.5)


def test_sources_in_cross_validation() -> None:
    source, labels = ArrayRows(list(X)), np.where(Y > 0.5, "adam", "sgd")
    scores = cross_val_score(DeepMetaClassifier(**SLIM), source, labels, cv=2)
    np.testing.assert_array_equal(scores, cross_val_score(DeepMetaClassifier(**SLIM), list(X), labels, cv=2))
    search = GridSearchCV(DeepMetaClassifier(**SLIM), {"epochs": [1, 2]}, cv=2).fit(source, labels)
    assert len(search.predict(source)) == len(X)
    assert len(source[5]) == 1 and len(source[source.lengths > 0][2:4]) == 2
