"""A zoo's files in a local folder: values are read through memory maps, slices through single reads of the file."""

from __future__ import annotations

import functools
import mmap
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from nws_dataset.errors import ZooError
from nws_dataset.files import sha256_file
from nws_dataset.manifest import Manifest
from nws_dataset.places import Deliver, Place, Places
from nws_dataset.shards import check_value, read_index

OPEN_FILES = 256  # kept open: well below the usual limit of 1024 files a process


class Folder:
    """A local folder. Weights are read unchecked unless `check` is set: a flipped bit in a file is then a flipped bit in a weight.

    Args:
        path: of the folder.
        check: verify the SHA-256 of every value that is read.

    Raises:
        ZooError: if the folder is not a zoo.
    """

    def __init__(self, path: str | Path, *, check: bool = False) -> None:
        self.path = Path(path).resolve()
        self.check = check
        self.manifest = Manifest.read(self.path)
        self._content = functools.lru_cache(OPEN_FILES)(self._map)
        self._file = functools.lru_cache(OPEN_FILES)(self._open)

    @property
    def name(self) -> str:
        """What errors and people call it."""
        return str(self.path)

    @property
    def homepage(self) -> str:
        """What a dataset remembers it by."""
        return str(self.path)

    def where(self, place: Place) -> str:
        """How errors name a place."""
        return f"{self.path / place.file} at byte {place.offset}"

    def index(self, relative: str) -> pa.Table:
        """The rows of an index file, checked against nws.json.

        Raises:
            ZooError: if it is missing or not the file that nws.json lists.
        """
        path, digest = self.manifest.locate(self.path, relative), self.manifest.files[relative].sha256
        found = sha256_file(path)
        if found != digest:
            raise ZooError(path, expected=f"sha256 {digest}", found=found, do="the file is damaged; fetch or build it again")
        return read_index(path)

    def value(self, place: Place) -> memoryview:
        """The value of a place, a read-only view of the file.

        Raises:
            ZooError: if the place is outside its file, or the file is missing or damaged.
        """
        value = self._within(place)[place.offset : place.offset + place.length]
        if self.check:
            check_value(value, place.sha256, self.where(place))
        return value

    def read(self, places: Places, deliver: Deliver) -> None:
        """Hand over the values of places, as read-only views of the files: values at equal distances are one array.

        Raises:
            ZooError: as `value`.
        """
        ordered, numbers = places.sorted()
        known = list(ordered) if self.check else []
        for run in ordered.runs():
            first, last = (self._place(ordered, i) for i in (run.start, run.stop - 1))
            self._within(first)
            step = (last.offset - first.offset) // max(1, run.stop - run.start - 1)
            shape = (run.stop - run.start, first.length)
            values = np.ndarray(shape, np.uint8, self._within(last), first.offset, (step, 1))
            for place, value in zip(known[run], values, strict=False):
                check_value(value.data, place.sha256, self.where(place))
            deliver(run if numbers is None else numbers[run], values)

    def read_into(self, place: Place, start: int, target: np.ndarray) -> None:
        """Read bytes of a value, from its byte `start` on, into a contiguous array: these and no others.

        Raises:
            ZooError: as `value`, or if the value ends before.
        """
        self._within(place)
        count = os.preadv(self._file(place.file).number, [target.data], place.offset + start)
        if count != target.nbytes or not 0 <= start <= place.length - count:
            found = f"bytes {start} to {start + target.nbytes} of a value of {place.length}"
            raise ZooError(self.where(place), expected="bytes of one value", found=found, do="build the index again")

    def _place(self, places: Places, i: int) -> Place:
        """A place, its digest left out: it is asked for only where it is checked."""
        return Place(places.files[places.numbers[i]], int(places.offsets[i]), int(places.lengths[i]), "")

    def _within(self, place: Place) -> memoryview:
        """The content of a place's file, which the place must be in."""
        content = self._content(place.file)
        stop = place.offset + place.length
        if place.offset < 0 or place.length < 0 or stop > len(content):
            found = f"bytes {place.offset} to {stop}"
            raise ZooError(self.path / place.file, expected=f"a place in its {len(content)} bytes", found=found, do="build the index again")
        return content

    def _map(self, file: str) -> memoryview:
        with open(self.manifest.locate(self.path, file), "rb") as handle:
            return memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))

    def _open(self, file: str) -> _OpenFile:
        return _OpenFile(self.manifest.locate(self.path, file))


class _OpenFile:
    """A file's descriptor, closed when it is no longer in use. The system is told that reads are random, and reads nothing ahead."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        os.close(self.number)
