"""Reading from the Hub: the same snapshots as from the folder, few requests, no byte too many, through
faults, and damage is refused by name.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from nws_dataset import http
from nws_dataset.errors import ZooError
from nws_dataset.format.schema import INDEX_SCHEMA
from nws_dataset.format.shards import write_index
from nws_dataset.reading.load import load_dataset, with_weights
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo
from testing.loopback_hub import TOKEN, LoopbackHub, every_second
from testing.zoo_factory import NORMED, PLAIN, make_shard, make_zoo, write_manifest

REPOSITORY = "org/nws"
INDEX = "index/demo/train.parquet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", subsets=("demo", "more"))


@pytest.fixture
def local(folder: Path) -> Zoo:
    return Zoo(folder)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSES", (0.01,) * 6)


@pytest.fixture
def remote(hub: LoopbackHub, folder: Path, tmp_path: Path) -> Callable[..., Zoo]:
    """Opens the zoo on the Hub, with caches of its own."""
    hub.put(REPOSITORY, folder)
    return lambda **options: Zoo(REPOSITORY, **{"cache_dir": tmp_path / "cache", **options})


def weight_requests(hub: LoopbackHub) -> list[Any]:
    """The requests that brought weights; index files are read from their first byte on, weights never."""
    return [
        request
        for request in hub.requests
        if request.status == 206 and not request.range.startswith("bytes=0-")
    ]


# --- the same snapshots ---


def test_the_same_snapshots_as_the_folder(remote: Callable[..., Zoo], local: Zoo, hub: LoopbackHub) -> None:
    zoo = remote()
    assert zoo.index.equals(local.index) and zoo.subsets == local.subsets
    assert weight_requests(hub) == []
    snapshot = zoo.filter(architecture=NORMED.id)[4]
    assert zoo.value(snapshot) == local.value(snapshot)
    assert np.array_equal(zoo.row(snapshot), local.row(snapshot))
    assert torch.equal(zoo.network(snapshot).row(), local.network(snapshot).row())
    for architecture in (PLAIN, NORMED):
        snapshots = zoo.filter(architecture=architecture.id)
        assert np.array_equal(zoo.weights(snapshots[::-1]), local.weights(snapshots[::-1]))
        assert np.array_equal(
            zoo.slices(snapshots, [3] * len(snapshots), 20), local.weights(snapshots)[:, 3:23]
        )
    assert all(
        np.array_equal(a, b)
        for a, b in zip(zoo.arrays(zoo.filter()), local.arrays(local.filter()), strict=True)
    )


def test_neighbours_are_one_request_and_no_byte_too_many(hub: LoopbackHub, tmp_path: Path) -> None:
    shard = "snapshots/demo/train-a-00000.parquet"
    index, _ = make_shard(tmp_path / "zoo", shard, NORMED, numbers=range(100), snapshots=5)
    write_index(tmp_path / "zoo" / INDEX, index)
    write_manifest(tmp_path / "zoo", ["demo"], 100, [shard, INDEX])
    hub.put(REPOSITORY, tmp_path / "zoo")
    zoo, local = Zoo(REPOSITORY, cache_dir=tmp_path / "cache"), Zoo(tmp_path / "zoo")
    final = zoo.filter(is_final=True)
    for snapshots, requests in ((final[20:70], 1), (final[::2], 50)):
        zoo.files.cache.folder.rename(
            tmp_path / f"dropped{requests}"
        ) if zoo.files.cache.folder.exists() else None
        hub.clear()
        weights = zoo.weights(snapshots)
        found = weight_requests(hub)
        assert len(found) == requests
        assert weights.nbytes < sum(request.sent for request in found) <= 1.1 * snapshots["length"].sum()
        assert np.array_equal(weights, local.weights(snapshots))


def test_what_was_read_is_not_fetched_again(
    remote: Callable[..., Zoo], hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = remote()
    snapshots = zoo.filter(architecture=PLAIN.id)
    first = zoo.weights(snapshots)
    hub.clear()
    assert np.array_equal(zoo.weights(snapshots), first) and weight_requests(hub) == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.clear()
    again = remote()
    assert np.array_equal(again.weights(again.filter(architecture=PLAIN.id)), first) and not hub.requests
    with pytest.raises(ZooError, match="OfflineModeIsEnabled: HF_HUB_OFFLINE is set"):
        again.weights(again.filter(architecture=NORMED.id))


def test_a_damaged_cache_is_fetched_again(remote: Callable[..., Zoo], local: Zoo, hub: LoopbackHub) -> None:
    zoo = remote()
    snapshot = zoo.filter()[0]
    zoo.row(snapshot)
    kept = zoo.files.cache._path(snapshot["sha256"])
    assert kept in zoo.files.cache.folder.glob("*/*")
    for damage in (kept.read_bytes()[:-1], b"", b"x" + kept.read_bytes()[1:]):
        kept.write_bytes(damage)
        assert np.array_equal(remote().row(snapshot), local.row(snapshot))


def test_the_cache_has_a_limit(remote: Callable[..., Zoo], local: Zoo, tmp_path: Path) -> None:
    length = local.filter(architecture=NORMED.id)[0]["length"]
    zoo = remote(cache_bytes=5 * length)
    snapshots = zoo.filter(architecture=NORMED.id)
    assert len(zoo.index)  # files of the index count too, and go first
    for snapshot in snapshots:
        assert np.array_equal(zoo.row(snapshot), local.row(snapshot))
        assert sum(path.stat().st_size for path in zoo.files.cache.folder.glob("*/*")) <= 5 * length
    kept = {path.stem for path in zoo.files.cache.folder.glob("*/*")}
    assert set(snapshots["sha256"][-4:]) <= kept
    nothing = remote(cache_bytes=0, cache_dir=tmp_path / "none")
    assert np.array_equal(nothing.weights(snapshots), local.weights(snapshots))
    assert not list((tmp_path / "none").glob("nws/values/*/*"))


def test_one_commit_is_read(remote: Callable[..., Zoo], local: Zoo, hub: LoopbackHub, tmp_path: Path) -> None:
    zoo, commit = remote(), hub.repos[REPOSITORY].branches["main"]
    hub.repos[REPOSITORY].tags["v1"] = commit
    hub.put(REPOSITORY, make_zoo(tmp_path / "another", models=5, seed=9))
    snapshot = zoo.filter()[0]
    assert np.array_equal(zoo.row(snapshot), local.row(snapshot))
    for revision in ("v1", commit):
        assert remote(revision=revision).index.equals(local.index)
    assert len(remote().filter(is_final=True)) == 5
    with pytest.raises(
        ZooError,
        match=r"org/nws@v2/nws.json: expected a repository on the Hub that exists and is open to you, found "
        r"404.*check name and revision",
    ):
        remote(revision="v2")


def test_pickle(remote: Callable[..., Zoo]) -> None:
    zoo = remote(cache_bytes=12345)
    again = pickle.loads(pickle.dumps(zoo))
    assert (again.name, again.files.cache.folder, again.files.cache.limit) == (
        zoo.name,
        zoo.files.cache.folder,
        12345,
    )


def test_private(hub: LoopbackHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put(REPOSITORY, folder, private=True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ZooError, match="open to you, found 40"):
        Zoo(REPOSITORY, cache_dir=tmp_path / "a")
    zoo = Zoo(REPOSITORY, token=TOKEN, cache_dir=tmp_path / "b")
    snapshot = zoo.filter()[0]
    assert zoo.row(snapshot).size == snapshot["num_weights"]
    ds = load_dataset(REPOSITORY, split="test", token=TOKEN, cache_dir=tmp_path / "c")
    assert with_weights(ds)[0]["weights"].size == ds[0]["num_weights"]
    assert TOKEN not in repr(zoo)


# --- load_dataset ---


@pytest.fixture
def load(remote: Callable[..., Zoo], tmp_path: Path) -> Callable[..., Any]:
    return lambda *args, **options: load_dataset(REPOSITORY, *args, cache_dir=tmp_path / "cache", **options)


def test_datasets_from_the_hub(load: Callable[..., Any], folder: Path, local: Zoo, tmp_path: Path) -> None:
    assert list(load(split="train")) == list(local.filter(split="train"))
    assert set(load()) == {"train", "validation", "test"}
    stock = datasets.load_dataset(REPOSITORY, "demo", split="test", cache_dir=str(tmp_path / "stock"))
    of_folder = datasets.load_dataset(str(folder), "demo", split="test", cache_dir=str(tmp_path / "stock"))
    for ds in (load("demo", split="test"), stock, list(load("demo", split="test", streaming=True))):
        assert list(ds) == list(of_folder)


def test_weights_are_fetched_batch_by_batch(load: Callable[..., Any], local: Zoo, hub: LoopbackHub) -> None:
    ds = with_weights(
        load(split="train").filter(
            lambda snapshot: snapshot["is_final"] and snapshot["architecture"] == PLAIN.id
        )
    )
    hub.clear()
    batch = ds[:10]
    assert np.array_equal(
        np.stack(batch["weights"]),
        local.weights(local.filter(split="train", is_final=True, architecture=PLAIN.id))[:10],
    )
    assert len(weight_requests(hub)) == len({batch["file"][i] for i in range(len(batch["file"]))})


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader(load: Callable[..., Any], local: Zoo, start: str) -> None:
    ds = load(split="train").filter(lambda snapshot: snapshot["architecture"] == PLAIN.id)
    ds = with_weights(ds, columns=["model_id"])
    ds[0]  # connections are open before the workers start
    batches = list(DataLoader(ds, batch_size=6, num_workers=2, multiprocessing_context=start))
    weights = torch.cat([batch["weights"] for batch in batches])
    assert np.array_equal(weights.numpy(), local.weights(local.filter(split="train", architecture=PLAIN.id)))


def test_streams(load: Callable[..., Any], local: Zoo) -> None:
    ds = with_weights(load(split="train", streaming=True).shuffle(seed=3, buffer_size=8), columns=["sha256"])
    expected = {snapshot["sha256"]: local.row(snapshot) for snapshot in local.filter(split="train")}
    found = {snapshot["sha256"]: snapshot["weights"] for snapshot in ds}
    assert found.keys() == expected.keys() and all(
        np.array_equal(found[key], expected[key]) for key in expected
    )


def test_a_dataset_finds_its_zoo_in_another_process(
    load: Callable[..., Any], local: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = load(split="test")
    monkeypatch.setattr("nws_dataset.reading.load._opened", {})
    assert np.array_equal(with_weights(ds)[0]["weights"], local.row(ds[0]))


# --- faults and damage ---


@pytest.mark.parametrize(
    "faults", [(503,), (429,), ("drop",), ("cut",), ("stall",), (503, "cut", 429, "drop")], ids=str
)
def test_faults_in_every_second_request(
    remote: Callable[..., Zoo],
    local: Zoo,
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    faults: tuple[Any, ...],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.stall_seconds = 0.6
    hub.faults = every_second(*faults)
    zoo = remote()
    snapshots = zoo.filter(architecture=NORMED.id, is_final=True)
    assert np.array_equal(zoo.weights(snapshots), local.weights(snapshots))


def test_a_hub_that_stays_away(remote: Callable[..., Zoo], hub: LoopbackHub) -> None:
    zoo = remote()
    snapshots = zoo.filter(architecture=NORMED.id)
    hub.faults = lambda number, method, path: 503
    with pytest.raises(
        ZooError,
        match=r"org/nws@.*parquet at byte \d+: expected an answer from the Hub, "
        r"found 503.*then try again",
    ):
        zoo.weights(snapshots)


def test_a_flipped_byte_on_the_way(remote: Callable[..., Zoo], hub: LoopbackHub) -> None:
    zoo = remote()
    snapshot = zoo.filter()[3]
    hub.faults = lambda number, method, path: "corrupt"
    with pytest.raises(
        ZooError,
        match=rf"org/nws@\w+/{snapshot['file']} at byte {snapshot['offset']}: expected "
        rf"sha256 {snapshot['sha256']}",
    ):
        zoo.row(snapshot)
    assert zoo.files.cache.get(snapshot["sha256"]) is None


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "outside": ({"file": "../../secret"}, "a relative path"),
    "absolute": ({"file": "/etc/passwd"}, "a relative path"),
    "unlisted": ({"file": "README.md"}, "a file that nws.json lists"),
    "beyond": ({"length": 1 << 40}, "a range in its"),
    "before": ({"offset": -1}, "a range in its"),
    "empty": ({"length": 0}, "a range in its"),
    "digest": ({"sha256": "../../../secret"}, "a SHA-256 in hexadecimal"),
    "shifted": ({"offset": 5}, "expected sha256"),
}


@pytest.mark.parametrize(("changes", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_index(hub: LoopbackHub, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    shard = "snapshots/demo/train-a-00000.parquet"
    index, _ = make_shard(tmp_path / "zoo", shard, PLAIN)
    write_index(
        tmp_path / "zoo" / INDEX,
        pa.Table.from_pylist([{**snapshot, **changes} for snapshot in index.to_pylist()], INDEX_SCHEMA),
    )
    write_manifest(tmp_path / "zoo", ["demo"], 3, [shard, INDEX])
    hub.put(REPOSITORY, tmp_path / "zoo")
    zoo = Zoo(REPOSITORY, cache_dir=tmp_path / "cache")
    reads: Iterator[Callable[[Snapshots], Any]] = iter(
        (lambda snapshots: zoo.row(snapshots[0]), zoo.weights, zoo.arrays)
    )
    for read in reads:
        with pytest.raises(ZooError, match=message):
            read(zoo.filter())


def test_an_index_that_is_not_the_listed_one(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    hub.put(REPOSITORY, {**files, INDEX: files["index/demo/test.parquet"]})
    with pytest.raises(ZooError, match=r"train\.parquet at byte 0: expected sha256"):
        Zoo(REPOSITORY, cache_dir=tmp_path / "cache").filter()
