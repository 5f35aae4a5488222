"""Limits what an untrusted Parquet file may cost, from footer and page headers, before Arrow allocates.

Arrow trusts a page's header and allocates as many bytes as it claims, at a ratio of up to 16,000 with zstd;
and one value in a dictionary may be repeated in every row. So the headers are read here first, and the rows
in batches that cannot become too large.

Footer and header are structs in Thrift's compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow.parquet as pq

MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 1 << 23  # a file of 500 row groups needs a tenth
MAX_ENTRIES = 1 << 17  # in all lists of the footer: three bytes there may cost Arrow 700
MAX_PAGE_BYTES = 1 << 25  # inflated: Arrow ends a page after 1 MB, but only checks every 1,024 values
MAX_HEADER_BYTES = 1 << 16  # of a page's header
BATCH_BYTES = 1 << 26  # of the rows decoded at a time
BATCH_ROWS = 1000
BUFFER_BYTES = 1 << 20  # of a column, read at a time
# fields of a page's header; the field of the encoding in the header of each kind of page
PAGE_SIZE, PAGE_COMPRESSED = 2, 3
ENCODINGS = {5: 2, 7: 2, 8: 4}  # data page, dictionary page, data page of version 2
# plain, and the dictionary's two names: no value is longer than its page, as it could be in others
PLAIN = {0, 2, 8}
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)  # Thrift's types
MAX_DEPTH, MAX_FIELD = 12, 100

Struct = dict[int, "int | Struct | None"]  # field -> value; only integers and structs are kept


@dataclass(frozen=True)
class Cost:
    """The cost of reading some columns of a file."""

    rows: int
    num_bytes: int  # inflated
    batch_rows: int  # rows per batch of at most BATCH_BYTES


def open_parquet(file: BinaryIO) -> pq.ParquetFile:
    """Open a Parquet file whose footer is small enough; columns are read piece by piece.

    Raises:
        ValueError: if the file is not a Parquet file, or its footer is too large.
        pyarrow.ArrowException, OSError: if it cannot be read.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    footer = int.from_bytes(tail[:4], "little")
    if len(tail) < 8 or tail[4:] != MAGIC or footer > size - 8:
        raise ValueError("its end is not that of a Parquet file")
    if footer > MAX_FOOTER_BYTES:
        raise ValueError(f"a footer of {footer} bytes, more than {MAX_FOOTER_BYTES}")
    file.seek(size - 8 - footer)
    _Thrift(file.read(footer)).struct()
    return pq.ParquetFile(file, buffer_size=BUFFER_BYTES)


def cost_of(file: BinaryIO, opened: pq.ParquetFile, columns: Sequence[str]) -> Cost:
    """Determine what reading some columns may cost from the headers of all their pages.

    Args:
        file: the file.
        opened: the same file from `open_parquet`, before any rows were read.
        columns: paths of leaf columns, encoded plainly or by a dictionary: other encodings can make long
            values out of a few bytes.

    Raises:
        ValueError: if a column does not occur exactly once, a header is incomplete or contradicts the
            footer, or a page is too large.
        OSError: if the file cannot be read.
    """
    names = [opened.schema.column(number).path for number in range(len(opened.schema))]
    for column in columns:
        if names.count(column) != 1 or any(name.startswith(f"{column}.") for name in names):
            raise ValueError(f"column {column} is not there once")
    indices = [names.index(column) for column in columns]
    size, total, largest = file.seek(0, 2), 0, 1
    for group in range(opened.metadata.num_row_groups):
        for i in indices:
            columns_here = opened.metadata.row_group(group)
            if columns_here.num_columns != len(names):
                raise ValueError(f"row group {group} has {columns_here.num_columns} columns of {len(names)}")
            chunk = columns_here.column(i)
            if not chunk.num_values:  # Arrow neither reads nor writes pages for it
                continue
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < start:
                start = chunk.dictionary_page_offset
            stop = start + chunk.total_compressed_size
            if not 0 <= start <= stop <= size:
                raise ValueError(f"row group {group} has bytes {start} to {stop} of {size}")
            for page in _pages(file, start, stop):
                total, largest = total + page, max(largest, page)
    return Cost(opened.metadata.num_rows, total, max(1, min(BATCH_ROWS, BATCH_BYTES // largest)))


def _pages(file: BinaryIO, start: int, stop: int) -> Iterator[int]:
    """The inflated size of each page in file[start:stop]."""
    while start < stop:
        file.seek(start)
        header = _Thrift(file.read(min(MAX_HEADER_BYTES, stop - start)))
        fields = header.struct()
        size, compressed = fields.get(PAGE_SIZE), fields.get(PAGE_COMPRESSED)
        if not isinstance(size, int) or not isinstance(compressed, int) or size < 0:
            raise ValueError(f"a page without a size at byte {start}")
        if size > MAX_PAGE_BYTES:
            raise ValueError(f"a page of {size} bytes, more than {MAX_PAGE_BYTES}")
        if not 0 <= compressed <= stop - start - header.position:
            raise ValueError(f"a page of {compressed} bytes at byte {start}, of a column that ends at {stop}")
        for field_type, encoding in ENCODINGS.items():
            found = fields.get(field_type)
            if isinstance(found, dict) and found.get(encoding) not in PLAIN:
                raise ValueError(
                    f"a page in encoding {found.get(encoding)}, neither plain nor by a dictionary"
                )
        start += header.position + compressed
        yield max(size, compressed)


class _Thrift:
    """Reads a struct of Thrift's compact protocol; incomplete or repeated fields are a ValueError."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position, self.entries = data, 0, 0

    def struct(self, depth: int = 0) -> Struct:
        """Read the struct's integers and structs, by field number."""
        fields: Struct = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            if number in fields or not 0 < number < MAX_FIELD:  # Arrow takes the last, and the lowest 16 bits
                raise ValueError(f"field {number} of a header twice, or none that there is")
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, field_type: int, depth: int, *, in_list: bool = False) -> int | Struct | None:
        """Read a value of a type; None for types that are not needed."""
        if depth > MAX_DEPTH:
            raise ValueError("a header that is nested too deeply")
        if field_type in (TRUE, FALSE):
            self._take(int(in_list))
        elif field_type == BYTE:
            self._take(1)
        elif field_type in (I16, I32, I64):
            return self._integer()
        elif field_type == DOUBLE:
            self._take(8)
        elif field_type == BINARY:
            self._take(self._varint())
        elif field_type in (LIST, SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            self.entries += count
            if self.entries > MAX_ENTRIES:
                raise ValueError(f"lists of {self.entries} entries in a header, more than {MAX_ENTRIES}")
            for _ in range(count):
                self._value(head & 15, depth + 1, in_list=True)
        elif field_type == STRUCT:
            return self.struct(depth + 1)
        else:  # neither a footer nor a page's header has maps
            raise ValueError(f"type {field_type} in a header")
        return None

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> bytes:
        taken = self.data[self.position : self.position + count]
        if len(taken) < count:
            raise ValueError("a header that is cut short")
        self.position += count
        return taken

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than 64 bits in a header")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
