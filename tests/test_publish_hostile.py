"""Publishing to a Hub that answers anything at all: one line, in time, the token goes nowhere else, and
nothing is sent by mistake.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import errno
import io
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from builder.publish import Content, Publisher
from nws_dataset import http, remote
from nws_dataset.errors import ZooError
from testing.loopback_hub import TOKEN, Answer, LoopbackHub
from testing.zoo_factory import make_zoo

REPO = "org/nws"
INDEX = "index/demo/train.parquet"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(http, "PAUSES", (0.0,))
    yield
    set_client_factory(default_client_factory)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", models=4)


def push(folder: Path, **options: Any) -> None:
    publisher = Publisher(REPO, **options)
    publisher.prepare(Content.of(folder))
    publisher.push(folder)


def refused(zoo: Path, match: str = ": expected ", **options: Any) -> None:
    with pytest.raises(ZooError, match=match) as error:
        push(zoo, **options)
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)


def answering(
    hub: LoopbackHub, part: str, make: Callable[[Answer], Answer], method: str = "", times: int | None = None
) -> None:
    """Another answer to requests whose path has this part: each time, or the first ones."""
    left = itertools.count() if times is None else iter(range(times))
    hub.faults = lambda number, how, path: (
        make if part in path and how.startswith(method) and next(left, None) is not None else None
    )


# The questions of a push, by part of their path
QUESTIONS = {
    "whoami": ("/api/whoami", ""),
    "repository": (f"/api/datasets/{REPO}", "GET"),
    "may write": ("/auth-check", ""),
    "listing": ("/tree/", ""),
    "tags": ("/refs", ""),
    "nws.json": ("/resolve/", ""),
    "storage": ("/storage/", "GET"),
    "how to send": ("/preupload/", ""),
    "where to send": ("/objects/batch", ""),
    "sending": ("/storage/", "PUT"),
    "card": ("/validate-yaml", ""),
    "commit": ("/commit/", ""),
}
BODIES = [b"", b"null", b"[5]", b"5", b"{}", b"[" * 100_000, b"9" * 5000, b"\xff\xfe"]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: str(body[:20]))
@pytest.mark.parametrize(("part", "method"), QUESTIONS.values(), ids=QUESTIONS)
def test_any_body_of_any_answer(
    hub: LoopbackHub, zoo: Path, tmp_path: Path, part: str, method: str, body: bytes
) -> None:
    """Either the push is refused in one line, or the answer made no difference and all is there."""
    hub.put(REPO, make_zoo(tmp_path / "before", models=3))
    answering(hub, part, lambda reply: dataclasses.replace(reply, body=body), method)
    try:
        push(zoo, tag="v1")
    except ZooError as error:
        assert "\n" not in str(error) and TOKEN not in str(error)
    else:
        assert hub.file(REPO, "nws.json", "v1") == (zoo / "nws.json").read_bytes()


@pytest.mark.parametrize("status", [204, 304, 307, 400, 401, 404, 412, 999])
@pytest.mark.parametrize(("part", "method"), QUESTIONS.values(), ids=QUESTIONS)
def test_any_status_of_any_answer(
    hub: LoopbackHub, zoo: Path, tmp_path: Path, part: str, method: str, status: int
) -> None:
    hub.put(REPO, make_zoo(tmp_path / "before", models=3))
    answering(
        hub, part, lambda reply: Answer(status, b"" if status in (204, 304) else b'{"error": 5}', {}), method
    )
    try:
        push(zoo, tag="v1")
    except ZooError as error:
        assert "\n" not in str(error) and TOKEN not in str(error)
    else:
        assert hub.file(REPO, "nws.json", "v1") == (zoo / "nws.json").read_bytes()


def changed(**fields: Any) -> Callable[[Answer], Answer]:
    """The answer with other values in its JSON, in each of its entries if it is a list."""

    def make(reply: Answer) -> Answer:
        assert isinstance(reply.body, bytes)
        data = json.loads(reply.body)
        data = [{**entry, **fields} for entry in data] if isinstance(data, list) else {**data, **fields}
        return dataclasses.replace(reply, body=json.dumps(data).encode())

    return make


@pytest.mark.parametrize(
    "value", [None, 5, -1, 1.5, True, "x", "../../x", [], {}, [5], {"oid": 5}, {"a": []}], ids=repr
)
@pytest.mark.parametrize("field", ["path", "size", "oid", "lfs", "type"])
def test_listings_of_other_types(hub: LoopbackHub, zoo: Path, field: str, value: Any) -> None:
    hub.put(REPO, zoo)
    answering(hub, "/tree/", changed(**{field: value}))
    before = hub.repos[REPO].branches["main"]
    try:
        push(zoo)
    except ZooError as error:
        assert "\n" not in str(error)
    assert hub.file(REPO, "nws.json", before) == hub.file(REPO, "nws.json")


@pytest.mark.parametrize("sha", [None, 5, "", "main", "../../x", "A" * 40, "0" * 39, ["0" * 40]], ids=repr)
def test_a_commit_that_is_none(hub: LoopbackHub, zoo: Path, sha: Any) -> None:
    hub.put(REPO, zoo)
    answering(hub, f"/api/datasets/{REPO}", changed(sha=sha), "GET")
    refused(zoo, "found BadAnswer: commit ")


def test_a_listing_without_end(hub: LoopbackHub, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_PAGES", 20)
    number = itertools.count()

    def more(reply: Any) -> Answer:
        url = f"{hub.url}/api/datasets/{REPO}/tree/main?cursor={next(number)}"
        return Answer(200, b"[]", {"Link": f'<{url}>; rel="next"'})

    hub.put(REPO, zoo)
    answering(hub, "/tree/", more)
    refused(zoo, "found BadAnswer: a listing of more than 20 pages")


@pytest.mark.parametrize("link", ["ftp://x/", "http://[", "/relative", "http://a:99999999/", "?"])
def test_a_listing_that_goes_on_nowhere(hub: LoopbackHub, zoo: Path, link: str) -> None:
    hub.put(REPO, zoo)
    answering(
        hub,
        "/tree/",
        lambda reply: dataclasses.replace(reply, headers={**reply.headers, "Link": f'<{link}>; rel="next"'}),
    )
    refused(zoo)


@pytest.mark.parametrize(
    ("part", "method"),
    [QUESTIONS[name] for name in ("whoami", "repository", "listing", "nws.json", "commit")],
)
def test_redirect_loops(hub: LoopbackHub, zoo: Path, tmp_path: Path, part: str, method: str) -> None:
    hub.put(REPO, make_zoo(tmp_path / "before", models=3))
    answering(hub, part, lambda reply: Answer(307, b"", {"Location": f"{hub.url}{part}/again"}), method)
    hub.clear()
    refused(zoo, f"found BadAnswer: more than {http.MAX_REDIRECTS} redirects|found 40")
    assert len(hub.requests) < 100


def test_a_redirect_without_location(hub: LoopbackHub, zoo: Path) -> None:
    hub.put(REPO, zoo)
    answering(hub, "/resolve/", lambda reply: Answer(302, b""))
    refused(zoo, r"found BadAnswer: a redirect \(302\) to no address")


@pytest.mark.parametrize("bad", ["endless", "encoded"])
def test_answers_without_bound(
    hub: LoopbackHub, zoo: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setattr(http, "MAX_JSON_BYTES", 100_000)
    hub.put(REPO, zoo)

    def make(reply: Answer) -> Answer:
        if bad == "endless":
            return dataclasses.replace(reply, body=itertools.repeat(b"x" * 10_000))
        return dataclasses.replace(reply, headers={**reply.headers, "Content-Encoding": "gzip"})

    for part in ("/api/whoami", "/tree/", "nws.json", "/storage/", "/refs"):
        answering(hub, part, make)
        refused(
            zoo, r"an answer of more than \d+ bytes" if bad == "endless" else "in the encoding gzip", tag="v1"
        )


def test_one_byte_at_a_time(hub: LoopbackHub, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DEADLINE_SECONDS", 0.1)
    pause = hub.stopped.wait
    hub.put(REPO, zoo)
    answering(
        hub,
        "/tree/",
        lambda reply: dataclasses.replace(reply, body=iter(lambda: b" " if not pause(0.02) else b"", None)),
    )
    refused(zoo, "found SlowAnswer: an answer that comes too slowly")


@pytest.mark.parametrize("asked", ["999999999", "²", "9" * 5000, "soon"], ids=lambda asked: asked[:9])
@pytest.mark.parametrize(("part", "method"), [QUESTIONS["whoami"], QUESTIONS["sending"]])
def test_waits(
    hub: LoopbackHub,
    zoo: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    part: str,
    method: str,
    asked: str,
) -> None:
    """Files are sent again by huggingface_hub itself, which sleeps as it is told."""
    from huggingface_hub.utils import _http

    naps: list[float] = []
    monkeypatch.setattr(http, "PAUSES", (0.0,) * 3)
    monkeypatch.setattr(http.time, "sleep", naps.append)
    monkeypatch.setattr(_http.time, "sleep", naps.append, raising=False)
    answering(hub, part, lambda reply: Answer(503, b"", {"Retry-After": asked}), method, times=2)
    with caplog.at_level(logging.WARNING, "nws_dataset"):
        push(zoo)
    assert hub.file(REPO, "nws.json") == (zoo / "nws.json").read_bytes()
    assert all(nap <= http.MAX_WAIT + 1 for nap in naps)
    if part == "/api/whoami":
        assert [
            record.getMessage() for record in caplog.records if "trying again in 300 s" in record.getMessage()
        ] == ["127.0.0.1 is busy (status 503): trying again in 300 s" for nap in naps if nap == 300]
        assert naps.count(300) == (2 if asked == "999999999" else 0)


def test_another_host_gets_no_token(hub: LoopbackHub, zoo: Path) -> None:
    """The next page of a listing, a redirect, and the addresses of uploads are the Hub's to name."""
    with LoopbackHub() as other:
        seen: list[Any] = []
        other.on_headers = seen.append
        hub.put(REPO, zoo)
        answering(
            hub,
            "/tree/",
            lambda reply: dataclasses.replace(
                reply, headers={**reply.headers, "Link": f'<{other.url}/x>; rel="next"'}
            ),
        )
        refused(zoo)
        answering(hub, "nws.json", lambda reply: Answer(302, b"", {"Location": f"{other.url}/x"}))
        refused(zoo)
        hub.repos.clear()
        hub.storage.clear()

        def elsewhere(reply: Answer) -> Answer:
            assert isinstance(reply.body, bytes)
            return dataclasses.replace(reply, body=reply.body.replace(hub.url.encode(), other.url.encode()))

        answering(hub, "/objects/batch", elsewhere)
        with contextlib.suppress(ZooError):  # what was sent may have arrived all the same
            push(zoo)
    assert len(seen) >= 3 and not any("authorization" in headers for headers in seen)


@pytest.mark.parametrize("part", ["nws.json", "/storage/"])
def test_one_bad_answer_is_asked_for_again(hub: LoopbackHub, zoo: Path, part: str) -> None:
    hub.put(REPO, zoo)
    answering(hub, part, lambda reply: dataclasses.replace(reply, body=b"x"), "GET", times=1)
    push(zoo)
    answering(hub, part, lambda reply: dataclasses.replace(reply, body=b"x"), "GET")
    refused(zoo, "another file than the listing's")


def index_of(column: pa.Array, name: str = "model_id") -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: column}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PAR1",
        b"x" * 1000,
        index_of(pa.array([1, 2])),
        index_of(pa.array([None, "a"])),
        index_of(pa.array([["a"]])),
        index_of(pa.array([None])),
        index_of(pa.array(["a"]), "x"),
    ],
    ids=["empty", "cut", "noise", "numbers", "missing", "lists", "nulls", "another column"],
)
def test_any_index(hub: LoopbackHub, zoo: Path, content: bytes) -> None:
    hub.put(REPO, zoo)
    hub.put(REPO, {INDEX: content})
    refused(zoo, "expected an index that can be read, found ")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"[" * 9999, b'{"format_version": 3}', b'{"format_version": []}', b"\xff"],
    ids=lambda c: str(c[:12]),
)
def test_any_nws_json(hub: LoopbackHub, zoo: Path, content: bytes) -> None:
    hub.put(REPO, zoo)
    hub.put(REPO, {"nws.json": content})
    refused(zoo, "expected nws.json of this version's format, found another, or a damaged one;")


def test_a_disk_that_fails_at_any_moment(
    hub: LoopbackHub, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that a file of the zoo is opened, one run in which that fails."""
    really = io.open
    opened = itertools.count()
    fails_at = -1

    def open_(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).startswith(str(zoo)) and next(opened) == fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return really(path, *args, **kwargs)

    monkeypatch.setattr(io, "open", open_)
    monkeypatch.setattr(builtins, "open", open_)
    push(zoo)
    for fails_at in range(next(opened)):
        hub.reset()
        opened = itertools.count()
        with contextlib.suppress(ZooError):
            push(zoo)
        fails_at = -1
        push(zoo)
        assert hub.file(REPO, "nws.json") == (zoo / "nws.json").read_bytes()


@pytest.mark.parametrize("path", ["plots/accuracy.png", "README.md", "nws.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_of_the_zoo_is_not_sent(
    hub: LoopbackHub, tmp_path: Path, path: str, kind: str
) -> None:
    """A zoo that a stranger made may hold links to what is private."""
    folder, private = make_zoo(tmp_path / "nws", models=2), tmp_path / "private"
    private.write_bytes((folder / path).read_bytes() if (folder / path).exists() else b"private")
    (folder / path).unlink(missing_ok=True)
    (folder / path).parent.mkdir(exist_ok=True)
    make = {"link": lambda at: at.symlink_to(private), "pipe": os.mkfifo, "folder": os.mkdir}[kind]
    make(folder / path)
    refused(folder)
    trees = [commit.tree for repo in hub.repos.values() for commit in repo.commits.values()]
    assert not any(path in tree for tree in trees)
