"""Zoos of format version 2 are read as ever; what would write into them is refused, and changes nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import constants

import nws_dataset
from builder.cli import main as nws_build
from builder.publish import Content, Publisher
from builder.store import CARD_NAME
from builder.verify import main as nws_verify
from nws_dataset import Zoo, with_weights, zoo_features
from nws_dataset.errors import ZooError
from nws_dataset.files import sha256_file
from nws_dataset.format.manifest import MANIFEST_NAME, PENDING, STAGING, Manifest, configs
from nws_dataset.format.shards import read_index
from test_bad_input import refused
from testing import release_factory
from testing.loopback_hub import TOKEN, LoopbackHub
from testing.planned_zoo import make_planned_zoo

__all__ = ["refused"]  # a fixture
MODELS = 6
OPTIONS = {"backend": "fast", "device": "cpu", "epochs": 2, "tf32": False, "train_images": None}
# The columns of version 2, as it wrote them; those after a colon could be null.
OF_SNAPSHOTS = [
    "model_id", "subset", "split", "model_number", ":seed", "snapshot", "num_snapshots", "is_final",
    "epoch", "step", "dataset", "learning_rate", "batch_size", "optimizer", "activation", "initialization",
    ":init_std", "augmentation", "dropout", "l2", "train_fraction", "validation_fraction", "balanced",
    "learning_rate_decay", "max_epochs", "early_stopping", "filter_size", "depth_conv", "width_conv",
    "width_growth", "stride", "padding", "pooling", "head", "depth_fc", ":width_fc", "batch_norm",
    "dropout_place", "image_channels", "image_size", "pixel_min", "num_outputs", "architecture",
    "architecture_json", "num_weights", "train_accuracy", ":validation_accuracy", "test_accuracy",
    ":train_loss", ":validation_loss", ":test_loss", ":class_test_accuracy", "converged", "diverged",
]  # fmt: skip
OPTIONS_OF_PARQUET = {  # values lie in one piece
    "compression": "none",
    "use_dictionary": False,
    "write_page_checksum": True,
    "write_batch_size": 1,
}
OF_INDEX = [*OF_SNAPSHOTS, "file", "offset", "length", "sha256"]
NOT_IN_2 = {
    "kind": "cnn",
    "convention": None,
    "image": None,
    "label": None,
    "psnr": None,
    "width_hidden": None,
    "edge_threshold": None,
    "edge_scores_offset": None,
    "schedule": "decay",
    "weight_decay": 0.0,
    "label_noise": 0.0,
}


def of_version_2(table: pa.Table, columns: list[str]) -> pa.Table:
    """A table of today with the columns of version 2, whose architectures did not name their kind."""
    fields, arrays = [], []
    for name in columns:
        plain = name.removeprefix(":")
        array = table[plain]
        if plain == "architecture_json":
            texts = [text.replace('"kind":"cnn",', "") for text in array.to_pylist()]
            assert not any("kind" in text for text in texts)
            array = pa.array(texts)
        fields.append(pa.field(plain, array.type, nullable=name.startswith(":")))
        arrays.append(array)
    return pa.table(arrays, schema=pa.schema(fields))


def to_version_2(zoo: Path) -> Path:
    """Rewrite a zoo as version 2 wrote it."""
    manifest, offsets = Manifest.read(zoo), {}
    for path in manifest.files:
        if path.startswith("snapshots/"):
            table = of_version_2(pq.read_table(zoo / path), [*OF_SNAPSHOTS, "weights"])
            with pq.ParquetWriter(zoo / path, table.schema, **OPTIONS_OF_PARQUET) as writer:
                for snapshot in sorted(set(table["snapshot"].to_pylist())):
                    writer.write_table(table.filter(pc.equal(table["snapshot"], snapshot)))
            content = (zoo / path).read_bytes()
            for value in table["weights"].to_pylist():
                offsets[hashlib.sha256(value).hexdigest()] = content.index(value)
    for path in manifest.index_files():
        table = read_index(zoo / path)
        found = pa.array([offsets[digest] for digest in table["sha256"].to_pylist()])
        table = table.set_column(table.column_names.index("offset"), "offset", found)
        pq.write_table(of_version_2(table, OF_INDEX), zoo / path, write_page_checksum=True)
    data = json.loads((zoo / MANIFEST_NAME).read_text())
    data["format_version"] = 2
    data["subsets"]["demo"]["options"] = OPTIONS
    for path, entry in data["files"].items():
        entry |= {"size": (zoo / path).stat().st_size, "sha256": sha256_file(zoo / path)}
    (zoo / MANIFEST_NAME).write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
    front = yaml.safe_dump(configs(Manifest.read(zoo), Zoo(zoo).index), sort_keys=False)
    (zoo / CARD_NAME).write_text(f"---\n{front}---\n")
    return zoo


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_planned_zoo(tmp_path_factory.mktemp("today") / "nws", "demo", MODELS, epochs=2)


@pytest.fixture(scope="module")
def complete(today: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same zoo in version 2; not to be changed."""
    return to_version_2(Path(shutil.copytree(today, tmp_path_factory.mktemp("version_2") / "nws")))


def half_built(zoo: Path) -> None:
    """A model waits for its shard."""
    (zoo / STAGING / "models").mkdir(parents=True)
    shutil.copy(next(zoo.rglob("snapshots/demo/*.parquet")), zoo / STAGING / "models" / "demo-000007.parquet")


def stopped_while_it_moved(zoo: Path) -> None:
    """The builder was killed before the files of its new state went to their places."""
    (zoo / PENDING).mkdir(parents=True)
    for name in (MANIFEST_NAME, CARD_NAME, "index", "snapshots"):
        (zoo / name).rename(zoo / PENDING / name)


STATES: dict[str, Callable[[Path], None]] = {
    "complete": lambda zoo: None,
    "half built": half_built,
    "stopped": stopped_while_it_moved,
}


@pytest.fixture(params=STATES)
def zoo(request: pytest.FixtureRequest, complete: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(complete, tmp_path / "nws"))
    STATES[request.param](copy)
    return copy


# It is read


def test_it_is_read(zoo: Path, today: Path) -> None:
    earlier, now = Zoo(zoo, check=True), Zoo(today)
    assert earlier.manifest.format_version == 2
    snapshots, expected = earlier.filter(), now.filter()
    assert len(snapshots) == 3 * MODELS
    for snapshot, same in zip(snapshots, expected, strict=True):
        assert {**snapshot, "offset": 0} == {**same, "offset": 0}
        assert {name: snapshot[name] for name in NOT_IN_2} == NOT_IN_2
    for row, same_row in zip(earlier.arrays(snapshots), now.arrays(expected), strict=True):
        assert np.array_equal(row, same_row)
    assert earlier.architecture(snapshots[0]) == now.architecture(expected[0])
    images = torch.rand(2, *(3, 32, 32))[:, : snapshots[0]["image_channels"]]
    images = torch.nn.functional.interpolate(images, snapshots[0]["image_size"])
    outputs = [z.network(s)(images) for z, s in ((earlier, snapshots[0]), (now, expected[0]))]
    assert torch.equal(*outputs)
    features, _ = zoo_features(earlier, earlier.filter(is_final=True), "layers")
    assert len(features) == MODELS


def test_the_library_datasets_reads_it(complete: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    stock = datasets.load_dataset(str(complete), "demo", split="train", cache_dir=cache)
    assert stock.column_names == [*(name.removeprefix(":") for name in OF_SNAPSHOTS), "weights"]
    ours = nws_dataset.load_dataset(str(complete), split="train", cache_dir=cache)
    assert len(ours) == len(stock) == len(Zoo(complete).filter(split="train"))
    weights = with_weights(ours)[0]["weights"]
    assert np.array_equal(weights, Zoo(complete).row(Zoo(complete).filter(split="train")[0]))
    streamed = nws_dataset.load_dataset(str(complete), split="train", streaming=True)
    assert next(iter(streamed))["model_id"] == ours[0]["model_id"]


def test_it_is_verified(complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        nws_verify.main([str(complete)])
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    assert f"{complete} is whole" in captured.out and f"{MODELS} models with the plan's" in captured.out


# Nothing is added to it

EXPECTED = "expected a zoo of format_version 3, or none, found one of 2, which is only read; choose another"


def test_a_build_into_it_is_refused(refused: Callable[..., str], zoo: Path) -> None:
    for arguments in (
        ("--preset", "demo", "--models", "8", "--epochs", "2"),
        ("--preset", "siren", "--datasets", "digits", "--models", "2"),
    ):
        assert f"{zoo}: {EXPECTED}" in refused(nws_build, *arguments, "--out", zoo)


def test_an_import_into_it_is_refused(refused: Callable[..., str], zoo: Path, tmp_path: Path) -> None:
    release_factory.write_small_cnn(tmp_path / "smallcnnzoo" / "mnist", "mnist", models=2)
    found = refused(nws_build, "--import", "small_cnn", tmp_path / "smallcnnzoo", "--out", zoo)
    assert f"{zoo}: {EXPECTED}" in found


def test_it_is_not_published(
    refused: Callable[..., str], zoo: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    options = ("--upload", "--repo-id", "org/nws", "--out", zoo)
    arguments = ("--preset", "demo", "--models", str(MODELS), "--epochs", "2")
    assert f"{zoo}: {EXPECTED}" in refused(nws_build, *arguments, *options)
    with pytest.raises(ZooError, match=EXPECTED):
        Content.of(zoo)
    assert not hub.repos


def test_nothing_is_published_into_it(
    complete: Path, today: Path, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    before = hub.put("org/nws", complete)
    publisher = Publisher("org/nws")
    with pytest.raises(ZooError, match=r"org/nws on the Hub: expected .*version's format, found .*\n?$"):
        publisher.prepare(Content.of(today))
    assert hub.repos["org/nws"].branches["main"] == before
    there, here = Zoo("org/nws"), Zoo(complete)  # which is read as the folder
    assert np.array_equal(there.row(there.filter()[0]), here.row(here.filter()[0]))
