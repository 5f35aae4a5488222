"""Pushes a zoo's folder to a repository on the Hub; its index never names bytes that are not there yet.

Finished shards are uploaded while others still train. At the end one commit brings what was replaced, the
index, nws.json, the card and the plots. Files that the Hub already has, by their hash, are not sent: after an
interruption, or when the Hub did not answer, the same command continues.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import (
    disable_progress_bars,
    validate_repo_id,
)
from rich.console import Console

from builder.store import CARD_NAME
from nws_dataset import __version__
from nws_dataset.console import Progress
from nws_dataset.errors import ZooError, reason
from nws_dataset.files import MAX_JSON_BYTES, parse_json, path_type, resolve_inside, sha256_file
from nws_dataset.format.manifest import MANIFEST_NAME, FileEntry, ImageSource, Manifest, SubsetEntry
from nws_dataset.format.shards import read_index
from nws_dataset.http import FAILURES, ODD_ANSWERS, Client, with_retries
from nws_dataset.remote import MEMORY_BYTES, HubFile, Remote, blob_id

REPO_TYPE = constants.REPO_TYPE_DATASET
ZOO_FOLDERS = ("index/", "snapshots/")  # where on the Hub only the zoo's files may be
HUB_FILES = {".gitattributes", CARD_NAME}  # what a repository may hold before the first push
REF_NAME = re.compile(r"(?!.*(\.\.|//|/$))\w[\w./+-]*")  # name of a branch or tag
ABSENT_STATUS = (401, 404)  # the Hub answers the same for what does not exist and what may not be seen
CONFLICT_STATUS = (409, 412)  # a commit was refused because there is a newer one
TIMEOUT_SECONDS = 120.0  # without a byte from the Hub; a commit of many files takes a while
ATTEMPTS = 5  # tries to commit when others commit too or an answer is lost
# files sent at a time; one in the background, for which huggingface_hub starts no threads that an
# interrupted build would have to wait for
FILES_AT_A_TIME = 5
SHARDS_PER_COMMIT = 50  # of new shards, at the end
EARLY_SECONDS = 60.0  # between two commits during training: the Hub limits commits per hour


@dataclass(frozen=True)
class Content:
    """What a folder contains, or will contain after a build."""

    generator_version: str
    subsets: Mapping[str, SubsetEntry]
    files: frozenset[str]  # paths in index and snapshots
    models: frozenset[str]  # model_ids

    @classmethod
    def of(cls, folder: Path) -> Content:
        """Read what a folder contains.

        Raises:
            ZooError: if it is not a zoo, of an earlier format, or damaged.
        """
        manifest = Manifest.read(folder)
        manifest.check_current(folder)
        models = {
            name
            for path in manifest.index_files()
            for name in read_index(manifest.locate(folder, path))["model_id"].to_pylist()
        }
        return cls(manifest.generator_version, manifest.subsets, frozenset(manifest.files), frozenset(models))


@dataclass(frozen=True)
class _File:
    """A file to publish."""

    path: Path
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class _Remote:
    """A repository on the Hub, at one commit."""

    sha: str
    files: Mapping[str, HubFile]
    fetch: Callable[[str], bytes]

    def has(self, path: str, file: _File) -> bool:
        """Whether the file is there, by sha256 (LFS or Xet), git's id of the content, or the content."""
        there = self.files.get(path)
        if there is None or there.size != file.size:
            return False
        if there.sha256:
            return there.sha256 == file.sha256
        return (
            there.blob_id == blob_id(file.path.read_bytes())
            or hashlib.sha256(self.fetch(path)).hexdigest() == file.sha256
        )


class Publisher:
    """Pushes a folder to a repository on the Hub: `prepare`, then `offer` during the build, then `push`.

    It needs a token that may write, from the environment (HF_TOKEN) or the stored login.

    Args:
        repo_id: "org/name".
        private: make the repository private.
        revision: the branch to push to, created if missing; None is the main branch.
        tag: a name for the published state; tags are never moved.

    Raises:
        ZooError: if a name is malformed. The Hub is first contacted by `prepare`.

    Example:
        >>> publisher = Publisher("org/nws", tag="v1.0.0")
        >>> publisher.prepare(Content.of(Path("nws")))
        >>> publisher.push(Path("nws"))
    """

    def __init__(
        self, repo_id: str, *, private: bool = False, revision: str | None = None, tag: str | None = None
    ) -> None:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ZooError("--repo-id", expected="ORG/NAME", found=repr(repo_id), do=str(error)) from error
        if "/" not in repo_id:
            raise ZooError(
                "--repo-id",
                expected="ORG/NAME",
                found=repr(repo_id),
                do="put your user name or organisation before it",
            )
        for option, name in (("--revision", revision), ("--tag", tag)):
            if name is not None and not REF_NAME.fullmatch(name):
                raise ZooError(
                    option,
                    expected="a name for git",
                    found=repr(name),
                    do="use letters, digits and . _ - / +",
                )
        self.repo_id, self.private, self.tag = repo_id, private, tag
        self.branch = revision or constants.DEFAULT_REVISION
        self.api = HfApi(token=True, library_name="nws", library_version=__version__)
        self.remote = Remote(repo_id, REPO_TYPE)
        self.console = Console(stderr=True)
        self.content: Content | None = None
        self._lock = threading.Lock()
        self._offered: dict[str, _File] = {}
        self._thread: threading.Thread | None = None
        self._started = -EARLY_SECONDS

    def __str__(self) -> str:
        visibility, tagged = "private " * self.private, f", and tag it {self.tag}" if self.tag else ""
        return f"{visibility}data set {self.repo_id} on the Hub, branch {self.branch}{tagged}"

    @property
    def revision(self) -> str | None:
        """The name of the published state: the tag, or the branch; None: the main branch."""
        return self.tag or (self.branch if self.branch != constants.DEFAULT_REVISION else None)

    @property
    def url(self) -> str:
        """The published repository's web address."""
        page = f"{self.api.endpoint}/datasets/{self.repo_id}"
        return f"{page}/tree/{self.revision}" if self.revision else page

    # Before the build

    def prepare(self, content: Content) -> None:
        """Check the login, create repository and branch if missing, and check that the folder may be pushed.

        Args:
            content: what the folder will contain.

        Raises:
            ZooError: if nobody is logged in, the token may not write, the Hub cannot be reached, or the
                repository contains something else.
        """
        set_client_factory(lambda: Client(self.api.endpoint, TIMEOUT_SECONDS))
        disable_progress_bars()  # ours counts all files together
        if constants.HF_HUB_OFFLINE:
            raise ZooError(
                "HF_HUB_OFFLINE",
                expected="a Hub that may be asked",
                found="offline mode",
                do="unset it, or push later (nws publish)",
            )
        if get_token() is None:
            do = "log in (hf auth login), or set HF_TOKEN"
            raise ZooError(self.repo_id, expected="a login that may write", found="no token", do=do)
        with self._hub_errors():
            self.api.whoami()
            self._make_repository()
        self.content = content
        remote = self._state_of_hub()
        published = self._check(remote)
        self._check_tag(remote, changes=published != content.models)

    def _make_repository(self) -> None:
        try:
            info = self.api.dataset_info(self.repo_id)
        except HfHubHTTPError as error:
            if error.response.status_code not in ABSENT_STATUS:
                raise
            self.api.create_repo(
                self.repo_id, repo_type=REPO_TYPE, private=self.private or None, exist_ok=True
            )
        else:
            if self.private and info.private is False:
                do = "leave out --private, or change the repository's settings on the Hub"
                raise ZooError(self.repo_id, expected="a private repository", found="a public one", do=do)
        try:
            self.api.auth_check(self.repo_id, repo_type=REPO_TYPE, write=True)
        except HfHubHTTPError as error:
            # the repository exists, so this Hub lacks auth_check: the push will show
            if error.response.status_code != 404:
                raise
        if self.branch != constants.DEFAULT_REVISION:
            self.api.create_branch(self.repo_id, branch=self.branch, repo_type=REPO_TYPE, exist_ok=True)

    def _check(self, remote: _Remote) -> frozenset[str]:
        """The models on the Hub; a ZooError if a push would remove or overwrite what is not in the folder."""
        content = self.content
        assert content is not None, "prepare comes first"
        if MANIFEST_NAME not in remote.files:
            others = remote.files.keys() - content.files - HUB_FILES
            if others:
                raise self._refusal(
                    "an empty repository or a zoo", f"a file {min(others)} and no {MANIFEST_NAME}"
                )
            return frozenset()
        there = self._manifest(remote)
        if there.generator_version != content.generator_version:
            raise self._refusal(f"generator version {content.generator_version}", there.generator_version)
        for name, entry in there.subsets.items():
            if name not in content.subsets:
                raise self._refusal("subsets that are in the folder too", f"a subset {name} that is not")
            self._compare(name, content.subsets[name], entry)
        strange = {path for path in remote.files if path.startswith(ZOO_FOLDERS)} - content.files
        if strange:
            raise self._refusal("files that are in the folder too", f"a file {min(strange)} that is not")
        models = self._models(there, remote)
        if models - content.models:
            raise self._refusal(
                "models that are in the folder too", f"a model {min(models - content.models)} that is not"
            )
        return models

    def _compare(self, subset: str, here: SubsetEntry, there: SubsetEntry) -> None:
        """Raise a ZooError if the subset on the Hub was built from something else."""
        for option, value in here.settings.items():
            found = there.settings.get(option)
            if found != value:
                raise self._refusal(f"{option} of subset {subset} {value}", str(found))
        for name, images in here.image_sets.items():
            found = there.image_sets.get(name, images)
            if found.sha256 != images.sha256:
                raise self._refusal(
                    f"image set {name} of subset {subset} {_describe(images)}", _describe(found)
                )

    def _models(self, there: Manifest, remote: _Remote) -> frozenset[str]:
        """The models in the Hub's index."""
        names: set[str] = set()
        for path in there.index_files():
            try:
                column = pq.read_table(pa.BufferReader(remote.fetch(path)), columns=["model_id"])["model_id"]
            except (pa.ArrowException, OSError, LookupError) as error:
                raise self._refusal("an index that can be read", reason(error)) from error
            if not pa.types.is_string(column.type) or column.null_count:
                raise self._refusal("an index that can be read", f"models named by a {column.type}")
            names |= set(column.unique().to_pylist())
        return frozenset(names)

    def _manifest(self, remote: _Remote) -> Manifest:
        content = remote.fetch(MANIFEST_NAME)
        try:
            manifest = Manifest.from_json(
                parse_json(content, MANIFEST_NAME, "the manifest of a zoo"), MANIFEST_NAME
            )
            manifest.check_current(MANIFEST_NAME)
            return manifest
        except ZooError as error:
            raise self._refusal(
                f"{MANIFEST_NAME} of this version's format", "another, or a damaged one"
            ) from error

    def _check_tag(self, remote: _Remote, *, changes: bool) -> None:
        """Raise a ZooError if the tag exists elsewhere than at the commit to publish (seen, or new)."""
        tagged = self._tags().get(self.tag) if self.tag else None
        if tagged is not None and (changes or tagged != remote.sha):
            expected = f"no tag {self.tag} yet" if changes else f"tag {self.tag} at commit {remote.sha}"
            do = "choose another --tag: tags are never moved"
            raise ZooError(
                f"{self.repo_id} on the Hub", expected=expected, found=f"it at commit {tagged}", do=do
            )

    def _refusal(self, expected: str, found: str) -> ZooError:
        do = (
            "use another --repo-id, or the folder and settings that it was made with; nothing was overwritten"
        )
        return ZooError(f"{self.repo_id} on the Hub", expected=expected, found=found, do=do)

    # During the build

    def offer(self, file: Path, path: str, entry: FileEntry) -> None:
        """Push a finished shard in the background, without holding up training; `push` repeats what fails.

        Args:
            file: the shard's file.
            path: its path in the zoo.
            entry: its size and sha256.
        """
        with self._lock:
            self._offered[path] = _File(file, entry.size, entry.sha256)
            if self._thread is None and time.monotonic() - self._started >= EARLY_SECONDS:
                self._started = time.monotonic()
                # an interrupted build does not wait for it
                self._thread = threading.Thread(target=self._push_offered, daemon=True)
                self._thread.start()

    def _push_offered(self) -> None:
        with self._lock:
            files = dict(self._offered)
        try:
            with self._hub_errors():
                self._upload(files, replace=False)
        except ZooError as error:
            self.console.print(
                f"not pushed yet, will be tried again: {error}", highlight=False, markup=False, soft_wrap=True
            )
        else:
            with self._lock:
                self._offered = {path: file for path, file in self._offered.items() if path not in files}
        finally:
            with self._lock:
                self._thread = None

    # After the build

    def push(self, folder: Path) -> None:
        """Bring the repository to the folder's state, verify it there, and tag it.

        Raises:
            ZooError: as `prepare`; if the Hub stops answering; or if a file there differs from what was sent.
        """
        thread = self._thread
        if thread is not None:
            thread.join()  # what it sends need not be sent again
        with self._hub_errors():  # every file is read here
            self._push(folder)

    def _push(self, folder: Path) -> None:
        self.content = Content.of(folder)
        shards, rest = _files(folder)
        remote = self._state_of_hub()
        self._check(remote)
        changed = [path for path, file in {**shards, **rest}.items() if not remote.has(path, file)]
        self._check_tag(remote, changes=bool(changed))
        size = sum({**shards, **rest}[path].size for path in changed)
        with Progress("sending", size, unit="B", console=self.console) as progress:
            new = [path for path in changed if path in shards and path not in remote.files]
            for start in range(0, len(new), SHARDS_PER_COMMIT):
                self._upload(
                    {path: shards[path] for path in new[start : start + SHARDS_PER_COMMIT]},
                    replace=False,
                    progress=progress,
                )
            remote = self._upload({**shards, **rest}, replace=True, progress=progress)
        self._make_tag(remote)

    def _upload(
        self, files: Mapping[str, _File], *, replace: bool, progress: Progress | None = None
    ) -> _Remote:
        """Commit all files that the Hub lacks at once; return the commit at which it has all of them."""
        for _ in range(ATTEMPTS):
            remote = self._state_of_hub()
            self._check(remote)
            changed = [
                path
                for path, file in files.items()
                if (replace or path not in remote.files) and not remote.has(path, file)
            ]
            if not changed:
                return remote
            operations = [CommitOperationAdd(path, str(files[path].path)) for path in changed]
            self._send(operations, progress)
            for operation in operations:
                found, file = operation.upload_info.sha256.hex(), files[operation.path_in_repo]
                if found != file.sha256:
                    raise ZooError(
                        file.path, expected=f"sha256 {file.sha256}", found=found, do="build it again"
                    )
            made = self._commit(operations, remote)
            if made is not None:
                remote = self._state_of_hub(made)
                wrong = [path for path in changed if not remote.has(path, files[path])]
                if wrong:
                    do = "run the same command again; if it stays so, tell the Hub"
                    raise ZooError(
                        f"{self.repo_id}/{wrong[0]} on the Hub",
                        expected="the file that was sent",
                        found="another",
                        do=do,
                    )
                return remote
        raise ZooError(
            self.repo_id,
            expected="a repository that nobody else changes",
            found="other commits",
            do="run the same command again",
        )

    def _send(self, operations: list[CommitOperationAdd], progress: Progress | None) -> None:
        """Upload the bytes of files, so that a commit only has to name them."""
        at_a_time = 1 if progress is None else FILES_AT_A_TIME
        for start in range(0, len(operations), at_a_time):
            group = operations[start : start + at_a_time]
            with self._hub_errors():
                self._send_group(group)
            if progress is not None:
                progress.advance(sum(operation.upload_info.size for operation in group))

    def _send_group(self, group: list[CommitOperationAdd]) -> None:
        """Upload one group. What has arrived is not sent again: huggingface_hub asks the Hub first."""

        def send() -> None:
            self.api.preupload_lfs_files(
                self.repo_id,
                group,
                repo_type=REPO_TYPE,
                revision=self.branch,
                num_threads=FILES_AT_A_TIME,
                free_memory=False,
            )

        # RuntimeError: a file did not arrive, though huggingface_hub or hf_xet retried
        with_retries(send, lambda error: isinstance(error, RuntimeError))

    def _commit(self, operations: list[CommitOperationAdd], remote: _Remote) -> str | None:
        """Commit on top of what was seen and return the sha.

        None if there is a newer commit: someone else's, or ours whose answer was lost.
        """
        with self._hub_errors():
            try:
                return self.api.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=f"{len(operations)} files of nws {__version__}",
                    repo_type=REPO_TYPE,
                    revision=self.branch,
                    parent_commit=remote.sha,
                ).oid
            except HfHubHTTPError as error:
                if error.response.status_code not in CONFLICT_STATUS:
                    raise
                return None

    def _make_tag(self, remote: _Remote) -> None:
        if self.tag is None:
            return
        with self._hub_errors():
            self.api.create_tag(
                self.repo_id, tag=self.tag, revision=remote.sha, repo_type=REPO_TYPE, exist_ok=True
            )
        self._check_tag(remote, changes=False)

    # Talking with the Hub

    def _state_of_hub(self, commit: str | None = None) -> _Remote:
        """The repository at a commit; None: the branch's latest."""
        with self._hub_errors():
            sha = self.remote.commit(commit or self.branch)
            files = dict(self.remote.listing(sha))
            return _Remote(sha, files, lambda path: self._fetch(path, sha, files))

    def _tags(self) -> dict[str, str]:
        """The commit of each tag."""
        with self._hub_errors():
            refs = self.api.list_repo_refs(self.repo_id, repo_type=REPO_TYPE)
            return {tag.name: tag.target_commit for tag in refs.tags}

    def _fetch(self, path: str, revision: str, files: Mapping[str, HubFile]) -> bytes:
        """Fetch a small file; an answer that contradicts the listing is requested again."""
        max_bytes = min(files[path].size, MAX_JSON_BYTES if path == MANIFEST_NAME else MEMORY_BYTES)
        return self.remote.fetch(
            path, revision, f"{self.repo_id}/{path} on the Hub", files[path].check, max_bytes=max_bytes
        )[0]

    @contextmanager
    def _hub_errors(self) -> Iterator[None]:
        """Turn any error of the Hub into one line without the token."""
        try:
            yield
        except (*FAILURES, *ODD_ANSWERS) as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
            said = cause.server_message if isinstance(cause, HfHubHTTPError) else None
            found = f"{status or type(cause).__name__}: {said or cause}".replace(
                get_token() or "\0", "(the token)"
            )
            if status in (401, 403, 404):
                do = (
                    "log in (hf auth login, or HF_TOKEN) with a token that may write there, or correct "
                    "--repo-id"
                )
                raise ZooError(
                    self.repo_id, expected="a repository that you may write to", found=found, do=do
                ) from None
            do = "run the same command again: what has arrived is not sent twice"
            raise ZooError(
                f"the Hub ({self.api.endpoint})", expected="an answer", found=found, do=do
            ) from None
        except OSError as error:
            do = "permit reading or mend the disk, then run the same command again"
            raise ZooError(
                error.filename or self.repo_id, expected="files that can be read", found=reason(error), do=do
            ) from error


def _files(folder: Path) -> tuple[dict[str, _File], dict[str, _File]]:
    """The files to publish, by path: snapshots, and what comes with the last commit.

    Other files are not part of the data set.
    """
    manifest = Manifest.read(folder)
    listed = {
        path: _File(manifest.locate(folder, path), entry.size, entry.sha256)
        for path, entry in manifest.files.items()
    }
    index = set(manifest.index_files())
    drawn = (path for path in folder.glob("plots/[!.]*") if path.suffix in (".png", ".html"))
    plots = sorted(path.relative_to(folder).as_posix() for path in drawn)
    rest = {path: _unlisted_file(folder, path) for path in (MANIFEST_NAME, CARD_NAME, *plots)}
    shards = {path: file for path, file in listed.items() if path not in index}
    return shards, {**{path: listed[path] for path in index}, **rest}


def _unlisted_file(folder: Path, path: str) -> _File:
    """A file that nws.json does not list; a link is refused, as it could publish a file from elsewhere."""
    file = resolve_inside(folder, path)
    if path_type(file) != "a file":
        raise ZooError(
            folder / path, expected="a file", found=path_type(file), do="remove it, and build again"
        )
    return _File(file, file.stat().st_size, sha256_file(file))


def _describe(images: ImageSource) -> str:
    return f"{images.source} {images.sha256[:12]}"
