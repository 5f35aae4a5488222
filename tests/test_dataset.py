"""`SnapshotDataset`: items are what the zoo and the views give, a batch is read together and nothing else, in
any worker, from a folder and from the Hub.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from nws_dataset.errors import ZooError
from nws_dataset.reading import dataset as dataset_module
from nws_dataset.reading.folder import Folder
from nws_dataset.reading.zoo import Zoo
from nws_dataset.views.graph import Graph
from nws_dataset.views.layer_tuples import LayerTuples
from nws_dataset.views.tokens import Tokens
from test_documentation import blocks
from test_hub import weight_requests
from testing.loopback_hub import LoopbackHub
from testing.zoo_factory import NORMED, PLAIN, make_zoo

REPOSITORY = "org/nws"
SEED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", subsets=("demo", "more"))


@pytest.fixture
def zoo(folder: Path) -> Zoo:
    return Zoo(folder)


@pytest.fixture
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch Geometric is not installed."""
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.delitem(sys.modules, "torch_geometric.data", raising=False)


def shuffled(dataset: Any, **options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(SEED)
    return DataLoader(dataset, batch_size=5, shuffle=True, generator=generator, **options)


# --- items ---


def test_rows_of_several_layouts_in_the_order_of_the_batch(zoo: Zoo) -> None:
    snapshots = zoo.filter()[::-1]
    dataset = zoo.dataset(snapshots)
    assert len(dataset) == len(snapshots)
    batch = [7, 0, -1, 7, *range(20)]
    assert len({len(row) for row in zoo.arrays(snapshots[batch])}) == 2
    for i, (weights, target) in zip(batch, dataset.__getitems__(batch), strict=True):
        assert weights.dtype == target.dtype == torch.float32 and target.shape == ()
        assert np.array_equal(weights, zoo.row(snapshots[i]))
        assert target == np.float32(snapshots["test_accuracy"][i])
    assert torch.equal(dataset[3][0], dataset.__getitems__([3])[0][0])
    assert len(list(dataset)) == len(dataset)  # type: ignore[call-overload]
    for outside in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[outside]


def test_no_targets_and_no_snapshots(zoo: Zoo) -> None:
    snapshots = zoo.filter(architecture=PLAIN.id)
    (weights,) = DataLoader(zoo.dataset(snapshots, target=None), batch_size=len(snapshots))
    assert np.array_equal(weights, zoo.weights(snapshots))
    assert "y" not in zoo.dataset(snapshots, Tokens, None)[0]
    for view in (None, Graph):
        assert len(zoo.dataset(snapshots[:0], view)) == 0


def test_graphs_are_dicts_without_pytorch_geometric(zoo: Zoo, without_graphs: None) -> None:
    snapshots = zoo.filter(is_final=True)
    dataset = zoo.dataset(snapshots, Graph)
    assert {dataset[i]["edge_attr"].shape[1] for i in range(len(dataset))} == {9}  # of both architectures
    assert zoo.dataset(snapshots, Graph, kernel_size=5)[0]["edge_attr"].shape[1] == 25
    wide = zoo.filter(architecture=PLAIN.id)
    for i, item in enumerate(dataset.__getitems__(list(range(10)))):
        architecture, row = zoo.architecture(snapshots[i]), torch.tensor(zoo.row(snapshots[i]))
        expected = Graph.from_rows(architecture, row)
        assert item.keys() == {"x", "edge_attr", "edge_index", "y"}
        for name in ("x", "edge_attr", "edge_index"):
            assert torch.equal(item[name], getattr(expected, name))
        assert torch.equal(Graph(architecture, item["x"], item["edge_attr"]).rows(), row)
    batch = next(iter(DataLoader(zoo.dataset(wide, Graph), batch_size=6)))
    assert batch["x"].shape == (6, 23, 5) and batch["edge_index"].shape == (6, 2, 76)


@pytest.mark.parametrize("architecture", [PLAIN, NORMED], ids=["plain", "normed"])
def test_layer_tuples_and_tokens(zoo: Zoo, architecture: Any) -> None:
    snapshots = zoo.filter(architecture=architecture.id)
    rows = torch.from_numpy(zoo.weights(snapshots))
    (batch,) = DataLoader(zoo.dataset(snapshots, LayerTuples, convention="dws"), batch_size=len(snapshots))
    expected = LayerTuples.from_rows(architecture, rows, "dws")
    for name in ("weights", "biases", "norms"):
        assert len(batch[name]) == len(getattr(expected, name))
        for found, tensor in zip(batch[name], getattr(expected, name), strict=True):
            assert torch.equal(found, tensor)
    (batch,) = DataLoader(zoo.dataset(snapshots, Tokens, size=7), batch_size=len(snapshots))
    tokens = Tokens.from_rows(architecture, rows, 7)
    assert torch.equal(batch["tokens"], tokens.tokens)
    assert torch.equal(batch["mask"][1], tokens.mask) and torch.equal(batch["position"][1], tokens.position)
    assert torch.equal(batch["y"], torch.from_numpy(snapshots["test_accuracy"]).float())


@pytest.mark.parametrize(
    ("target", "dtype", "shape"),
    [
        ("epoch", torch.int64, ()),
        ("is_final", torch.bool, ()),
        ("class_test_accuracy", torch.float32, (10,)),
        (np.arange(60, dtype=np.uint8), torch.int64, ()),
        (np.random.default_rng(0).random((60, 2)), torch.float32, (2,)),
        (torch.arange(60.0, dtype=torch.float64, requires_grad=True), torch.float32, ()),
        ([0.5] * 60, torch.float32, ()),
    ],
    ids=str,
)
def test_targets(zoo: Zoo, target: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    snapshots = zoo.filter()
    dataset = zoo.dataset(snapshots, target=target)
    _, found = dataset[11]
    assert found.dtype == dtype and found.shape == shape and not found.requires_grad
    expected = snapshots[target] if isinstance(target, str) else target
    np.testing.assert_allclose(found, torch.as_tensor(expected[11]).detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "optimizer"}, "column optimizer: expected numbers, found values of type object; give"),
        ({"target": "width_fc"}, "column width_fc: expected finite numbers, found 30 that are null"),
        ({"target": "no_column"}, "found 'no_column'"),
        ({"target": np.ones(59)}, r"target: expected \[60, ...\], found \[59\]"),
        ({"target": torch.tensor(1.0)}, r"expected \[60, ...\], found \[\]"),
        ({"target": [np.inf] * 60}, "found 60 that are null, NaN or infinite; leave"),
        ({"target": ["a"] * 60}, "target: expected numbers"),
        ({"view": "graph"}, "view: expected one of Graph, LayerTuples, Tokens, or None, found 'graph'"),
        ({"kernel_size": 3}, "options: expected none without a view, found kernel_size"),
        ({"view": Graph, "kernel_size": 4}, "kernel_size: expected an odd number"),
        ({"view": Tokens, "size": 0}, "size: expected at least 1"),
    ],
)
def test_mistakes(zoo: Zoo, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        zoo.dataset(zoo.filter(), **options)


def test_mistakes_that_python_knows(zoo: Zoo) -> None:
    with pytest.raises(TypeError, match="no_option"):
        zoo.dataset(zoo.filter(), Graph, no_option=1)
    with pytest.raises(ZooError, match="several snapshots, found one"):
        zoo.dataset(zoo.filter()[0])


def test_snapshots_of_other_forms(zoo: Zoo) -> None:
    snapshots = zoo.filter()
    for form in (snapshots.table, list(snapshots)):
        dataset = zoo.dataset(form, target=snapshots["epoch"])
        assert np.array_equal(dataset[5][0], zoo.row(snapshots[5]))
    assert zoo.dataset(snapshots.table)[5][1] == np.float32(snapshots["test_accuracy"][5])


# --- reading ---


def test_a_batch_reads_its_own_rows_together(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = Folder.read

    def counted(self: Folder, byte_ranges: Any, deliver: Any) -> None:
        read.append(len(byte_ranges))
        original(self, byte_ranges, deliver)

    dataset, names = zoo.dataset(zoo.filter(), Graph), zoo.filter()["architecture"]
    mixed = [*np.flatnonzero(names == PLAIN.id)[:3], *np.flatnonzero(names == NORMED.id)[:4]]
    monkeypatch.setattr(Folder, "read", counted)
    dataset.__getitems__(mixed)
    assert read == [3, 4]  # a stack of each architecture


def items_of(loader: Any) -> list[tuple[bytes, float]]:
    """The rows and targets of a pass, sorted."""
    return sorted(
        (row.numpy().tobytes(), float(target)) for batch in loader for row, target in zip(*batch, strict=True)
    )


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers(zoo: Zoo, start: str) -> None:
    snapshots = zoo.filter(architecture=PLAIN.id)
    dataset = zoo.dataset(snapshots)
    dataset[0]  # files are mapped before the workers start
    expected = sorted((zoo.row(s).tobytes(), float(np.float32(s["test_accuracy"]))) for s in snapshots)
    loader = shuffled(dataset, num_workers=2, multiprocessing_context=start, persistent_workers=True)
    assert items_of(loader) == items_of(loader) == expected
    first, second = [[batch[1].tolist() for batch in loader] for _ in range(2)]
    assert first != second  # each pass has its own order


def test_a_subset(zoo: Zoo) -> None:
    snapshots = zoo.filter(architecture=PLAIN.id)
    found = items_of(DataLoader(Subset(zoo.dataset(snapshots), [4, 2, 9]), batch_size=3))
    assert found == items_of(DataLoader(zoo.dataset(snapshots[[2, 4, 9]]), batch_size=3))


def test_what_travels_to_a_worker_is_small(zoo: Zoo, folder: Path) -> None:
    dataset = zoo.dataset(zoo.filter(), Tokens)
    content = pickle.dumps(dataset)
    assert b"mnist" not in content and b"sha256" in content
    copy = pickle.loads(content)
    assert torch.equal(copy[8]["tokens"], dataset[8]["tokens"]) and copy[8]["y"] == dataset[8]["y"]
    assert pickle.loads(pickle.dumps(zoo.dataset(zoo.filter(), Graph)))[0]["y"] == dataset[0]["y"]


def test_a_zoo_that_has_changed_is_not_taken_for_the_same(tmp_path: Path) -> None:
    zoo = Zoo(make_zoo(tmp_path / "nws"))
    content = pickle.dumps(zoo.dataset(zoo.filter()))
    make_zoo(tmp_path / "nws", seed=1)
    with pytest.raises(ZooError, match="the zoo that the data set was made of, found another in its place"):
        pickle.loads(content)


# --- from the Hub ---


@pytest.fixture
def remote(hub: LoopbackHub, folder: Path, tmp_path: Path) -> Callable[..., Zoo]:
    """Opens the zoo on the Hub, with caches of its own."""
    hub.put(REPOSITORY, folder)
    return lambda **options: Zoo(REPOSITORY, **{"cache_dir": tmp_path / "cache", **options})


def bytes_of(requests: list[Any]) -> int:
    ranges = [request.range.removeprefix("bytes=").split("-") for request in requests]
    return sum(int(stop) - int(start) + 1 for start, stop in ranges)


def test_a_shuffled_pass_asks_for_neighbourhoods(
    remote: Callable[..., Zoo], hub: LoopbackHub, tmp_path: Path
) -> None:
    snapshots = remote().filter(subset="demo", architecture=PLAIN.id)
    assert weight_requests(hub) == []
    remote(cache_dir=tmp_path / "empty", cache_bytes=0).weights(snapshots)
    together = weight_requests(hub)  # neighbours are one request
    assert 1 < len(together) < len(snapshots)
    dataset = remote().dataset(snapshots)
    expected = items_of(DataLoader(dataset))  # one after the other
    requests = weight_requests(hub)[len(together) :]
    assert len(requests) == len(together) and bytes_of(requests) == bytes_of(together)
    # another pass, or a worker of another data set, finds them in the cache
    assert items_of(shuffled(dataset)) == items_of(shuffled(remote().dataset(snapshots))) == expected
    assert len(weight_requests(hub)) == 2 * len(together)


def test_a_neighbourhood_is_a_part_of_a_file(
    remote: Callable[..., Zoo], hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = remote().filter(subset="demo", split="train", architecture=PLAIN.id)
    assert len(set(snapshots["file"])) == 1
    offsets = snapshots["offset"]
    size = int(offsets.max()) // 2
    monkeypatch.setattr(dataset_module, "NEIGHBOURHOOD_BYTES", size)
    remote().dataset(snapshots)[0]
    near = snapshots["length"][offsets // size == offsets[0] // size]
    assert near.sum() <= bytes_of(weight_requests(hub)) < snapshots["length"].sum()


@pytest.mark.parametrize("cache_bytes", [0, 30_000])
def test_a_cache_that_is_too_small_gets_no_neighbours(
    remote: Callable[..., Zoo], hub: LoopbackHub, cache_bytes: int
) -> None:
    zoo = remote(cache_bytes=cache_bytes)
    snapshots = zoo.filter(architecture=PLAIN.id)
    assert snapshots["length"].sum() > cache_bytes
    zoo.dataset(snapshots).__getitems__([0, 4])
    assert bytes_of(weight_requests(hub)) == snapshots["length"][[0, 4]].sum()


def test_workers_read_from_the_hub(remote: Callable[..., Zoo], zoo: Zoo) -> None:
    other = remote()
    dataset = other.dataset(other.filter(architecture=PLAIN.id))
    dataset[0]  # a connection is open before the workers start
    expected = items_of(DataLoader(zoo.dataset(zoo.filter(architecture=PLAIN.id))))
    assert items_of(shuffled(dataset, num_workers=2, multiprocessing_context="fork")) == expected


# --- PyTorch Geometric ---


with_geometric = pytest.mark.filterwarnings("default")  # what it warns of is not ours


@with_geometric
def test_gine_trains_in_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_geometric")
    (code,) = [code for code in blocks("docs/guides/graph_network.md", "python") if "GINEConv" in code]
    statements = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(statements) == 10
    make_zoo(tmp_path / "nws")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    assert namespace["batch"].num_graphs == 10 and namespace["conv"].lin.weight.grad.abs().max() > 0


@with_geometric
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_pytorch_geometric(zoo: Zoo, workers: int) -> None:
    loaders = pytest.importorskip("torch_geometric.loader")
    snapshots = zoo.filter()
    dataset = zoo.dataset(snapshots, Graph)
    assert type(dataset[0]).__name__ == "Data" and dataset[0].y.shape == (1,)
    found = []
    for batch in loaders.DataLoader(dataset, batch_size=20, num_workers=workers):
        assert batch.num_graphs == 20 and batch.edge_index.max() == batch.num_nodes - 1
        for graph in batch.to_data_list():
            architecture = zoo.architecture(snapshots[len(found)])
            assert np.array_equal(
                Graph(architecture, graph.x, graph.edge_attr).rows(), zoo.row(snapshots[len(found)])
            )
            found.append(graph.y.item())
    np.testing.assert_array_equal(found, snapshots["test_accuracy"].astype(np.float32))
