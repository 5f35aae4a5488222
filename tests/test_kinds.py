"""Kinds of networks: everything derives from a kind's architecture, of ours and of one made up here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from builder import build as build_module
from builder import gallery
from builder.checks import Verifier, checks
from builder.images import load_image_set
from builder.plan import Request, select
from builder.training.bank import bank_of
from builder.training.initial import initial_row
from nws_dataset import (
    Graph,
    LayerTuples,
    Networks,
    Tokens,
    Zoo,
    layout_of,
    permutation_spec,
    permute,
    random_permutations,
)
from nws_dataset.baselines.predictors import GradientBoosting
from nws_dataset.errors import ZooError
from nws_dataset.experiments import leaderboard
from nws_dataset.format.shards import header, pack, pack_scores, unpack
from nws_dataset.format.subsets import PRESETS, SUBSETS, Cycle, LogUniform, Subset
from nws_dataset.networks import KINDS, architecture_from_json, cnn, columns_of, kan, resnet, siren
from nws_dataset.networks.base import BaseArchitecture, Draw, PlainNetwork
from nws_dataset.networks.layout import INPUT, OUTPUT, TensorSpec
from nws_dataset.networks.network import Network, coordinates
from nws_dataset.views.slices import RandomUnits
from nws_dataset.views.statistics import STATISTICS, statistics, zoo_features
from test_leaderboard import REGRESSOR
from test_statistics import plain_statistics

CPU = torch.device("cpu")
KAN_CLASSIFIER = kan.Architecture(reads="images", image_size=14, depth_hidden=1, pixel_min=-1)
ARCHITECTURES: dict[str, BaseArchitecture] = {
    "cnn": cnn.Architecture(filter_size=3, width_conv=4, width_fc=16, image_size=16),
    "siren": siren.Architecture(),
    "siren_nfn": siren.Architecture(image_channels=3, image_size=32, output_offset=0.0, pixel_min=-1),
    "kan_inr": kan.Architecture(image_channels=3),
    "kan": KAN_CLASSIFIER,
    "resnet": resnet.Architecture(),
}
# SHA-256 of the value of a preset's first model before training: only a new version of the format changes it
GOLDEN = {
    "siren": "1e175e7b22f777df65067ae132abb77065994183c18c93cb7a9d1a13eca988f1",
    "siren_nfn": "614cb1750a1ff3c2777917577582ad45b4fa1548979e5379ebb90bdfad77f6bd",
    "kan_inr": "f00f1409b1672b6fcc24a285552a7f32b77034bbbcb903626862241bd641b498",
    "kan": "399a5a02e3d4e191209325bbc52913c4b769d8c01e51a854dc14778c15725733",
    "resnet": "8ea324e284aab91900a42b288cc7252dc19e8be4c8d4559933c676a26e9a4da0",
}
GOLDEN_SCORES = (
    "9baae04fc7abe116ea9680b17dad489534351f658520d62033e955bdaa5d54c2"  # of a kan that classifies, 0, 1, ...
)
RESNET_TENSORS = [
    *("conv1.weight", "ln1.weight", "ln1.bias"),
    *("layer1.0.conv1.weight", "layer1.0.ln1.weight", "layer1.0.ln1.bias"),
    *("layer1.0.conv2.weight", "layer1.0.ln2.weight", "layer1.0.ln2.bias"),
    *("layer2.0.conv1.weight", "layer2.0.ln1.weight", "layer2.0.ln1.bias"),
    *("layer2.0.conv2.weight", "layer2.0.ln2.weight", "layer2.0.ln2.bias"),
    *("layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.weight", "layer2.0.shortcut.1.bias"),
    *("layer3.0.conv1.weight", "layer3.0.ln1.weight", "layer3.0.ln1.bias"),
    *("layer3.0.conv2.weight", "layer3.0.ln2.weight", "layer3.0.ln2.bias"),
    *("layer3.0.shortcut.0.weight", "layer3.0.shortcut.1.weight", "layer3.0.shortcut.1.bias"),
    *("output.weight", "output.bias"),
]


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> BaseArchitecture:
    return ARCHITECTURES[request.param]


def inputs_of(architecture: BaseArchitecture, count: int = 4) -> torch.Tensor:
    if architecture.reads == "coordinates":
        return coordinates(architecture, torch.float64)
    torch.manual_seed(0)
    size = architecture.image_size
    return torch.rand(count, architecture.image_channels, size, size, dtype=torch.float64)


def random_rows(architecture: BaseArchitecture, count: int = 3) -> torch.Tensor:
    """Rows of networks with numbers in a plain range; positive where variances stand."""
    torch.manual_seed(1)
    layout = layout_of(architecture)
    rows = torch.randn(count, layout.num_weights, dtype=torch.float64) * 0.1
    for spec in layout.tensors:
        if spec.role == "norm_variance":
            rows[:, spec.offset : spec.stop] = 1.0
    return rows


def outputs(architecture: BaseArchitecture, row: torch.Tensor) -> torch.Tensor:
    network = Network(architecture, architecture.activations[0]).double().load_row(row).eval()
    with torch.no_grad():
        return network(inputs_of(architecture))


def test_published_sizes() -> None:
    sizes = {
        siren.Architecture(): (1185, 6),
        siren.Architecture(image_channels=3, image_size=32): (1251, 6),
        kan.Architecture(): (11_200, 9),
        kan.Architecture(image_channels=3, image_size=32): (11_840, 9),
        KAN_CLASSIFIER: (65_920, 6),
        resnet.Architecture(): (78_042, 29),
        resnet.Architecture(width_conv=14): (59_944, 29),
    }
    for architecture, (weights, tensors) in sizes.items():
        layout = layout_of(architecture)
        assert (layout.num_weights, len(layout.tensors)) == (weights, tensors), architecture.id


def test_resnet_is_that_of_its_authors() -> None:
    assert [spec.name for spec in layout_of(resnet.Architecture()).tensors] == RESNET_TENSORS
    assert list(Network(resnet.Architecture()).state_dict()) == RESNET_TENSORS


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name: str) -> None:
    (model,) = select(SUBSETS[name], 0, models=1)
    value = pack(model.recipe.architecture, initial_row(model))
    assert hashlib.sha256(value).hexdigest() == GOLDEN[name]


def test_golden_bytes_of_edge_scores() -> None:
    scores = np.arange(6592, dtype=np.float32)
    found = hashlib.sha256(pack_scores(KAN_CLASSIFIER, scores)).hexdigest()
    assert found == GOLDEN_SCORES


def test_the_state_dict_is_the_row(architecture: BaseArchitecture) -> None:
    network = Network(architecture, architecture.activations[0])
    layout = layout_of(architecture)
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items() if "num_batches" not in name}
    assert shapes == {spec.name: spec.shape for spec in layout.tensors}
    row = random_rows(architecture)[0].float()
    assert torch.equal(network.load_row(row).row(), row)
    assert np.array_equal(unpack(architecture, pack(architecture, row.numpy())), row.numpy())
    assert architecture.id in header(architecture).decode(errors="replace")


def test_json_and_columns(architecture: BaseArchitecture) -> None:
    assert architecture_from_json(architecture.to_json()) == architecture
    columns = columns_of(architecture)
    assert columns["kind"] == architecture.kind
    others = {name for kind in KINDS.values() for name in kind.__dataclass_fields__} - {
        *architecture.__dataclass_fields__
    }
    assert all(columns[name] is None for name in others)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "transformer"}, "one of cnn, siren, kan, resnet"),
        ({"kind": ["siren"]}, "one of cnn"),
        ({"kind": "siren", "filter_size": 3}, "the fields of Architecture"),
        ({"kind": "siren", "width_hidden": 10**9}, "width_hidden: expected 1 to"),
        ({"kind": "siren", "depth_hidden": 300, "width_hidden": 65536}, "at most 4294967296 weights"),
        ({"kind": "siren", "image_channels": 2}, "one of 1, 3"),
        ({"kind": "siren", "frequency_first": "30"}, "expected float"),
        ({"kind": "kan", "reads": "sounds"}, "one of coordinates, images"),
        ({"kind": "kan", "grid": 10**12}, "grid: expected 1 to"),
        ({"kind": "kan", "grid_min": 1.0, "grid_max": 1.0}, "more than grid_min"),
        ({"kind": "resnet", "width_conv": 0}, "width_conv: expected 1 to"),
    ],
)
def test_bad_architectures_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        layout_of(architecture_from_json(json.dumps(fields)))


def test_permuted_networks_compute_the_same(architecture: BaseArchitecture) -> None:
    (row,) = random_rows(architecture, 1)
    permutations = random_permutations(architecture, np.random.default_rng(0))
    assert permutations
    permuted = permute(architecture, row, permutations)
    assert not torch.equal(permuted, row)
    torch.testing.assert_close(outputs(architecture, permuted), outputs(architecture, row), rtol=0, atol=1e-9)


def test_views_turn_back(architecture: BaseArchitecture) -> None:
    rows = random_rows(architecture)
    views: list[Any] = [Graph, Tokens]
    if architecture.kind in ("cnn", "siren"):
        views.append(LayerTuples)
    else:
        with pytest.raises(ZooError, match="layers of a weight and a bias"):
            LayerTuples.from_rows(architecture, rows)
    for view in views:
        assert torch.equal(view.from_rows(architecture, rows).rows(), rows), view


def test_statistics_are_numpys(architecture: BaseArchitecture) -> None:
    rows, layout = random_rows(architecture).float().numpy(), layout_of(architecture)
    features, names = statistics(rows, layout)
    for row, found in zip(rows, features, strict=True):
        expected = [s for tensor in layout.views(row).values() for s in plain_statistics(tensor)]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert names == [f"{spec.name}.{statistic}" for spec in layout.tensors for statistic in STATISTICS]


def test_random_units_are_weights_of_the_row(architecture: BaseArchitecture) -> None:
    """Of each tensor some, each at most once; another order each time."""
    count = layout_of(architecture).num_weights
    units = RandomUnits([np.arange(1, count + 1, dtype=np.float32)], [architecture], count // 2, seed=0)
    one, other = (units.slices(np.array([0]), np.array([0]), int(units.lengths[0]))[0] for _ in range(2))
    assert len(one) <= count // 2 and len(set(one.tolist())) == len(one) and one.min() >= 1
    tensors = [
        np.isin(one, np.arange(spec.offset, spec.stop) + 1).any() for spec in layout_of(architecture).tensors
    ]
    assert all(tensors) and not np.array_equal(one, other)


def test_a_stage_of_a_resnet_is_one_stream_of_units() -> None:
    """All that is added has the same order: the stem and the first block, a shortcut and its block."""
    axes = permutation_spec(resnet.Architecture()).perm_to_axes
    first, last = ("conv1", "layer3")
    ends = {"layer1.0.conv1.weight", "layer2.0.conv1.weight", "layer2.0.shortcut.0.weight"}
    assert {tensor for tensor, axis in axes[first] if axis == 1} == ends
    assert {tensor for tensor, axis in axes[last] if axis == 0} == {
        *(f"layer3.0.{name}" for name in ("conv2.weight", "ln2.weight", "ln2.bias")),
        *(f"layer3.0.shortcut.{name}" for name in ("0.weight", "1.weight", "1.bias")),
    }
    assert ("output.weight", 1) in axes[last]
    architecture = resnet.Architecture()
    (row,) = random_rows(architecture, 1)
    for stream in (first, "layer2", last):  # each alone, and half of its tensors is not enough
        only = {stream: torch.randperm(permutation_spec(architecture).sizes[stream]).numpy()}
        permuted = permute(architecture, row, only)
        torch.testing.assert_close(
            outputs(architecture, permuted), outputs(architecture, row), rtol=0, atol=1e-9
        )
        tensor, _ = axes[stream][0]
        (spec,) = (s for s in layout_of(architecture).tensors if s.name == tensor)
        permuted[spec.offset : spec.stop] = row[spec.offset : spec.stop]
        assert (outputs(architecture, permuted) - outputs(architecture, row)).abs().max() > 1e-6


def test_a_graph_knows_no_order_of_hidden_units(architecture: BaseArchitecture) -> None:
    """Permuted networks are the same graph, its nodes renamed."""
    (row,) = random_rows(architecture, 1)
    permuted = permute(architecture, row, random_permutations(architecture, np.random.default_rng(0)))

    def fingerprint(graph: Graph) -> torch.Tensor:
        """What message passing finds in three rounds, summed over nodes."""
        source, target = graph.edge_index
        state = torch.cat([graph.x, torch.nn.functional.one_hot(graph.node_layer).double()], 1)
        weights = torch.linspace(0.5, 1.5, graph.edge_attr.shape[-1], dtype=torch.float64)
        for _ in range(3):
            message = torch.tanh(state[source].sum(1) + (graph.edge_attr * weights).sum(1))
            heard = torch.zeros(len(state), dtype=torch.float64).index_add_(0, target, message)
            state = torch.cat([state, heard[:, None]], 1)
        return torch.sin(state * torch.arange(1, state.shape[1] + 1)).sum(0)

    one, other = (fingerprint(Graph.from_rows(architecture, r)) for r in (row, permuted))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_networks_together_are_single_networks(architecture: BaseArchitecture) -> None:
    rows = random_rows(architecture)
    networks = Networks(architecture, [architecture.activations[0]] * len(rows), rows)
    found = networks(inputs_of(architecture))
    for row, of_one in zip(rows, found, strict=True):
        torch.testing.assert_close(of_one, outputs(architecture, row), rtol=1e-9, atol=1e-9)


def test_splines_are_a_partition_of_unity() -> None:
    architecture = kan.Architecture()
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    values = architecture.splines(x)
    assert values.shape == (50, 8) and bool((values >= 0).all())
    torch.testing.assert_close(values.sum(1), torch.ones(50, dtype=torch.float64))
    assert bool((architecture.splines(torch.tensor([-3.0, 3.0])) == 0).all())


# A kind that is not ours


@dataclass(frozen=True)
class Perceptron(BaseArchitecture):
    """One hidden layer with rectifiers, on gray images."""

    kind: ClassVar[str] = "perceptron"
    activations: ClassVar[tuple[str, ...]] = ("relu",)
    initializations: ClassVar[tuple[str, ...]] = ("he_normal",)
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"image_size": (1, 64), "width_hidden": (1, 999)}

    image_channels: int = 1
    image_size: int = 8
    width_hidden: int = 6

    @property
    def id(self) -> str:
        return f"perceptron{self.width_hidden}-in{self.image_size}"

    def tensors(self) -> list[TensorSpec]:
        pixels, units = self.image_channels * self.image_size**2, self.width_hidden
        return [
            TensorSpec("hidden.weight", "hidden", "weight", (units, pixels), ("hidden", INPUT)),
            TensorSpec("hidden.bias", "hidden", "bias", (units,), ("hidden",)),
            TensorSpec("output.weight", OUTPUT, "weight", (10, units), (OUTPUT, "hidden")),
            TensorSpec("output.bias", OUTPUT, "bias", (10,), (OUTPUT,)),
        ]

    def modules(self) -> dict[str, torch.nn.Module]:
        return {
            spec.layer: torch.nn.Linear(spec.shape[1], spec.shape[0])
            for spec in self.tensors()
            if spec.role == "weight"
        }

    def forward(self, network: PlainNetwork, x: torch.Tensor, masks: object) -> torch.Tensor:
        hidden = network.activate(network.get_submodule("hidden")(x.flatten(1)))
        logits: torch.Tensor = network.get_submodule(OUTPUT)(hidden)
        return logits

    def initial(self, initialization: str, tensor: TensorSpec, init_std: float | None) -> Draw:
        scale = (2 / tensor.fans[0]) ** 0.5 if tensor.role == "weight" else 0.0
        return Draw("normal" if scale else "constant", scale)


TOY = Subset(
    "toy",
    40,
    (
        {
            "kind": "perceptron",
            "dataset": Cycle(("digits",)),
            "activation": "relu",
            "initialization": "he_normal",
            "optimizer": "adam",
            "learning_rate": LogUniform(1e-4, 3e-2),
            "batch_size": 64,
            "max_epochs": 3,
        },
    ),
    num_snapshots=2,
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The line in KINDS, and a preset; trained in this process, as another one does not know the line."""
    monkeypatch.setitem(KINDS, "perceptron", Perceptron)
    monkeypatch.setitem(SUBSETS, "toy", TOY)
    monkeypatch.setitem(PRESETS, "toy", ("toy",))
    in_this_process = lambda task, todo, workers, occupancy: task.run_cohorts(todo, occupancy)  # noqa: E731
    monkeypatch.setattr(build_module, "run_on_processes", in_this_process)
    yield


@pytest.mark.usefixtures("toy")
def test_a_fifth_kind_from_training_to_the_leaderboard(tmp_path: Path) -> None:
    """One class and one line: it is built and drawn, found again, verified, viewed, and its accuracy is
    predicted, here and by a method on the page of all methods.
    """
    folder = tmp_path / "zoo"
    build_module.build(Request("toy"), folder, device="cpu")
    assert gallery.draw(folder) and gallery.stale(folder) == []
    told = [check() for _, check in checks(Verifier(folder), reevaluate=3, retrain=2)]
    assert any("3 networks: the builder's evaluation exactly" in line for line in told)
    assert any("2 models trained again alone, equal in every bit" in line for line in told)
    images = load_image_set("digits")
    zoo = Zoo(folder)
    bank = bank_of({"digits": images}, zoo.architecture(zoo.filter()[0]), CPU)
    final = zoo.filter(is_final=True)
    assert len(final) == 40 and set(final["kind"]) == {"perceptron"}
    assert final["test_accuracy"].max() > 0.6
    network, images_of_test = zoo.network(final[0]), bank["digits"]
    logits = network(images_of_test.test_images)
    right = (logits.argmax(1) == images_of_test.test_labels).double().mean().item()
    assert right == pytest.approx(final[0]["test_accuracy"], abs=0.01)
    rows = zoo.weights(final)
    architecture = zoo.architecture(final[0])
    assert isinstance(architecture, Perceptron)
    for view in (Graph, Tokens, LayerTuples):
        assert np.array_equal(view.from_rows(architecture, rows).rows(), rows)
    features, names = zoo_features(zoo, final, "layers")
    assert features.shape == (40, 4 * len(STATISTICS)) and "hidden.weight.mean" in names
    predictor = GradientBoosting(random_state=0).fit(features, final["test_accuracy"])
    assert np.isfinite(predictor.predict(features)).all()
    (tmp_path / "method.py").write_text(REGRESSOR)
    page, method = tmp_path / "page" / "leaderboard.html", f"{tmp_path / 'method.py'}:Quantiles"
    options = ["--out", str(page), "--seeds", "1"]
    done = CliRunner().invoke(leaderboard.main, [str(folder), "--method", method, *options])
    assert done.exit_code == 0, done.output
    assert "Quantiles" in page.read_text()


def test_a_backend_of_any_kind_trains_as_the_plain_loop() -> None:
    """The general step beside torch's own optimizer on the plain network: the same losses fall."""
    from builder.training.plain import PlainLoop

    (model,) = select(SUBSETS["kan"], 0, models=1, datasets=("digits",), epochs=1)
    images = bank_of({"digits": load_image_set("digits")}, model.recipe.architecture, CPU)["digits"]
    loop = PlainLoop(model, images)
    losses = [loop.step(*arguments) for arguments in loop.epoch(0)]
    assert losses[-1] < losses[0] and F.cross_entropy(torch.zeros(1, 10), torch.tensor([0])) > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "siren", "train_images": 100}, "--train-images"),
        ({"preset": "siren", "convention": "sitzmann"}, "--convention: expected one of dws, nfn"),
        ({"preset": "kan", "convention": "dws"}, "--convention: expected none for kan"),
        ({"preset": "main", "copies": 2}, "--copies: expected none for main"),
        ({"preset": "siren", "copies": 0}, "--copies: expected at least 1"),
        ({"preset": "siren", "datasets": ("svhn",)}, "image sets that preset siren draws"),
        ({"preset": "resnet", "datasets": ("mnist",)}, "image sets that preset resnet draws"),
    ],
)
def test_options_without_a_meaning_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        Request(**fields)
