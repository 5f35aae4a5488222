"""Asking a server that may be busy, broken or hostile: answers are bounded in size, time and hops, and the
token goes to the Hub alone.

Reader and publisher ask through `ask`; huggingface_hub does so too when `Client` is set as its client.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from typing import Any, TypeVar

from huggingface_hub import get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import _http, httpx, parse_ratelimit_headers

from nws_dataset.errors import ZooError, one_line, reason
from nws_dataset.files import MAX_JSON_BYTES

Result = TypeVar("Result")
# gives an answer whose body is not read yet; follows no redirect
Send = Callable[[httpx.Request], httpx.Response]

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before another try
BUSY = (408, 429, 500, 502, 503, 504)  # answers of a server that may do better later
REFUSED = (401, 403, 404)  # answers that no second try will better
COMMIT = re.compile(r"[0-9a-f]{40}")  # what alone stands for a commit, in paths and addresses
TRIES = 3  # at an answer that is not what it should be
MAX_REDIRECTS = 5  # redirects of a request
MAX_WAIT = 300.0  # seconds, whatever a server asks for
SHOWN_WAIT = 5.0  # seconds; the user is told of a longer wait
# an answer's body may take so long, and a second more for so many bytes
DEADLINE_SECONDS, BYTES_PER_SECOND = 60.0, 100_000
MAX_ERROR_BYTES = 1 << 16  # read of the body of an answer that is an error or a redirect
MAX_BODY = "nws_most_bytes"  # a request's extension: of the answer's body
OFFLINE = "HF_HUB_OFFLINE is set, and this is not in the cache"
# what asking raises; the last one of a token's letters
FAILURES = (httpx.HTTPError, httpx.InvalidURL, OfflineModeIsEnabled, UnicodeError)
# huggingface_hub's, on odd answers
ODD_ANSWERS = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
# set: a thread's pauses end
cancelled: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("cancelled", default=None)

logger = logging.getLogger(__name__)


class BadAnswer(httpx.HTTPError):
    """An answer that no honest server gives; another try may bring a good one if something between here and
    there was the cause.
    """


class SlowAnswer(httpx.HTTPError):
    """An answer that would hold up its reader for long."""


class _Busy(httpx.HTTPError):
    """An answer of a server that may do better later."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"status {response.status_code}")
        self.response = response


def ask(send: Send, request: httpx.Request, home: str, *, follow: bool = True) -> httpx.Response:
    """The answer to a request, its body read: after redirects, and after further tries where these may help.

    Args:
        send: sends a request once, without following a redirect, and gives the answer without its body.
        request: the extension MAX_BODY says how large the answer may be, else MAX_JSON_BYTES.
        home: the Hub's address. No other scheme, host and port gets the token, and from https the way never
            leads to http.
        follow: whether redirects are followed.

    Raises:
        httpx.HTTPError: if there is no answer, or one that breaks the rules (BadAnswer).
    """
    history: list[httpx.Response] = []
    while True:
        response = _ask_patiently(send, request, home)
        response.history = list(history)
        if not (follow and response.is_redirect):
            return response
        if len(history) == MAX_REDIRECTS:
            raise BadAnswer(f"more than {MAX_REDIRECTS} redirects, the last from {_host(request.url)}")
        if response.next_request is None:
            location = response.headers.get("Location")
            raise BadAnswer(f"a redirect ({response.status_code}) to no address: {location!r}")
        if request.url.scheme == "https" != response.next_request.url.scheme:
            raise BadAnswer(f"a way from https to {_host(response.next_request.url)}")
        history.append(response)
        request = response.next_request


def _ask_patiently(send: Send, request: httpx.Request, home: str) -> httpx.Response:
    """The answer to one request.

    It is sent again where that may help, unless its body is a file: huggingface_hub sends those again.
    """
    if not isinstance(request.stream, httpx.ByteStream):
        return _once(send, request, home)

    def attempt() -> httpx.Response:
        response = _once(send, request, home)
        if response.status_code in BUSY:
            raise _Busy(response)
        return response

    try:
        return with_retries(attempt)
    except _Busy as busy:
        return busy.response


def is_transient(error: Exception) -> bool:
    """Whether trying again may help."""
    if isinstance(error, _Busy | HfHubHTTPError):
        return error.response.status_code in BUSY
    return isinstance(error, httpx.TransportError) and not isinstance(
        error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
    )


def with_retries(call: Callable[[], Result], may_help: Callable[[Exception], bool] = is_transient) -> Result:
    """What a call returns. After a failure that may pass, it is tried again, after ever longer pauses or when
    a busy server asks for it. What the last try raises is raised.

    Args:
        call: is tried once more than there are PAUSES, at most.
        may_help: whether trying again may help after an error.
    """
    for pause in PAUSES:
        try:
            return call()
        except Exception as error:
            if not may_help(error):
                raise
            if isinstance(error, _Busy | HfHubHTTPError):
                wait(pause, error.response)
            else:
                _sleep(pause)
    return call()


def _once(send: Send, request: httpx.Request, home: str) -> httpx.Response:
    """Send a request, and read the answer's body."""
    guard(request, home)
    response = _in_time(send, request)
    try:
        plain = response.status_code < 300
        max_bytes = request.extensions.get(MAX_BODY, MAX_JSON_BYTES) if plain else MAX_ERROR_BYTES
        try:
            content = b"" if request.method == "HEAD" else _body(response, max_bytes)
        except (BadAnswer, SlowAnswer):
            if plain:
                raise
            content = b""  # the status tells enough
    finally:
        response.close()
    headers, dropped, seconds = (
        response.headers,
        ["content-encoding", "transfer-encoding"],
        retry_after(response),
    )
    if response.status_code >= 400:
        content = _error_body(content)
        dropped += ["content-length", "content-type", "retry-after", "ratelimit"]
    for name in dropped:
        headers.pop(name, None)
    if response.status_code in BUSY and seconds:
        headers["Retry-After"] = f"{seconds:.0f}"  # huggingface_hub waits as long as it is told
    read = httpx.Response(response.status_code, headers=headers, content=content, request=response.request)
    read.next_request = response.next_request
    return read


def _in_time(send: Send, request: httpx.Request) -> httpx.Response:
    """Send a request; its answer must begin in time.

    Clients limit the time to the next byte only, and headers may come byte by byte.

    Raises:
        SlowAnswer: if it does not. The thread that waits for it ends when the server does.
    """
    if not isinstance(request.stream, httpx.ByteStream):  # a file on its way takes what it takes
        return send(request)
    # to begin with, it may be silent
    seconds = DEADLINE_SECONDS + (request.extensions.get("timeout", {}).get("read") or 0.0)
    answer: Future[httpx.Response] = Future()

    def run() -> None:
        try:
            answer.set_result(send(request))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=[run], daemon=True).start()
    try:
        return answer.result(seconds)
    except futures.TimeoutError:
        if answer.done():  # the error is its own
            raise
        answer.add_done_callback(_close)
        raise SlowAnswer(f"no answer in {seconds:.0f} s") from None


def _close(late: Future[httpx.Response]) -> None:
    """Close an answer that nobody waits for any more."""
    if late.exception() is None:
        late.result().close()


def guard(request: httpx.Request, home: str) -> None:
    """Take the token from a request that does not go to the Hub, and refuse one in clear where the Hub is
    not.

    Raises:
        BadAnswer: if there is no such address, or the request would leave https.
    """
    there, hub = request.url, _address(home)
    if there.scheme not in ("http", "https") or not there.host or not 0 < (there.port or 80) < 1 << 16:
        raise BadAnswer(f"an address that cannot be asked: {_host(there)}:{there.port}")
    if hub.scheme == "https" and there.scheme != "https":
        raise BadAnswer(f"a way from https to {_host(there)}")
    if (there.scheme, there.host, there.port) != (hub.scheme, hub.host, hub.port):
        request.headers.pop("Authorization", None)
    request.headers["Accept-Encoding"] = "identity"


@functools.lru_cache(maxsize=8)
def _address(home: str) -> httpx.URL:
    return httpx.URL(home)


def _host(url: httpx.URL) -> str:
    """An address without what may be secret in it."""
    return f"{url.scheme}://{url.host}"


def _body(response: httpx.Response, max_bytes: int) -> bytes:
    """The body of an answer.

    Raises:
        BadAnswer: if it is encoded, or larger than that.
        SlowAnswer: if it comes too slowly.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise BadAnswer(f"an answer in the encoding {encoding}, which was not asked for")
    content, began = bytearray(), time.monotonic()
    # a hook of the client may have read it
    for part in (response.content,) if response.is_stream_consumed else response.iter_raw():
        content += part
        if len(content) > max_bytes:
            raise BadAnswer(f"an answer of more than {max_bytes} bytes")
        if time.monotonic() - began > DEADLINE_SECONDS + len(content) / BYTES_PER_SECOND:
            raise SlowAnswer(
                f"an answer that comes too slowly: {len(content)} bytes in {time.monotonic() - began:.0f} s"
            )
    return bytes(content)


def _error_body(content: bytes) -> bytes:
    """What an error's body says, in a form that huggingface_hub surely understands."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        text = content.decode(errors="replace")
        data = {} if "<html" in text.lower() else {"error": text}
    data = data if isinstance(data, dict) else {}
    return json.dumps(
        {name: value for name, value in data.items() if isinstance(value, str) or _is_messages(value)}
    ).encode()


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("message"), str) for item in value
    )


def retry_after(response: httpx.Response) -> float:
    """Seconds that a busy server asks to wait, MAX_WAIT at most: until its count of requests starts anew, or
    as Retry-After says.
    """
    try:
        limit = parse_ratelimit_headers(response.headers)
    except ValueError:  # a number of thousands of digits
        limit = None
    asked = response.headers.get("Retry-After", "").strip()
    seconds = float(asked) if re.fullmatch(r"[0-9]{1,20}", asked) else 0.0  # else a date, or nonsense
    until_anew = limit.reset_in_seconds if limit and not limit.remaining else 0
    return float(min(max(seconds, until_anew), MAX_WAIT))


def wait(pause: float, response: httpx.Response) -> None:
    """Wait before another try: so long, or as long as a busy server asks."""
    seconds = max(pause, retry_after(response))
    if seconds > max(pause, SHOWN_WAIT):
        logger.warning(
            "%s is busy (status %d): asking again in %.0f s",
            response.request.url.host,
            response.status_code,
            seconds,
        )
    _sleep(seconds)


def _sleep(seconds: float) -> None:
    """Sleep, but not when nobody waits for the answer any more."""
    event = cancelled.get()
    if event is None:
        time.sleep(seconds)
    elif event.wait(seconds):
        raise SlowAnswer("another request failed, or was interrupted")


def retried(call: Callable[[], Result], where: object, token: str | None = None) -> Result:
    """What a call to the Hub returns, as `with_retries`; a failure is one line.

    Args:
        call: may raise what huggingface_hub raises.
        where: what an error names.
        token: must not stand in an error.

    Raises:
        ZooError: if the Hub refuses, or cannot be reached in the end.
    """
    try:
        return with_retries(call)
    except (*FAILURES, *ODD_ANSWERS) as error:
        raise as_error(where, error, token) from None


def as_error(where: object, error: Exception, token: str | None = None) -> ZooError:
    """A failure of the Hub in one line.

    The Hub says 401 or 404 alike for what is not there and what may not be seen.
    """
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = f"{status}: {one_line(error)}" if status else reason(error)
    # its text holds the header, thus the token
    if isinstance(error, (httpx.LocalProtocolError, UnicodeError)):
        said = (
            f"{type(error).__name__}: a header that cannot be sent, maybe of a token with line breaks "
            "or other letters"
        )
    found = said.replace(str(token or get_token() or "\0").strip(), "(the token)")
    if status in REFUSED:
        do = "check name and revision, and log in (hf auth login, or HF_TOKEN) if it is private"
        return ZooError(
            where, expected="a repository on the Hub that is there and open to you", found=found, do=do
        )
    return ZooError(
        where, expected="an answer of the Hub", found=found, do="check the connection, then try again"
    )


class Client(httpx.Client):
    """A client for huggingface_hub, by the rules of `ask`: `set_client_factory(lambda: Client(endpoint,
    seconds))`.

    Args:
        home: the Hub's address.
        timeout: seconds without a byte.
    """

    def __init__(self, home: str, timeout: float) -> None:
        super().__init__(follow_redirects=True, timeout=timeout)
        self.home = home

    def send(
        self, request: httpx.Request, *, stream: bool = False, follow_redirects: Any = True, **kwargs: Any
    ) -> httpx.Response:
        def send(request: httpx.Request) -> httpx.Response:
            return super(Client, self).send(request, stream=True, follow_redirects=False, **kwargs)

        if stream:  # the caller reads it
            guard(request, self.home)
            return send(request)
        return ask(send, request, self.home, follow=follow_redirects is not False)


@contextlib.contextmanager
def bounded(home: str, timeout: float) -> Iterator[None]:
    """While the block runs, huggingface_hub asks through a Client, in all threads of the process."""
    before = _http._GLOBAL_CLIENT_FACTORY
    set_client_factory(lambda: Client(home, timeout))
    try:
        yield
    finally:
        set_client_factory(before)
