"""The index as columns that are read on first use; `Zoo.index` and `Snapshots` are built on it.

Repeated strings are stored once, with a code for each snapshot. Nothing here imports pandas, as Arrow's own
conversions do: that would take longer than all the reading.

Axes: N snapshots, K distinct values.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nws_dataset.errors import ZooError
from nws_dataset.format.schema import ADDED_IN_3, INDEX_SCHEMA, is_of_version_2, with_kind
from nws_dataset.format.shards import UNREADABLE, unreadable, verify_schema

BATCH_VALUES = 10_000  # how many values are Python objects at a time
UNIQUE = ("sha256",)  # strings that do not repeat
REPEATED = [field.name for field in INDEX_SCHEMA if field.type == pa.string() and field.name not in UNIQUE]
# an index file's bytes per snapshot beyond FREE_LINES; real digests alone take more
MIN_BYTES = 0.25
FREE_LINES = 10_000
NUMPY_TYPES = {pa.int64(): np.int64, pa.float64(): np.float64, pa.bool_(): np.bool_}
INTEGERS = (pa.int8(), pa.int16(), pa.int32())
Content = mmap.mmap | memoryview  # a file's content
Indices = range | np.ndarray  # indices of snapshots: consecutive, or [N] int64


class Column:
    """The values of a column.

    Args:
        arrow_type: the type that callers see.
        values: [N], of that type or dictionary-encoded; integers in as few bits as they need.
    """

    def __init__(self, arrow_type: pa.DataType, values: pa.Array) -> None:
        self.arrow_type, self.values = arrow_type, _narrow(values) if arrow_type == pa.int64() else values

    @functools.cached_property
    def at(self) -> Callable[[int], Any]:
        """A function from a snapshot's index to its value as a Python object."""
        if self.encoded:
            codes, texts = self.codes, self.distinct
            return lambda i: texts[codes[i]]
        if self.numeric and not self.values.null_count:
            return self.numbers.item
        values = self.values
        return lambda i: values[i].as_py()

    @property
    def encoded(self) -> bool:
        return isinstance(self.values, pa.DictionaryArray)

    @property
    def numeric(self) -> bool:
        """Whether it is int64, float64 or bool."""
        return self.arrow_type in NUMPY_TYPES

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """A numeric column [N], integers of any width; 0 where a value is null."""
        return _numbers(self.values)

    @functools.cached_property
    def codes(self) -> np.ndarray:
        """[N] int32: an encoded column's indices into `distinct`."""
        codes = _numbers(self.values.indices)
        return np.where(self.nulls, len(self.values.dictionary), codes) if self.values.null_count else codes

    @functools.cached_property
    def distinct(self) -> list[Any]:
        """[K]: an encoded column's distinct values, then None."""
        return [*self.values.dictionary.to_pylist(), None]

    @functools.cached_property
    def nulls(self) -> np.ndarray:
        """[N] bool: where a value is null."""
        return (
            _numbers(pc.is_null(self.values)) if self.values.null_count else np.zeros(len(self.values), bool)
        )

    def arrow(self, indices: Indices) -> pa.Array:
        """The values of some snapshots, in the type that callers see."""
        values = (
            self.values.slice(indices.start, len(indices))
            if isinstance(indices, range)
            else self.values.take(arrow_indices(indices))
        )
        return values.dictionary_decode() if self.encoded else values.cast(self.arrow_type)

    def numpy(self, indices: Indices) -> np.ndarray:
        """The values of some snapshots as a new numpy array [N]; lists give [N, ...].

        Null is NaN in a column of numbers, else None.
        """
        if self.encoded:
            return np.array(self.distinct, object)[part_of(self.codes, indices)]
        if self.numeric:
            nulls, found = part_of(self.nulls, indices), part_of(self.numbers, indices)
            if not nulls.any():
                return found.astype(NUMPY_TYPES[self.arrow_type])
            if self.arrow_type != pa.bool_():
                return np.where(nulls, np.nan, found)
        values = self.arrow(indices)
        if pa.types.is_list(self.arrow_type):
            return _matrix(values)
        return _object_array(values)

    def mask(self, name: str, condition: Any, indices: Indices) -> np.ndarray:
        """[N] bool: which of some snapshots meet a condition of `Snapshots.filter`.

        Raises:
            ZooError: if a value does not fit the column's type.
        """
        if callable(condition):
            return self._mask_of(condition, indices)
        wanted = [self._checked_value(name, value, condition) for value in _as_list(condition)]
        if self.encoded:
            chosen = set(wanted)
            return np.array([value in chosen for value in self.distinct], bool)[part_of(self.codes, indices)]
        if self.numeric:
            return self._mask_of_numbers(wanted, indices)
        if pa.types.is_list(self.arrow_type):  # a list can only be compared with null
            return part_of(self.nulls, indices) & (len(wanted) > 0)
        values, chosen = self.arrow(indices), set(wanted)
        return np.fromiter((value in chosen for value in _objects(values)), bool, len(values))

    def _mask_of(self, condition: Callable[[Any], Any], indices: Indices) -> np.ndarray:
        """Where a function is true; it is called once for each distinct value, if values can be compared."""
        if self.encoded:
            codes = part_of(self.codes, indices)
            there = np.flatnonzero(np.bincount(codes, minlength=len(self.distinct)))
            says = np.zeros(len(self.distinct), bool)
            says[there] = [bool(condition(self.distinct[i])) for i in there.tolist()]
            return says[codes]
        if not self.numeric:
            values = self.arrow(indices)
            return np.fromiter((bool(condition(value)) for value in _objects(values)), bool, len(values))
        nulls, values = part_of(self.nulls, indices), part_of(self.numbers, indices)
        mask = np.zeros(len(values), bool)
        there, codes = np.unique(values[~nulls], return_inverse=True)
        says = np.empty(len(there), bool)
        for start in range(0, len(there), BATCH_VALUES):
            says[start : start + BATCH_VALUES] = [
                bool(condition(value)) for value in there[start : start + BATCH_VALUES].tolist()
            ]
        mask[~nulls] = says[codes]
        if nulls.any():
            mask[nulls] = bool(condition(None))
        return mask

    def _mask_of_numbers(self, wanted: list[Any], indices: Indices) -> np.ndarray:
        values, nulls = part_of(self.numbers, indices), part_of(self.nulls, indices)
        given: np.ndarray = np.array(
            [value for value in wanted if value is not None], NUMPY_TYPES[self.arrow_type]
        )
        mask = values == given[0] if len(given) == 1 else np.isin(values, given)
        if values.dtype.kind == "f" and np.isnan(given).any():
            mask |= np.isnan(values)
        return np.where(nulls, None in wanted, mask)

    def _checked_value(self, name: str, value: Any, condition: Any) -> Any:
        """A condition's value, checked for the column's type; numpy's scalars become Python's."""
        value = value.item() if isinstance(value, np.generic) else value
        python_types = {
            pa.int64(): (int, float),
            pa.float64(): (int, float),
            pa.bool_(): (bool,),
            pa.string(): (str,),
        }.get(self.arrow_type, ())
        fits = value is None or (
            isinstance(value, python_types) and (self.arrow_type == pa.bool_() or not isinstance(value, bool))
        )
        if fits and value is not None and self.arrow_type == pa.int64():
            fits = -(2**63) <= value < 2**63 and value == int(value)  # neither NaN nor a fraction
            value = int(value) if fits else value
        if fits and type(value) is int and self.arrow_type == pa.float64():
            fits = abs(value) < 2**1023
        if not fits:
            do = "give such values, or a function of a value"
            raise ZooError(
                f"column {name}", expected=f"values of type {self.arrow_type}", found=repr(condition), do=do
            )
        return value


class Columns:
    """Columns of N snapshots, each read on first use.

    Args:
        schema: the types that callers see.
        num_rows: N.
        read: a column's name -> its values [N], strings plain or encoded.
    """

    def __init__(self, schema: pa.Schema, num_rows: int, read: Callable[[str], pa.Array]) -> None:
        self.schema, self.num_rows, self._read = schema, num_rows, read
        self._columns: dict[str, Column] = {}
        self.at: dict[str, Callable[[int], Any]] = {}  # `Column.at` of the columns read so far

    @classmethod
    def of(cls, table: pa.Table) -> Columns:
        """The columns of a table."""

        def read(name: str) -> pa.Array:
            values = _whole(table[name].chunks, table.schema.field(name).type)
            return values.dictionary_encode() if values.type == pa.string() and name not in UNIQUE else values

        return cls(table.schema, table.num_rows, read)

    @classmethod
    def of_values(cls, values: Mapping[str, list[Any]]) -> Columns:
        """Columns of the index, strings or int64, from lists.

        Raises:
            ValueError, OverflowError: if a string is not Unicode, or a number does not fit into 64 bits.
        """
        schema = pa.schema([INDEX_SCHEMA.field(name) for name in values])
        arrays = [
            _texts(values[f.name])
            if f.type == pa.string()
            else arrow_indices(np.array(values[f.name], np.int64))
            for f in schema
        ]
        return cls.of(pa.Table.from_arrays(arrays, schema=schema))

    def __getitem__(self, name: str) -> Column:
        """A column.

        Raises:
            ZooError: if there is none of this name, or it cannot be read.
        """
        column = self._columns.get(name)
        if column is None:
            if not isinstance(name, str) or name not in self.schema.names:
                expected = f"one of the columns {', '.join(self.schema.names)}"
                raise ZooError("index", expected=expected, found=repr(name), do="choose one of them")
            column = self._columns[name] = Column(self.schema.field(name).type, self._read(name))
            self.at[name] = column.at
        return column

    def table(self, indices: Indices, names: Sequence[str] | None = None) -> pa.Table:
        """Some snapshots as an Arrow table, with all columns or those named."""
        schema = self.schema if names is None else pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_arrays([self[name].arrow(indices) for name in schema.names], schema=schema)


def open_index(files: Sequence[tuple[object, Content]]) -> Columns:
    """The snapshots of several index files (INDEX_SCHEMA), one file after the other.

    Args:
        files: (name for errors, content) of each. The content must have been checked against nws.json, and
            must not change.

    Raises:
        ZooError: if one is no index file, or claims more lines than it can hold; a damaged page when its
            column is read.
    """
    opened = [(where, content, _open(where, content)) for where, content in files]

    def read(name: str) -> pa.Array:
        chunks = []
        for where, content, file in opened:
            try:
                values = _values(file, name)
            except UNREADABLE as error:
                raise unreadable(where, error) from error
            finally:
                _drop_pages(content)
            # Arrow believes the column's own number of values
            if len(values) != file.metadata.num_rows:
                found = f"{len(values)} of {name}"
                raise ZooError(
                    where,
                    expected=f"{file.metadata.num_rows} values a column",
                    found=found,
                    do="fetch or build it again",
                )
            chunks += values.chunks
        arrow_type = INDEX_SCHEMA.field(name).type
        whole = _whole(chunks, pa.dictionary(pa.int32(), arrow_type) if name in REPEATED else arrow_type)
        chunks.clear()
        pa.default_memory_pool().release_unused()  # memory of decompressed pages
        return whole

    return Columns(INDEX_SCHEMA, sum(file.metadata.num_rows for _, _, file in opened), read)


def _values(file: pq.ParquetFile, name: str) -> pa.ChunkedArray:
    """A column of an index file; what version 2 of the format lacks has one value."""
    earlier = "kind" not in file.schema_arrow.names
    if earlier and name in ADDED_IN_3:
        field = INDEX_SCHEMA.field(name)
        values = pa.repeat(pa.scalar(ADDED_IN_3[name], field.type), file.metadata.num_rows)
        return pa.chunked_array([values.dictionary_encode() if name in REPEATED else values])
    values = file.read([name], use_threads=False)[name]
    return with_kind(values) if earlier and name == "architecture_json" else values


def _drop_pages(content: Content) -> None:
    """Free the pages of a mapped file, which are not needed once decompressed."""
    if isinstance(content, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        content.madvise(mmap.MADV_DONTNEED)


def _open(where: object, content: Content) -> pq.ParquetFile:
    try:
        metadata = pq.read_metadata(pa.BufferReader(content))
        repeated = [name for name in REPEATED if name in metadata.schema.names]
        file = pq.ParquetFile(pa.BufferReader(content), metadata=metadata, read_dictionary=repeated)
        found = pa.schema([_decoded(field) for field in file.schema_arrow])
    except UNREADABLE as error:
        raise unreadable(where, error) from error
    if not is_of_version_2(found, INDEX_SCHEMA):
        verify_schema(where, found, INDEX_SCHEMA)
    most = FREE_LINES + int(len(content) / MIN_BYTES)
    if not 0 <= file.metadata.num_rows <= most:
        found = f"{file.metadata.num_rows} lines in {len(content)} bytes"
        raise ZooError(
            where,
            expected=f"at most {most} lines",
            found=found,
            do="do not trust this index; build or fetch it again",
        )
    return file


def _decoded(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def _whole(chunks: list[pa.Array], arrow_type: pa.DataType) -> pa.Array:
    """Chunks as one array; encoded strings get one dictionary."""
    if len(chunks) == 1:
        return chunks[0]
    if pa.types.is_dictionary(arrow_type):
        whole = pa.chunked_array(chunks, arrow_type).unify_dictionaries().combine_chunks()
        if isinstance(whole, pa.ChunkedArray):  # if there are no chunks
            whole = pa.DictionaryArray.from_arrays(
                pa.nulls(0, arrow_type.index_type), pa.nulls(0, arrow_type.value_type)
            )
        return whole
    return pa.concat_arrays(chunks) if chunks else pa.nulls(0, arrow_type)


def _numbers(values: pa.Array) -> np.ndarray:
    """An Arrow array as numpy [N]: a view of numbers, a copy of booleans."""
    if values.type == pa.bool_():
        return _numbers(values.cast(pa.uint8())).view(bool)
    # not `to_pandas_dtype`: some versions of pyarrow import pandas for it
    floating, signed = pa.types.is_floating(values.type), pa.types.is_signed_integer(values.type)
    kind = "f" if floating else "i" if signed else "u"
    dtype = np.dtype(f"{kind}{values.type.bit_width // 8}")
    buffer = values.buffers()[1]
    whole = np.frombuffer(buffer, dtype) if buffer is not None else np.zeros(0, dtype)
    numbers = whole[values.offset : values.offset + len(values)]
    return np.where(_numbers(pc.is_null(values)), dtype.type(0), numbers) if values.null_count else numbers


def _narrow(values: pa.Array) -> pa.Array:
    """Integers in as few bits as they need."""
    span = pc.min_max(values).as_py()
    low, high = span["min"] or 0, span["max"] or 0
    for arrow_type in INTEGERS:
        if -(2 ** (arrow_type.bit_width - 1)) <= low and high < 2 ** (arrow_type.bit_width - 1):
            return values.cast(arrow_type)
    return values


def _matrix(values: pa.Array) -> np.ndarray:
    """Lists of numbers as [N, L]; as objects [N] if lengths differ or some are null."""
    lengths = _numbers(pc.list_value_length(values)) if len(values) else np.zeros(0)
    flat = values.flatten()
    if not values.null_count and not flat.null_count and len(flat) and (lengths == lengths[0]).all():
        return _numbers(flat).reshape(len(values), -1).copy()
    return _object_array(values)


def _object_array(values: pa.Array) -> np.ndarray:
    """[N] Python objects."""
    objects = np.empty(len(values), object)
    for i, value in enumerate(_objects(values)):
        objects[i] = value
    return objects


def _objects(values: pa.Array) -> Iterator[Any]:
    """Values as Python objects, converted a part at a time."""
    for start in range(0, len(values), BATCH_VALUES):
        yield from values.slice(start, BATCH_VALUES).to_pylist()


def _as_list(condition: Any) -> list[Any]:
    """A condition's values, one of which must match."""
    if isinstance(condition, Collection) and not isinstance(condition, str | bytes):
        return list(condition)
    return [condition]


def arrow_indices(indices: np.ndarray) -> pa.Array:
    """Indices [N] as an Arrow array, without a copy where they are int64."""
    indices = np.ascontiguousarray(indices, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(indices), [None, pa.py_buffer(indices)])


def _texts(values: list[str]) -> pa.Array:
    """Strings as an Arrow array."""
    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    if ends[-1] >= 2**31:
        raise OverflowError("texts of more than 2 GB")
    return pa.Array.from_buffers(
        pa.string(), len(values), [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(encoded))]
    )


def part_of(values: np.ndarray, indices: Indices) -> np.ndarray:
    """Values of some snapshots."""
    return values[indices.start : indices.stop] if isinstance(indices, range) else values[indices]
