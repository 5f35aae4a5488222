"""The cache of fetched values: shared by processes, never trusted, never in the way."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from nws_dataset.errors import ZooError
from nws_dataset.reading.cache import ABANDONED_SECONDS, Cache

VALUES = [bytes([i]) * 1000 for i in range(40)]
DIGESTS = [hashlib.sha256(value).hexdigest() for value in VALUES]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "values", 1 << 20)


def kept(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.glob("*/*")}


def test_a_value_comes_back(cache: Cache) -> None:
    assert cache.get(DIGESTS[0]) is None
    cache.put(DIGESTS[0], memoryview(VALUES[0]))
    assert cache.get(DIGESTS[0]) == cache.get(DIGESTS[0], 1000) == VALUES[0]
    assert kept(cache) == {DIGESTS[0]}


def test_another_size_is_not_even_read(cache: Cache) -> None:
    cache.put(DIGESTS[0], VALUES[0])
    path = cache._path(DIGESTS[0])
    os.truncate(path, 1 << 40)  # a sparse terabyte
    assert cache.get(DIGESTS[0], 1000) is None and not path.exists()


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "0" * 65, "A" * 64, "../" * 21 + "x", "0" * 64 + "\n", None, 7], ids=repr
)
def test_what_is_no_digest(cache: Cache, digest: str) -> None:
    for call in (lambda: cache.get(digest), lambda: cache.put(digest, b"x")):
        with pytest.raises(ZooError, match="a SHA-256 in hexadecimal"):
            call()


def test_another_process_s_temporary_stays(tmp_path: Path) -> None:
    """It is a value on its way; what is a day old was left by a kill."""
    cache = Cache(tmp_path / "values", 5000)
    cache.put(DIGESTS[0], VALUES[0])
    folder = cache._path(DIGESTS[0]).parent
    young, old, strange = (
        folder / name for name in (f".{DIGESTS[0]}.7-a.tmp", f"{DIGESTS[0]}.7.8.tmp", "notes.txt")
    )
    for path in (young, old, strange):
        path.write_bytes(b"x" * 4000)
    os.utime(young, (time.time() - 60, time.time() - 60))  # older than all values, as eviction goes
    os.utime(old, (time.time() - ABANDONED_SECONDS - 60,) * 2)
    for digest, value in zip(DIGESTS, VALUES, strict=True):
        cache.put(digest, value)
    assert young.exists() and strange.exists() and not old.exists()
    assert cache.get(DIGESTS[-1]) == VALUES[-1] and len(kept(cache)) <= 5 + 2


def test_readers_who_drop_beside_one_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As 27 readers with a small limit: nobody fails, and nobody gets a wrong byte."""
    wrong: list[object] = []

    def read(start: int) -> None:
        mine = Cache(tmp_path / "values", 5000)  # as another process has it
        try:
            for i in range(60):
                number = (start + 7 * i) % len(VALUES)
                mine.put(DIGESTS[number], VALUES[number])
                if mine.get(DIGESTS[number]) not in (None, VALUES[number]):
                    wrong.append(number)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=[start]) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and not caplog.records
    assert not [path for path in (tmp_path / "values").glob("*/*") if path.suffix == ".tmp"]


@pytest.mark.parametrize("call", ["mkdir", "write_bytes"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        PermissionError(13, "Permission denied"),
        OSError(30, "Read-only"),
    ],
)
def test_a_cache_that_cannot_be_written(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str, error: OSError
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Path, call, fail)
    with caplog.at_level(logging.WARNING, "nws_dataset"):
        for digest, value in zip(DIGESTS, VALUES, strict=True):
            cache.put(digest, value)
            assert cache.get(digest) is None
    (record,) = caplog.records  # said once
    assert str(cache.folder) in record.getMessage() and "is not kept" in record.getMessage()


@pytest.mark.parametrize(
    "name", ["file/values", "file", "x" * 5000, "a\0b", "\udcff/v"], ids=lambda name: repr(name)[:20]
)
def test_a_folder_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / name, 1 << 20)
    cache.put(DIGESTS[0], VALUES[0])
    assert cache.get(DIGESTS[0]) in (None, VALUES[0])


def test_a_cache_that_may_only_be_read(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put(DIGESTS[0], VALUES[0])
    cache.put(DIGESTS[1], VALUES[1])
    cache._path(DIGESTS[1]).write_bytes(b"damaged")

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert cache.get(DIGESTS[0]) == VALUES[0]
    assert cache.get(DIGESTS[1]) is None
    small = Cache(cache.folder, 1500)
    small.put(DIGESTS[2], VALUES[2])  # nothing can be dropped
    assert small.get(DIGESTS[0]) == VALUES[0]


@pytest.mark.parametrize("kind", ["folder", "loop", "fifo"])
def test_what_is_no_file(cache: Cache, kind: str) -> None:
    path = cache._path(DIGESTS[0])
    path.parent.mkdir(parents=True)
    {"folder": path.mkdir, "loop": lambda: path.symlink_to(path), "fifo": lambda: os.mkfifo(path)}[kind]()
    assert cache.get(DIGESTS[0]) is None
    cache.put(DIGESTS[0], VALUES[0])
    assert cache.get(DIGESTS[0]) == (None if kind == "folder" else VALUES[0])


def test_a_folder_that_cannot_be_listed(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of open files, or removed by another process just then: what was fetched is given all the same."""

    def fail(folder: Path, pattern: str) -> None:
        raise OSError(24, "Too many open files", str(folder))

    monkeypatch.setattr(Path, "glob", fail)
    value = b"a" * 100
    digest = hashlib.sha256(value).hexdigest()
    cache.put(digest, value)
    assert cache.get(digest) == value
    assert [record.getMessage() for record in caplog.records if "Too many open files" in record.getMessage()]
