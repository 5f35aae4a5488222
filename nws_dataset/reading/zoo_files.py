"""`ZooFiles`: what reading asks of a zoo's files, in a folder or in a repository on the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nws_dataset.format.manifest import Manifest
from nws_dataset.reading.byte_ranges import ByteRange, ByteRanges, Deliver
from nws_dataset.reading.index import Columns

# Fills a contiguous array with bytes of a value, from a byte of it on.
ReadPart = Callable[[ByteRange, int, np.ndarray], None]


class ZooFiles(Protocol):
    """A zoo's files in the state that they were opened in: a `Folder` or a `Repository`.

    What is not there, damaged or cannot be reached is a ZooError.
    """

    manifest: Manifest

    @property
    def name(self) -> str:
        """What errors and people call it."""
        ...

    @property
    def origin(self) -> str:
        """What a dataset remembers it by."""
        ...

    @property
    def path(self) -> Path | None:
        """The folder; None on the Hub."""
        ...

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `Zoo`, to open the same files again."""
        ...

    @property
    def columns(self) -> Columns:
        """The snapshots of all index files, checked against nws.json."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Of values that are kept at hand once they were fetched; 0 for a folder, where all are at hand."""
        ...

    @property
    def read_part(self) -> ReadPart | None:
        """Reads a part of a value and nothing else; None where every value is checked, thus read whole."""
        ...

    def where(self, byte_range: ByteRange) -> str:
        """How errors name a byte range."""
        ...

    def value(self, byte_range: ByteRange) -> memoryview:
        """The value of a byte range."""
        ...

    def read(self, byte_ranges: ByteRanges, deliver: Deliver) -> None:
        """Hand over the values of byte ranges."""
        ...

    def prefetch(self, byte_ranges: ByteRanges) -> None:
        """Fetch values that are not at hand yet into the cache."""
        ...
