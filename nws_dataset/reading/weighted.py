"""`WeightsDataset`: a `datasets.Dataset` of the index that reads the weights of snapshots on access.

Weights are not a stored column: a formatter adds them to the snapshots it returns, whatever their format.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.arrow_dataset import Column
from datasets.formatting import _register_formatter, format_table, get_formatter
from datasets.formatting.formatting import Formatter

from nws_dataset.errors import ZooError, reason
from nws_dataset.format.manifest import MANIFEST_NAME
from nws_dataset.format.schema import INDEX_SCHEMA
from nws_dataset.format.shards import header
from nws_dataset.reading.byte_ranges import BYTE_RANGE_COLUMNS
from nws_dataset.reading.snapshots import READ_COLUMNS, Snapshots
from nws_dataset.reading.zoo import Zoo

WEIGHTS = "weights"
TABLES = ("arrow", "pandas", "polars")  # formats that return tables
FORMAT = "nws_weights"  # our formatter's name in the library
READ_SCHEMA = pa.schema([INDEX_SCHEMA.field(name) for name in READ_COLUMNS])
STREAM_SNAPSHOTS = 32  # a stream reads the weights of so many together
MATERIALIZED_SNAPSHOTS = 100  # so many are read together when weights become a column
STATE = re.compile(rf"{re.escape(MANIFEST_NAME)} sha256 ([0-9a-f]{{64}})")  # in `info.description`


@dataclass(frozen=True, eq=False)
class View:
    """How snapshots are returned: the zoo with their weights, and the format."""

    zoo: Zoo
    hidden: frozenset[str] = frozenset()  # columns needed to read weights that are not shown
    type: str | None = None  # format type, then the other arguments of `set_format`
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    columns: Sequence[str] | None = None
    output_all_columns: bool = False

    def __eq__(self, other: object) -> bool:
        """Equal for one state of a zoo, even if opened twice: the library joins only equal formats."""
        return isinstance(other, View) and self._identity() == other._identity()

    def _identity(self) -> list[Any]:
        zoo = (self.zoo.name, self.zoo.manifest.digest)
        return [zoo, *(getattr(self, field.name) for field in dataclasses.fields(self)[1:])]

    def __deepcopy__(self, memo: dict[int, Any]) -> View:
        return self  # each method of the library copies the dataset; the zoo stays open

    def set_on(self, snapshots: datasets.Dataset) -> datasets.Dataset:
        """Set the format on snapshots without weights."""
        snapshots._format_type, snapshots._format_kwargs = self.type, dict(self.kwargs)
        snapshots._format_columns = None if self.columns is None else list(self.columns)
        snapshots._output_all_columns = self.output_all_columns
        return snapshots


class WeightsDataset(datasets.Dataset):
    """Snapshots with `weights`, [P] float32, made and described by `with_weights`."""

    @classmethod
    def of(cls, snapshots: datasets.Dataset, view: View) -> WeightsDataset:
        """Snapshots as a view shows them."""
        ds = _copy(snapshots, cls)
        datasets.Dataset.set_format(ds, FORMAT, view=view)
        return ds

    @property
    def view(self) -> View:
        """How the snapshots are returned."""
        return self._format_kwargs["view"]

    def snapshots(self) -> datasets.Dataset:
        """The same snapshots without weights, in the same format."""
        return self.view.set_on(_copy(self, datasets.Dataset))

    def _plain(self) -> datasets.Dataset:
        """The same snapshots without weights or format."""
        return _copy(self, datasets.Dataset).with_format(None)

    def _rewrap(self, found: Any, renamed: Mapping[str, str] | None = None) -> Any:
        """The library's result for the plain snapshots, with weights unless READ_COLUMNS are gone."""
        if isinstance(found, dict):
            return type(found)({split: self._rewrap(part, renamed) for split, part in found.items()})
        view, renamed = self.view, renamed or {}
        if view.columns is not None:  # as in the library, a new column is formatted
            unformatted = {renamed.get(name, name) for name in self.column_names if name not in view.columns}
            view = dataclasses.replace(
                view, columns=[name for name in found.column_names if name not in unformatted]
            )
        return (
            WeightsDataset.of(found, view)
            if set(READ_COLUMNS) <= set(found.column_names)
            else view.set_on(_copy(found))
        )

    def _materialized(self, in_memory: bool) -> datasets.Dataset:
        """The snapshots with their weights as an ordinary column."""
        plain, hidden = self._plain(), self.view.hidden
        shown = {name: feature for name, feature in plain.features.items() if name not in hidden}
        stored = plain.with_format("arrow").map(
            functools.partial(_materialized_table, self.view.zoo, list(shown)),
            batched=True,
            batch_size=MATERIALIZED_SNAPSHOTS,
            writer_batch_size=MATERIALIZED_SNAPSHOTS,
            features=datasets.Features({**shown, WEIGHTS: datasets.List(datasets.Value("float32"))}),
            keep_in_memory=in_memory,
            desc="Reading weights",
        )
        return stored.with_format(None)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if self.view.type == "custom":  # the transform may need all columns
            return WeightsColumn(self, key)
        if key != WEIGHTS:
            return self.snapshots()[key]
        alone = WeightsDataset.of(self.snapshots().select_columns(list(READ_COLUMNS)), self._showing(()))
        return alone[:][WEIGHTS] if self.view.type in TABLES else WeightsColumn(alone, key)

    def _showing(self, columns: Iterable[str]) -> View:
        """The view with READ_COLUMNS hidden unless they are named."""
        shown = [name for name in columns if name != WEIGHTS]
        formatted = (
            None if self.view.columns is None else [name for name in self.view.columns if name in shown]
        )
        return dataclasses.replace(self.view, hidden=frozenset(READ_COLUMNS) - set(shown), columns=formatted)

    def set_format(
        self,
        type: str | None = None,
        columns: Any = None,
        output_all_columns: bool = False,
        **format_kwargs: Any,
    ) -> None:
        """As the library's. Weights stay, whatever `columns` names; a transform gets them in its batch."""
        format_kwargs.update(format_kwargs.pop("format_kwargs", {}))
        if type == FORMAT:  # `ds.set_format(**other.format)`
            view = format_kwargs["view"]
        else:
            snapshots = self._plain()
            named = columns if columns is None else [name for name in _listed(columns) if name != WEIGHTS]
            snapshots.set_format(type, named, output_all_columns, **format_kwargs)
            settings = {
                "type": snapshots._format_type,
                "kwargs": snapshots._format_kwargs,
                "columns": snapshots._format_columns,
            }
            view = dataclasses.replace(self.view, **settings, output_all_columns=output_all_columns)
        super().set_format(FORMAT, view=view)

    def map(self, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the library's. The function gets the weights, and may return them unchanged, or others under
        another name.
        """
        if function is None:
            return self._rewrap(self._plain().map(function, *args, **kwargs))
        options = dict(
            inspect.signature(datasets.Dataset.map).bind(self, function, *args, **kwargs).arguments
        )
        del options["self"], options["function"]
        removed = _listed(options.get("remove_columns"))
        gone = [name for name in READ_COLUMNS if name in removed]
        if gone and len(gone) < len(READ_COLUMNS):
            found = f"{', '.join(gone)} removed"
            raise ZooError(
                "map",
                expected=f"the columns {', '.join(READ_COLUMNS)}",
                found=found,
                do="use remove_columns, which hides them",
            )
        if removed:
            options["remove_columns"] = [name for name in removed if name != WEIGHTS]
        self._without_weights_in("map", _listed(options.get("input_columns")), "take the whole snapshot")
        snapshots = self._as_library_class()
        if self.view.type in TABLES:  # the function's table replaces the whole table
            snapshots.set_format(
                FORMAT, view=dataclasses.replace(self.view, hidden=frozenset(), columns=None)
            )
        found = snapshots.map(_leaving_weights_out(function), **options).with_format(None)
        return self.view.set_on(_copy(found)) if WEIGHTS in removed else self._rewrap(found)

    def filter(self, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the library's. The function gets the weights, unless `input_columns` names what it gets."""
        options = dict(
            inspect.signature(datasets.Dataset.filter).bind(self, function, *args, **kwargs).arguments
        )
        self._without_weights_in("filter", _listed(options.get("input_columns")), "take the whole snapshot")
        return self._rewrap(self._as_library_class().filter(function, *args, **kwargs).with_format(None))

    def _as_library_class(self) -> datasets.Dataset:
        """The snapshots as the library's own class, with weights by the format: its internal methods read the
        stored columns.
        """
        return _copy(self, datasets.Dataset)

    def _without_weights_in(self, where: str, names: Iterable[Any], do: str) -> None:
        if WEIGHTS in names:
            raise ZooError(
                where,
                expected="columns that are stored",
                found=f"{WEIGHTS!r}, which is read from the zoo",
                do=do,
            )

    def select_columns(self, column_names: str | list[str], *args: Any, **kwargs: Any) -> Any:
        """As the library's. Weights stay; READ_COLUMNS that are not named are hidden."""
        shown = [name for name in _listed(column_names) if name != WEIGHTS]
        finding = [name for name in READ_COLUMNS if name not in shown]
        return WeightsDataset.of(
            self._plain().select_columns([*shown, *finding], *args, **kwargs), self._showing(shown)
        )

    def remove_columns(self, column_names: str | list[str], *args: Any, **kwargs: Any) -> Any:
        """As the library's, but READ_COLUMNS are only hidden.

        Removing `weights` gives the library's own dataset.
        """
        removed = _listed(column_names)
        gone = [name for name in removed if name not in (*READ_COLUMNS, WEIGHTS)]
        snapshots = self._rewrap(self._plain().remove_columns(gone, *args, **kwargs))
        ds = WeightsDataset.of(
            snapshots._plain(),
            dataclasses.replace(
                snapshots.view, hidden=snapshots.view.hidden | (set(READ_COLUMNS) & set(removed))
            ),
        )
        hidden = list(ds.view.hidden)
        return ds.snapshots().remove_columns(hidden) if WEIGHTS in removed else ds

    def rename_column(
        self, original_column_name: str, new_column_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        """As the library's; neither `weights` nor what finds them has another name."""
        return self._renamed(
            "rename_column",
            {original_column_name: new_column_name},
            (original_column_name, new_column_name, *args),
            kwargs,
        )

    def rename_columns(self, column_mapping: dict[str, str], *args: Any, **kwargs: Any) -> Any:
        """As the library's; neither `weights` nor what finds them has another name."""
        return self._renamed("rename_columns", column_mapping, (column_mapping, *args), kwargs)

    def _renamed(
        self, method: str, names: Mapping[str, str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        fixed = [name for name in (*names, *names.values()) if name in (*READ_COLUMNS, WEIGHTS)]
        if fixed:
            expected, do = (
                f"{', '.join((WEIGHTS, *READ_COLUMNS))} to keep their names",
                ("rename others, or map them into new columns"),
            )
            raise ZooError(method, expected=expected, found=", ".join(fixed), do=do)
        return self._rewrap(getattr(self._plain(), method)(*args, **kwargs), names)

    def add_column(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """As the library's; the name `weights` is refused."""
        self._without_weights_in("add_column", [name], "choose another name")
        return self._rewrap(self._plain().add_column(name, *args, **kwargs))

    def to_iterable_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """As the library's: a stream of snapshots with their weights."""
        view = self.view
        if view.kwargs or view.columns is not None:
            found = f"format {view.type!r} with options or columns of its own"
            raise ZooError(
                "to_iterable_dataset",
                expected="snapshots of a plain format",
                found=found,
                do="call with_format(None) first",
            )
        shown = [name for name in self.column_names if name not in view.hidden]
        return stream_with_weights(
            self._plain().to_iterable_dataset(*args, **kwargs), view.zoo, shown
        ).with_format(view.type)


def _keeping_weights(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(datasets.Dataset, name))
    def method(self: WeightsDataset, *args: Any, **kwargs: Any) -> Any:
        for argument in (*args, *kwargs.values()):
            self._without_weights_in(
                name, _listed(argument) if isinstance(argument, str | list | tuple) else (), "name others"
            )
        return self._rewrap(getattr(self._plain(), name)(*args, **kwargs))

    return method


def _materializing(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(datasets.Dataset, name))
    def method(self: WeightsDataset, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._materialized(name in IN_MEMORY), name)(*args, **kwargs)

    return method


def _refused(name: str, do: str) -> Callable[..., Any]:
    @functools.wraps(getattr(datasets.Dataset, name))
    def method(self: WeightsDataset, *args: Any, **kwargs: Any) -> Any:
        raise ZooError(
            name, expected="snapshots without weights", found="weights that are read from a zoo", do=do
        )

    return method


KEEP_WEIGHTS = (
    "add_item", "align_labels_with_mapping", "cast", "cast_column", "class_encode_column", "flatten",
    "flatten_indices", "repeat", "select",
    "shard", "shuffle", "skip", "sort", "take", "train_test_split",
)  # fmt: skip
MATERIALIZED = (
    "push_to_hub", "save_to_disk", "to_csv", "to_dict", "to_json", "to_list", "to_pandas", "to_parquet",
    "to_polars", "to_sql",
    "_push_parquet_shards_to_hub",
)  # fmt: skip
IN_MEMORY = ("to_dict", "to_list", "to_pandas", "to_polars")
REFUSED = {
    "batch": "iterate with iter(batch_size)",
    "to_tf_dataset": "set the format tensorflow and make it of an iterator",
}
for _name in filter(functools.partial(hasattr, datasets.Dataset), KEEP_WEIGHTS):
    setattr(WeightsDataset, _name, _keeping_weights(_name))
for _name in filter(functools.partial(hasattr, datasets.Dataset), MATERIALIZED):
    setattr(WeightsDataset, _name, _materializing(_name))
for _name, _do in REFUSED.items():
    setattr(WeightsDataset, _name, _refused(_name, _do))


class WeightsColumn(Column):
    """A column of a `WeightsDataset`, whose snapshots are read whole, e.g. `ds["weights"]`."""

    def __init__(self, source: WeightsDataset, column_name: str) -> None:
        self.source, self.column_name = source, column_name
        self.features = {**source.features, WEIGHTS: datasets.List(datasets.Value("float32"))}.get(
            column_name
        )

    def __iter__(self) -> Iterator[Any]:
        return (snapshot[self.column_name] for snapshot in self.source)

    def __getitem__(self, key: Any) -> Any:
        return self.source[key][self.column_name]


class WeightsFormatter(Formatter):
    """Returns snapshots in the view's own format, with their weights."""

    def __init__(self, view: View, features: datasets.Features | None = None, **kwargs: Any) -> None:
        super().__init__(features, **kwargs)
        self.view = view

    def __call__(self, pa_table: pa.Table, query_type: str) -> Any:
        view, names = self.view, pa_table.column_names
        missing = [name for name in READ_COLUMNS if name not in names]
        # a single column, or snapshots of another kind
        if query_type == "column" or len(missing) == len(READ_COLUMNS) or len(names) == 1:
            return self._formatted(pa_table, query_type, self.features, view.columns, dict(view.kwargs))
        if missing:
            expected, do = (
                f"the columns {', '.join(READ_COLUMNS)}",
                ("keep them, or take snapshots without weights (remove_columns('weights'))"),
            )
            raise ZooError(
                "snapshots with weights", expected=expected, found=f"no {', '.join(missing)}", do=do
            )
        shown = pa_table.select([name for name in names if name not in view.hidden])
        arrays = read_weights(view.zoo, pa_table)
        if view.type is None:
            found = self._formatted(shown, query_type, self.features, view.columns, dict(view.kwargs))
            return {**found, WEIGHTS: arrays[0] if query_type == "row" else arrays}
        if view.type == "custom":
            transform = view.kwargs["transform"]
            bound = {**view.kwargs, "transform": lambda batch: transform({**batch, WEIGHTS: arrays})}
            return self._formatted(shown, query_type, self.features, view.columns, bound)
        added = {WEIGHTS: datasets.LargeList(datasets.Value("float32"))}
        features = datasets.Features(
            {**(self.features or datasets.Features.from_arrow_schema(shown.schema)), **added}
        )
        columns = None if view.columns is None else [*view.columns, WEIGHTS]
        return self._formatted(_with_column(shown, arrays), query_type, features, columns, dict(view.kwargs))

    def _formatted(
        self, table: pa.Table, query_type: str, features: Any, columns: Any, kwargs: dict[str, Any]
    ) -> Any:
        """A table as the library formats it."""
        formatter = get_formatter(self.view.type, features=features, **kwargs)
        if query_type == "column":
            return formatter(table, query_type)
        key = 0 if query_type == "row" else range(len(table))
        present = None if columns is None else [name for name in columns if name in table.column_names]
        return format_table(table, key, formatter, present, self.view.output_all_columns)


_register_formatter(WeightsFormatter, FORMAT)


def dataset_with_weights(ds: datasets.Dataset, zoo: Zoo, columns: Sequence[str] | None) -> WeightsDataset:
    """Snapshots of the index with their weights.

    Raises:
        ZooError: if columns are missing, or snapshots are not of this zoo.
    """
    names = None if columns is None else [name for name in columns if name != WEIGHTS]
    check_columns(ds.column_names, names or ())
    check_snapshots(ds, zoo)
    view = View(
        zoo,
        frozenset(),
        ds._format_type,
        dict(ds._format_kwargs or {}),
        ds._format_columns,
        ds._output_all_columns,
    )
    plain = _copy(ds).with_format(None)
    if names is None:
        return WeightsDataset.of(plain, view)
    whole = plain.select_columns(
        [*dict.fromkeys(names), *(name for name in READ_COLUMNS if name not in names)]
    )
    return WeightsDataset.of(
        whole, dataclasses.replace(view, hidden=frozenset(READ_COLUMNS) - set(names), columns=None)
    )


def without_weights(ds: datasets.Dataset) -> tuple[datasets.Dataset, Zoo | None]:
    """Snapshots without weights in the same format, and their zoo if they had weights; also joined ones."""
    view = (ds._format_kwargs or {}).get("view") if ds._format_type == FORMAT else None
    return (ds, None) if view is None else (view.set_on(_copy(ds)), view.zoo)


def stream_with_weights(
    ds: datasets.IterableDataset, zoo: Zoo, columns: Sequence[str] | None
) -> datasets.IterableDataset:
    """Snapshots of a stream with their weights as an ordinary column.

    Raises:
        ZooError: if columns are missing; on reading, if snapshots are not of this zoo.
    """
    plain = ds.with_format(None)
    present = ds.column_names
    if present is None:  # a mapped stream: only its snapshots show the columns
        present = list(next(iter(plain.take(1)), {}))
        ended = not present
    else:
        ended = False
    names = None if columns is None else [name for name in columns if name != WEIGHTS]
    if not ended:
        check_columns(present, names or ())
    check_snapshots(ds, zoo)
    removed = [name for name in present if names is not None and name not in names]
    formatting = ds._formatting and ds._formatting.format_type
    read = plain.map(StreamWeights(zoo), batched=True, batch_size=STREAM_SNAPSHOTS, remove_columns=removed)
    return read.with_format(formatting) if formatting else read


class StreamWeights:
    """Adds weights to a batch of a stream: a class, so that a DataLoader can pickle it for its workers."""

    def __init__(self, zoo: Zoo) -> None:
        self.zoo = zoo

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        check_columns(list(batch), ())
        return {WEIGHTS: read_weights(self.zoo, pa.table({name: batch[name] for name in READ_COLUMNS}))}


def check_columns(present: Sequence[str], wanted: Iterable[str]) -> None:
    """Raise a ZooError unless the columns include READ_COLUMNS and those wanted, but not `weights`."""
    missing = [name for name in dict.fromkeys((*READ_COLUMNS, *wanted)) if name not in present]
    found, do = f"no {', '.join(missing)}", "load the index and keep its columns"
    if not missing and WEIGHTS in present:
        found, do = (
            f"a column {WEIGHTS!r} beside them",
            ("these snapshots have their weights; rename or remove that column to read them anew"),
        )
        missing = [WEIGHTS]
    if missing:
        raise ZooError("with_weights", expected="snapshots of the config index", found=found, do=do)


def check_states(ds: Any) -> set[str]:
    """The state of the zoo that snapshots come from, as named in `info`, if there is one.

    Raises a ZooError for several: such snapshots were joined.
    """
    states = set(STATE.findall(ds.info.description or ""))
    if len(states) > 1:
        do = "read the weights of each apart, or with load_dataset anew if a zoo has grown"
        raise ZooError(
            "with_weights",
            expected="snapshots of one zoo",
            found=f"snapshots of {len(states)} zoos, joined",
            do=do,
        )
    return states


def check_snapshots(ds: Any, zoo: Zoo) -> None:
    """Raise a ZooError for snapshots of another zoo.

    If `info` names no state of this zoo, all snapshots must be in its index. Each value is checked again when
    it is read.
    """
    if check_states(ds) == {zoo.manifest.digest} or isinstance(ds, datasets.IterableDataset):
        return
    index = zoo.filter()
    snapshots, known = (
        ds.with_format("arrow").select_columns(list(BYTE_RANGE_COLUMNS))[:],
        pa.table({name: index[name] for name in BYTE_RANGE_COLUMNS}),
    )
    strange = len(snapshots) - (pc.sum(pc.is_in(_keys(snapshots), value_set=_keys(known))).as_py() or 0)
    if strange:
        found, do = (
            f"{strange} of {len(snapshots)} of another, or of this one as it was before",
            "load them from this zoo again",
        )
        raise ZooError("with_weights", expected=f"snapshots of {zoo.name}", found=found, do=do)


def _keys(table: pa.Table) -> pa.ChunkedArray:
    """A string for each snapshot that identifies its value."""
    return pc.binary_join_element_wise(*(table[name].cast(pa.string()) for name in BYTE_RANGE_COLUMNS), " ")


def read_weights(zoo: Zoo, table: pa.Table) -> list[np.ndarray]:
    """The weights of snapshots, each checked against the snapshot's SHA-256, in case the zoo has changed.

    Args:
        zoo: where they are.
        table: READ_COLUMNS, and any others.

    Returns:
        [P] float32 for each snapshot, in its own memory.

    Raises:
        ZooError: if they cannot be read, or do not match.
    """
    try:
        snapshots = table.select(list(READ_COLUMNS)).cast(READ_SCHEMA)
    except (pa.ArrowException, ValueError) as error:  # a column was cast, or has a null
        expected, do = f"the columns {', '.join(READ_COLUMNS)} of the index", "keep them as they are"
        raise ZooError("with_weights", expected=expected, found=reason(error), do=do) from error
    try:
        arrays = [
            array.copy() for array in zoo.arrays(Snapshots(snapshots))
        ]  # torch wants aligned and writable arrays
    except ZooError as error:
        if zoo.files.path is None:  # the connection may have failed
            raise
        found, do = (
            f"a snapshot of another zoo, or a damaged file ({error})",
            "load the snapshots from this zoo again",
        )
        raise ZooError("with_weights", expected=f"snapshots of {zoo.name}", found=found, do=do) from error
    for array, snapshot in zip(arrays, snapshots.to_pylist(), strict=True):
        digest = hashlib.sha256(header(zoo.architecture(snapshot)))
        digest.update(array.data)
        if digest.hexdigest() != snapshot["sha256"]:
            where = f"{zoo.name}/{snapshot['file']} at byte {snapshot['offset']}"
            expected, do = (
                f"weights with sha256 {snapshot['sha256']}, as their snapshot says",
                ("load the snapshots from this zoo again"),
            )
            raise ZooError(
                where,
                expected=expected,
                found=f"others: a snapshot of another zoo, or a damaged file ({digest.hexdigest()})",
                do=do,
            )
    return arrays


def _copy(ds: datasets.Dataset, cls: Any = datasets.Dataset) -> Any:
    """The same snapshots as another class of dataset."""
    copied = cls.__new__(cls)
    copied.__dict__.update(ds.__dict__, _info=ds._info.copy())
    return copied


def _listed(names: str | Iterable[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _with_column(table: pa.Table, arrays: list[np.ndarray], list_type: Any = pa.LargeListArray) -> pa.Table:
    """A table with weights as a column."""
    ends = np.cumsum([0, *map(len, arrays)])
    values = np.concatenate([np.zeros(0, np.float32), *arrays])
    column = list_type.from_arrays(
        pa.array(ends, pa.int64() if list_type is pa.LargeListArray else pa.int32()), pa.array(values)
    )
    return table.append_column(WEIGHTS, column) if table.num_columns else pa.table({WEIGHTS: column})


def _materialized_table(zoo: Zoo, shown: list[str], table: pa.Table) -> pa.Table:
    return _with_column(table.select(shown), read_weights(zoo, table), pa.ListArray)


def _leaving_weights_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function for `map` so that its result has no weights: a stored column would hide the zoo's."""
    if inspect.iscoroutinefunction(function):

        async def later(*inputs: Any, **kwargs: Any) -> Any:
            before = _sums(inputs[0])
            return _without(await function(*inputs, **kwargs), before)

        return later

    def at_once(*inputs: Any, **kwargs: Any) -> Any:
        before = _sums(inputs[0])
        return _without(function(*inputs, **kwargs), before)

    return at_once


def _names(snapshots: Any) -> list[str]:
    """The columns of a snapshot or batch in any format."""
    return list(
        snapshots.column_names
        if isinstance(snapshots, pa.Table)
        else snapshots.keys()
        if hasattr(snapshots, "keys")
        else ()
    )


def _sums(snapshots: Any) -> list[int] | None:
    """A checksum of each array of weights in a snapshot or batch, if it has any."""
    if WEIGHTS not in _names(snapshots):
        return None
    weights = snapshots[WEIGHTS]
    if isinstance(weights, pa.ChunkedArray | pa.Array):
        weights = [value.values for value in weights]
    else:
        one = len(weights) > 0 and np.ndim(weights[0]) == 0
        weights = [weights] if one else list(weights)
    return [zlib.crc32(np.ascontiguousarray(array, np.float32).data) for array in weights]


def _without(result: Any, before: list[int] | None) -> Any:
    """A function's result without the weights, which must be unchanged."""
    if WEIGHTS not in _names(result):
        return result
    try:
        same = _sums(result) == before
    except (AttributeError, TypeError, ValueError):  # not arrays of numbers
        same = False
    if not same:
        do = "give what it makes another name, or take snapshots without weights (remove_columns('weights'))"
        raise ZooError(
            "map",
            expected=f"a function that returns {WEIGHTS!r} as it got them, or not at all",
            found="others",
            do=do,
        )
    if isinstance(result, pa.Table):
        return result.drop_columns([WEIGHTS])
    return (
        {name: value for name, value in result.items() if name != WEIGHTS}
        if isinstance(result, Mapping)
        else result.drop(columns=WEIGHTS)
    )
