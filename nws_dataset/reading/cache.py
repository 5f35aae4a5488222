"""A disk cache of values from the Hub, named by digest; beyond a limit the least recently used are dropped.

It only saves time: failing to write or read it is never an error.
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
CACHE_BYTES = 20 * 10**9  # kept by default
KEPT_SHARE = 0.9  # dropping values stops at this share of the limit
ABANDONED_SECONDS = 86400.0  # an older temporary file has no living writer

logger = logging.getLogger(__name__)


class Cache:
    """A folder of values, each a file named after its SHA-256. Several processes may share it.

    Args:
        folder: made with the first value.
        limit: bytes; beyond it, the least recently used values are dropped. 0 keeps nothing.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._size: int | None = None  # bytes of all files; None until they are counted
        self._warned = False  # whether a failed write was reported
        self._lock = threading.Lock()

    def has(self, digest: str) -> bool:
        """Whether a value is here; its content is not checked."""
        return os.path.exists(self._path(digest))

    def get(self, digest: str, size: int | None = None) -> bytes | None:
        """The value of a digest, `size` bytes long; None if missing or damaged (then removed)."""
        path = self._path(digest)
        try:
            status = path.stat()
            whole = stat.S_ISREG(status.st_mode) and size in (None, status.st_size)
            value = path.read_bytes() if whole else b""
        except (
            OSError,
            ValueError,
        ):  # missing, just dropped by another process, unreadable, or an illegal folder name
            return None
        right = whole and hashlib.sha256(value).hexdigest() == digest
        with contextlib.suppress(OSError):  # the file may belong to another user
            if right:
                os.utime(path)  # mark as just used
            else:
                path.unlink()
        return value if right else None

    def put(self, digest: str, value: bytes | memoryview) -> None:
        """Keep a value, if that is possible.

        No fsync: what a power cut damages fails its digest, and is fetched again.
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
        except (OSError, ValueError) as error:  # including a folder that cannot be listed
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%s cannot be written, so what is fetched is not kept: %s",
                    one_line(self.folder),
                    reason(error),
                )

    def _path(self, digest: str) -> Path:
        # it comes from an index, and must not lead outside the folder
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

        Other files are being written, or abandoned.
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
        """Remove the least recently used values until the rest is well below the limit."""
        files = sorted(self._files())
        self._size = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._size <= KEPT_SHARE * self.limit:
                break
            with contextlib.suppress(OSError):  # already gone, or another user's
                path.unlink(missing_ok=True)
                self._size -= size
