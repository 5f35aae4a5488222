"""Files: whole or not at all, and never outside their folder."""

import errno
import hashlib
import os
import socket
from pathlib import Path

import pytest

from nws_dataset.errors import ZooError
from nws_dataset.files import CHUNK_BYTES, atomic_write, open_file, read_file, resolve_inside, sha256_file


def test_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file.txt"
    for text in ("old", "new"):
        with atomic_write(path) as temporary:
            temporary.write_text(text)
            assert temporary.parent == path.parent
            assert temporary.name.startswith(".") and str(os.getpid()) in temporary.name
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


def test_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with (
        pytest.raises(ZooError, match=r"file\.txt.*No space left.*free space"),
        atomic_write(path) as temporary,
    ):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with (
        pytest.raises(ZooError, match=r"taken/file\.txt.*can be written"),
        atomic_write(tmp_path / "taken" / "file.txt") as temporary,
    ):
        temporary.write_text("")


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="can be written"), atomic_write(tmp_path / "file.txt"):
        pass


@pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_sha256_file(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"x" * size).hexdigest()


def test_sha256_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="nowhere"):
        sha256_file(tmp_path / "nowhere")


def test_inside(tmp_path: Path) -> None:
    assert (
        resolve_inside(tmp_path, "snapshots/main/a.parquet")
        == tmp_path.resolve() / "snapshots/main/a.parquet"
    )


@pytest.mark.parametrize(
    "relative", ["/etc/passwd", "../a", "a/../../b", "a/..", "", ".", "a\\..\\b", "a\0b"]
)
def test_paths_that_lead_elsewhere_are_refused(tmp_path: Path, relative: str) -> None:
    with pytest.raises(ZooError, match="below this folder"):
        resolve_inside(tmp_path, relative)


def test_links_may_stay_inside_but_not_leave(tmp_path: Path) -> None:
    root = tmp_path / "zoo"
    root.mkdir()
    (root / "real").write_text("")
    (tmp_path / "secret").write_text("")
    (root / "near").symlink_to(root / "real")
    (root / "far").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    assert resolve_inside(root, "near") == root.resolve() / "real"
    for relative in ("far", "up/secret"):
        with pytest.raises(ZooError, match="inside this folder"):
            resolve_inside(root, relative)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither waited for nor read without end."""
    monkeypatch.chdir(tmp_path)  # the name of a socket has 107 letters at most
    path = Path("it")
    with socket.socket(socket.AF_UNIX) as listener:
        make = {
            "pipe": os.mkfifo,
            "socket": listener.bind,
            "device": lambda name: os.symlink("/dev/zero", name),
            "folder": os.mkdir,
        }
        make[kind](str(path))
    open_files = len(os.listdir("/dev/fd"))
    with pytest.raises(OSError, match="it"):
        open_file(path)
    assert len(os.listdir("/dev/fd")) == open_files
    for call in (sha256_file, lambda path: read_file(path, "a file", 100)):
        with pytest.raises(ZooError, match="it: expected a file"):
            call(path)


def test_a_regular_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"abc")
    with open_file(tmp_path / "it") as file:
        assert file.read() == b"abc"
