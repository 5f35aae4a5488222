"""Every view turns back into the rows, and a permutation of hidden units leaves the function as it is and
reorders the views as it says.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nws_dataset.errors import ZooError
from nws_dataset.format.subsets import SMALL_CNN
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import OUTPUT, layout_of
from nws_dataset.networks.network import Network
from nws_dataset.views.graph import NODE_TYPES, Graph
from nws_dataset.views.indices import VECTOR_ROLES
from nws_dataset.views.layer_tuples import LayerTuples
from nws_dataset.views.permutations import (
    compose_permutations,
    inverse_permutations,
    permutation_spec,
    permute,
    random_permutations,
)
from nws_dataset.views.tokens import Tokens
from testing.zoo_factory import NORMED, PLAIN

SMALL = Architecture(filter_size=3, width_conv=4, width_fc=12, image_size=16)
FIELDS = {field.name for field in dataclasses.fields(Architecture)}
ARCHITECTURES = {
    "fixed": Architecture(),
    "plain": PLAIN,
    "normed": NORMED,
    "small_cnn": Architecture(
        **{name: value for name, value in SMALL_CNN.items() if name in FIELDS - {"image_size"}}, image_size=28
    ),
    "no_norm": dataclasses.replace(SMALL, batch_norm=False),
    "two_convs_a_block": dataclasses.replace(SMALL, depth_conv=5, depth_fc=4, width_fc=16),
    "twenty_outputs": dataclasses.replace(SMALL, num_outputs=20),
    "strided_valid_flatten": dataclasses.replace(
        SMALL, stride=2, padding="valid", pooling="none", image_size=32
    ),
    "average_then_dense": dataclasses.replace(SMALL, head="average"),
    "flatten_of_one_pixel": dataclasses.replace(SMALL, image_size=8),
    "flatten_to_outputs": dataclasses.replace(SMALL, depth_fc=0, width_fc=None),
    "wide_map": dataclasses.replace(SMALL, pooling="none", image_size=10, filter_size=7),
}
VIEWS: dict[str, Callable[[Architecture, Any], Any]] = {
    "nfn": LayerTuples.from_rows,
    "nfn_joined": lambda architecture, rows: LayerTuples.from_rows(architecture, rows, norms="channels"),
    "dws": lambda architecture, rows: LayerTuples.from_rows(architecture, rows, "dws"),
    "dws_joined": lambda architecture, rows: LayerTuples.from_rows(
        architecture, rows, "dws", norms="channels"
    ),
    "wide_dws": lambda architecture, rows: LayerTuples.from_rows(architecture, rows, "dws", 13 * 13),
    "graph": Graph.from_rows,
    "wide_graph": lambda architecture, rows: Graph.from_rows(architecture, rows, 13),
    "tokens": Tokens.from_rows,
    "short_tokens": lambda architecture, rows: Tokens.from_rows(architecture, rows, 7),
    "own_tokens": lambda architecture, rows: Tokens.from_rows(architecture, rows, 7, batch_norm="own"),
}
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Small networks of every kind."""
    depth_fc = draw(st.integers(0, 3))
    return Architecture(
        filter_size=draw(st.sampled_from((1, 3, 5))),
        depth_conv=draw(st.integers(3, 6)),
        width_conv=draw(st.integers(1, 4)),
        width_growth=draw(st.integers(1, 2)),
        pooling=draw(st.sampled_from(Architecture.legal_values["pooling"])),
        head=draw(st.sampled_from(Architecture.legal_values["head"])),
        depth_fc=depth_fc,
        width_fc=draw(st.integers(8, 20)) if depth_fc else None,
        batch_norm=draw(st.booleans()),
        image_channels=draw(st.sampled_from((1, 3))),
        image_size=draw(st.integers(8, 14)),
        num_outputs=draw(st.sampled_from((10, 20))),
    )


def make_rows(architecture: Architecture, count: int = 2, seed: int = 0) -> np.ndarray:
    """[N, P] float64 of networks whose units differ and are not saturated."""
    rows = np.random.default_rng(seed).standard_normal((count, layout_of(architecture).num_weights))
    for tensor in layout_of(architecture).tensors:
        part = rows[:, tensor.offset : tensor.stop]
        if tensor.role == "weight":
            part /= math.sqrt(tensor.fans[0])
        if tensor.role == "norm_variance":
            np.abs(part, out=part)
            part += 0.5
    return rows


def logits(architecture: Architecture, row: np.ndarray, activation: str) -> np.ndarray:
    """[3, num_outputs] of random images, in float64."""
    network = Network(architecture, activation).double().load_row(torch.from_numpy(row)).eval()
    shape = (3, architecture.image_channels, architecture.image_size, architecture.image_size)
    with torch.no_grad():
        return network(torch.from_numpy(np.random.default_rng(1).random(shape))).numpy()


def check_same_function(architecture: Architecture, activation: str) -> None:
    (row,) = make_rows(architecture, 1)
    permuted = permute(architecture, row, random_permutations(architecture, np.random.default_rng(2)))
    expected = logits(architecture, row, activation)
    assert np.abs(logits(architecture, permuted, activation) - expected).max() <= 1e-9 * max(
        1.0, np.abs(expected).max()
    )


# Permutations


@pytest.mark.parametrize("activation", Architecture.activations)
@each_architecture
def test_permuted_networks_compute_the_same(architecture: Architecture, activation: str) -> None:
    check_same_function(architecture, activation)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(architectures(), st.sampled_from(Architecture.activations))
def test_permuted_networks_compute_the_same_whatever_their_shape(
    architecture: Architecture, activation: str
) -> None:
    check_same_function(architecture, activation)


@each_architecture
def test_the_function_notices_every_axis(architecture: Architecture) -> None:
    """A tensor that stays behind when the others are permuted changes the function, so that the tests above
    can fail.
    """
    (row,) = make_rows(architecture, 1)
    permutations = {
        layer: np.roll(np.arange(size), 1) for layer, size in permutation_spec(architecture).sizes.items()
    }
    permuted, expected = permute(architecture, row, permutations), logits(architecture, row, "tanh")
    for tensor in layout_of(architecture).tensors:
        if tensor.name != f"{OUTPUT}.bias":
            mixed = permuted.copy()
            mixed[tensor.offset : tensor.stop] = row[tensor.offset : tensor.stop]
            assert np.abs(logits(architecture, mixed, "tanh") - expected).max() > 1e-6, tensor.name


@each_architecture
def test_the_specification_says_what_permute_does(architecture: Architecture) -> None:
    spec, rows = permutation_spec(architecture), make_rows(architecture)
    permutations = random_permutations(architecture, np.random.default_rng(3))
    before, after = (
        layout_of(architecture).views(r) for r in (rows, permute(architecture, rows, permutations))
    )
    for name, axes in spec.axes_to_perm.items():
        tensor = before[name].reshape(2, *spec.shapes[name])
        for axis, layer in enumerate(axes, 1):
            tensor = tensor if layer is None else tensor.take(permutations[layer], axis)
        assert np.array_equal(tensor.reshape(before[name].shape), after[name])
    hidden = [layer for layer in layout_of(architecture).layers if layer != OUTPUT]
    assert list(spec.sizes) == list(spec.perm_to_axes) == hidden
    assert all(
        spec.axes_to_perm[tensor][axis] == layer
        for layer, axes in spec.perm_to_axes.items()
        for tensor, axis in axes
    )


def test_after_the_flatten_blocks_of_inputs_move() -> None:
    architecture = dataclasses.replace(SMALL, depth_fc=0, width_fc=None)
    rows = make_rows(architecture)
    swap = np.arange(16)
    swap[[0, 5]] = 5, 0
    before, after = (
        layout_of(architecture).views(r)["output.weight"]
        for r in (rows, permute(architecture, rows, {"conv3": swap}))
    )
    assert np.array_equal(after[..., 0:4], before[..., 20:24])
    assert np.array_equal(after[..., 4:20], before[..., 4:20])


@each_architecture
def test_permutations_invert_and_compose(architecture: Architecture) -> None:
    random, rows = np.random.default_rng(4), make_rows(architecture)
    first, second = random_permutations(architecture, random), random_permutations(architecture, random)
    once = permute(architecture, rows, first)
    assert not np.array_equal(once, rows)
    assert np.array_equal(permute(architecture, once, inverse_permutations(first)), rows)
    assert np.array_equal(
        permute(architecture, rows, compose_permutations(first, second)), permute(architecture, once, second)
    )
    assert np.array_equal(permute(architecture, rows, {}), rows)


def test_layers_that_are_not_named_keep_their_order() -> None:
    rows, permutations = make_rows(NORMED), random_permutations(NORMED, np.random.default_rng(5))
    conv, dense = (
        {name: p for name, p in permutations.items() if name.startswith(kind)} for kind in ("conv", "dense")
    )
    both = compose_permutations(conv, dense)
    assert both.keys() == permutations.keys()
    assert np.array_equal(permute(NORMED, permute(NORMED, rows, conv), dense), permute(NORMED, rows, both))


# Views turn back


@each_view
@each_architecture
def test_views_turn_back(architecture: Architecture, view: Callable[..., Any]) -> None:
    rows = make_rows(architecture).astype(np.float32)
    for some in (rows, rows[0], rows[:0], rows.reshape(2, 1, -1)):
        back = view(architecture, some).rows()
        assert back.dtype == some.dtype
        assert np.array_equal(back, some)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(architectures(), st.sampled_from(sorted(VIEWS)))
def test_views_turn_back_whatever_the_shape(architecture: Architecture, name: str) -> None:
    rows = make_rows(architecture)
    assert np.array_equal(VIEWS[name](architecture, rows).rows(), rows)


@each_view
def test_what_is_not_finite_stays_where_it_is(view: Callable[..., Any]) -> None:
    rows = np.full((2, layout_of(NORMED).num_weights), np.nan)
    rows[1] = 1.0
    found = view(NORMED, rows)
    assert np.isnan(found.rows()[0]).all()
    for name in {"x", "edge_attr", "tokens"} & found.__dict__.keys():
        filled = getattr(found, name)[1] != 0
        assert np.array_equal(np.isnan(getattr(found, name)[0]), filled)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@each_view
def test_tensors_as_arrays(view: Callable[..., Any], dtype: torch.dtype) -> None:
    rows = torch.from_numpy(make_rows(NORMED)).to(dtype).requires_grad_()
    found, array = view(NORMED, rows), view(NORMED, rows.detach().double().numpy())
    for name in (
        "weights",
        "biases",
        "norms",
        "x",
        "edge_attr",
        "edge_index",
        "node_layer",
        "node_type",
        "tokens",
        "mask",
        "position",
    ):
        parts = getattr(found, name, ())
        for tensor, like in zip(
            *((p if isinstance(p, tuple) else (p,)) for p in (parts, getattr(array, name, ()))), strict=True
        ):
            assert isinstance(tensor, torch.Tensor)
            assert not tensor.is_floating_point() or tensor.dtype == dtype
            assert np.array_equal(tensor.detach().double().numpy(), like)
    back = found.rows()
    assert torch.equal(back, rows)
    (back * torch.arange(rows.shape[1])).sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad[1], torch.arange(rows.shape[1]).to(dtype))


@each_view
def test_tensors_stay_on_their_device(view: Callable[..., Any]) -> None:
    found = view(NORMED, torch.empty(2, layout_of(NORMED).num_weights, device="meta"))
    assert found.rows().device.type == "meta"
    for name in {"edge_index", "node_layer", "node_type", "mask", "position"} & set(dir(found)):
        assert getattr(found, name).device.type == "meta"


def test_permuted_tensors() -> None:
    rows, permutations = make_rows(NORMED), random_permutations(NORMED, np.random.default_rng(6))
    leaf = torch.from_numpy(rows).requires_grad_()
    permuted = permute(NORMED, leaf, permutations)
    assert np.array_equal(permuted.detach().numpy(), permute(NORMED, rows, permutations))
    weights = torch.arange(rows.shape[1], dtype=torch.float64)
    (permuted * weights).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad[0], permute(NORMED, weights, inverse_permutations(permutations)))


def test_numpy_needs_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
from nws_dataset import Architecture, Graph, LayerTuples, Tokens, layout_of, permute, random_permutations
architecture = Architecture(width_fc=16)
rows = np.ones((2, layout_of(architecture).num_weights), np.float32)
assert all((view.from_rows(architecture, rows).rows() == rows).all() for view in (Graph, LayerTuples, Tokens))
permute(architecture, rows, random_permutations(architecture, np.random.default_rng(0)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# What each view shows


def test_layer_tuples_share_the_rows_memory() -> None:
    rows = make_rows(NORMED)
    rows.setflags(write=False)  # as a map of a file
    view = LayerTuples.from_rows(NORMED, rows)
    assert all(np.shares_memory(tensor, rows) for tensor in (*view.weights, *view.biases, *view.norms))


@each_architecture
def test_layer_tuples_hold_the_tensors(architecture: Architecture) -> None:
    rows = make_rows(architecture)
    tensors, shapes = layout_of(architecture).views(rows), permutation_spec(architecture).shapes
    nfn, dws = LayerTuples.from_rows(architecture, rows), LayerTuples.from_rows(architecture, rows, "dws")
    layers = layout_of(architecture).layers
    assert len(nfn.norms) == len(dws.norms) == (len(layers) - 1) * architecture.batch_norm
    for i, layer in enumerate(layers):
        weight, bias = (
            tensors[f"{layer}.weight"].reshape(2, *shapes[f"{layer}.weight"]),
            tensors[f"{layer}.bias"],
        )
        assert np.array_equal(nfn.weights[i], weight[:, None])
        assert np.array_equal(nfn.biases[i][:, 0], bias)
        assert np.array_equal(dws.biases[i][..., 0], bias)
        for feature, name in enumerate(
            ("weight", "bias", "running_mean", "running_var") if nfn.norms[i : i + 1] else ()
        ):
            assert np.array_equal(nfn.norms[i][:, feature], tensors[f"{layer}_norm.{name}"])
            assert np.array_equal(dws.norms[i][..., feature], tensors[f"{layer}_norm.{name}"])


@pytest.mark.parametrize("width", (None, 13 * 13))
@each_architecture
def test_dws_layers_have_one_width(architecture: Architecture, width: int | None) -> None:
    """Each kernel stands in the middle of a square, as in the graph, and a bias before zeros."""
    rows, shapes = make_rows(architecture), permutation_spec(architecture).shapes
    if width is None:
        width = Graph.from_rows(architecture, rows).edge_attr.shape[-1]
        view = LayerTuples.from_rows(architecture, rows, "dws")
    else:
        view = LayerTuples.from_rows(architecture, rows, "dws", width)
    assert {tensor.shape[-1] for tensor in (*view.weights, *view.biases)} == {width}
    assert width % 2 == 1
    side = math.isqrt(width)
    for i, layer in enumerate(layout_of(architecture).layers):
        units, inputs, *kernel = shapes[f"{layer}.weight"]
        height = (*kernel, 1)[0]
        start = (side - height) // 2
        squares = view.weights[i].swapaxes(1, 2).reshape(2, units, inputs, side, side)
        kernels = squares[..., start : start + height, start : start + height]
        tensor = layout_of(architecture).views(rows)[f"{layer}.weight"]
        assert np.array_equal(kernels.reshape(tensor.shape), tensor)
        assert np.count_nonzero(squares) == np.count_nonzero(kernels)
        assert not view.biases[i][..., 1:].any()


@each_architecture
def test_joined_norms_are_channels_of_the_biases(architecture: Architecture) -> None:
    rows = make_rows(architecture)
    apart, joined = (
        LayerTuples.from_rows(architecture, rows, norms=norms) for norms in ("apart", "channels")
    )
    dws = LayerTuples.from_rows(architecture, rows, "dws", norms="channels")
    assert joined.norms == dws.norms == ()
    channels = 5 if architecture.batch_norm else 1
    for i, (weight, bias) in enumerate(zip(joined.weights, joined.biases, strict=True)):
        assert weight.shape == (2, channels, *apart.weights[i].shape[2:])
        assert np.array_equal(weight[:, :1], apart.weights[i])
        assert not weight[:, 1:].any()
        norms = apart.norms[i] if i < len(apart.norms) else np.zeros((2, channels - 1, bias.shape[-1]))
        assert np.array_equal(bias, np.concatenate([apart.biases[i], norms], axis=1))
        assert np.array_equal(dws.biases[i][..., :channels], bias.swapaxes(1, 2))
        assert not dws.biases[i][..., channels:].any()
        assert dws.weights[i].shape[-1] == dws.biases[i].shape[-1] >= channels


def test_dws_layers_of_several_architectures_have_one_width() -> None:
    views = [
        LayerTuples.from_rows(a, make_rows(a), "dws", 169)
        for a in ARCHITECTURES.values()
        if a.image_size < 32
    ]
    assert {tensor.shape[-1] for view in views for tensor in (*view.weights, *view.biases)} == {169}


@each_architecture
def test_permuted_layer_tuples(architecture: Architecture) -> None:
    rows, permutations = make_rows(architecture), random_permutations(architecture, np.random.default_rng(7))
    permuted = permute(architecture, rows, permutations)
    before, after = (LayerTuples.from_rows(architecture, r) for r in (rows, permuted))
    dws_before, dws_after = (LayerTuples.from_rows(architecture, r, "dws") for r in (rows, permuted))
    layers = layout_of(architecture).layers
    for i, layer in enumerate(layers):
        own = permutations.get(layer, slice(None))
        inputs = permutations[layers[i - 1]] if i else slice(None)
        assert np.array_equal(after.weights[i], before.weights[i][:, :, own][:, :, :, inputs])
        assert np.array_equal(after.biases[i], before.biases[i][..., own])
        assert np.array_equal(dws_after.weights[i], dws_before.weights[i][:, inputs][:, :, own])
        assert np.array_equal(dws_after.biases[i], dws_before.biases[i][:, own])
        assert all(
            np.array_equal(a, b[..., own])
            for a, b in zip(after.norms[i : i + 1], before.norms[i : i + 1], strict=True)
        )


@each_architecture
def test_the_graph_holds_the_tensors(architecture: Architecture) -> None:
    rows = make_rows(architecture)
    view = Graph.from_rows(architecture, rows)
    layout, spec = layout_of(architecture), permutation_spec(architecture)
    tensors, side = layout.views(rows), math.isqrt(view.edge_attr.shape[-1])
    source, target = view.edge_index
    assert len({*zip(source.tolist(), target.tolist(), strict=True)}) == view.edge_index.shape[1]
    for tensor in layout.tensors:
        nodes = np.flatnonzero(view.node_layer == view.layers.index(tensor.layer))
        if tensor.role != "weight":
            assert np.array_equal(view.x[:, nodes, VECTOR_ROLES.index(tensor.role)], tensors[tensor.name])
            continue
        units, inputs, *kernel = spec.shapes[tensor.name]
        height = (*kernel, 1)[0]
        edges = (target >= nodes[0]) & (target <= nodes[-1])
        assert np.array_equal(target[edges], np.repeat(nodes, inputs))
        assert np.array_equal(source[edges], np.tile(nodes[0] - inputs + np.arange(inputs), units))
        start = (side - height) // 2
        squares = view.edge_attr[:, edges].reshape(2, units, inputs, side, side)
        kernels = squares[..., start : start + height, start : start + height]
        assert np.array_equal(kernels.reshape(tensors[tensor.name].shape), tensors[tensor.name])
        assert np.count_nonzero(squares) == np.count_nonzero(kernels)
    assert not view.x[:, : architecture.image_channels].any()


@each_architecture
def test_permuted_graphs_are_isomorphic(architecture: Architecture) -> None:
    rows, permutations = make_rows(architecture), random_permutations(architecture, np.random.default_rng(8))
    before, after = (
        Graph.from_rows(architecture, r) for r in (rows, permute(architecture, rows, permutations))
    )
    old = np.arange(before.x.shape[1])  # new node -> old node
    for layer, permutation in permutations.items():
        nodes = np.flatnonzero(before.node_layer == before.layers.index(layer))
        old[nodes] = nodes[permutation]
    edge = np.full((len(old), len(old)), -1)
    edge[tuple(before.edge_index)] = np.arange(before.edge_index.shape[1])
    moved = edge[old[after.edge_index[0]], old[after.edge_index[1]]]
    assert moved.min() == 0
    assert np.array_equal(after.x, before.x[:, old])
    assert np.array_equal(after.edge_attr, before.edge_attr[:, moved])


def test_nodes_say_what_they_are() -> None:
    view = Graph.from_rows(NORMED, make_rows(NORMED))
    counts = dict(zip(NODE_TYPES, np.bincount(view.node_type).tolist(), strict=True))
    assert counts == {"input": 3, "conv": 4 + 8 + 16, "dense": 16 + 8, "output": 10}
    assert view.layers == ("input", "conv1", "conv2", "conv3", "dense1", "dense2", "output")
    applied = view.node_activation(np.array(["elu", "tanh"], object))
    hidden = np.isin(view.node_type, (1, 2))
    assert applied.shape == (2, view.x.shape[1])
    assert [set(a[hidden].tolist()) for a in applied] == [{1}, {3}]
    assert set(applied[:, ~hidden].ravel().tolist()) == {-1}
    assert view.node_activation("relu").shape == view.node_type.shape


def test_graphs_of_several_architectures_have_edges_of_one_width() -> None:
    views = [Graph.from_rows(a, make_rows(a), 13) for a in ARCHITECTURES.values() if a.image_size < 32]
    assert {(view.x.shape[-1], view.edge_attr.shape[-1]) for view in views} == {(5, 169)}


@each_architecture
def test_tokens_hold_units(architecture: Architecture) -> None:
    rows = make_rows(architecture)
    view, tensors = Tokens.from_rows(architecture, rows, 50), layout_of(architecture).views(rows)
    assert np.array_equal(view.position[:, 0], np.arange(view.tokens.shape[1]))
    assert not view.tokens[:, ~view.mask].any()
    seen = 0
    for i, layer in enumerate(layout_of(architecture).layers):
        own = [tensors[t.name] for t in layout_of(architecture).tensors if t.layer == layer]
        for unit in range(own[0].shape[1]):
            of_unit = (view.position[:, 1:] == (i, unit)).all(axis=1)
            expected = np.concatenate([tensor[:, unit].reshape(2, -1) for tensor in own], axis=1)
            assert of_unit.sum() == math.ceil(expected.shape[1] / 50)
            assert np.array_equal(view.tokens[:, of_unit][:, view.mask[of_unit]], expected)
            seen += of_unit.sum()
    assert seen == view.tokens.shape[1]


@each_architecture
def test_permuted_tokens(architecture: Architecture) -> None:
    """A unit's tokens hold the numbers of the unit that it was; those of the first layer, whose inputs keep
    their order, are the same.
    """
    rows, permutations = make_rows(architecture), random_permutations(architecture, np.random.default_rng(9))
    # one a unit
    before, after = (
        Tokens.from_rows(architecture, r, 10_000) for r in (rows, permute(architecture, rows, permutations))
    )
    old = np.arange(before.tokens.shape[1])
    for i, layer in enumerate(layout_of(architecture).layers):
        tokens = np.flatnonzero(before.position[:, 1] == i)
        old[tokens] = tokens[permutations.get(layer, np.arange(len(tokens)))]
    assert np.array_equal(np.sort(after.tokens), np.sort(before.tokens[:, old]))
    first = before.position[:, 1] == 0
    assert np.array_equal(after.tokens[:, first], before.tokens[:, old[first]])


def test_what_is_handed_out_can_be_written_to() -> None:
    rows = make_rows(NORMED)
    for some in (rows, torch.from_numpy(rows)):
        view = Graph.from_rows(NORMED, some)
        index = view.edge_index
        index += 100
        assert Graph.from_rows(NORMED, some).edge_index.min() == 0
        assert Graph(NORMED, view.x, view.edge_attr).rows().shape == rows.shape


# Mistakes


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda rows: Graph.from_rows(NORMED, rows[:, 1:]), "rows: expected .*, found .*; give"),
        (lambda rows: Tokens.from_rows(NORMED, rows[:, 1:]), "rows: expected"),
        (lambda rows: LayerTuples.from_rows(NORMED, rows[:, 1:]), "rows: expected"),
        (lambda rows: permute(NORMED, rows[:, 1:], {}), "rows: expected"),
        (
            lambda rows: permute(NORMED, rows, {"output": np.arange(10)}),
            "hidden layers conv1, .*, found 'output'",
        ),
        (
            lambda rows: permute(NORMED, rows, {"conv1": [0, 1, 2, 2]}),
            r"permutations\['conv1'\]: expected "
            r"each of 0 .. 3 once",
        ),
        (lambda rows: permute(NORMED, rows, {"conv1": [0, 1]}), r"permutations\['conv1'\]"),
        (lambda rows: permute(NORMED, rows, {"conv1": [0.0, 1.0, 2.0, 3.0]}), r"permutations\['conv1'\]"),
        (lambda rows: LayerTuples.from_rows(NORMED, rows, "keras"), "one of nfn, dws, found 'keras'"),
        (
            lambda rows: LayerTuples.from_rows(NORMED, rows, norms="own"),
            "norms: expected one of apart, channels",
        ),
        (lambda rows: LayerTuples.from_rows(NORMED, rows, "dws", 16), "width: .* at least 9, found 16"),
        (lambda rows: LayerTuples.from_rows(NORMED, rows, "dws", 1), "width: .* at least 9, found 1"),
        (lambda rows: LayerTuples.from_rows(NORMED, rows, width=25), 'width: expected none but for "dws"'),
        (lambda rows: Graph.from_rows(NORMED, rows, 4), "an odd number of at least 3, found 4"),
        (lambda rows: Graph.from_rows(NORMED, rows, 1), "an odd number of at least 3, found 1"),
        (
            lambda rows: Graph.from_rows(NORMED, rows).node_activation("gelu"),
            "relu, elu, sigmoid, tanh, found gelu",
        ),
        (lambda rows: Graph(NORMED, rows, rows).rows(), "kernel_size|x: expected"),
        (lambda rows: Tokens.from_rows(NORMED, rows, 0), "size: expected at least 1, found 0"),
        (lambda rows: Tokens(NORMED, rows[:, None, :8]).rows(), "tokens: expected"),
        (
            lambda rows: dataclasses.replace(LayerTuples.from_rows(NORMED, rows), convention="dws").rows(),
            r"weights\[0\]: expected",
        ),
        (
            lambda rows: dataclasses.replace(LayerTuples.from_rows(NORMED, rows), norms=()).rows(),
            "norms: expected 5 tensors, found 0",
        ),
    ],
)
def test_mistakes_are_named(mistake: Callable[[np.ndarray], Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        mistake(make_rows(NORMED))
