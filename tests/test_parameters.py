"""What an estimator cannot be fitted with is told in one line, before anything is made of it; and never saved
or loaded.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone

from nws_dataset.baselines.meta_classifier import DeepMetaClassifier, DeepMetaRegressor
from nws_dataset.baselines.predictors import DenseNet, GradientBoosting, LogitLinear
from nws_dataset.baselines.saving import FACTS, Allowed, SaveMixin
from nws_dataset.errors import ValueZooError, ZooError
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network
from nws_dataset.views import permutations, statistics
from nws_dataset.views.graph import Graph
from nws_dataset.views.layer_tuples import LayerTuples
from nws_dataset.views.slices import ArrayRows, RandomUnits
from nws_dataset.views.tokens import Tokens

HUGE = 10**30
FRACTIONS = [1, 2.0, -0.1, float("nan"), None, "0.1", True]
COUNTS = [0, -1, HUGE, 1.0, 2.5, True, None, "3", [1], float("inf")]
SHARES = [0, 1.1, -1, float("nan"), None, "all"]
RATES = [0.0, -1e-3, 1e300, 10**400, float("nan"), float("inf"), None, "fast", True]
RANGES = [
    (0.0, 0.0),
    (1, 0),
    (0, 1, 2),
    (0,),
    ("a", "b"),
    (float("nan"), 1),
    (0, float("inf")),
    1.0,
    (None, 1),
    (-1e308, 1.7e308),
    (0, 10**400),
]
ILLEGAL: dict[type, dict[str, list[Any]]] = {
    LogitLinear: {
        "l2": [-1, float("nan"), None, "x"],
        "max_iter": COUNTS,
        "validation_fraction": FRACTIONS,
        "target_range": RANGES,
    },
    GradientBoosting: {
        **dict.fromkeys(("num_trees", "max_depth", "min_rows_in_leaf", "patience"), COUNTS),
        "num_threads": [-1, HUGE, 1.5, None, True],
        "learning_rate": RATES,
        **dict.fromkeys(("feature_fraction", "row_fraction"), SHARES),
    },
    DenseNet: {
        **dict.fromkeys(("num_units", "batch_size", "max_epochs", "patience"), COUNTS),
        "num_layers": [-1, HUGE, 1.5, None],
        "dropout": FRACTIONS,
        "learning_rate": RATES,
        "l2": [-1.0, float("nan")],
    },
    DeepMetaClassifier: {
        **dict.fromkeys(
            ("slice_length", "epochs", "slices_per_row", "slices_per_prediction", "batch_size"), COUNTS
        ),
        **dict.fromkeys(("width", "learning_rate"), RATES),
        **dict.fromkeys(("dropout", "validation_fraction"), FRACTIONS),
        "progress": ["x", 1],
        "linear_below": [0, 1e-300, -1.0, float("nan"), "x", True],
    },
    DeepMetaRegressor: {"loss": ["huber", None, 1, ""], "batch_size": [1]},
}
X = np.random.default_rng(0).normal(size=(40, 3))
X_32 = X.astype(np.float32)
Y = np.linspace(0, 1, 40)
SLIM = {"slice_length": 16, "epochs": 1, "width": 1 / 32, "batch_size": 8, "random_state": 0}
CASES = [
    (kind, name, value)
    for kind, fields in ILLEGAL.items()
    for name, values in fields.items()
    for value in values
]


def refused(call: Callable[[], object], where: str) -> None:
    """A call is refused by a ValueError of ours that names what is wrong."""
    with pytest.raises(ValueError) as raised:
        call()
    error = raised.value
    assert (
        isinstance(error, ValueZooError)
        and "\n" not in str(error)
        and str(error).startswith(f"{where}: expected ")
    )
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (ValueZooError, str(error))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    CASES,
    ids=lambda value: value.__name__ if isinstance(value, type) else repr(value),
)
def test_illegal_parameters(kind: type, name: str, value: Any) -> None:
    labels = np.arange(40) % 2 if kind is DeepMetaClassifier else Y
    refused(lambda: kind(**{name: value}).fit(X, labels), name)


@pytest.mark.parametrize("kind", ILLEGAL)
def test_every_number_among_the_parameters_has_its_bounds(kind: type) -> None:
    numbers = [
        name
        for name, value in kind().get_params().items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    assert set(numbers) <= kind._allowed.keys()
    kind().check_parameters()


@pytest.mark.parametrize(
    ("legal", "told", "inside", "outside"),
    [
        (
            Allowed(),
            "a number of at least 0 and at most 1e+30",
            [0, 1.5, np.float32(2), np.int64(3)],
            [-1, float("nan"), 1e300, 10**400, float("inf"), True, "1", None],
        ),
        (Allowed(0, 1, open_high=True), "a number of at least 0 and below 1", [0, 0.99], [1]),
        (Allowed(0, 1, open_low=True, none=True), "a number above 0 and at most 1, or None", [1, None], [0]),
        (
            Allowed(2, 9, integer=True),
            "a whole number of at least 2 and at most 9",
            [2, np.int8(9)],
            [1, 10, 3.0, None],
        ),
        (Allowed(choices=("a", "b")), "a or b", ["a", "b"], ["c", None, 1]),
    ],
)
def test_what_is_legal(legal: Allowed, told: str, inside: list[Any], outside: list[Any]) -> None:
    assert str(legal) == told
    assert [legal.allows(value) for value in inside + outside] == [True] * len(inside) + [False] * len(
        outside
    )


# Saved and loaded


def test_an_illegal_parameter_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    fitted = LogitLinear(max_iter=3).fit(X, Y)
    facts = json.loads((fitted.save(tmp_path) / FACTS).read_text())
    for value in (0, -1, HUGE):
        (tmp_path / FACTS).write_text(
            json.dumps({**facts, "parameters": {**facts["parameters"], "max_iter": value}})
        )
        with pytest.raises(
            ZooError,
            match="a saved LogitLinear, found ValueZooError: max_iter: expected a whole number of at least 1",
        ):
            LogitLinear.load(tmp_path)
    refused(lambda: fitted.set_params(max_iter=0).save(tmp_path), "max_iter")


def test_long_slices_are_predicted_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from nws_dataset.baselines import meta_classifier

    rows = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    fitted = DeepMetaClassifier(**SLIM).fit(rows, np.arange(20) % 2)
    seen: list[int] = []

    class Watched(ArrayRows):
        def slices(self, numbers: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
            seen.append(len(numbers))
            return super().slices(numbers, starts, length)

    whole = fitted.predict_proba(Watched(rows))
    monkeypatch.setattr(meta_classifier, "PREDICTED_WEIGHTS", 40)
    np.testing.assert_allclose(fitted.predict_proba(Watched(rows)), whole, rtol=1e-5)
    assert seen == [160, *[2] * 80]


# Data


@pytest.mark.parametrize("kind", [LogitLinear, DeepMetaRegressor])
def test_validation_rows_and_targets_go_together(kind: type[SaveMixin]) -> None:
    estimator: Any = kind(**SLIM) if kind is DeepMetaRegressor else kind()
    refused(lambda: estimator.fit(X, Y, X_validation=X), "y_validation")
    refused(lambda: estimator.fit(X, Y, y_validation=Y), "X_validation")
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        estimator.fit(X, Y, X_validation=X, y_validation=Y[1:])


@pytest.mark.parametrize(
    "rows", [{"a": [1.0]}, iter([[1.0]]), {1.0}, "rows", b"rows"], ids=lambda rows: type(rows).__name__
)
def test_what_is_no_rows(rows: Any) -> None:
    refused(lambda: DeepMetaRegressor(**SLIM).fit(rows, [0.0]), "X")


@pytest.mark.parametrize("positions", [[], [float("nan")], [-0.1], [0.5, 2], [[0, 1]], "middle", None])
def test_positions_of_slices(positions: Any) -> None:
    fitted = DeepMetaRegressor(**SLIM).fit(X.astype(np.float32), Y)
    if positions is None:
        assert fitted.predict(X, positions).shape == (40,)
    else:
        refused(lambda: fitted.predict(X, positions), "positions")


def test_a_network_that_diverged_is_none() -> None:
    refused(
        lambda: DeepMetaRegressor(**SLIM, learning_rate=1e30, validation_fraction=0.0).fit(
            X.astype(np.float32), Y
        ),
        "fit",
    )
    refused(lambda: DenseNet(max_epochs=2, learning_rate=1e30, random_state=0).fit(X, Y), "fit")


def test_what_lightgbm_says_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lightgbm = pytest.importorskip("lightgbm")

    def fail(*args: object, **options: object) -> None:
        raise lightgbm.basic.LightGBMError("first\nsecond")

    monkeypatch.setattr(lightgbm, "train", fail)
    refused(lambda: GradientBoosting(num_trees=2).fit(X, Y), "GradientBoosting")


# Allowed, but unusual

FAST: list[Any] = [
    LogitLinear(max_iter=5, random_state=0),
    GradientBoosting(num_trees=5, num_threads=1, random_state=0),
    DenseNet(max_epochs=2, num_units=8, random_state=0),
]


def saved_and_loaded(estimator: Any, folder: Path) -> Any:
    loaded = type(estimator).load(estimator.save(folder))
    np.testing.assert_array_equal(loaded.predict(X_32), estimator.predict(X_32))
    return loaded


@pytest.mark.parametrize("predictor", FAST, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("fraction", [0.98, 0.999])
def test_a_training_sample_is_left(predictor: Any, fraction: float) -> None:
    assert np.isfinite(clone(predictor).set_params(validation_fraction=fraction).fit(X, Y).predict(X)).all()


@pytest.mark.parametrize("number", [np.int64, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("predictor", FAST, ids=lambda p: type(p).__name__)
def test_a_range_of_numpy_numbers_is_saved(predictor: Any, number: Any, tmp_path: Path) -> None:
    loaded = saved_and_loaded(
        clone(predictor).set_params(target_range=(number(0), number(1))).fit(X, Y), tmp_path
    )
    assert loaded.target_range == (0, 1)


@pytest.mark.parametrize("whole", [np.int64, np.int8])
def test_whole_numbers_of_numpy_are_those_of_python(whole: Any, tmp_path: Path) -> None:
    """A grid of np.arange gives such; those of 8 bits overflow."""
    options = {
        "slice_length": 16,
        "epochs": 1,
        "batch_size": 8,
        "slices_per_row": 100,
        "slices_per_prediction": 8,
    }
    plain = DeepMetaRegressor(**{**SLIM, **options}).fit(X_32, Y)
    own = DeepMetaRegressor(**{**SLIM, **{name: whole(value) for name, value in options.items()}}).fit(
        X_32, Y
    )
    np.testing.assert_array_equal(plain.predict(X_32), own.predict(X_32))
    assert saved_and_loaded(own, tmp_path / "regressor").get_params() == plain.get_params()
    for predictor, numbers in (
        (FAST[1], {"num_trees": 5, "max_depth": 7, "min_rows_in_leaf": 2, "patience": 3}),
        (FAST[2], {"num_layers": 2, "num_units": 8, "batch_size": 5, "max_epochs": 2, "patience": 3}),
    ):
        expected = clone(predictor).set_params(**numbers).fit(X, Y).predict(X)
        found = (
            clone(predictor).set_params(**{name: whole(value) for name, value in numbers.items()}).fit(X, Y)
        )
        np.testing.assert_array_equal(
            saved_and_loaded(found, tmp_path / type(found).__name__).predict(X), expected
        )


@pytest.mark.parametrize("predictor", FAST, ids=lambda p: type(p).__name__)
def test_the_largest_features_and_constant_targets(predictor: Any) -> None:
    huge = X.copy()
    huge[::3, 0], huge[1::3, 0] = 1.7e308, 1e308
    huge[:, 1] *= 1e-310
    fitted = clone(predictor).fit(huge, Y)
    assert np.isfinite(fitted.predict(huge)).all() and np.isfinite(fitted.predict(X)).all()
    constant = clone(predictor).set_params(target_range=None).fit(X, np.full(40, 1e20)).predict(X)
    np.testing.assert_allclose(constant, 1e20, rtol=1e-5)


def test_the_smallest_linear_below() -> None:
    rows = [np.full(16, value, np.float32) for value in (1e38, -1e38, 0, 1)] * 10
    assert np.isfinite(DeepMetaRegressor(**SLIM, linear_below=1e-30).fit(rows, Y).predict(rows)).all()


@pytest.mark.parametrize(
    ("estimator", "where"),
    [
        (DenseNet(num_units=10**5), "num_units, num_layers"),
        (DenseNet(num_units=10**7, num_layers=1000), "num_units, num_layers"),
        (DeepMetaRegressor(slice_length=16, width=1000.0), "slice_length, width"),
        (DeepMetaRegressor(slice_length=1 << 24), "slice_length, width"),
    ],
    ids=["dense", "deep", "wide", "long"],
)
def test_networks_too_large_to_be_saved(estimator: Any, where: str) -> None:
    refused(lambda: estimator.fit(X_32, Y), where)


@pytest.mark.parametrize("kind", [DeepMetaClassifier, DeepMetaRegressor])
def test_targets_groups_and_rows_that_are_none(kind: Any) -> None:
    estimator = kind(**SLIM)
    mixed = ["a", 1, None, 2.0] * 10
    refused(lambda: estimator.fit(X_32, np.arange(40) % 2, groups=np.full(40, np.nan)), "groups")
    refused(lambda: estimator.fit(X_32, np.arange(40) % 2, groups=mixed), "groups")
    with pytest.raises(ValueError, match="1d array"):
        estimator.fit(X_32, np.arange(40) % 2, groups=np.ones((40, 2)))
    refused(lambda: estimator.fit(ArrayRows([]), []), "X")
    refused(lambda: estimator.fit(X_32, np.arange(40) % 2, X_validation=ArrayRows([]), y_validation=[]), "X")
    refused(lambda: estimator.fit(X_32, np.arange(40) % 2).predict(ArrayRows([])), "X")
    with pytest.raises(ZooError, match="row 0 of X: expected numbers in one dimension"):
        estimator.fit([np.full(3 + i % 2, 1j) for i in range(40)], np.arange(40) % 2)
    with pytest.raises(ZooError, match=r"row \d+: expected finite weights"):
        estimator.fit(X * 1e300, np.arange(40) % 2)


DATES = np.array(["2020-01-01", "2021-01-01"] * 20, "datetime64[D]")


@pytest.mark.parametrize(
    "labels",
    [DATES, np.array(["a", 1] * 20, object), np.array([b"a", b"b"] * 20)],
    ids=["dates", "mixed", "bytes"],
)
def test_labels_that_cannot_be_saved(labels: np.ndarray) -> None:
    refused(lambda: DeepMetaClassifier(**SLIM).fit(X_32, labels), "y")


@pytest.mark.parametrize("estimator", [*FAST, DeepMetaRegressor(**SLIM)], ids=lambda p: type(p).__name__)
def test_targets_that_are_no_numbers(estimator: Any) -> None:
    for wrong in (["a"] * 40, ["1"] * 40, DATES):
        refused(lambda wrong=wrong: clone(estimator).fit(X_32, wrong), "y")
        refused(
            lambda wrong=wrong: clone(estimator).fit(X_32, Y, X_validation=X_32, y_validation=wrong),
            "y_validation",
        )
    options = {} if isinstance(estimator, DeepMetaRegressor) else {"target_range": None}
    refused(lambda: clone(estimator).set_params(**options).fit(X_32, 1e31 * Y), "y")
    for wrong in (None, [None] * 40, np.full(40, np.nan), np.full(40, np.inf)):
        with pytest.raises(ValueError) as raised:
            clone(estimator).fit(X_32, wrong)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="y_validation contains NaN"):
        clone(estimator).fit(X_32, Y, X_validation=X_32, y_validation=[None] * 40)


def test_what_is_not_a_number_is_not_saved(tmp_path: Path) -> None:
    fitted = LogitLinear(max_iter=3).fit(X, Y)
    fitted.coef_[1] = np.nan
    refused(lambda: fitted.save(tmp_path), "coef_")
    assert not list(tmp_path.iterdir())


ARCHITECTURE = Architecture(filter_size=3, depth_conv=3, width_conv=4, depth_fc=3, width_fc=8)
NO_ROWS = [
    None,
    "rows",
    1,
    [1, 2],
    [[1.0], [1.0, 2.0]],
    {},
    np.zeros(8),
    np.zeros((3, 7)),
    np.full((1, 8), "a"),
    np.zeros((2, 8), object),
]


@pytest.mark.parametrize(
    "rows", NO_ROWS, ids=lambda rows: f"{type(rows).__name__} {getattr(rows, 'shape', '')}"
)
def test_rows_of_features_and_views(rows: Any) -> None:
    layout = layout_of(ARCHITECTURE)
    if isinstance(rows, np.ndarray) and rows.shape[-1] == 8:
        rows = np.repeat(rows, layout.num_weights, axis=-1)[..., : layout.num_weights]
    for describe in (statistics.statistics, statistics.norms):
        refused(lambda describe=describe: describe(rows, layout), "rows")
    if not (isinstance(rows, np.ndarray) and rows.dtype.kind == "f" and rows.ndim == 2):
        refused(lambda: statistics.whole_vector_statistics(rows), "rows")
    if not isinstance(rows, np.ndarray):
        for view in (LayerTuples, Graph, Tokens):
            refused(lambda view=view: view.from_rows(ARCHITECTURE, rows), "rows")
        refused(lambda: permutations.permute(ARCHITECTURE, rows, {}), "rows")


def test_no_rows_have_no_features() -> None:
    layout = layout_of(ARCHITECTURE)
    for describe in (statistics.statistics, statistics.norms):
        found, names = describe(np.zeros((0, layout.num_weights), np.float32), layout)
        assert found.shape == (0, len(names))


@pytest.mark.parametrize("size", [0, -1, "9", 2.5, None])
def test_sizes_of_views(size: Any) -> None:
    rows = np.zeros((1, layout_of(ARCHITECTURE).num_weights), np.float32)
    with pytest.raises(ZooError, match="size: expected at least 1"):
        Tokens.from_rows(ARCHITECTURE, rows, size=size)
    if size is not None:
        with pytest.raises(ZooError, match="kernel_size: expected an odd number of at least"):
            Graph.from_rows(ARCHITECTURE, rows, kernel_size=size)
        with pytest.raises(ZooError, match="width: expected an odd number squared, at least"):
            LayerTuples.from_rows(ARCHITECTURE, rows, "dws", width=size)


@pytest.mark.parametrize("length", [0, -1, "9", 1.5, None, HUGE])
def test_lengths_of_random_units(length: Any) -> None:
    row = np.zeros(layout_of(ARCHITECTURE).num_weights, np.float32)
    refused(lambda: RandomUnits([row], [ARCHITECTURE], length, seed=0), "length")
    refused(lambda: RandomUnits([row], [], 9, seed=0), "rows")
    refused(lambda: RandomUnits([row[1:]], [ARCHITECTURE], 9, seed=0), "row 0")


@pytest.mark.parametrize("wrong", [None, "x", {}, [1, 2], [0, 0], [0.0, 1.0], [[0, 1]], [0, [1]]], ids=repr)
def test_permutations_that_are_none(wrong: Any) -> None:
    for call in (
        lambda: permutations.inverse_permutations({"dense1": wrong}),
        lambda: permutations.compose_permutations({"dense1": wrong}, {"dense1": [1, 0]}),
        lambda: permutations.compose_permutations({"dense1": [1, 0]}, {"dense1": wrong}),
    ):
        with pytest.raises(ZooError, match=r"^permutations\['dense1'\]: expected each of 0 \.\. "):
            call()


def test_rows_and_images_of_a_network() -> None:
    network, row = Network(ARCHITECTURE, "relu"), torch.zeros(layout_of(ARCHITECTURE).num_weights)
    for wrong in (None, row.numpy(), row[1:], row[None], row.long(), row.to(torch.complex64)):
        refused(lambda wrong=wrong: network.load_row(wrong), "row")
    refused(lambda: network(np.zeros((1, 3, 32, 32), np.float32)), "images")
    with pytest.raises(ZooError, match=r"^activation: expected one of"):
        Network(ARCHITECTURE, ["relu"])  # type: ignore[arg-type]
