"""The Hub of the tests: huggingface_hub and datasets find in it what they expect, and its faults are what
they say.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, httpx

from testing.loopback_hub import READ_TOKEN, TOKEN, Fault, LoopbackHub, Tree, every_second
from testing.zoo_factory import make_zoo

REPO = "org/nws"
LARGE = bytes(range(256)) * 40  # of a .parquet file, so an LFS file


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    api = HfApi()
    api.create_repo(REPO, repo_type="dataset")
    return api


def commit(api: HfApi, message: str = "Files", **files: bytes) -> str:
    operations = [CommitOperationAdd(name.replace("_", "."), content) for name, content in files.items()]
    return api.create_commit(REPO, operations, commit_message=message, repo_type="dataset").oid


def get(path: str, range: str | None = None, revision: str = "main") -> httpx.Response:
    headers = {"Authorization": f"Bearer {TOKEN}", **({"Range": range} if range else {})}
    return get_session().get(hf_hub_url(REPO, path, repo_type="dataset", revision=revision), headers=headers)


# What it stores


def test_files_small_and_large(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    api.upload_file(path_or_fileobj=b"text", path_in_repo="README.md", repo_id=REPO, repo_type="dataset")
    (tmp_path / "large").write_bytes(LARGE)
    large = CommitOperationAdd("data/a.parquet", str(tmp_path / "large"))
    api.preupload_lfs_files(REPO, [large], repo_type="dataset")
    puts = [request for request in hub.requests if request.method == "PUT"]
    api.create_commit(
        REPO, [large, CommitOperationAdd("b.parquet", LARGE)], commit_message="Large", repo_type="dataset"
    )
    # sent once
    assert [request.path for request in hub.requests if request.method == "PUT"] == [put.path for put in puts]
    assert len(puts) == 1
    assert [
        path
        for path in hub.repos[REPO].commits[api.dataset_info(REPO).sha or ""].tree
        if path != ".gitattributes"
    ] == [
        "README.md",
        "b.parquet",
        "data/a.parquet",
    ]
    for name, content in (("README.md", b"text"), ("data/a.parquet", LARGE)):
        assert hub.file(REPO, name) == content
        assert (
            Path(hf_hub_download(REPO, name, repo_type="dataset", cache_dir=tmp_path / "cache")).read_bytes()
            == content
        )
    folder = snapshot_download(REPO, repo_type="dataset", cache_dir=tmp_path / "cache")
    assert (Path(folder) / "data" / "a.parquet").read_bytes() == LARGE


def test_what_it_tells_of_files(api: HfApi) -> None:
    commit(api, README_md=b"text", a_parquet=LARGE)
    small, large = api.get_paths_info(REPO, ["README.md", "a.parquet", "none"], repo_type="dataset")
    blob = hashlib.sha1(b"blob 4\0text").hexdigest()
    assert (small.path, small.size, small.blob_id, small.lfs) == ("README.md", 4, blob, None)  # type: ignore[union-attr]
    assert large.lfs.sha256 == hashlib.sha256(LARGE).hexdigest() and large.size == len(LARGE)  # type: ignore[union-attr]
    info = api.dataset_info(REPO, files_metadata=True)
    assert [(s.rfilename, s.size, s.blob_id) for s in info.siblings or []][1:] == [
        ("README.md", 4, blob),
        ("a.parquet", len(LARGE), large.blob_id),  # type: ignore[union-attr]
    ]


def test_the_tree(api: HfApi) -> None:
    operations = [CommitOperationAdd(path, b"x") for path in ("a/b/c.txt", "a/d.txt", "e.txt")]
    sha = api.create_commit(REPO, operations, commit_message="Deep", repo_type="dataset").oid

    def listed(path: str | None = None, **kwargs: bool) -> list[str]:
        return [entry.path for entry in api.list_repo_tree(REPO, path, repo_type="dataset", **kwargs)]

    assert listed() == [".gitattributes", "a", "e.txt"]
    assert listed("a") == ["a/b", "a/d.txt"]
    assert listed(recursive=True) == [".gitattributes", "a", "a/b", "a/b/c.txt", "a/d.txt", "e.txt"]
    (entry, *_) = api.list_repo_tree(REPO, "a/b", repo_type="dataset", expand=True)
    assert entry.last_commit is not None and entry.last_commit.oid == sha
    with pytest.raises(EntryNotFoundError):
        listed("nowhere")


def test_history(hub: LoopbackHub, api: HfApi) -> None:
    first = commit(api, a_txt=b"one", b_parquet=b"first")
    api.create_tag(REPO, tag="v1", repo_type="dataset")
    api.create_branch(REPO, branch="work/in progress", repo_type="dataset")
    second = commit(api, a_txt=b"two", b_parquet=b"second")
    for revision, small, large in (("main", b"two", b"second"), (second, b"two", b"second")):
        assert (get("a.txt", revision=revision).content, get("b.parquet", revision=revision).content) == (
            small,
            large,
        )
    for revision in (first, "v1", "work/in progress"):
        assert (get("a.txt", revision=revision).content, get("b.parquet", revision=revision).content) == (
            b"one",
            b"first",
        )
    refs = api.list_repo_refs(REPO, repo_type="dataset")
    assert {branch.name: branch.target_commit for branch in refs.branches} == {
        "main": second,
        "work/in progress": first,
    }
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1": first}
    assert [c.commit_id for c in api.list_repo_commits(REPO, repo_type="dataset")][:2] == [second, first]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(REPO, tag="v1", repo_type="dataset")
    api.create_tag(REPO, tag="v1", repo_type="dataset", exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info(REPO, revision="v2")


def test_a_commit_is_whole_or_not_at_all(hub: LoopbackHub, api: HfApi) -> None:
    first = commit(api, a_txt=b"one")
    second = commit(api, b_txt=b"two")
    operations = [CommitOperationAdd("c.txt", b"three"), CommitOperationDelete("a.txt")]
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(REPO, operations, commit_message="Late", repo_type="dataset", parent_commit=first)
    assert api.dataset_info(REPO).sha == second
    lost = CommitOperationAdd("d.parquet", LARGE)
    api.preupload_lfs_files(REPO, [lost], repo_type="dataset", free_memory=False)
    hub.storage.clear()
    with pytest.raises(HfHubHTTPError, match="does not exist"):
        api.create_commit(REPO, [*operations, lost], commit_message="Without its bytes", repo_type="dataset")
    assert api.dataset_info(REPO).sha == second
    seen: list[tuple[str, list[str]]] = []
    hub.on_commit = lambda repo, tree: seen.append((repo, list(tree)))
    api.create_commit(REPO, operations, commit_message="In time", repo_type="dataset", parent_commit=second)
    assert seen == [(REPO, [".gitattributes", "b.txt", "c.txt"])]


def test_who_may_do_what(hub: LoopbackHub, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api.whoami()["name"] == "tester"
    api.create_repo("org/secret", repo_type="dataset", private=True)
    assert api.dataset_info("org/secret").private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).dataset_info("org/secret")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_wrong").dataset_info(REPO)
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token=READ_TOKEN).upload_file(
            path_or_fileobj=b"", path_in_repo="a", repo_id=REPO, repo_type="dataset"
        )
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("others/nws", repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO, repo_type="dataset")
    api.create_repo(REPO, repo_type="dataset", exist_ok=True)
    api.delete_repo("org/secret", repo_type="dataset")
    assert list(hub.repos) == [REPO]


@pytest.mark.parametrize("name", ["a.txt", "a.parquet"])
@pytest.mark.parametrize(
    ("range", "status", "expected"),
    [
        (None, 200, slice(None)),
        ("bytes=2-5", 206, slice(2, 6)),
        ("bytes=10200-", 206, slice(10200, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=10000-99999", 206, slice(10000, None)),
        ("bytes=99999-", 416, slice(0)),
        ("bytes=0-1,4-5", 200, slice(None)),
    ],
)
def test_ranges(
    hub: LoopbackHub, api: HfApi, name: str, range: str | None, status: int, expected: slice
) -> None:
    hub.put(REPO, {name: LARGE})
    response = get(name, range)
    assert (response.status_code, response.content) == (status, LARGE[expected])
    assert response.headers["Accept-Ranges"] == "bytes"
    record = hub.requests[-1]
    assert (record.method, record.range, record.status, record.sent) == (
        "GET",
        range,
        status,
        len(LARGE[expected]),
    )
    if status == 206:
        start = LARGE[expected] and expected.indices(len(LARGE))[0]
        assert response.headers["Content-Range"].startswith(f"bytes {start}-")


def test_metadata_of_a_large_file_come_before_the_storage(hub: LoopbackHub, api: HfApi) -> None:
    sha = hub.put(REPO, {"a.parquet": LARGE})
    metadata = api.get_hf_file_metadata(url=hf_hub_url(REPO, "a.parquet", repo_type="dataset"))
    assert (metadata.commit_hash, metadata.etag, metadata.size) == (
        sha,
        hashlib.sha256(LARGE).hexdigest(),
        len(LARGE),
    )
    assert metadata.location.startswith(hub.storage_url)


# The data set


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset(hub: LoopbackHub, api: HfApi, tmp_path: Path, streaming: bool) -> None:
    zoo = make_zoo(tmp_path / "zoo", models=5)
    api.upload_folder(folder_path=zoo, repo_id=REPO, repo_type="dataset")
    for name in (None, "demo"):
        here = datasets.load_dataset(str(zoo), name, split="train", cache_dir=str(tmp_path / "here"))
        there = datasets.load_dataset(
            REPO, name, split="train", streaming=streaming, cache_dir=str(tmp_path / "there")
        )
        assert list(there) == list(here)
    assert any(request.path.startswith("/storage/") for request in hub.requests)


def test_a_folder_put_in_directly(hub: LoopbackHub, tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", models=5)
    (zoo / ".local.json").write_text("{}")
    hub.put(REPO, zoo, private=True)
    assert hub.requests == []
    listed = HfFileSystem().find(f"datasets/{REPO}")
    here = {path.relative_to(zoo).as_posix() for path in zoo.rglob("*") if path.is_file()} - {".local.json"}
    assert {path.removeprefix(f"datasets/{REPO}/") for path in listed} == {*here, ".gitattributes"}


def test_another_process(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.put(REPO, {"a.txt": b"text"}, private=True)
    code = (
        f"import huggingface_hub as h; print(open(h.hf_hub_download({REPO!r}, 'a.txt', "
        "repo_type='dataset')).read())"
    )
    environment = {**os.environ, **hub.environment(), "HF_HOME": str(tmp_path)}
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout
        == "text\n"
    )


# Faults


@pytest.mark.parametrize(
    ("fault", "raised", "done"),
    [
        (500, HfHubHTTPError, False),
        (503, HfHubHTTPError, False),
        (429, HfHubHTTPError, False),
        ("drop", httpx.RemoteProtocolError, False),
        ("stall", httpx.RemoteProtocolError, False),
        ("drop after", httpx.RemoteProtocolError, True),
        ("cut", httpx.RemoteProtocolError, True),
    ],
)
def test_faults(hub: LoopbackHub, api: HfApi, fault: Fault, raised: type[Exception], done: bool) -> None:
    hub.stall_seconds = 0.2
    hub.faults = lambda number, method, path: fault if path.endswith("/branch/work") else None
    start = time.monotonic()
    with pytest.raises(raised):
        api.create_branch(REPO, branch="work", repo_type="dataset")
    assert ("work" in hub.repos[REPO].branches) == done
    assert (time.monotonic() - start >= 0.2) == (fault == "stall")
    assert hub.requests[-1].status == (fault if isinstance(fault, int) else 200 if fault == "cut" else 0)


def test_a_flipped_byte_and_half_a_body(hub: LoopbackHub, api: HfApi) -> None:
    hub.put(REPO, {"a.parquet": LARGE})
    hub.faults = lambda number, method, path: "corrupt" if path.startswith("/storage/") else None
    content = get("a.parquet").content
    assert [a != b for a, b in zip(content, LARGE, strict=True)].count(True) == 1
    hub.faults = lambda number, method, path: "cut" if path.startswith("/storage/") else None
    with pytest.raises(httpx.RemoteProtocolError):
        get("a.parquet")
    assert hub.requests[-1].sent == len(LARGE) // 2


def test_every_second_request(hub: LoopbackHub, api: HfApi) -> None:
    hub.clear()
    hub.faults = every_second(503, 429)
    hub.retry_after = 1
    statuses = [get_session().get(f"{hub.url}/api/datasets/{REPO}").status_code for _ in range(6)]
    assert statuses == [200, 503, 200, 429, 200, 503]
    assert [request.number for request in hub.requests] == [1, 2, 3, 4, 5, 6]
    assert get_session().get(f"{hub.url}/api/datasets/{REPO}").status_code == 200
    assert get_session().get(f"{hub.url}/api/datasets/{REPO}").headers["Retry-After"] == "1"


def test_clients_try_again(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.put(REPO, {"a.parquet": LARGE})
    hub.clear()
    hub.faults = every_second("cut", 429)
    assert (
        Path(hf_hub_download(REPO, "a.parquet", repo_type="dataset", cache_dir=tmp_path)).read_bytes()
        == LARGE
    )
    assert [(request.method, request.sent) for request in hub.requests] == [
        ("HEAD", 0),
        ("GET", len(LARGE) // 2),
        ("GET", len(LARGE)),
    ]


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    """As a test without the fixture finds it: the address is reserved, and refuses at once."""
    idle = LoopbackHub()
    start = time.monotonic()
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, "a.txt", repo_type="dataset", endpoint=idle.url, cache_dir=tmp_path)
    assert time.monotonic() - start < 5
    idle.server.server_close()
    idle.home.cleanup()


def test_every_test_gets_an_empty_hub(hub: LoopbackHub) -> None:
    assert (hub.repos, hub.requests, hub.faults) == ({}, [], None)


def test_on_commit_sees_every_state(hub: LoopbackHub, api: HfApi) -> None:
    sizes: list[int] = []

    def check(repo: str, tree: Tree) -> None:
        sizes.append(len(tree))

    hub.on_commit = check
    for name in ("a_txt", "b_txt"):
        commit(api, **{name: b""})
    assert sizes == [2, 3]
