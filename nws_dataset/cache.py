"""Values that were fetched from the Hub, kept on disk under their own digests, the longest unused ones dropped when there are too many."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from pathlib import Path

from nws_dataset.errors import ZooError

DIGEST = re.compile(r"[0-9a-f]{64}")
KEPT = 0.9  # part of the limit that stays when values are dropped


class Cache:
    """A folder of values, each a file named after its SHA-256. Several processes may share it.

    Args:
        folder: made when the first value comes.
        limit: bytes; beyond it the values that were not used for longest go. 0 keeps nothing.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._size: int | None = None  # bytes of all files; known after the first look
        self._lock = threading.Lock()

    def get(self, digest: str) -> bytes | None:
        """The value of a digest; None if it is not here, or not whole: then it goes."""
        path = self._path(digest)
        try:
            value = path.read_bytes()
            os.utime(path)  # used now
        except OSError:
            return None  # not here, or dropped by another process a moment ago
        if hashlib.sha256(value).hexdigest() == digest:
            return value
        path.unlink(missing_ok=True)
        return None

    def put(self, digest: str, value: bytes | memoryview) -> None:
        """Keep a value. No fsync: what a power cut damages does not fit its digest, and is fetched again.

        Raises:
            ZooError: if the disk cannot be written.
        """
        if len(value) > self.limit:
            return
        path = self._path(digest)
        temporary = path.with_name(f"{digest}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(value)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            do = "free space, or give cache_dir another folder or cache_bytes another limit"
            raise ZooError(path, expected="a cache that can be written", found=str(error), do=do) from error
        with self._lock:
            self._size = self._measure() if self._size is None else self._size + len(value)
            if self._size > self.limit:
                self._drop()

    def _path(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):  # it comes from an index, and must not lead out of the folder
            raise ZooError("index", expected="a SHA-256 in hexadecimal", found=repr(digest), do="do not trust this index; build it again")
        return self.folder / digest[:2] / digest

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every value."""
        found = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):  # dropped by another process
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found

    def _measure(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _drop(self) -> None:
        """Remove values, the longest unused first, until they are well below the limit."""
        files = sorted(self._files())
        self._size = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._size <= KEPT * self.limit:
                break
            path.unlink(missing_ok=True)
            self._size -= size
