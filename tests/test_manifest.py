"""nws.json: pinned as text, read back, and refused when it is not what it should be."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pytest

from nws_dataset.errors import ZooError
from nws_dataset.files import sha256_file
from nws_dataset.format.manifest import (
    COPIES,
    MANIFEST_NAME,
    FileEntry,
    ImageSource,
    Manifest,
    SubsetEntry,
    configs,
)
from nws_dataset.format.schema import INDEX_SCHEMA, SNAPSHOTS_SCHEMA

GOLDEN = """\
{
  "files": {
    "index/fixed/train.parquet": {
      "sha256": "ab",
      "size": 12
    }
  },
  "format_version": 3,
  "generator_version": "1.0",
  "index_path": "index/{subset}/{split}.parquet",
  "snapshots_path": "snapshots/{subset}/{split}-{architecture}-{block:05d}.parquet",
  "subsets": {
    "fixed": {
      "image_sets": {
        "mnist": {
          "sha256": "cd",
          "source": "ylecun/mnist"
        }
      },
      "num_models": 50,
      "options": {
        "epochs": 2,
        "train_images": null
      },
      "seed": 7
    }
  }
}
"""
MANIFEST = Manifest(
    generator_version="1.0",
    subsets={
        "fixed": SubsetEntry(
            7, 50, {"epochs": 2, "train_images": None}, {"mnist": ImageSource("ylecun/mnist", "cd")}
        )
    },
    files={"index/fixed/train.parquet": FileEntry(12, "ab")},
)


def test_golden_text(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    assert (tmp_path / MANIFEST_NAME).read_text() == GOLDEN
    assert Manifest.read(tmp_path) == MANIFEST


def test_a_copy_of_an_image_set_names_the_results() -> None:
    (copy,) = COPIES
    sources = {
        "decoded as here": ImageSource("Parquet cifar10", copy.sha256),
        "decoded otherwise": ImageSource("Parquet cifar10/jpeg-transcoded", "ab"),
        "original": ImageSource("uoft-cs/cifar10", "cd"),
    }
    subsets = {name: SubsetEntry(0, 1, image_sets={"cifar10": images}) for name, images in sources.items()}
    subsets["another"] = SubsetEntry(0, 1, image_sets={"mnist": sources["decoded otherwise"]})
    manifest = Manifest("1", subsets, {})
    for name in ("decoded as here", "decoded otherwise"):
        assert manifest.dataset_name("cifar10", [name]) == "CIFAR-10 (JPEG q75)"
        assert manifest.dataset_name("mnist", [name]) == "mnist"
    for name in ("original", "another", "not listed"):
        assert manifest.dataset_name("cifar10", [name]) == "cifar10" and not subsets["another"].copies
    both = manifest.dataset_name("cifar10", ["original", *subsets])
    assert both == "CIFAR-10 (JPEG q75) and cifar10"


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"found none; not a zoo; build one with nws build --out DIR"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("cut", [0, 1, len(GOLDEN) // 2, len(GOLDEN) - 2])
def test_truncated(tmp_path: Path, cut: int) -> None:
    (tmp_path / MANIFEST_NAME).write_text(GOLDEN[:cut])
    with pytest.raises(ZooError, match=r"nws\.json: expected the manifest of a zoo.*fetch or build it again"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_other_format_version(tmp_path: Path, version: object) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**json.loads(GOLDEN), "format_version": version}))
    with pytest.raises(ZooError, match=r"expected format_version 2 or 3, found .*install the version"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"subsets": None},
        {"files": {"a": 3}},
        {"files": {"a": {"size": 3}}},
        {"files": {"a": {"size": 2**63, "sha256": ""}}},
        {"surplus": 1},
        {"subsets": {"a": {"seed": 1}}},
    ],
)
def test_wrong_structure(tmp_path: Path, change: dict) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**json.loads(GOLDEN), **change}))
    with pytest.raises(ZooError, match="the manifest of a zoo"):
        Manifest.read(tmp_path)


HALF = "\\ud800"  # of a character, as JSON writes it


@pytest.mark.parametrize("old", ['"1.0"', '"ylecun/mnist"', '"cd"', "null", '"epochs"', '"mnist": {'])
def test_half_a_character(tmp_path: Path, old: str) -> None:
    """The card, which holds these texts, could not be written."""
    assert old in GOLDEN
    (tmp_path / MANIFEST_NAME).write_text(
        GOLDEN.replace(old, f'"{HALF}": {{' if old.endswith("{") else f'"{HALF}"', 1)
    )
    with pytest.raises(ZooError, match="the manifest of a zoo") as raised:
        Manifest.read(tmp_path)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("value", ["[]", "{}", "[" * 500 + "]" * 500])
def test_options_that_are_no_single_values(tmp_path: Path, value: str) -> None:
    """Deep ones would be too deep for what writes them."""
    (tmp_path / MANIFEST_NAME).write_text(GOLDEN.replace("null", value, 1))
    with pytest.raises(ZooError, match="options of fixed"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", "\xff"])
def test_not_a_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text, encoding="latin-1")
    with pytest.raises(ZooError, match="the manifest of a zoo"):
        Manifest.read(tmp_path)


def test_locate(tmp_path: Path) -> None:
    path = tmp_path / "index/fixed/train.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 12)
    assert MANIFEST.locate(tmp_path, "index/fixed/train.parquet") == path.resolve()
    path.write_bytes(b"x" * 11)
    with pytest.raises(ZooError, match="expected 12 bytes, found 11 bytes"):
        MANIFEST.locate(tmp_path, "index/fixed/train.parquet")
    path.unlink()
    with pytest.raises(ZooError, match="expected 12 bytes, found no file"):
        MANIFEST.locate(tmp_path, "index/fixed/train.parquet")
    with pytest.raises(ZooError, match=r"a file that nws\.json lists"):
        MANIFEST.locate(tmp_path, "index/fixed/test.parquet")
    with pytest.raises(ZooError, match="below this folder"):
        MANIFEST.locate(tmp_path, "../index/fixed/train.parquet")


def test_configs_list_only_splits_with_snapshots() -> None:
    paths = [
        "index/main/train.parquet",
        "index/fixed/test.parquet",
        "snapshots/main/train-a-b-00000.parquet",
        "snapshots/fixed/test-c-00001.parquet",
    ]
    entry = SubsetEntry(7, 5)
    manifest = Manifest(
        "1.0", {"main": entry, "fixed": entry, "empty": entry}, {path: FileEntry(3, "") for path in paths}
    )
    index = pa.table({"subset": ["main", "fixed", "main"], "split": ["train", "test", "train"]})
    block = configs(manifest, index)
    assert block["configs"] == [
        {
            "config_name": "index",
            "default": True,
            "data_files": [
                {"split": "train", "path": "index/*/train.parquet"},
                {"split": "test", "path": "index/*/test.parquet"},
            ],
        },
        {"config_name": "main", "data_files": [{"split": "train", "path": "snapshots/main/train-*.parquet"}]},
        {"config_name": "fixed", "data_files": [{"split": "test", "path": "snapshots/fixed/test-*.parquet"}]},
    ]
    assert [info["config_name"] for info in block["dataset_info"]] == ["index", "main", "fixed"]
    names = [[feature["name"] for feature in info["features"]] for info in block["dataset_info"]]
    assert names == [INDEX_SCHEMA.names, SNAPSHOTS_SCHEMA.names, SNAPSHOTS_SCHEMA.names]
    counts = [
        {split["name"]: split["num_examples"] for split in info["splits"]} for info in block["dataset_info"]
    ]
    assert counts == [{"train": 2, "test": 1}, {"train": 2}, {"test": 1}]
    assert [split["num_bytes"] for split in block["dataset_info"][0]["splits"]] == [3, 3]
    assert [info["download_size"] for info in block["dataset_info"]] == [6, 3, 3]
    assert {info["description"] for info in block["dataset_info"]} == {f"nws.json sha256 {manifest.digest}"}


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    assert MANIFEST.digest == sha256_file(tmp_path / "nws.json") == Manifest.read(tmp_path).digest
    assert dataclasses.replace(MANIFEST, files={}).digest != MANIFEST.digest


def test_sha256_of_files_is_that_of_their_bytes(tmp_path: Path) -> None:
    from testing.zoo_factory import make_zoo

    manifest = Manifest.read(make_zoo(tmp_path / "zoo", models=2, snapshots=1))
    assert manifest.files
    for path, entry in manifest.files.items():
        assert sha256_file(manifest.locate(tmp_path / "zoo", path)) == entry.sha256
