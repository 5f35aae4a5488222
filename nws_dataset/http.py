"""Requests to a server that may be busy, broken or hostile.

Answers are limited in size, time and redirects, and the token is sent to the Hub only. Reader and publisher
use `ask`; huggingface_hub does so too while `Client` is set as its client.
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
# returns an answer whose body is not read yet; follows no redirects
Send = Callable[[httpx.Request], httpx.Response]

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each retry
BUSY = (408, 429, 500, 502, 503, 504)  # statuses after which a retry may help
REFUSED = (401, 403, 404)  # statuses after which no retry helps
COMMIT = re.compile(r"[0-9a-f]{40}")  # the only form of a commit in paths and URLs
TRIES = 3  # of a request whose answers fail their check
MAX_REDIRECTS = 5  # of a request
MAX_WAIT = 300.0  # seconds, whatever a server asks for
SHOWN_WAIT = 5.0  # seconds; longer waits are logged
# an answer's body may take DEADLINE_SECONDS, and a second more for every BYTES_PER_SECOND
DEADLINE_SECONDS, BYTES_PER_SECOND = 60.0, 100_000
MAX_ERROR_BYTES = 1 << 16  # read of an error's or a redirect's body
MAX_BODY = "nws_most_bytes"  # a request's extension: largest size of the answer's body
OFFLINE = "HF_HUB_OFFLINE is set, and this is not in the cache"
# raised by requests; UnicodeError: by letters of a token
FAILURES = (httpx.HTTPError, httpx.InvalidURL, OfflineModeIsEnabled, UnicodeError)
# raised by huggingface_hub when it reads odd answers
ODD_ANSWERS = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
# ends the thread's pauses once it is set
cancelled: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("cancelled", default=None)

logger = logging.getLogger(__name__)


class BadAnswer(httpx.HTTPError):
    """An answer that breaks the rules; a retry may help if a proxy was the cause."""


class SlowAnswer(httpx.HTTPError):
    """An answer that takes too long."""


class _Busy(httpx.HTTPError):
    """An answer after which a retry may help."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"status {response.status_code}")
        self.response = response


def ask(send: Send, request: httpx.Request, home: str, *, follow: bool = True) -> httpx.Response:
    """Send a request and read the answer's body; follow redirects, and retry where that may help.

    Args:
        send: sends a request once, follows no redirects, and returns the answer with its body unread.
        request: its extension MAX_BODY limits the answer's body, in bytes; without it, MAX_JSON_BYTES does.
        home: the Hub's URL. Only its scheme, host and port are sent the token; https is never left for http.
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
            raise BadAnswer(f"a downgrade from https to {_host(response.next_request.url)}")
        history.append(response)
        request = response.next_request


def _ask_patiently(send: Send, request: httpx.Request, home: str) -> httpx.Response:
    """The answer to one request, without redirects; retry where that may help.

    A request whose body is a file is sent once: huggingface_hub retries those itself.
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
    """Whether a retry may help after an error."""
    if isinstance(error, _Busy | HfHubHTTPError):
        return error.response.status_code in BUSY
    return isinstance(error, httpx.TransportError) and not isinstance(
        error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
    )


def with_retries(call: Callable[[], Result], may_help: Callable[[Exception], bool] = is_transient) -> Result:
    """The result of a call that is retried after failures that may pass.

    Pauses grow, or last as long as a busy server asks. The last attempt's error is raised.

    Args:
        call: tried at most once more than there are PAUSES.
        may_help: whether a retry may help after an error.
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
            content = b""  # the status is enough
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
        headers["Retry-After"] = f"{seconds:.0f}"  # huggingface_hub waits that long
    read = httpx.Response(response.status_code, headers=headers, content=content, request=response.request)
    read.next_request = response.next_request
    return read


def _in_time(send: Send, request: httpx.Request) -> httpx.Response:
    """Send a request, whose answer must begin in time.

    Clients only limit the time to the next byte, and headers may arrive byte by byte.

    Raises:
        SlowAnswer: if it does not. The thread that waits for it ends when the server stops.
    """
    if not isinstance(request.stream, httpx.ByteStream):  # an upload may take any time
        return send(request)
    # the server may be silent at first
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
        if answer.done():  # the request itself timed out
            raise
        answer.add_done_callback(_close)
        raise SlowAnswer(f"no answer in {seconds:.0f} s") from None


def _close(late: Future[httpx.Response]) -> None:
    """Close an answer that came too late."""
    if late.exception() is None:
        late.result().close()


def guard(request: httpx.Request, home: str) -> None:
    """Keep the token from other servers than the Hub, and refuse http if the Hub uses https.

    Raises:
        BadAnswer: if the URL is invalid, or uses http where the Hub uses https.
    """
    there, hub = request.url, _address(home)
    if there.scheme not in ("http", "https") or not there.host or not 0 < (there.port or 80) < 1 << 16:
        raise BadAnswer(f"an invalid address: {_host(there)}:{there.port}")
    if hub.scheme == "https" and there.scheme != "https":
        raise BadAnswer(f"a downgrade from https to {_host(there)}")
    if (there.scheme, there.host, there.port) != (hub.scheme, hub.host, hub.port):
        request.headers.pop("Authorization", None)
    request.headers["Accept-Encoding"] = "identity"


@functools.lru_cache(maxsize=8)
def _address(home: str) -> httpx.URL:
    return httpx.URL(home)


def _host(url: httpx.URL) -> str:
    """The scheme and host of a URL, without its secret parts."""
    return f"{url.scheme}://{url.host}"


def _body(response: httpx.Response, max_bytes: int) -> bytes:
    """The body of an answer.

    Raises:
        BadAnswer: if it is encoded (compressed), or larger than `max_bytes`.
        SlowAnswer: if it comes too slowly.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise BadAnswer(f"an answer in the encoding {encoding}, which was not asked for")
    content, began = bytearray(), time.monotonic()
    # a hook of the client may have read the body
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
    """The content of an error's body as JSON that huggingface_hub can parse."""
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
    """Seconds, at most MAX_WAIT, that a busy server asks to wait: by Retry-After or its rate limit."""
    try:
        limit = parse_ratelimit_headers(response.headers)
    except ValueError:  # a number of thousands of digits
        limit = None
    asked = response.headers.get("Retry-After", "").strip()
    seconds = float(asked) if re.fullmatch(r"[0-9]{1,20}", asked) else 0.0  # otherwise a date or invalid
    until_anew = limit.reset_in_seconds if limit and not limit.remaining else 0
    return float(min(max(seconds, until_anew), MAX_WAIT))


def wait(pause: float, response: httpx.Response) -> None:
    """Wait before a retry: for `pause` seconds, or longer if a busy server asks for it."""
    seconds = max(pause, retry_after(response))
    if seconds > max(pause, SHOWN_WAIT):
        logger.warning(
            "%s is busy (status %d): trying again in %.0f s",
            response.request.url.host,
            response.status_code,
            seconds,
        )
    _sleep(seconds)


def _sleep(seconds: float) -> None:
    """Sleep; raise a SlowAnswer once the answer is no longer needed."""
    event = cancelled.get()
    if event is None:
        time.sleep(seconds)
    elif event.wait(seconds):
        raise SlowAnswer("another request failed, or was interrupted")


def retried(call: Callable[[], Result], where: object, token: str | None = None) -> Result:
    """The result of a call to the Hub, with retries; a failure becomes a ZooError.

    Args:
        call: may raise what huggingface_hub raises.
        where: repository or file to name in an error.
        token: left out of an error's text.

    Raises:
        ZooError: if the Hub refuses, or still cannot be reached after the retries.
    """
    try:
        return with_retries(call)
    except (*FAILURES, *ODD_ANSWERS) as error:
        raise as_error(where, error, token) from None


def as_error(where: object, error: Exception, token: str | None = None) -> ZooError:
    """A failed request to the Hub as a ZooError.

    The Hub answers 401 or 404 both for what is missing and for what is private.
    """
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = f"{status}: {one_line(error)}" if status else reason(error)
    # their text contains the header, and so the token
    if isinstance(error, (httpx.LocalProtocolError, UnicodeError)):
        said = (
            f"{type(error).__name__}: a header that cannot be sent, perhaps because the token contains line "
            "breaks or illegal characters"
        )
    found = said.replace(str(token or get_token() or "\0").strip(), "(the token)")
    if status in REFUSED:
        do = "check name and revision, and log in (hf auth login, or HF_TOKEN) if it is private"
        return ZooError(
            where, expected="a repository on the Hub that exists and is open to you", found=found, do=do
        )
    return ZooError(
        where, expected="an answer from the Hub", found=found, do="check the connection, then try again"
    )


class Client(httpx.Client):
    """A client for huggingface_hub that follows the rules of `ask`.

    Usage: `set_client_factory(lambda: Client(endpoint, seconds))`.

    Args:
        home: the Hub's URL.
        timeout: seconds to wait for the next byte.
    """

    def __init__(self, home: str, timeout: float) -> None:
        super().__init__(follow_redirects=True, timeout=timeout)
        self.home = home

    def send(
        self, request: httpx.Request, *, stream: bool = False, follow_redirects: Any = True, **kwargs: Any
    ) -> httpx.Response:
        def send(request: httpx.Request) -> httpx.Response:
            return super(Client, self).send(request, stream=True, follow_redirects=False, **kwargs)

        if stream:  # the caller reads the body
            guard(request, self.home)
            return send(request)
        return ask(send, request, self.home, follow=follow_redirects is not False)


@contextlib.contextmanager
def bounded(home: str, timeout: float) -> Iterator[None]:
    """Make huggingface_hub use a Client while the block runs, in all threads of the process."""
    before = _http._GLOBAL_CLIENT_FACTORY
    set_client_factory(lambda: Client(home, timeout))
    try:
        yield
    finally:
        set_client_factory(before)
