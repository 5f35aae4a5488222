"""Files on disk: written whole or not at all, hashed, and never outside the folder they belong to."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from nws_dataset.errors import ZooError

CHUNK_BYTES = 1 << 20  # read at a time


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file so that its name only ever stands for a complete one. Its folder is made when missing.

    Args:
        path: the file to write or replace.

    Yields:
        A temporary path in the same folder; write there. It takes the name `path` when the block ends, and is removed when it raises.

    Raises:
        ZooError: if the file cannot be written (disk full, no permission).

    Example:
        >>> with atomic_write("build/nws.json") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("{}")
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the dot hides it from data_files patterns
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)  # the new name itself must survive a power cut
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        do = "free space or permit writing, then run again"
        raise ZooError(path, expected="a file that can be written", found=str(error), do=do) from error


def _fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        ZooError: if the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for chunk in iter(functools.partial(file.read, CHUNK_BYTES), b""):
                digest.update(chunk)
    except OSError as error:
        raise ZooError(path, expected="a file that can be read", found=str(error), do="fetch or build it again") from error
    return digest.hexdigest()


def inside(root: str | Path, relative: str) -> Path:
    """The place of a file that an index or manifest names; such names are data, and must not lead elsewhere.

    Args:
        root: the folder that holds the files.
        relative: a path below it, with forward slashes.

    Returns:
        The resolved path. The file need not exist.

    Raises:
        ZooError: if the path is absolute, climbs with "..", or leaves the folder through a symbolic link.
    """
    plain = PurePosixPath(relative)
    legal = bool(plain.parts) and not plain.is_absolute() and ".." not in plain.parts and not set("\\\0") & set(relative)
    if not legal:
        do = "do not trust this index; build or fetch it again"
        raise ZooError(root, expected="a relative path below this folder", found=repr(relative), do=do)
    path = (Path(root) / plain).resolve()
    if not path.is_relative_to(Path(root).resolve()):
        do = "copy the file into the folder (huggingface_hub: snapshot_download with local_dir)"
        raise ZooError(root, expected="a file inside this folder", found=f"{relative!r}, a link to {path}", do=do)
    return path
