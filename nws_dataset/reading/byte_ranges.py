"""Where values are stored: a file of the zoo, an offset, a length, and the SHA-256 of the bytes there."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.files import resolve_inside
from nws_dataset.format.manifest import MANIFEST_NAME, Manifest
from nws_dataset.reading.index import Columns, Indices

BYTE_RANGE_COLUMNS = ("file", "offset", "length", "sha256")  # of the index
# Receives values of one length, [n, length] uint8, with their indices among the byte ranges; called from
# several threads, in any order.
Deliver = Callable[[slice | np.ndarray, np.ndarray], None]


class ByteRange(NamedTuple):
    """Where one value is stored."""

    file: str
    offset: int
    length: int
    sha256: str

    def check(self, manifest: Manifest, where: object) -> None:
        """Raise a ZooError unless the range is in a file that nws.json lists.

        `where` names the zoo in errors.
        """
        entry = manifest.files.get(self.file)
        if entry is None:
            resolve_inside(str(where), self.file)  # names an illegal path
            raise ZooError(
                where,
                expected=f"a file that {MANIFEST_NAME} lists",
                found=self.file,
                do="build the index again",
            )
        if self.offset < 0 or self.length < 0 or self.offset + self.length > entry.size:
            found = f"bytes {self.offset} to {self.offset + self.length} of {self.file}"
            raise ZooError(
                where, expected=f"a range in its {entry.size} bytes", found=found, do="build the index again"
            )


@dataclass(eq=False)
class ByteRanges:
    """The byte ranges of N snapshots, as columns. Digests are read on first use."""

    files: list[str]  # the distinct files
    file_indices: np.ndarray  # [N], the index of each range's file in `files`
    offsets: np.ndarray  # [N] int64
    lengths: np.ndarray  # [N] int64
    columns: Columns  # of the index
    indices: np.ndarray  # [N], the snapshots' indices in the columns
    starts: list[int] | None = None  # where each run of `runs` starts; None unless the ranges are sorted
    checked: Manifest | None = None  # the manifest that `check` passed for

    @classmethod
    def of(cls, columns: Columns, indices: Indices) -> ByteRanges:
        """The byte ranges of snapshots, from BYTE_RANGE_COLUMNS."""
        file, part = (
            columns["file"],
            np.arange(indices.start, indices.stop) if isinstance(indices, range) else indices,
        )
        offsets, lengths = (columns[name].numbers[part].astype(np.int64) for name in ("offset", "length"))
        return cls(file.distinct[:-1], file.codes[part], offsets, lengths, columns, part)

    @classmethod
    def of_one(cls, byte_range: ByteRange) -> ByteRanges:
        """A single range."""
        return cls.of(
            Columns.of_values({name: [value] for name, value in byte_range._asdict().items()}), range(1)
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, chosen: slice | np.ndarray) -> ByteRanges:
        """Some of the ranges; a slice must be consecutive."""
        starts = None
        if self.starts is not None and isinstance(chosen, slice):
            first, stop, _ = chosen.indices(len(self))
            inner = self.starts[
                bisect.bisect_right(self.starts, first) : bisect.bisect_left(self.starts, stop)
            ]
            starts = [0, *(start - first for start in inner)]
        files, offsets, lengths, indices = (
            part[chosen] for part in (self.file_indices, self.offsets, self.lengths, self.indices)
        )
        return ByteRanges(self.files, files, offsets, lengths, self.columns, indices, starts, self.checked)

    def __iter__(self) -> Iterator[ByteRange]:
        files = (self.files[i] for i in self.file_indices.tolist())
        return map(ByteRange, files, self.offsets.tolist(), self.lengths.tolist(), self.digests)

    @property
    def digests(self) -> list[str]:
        """[N] sha256."""
        return self.columns["sha256"].arrow(self.indices).to_pylist()

    def check(self, manifest: Manifest, where: object) -> None:
        """Raise a ZooError unless all ranges are in files that nws.json lists.

        `where` names the zoo in errors.
        """
        if self.checked is manifest:
            return
        entries = [manifest.files.get(file) for file in self.files]
        last_offsets = (
            np.array([-1 if entry is None else entry.size for entry in entries], np.int64)[self.file_indices]
            - self.lengths
        )
        wrong = (self.offsets < 0) | (self.lengths < 0) | (self.offsets > last_offsets)
        for byte_range in self[wrong] if wrong.any() else ():
            byte_range.check(manifest, where)
        self.checked = manifest

    def sorted(self) -> tuple[ByteRanges, np.ndarray | None]:
        """The ranges sorted by file and offset for `runs`, and their indices; None if they were sorted."""
        if self.starts is not None:
            return self, None
        files, steps = np.diff(self.file_indices), np.diff(self.offsets)
        if ((files > 0) | ((files == 0) & (steps > 0))).all():
            return self._with_starts(), None
        order = np.lexsort((self.offsets, self.file_indices))
        return self[order]._with_starts(), order

    def _with_starts(self) -> ByteRanges:
        steps = np.diff(self.offsets)
        same = (np.diff(self.file_indices) == 0) & (np.diff(self.lengths) == 0) & (steps >= self.lengths[:-1])
        ends = np.flatnonzero(~same).tolist()  # a run must end after these ranges
        turns = (np.flatnonzero(steps[1:] != steps[:-1]) + 1).tolist()  # and after these if it began earlier
        starts, start, last = [], 0, len(self) - 1
        while start <= last:
            starts.append(start)
            end, turn = bisect.bisect_left(ends, start), bisect.bisect_right(turns, start)
            start = min([last, *ends[end : end + 1], *turns[turn : turn + 1]]) + 1
        return dataclasses.replace(self, starts=starts)

    def runs(self) -> Iterator[slice]:
        """Slices of sorted ranges: one file, one length, evenly spaced offsets."""
        assert self.starts is not None, "byte ranges are not sorted"
        return map(slice, self.starts, [*self.starts[1:], len(self)])
