"""Zoo: the index, filters, every way to the weights, and every kind of damage."""

import contextlib
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from nws_dataset.errors import ZooError
from nws_dataset.format.manifest import MANIFEST_NAME, Manifest
from nws_dataset.format.schema import INDEX_SCHEMA
from nws_dataset.format.shards import header, write_index
from nws_dataset.networks import architecture_from_json
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network
from nws_dataset.reading import folder as folder_module
from nws_dataset.reading import zoo as zoo_module
from nws_dataset.reading.snapshots import READ_COLUMNS, Snapshots
from nws_dataset.reading.zoo import Zoo
from testing.zoo_factory import NORMED, PLAIN, make_shard, make_zoo, write_manifest

INDEX = "index/demo/train.parquet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", subsets=("demo", "more"))


@pytest.fixture
def zoo(folder: Path) -> Zoo:
    return Zoo(folder)


def zoo_of_one_shard(folder: Path, **changes: Any) -> Path:
    """A zoo whose only index file has these columns replaced, with sizes and digests in nws.json that fit."""
    shard = "snapshots/demo/train-a-00000.parquet"
    index, _ = make_shard(folder, shard, PLAIN)
    write_index(
        folder / INDEX,
        pa.Table.from_pylist([{**snapshot, **changes} for snapshot in index.to_pylist()], INDEX_SCHEMA),
    )
    write_manifest(folder, ["demo"], 3, [shard, INDEX])
    return folder


# --- the index ---


def test_index_and_subsets(zoo: Zoo) -> None:
    assert zoo.subsets == ("demo", "more")
    assert zoo.index.schema.equals(INDEX_SCHEMA)
    assert zoo.index.num_rows == 2 * 10 * 3
    assert "demo, more" in repr(zoo)


def test_filter_conditions(zoo: Zoo) -> None:
    everything = list(zoo.filter())
    cases: dict[str, tuple[dict[str, Any], Any]] = {
        "value": ({"dataset": "mnist"}, lambda r: r["dataset"] == "mnist"),
        "boolean": ({"is_final": True}, lambda r: r["is_final"]),
        "two": ({"is_final": True, "subset": "more"}, lambda r: r["is_final"] and r["subset"] == "more"),
        "list": ({"snapshot": [1, 3]}, lambda r: r["snapshot"] in (1, 3)),
        "set": ({"dataset": {"mnist", "svhn"}}, lambda r: r["dataset"] != "cifar10"),
        "array": ({"snapshot": np.array([1, 2])}, lambda r: r["snapshot"] < 3),
        "function": ({"test_accuracy": lambda a: a > 0.5}, lambda r: r["test_accuracy"] > 0.5),
        "null": ({"validation_accuracy": None}, lambda r: r["validation_accuracy"] is None),
        "null or": ({"width_fc": (None, 16)}, lambda r: True),
        "none": ({"dataset": []}, lambda r: False),
        "numpy": ({"snapshot": np.int64(2)}, lambda r: r["snapshot"] == 2),
    }
    for conditions, keep in cases.values():
        assert list(zoo.filter(**conditions)) == [snapshot for snapshot in everything if keep(snapshot)]
    assert 0 < len(zoo.filter(validation_accuracy=None)) < len(everything)


def test_filter_mistakes(zoo: Zoo) -> None:
    with pytest.raises(ZooError, match=r"one of the columns model_id, .*found 'datset'"):
        zoo.filter(datset="mnist")
    for wrong in ("1", 0.5, [1, "b"]):
        with pytest.raises(ZooError, match="column snapshot: expected values of type int64"):
            zoo.filter(snapshot=wrong)
    for wrong in (float("nan"), 2**63, 10**400, True, "", b"1", object()):
        with pytest.raises(ZooError, match="column snapshot: expected values of type int64"):
            zoo.filter(snapshot=wrong)
    for wrong in (1, b"mnist", [["mnist"]]):
        with pytest.raises(ZooError, match="column dataset: expected values of type string"):
            zoo.filter(dataset=wrong)
    for column, kind in (("test_accuracy", "double"), ("is_final", "bool")):
        for wrong in ("x", 10**400, [None, "x"], pandas.NA):
            with pytest.raises(ZooError, match=f"column {column}: expected values of type {kind}"):
                zoo.filter(**{column: wrong})
    with pytest.raises(ZooError, match="column class_test_accuracy"):
        zoo.filter(class_test_accuracy=[1.0])


def test_filters_of_filters_and_of_tables(zoo: Zoo) -> None:
    """The index, a table, and snapshots that were chosen before: one and the same filter."""
    everything = list(zoo.filter())
    for snapshots in (zoo.filter(), Snapshots(zoo.index), zoo.filter()[np.arange(len(everything))]):
        chosen = snapshots.filter(subset="demo").filter(
            snapshot=2.0, validation_accuracy=lambda a: a is not None
        )
        assert list(chosen) == [
            r
            for r in everything
            if r["subset"] == "demo" and r["snapshot"] == 2 and r["validation_accuracy"] is not None
        ]
        assert list(snapshots[::-3].filter(snapshot=(1, 2))) == [
            r for r in everything[::-3] if r["snapshot"] < 3
        ]
        assert list(snapshots.filter(class_test_accuracy=lambda a: a[0] > 0.5)) == [
            r for r in everything if r["class_test_accuracy"][0] > 0.5
        ]
        sha256 = [everything[5]["sha256"], everything[7]["sha256"]]
        assert list(snapshots.filter(sha256=sha256)) == [r for r in everything if r["sha256"] in sha256]
        assert len(snapshots.filter(class_test_accuracy=None)) == 0


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    zoo = Zoo(
        zoo_of_one_shard(tmp_path, test_loss=float("nan"), validation_loss=None, train_loss=float("inf"))
    )
    assert [
        len(zoo.filter(**{name: float("nan")})) for name in ("test_loss", "validation_loss", "train_loss")
    ] == [9, 0, 0]
    assert [len(zoo.filter(**{name: None})) for name in ("test_loss", "validation_loss", "train_loss")] == [
        0,
        9,
        0,
    ]
    assert len(zoo.filter(train_loss=float("inf"))) == 9 and len(zoo.filter(test_loss=lambda a: a == a)) == 0
    assert np.isnan(zoo.filter()["validation_loss"]).all()


def test_a_function_is_called_once_for_each_value(zoo: Zoo) -> None:
    asked: list[Any] = []
    zoo.filter(dataset=asked.append, snapshot=asked.append, width_fc=asked.append, is_final=asked.append)
    # nothing is left after the first
    assert sorted(map(str, asked)) == sorted(map(str, {*zoo.filter()["dataset"]}))
    asked.clear()
    snapshots = zoo.filter(
        snapshot=lambda n: asked.append(n) or n > 1, width_fc=lambda n: asked.append(n) or True
    )
    assert (asked, len(snapshots)) == ([1, 2, 3, 16, None], 40)


def test_a_filter_reads_the_columns_that_it_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = pq.ParquetFile.read
    monkeypatch.setattr(
        pq.ParquetFile,
        "read",
        lambda self, names, **kwargs: read.extend(names) or whole(self, names, **kwargs),
    )
    zoo = Zoo(folder)
    snapshots = zoo.filter(dataset="mnist", is_final=True)
    assert set(read) == {"subset", "model_id", "is_final", "dataset"}
    zoo.row(snapshots[0])
    assert set(read) == {"subset", "model_id", "is_final", "dataset", *READ_COLUMNS}
    assert len(snapshots.table) == len(snapshots) and set(read) == set(INDEX_SCHEMA.names)
    assert len(read) == len(INDEX_SCHEMA) * len(zoo.manifest.index_files())  # none twice


def test_snapshots_are_a_sequence(zoo: Zoo) -> None:
    snapshots = zoo.filter(subset="demo")
    plain = snapshots.table.to_pylist()
    assert (len(snapshots), list(snapshots), snapshots[0], snapshots[-1]) == (30, plain, plain[0], plain[-1])
    for part in (
        slice(3, 7),
        slice(None),
        slice(-2, None),
        slice(7, 3),
        slice(None, None, 4),
        slice(None, None, -1),
    ):
        assert isinstance(snapshots[part], Snapshots)
        assert list(snapshots[part]) == plain[part]
    assert [snapshot["model_id"] for snapshot in reversed(snapshots)] == [
        snapshot["model_id"] for snapshot in reversed(plain)
    ]
    for outside in (30, -31):
        with pytest.raises(IndexError):
            snapshots[outside]
    assert repr(snapshots) == "Snapshots(30 snapshots, 10 models, 2 architectures; subsets: demo)"
    assert (
        repr(zoo.filter(subset="none")) == "Snapshots(0 snapshots, 0 models, 0 architectures; subsets: none)"
    )
    assert list(pickle.loads(pickle.dumps(snapshots))) == plain


def test_rows_by_mask_and_by_numbers(zoo: Zoo) -> None:
    snapshots = zoo.filter(subset="demo")
    plain = snapshots.table.to_pylist()
    assert list(snapshots[snapshots["test_accuracy"] > 0.5]) == [
        snapshot for snapshot in plain if snapshot["test_accuracy"] > 0.5
    ]
    for numbers in (
        [0, 2],
        (4, -1, 4),
        np.array([3, 1], np.uint8),
        [],
        np.array([], int),
        pandas.Series([7, 8]),
    ):
        assert list(snapshots[numbers]) == [plain[i] for i in numbers]
    assert list(snapshots[[False] * 29 + [True]]) == plain[-1:]
    assert snapshots[np.int64(3)] == plain[3] and list(snapshots[[5, 6]][::-1]) == [plain[6], plain[5]]
    assert pickle.loads(pickle.dumps(snapshots[[5]]))[0] == plain[5]
    for wrong in (
        [30],
        [-31],
        [True],
        np.ones(31, bool),
        [0.5],
        ["a"],
        [[1]],
        [[1], [1, 2]],
        None,
        ("subset", "split"),
        1.0,
    ):
        with pytest.raises(
            ZooError,
            match=r"^snapshots: expected .*, a mask of 30 or indices below 30, "
            r"found ",
        ):
            snapshots[wrong]


def test_rows_columns(zoo: Zoo) -> None:
    snapshots = zoo.filter(subset="demo")
    assert snapshots["test_accuracy"].dtype == np.float64
    assert snapshots["snapshot"].dtype == np.int64
    assert snapshots["is_final"].dtype == bool
    assert snapshots["dataset"].tolist() == [snapshot["dataset"] for snapshot in snapshots]
    assert np.isnan(snapshots["validation_accuracy"]).sum() == len(snapshots.filter(validation_accuracy=None))
    assert snapshots["class_test_accuracy"].shape == (30, 10)
    assert snapshots.filter(is_final=True)["snapshot"].tolist() == [3] * 10
    with pytest.raises(ZooError, match="found 'nothing'"):
        snapshots["nothing"]
    assert isinstance(snapshots.to_pandas(), pandas.DataFrame) and len(snapshots.to_pandas()) == 30


# --- weights ---


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("architecture", [PLAIN, NORMED], ids=["plain", "normed"])
def test_every_way_to_the_weights_gives_the_same(
    folder: Path, architecture: Architecture, check: bool
) -> None:
    zoo = Zoo(folder, check=check)
    snapshots = zoo.filter(architecture=architecture.id, is_final=True)
    weights = zoo.weights(snapshots)
    assert weights.shape == (10, layout_of(architecture).num_weights) and weights.dtype == np.float32
    for snapshot, expected in zip(snapshots, weights, strict=True):
        assert zoo.layout(snapshot) is layout_of(architecture)
        assert hashlib.sha256(zoo.value(snapshot)).hexdigest() == snapshot["sha256"]
        assert np.array_equal(zoo.row(snapshot), expected) and not zoo.row(snapshot).flags.writeable
        stock = safetensors.torch.load(bytes(zoo.value(snapshot)))
        state = zoo.state_dict(snapshot)
        assert all(torch.equal(state[name], stock[name]) for name in stock)
        net = zoo.network(snapshot)
        assert np.array_equal(net.row().numpy(), expected)
        assert (net.training, net.activation, net.dropout) == (
            False,
            snapshot["activation"],
            snapshot["dropout"],
        )
        Network(architecture, "relu").load_state_dict(state, strict=True)


def test_weights_are_copies(zoo: Zoo) -> None:
    snapshot = zoo.filter(architecture=NORMED.id)[0]
    zoo.state_dict(snapshot)["conv1.bias"].fill_(99)
    zoo.weights([snapshot])[:] = 99
    assert not (zoo.row(snapshot) == 99).any()


def test_weights_of_lists_slices_and_dicts(zoo: Zoo) -> None:
    snapshots = zoo.filter(architecture=PLAIN.id)
    assert np.array_equal(zoo.weights(list(snapshots)), zoo.weights(snapshots))
    assert np.array_equal(zoo.weights(snapshots[::-1]), zoo.weights(snapshots)[::-1])
    assert np.array_equal(zoo.weights(snapshot for snapshot in snapshots[2:5]), zoo.weights(snapshots)[2:5])


def test_weights_of_two_layouts_or_none(zoo: Zoo) -> None:
    with pytest.raises(
        ZooError,
        match=r"one layout, found conv3x4k3-max.*, conv3x4k3s2g1v.*; filter by "
        r"architecture",
    ):
        zoo.weights(zoo.filter())
    with pytest.raises(ZooError, match="found no snapshots"):
        zoo.weights(zoo.filter(subset="nothing"))


def test_image_sizes_may_differ_when_the_layout_does_not(tmp_path: Path) -> None:
    wider = architecture_from_json(json.dumps({**json.loads(PLAIN.to_json()), "image_size": 32}))
    paths = ["snapshots/demo/train-a-00000.parquet", "snapshots/demo/train-b-00000.parquet"]
    shards = [
        make_shard(tmp_path, path, a, numbers=[n])
        for n, (path, a) in enumerate(zip(paths, (PLAIN, wider), strict=True))
    ]
    write_index(tmp_path / INDEX, pa.concat_tables([index for index, _ in shards]))
    write_manifest(tmp_path, ["demo"], 2, [*paths, INDEX])
    zoo = Zoo(tmp_path)
    assert len(set(zoo.filter()["architecture"])) == 2
    assert zoo.weights(zoo.filter()).shape == (6, 386)


def test_many_files_and_few_maps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "OPEN_FILES", 1)
    few, many = Zoo(folder), Zoo(folder, check=True)
    views = [few.row(snapshot) for snapshot in few.filter()]
    assert all(
        np.array_equal(view, many.row(snapshot)) for view, snapshot in zip(views, many.filter(), strict=True)
    )


def test_rows_of_every_kind(zoo: Zoo) -> None:
    snapshots = zoo.filter(architecture=PLAIN.id)
    weights = zoo.weights(snapshots)
    frame = snapshots.to_pandas()
    kinds = {
        "table": snapshots.table,
        "of some columns": snapshots.select(READ_COLUMNS),
        "DataFrame": frame,
        "of numpy": [
            {
                name: np.str_(value) if isinstance(value, str) else np.int64(value)
                for name, value in snapshot.items()
            }
            for snapshot in frame[list(READ_COLUMNS)].to_dict("records")
        ],
    }
    for kind in kinds.values():
        assert np.array_equal(zoo.weights(kind), weights)
        assert all(map(np.array_equal, zoo.arrays(kind), weights))
        assert np.array_equal(zoo.slices(kind, [3] * len(snapshots), 7), weights[:, 3:10])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda snapshots: snapshots[0],
            "expected several snapshots, found one snapshot; read it with zoo.row",
        ),
        (lambda snapshots: dict(snapshots[0]), "found one snapshot"),
        (lambda snapshots: "snapshots", "found str"),
        (lambda snapshots: 7, "expected snapshots, found int"),
        (lambda snapshots: [1, 2], "expected a mapping of columns to values, found int"),
        (lambda snapshots: snapshots.table.drop_columns(["offset", "file"]), "found no file, offset"),
        (lambda snapshots: snapshots.to_pandas().drop(columns="sha256"), "found no sha256"),
        (
            lambda snapshots: [{**snapshots[0], "offset": None}],
            "column offset of a snapshot: expected a value of type int64, found None",
        ),
        (lambda snapshots: [{**snapshots[0], "offset": 4.5}], "column offset of a snapshot"),
        (lambda snapshots: [{**snapshots[0], "length": True}], "column length of a snapshot"),
        (
            lambda snapshots: [{**snapshots[0], "offset": 2**70}],
            "expected snapshots of the config index, found OverflowError",
        ),
        (
            lambda snapshots: [{**snapshots[0], "file": "\ud800"}],
            "expected snapshots of the config index, found UnicodeEncodeError",
        ),
        (lambda snapshots: [{**snapshots[0], "file": 3}], "column file of a snapshot"),
        (
            lambda snapshots: snapshots.table.drop_columns("offset").append_column(
                "offset", snapshots.table["length"].cast("double")
            ),
            "column offset of snapshots",
        ),
    ],
)
def test_what_is_no_snapshot(zoo: Zoo, wrong: Callable[[Snapshots], Any], message: str) -> None:
    snapshots = zoo.filter(architecture=PLAIN.id)[:3]
    for read in (
        zoo.arrays,
        zoo.weights,
        lambda snapshots: list(zoo.stacks(snapshots)),
        lambda snapshots: zoo.slices(snapshots, [0, 0, 0], 5),
    ):
        with pytest.raises(ZooError, match=message):
            read(wrong(snapshots))


@pytest.mark.parametrize(
    "starts", [[0, 0], [0.5, 0, 0], ["a", 0, 0], [None] * 3, [2**70, 0, 0], [[0], [0], [0]]]
)
def test_what_is_no_start(zoo: Zoo, starts: Any) -> None:
    with pytest.raises(ZooError, match=r"^slices: expected 3 whole numbers and a length"):
        zoo.slices(zoo.filter(architecture=PLAIN.id)[:3], starts, 5)


def test_stacks_that_are_kept_stay_as_they_are(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_module, "STACK_BYTES", 5000)  # three snapshots of PLAIN
    kept = list(zoo.stacks())
    views = [weights[0] for _, weights in zoo.stacks()]
    tensors = [torch.from_numpy(weights) for _, weights in zoo.stacks()]
    assert len(kept) > 20
    for (snapshots, weights), view, tensor in zip(kept, views, tensors, strict=True):
        expected = zoo.weights(snapshots)
        assert (
            np.array_equal(weights, expected)
            and np.array_equal(view, expected[0])
            and np.array_equal(tensor.numpy(), expected)
        )
    addresses = {weights.ctypes.data for _, weights in zoo.stacks()}
    assert len(addresses) < len(kept)  # those that nobody keeps lie in the same memory


def test_files_are_mapped_without_being_kept_open(folder: Path) -> None:
    zoo = Zoo(folder)
    before = open_files(folder)
    views = [zoo.row(snapshot) for snapshot in zoo.filter()]
    assert len(views) == 60 and not {name for name in open_files(folder) - before if "snapshots" in name}
    zoo.slices(zoo.filter(architecture=PLAIN.id), [0] * 30, 5)
    assert {name for name in open_files(folder) if "snapshots" in name}
    maps = [name for name in Path("/proc/self/maps").read_text().splitlines() if str(folder) in name]
    assert maps
    del zoo, views  # without the garbage collector
    assert not {name for name in open_files(folder) if "snapshots" in name}
    assert not [
        name
        for name in Path("/proc/self/maps").read_text().splitlines()
        if str(folder) in name and "snapshots" in name
    ]


def open_files(folder: Path) -> set[str]:
    """The files of a folder that this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            found.add(os.readlink(entry))
    return {name for name in found if str(folder) in name}


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    """Forty shards where twenty files may be open; slices keep theirs open, as many as there is room for."""
    paths, shard = [], "snapshots/demo/train-a-{:05d}.parquet"
    tables = [make_shard(tmp_path, shard.format(i), PLAIN, numbers=[i], snapshots=1)[0] for i in range(40)]
    paths = [shard.format(i) for i in range(40)]
    write_index(tmp_path / INDEX, pa.concat_tables(tables))
    write_manifest(tmp_path, ["demo"], 40, [*paths, INDEX])
    program = (
        "import resource, sys; from nws_dataset.reading.zoo import Zoo; zoo = Zoo(sys.argv[1]); snapshots = "
        "zoo.filter(); import os\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 10,) * 2)\n"
        "for _ in range(2):\n"
        " zoo.slices(snapshots, [0] * 40, 5); zoo.weights(snapshots); [*map(zoo.row,snapshots)]"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=True,
        cwd=Path(__file__).parent.parent,
    )


def test_pickle(folder: Path) -> None:
    zoo = Zoo(folder, check=True)
    snapshot = zoo.filter()[0]
    expected = zoo.row(snapshot)
    again = pickle.loads(pickle.dumps(zoo))
    assert again.files.check and again.path == zoo.path
    assert np.array_equal(again.row(snapshot), expected)


def test_reading_imports_neither_torch_nor_datasets_nor_pandas(folder: Path) -> None:
    program = (
        "import sys; from nws_dataset.reading.zoo import Zoo; import nws_dataset.reading.load\n"
        "zoo = Zoo(sys.argv[1])\n"
        "snapshots = zoo.filter(dataset=['mnist', 'svhn'], test_accuracy=lambda a: a > 0, epoch=1)\n"
        "snapshots['dataset'], snapshots[0], list(snapshots), zoo.index\n"
        "zoo.arrays(list(snapshots)), list(zoo.stacks()), zoo.slices(snapshots, [0] * len(snapshots), 5)\n"
        "zoo.weights(zoo.filter(architecture=zoo.filter()[0]['architecture']))\n"
        "assert not {'torch', 'datasets', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, cwd=Path(__file__).parent.parent)


# --- damage and mistakes ---


def test_not_a_zoo(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="not a zoo; build one with nws build --out DIR"):
        Zoo(tmp_path)
    with pytest.raises(ZooError, match="not a zoo"):
        Zoo(tmp_path / "absent")
    with pytest.raises(ZooError, match=r"expected no revision for a folder, found 'v1'"):
        Zoo(tmp_path, revision="v1")


@pytest.mark.parametrize(
    "path",
    [
        "./missing",
        "../missing/x",
        "a/b/c",
        "~/missing",
        "x" * 5000,
        "x/" + "x" * 5000,
        "\ud800",
        "a\0b",
        "loop",
        "loop/x",
        "file",
        "",
    ],
)
def test_paths_that_are_no_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Nobody is asked on the network, and the line names a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("nws_dataset.reading.hub.Repository", None)
    Path("loop").symlink_to("loop")
    Path("file").write_text("")
    with pytest.raises(
        ZooError,
        match=r"expected (a folder with nws\.json|the (folder|manifest) of a "
        r"zoo), found ",
    ) as raised:
        Zoo(path)
    assert "\n" not in str(raised.value) and str(raised.value).isprintable() and len(str(raised.value)) < 2500


def test_a_name_that_could_be_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def refuse(name: str, **options: Any) -> None:
        raise ZooError(name, expected="a repository", found="none", do="look again")

    monkeypatch.setattr("nws_dataset.reading.hub.Repository", refuse)
    with pytest.raises(
        ZooError,
        match=r"^a/b: expected a repository, found none, and no folder a/b; look "
        r"again$",
    ):
        Zoo("a/b")
    Path("a").mkdir()
    Path("a/b").symlink_to(folder)
    assert Zoo("a/b").path == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Zoo("~/a/b").path == Zoo(Path("a/b")).path == folder


def test_truncated_manifest(tmp_path: Path) -> None:
    make_zoo(tmp_path, models=2, snapshots=1)
    path = tmp_path / MANIFEST_NAME
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ZooError, match="the manifest of a zoo"):
        Zoo(tmp_path)


def test_an_empty_zoo(tmp_path: Path) -> None:
    Manifest("test", {}, {}).write(tmp_path)
    assert len(Zoo(tmp_path).filter(is_final=True)) == 0


def test_index_missing_or_cut_short(tmp_path: Path) -> None:
    path = zoo_of_one_shard(tmp_path) / INDEX
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ZooError, match=f"expected {len(content)} bytes, found {len(content) - 1} bytes"):
        Zoo(tmp_path).filter()
    path.unlink()
    with pytest.raises(ZooError, match=r"train\.parquet.*found no file"):
        Zoo(tmp_path).filter()


def test_an_index_with_more_lines_than_values(tmp_path: Path) -> None:
    """Its footer alone says one more; nws.json agrees with it."""
    path = zoo_of_one_shard(tmp_path) / INDEX
    told = json.loads((tmp_path / MANIFEST_NAME).read_text())
    content, lines = path.read_bytes(), len(Zoo(tmp_path).filter())
    field = bytes([0x16, 2 * lines, 0x19])  # Thrift's number of rows, before the list of row groups
    assert content.count(field) == 1
    content = content.replace(field, bytes([0x16, 2 * lines + 2, 0x19]))
    path.write_bytes(content)
    told["files"][INDEX] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(told))
    for read in (
        lambda zoo: list(zoo.filter()),
        lambda zoo: zoo.filter(is_final=True),
        lambda zoo: zoo.filter()["test_loss"],
    ):
        with pytest.raises(
            ZooError,
            match=rf"train\.parquet: expected {lines + 1} values a column, found "
            rf"{lines} of ",
        ):
            read(Zoo(tmp_path))


def test_shard_missing_or_cut_short(tmp_path: Path) -> None:
    zoo = Zoo(zoo_of_one_shard(tmp_path))
    snapshot = zoo.filter()[0]
    path = tmp_path / snapshot["file"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ZooError,
        match=r"a-00000\.parquet: expected \d+ bytes, found \d+ bytes; fetch or "
        r"build",
    ):
        zoo.row(snapshot)
    path.unlink()
    with pytest.raises(ZooError, match="found no file"):
        zoo.row(snapshot)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "../secret.parquet"}, "below this folder"),
        ({"file": "/etc/hostname"}, "below this folder"),
        ({"file": "README.md"}, "that nws.json lists"),
        ({"offset": -1}, "a range in its"),
        ({"length": -1}, "a range in its"),
        ({"offset": 1 << 40}, "a range in its"),
        ({"length": 1 << 40}, "a range in its"),
        ({"offset": 5}, "the safetensors header of"),
        ({"length": 100}, "the safetensors header of"),
        (
            {"architecture_json": NORMED.to_json()},
            "the safetensors header of conv3x4k3-max.*found that of conv3x4k3s2g1v",
        ),
        ({"architecture_json": "{}}"}, "an architecture: its fields"),
    ],
)
def test_a_wrong_index(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "secret.parquet").write_text("")
    zoo = Zoo(zoo_of_one_shard(tmp_path / "zoo", **changes))
    for read in (zoo.row, zoo.network, lambda snapshot: zoo.weights([snapshot])):
        with pytest.raises(ZooError, match=message):
            read(zoo.filter()[1])


HOSTILE = {
    "huge length": lambda head: (1 << 62).to_bytes(8, "little") + head[8:],
    "overlapping offsets": lambda head: head.replace(
        b'"data_offsets":[144,160]', b'"data_offsets":[000,160]'
    ),
    "another shape": lambda head: head.replace(b'"shape":[4,1,3,3]', b'"shape":[9,1,2,2]'),
    "another type": lambda head: head.replace(b'"F32"', b'"F16"', 1),
}


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_safetensors_header(tmp_path: Path, change: Callable[[bytes], bytes], check: bool) -> None:
    """The index and nws.json agree with it: only the header itself gives it away."""
    whole = Zoo(zoo_of_one_shard(tmp_path / "whole")).filter()[1]
    file = (tmp_path / "whole" / whole["file"]).read_bytes()
    value = file[whole["offset"] :][: whole["length"]]
    hostile = change(value[: len(header(PLAIN))]) + value[len(header(PLAIN)) :]
    assert len(hostile) == len(value) and hostile != value
    folder = zoo_of_one_shard(tmp_path / "zoo", sha256=hashlib.sha256(hostile).hexdigest())
    (folder / whole["file"]).write_bytes(file.replace(value, hostile))
    write_manifest(folder, ["demo"], 3, [whole["file"], INDEX])
    zoo = Zoo(folder, check=check)
    snapshot = zoo.filter()[1]
    for read in (
        zoo.row,
        zoo.network,
        lambda snapshot: zoo.weights([snapshot]),
        lambda snapshot: zoo.slices([snapshot], [0], 9),
    ):
        with pytest.raises(
            ZooError,
            match=r"a-00000\.parquet at byte \d+: expected the safetensors header "
            r"of",
        ):
            read(snapshot)


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    zoo = Zoo(zoo_of_one_shard(tmp_path / "zoo"))
    snapshot = zoo.filter()[0]
    path = zoo.path / snapshot["file"]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ZooError, match="inside this folder"):
        zoo.row(snapshot)


def test_check_finds_a_flipped_byte(tmp_path: Path) -> None:
    snapshot = Zoo(zoo_of_one_shard(tmp_path)).filter()[2]
    content = bytearray((tmp_path / snapshot["file"]).read_bytes())
    content[snapshot["offset"] + snapshot["length"] - 1] ^= 1
    (tmp_path / snapshot["file"]).write_bytes(content)
    Zoo(tmp_path).row(snapshot)  # documented: unchecked
    Zoo(tmp_path, check=True).row(Zoo(tmp_path).filter()[1])
    with pytest.raises(
        ZooError,
        match=rf"a-00000\.parquet at byte {snapshot['offset']}: expected sha256 "
        rf"{snapshot['sha256']}",
    ):
        Zoo(tmp_path, check=True).row(snapshot)


def test_a_snapshot_without_its_byte_range(zoo: Zoo) -> None:
    snapshot = dict(zoo.filter()[0])
    del snapshot["offset"]
    with pytest.raises(ZooError, match="found no offset; take whole lines"):
        zoo.row(snapshot)
