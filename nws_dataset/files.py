"""Files on disk: written completely or not at all, hashed, and never outside their folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from nws_dataset.errors import ZooError, reason

CHUNK_BYTES = 1 << 20  # read at a time
MAX_JSON_BYTES = 64 << 20  # of a JSON file; the nws.json of a million shards has a third of it


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file that is complete as soon as it has its name. A missing folder is created.

    Args:
        path: the file to write or replace.

    Yields:
        A temporary path in the same folder to write to. It is renamed to `path` when the block ends, and
        removed if the block raises.

    Raises:
        ZooError: if the file cannot be written (disk full, no permission).

    Example:
        >>> with atomic_write("build/nws.json") as temporary:
        ...     _ = temporary.write_text("{}")
        >>> Path("build/nws.json").read_text()
        '{}'
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)  # the new name itself must survive a power cut
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        do = "free space or permit writing, then run again"
        raise ZooError(path, expected="a file that can be written", found=str(error), do=do) from error


def temporary_name(path: Path) -> Path:
    """A path next to a file that no other thread, process or machine uses.

    Its leading dot hides it from data_files patterns.
    """
    name = path.name if len(os.fsencode(path.name)) < 200 else "long"  # names have 255 bytes at most
    return path.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(8)}.tmp")


def fsync(path: Path) -> None:
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
        with open_file(path) as file:
            for chunk in iter(functools.partial(file.read, CHUNK_BYTES), b""):
                digest.update(chunk)
    except OSError as error:
        raise ZooError(
            path, expected="a file that can be read", found=str(error), do="fetch or build it again"
        ) from error
    return digest.hexdigest()


def path_type(path: str | Path) -> str:
    """What is at a path, for the `found` of a ZooError; never raises.

    It is "a folder", "a file", "nothing", "neither a file nor a folder", or the reason why it is unknown.

    Example:
        >>> path_type("."), path_type("missing"), path_type("a\\0b")
        ('a folder', 'nothing', 'ValueError: embedded null byte')
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except (OSError, ValueError) as error:  # loops of links, names that are too long or invalid
        return reason(error)
    return (
        "a folder"
        if stat.S_ISDIR(mode)
        else "a file"
        if stat.S_ISREG(mode)
        else ("neither a file nor a folder")
    )


def beside(zoo: str, ending: str) -> Path:
    """A path next to a zoo's folder and named after it; for a zoo on the Hub, in the current folder.

    Example:
        >>> beside("org/nws", "-results")
        PosixPath('nws-results')
    """
    real = Path(os.path.realpath(zoo))
    return (real.parent if path_type(real) == "a folder" else Path()) / f"{real.name}{ending}"


def check_output_folder(folder: Path, option: str = "--out") -> None:
    """Raise a ZooError if a command cannot write to a folder, which may not exist yet; writes nothing.

    `option` names the folder on the command line.
    """
    nearest = folder
    while path_type(nearest) == "nothing" and nearest != nearest.parent:
        nearest = nearest.parent
    found = path_type(nearest)
    if found == "a folder" and not os.access(nearest, os.W_OK | os.X_OK):
        found = f"{nearest}, which may not be written to"
    elif found == "a folder":
        return
    elif nearest != folder:
        found = f"{found} at {nearest}"
    do = f"permit writing, or choose another place ({option})"
    raise ZooError(folder, expected="a folder to write to", found=found, do=do)


def check_output_file(path: Path, option: str = "--out") -> None:
    """As `check_output_folder`, for a file, which may exist."""
    check_output_folder(path.parent, option)
    found = path_type(path)
    if found not in ("nothing", "a file"):
        raise ZooError(path, expected="a file, or none", found=found, do=f"choose another file ({option})")


def check_file(path: str | Path) -> None:
    """Raise an OSError unless a path is a regular file, for code that opens it without `open_file`."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, path_type(path), str(path))


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading.

    Anything else (a pipe, socket or device) is refused, since it may block or never end.

    Args:
        path: of the file.

    Raises:
        OSError: if it is missing, not a regular file, or cannot be read.

    Example:
        >>> open_file("/dev/null")
        Traceback (most recent call last):
        OSError: [Errno 22] neither a file nor a folder: '/dev/null'
    """
    return os.fdopen(open_descriptor(path), "rb")


def open_descriptor(path: str | Path) -> int:
    """Like `open_file`, but return the file descriptor."""
    descriptor = os.open(
        path,
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0),
    )
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "neither a file nor a folder", str(path))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_file(path: str | Path, expected: str, max_bytes: int) -> bytes:
    """The content of a regular file.

    Args:
        path: of the file.
        expected: what it should be, for the error.
        max_bytes: largest size that is read.

    Raises:
        ZooError: if it is missing, not a regular file, too large, or cannot be read.
    """
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode) and found.st_size <= max_bytes:
            with open_file(path) as file:
                return file.read()
    except (OSError, ValueError, MemoryError) as error:
        raise ZooError(
            path, expected=expected, found=reason(error), do="fetch or build it again, and permit reading"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise ZooError(path, expected=expected, found=path_type(path), do="put the file there")
    raise ZooError(
        path,
        expected=f"{expected} of at most {max_bytes} bytes",
        found=f"{found.st_size} bytes",
        do="fetch or build it again",
    )


def read_json(path: str | Path, expected: str) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file, which has at most MAX_JSON_BYTES.
        expected: what it should be, for the error.

    Raises:
        ZooError: if it is missing, not a regular file, too large, not readable, or not JSON.
    """
    return parse_json(read_file(path, expected, MAX_JSON_BYTES), path, expected)


def parse_json(content: bytes | str, where: object, expected: str) -> Any:
    """The value of a JSON text.

    Args:
        content: UTF-8.
        where: file or field to name in an error.
        expected: what it should be, for the error.

    Raises:
        ZooError: if it is not JSON, or nested too deeply.

    Example:
        >>> parse_json(b'{"a": 1}', "a.json", "numbers")
        {'a': 1}
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ZooError(
            where, expected=expected, found=f"not JSON ({reason(error)})", do="fetch or build it again"
        ) from None


def resolve_inside(root: str | Path, relative: str) -> Path:
    """The path of a file named in an index or manifest, which must not lead out of the folder.

    Args:
        root: the folder that holds the files.
        relative: a path below it, with forward slashes.

    Returns:
        The resolved path. The file need not exist.

    Raises:
        ZooError: if the path is absolute, contains "..", or leaves the folder through a symbolic link.
    """
    do = "do not trust this index; build or fetch it again"
    # printable: without NUL and lone surrogates
    legal = isinstance(relative, str) and relative.isprintable() and "\\" not in relative
    plain = PurePosixPath(relative) if legal else PurePosixPath()
    if not plain.parts or plain.is_absolute() or ".." in plain.parts:
        raise ZooError(root, expected="a relative path below this folder", found=repr(relative), do=do)
    try:
        path, top = (Path(root) / plain).resolve(), Path(root).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, names that are too long
        raise ZooError(
            root, expected="a path that can be followed", found=f"{relative!r} ({reason(error)})", do=do
        ) from error
    if not path.is_relative_to(top):
        do = "copy the file into the folder (huggingface_hub: snapshot_download with local_dir)"
        raise ZooError(
            root, expected="a file inside this folder", found=f"{relative!r}, a link to {path}", do=do
        )
    return path
