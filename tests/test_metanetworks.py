"""Networks on whole rows: their symmetries, published sizes, what they learn, and bad input."""

import functools
import json

import numpy as np
import pytest
import torch
from sklearn.base import clone

from nws_dataset import Architecture, Network, layout_of, permute, random_permutations
from nws_dataset.baselines.metanetworks.graph import GraphNetwork
from nws_dataset.baselines.metanetworks.rows import MLP, RowConvolutions
from nws_dataset.baselines.metanetworks.sets import DeepSets, SetTransformer
from nws_dataset.baselines.metanetworks.symmetries import symmetries_of
from nws_dataset.errors import ValueZooError, ZooError
from nws_dataset.networks import kan, resnet, siren
from nws_dataset.networks.network import coordinates
from nws_dataset.views.graph import Graph, Layers

CNN = Architecture(
    filter_size=3, depth_conv=3, width_conv=4, depth_fc=1, width_fc=8, image_channels=1, image_size=8
)
SIREN = siren.Architecture(width_hidden=8, image_size=8)
KAN = kan.Architecture(width_hidden=6, image_size=8)
CLASSIFIER = kan.Architecture(reads="images", image_size=3, depth_hidden=1, width_hidden=5)
RESNET = resnet.Architecture(width_conv=4, image_size=8)
KINDS = pytest.mark.parametrize("architecture", [CNN, SIREN, KAN, CLASSIFIER, RESNET], ids=lambda a: a.id)
SMALL = {"width": 16, "heads": 4, "rounds": 2}  # graph networks
METHODS = {
    "mlp": MLP,
    "permuted": functools.partial(MLP, permute=True),
    "convolutions": RowConvolutions,
    "weights": DeepSets,
    "edges": functools.partial(DeepSets, over="edges"),
    "transformer": functools.partial(SetTransformer, width=16, points=4, blocks=1),
    "graph": functools.partial(GraphNetwork, **SMALL),
    "hybrid": functools.partial(GraphNetwork, **SMALL, statistics=True),
}
SLIM = {"epochs": 2, "batch_size": 8, "random_state": 0}


def rows_of(architecture, count, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(0, 0.3, (count, layout_of(architecture).num_weights)).astype(np.float32)


def outputs(architecture, row):
    """What the plain network computes in float64."""
    network = Network(architecture, activation=architecture.activations[0]).double().eval()
    network.load_row(torch.from_numpy(row.astype(np.float64)))
    generator = torch.Generator().manual_seed(0)
    shape = 5, architecture.image_channels, architecture.image_size, architecture.image_size
    x = (
        coordinates(architecture, torch.float64)
        if architecture.reads == "coordinates"
        else torch.rand(shape, generator=generator, dtype=torch.float64)
    )
    with torch.no_grad():
        return network(x).numpy()


@KINDS
def test_permuted_rows_compute_the_same(architecture):
    row = np.abs(rows_of(architecture, 1))  # variances are positive
    for generator in (torch.Generator().manual_seed(seed) for seed in range(3)):
        other = symmetries_of(architecture).permuted(torch.from_numpy(row), generator).numpy()
        assert not (other == row).all() and np.array_equal(np.sort(other[0]), np.sort(row[0]))
        assert outputs(architecture, other[0]) == pytest.approx(outputs(architecture, row[0]), abs=1e-9)


@KINDS
def test_each_row_of_a_batch_is_permuted_by_itself(architecture):
    rows = np.repeat(rows_of(architecture, 1), 20, axis=0)
    other = symmetries_of(architecture).permuted(torch.from_numpy(rows), torch.Generator().manual_seed(0))
    assert len(np.unique(other.numpy(), axis=0)) > 10


def test_signs_of_odd_units_change_nothing():
    row = rows_of(SIREN, 1)
    other = symmetries_of(SIREN).flipped(torch.from_numpy(row), torch.Generator().manual_seed(0)).numpy()
    assert (np.abs(other) == np.abs(row)).all() and not (other == row).all()
    assert outputs(SIREN, other[0]) == pytest.approx(outputs(SIREN, row[0]), abs=1e-9)


@KINDS
def test_orbits_are_what_permutations_exchange(architecture):
    symmetries, random = symmetries_of(architecture), np.random.default_rng(0)
    orbits, reached = symmetries.orbits, {}
    for _ in range(60):
        permuted = permute(architecture, np.arange(len(orbits)), random_permutations(architecture, random))
        assert (orbits[permuted] == orbits).all()
        for place, weight in enumerate(permuted.tolist()):
            reached.setdefault(place, set()).add(weight)
    smallest = min(symmetries.sizes)
    for place, weights in reached.items():  # and no orbit is too large: its weights do come together
        assert len(weights) >= min(smallest, int((orbits == orbits[place]).sum()))


@KINDS
def test_layers_hold_each_weight_once(architecture):
    layers, view = Layers.of(architecture), Graph.from_rows(architecture, rows_of(architecture, 1))
    parts = [layer.indices.ravel() for layer in (*layers.nodes, *layers.edges)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(layout_of(architecture).num_weights))
    assert sum(len(layer.indices) for layer in layers.nodes) == view.x.shape[1]
    assert sum(edges.indices[:, :, 0].size for edges in layers.edges) == view.edge_attr.shape[1]


@KINDS
@pytest.mark.parametrize("statistics", [False, True])
def test_the_order_of_units_does_not_change_the_graph_networks_answer(architecture, statistics):
    rows, random = rows_of(architecture, 12), np.random.default_rng(0)
    network = GraphNetwork(architecture, width=16, heads=4, statistics=statistics, **SLIM)
    network.fit(rows, np.arange(12) % 3)
    network.module_.double()
    rows = rows.astype(np.float64)
    answers = network._outputs(rows)
    permuted = permute(architecture, rows, random_permutations(architecture, random))
    assert network._outputs(permuted) == pytest.approx(answers, abs=1e-9)
    assert np.ptp(answers, axis=0).min() > 1e-3  # it does not give one answer to all


@pytest.mark.parametrize("name", ["graph", "edges", "transformer"])
def test_answers_for_edges_are_permuted_with_them(name):
    rows, random = rows_of(CLASSIFIER, 12), np.random.default_rng(0)
    sizes = [spec.shape for spec in CLASSIFIER.edge_scores()]
    kept = random.random((12, sum(out * into for out, into in sizes))) > 0.5
    network = METHODS[name](CLASSIFIER, target="edges", **SLIM).fit(rows, kept)
    network.module_.double()
    rows = rows.astype(np.float64)
    order = random.permutation(5)  # of the hidden units
    permuted = permute(CLASSIFIER, rows, {"layer1": order})
    before, after = network._outputs(rows), network._outputs(permuted)
    first, second = (out * into for out, into in sizes)
    assert after[:, :first].reshape(12, 5, 9) == pytest.approx(
        before[:, :first].reshape(12, 5, 9)[:, order], abs=1e-9
    )
    assert after[:, first:].reshape(12, 10, 5) == pytest.approx(
        before[:, first:].reshape(12, 10, 5)[:, :, order], abs=1e-9
    )
    assert second == 50 and network.predict(rows).dtype == bool


def test_convolutions_have_the_published_size():
    """105,357 numbers, and 297 positions of a row of 78,042 weights."""
    architecture = resnet.Architecture()
    module = RowConvolutions(architecture, target="number")._make_module(1).eval()
    assert sum(p.numel() for p in module.parameters()) == 105_357
    assert module.stages(torch.zeros(1, 1, layout_of(architecture).num_weights)).shape == (1, 64, 297)


@pytest.mark.parametrize("width", [2, 8, 32, 41, 42, 60])
def test_convolutions_of_short_rows_keep_a_position(width):
    architecture = siren.Architecture(width_hidden=width)
    length = layout_of(architecture).num_weights
    if width == 2:  # 15 weights
        with pytest.raises(ZooError, match="weights or more"):
            RowConvolutions(architecture)._make_module(2)
        return
    module = RowConvolutions(architecture)._make_module(2).eval()
    positions = module.stages(torch.zeros(1, 1, length)).shape[2]
    assert positions >= 1
    pools = sum(isinstance(layer, torch.nn.MaxPool1d) for layer in module.stages)
    assert (pools == 8) == (length >= 2044)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_the_scale_of_weights(name):
    """A class and a number that every method can see; and the same again from the same seed."""
    random = np.random.default_rng(0)
    scales = random.choice([0.3, 2.0], 240)
    rows = rows_of(SIREN, 240) * scales[:, None].astype(np.float32)
    labels = np.where(scales < 1, "small", "large")
    make = METHODS[name]
    options = {"epochs": 10, "batch_size": 16, "random_state": 0}
    classifier = make(SIREN, **options).fit(rows[:160], labels[:160], rows[160:200], labels[160:200])
    assert (classifier.predict(rows[200:]) == labels[200:]).mean() > 0.7
    assert classifier.predict_proba(rows[200:]).sum(1) == pytest.approx(1, abs=1e-5)
    assert len(classifier.history_) == 10 and 1 <= classifier.best_epoch_ <= 10
    slim = {**options, "epochs": 2}
    first, again = (make(SIREN, **slim).fit(rows, labels)._outputs(rows) for _ in range(2))
    assert (first == again).all()
    regressor = make(SIREN, target="number", **options).fit(rows[:160], scales[:160])
    assert np.corrcoef(regressor.predict(rows[200:]), scales[200:])[0, 1] > 0.7


@pytest.mark.parametrize("name", ["convolutions", "edges", "transformer", "graph"])
def test_every_method_for_edges_learns_which_are_large(name):
    rows = rows_of(CLASSIFIER, 160)
    edges = Layers.of(CLASSIFIER).edges
    kept = np.concatenate([rows[:, layer.indices[:, :, 0]].reshape(160, -1) > 0 for layer in edges], 1)
    network = METHODS[name](CLASSIFIER, target="edges", epochs=10, batch_size=8, random_state=0)
    network.fit(rows[:120], kept[:120])
    assert (network.predict(rows[120:]) == kept[120:]).mean() > 0.8


def test_parameters_are_scikit_learns():
    network = GraphNetwork(SIREN, width=32, epochs=3)
    copy = clone(network)
    assert copy.get_params() == network.get_params() and copy.width == 32
    assert copy.set_params(rounds=1).rounds == 1


@pytest.mark.parametrize(
    ("options", "y", "found"),
    [
        ({"epochs": 0}, [0, 1] * 4, "epochs: expected a whole number of at least 1, found 0"),
        ({"target": "edges"}, [0, 1] * 4, "target: expected networks whose edges have scores, found siren"),
        ({"target": "all"}, [0, 1] * 4, "target: expected class or number or edges, found 'all'"),
        ({}, [1] * 8, "fit: expected two classes or more"),
        ({"target": "number"}, [0.0, np.nan] * 4, "y: expected finite numbers"),
        ({"heads": 5}, [0, 1] * 4, "width: expected a multiple of heads, 5, found 64"),
    ],
)
def test_bad_input_is_one_line(options, y, found):
    with pytest.raises(ZooError) as error:
        GraphNetwork(SIREN, **options).fit(rows_of(SIREN, 8), y)
    assert str(error.value).startswith(found) and "\n" not in str(error.value)


def test_bad_rows_are_refused():
    with pytest.raises(ZooError, match=r"X: expected \[..., 105\]"):
        GraphNetwork(SIREN).fit(np.zeros((8, 7), np.float32), [0, 1] * 4)
    rows = rows_of(SIREN, 8)
    rows[3, 5] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        GraphNetwork(SIREN).fit(rows, [0, 1] * 4)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        MLP(SIREN).fit(rows_of(SIREN, 8), [0, 1])
    with pytest.raises(ValueZooError, match="over: expected edges"):
        DeepSets(CLASSIFIER, target="edges").fit(rows_of(CLASSIFIER, 4), np.zeros((4, 95), bool))


@pytest.mark.parametrize("name", [name for name, make in METHODS.items() if name != "weights"])
@pytest.mark.parametrize("target", ["class", "number", "edges"])
def test_what_was_saved_predicts_the_same(tmp_path, name, target):
    """Its architecture too, which is not a number or a text."""
    rows = rows_of(CLASSIFIER, 8)
    method = METHODS[name](CLASSIFIER, target=target, **SLIM)
    if target not in method.targets:
        pytest.skip("has no answers for edges")
    kept = np.random.default_rng(0).random((8, 95)) < 0.5
    y = {"class": np.array(list("abab" * 2)), "number": np.arange(8.0), "edges": kept}[target]
    method.fit(rows, y)
    loaded = type(method).load(method.save(tmp_path))
    assert loaded.architecture == CLASSIFIER and loaded.get_params() == method.get_params()
    assert np.array_equal(loaded.predict(rows), method.predict(rows))
    assert np.array_equal(loaded._outputs(rows), method._outputs(rows))
    assert loaded.history_ == method.history_ and loaded.best_epoch_ == method.best_epoch_


def test_the_architecture_is_read_with_care(tmp_path):
    network = MLP(SIREN, width=4, epochs=1).fit(rows_of(SIREN, 8), [0, 1] * 4)
    facts = network.save(tmp_path) / "estimator.json"
    told = json.loads(facts.read_text())
    for wrong in ("{}", '{"kind":"siren","width_hidden":9}', '{"kind":"unknown"}', "[", None, 3):
        told["parameters"]["architecture"] = wrong
        facts.write_text(json.dumps(told))
        with pytest.raises(ZooError):
            MLP.load(tmp_path)
