"""A Hub, or somebody between it and here, that answers anything at all: one line, in time, and nothing is
written or sent elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nws_dataset import http
from nws_dataset.errors import ZooError
from nws_dataset.reading import hub as hub_module
from nws_dataset.reading.zoo import Zoo
from testing.loopback_hub import TOKEN, Answer, Faults, LoopbackHub
from testing.zoo_factory import make_zoo

REPOSITORY = "org/nws"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws")


@pytest.fixture(scope="module")
def local(folder: Path) -> Zoo:
    return Zoo(folder)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSES", (0.01,) * 6)


@pytest.fixture
def remote(hub: LoopbackHub, folder: Path, tmp_path: Path) -> Callable[..., Zoo]:
    """Opens the zoo on the Hub, with a cache of its own."""
    hub.put(REPOSITORY, folder)
    return lambda **options: Zoo(REPOSITORY, **{"cache_dir": tmp_path / "cache", **options})


def answers(part: str, make: Callable[[Answer], Answer], times: int | None = None) -> Faults:
    """Another answer to requests whose path has this part: each time, or the first ones."""
    left = itertools.count() if times is None else iter(range(times))
    return lambda number, method, path: make if part in path and next(left, None) is not None else None


def with_headers(**headers: str) -> Callable[[Answer], Answer]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda reply: dataclasses.replace(reply, headers={**reply.headers, **named})


def with_body(body: bytes) -> Callable[[Answer], Answer]:
    return lambda reply: dataclasses.replace(reply, body=body)


def endless(part: bytes) -> Callable[[Answer], Answer]:
    return lambda reply: dataclasses.replace(reply, body=itertools.repeat(part))


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def refused(call: Callable[[], Any], match: str = ": expected ") -> None:
    with pytest.raises(ZooError, match=match) as error:
        call()
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)


# --- What becomes a path ---

COMMITS = [
    "../../../evil",
    "{tmp_path}/evil",
    "..",
    ".",
    "",
    "main",
    "0" * 39,
    "0" * 41,
    "A" * 40,
    "0" * 39 + "g",
    "0" * 40 + "/../../evil",
    "\x00" * 40,
]


@pytest.mark.parametrize("commit", COMMITS, ids=repr)
def test_a_commit_that_is_none(
    remote: Callable[..., Zoo], hub: LoopbackHub, tmp_path: Path, commit: str
) -> None:
    before = files_below(tmp_path)
    hub.faults = answers("nws.json", with_headers(X_Repo_Commit=commit.format(tmp_path=tmp_path)))
    refused(remote)
    assert files_below(tmp_path) == before


def test_a_commit_that_was_not_asked_for(remote: Callable[..., Zoo], hub: LoopbackHub) -> None:
    commit = hub.repos[REPOSITORY].branches["main"]
    hub.faults = answers("nws.json", with_headers(X_Repo_Commit="0" * 40))
    assert remote().files.revision == "0" * 40
    refused(lambda: remote(revision=commit), f"commit '{'0' * 40}', not {commit}")


@pytest.mark.parametrize(
    "revision",
    ["..", ".", "../../../evil", "a\0b", "a\nb", "\udcff", "x" * 5000, "/", "refs/pr/1", "%2e%2e"],
    ids=lambda r: repr(r)[:20],
)
def test_a_revision_of_any_kind(
    remote: Callable[..., Zoo],
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    revision: str,
) -> None:
    refused(lambda: remote(revision=revision))
    hub.faults = lambda number, method, path: (
        lambda reply: Answer(200, hub.file(REPOSITORY, "nws.json"), {"X-Repo-Commit": "0" * 40})
    )
    with contextlib.suppress(ZooError):
        remote(revision=revision)
    kept = {
        path.relative_to(tmp_path / "cache/nws/repositories/org%2Fnws").parts
        for path in files_below(tmp_path)
        if "org%2Fnws" in path.parts
    }
    assert all(parts[0] == "revisions" or parts == ("0" * 40, "nws.json") for parts in kept)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if kept:
        assert remote(revision=revision).files.revision == "0" * 40
    else:
        refused(lambda: remote(revision=revision))


@pytest.mark.parametrize(
    "name",
    [
        "org/..",
        "../nws",
        "org/a/b",
        "org/" + "x" * 5000,
        "x" * 5000 + "/nws",
        "a\0b/c",
        "org/n\udcff",
        "org/nws\n",
        "",
    ],
    ids=lambda r: repr(r)[:20],
)
def test_a_name_of_any_kind(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    refused(lambda: hub_module.Repository(name, cache_dir=tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


# --- Bodies without bound ---


def test_endless_nws_json(
    remote: Callable[..., Zoo], hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_JSON_BYTES", 100_000)
    hub.faults = answers("nws.json", endless(b" " * 10_000))
    refused(remote, "an answer of more than 100000 bytes")


@pytest.mark.parametrize("what", ["index", "weights"])
def test_endless_ranges(remote: Callable[..., Zoo], hub: LoopbackHub, local: Zoo, what: str) -> None:
    zoo = remote()
    if what == "weights":
        assert len(zoo.index)
    hub.faults = answers("/storage/", endless(b"x" * 10_000))
    snapshot = local.filter()[0]
    refused(
        (lambda: zoo.row(snapshot)) if what == "weights" else (lambda: zoo.index),
        r"an answer of more than "
        r"\d+ bytes",
    )


def test_a_bomb(remote: Callable[..., Zoo], hub: LoopbackHub) -> None:
    hub.faults = answers("nws.json", with_headers(Content_Encoding="gzip"))
    refused(remote, "in the encoding gzip")


def test_one_byte_at_a_time(
    remote: Callable[..., Zoo], hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "DEADLINE_SECONDS", 0.05)
    pause = hub.stopped.wait
    hub.faults = answers(
        "nws.json",
        lambda reply: dataclasses.replace(reply, body=iter(lambda: b" " if not pause(0.02) else b"", None)),
    )
    refused(remote, "an answer that comes too slowly")
    assert len(hub.requests) == 1  # trying again would take as long


def test_a_value_of_a_terabyte(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    """nws.json may say what it likes about sizes."""
    data = json.loads((folder / "nws.json").read_text())
    for entry in data["files"].values():
        entry["size"] = 1 << 40
    hub.put(REPOSITORY, folder)
    hub.put(REPOSITORY, {"nws.json": json.dumps(data).encode()})
    hub.clear()
    refused(lambda: Zoo(REPOSITORY, cache_dir=tmp_path / "cache").index, "expected at most 1073741824 bytes")
    assert len(hub.requests) == 1


# --- Answers of the wrong kind ---


@pytest.mark.parametrize(
    "location",
    [
        None,
        "http://[",
        "http://a:99999999/",
        "file:///etc/passwd",
        "ftp://x/",
        "http://" + "a" * 300 + "/",
        "",
        "//",
    ],
    ids=str,
)
def test_redirects_to_nowhere(remote: Callable[..., Zoo], hub: LoopbackHub, location: str | None) -> None:
    zoo = remote()
    headers = {} if location is None else {"Location": location}
    hub.faults = answers("/resolve/", lambda reply: Answer(302, b"", headers))
    refused(lambda: zoo.index)
    refused(remote)


def test_a_redirect_loop(remote: Callable[..., Zoo], hub: LoopbackHub) -> None:
    number = itertools.count()
    hub.faults = lambda *_: lambda reply: Answer(302, b"", {"Location": f"{hub.url}/a?{next(number)}"})
    refused(remote, "more than 5 redirects")
    assert len(hub.requests) <= http.TRIES * (http.MAX_REDIRECTS + 1)


@pytest.mark.parametrize(
    "content_range",
    ["", "bytes", "bytes */*", "bytes 7-9/10", "bytes -1--2/3", "items 0-1/2", "bytes 0-²/5", "9" * 5000],
    ids=lambda r: r[:20],
)
def test_ranges_that_are_none(remote: Callable[..., Zoo], hub: LoopbackHub, content_range: str) -> None:
    zoo = remote()
    hub.faults = answers("/storage/", with_headers(Content_Range=content_range))
    refused(lambda: zoo.index, "an answer from the Hub")


@pytest.mark.parametrize(
    "status", [103, 200, 204, 205, 226, 304, 400, 402, 416, 418, 451, 501, 505, 599, 600, 999]
)
def test_any_status(
    remote: Callable[..., Zoo], hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    zoo = remote()
    # after 103 another answer is awaited
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.faults = answers(
        "/storage/", lambda reply: Answer(status, b"" if status in (204, 205, 304) else b"hello")
    )
    refused(lambda: zoo.index)


BODIES = [
    b"",
    b"null",
    b"[]",
    b"5",
    b'"x"',
    b"{}",
    b"[" * 100_000,
    b"9" * 5000,
    b"\xff\xfe",
    b'{"error": 5}',
    b'{"errors": [3]}',
    b'{"error": {}}',
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: str(body[:20]))
@pytest.mark.parametrize("status", [200, 400, 403, 404, 429])
def test_any_body(
    remote: Callable[..., Zoo], hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes
) -> None:
    monkeypatch.setattr(http, "PAUSES", (0.0,))
    hub.faults = answers(
        "nws.json",
        lambda reply: Answer(
            status, body, {"X-Repo-Commit": "0" * 40, "X-Error-Code": "²", "X-Error-Message": "a"}
        ),
    )
    refused(remote)


@pytest.mark.parametrize(
    "asked", ["²", "-5", "soon", "Wed, 21 Oct 2099 07:28:00 GMT", "9" * 5000, "nan"], ids=lambda r: r[:10]
)
def test_a_wait_that_is_no_number(remote: Callable[..., Zoo], hub: LoopbackHub, asked: str) -> None:
    hub.faults = answers("nws.json", lambda reply: Answer(503, b"", {"Retry-After": asked}), times=1)
    assert len(remote().index)


def test_a_wait_of_years(
    remote: Callable[..., Zoo],
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(http.time, "sleep", naps.append)
    hub.faults = answers("nws.json", lambda reply: Answer(429, b"", {"Retry-After": "999999999"}), times=2)
    with caplog.at_level(logging.WARNING, "nws_dataset"):
        remote()
    assert naps == [300.0, 300.0]
    assert [record.getMessage() for record in caplog.records] == [
        "127.0.0.1 is busy (status 429): trying again in 300 s"
    ] * 2


def test_a_failure_does_not_wait_for_the_others(
    remote: Callable[..., Zoo], hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server keeps the first request waiting, the others are damaged: the first is not asked again."""
    zoo = remote()
    snapshots = zoo.filter(is_final=True)
    monkeypatch.setattr(http, "MAX_WAIT", 2.0)
    number = itertools.count()
    hub.faults = answers(
        "/storage/",
        lambda reply: Answer(503, b"", {"Retry-After": "9"}) if next(number) == 0 else flipped(reply),
    )
    hub.clear()
    refused(lambda: zoo.arrays(snapshots), "expected sha256")
    (kept_waiting,) = [(request.path, request.range) for request in hub.requests if request.status == 503]
    assert [(request.path, request.range) for request in hub.requests].count(kept_waiting) == 1


# --- Tokens ---


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_another_host_or_port_gets_no_token(remote: Callable[..., Zoo], hub: LoopbackHub, host: str) -> None:
    with LoopbackHub() as other:
        seen: list[Any] = []
        hub.faults = answers(
            "nws.json",
            lambda reply: Answer(302, b"", {**reply.headers, "Location": f"http://{host}:{other.port}/x"}),
        )
        other.faults = lambda *_: lambda reply: Answer(200, hub.file(REPOSITORY, "nws.json"))
        other.on_headers = seen.append
        zoo = remote(token=TOKEN)
    assert len(zoo.subsets) == 1
    assert seen and not any("authorization" in headers for headers in seen)


@pytest.mark.parametrize("token", ["hf_é", "hf_\n", "hf_secret\nX: y", "\udcff", "hf_ secret\t"], ids=repr)
def test_tokens_that_are_none(remote: Callable[..., Zoo], token: str) -> None:
    with pytest.raises(ZooError) as error:
        remote(token=token)
    assert "hf_secret" not in str(error.value) and "\n" not in str(error.value)


# --- What is good stays, and what passes is asked again ---


BAD = {
    "empty": b"",
    "no json": b"<html>",
    "of another format": b'{"format_version": 1}',
    "incomplete": b'{"format_version": 3}',
    "of other types": b'{"format_version": 3, "files": 5, "subsets": [], "generator_version": {}}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_a_bad_answer_replaces_nothing(
    remote: Callable[..., Zoo], hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    good = remote()
    before = {path: path.read_bytes() for path in files_below(tmp_path / "cache")}
    hub.faults = answers("nws.json", with_body(body))
    refused(remote)
    assert {path: path.read_bytes() for path in files_below(tmp_path / "cache")} == before
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again = remote()
    assert again.subsets == good.subsets and again.name == good.name


@pytest.mark.parametrize(
    "bad",
    [
        with_body(b"{}"),
        with_headers(Content_Encoding="gzip"),
        with_headers(X_Repo_Commit="x"),
        lambda reply: Answer(200, b""),
    ],
)
def test_one_bad_nws_json_is_asked_for_again(
    remote: Callable[..., Zoo], hub: LoopbackHub, bad: Callable[[Answer], Answer]
) -> None:
    hub.faults = answers("nws.json", bad, times=1)
    assert len(remote().index)


def flipped(reply: Answer) -> Answer:
    assert isinstance(reply.body, bytes)
    return dataclasses.replace(reply, body=bytes([reply.body[0] ^ 1]) + reply.body[1:])


RANGES: dict[str, Callable[[Answer], Answer]] = {
    "flipped": flipped,
    "short": lambda reply: dataclasses.replace(reply, body=reply.body[:-1]),  # type: ignore[index]
    "empty": with_body(b""),
    "whole": lambda reply: dataclasses.replace(reply, status=200),
    "elsewhere": with_headers(Content_Range="bytes 7-9/10"),
    "encoded": with_headers(Content_Encoding="gzip"),
    "endless": endless(b"x" * 10_000),
}


@pytest.mark.parametrize("bad", RANGES.values(), ids=RANGES)
def test_one_bad_range_is_asked_for_again(
    remote: Callable[..., Zoo], hub: LoopbackHub, local: Zoo, bad: Callable[[Answer], Answer]
) -> None:
    zoo = remote()
    snapshots = zoo.filter(is_final=True)
    hub.faults = answers("/storage/", bad, times=1)
    snapshot = snapshots[0]
    assert np.array_equal(zoo.row(snapshot), local.row(local.filter(is_final=True)[0]))
    hub.faults = answers("/storage/", bad)
    refused(lambda: zoo.row(snapshots[1]))


# --- A cache that is in the way ---


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing can be made or written, as on a read-only disk; the superuser too."""

    def refuse(*args: object, **options: object) -> Any:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "write_bytes", "write_text", "unlink", "touch"):
        monkeypatch.setattr(Path, name, refuse)
    for name in ("utime", "replace", "mkdir", "remove", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    yield


def test_a_cache_on_a_full_or_read_only_disk(
    remote: Callable[..., Zoo], local: Zoo, unwritable: None, tmp_path: Path
) -> None:
    zoo = remote()
    snapshot = zoo.filter()[0]
    assert np.array_equal(zoo.row(snapshot), local.row(snapshot)) and not files_below(tmp_path / "cache")


def test_a_read_only_cache_serves_offline(
    remote: Callable[..., Zoo], local: Zoo, hub: LoopbackHub, request: pytest.FixtureRequest
) -> None:
    zoo = remote()
    snapshot = zoo.filter()[0]
    zoo.row(snapshot)
    request.getfixturevalue("monkeypatch").setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    request.getfixturevalue("unwritable")
    hub.clear()
    assert np.array_equal(remote().row(snapshot), local.row(snapshot)) and not hub.requests


@pytest.mark.parametrize("cache_dir", ["file", "x" * 5000, "a\0b"], ids=lambda name: repr(name)[:10])
def test_a_cache_dir_that_cannot_be(remote: Callable[..., Zoo], tmp_path: Path, cache_dir: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert len(remote(cache_dir=tmp_path / cache_dir).index)


# --- Offline ---


@pytest.mark.parametrize(
    "damage", ["none", "empty", "text", "folder", "binary", "outside", "no nws.json", "bad nws.json"]
)
def test_offline(
    remote: Callable[..., Zoo], hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    zoo = remote()
    commit = zoo.files.revision
    kept = tmp_path / "cache/nws/repositories/org%2Fnws"
    reference, manifest = kept / "revisions/main", kept / commit / "nws.json"
    assert reference.read_text() == commit
    contents = {"empty": b"", "text": b"main", "binary": b"\xff" * 40, "outside": b"../../../evil"}
    if damage in contents:
        reference.write_bytes(contents[damage])
    elif damage == "folder":
        reference.unlink()
        reference.mkdir()
    elif damage == "no nws.json":
        manifest.unlink()
    elif damage == "bad nws.json":
        manifest.write_bytes(b"[" * 100_000)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.clear()
    if damage == "none":
        assert remote().subsets == zoo.subsets
    else:
        refused(remote)
    if "nws.json" not in damage:
        # the commit itself was never asked for by this name
        assert remote(revision=commit).subsets == zoo.subsets
    assert not hub.requests
