"""The forms in which other projects take networks, written anew from what is published of them, network by
network and number by number; what the views give is compared with that. `test_others.py` runs the projects.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from nws_dataset.errors import ZooError
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import OUTPUT, layout_of
from nws_dataset.views.graph import Graph
from nws_dataset.views.layer_tuples import LayerTuples
from nws_dataset.views.permutations import permutation_spec, permute, random_permutations
from nws_dataset.views.tokens import Tokens, sane_state_dict
from test_views import ARCHITECTURES, each_architecture, make_rows
from testing.zoo_factory import NORMED, PLAIN

# SANE (Schürholt et al., arXiv 2406.09997): a checkpoint in its order; of each weight, with the bias of its
# name, and of each running mean and variance one channel after the other, cut into tokens.


def sane_tokens(
    checkpoint: dict[str, np.ndarray], size: int, ignore_bn: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens, masks, positions, layer = [], [], [], 0
    for name, tensor in checkpoint.items():
        *_, kind = name.split(".")
        if kind not in ("weight", "running_mean", "running_var") or (ignore_bn and "bn" in name):
            continue
        for channel in range(len(tensor)):
            numbers = tensor[channel].ravel().tolist()
            if kind == "weight":
                numbers.append(checkpoint[name.replace("weight", "bias")][channel])
            for start in range(0, len(numbers), size):
                part = numbers[start : start + size]
                tokens.append(part + [0.0] * (size - len(part)))
                masks.append([True] * len(part) + [False] * (size - len(part)))
                positions.append([len(positions), layer, channel])
        layer += 1
    return np.array(tokens), np.array(masks), np.array(positions)


@pytest.mark.parametrize("size", (7, 288))
@pytest.mark.parametrize("batch_norm", ("own", "none"))
@each_architecture
def test_tokens_as_sane_has_them(architecture: Architecture, batch_norm: str, size: int) -> None:
    (row,) = make_rows(architecture, 1)
    checkpoint = sane_state_dict(architecture, row)
    expected = sane_tokens(checkpoint, size, ignore_bn=batch_norm == "none")
    view = Tokens.from_rows(architecture, row, size, batch_norm=batch_norm)
    for found, wanted in zip((view.tokens, view.mask, view.position), expected, strict=True):
        assert np.array_equal(found, wanted)


@each_architecture
def test_sanes_names_tell_batch_norm(architecture: Architecture) -> None:
    (row,) = make_rows(architecture, 1)
    named = sane_state_dict(architecture, row)
    tensors = layout_of(architecture).tensors
    assert [("bn" in name) for name in named] == [tensor.role.startswith("norm") for tensor in tensors]
    assert np.array_equal(np.concatenate([tensor.ravel() for tensor in named.values()]), row)
    assert all(np.shares_memory(tensor, row) for tensor in named.values())


@each_architecture
def test_tokens_without_batch_norm_turn_back_with_it(architecture: Architecture) -> None:
    rows = make_rows(architecture)
    for some in (rows, rows[0], rows[:0], torch.from_numpy(rows)):
        view = Tokens.from_rows(architecture, some, batch_norm="none")
        if architecture.batch_norm:
            norms = LayerTuples.from_rows(architecture, some).norms
            back = view.rows(norms)
            with pytest.raises(ZooError, match=rf"norms: expected {len(norms)} arrays.*found none"):
                view.rows()
            with pytest.raises(ZooError, match=rf"norms: expected {len(norms)} arrays.*found 1; give Layer"):
                view.rows(norms[:1])
        else:
            back = view.rows()
            with pytest.raises(ZooError, match="norms: expected none, found 0; leave it out"):
                view.rows(())
        assert type(back) is type(some)
        assert (back == some).all()


def test_norms_of_other_networks_are_refused() -> None:
    rows = make_rows(NORMED)
    view = Tokens.from_rows(NORMED, rows, batch_norm="none")
    with pytest.raises(ZooError, match=r"norms\[0\]: expected the leading axes \[2\] of tokens, found \[1\]"):
        view.rows(LayerTuples.from_rows(NORMED, rows[:1]).norms)
    with pytest.raises(ZooError, match=r"norms\[0\]: expected \[..., 4, 4\]"):
        view.rows([norm[..., 1:] for norm in LayerTuples.from_rows(NORMED, rows).norms])
    with pytest.raises(ZooError, match="batch_norm: expected one of unit, own, none, found 'all'"):
        Tokens.from_rows(NORMED, rows, batch_norm="all")


# neural-graphs (Kofinas et al., arXiv 2403.12143) and ScaleGMN (Kalogeropoulos et al., arXiv 2406.10685):
# nodes layer by layer; an edge of each input of a layer to each unit of it, in the order in which an
# adjacency matrix lists them, row by row.


def graph_fields(architecture: Architecture, row: np.ndarray, side: int, dense_first: bool) -> dict[str, Any]:
    tensors, shapes = layout_of(architecture).views(row), permutation_spec(architecture).shapes
    layers = layout_of(architecture).layers
    weights = [tensors[f"{layer}.weight"].reshape(shapes[f"{layer}.weight"]) for layer in layers]
    sizes = [weights[0].shape[1], *(len(weight) for weight in weights)]
    biases = [0.0] * sizes[0] + [number for layer in layers for number in tensors[f"{layer}.bias"]]
    adjacency = np.zeros((sum(sizes), sum(sizes)), bool)
    squares, is_dense = {}, {}
    start = 0
    for inputs, weight in zip(sizes, weights, strict=False):
        for unit, source in np.ndindex(weight.shape[:2]):
            edge = (start + source, start + inputs + unit)
            adjacency[edge] = True
            square = np.zeros((side, side))
            if weight.ndim == 2:
                square[(0, 0) if dense_first else (side // 2, side // 2)] = weight[unit, source]
            else:
                before, height = (side - weight.shape[-1]) // 2, weight.shape[-1]
                square[before : before + height, before : before + height] = weight[unit, source]
            squares[edge], is_dense[edge] = square.ravel(), weight.ndim == 2
        start += inputs
    edges = list(zip(*adjacency.nonzero(), strict=True))
    kernels = [int(weight.ndim == 4) for weight in weights]
    last = max(i for i, has_kernel in enumerate(kernels) if has_kernel)
    layer_of_node = np.repeat(np.arange(len(sizes)), sizes)
    return {
        "x": np.array(biases)[:, None],
        "edge_index": np.array(edges).T,
        "edge_attr": np.array([squares[edge] for edge in edges]),
        "mlp_edge_masks": np.array([is_dense[edge] for edge in edges]),
        "node_types": np.array([0 if layer == 0 or kernels[layer - 1] else 1 for layer in layer_of_node]),
        "spatial_embed_mask": layer_of_node == last + 1,
        "conv_mask": kernels,
        "layer_layout": sizes,
        "fmap_size": 1,
    }


def scalegmn_fields(sizes: list[int], edges: np.ndarray) -> dict[str, Any]:
    inputs, *hidden, outputs = sizes
    nodes = [*range(inputs)]
    for i, units in enumerate(hidden):
        nodes += [inputs + i] * units
    nodes += [inputs + len(hidden) + i for i in range(outputs)]
    first_output = sum(sizes) - outputs
    edge_types = []
    for source, target in edges.T.tolist():
        if source < inputs:
            edge_types.append(source)
        elif target < first_output:
            edge_types.append(inputs + nodes[target] - inputs - 1)
        else:
            edge_types.append(inputs + len(hidden) - 1 + target - first_output)
    is_hidden = [False] * inputs + [True] * sum(hidden) + [False] * outputs
    is_input = [True] * inputs + [False] * (sum(sizes) - inputs)
    return {
        "bw_edge_index": edges[::-1],
        "mask_hidden": np.array(is_hidden)[:, None],
        "mask_first_layer": np.array(is_input)[:, None],
        "node2type": np.array(nodes),
        "edge2type": np.array(edge_types),
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        if isinstance(wanted, np.ndarray):
            assert found[name].dtype == wanted.dtype, name
            assert np.array_equal(found[name], wanted), name
        else:
            assert type(found[name]) is type(wanted), name
            assert found[name] == wanted, name


@pytest.mark.parametrize("side", (None, 13))
@each_architecture
def test_the_graphs_of_neural_graphs_and_scalegmn(architecture: Architecture, side: int | None) -> None:
    rows = make_rows(architecture)
    view = Graph.from_rows(architecture, rows, side)
    side = math.isqrt(view.edge_attr.shape[-1])
    for linear_as_conv in (False, True):
        fields = view.to_neural_graphs(["relu", "tanh"], linear_as_conv=linear_as_conv)
        for row, found, name in zip(rows, fields, ("relu", "tanh"), strict=True):
            expected = graph_fields(architecture, row, side, dense_first=not linear_as_conv)
            if architecture.batch_norm:
                assert np.array_equal(found.pop("x")[:, :1], expected.pop("x"))
            hidden = len(layout_of(architecture).layers) - 1
            assert_same(found, {**expected, "activations": [name] * hidden})
    for row, found, name in zip(rows, view.to_scalegmn(["relu", "tanh"]), ("relu", "tanh"), strict=True):
        expected = graph_fields(architecture, row, side, dense_first=True)
        expected |= scalegmn_fields(expected["layer_layout"], expected["edge_index"])
        if architecture.batch_norm:
            assert np.array_equal(found.pop("x"), view.x[0 if name == "relu" else 1])
            del expected["x"]
        assert_same(found, {**expected, "sign_mask": name == "tanh"})


def test_one_name_serves_all_networks_and_none_leaves_activations_out() -> None:
    view = Graph.from_rows(PLAIN, make_rows(PLAIN, 3))
    assert [fields["sign_mask"] for fields in view.to_scalegmn("tanh")] == [True] * 3
    assert ["activations" in fields for fields in view.to_neural_graphs()] == [False] * 3
    assert [len(fields["activations"]) for fields in view.to_neural_graphs("elu")] == [3] * 3
    (single,) = Graph.from_rows(PLAIN, make_rows(PLAIN, 1)[0]).to_scalegmn("relu")
    assert single["x"].ndim == 2


def test_lists_are_each_networks_own() -> None:
    """neural-graphs writes into them."""
    one, other = Graph.from_rows(PLAIN, make_rows(PLAIN)).to_neural_graphs()
    one["layer_layout"].insert(0, 5)
    one["conv_mask"][0] = 7
    assert other["layer_layout"][0] == PLAIN.image_channels
    assert other["conv_mask"][0] == 1


def test_fields_are_tensors_where_the_view_has_tensors() -> None:
    rows = torch.from_numpy(make_rows(NORMED)).requires_grad_()
    (fields, _), (expected, _) = (
        Graph.from_rows(NORMED, r).to_scalegmn("relu") for r in (rows, rows.detach().numpy())
    )
    for name, wanted in expected.items():
        if isinstance(wanted, np.ndarray):
            assert isinstance(fields[name], torch.Tensor)
            assert np.array_equal(fields[name].detach().numpy(), wanted)
    weights = torch.arange(fields["edge_attr"].numel(), dtype=torch.float64)
    (fields["edge_attr"].reshape(-1) * weights).sum().backward()
    assert rows.grad is not None
    assert rows.grad[0].any()
    assert not rows.grad[1].any()
    meta = Graph.from_rows(NORMED, torch.empty(2, rows.shape[1], device="meta")).to_scalegmn("relu")[0]
    assert {tensor.device.type for tensor in meta.values() if isinstance(tensor, torch.Tensor)} == {"meta"}


@each_architecture
def test_permuted_fields_are_the_same_graph(architecture: Architecture) -> None:
    """A hidden layer's nodes change places; what is said of them does not change."""
    rows, permutations = (
        make_rows(architecture, 1),
        random_permutations(architecture, np.random.default_rng(8)),
    )
    before, after = (
        Graph.from_rows(architecture, r).to_scalegmn("relu")[0]
        for r in (rows, permute(architecture, rows, permutations))
    )
    old, start = np.arange(len(before["x"])), architecture.image_channels
    for layer in layout_of(architecture).layers:
        units = len(layout_of(architecture).views(rows)[f"{layer}.bias"][0])
        if layer != OUTPUT:
            old[start : start + units] = start + permutations[layer]
        start += units
    edge = {tuple(pair): i for i, pair in enumerate(before["edge_index"].T.tolist())}
    moved = [edge[tuple(pair)] for pair in old[after["edge_index"]].T.tolist()]
    assert np.array_equal(after["x"], before["x"][old])
    for name in ("edge_attr", "mlp_edge_masks", "edge2type"):
        assert np.array_equal(after[name], before[name][moved]), name
    for name in ("node_types", "mask_hidden", "mask_first_layer", "node2type", "spatial_embed_mask"):
        assert np.array_equal(after[name], before[name][old]), name


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("elu", "activation: expected some of tanh, relu, sine, found elu; filter"),
        (["relu", "gelu"], "activation: expected some of relu, elu, sigmoid, tanh, found gelu; give the col"),
        (["relu"], "activation: expected a name, or 2 of them, found 1; give the column"),
    ],
)
def test_mistakes_in_activations_are_named(activation: Any, message: str) -> None:
    view = Graph.from_rows(NORMED, make_rows(NORMED))
    with pytest.raises(ZooError, match=message):
        view.to_scalegmn(activation)
    if activation != "elu":
        with pytest.raises(ZooError, match=message):
            view.to_neural_graphs(activation)


def test_edges_of_several_architectures_have_one_width() -> None:
    views = [Graph.from_rows(a, make_rows(a), 13) for a in ARCHITECTURES.values() if a.image_size < 32]
    widths = {fields["edge_attr"].shape[-1] for view in views for fields in view.to_scalegmn("relu")}
    assert widths == {169}
