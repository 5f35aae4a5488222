"""Estimators from a Hub that answers anything at all: bounded, checked, kept for offline use."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.utils import _http

from nws_dataset import http, remote
from nws_dataset.baselines.predictors import LogitLinear
from nws_dataset.errors import ZooError
from nws_dataset.remote import CommitCache, download
from testing.loopback_hub import TOKEN, Answer, LoopbackHub

REPO = "org/linear"
PATTERNS = ["*.json", "*.safetensors", "*.txt"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(http, "PAUSES", (0.0,))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))


@pytest.fixture
def predictor() -> LogitLinear:
    X = np.linspace(0, 1, 40).reshape(-1, 1)
    return LogitLinear(random_state=0).fit(X, X[:, 0])


FILES = {
    "estimator.json": b"{}",
    "arrays.safetensors": b"x" * 2000,
    "trees.txt": b"trees",
    "README.md": b"# A",
    "a/b.txt": b"no",
    "x.bin": b"no",
}


@pytest.fixture
def model(hub: LoopbackHub) -> LoopbackHub:
    hub.create(REPO, kind="model")
    hub.put(REPO, FILES)
    return hub


def fetched(**options: Any) -> dict[str, bytes]:
    with download(REPO, PATTERNS, **options) as folder:
        return {path.name: path.read_bytes() for path in folder.iterdir()}


WANTED = {
    name: content
    for name, content in FILES.items()
    if name in ("estimator.json", "arrays.safetensors", "trees.txt")
}


def answering(
    hub: LoopbackHub, part: str, make: Callable[[Answer], Answer], times: int | None = None
) -> None:
    left = itertools.count() if times is None else iter(range(times))
    hub.faults = lambda number, method, path: make if part in path and next(left, None) is not None else None


def refused(match: str = ": expected ", **options: Any) -> None:
    with pytest.raises(ZooError, match=match) as error:
        fetched(**options)
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)


def test_what_is_wanted(model: LoopbackHub) -> None:
    assert fetched() == WANTED
    sent = sum(request.sent for request in model.requests if "/storage/" in request.path)
    model.clear()
    assert sent == 2000 and fetched() == WANTED
    assert not any("/storage/" in request.path for request in model.requests)  # it is kept


def test_offline(model: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = model.repos[REPO].branches["main"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    fetched()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model.clear()
    assert fetched() == fetched(revision=commit) == WANTED and not model.requests
    refused("HF_HUB_OFFLINE is set", revision="v2")


def test_a_damaged_copy_is_fetched_again(model: LoopbackHub, tmp_path: Path) -> None:
    fetched()
    for name, content in WANTED.items():
        (kept,) = (tmp_path / "home").rglob(name)
        for damage in (b"", b"y" * len(content)):
            kept.write_bytes(damage)
            assert fetched() == WANTED


def test_nothing_can_be_kept(model: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "file"))
    assert fetched() == WANTED


@pytest.mark.parametrize("bad", ["empty", b"y" * 2000, "endless", "encoded", "elsewhere"])
def test_one_bad_answer_is_asked_for_again(model: LoopbackHub, bad: Any) -> None:
    def make(reply: Answer) -> Answer:
        if bad == "endless":
            return dataclasses.replace(reply, body=itertools.repeat(b"x" * 1000))
        if bad in ("encoded", "elsewhere"):
            more = {"Content-Encoding": "gzip"} if bad == "encoded" else {"X-Repo-Commit": "../../x"}
            return dataclasses.replace(reply, headers={**reply.headers, **more})
        return dataclasses.replace(reply, body=bad if isinstance(bad, bytes) else b"")

    answering(model, "/resolve/" if bad == "elsewhere" else "/storage/", make, times=1)
    assert fetched() == WANTED
    for kept in Path(remote.constants.HF_HOME).rglob("arrays.safetensors"):
        kept.unlink()
    answering(model, "/resolve/" if bad == "elsewhere" else "/storage/", make)
    refused()


@pytest.mark.parametrize(
    "path",
    [
        "../x.txt",
        "{tmp_path}/evil.txt",
        "..",
        "a\0.txt",
        "a\\b.txt",
        "x" * 5000 + ".txt",
        "\ud800.txt",
        "a\n.txt",
        "",
    ],
    ids=lambda p: repr(p)[:12],
)
def test_names_of_files_stay_inside(model: LoopbackHub, tmp_path: Path, path: str) -> None:
    entry = {"type": "file", "path": path.format(tmp_path=tmp_path), "size": 0, "oid": "0" * 40}
    answering(model, "/tree/", lambda reply: Answer(200, json.dumps([entry]).encode()))
    before = {found for found in tmp_path.rglob("*") if found.is_file()}
    try:
        fetched()
    except ZooError as error:
        assert "\n" not in str(error)
    after = {found for found in tmp_path.rglob("*") if found.is_file()} - before
    assert all("revisions" in found.parts for found in after) and not Path("{tmp_path}/evil.txt").exists()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"[5]",
        b"5",
        b"{}",
        b"[" * 100_000,
        b"9" * 5000,
        b'{"sha": 5}',
        b'{"sha": "main"}',
    ],
    ids=lambda b: str(b[:12]),
)
@pytest.mark.parametrize("part", ["/revision/", "/tree/"])
def test_any_body(model: LoopbackHub, part: str, body: bytes) -> None:
    answering(model, part, lambda reply: Answer(200, body))
    if part == "/tree/" and body in (b"[]", b"{}"):
        assert fetched() == {}
    else:
        refused()


@pytest.mark.parametrize("size", [1 << 31, 10**30])
def test_an_estimator_of_a_terabyte(model: LoopbackHub, size: int) -> None:
    entry = {"type": "file", "path": "arrays.safetensors", "size": size, "oid": "0" * 40}
    answering(model, "/tree/", lambda reply: Answer(200, json.dumps([entry]).encode()))
    refused("expected at most 1073741824 bytes")


@pytest.mark.parametrize(
    "name",
    ["..", "org/..", "org/a/b", "x" * 5000, "a\0b", "./x", "/tmp/x", "\udcff", ""],
    ids=lambda name: repr(name)[:12],
)
def test_a_name_of_any_kind(name: str) -> None:
    with pytest.raises(ZooError) as error:
        LogitLinear.from_pretrained(name)
    assert "\n" not in str(error.value)


def test_the_commits_of_revisions(tmp_path: Path) -> None:
    kept = CommitCache(tmp_path, "../..")
    assert kept.folder.parent == tmp_path and kept.folder.name not in ("..", ".")
    kept.keep("..", "0" * 40, {"a.txt": b"a"})
    assert kept.commit("..") == "0" * 40 and kept.commit("1" * 40) == "1" * 40 and kept.commit("v1") is None
    assert kept.path("0" * 40, "a.txt").read_bytes() == b"a"


# --- Pushing ---


def test_a_push_is_bounded_too(
    hub: LoopbackHub, predictor: LogitLinear, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _http._GLOBAL_CLIENT_FACTORY
    for part, make, match in (
        (
            "/repos/create",
            lambda reply: Answer(307, b"", {"Location": "/api/repos/create"}),
            "more than 5 redirects",
        ),
        ("/repos/create", lambda reply: Answer(200, b"[]"), "expected an answer from the Hub"),
        ("/repos/create", lambda reply: Answer(302, b""), "to no address"),
        ("/preupload/", lambda reply: Answer(200, b"{}"), "expected an answer from the Hub"),
        ("/commit/", lambda reply: Answer(200, b"[]"), "expected an answer from the Hub"),
        (
            "/repos/create",
            lambda reply: Answer(200, itertools.repeat(b"x" * 10_000)),
            "an answer of more than",
        ),
    ):
        monkeypatch.setattr(http, "MAX_JSON_BYTES", 100_000)
        answering(hub, part, make)  # type: ignore[arg-type]
        with pytest.raises(ZooError, match=match) as error:
            predictor.push_to_hub(REPO)
        assert TOKEN not in str(error.value)
    assert _http._GLOBAL_CLIENT_FACTORY is before  # huggingface_hub's own client again
    hub.faults = None
    predictor.push_to_hub(REPO)
    X = np.linspace(0, 1, 40).reshape(-1, 1)
    assert np.array_equal(LogitLinear.from_pretrained(REPO).predict(X), predictor.predict(X))
    assert os.environ["HF_TOKEN"] == TOKEN
