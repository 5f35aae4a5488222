"""The folder of an export: new, empty, or with an earlier export of the same zoo.

Files that no export wrote are never touched.

EXPORT_NAME lists the files before the first of them is written, so that a later run recognizes them whenever
this one stops.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from builder.releases import EXPORT_NAME
from nws_dataset.errors import ZooError
from nws_dataset.files import atomic_write, path_type, read_json, resolve_inside

EXPECTED = f"an empty folder, or one with an export of the same zoo ({EXPORT_NAME})"
OTHER = "choose another folder"


class ExportFolder:
    """The folder of an export; use `open_export`.

    Args:
        path: the folder.
        files: all files to be written, relative to it.
    """

    def __init__(self, path: Path, files: Sequence[str]) -> None:
        self.path, self._files = path, frozenset(files)

    def write(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        """Write one of the files under a temporary name, then rename it.

        Args:
            name: the file.
            fill: writes its content.

        Raises:
            ZooError: if it cannot be written.
        """
        assert name in self._files
        with atomic_write(self.path / name) as temporary, open(temporary, "wb") as file:
            fill(file)

    def put(self, name: str, content: bytes) -> None:
        """Write one of the files, as `write`.

        Args:
            name: the file.
            content: its content.
        """
        self.write(name, lambda file: file.write(content))

    def same(self, name: str, other: str) -> None:
        """Give a written file a second name: a link if the disk supports it, else a copy."""
        assert name in self._files
        with atomic_write(self.path / name) as temporary:
            try:
                os.link(self.path / other, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(self.path / other, temporary)


@contextmanager
def open_export(
    path: Path, identity: Mapping[str, Any], files: Sequence[str], names: re.Pattern[str]
) -> Iterator[ExportFolder]:
    """Open the folder of an export.

    Args:
        path: the folder, created if missing.
        identity: what is exported: an earlier export of the same may be overwritten.
        files: all files to be written.
        names: matches all files that an export in this layout can write; no others are touched.

    Yields:
        The folder, for writing all of the files. Then files that only an earlier export wrote are removed.

    Raises:
        ZooError: if the folder contains something else, or another export is running.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        do = "choose another folder, or permit it"
        raise ZooError(path, expected="a folder that can be created", found=str(error), do=do) from error
    with _locked(path):
        assert all(map(names.fullmatch, files))
        earlier = _earlier(path, identity, names)
        for name in sorted({*files} - earlier):
            if os.path.lexists(path / name):
                raise ZooError(
                    path / name, expected="a name that is free", found=path_type(path / name), do=OTHER
                )
        for folder in sorted({os.path.dirname(name) for name in files} - {""}):
            if os.path.lexists(path / folder):
                resolve_inside(path, folder)  # no link may lead elsewhere
        _note(path, identity, earlier | {*files}, complete=False)
        _sweep(path, earlier | {*files})
        yield ExportFolder(path, files)
        for name in sorted(earlier - {*files}):
            (path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it contains other files, or is already gone
                for parent in Path(name).parents[:-1]:
                    (path / parent).rmdir()
        _note(path, identity, {*files}, complete=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other exports from writing to the folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ZooError(
            path, expected="no other running export", found="one that writes here", do="wait for it"
        ) from error
    finally:
        os.close(descriptor)


def _earlier(path: Path, identity: Mapping[str, Any], names: re.Pattern[str]) -> set[str]:
    """The files of the earlier export in the folder."""
    if path_type(path / EXPORT_NAME) == "nothing":
        others = sorted(entry.name for entry in path.iterdir() if _final_name(entry.name) != EXPORT_NAME)
        if others:
            found = f"{others[0]} and {len(others) - 1} others" if len(others) > 1 else others[0]
            raise ZooError(path, expected=EXPECTED, found=found, do=OTHER)
        return set()
    try:
        found = read_json(path / EXPORT_NAME, "what an export wrote")
    except ZooError as error:
        raise ZooError(path, expected=EXPECTED, found=f"a damaged {EXPORT_NAME}", do=OTHER) from error
    if not isinstance(found, dict) or not isinstance(found.get("files"), list):
        raise ZooError(path / EXPORT_NAME, expected=EXPECTED, found="different content", do=OTHER)
    if found.get("of") != json.loads(json.dumps(identity)):
        raise ZooError(path, expected=EXPECTED, found=f"one of {json.dumps(found.get('of'))}", do=OTHER)
    for name in found["files"]:
        if not (isinstance(name, str) and names.fullmatch(name)):
            expected = "names of files that an export writes"
            raise ZooError(path / EXPORT_NAME, expected=expected, found=repr(name), do=OTHER)
        resolve_inside(path, name)
    return set(found["files"])


def _note(path: Path, identity: Mapping[str, Any], files: set[str], *, complete: bool) -> None:
    """Record what the export is, and its files."""
    content = {"of": identity, "complete": complete, "files": sorted(files)}
    with atomic_write(path / EXPORT_NAME) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def _sweep(path: Path, files: set[str]) -> None:
    """Remove the temporary files of an export that was killed."""
    for folder in sorted({os.path.dirname(name) for name in (*files, EXPORT_NAME)}):
        if not (path / folder).is_dir():
            continue
        for entry in list((path / folder).iterdir()):
            if os.path.join(folder, _final_name(entry.name)) in {*files, EXPORT_NAME}:
                entry.unlink(missing_ok=True)


def _final_name(name: str) -> str:
    """The name for which `atomic_write` would use this temporary file; empty for any other file."""
    temporary = re.fullmatch(r"\.(.+)\.\d+-[0-9a-f]{16}\.tmp", name)
    return temporary[1] if temporary else ""
