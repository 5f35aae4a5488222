"""load_dataset and with_weights: the stock library's datasets, with networks that are read when asked for."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from nws_dataset.errors import ZooError
from nws_dataset.format.manifest import INDEX_CONFIG, Manifest
from nws_dataset.format.schema import INDEX_SCHEMA, SNAPSHOTS_SCHEMA
from nws_dataset.format.shards import unpack
from nws_dataset.reading import prepare
from nws_dataset.reading.load import load_dataset, with_weights
from nws_dataset.reading.snapshots import READ_COLUMNS
from nws_dataset.reading.zoo import DEFAULT_REPOSITORY, Zoo
from testing.loopback_hub import LoopbackHub
from testing.zoo_factory import PLAIN, make_zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", subsets=("demo", "more"))


@pytest.fixture
def load(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    cache = tmp_path_factory.getbasetemp() / "cache"
    return lambda path=folder, *args, **kwargs: load_dataset(path, *args, **kwargs, cache_dir=str(cache))


# --- load_dataset ---


def test_the_stock_library_reads_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    index = datasets.load_dataset("nws", cache_dir=str(tmp_path))
    assert {split: part.num_rows for split, part in index.items()} == {
        "train": 36,
        "validation": 12,
        "test": 12,
    }
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
    for snapshot in ds:
        (expected,) = zoo.filter(model_id=snapshot["model_id"], snapshot=snapshot["snapshot"])
        assert np.array_equal(unpack(zoo.architecture(snapshot), snapshot["weights"]), zoo.row(expected))
    assert len(ds) == len(zoo.filter(subset="demo", split="validation"))


def test_only_splits_with_snapshots(tmp_path: Path, load: Callable[..., Any]) -> None:
    assert set(load(make_zoo(tmp_path / "nws", models=3))) == {"train"}


def test_a_zoo_that_has_grown_is_read_again(tmp_path: Path, load: Callable[..., Any]) -> None:
    assert len(load(make_zoo(tmp_path / "nws", models=3), split="train")) == 9
    assert len(load(make_zoo(tmp_path / "nws", models=6), split="train")) == 12


# A folder's name and its card do not tell it from another: their cache is keyed on its content.

ROWS = """
import json, sys
import datasets
import nws_dataset
load = {"stock": datasets.load_dataset, "ours": nws_dataset.load_dataset}[sys.argv[1]]
loaded = load(sys.argv[2], split="validation", cache_dir=sys.argv[3])
print(json.dumps([snapshot["sha256"] for snapshot in loaded]))
"""


def digests(folder: Path, split: str = "train") -> list[str]:
    return [snapshot["sha256"] for snapshot in Zoo(folder).filter(split=split)]


def plain_card(folder: Path) -> Path:
    """Make the card one of before: it names no state."""
    card = folder / "README.md"
    front = yaml.safe_load(card.read_text().split("---\n")[1])
    front["dataset_info"] = [
        {name: info[name] for name in ("config_name", "features")} for info in front["dataset_info"]
    ]
    card.write_text(f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n")
    return folder


@pytest.mark.parametrize("library", ["stock", "ours"])
def test_another_process_reads_the_zoo_that_is_there(tmp_path: Path, library: str) -> None:
    def found(path: str, project: str = ".") -> list[str]:
        command = [sys.executable, "-c", ROWS, library, path, str(tmp_path / "cache")]
        return json.loads(
            subprocess.run(command, cwd=tmp_path / project, capture_output=True, text=True, check=True).stdout
        )

    one, two = (
        make_zoo(tmp_path / project / "nws", models=8, seed=seed)
        for seed, project in enumerate(("one", "two"))
    )
    for folder in (one, two):
        assert found("nws", folder.parent.name) == digests(folder, "validation")
    before = digests(one, "validation")
    make_zoo(one, models=9)
    assert found(str(one)) == digests(one, "validation") != before


@pytest.mark.parametrize("name", [None, "demo"])
@pytest.mark.parametrize("card", ["of today", "of before"])
def test_content_is_the_key(tmp_path: Path, load: Callable[..., Any], name: str | None, card: str) -> None:
    loaded = []
    for seed, models in ((0, 8), (1, 8), (1, 9), (0, 8)):  # 8 and 9 models have the same splits
        folder = make_zoo(tmp_path / f"{seed}" / "nws", models=models, seed=seed)
        if card == "of before":
            plain_card(folder)
        for ds, plain in (
            (load(folder, name), Zoo(folder)),
            (load(folder, name, streaming=True), Zoo(folder)),
        ):
            loaded.append([snapshot["test_accuracy"] for split in ds.values() for snapshot in split])
            assert sorted(loaded[-1]) == sorted(plain.index["test_accuracy"].to_pylist())
    assert loaded[0] == loaded[-2] != loaded[2]


def test_equal_zoos_share_the_cache(tmp_path: Path, load: Callable[..., Any]) -> None:
    one, two = (load(make_zoo(tmp_path / name), split="train") for name in ("one", "two"))
    assert one.cache_files == two.cache_files
    assert (one.info.homepage, two.info.homepage) == (str(tmp_path / "one"), str(tmp_path / "two"))


def test_a_folder_that_changes_under_the_load(
    tmp_path: Path, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read, times = make_zoo(tmp_path / "nws", models=8), prepare.read_index, []

    def grown(path: Path, content: memoryview) -> Any:
        times.append(path)
        if len(times) == 1:
            make_zoo(folder, models=9)
        return read(path, content)

    monkeypatch.setattr(prepare, "read_index", grown)
    assert [snapshot["sha256"] for snapshot in load(folder, split="train")] == digests(folder)
    stream = load(folder, split="train", streaming=True)
    make_zoo(folder, models=10)
    with pytest.raises(ZooError, match=r"a folder that does not change, found a new nws\.json"):
        list(stream)


def test_a_card_that_fits_no_file_is_refused_by_the_library(tmp_path: Path) -> None:
    folder, other = make_zoo(tmp_path / "nws", models=8), make_zoo(tmp_path / "other", models=9)
    shutil.copytree(other / "index", folder / "index", dirs_exist_ok=True)  # half of a new state
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError):
        datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("models", [9, 16])
@pytest.mark.parametrize("name", [INDEX_CONFIG, "demo"])
def test_the_library_beside_a_zoo_that_grows(tmp_path: Path, name: str, models: int) -> None:
    """Files of a new state arrive one by one, the card and nws.json last: snapshots of one state, or an
    error.
    """
    folder, new = make_zoo(tmp_path / "nws", models=8), make_zoo(tmp_path / "new", models=models)
    states = [
        sorted(
            snapshot["model_id"]
            for split in datasets.load_dataset(str(zoo), name).values()
            for snapshot in split
        )
        for zoo in (folder, new)
    ]
    found = []
    for relative in [*sorted(Manifest.read(new).files, reverse=True), "README.md", "nws.json"]:
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(new / relative, folder / relative)
        try:
            loaded = datasets.load_dataset(
                str(folder), name, cache_dir=str(tmp_path / relative.replace("/", "-"))
            )
        except (datasets.exceptions.NonMatchingSplitsSizesError, datasets.exceptions.UnexpectedSplitsError):
            continue
        found.append(sorted(snapshot["model_id"] for split in loaded.values() for snapshot in split))
        assert found[-1] in states
    assert found[-1] == states[1]


# A folder's name is no pattern

NAMES = [
    "zoo*",
    "zoo?a",
    "zoo[1]",
    "zoo[!1]",
    "{a,b}",
    "**",
    "a::b",
    "hf:",
    "~",
    "zoo a",
    "100%20",
    "zoo\\",
    "é\N{SNOWMAN}",
    "-x",
    "http:",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_look_like_patterns(
    tmp_path: Path, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder, _ = (
        make_zoo(tmp_path / name / "nws", models=3, seed=1),
        make_zoo(tmp_path / "zooa" / "nws", models=3),
    )
    make_zoo(tmp_path / "zooba", models=3)
    monkeypatch.chdir(tmp_path)
    for path in (folder, str(folder), f"./{name}/nws", *([f"{name}//nws/"] if name != "~" else [])):
        for streaming in (False, True):
            ds = load(path, split="train", streaming=streaming)
            assert [snapshot["sha256"] for snapshot in ds] == digests(folder)
    (weights,) = {snapshot["weights"].tobytes() for snapshot in with_weights(ds.take(1))}
    assert weights == Zoo(folder).row(Zoo(folder).filter(split="train")[0]).tobytes()
    assert (
        len({snapshot["model_id"] for snapshot in load(folder, "demo", split="train", streaming=True)}) == 3
    )


def test_home(tmp_path: Path, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make_zoo(tmp_path / "zoos" / "nws", models=3)
    assert [snapshot["sha256"] for snapshot in load("~/zoos/nws", split="train")] == digests(folder)


# Options of the library


def test_options(folder: Path, load: Callable[..., Any]) -> None:
    assert [len(part) for part in load(split=["train", "test"])] == [36, 12]
    assert [len(list(part)) for part in load(split=["train", "test"], streaming=True)] == [36, 12]
    assert len(load(split="train[:25%]+test")) == 21
    some = load(split="train", columns=["model_id", "is_final"], filters=[("is_final", "=", True)])
    assert (some.column_names, len(some)) == (["model_id", "is_final"], 12)
    assert load(
        folder, "demo", split="test", columns=["weights"], num_proc=1, keep_in_memory=True
    ).column_names == ["weights"]
    assert len(load(split="test", download_mode="force_redownload", verification_mode="no_checks")) == 12
    for options, message in (
        ({"data_files": "x"}, "found data_files; leave it out"),
        ({"columns": ["nothing"]}, "found nothing; choose others"),
        ({"split": "nothing"}, "a split"),
        ({"download_mode": "never"}, "options that it knows"),
        ({"filters": [("nothing", "=", 1)]}, "snapshots that can be prepared"),
        ({"split": "train[:x]"}, "a split"),
        ({"split": "nothing", "streaming": True}, "a split"),
    ):
        with pytest.raises(ZooError, match=message):
            load(**options)


def test_local_name(
    folder: Path, tmp_path: Path, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub
) -> None:
    monkeypatch.chdir(folder.parent)
    assert len(load("nws", split="test")) == 12
    monkeypatch.chdir(tmp_path)
    assert len(with_weights(load(str(folder), split="test"))) == 12
    (tmp_path / "nws").mkdir()  # not a zoo, such as the folder of the pointer card
    hub.put(DEFAULT_REPOSITORY, make_zoo(tmp_path / "another", models=5))
    assert len(load("nws", split="test")) == 3


def test_filters_give_some_of_the_snapshots_that_the_card_counts(
    tmp_path: Path, load: Callable[..., Any], hub: LoopbackHub
) -> None:
    folder, filters = make_zoo(tmp_path / "nws"), [("is_final", "==", True)]
    hub.put("org/nws", folder)
    told = {"split": "train", "filters": filters, "cache_dir": str(tmp_path / "cache")}
    stock = datasets.load_dataset(str(folder), **told, verification_mode="no_checks")
    assert (
        stock["is_final"][:]
        == load("org/nws", split="train", filters=filters)["is_final"][:]
        == [True] * len(stock)
    )


def test_mistakes(tmp_path: Path, load: Callable[..., Any]) -> None:
    with pytest.raises(ZooError, match="not a zoo"):
        load(tmp_path)
    with pytest.raises(ZooError, match="expected one of index, demo, more, found 'main'"):
        load(name="main")


# --- with_weights ---

CHANGES: dict[str, Callable[[Any], Any]] = {
    "none": lambda ds: ds,
    "filter": lambda ds: ds.filter(lambda snapshot: snapshot["is_final"]),
    "select": lambda ds: ds.select([5, 2, 9]),
    "map": lambda ds: ds.map(lambda snapshot: {"error": 1 - snapshot["test_accuracy"]}),
    "shuffle": lambda ds: ds.shuffle(seed=1),
    "sort": lambda ds: ds.sort("test_accuracy"),
    "train_test_split": lambda ds: ds.train_test_split(0.5, seed=1)["train"],
    "concatenate": lambda ds: datasets.concatenate_datasets([ds.select([1, 2]), ds.select([3])]),
    "select_columns": lambda ds: ds.select_columns(
        ["file", "offset", "length", "sha256", "architecture_json"]
    ),
    "all": lambda ds: (
        ds.filter(lambda snapshot: snapshot["is_final"])
        .shuffle(seed=1)
        .map(lambda snapshot: {"x": 1})
        .select(range(4))
    ),
}


# datasets' sort, with a newer pyarrow
@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_after_a_change(load: Callable[..., Any], folder: Path, change: Callable[[Any], Any]) -> None:
    zoo, plain = Zoo(folder), change(load(split="train")).with_format(None)
    ds = with_weights(change(load(split="train")))
    assert len(ds) == len(plain) > 0
    for snapshot, expected in zip(ds, plain, strict=True):
        weights = snapshot.pop("weights")
        assert snapshot == expected
        assert weights.dtype == np.float32 and np.array_equal(weights, zoo.row(expected))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_formats_that_are_set_before(load: Callable[..., Any], folder: Path, kind: str) -> None:
    plain = load(split="train").filter(lambda snapshot: snapshot["architecture"] == PLAIN.id)
    formatted = plain.with_format(kind, columns=[*READ_COLUMNS, "test_accuracy", "model_id"])
    ds, expected = with_weights(formatted), Zoo(folder).weights(plain)
    assert set(ds[0]) == {*READ_COLUMNS, "test_accuracy", "model_id", "weights"}
    for batch in (ds[2:5], with_weights(formatted, columns=["test_accuracy"])[2:5]):
        assert (
            type(batch["weights"])
            is type(batch["test_accuracy"])
            is {"numpy": np.ndarray, "torch": torch.Tensor}[kind]
        )
        assert np.array_equal(batch["weights"], expected[2:5]) and np.allclose(
            batch["test_accuracy"], plain[2:5]["test_accuracy"]
        )
    assert np.array_equal(ds[3]["weights"], expected[3])
    mixed = with_weights(load(split="train").with_format(kind))[:20]["weights"]
    assert {len(weights) for weights in mixed} == {386, 3050}


def test_set_format_of_snapshots_with_their_bytes(load: Callable[..., Any]) -> None:
    ds = load(name="demo", split="train")
    ds.set_format("torch", columns=["test_accuracy", "snapshot"])
    assert {name: value.dtype for name, value in ds[:4].items()} == {
        "test_accuracy": torch.float32,
        "snapshot": torch.int64,
    }


def test_map_in_two_processes(load: Callable[..., Any], folder: Path) -> None:
    ds = with_weights(load(split="train"))
    norms = ds.map(
        lambda snapshot: {"norm": float(np.linalg.norm(snapshot["weights"]))},
        num_proc=2,
        remove_columns=ds.column_names,
    )
    expected = [float(np.linalg.norm(array)) for array in Zoo(folder).arrays(load(split="train"))]
    assert np.allclose(norms.with_format("numpy")["norm"][:], expected)


@pytest.mark.parametrize("columns", [None, ["model_id", "snapshot"]])
def test_streams(load: Callable[..., Any], folder: Path, columns: list[str] | None) -> None:
    zoo, plain = Zoo(folder), load(split="train", streaming=True)
    expected = {
        (snapshot["model_id"], snapshot["snapshot"]): zoo.row(snapshot)
        for snapshot in zoo.filter(split="train")
    }
    # an index file for each subset
    parts = [with_weights(plain.shard(2, i), columns=columns) for i in range(2)]
    shuffled = with_weights(plain.shuffle(seed=1, buffer_size=10), columns=columns)
    for snapshots in (
        [snapshot for part in parts for snapshot in part],
        list(shuffled),
        list(with_weights(plain, columns=columns)),
    ):
        assert {(snapshot["model_id"], snapshot["snapshot"]) for snapshot in snapshots} == set(
            expected
        ) and len(snapshots) == len(expected)
        assert all(
            np.array_equal(snapshot["weights"], expected[snapshot["model_id"], snapshot["snapshot"]])
            for snapshot in snapshots
        )
        assert columns is None or set(snapshots[0]) == {*columns, "weights"}
    assert isinstance(with_weights(load(streaming=True)), datasets.IterableDatasetDict)


def test_saved_to_disk_and_loaded_again(load: Callable[..., Any], tmp_path: Path) -> None:
    load(split="test").save_to_disk(tmp_path / "saved")
    assert with_weights(datasets.load_from_disk(tmp_path / "saved"))[0]["weights"].ndim == 1


def test_batches_and_columns(load: Callable[..., Any]) -> None:
    ds = with_weights(load(split="train"))
    batch = ds[:20]
    assert {len(weights) for weights in batch["weights"]} == {386, 3050}
    assert len(batch["model_id"]) == 20
    assert ds["test_accuracy"][:3] == [
        snapshot["test_accuracy"] for snapshot in load(split="train").select(range(3))
    ]
    assert ds["file"][0].startswith("snapshots/")
    assert all(np.array_equal(a, b) for a, b in zip(ds["weights"][:20], batch["weights"], strict=True))
    with pytest.raises((KeyError, ValueError), match="nothing"):
        ds["nothing"]


def test_weights_are_read_only_when_asked_for(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    arrays = Zoo.arrays

    def noted(self: Zoo, snapshots: Any) -> Any:
        read.extend(snapshot["sha256"] for snapshot in snapshots)
        return arrays(self, snapshots)

    monkeypatch.setattr(Zoo, "arrays", noted)
    ds = with_weights(load(split="train").filter(lambda snapshot: snapshot["is_final"]))
    assert read == []
    assert read == [ds[3]["sha256"]]


def test_dataset_dict(load: Callable[..., Any]) -> None:
    parts = with_weights(load())
    assert isinstance(parts, datasets.DatasetDict)
    assert all("weights" in part[0] for part in parts.values())


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
def test_data_loader(load: Callable[..., Any], folder: Path, start: str | None) -> None:
    ds = load(split="train").filter(lambda snapshot: snapshot["architecture"] == PLAIN.id)
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
    zoo, ds = Zoo(folder), load(split="train").filter(lambda snapshot: snapshot["architecture"] == PLAIN.id)
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
