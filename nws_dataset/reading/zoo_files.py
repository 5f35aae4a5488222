"""`ZooFiles`: the interface to a zoo's files, in a folder or in a repository on the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nws_dataset.format.manifest import Manifest
from nws_dataset.reading.byte_ranges import ByteRange, ByteRanges, Deliver
from nws_dataset.reading.index import Columns

# Fills a contiguous array with a value's bytes from an offset in it.
ReadPart = Callable[[ByteRange, int, np.ndarray], None]


class ZooFiles(Protocol):
    """A zoo's files in the state that was opened: a `Folder` or a `Repository`.

    What is missing, damaged or out of reach raises a ZooError.
    """

    manifest: Manifest

    @property
    def name(self) -> str:
        """Its name in error messages."""
        ...

    @property
    def origin(self) -> str:
        """What a loaded dataset stores to find its zoo again."""
        ...

    @property
    def path(self) -> Path | None:
        """The folder; None on the Hub."""
        ...

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `Zoo` that open the same files again."""
        ...

    @property
    def columns(self) -> Columns:
        """The snapshots of all index files, checked against nws.json."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes of fetched values that are kept on disk; 0 for a folder, which fetches nothing."""
        ...

    @property
    def read_part(self) -> ReadPart | None:
        """Reads only part of a value; None where values are checked, and so read whole."""
        ...

    def where(self, byte_range: ByteRange) -> str:
        """How errors name a byte range."""
        ...

    def value(self, byte_range: ByteRange) -> memoryview:
        """The value of a byte range."""
        ...

    def read(self, byte_ranges: ByteRanges, deliver: Deliver) -> None:
        """Deliver the values of byte ranges."""
        ...

    def prefetch(self, byte_ranges: ByteRanges) -> None:
        """Fetch values that are not in the cache yet."""
        ...
