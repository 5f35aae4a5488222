"""`Snapshots`: lines of a zoo's index, each a network at one moment of its training."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from nws_dataset.errors import ZooError
from nws_dataset.reading.byte_ranges import BYTE_RANGE_COLUMNS
from nws_dataset.reading.index import Columns, Indices

if TYPE_CHECKING:
    import pandas

READ_COLUMNS = (*BYTE_RANGE_COLUMNS, "architecture_json")  # columns needed to read a snapshot's weights


AnySnapshot = Mapping[str, Any]  # a line of the index: column -> value
PYTHON_TYPES: dict[pa.DataType, Any] = {pa.string(): str, pa.int64(): int, pa.float64(): int | float}
# Snapshots, a datasets.Dataset of the index, an Arrow table or DataFrame of it, or mappings
AnySnapshots = Iterable[AnySnapshot]


class Snapshot(AnySnapshot):
    """A line of the index, a network at one moment of its training: column -> value, read on first use."""

    __slots__ = ("_columns", "_index")

    def __init__(self, columns: Columns, index: int) -> None:
        self._columns, self._index = columns, index

    def __getitem__(self, name: str) -> Any:
        at = self._columns.at.get(name)
        if at is None:
            if name not in self._columns.schema.names:
                raise KeyError(name)
            at = self._columns[name].at
        return at(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.schema.names)

    def __len__(self) -> int:
        return len(self._columns.schema.names)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # without the columns of all snapshots


class Snapshots(Sequence[Mapping[str, Any]]):
    """Lines of the index, a read-only sequence. A column is read on first use.

    `snapshots[i]` and iteration give mappings (column -> value); `snapshots[a:b]`, `snapshots[mask]` and
    `snapshots[[0, 2]]` give Snapshots; `snapshots["test_accuracy"]` gives a numpy array [N].

    Args:
        table: with the columns of INDEX_SCHEMA, or some of them.

    Example:
        >>> from nws_dataset import Zoo
        >>> snapshots = Zoo("nws").filter(is_final=True)
        >>> len(snapshots), snapshots[0]["dataset"], snapshots["test_accuracy"].shape
        (10, 'mnist', (10,))
        >>> best = snapshots[snapshots["test_accuracy"] > 0.5]
        >>> best.select(["model_id", "test_accuracy"]).num_rows == len(best.to_pandas()) == len(best)
        True
    """

    def __init__(self, table: pa.Table) -> None:
        self._columns = Columns.of(table)
        self._indices: Indices = range(table.num_rows)

    @classmethod
    def _of(cls, columns: Columns, indices: Indices) -> Snapshots:
        snapshots = cls.__new__(cls)
        snapshots._columns, snapshots._indices = columns, indices
        return snapshots

    @functools.cached_property
    def table(self) -> pa.Table:
        """The snapshots as an Arrow table, all columns read."""
        return self._columns.table(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __reduce__(self) -> tuple[Any, ...]:
        return Snapshots, (self.table,)

    @overload
    def __getitem__(self, key: int) -> Snapshot: ...
    @overload
    def __getitem__(self, key: slice | np.ndarray | list[int] | list[bool]) -> Snapshots: ...
    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...
    def __getitem__(self, key: Any) -> Snapshot | Snapshots | np.ndarray:
        if isinstance(key, str):
            return self._columns[key].numpy(self._indices)
        if isinstance(key, int | np.integer):
            return Snapshot(self._columns, int(self._indices[key]))
        if isinstance(key, slice):
            part = self._indices[key]
            part = (
                np.arange(part.start, part.stop, part.step)
                if isinstance(part, range) and part.step != 1
                else part
            )
            return Snapshots._of(self._columns, part)
        return Snapshots._of(self._columns, self._all[self._checked_key(key)])

    @property
    def _all(self) -> np.ndarray:
        """The snapshots' indices in the columns, [N] int64."""
        return (
            np.arange(self._indices.start, self._indices.stop)
            if isinstance(self._indices, range)
            else self._indices
        )

    def _checked_key(self, key: Any) -> np.ndarray:
        """A mask or indices, checked."""
        expected = f"an index, a slice, a column, a mask of {len(self)} or indices below {len(self)}"
        try:
            chosen = np.asarray(key)
        except ValueError:  # a ragged list
            chosen = np.array(None)
        chosen = (
            chosen.astype(np.intp)
            if chosen.size == 0 and chosen.ndim == 1 and chosen.dtype != bool
            else chosen
        )
        found = repr(key) if chosen.ndim != 1 else f"{len(chosen)} values of type {chosen.dtype}"
        fits = chosen.ndim == 1 and (
            len(chosen) == len(self) if chosen.dtype == bool else chosen.dtype.kind in "iu"
        )
        if fits and chosen.dtype != bool and len(chosen):
            low, high = int(chosen.min()), int(chosen.max())
            fits, found = -len(self) <= low and high < len(self), f"{low if low < -len(self) else high}"
        if not fits:
            raise ZooError("snapshots", expected=expected, found=found, do="choose snapshots that are there")
        return chosen

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for start in range(0, len(self), 1000):
            part = self._indices[start : start + 1000]
            names = self._columns.schema.names
            columns = [self._columns[name].arrow(part).to_pylist() for name in names]
            yield from (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))

    def __repr__(self) -> str:
        names = ("subset", "model_id", "architecture")
        if not set(names) <= set(self._columns.schema.names):
            return f"Snapshots({len(self)} with {', '.join(self._columns.schema.names)})"
        subsets, models, architectures = (list(dict.fromkeys(self[name])) for name in names)
        counts = {"snapshot": len(self), "model": len(models), "architecture": len(architectures)}
        text = ", ".join(f"{count} {word}{'s' * (count != 1)}" for word, count in counts.items())
        return f"Snapshots({text}; subsets: {', '.join(subsets) or 'none'})"

    def filter(self, **conditions: Any) -> Snapshots:
        """The snapshots that meet all conditions.

        Args:
            conditions: column = a value (None matches null), a list of values of which one must match, or a
                function value -> bool, called once for each distinct value.

        Returns:
            Snapshots, in the same order.

        Raises:
            ZooError: if there is no such column, or a value does not fit its type.

        Example:
            >>> from nws_dataset import Zoo
            >>> zoo = Zoo("nws")
            >>> snapshots = zoo.filter(dataset=["mnist", "svhn"], num_weights=lambda count: count < 1000)
            >>> sorted(set(snapshots["dataset"]))
            ['mnist', 'svhn']
        """
        snapshots = self
        for name, condition in conditions.items():
            mask = self._columns[name].mask(name, condition, snapshots._indices)
            snapshots = Snapshots._of(self._columns, snapshots._all[mask])
        return snapshots

    def select(self, names: Sequence[str]) -> pa.Table:
        """Some columns of the snapshots as an Arrow table; others are not read.

        Args:
            names: the columns.

        Returns:
            A pyarrow.Table.

        Raises:
            ZooError: if there is no such column.
        """
        for name in names:
            self._columns[name]
        return self._columns.table(self._indices, names)

    def to_pandas(self) -> pandas.DataFrame:
        """The snapshots as a pandas DataFrame (pandas must be installed).

        Returns:
            One line per snapshot, with all columns.
        """
        return self.table.to_pandas()
