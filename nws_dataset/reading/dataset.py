"""`SnapshotDataset`: snapshots of a zoo for torch's DataLoader.

A batch is read as a whole: the weights of each architecture as one stack, which is turned into a view at
once. From the Hub, values stored close to those of a batch are fetched with them.

Axes: N snapshots of the data set, B snapshots of a batch, P weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from nws_dataset.errors import ValueZooError, ZooError
from nws_dataset.format.manifest import Manifest
from nws_dataset.networks import architecture_from_json
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.reading.byte_ranges import ByteRanges
from nws_dataset.reading.index import part_of
from nws_dataset.reading.snapshots import READ_COLUMNS, Snapshots
from nws_dataset.reading.zoo_files import ZooFiles
from nws_dataset.views.graph import Graph
from nws_dataset.views.indices import smallest_side
from nws_dataset.views.layer_tuples import LayerTuples
from nws_dataset.views.tokens import Tokens

# view -> (fields of each network, fields shared by all networks of an architecture)
FIELDS: dict[type[Any], tuple[tuple[str, ...], tuple[str, ...]]] = {
    Graph: (("x", "edge_attr"), ("edge_index",)),
    LayerTuples: (("weights", "biases", "norms"), ()),
    Tokens: (("tokens",), ("mask", "position")),
}
DTYPES = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float32}  # numpy's kind -> dtype of targets
NEIGHBOURHOOD_BYTES = 1 << 18  # of a file on the Hub: a request takes about as long as these bytes


class Reader(Protocol):
    """What a data set needs of a `Zoo`."""

    @property
    def name(self) -> str: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def files(self) -> ZooFiles: ...
    def weights(self, snapshots: Snapshots) -> np.ndarray: ...


class SnapshotDataset(Dataset[Any]):
    """Snapshots of a zoo as a map-style data set of torch, made by `Zoo.dataset`, which describes its items.

    A DataLoader may use any kind of worker processes.

    Args:
        zoo: the zoo.
        snapshots: lines of its index.
        view: Graph, LayerTuples, Tokens, or None for the rows themselves.
        target: what to predict, a column or [N, ...] numbers; None for items without `y`.
        options: of `view.from_rows`.

    Raises:
        ValueZooError: if there is no such view, or targets are not finite, or not one per snapshot.
        ZooError: if there is no such column.

    Example:
        >>> from nws_dataset import Zoo
        >>> zoo = Zoo("nws")
        >>> dataset = SnapshotDataset(zoo, zoo.filter(is_final=True), target="epoch")
        >>> weights, epoch = dataset[0]
        >>> len(dataset), weights.shape, int(epoch)
        (10, torch.Size([386]), 3)
    """

    def __init__(
        self,
        zoo: Reader,
        snapshots: Snapshots,
        view: type[Any] | None = None,
        target: str | npt.ArrayLike | torch.Tensor | None = "test_accuracy",
        **options: Any,
    ) -> None:
        if view is not None and view not in FIELDS:
            expected = f"one of {', '.join(known.__name__ for known in FIELDS)}, or None"
            raise ValueZooError("view", expected=expected, found=repr(view), do="choose one of them")
        if view is None and options:
            found = ", ".join(options)
            raise ValueZooError("options", expected="none without a view", found=found, do="leave them out")
        self.zoo, self.snapshots, self.view = zoo, snapshots, view
        self.targets = None if target is None else _targets(snapshots, target)
        self._digest = zoo.manifest.digest
        self._neighbourhoods: _Neighbourhoods | None = None  # set with the first batch
        column = snapshots._columns["architecture_json"]
        self._codes = part_of(column.codes, snapshots._indices)  # [N], keys of `_architectures`
        self._architectures = {
            code: architecture_from_json(column.distinct[code]) for code in np.unique(self._codes).tolist()
        }
        if view is Graph and self._architectures:  # the edges of all graphs get the same width
            options.setdefault("kernel_size", max(map(smallest_side, self._architectures.values())))
        self._options, self._graph_type = options, _graph_type() if view is Graph else dict
        for architecture in list(self._architectures.values())[:1]:  # reports a wrong option now
            self._items(architecture, torch.empty(0, layout_of(architecture).num_weights), None)

    def __getstate__(self) -> dict[str, Any]:
        """A worker gets only the columns of the index that reading needs."""
        needed = Snapshots(self.snapshots.select(READ_COLUMNS))
        return {**self.__dict__, "snapshots": needed, "_neighbourhoods": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.zoo.manifest.digest != self._digest:
            raise ZooError(
                self.zoo.name,
                expected="the zoo that the data set was made of",
                found="another in its place",
                do="open it again, and make the data set anew",
            )

    def __len__(self) -> int:
        return len(self.snapshots)

    def __getitem__(self, index: int) -> Any:
        """The item of a snapshot. Raises an IndexError if there is none, a ZooError as `Zoo.row`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The items of a batch, read together; raises as `__getitem__`."""
        batch = np.arange(len(self))[np.asarray(indices, np.intp)]
        self._prefetch(batch)
        codes, items = self._codes[batch], [None] * len(batch)
        for code in dict.fromkeys(codes.tolist()):
            positions = np.flatnonzero(codes == code)
            alike = batch[positions]
            weights = torch.from_numpy(self.zoo.weights(self.snapshots[alike]))
            targets = None if self.targets is None else self.targets[torch.from_numpy(alike)]
            made = self._items(self._architectures[code], weights, targets)
            for position, item in zip(positions.tolist(), made, strict=True):
                items[position] = item
        return items

    def _items(
        self, architecture: BaseArchitecture, weights: torch.Tensor, targets: torch.Tensor | None
    ) -> list[Any]:
        """The items of a stack of networks [n, P]."""
        if self.view is None:
            return list(weights) if targets is None else list(zip(weights, targets, strict=True))
        view = self.view.from_rows(architecture, weights, **self._options)
        names, shared = FIELDS[self.view]
        own = [_unstacked(getattr(view, name), len(weights)) for name in names]
        if targets is not None:
            names, own = (
                (*names, "y"),
                [*own, targets.unbind() if self._graph_type is dict else targets.split(1)],
            )
        same = {name: getattr(view, name) for name in shared}
        return [
            self._graph_type(**dict(zip(names, values, strict=True)), **same)
            for values in zip(*own, strict=True)
        ]

    def _prefetch(self, batch: np.ndarray) -> None:
        """From the Hub, also fetch the neighbours of a batch if the cache can hold the whole data set: later
        batches of a shuffled pass need them.
        """
        if not self.zoo.files.cache_bytes:
            return
        if self._neighbourhoods is None:
            byte_ranges = ByteRanges.of(self.snapshots._columns, self.snapshots._indices)
            self._neighbourhoods = _Neighbourhoods(byte_ranges)
        if self._neighbourhoods.num_bytes <= self.zoo.files.cache_bytes:
            self.zoo.files.prefetch(self._neighbourhoods.of(batch))


class _Neighbourhoods:
    """Groups of values of a data set that are stored close together.

    Args:
        byte_ranges: [N], where the values are.
    """

    def __init__(self, byte_ranges: ByteRanges) -> None:
        self.byte_ranges, self.num_bytes = byte_ranges, int(byte_ranges.lengths.sum())
        cells = byte_ranges.offsets // NEIGHBOURHOOD_BYTES
        keys = byte_ranges.file_indices * (cells.max(initial=0) + 1) + cells
        distinct, self._neighbourhood = np.unique(keys, return_inverse=True)  # [N]
        self._given = np.zeros(len(distinct), bool)

    def of(self, batch: np.ndarray) -> ByteRanges:
        """The values in the neighbourhoods of a batch; a neighbourhood is returned only once."""
        wanted = np.unique(self._neighbourhood[batch])
        wanted = wanted[~self._given[wanted]]
        self._given[wanted] = True
        return self.byte_ranges[np.flatnonzero(np.isin(self._neighbourhood, wanted))]


def _targets(snapshots: Snapshots, target: str | npt.ArrayLike | torch.Tensor) -> torch.Tensor:
    """[N, ...] bool, integers or float32, finite.

    Raises:
        ValueZooError: if they are not, or are not as many as the snapshots.
    """
    where = f"column {target}" if isinstance(target, str) else "target"
    if not isinstance(target, torch.Tensor):
        values = np.asarray(snapshots[target] if isinstance(target, str) else target)
        if values.dtype.kind not in "biuf":
            do = "give numbers, e.g. np.unique(snapshots[column], return_inverse=True)[1]"
            raise ValueZooError(where, expected="numbers", found=f"values of type {values.dtype}", do=do)
        target = torch.from_numpy(values.astype(DTYPES[values.dtype.kind]))
    targets = target.detach().cpu()
    if not targets.ndim or len(targets) != len(snapshots):
        expected, found = f"[{len(snapshots)}, ...]", str(list(targets.shape))
        raise ValueZooError(where, expected=expected, found=found, do="give one for each snapshot")
    missing = int((~targets.isfinite()).sum())
    if missing:
        found = f"{missing} that are null, NaN or infinite"
        raise ValueZooError(where, expected="finite numbers", found=found, do="leave these snapshots out")
    return targets.float() if targets.is_floating_point() else targets


def _unstacked(value: Any, count: int) -> Sequence[Any]:
    """Each network's part of a tensor [n, ...], or of every tensor of a tuple."""
    if isinstance(value, torch.Tensor):
        return value.unbind()
    return list(zip(*(tensor.unbind() for tensor in value), strict=True)) if value else [()] * count


def _graph_type() -> type[Any]:
    """PyTorch Geometric's Data; dict if it is not installed."""
    try:
        data: type[Any] = importlib.import_module("torch_geometric.data").Data
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch_geometric":
            raise
        return dict
    return data
