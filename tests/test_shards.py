"""Snapshots files: values pinned byte for byte, contiguous in the file, readable by the stock libraries, and
damage is noticed.
"""

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from nws_dataset.errors import ZooError
from nws_dataset.format import shards
from nws_dataset.format.schema import INDEX_SCHEMA, METADATA_SCHEMA, SNAPSHOTS_SCHEMA, VALUES
from nws_dataset.format.shards import (
    check_value,
    header,
    pack,
    read_index,
    read_snapshots,
    reindex,
    unpack,
    write_index,
    write_snapshots,
)
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network
from testing.zoo_factory import ARCHITECTURES, NORMED, PLAIN, make_metadata, make_recipe, make_shard

PLAIN_HEADER = (
    b'\x90\x02\x00\x00\x00\x00\x00\x00{"__metadata__":{"format":"pt","architecture":"conv3x4k3s2g1v-avg-convdrop-in1x28c"},'
    b'"conv1.weight":{"dtype":"F32","shape":[4,1,3,3],"data_offsets":[0,144]},"conv1.bias":{"dtype":"F32","shape":[4],"data_offsets":[144,160]},'
    b'"conv2.weight":{"dtype":"F32","shape":[4,4,3,3],"data_offsets":[160,736]},"conv2.bias":{"dtype":"F32","shape":[4],"data_offsets":[736,752]},'
    b'"conv3.weight":{"dtype":"F32","shape":[4,4,3,3],"data_offsets":[752,1328]},'
    b'"conv3.bias":{"dtype":"F32","shape":[4],"data_offsets":[1328,1344]},'
    b'"output.weight":{"dtype":"F32","shape":[10,4],"data_offsets":[1344,1504]},'
    b'"output.bias":{"dtype":"F32","shape":[10],"data_offsets":[1504,1544]}}      '
)
NAME = "snapshots/demo/train-a-00000.parquet"


def random_row(architecture: Architecture, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(layout_of(architecture).num_weights, np.float32)


def metadata_of(architecture: Architecture, keys: Iterable[tuple[int, int]]) -> pa.Table:
    """METADATA_SCHEMA of (snapshot, model number)s."""
    random = np.random.default_rng(0)
    names: dict[str, Any] = {"subset": "demo", "snapshots": 3, "split": "train", "random": random}
    lines = [make_metadata(make_recipe(architecture, n), number=n, snapshot=s, **names) for s, n in keys]
    return pa.Table.from_pylist(lines, METADATA_SCHEMA)


# --- one value ---


def test_golden_header() -> None:
    assert header(PLAIN) == PLAIN_HEADER


@pytest.mark.parametrize(
    ("architecture", "digest"),
    [
        (Architecture(), "7e264997ab2e998072df60b1a3a9bbdf6cd8d4ed7eb5a38135217b2add75b987"),
        (
            Architecture(depth_conv=5, depth_fc=4, filter_size=3),
            "da007188f329fa980c61b397c2149e28ca426296830aa78bd31f4976c17fc15f",
        ),
    ],
    ids=lambda value: getattr(value, "id", ""),
)
def test_golden_header_digests(architecture: Architecture, digest: str) -> None:
    assert hashlib.sha256(header(architecture)).hexdigest() == digest
    assert len(header(architecture)) % 8 == 0


def test_golden_value() -> None:
    value = pack(PLAIN, np.arange(386, dtype=np.float32))
    assert (
        hashlib.sha256(value).hexdigest()
        == "5740e417aef149e0b87c8e1bff4ed9ddcda7d0295da56043b3cdfd39950bc87f"
    )
    assert value[-4:].hex() == "0080c043"  # 385.0, little-endian


@pytest.mark.parametrize(
    "architecture", [*ARCHITECTURES, Architecture()], ids=lambda architecture: architecture.id
)
def test_stock_safetensors_reads_a_value(architecture: Architecture) -> None:
    row = random_row(architecture)
    expected = layout_of(architecture).views(row)
    for arrays in (
        safetensors.numpy.load(pack(architecture, row)),
        safetensors.torch.load(pack(architecture, row)),
    ):
        assert set(arrays) == set(expected)
        assert all(np.array_equal(arrays[name], tensor) for name, tensor in expected.items())
    net = Network(architecture, "relu")
    net.load_state_dict(safetensors.torch.load(pack(architecture, row)), strict=True)
    assert torch.equal(net.row(), torch.from_numpy(row))


def test_unpack_is_a_view() -> None:
    value = pack(NORMED, random_row(NORMED))
    row = unpack(NORMED, value)
    assert np.array_equal(row, random_row(NORMED))
    assert row.dtype == np.float32 and not row.flags.owndata and not row.flags.writeable
    assert np.array_equal(unpack(NORMED, memoryview(b"x" + value)[1:]), row)  # any alignment


def test_unpack_refuses_another_architecture() -> None:
    with pytest.raises(
        ZooError,
        match=r"here: expected the safetensors header of conv3x4k3-max.*, found "
        r"that of conv3x4k3s2g1v",
    ):
        unpack(NORMED, pack(PLAIN, random_row(PLAIN)), "here")


@pytest.mark.parametrize(
    "change", [lambda v: v[:-1], lambda v: v + b"\0", lambda v: v[:20], lambda v: b"", lambda v: b"{" + v[1:]]
)
def test_unpack_refuses_damage(change: Any) -> None:
    with pytest.raises(ZooError, match=r"here: expected .* found .*; fetch or build"):
        unpack(NORMED, change(pack(NORMED, random_row(NORMED))), "here")


@pytest.mark.parametrize(
    "row",
    [np.zeros(386), np.zeros(385, np.float32), np.zeros((1, 386), np.float32)],
    ids=["type", "length", "axes"],
)
def test_pack_refuses_what_is_no_row(row: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"row: expected \[386\] float32"):
        pack(PLAIN, row)


# --- snapshots files ---


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.id)
def test_index_finds_every_value(tmp_path: Path, architecture: Architecture) -> None:
    index, values = make_shard(tmp_path, NAME, architecture, numbers=range(40))
    content = (tmp_path / NAME).read_bytes()
    assert index.schema.equals(INDEX_SCHEMA)
    for snapshot, value in zip(index.to_pylist(), values, strict=True):
        assert snapshot["file"] == NAME
        assert content[snapshot["offset"] : snapshot["offset"] + snapshot["length"]] == value
        assert snapshot["sha256"] == hashlib.sha256(value).hexdigest()
    offsets = index["offset"].to_pylist()
    assert offsets == sorted(set(offsets))


def test_equal_values_have_byte_ranges_of_their_own(tmp_path: Path) -> None:
    keys = list(itertools.product((1, 2), range(4)))
    value = pack(PLAIN, np.zeros(386, np.float32))
    index = write_snapshots(
        tmp_path / "a.parquet", metadata_of(PLAIN, keys), [value] * len(keys), relative=NAME
    )
    assert len(set(index["offset"].to_pylist())) == len(keys)


def test_values_larger_than_a_page_and_than_a_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "GROUP_BYTES", 3 << 20)
    large = Architecture(width_fc=192, width_conv=12, depth_fc=4)
    index, values = make_shard(tmp_path, NAME, large, numbers=range(9), snapshots=2)
    assert len(values[0]) > 1 << 19
    content = (tmp_path / NAME).read_bytes()
    for offset, value in zip(index["offset"].to_pylist(), values, strict=True):
        assert content[offset : offset + len(value)] == value
    groups = [batch.num_rows for batch in read_snapshots(tmp_path / NAME)]
    assert max(groups) * len(values[0]) <= shards.GROUP_BYTES < (max(groups) + 1) * len(values[0])
    monkeypatch.setattr(shards, "GROUP_BYTES", 10)
    make_shard(tmp_path, NAME, large, numbers=range(2), snapshots=1)
    assert [batch.num_rows for batch in read_snapshots(tmp_path / NAME)] == [1, 1]


def test_row_groups_are_of_one_snapshot_number_and_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "GROUP_SNAPSHOTS", 4)
    make_shard(tmp_path, NAME, PLAIN, numbers=range(10), snapshots=3)
    groups = [batch["snapshot"].to_pylist() for batch in read_snapshots(tmp_path / NAME)]
    assert groups == [[s] * n for s in (1, 2, 3) for n in (4, 4, 2)]


def test_how_the_file_is_written(tmp_path: Path) -> None:
    make_shard(tmp_path, NAME, PLAIN)
    footer = pq.read_metadata(tmp_path / NAME)
    for group, column in itertools.product(range(footer.num_row_groups), range(footer.num_columns)):
        chunk = footer.row_group(group).column(column)
        assert chunk.compression == "UNCOMPRESSED"
        assert not chunk.has_dictionary_page
        assert chunk.has_offset_index
        scalar = chunk.path_in_schema in METADATA_SCHEMA.names
        assert (chunk.statistics is not None, chunk.has_column_index) == (scalar, scalar)
    assert pq.read_schema(tmp_path / NAME).equals(SNAPSHOTS_SCHEMA)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    make_shard(tmp_path / "a", NAME, NORMED)
    make_shard(tmp_path / "b", NAME, NORMED)
    assert (tmp_path / "a" / NAME).read_bytes() == (tmp_path / "b" / NAME).read_bytes()


def test_stock_readers(tmp_path: Path) -> None:
    index, values = make_shard(tmp_path, NAME, NORMED)
    table = pq.read_table(tmp_path / NAME)
    assert table.schema.equals(SNAPSHOTS_SCHEMA)
    assert table["weights"].to_pylist() == values
    assert table.drop_columns([*VALUES]).equals(index.select(METADATA_SCHEMA.names))
    ds = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / NAME), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert ds["weights"][:] == values
    assert ds.features["weights"] == datasets.Value("large_binary")


def test_read_snapshots(tmp_path: Path) -> None:
    _, values = make_shard(tmp_path, NAME, NORMED)
    table = pa.Table.from_batches(read_snapshots(tmp_path / NAME))
    assert table.schema.equals(SNAPSHOTS_SCHEMA)
    assert table["weights"].to_pylist() == values
    (column,) = {
        name for batch in read_snapshots(tmp_path / NAME, ["model_id"]) for name in batch.schema.names
    }
    assert column == "model_id"


def test_unsorted_snapshots_are_refused(tmp_path: Path) -> None:
    value = pack(PLAIN, random_row(PLAIN))
    for keys in ([(1, 1), (1, 0)], [(2, 0), (1, 1)], [(1, 0), (1, 0)]):
        with pytest.raises(AssertionError, match="not sorted"):
            write_snapshots(tmp_path / "a.parquet", metadata_of(PLAIN, keys), [value, value], relative=NAME)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_values_as_snapshots(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        write_snapshots(
            tmp_path / "a.parquet",
            metadata_of(PLAIN, [(1, 0), (1, 1)]),
            [pack(PLAIN, random_row(PLAIN))] * count,
            relative=NAME,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0, 3, 1000, -1])
def test_a_file_cut_short(tmp_path: Path, kept: int) -> None:
    make_shard(tmp_path, NAME, PLAIN)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:kept])
    with pytest.raises(ZooError, match=r"train-a-00000\.parquet: expected a complete Parquet file"):
        list(read_snapshots(tmp_path / NAME))


def test_a_flipped_byte_fails_the_page_checksum(tmp_path: Path) -> None:
    index, _ = make_shard(tmp_path, NAME, PLAIN)
    content = bytearray((tmp_path / NAME).read_bytes())
    content[index["offset"][4].as_py() + 1000] ^= 1
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(ZooError, match=r"train-a-00000\.parquet.*CRC"):
        list(read_snapshots(tmp_path / NAME))


def test_a_missing_file(tmp_path: Path) -> None:
    for read in (lambda path: list(read_snapshots(path)), read_index):
        with pytest.raises(ZooError, match=r"none\.parquet"):
            read(tmp_path / "none.parquet")


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.id)
def test_reindex_makes_the_index_again(tmp_path: Path, architecture: Architecture) -> None:
    index, _ = make_shard(tmp_path, NAME, architecture, numbers=range(5))
    assert reindex(tmp_path / NAME, relative=NAME).equals(index)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-1])
    with pytest.raises(ZooError, match="a complete Parquet file"):
        reindex(tmp_path / NAME, relative=NAME)


def test_check_value() -> None:
    value = pack(PLAIN, random_row(PLAIN))
    check_value(value, hashlib.sha256(value).hexdigest(), "here")
    with pytest.raises(ZooError, match="here: expected sha256 00, found"):
        check_value(memoryview(value), "00", "here")


# --- index files ---


def test_index_round_trip(tmp_path: Path) -> None:
    index, _ = make_shard(tmp_path, NAME, PLAIN)
    for name in ("a", "b"):
        write_index(tmp_path / name, index)
        assert read_index(tmp_path / name).equals(index)
        assert read_index(tmp_path / name).schema.equals(INDEX_SCHEMA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_index_of_other_columns(tmp_path: Path) -> None:
    index, _ = make_shard(tmp_path, NAME, PLAIN)
    pq.write_table(index.drop_columns(["offset", "seed"]), tmp_path / "less")
    with pytest.raises(ZooError, match="found a difference in seed, offset"):
        read_index(tmp_path / "less")
    pq.write_table(index.set_column(4, "seed", pa.array([0.5] * len(index))), tmp_path / "type")
    with pytest.raises(ZooError, match="found a difference in seed"):
        read_index(tmp_path / "type")
    with pytest.raises(
        ZooError,
        match=r"a difference in file, offset, length, sha256, edge_scores_offset, .*, weights, edge_scores",
    ):
        read_index(tmp_path / NAME)  # a snapshots file


def test_null_where_none_is_allowed(tmp_path: Path) -> None:
    index, _ = make_shard(tmp_path, NAME, PLAIN)
    broken = pa.Table.from_pylist([{**index.slice(0, 1).to_pylist()[0], "epoch": None}], INDEX_SCHEMA)
    with pytest.raises(pa.ArrowInvalid, match="epoch"):
        write_index(tmp_path / "a", broken)
    assert not (tmp_path / "a").exists()
