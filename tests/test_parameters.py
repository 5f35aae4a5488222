"""What an estimator cannot be fitted with is told in one line, before anything is made of it; and never saved or loaded."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nws_dataset import DeepMetaClassifier, DeepMetaRegressor, DenseNet, GradientBoosting, LogitLinear, statistics, views
from nws_dataset.errors import ValueZooError, ZooError
from nws_dataset.layout import layout_of
from nws_dataset.recipe import Architecture
from nws_dataset.saving import FACTS, Legal, Saved
from nws_dataset.slices import ArrayRows

HUGE = 10**30
FRACTIONS = [1, 2.0, -0.1, float("nan"), None, "0.1", True]
COUNTS = [0, -1, HUGE, 1.0, 2.5, True, None, "3", [1], float("inf")]
SHARES = [0, 1.1, -1, float("nan"), None, "all"]
RATES = [0.0, -1e-3, float("nan"), float("inf"), None, "fast", True]
RANGES = [(0.0, 0.0), (1, 0), (0, 1, 2), (0,), ("a", "b"), (float("nan"), 1), (0, float("inf")), 1.0, (None, 1)]
ILLEGAL: dict[type, dict[str, list[Any]]] = {
    LogitLinear: {"l2": [-1, float("nan"), None, "x"], "max_iter": COUNTS, "validation_fraction": FRACTIONS, "target_range": RANGES},
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
        **dict.fromkeys(("slice_length", "epochs", "slices_per_row", "slices_per_prediction", "batch_size"), COUNTS),
        **dict.fromkeys(("width", "learning_rate"), RATES),
        **dict.fromkeys(("dropout", "validation_fraction"), FRACTIONS),
        "linear_below": [0, -1.0, float("nan"), "x", True],
    },
    DeepMetaRegressor: {"loss": ["huber", None, 1, ""], "batch_size": [1]},
}
X = np.random.default_rng(0).normal(size=(40, 3))
Y = np.linspace(0, 1, 40)
SLIM = {"slice_length": 16, "epochs": 1, "width": 1 / 32, "batch_size": 8, "random_state": 0}
CASES = [(kind, name, value) for kind, fields in ILLEGAL.items() for name, values in fields.items() for value in values]


def refused(call: Callable[[], object], where: str) -> None:
    """A call is refused by a ValueError of ours that names what is wrong."""
    with pytest.raises(ValueError) as raised:
        call()
    error = raised.value
    assert isinstance(error, ValueZooError) and "\n" not in str(error) and str(error).startswith(f"{where}: expected ")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (ValueZooError, str(error))


@pytest.mark.parametrize(("kind", "name", "value"), CASES, ids=lambda value: value.__name__ if isinstance(value, type) else repr(value))
def test_illegal_parameters(kind: type, name: str, value: Any) -> None:
    labels = np.arange(40) % 2 if kind is DeepMetaClassifier else Y
    refused(lambda: kind(**{name: value}).fit(X, labels), name)


@pytest.mark.parametrize("kind", ILLEGAL)
def test_every_number_among_the_parameters_has_its_bounds(kind: type) -> None:
    numbers = [name for name, value in kind().get_params().items() if isinstance(value, int | float) and not isinstance(value, bool)]
    assert set(numbers) <= kind._legal.keys()
    kind().check_parameters()


@pytest.mark.parametrize(
    ("legal", "told", "inside", "outside"),
    [
        (Legal(), "a number of at least 0", [0, 1.5, np.float32(2), np.int64(3)], [-1, float("nan"), float("inf"), True, "1", None]),
        (Legal(0, 1, open_high=True), "a number of at least 0 and below 1", [0, 0.99], [1]),
        (Legal(0, 1, open_low=True, none=True), "a number above 0 and at most 1, or None", [1, None], [0]),
        (Legal(2, 9, whole=True), "a whole number of at least 2 and at most 9", [2, np.int8(9)], [1, 10, 3.0, None]),
        (Legal(choices=("a", "b")), "a or b", ["a", "b"], ["c", None, 1]),
    ],
)
def test_what_is_legal(legal: Legal, told: str, inside: list[Any], outside: list[Any]) -> None:
    assert str(legal) == told
    assert [legal.allows(value) for value in inside + outside] == [True] * len(inside) + [False] * len(outside)


# Saved and loaded


def test_an_illegal_parameter_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    fitted = LogitLinear(max_iter=3).fit(X, Y)
    facts = json.loads((fitted.save(tmp_path) / FACTS).read_text())
    for value in (0, -1, HUGE):
        (tmp_path / FACTS).write_text(json.dumps({**facts, "parameters": {**facts["parameters"], "max_iter": value}}))
        with pytest.raises(ZooError, match="a saved LogitLinear, found ValueZooError: max_iter: expected a whole number of at least 1"):
            LogitLinear.load(tmp_path)
    refused(lambda: fitted.set_params(max_iter=0).save(tmp_path), "max_iter")


def test_long_slices_are_predicted_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from nws_dataset import meta_classifier

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
def test_validation_rows_and_targets_go_together(kind: type[Saved]) -> None:
    estimator: Any = kind(**SLIM) if kind is DeepMetaRegressor else kind()
    refused(lambda: estimator.fit(X, Y, X_validation=X), "y_validation")
    refused(lambda: estimator.fit(X, Y, y_validation=Y), "X_validation")
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        estimator.fit(X, Y, X_validation=X, y_validation=Y[1:])


@pytest.mark.parametrize("rows", [{"a": [1.0]}, iter([[1.0]]), {1.0}, "rows", b"rows"], ids=lambda rows: type(rows).__name__)
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
    refused(lambda: DeepMetaRegressor(**SLIM, learning_rate=1e30, validation_fraction=0.0).fit(X.astype(np.float32), Y), "fit")
    refused(lambda: DenseNet(max_epochs=2, learning_rate=1e30, random_state=0).fit(X, Y), "fit")


def test_what_lightgbm_says_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lightgbm = pytest.importorskip("lightgbm")

    def fail(*args: object, **options: object) -> None:
        raise lightgbm.basic.LightGBMError("first\nsecond")

    monkeypatch.setattr(lightgbm, "train", fail)
    refused(lambda: GradientBoosting(num_trees=2).fit(X, Y), "GradientBoosting")


ARCHITECTURE = Architecture(filter_size=3, depth_conv=3, width_conv=4, depth_fc=3, width_fc=8)
NO_ROWS = [None, "rows", 1, [1, 2], [[1.0], [1.0, 2.0]], {}, np.zeros(8), np.zeros((3, 7)), np.full((1, 8), "a"), np.zeros((2, 8), object)]


@pytest.mark.parametrize("rows", NO_ROWS, ids=lambda rows: f"{type(rows).__name__} {getattr(rows, 'shape', '')}")
def test_rows_of_features_and_views(rows: Any) -> None:
    layout = layout_of(ARCHITECTURE)
    if isinstance(rows, np.ndarray) and rows.shape[-1] == 8:
        rows = np.repeat(rows, layout.num_weights, axis=-1)[..., : layout.num_weights]
    for describe in (statistics.statistics, statistics.norms):
        refused(lambda describe=describe: describe(rows, layout), "rows")
    if not (isinstance(rows, np.ndarray) and rows.dtype.kind == "f" and rows.ndim == 2):
        refused(lambda: statistics.whole_vector_statistics(rows), "rows")
    if not isinstance(rows, np.ndarray):
        for view in (views.LayerTuples, views.Graph, views.Tokens):
            refused(lambda view=view: view.from_rows(ARCHITECTURE, rows), "rows")
        refused(lambda: views.permute(ARCHITECTURE, rows, {}), "rows")


def test_no_rows_have_no_features() -> None:
    layout = layout_of(ARCHITECTURE)
    for describe in (statistics.statistics, statistics.norms):
        found, names = describe(np.zeros((0, layout.num_weights), np.float32), layout)
        assert found.shape == (0, len(names))


@pytest.mark.parametrize("size", [0, -1, "9", 2.5, None])
def test_sizes_of_views(size: Any) -> None:
    rows = np.zeros((1, layout_of(ARCHITECTURE).num_weights), np.float32)
    with pytest.raises(ZooError, match="size: expected at least 1"):
        views.Tokens.from_rows(ARCHITECTURE, rows, size=size)
    if size is not None:
        with pytest.raises(ZooError, match="kernel_size: expected an odd number of at least"):
            views.Graph.from_rows(ARCHITECTURE, rows, kernel_size=size)
