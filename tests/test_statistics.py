"""Statistics equal numpy's, and features of different architectures line up."""

import numpy as np
import pytest

from nws_dataset.errors import ZooError
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo
from nws_dataset.views.statistics import (
    FEATURE_SETS,
    STATISTICS,
    _aligned,
    _describe,
    norms,
    statistics,
    whole_vector_statistics,
    zoo_features,
)
from testing.zoo_factory import NORMED, PLAIN, make_zoo


def plain_statistics(values):
    """The reference: numpy, a tensor of a network at a time."""
    values = values.astype(np.float64).ravel()
    return [*np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), values.mean(), values.std()]


@pytest.mark.parametrize("architecture", [PLAIN, NORMED])
def test_equals_numpy(architecture):
    layout = layout_of(architecture)
    # more than one block
    rows = np.random.default_rng(0).normal(3, 2, (300, layout.num_weights)).astype(np.float32)
    features, names = statistics(rows, layout)
    expected = [
        [s for tensor in layout.views(row).values() for s in plain_statistics(tensor)] for row in rows
    ]
    np.testing.assert_allclose(features, expected, rtol=1e-6, atol=1e-6)
    assert names == [f"{spec.name}.{statistic}" for spec in layout.tensors for statistic in STATISTICS]
    np.testing.assert_allclose(
        whole_vector_statistics(rows)[0], [plain_statistics(row) for row in rows], rtol=1e-6, atol=1e-6
    )


def _steps(random, shape):
    """Rows whose quartiles lie at different positions of each part: windows are too narrow for them."""
    return np.repeat(random.normal(size=(shape[0], 5)), -(-shape[1] // 5), axis=1)[
        :, : shape[1]
    ] + 1e-3 * random.normal(size=shape)


ROWS = {
    "normal": lambda random, shape: random.normal(1, 2, shape),
    "constant": lambda random, shape: np.full(shape, 0.1),
    "ties": lambda random, shape: random.integers(0, 3, shape),
    "sorted": lambda random, shape: np.sort(random.normal(size=shape), axis=1),
    "steps": _steps,
    "periodic": lambda random, shape: np.tile(random.normal(size=(shape[0], 5)), -(-shape[1] // 5))[
        :, : shape[1]
    ],
    "heavy": lambda random, shape: random.standard_cauchy(shape),
    "huge": lambda random, shape: 1e30 * random.normal(size=shape),
    "tiny": lambda random, shape: 1e-25 * random.normal(size=shape),
}


@pytest.mark.parametrize("num_values", [1, 2, 512, 513, 2304, 40_000])
@pytest.mark.parametrize("rows", ROWS)
def test_long_tensors_equal_numpy(rows, num_values):
    """However the numbers lie in their row: the fast way falls back on the plain one."""
    values = ROWS[rows](np.random.default_rng(0), (7, num_values)).astype(np.float32)
    found, expected = _describe(values, "x"), np.array([plain_statistics(row) for row in values])
    np.testing.assert_array_equal(found[:, [0, 4]], expected[:, [0, 4]])
    largest = np.abs(values).max(axis=1, keepdims=True).astype(np.float64)
    scale = np.where(largest > 0, largest, 1)
    np.testing.assert_allclose(found / scale, expected / scale, rtol=1e-6, atol=1e-6)


def test_norms_equal_numpy():
    layout = layout_of(NORMED)
    rows = np.random.default_rng(0).normal(size=(3, layout.num_weights)).astype(np.float32)
    features, names = norms(rows, layout)
    for row, found in zip(rows, features, strict=True):
        told = dict(zip(names, found, strict=True))
        for spec in layout.tensors:
            tensor = layout.views(row)[spec.name].astype(np.float64)
            assert told[f"{spec.name}.l1"] == pytest.approx(np.abs(tensor).sum())
            assert told[f"{spec.name}.l2"] == pytest.approx(np.linalg.norm(tensor))
            if spec.role == "weight":
                assert told[f"{spec.name}.spectral"] == pytest.approx(
                    np.linalg.norm(tensor.reshape(len(tensor), -1), 2)
                )
    with pytest.raises(ZooError, match="row 1"):
        norms(np.where(np.arange(3)[:, None] == 1, np.nan, rows), layout)


def test_rows_are_not_changed_and_huge_ones_do_not_overflow():
    layout = layout_of(PLAIN)
    rows = np.full((2, layout.num_weights), 1e30, np.float32)
    rows[:, ::2] = -1e30
    before = rows.copy()
    features, _ = statistics(rows, layout)
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(rows, before)


def test_some_layers():
    layout = layout_of(NORMED)
    rows = np.random.default_rng(0).normal(size=(3, layout.num_weights)).astype(np.float32)
    features, names = statistics(rows, layout)
    some, some_names = statistics(rows, layout, layers=["conv1", "output"])
    assert {name.split(".")[0] for name in some_names} == {"conv1", "conv1_norm", "output"}
    np.testing.assert_array_equal(some, features[:, [names.index(name) for name in some_names]])
    with pytest.raises(ZooError, match="conv9"):
        statistics(rows, layout, layers=["conv9"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_must_be_finite(bad):
    layout = layout_of(PLAIN)
    rows = np.zeros((2, layout.num_weights), np.float32)
    rows[1, layout["conv2.weight"].offset] = bad
    with pytest.raises(ZooError, match=r"conv2\.weight, row 1"):
        statistics(rows, layout)
    with pytest.raises(ZooError, match="row 1"):
        whole_vector_statistics(rows)


def test_dense_layers_are_counted_from_the_output():
    layout = layout_of(Architecture(depth_fc=3))
    names = [f"{layer}.weight.min" for layer in ("conv1", "dense1", "dense3", "dense3_norm", "output")]
    aligned = [
        "conv1.weight.min",
        "dense-3.weight.min",
        "dense-1.weight.min",
        "dense-1_norm.weight.min",
        "output.weight.min",
    ]
    assert _aligned(names, layout) == aligned


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return Zoo(make_zoo(tmp_path_factory.mktemp("zoo"), models=10, snapshots=2))


def test_features_of_a_mixed_zoo(zoo):
    snapshots = zoo.filter()
    X, names = zoo_features(zoo, snapshots, "layers")
    assert X.shape == (20, len(names))
    for i, snapshot in enumerate(snapshots):
        layout = zoo.layout(snapshot)
        own, own_names = statistics(zoo.row(snapshot)[None], layout)
        there = [names.index(name) for name in _aligned(own_names, layout)]
        np.testing.assert_array_equal(X[i, there], own[0])
        assert np.isnan(np.delete(X[i], there)).all()
    layers = list(dict.fromkeys(name.split(".")[0].removesuffix("_norm") for name in names))
    assert layers == ["conv1", "conv2", "conv3", "dense-2", "dense-1", "output"]


def test_whole_rows_and_hyperparameters(zoo):
    snapshots = zoo.filter(is_final=True)
    X, names = zoo_features(zoo, snapshots, "whole")
    assert X.shape == (10, 7) and names[0] == "row.min" and np.isfinite(X).all()
    X, names = zoo_features(zoo, snapshots, "hyperparameters")
    assert X.shape == (10, len(names)) and not any("accuracy" in name or "seed" in name for name in names)
    np.testing.assert_allclose(
        X[:, names.index("log10(learning_rate)")], np.log10(snapshots["learning_rate"])
    )
    assert np.isnan(X[:, names.index("log10(width_fc)")]).sum() == 5  # half have no hidden dense layers
    datasets = [names.index(name) for name in names if name.startswith("dataset=")]
    np.testing.assert_array_equal(X[:, datasets].sum(axis=1), 1)
    with pytest.raises(ZooError, match="layers or whole or norms or weights or hyperparameters"):
        zoo_features(zoo, snapshots, "layer")


def test_feature_sets_in_one_pass(zoo):
    """They are what they are one by one, whatever the number of threads; the files are read once."""
    snapshots = zoo.filter(architecture=zoo.filter()[0]["architecture"])
    together = zoo_features(zoo, snapshots, FEATURE_SETS, threads=3)
    assert list(together) == ["hyperparameters", "layers", "whole", "norms", "weights"]
    for feature_set, (X, names) in together.items():
        alone, alone_names = zoo_features(zoo, snapshots, feature_set, threads=1)
        np.testing.assert_array_equal(X, alone)
        assert names == alone_names and X.shape == (10, len(names))
    np.testing.assert_array_equal(together["weights"][0], zoo.weights(snapshots))
    with pytest.raises(ZooError, match="2 layouts"):
        zoo_features(zoo, zoo.filter(), "weights")


def test_rows_keep_their_order(zoo):
    """Also those of a mixture that lies in many stacks."""
    snapshots = Snapshots(zoo.index.take(np.random.default_rng(0).permutation(len(zoo.index))))
    X, _ = zoo_features(zoo, snapshots, "layers")
    by_id = {(snapshot["model_id"], snapshot["snapshot"]): X[i] for i, snapshot in enumerate(snapshots)}
    ordered, _ = zoo_features(zoo, zoo.filter(), "layers")
    for snapshot, expected in zip(zoo.filter(), ordered, strict=True):
        np.testing.assert_array_equal(by_id[snapshot["model_id"], snapshot["snapshot"]], expected)
