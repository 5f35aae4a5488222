"""A Hub on this machine, for tests: in memory, with what huggingface_hub and datasets ask of a server.

Its repositories of data sets and models have commits, branches and tags, large files (LFS) that are served
from "storage" on another host name as on the real Hub, ranges, tokens and private repositories. It logs every
request, and makes errors on demand.

    with LoopbackHub() as hub:
        hub.put("org/nws", folder)  # straight into the store, without a request
        hub.faults = every_second(503, "drop")
        subprocess.run(command, env={**os.environ, **hub.environment()})
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

TOKEN = "hf_loopbackTokenThatMayWrite"  # may write to the organization "org"
READ_TOKEN = "hf_loopbackTokenThatMayRead"
# as in the .gitattributes of a new repository on the Hub
LFS_SUFFIXES = {".parquet", ".png", ".npy", ".safetensors"}
LFS_BYTES = 10_000_000  # larger files are LFS whatever their name
DATE = "2024-01-01T00:00:00.000Z"

# What goes wrong with a request: a status; "drop": no answer, nothing done; "drop after": done, but no
# answer; "cut": half of the answer's body; "stall": nothing for `LoopbackHub.stall_seconds`, then as "drop";
# "corrupt": one byte of the answer's body is wrong; a function: what it makes of the answer.
Fault = int | str | Callable[..., Any]
# (request's number from 1, method, path) -> what goes wrong
Faults = Callable[[int, str, str], Fault | None]


def every_second(*faults: Fault) -> Faults:
    """The faults in turn, one for every second request."""
    return lambda number, method, path: None if number % 2 else faults[(number // 2 - 1) % len(faults)]


@dataclass(frozen=True)
class Request:
    """A request and how it was answered."""

    number: int  # from 1
    method: str
    path: str  # without the query
    range: str | None  # the header
    status: int  # 0: no answer
    sent: int  # bytes of the answer's body


@dataclass(frozen=True)
class File:
    """A file in a commit."""

    content: bytes = field(repr=False)
    lfs: bool

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git stores of a large file."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize "
            f"{len(self.content)}\n"
        ).encode()

    @functools.cached_property
    def blob_id(self) -> str:
        """Git's id of the file, or of its pointer."""
        blob = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id


Tree = Mapping[str, File]  # path -> file


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    sha: str
    parent: str | None
    title: str
    tree: Tree = field(repr=False)


@dataclass
class Repository:
    """A repository. Here data sets and models share one set of names."""

    id: str
    kind: str = "dataset"  # or "model"
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)  # by sha
    branches: dict[str, str] = field(default_factory=dict)  # name -> sha
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def page(self) -> str:
        """The path of its web page; a model's has no prefix."""
        return f"/datasets/{self.id}" if self.kind == "dataset" else f"/{self.id}"

    def commit(self, branch: str, tree: Tree, title: str) -> Commit:
        parent = self.branches.get(branch)
        # random: clients use it as a cache key
        commit = Commit(os.urandom(20).hex(), parent, title, dict(sorted(tree.items())))
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, tag or sha."""
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)


@dataclass(frozen=True)
class Answer:
    """What is sent to the client.

    A body in parts has no length, and continues while there are parts and a client.
    """

    status: int = 200
    body: bytes | Iterator[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer = _json({"error": message}, status, headers)


def _json(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    hub: LoopbackHub


class LoopbackHub:
    """The server, a context manager that starts and stops it; its address is reserved from the beginning.

    Attributes:
        url: its address.
        repos: repositories by id.
        requests: what was asked and answered, in order.
        tokens: token -> the organizations that it may write to.
        faults: what goes wrong with a request; called for each one as it arrives, so a test may also act
            then.
        on_headers: called with the headers of each request, with lower-case names.
        on_commit: called with the repository's id and tree after each commit, before any further answer.
        stall_seconds, retry_after: for the faults "stall" and 429 or 503.
    """

    def __init__(self) -> None:
        self.server = _Server(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.server.server_bind()  # not listening: until `start`, connections are refused at once
        self.server.hub = self
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # another host, so that clients drop their token on the way
        self.storage_url = f"http://localhost:{self.port}/storage"
        self.home = tempfile.TemporaryDirectory(prefix="loopback-hub-")
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        with self.lock:
            self.repos: dict[str, Repository] = {}
            self.storage: dict[str, bytes] = {}  # large files, by sha256
            self.tokens: dict[str, set[str]] = {TOKEN: {"org"}, READ_TOKEN: set()}
            self.faults: Faults | None = None
            self.on_commit: Callable[[str, Tree], None] | None = None
            self.on_headers: Callable[[Mapping[str, str]], None] | None = None
            self.stall_seconds, self.retry_after = 2.0, 0
            self.clear()

    def clear(self) -> None:
        """Forget the requests; the next one has number 1."""
        with self.lock:
            self.requests: list[Request] = []
            self.numbers = itertools.count(1)

    def start(self) -> LoopbackHub:
        self.server.server_activate()
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self) -> LoopbackHub:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.home.cleanup()

    def environment(self) -> dict[str, str]:
        """The variables that make this a process's Hub; set them before it imports huggingface_hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": self.home.name,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def file(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """The content of a file."""
        commit = self.repos[repo_id].at(revision)
        assert commit is not None, revision
        return commit.tree[path].content

    def put(
        self, repo_id: str, files: Path | Mapping[str, bytes], *, branch: str = "main", private: bool = False
    ) -> str:
        """Commit a folder's files except hidden ones, or the contents of paths; creates the repository.

        Returns the commit's sha.
        """
        if isinstance(files, Path):
            paths = {path.relative_to(files).as_posix(): path for path in files.rglob("*") if path.is_file()}
            files = {
                name: path.read_bytes()
                for name, path in paths.items()
                if not any(part[0] == "." for part in Path(name).parts)
            }
        with self.lock:
            repo = self.repos.get(repo_id) or self.create(repo_id, private)
            repo.branches.setdefault(branch, repo.branches["main"])
            added = {name: File(content, is_large(name, len(content))) for name, content in files.items()}
            self.storage.update({file.sha256: file.content for file in added.values() if file.lfs})
            return self.commit(
                repo, branch, {**repo.commits[repo.branches[branch]].tree, **added}, "Files"
            ).sha

    def create(self, repo_id: str, private: bool = False, kind: str = "dataset") -> Repository:
        repo = self.repos[repo_id] = Repository(repo_id, kind, private)
        repo.commit("main", {".gitattributes": File(b"*.parquet filter=lfs\n", False)}, "initial commit")
        return repo

    def commit(self, repo: Repository, branch: str, tree: Tree, title: str) -> Commit:
        commit = repo.commit(branch, tree, title)
        if self.on_commit is not None:
            self.on_commit(repo.id, commit.tree)
        return commit


def is_large(path: str, size: int) -> bool:
    """Whether a file is stored with LFS."""
    return PurePosixPath(path).suffix in LFS_SUFFIXES or size > LFS_BYTES


# What the server answers


@dataclass(frozen=True)
class Call:
    """A request with what its handler needs."""

    hub: LoopbackHub
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def token(self) -> str | None:
        """The token that was sent; it must be a known one."""
        sent = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        if sent is not None and sent not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return sent

    def repo(self, name: str) -> Repository:
        """A repository that the sender may see."""
        repo, kind = (
            self.hub.repos.get(name),
            "dataset" if "datasets" in self.path.split("/")[1:3] else "model",
        )
        if repo is None or repo.kind != kind or (repo.private and self.token is None):
            raise Refusal(404 if self.token else 401, "Repository not found", "RepoNotFound")
        return repo

    def may_write(self, name: str) -> None:
        if self.token is None:
            raise Refusal(401, "Invalid username or password.")
        if name.split("/")[0] not in self.hub.tokens[self.token]:
            raise Refusal(403, f"You don't have the rights to write to {name}")

    def commit(self, repo: Repository, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def form(self, name: str) -> list[str]:
        """The values of a form's field, sent as a form or as JSON."""
        if "json" in self.headers.get("content-type", ""):
            value = self.json.get(name, [])
            return value if isinstance(value, list) else [str(value)]
        return parse_qs(self.body.decode()).get(name, [])


Action = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Action]] = []
API, PAGE = "/api/(datasets|models)/<repo>", "(/datasets)?/<repo>"  # of a repository
NAMES = {"repo": "[^/]+/[^/]+?", "path": ".*"}  # other parts contain no slash, as clients quote it


def route(methods: str, pattern: str) -> Callable[[Action], Action]:
    """Register the handler of a path; `<name>` in it becomes an argument."""
    expression = re.compile(re.sub(r"<(\w+)>", lambda m: f"(?P<{m[1]}>{NAMES.get(m[1], '[^/]+')})", pattern))

    def register(action: Action) -> Action:
        ROUTES.extend((method, expression, action) for method in methods.split())
        return action

    return register


def answer(call: Call) -> Answer:
    """Answer a request without a fault."""
    try:
        _ = call.token  # a wrong one is always refused
        for method, expression, action in ROUTES:
            found = expression.fullmatch(call.path)
            if method == call.method and found:
                return action(call, **{name: unquote(value) for name, value in found.groupdict().items()})
        raise Refusal(404, f"Not Found: {call.method} {call.path}")
    except Refusal as refusal:
        return refusal.answer


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Answer:
    if call.token is None:
        raise Refusal(401, "Invalid username or password.")
    orgs = [{"name": name, "type": "org"} for name in sorted(call.hub.tokens[call.token])]
    return _json({"name": "tester", "type": "user", "orgs": orgs, "auth": {"type": "access_token"}})


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Answer:
    parts = call.json["content"].split("---\n", 2)
    try:
        yaml.safe_load(parts[1] if len(parts) == 3 else "")
    except yaml.YAMLError as error:
        return _json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return _json({"errors": [], "warnings": []})


@route("POST", "/api/repos/create")
def create_repo(call: Call) -> Answer:
    asked = call.json
    name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
    call.may_write(name)
    kind = asked.get("type") or "model"
    present = call.hub.repos.get(name)
    repo = present or call.hub.create(
        name, asked.get("visibility") == "private" or bool(asked.get("private")), kind
    )
    url = {"url": f"{call.hub.url}{repo.page}", "name": name}
    return (
        _json({**url, "error": f"You already created this {repo.kind} repo"}, 409) if present else _json(url)
    )


@route("DELETE", "/api/repos/delete")
def delete_repo(call: Call) -> Answer:
    name = f"{call.json.get('organization') or 'tester'}/{call.json['name']}"
    call.may_write(name)
    if call.hub.repos.pop(name, None) is None:
        raise Refusal(404, "Repository not found", "RepoNotFound")
    return _json({})


@route("GET", f"{API}/auth-check(/write)?")
def auth_check(call: Call, repo: str) -> Answer:
    call.repo(repo)
    if call.path.endswith("/write"):
        call.may_write(repo)
    return _json({})


@route("GET", f"{API}/revision/<revision>")
@route("GET", API)
def repo_info(call: Call, repo: str, revision: str = "main") -> Answer:
    found = call.repo(repo)
    commit = call.commit(found, revision)
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in commit.tree]
    if "blobs" in call.query:
        for sibling, file in zip(siblings, commit.tree.values(), strict=True):
            lfs = {"sha256": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
            sibling.update(size=len(file.content), blobId=file.blob_id, **({"lfs": lfs} if file.lfs else {}))
    info = {
        "id": repo,
        "sha": commit.sha,
        "private": found.private,
        "gated": False,
        "disabled": False,
        "tags": [],
        "lastModified": DATE,
    }
    return _json({**info, "siblings": siblings})


def _entry(path: str, file: File | None) -> dict[str, Any]:
    """A file, or a folder (None), as in answers of tree and paths-info."""
    if file is None:
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
    size = len(file.content)
    lfs = {"lfs": {"oid": file.sha256, "size": size, "pointerSize": len(file.pointer)}} if file.lfs else {}
    return {"type": "file", "path": path, "size": size, "oid": file.blob_id, **lfs}


def _entries(commit: Commit) -> dict[str, dict[str, Any]]:
    """All files and folders of a commit, by path."""
    folders = {parent.as_posix() for path in commit.tree for parent in PurePosixPath(path).parents} - {"."}
    return {path: _entry(path, commit.tree.get(path)) for path in sorted({*folders, *commit.tree})}


def _with_commit(call: Call, entries: list[dict[str, Any]], commit: Commit, expand: bool) -> Answer:
    last = {"lastCommit": {"id": commit.sha, "title": commit.title, "date": DATE}} if expand else {}
    return _json([{**entry, **last} for entry in entries])


@route("GET", f"{API}/tree/<revision>/<path>")
@route("GET", f"{API}/tree/<revision>")
def tree(call: Call, repo: str, revision: str, path: str = "") -> Answer:
    commit = call.commit(call.repo(repo), revision)
    root = f"{path.rstrip('/')}/" if path else ""
    below = {name: entry for name, entry in _entries(commit).items() if name.startswith(root)}
    if root and not below:
        raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
    recursive = _true(call.query.get("recursive"))
    listed = [entry for name, entry in below.items() if recursive or "/" not in name.removeprefix(root)]
    return _with_commit(call, listed, commit, _true(call.query.get("expand")))


def _true(values: list[str] | None) -> bool:
    return bool(values) and values[0].lower() in ("true", "1")  # type: ignore[index]


@route("POST", f"{API}/paths-info/<revision>")
def paths_info(call: Call, repo: str, revision: str) -> Answer:
    commit = call.commit(call.repo(repo), revision)
    entries = _entries(commit)
    asked = [entries[path] for path in call.form("paths") if path in entries]
    return _with_commit(call, asked, commit, _true(call.form("expand")))


@route("GET", f"{API}/refs")
def refs(call: Call, repo: str) -> Answer:
    found = call.repo(repo)
    kinds = (("branches", "heads", found.branches), ("tags", "tags", found.tags))
    told = {
        key: [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in named.items()]
        for key, kind, named in kinds
    }
    return _json({**told, "converts": []})


@route("GET", f"{API}/commits/<revision>")
def commits(call: Call, repo: str, revision: str) -> Answer:
    found = call.repo(repo)

    def history(sha: str | None) -> Iterator[Commit]:
        while sha is not None:
            yield found.commits[sha]
            sha = found.commits[sha].parent

    authors = [{"user": "tester"}]
    listed = history(call.commit(found, revision).sha)
    return _json(
        [{"id": c.sha, "title": c.title, "message": "", "authors": authors, "date": DATE} for c in listed]
    )


@route("POST DELETE", f"{API}/branch/<name>")
def branch(call: Call, repo: str, name: str) -> Answer:
    found = call.repo(repo)
    call.may_write(repo)
    if call.method == "DELETE":
        call.commit(found, name)
        del found.branches[name]
        return _json({})
    if name in found.branches:
        raise Refusal(409, f"Branch {name} already exists")
    found.branches[name] = call.commit(found, call.json.get("startingPoint") or "main").sha
    return _json({})


@route("POST DELETE", f"{API}/tag/<name>")
def tag(call: Call, repo: str, name: str) -> Answer:
    """To make a tag, the path has the revision and the body the tag."""
    found = call.repo(repo)
    call.may_write(repo)
    if call.method == "DELETE":
        call.commit(found, name)
        del found.tags[name]
        return _json({})
    asked = call.json["tag"]
    if asked in found.tags:
        raise Refusal(409, f"Tag {asked} already exists")
    found.tags[asked] = call.commit(found, name).sha
    return _json({})


@route("POST", f"{API}/preupload/<revision>")
def preupload(call: Call, repo: str, revision: str) -> Answer:
    present = call.commit(call.repo(repo), revision).tree
    call.may_write(repo)
    told = []
    for asked in call.json["files"]:
        mode = "lfs" if is_large(asked["path"], asked["size"]) else "regular"
        file = present.get(asked["path"])
        told.append(
            {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": file and file.etag}
        )
    return _json({"files": told})


@route("POST", f"{PAGE}.git/info/lfs/objects/batch")
def lfs_batch(call: Call, repo: str) -> Answer:
    call.repo(repo)
    call.may_write(repo)
    objects = []
    for asked in call.json["objects"]:
        known = {"oid": asked["oid"], "size": asked["size"]}
        upload, verify = (
            f"{call.hub.storage_url}/{asked['oid']}",
            f"{call.hub.url}{call.repo(repo).page}.git/info/lfs/verify",
        )
        urls = {"upload": upload, "verify": verify}
        missing = (
            {}
            if asked["oid"] in call.hub.storage
            else {"actions": {name: {"href": url} for name, url in urls.items()}}
        )
        objects.append({**known, **missing})
    return _json({"transfer": "basic", "objects": objects})


@route("POST", f"{PAGE}.git/info/lfs/verify")
def lfs_verify(call: Call, repo: str) -> Answer:
    call.may_write(repo)
    content = call.hub.storage.get(call.json["oid"])
    if content is None or len(content) != call.json["size"]:
        raise Refusal(404, "No such object")
    return _json({})


@route("PUT", "/storage/<oid>")
def store(call: Call, oid: str) -> Answer:
    if hashlib.sha256(call.body).hexdigest() != oid:
        raise Refusal(400, "The content is not what its name says")
    call.hub.storage[oid] = call.body
    return Answer()


@route("POST", f"{API}/commit/<revision>")
def commit(call: Call, repo: str, revision: str) -> Answer:
    found = call.repo(repo)
    call.may_write(repo)
    before = call.commit(found, revision)
    if revision not in found.branches:
        raise Refusal(400, "Commits go to a branch")
    lines = [json.loads(line) for line in call.body.splitlines()]
    (header,) = (line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit", before.sha) != before.sha:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(before.tree)
    for line in lines:
        _apply(call.hub, line["key"], line["value"], files)
    made = call.hub.commit(found, revision, files, header["summary"])
    return _json(
        {"success": True, "commitOid": made.sha, "commitUrl": f"{call.hub.url}{found.page}/commit/{made.sha}"}
    )


def _apply(hub: LoopbackHub, key: str, value: Mapping[str, Any], files: dict[str, File]) -> None:
    """Apply one line of a commit."""
    if key == "file":
        files[value["path"]] = File(base64.b64decode(value["content"]), False)
    elif key == "lfsFile":
        content = hub.storage.get(value["oid"])
        if content is None or len(content) != value.get("size", len(content)):
            raise Refusal(400, f"LFS pointer of {value['path']} points to a file that does not exist")
        files[value["path"]] = File(content, True)
    elif key == "deletedFile":
        del files[value["path"]]
    elif key == "deletedFolder":
        for path in [path for path in files if path.startswith(value["path"].rstrip("/") + "/")]:
            del files[path]


@route("HEAD GET", f"{PAGE}/resolve/<revision>/<path>")
def resolve(call: Call, repo: str, revision: str, path: str) -> Answer:
    commit = call.commit(call.repo(repo), revision)
    file = commit.tree.get(path)
    if file is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.etag}"'}
    if not file.lfs:
        return _ranged(call, file.content, headers)
    linked = {
        "X-Linked-Size": str(len(file.content)),
        "X-Linked-Etag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
    }
    location = f"{call.hub.storage_url}/{file.sha256}?name={quote(path, safe='')}"
    return Answer(302, b"", {**headers, **linked, "Location": location})


@route("HEAD GET", "/storage/<oid>")
def storage(call: Call, oid: str) -> Answer:
    if oid not in call.hub.storage:
        raise Refusal(404, "No such object")
    return _ranged(call, call.hub.storage[oid], {"ETag": f'"{oid}"'})


def _ranged(call: Call, content: bytes, headers: Mapping[str, str]) -> Answer:
    """The content, or the requested range of it."""
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("range") or "")
    if asked is None or asked[0] == "bytes=-":
        return Answer(200, content, headers)
    size = len(content)
    if asked[1]:
        start, stop = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
    else:
        start, stop = max(size - int(asked[2]), 0), size
    if start >= stop:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
    return Answer(206, content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})


class _Handler(BaseHTTPRequestHandler):
    """Reads requests, applies faults, and sends the answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm: ClassVar[bool] = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the hub keeps its own log."""

    @property
    def hub(self) -> LoopbackHub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that was killed, or gave up
            super().handle_one_request()
            return
        self.close_connection = True

    def _handle(self) -> None:
        hub, parts = self.hub, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._body(headers)
        if hub.on_headers is not None:
            hub.on_headers(headers)
        call = Call(
            hub, self.command, parts.path, parse_qs(parts.query, keep_blank_values=True), headers, body
        )
        with hub.lock:
            # a request that is answered after `clear` is not in the new log
            number, log = next(hub.numbers), hub.requests
            fault = hub.faults(number, call.method, call.path) if hub.faults else None
        if fault == "stall":
            hub.stopped.wait(hub.stall_seconds)
        if isinstance(fault, int):
            reply = Answer(
                fault,
                b"Something went wrong",
                {"Retry-After": str(hub.retry_after)} if fault in (429, 503) else {},
            )
        elif fault in ("drop", "stall"):
            reply = Answer(0)
        else:
            with hub.lock:
                reply = answer(call)
        if callable(fault):
            reply, fault = fault(reply), None
        self._send(call, number, log, reply, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            body = self.rfile.read(int(headers.get("content-length") or 0))
        else:
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(chunks)
        return body

    def _send(self, call: Call, number: int, log: list[Request], reply: Answer, fault: Fault | None) -> None:
        """Send an answer as the fault allows; it is logged before the client receives it."""
        if not isinstance(reply.body, bytes):
            log.append(Request(number, call.method, call.path, call.headers.get("range"), reply.status, 0))
            self._send_parts(reply)
            return
        body = b"" if call.method == "HEAD" else reply.body
        if fault == "corrupt" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        silent = fault in ("drop", "stall", "drop after")
        sent = b"" if silent else body[: len(body) // 2] if fault == "cut" else body
        log.append(
            Request(
                number,
                call.method,
                call.path,
                call.headers.get("range"),
                0 if silent else reply.status,
                len(sent),
            )
        )
        if silent or fault == "cut":
            self.close_connection = True
        if silent:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    def _send_parts(self, reply: Answer) -> None:
        self.close_connection = True
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        for part in reply.body:
            if self.hub.stopped.is_set():
                break
            assert isinstance(part, bytes)
            self.wfile.write(part)
            self.wfile.flush()
