"""Where values are: a file of the zoo, an offset and a length in it, and the digest that they must have."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PLACE_COLUMNS = ("file", "offset", "length", "sha256")  # of the index
# Takes values of one length, [n, length] uint8, and their numbers among the places. It may be called from several threads, in any order.
Deliver = Callable[[slice | np.ndarray, np.ndarray], None]


class Place(NamedTuple):
    """A value in a file of the zoo."""

    file: str
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True)
class Places:
    """The places of N rows, column by column."""

    files: list[str]  # that places are in
    numbers: np.ndarray  # [N], of the file of each place
    offsets: np.ndarray  # [N] int64
    lengths: np.ndarray  # [N] int64
    digests: pa.Array  # [N]

    @classmethod
    def of(cls, table: pa.Table) -> Places:
        """The places of rows that have PLACE_COLUMNS."""
        files, offsets, lengths, digests = (table[name].combine_chunks() for name in PLACE_COLUMNS)
        encoded = pc.dictionary_encode(files)
        numbers = encoded.indices.to_numpy(zero_copy_only=False)
        return cls(encoded.dictionary.to_pylist(), numbers, offsets.to_numpy(), lengths.to_numpy(), digests)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, chosen: slice | np.ndarray) -> Places:
        """Some of the places."""
        digests = self.digests[chosen] if isinstance(chosen, slice) else self.digests.take(pa.array(chosen))
        return Places(self.files, self.numbers[chosen], self.offsets[chosen], self.lengths[chosen], digests)

    def __iter__(self) -> Iterator[Place]:
        files = (self.files[number] for number in self.numbers.tolist())
        return map(Place, files, self.offsets.tolist(), self.lengths.tolist(), self.digests.to_pylist())

    def sorted(self) -> tuple[Places, np.ndarray | None]:
        """The places file by file in rising order, and their numbers; no numbers if they are so already."""
        order = np.lexsort((self.offsets, self.numbers))
        return (self, None) if (order[1:] > order[:-1]).all() else (self[order], order)

    def runs(self) -> Iterator[slice]:
        """Neighbouring places of one file and length whose offsets rise by equal steps, as parts of the places."""
        steps = self.offsets[1:] - self.offsets[:-1]
        same = (self.numbers[1:] == self.numbers[:-1]) & (self.lengths[1:] == self.lengths[:-1]) & (steps >= self.lengths[:-1])
        ends = (~same).nonzero()[0].tolist()  # after these places a run must end
        turns = ((steps[1:] != steps[:-1]).nonzero()[0] + 1).tolist()  # after these, if it has begun before
        start, last = 0, len(self) - 1
        while start <= last:
            end, turn = bisect.bisect_left(ends, start), bisect.bisect_right(turns, start)
            stop = min([last, *ends[end : end + 1], *turns[turn : turn + 1]]) + 1
            yield slice(start, stop)
            start = stop
