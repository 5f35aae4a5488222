"""A zoo's files in a local folder: whole values are read through memory maps, slices by single reads.

A zoo may grow while it is read. A folder keeps serving the state that it was opened in: values that have
moved are found again by their SHA-256.
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
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nws_dataset.errors import ZooError, reason
from nws_dataset.files import CHUNK_BYTES, check_file, open_descriptor, open_file
from nws_dataset.format.manifest import MANIFEST_NAME, PENDING, Manifest
from nws_dataset.format.shards import check_value
from nws_dataset.reading.byte_ranges import ByteRange, ByteRanges, Deliver
from nws_dataset.reading.index import Columns, open_index
from nws_dataset.reading.zoo_files import ReadPart

OPEN_FILES = 128  # kept open for slices: below common limits for a process, 1024 and 256
CHANGE_SECONDS = 5.0  # how long files may differ from nws.json while a new state moves in
PAUSE_SECONDS = 0.02  # between two looks
Opened = TypeVar("Opened")


class _FolderChanged(Exception):
    """A file of the opened state is gone: the folder has a new state."""


class Folder:
    """A local folder.

    Weights are not verified unless `check` is set: a flipped bit in a file is a flipped bit in a weight.

    Args:
        path: of the folder.
        check: verify the SHA-256 of every value.

    Raises:
        ZooError: if the folder is not a zoo.
    """

    cache_bytes = 0  # local files need no cache

    def __init__(self, path: str | Path, *, check: bool = False) -> None:
        try:
            self.path = Path(path).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # looping links, names that are not text
            raise ZooError(
                path,
                expected="the folder of a zoo",
                found=reason(error),
                do="name a folder that nws build wrote",
            ) from error
        self.check = check
        self._maps: dict[str, memoryview] = {}  # a map keeps no file open
        self._files: dict[str, _OpenFile] = {}
        self._lock = threading.Lock()  # for these two
        self._next: Folder | None = None  # the same folder in a later state
        self._open_state()

    @property
    def name(self) -> str:
        """Its name in error messages."""
        return str(self.path)

    @property
    def origin(self) -> str:
        """What a loaded dataset stores to find its zoo again."""
        return str(self.path)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `Zoo` that open the same files again."""
        return {"path": self.path, "check": self.check}

    def where(self, byte_range: ByteRange) -> str:
        """How errors name a byte range."""
        return f"{self.path / byte_range.file} at byte {byte_range.offset}"

    @functools.cached_property
    def columns(self) -> Columns:
        """The snapshots of all index files, checked against nws.json.

        From then on the folder keeps serving this state.

        Raises:
            ZooError: if one is missing or not the file that nws.json lists.
        """
        for another in _attempts():
            try:
                return open_index(
                    [(self.path / file, self._index_file(file)) for file in self.manifest.index_files()]
                )
            except ZooError:
                if not another or not self._is_changing():
                    raise
                self._open_state()
        raise AssertionError

    def value(self, byte_range: ByteRange) -> memoryview:
        """The value in a byte range, a read-only view of the file.

        Raises:
            ZooError: if the range is outside its file, or the file is missing or damaged.
        """
        file, offset, length, sha256 = byte_range
        try:
            content = self._maps.get(file)
            if content is None:
                content = self._content(file)
        except _FolderChanged:
            newest, byte_ranges = self._find_again(ByteRanges.of_one(byte_range))
            return newest.value(next(iter(byte_ranges)))
        if offset < 0 or length < 0 or offset + length > len(content):
            byte_range.check(self.manifest, self.path)
        value = content[offset : offset + length]
        if self.check:
            check_value(value, sha256, self.where(byte_range))
        return value

    def prefetch(self, byte_ranges: ByteRanges) -> None:
        """Does nothing: the files are local."""

    def read(self, byte_ranges: ByteRanges, deliver: Deliver) -> None:
        """Deliver the values of byte ranges as read-only views of the files, evenly spaced ones as one array.

        Raises:
            ZooError: as `value`.
        """
        byte_ranges.check(self.manifest, self.path)
        try:
            self._read(byte_ranges, deliver)
        except _FolderChanged:
            newest, byte_ranges = self._find_again(byte_ranges)
            newest.read(byte_ranges, deliver)

    def _read(self, byte_ranges: ByteRanges, deliver: Deliver) -> None:
        ordered, indices = byte_ranges.sorted()
        known = list(ordered) if self.check else []
        for run in ordered.runs():
            file, last = ordered.files[ordered.file_indices[run.start]], run.stop - 1
            start, stop, length = (
                int(n)
                for n in (ordered.offsets[run.start], ordered.offsets[last], ordered.lengths[run.start])
            )
            content = self._maps.get(file)
            if content is None:
                content = self._content(file)
            step = (stop - start) // max(1, last - run.start)
            values = np.ndarray((run.stop - run.start, length), np.uint8, content, start, (step, 1))
            for byte_range, value in zip(known[run], values, strict=False):
                check_value(value.data, byte_range.sha256, self.where(byte_range))
            deliver(run if indices is None else indices[run], values)

    @property
    def read_part(self) -> ReadPart | None:
        """Reads part of a value into a contiguous array, and nothing else; None if values are checked.

        Raises a ZooError as `value`, or if the value ends too early.
        """
        return None if self.check else self._read_part

    def _read_part(self, byte_range: ByteRange, start: int, target: np.ndarray) -> None:
        byte_range.check(self.manifest, self.path)
        found = f"bytes {start} to {start + target.nbytes} of a value of {byte_range.length}"
        try:
            fits = 0 <= start <= byte_range.length - target.nbytes
            if (
                fits
                and os.preadv(self._file(byte_range.file).number, [target.data], byte_range.offset + start)
                == target.nbytes
            ):
                return
        except _FolderChanged:
            newest, byte_ranges = self._find_again(ByteRanges.of_one(byte_range))
            return newest._read_part(next(iter(byte_ranges)), start, target)
        except OSError as error:
            found = reason(error)
        raise ZooError(
            self.where(byte_range),
            expected="bytes of one value",
            found=found,
            do="fetch the file or build the index again",
        )

    # Files

    def _content(self, file: str) -> memoryview:
        """The content of a file of the opened state."""
        with self._lock:  # else two threads map it twice
            if file not in self._maps:
                self._maps[file] = self._opened(file, _mapped, len)
            return self._maps[file]

    def _file(self, file: str) -> _OpenFile:
        """A file of the opened state, for reading.

        Beyond OPEN_FILES the one opened first is closed, once no thread reads it.
        """
        with self._lock:
            if file not in self._files:
                opened = self._opened(file, _OpenFile, _OpenFile.size)
                while len(self._files) >= OPEN_FILES:
                    del self._files[next(iter(self._files))]
                self._files[file] = opened
            return self._files[file]

    def _opened(self, file: str, open_one: Callable[[Path], Opened], size: Callable[[Opened], int]) -> Opened:
        """Open a file of the opened state by its name.

        Raises:
            ZooError: if it is missing, cannot be read, or does not have the listed size.
            _FolderChanged: if the folder has a new state with another file there.
        """
        for another in _attempts():
            opened, failure = None, None
            try:
                path = self.manifest.locate(self.path, file)
                opened = self._open_freeing_descriptors(open_one, path)
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
            if (failure is None or self._is_changing()) and self._newest().manifest.files.get(
                file
            ) != self.manifest.files.get(file):
                raise _FolderChanged
            if failure is None:
                assert opened is not None
                return opened
            if not another or not self._is_changing():
                raise failure
        raise AssertionError

    def _open_freeing_descriptors(self, open_one: Callable[[Path], Opened], path: Path) -> Opened:
        """Open a file; if the process may open no more, close the kept ones and try again."""
        try:
            return open_one(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._files:
                raise
        self._files.clear()
        return open_one(path)

    def _index_file(self, file: str) -> mmap.mmap:
        """An index file as a memory map of its own; no page is in memory until it is read."""
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
        """Read nws.json of the folder's present state."""
        for another in _attempts():
            self._state = self._read_signature()
            try:
                self.manifest = Manifest.read(self.path)
            except ZooError:
                if not another or self._read_signature() == self._state:
                    raise
            else:
                if self._read_signature() == self._state or not another:
                    break
        self._maps, self._files = {}, {}

    def _read_signature(self) -> tuple[object, ...]:
        """A signature of the folder's present state."""
        return tuple(_signature(self.path / name) for name in (f"{PENDING}/{MANIFEST_NAME}", MANIFEST_NAME))

    def _is_changing(self) -> bool:
        """Whether the folder has left the opened state, or is about to."""
        state = self._read_signature()
        return state != self._state or state[0] is not None

    def _newest(self) -> Folder:
        """The folder in its present state."""
        state = self._read_signature()
        if state == self._state:
            return self
        if self._next is None:
            later = Folder(self.path, check=self.check)
            if later.manifest == self.manifest:  # nws.json has only been moved
                self._state = later._state
                return self
            self._next = later
        return self._next._newest()

    def _find_again(self, byte_ranges: ByteRanges) -> tuple[Folder, ByteRanges]:
        """Find the values of byte ranges whose file is gone: where they are in the folder's present state.

        Raises:
            ZooError: if a value is gone.
        """
        newest = self._newest()
        wanted, there = (
            byte_ranges.columns["sha256"].arrow(byte_ranges.indices),
            newest.columns["sha256"].values,
        )
        found = pc.index_in(wanted, value_set=there)
        if found.null_count:
            do = "open it again, and take snapshots of its index"
            raise ZooError(self.path, expected="the zoo that was opened", found="another in its place", do=do)
        return newest, ByteRanges.of(newest.columns, np.array(found.to_pylist(), np.int64))


def _attempts() -> Iterator[bool]:
    """Attempts during CHANGE_SECONDS; each yields whether another may follow."""
    stop = time.monotonic() + CHANGE_SECONDS
    while time.monotonic() < stop:
        yield True
        time.sleep(PAUSE_SECONDS)
    yield False


def _signature(path: Path) -> tuple[int, ...] | None:
    """A signature that changes when the file is replaced; None if there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _mapped(path: Path) -> memoryview:
    """A file's content as a memory map; the file itself is closed again."""
    check_file(path)
    with pa.memory_map(os.fsencode(path)) as file:
        return memoryview(file.read_buffer()).cast("B")


class _OpenFile:
    """A file descriptor, closed when it is no longer in use, with the system's read-ahead switched off."""

    def __init__(self, path: Path) -> None:
        self.number = open_descriptor(path)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_RANDOM)

    def size(self) -> int:
        return os.fstat(self.number).st_size

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
