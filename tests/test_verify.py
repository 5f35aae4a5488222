"""`nws-verify` passes a fresh zoo, and finds each kind of damage and says where it is."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from builder.build import build
from builder.card import render
from builder.checks import _same
from builder.plan import Request
from builder.verify import main
from nws_dataset.files import sha256_file
from nws_dataset.format.manifest import FileEntry, Manifest
from nws_dataset.format.schema import INDEX_SCHEMA, METADATA_SCHEMA
from nws_dataset.format.shards import pack, read_index, write_index, write_snapshots
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo

MODELS = 6
Snapshot = dict[str, Any]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fresh") / "nws"
    build(Request("demo", MODELS, epochs=2), out, device="cpu")
    return out


@pytest.fixture
def zoo(fresh: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(fresh, tmp_path / "nws"))


def verify(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of nws-verify."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments], standalone_mode=True)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What nws-verify finds wrong: one line."""
    code, out, err = verify(capsys, *arguments)
    assert code == 2
    assert "is whole" not in out
    (line,) = err.splitlines()
    assert line.startswith("Error: ") and ": expected " in line and ", found " in line and "; " in line
    return line


def reseal(folder: Path) -> None:
    """Write sizes and sha256 of the files as they are now into nws.json, and the card that belongs to it."""
    manifest = Manifest.read(folder)
    for name in manifest.files:
        manifest.files[name] = FileEntry((folder / name).stat().st_size, sha256_file(folder / name))  # type: ignore[index]
    manifest.write(folder)
    (folder / "README.md").write_text(
        render(manifest, [read_index(folder / name) for name in manifest.index_files()])
    )


def rewrite_index(folder: Path, change: Callable[[list[Snapshot]], list[Snapshot]]) -> None:
    """Write other snapshots into the index of split train, and seal it."""
    path = folder / "index" / "demo" / "train.parquet"
    write_index(path, pa.Table.from_pylist(change(list(Snapshots(read_index(path)))), INDEX_SCHEMA))
    reseal(folder)


def forge(folder: Path, change: Callable[[Snapshot, np.ndarray], None]) -> None:
    """Write snapshots and weights, changed in place, into shards, index and nws.json: nothing but the content
    tells.
    """
    zoo = Zoo(folder)
    for name in zoo.manifest.index_files():
        tables = []
        for file, snapshots in itertools.groupby(
            Snapshots(read_index(folder / name)), lambda snapshot: snapshot["file"]
        ):
            changed, values = [], []
            for snapshot in snapshots:
                weights = zoo.row(snapshot).copy()
                change(snapshot, weights)
                changed.append({key: snapshot[key] for key in METADATA_SCHEMA.names})
                values.append(pack(zoo.architecture(snapshot), weights))
            tables.append(
                write_snapshots(
                    folder / file, pa.Table.from_pylist(changed, METADATA_SCHEMA), values, relative=file
                )
            )
        write_index(folder / name, pa.concat_tables(tables))
    reseal(folder)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def some_snapshot(folder: Path) -> Snapshot:
    """A final network of split train, neither first nor last in its shard."""
    return Snapshots(Zoo(folder).index).filter(split="train", is_final=True)[0]


# A whole zoo


def test_a_fresh_zoo_is_whole(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = verify(capsys, fresh, "--reevaluate", 4, "--retrain", 2)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[:-1]] == [
        "files", "card", "values", "shards", "counts", "plan", "reevaluate", "retrain", "state",
    ]  # fmt: skip
    assert f"{MODELS * 3} snapshots" in out and f"{MODELS} models" in out
    assert "4 networks: the builder's evaluation exactly" in out
    assert "2 models trained again alone, equal in every bit" in out
    assert out.endswith(f"{fresh} is whole\n")


def test_a_forgery_that_changes_nothing_is_whole(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The forger of these tests leaves no trace of its own."""
    before = {path: path.read_bytes() for path in zoo.rglob("*.parquet")}
    forge(zoo, lambda snapshot, weights: None)
    assert {path: path.read_bytes() for path in zoo.rglob("*.parquet")} == before
    assert verify(capsys, zoo)[0] == 0


def test_losses_that_are_no_numbers_are_equal(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(zoo, lambda snapshot, weights: snapshot.update(train_loss=float("nan")))
    assert verify(capsys, zoo)[0] == 0


# Damaged files


def test_a_flipped_bit_in_a_weight(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = some_snapshot(zoo)
    shard = zoo / snapshot["file"]
    flip(shard, snapshot["offset"] + snapshot["length"] - 2)
    line = complaint(capsys, zoo)
    assert str(shard) in line and "expected sha256" in line
    reseal(zoo)  # nws.json agrees: the index tells
    line = complaint(capsys, zoo)
    assert f"{shard} at byte {snapshot['offset']}: expected sha256 {snapshot['sha256']}" in line


def test_a_flipped_bit_in_the_index(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = zoo / "index" / "demo" / "train.parquet"
    flip(index, 200)
    line = complaint(capsys, zoo)
    assert str(index) in line


def test_a_shard_cut_short(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = zoo / some_snapshot(zoo)["file"]
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"{shard}: expected {size} bytes, found {size - 1} bytes" in complaint(capsys, zoo)


def test_a_shard_that_is_not_listed(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = zoo / some_snapshot(zoo)["file"]
    extra = shard.with_name(shard.name.replace("00000", "00001"))
    shutil.copy(shard, extra)
    assert f"{extra}: expected files that nws.json lists" in complaint(capsys, zoo)


def test_no_card(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (zoo / "README.md").unlink()
    assert f"{zoo / 'README.md'}: expected the card, found no file" in complaint(capsys, zoo)


TOLD_OTHERWISE = [
    ("split: train", "split: validation"),
    ("---\n", ""),
    ("dtype: float64", "dtype: float32"),
    ("---\n", "---\n["),
]


@pytest.mark.parametrize("old, new", TOLD_OTHERWISE)
def test_a_card_that_tells_otherwise(
    zoo: Path, capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    card = zoo / "README.md"
    assert old in card.read_text()
    card.write_text(card.read_text().replace(old, new, 1))
    assert f"{card}: expected configs and features as nws.json has them" in complaint(capsys, zoo)


@pytest.mark.parametrize(
    "old", ["num_examples: ", "num_bytes: ", "nws.json sha256 ", "download_size: ", "  description: "]
)
def test_a_card_of_another_state(zoo: Path, capsys: pytest.CaptureFixture[str], old: str) -> None:
    card = zoo / "README.md"
    assert old in card.read_text()
    card.write_text(card.read_text().replace(old, f"{old}1", 1))
    told = complaint(capsys, zoo)
    assert (
        f"{card}: expected this index's numbers of snapshots and nws.json sha256 {Zoo(zoo).manifest.digest}, "
        "found others"
    ) in told


# Snapshots that are sealed but wrong


def test_a_duplicated_snapshot(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = Snapshots(read_index(zoo / "index" / "demo" / "train.parquet"))[-1]
    rewrite_index(zoo, lambda snapshots: [*snapshots, snapshots[-1]])
    assert f"{snapshot['model_id']}: expected snapshots 1 to 3, found 4: [1, 2, 3, 3]" in complaint(
        capsys, zoo
    )


def test_a_missing_snapshot(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = Snapshots(read_index(zoo / "index" / "demo" / "train.parquet"))[1]
    rewrite_index(zoo, lambda snapshots: [snapshots[0], *snapshots[2:]])
    assert (
        f"{snapshot['model_id']} snapshot {snapshot['snapshot']}: expected the snapshot that the index has"
        in complaint(capsys, zoo)
    )


def test_fewer_models_than_recorded(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((zoo / "nws.json").read_text())
    data["subsets"]["demo"]["num_models"] += 1
    (zoo / "nws.json").write_text(json.dumps(data))
    assert f"{zoo}: expected {MODELS + 1} models of demo, found {MODELS}" in complaint(capsys, zoo)


def test_an_accuracy_in_the_index_alone(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(snapshots: list[Snapshot]) -> list[Snapshot]:
        snapshots[2]["test_accuracy"] += 1 / 360
        return snapshots

    rewrite_index(zoo, change)
    assert "expected the snapshot that the index has" in complaint(capsys, zoo)


@pytest.mark.parametrize("column", ["test_accuracy", "train_accuracy", "validation_accuracy"])
def test_an_accuracy_that_is_off_by_one_image(
    zoo: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    def change(snapshot: Snapshot, weights: np.ndarray) -> None:
        if (snapshot["model_id"], snapshot["is_final"]) == ("demo-000002", True):
            snapshot[column] += 1 / (360 if column == "test_accuracy" else 500)

    forge(zoo, change)
    line = complaint(capsys, zoo, "--reevaluate", MODELS)
    assert f"demo-000002: expected {column} " in line and "by the builder's evaluation" in line


@pytest.mark.parametrize(
    ("options", "reevaluate", "retrain"),
    [
        ([], 0, 0),
        (["--reevaluate", "--retrain", "3"], 20, 3),
        (["--retrain"], 0, 1),
        (["--reevaluate=5"], 5, 0),
    ],
)
def test_how_many_may_be_left_out(options: list[str], reevaluate: int, retrain: int) -> None:
    given = main.make_context("nws-verify", ["zoo", *options]).params
    assert (given["reevaluate"], given["retrain"]) == (reevaluate, retrain)


def test_a_weight_that_is_no_number(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(snapshot: Snapshot, weights: np.ndarray) -> None:
        if (snapshot["model_id"], snapshot["snapshot"]) == ("demo-000001", 2):
            weights[7] = np.nan

    forge(zoo, change)
    line = complaint(capsys, zoo)
    assert "finite weights" in line and "conv3x16" in line


def test_a_weight_that_training_does_not_give(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(snapshot: Snapshot, weights: np.ndarray) -> None:
        if (snapshot["model_id"], snapshot["snapshot"]) == ("demo-000001", 2):
            weights[7] = np.nextafter(weights[7], np.float32(1))

    forge(zoo, change)
    assert verify(capsys, zoo)[0] == 0  # nothing else can tell
    assert "demo-000001: expected the row that was recorded, found other weights in snapshot 2" in complaint(
        capsys, zoo, "--retrain", MODELS
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [("split", "test"), ("seed", 1), ("learning_rate", 0.5), ("width_conv", 17), ("optimizer", "plain")],
)
def test_a_snapshot_that_the_plan_does_not_have(
    zoo: Path, capsys: pytest.CaptureFixture[str], column: str, value: Any
) -> None:
    """Also one that is not final."""

    def change(snapshot: Snapshot, weights: np.ndarray) -> None:
        if (snapshot["model_id"], snapshot["snapshot"]) == ("demo-000002", 1):
            assert snapshot[column] != value
            snapshot[column] = value

    forge(zoo, change)
    assert (
        f"demo-000002: expected the plan's recipe and split, found another {column} in snapshot 1"
    ) in complaint(capsys, zoo)


def test_a_model_beyond_the_plan(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(
        zoo,
        lambda snapshot, weights: snapshot.update(model_id=snapshot["model_id"].replace("demo-", "demo-1")),
    )
    assert "expected a model of the plan, found none of this number" in complaint(capsys, zoo)


def test_other_images(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((zoo / "nws.json").read_text())
    found = data["subsets"]["demo"]["image_sets"]["digits"]["sha256"]
    data["subsets"]["demo"]["image_sets"]["digits"]["sha256"] = "0" * 64
    (zoo / "nws.json").write_text(json.dumps(data))
    assert f"image set digits: expected sha256 {'0' * 64}, found {found}; give --images" in complaint(
        capsys, zoo, "--reevaluate", 1
    )


def test_a_note_that_cannot_be_read(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (zoo / ".local.json").write_text("{")
    assert f"{zoo / '.local.json'}: expected where the images lie" in complaint(capsys, zoo)


@pytest.mark.parametrize(
    "name",
    [
        "plots/accuracy.png",
        "plots/explorer.html",
        "README.md",
        "index/demo/train.parquet",
        "snapshots/demo/x.parquet",
        ".local.json",
    ],
)
def test_a_pipe_is_not_waited_for(zoo: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (zoo / name).parent.mkdir(exist_ok=True)
    (zoo / name).unlink(missing_ok=True)
    os.mkfifo(zoo / name)
    assert str(zoo / name) in complaint(capsys, zoo)


def test_no_zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path}: expected a folder with nws.json, found none" in complaint(capsys, tmp_path)


@pytest.mark.parametrize("name", ["nws", "org/nws", "~/nws", "~"])
def test_a_folder_that_is_not_there_is_not_asked_for_on_the_hub(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint(capsys, name).startswith(
        f"Error: {tmp_path / name}: expected a folder with nws.json, found nothing;"
    )


def test_a_folder_that_is_named_from_here(
    zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(zoo.parent)
    assert verify(capsys, "nws")[1].endswith("nws is whole\n")


@pytest.mark.parametrize("exact", [True, False])
def test_what_counts_as_the_same(exact: bool) -> None:
    """On another device than the builder's, numbers may differ by rounding; nothing else may."""
    for equal in (
        (0.5, 0.5),
        (float("nan"), float("nan")),
        ([0.8, None], [0.8, None]),
        ("a", "a"),
        (None, None),
    ):
        assert _same(*equal, exact=exact)
    for near in ((0.5, 0.5002), ([0.812, None], [0.8121, None])):
        assert _same(*near, exact=exact) != exact
    for other in ((0.5, 0.6), ([0.5, None], [0.5, 0.5]), ([0.5], [0.5, 0.5]), ("a", "b"), (0.5, None)):
        assert not _same(*other, exact=exact)


# What nws.json says of the build


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"epochs": "2"},
        {"epochs": True},
        {"device": "tpu"},
        {"device": None},
        {"tf32": None},
        {"train_images": -1},
        {"backend": "jax"},
        {},
    ],
)
def test_options_that_no_build_writes(
    zoo: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    manifest = Manifest.read(zoo)
    options = manifest.subsets["demo"].options
    assert isinstance(options, dict)
    options.update(change)
    if not change:
        options.clear()
    manifest.write(zoo)
    line = complaint(capsys, zoo, "--reevaluate", 1)
    assert "nws.json: expected option" in line and "of subset demo as nws build writes it" in line


def test_what_torch_trained_on_a_gpu_does_not_repeat_to_the_bit(
    zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.read(zoo)
    options = manifest.subsets["demo"].options
    assert isinstance(options, dict)
    options.update(backend="torch", device="mps")
    manifest.write(zoo)
    line = complaint(capsys, zoo, "--retrain", 1)
    assert "--retrain: expected models whose bits do not depend on their neighbours, found demo-" in line
    assert line.endswith(", trained by torch on a GPU; leave it out")


def test_image_sets_that_are_not_listed(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Manifest.read(zoo)
    image_sets = manifest.subsets["demo"].image_sets
    assert isinstance(image_sets, dict)
    image_sets.clear()
    manifest.write(zoo)
    reseal(zoo)
    assert "expected image set digits among those of subset demo, found none" in complaint(
        capsys, zoo, "--reevaluate", 1
    )


def test_a_number_of_snapshots_that_no_memory_holds(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(snapshot: Snapshot, _: np.ndarray) -> None:
        snapshot["num_snapshots"] = 1 << 30
        snapshot["snapshot"] = 1 << 30 if snapshot["is_final"] else snapshot["snapshot"]

    forge(zoo, change)
    assert "expected snapshots 1 to 1073741824" in complaint(capsys, zoo)
