"""`Zoo`: networks in a folder or on the Hub.

Its index is a table to filter; weights are read only for the rows that were chosen.

Letters of axes: N rows (snapshots), P weights, L length of a slice.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from nws_dataset.errors import ZooError, reason
from nws_dataset.files import what_is_at
from nws_dataset.format.layout import Layout, layout_of
from nws_dataset.format.manifest import MANIFEST_NAME, PENDING, Manifest
from nws_dataset.format.recipe import Architecture
from nws_dataset.format.schema import INDEX_SCHEMA
from nws_dataset.format.shards import ROW_DTYPE, header, unpack
from nws_dataset.reading.byte_ranges import PLACE_COLUMNS, Place, Places
from nws_dataset.reading.folder import Folder
from nws_dataset.reading.hub import CACHE_BYTES, Repository
from nws_dataset.reading.index import Columns, part_of
from nws_dataset.reading.snapshots import PYTHON_TYPES, READ_COLUMNS, AnyRow, AnyRows, Row, Rows

if TYPE_CHECKING:
    import torch

    from nws_dataset.format.network import Network

LOCAL_NAME = "nws"
DEFAULT_REPOSITORY = "nws/nws"  # what "nws" stands for where there is no such zoo
STACK_BYTES = 2 << 20  # of a stack in a pass over many rows: it stays in the processor's cache
REPOSITORY_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


class Zoo:
    """A zoo in a local folder or on the Hub.

    What is not asked for is not read. In a folder, weights are read through memory maps, unchecked unless
    `check` is set. From the Hub, the index comes whole and of the weights the ranges that are asked for,
    neighbours in one request; all of it is checked and cached.

    Args:
        path: the folder that nws-build wrote, or "org/name" on the Hub, if there is no such folder
            ("./org/name" is always a folder); "nws" is ./nws or else DEFAULT_REPOSITORY.
        revision: branch, tag or commit of a zoo on the Hub.
        token: for a private zoo on the Hub; None is the stored login.
        cache_dir: files from the Hub are kept in its folder `nws`; None is huggingface_hub's home (HF_HOME).
        cache_bytes: weights from the Hub that are kept on disk, in bytes; those that were not used for
            longest go first.
        check: verify the SHA-256 of every value that is read from a folder.

    Raises:
        ZooError: if there is no zoo.

    Example:
        >>> zoo = Zoo("nws")  # or Zoo("org/nws", revision="v1.0.0")
        >>> snapshots = zoo.filter(subset="demo", is_final=True)
        >>> snapshots = snapshots.filter(architecture=snapshots[0]["architecture"])
        >>> weights = zoo.weights(snapshots)
        >>> weights.shape
        (5, 386)
        >>> network = zoo.network(snapshots[0])  # a torch module that has the accuracies of snapshots[0]
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
        path = os.path.expanduser(path)
        if path == LOCAL_NAME and what_is_at(Path(path) / MANIFEST_NAME) == "nothing" == what_is_at(
            Path(path) / PENDING
        ):
            path = DEFAULT_REPOSITORY
        on_hub = is_repository(path)
        if revision is not None and not on_hub:
            raise ZooError(
                path,
                expected="no revision for a folder",
                found=repr(revision),
                do="leave it out, or name a repository",
            )
        self.source: Folder | Repository
        if on_hub:
            try:
                self.source = Repository(
                    path, revision=revision, token=token, cache_dir=cache_dir, cache_bytes=cache_bytes
                )
            except ZooError as error:
                raise error.adding(found=f"and no folder {path}") from error
        else:
            self.source = Folder(path, check=check)
        self._memory = _Memory()

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
    def _columns(self) -> Columns:
        """The index, of which a column is read when it is first asked for."""
        columns = self.source.columns
        subset, model = columns["subset"], columns["model_id"]
        final = columns["is_final"].numbers
        pairs = np.unique(
            subset.codes[final].astype(np.int64) * len(model.distinct) + model.codes[final]
        ) // len(model.distinct)
        models = dict(
            zip(subset.distinct, np.bincount(pairs, minlength=len(subset.distinct)).tolist(), strict=True)
        )
        for name, entry in self.manifest.subsets.items():
            if models.get(name, 0) != entry.num_models:
                expected, found = f"{entry.num_models} models of {name}", str(models.get(name, 0))
                raise ZooError(self.name, expected=expected, found=found, do="fetch or build it again")
        return columns

    @functools.cached_property
    def index(self) -> pa.Table:
        """One row a snapshot, of all subsets and splits (INDEX_SCHEMA), all columns read.

        `filter` reads only those that are asked for.

        Raises:
            ZooError: if an index file is missing or damaged.
        """
        return self.filter().table

    def filter(self, **conditions: Any) -> Rows:
        """The rows of the index that fulfil all conditions, as `Rows.filter`.

        A column is read when it is first asked for.

        Args:
            conditions: as Rows.filter takes them; none for the whole index.

        Returns:
            Rows, in the order of the index.

        Raises:
            ZooError: if an index file is missing or damaged, there is no such column, or a value does not fit
                its type.
        """
        return Rows._of(self._columns, range(self._columns.num_rows)).filter(**conditions)

    def architecture(self, row: AnyRow) -> Architecture:
        """The architecture of a row's network.

        Args:
            row: a line of the index, from `filter` or from a datasets.Dataset.

        Returns:
            What fixes the shapes of its network.

        Raises:
            ZooError: if it is no row of an index.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> zoo.architecture(snapshot).conv_widths
            (4, 4, 4)
        """
        return _form(*_fields(row, "architecture_json")).architecture

    def layout(self, row: AnyRow) -> Layout:
        """The layout of a row's weights.

        Args:
            row: as `architecture`.

        Returns:
            Names, shapes and offsets of its tensors.

        Raises:
            ZooError: if it is no row of an index.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> zoo.layout(snapshot).num_weights
            386
        """
        return layout_of(self.architecture(row))

    def value(self, row: AnyRow) -> memoryview:
        """The safetensors bytes of a row's network: from a folder, a read-only view of the file.

        Args:
            row: a row of the index, from `filter` or from a datasets.Dataset.

        Returns:
            The bytes, of which safetensors makes the tensors.

        Raises:
            ZooError: if the row leads outside the zoo, a file is damaged, or the Hub cannot be reached.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> import safetensors.numpy
            >>> sorted(safetensors.numpy.load(bytes(zoo.value(snapshot))))[:2]
            ['conv1.bias', 'conv1.weight']
        """
        return self.source.value(_place(row))

    def row(self, row: AnyRow) -> np.ndarray:
        """The weights of one row.

        Args:
            row: as `architecture`.

        Returns:
            [P] float32, read-only; from a folder a view of the file (its alignment is not guaranteed; copy it
            for kernels that need one).

        Raises:
            ZooError: as `value`, or if the file holds another architecture there.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> zoo.row(snapshot).shape
            (386,)
        """
        form, value = _form(*_fields(row, "architecture_json")), self.value(row)
        if len(value) != form.length or value[: len(form.head)].tobytes() != form.head:
            unpack(form.architecture, value, self.source.where(_place(row)))  # says what does not fit
        return np.frombuffer(value, ROW_DTYPE, offset=len(form.head))

    def arrays(self, rows: AnyRows) -> list[np.ndarray]:
        """The weights of several rows of any architectures; on the Hub, neighbours are fetched in one
        request.

        Args:
            rows: Rows, a datasets.Dataset of the index, a DataFrame or Arrow table of it, or mappings.

        Returns:
            For each row [P] float32, as `row`.

        Raises:
            ZooError: as `row`.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshots = zoo.filter(is_final=True)
            >>> sorted({len(row) for row in zoo.arrays(snapshots)})
            [386, 3050]
        """
        chosen = _chosen(rows)
        places, forms = chosen.places, chosen.forms
        found: list[Any] = [None] * len(places)

        def deliver(numbers: slice | np.ndarray, values: np.ndarray) -> None:
            for i, value in zip(np.arange(len(places))[numbers].tolist(), values, strict=True):
                (place,) = places[i : i + 1]
                found[i] = unpack(forms[i].architecture, value.data, self.source.where(place))

        self.source.read(places, deliver)
        return found

    def weights(self, rows: AnyRows) -> np.ndarray:
        """The weights of several rows of one layout.

        Args:
            rows: as `arrays`. Image sizes may differ where no weight depends on them.

        Returns:
            [N, P] float32, a copy.

        Raises:
            ZooError: as `row`, or if there are no rows or the layouts differ.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshots = zoo.filter(is_final=True)
            >>> zoo.weights(snapshots.filter(architecture=snapshots[0]["architecture"])).shape
            (5, 386)
        """
        chosen = _chosen(rows)
        groups = list(chosen.by_architecture())
        layouts = [layout_of(form.architecture) for form, _ in groups]
        if not layouts or any(layout != layouts[0] for layout in layouts):
            found = ", ".join(sorted(form.architecture.id for form, _ in groups)[:5]) or "no rows"
            raise ZooError(
                "rows", expected="networks of one layout", found=found, do="filter by architecture"
            )
        places = chosen.places
        if len(groups) == 1:
            return self._stack(places, groups[0][0])
        weights_NP = np.empty((len(places), layouts[0].num_weights), ROW_DTYPE)
        for form, numbers in groups:
            weights_NP[numbers] = self._stack(places[numbers], form)
        return weights_NP

    def _stack(
        self, places: Places, form: _Form, memory: Callable[[int], np.ndarray] | None = None
    ) -> np.ndarray:
        """The weights [N, P] of places of one architecture. `memory` gives room for so many weights."""
        places.check(self.manifest, self.name)  # before anything of a size that they ask for is allocated
        unlike = np.flatnonzero(places.lengths != form.length)
        if len(unlike):
            (place,) = places[unlike[:1]]
            # says what does not fit
            unpack(form.architecture, self.source.value(place), self.source.where(place))
        shape = len(places), form.num_weights
        weights_NP = np.empty(shape, ROW_DTYPE) if memory is None else memory(math.prod(shape)).reshape(shape)
        bytes_NB = weights_NP.view(np.uint8)

        def deliver(numbers: slice | np.ndarray, values: np.ndarray) -> None:
            if values[:, : len(form.head)].tobytes() != form.head * len(values):
                for place, value in zip(places[numbers], values, strict=True):
                    unpack(form.architecture, value.data, self.source.where(place))
            bytes_NB[numbers] = values[:, len(form.head) :]

        self.source.read(places, deliver)
        return weights_NP

    def stacks(self, rows: AnyRows | None = None) -> Iterator[tuple[Rows, np.ndarray]]:
        """A pass over many rows in little memory: stack by stack, each of one architecture, of about 2 MiB.

        Args:
            rows: Rows or mappings; None is the whole zoo.

        Yields:
            The rows of a stack, and their weights [N, P] float32: architecture by architecture, in the order
            of `rows`.

        Raises:
            ZooError: as `row`.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshots = zoo.filter(is_final=True)
            >>> for stack, weights in zoo.stacks(snapshots):
            ...     print(stack[0]["architecture"], weights.shape)
            conv3x4k3s2g1v-avg-convdrop-in1x28c (5, 386)
            conv3x4k3-max-dense2x16-bn-in3x16 (5, 3050)
        """
        chosen = _Chosen(self.filter()) if rows is None else _chosen(rows)
        for form, numbers in chosen.by_architecture():
            found, places = chosen.rows[numbers], chosen.places[numbers]
            places.check(self.manifest, self.name)
            ordered, order = places.sorted()
            places = places if order is not None else ordered  # their runs are found once, not stack by stack
            size = max(1, STACK_BYTES // (form.num_weights * ROW_DTYPE.itemsize))
            for start in range(0, len(places), size):
                yield (
                    found[start : start + size],
                    self._stack(places[start : start + size], form, self._memory.take),
                )

    def slices(self, rows: AnyRows, starts: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
        """Consecutive weights of several rows of any architectures: the input of the deep meta-classifier.

        From a folder only these weights are read (and each value's header); from the Hub whole rows, so that
        they can be checked.

        Args:
            rows: Rows, a datasets.Dataset of the index, or mappings.
            starts: [N], the place of each slice's first weight in its row.
            length: weights in a slice.

        Returns:
            [N, length] float32.

        Raises:
            ZooError: as `row`, or if a slice leads outside its row.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshots = zoo.filter(is_final=True)
            >>> starts = np.random.default_rng(0).integers(snapshots["num_weights"] - 100 + 1)
            >>> zoo.slices(snapshots, starts, 100).shape
            (10, 100)
        """
        chosen = _chosen(rows)
        lengths = np.array([form.num_weights for form in chosen.forms], np.int64)
        try:
            firsts = np.asarray(starts, np.int64) if len(starts) else np.zeros(0, np.int64)
            fits = firsts.shape == lengths.shape and length > 0 and (firsts == np.asarray(starts)).all()
        except (TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            found = f"{starts!r} and a length of {length!r}"
            raise ZooError(
                "slices",
                expected=f"{len(lengths)} whole numbers and a length",
                found=found,
                do="give one start for each row",
            )
        outside = np.flatnonzero((firsts < 0) | (firsts > lengths - length))
        if len(outside):
            start, end = (int(array[outside[0]]) for array in (firsts, lengths))
            found = f"{start} to {start + length} of {end}"
            raise ZooError(
                "slices",
                expected="slices within their rows",
                found=found,
                do="choose other starts or a shorter length",
            )
        if not isinstance(self.source, Folder) or self.source.check:
            arrays = self.arrays(chosen.rows)
            return np.stack(
                [array[start : start + length] for array, start in zip(arrays, firsts.tolist(), strict=True)]
            )
        chosen.places.check(self.manifest, self.name)
        slices_NL = np.empty((len(lengths), length), ROW_DTYPE)
        for slice_L, start, form, place in zip(
            slices_NL, firsts.tolist(), chosen.forms, chosen.places, strict=True
        ):
            found_head = np.empty(len(form.head), np.uint8)
            if place.length == form.length:
                self.source.read_into(place, 0, found_head)
            if found_head.tobytes() != form.head:
                # says what does not fit
                unpack(form.architecture, self.source.value(place), self.source.where(place))
            self.source.read_into(place, len(form.head) + start * ROW_DTYPE.itemsize, slice_L)
        return slices_NL

    def state_dict(self, row: AnyRow) -> dict[str, torch.Tensor]:
        """A copy of a row's weights by name.

        Args:
            row: as `architecture`.

        Returns:
            name -> tensor of torch; it loads strictly into the row's `Network`.

        Raises:
            ZooError: as `row`.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> zoo.state_dict(snapshot)["conv1.weight"].shape
            torch.Size([4, 1, 3, 3])
        """
        return self.layout(row).views(self._tensor(row))

    def network(self, row: AnyRow) -> Network:
        """The network of a row, in evaluation mode: it reproduces the row's accuracies.

        Args:
            row: as `architecture`.

        Returns:
            A module of torch that takes images [B, C, H, W], uint8, and gives logits [B, num_outputs].

        Raises:
            ZooError: as `row`.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> import torch
            >>> zoo.network(snapshot)(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape
            torch.Size([2, 10])
        """
        from nws_dataset.format.network import Network  # torch is loaded only when a network is wanted

        activation, dropout = _fields(row, "activation", "dropout")
        weights = self._tensor(row)  # first: an index may ask for a network that no file holds
        return Network(self.architecture(row), activation, dropout).load_row(weights).eval()

    def _tensor(self, row: AnyRow) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.row(row).copy())


def is_repository(path: str) -> bool:
    """Whether a path stands for a repository on the Hub: "org/name", unless there is such a folder.

    Example:
        >>> is_repository("nws/nws"), is_repository("./nws"), is_repository("a/b/c")
        (True, False, False)
    """
    return bool(REPOSITORY_NAME.fullmatch(path)) and what_is_at(path) == "nothing"


class _Memory:
    """Memory of stacks that nobody holds any more, used again: pages that are new to a process cost as much
    as the copy.
    """

    KEPT = 2  # while a stack is used, the next is made

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, count: int) -> np.ndarray:
        """Room for `count` weights, of which no other array knows."""
        with self._lock:  # a view is counted before another thread looks
            for i in range(len(self._kept)):
                if sys.getrefcount(self._kept[i]) == ONLY_KEPT and len(self._kept[i]) >= count:
                    return self._kept[i][:count]
            memory = np.empty(max(count, STACK_BYTES // ROW_DTYPE.itemsize), ROW_DTYPE)
            self._kept = [*self._kept[1 - self.KEPT :], memory]
            return memory[:count]


# references to an array that only a list has, as getrefcount counts them
ONLY_KEPT = sys.getrefcount(np.empty(0)) + 1


class _Form(NamedTuple):
    """What the value of an architecture must be."""

    architecture: Architecture
    head: bytes
    num_weights: int
    length: int  # bytes of the value


@functools.lru_cache(1 << 16)  # a zoo has few of them, and millions of rows
def _form(text: str) -> _Form:
    architecture = Architecture.from_json(text)
    head, num_weights = header(architecture), layout_of(architecture).num_weights
    return _Form(architecture, head, num_weights, len(head) + num_weights * ROW_DTYPE.itemsize)


def _fields(row: AnyRow, *names: str) -> list[Any]:
    """Values of a row that reading needs.

    Raises:
        ZooError: if it is no row of an index, or lacks one of them.
    """
    if isinstance(row, Row):
        return [row[name] for name in names]
    do = "take whole rows of the config index"
    if not isinstance(row, Mapping):
        raise ZooError("row", expected="a mapping of columns to values", found=type(row).__name__, do=do)
    missing = [name for name in names if name not in row]
    if missing:
        raise ZooError(
            "row", expected=f"the columns {', '.join(names)}", found=f"no {', '.join(missing)}", do=do
        )
    return [_plain(name, row[name]) for name in names]


def _plain(name: str, value: Any) -> Any:
    """A value of a row that came from elsewhere, checked; numpy's numbers are Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    kind = INDEX_SCHEMA.field(name).type
    if not isinstance(value, PYTHON_TYPES[kind]) or isinstance(value, bool):
        do = "take whole rows of the config index"
        raise ZooError(
            f"column {name} of a row", expected=f"a value of type {kind}", found=repr(value), do=do
        )
    return value


def _place(row: AnyRow) -> Place:
    return Place(*_fields(row, *PLACE_COLUMNS))


class _Chosen:
    """Rows whose weights are wanted.

    Args:
        rows: with READ_COLUMNS.

    Raises:
        ZooError: if one of these is missing, of another type, or null somewhere.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows, self._columns, self._numbers = rows, rows._columns, rows._numbers
        do, fields = (
            "take whole rows of the config index",
            {field.name: field for field in self._columns.schema},
        )
        missing = [name for name in READ_COLUMNS if name not in fields]
        if missing:
            raise ZooError(
                "rows",
                expected=f"the columns {', '.join(READ_COLUMNS)}",
                found=f"no {', '.join(missing)}",
                do=do,
            )
        for name in READ_COLUMNS:
            kind, found = INDEX_SCHEMA.field(name).type, fields[name].type
            if found != kind or (fields[name].nullable and self._columns[name].values.null_count):
                raise ZooError(
                    f"column {name} of rows",
                    expected=f"values of type {kind}",
                    found=f"{found} or null",
                    do=do,
                )

    @functools.cached_property
    def places(self) -> Places:
        return Places.of(self._columns, self._numbers)

    @functools.cached_property
    def forms(self) -> list[_Form]:
        """[N]"""
        architecture = self._columns["architecture_json"]
        codes = part_of(architecture.codes, self._numbers).tolist()
        forms = {code: _form(architecture.distinct[code]) for code in dict.fromkeys(codes)}
        return [forms[code] for code in codes]

    def by_architecture(self) -> Iterator[tuple[_Form, slice | np.ndarray]]:
        """What the values of each architecture must be, and the numbers of its rows among these: in order of
        their first rows.
        """
        architecture = self._columns["architecture_json"]
        codes = part_of(architecture.codes, self._numbers)
        if len(codes) and (codes == codes[0]).all():
            yield _form(architecture.distinct[codes[0]]), slice(None)
            return
        order = np.argsort(codes, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
        for numbers in sorted(groups, key=lambda group: int(group[0])):
            yield _form(architecture.distinct[codes[numbers[0]]]), numbers


def _chosen(rows: Any) -> _Chosen:
    """Rows of any kind, checked."""
    do = "take rows of the config index, e.g. zoo.filter(...)"
    if isinstance(rows, Rows):
        return _Chosen(rows)
    if isinstance(rows, pa.Table):
        return _Chosen(Rows(rows))
    if isinstance(rows, Mapping):
        raise ZooError(
            "rows",
            expected="several rows",
            found="one row",
            do="read it with zoo.row(row), or put it into a list: [row]",
        )
    if hasattr(rows, "columns") and hasattr(rows, "to_dict"):  # a pandas DataFrame
        rows = rows[[name for name in READ_COLUMNS if name in rows.columns]].to_dict("records")
    try:
        listed = list(rows)
    except TypeError:
        raise ZooError("rows", expected="rows", found=type(rows).__name__, do=do) from None
    values = [_fields(row, *READ_COLUMNS) for row in listed]
    columns = {name: [value[i] for value in values] for i, name in enumerate(READ_COLUMNS)}
    try:
        return _Chosen(Rows._of(Columns.of_values(columns), range(len(values))))
    except (ValueError, OverflowError) as error:  # texts that are no UTF-8, numbers beyond int64
        raise ZooError("rows", expected="rows of the config index", found=reason(error), do=do) from error
