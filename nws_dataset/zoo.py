"""`Zoo`: a folder of networks. Its index is a table to filter; weights are read only for the rows that were chosen.

Letters of axes: N rows (snapshots), P weights.
"""

from __future__ import annotations

import functools
import mmap
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nws_dataset.errors import ZooError
from nws_dataset.layout import Layout, layout_of
from nws_dataset.manifest import Manifest
from nws_dataset.recipe import Architecture
from nws_dataset.schema import INDEX_SCHEMA
from nws_dataset.shards import ROW_DTYPE, check_value, read_index, unpack

if TYPE_CHECKING:
    import pandas
    import torch

    from nws_dataset.network import Network

PLACE_COLUMNS = ("file", "offset", "length", "sha256", "architecture_json")  # what finds and reads the weights of a row
OPEN_FILES = 256  # maps kept open: well below the usual limit of 1024 files a process
REPOSITORY_NAME = re.compile(r"[\w.-]+/[\w.-]+")

Row = Mapping[str, Any]  # a row of the index: column -> value


class Rows(Sequence[dict[str, Any]]):
    """Some rows of the index: a read-only sequence over an Arrow table.

    `rows[i]` and iteration give dicts, `rows[a:b]` gives Rows, `rows["test_accuracy"]` a numpy array [N].

    Args:
        table: INDEX_SCHEMA, or some of its columns.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, key: slice) -> Rows: ...
    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...
    def __getitem__(self, key: int | slice | str) -> dict[str, Any] | Rows | np.ndarray:
        if isinstance(key, str):
            column = self._column(key)
            return np.array(column.to_pylist()) if pa.types.is_list(column.type) else column.to_numpy()
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return Rows(self.table.slice(start, max(stop - start, 0)) if step == 1 else self.table.take(list(range(start, stop, step))))
        return self.table.slice(range(len(self))[key], 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=1000):
            yield from batch.to_pylist()

    def __repr__(self) -> str:
        names = ("subset", "model_id", "architecture")
        if not set(names) <= set(self.table.column_names):
            return f"Rows({len(self)} rows of {', '.join(self.table.column_names)})"
        subsets, models, architectures = (pc.unique(self.table[name]).to_pylist() for name in names)
        counts = {"snapshot": len(self), "model": len(models), "architecture": len(architectures)}
        text = ", ".join(f"{count} {word}{'s' * (count != 1)}" for word, count in counts.items())
        return f"Rows({text}; subsets: {', '.join(subsets) or 'none'})"

    def filter(self, **conditions: Any) -> Rows:
        """The rows that fulfil all conditions.

        Args:
            conditions: column = a value (None matches null), several values of which one must match, or a function of a value -> bool.

        Raises:
            ZooError: if there is no such column, or a value does not fit its type.

        Example:
            >>> zoo.index.filter(is_final=True, dataset=["mnist", "svhn"], test_accuracy=lambda a: a > 0.9)  # doctest: +SKIP
        """
        table = self.table
        for name, condition in conditions.items():
            table = table.filter(_mask(Rows(table)._column(name), name, condition))
        return Rows(table)

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame (pandas must be installed)."""
        return self.table.to_pandas()

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self.table.column_names:
            expected = f"one of the columns {', '.join(self.table.column_names)}"
            raise ZooError("rows", expected=expected, found=repr(name), do="choose one of them")
        return self.table[name]


def _mask(column: pa.ChunkedArray, name: str, condition: Any) -> pa.Array | pa.ChunkedArray:
    """Where a condition holds."""
    if callable(condition):
        return pa.array([bool(condition(value)) for value in column.to_pylist()], pa.bool_())
    values = list(condition) if isinstance(condition, Collection) and not isinstance(condition, str) else [condition]
    try:
        wanted = pa.array(values, column.type)
        if wanted.to_pylist() != values:  # Arrow takes 0.5 as the integer 0 and says nothing
            raise pa.ArrowInvalid("a value would be rounded")
        return pc.is_in(column, value_set=wanted)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        do = f"give such values, or a function of a value ({error})"
        raise ZooError(f"column {name}", expected=f"values of type {column.type}", found=repr(condition), do=do) from error


class Zoo:
    """A zoo in a local folder.

    Weights are read through memory maps: what is not asked for is not read. Those reads are unchecked unless `check` is set.

    Args:
        path: the folder that nws-build wrote.
        check: verify the SHA-256 of every value that is read.

    Raises:
        ZooError: if the folder is not a zoo.

    Example:
        >>> zoo = Zoo("nws")  # doctest: +SKIP
        >>> rows = zoo.filter(subset="fixed", dataset="mnist", is_final=True)  # doctest: +SKIP
        >>> zoo.weights(rows).shape, zoo.network(rows[0])  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, *, check: bool = False) -> None:
        if not Path(path).is_dir() and REPOSITORY_NAME.fullmatch(str(path)):
            do = "download it first: reading from the Hub comes with a later version"
            raise ZooError(path, expected="a local folder", found="no such folder", do=do)
        self.path = Path(path).resolve()
        self.check = check
        self.manifest = Manifest.read(self.path)
        self._content: Callable[[str], memoryview] = functools.lru_cache(OPEN_FILES)(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Zoo, check=self.check), (self.path,)  # maps cannot be pickled; they are opened again

    def __repr__(self) -> str:
        return f"Zoo({str(self.path)!r}, subsets: {', '.join(self.subsets)})"

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets in the folder."""
        return tuple(self.manifest.subsets)

    @functools.cached_property
    def index(self) -> pa.Table:
        """One row a snapshot, of all subsets and splits (INDEX_SCHEMA).

        Raises:
            ZooError: if an index file is missing or damaged.
        """
        tables = [read_index(self.manifest.locate(self.path, file)) for file in self.manifest.index_files()]
        return pa.concat_tables(tables) if tables else INDEX_SCHEMA.empty_table()

    def filter(self, **conditions: Any) -> Rows:
        """The rows of the index that fulfil all conditions, as `Rows.filter`."""
        return Rows(self.index).filter(**conditions)

    def architecture(self, row: Row) -> Architecture:
        """The architecture of a row's network."""
        return _architecture(*_fields(row, "architecture_json"))

    def layout(self, row: Row) -> Layout:
        """The layout of a row's weights."""
        return layout_of(self.architecture(row))

    def value(self, row: Row) -> memoryview:
        """The safetensors bytes of a row's network: a read-only view of the file.

        Args:
            row: a row of the index, from `filter` or from a datasets.Dataset.

        Raises:
            ZooError: if the row leads outside the zoo or a file is damaged.
        """
        file, offset, length = _fields(row, "file", "offset", "length")
        content = self._content(file)
        if offset < 0 or length < 0 or offset + length > len(content):
            found = f"bytes {offset} to {offset + length}"
            raise ZooError(self.path / file, expected=f"a place in its {len(content)} bytes", found=found, do="build the index again")
        value = content[offset : offset + length]
        if self.check:
            (sha256,) = _fields(row, "sha256")
            check_value(value, sha256, f"{self.path / file} at byte {offset}")
        return value

    def row(self, row: Row) -> np.ndarray:
        """The weights of one row.

        Returns:
            [P] float32, a read-only view of the file (its alignment is not guaranteed; copy it for kernels that need one).

        Raises:
            ZooError: as `value`, or if the file holds another architecture there.
        """
        return unpack(self.architecture(row), self.value(row), f"{self.path / row['file']} at byte {row['offset']}")

    def weights(self, rows: Iterable[Row]) -> np.ndarray:
        """The weights of several rows of one layout.

        Args:
            rows: Rows, a datasets.Dataset of the index, or dicts. Image sizes may differ where no weight depends on them.

        Returns:
            [N, P] float32, a copy.

        Raises:
            ZooError: as `row`, or if there are no rows or the layouts differ.
        """
        records = list(Rows(rows.table.select(PLACE_COLUMNS)) if isinstance(rows, Rows) else rows)
        by_architecture = {self.architecture(record): record for record in records}
        layouts = {layout_of(architecture).tensors for architecture in by_architecture}
        if len(layouts) != 1:
            found = ", ".join(sorted(a.id for a in by_architecture)[:5]) or "no rows"
            raise ZooError("rows", expected="networks of one layout", found=found, do="filter by architecture")
        weights_NP = np.empty((len(records), self.layout(records[0]).num_weights), ROW_DTYPE)
        for i, record in enumerate(records):
            weights_NP[i] = self.row(record)
        return weights_NP

    def state_dict(self, row: Row) -> dict[str, torch.Tensor]:
        """A copy of a row's weights by name; it loads strictly into the row's `Network`."""
        return self.layout(row).views(self._tensor(row))

    def network(self, row: Row) -> Network:
        """The network of a row, in evaluation mode: it reproduces the row's accuracies."""
        from nws_dataset.network import Network  # torch is loaded only when a network is wanted

        activation, dropout = _fields(row, "activation", "dropout")
        return Network(self.architecture(row), activation, dropout).load_row(self._tensor(row)).eval()

    def _tensor(self, row: Row) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.row(row).copy())

    def _open(self, file: str) -> memoryview:
        """The content of a snapshots file, mapped."""
        with open(self.manifest.locate(self.path, file), "rb") as handle:
            return memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))


_architecture = functools.cache(Architecture.from_json)  # a zoo has few of them, and millions of rows


def _fields(row: Row, *names: str) -> tuple[Any, ...]:
    """Values of a row that reading needs."""
    missing = [name for name in names if name not in row]
    if missing:
        found = f"no {', '.join(missing)}"
        raise ZooError("row", expected=f"the columns {', '.join(names)}", found=found, do="take whole rows of the config index")
    return tuple(row[name] for name in names)
