"""`Rows`: snapshots chosen from a zoo's index."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from nws_dataset.errors import ZooError
from nws_dataset.reading.byte_ranges import PLACE_COLUMNS
from nws_dataset.reading.index import Columns, Numbers

if TYPE_CHECKING:
    import pandas

READ_COLUMNS = (*PLACE_COLUMNS, "architecture_json")  # what finds and reads the weights of a row
AnyRow = Mapping[str, Any]  # a row of the index: column -> value
PYTHON_TYPES: dict[pa.DataType, Any] = {pa.string(): str, pa.int64(): int, pa.float64(): int | float}
# Rows, a datasets.Dataset of the index, an Arrow table or DataFrame of it, or mappings
AnyRows = Iterable[AnyRow]


class Row(AnyRow):
    """A row of the index: column -> value, read when it is asked for."""

    __slots__ = ("_columns", "_number")

    def __init__(self, columns: Columns, number: int) -> None:
        self._columns, self._number = columns, number

    def __getitem__(self, name: str) -> Any:
        at = self._columns.at.get(name)
        if at is None:
            if name not in self._columns.schema.names:
                raise KeyError(name)
            at = self._columns[name].at
        return at(self._number)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.schema.names)

    def __len__(self) -> int:
        return len(self._columns.schema.names)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # without the columns of all rows


class Rows(Sequence[Mapping[str, Any]]):
    """Some rows of the index: a read-only sequence. A column is read when it is first asked for.

    `rows[i]` and iteration give mappings (column -> value); `rows[a:b]`, `rows[mask]` and `rows[[0, 2]]` give
    Rows; `rows["test_accuracy"]` gives a numpy array [N].

    Args:
        table: INDEX_SCHEMA, or some of its columns.

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
        self._numbers: Numbers = range(table.num_rows)

    @classmethod
    def _of(cls, columns: Columns, numbers: Numbers) -> Rows:
        rows = cls.__new__(cls)
        rows._columns, rows._numbers = columns, numbers
        return rows

    @functools.cached_property
    def table(self) -> pa.Table:
        """The rows as an Arrow table, all columns read."""
        return self._columns.table(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.table,)

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: slice | np.ndarray | list[int] | list[bool]) -> Rows: ...
    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...
    def __getitem__(self, key: Any) -> Row | Rows | np.ndarray:
        if isinstance(key, str):
            return self._columns[key].numpy(self._numbers)
        if isinstance(key, int | np.integer):
            return Row(self._columns, int(self._numbers[key]))
        if isinstance(key, slice):
            part = self._numbers[key]
            part = (
                np.arange(part.start, part.stop, part.step)
                if isinstance(part, range) and part.step != 1
                else part
            )
            return Rows._of(self._columns, part)
        return Rows._of(self._columns, self._all[self._chosen(key)])

    @property
    def _all(self) -> np.ndarray:
        """Numbers of the rows, [N] int64."""
        return (
            np.arange(self._numbers.start, self._numbers.stop)
            if isinstance(self._numbers, range)
            else self._numbers
        )

    def _chosen(self, key: Any) -> np.ndarray:
        """A mask or numbers of rows, checked."""
        expected = f"a number, a slice, a column, a mask of {len(self)} or numbers of rows below {len(self)}"
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
            raise ZooError("rows", expected=expected, found=found, do="choose rows that are there")
        return chosen

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for start in range(0, len(self), 1000):
            part = self._numbers[start : start + 1000]
            names = self._columns.schema.names
            columns = [self._columns[name].arrow(part).to_pylist() for name in names]
            yield from (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))

    def __repr__(self) -> str:
        names = ("subset", "model_id", "architecture")
        if not set(names) <= set(self._columns.schema.names):
            return f"Rows({len(self)} rows of {', '.join(self._columns.schema.names)})"
        subsets, models, architectures = (list(dict.fromkeys(self[name])) for name in names)
        counts = {"snapshot": len(self), "model": len(models), "architecture": len(architectures)}
        text = ", ".join(f"{count} {word}{'s' * (count != 1)}" for word, count in counts.items())
        return f"Rows({text}; subsets: {', '.join(subsets) or 'none'})"

    def filter(self, **conditions: Any) -> Rows:
        """The rows that fulfil all conditions.

        Args:
            conditions: column = a value (None matches null), several values of which one must match, or a
                function of a value -> bool, which is called once for each different value.

        Returns:
            Rows, in the same order.

        Raises:
            ZooError: if there is no such column, or a value does not fit its type.

        Example:
            >>> from nws_dataset import Zoo
            >>> zoo = Zoo("nws")
            >>> snapshots = zoo.filter(dataset=["mnist", "svhn"], num_weights=lambda count: count < 1000)
            >>> sorted(set(snapshots["dataset"]))
            ['mnist', 'svhn']
        """
        rows = self
        for name, condition in conditions.items():
            mask = self._columns[name].mask(name, condition, rows._numbers)
            rows = Rows._of(self._columns, rows._all[mask])
        return rows

    def select(self, names: Sequence[str]) -> pa.Table:
        """Some columns of the rows as an Arrow table; no others are read.

        Args:
            names: of the columns.

        Returns:
            A pyarrow.Table.

        Raises:
            ZooError: if there is no such column.
        """
        for name in names:
            self._columns[name]
        return self._columns.table(self._numbers, names)

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame (pandas must be installed).

        Returns:
            A row a snapshot, all columns.
        """
        return self.table.to_pandas()
