"""`Zoo`: networks in a folder or on the Hub. Its index is a table to filter; weights are read only for the rows that were chosen.

Letters of axes: N rows (snapshots), P weights, L length of a slice.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nws_dataset.errors import ZooError
from nws_dataset.folder import Folder
from nws_dataset.hub import CACHE_BYTES, Repository
from nws_dataset.layout import Layout, layout_of
from nws_dataset.manifest import MANIFEST_NAME, Manifest
from nws_dataset.places import PLACE_COLUMNS, Place, Places
from nws_dataset.recipe import Architecture
from nws_dataset.schema import INDEX_SCHEMA
from nws_dataset.shards import ROW_DTYPE, header, unpack

if TYPE_CHECKING:
    import pandas
    import torch

    from nws_dataset.network import Network

LOCAL_NAME = "nws"
DEFAULT_REPOSITORY = "nws/nws"  # what "nws" stands for where there is no such zoo
READ_COLUMNS = (*PLACE_COLUMNS, "architecture_json")  # what finds and reads the weights of a row
READ_SCHEMA = pa.schema([INDEX_SCHEMA.field(name) for name in READ_COLUMNS])
STACK_BYTES = 2 << 20  # of a stack in a pass over many rows: it stays in the processor's cache
REPOSITORY_NAME = re.compile(r"[\w.-]+/[\w.-]+")


AnyRow = Mapping[str, Any]  # a row of the index: column -> value


class Row(AnyRow):
    """A row of the index: column -> value, read when it is asked for."""

    def __init__(self, table: pa.Table, number: int) -> None:
        self._table, self._number = table, number

    def __getitem__(self, name: str) -> Any:
        return self._table[name][self._number].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return self._table.num_columns

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # without the table of all rows


class Rows(Sequence[Mapping[str, Any]]):
    """Some rows of the index: a read-only sequence over an Arrow table.

    `rows[i]` and iteration give mappings (column -> value), `rows[a:b]` gives Rows, `rows["test_accuracy"]` a numpy array [N].

    Args:
        table: INDEX_SCHEMA, or some of its columns.
    """

    def __init__(self, table: pa.Table) -> None:
        self._whole, self._range = table, range(table.num_rows)

    @functools.cached_property
    def table(self) -> pa.Table:
        """The rows as an Arrow table."""
        return self._whole.slice(self._range.start, len(self._range))

    def __len__(self) -> int:
        return len(self._range)

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.table,)

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: slice) -> Rows: ...
    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...
    def __getitem__(self, key: int | slice | str) -> Row | Rows | np.ndarray:
        if isinstance(key, str):
            column = self._column(key)
            return np.array(column.to_pylist()) if pa.types.is_list(column.type) else column.to_numpy()
        if isinstance(key, slice):
            part = self._range[key]
            if part.step != 1:
                return Rows(self._whole.take(pa.array(part)))
            rows = Rows(self._whole)  # many columns: they are cut when they are looked at
            rows._range = part
            return rows
        return Row(self._whole, self._range[key])

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
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


AnyRows = Rows | Iterable[AnyRow]


class Zoo:
    """A zoo in a local folder or on the Hub.

    What is not asked for is not read. In a folder, weights are read through memory maps, unchecked unless `check` is set. From the Hub, the
    index comes whole and of the weights the ranges that are asked for, neighbours in one request; all of it is checked and cached.

    Args:
        path: the folder that nws-build wrote, or "org/name" on the Hub; "nws" is ./nws or else DEFAULT_REPOSITORY.
        revision: branch, tag or commit of a zoo on the Hub.
        token: for a private zoo on the Hub; None is the stored login.
        cache_dir: files from the Hub are kept in its folder `nws`; None is huggingface_hub's home (HF_HOME).
        cache_bytes: weights from the Hub that are kept on disk, in bytes; those that were not used for longest go first.
        check: verify the SHA-256 of every value that is read from a folder.

    Raises:
        ZooError: if there is no zoo.

    Example:
        >>> zoo = Zoo("nws")  # doctest: +SKIP
        >>> rows = zoo.filter(subset="fixed", dataset="mnist", is_final=True)  # doctest: +SKIP
        >>> zoo.weights(rows).shape, zoo.network(rows[0])  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path = LOCAL_NAME,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
        check: bool = False,
    ) -> None:
        if str(path) == LOCAL_NAME and not (Path(path) / MANIFEST_NAME).is_file():
            path = DEFAULT_REPOSITORY
        on_hub = not Path(path).is_dir() and REPOSITORY_NAME.fullmatch(str(path))
        if revision is not None and not on_hub:
            raise ZooError(path, expected="no revision for a folder", found=repr(revision), do="leave it out, or name a repository")
        self.source: Folder | Repository = (
            Repository(str(path), revision=revision, token=token, cache_dir=cache_dir, cache_bytes=cache_bytes)
            if on_hub
            else Folder(path, check=check)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as what opens it again: maps and connections do not travel."""
        source = self.source
        if isinstance(source, Folder):
            return functools.partial(Zoo, check=source.check), (source.path,)
        options = {name: getattr(source, name) for name in ("revision", "token", "cache_dir", "cache_bytes")}
        return functools.partial(Zoo, **options), (source.repo_id,)

    def __repr__(self) -> str:
        return f"Zoo({self.name!r}, subsets: {', '.join(self.subsets)})"

    @property
    def name(self) -> str:
        """The folder, or "org/name@commit"."""
        return self.source.name

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            ZooError: for a zoo on the Hub.
        """
        if not isinstance(self.source, Folder):
            do = "download it (huggingface_hub: snapshot_download with local_dir)"
            raise ZooError(self.name, expected="a zoo in a folder", found="one on the Hub", do=do)
        return self.source.path

    @property
    def manifest(self) -> Manifest:
        """nws.json: what the zoo holds and how it was made."""
        return self.source.manifest

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets."""
        return tuple(self.manifest.subsets)

    @functools.cached_property
    def index(self) -> pa.Table:
        """One row a snapshot, of all subsets and splits (INDEX_SCHEMA).

        Raises:
            ZooError: if an index file is missing or damaged.
        """
        tables = [self.source.index(file) for file in self.manifest.index_files()]
        index = pa.concat_tables([INDEX_SCHEMA.empty_table(), *tables])
        final = index.filter(index["is_final"])
        models = Counter(subset for subset, _ in {*zip(*(final[name].to_pylist() for name in ("subset", "model_id")), strict=True)})
        for name, entry in self.manifest.subsets.items():
            if models[name] != entry.num_models:
                expected, found = f"{entry.num_models} models of {name}", str(models[name])
                raise ZooError(self.name, expected=expected, found=found, do="fetch or build it again")
        return index

    def filter(self, **conditions: Any) -> Rows:
        """The rows of the index that fulfil all conditions, as `Rows.filter`."""
        return Rows(self.index).filter(**conditions)

    def architecture(self, row: AnyRow) -> Architecture:
        """The architecture of a row's network."""
        return _architecture(*_fields(row, "architecture_json"))

    def layout(self, row: AnyRow) -> Layout:
        """The layout of a row's weights."""
        return layout_of(self.architecture(row))

    def value(self, row: AnyRow) -> memoryview:
        """The safetensors bytes of a row's network: from a folder, a read-only view of the file.

        Args:
            row: a row of the index, from `filter` or from a datasets.Dataset.

        Raises:
            ZooError: if the row leads outside the zoo, a file is damaged, or the Hub cannot be reached.
        """
        return self.source.value(_place(row))

    def row(self, row: AnyRow) -> np.ndarray:
        """The weights of one row.

        Returns:
            [P] float32, read-only; from a folder a view of the file (its alignment is not guaranteed; copy it for kernels that need one).

        Raises:
            ZooError: as `value`, or if the file holds another architecture there.
        """
        place = _place(row)
        return unpack(self.architecture(row), self.source.value(place), self.source.where(place))

    def arrays(self, rows: AnyRows) -> list[np.ndarray]:
        """The weights of several rows of any architectures; on the Hub, neighbours are fetched in one request.

        Args:
            rows: Rows, a datasets.Dataset of the index, or mappings.

        Returns:
            For each row [P] float32, as `row`.

        Raises:
            ZooError: as `row`.
        """
        table = _read_table(rows)
        places = Places.of(table)
        architectures = [_architecture(text) for text in table["architecture_json"].to_pylist()]
        found: list[Any] = [None] * len(places)

        def deliver(numbers: slice | np.ndarray, values: np.ndarray) -> None:
            for i, place, value in zip(np.arange(len(places))[numbers].tolist(), places[numbers], values, strict=True):
                found[i] = unpack(architectures[i], value.data, self.source.where(place))

        self.source.read(places, deliver)
        return found

    def weights(self, rows: AnyRows) -> np.ndarray:
        """The weights of several rows of one layout.

        Args:
            rows: Rows, a datasets.Dataset of the index, or mappings. Image sizes may differ where no weight depends on them.

        Returns:
            [N, P] float32, a copy.

        Raises:
            ZooError: as `row`, or if there are no rows or the layouts differ.
        """
        table = _read_table(rows)
        by_text = {text: _architecture(text) for text in pc.unique(table["architecture_json"]).to_pylist()}
        layouts = [layout_of(architecture) for architecture in by_text.values()]
        if not layouts or any(layout != layouts[0] for layout in layouts):
            found = ", ".join(sorted(a.id for a in by_text.values())[:5]) or "no rows"
            raise ZooError("rows", expected="networks of one layout", found=found, do="filter by architecture")
        places = Places.of(table)
        if len(by_text) == 1:
            return self._stack(places, *by_text.values())
        weights_NP = np.empty((len(table), layouts[0].num_weights), ROW_DTYPE)
        for text, architecture in by_text.items():
            chosen = np.flatnonzero(pc.equal(table["architecture_json"], text))
            weights_NP[chosen] = self._stack(places[chosen], architecture)
        return weights_NP

    def _stack(self, places: Places, architecture: Architecture) -> np.ndarray:
        """The weights [N, P] of places of one architecture."""
        head = header(architecture)
        weights_NP = np.empty((len(places), layout_of(architecture).num_weights), ROW_DTYPE)
        bytes_NB = weights_NP.view(np.uint8)

        def deliver(numbers: slice | np.ndarray, values: np.ndarray) -> None:
            if values.shape[1] != len(head) + bytes_NB.shape[1] or values[:, : len(head)].tobytes() != head * len(values):
                for place, value in zip(places[numbers], values, strict=True):
                    unpack(architecture, value.data, self.source.where(place))  # names the first that does not fit
            bytes_NB[numbers] = values[:, len(head) :]

        self.source.read(places, deliver)
        return weights_NP

    def stacks(self, rows: AnyRows | None = None) -> Iterator[tuple[Rows, np.ndarray]]:
        """A pass over many rows in little memory: stack by stack, each of one architecture, of about 2 MiB.

        Args:
            rows: Rows or mappings; None is the whole zoo.

        Yields:
            The rows of a stack, and their weights [N, P] float32: architecture by architecture, in the order of `rows`.

        Raises:
            ZooError: as `row`.

        Example:
            >>> for rows, weights in zoo.stacks(zoo.filter(is_final=True)):  # doctest: +SKIP
            ...     print(rows[0]["architecture"], np.abs(weights).mean(axis=1))
        """
        table = self.index if rows is None else rows.table if isinstance(rows, Rows) else _read_table(rows)
        texts = pc.unique(table["architecture_json"]).to_pylist()
        for text in texts:
            part = table.filter(pc.equal(table["architecture_json"], text)) if len(texts) > 1 else table
            places, architecture, found = Places.of(part), _architecture(text), Rows(part)
            num_weights = layout_of(architecture).num_weights
            size = max(1, STACK_BYTES // (num_weights * ROW_DTYPE.itemsize))
            for start in range(0, len(places), size):
                yield found[start : start + size], self._stack(places[start : start + size], architecture)

    def slices(self, rows: AnyRows, starts: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
        """Consecutive weights of several rows of any architectures: the input of the deep meta-classifier.

        From a folder only these weights are read (and each value's header); from the Hub whole rows, so that they can be checked.

        Args:
            rows: Rows, a datasets.Dataset of the index, or mappings.
            starts: [N], the place of each slice's first weight in its row.
            length: weights in a slice.

        Returns:
            [N, length] float32.

        Raises:
            ZooError: as `row`, or if a slice leads outside its row.

        Example:
            >>> rows = zoo.filter(is_final=True)  # doctest: +SKIP
            >>> starts = np.random.default_rng(0).integers(rows["num_weights"] - 5000 + 1)  # doctest: +SKIP
            >>> zoo.slices(rows, starts, 5000).shape  # doctest: +SKIP
        """
        table = _read_table(rows)
        architectures = [_architecture(text) for text in table["architecture_json"].to_pylist()]
        for start, architecture in zip(starts, architectures, strict=True):
            if not 0 <= start <= layout_of(architecture).num_weights - length:
                found = f"{start} to {start + length} of {layout_of(architecture).num_weights}"
                raise ZooError("slices", expected="slices within their rows", found=found, do="choose other starts or a shorter length")
        if not isinstance(self.source, Folder) or self.source.check:
            return np.stack([array[start : start + length] for array, start in zip(self.arrays(Rows(table)), starts, strict=True)])
        slices_NL = np.empty((len(table), length), ROW_DTYPE)
        for slice_L, start, architecture, place in zip(slices_NL, starts, architectures, Places.of(table), strict=True):
            head = header(architecture)
            found_head = np.empty(len(head), np.uint8)
            self.source.read_into(place, 0, found_head)
            if place.length != len(head) + layout_of(architecture).num_weights * ROW_DTYPE.itemsize or found_head.tobytes() != head:
                unpack(architecture, self.source.value(place), self.source.where(place))  # says what does not fit
            self.source.read_into(place, len(head) + int(start) * ROW_DTYPE.itemsize, slice_L)
        return slices_NL

    def state_dict(self, row: AnyRow) -> dict[str, torch.Tensor]:
        """A copy of a row's weights by name; it loads strictly into the row's `Network`."""
        return self.layout(row).views(self._tensor(row))

    def network(self, row: AnyRow) -> Network:
        """The network of a row, in evaluation mode: it reproduces the row's accuracies."""
        from nws_dataset.network import Network  # torch is loaded only when a network is wanted

        activation, dropout = _fields(row, "activation", "dropout")
        return Network(self.architecture(row), activation, dropout).load_row(self._tensor(row)).eval()

    def _tensor(self, row: AnyRow) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.row(row).copy())


_architecture = functools.cache(Architecture.from_json)  # a zoo has few of them, and millions of rows


def _fields(row: AnyRow, *names: str) -> list[Any]:
    """Values of a row that reading needs."""
    try:
        return [row[name] for name in names]
    except KeyError:
        found = f"no {', '.join(name for name in names if name not in row)}"
        raise ZooError("row", expected=f"the columns {', '.join(names)}", found=found, do="take whole rows of the config index") from None


def _place(row: AnyRow) -> Place:
    return Place(*_fields(row, *PLACE_COLUMNS))


def _read_table(rows: AnyRows) -> pa.Table:
    """READ_COLUMNS of rows."""
    if isinstance(rows, Rows):
        _fields(dict.fromkeys(rows.table.column_names), *READ_COLUMNS)
        return rows.table.select(READ_COLUMNS)
    return pa.Table.from_pylist([dict(zip(READ_COLUMNS, _fields(row, *READ_COLUMNS), strict=True)) for row in rows], READ_SCHEMA)
