"""load_dataset and with_weights: the stock library's datasets, with networks that are read when asked for."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from loopback_hub import LoopbackHub
from nws_dataset.errors import ZooError
from nws_dataset.load import load_dataset, with_weights
from nws_dataset.schema import INDEX_SCHEMA, SNAPSHOTS_SCHEMA
from nws_dataset.shards import unpack
from nws_dataset.zoo import DEFAULT_REPOSITORY, READ_COLUMNS, Zoo
from zoo_factory import PLAIN, make_zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", subsets=("demo", "more"))


@pytest.fixture
def load(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    cache = tmp_path_factory.getbasetemp() / "cache"
    return lambda path=folder, *args, **kwargs: load_dataset(path, *args, **kwargs, cache_dir=str(cache))


# --- load_dataset ---


def test_the_stock_library_reads_the_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    index = datasets.load_dataset("nws", cache_dir=str(tmp_path))
    assert {split: part.num_rows for split, part in index.items()} == {"train": 36, "validation": 12, "test": 12}
    assert index["train"].features == datasets.Features.from_arrow_schema(INDEX_SCHEMA)
    subset = datasets.load_dataset("nws", "more", split="test", cache_dir=str(tmp_path))
    assert subset.features == datasets.Features.from_arrow_schema(SNAPSHOTS_SCHEMA)
    assert set(subset["subset"]) == {"more"}
    streamed = datasets.load_dataset("nws", "more", split="test", streaming=True)
    assert len(next(iter(streamed))["weights"]) == len(subset[0]["weights"])


def test_rows_are_those_of_the_zoo(load: Callable[..., Any], folder: Path) -> None:
    ds = load(split="train")
    assert list(ds) == list(Zoo(folder).filter(split="train"))
    assert set(load()) == {"train", "validation", "test"}


def test_subsets_hold_their_weights(load: Callable[..., Any], folder: Path) -> None:
    ds, zoo = load(name="demo", split="validation"), Zoo(folder)
    for row in ds:
        (expected,) = zoo.filter(model_id=row["model_id"], snapshot=row["snapshot"])
        assert np.array_equal(unpack(zoo.architecture(row), row["weights"]), zoo.row(expected))
    assert len(ds) == len(zoo.filter(subset="demo", split="validation"))


def test_only_splits_with_rows(tmp_path: Path, load: Callable[..., Any]) -> None:
    assert set(load(make_zoo(tmp_path / "nws", models=3))) == {"train"}


def test_a_zoo_that_has_grown_is_read_again(tmp_path: Path, load: Callable[..., Any]) -> None:
    assert len(load(make_zoo(tmp_path / "nws", models=3), split="train")) == 9
    assert len(load(make_zoo(tmp_path / "nws", models=6), split="train")) == 12


def test_local_name(folder: Path, tmp_path: Path, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub) -> None:
    monkeypatch.chdir(folder.parent)
    assert len(load("nws", split="test")) == 12
    monkeypatch.chdir(tmp_path)
    assert len(with_weights(load(str(folder), split="test"))) == 12
    (tmp_path / "nws").mkdir()  # not a zoo, such as the folder of the pointer card
    hub.put(DEFAULT_REPOSITORY, make_zoo(tmp_path / "another", models=5))
    assert len(load("nws", split="test")) == 3


def test_mistakes(tmp_path: Path, load: Callable[..., Any]) -> None:
    with pytest.raises(ZooError, match="not a zoo"):
        load(tmp_path)
    with pytest.raises(ZooError, match="expected one of index, demo, more, found 'main'"):
        load(name="main")


# --- with_weights ---

CHANGES: dict[str, Callable[[Any], Any]] = {
    "none": lambda ds: ds,
    "filter": lambda ds: ds.filter(lambda row: row["is_final"]),
    "select": lambda ds: ds.select([5, 2, 9]),
    "map": lambda ds: ds.map(lambda row: {"error": 1 - row["test_accuracy"]}),
    "shuffle": lambda ds: ds.shuffle(seed=1),
    "sort": lambda ds: ds.sort("test_accuracy"),
    "train_test_split": lambda ds: ds.train_test_split(0.5, seed=1)["train"],
    "concatenate": lambda ds: datasets.concatenate_datasets([ds.select([1, 2]), ds.select([3])]),
    "select_columns": lambda ds: ds.select_columns(["file", "offset", "length", "sha256", "architecture_json"]),
    "all": lambda ds: ds.filter(lambda row: row["is_final"]).shuffle(seed=1).map(lambda row: {"x": 1}).select(range(4)),
}


@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # datasets' sort, with a newer pyarrow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_after_a_change(load: Callable[..., Any], folder: Path, change: Callable[[Any], Any]) -> None:
    zoo, plain = Zoo(folder), change(load(split="train")).with_format(None)
    ds = with_weights(change(load(split="train")))
    assert len(ds) == len(plain) > 0
    for row, expected in zip(ds, plain, strict=True):
        weights = row.pop("weights")
        assert row == expected
        assert weights.dtype == np.float32 and np.array_equal(weights, zoo.row(expected))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_formats_that_are_set_before(load: Callable[..., Any], folder: Path, kind: str) -> None:
    plain = load(split="train").filter(lambda row: row["architecture"] == PLAIN.id)
    formatted = plain.with_format(kind, columns=[*READ_COLUMNS, "test_accuracy", "model_id"])
    ds, expected = with_weights(formatted), Zoo(folder).weights(plain)
    assert set(ds[0]) == {*READ_COLUMNS, "test_accuracy", "model_id", "weights"}
    for batch in (ds[2:5], with_weights(formatted, columns=["test_accuracy"])[2:5]):
        assert type(batch["weights"]) is type(batch["test_accuracy"]) is {"numpy": np.ndarray, "torch": torch.Tensor}[kind]
        assert np.array_equal(batch["weights"], expected[2:5]) and np.allclose(batch["test_accuracy"], plain[2:5]["test_accuracy"])
    assert np.array_equal(ds[3]["weights"], expected[3])
    mixed = with_weights(load(split="train").with_format(kind))[:20]["weights"]
    assert {len(weights) for weights in mixed} == {386, 3050}


def test_set_format_of_rows_with_their_bytes(load: Callable[..., Any]) -> None:
    ds = load(name="demo", split="train")
    ds.set_format("torch", columns=["test_accuracy", "snapshot"])
    assert {name: value.dtype for name, value in ds[:4].items()} == {"test_accuracy": torch.float32, "snapshot": torch.int64}


def test_map_in_two_processes(load: Callable[..., Any], folder: Path) -> None:
    ds = with_weights(load(split="train"))
    norms = ds.map(lambda row: {"norm": float(np.linalg.norm(row["weights"]))}, num_proc=2, remove_columns=ds.column_names)
    expected = [float(np.linalg.norm(array)) for array in Zoo(folder).arrays(load(split="train"))]
    assert np.allclose(norms.with_format("numpy")["norm"][:], expected)


@pytest.mark.parametrize("columns", [None, ["model_id", "snapshot"]])
def test_streams(load: Callable[..., Any], folder: Path, columns: list[str] | None) -> None:
    zoo, plain = Zoo(folder), load(split="train", streaming=True)
    expected = {(row["model_id"], row["snapshot"]): zoo.row(row) for row in zoo.filter(split="train")}
    parts = [with_weights(plain.shard(2, i), columns=columns) for i in range(2)]  # an index file for each subset
    shuffled = with_weights(plain.shuffle(seed=1, buffer_size=10), columns=columns)
    for rows in ([row for part in parts for row in part], list(shuffled), list(with_weights(plain, columns=columns))):
        assert {(row["model_id"], row["snapshot"]) for row in rows} == set(expected) and len(rows) == len(expected)
        assert all(np.array_equal(row["weights"], expected[row["model_id"], row["snapshot"]]) for row in rows)
        assert columns is None or set(rows[0]) == {*columns, "weights"}
    assert isinstance(with_weights(load(streaming=True)), datasets.IterableDatasetDict)


def test_saved_to_disk_and_loaded_again(load: Callable[..., Any], tmp_path: Path) -> None:
    load(split="test").save_to_disk(tmp_path / "saved")
    assert with_weights(datasets.load_from_disk(tmp_path / "saved"))[0]["weights"].ndim == 1


def test_batches_and_columns(load: Callable[..., Any]) -> None:
    ds = with_weights(load(split="train"))
    batch = ds[:20]
    assert {len(weights) for weights in batch["weights"]} == {386, 3050}
    assert len(batch["model_id"]) == 20
    assert ds["test_accuracy"][:3] == [row["test_accuracy"] for row in load(split="train").select(range(3))]
    assert ds["file"][0].startswith("snapshots/")
    with pytest.raises((KeyError, ValueError), match="weights"):
        ds["weights"]


def test_weights_are_read_only_when_asked_for(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    arrays = Zoo.arrays

    def noted(self: Zoo, rows: Any) -> Any:
        read.extend(row["sha256"] for row in rows)
        return arrays(self, rows)

    monkeypatch.setattr(Zoo, "arrays", noted)
    ds = with_weights(load(split="train").filter(lambda row: row["is_final"]))
    assert read == []
    assert read == [ds[3]["sha256"]]


def test_dataset_dict(load: Callable[..., Any]) -> None:
    parts = with_weights(load())
    assert isinstance(parts, datasets.DatasetDict)
    assert all("weights" in part[0] for part in parts.values())


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
def test_data_loader(load: Callable[..., Any], folder: Path, start: str | None) -> None:
    ds = load(split="train").filter(lambda row: row["architecture"] == PLAIN.id)
    ds = with_weights(ds, columns=["model_id", "test_accuracy", "class_test_accuracy"])
    assert set(ds[0]) == {"model_id", "test_accuracy", "class_test_accuracy", "weights"}
    batches = list(DataLoader(ds, batch_size=6, num_workers=2 if start else 0, multiprocessing_context=start))
    weights = torch.cat([batch["weights"] for batch in batches])
    zoo = Zoo(folder)
    assert np.array_equal(weights.numpy(), zoo.weights(zoo.filter(split="train", architecture=PLAIN.id)))
    assert batches[0]["test_accuracy"].shape == (6,)


def test_pickle(load: Callable[..., Any]) -> None:
    ds = with_weights(load(split="train"))
    assert np.array_equal(pickle.loads(pickle.dumps(ds))[1]["weights"], ds[1]["weights"])


def test_zoo_weights_take_a_dataset(load: Callable[..., Any], folder: Path) -> None:
    zoo, ds = Zoo(folder), load(split="train").filter(lambda row: row["architecture"] == PLAIN.id)
    assert np.array_equal(zoo.weights(ds), np.stack(with_weights(ds)[:]["weights"]))


def test_zoo_is_known_or_given(folder: Path, tmp_path: Path) -> None:
    stock = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    with pytest.raises(ZooError, match=r"pass zoo=Zoo\(path\)"):
        with_weights(stock)
    zoo = Zoo(folder, check=True)
    assert np.array_equal(with_weights(stock, zoo)[0]["weights"], zoo.row(stock[0]))


def test_columns_that_are_needed(load: Callable[..., Any]) -> None:
    with pytest.raises(ZooError, match="found no file, offset, length, sha256; load the index"):
        with_weights(load(name="demo", split="train"))
    with pytest.raises(ZooError, match="found no offset"):
        with_weights(load(split="train").remove_columns("offset"))
    with pytest.raises(ZooError, match="found list; load it with load_dataset"):
        with_weights(list(load(split="train")))
    with pytest.raises(ZooError, match="found no nothing"):
        with_weights(load(split="train"), columns=["nothing"])
