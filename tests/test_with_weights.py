"""with_weights: the methods of the library keep the weights, or refuse by name; snapshots of another zoo are
refused.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from nws_dataset.errors import ZooError
from nws_dataset.reading import weighted
from nws_dataset.reading.load import load_dataset, with_weights
from nws_dataset.reading.snapshots import READ_COLUMNS
from nws_dataset.reading.weighted import KEEP_WEIGHTS, MATERIALIZED, REFUSED, WeightsDataset
from nws_dataset.reading.zoo import Zoo
from testing.zoo_factory import PLAIN, make_zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def index(folder: Path, cache: str) -> Any:
    """Nine snapshots of one layout, without weights."""
    return load_dataset(folder, split="train", cache_dir=cache).filter(
        lambda snapshot: snapshot["architecture"] == PLAIN.id
    )


@pytest.fixture
def ds(index: Any) -> Any:
    return with_weights(index)


def same(snapshots: Any, folder: Path) -> bool:
    """Whether each snapshot, without a format, has the weights that its SHA-256 is of."""
    known = {snapshot["sha256"]: Zoo(folder).row(snapshot) for snapshot in Zoo(folder).filter()}
    return len(snapshots) > 0 and all(
        np.array_equal(snapshot["weights"], known[snapshot["sha256"]]) for snapshot in snapshots
    )


# Methods


def formatted_for_a_while(ds: Any) -> None:
    with ds.formatted_as("torch"):
        assert isinstance(ds[0]["weights"], torch.Tensor)


METHODS: dict[str, Callable[[Any], Any]] = {
    "map": lambda ds: ds.map(lambda snapshot: {"x": float(np.linalg.norm(snapshot["weights"]))}),
    "map of batches": lambda ds: ds.map(
        lambda batch: {"x": [float(np.linalg.norm(w)) for w in batch["weights"]]}, batched=True
    ),
    "map that returns snapshots": lambda ds: ds.map(lambda snapshot: {**snapshot, "x": 1.0}),
    "map that changes snapshots": lambda ds: ds.map(lambda snapshot: snapshot.update(x=1.0) or snapshot),
    "map of nothing": lambda ds: ds.map().add_column("x", [1.0] * len(ds)),
    "map for its effect": lambda ds: ds.map(lambda snapshot: None).add_column("x", [1.0] * len(ds)),
    "map with indices": lambda ds: ds.map(lambda snapshot, i: {"x": float(i)}, with_indices=True),
    "map of columns": lambda ds: ds.map(lambda a: {"x": a}, input_columns=["test_accuracy"]),
    "map that removes": lambda ds: ds.map(
        lambda snapshot: {"x": snapshot["test_accuracy"]}, remove_columns=["test_accuracy", "seed"]
    ),
    "map in memory": lambda ds: ds.map(lambda snapshot: {"x": 1.0}, keep_in_memory=True),
    "add_column": lambda ds: ds.add_column("x", [1.0] * len(ds)),
    "rename_column": lambda ds: ds.rename_column("test_accuracy", "x"),
    "rename_columns": lambda ds: ds.rename_columns({"test_accuracy": "x", "seed": "y"}),
    "remove_columns": lambda ds: ds.rename_column("test_accuracy", "x").remove_columns(["seed", "epoch"]),
    "select_columns": lambda ds: ds.rename_column("test_accuracy", "x").select_columns(
        ["x", "sha256", "weights"]
    ),
    "cast": lambda ds: ds.rename_column("test_accuracy", "x").cast_column("x", datasets.Value("float32")),
    "class_encode_column": lambda ds: ds.rename_column("dataset", "x").class_encode_column("x"),
    "add_item": lambda ds: ds.rename_column("test_accuracy", "x").add_item(
        ds.remove_columns("weights").rename_column("test_accuracy", "x")[0]
    ),
    "to numpy and back": lambda ds: (
        ds.rename_column("test_accuracy", "x").with_format("numpy").with_format(None)
    ),
    "reset_format": lambda ds: [
        made := ds.rename_column("test_accuracy", "x").with_format("torch"),
        made.reset_format(),
    ][0],
    "formatted_as": lambda ds: [
        made := ds.rename_column("test_accuracy", "x"),
        made.formatted_as("torch").__enter__(),
        made.reset_format(),
    ][0],
    "deepcopy": lambda ds: copy.deepcopy(ds.rename_column("test_accuracy", "x")),
    "pickle": lambda ds: pickle.loads(pickle.dumps(ds.rename_column("test_accuracy", "x"))),
    "with_weights": lambda ds: with_weights(ds.rename_column("test_accuracy", "x")),
}
SELECTIONS: dict[str, Callable[[Any], Any]] = {
    "filter": lambda ds: ds.filter(lambda snapshot: snapshot["weights"].size > 0 and snapshot["is_final"]),
    "filter of batches": lambda ds: ds.filter(
        lambda batch: [len(w) > 0 for w in batch["weights"]], batched=True
    ),
    "filter of columns": lambda ds: ds.filter(lambda final: final, input_columns=["is_final"]),
    "select": lambda ds: ds.select([5, 2, 7]),
    "select a range": lambda ds: ds.select(range(2, 6)),
    "shuffle": lambda ds: ds.shuffle(seed=1),
    "sort": lambda ds: ds.sort("snapshot"),
    "train_test_split": lambda ds: ds.train_test_split(0.5, seed=1)["test"],
    "shard": lambda ds: ds.shard(2, 1),
    "skip and take": lambda ds: ds.skip(2).take(3),
    "repeat": lambda ds: ds.repeat(2),
    "flatten_indices": lambda ds: ds.shuffle(seed=1).flatten_indices(),
    "flatten": lambda ds: ds.flatten(),
    "concatenate": lambda ds: datasets.concatenate_datasets([ds.select([1, 2]), ds.select([3])]),
    "interleave": lambda ds: datasets.interleave_datasets([ds.select([1, 2]), ds.select([3, 4])]),
    "dict": lambda ds: (
        datasets.DatasetDict(a=ds)
        .map(lambda snapshot: {"x": 1.0})
        .filter(lambda snapshot: snapshot["is_final"])["a"]
    ),
    "column": lambda ds: ds.select(range(4)),
}


@pytest.mark.parametrize("change", METHODS.values(), ids=METHODS)
def test_methods_that_change_columns(ds: Any, folder: Path, change: Callable[[Any], Any]) -> None:
    changed = change(ds)
    assert type(changed) is WeightsDataset and same(changed, folder)
    assert changed[0]["x"] is not None and changed[:2]["x"] == changed["x"][:2]
    assert all(np.array_equal(a, b) for a, b in zip(changed[:]["weights"], changed["weights"], strict=True))


# datasets' sort, with a newer pyarrow
@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")
@pytest.mark.parametrize("change", SELECTIONS.values(), ids=SELECTIONS)
def test_methods_that_choose_snapshots(
    ds: Any, index: Any, folder: Path, change: Callable[[Any], Any]
) -> None:
    assert same(change(ds), folder)
    assert [snapshot["sha256"] for snapshot in change(ds.map(lambda snapshot: {"x": 2}))] == [
        snapshot["sha256"] for snapshot in change(ds)
    ]


def test_what_is_shown(ds: Any, folder: Path) -> None:
    hidden = ds.remove_columns(["file", "seed"])
    assert set(hidden[0]) == {*ds.column_names, "weights"} - {"file", "seed"} and same(hidden, folder)
    few = ds.select_columns(["test_accuracy"])
    assert set(few[0]) == set(few[:2]) == {"test_accuracy", "weights"}
    assert set(few.map(lambda snapshot: {"x": 1})[0]) == {"test_accuracy", "weights", "x"}
    plain = few.map(lambda snapshot: {"x": 1}).remove_columns("weights")
    assert type(plain) is datasets.Dataset and set(plain[0]) == {"test_accuracy", "x"}
    mapped = ds.map(lambda snapshot: {"norm": 1.0}, remove_columns=["weights"])
    assert type(mapped) is datasets.Dataset and "weights" not in mapped[0] and "norm" in mapped[0]
    alone = ds.map(lambda snapshot: {"norm": 1.0}, remove_columns=ds.column_names)
    assert type(alone) is datasets.Dataset and alone[0] == {"norm": 1.0}
    assert [
        snapshot["weights"].size
        for snapshot in ds.iter(4)
        for snapshot in [{"weights": np.stack(snapshot["weights"])}]
    ] == [
        386 * 4,
        386 * 4,
        386,
    ]


REFUSALS: dict[str, Callable[[Any], Any]] = {
    "map: expected a function that returns": lambda ds: ds.map(
        lambda snapshot: {"weights": snapshot["weights"] * 2}
    ),
    "map: expected a function": lambda ds: ds.map(
        lambda snapshot: [snapshot["weights"].fill(1), snapshot][1]
    ),
    "map: expected a function that": lambda ds: ds.with_format("arrow").map(
        lambda t: t.set_column(t.num_columns - 1, "weights", t["sha256"]), batched=True
    ),
    "map: expected columns": lambda ds: ds.map(lambda w: {}, input_columns="weights"),
    "map: expected the columns": lambda ds: ds.map(lambda snapshot: {}, remove_columns=["file"]),
    "filter: expected columns": lambda ds: ds.filter(lambda w: True, input_columns=["weights"]),
    "rename_column: expected": lambda ds: ds.rename_column("file", "path"),
    "rename_column: expected weights": lambda ds: ds.rename_column("seed", "weights"),
    "rename_columns: expected": lambda ds: ds.rename_columns({"weights": "w"}),
    "add_column: expected": lambda ds: ds.add_column("weights", [1] * len(ds)),
    "sort: expected": lambda ds: ds.sort(["weights"]),
    "cast_column: expected": lambda ds: ds.cast_column("weights", datasets.Value("string")),
    "batch: expected": lambda ds: ds.batch(2),
    "to_tf_dataset: expected": lambda ds: ds.to_tf_dataset(2),
    "to_iterable_dataset: expected": lambda ds: ds.with_format(
        "torch", columns=["snapshot"]
    ).to_iterable_dataset(),
    "with_weights: expected the columns": lambda ds: ds.map(lambda snapshot: {"offset": None})[0],
    "snapshots with weights: expected": lambda ds: datasets.concatenate_datasets([ds, ds]).remove_columns(
        "file"
    )[0],
    "with_weights: expected snapshots of the config index": lambda ds: with_weights(
        datasets.Dataset.from_list(ds.to_list())
    ),
}


@pytest.mark.parametrize("told", REFUSALS)
def test_what_is_refused(ds: Any, told: str) -> None:
    with pytest.raises(ZooError, match=told) as error:
        REFUSALS[told](ds)
    assert "\n" not in str(error.value)


def test_every_public_method_is_decided() -> None:
    """A method that a new version of the library has must be looked at."""
    own = {name for name in vars(WeightsDataset) if not name.startswith("__")}
    through = {  # on stored columns, of the object itself, or by way of those above
        "add_elasticsearch_index", "add_faiss_index", "add_faiss_index_from_external_arrays", "builder_name",
        "cache_files", "citation",
        "cleanup_cache_files", "column_names", "config_name", "data", "dataset_size", "description",
        "download_checksums", "download_size",
        "drop_index", "features", "format", "formatted_as", "get_index", "get_nearest_examples",
        "get_nearest_examples_batch", "homepage",
        "info", "is_index_initialized", "iter", "license", "list_indexes", "load_elasticsearch_index",
        "load_faiss_index", "load_from_disk",
        "num_columns", "num_rows", "reset_format", "save_faiss_index", "search", "search_batch",
        "set_transform", "shape",
        "size_in_bytes", "split", "supervised_keys", "unique", "version", "with_format", "with_transform",
    }  # fmt: skip
    public = {name for name in dir(datasets.Dataset) if not name.startswith(("_", "from_"))}
    assert public - own - through == set()
    assert {*KEEP_WEIGHTS, *MATERIALIZED, *REFUSED} <= own


# Formats


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("columns", [None, ["test_accuracy", "model_id"]])
@pytest.mark.parametrize("kind", ["numpy", "torch", "arrow", "pandas"])
def test_formats(index: Any, folder: Path, kind: str, columns: list[str] | None, late: bool) -> None:
    named = columns and [*columns, *READ_COLUMNS]
    ds = (
        with_weights(index).with_format(kind, columns=columns)
        if late
        else with_weights(index.with_format(kind, columns=named))
    )
    expected, names = Zoo(folder).weights(index), set(columns or index.column_names) | {"weights"}
    batch, snapshot, column = ds[2:5], ds[3], ds["weights"]
    if kind in ("arrow", "pandas"):
        assert type(batch) is type(snapshot) is {"arrow": pa.Table, "pandas": pd.DataFrame}[kind]
        assert names <= set(batch.column_names if kind == "arrow" else batch.columns)
        for found, numbers in ((batch, range(2, 5)), (snapshot, [3])):
            values = found["weights"].to_pylist() if kind == "arrow" else list(found["weights"])
            assert np.array_equal(np.array(values, np.float32), expected[list(numbers)])
        assert len(column) == len(index) and len(ds["model_id"]) == len(index)
    else:
        assert (
            type(batch["weights"])
            is type(snapshot["weights"])
            is {"numpy": np.ndarray, "torch": torch.Tensor}[kind]
        )
        assert (
            names <= set(snapshot)
            and snapshot["weights"].dtype == {"numpy": np.float32, "torch": torch.float32}[kind]
        )
        assert np.array_equal(batch["weights"], expected[2:5]) and np.array_equal(
            snapshot["weights"], expected[3]
        )
        assert np.array_equal(column[3], expected[3])
    add = {
        "arrow": lambda t: t.append_column("x", t["weights"]),
        "pandas": lambda t: t.assign(x=t["weights"]),
    }
    mapped = ds.map(add.get(kind, lambda batch: {"x": [1] * len(batch["weights"])}), batched=True)
    assert type(mapped) is WeightsDataset and "x" in (
        mapped[0].column_names if kind == "arrow" else mapped[0]
    )
    assert same(mapped.with_format(None), folder) and mapped.view.type == kind
    assert type(ds.filter(lambda snapshots: [True] * len(snapshots["weights"]), batched=True)[0]) is type(
        snapshot
    )


def test_a_transform_gets_the_weights(ds: Any, folder: Path) -> None:
    made = ds.with_transform(
        lambda batch: {"norm": [float((w**2).sum()) for w in batch["weights"]], "id": batch["model_id"]}
    )
    expected = (Zoo(folder).weights(ds.remove_columns("weights")) ** 2).sum(1)
    assert (
        set(made[0]) == {"norm", "id"}
        and np.allclose([snapshot["norm"] for snapshot in made], expected)
        and np.allclose(made["norm"][:3], expected[:3])
    )
    assert np.allclose(made.select([2, 1])[:]["norm"], expected[[2, 1]])


def test_format_is_handed_on(ds: Any, folder: Path) -> None:
    other = ds.with_format("torch", dtype=torch.float64)
    assert other[0]["weights"].dtype == torch.float64
    ds.set_format(**other.format)
    assert ds[:2]["weights"].dtype == torch.float64 and ds.snapshots().format["type"] == "torch"
    with ds.formatted_as("numpy"):
        assert type(ds[0]["weights"]) is np.ndarray
    assert ds[0]["weights"].dtype == torch.float64
    with pytest.raises(ValueError, match="nothing"):
        ds.set_format("torch", columns=["nothing"])


# What leaves the dataset


def test_stored(ds: Any, folder: Path, tmp_path: Path) -> None:
    expected, few = Zoo(folder).weights(ds.remove_columns("weights")), ds.select_columns(["model_id"])
    few.save_to_disk(tmp_path / "saved")
    few.to_parquet(tmp_path / "few.parquet")
    few.to_json(tmp_path / "few.json")
    few.to_csv(tmp_path / "few.csv")
    datasets.DatasetDict(train=few).save_to_disk(tmp_path / "dict")
    found = {
        "to_pandas": list(few.to_pandas()["weights"]),
        "to_dict": few.to_dict()["weights"],
        "to_list": [snapshot["weights"] for snapshot in few.to_list()],
        "save_to_disk": datasets.load_from_disk(tmp_path / "saved").with_format("numpy")[:]["weights"],
        "a dict": datasets.load_from_disk(tmp_path / "dict")["train"][:]["weights"],
        "to_parquet": pd.read_parquet(tmp_path / "few.parquet")["weights"].to_list(),
        "to_json": [json.loads(line)["weights"] for line in (tmp_path / "few.json").read_text().splitlines()],
    }
    for name, values in found.items():
        assert np.allclose(np.array([np.asarray(value) for value in values], np.float32), expected), name
    assert set(few.to_pandas().columns) == {"model_id", "weights"}
    assert len(pd.read_csv(tmp_path / "few.csv")["weights"][0]) > 386


# Streams


@pytest.mark.parametrize("kind", [None, "numpy", "torch", "arrow"])
def test_streams_that_were_mapped_before(folder: Path, cache: str, kind: str | None) -> None:
    plain = load_dataset(folder, split="train", streaming=True, cache_dir=cache)
    mapped = plain.map(lambda snapshot: {"x": 1}).with_format(kind)
    assert mapped.column_names is None
    for columns in (None, ["x", "sha256", "weights"]):
        snapshots = list(with_weights(mapped, columns=columns))
        assert len(snapshots) == 18
        if kind != "arrow":
            assert same(snapshots, folder) and (columns is None or set(snapshots[0]) == set(columns))
        else:
            known = {snapshot["sha256"]: Zoo(folder).row(snapshot) for snapshot in Zoo(folder).filter()}
            assert all(
                np.array_equal(snapshot["weights"][0].values, known[snapshot["sha256"][0].as_py()])
                for snapshot in snapshots
            )
    after = (
        with_weights(plain)
        .map(lambda snapshot: {"norm": float(np.linalg.norm(snapshot["weights"]))})
        .rename_column("norm", "y")
    )
    assert all(
        snapshot["y"] == float(np.linalg.norm(snapshot["weights"]))
        for snapshot in after.filter(lambda snapshot: snapshot["is_final"])
    )
    with pytest.raises(ZooError, match="found no offset"):
        with_weights(plain.map(lambda snapshot: {"x": 1}, remove_columns=["offset"]))
    with pytest.raises(ZooError, match="found no nothing"):
        with_weights(mapped, columns=["nothing"])


@pytest.mark.parametrize("kind", [None, "numpy", "torch"])
def test_to_iterable_dataset(ds: Any, folder: Path, kind: str | None) -> None:
    stream = ds.select_columns(["sha256"]).with_format(kind).to_iterable_dataset(num_shards=3)
    snapshots = list(stream)
    assert len(snapshots) == 9 and same(snapshots, folder) and set(snapshots[0]) == {"sha256", "weights"}


def test_several_splits(folder: Path, cache: str) -> None:
    for streaming in (False, True):
        parts = with_weights(
            load_dataset(folder, split=["train", "test"], streaming=streaming, cache_dir=cache)
        )
        assert (
            isinstance(parts, list)
            and [len(list(part)) for part in parts] == [18, 6]
            and same(list(parts[1]), folder)
        )
    assert {type(part) for part in with_weights(load_dataset(folder, cache_dir=cache)).values()} == {
        WeightsDataset
    }


# Snapshots of another zoo


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("other") / "nws", seed=1)


@pytest.mark.parametrize("join", [datasets.concatenate_datasets, datasets.interleave_datasets])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_two_zoos(folder: Path, other: Path, cache: str, join: Any, streaming: bool) -> None:
    joined = join(
        [load_dataset(path, split="train", streaming=streaming, cache_dir=cache) for path in (folder, other)]
    )
    for zoo in (None, Zoo(folder), Zoo(other)):
        with pytest.raises(
            ZooError, match="expected snapshots of one zoo, found snapshots of 2 zoos, joined"
        ):
            with_weights(joined, zoo)


def test_rows_of_two_zoos_that_name_none(folder: Path, other: Path) -> None:
    """Nothing but the snapshots themselves tells."""
    snapshots = [[dict(snapshot) for snapshot in Zoo(path).filter(split="train")] for path in (folder, other)]
    joined = datasets.Dataset.from_list([*snapshots[0], *snapshots[1][:7]])
    with pytest.raises(ZooError, match=rf"expected snapshots of {folder}, found 7 of 25 of another"):
        with_weights(joined, Zoo(folder))
    assert same(with_weights(joined.select(range(18)), Zoo(folder)), folder)
    stream = with_weights(joined.to_iterable_dataset(), Zoo(folder))
    with pytest.raises(ZooError, match="a snapshot of another zoo"):
        list(stream)


def test_rows_that_hide_behind_others(index: Any, folder: Path, other: Path) -> None:
    """`info` of what was joined names one zoo alone."""
    strange = datasets.Dataset.from_list(
        [dict(snapshot) for snapshot in Zoo(other).filter(split="train", architecture=PLAIN.id)]
    )
    joined = with_weights(datasets.concatenate_datasets([index, strange.cast(index.features)]))
    assert same(joined.select(range(9)), folder)
    with pytest.raises(ZooError, match="a snapshot of another zoo"):
        joined[9]
    moved = with_weights(index).map(
        lambda snapshot, i: {"offset": index[(i + 1) % 9]["offset"]}, with_indices=True
    )
    with pytest.raises(ZooError, match="found others: a snapshot of another zoo"):
        moved[0]


@pytest.mark.parametrize("stock", [False, True])
def test_rows_of_before_it_grew(tmp_path: Path, cache: str, stock: bool) -> None:
    folder = make_zoo(tmp_path / "nws", models=8)
    load = datasets.load_dataset if stock else load_dataset
    before = load(str(folder), split="train", cache_dir=cache)
    assert same(with_weights(before, Zoo(folder)), folder)
    make_zoo(folder, models=16)
    with pytest.raises(
        ZooError, match="of another, or of this one as it was before; load them from this zoo again"
    ):
        with_weights(before, Zoo(folder))
    assert same(with_weights(load(str(folder), split="train", cache_dir=cache), Zoo(folder)), folder)


def test_joined_by_the_library(ds: Any, folder: Path) -> None:
    """What the docstring says of the functions that nobody can intercept."""
    zoo = Zoo(folder)
    again = with_weights(ds.remove_columns("weights"), zoo)
    kept = datasets.concatenate_datasets([ds, again])
    assert same(kept, folder) and type(kept) is datasets.Dataset
    assert same(kept.map(lambda snapshot: {"x": 1}), folder) and same(with_weights(kept), folder)
    dropped = datasets.concatenate_datasets([ds, again.with_format("numpy")])
    assert "weights" not in dropped[0]
    assert kept["file"][0] == ds["file"][0] and kept.format["type"] == weighted.FORMAT
