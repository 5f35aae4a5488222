"""`Zoo`: networks in a folder or on the Hub.

Filter its index, then read weights of the chosen snapshots only. A snapshot is a line of the index, a network
at one moment of its training; a row is its weights.

Axes: N snapshots, P weights, L length of a slice.
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
from nws_dataset.files import path_type
from nws_dataset.format.manifest import MANIFEST_NAME, PENDING, Manifest
from nws_dataset.format.schema import INDEX_SCHEMA
from nws_dataset.format.shards import (
    ROW_DTYPE,
    check_scores_length,
    header,
    num_scores,
    unpack,
    unpack_scores,
    value_bytes,
)
from nws_dataset.networks import architecture_from_json
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import Layout, layout_of
from nws_dataset.reading.byte_ranges import BYTE_RANGE_COLUMNS, ByteRange, ByteRanges
from nws_dataset.reading.cache import CACHE_BYTES
from nws_dataset.reading.folder import Folder
from nws_dataset.reading.index import Columns, part_of
from nws_dataset.reading.snapshots import (
    PYTHON_TYPES,
    READ_COLUMNS,
    AnySnapshot,
    AnySnapshots,
    Snapshot,
    Snapshots,
)
from nws_dataset.reading.zoo_files import ZooFiles

if TYPE_CHECKING:
    import torch

    from nws_dataset.networks.network import Network
    from nws_dataset.networks.stacked import Networks
    from nws_dataset.reading.dataset import SnapshotDataset

LOCAL_NAME = "nws"
DEFAULT_REPOSITORY = "nws/nws"  # what "nws" stands for if there is no folder ./nws
STACK_BYTES = 2 << 20  # of weights in one of `stacks`: it stays in the processor's cache
REPOSITORY_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


class Zoo:
    """A zoo in a local folder or on the Hub.

    Everything is read on first use. In a folder, weights are read through memory maps, and verified only if
    `check` is set. From the Hub, the index is fetched whole, weights only as they are needed, neighbours in
    one request; all of it is verified and cached.

    Args:
        path: a folder that nws build wrote, or "org/name" on the Hub if there is no such folder ("./org/name"
            is always a folder); "nws" is ./nws or else DEFAULT_REPOSITORY.
        revision: branch, tag or commit of a zoo on the Hub.
        token: for a private zoo on the Hub; None is the stored login.
        cache_dir: files from the Hub are kept in its folder `nws`; None is huggingface_hub's home (HF_HOME).
        cache_bytes: of weights from the Hub that are kept on disk; beyond it the least recently used go.
        check: verify the SHA-256 of every value read from a folder.

    Raises:
        ZooError: if there is no zoo.

    Example:
        >>> zoo = Zoo("nws")  # or Zoo("org/nws", revision="v1.0.0")
        >>> snapshots = zoo.filter(subset="demo", is_final=True)
        >>> snapshots = snapshots.filter(architecture=snapshots[0]["architecture"])
        >>> weights = zoo.weights(snapshots)
        >>> weights.shape
        (5, 386)
        >>> network = zoo.network(snapshots[0])  # a torch module with the accuracies of snapshots[0]
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
        if path == LOCAL_NAME and path_type(Path(path) / MANIFEST_NAME) == "nothing" == path_type(
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
        self.files: ZooFiles
        if on_hub:
            from nws_dataset.reading.hub import Repository  # a folder needs no client of the Hub

            try:
                self.files = Repository(
                    path, revision=revision, token=token, cache_dir=cache_dir, cache_bytes=cache_bytes
                )
            except ZooError as error:
                raise error.adding(found=f"and no folder {path}") from error
        else:
            self.files = Folder(path, check=check)
        self._memory = _StackMemory()

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle opens the zoo again; it holds no maps or connections."""
        return functools.partial(Zoo, **self.files.arguments), ()

    def __repr__(self) -> str:
        return f"Zoo({self.name!r}, subsets: {', '.join(self.subsets)})"

    @property
    def name(self) -> str:
        """The folder, or "org/name@commit"."""
        return self.files.name

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            ZooError: for a zoo on the Hub.
        """
        if self.files.path is None:
            do = "download it (huggingface_hub: snapshot_download with local_dir)"
            raise ZooError(self.name, expected="a zoo in a folder", found="one on the Hub", do=do)
        return self.files.path

    @property
    def manifest(self) -> Manifest:
        """nws.json: what the zoo contains and how it was made."""
        return self.files.manifest

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets."""
        return tuple(self.manifest.subsets)

    @functools.cached_property
    def _columns(self) -> Columns:
        """The index, whose columns are read on first use."""
        columns = self.files.columns
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
        """One line per snapshot of all subsets and splits, with all columns (INDEX_SCHEMA).

        `filter` reads only the columns that are used.

        Raises:
            ZooError: if an index file is missing or damaged.
        """
        return self.filter().table

    def filter(self, **conditions: Any) -> Snapshots:
        """The snapshots of the index that meet all conditions, as `Snapshots.filter`.

        A column is read on first use.

        Args:
            conditions: as `Snapshots.filter` takes them; none for the whole index.

        Returns:
            Snapshots, in the order of the index.

        Raises:
            ZooError: if an index file is missing or damaged, there is no such column, or a value does not fit
                its type.
        """
        return Snapshots._of(self._columns, range(self._columns.num_rows)).filter(**conditions)

    def architecture(self, snapshot: AnySnapshot) -> BaseArchitecture:
        """The architecture of a snapshot's network.

        Args:
            snapshot: a line of the index, from `filter` or from a datasets.Dataset.

        Returns:
            What fixes the shapes of its network.

        Raises:
            ZooError: if it is no line of an index.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> zoo.architecture(snapshot).conv_widths
            (4, 4, 4)
        """
        return _value_format(*_fields(snapshot, "architecture_json")).architecture

    def layout(self, snapshot: AnySnapshot) -> Layout:
        """The layout of a snapshot's weights.

        Args:
            snapshot: as `architecture`.

        Returns:
            Names, shapes and offsets of its tensors.

        Raises:
            ZooError: if it is no line of an index.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> zoo.layout(snapshot).num_weights
            386
        """
        return layout_of(self.architecture(snapshot))

    def value(self, snapshot: AnySnapshot) -> memoryview:
        """The safetensors bytes of a snapshot's network: from a folder, a read-only view of the file.

        Args:
            snapshot: a line of the index, from `filter` or from a datasets.Dataset.

        Returns:
            The bytes, for safetensors to load.

        Raises:
            ZooError: if the snapshot points outside the zoo, a file is damaged, or the Hub cannot be reached.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> import safetensors.numpy
            >>> sorted(safetensors.numpy.load(bytes(zoo.value(snapshot))))[:2]
            ['conv1.bias', 'conv1.weight']
        """
        return self.files.value(_byte_range(snapshot))

    def row(self, snapshot: AnySnapshot) -> np.ndarray:
        """The weights of one snapshot: its row.

        Args:
            snapshot: as `architecture`.

        Returns:
            [P] float32, read-only; from a folder a view of the file, possibly unaligned (copy it for kernels
            that need alignment).

        Raises:
            ZooError: as `value`, or if the file holds another architecture there.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> zoo.row(snapshot).shape
            (386,)
        """
        value_format, value = _value_format(*_fields(snapshot, "architecture_json")), self.value(snapshot)
        if (
            len(value) != value_format.length
            or value[: len(value_format.head)].tobytes() != value_format.head
        ):
            unpack(
                value_format.architecture, value, self.files.where(_byte_range(snapshot))
            )  # raises an error with the difference
        return np.frombuffer(value, ROW_DTYPE, offset=len(value_format.head))

    def arrays(self, snapshots: AnySnapshots) -> list[np.ndarray]:
        """The weights of several snapshots of any architectures, neighbours on the Hub in one request.

        Args:
            snapshots: Snapshots; a datasets.Dataset, DataFrame or Arrow table of the index; or mappings.

        Returns:
            [P] float32 for each snapshot, as `row`.

        Raises:
            ZooError: as `row`.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshots = zoo.filter(is_final=True)
            >>> sorted({len(row) for row in zoo.arrays(snapshots)})
            [386, 3050]
        """
        chosen = _as_wanted(snapshots)
        byte_ranges, formats = chosen.byte_ranges, chosen.formats
        found: list[Any] = [None] * len(byte_ranges)

        def deliver(indices: slice | np.ndarray, values: np.ndarray) -> None:
            for i, value in zip(np.arange(len(byte_ranges))[indices].tolist(), values, strict=True):
                (byte_range,) = byte_ranges[i : i + 1]
                found[i] = unpack(formats[i].architecture, value.data, self.files.where(byte_range))

        self.files.read(byte_ranges, deliver)
        return found

    def weights(self, snapshots: AnySnapshots) -> np.ndarray:
        """The weights of several snapshots of one layout.

        Args:
            snapshots: as `arrays`. Image sizes may differ if no weight depends on them.

        Returns:
            [N, P] float32, a copy.

        Raises:
            ZooError: as `row`, or if there are no snapshots or the layouts differ.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshots = zoo.filter(is_final=True)
            >>> zoo.weights(snapshots.filter(architecture=snapshots[0]["architecture"])).shape
            (5, 386)
        """
        chosen = _as_wanted(snapshots)
        groups = list(chosen.by_architecture())
        layouts = [layout_of(value_format.architecture) for value_format, _ in groups]
        if not layouts or any(layout != layouts[0] for layout in layouts):
            found = (
                ", ".join(sorted(value_format.architecture.id for value_format, _ in groups)[:5])
                or "no snapshots"
            )
            raise ZooError(
                "snapshots", expected="networks of one layout", found=found, do="filter by architecture"
            )
        byte_ranges = chosen.byte_ranges
        if len(groups) == 1:
            return self._stack(byte_ranges, groups[0][0])
        weights_NP = np.empty((len(byte_ranges), layouts[0].num_weights), ROW_DTYPE)
        for value_format, indices in groups:
            weights_NP[indices] = self._stack(byte_ranges[indices], value_format)
        return weights_NP

    def _stack(
        self,
        byte_ranges: ByteRanges,
        value_format: _ValueFormat,
        memory: Callable[[int], np.ndarray] | None = None,
    ) -> np.ndarray:
        """The weights [N, P] in byte ranges, all of one architecture; `memory(n)` allocates n weights."""
        byte_ranges.check(self.manifest, self.name)  # before memory of that size is allocated
        unlike = np.flatnonzero(byte_ranges.lengths != value_format.length)
        if len(unlike):
            (byte_range,) = byte_ranges[unlike[:1]]
            # raises an error with the difference
            unpack(value_format.architecture, self.files.value(byte_range), self.files.where(byte_range))
        shape = len(byte_ranges), value_format.num_weights
        weights_NP = np.empty(shape, ROW_DTYPE) if memory is None else memory(math.prod(shape)).reshape(shape)
        bytes_NB = weights_NP.view(np.uint8)

        def deliver(indices: slice | np.ndarray, values: np.ndarray) -> None:
            if values[:, : len(value_format.head)].tobytes() != value_format.head * len(values):
                for byte_range, value in zip(byte_ranges[indices], values, strict=True):
                    unpack(value_format.architecture, value.data, self.files.where(byte_range))
            bytes_NB[indices] = values[:, len(value_format.head) :]

        self.files.read(byte_ranges, deliver)
        return weights_NP

    def stacks(self, snapshots: AnySnapshots | None = None) -> Iterator[tuple[Snapshots, np.ndarray]]:
        """Iterate over many snapshots in little memory: in stacks of one architecture and about 2 MiB.

        Args:
            snapshots: Snapshots or mappings; None is the whole zoo.

        Yields:
            The snapshots of a stack and their weights [N, P] float32, by architecture, then in the order of
            `snapshots`.

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
        chosen = _Wanted(self.filter()) if snapshots is None else _as_wanted(snapshots)
        for value_format, indices in chosen.by_architecture():
            found, byte_ranges = chosen.snapshots[indices], chosen.byte_ranges[indices]
            byte_ranges.check(self.manifest, self.name)
            ordered, order = byte_ranges.sorted()
            byte_ranges = (
                byte_ranges if order is not None else ordered
            )  # runs are found once, not for each stack
            size = max(1, STACK_BYTES // (value_format.num_weights * ROW_DTYPE.itemsize))
            for start in range(0, len(byte_ranges), size):
                yield (
                    found[start : start + size],
                    self._stack(byte_ranges[start : start + size], value_format, self._memory.take),
                )

    def slices(self, snapshots: AnySnapshots, starts: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
        """A slice of each snapshot's weights, of any architectures: the input of the deep meta-classifier.

        From a folder only these weights (and each value's header) are read; from the Hub whole rows, to
        check them.

        Args:
            snapshots: Snapshots, a datasets.Dataset of the index, or mappings.
            starts: [N], the position of each slice's first weight in its row.
            length: weights in a slice.

        Returns:
            [N, length] float32.

        Raises:
            ZooError: as `row`, or if a slice is not inside its row.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshots = zoo.filter(is_final=True)
            >>> starts = np.random.default_rng(0).integers(snapshots["num_weights"] - 100 + 1)
            >>> zoo.slices(snapshots, starts, 100).shape
            (10, 100)
        """
        chosen = _as_wanted(snapshots)
        lengths = np.array([value_format.num_weights for value_format in chosen.formats], np.int64)
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
                do="give one start for each snapshot",
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
        read_part = self.files.read_part
        if read_part is None:
            arrays = self.arrays(chosen.snapshots)
            return np.stack(
                [array[start : start + length] for array, start in zip(arrays, firsts.tolist(), strict=True)]
            )
        chosen.byte_ranges.check(self.manifest, self.name)
        slices_NL = np.empty((len(lengths), length), ROW_DTYPE)
        for slice_L, start, value_format, byte_range in zip(
            slices_NL, firsts.tolist(), chosen.formats, chosen.byte_ranges, strict=True
        ):
            found_head = np.empty(len(value_format.head), np.uint8)
            if byte_range.length == value_format.length:
                read_part(byte_range, 0, found_head)
            if found_head.tobytes() != value_format.head:
                # raises an error with the difference
                unpack(value_format.architecture, self.files.value(byte_range), self.files.where(byte_range))
            read_part(byte_range, len(value_format.head) + start * ROW_DTYPE.itemsize, slice_L)
        return slices_NL

    def state_dict(self, snapshot: AnySnapshot) -> dict[str, torch.Tensor]:
        """A copy of a snapshot's weights by name.

        Args:
            snapshot: as `architecture`.

        Returns:
            name -> torch.Tensor; it loads strictly into the snapshot's `Network`.

        Raises:
            ZooError: as `row`.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> zoo.state_dict(snapshot)["conv1.weight"].shape
            torch.Size([4, 1, 3, 3])
        """
        return self.layout(snapshot).views(self._tensor(snapshot))

    def network(self, snapshot: AnySnapshot) -> Network:
        """The network of a snapshot, in evaluation mode: it reproduces the snapshot's accuracies.

        Args:
            snapshot: as `architecture`.

        Returns:
            A torch module from images [B, C, H, W], uint8, to logits [B, num_outputs].

        Raises:
            ZooError: as `row`.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshot = zoo.filter(model_id="demo-000000", is_final=True)[0]
            >>> import torch
            >>> zoo.network(snapshot)(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape
            torch.Size([2, 10])
        """
        from nws_dataset.networks.network import Network  # torch is loaded only when it is needed

        activation, dropout = _fields(snapshot, "activation", "dropout")
        weights = self._tensor(snapshot)  # first: an index may claim a network that no file has
        return Network(self.architecture(snapshot), activation, dropout).load_row(weights).eval()

    def images(self, snapshots: AnySnapshots) -> np.ndarray:
        """The images that networks of one architecture represent, as they give them.

        Args:
            snapshots: as `arrays`, of networks that read coordinates: sirens, and kans of the subset
                `kan_inr`.

        Returns:
            [N, C, H, W] uint8: values outside the range of pixels are cut to it, then rounded.

        Raises:
            ZooError: as `row`, or if there are no snapshots, the architectures differ, or networks classify
                images.

        Example:
            >>> zoo = Zoo("nws")
            >>> classifiers = zoo.filter(model_id="demo-000000")
            >>> try:
            ...     zoo.images(classifiers)
            ... except ZooError as error:
            ...     print(error)
            snapshots: expected networks that represent images, found a cnn; filter by subset
        """
        import torch

        from nws_dataset.networks.network import coordinates

        networks = self.networks(snapshots)
        architecture = networks.architecture
        if architecture.reads != "coordinates":
            raise ZooError(
                "snapshots",
                expected="networks that represent images",
                found=f"a {architecture.kind}",
                do="filter by subset",
            )
        low, high = architecture.pixel_range
        with torch.no_grad():
            values = networks(coordinates(architecture))  # [N, B, C]
        pixels = ((values - low) / (high - low) * 255).round().clamp(0, 255).nan_to_num().to(torch.uint8)
        side = architecture.image_size
        return pixels.transpose(1, 2).unflatten(2, (side, side)).numpy()

    def edge_scores(self, snapshots: AnySnapshots) -> np.ndarray:
        """The scores of the edges of classifying kans of one architecture: the mean |phi(x)| of each over
        training images. An edge is kept where its score is at least the snapshot's `edge_threshold`.

        Args:
            snapshots: as `arrays`.

        Returns:
            [N, E] float32, layer by layer in the order [out, in].

        Raises:
            ZooError: as `row`, or if there are no snapshots, the architectures differ, or edges have no
                scores.

        Example:
            >>> zoo = Zoo("nws")
            >>> try:
            ...     zoo.edge_scores(zoo.filter(model_id="demo-000000"))
            ... except ZooError as error:
            ...     print(error)
            snapshots: expected networks whose edges have scores, found demo-000000; filter by subset
        """
        names = ("model_id", "architecture_json", "file", *EDGE_SCORES_COLUMNS)
        chosen = list(_as_wanted(snapshots, (*READ_COLUMNS, "model_id", *EDGE_SCORES_COLUMNS)).snapshots)
        fields = [[snapshot[name] for snapshot in chosen] for name in names]
        identifiers, texts, files, *ranges = fields
        architectures = {text: architecture_from_json(text) for text in texts}
        if len(architectures) != 1:
            found = ", ".join(sorted(a.id for a in architectures.values())[:5]) or "no snapshots"
            do = "filter by architecture"
            raise ZooError("snapshots", expected="networks of one architecture", found=found, do=do)
        (architecture,) = architectures.values()
        without = [name for name, offset in zip(identifiers, ranges[0], strict=True) if offset is None]
        if without:
            expected, found = "networks whose edges have scores", without[0]
            raise ZooError("snapshots", expected=expected, found=found, do="filter by subset")
        columns = dict(zip(BYTE_RANGE_COLUMNS, (files, *ranges), strict=True))
        byte_ranges = ByteRanges.of(
            Columns.of_values({name: list(column) for name, column in columns.items()}), range(len(chosen))
        )
        for identifier, length in zip(identifiers, ranges[1], strict=True):  # before room is made for them
            check_scores_length(architecture, length, identifier)
        scores = np.empty((len(chosen), num_scores(architecture)), ROW_DTYPE)

        def deliver(indices: slice | np.ndarray, values: np.ndarray) -> None:
            for i, value in zip(np.arange(len(chosen))[indices].tolist(), values, strict=True):
                (byte_range,) = byte_ranges[i : i + 1]
                scores[i] = unpack_scores(architecture, value.data, self.files.where(byte_range))

        self.files.read(byte_ranges, deliver)
        return scores

    def networks(self, snapshots: AnySnapshots) -> Networks:
        """The networks of several snapshots of one architecture as one module, in evaluation mode.

        One call gives the logits of all, faster than one network after the other. Gradients reach the images,
        and weights that are passed to the call.

        Args:
            snapshots: as `arrays`. Activations may differ.

        Returns:
            A torch module from images [B, C, H, W], as `network`'s, to logits [N, B, num_outputs].

        Raises:
            ZooError: as `row`, or if there are no snapshots or the architectures differ.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshots = zoo.filter(is_final=True)
            >>> networks = zoo.networks(snapshots.filter(architecture=snapshots[0]["architecture"]))
            >>> import torch
            >>> probes = torch.randn(8, 1, 28, 28, requires_grad=True)
            >>> networks(probes, scaled=True).shape
            torch.Size([5, 8, 10])
        """
        import torch

        from nws_dataset.networks.stacked import Networks

        wanted = _as_wanted(snapshots, (*READ_COLUMNS, "activation"))
        formats = [value_format for value_format, _ in wanted.by_architecture()]
        if len(formats) != 1:
            found = ", ".join(sorted(form.architecture.id for form in formats)[:5]) or "no snapshots"
            raise ZooError(
                "snapshots", expected="networks of one architecture", found=found, do="filter by architecture"
            )
        weights = torch.from_numpy(self._stack(wanted.byte_ranges, formats[0]))
        return Networks(formats[0].architecture, wanted.snapshots["activation"].tolist(), weights).eval()

    def dataset(
        self,
        snapshots: AnySnapshots,
        view: type[Any] | None = None,
        target: Any = "test_accuracy",
        **options: Any,
    ) -> SnapshotDataset:
        """Snapshots as a map-style data set for a torch DataLoader with any kind of worker processes.

        Only what a batch needs is read. From the Hub, the neighbours of its values within 256 kB are fetched
        too if the cache can hold the whole data set: a shuffled pass then makes a request for each
        neighbourhood, not for each snapshot.

        Args:
            snapshots: as `arrays`; a target's name needs Snapshots or an Arrow table.
            view: Graph, LayerTuples or Tokens; None for the rows themselves.
            target: what to predict: a column of numbers, or an array or tensor [N, ...] of numbers; None for
                items without it.
            options: of the view's `from_rows`. By default, `kernel_size` of graphs is the smallest that fits
                all their architectures.

        Returns:
            A torch.utils.data.Dataset of N items of float32 tensors; y is bool, int64 or float32:

            | view | item |
            |---|---|
            | None | a row [P] and its y, or only the row |
            | Graph | PyTorch Geometric's Data with x, edge_index, edge_attr, y [1, ...], for its DataLoader |
            | LayerTuples | a dict of weights, biases and norms, tuples of tensors, and y |
            | Tokens | a dict of tokens, mask, position and y |

            Without PyTorch Geometric (the extra `graphs`), a graph is a dict of the same tensors.

        Raises:
            ZooError: if there is no such column, or an option does not fit.
            ValueZooError: if there is no such view, or targets are not finite, or not one per snapshot.

        Example:
            >>> zoo = Zoo("nws")
            >>> snapshots = zoo.filter(is_final=True)
            >>> dataset = zoo.dataset(snapshots.filter(architecture=snapshots[0]["architecture"]))
            >>> from torch.utils.data import DataLoader
            >>> [(weights.shape, accuracy.shape) for weights, accuracy in DataLoader(dataset, batch_size=5)]
            [(torch.Size([5, 386]), torch.Size([5]))]
            >>> from nws_dataset import Graph
            >>> zoo.dataset(snapshots, view=Graph)[0]["edge_attr"].shape
            torch.Size([76, 9])
        """
        from nws_dataset.reading.dataset import SnapshotDataset

        return SnapshotDataset(self, _as_wanted(snapshots).snapshots, view, target, **options)

    def _tensor(self, snapshot: AnySnapshot) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.row(snapshot).copy())


def is_repository(path: str) -> bool:
    """Whether a path stands for a repository on the Hub: "org/name", unless there is such a folder.

    Example:
        >>> is_repository("nws/nws"), is_repository("./nws"), is_repository("a/b/c")
        (True, False, False)
    """
    return bool(REPOSITORY_NAME.fullmatch(path)) and path_type(path) == "nothing"


class _StackMemory:
    """Reuses the memory of stacks that are no longer referenced: fresh pages cost as much as the copy."""

    KEPT = 2  # one is in use while the next is filled

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, count: int) -> np.ndarray:
        """Memory for `count` weights that no other array refers to."""
        with self._lock:  # so that no other thread counts references before the view exists
            for i in range(len(self._kept)):
                if sys.getrefcount(self._kept[i]) == ONLY_KEPT and len(self._kept[i]) >= count:
                    return self._kept[i][:count]
            memory = np.empty(max(count, STACK_BYTES // ROW_DTYPE.itemsize), ROW_DTYPE)
            self._kept = [*self._kept[1 - self.KEPT :], memory]
            return memory[:count]


EDGE_SCORES_COLUMNS = tuple(f"edge_scores_{name}" for name in ("offset", "length", "sha256"))
# getrefcount of an array that only a list refers to
ONLY_KEPT = sys.getrefcount(np.empty(0)) + 1


class _ValueFormat(NamedTuple):
    """What a value of an architecture must look like."""

    architecture: BaseArchitecture
    head: bytes
    num_weights: int
    length: int  # of the value, in bytes


@functools.lru_cache(1 << 16)  # few architectures for millions of snapshots
def _value_format(text: str) -> _ValueFormat:
    architecture = architecture_from_json(text)
    num_weights = layout_of(architecture).num_weights
    return _ValueFormat(architecture, header(architecture), num_weights, value_bytes(architecture))


def _fields(snapshot: AnySnapshot, *names: str) -> list[Any]:
    """Some values of a snapshot.

    Raises:
        ZooError: if it is not a line of an index, or lacks one of them.
    """
    if isinstance(snapshot, Snapshot):
        return [snapshot[name] for name in names]
    do = "take whole lines of the config index"
    if not isinstance(snapshot, Mapping):
        raise ZooError(
            "snapshot", expected="a mapping of columns to values", found=type(snapshot).__name__, do=do
        )
    missing = [name for name in names if name not in snapshot]
    if missing:
        raise ZooError(
            "snapshot", expected=f"the columns {', '.join(names)}", found=f"no {', '.join(missing)}", do=do
        )
    return [_plain(name, snapshot[name]) for name in names]


def _plain(name: str, value: Any) -> Any:
    """A value of a snapshot of any form, checked; numpy's numbers become Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    arrow_type = INDEX_SCHEMA.field(name).type
    if value is None and INDEX_SCHEMA.field(name).nullable:
        return None
    if not isinstance(value, PYTHON_TYPES[arrow_type]) or isinstance(value, bool):
        do = "take whole lines of the config index"
        raise ZooError(
            f"column {name} of a snapshot", expected=f"a value of type {arrow_type}", found=repr(value), do=do
        )
    return value


def _byte_range(snapshot: AnySnapshot) -> ByteRange:
    return ByteRange(*_fields(snapshot, *BYTE_RANGE_COLUMNS))


class _Wanted:
    """Snapshots whose weights are to be read.

    Args:
        snapshots: with READ_COLUMNS.

    Raises:
        ZooError: if one of these columns is missing, of another type, or has a null.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        self.snapshots, self._columns, self._indices = snapshots, snapshots._columns, snapshots._indices
        do, fields = (
            "take whole lines of the config index",
            {field.name: field for field in self._columns.schema},
        )
        missing = [name for name in READ_COLUMNS if name not in fields]
        if missing:
            raise ZooError(
                "snapshots",
                expected=f"the columns {', '.join(READ_COLUMNS)}",
                found=f"no {', '.join(missing)}",
                do=do,
            )
        for name in READ_COLUMNS:
            arrow_type, found = INDEX_SCHEMA.field(name).type, fields[name].type
            if found != arrow_type or (fields[name].nullable and self._columns[name].values.null_count):
                raise ZooError(
                    f"column {name} of snapshots",
                    expected=f"values of type {arrow_type}",
                    found=f"{found} or null",
                    do=do,
                )

    @functools.cached_property
    def byte_ranges(self) -> ByteRanges:
        return ByteRanges.of(self._columns, self._indices)

    @functools.cached_property
    def formats(self) -> list[_ValueFormat]:
        """[N]"""
        architecture = self._columns["architecture_json"]
        codes = part_of(architecture.codes, self._indices).tolist()
        formats = {code: _value_format(architecture.distinct[code]) for code in dict.fromkeys(codes)}
        return [formats[code] for code in codes]

    def by_architecture(self) -> Iterator[tuple[_ValueFormat, slice | np.ndarray]]:
        """For each architecture its value format and the indices of its snapshots, in order of the first."""
        architecture = self._columns["architecture_json"]
        codes = part_of(architecture.codes, self._indices)
        if len(codes) and (codes == codes[0]).all():
            yield _value_format(architecture.distinct[codes[0]]), slice(None)
            return
        order = np.argsort(codes, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
        for indices in sorted(groups, key=lambda group: int(group[0])):
            yield _value_format(architecture.distinct[codes[indices[0]]]), indices


def _as_wanted(snapshots: Any, columns: Sequence[str] = READ_COLUMNS) -> _Wanted:
    """Snapshots of any form as `_Wanted`, with these columns of strings or integers checked."""
    do = "take snapshots from the index, e.g. zoo.filter(...)"
    if isinstance(snapshots, Snapshots):
        return _Wanted(snapshots)
    if isinstance(snapshots, pa.Table):
        return _Wanted(Snapshots(snapshots))
    if isinstance(snapshots, Mapping):
        raise ZooError(
            "snapshots",
            expected="several snapshots",
            found="one snapshot",
            do="read it with zoo.row(snapshot), or put it into a list: [snapshot]",
        )
    if hasattr(snapshots, "columns") and hasattr(snapshots, "to_dict"):  # a pandas DataFrame
        snapshots = snapshots[[name for name in columns if name in snapshots.columns]].to_dict("records")
    try:
        listed = list(snapshots)
    except TypeError:
        raise ZooError("snapshots", expected="snapshots", found=type(snapshots).__name__, do=do) from None
    values = [_fields(snapshot, *columns) for snapshot in listed]
    lists = {name: [value[i] for value in values] for i, name in enumerate(columns)}
    try:
        return _Wanted(Snapshots._of(Columns.of_values(lists), range(len(values))))
    except (ValueError, OverflowError) as error:  # strings that are not UTF-8, numbers beyond int64
        raise ZooError(
            "snapshots", expected="snapshots of the config index", found=reason(error), do=do
        ) from error
