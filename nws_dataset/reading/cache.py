"""Values that were fetched from the Hub, kept on disk under their own digests, the longest unused ones
dropped when there are too many.

It only saves time: a cache that cannot be written gives what it has, and one that cannot be read gives
nothing; neither is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import threading
import time
from pathlib import Path

from nws_dataset.errors import ZooError, one_line, reason
from nws_dataset.files import temporary_name

DIGEST = re.compile(r"[0-9a-f]{64}")
KEPT_SHARE = 0.9  # part of the limit that stays when values are dropped
ABANDONED_SECONDS = 86400.0  # a temporary file that is older belongs to nobody who still writes

logger = logging.getLogger(__name__)


class Cache:
    """A folder of values, each a file named after its SHA-256. Several processes may share it.

    Args:
        folder: made when the first value comes.
        limit: bytes; beyond it the values that were not used for longest go. 0 keeps nothing.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._size: int | None = None  # bytes of all files; known after the first look
        self._warned = False  # that it cannot be written
        self._lock = threading.Lock()

    def has(self, digest: str) -> bool:
        """Whether a value is here, not looked into."""
        return os.path.exists(self._path(digest))

    def get(self, digest: str, size: int | None = None) -> bytes | None:
        """The value of a digest, of so many bytes; None if it is not here, or not whole: then it goes."""
        path = self._path(digest)
        try:
            status = path.stat()
            whole = stat.S_ISREG(status.st_mode) and size in (None, status.st_size)
            value = path.read_bytes() if whole else b""
        except (
            OSError,
            ValueError,
        ):  # not here, dropped by another process a moment ago, not to be read, or a folder that is no name
            return None
        right = whole and hashlib.sha256(value).hexdigest() == digest
        with contextlib.suppress(OSError):  # it may not be ours to change
            if right:
                os.utime(path)  # used now
            else:
                path.unlink()
        return value if right else None

    def put(self, digest: str, value: bytes | memoryview) -> None:
        """Keep a value, if that is possible.

        No fsync: what a power cut damages does not fit its digest, and is fetched again.
        """
        if len(value) > self.limit:
            return
        path = self._path(digest)
        temporary = temporary_name(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(value)
                os.replace(temporary, path)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            with self._lock:
                self._size = self._measure() if self._size is None else self._size + len(value)
                if self._size > self.limit:
                    self._drop()
        except (OSError, ValueError) as error:  # a folder that cannot be listed is one of them
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%s cannot be written, so what is fetched is not kept: %s",
                    one_line(self.folder),
                    reason(error),
                )

    def _path(self, digest: str) -> Path:
        # it comes from an index, and must not lead out of the folder
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise ZooError(
                "index",
                expected="a SHA-256 in hexadecimal",
                found=repr(digest),
                do="do not trust this index; build it again",
            )
        return self.folder / digest[:2] / digest

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every value.

        What else is there belongs to a process that writes it, or to nobody.
        """
        found = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):  # dropped by another process
                status = path.stat()
                if DIGEST.fullmatch(path.name):
                    found.append((status.st_mtime, status.st_size, path))
                elif path.suffix == ".tmp" and time.time() - status.st_mtime > ABANDONED_SECONDS:
                    path.unlink()
        return found

    def _measure(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _drop(self) -> None:
        """Remove values, the longest unused first, until they are well below the limit."""
        files = sorted(self._files())
        self._size = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._size <= KEPT_SHARE * self.limit:
                break
            with contextlib.suppress(OSError):  # gone already, or not ours to remove
                path.unlink(missing_ok=True)
                self._size -= size
