"""A zoo's files in a local folder: values are read through memory maps, slices through single reads of the
file.

A zoo may grow while it is read. A folder keeps to the state that it was opened in: what has moved is found
again by its SHA-256.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nws_dataset.errors import ZooError, reason
from nws_dataset.files import CHUNK_BYTES, check_file, open_descriptor, open_file
from nws_dataset.format.manifest import MANIFEST_NAME, PENDING, Manifest
from nws_dataset.format.shards import check_value
from nws_dataset.reading.byte_ranges import Deliver, Place, Places
from nws_dataset.reading.index import Columns, open_index

OPEN_FILES = 128  # kept open for slices: well below the usual limit of 1024 files a process, and below 256
PATIENCE = 5.0  # seconds that a file may be other than listed while a new state comes into the folder
PAUSE = 0.02  # seconds before another look
Opened = TypeVar("Opened")


class _MovedOn(Exception):
    """A file of the state that was opened is no longer there: the folder has a new one."""


class Folder:
    """A local folder.

    Weights are read unchecked unless `check` is set: a flipped bit in a file is then a flipped bit in a
    weight.

    Args:
        path: of the folder.
        check: verify the SHA-256 of every value that is read.

    Raises:
        ZooError: if the folder is not a zoo.
    """

    def __init__(self, path: str | Path, *, check: bool = False) -> None:
        try:
            self.path = Path(path).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # loops of links, names that are no text
            raise ZooError(
                path,
                expected="the folder of a zoo",
                found=reason(error),
                do="name a folder that nws-build wrote",
            ) from error
        self.check = check
        self._maps: dict[str, memoryview] = {}  # a map keeps its file's content, but no file open
        self._files: dict[str, _OpenFile] = {}
        self._lock = threading.Lock()  # of the two
        self._next: Folder | None = None  # the same folder in a later state
        self._open_state()

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

    @functools.cached_property
    def columns(self) -> Columns:
        """The rows of all index files, checked against nws.json.

        From then on the folder keeps to their state.

        Raises:
            ZooError: if one is missing or not the file that nws.json lists.
        """
        for another in _attempts():
            try:
                return open_index(
                    [(self.path / file, self._index_file(file)) for file in self.manifest.index_files()]
                )
            except ZooError:
                if not another or not self._changing():
                    raise
                self._open_state()
        raise AssertionError

    def value(self, place: Place) -> memoryview:
        """The value of a place, a read-only view of the file.

        Raises:
            ZooError: if the place is outside its file, or the file is missing or damaged.
        """
        file, offset, length, sha256 = place
        try:
            content = self._maps.get(file)
            if content is None:
                content = self._content(file)
        except _MovedOn:
            newest, places = self._found_again(Places.of_place(place))
            return newest.value(next(iter(places)))
        if offset < 0 or length < 0 or offset + length > len(content):
            place.check(self.manifest, self.path)
        value = content[offset : offset + length]
        if self.check:
            check_value(value, sha256, self.where(place))
        return value

    def read(self, places: Places, deliver: Deliver) -> None:
        """Hand over the values of places, as read-only views of the files: values at equal distances are one
        array.

        Raises:
            ZooError: as `value`.
        """
        places.check(self.manifest, self.path)
        try:
            self._read(places, deliver)
        except _MovedOn:
            newest, places = self._found_again(places)
            newest.read(places, deliver)

    def _read(self, places: Places, deliver: Deliver) -> None:
        ordered, numbers = places.sorted()
        known = list(ordered) if self.check else []
        for run in ordered.runs():
            file, last = ordered.files[ordered.numbers[run.start]], run.stop - 1
            start, stop, length = (
                int(n)
                for n in (ordered.offsets[run.start], ordered.offsets[last], ordered.lengths[run.start])
            )
            content = self._maps.get(file)
            if content is None:
                content = self._content(file)
            step = (stop - start) // max(1, last - run.start)
            values = np.ndarray((run.stop - run.start, length), np.uint8, content, start, (step, 1))
            for place, value in zip(known[run], values, strict=False):
                check_value(value.data, place.sha256, self.where(place))
            deliver(run if numbers is None else numbers[run], values)

    def read_into(self, place: Place, start: int, target: np.ndarray) -> None:
        """Read bytes of a value, from its byte `start` on, into a contiguous array: these and no others.

        Raises:
            ZooError: as `value`, or if the value ends before.
        """
        place.check(self.manifest, self.path)
        found = f"bytes {start} to {start + target.nbytes} of a value of {place.length}"
        try:
            fits = 0 <= start <= place.length - target.nbytes
            if (
                fits
                and os.preadv(self._file(place.file).number, [target.data], place.offset + start)
                == target.nbytes
            ):
                return
        except _MovedOn:
            newest, places = self._found_again(Places.of_place(place))
            return newest.read_into(next(iter(places)), start, target)
        except OSError as error:
            found = reason(error)
        raise ZooError(
            self.where(place),
            expected="bytes of one value",
            found=found,
            do="fetch the file or build the index again",
        )

    # Files

    def _content(self, file: str) -> memoryview:
        """The content of a file of the state that was opened."""
        with self._lock:  # two threads would map it twice
            if file not in self._maps:
                self._maps[file] = self._opened(file, _mapped, len)
            return self._maps[file]

    def _file(self, file: str) -> _OpenFile:
        """A file of the state that was opened, open.

        Those that were opened first are closed first, when no thread reads them any more.
        """
        with self._lock:
            if file not in self._files:
                opened = self._opened(file, _OpenFile, _OpenFile.size)
                while len(self._files) >= OPEN_FILES:
                    del self._files[next(iter(self._files))]
                self._files[file] = opened
            return self._files[file]

    def _opened(self, file: str, open_one: Callable[[Path], Opened], size: Callable[[Opened], int]) -> Opened:
        """A file of the state that was opened, by its name.

        Raises:
            ZooError: if it is missing, cannot be read, or has another size than is listed.
            _MovedOn: if the folder has a new state, and another file there.
        """
        for another in _attempts():
            opened, failure = None, None
            try:
                path = self.manifest.locate(self.path, file)
                opened = self._with_room(open_one, path)
                if size(opened) != self.manifest.files[file].size:
                    expected, found = f"{self.manifest.files[file].size} bytes", f"{size(opened)} bytes"
                    raise ZooError(path, expected=expected, found=found, do="fetch or build the file again")
            except ZooError as error:
                failure = error
            except (OSError, ValueError, pa.ArrowException) as error:
                do = "permit reading, or fetch or build it again"
                failure = ZooError(
                    self.path / file, expected="a file that can be read", found=reason(error), do=do
                )
            if (failure is None or self._changing()) and self._newest().manifest.files.get(
                file
            ) != self.manifest.files.get(file):
                raise _MovedOn
            if failure is None:
                assert opened is not None
                return opened
            if not another or not self._changing():
                raise failure
        raise AssertionError

    def _with_room(self, open_one: Callable[[Path], Opened], path: Path) -> Opened:
        """A file, opened; where the process may open no more, those that are kept are closed first."""
        try:
            return open_one(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._files:
                raise
        self._files.clear()
        return open_one(path)

    def _index_file(self, file: str) -> mmap.mmap:
        """The content of an index file as a map, of which no page is in memory before it is read."""
        path, expected = self.manifest.locate(self.path, file), self.manifest.files[file].sha256
        digest = hashlib.sha256()
        try:
            with open_file(path) as opened:
                for chunk in iter(functools.partial(opened.read, CHUNK_BYTES), b""):
                    digest.update(chunk)
                content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, pa.ArrowException) as error:
            do = "permit reading, or fetch or build it again"
            raise ZooError(path, expected="a file that can be read", found=reason(error), do=do) from error
        if digest.hexdigest() != expected:
            do = "the file is damaged; fetch or build it again"
            raise ZooError(path, expected=f"sha256 {expected}", found=digest.hexdigest(), do=do)
        return content

    # States

    def _open_state(self) -> None:
        """Read nws.json, of the state that the folder has now."""
        for another in _attempts():
            self._state = self._look()
            try:
                self.manifest = Manifest.read(self.path)
            except ZooError:
                if not another or self._look() == self._state:
                    raise
            else:
                if self._look() == self._state or not another:
                    break
        self._maps, self._files = {}, {}

    def _look(self) -> tuple[object, ...]:
        """What tells one state of the folder from another."""
        return tuple(_signature(self.path / name) for name in (f"{PENDING}/{MANIFEST_NAME}", MANIFEST_NAME))

    def _changing(self) -> bool:
        """Whether the folder has, or is just getting, another state than the one that was opened."""
        state = self._look()
        return state != self._state or state[0] is not None

    def _newest(self) -> Folder:
        """The folder in the state that it has now."""
        state = self._look()
        if state == self._state:
            return self
        if self._next is None:
            later = Folder(self.path, check=self.check)
            if later.manifest == self.manifest:  # nws.json has only been moved
                self._state = later._state
                return self
            self._next = later
        return self._next._newest()

    def _found_again(self, places: Places) -> tuple[Folder, Places]:
        """Places whose file is no longer there: where the same values are in the state that the folder has
        now.

        Raises:
            ZooError: if one is no longer there.
        """
        newest = self._newest()
        wanted, there = places.columns["sha256"].arrow(places.rows), newest.columns["sha256"].values
        found = pc.index_in(wanted, value_set=there)
        if found.null_count:
            do = "open it again, and take rows of its index"
            raise ZooError(self.path, expected="the zoo that was opened", found="another in its place", do=do)
        return newest, Places.of(newest.columns, np.array(found.to_pylist(), np.int64))


def _attempts() -> Iterator[bool]:
    """Attempts for PATIENCE seconds: whether there will be another one."""
    stop = time.monotonic() + PATIENCE
    while time.monotonic() < stop:
        yield True
        time.sleep(PAUSE)
    yield False


def _signature(path: Path) -> tuple[int, ...] | None:
    """What tells a file from the one that was there before; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _mapped(path: Path) -> memoryview:
    """A file's content as a map; the file itself is closed again."""
    check_file(path)
    with pa.memory_map(os.fsencode(path)) as file:
        return memoryview(file.read_buffer()).cast("B")


class _OpenFile:
    """A file's descriptor, closed when it is no longer in use.

    The system is told that reads are random, and reads nothing ahead.
    """

    def __init__(self, path: Path) -> None:
        self.number = open_descriptor(path)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_RANDOM)

    def size(self) -> int:
        return os.fstat(self.number).st_size

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
