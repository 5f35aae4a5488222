"""A zoo's files in a repository on the Hub: the index is fetched whole, weights only as they are needed.

Neighbouring values are one request. Values are checked against their SHA-256, and cached on disk.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import constants
from huggingface_hub.utils import tqdm

from nws_dataset.errors import ZooError
from nws_dataset.files import parse_json, path_type, read_json, resolve_inside
from nws_dataset.format.manifest import MANIFEST_NAME, Manifest
from nws_dataset.format.shards import check_value
from nws_dataset.http import cancelled
from nws_dataset.reading.byte_ranges import ByteRange, ByteRanges, Deliver
from nws_dataset.reading.cache import CACHE_BYTES, Cache
from nws_dataset.reading.index import Columns, open_index
from nws_dataset.reading.zoo_files import ReadPart
from nws_dataset.remote import MEMORY_BYTES, CommitCache, Remote, check_revision

PARALLEL = 8  # requests at a time
MAX_GAP = 0.05  # values share a request if the gap is at most this share of the next value
RANGE_BYTES = 32 << 20  # at most in one request, unless a single value is larger
SHOWN_BYTES = 32 << 20  # larger fetches show a progress bar

Wanted = tuple[int, ByteRange]  # (index among those requested, byte range)


class Repository:
    """A repository on the Hub, at one commit.

    Args:
        repo_id: "org/name".
        revision: a branch, tag or commit; None is the main branch.
        token: of a user who may read it; None is the stored login.
        cache_dir: files are kept in its folder `nws`; None is huggingface_hub's home (HF_HOME).
        cache_bytes: of index and weights kept on disk; beyond it the least recently used go. 0 keeps none.

    Raises:
        ZooError: if there is no such zoo, or the Hub cannot be reached.
    """

    path: Path | None = None  # no folder
    read_part: ReadPart | None = None  # every value is checked

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        revision = revision or constants.DEFAULT_REVISION
        self._remote = Remote(repo_id, "dataset", token=token)
        check_revision(repo_id, revision)
        self.repo_id, self.token = repo_id, token
        self.cache_dir, self.cache_bytes = cache_dir, cache_bytes
        home = Path(cache_dir or constants.HF_HOME) / "nws"
        self.cache = Cache(home / "values", cache_bytes)
        self._commits = CommitCache(home / "repositories", repo_id)  # nws.json of each commit
        # everything is read from this commit
        self.revision, self.manifest = self._find(revision)

    @property
    def name(self) -> str:
        """Its name in error messages."""
        return f"{self.repo_id}@{self.revision}"

    @property
    def origin(self) -> str:
        """What a loaded dataset stores to find its zoo again: the page on the Hub."""
        return f"{constants.ENDPOINT}/datasets/{self.repo_id}/tree/{self.revision}"

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `Zoo` that open the same files again."""
        options = {name: getattr(self, name) for name in ("revision", "token", "cache_dir", "cache_bytes")}
        return {"path": self.repo_id, **options}

    def where(self, byte_range: ByteRange) -> str:
        """How errors name a byte range."""
        return f"{self.name}/{byte_range.file} at byte {byte_range.offset}"

    @functools.cached_property
    def columns(self) -> Columns:
        """The snapshots of all index files, checked against nws.json.

        Raises:
            ZooError: if one is missing or not the file that nws.json lists.
        """
        wanted = [
            ByteRange(file, 0, self.manifest.files[file].size, self.manifest.files[file].sha256)
            for file in self.manifest.index_files()
        ]
        return open_index(
            [(f"{self.name}/{byte_range.file}", self.value(byte_range)) for byte_range in wanted]
        )

    def value(self, byte_range: ByteRange) -> memoryview:
        """The value of a byte range, cached or fetched, and checked.

        Raises:
            ZooError: as `read`.
        """
        values: list[np.ndarray] = []
        self.read([byte_range], lambda _, value: values.append(value[0]))
        return values[0].data

    def prefetch(self, byte_ranges: ByteRanges) -> None:
        """Fetch values that are not in the cache yet.

        Raises:
            ZooError: as `read`.
        """
        missing = np.flatnonzero([not self.cache.has(digest) for digest in byte_ranges.digests])
        self.read(byte_ranges[missing], lambda *_: None)

    def read(self, byte_ranges: Iterable[ByteRange], deliver: Deliver) -> None:
        """Deliver the values of byte ranges: cached ones, then the others, fetched in parallel requests.

        Each is checked against its SHA-256. They arrive in any order, from several threads.

        Raises:
            ZooError: if a range is outside its file, a value is not what the index says, or the Hub cannot be
                reached.
        """
        wanted: list[Wanted] = []
        for i, byte_range in enumerate(byte_ranges):
            self._check(byte_range)
            value = self.cache.get(byte_range.sha256, byte_range.length)
            if value is None:
                wanted.append((i, byte_range))
            else:
                deliver(*_as_array(i, value))
        total, ended = sum(byte_range.length for _, byte_range in wanted), threading.Event()
        with (
            tqdm(
                total=total,
                unit="B",
                unit_scale=True,
                desc="Fetching weights",
                disable=total < SHOWN_BYTES,
                leave=False,
            ) as progress,
            ThreadPoolExecutor(PARALLEL, initializer=cancelled.set, initargs=(ended,)) as pool,
        ):

            def get(joined: list[Wanted]) -> None:
                self._get(joined, deliver)
                progress.update(sum(byte_range.length for _, byte_range in joined))

            try:
                for fetched in as_completed([pool.submit(get, joined) for joined in _neighbours(wanted)]):
                    fetched.result()
            except BaseException:
                ended.set()  # a pause requested by a busy server may take minutes
                pool.shutdown(cancel_futures=True)
                raise

    def _check(self, byte_range: ByteRange) -> None:
        """Raise a ZooError for a byte range that is not in a file of the zoo."""
        resolve_inside(self.name, byte_range.file)
        entry = self.manifest.files.get(byte_range.file)
        if entry is None:
            raise ZooError(
                self.name,
                expected=f"a file that {MANIFEST_NAME} lists",
                found=byte_range.file,
                do="build the index again",
            )
        if (
            byte_range.offset < 0
            or byte_range.length < 1
            or byte_range.offset + byte_range.length > entry.size
        ):
            found = (
                f"bytes {byte_range.offset} to {byte_range.offset + byte_range.length} of {byte_range.file}"
            )
            raise ZooError(
                self.name,
                expected=f"a range in its {entry.size} bytes",
                found=found,
                do="build the index again",
            )
        if byte_range.length > MEMORY_BYTES:
            do = "do not trust this repository, or fetch the file whole and read it from a folder"
            raise ZooError(
                self.where(byte_range),
                expected=f"at most {MEMORY_BYTES} bytes",
                found=f"{byte_range.length} bytes",
                do=do,
            )

    def _get(self, joined: list[Wanted], deliver: Deliver) -> None:
        """Fetch neighbouring values in one request; check, cache and deliver them."""
        _, first = joined[0]
        stop = max(byte_range.offset + byte_range.length for _, byte_range in joined)

        def checked(content: bytes) -> list[memoryview]:
            values = [
                memoryview(content)[byte_range.offset - first.offset :][: byte_range.length]
                for _, byte_range in joined
            ]
            for value, (_, byte_range) in zip(values, joined, strict=True):
                check_value(value, byte_range.sha256, self.where(byte_range))
            return values

        values, _ = self._remote.fetch(
            first.file, self.revision, self.where(first), checked, part=range(first.offset, stop)
        )
        for value, (i, byte_range) in zip(values, joined, strict=True):
            self.cache.put(byte_range.sha256, value)
            deliver(*_as_array(i, value))

    def _find(self, revision: str) -> tuple[str, Manifest]:
        """The commit of a revision and its nws.json, both cached; offline, the last one that was read."""
        commit = self._commits.commit(revision) if constants.HF_HUB_OFFLINE else None
        if commit is not None:
            path = self._commits.path(commit, MANIFEST_NAME)
            if path_type(path) == "a file":
                return commit, Manifest.from_json(read_json(path, "the manifest of a zoo"), path)
        where = f"{self.repo_id}@{revision}/{MANIFEST_NAME}"
        (content, manifest), commit = self._remote.fetch(
            MANIFEST_NAME, revision, where, lambda content: (content, _manifest(content, where))
        )
        self._commits.keep(revision, commit, {MANIFEST_NAME: content})
        return commit, manifest


def _manifest(content: bytes, where: str) -> Manifest:
    return Manifest.from_json(parse_json(content, where, "the manifest of a zoo"), where)


def _as_array(i: int, value: bytes | memoryview) -> tuple[slice, np.ndarray]:
    """A value in the form of `Deliver`."""
    return slice(i, i + 1), np.frombuffer(value, np.uint8)[None]


def _neighbours(wanted: list[Wanted]) -> Iterator[list[Wanted]]:
    """Groups of values to fetch together: in one file, with small gaps."""
    ordered = sorted(wanted, key=lambda item: item[1])
    group: list[Wanted] = []
    for item in ordered:
        byte_range = item[1]
        if group:
            first, last = group[0][1], group[-1][1]
            gap = byte_range.offset - (last.offset + last.length)
            small = byte_range.offset + byte_range.length - first.offset <= RANGE_BYTES
            if byte_range.file != first.file or gap > MAX_GAP * byte_range.length or not small:
                yield group
                group = []
        group.append(item)
    if group:
        yield group
