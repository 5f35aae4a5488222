"""Files of a data set or model on the Hub: their names, commits and checked contents."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, httpx, validate_repo_id

from nws_dataset.errors import ZooError, one_line, reason
from nws_dataset.files import atomic_write, check_file, path_type, resolve_inside
from nws_dataset.http import (
    COMMIT,
    FAILURES,
    MAX_BODY,
    ODD_ANSWERS,
    OFFLINE,
    REFUSED,
    TRIES,
    BadAnswer,
    Result,
    as_error,
    ask,
)

MAX_NAME = 200  # characters of a revision or a file's name
MEMORY_BYTES = 1 << 30  # held in memory at a time: one value, one index file, one estimator
MAX_PAGES = 1000  # of a listing; a page has 1,000 files


@dataclass(frozen=True)
class HubFile:
    """A file on the Hub, as the listing of its commit describes it."""

    size: int  # bytes
    sha256: str | None  # None if it is stored without LFS and Xet
    blob_id: str  # git's id of the content, or of the pointer to it

    @classmethod
    def of(cls, entry: Any) -> tuple[str, HubFile]:
        """The path and description of a file from its entry in the listing.

        Raises:
            BadAnswer: if the entry is malformed.
        """
        path, size, lfs, blob_id = entry["path"], entry["size"], entry.get("lfs"), entry["oid"]
        sha256 = lfs["oid"] if lfs else None
        texts = isinstance(path, str) and isinstance(blob_id, str) and isinstance(sha256, (str, type(None)))
        if not texts or type(size) is not int or size < 0:
            raise BadAnswer(f"a listing with {one_line(entry)}")
        return path, cls(size, sha256, blob_id)

    def check(self, content: bytes) -> bytes:
        """Return the content; raise a BadAnswer if it cannot be this file's."""
        if len(content) != self.size or (
            self.sha256 is not None and hashlib.sha256(content).hexdigest() != self.sha256
        ):
            raise BadAnswer("another file than the listing's")
        return content


class Remote:
    """A repository on the Hub.

    Args:
        repo_id: "org/name".
        repo_type: "dataset" or "model".
        token: of a user who may read it; None for the stored login.
        endpoint: the Hub's URL; None for huggingface_hub's.

    Raises:
        ZooError: if the name is malformed. No request is sent yet.
    """

    def __init__(
        self, repo_id: str, repo_type: str, *, token: str | None = None, endpoint: str | None = None
    ) -> None:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            do = "check the name; a local folder must exist"
            raise ZooError(
                repo_id, expected="ORG/NAME of a repository on the Hub", found=reason(error), do=do
            ) from None
        self.repo_id, self.repo_type, self.token = repo_id, repo_type, token
        self.endpoint = endpoint or constants.ENDPOINT
        self._addresses: dict[str, str] = {}  # file -> where the Hub redirected its last request

    def fetch(
        self,
        file: str,
        revision: str,
        where: object,
        check: Callable[[bytes], Result],
        *,
        part: range | None = None,
        max_bytes: int | None = None,
    ) -> tuple[Result, str]:
        """Fetch a file or a part of it, again if the content fails its check.

        Args:
            file: its path in the repository.
            revision: a branch, tag or commit.
            where: name of the file in an error.
            check: converts the content; raises a BadAnswer or ZooError if it is wrong.
            part: the bytes to fetch; None for all.
            max_bytes: largest size of a whole file; None for MAX_JSON_BYTES.

        Returns:
            What `check` returned, and the commit of the file.

        Raises:
            ZooError: if the Hub cannot be reached or refuses, or the content is still wrong after TRIES.
        """
        for left in reversed(range(TRIES)):
            try:
                content, commit = self._request(file, revision, part, max_bytes)
                return check(content), commit
            except (BadAnswer, ZooError) as error:
                self._addresses.pop(file, None)
                if not left:
                    raise (
                        error if isinstance(error, ZooError) else as_error(where, error, self.token)
                    ) from None
            except FAILURES as error:
                raise as_error(where, error, self.token) from None
        raise AssertionError

    def commit(self, revision: str) -> str:
        """The commit of a revision.

        Raises:
            Exception: one of FAILURES or ODD_ANSWERS.
        """
        if COMMIT.fullmatch(revision):
            return revision
        sha = self._api(f"revision/{quote(revision, safe='')}").json()["sha"]
        if not isinstance(sha, str) or not COMMIT.fullmatch(sha):
            raise BadAnswer(f"commit {one_line(sha)}, not one of 40 hexadecimal digits")
        return sha

    def listing(self, commit: str) -> Iterator[tuple[str, HubFile]]:
        """Yield the path and description of each file of a commit.

        Raises:
            Exception: one of FAILURES or ODD_ANSWERS.
        """
        url = f"tree/{commit}?recursive=true"
        for _ in range(MAX_PAGES):
            response = self._api(url)
            yield from (HubFile.of(entry) for entry in response.json() if entry["type"] == "file")
            url = response.links.get("next", {}).get("url", "")
            if not url:
                return
        raise BadAnswer(f"a listing of more than {MAX_PAGES} pages")

    def _api(self, question: str) -> httpx.Response:
        """The answer to an API request: a path below the repository's, or a complete URL."""
        root = f"{self.endpoint}/api/{self.repo_type}s/{self.repo_id}/"
        response = self._ask(question if "://" in question else root + question, {})
        hf_raise_for_status(response)
        return response

    def _request(
        self, file: str, revision: str, part: range | None, max_bytes: int | None
    ) -> tuple[bytes, str]:
        """The content of a file or a part of it, and its commit.

        Redirects are remembered: later requests for the file skip them.
        """
        own = hf_hub_url(
            self.repo_id, file, repo_type=self.repo_type, revision=revision, endpoint=self.endpoint
        )
        headers = {} if part is None else {"Range": f"bytes={part.start}-{part.stop - 1}"}
        for url in dict.fromkeys((self._addresses.get(file, own), own)):
            answer = self._ask(url, headers, max_bytes if part is None else len(part))
            if url == own or answer.status_code not in REFUSED:
                break
            self._addresses.pop(file, None)  # such addresses expire
        hf_raise_for_status(answer)
        if answer.status_code != (200 if part is None else 206):
            raise BadAnswer(f"status {answer.status_code}, of a proxy between here and the Hub")
        if part is not None:
            found, expected = (
                answer.headers.get("Content-Range", ""),
                f"bytes {part.start}-{part.start + len(answer.content) - 1}/",
            )
            if not found.startswith(expected):
                raise BadAnswer(f"{len(answer.content)} bytes as {found[:MAX_NAME]!r}, not as {expected!r}")
        if answer.history:
            self._addresses[file] = str(answer.request.url)
        named = [
            step.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT) for step in (*answer.history, answer)
        ]
        commit = next(filter(None, named), revision)
        if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
            raise BadAnswer(
                f"commit {commit[:MAX_NAME]!r}, not {revision} or another of 40 hexadecimal digits"
            )
        return answer.content, commit

    def _ask(self, url: str, headers: Mapping[str, str], max_bytes: int | None = None) -> httpx.Response:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled(OFFLINE)
        client = get_session()
        headers = build_hf_headers(token=self.token) | dict(headers)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        request = client.build_request(
            "GET",
            url,
            headers=headers,
            timeout=timeout,
            extensions={} if max_bytes is None else {MAX_BODY: max_bytes},
        )
        return ask(
            functools.partial(client.send, stream=True, follow_redirects=False), request, self.endpoint
        )


class CommitCache:
    """A repository's cache on disk: the commits of revisions, and files of commits.

    It only saves time, so it ignores all errors.

    Args:
        folder: shared by all repositories of this kind.
        repo_id: of the repository.
    """

    def __init__(self, folder: Path, repo_id: str) -> None:
        self.folder = folder / _file_name(repo_id)

    def commit(self, revision: str) -> str | None:
        """The last known commit of a revision, or None."""
        try:
            path = self.folder / "revisions" / _file_name(revision)
            check_file(path)
            found = path.read_text(encoding="ascii")
        except (OSError, ValueError):
            found = revision
        return next(filter(COMMIT.fullmatch, (revision, found)), None)

    def path(self, commit: str, file: str) -> Path:
        """The path where a file of a commit is kept."""
        assert COMMIT.fullmatch(commit), commit
        return resolve_inside(self.folder / commit, file)

    def keep(self, revision: str, commit: str, files: Mapping[str, bytes]) -> None:
        """Store files of a commit, then the commit of a revision."""
        for file, content in files.items():
            with (
                contextlib.suppress(ZooError, ValueError),
                atomic_write(self.path(commit, file)) as temporary,
            ):
                temporary.write_bytes(content)
        with (
            contextlib.suppress(ZooError, ValueError),
            atomic_write(self.folder / "revisions" / _file_name(revision)) as temporary,
        ):
            temporary.write_text(commit, encoding="ascii")


def check_revision(repo_id: str, revision: str) -> None:
    """Raise a ZooError for a name that no branch, tag or commit can have."""
    if not revision.isprintable() or len(revision) > MAX_NAME:
        raise ZooError(
            repo_id, expected="a branch, tag or commit", found=repr(revision), do="check the revision"
        )


@contextlib.contextmanager
def download(
    repo_id: str, patterns: Iterable[str], *, revision: str | None = None, token: str | None = None
) -> Iterator[Path]:
    """Download files of a model repository into a folder that exists while the block runs.

    Offline, the files that were fetched last are used.

    Args:
        repo_id: "org/name".
        patterns: of the names of wanted files; files in subfolders are never fetched.
        revision: a branch, tag or commit; None for the main branch.
        token: of a user who may read it; None for the stored login.

    Yields:
        The folder.

    Raises:
        ZooError: if there is no such repository, the Hub cannot be reached, or the files are too large.
    """
    revision = revision or constants.DEFAULT_REVISION
    remote, where = Remote(repo_id, "model", token=token), f"{repo_id}@{revision}"
    check_revision(repo_id, revision)
    commits = CommitCache(Path(constants.HF_HOME) / "nws" / "models", repo_id)
    if constants.HF_HUB_OFFLINE:
        commit = commits.commit(revision)
        if commit is None or path_type(commits.folder / commit) != "a folder":
            raise as_error(where, OfflineModeIsEnabled(OFFLINE), token)
        yield commits.folder / commit
        return
    try:
        commit = remote.commit(revision)
        listed = dict(remote.listing(commit))
    except (*FAILURES, *ODD_ANSWERS) as error:
        raise as_error(where, error, token) from None
    wanted = {
        file: there
        for file, there in listed.items()
        if "/" not in file and any(fnmatchcase(file, pattern) for pattern in patterns)
    }
    total = sum(there.size for there in wanted.values())
    if total > MEMORY_BYTES:
        do = "do not trust this repository, or fetch it (hf download) and load the folder"
        raise ZooError(where, expected=f"at most {MEMORY_BYTES} bytes", found=f"{total} bytes", do=do)
    files: dict[str, bytes] = {}
    for file, there in wanted.items():
        path = commits.path(commit, file)
        with contextlib.suppress(OSError, BadAnswer):
            if path.stat().st_size == there.size:
                content = there.check(path.read_bytes())
                if there.sha256 or blob_id(content) == there.blob_id:
                    files[file] = content
        if file not in files:
            files[file], _ = remote.fetch(file, commit, f"{where}/{file}", there.check, max_bytes=there.size)
    commits.keep(revision, commit, files)
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            with atomic_write(Path(folder) / file) as temporary:
                temporary.write_bytes(content)
        yield Path(folder)


def blob_id(content: bytes) -> str:
    """Git's id for the content of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _file_name(text: str) -> str:
    """An untrusted text as a safe name for a file or folder: not too long, no path to elsewhere."""
    name = quote(text, safe="")
    return name if len(name) <= MAX_NAME and name.strip(".") else hashlib.sha256(text.encode()).hexdigest()
