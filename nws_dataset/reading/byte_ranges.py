"""Where values are: a file of the zoo, an offset and a length in it, and the digest that they must have."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.files import inside
from nws_dataset.format.manifest import MANIFEST_NAME, Manifest
from nws_dataset.reading.index import Columns, Numbers

PLACE_COLUMNS = ("file", "offset", "length", "sha256")  # of the index
# Takes values of one length, [n, length] uint8, and their numbers among the places. It may be called from
# several threads, in any order.
Deliver = Callable[[slice | np.ndarray, np.ndarray], None]


class Place(NamedTuple):
    """A value in a file of the zoo."""

    file: str
    offset: int
    length: int
    sha256: str

    def check(self, manifest: Manifest, where: object) -> None:
        """Raise a ZooError unless the place is in a file that nws.json lists.

        `where` is what has the files.
        """
        entry = manifest.files.get(self.file)
        if entry is None:
            inside(str(where), self.file)  # an illegal path is told as such
            raise ZooError(
                where,
                expected=f"a file that {MANIFEST_NAME} lists",
                found=self.file,
                do="build the index again",
            )
        if self.offset < 0 or self.length < 0 or self.offset + self.length > entry.size:
            found = f"bytes {self.offset} to {self.offset + self.length} of {self.file}"
            raise ZooError(
                where, expected=f"a place in its {entry.size} bytes", found=found, do="build the index again"
            )


@dataclass(eq=False)
class Places:
    """The places of N rows, column by column. Digests are read when they are asked for."""

    files: list[str]  # that places are in
    numbers: np.ndarray  # [N], of the file of each place
    offsets: np.ndarray  # [N] int64
    lengths: np.ndarray  # [N] int64
    columns: Columns  # of the rows
    rows: np.ndarray  # [N], their numbers there
    starts: list[int] | None = None  # first places of `runs`, of places that are known to be sorted
    checked: Manifest | None = None  # in whose files they are

    @classmethod
    def of(cls, columns: Columns, rows: Numbers) -> Places:
        """The places of rows that have PLACE_COLUMNS."""
        file, part = columns["file"], np.arange(rows.start, rows.stop) if isinstance(rows, range) else rows
        offsets, lengths = (columns[name].numbers[part].astype(np.int64) for name in ("offset", "length"))
        return cls(file.distinct[:-1], file.codes[part], offsets, lengths, columns, part)

    @classmethod
    def of_place(cls, place: Place) -> Places:
        """A single place."""
        return cls.of(Columns.of_values({name: [value] for name, value in place._asdict().items()}), range(1))

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, chosen: slice | np.ndarray) -> Places:
        """Some of the places; a slice is consecutive."""
        starts = None
        if self.starts is not None and isinstance(chosen, slice):
            first, stop, _ = chosen.indices(len(self))
            inner = self.starts[
                bisect.bisect_right(self.starts, first) : bisect.bisect_left(self.starts, stop)
            ]
            starts = [0, *(start - first for start in inner)]
        numbers, offsets, lengths, rows = (
            part[chosen] for part in (self.numbers, self.offsets, self.lengths, self.rows)
        )
        return Places(self.files, numbers, offsets, lengths, self.columns, rows, starts, self.checked)

    def __iter__(self) -> Iterator[Place]:
        files = (self.files[number] for number in self.numbers.tolist())
        return map(Place, files, self.offsets.tolist(), self.lengths.tolist(), self.digests)

    @property
    def digests(self) -> list[str]:
        """[N] sha256."""
        return self.columns["sha256"].arrow(self.rows).to_pylist()

    def check(self, manifest: Manifest, where: object) -> None:
        """Raise a ZooError unless all places are in files that nws.json lists.

        `where` is what has the files.
        """
        if self.checked is manifest:
            return
        entries = [manifest.files.get(file) for file in self.files]
        room = (
            np.array([-1 if entry is None else entry.size for entry in entries], np.int64)[self.numbers]
            - self.lengths
        )
        wrong = (self.offsets < 0) | (self.lengths < 0) | (self.offsets > room)
        for place in self[wrong] if wrong.any() else ():
            place.check(manifest, where)
        self.checked = manifest

    def sorted(self) -> tuple[Places, np.ndarray | None]:
        """The places file by file in rising order, ready for `runs`, and their numbers; no numbers if they
        are so already.
        """
        if self.starts is not None:
            return self, None
        files, steps = np.diff(self.numbers), np.diff(self.offsets)
        if ((files > 0) | ((files == 0) & (steps > 0))).all():
            return self._with_starts(), None
        order = np.lexsort((self.offsets, self.numbers))
        return self[order]._with_starts(), order

    def _with_starts(self) -> Places:
        steps = np.diff(self.offsets)
        same = (np.diff(self.numbers) == 0) & (np.diff(self.lengths) == 0) & (steps >= self.lengths[:-1])
        ends = np.flatnonzero(~same).tolist()  # after these places a run must end
        turns = (np.flatnonzero(steps[1:] != steps[:-1]) + 1).tolist()  # after these, if it has begun before
        starts, start, last = [], 0, len(self) - 1
        while start <= last:
            starts.append(start)
            end, turn = bisect.bisect_left(ends, start), bisect.bisect_right(turns, start)
            start = min([last, *ends[end : end + 1], *turns[turn : turn + 1]]) + 1
        return dataclasses.replace(self, starts=starts)

    def runs(self) -> Iterator[slice]:
        """Of sorted places: neighbours of one file and length whose offsets rise by equal steps."""
        assert self.starts is not None, "places are not sorted"
        return map(slice, self.starts, [*self.starts[1:], len(self)])
