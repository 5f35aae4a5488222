"""Other projects' code reads our rows, by the calls that docs/guides/others.md gives.

A project that cannot be imported is skipped; `scripts/test-others` installs those that are on the package
index. The others are repositories: put a checkout of one into PYTHONPATH.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nws_dataset
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import OUTPUT, layout_of
from nws_dataset.reading.zoo import Zoo
from nws_dataset.views.graph import Graph
from nws_dataset.views.permutations import (
    compose_permutations,
    inverse_permutations,
    permutation_spec,
    permute,
    random_permutations,
)
from nws_dataset.views.tokens import Tokens
from test_views import ARCHITECTURES, make_rows
from testing.zoo_factory import NORMED, PLAIN, make_zoo

pytestmark = pytest.mark.filterwarnings("default")  # what others warn of is not ours
PAGE = (Path(__file__).parent.parent / "docs" / "guides" / "others.md").read_text()
CALLS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
SMALL = {name: architecture for name, architecture in ARCHITECTURES.items() if name != "fixed"}
each_small_architecture = pytest.mark.parametrize("architecture", SMALL.values(), ids=SMALL)


def called(project: str, **names: Any) -> dict[str, Any]:
    """What the project's call assigns."""
    namespace = {name: getattr(nws_dataset, name) for name in nws_dataset.__all__} | names
    exec(CALLS[project], namespace)
    return namespace


@pytest.mark.parametrize("project", CALLS)
def test_each_call_is_code_and_has_a_test(project: str) -> None:
    compile(CALLS[project], project, "exec")
    assert f'called("{project}"' in Path(__file__).read_text()


def check_invariant(architecture: Architecture, method: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A method [N, P] -> [N, ...] in float64 gives the same for permuted rows; it tells networks apart, and
    notices when the last tensor of the hidden layers stays behind: with batch-norm, the variances.
    """
    rows = torch.from_numpy(make_rows(architecture, 3))
    sizes = permutation_spec(architecture).sizes
    rolled = permute(architecture, rows, {layer: np.roll(np.arange(n), 1) for layer, n in sizes.items()})
    shuffled = permute(architecture, rows, random_permutations(architecture, np.random.default_rng(1)))
    mixed = rolled.clone()
    tensor = next(t for t in reversed(layout_of(architecture).tensors) if t.layer != OUTPUT)
    mixed[:, tensor.offset : tensor.stop] = rows[:, tensor.offset : tensor.stop]
    with torch.no_grad():
        expected = method(rows)
        assert expected.dtype == torch.float64
        assert (method(rolled) - expected).abs().max() < 1e-9
        assert (method(shuffled) - expected).abs().max() < 1e-9
        assert (expected[0] - expected[1]).abs().max() > 1e-6
        assert (method(mixed) - expected).abs().max() > 1e-8


# NFN (Zhou et al., arXiv 2302.14040): `pip install nfn`


def neural_functional(spec: Any, channels: int, kind: str, width: int = 8) -> nn.Module:
    """An invariant network: two equivariant layers, a pool, a perceptron."""
    from nfn import layers

    linear, pool = getattr(layers, f"{kind}Linear"), getattr(layers, f"{kind}Pool")
    return nn.Sequential(
        linear(spec, channels, width),
        layers.TupleOp(nn.ReLU()),
        linear(spec, width, width),
        layers.TupleOp(nn.ReLU()),
        pool(spec),
        nn.Flatten(),
        nn.Linear(width * pool.get_num_outs(spec), 16),
        nn.ReLU(),
        nn.Linear(16, 1),
    )


def nfn_features(architecture: Architecture, weights: torch.Tensor) -> Any:
    common = pytest.importorskip("nfn.common")
    names = {"WeightSpaceFeatures": common.WeightSpaceFeatures}
    return called("NFN", architecture=architecture, weights=weights, **names)["features"]


@pytest.mark.parametrize("kind", ("NP", "HNP"))
@each_small_architecture
def test_nfn_is_invariant(architecture: Architecture, kind: str) -> None:
    features = nfn_features(architecture, torch.from_numpy(make_rows(architecture)))
    from nfn.common import network_spec_from_wsfeat

    torch.manual_seed(0)
    channels = 5 if architecture.batch_norm else 1
    network = neural_functional(network_spec_from_wsfeat(features), channels, kind).double()
    check_invariant(architecture, lambda rows: network(nfn_features(architecture, rows)))


WORKING = {
    "Pointwise": lambda layers, spec, channels: layers.Pointwise(spec, channels, 8),
    "GaussianFourierFeatureTransform": lambda layers, spec, channels: layers.GaussianFourierFeatureTransform(
        spec, channels, 4
    ),
    "IOSinusoidalEncoding": lambda layers, spec, channels: layers.IOSinusoidalEncoding(spec),
    "LearnedPosEmbedding": lambda layers, spec, channels: layers.LearnedPosEmbedding(spec, channels),
    "SimpleLayerNorm": lambda layers, spec, channels: layers.SimpleLayerNorm(spec, channels),
    "ChannelDropout": lambda layers, spec, channels: layers.ChannelDropout(0.5),
    "ChannelLayerNorm": lambda layers, spec, channels: layers.TupleOp(layers.ChannelLayerNorm(channels)),
    "NPAttention": lambda layers, spec, channels: layers.NPAttention(
        spec, channels, num_heads=1, share_projections=False
    ),
    "StatFeaturizer": lambda layers, spec, channels: layers.StatFeaturizer(),
}
FAULTY = {
    "ParamLayerNorm": lambda layers, spec, channels: layers.ParamLayerNorm(spec, channels),
    "FlattenWeights": lambda layers, spec, channels: layers.FlattenWeights(spec),
    "CrossAttnEncoder": lambda layers, spec, channels: layers.CrossAttnEncoder(spec, channels, 4),
}


@pytest.mark.parametrize("name", [*WORKING, *FAULTY])
def test_other_layers_of_nfn(name: str) -> None:
    """What the table says of them, faults included: when one is mended, the table is to be changed."""
    features = nfn_features(NORMED, torch.from_numpy(make_rows(NORMED)).float())
    from nfn import layers
    from nfn.common import network_spec_from_wsfeat

    spec = network_spec_from_wsfeat(features)
    if name in WORKING:
        WORKING[name](layers, spec, 5)(features)
    else:
        with pytest.raises(RuntimeError):
            FAULTY[name](layers, spec, 5)(features)


def test_faults_of_nfn_that_not_every_network_shows() -> None:
    features = nfn_features(NORMED, torch.from_numpy(make_rows(NORMED)))
    from nfn import layers
    from nfn.common import network_spec_from_wsfeat

    with pytest.raises(RuntimeError, match="same dtype"):
        layers.StatFeaturizer()(features)  # in float64
    architecture = ARCHITECTURES["flatten_to_outputs"]
    features = nfn_features(architecture, torch.from_numpy(make_rows(architecture)))
    with pytest.raises(RuntimeError, match="must match the size"):
        layers.IOSinusoidalEncoding(network_spec_from_wsfeat(features))(features)


def test_nfn_trains_on_norms() -> None:
    """It learns what only batch-norm's numbers tell: how large a network's variances are."""
    rows = torch.from_numpy(make_rows(NORMED, 96)).float()
    target = torch.from_numpy(np.random.default_rng(3).uniform(-1, 1, 96)).float()
    for tensor in layout_of(NORMED).tensors:
        if tensor.role == "norm_variance":
            rows[:, tensor.offset : tensor.stop] *= torch.exp(target)[:, None]
    features = nfn_features(NORMED, rows[:64])
    from nfn.common import network_spec_from_wsfeat

    torch.manual_seed(0)
    network = neural_functional(network_spec_from_wsfeat(features), 5, "NP")
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        ((network(features)[:, 0] - target[:64]) ** 2).mean().backward()
        optimizer.step()
    with torch.no_grad():
        error = ((network(nfn_features(NORMED, rows[64:]))[:, 0] - target[64:]) ** 2).mean()
    assert error < 0.2 * target[64:].var()


# PyTorch Geometric: `pip install torch_geometric`


def geometric() -> dict[str, Any]:
    data = pytest.importorskip("torch_geometric.data")
    return {"Data": data.Data, "Batch": data.Batch}


@each_small_architecture
def test_gineconv_is_invariant(architecture: Architecture) -> None:
    names = geometric()
    from torch_geometric.nn import GINEConv, global_mean_pool

    torch.manual_seed(0)
    width = Graph.from_rows(architecture, make_rows(architecture)).edge_attr.shape[-1]
    enter, leave = nn.Linear(5, 16).double(), nn.Linear(16, 1).double()
    convolutions = [
        GINEConv(nn.Sequential(nn.Linear(16, 16), nn.ReLU()), edge_dim=width).double() for _ in range(2)
    ]

    def method(rows: torch.Tensor) -> torch.Tensor:
        batch = called("PyTorch Geometric", architecture=architecture, weights=rows, **names)["batch"]
        assert batch.validate()
        x = enter(batch.x)
        for convolution in convolutions:
            x = convolution(x, batch.edge_index, batch.edge_attr)
        return leave(global_mean_pool(x, batch.batch))

    check_invariant(architecture, method)


# WeightWatcher (Martin and Mahoney): `pip install weightwatcher`


def test_weightwatcher_reads_networks(tmp_path: Path) -> None:
    package = pytest.importorskip("weightwatcher")
    zoo = Zoo(make_zoo(tmp_path / "nws"))
    snapshots = zoo.filter(is_final=True)
    names = {"WeightWatcher": package.WeightWatcher, "zoo": zoo, "snapshots": snapshots}
    details = called("WeightWatcher", **names)["details"]
    layers = zoo.layout(snapshots[0]).layers
    assert details["longname"].tolist() == list(layers)
    weights = {layer: zoo.state_dict(snapshots[0])[f"{layer}.weight"] for layer in layers}
    for layer, rank in zip(layers, details["stable_rank"], strict=True):
        weight = weights[layer]
        if weight.ndim == 2:  # of a convolution it takes the position of the kernel that it finds first
            spectrum = torch.linalg.svdvals(weight.double())
            assert rank == pytest.approx(float((spectrum**2).sum() / spectrum.max() ** 2), rel=1e-4)


# DWSNets (Navon et al., arXiv 2301.12780)


@each_small_architecture
def test_dwsnets_is_invariant(architecture: Architecture) -> None:
    models = pytest.importorskip("nn.models", reason="no checkout of DWSNets in PYTHONPATH")

    def inputs(rows: torch.Tensor) -> Any:
        return called("DWSNets", architecture=architecture, weights=rows)["inputs"]

    weights, biases = inputs(torch.from_numpy(make_rows(architecture)))
    torch.manual_seed(0)
    model = models.DWSModelForClassification(
        weight_shapes=tuple(weight.shape[1:3] for weight in weights),
        bias_shapes=tuple(bias.shape[1:2] for bias in biases),
        input_features=weights[0].shape[-1],
        hidden_dim=8,
        set_layer="ds",
    ).double()
    check_invariant(architecture, lambda rows: model(inputs(rows)))


# neural-graphs (Kofinas et al., arXiv 2403.12143)


@pytest.mark.parametrize("linear_as_conv", (False, True))
def test_neural_graphs_constructs_our_graphs(linear_as_conv: bool) -> None:
    names = geometric()
    constructor = pytest.importorskip(
        "nn.dynamic_graph_constructor", reason="no checkout of neural-graphs in PYTHONPATH"
    )
    torch.manual_seed(0)
    model = constructor.GraphConstructor(
        d_in=1,
        d_edge_in=9,
        d_node=8,
        d_edge=8,
        d_out=1,
        max_num_hidden_layers=3,
        input_channels=PLAIN.image_channels,
        linear_as_conv=linear_as_conv,
        flattening_method=None,
    ).double()

    def method(rows: torch.Tensor) -> torch.Tensor:
        names["linear_as_conv"] = linear_as_conv
        batch = called("neural-graphs", architecture=PLAIN, weights=rows, **names)["batch"]
        nodes, edges, mask, node_mask = model(batch)
        assert node_mask.all()
        assert mask.sum() == batch.edge_index.shape[1]
        message = (edges.relu() * mask * nodes.relu()[:, :, None]).sum(dim=1)
        return (nodes + message).relu().mean(dim=1)

    check_invariant(PLAIN, method)


# ScaleGMN (Kalogeropoulos et al., arXiv 2406.10685)


@pytest.mark.parametrize("direction", ("forward", "bidirectional"))
@pytest.mark.parametrize("activation", ("relu", "tanh"))
def test_scalegmn_is_invariant(activation: str, direction: str) -> None:
    names = geometric()
    models = pytest.importorskip("src.scalegmn.models", reason="no checkout of ScaleGMN in PYTHONPATH")
    torch.manual_seed(0)
    model = models.ScaleGMN(scalegmn_arguments(direction)).double().eval()

    def method(rows: torch.Tensor) -> torch.Tensor:
        names["activation"] = activation
        return model(called("ScaleGMN", architecture=PLAIN, weights=rows, **names)["batch"])

    check_invariant(PLAIN, method)
    # its own symmetry too, a hidden unit's sign or scale; in both directions it keeps the sign alone
    if (activation, direction) != ("relu", "bidirectional"):
        scale = 3.0 if activation == "relu" else -1.0
        rows = torch.from_numpy(make_rows(PLAIN))
        scaled = rows.clone()
        tensors = layout_of(PLAIN).views(scaled)
        tensors["conv1.weight"][:, 1] *= scale
        tensors["conv1.bias"][:, 1] *= scale
        tensors["conv2.weight"][:, :, 1] /= scale
        with torch.no_grad():
            assert (method(scaled) - method(rows)).abs().max() < 1e-9


def scalegmn_arguments(direction: str, width: int = 8) -> dict[str, Any]:
    """Those of its configuration for the Small CNN Zoo, but narrower."""
    return {
        "d_in_v": 1,
        "d_in_e": 1,
        "d_hid": width,
        "num_layers": 2,
        "direction": direction,
        "equivariant": False,
        "symmetry": "hetero",
        "jit": False,
        "compile": False,
        "readout_range": "last_layer" if direction == "bidirectional" else "full_graph",
        "gnn_skip_connections": True,
        "concat_mlp_directions": False,
        "reciprocal": True,
        "node_pos_embed": True,
        "edge_pos_embed": False,
        "_max_kernel_height": 3,
        "_max_kernel_width": 3,
        "layer_layout": [PLAIN.image_channels, *PLAIN.conv_widths, PLAIN.num_outputs],
        "graph_init": {
            "d_in_v": 1,
            "d_in_e": 1,
            "project_node_feats": True,
            "project_edge_feats": True,
            "d_node": width,
            "d_edge": width,
        },
        "positional_encodings": {
            "final_linear_pos_embed": False,
            "sum_pos_enc": False,
            "po_as_different_linear": False,
            "equiv_net": False,
            "sum_on_io": True,
            "equiv_on_hidden": True,
            "num_mlps": 3,
            "layer_equiv_on_hidden": False,
        },
        "gnn_args": {
            "d_hid": width,
            "message_fn_layers": 1,
            "message_fn_skip_connections": False,
            "update_node_feats_fn_layers": 1,
            "update_node_feats_fn_skip_connections": False,
            "update_edge_attr": True,
            "dropout": 0.0,
            "dropout_all": False,
            "update_as_act": False,
            "update_as_act_arg": "sum",
            "mlp_on_io": True,
            "msg_equiv_on_hidden": True,
            "upd_equiv_on_hidden": True,
            "layer_msg_equiv_on_hidden": False,
            "layer_upd_equiv_on_hidden": False,
            "msg_num_mlps": 2,
            "upd_num_mlps": 2,
            "pos_embed_msg": False,
            "pos_embed_upd": False,
            "layer_norm": False,
            "aggregator": "add",
            "sign_symmetrization": True,
        },
        "mlp_args": {
            "d_k": [width],
            "activation": "silu",
            "dropout": 0.0,
            "final_activation": "identity",
            "batch_norm": False,
            "layer_norm": True,
            "bias": True,
            "skip": False,
        },
        "readout_args": {"d_out": 1, "d_rho": width},
    }


# SANE (Schürholt et al., arXiv 2406.09997)


@pytest.mark.parametrize("size", (7, 288))
@pytest.mark.parametrize("architecture", (PLAIN, NORMED))
def test_sane_cuts_the_same_tokens(architecture: Architecture, size: int) -> None:
    sane = pytest.importorskip(
        "SANE.datasets.dataset_auxiliaries", reason="no checkout of SANE in PYTHONPATH"
    )
    weights = torch.from_numpy(make_rows(architecture)).float()
    for batch_norm, ignore_bn in (("own", False), ("none", True)):
        view = Tokens.from_rows(architecture, weights, size, batch_norm)
        names = {
            "architecture": architecture,
            "weights": weights,
            "tokenize_checkpoint": sane.tokenize_checkpoint,
            "size": size,
            "ignore_bn": ignore_bn,
        }
        found = called("SANE", **names)
        assert torch.equal(found["tokens"], view.tokens[0])
        assert torch.equal(found["mask"], view.mask)
        assert torch.equal(found["position"].long(), view.position)
        checkpoint = nws_dataset.sane_state_dict(architecture, weights[0])
        back = sane.tokens_to_checkpoint(view.tokens[0], view.position, checkpoint, ignore_bn)
        assert torch.equal(torch.cat([tensor.reshape(-1) for tensor in back.values()]), weights[0])


# Git Re-Basin (Ainsworth et al., arXiv 2209.04836)


@pytest.mark.parametrize("architecture", (PLAIN, NORMED))
def test_git_re_basin_finds_a_permutation(architecture: Architecture) -> None:
    matching = pytest.importorskip(
        "weight_matching",
        reason="no checkout of Git Re-Basin in PYTHONPATH, or not the jax that it needs",
        exc_type=ImportError,
    )
    from jax import numpy as jnp
    from jax import random

    (row,) = make_rows(architecture, 1)
    shuffle = random_permutations(architecture, np.random.default_rng(5))
    names = {
        "architecture": architecture,
        "weight_matching": matching.weight_matching,
        "jnp": jnp,
        "key": random.PRNGKey(0),
        "row": row,
        "other": permute(architecture, row, shuffle),
    }
    found = {name: np.asarray(p) for name, p in called("Git Re-Basin", **names)["permutations"].items()}
    both = compose_permutations(shuffle, found)
    assert all(np.array_equal(p, np.arange(len(p))) for p in both.values())
    assert found.keys() == permutation_spec(architecture).sizes.keys()
    assert all(
        np.array_equal(p, q)
        for p, q in zip(found.values(), inverse_permutations(shuffle).values(), strict=True)
    )
