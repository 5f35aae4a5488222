"""The files of a zoo: snapshots files (metadata, weights) and index files (metadata, where the weights are).

A value of the column `weights` is a complete safetensors file: a header that depends only on the
architecture, then the row. The Parquet file is uncompressed, so a value is also a contiguous byte range of
the file, which the index gives by offset and length.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import mmap
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nws_dataset.errors import ZooError
from nws_dataset.files import atomic_write, check_file
from nws_dataset.format.schema import (
    ADDED_IN_3,
    INDEX_SCHEMA,
    METADATA_SCHEMA,
    SNAPSHOTS_SCHEMA,
    VALUES,
    from_version_2,
    is_of_version_2,
)
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import TensorSpec, layout_of

ROW_DTYPE = np.dtype("<f4")  # as safetensors' F32
DATA_ALIGNMENT = 8  # safetensors: the data start at a multiple of 8 bytes
GROUP_SNAPSHOTS = 1000  # a row group has at most so many snapshots ...
GROUP_BYTES = 16 << 20  # ... and bytes of weights (or one value): small enough for the Hub's viewer
LENGTH_BYTES = 4  # Parquet's PLAIN encoding puts the length before each value
# what Arrow raises for a damaged file; ValueError: names that are not text
UNREADABLE = (pa.ArrowException, OSError, ValueError)


# One value


def _header(architecture: BaseArchitecture, tensors: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "architecture": architecture.id}}
    for spec in tensors:
        offsets = [spec.offset * ROW_DTYPE.itemsize, spec.stop * ROW_DTYPE.itemsize]
        entries[spec.name] = {"dtype": "F32", "shape": list(spec.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % DATA_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@functools.cache
def header(architecture: BaseArchitecture) -> bytes:
    """The safetensors header of an architecture: 8 bytes of length, then JSON, padded with spaces.

    Example:
        >>> from nws_dataset import Architecture
        >>> header(Architecture())[8:70]
        b'{"__metadata__":{"format":"pt","architecture":"conv3x8k5-max-d'
    """
    return _header(architecture, layout_of(architecture).tensors)


@functools.cache
def scores_header(architecture: BaseArchitecture) -> bytes:
    """The safetensors header of an architecture's edge scores."""
    return _header(architecture, architecture.edge_scores())


def value_bytes(architecture: BaseArchitecture) -> int:
    """The length of a network's safetensors value."""
    return len(header(architecture)) + layout_of(architecture).num_weights * ROW_DTYPE.itemsize


def scores_bytes(architecture: BaseArchitecture) -> int:
    """The length of the safetensors value of a network's edge scores."""
    return len(scores_header(architecture)) + num_scores(architecture) * ROW_DTYPE.itemsize


def pack(architecture: BaseArchitecture, row: np.ndarray) -> bytes:
    """The safetensors bytes of a network.

    Args:
        architecture: the network's.
        row: [P] float32, in network order.

    Raises:
        ValueError: if the row is not float32 or not [P].
    """
    num_weights = layout_of(architecture).num_weights
    if row.shape != (num_weights,) or row.dtype != ROW_DTYPE:
        raise ValueError(
            f"row: expected [{num_weights}] float32 ({architecture.id}), found {list(row.shape)} {row.dtype}"
        )
    return header(architecture) + row.tobytes()


def unpack(
    architecture: BaseArchitecture, value: bytes | memoryview, where: object = "weights"
) -> np.ndarray:
    """The row of a network, a view of its safetensors bytes.

    Args:
        architecture: the network's; the header must be exactly the one that `pack` writes for it.
        value: the safetensors bytes.
        where: what an error names.

    Returns:
        [P] float32, not a copy: read-only if the value is, and aligned as the value is.

    Raises:
        ZooError: if the value is not of this architecture or not complete.
    """
    head, view, length = header(architecture), memoryview(value), value_bytes(architecture)
    found_head = bytes(view[: len(head)])
    if found_head != head:
        name = re.search(rb'"architecture":"([^"]*)"', found_head)
        found = f"that of {name[1].decode(errors='replace')}" if name else "other bytes"
        raise ZooError(
            where,
            expected=f"the safetensors header of {architecture.id}",
            found=found,
            do="fetch or build the file again",
        )
    if view.nbytes != length:
        raise ZooError(
            where,
            expected=f"{length} bytes ({architecture.id})",
            found=str(view.nbytes),
            do="fetch or build the file again",
        )
    return np.frombuffer(view, ROW_DTYPE, offset=len(head))


def num_scores(architecture: BaseArchitecture) -> int:
    """E, the edges of an architecture that have scores."""
    specs = architecture.edge_scores()
    return specs[-1].stop if specs else 0


def pack_scores(architecture: BaseArchitecture, scores: np.ndarray) -> bytes:
    """The safetensors bytes of a network's edge scores [E] float32.

    Raises:
        ValueError: if they are not float32 or not [E].
    """
    count = num_scores(architecture)
    if scores.shape != (count,) or scores.dtype != ROW_DTYPE:
        raise ValueError(
            f"edge scores: expected [{count}] float32, found {list(scores.shape)} {scores.dtype}"
        )
    return scores_header(architecture) + scores.tobytes()


def unpack_scores(
    architecture: BaseArchitecture, value: bytes | memoryview, where: object = "edge scores"
) -> np.ndarray:
    """The edge scores [E] float32 of a network, a view of their safetensors bytes.

    Raises:
        ZooError: if the value is not of this architecture or not complete.
    """
    head, view = scores_header(architecture), memoryview(value)
    check_scores_length(architecture, view.nbytes, where)
    if bytes(view[: len(head)]) != head:
        raise ZooError(
            where,
            expected=f"the safetensors header of {architecture.id}'s edge scores",
            found="other bytes",
            do="fetch or build the file again",
        )
    return np.frombuffer(view, ROW_DTYPE, offset=len(head))


def check_scores_length(architecture: BaseArchitecture, length: int, where: object) -> None:
    """Raise a ZooError unless a value of so many bytes can be the edge scores of an architecture."""
    count, expected = num_scores(architecture), scores_bytes(architecture)
    if length != expected:
        raise ZooError(
            where,
            expected=f"the {count} edge scores of {architecture.id}, {expected} bytes",
            found=f"{length} bytes",
            do="fetch or build the file again",
        )


def check_value(value: bytes | memoryview, sha256: str, where: object) -> None:
    """Raise a ZooError unless a value has its digest of the index."""
    found = hashlib.sha256(value).hexdigest()
    if found != sha256:
        raise ZooError(
            where, expected=f"sha256 {sha256}", found=found, do="the file is damaged; fetch or build it again"
        )


# Snapshots files


def write_snapshots(
    path: str | Path,
    metadata: pa.Table,
    values: Iterable[bytes],
    *,
    relative: str,
    edge_scores: Iterable[bytes | None] | None = None,
) -> pa.Table:
    """Write a snapshots file, a row group at a time.

    Equal input gives equal bytes (with one version of pyarrow).

    Args:
        path: the file to write.
        metadata: METADATA_SCHEMA, sorted by (snapshot, model_id).
        values: one `pack`ed network per snapshot; consumed as a stream.
        relative: the file's path in the repository, for the index.
        edge_scores: of each snapshot its `pack_scores`, None of one that has none; None: none has.

    Returns:
        Its lines of the index (INDEX_SCHEMA): metadata with file, offset, length and sha256.

    Raises:
        ZooError: if the file cannot be written.
        ValueError: if there are more or fewer values than snapshots.
    """
    assert metadata.schema.equals(METADATA_SCHEMA), "metadata: not METADATA_SCHEMA"
    snapshots = metadata["snapshot"].to_pylist()
    order = list(zip(snapshots, metadata["model_id"].to_pylist(), strict=True))
    assert all(a < b for a, b in itertools.pairwise(order)), (
        f"{relative}: snapshots are not sorted by (snapshot, model_id)"
    )
    found: list[_Found] = [_Found(name) for name in VALUES]
    scores = itertools.repeat(None, len(snapshots)) if edge_scores is None else edge_scores
    with atomic_write(path) as temporary:
        with pq.ParquetWriter(temporary, SNAPSHOTS_SCHEMA, **_writer_options()) as writer:
            for group in _row_groups(snapshots, zip(values, scores, strict=True)):
                part = metadata.slice(len(found[0].lengths), len(group))
                columns = [pa.array(column, pa.large_binary()) for column in zip(*group, strict=True)]
                writer.write_table(
                    pa.table([*part.columns, *columns], schema=SNAPSHOTS_SCHEMA), row_group_size=len(group)
                )
                for of_column, column in zip(found, zip(*group, strict=True), strict=True):
                    of_column.add(column)
        return _index_table(metadata, relative, temporary, found)


class _Found:
    """The lengths and digests of a column's values, None where there is none."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.lengths: list[int | None] = []
        self.digests: list[str | None] = []

    def add(self, values: Iterable[Any]) -> None:
        for value in values:
            self.lengths.append(None if value is None else len(value))
            self.digests.append(None if value is None else hashlib.sha256(value).hexdigest())


def _writer_options() -> dict[str, Any]:
    """Parquet options that keep values contiguous and let readers skip to a page."""
    return {
        "compression": "none",
        "use_dictionary": False,
        "write_page_index": True,
        "write_page_checksum": True,
        "write_statistics": METADATA_SCHEMA.names,  # those of weights would be useless
        # a page is closed after the batch that fills it (1 MiB), so a batch must be small
        "write_batch_size": 1,
    }


def _row_groups(
    snapshots: Sequence[int], values: Iterable[tuple[bytes, bytes | None]]
) -> Iterator[list[tuple[bytes, bytes | None]]]:
    """The values in row groups, none of which mixes snapshot numbers or exceeds its limits."""
    group: list[tuple[bytes, bytes | None]] = []
    size, current = 0, None
    for snapshot, value in zip(snapshots, values, strict=True):
        length = len(value[0]) + len(value[1] or b"")
        full = len(group) == GROUP_SNAPSHOTS or size + length > GROUP_BYTES
        if group and (snapshot != current or full):
            yield group
            group, size = [], 0
        group.append(value)
        size, current = size + length, snapshot
    if group:
        yield group


def _find_values(path: Path, found: _Found) -> list[int | None]:
    """The offset of each value of a column in a snapshots file, in order.

    A value comes after its length, which comes after the previous value or a page header. So each position
    with this length is tried in turn until the digest fits: every value has been read back.
    """
    offsets: list[int | None] = []
    check_file(path)
    footer = pq.read_metadata(path)
    column = SNAPSHOTS_SCHEMA.names.index(found.column)
    # Parquet numbers leaf columns, Arrow top-level ones; they agree as long as a list has one leaf.
    chunks = [
        (footer.row_group(i).num_rows, footer.row_group(i).column(column))
        for i in range(footer.num_row_groups)
    ]
    if sum(count for count, _ in chunks) != len(found.lengths) or any(
        chunk.path_in_schema != found.column for _, chunk in chunks
    ):
        expected, wrong = f"{found.column} of {len(found.lengths)} snapshots", "other numbers in its footer"
        raise ZooError(path, expected=expected, found=wrong, do="fetch or build it again")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for count, chunk in chunks:
            position, stop = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
            first = len(offsets)
            for length, digest in zip(
                found.lengths[first : first + count], found.digests[first : first + count], strict=True
            ):
                if length is None or digest is None:
                    offsets.append(None)
                    continue
                offset = _find_value(content, position, stop, length, digest)
                if offset is None:
                    expected, wrong = (
                        f"the value {digest} in one piece",
                        (f"none in bytes {position} to {stop}"),
                    )
                    raise ZooError(path, expected=expected, found=wrong, do="fetch or build it again")
                offsets.append(offset)
                position = offset + length
    return offsets


def _find_value(content: mmap.mmap, start: int, stop: int, length: int, digest: str) -> int | None:
    """The offset of the first value of this length and digest in content[start:stop], if there is one."""
    prefix = length.to_bytes(LENGTH_BYTES, "little")
    position = content.find(prefix, start, stop)
    while position >= 0:
        offset = position + LENGTH_BYTES
        if hashlib.sha256(content[offset : offset + length]).hexdigest() == digest:
            return offset
        position = content.find(prefix, position + 1, stop)
    return None


def read_snapshots(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read a snapshots file a row group at a time, page checksums verified.

    Args:
        path: a file that `write_snapshots` wrote.
        columns: the columns to read; None reads all.

    Yields:
        Record batches of SNAPSHOTS_SCHEMA, in the file's order.

    Raises:
        ZooError: if the file is missing, cut short, altered, or not of this schema.
    """
    try:
        check_file(path)
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            earlier = is_of_version_2(file.schema_arrow, SNAPSHOTS_SCHEMA)
            if not earlier:
                verify_schema(path, file.schema_arrow, SNAPSHOTS_SCHEMA)
            wanted = pa.schema(
                [field for field in SNAPSHOTS_SCHEMA if columns is None or field.name in columns]
            )
            stored = [name for name in wanted.names if name not in ADDED_IN_3] if earlier else columns
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(GROUP_SNAPSHOTS, row_groups=[group], columns=stored):
                    if earlier:
                        table = from_version_2(pa.Table.from_batches([batch]), wanted)
                        yield from table.combine_chunks().to_batches()
                    else:
                        yield batch
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def reindex(path: str | Path, *, relative: str) -> pa.Table:
    """The lines of the index (INDEX_SCHEMA) of a snapshots file, rebuilt by reading all of it.

    Args:
        path: a file that `write_snapshots` wrote.
        relative: the file's path in the repository.

    Raises:
        ZooError: if the file is missing, cut short, altered, or not of this schema.
    """
    tables, found = [], [_Found(name) for name in VALUES]
    for batch in read_snapshots(path):
        tables.append(pa.Table.from_batches([batch]).select(METADATA_SCHEMA.names))
        for of_column in found:
            of_column.add(
                memoryview(value.as_buffer()) if value.is_valid else None
                for value in batch.column(of_column.column)
            )
    metadata = pa.concat_tables(tables) if tables else METADATA_SCHEMA.empty_table()
    return _index_table(metadata, relative, Path(path), found)


def _index_table(metadata: pa.Table, relative: str, path: Path, found: Sequence[_Found]) -> pa.Table:
    byte_ranges: list[list[Any]] = [[relative] * len(metadata)]
    for of_column in found:
        byte_ranges += [_find_values(path, of_column), of_column.lengths, of_column.digests]
    added = [
        pa.array(column, field.type)
        for column, field in zip(byte_ranges, list(INDEX_SCHEMA)[-len(byte_ranges) :], strict=True)
    ]
    return pa.table([*metadata.columns, *added], schema=INDEX_SCHEMA)


# Index files


def write_index(path: str | Path, table: pa.Table) -> None:
    """Write an index file.

    Args:
        path: the file to write.
        table: INDEX_SCHEMA, in the order of the plan.

    Raises:
        ZooError: if the file cannot be written.
    """
    assert table.schema.equals(INDEX_SCHEMA), "table: not INDEX_SCHEMA"
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_index=True, write_page_checksum=True)


def read_index(path: str | Path, content: memoryview | None = None) -> pa.Table:
    """The lines of an index file (INDEX_SCHEMA).

    Args:
        path: of the file, also for error messages.
        content: of the file, if it is in memory.

    Raises:
        ZooError: if the file is missing, cut short, altered, or not of this schema.
    """
    try:
        if content is None:
            check_file(path)
        source = path if content is None else pa.BufferReader(content)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            if is_of_version_2(file.schema_arrow, INDEX_SCHEMA):
                return from_version_2(file.read(), INDEX_SCHEMA)
            verify_schema(path, file.schema_arrow, INDEX_SCHEMA)
            return file.read()
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: object, error: Exception) -> ZooError:
    """An error of Arrow in one line."""
    found = (str(error).splitlines() or [type(error).__name__])[0]
    return ZooError(path, expected="a complete Parquet file", found=found, do="fetch or build it again")


def verify_schema(path: object, found: pa.Schema, expected: pa.Schema) -> None:
    """Raise a ZooError that names the columns that differ, if any."""
    if found.equals(expected):
        return
    wrong = [
        name
        for name in dict.fromkeys([*expected.names, *found.names])
        if name not in found.names or name not in expected.names
    ]
    wrong = wrong or [a.name for a, b in zip(found, expected, strict=True) if not a.equals(b)]
    found_names = f"a difference in {', '.join(wrong)}"
    raise ZooError(
        path,
        expected="the columns of nws_dataset.format.schema",
        found=found_names,
        do="use the version of nws that built it",
    )
