"""Asking a hostile server: no answer without bound, no wait without end, no token to others."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status, httpx

from nws_dataset import http
from nws_dataset.errors import ZooError
from nws_dataset.http import MAX_BODY, BadAnswer, Client, SlowAnswer, as_error, ask, retried, retry_after

HOME = "https://hub.example"
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses; none is made."""
    made: list[float] = []
    monkeypatch.setattr(http.time, "sleep", made.append)
    return made


def asked(
    handler: Handler, url: str = f"{HOME}/a", home: str = HOME, most: int = 1000, **options: Any
) -> httpx.Response:
    """The answer of a server that is a function."""
    with httpx.Client(transport=httpx.MockTransport(handler)) as client:
        request = client.build_request(
            "GET", url, headers={"Authorization": "Bearer hf_secret"}, extensions={MAX_BODY: most}
        )
        return ask(
            lambda request: client.send(request, stream=True, follow_redirects=False),
            request,
            home,
            **options,
        )


def through_client(handler: Handler, method: str = "GET", home: str = HOME, **options: Any) -> httpx.Response:
    """The answer that huggingface_hub gets through `Client`."""
    with Client(home, 5.0) as client:
        client._transport = httpx.MockTransport(handler)
        return client.request(method, f"{HOME}/a", headers={"Authorization": "Bearer hf_secret"}, **options)


BOTH = pytest.mark.parametrize("ask_it", [asked, through_client], ids=["reader", "publisher"])

# --- Redirects ---


@BOTH
@pytest.mark.parametrize(
    ("there", "goes_along"),
    [
        ("https://hub.example/b", True),
        ("/b", True),
        ("https://hub.example:443/b", True),
        ("https://hub.example:444/b", False),
        ("https://hub.example.evil/b", False),
        ("https://hub.example@evil/b", False),
        ("https://evil/hub.example", False),
        ("//evil/b", False),
    ],
)
def test_the_token_goes_to_the_hub_alone(
    ask_it: Callable[..., httpx.Response], there: str, goes_along: bool
) -> None:
    tokens: list[bool] = []

    def handler(request: httpx.Request) -> httpx.Response:
        tokens.append(request.headers.get("Authorization") == "Bearer hf_secret")
        return (
            httpx.Response(302, headers={"Location": there})
            if len(tokens) == 1
            else httpx.Response(200, content=b"ok")
        )

    assert ask_it(handler).content == b"ok"
    assert tokens == [True, goes_along]


@BOTH
@pytest.mark.parametrize(
    "there",
    [
        "http://hub.example/b",
        "http://evil/b",
        "http://hub.example:443/b",
        "ftp://hub.example/b",
        "file:///etc/b",
    ],
)
def test_https_never_falls(ask_it: Callable[..., httpx.Response], there: str) -> None:
    asked_for: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked_for.append(str(request.url))
        return httpx.Response(307, headers={"Location": there})

    with pytest.raises(BadAnswer, match=r"a downgrade from https to |an invalid address"):
        ask_it(handler)
    assert len(asked_for) == 1


def test_https_of_another_host_does_not_fall_either() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            302, headers={"Location": "https://b/" if request.url.scheme == "http" else "http://c/"}
        )

    with pytest.raises(BadAnswer, match="a downgrade from https to http://c"):
        asked(handler, "http://127.0.0.1/a", "http://127.0.0.1")


def test_an_upload_in_clear_is_refused() -> None:
    """The Hub names the addresses of uploads; huggingface_hub asks them by itself, with the token."""
    with Client(HOME, 5.0) as client, pytest.raises(BadAnswer, match="a downgrade from https to http://hub"):
        client.post("http://hub.example/verify", headers={"Authorization": "Bearer hf_secret"})
    with Client(HOME, 5.0) as client:
        client._transport = httpx.MockTransport(
            lambda request: httpx.Response(200, json=dict(request.headers))
        )
        assert (
            "authorization"
            not in client.put(
                "https://storage.example/x", headers={"Authorization": "Bearer hf_secret"}
            ).json()
        )


@BOTH
@pytest.mark.parametrize("there", ["/a", "/b?again", HOME])
def test_redirect_loops(ask_it: Callable[..., httpx.Response], there: str) -> None:
    count = itertools.count()
    number = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal number
        number = next(count)
        return httpx.Response(302, headers={"Location": f"{there}?{number}"})

    with pytest.raises(BadAnswer, match="more than 5 redirects"):
        ask_it(handler)
    assert number == http.MAX_REDIRECTS


@BOTH
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Location": "http://["},
        {"Location": "https://a:99999999/"},
        {"Location": "https://\x80\xff..\x01/"},
    ],
    ids=str,
)
@pytest.mark.parametrize("status", [300, 301, 302, 304, 307])
def test_redirects_to_nowhere(
    ask_it: Callable[..., httpx.Response], status: int, headers: dict[str, str]
) -> None:
    # versions of httpx differ in which addresses they refuse themselves
    with pytest.raises(
        (BadAnswer, httpx.RemoteProtocolError),
        match=rf"a redirect \({status}\) to no address|a downgrade from https|an invalid address"
        r"|Invalid URL in location header",
    ):
        ask_it(
            lambda request: httpx.Response(
                status, headers={name: value.encode("latin-1") for name, value in headers.items()}
            )
        )  # type: ignore[misc]


# --- Bodies ---


class Parts(httpx.SyncByteStream):
    """A body that comes part by part."""

    def __init__(self, part: bytes, number: int | None = None) -> None:
        self.part, self.number, self.sent = part, number, 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        for _ in itertools.count() if self.number is None else range(self.number):
            self.sent += 1
            yield self.part


@pytest.mark.parametrize("status", [200, 206])
def test_endless_answers(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    body = Parts(b"x" * 100)
    with pytest.raises(BadAnswer, match="an answer of more than 1000 bytes"):
        asked(lambda request: httpx.Response(status, stream=body))
    assert body.sent == 11
    monkeypatch.setattr(http, "MAX_JSON_BYTES", 1000)
    with pytest.raises(BadAnswer, match="an answer of more than 1000 bytes"):
        through_client(lambda request: httpx.Response(status, stream=Parts(b"x" * 100)))


@BOTH
@pytest.mark.parametrize("status", [302, 401, 404, 500])
def test_endless_complaints(ask_it: Callable[..., httpx.Response], status: int) -> None:
    """The status tells what there is to tell."""
    body = Parts(b"x" * 10_000)
    headers = {"Location": "/b"} if status == 302 else {}
    ends = iter([httpx.Response(status, stream=body, headers=headers)])
    found = ask_it(lambda request: next(ends, httpx.Response(200, content=b"ok")))
    assert found.status_code == (status if status in (401, 404) else 200)
    assert body.sent < 10


@BOTH
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP ", "gzip, gzip", "nonsense"])
def test_encodings_are_refused(ask_it: Callable[..., httpx.Response], encoding: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return httpx.Response(200, stream=Parts(b"\x1f\x8b", 1), headers={"Content-Encoding": encoding})

    with pytest.raises(BadAnswer, match="an answer in the encoding"):
        ask_it(handler)


@BOTH
def test_one_byte_a_second(ask_it: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch) -> None:
    """60 seconds, and a second more for each 100,000 bytes."""
    clock = itertools.count()
    monkeypatch.setattr(http.time, "monotonic", lambda: float(next(clock)))
    body = Parts(b"x")
    with pytest.raises(SlowAnswer, match="too slowly: 61 bytes"):
        ask_it(lambda request: httpx.Response(200, stream=body))
    enough = Parts(b"x" * 100_000, 100)
    options = {"most": 1 << 30} if ask_it is asked else {}
    assert len(ask_it(lambda request: httpx.Response(200, stream=enough), **options).content) == 10_000_000


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 103 Early Hints\r\n\r\n"], ids=["headers", "hints"]
)
def test_headers_one_byte_at_a_time(monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    """A client's own limit is for the next byte only."""
    monkeypatch.setattr(http, "DEADLINE_SECONDS", 0.2)
    ended = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(begin)
            while not ended.wait(0.01):
                connection.sendall(begin if b"103" in begin else b"x")

    with socket.create_server(("127.0.0.1", 0)) as server, httpx.Client(timeout=0.1) as client:
        thread = threading.Thread(target=drip, args=[server])
        thread.start()
        home = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(SlowAnswer, match="no answer in 0 s"):
            ask(lambda request: client.send(request, stream=True), client.build_request("GET", home), home)
        ended.set()
        thread.join()


# --- Waits ---


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 7 "}, 7.0),
        ({"Retry-After": "999999999"}, 300.0),
        ({"Retry-After": "9" * 20}, 300.0),
        ({"Retry-After": "9" * 5000}, 0.0),
        ({"Retry-After": "²"}, 0.0),
        ({"Retry-After": "٣"}, 0.0),
        ({"Retry-After": "-1"}, 0.0),
        ({"Retry-After": "nan"}, 0.0),
        ({"Retry-After": "inf"}, 0.0),
        ({"Retry-After": "1e9"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}, 0.0),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "7"}, 55.0),
        ({"RateLimit": '"api";r=0;t=999999999'}, 300.0),
        ({"RateLimit": f'"api";r=0;t={"9" * 5000}'}, 0.0),
        ({"RateLimit": f'"api";r=0;t={"9" * 1000}'}, 300.0),
        ({"RateLimit": '"api";r=1;t=55'}, 0.0),
    ],
    ids=lambda value: str(value)[:40],
)
@BOTH
def test_waits(
    ask_it: Callable[..., httpx.Response],
    headers: dict[str, str],
    seconds: float,
    naps: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw = {name: value.encode() for name, value in headers.items()}
    assert retry_after(httpx.Response(429, headers=raw)) == seconds  # type: ignore[arg-type]
    answers = iter([httpx.Response(429, headers=raw)])  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "nws_dataset"):
        assert ask_it(lambda request: next(answers, httpx.Response(200))).status_code == 200
    assert naps == [max(seconds, http.PAUSES[0])]
    assert [record.getMessage() for record in caplog.records] == [
        f"hub.example is busy (status 429): trying again in {seconds:.0f} s"
        for _ in naps
        if seconds > http.SHOWN_WAIT
    ]


def test_huggingface_hub_is_told_a_wait_that_it_can_bear() -> None:
    """It sends files again itself, and waits as an answer says."""
    for asked_for, told_it in (("999999999", "300"), ("²", None)):
        headers = {"Retry-After": asked_for.encode(), "RateLimit": b'"api";r=0;t=999999999'}
        if told_it is None:
            del headers["RateLimit"]
        found = through_client(
            lambda request, headers=headers: httpx.Response(503, headers=headers),
            "PUT",
            content=iter([b"a file"]),
        )  # type: ignore[misc]
        assert found.headers.get("Retry-After") == told_it and "RateLimit" not in found.headers


@BOTH
@pytest.mark.parametrize(
    "error",
    [httpx.UnsupportedProtocol("no"), httpx.LocalProtocolError("no"), httpx.InvalidURL("no")],
    ids=repr,
)
def test_what_cannot_pass_is_not_tried_again(
    ask_it: Callable[..., httpx.Response], error: Exception, naps: list[float]
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(type(error)):
        ask_it(handler)
    assert naps == []


@BOTH
def test_what_passes_is(ask_it: Callable[..., httpx.Response], naps: list[float]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if len(naps) < len(http.PAUSES):
            raise httpx.ReadError("lost")
        return httpx.Response(200)

    assert ask_it(handler).status_code == 200 and naps == list(http.PAUSES)


# --- Complaints ---


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"error": "no room"}', "no room"),
        (b'{"errors": [{"message": "line 3"}], "warnings": []}', "line 3"),
        (b"no room", "no room"),
        (b"<html>no room</html>", ""),
        (b"[]", ""),
        (b"5", ""),
        (b"null", ""),
        (b'{"error": {"a": 1}}', ""),
        (b'{"error": 7, "errors": 5}', ""),
        (b'{"errors": [5]}', ""),
        (b'{"errors": [{"message": 5}]}', ""),
        (b"[" * 50_000, ""),
        (b"9" * 5000, "9"),
        (b"\xff\xfe\x80", "\ufffd"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain; charset=hex", "text/plain; charset=utf-16"]
)
def test_complaints_of_any_type(content: bytes, said: str, content_type: str) -> None:
    response = asked(
        lambda request: httpx.Response(400, content=content, headers={"Content-Type": content_type})
    )
    with pytest.raises(HfHubHTTPError) as error:
        hf_raise_for_status(response)
    assert said in str(error.value)
    assert isinstance(json.loads(response.content), dict)


def test_one_line_without_the_token() -> None:
    error = as_error(
        "org/nws",
        httpx.LocalProtocolError("Illegal header value b'Bearer hf_secret\\n'\nmore"),
        "hf_secret\n",
    )
    assert isinstance(error, ZooError) and "hf_secret" not in str(error) and "\n" not in str(error)

    def fails() -> None:
        raise UnicodeEncodeError("ascii", "hf_é", 3, 4, "ordinal not in range(128)")

    with pytest.raises(
        ZooError, match=r"^org/nws: expected an answer from the Hub, found UnicodeEncodeError"
    ):
        retried(fails, "org/nws")


def test_retried(naps: list[float]) -> None:
    def fails() -> None:
        raise httpx.ConnectError("away")

    with pytest.raises(ZooError, match="found ConnectError: away"):
        retried(fails, "org/nws")
    assert naps == list(http.PAUSES)


def test_a_pause_ends_when_nobody_waits() -> None:
    event = threading.Event()
    before = http.cancelled.set(event)
    event.set()
    try:
        with pytest.raises(SlowAnswer, match="another request failed"):
            asked(lambda request: httpx.Response(503, headers={"Retry-After": "300"}))
    finally:
        http.cancelled.reset(before)
