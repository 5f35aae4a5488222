"""The files that hold the zoo: snapshots (metadata and weights) and the index (metadata and where the weights
are).

A value of the column `weights` is a complete safetensors file: a header that follows from the architecture
alone, then the row, byte for byte. The Parquet file around it is uncompressed, so a value is also a
contiguous range of the file, found again by offset and length.
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
from nws_dataset.format.layout import layout_of
from nws_dataset.format.recipe import Architecture
from nws_dataset.format.schema import INDEX_SCHEMA, METADATA_SCHEMA, SNAPSHOTS_SCHEMA

ROW_DTYPE = np.dtype("<f4")  # as safetensors' F32
ALIGNMENT = 8  # safetensors: the data start at a multiple of 8 bytes
GROUP_SNAPSHOTS = 1000  # a row group holds at most so many snapshots ...
GROUP_BYTES = 16 << 20  # ... and bytes of weights (or one value): small enough for the Hub's viewer
LENGTH_BYTES = 4  # Parquet's PLAIN encoding puts the length before each value
# what Arrow raises for a damaged file; ValueError: names that are no text
UNREADABLE = (pa.ArrowException, OSError, ValueError)


# One value


@functools.cache
def header(architecture: Architecture) -> bytes:
    """The safetensors header of an architecture: 8 bytes of length, then JSON, padded with spaces.

    Example:
        >>> header(Architecture())[8:70]
        b'{"__metadata__":{"format":"pt","architecture":"conv3x8k5-max-d'
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "architecture": architecture.id}}
    for spec in layout_of(architecture).tensors:
        offsets = [spec.offset * ROW_DTYPE.itemsize, spec.stop * ROW_DTYPE.itemsize]
        entries[spec.name] = {"dtype": "F32", "shape": list(spec.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def pack(architecture: Architecture, row: np.ndarray) -> bytes:
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


def unpack(architecture: Architecture, value: bytes | memoryview, where: object = "weights") -> np.ndarray:
    """The row of a network, a view of its safetensors bytes.

    Args:
        architecture: the network's; the header must be exactly the one that `pack` writes for it.
        value: the safetensors bytes.
        where: what an error names.

    Returns:
        [P] float32, without a copy: read-only if the value is, and aligned only as the value is.

    Raises:
        ZooError: if the value is not of this architecture or not complete.
    """
    head, view = header(architecture), memoryview(value)
    length = len(head) + layout_of(architecture).num_weights * ROW_DTYPE.itemsize
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


def check_value(value: bytes | memoryview, sha256: str, where: object) -> None:
    """Raise a ZooError unless a value has the digest that the index gives for it."""
    found = hashlib.sha256(value).hexdigest()
    if found != sha256:
        raise ZooError(
            where, expected=f"sha256 {sha256}", found=found, do="the file is damaged; fetch or build it again"
        )


# Snapshots files


def write_snapshots(
    path: str | Path, metadata: pa.Table, values: Iterable[bytes], *, relative: str
) -> pa.Table:
    """Write a snapshots file, a row group at a time.

    The same input gives the same bytes (with one version of pyarrow).

    Args:
        path: the file to write.
        metadata: METADATA_SCHEMA, sorted by (snapshot, model_id).
        values: one `pack`ed network for each snapshot; consumed as a stream.
        relative: the file's path in the repository, for the index.

    Returns:
        The lines of the index (INDEX_SCHEMA): metadata with file, offset, length and sha256.

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
    lengths: list[int] = []
    digests: list[str] = []
    with atomic_write(path) as temporary:
        with pq.ParquetWriter(temporary, SNAPSHOTS_SCHEMA, **_writer_options()) as writer:
            for group in _row_groups(snapshots, values):
                part = metadata.slice(len(lengths), len(group))
                weights = pa.array(group, pa.large_binary())
                writer.write_table(
                    pa.table([*part.columns, weights], schema=SNAPSHOTS_SCHEMA), row_group_size=len(group)
                )
                lengths += map(len, group)
                digests += (hashlib.sha256(value).hexdigest() for value in group)
        offsets = _find_values(temporary, lengths, digests)
    return _index_table(metadata, relative, offsets, lengths, digests)


def _writer_options() -> dict[str, Any]:
    """How Parquet is written, so that values stay contiguous and readers can skip to a page."""
    return {
        "compression": "none",
        "use_dictionary": False,
        "write_page_index": True,
        "write_page_checksum": True,
        "write_statistics": METADATA_SCHEMA.names,  # of scalars: those of weights would tell nothing
        # a page is closed after the batch that fills it (1 MiB), so a batch must be small
        "write_batch_size": 1,
    }


def _row_groups(snapshots: Sequence[int], values: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The values, cut so that no row group spans two snapshots or grows beyond its limits."""
    group: list[bytes] = []
    size, current = 0, None
    for snapshot, value in zip(snapshots, values, strict=True):
        full = len(group) == GROUP_SNAPSHOTS or size + len(value) > GROUP_BYTES
        if group and (snapshot != current or full):
            yield group
            group, size = [], 0
        group.append(value)
        size, current = size + len(value), snapshot
    if group:
        yield group


def _find_values(path: Path, lengths: Sequence[int], digests: Sequence[str]) -> list[int]:
    """The offset of each value in a snapshots file, in order.

    A value follows its length, and the previous value or a page's header. So the next position where its
    length stands is tried, and its digest decides: what is returned has been read back.
    """
    offsets: list[int] = []
    check_file(path)
    footer = pq.read_metadata(path)
    column = SNAPSHOTS_SCHEMA.names.index("weights")
    # Parquet numbers leaf columns, Arrow top-level ones; they agree as long as a list has one leaf.
    chunks = [
        (footer.row_group(i).num_rows, footer.row_group(i).column(column))
        for i in range(footer.num_row_groups)
    ]
    if sum(count for count, _ in chunks) != len(lengths) or any(
        chunk.path_in_schema != "weights" for _, chunk in chunks
    ):
        expected, found = f"weights of {len(lengths)} snapshots", "other numbers in its footer"
        raise ZooError(path, expected=expected, found=found, do="fetch or build it again")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for count, chunk in chunks:
            position, stop = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
            for length, digest in zip(
                lengths[len(offsets) :][:count], digests[len(offsets) :][:count], strict=True
            ):
                offset = _find_value(content, position, stop, length, digest)
                if offset is None:
                    expected, found = (
                        f"the value {digest} in one piece",
                        (f"none in bytes {position} to {stop}"),
                    )
                    raise ZooError(path, expected=expected, found=found, do="fetch or build it again")
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
            verify_schema(path, file.schema_arrow, SNAPSHOTS_SCHEMA)
            for group in range(file.num_row_groups):
                yield from file.iter_batches(GROUP_SNAPSHOTS, row_groups=[group], columns=columns)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def reindex(path: str | Path, *, relative: str) -> pa.Table:
    """The lines of the index (INDEX_SCHEMA) for a snapshots file, made again by reading all of it.

    Args:
        path: a file that `write_snapshots` wrote.
        relative: the file's path in the repository.

    Raises:
        ZooError: if the file is missing, cut short, altered, or not of this schema.
    """
    tables, lengths, digests = [], [], []
    for batch in read_snapshots(path):
        tables.append(pa.Table.from_batches([batch]).select(METADATA_SCHEMA.names))
        for value in batch.column("weights"):
            buffer = value.as_buffer()
            lengths.append(buffer.size)
            digests.append(hashlib.sha256(buffer).hexdigest())
    metadata = pa.concat_tables(tables) if tables else METADATA_SCHEMA.empty_table()
    return _index_table(metadata, relative, _find_values(Path(path), lengths, digests), lengths, digests)


def _index_table(
    metadata: pa.Table, relative: str, offsets: list[int], lengths: list[int], digests: list[str]
) -> pa.Table:
    byte_ranges = [[relative] * len(lengths), offsets, lengths, digests]
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
        path: of the file; what an error names.
        content: of the file, if it is in memory.

    Raises:
        ZooError: if the file is missing, cut short, altered, or not of this schema.
    """
    try:
        if content is None:
            check_file(path)
        source = path if content is None else pa.BufferReader(content)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            verify_schema(path, file.schema_arrow, INDEX_SCHEMA)
            return file.read()
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: object, error: Exception) -> ZooError:
    """A failure of Arrow in one line."""
    found = (str(error).splitlines() or [type(error).__name__])[0]
    return ZooError(path, expected="a complete Parquet file", found=found, do="fetch or build it again")


def verify_schema(path: object, found: pa.Schema, expected: pa.Schema) -> None:
    """Raise a ZooError that names the columns that differ, if any do."""
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
