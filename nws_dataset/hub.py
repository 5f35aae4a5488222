"""A zoo's files in a repository on the Hub: the index whole, of the weights only the ranges that are asked for.

Neighbouring values are one request. What comes is checked against its SHA-256, and kept in a cache on disk.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urljoin, urlsplit

import numpy as np
import pyarrow as pa
from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, httpx, parse_ratelimit_headers, tqdm

from nws_dataset.cache import Cache
from nws_dataset.errors import ZooError
from nws_dataset.files import atomic_write, inside
from nws_dataset.index import Columns, open_index
from nws_dataset.manifest import MANIFEST_NAME, Manifest
from nws_dataset.places import Deliver, Place
from nws_dataset.shards import check_value

Result = TypeVar("Result")

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before another try
BUSY = (408, 429, 500, 502, 503, 504)  # answers of a server that may do better later
REFUSED = (401, 403, 404)  # answers that no second try will better
MOST_HOPS = 5  # redirects of a request
PARALLEL = 8  # requests at a time
GAP = 0.05  # values are fetched together if what lies between them is at most this part of the next one
RANGE_BYTES = 32 << 20  # of one request, unless one value is larger
CACHE_BYTES = 20 * 10**9  # kept on disk, unless told otherwise
SHOWN_BYTES = 32 << 20  # a fetch of more shows a progress bar

Wanted = tuple[int, Place]  # a place, and its number among those that were asked for


def retried(call: Callable[[], Result], where: object) -> Result:
    """What a call to the Hub returns; after a busy server or a lost connection it is tried again, after longer and longer pauses.

    Args:
        call: may raise what huggingface_hub raises.
        where: what an error names.

    Raises:
        ZooError: if the Hub refuses, or cannot be reached in the end.
    """
    for pause in (*PAUSES, None):
        try:
            return call()
        except (httpx.HTTPError, OfflineModeIsEnabled) as error:
            if pause is None or not _transient(error):
                raise _told(where, error) from error
            time.sleep(max(pause, asked_to_wait(error.response) if isinstance(error, HfHubHTTPError) else 0.0))
    raise AssertionError


def _transient(error: Exception) -> bool:
    """Whether trying again may help."""
    return error.response.status_code in BUSY if isinstance(error, HfHubHTTPError) else not isinstance(error, OfflineModeIsEnabled)


def asked_to_wait(response: httpx.Response) -> float:
    """Seconds that a busy Hub asks to wait: until its count of requests starts anew, or as Retry-After says."""
    limit, asked = parse_ratelimit_headers(response.headers), response.headers.get("Retry-After", "")
    return max(limit.reset_in_seconds if limit and not limit.remaining else 0.0, float(asked) if asked.isdigit() else 0.0)


def _told(where: object, error: Exception) -> ZooError:
    """A failure of the Hub in one line. The Hub says 401 or 404 alike for what is not there and what may not be seen."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    found = f"{status}: {str(error).strip().splitlines()[-1]}" if status else f"{type(error).__name__}: {error}".splitlines()[0]
    if status in REFUSED:
        do = "check name and revision, and log in (hf auth login, or HF_TOKEN) if it is private"
        return ZooError(where, expected="a repository on the Hub that is there and open to you", found=found, do=do)
    return ZooError(where, expected="an answer of the Hub", found=found, do="check the connection, then try again")


class Repository:
    """A repository on the Hub, at one commit.

    Args:
        repo_id: "org/name".
        revision: a branch, tag or commit; None is the main branch.
        token: of a user who may read it; None is the stored login.
        cache_dir: files are kept in its folder `nws`; None is huggingface_hub's home (HF_HOME).
        cache_bytes: index and weights kept on disk; beyond that, those that were not used for longest go. 0 keeps none.

    Raises:
        ZooError: if there is no such zoo, or the Hub cannot be reached.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.repo_id, self.token = repo_id, token
        self.cache_dir, self.cache_bytes = cache_dir, cache_bytes
        home = Path(cache_dir or constants.HF_HOME) / "nws"
        self.cache = Cache(home / "values", cache_bytes)
        self._commits = home / "repositories" / quote(repo_id, safe="")  # their nws.json
        self._addresses: dict[str, str] = {}  # file -> where the Hub sent its last request
        self.revision = self._find(revision or constants.DEFAULT_REVISION)  # the commit: all that is read is of one and the same
        self.manifest = Manifest.read(self._commits / self.revision)

    @property
    def name(self) -> str:
        """What errors and people call it."""
        return f"{self.repo_id}@{self.revision}"

    @property
    def homepage(self) -> str:
        """What a dataset remembers it by: its page on the Hub."""
        return f"{constants.ENDPOINT}/datasets/{self.repo_id}/tree/{self.revision}"

    def where(self, place: Place) -> str:
        """How errors name a place."""
        return f"{self.name}/{place.file} at byte {place.offset}"

    @functools.cached_property
    def columns(self) -> Columns:
        """The rows of all index files, checked against nws.json.

        Raises:
            ZooError: if one is missing or not the file that nws.json lists.
        """
        wanted = [Place(file, 0, self.manifest.files[file].size, self.manifest.files[file].sha256) for file in self.manifest.index_files()]
        return open_index([(f"{self.name}/{place.file}", pa.py_buffer(self.value(place))) for place in wanted])

    def value(self, place: Place) -> memoryview:
        """The value of a place, from the cache or fetched; checked.

        Raises:
            ZooError: as `read`.
        """
        values: list[np.ndarray] = []
        self.read([place], lambda _, value: values.append(value[0]))
        return values[0].data

    def read(self, places: Iterable[Place], deliver: Deliver) -> None:
        """Hand over the values of places: from the cache, else fetched, neighbours in one request, several requests at a time.

        Each is checked against its SHA-256. They come in any order, from several threads.

        Raises:
            ZooError: if a place is outside its file, a value is not what the index says, or the Hub cannot be reached.
        """
        wanted: list[Wanted] = []
        for i, place in enumerate(places):
            self._check(place)
            value = self.cache.get(place.sha256)
            if value is None:
                wanted.append((i, place))
            else:
                deliver(*_one(i, value))
        total = sum(place.length for _, place in wanted)
        with (
            tqdm(total=total, unit="B", unit_scale=True, desc="Fetching weights", disable=total < SHOWN_BYTES, leave=False) as progress,
            ThreadPoolExecutor(PARALLEL) as pool,
        ):

            def get(joined: list[Wanted]) -> None:
                self._get(joined, deliver)
                progress.update(sum(place.length for _, place in joined))

            try:
                list(pool.map(get, list(_joined(wanted))))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _check(self, place: Place) -> None:
        """Raise a ZooError for a place that is not in a file of the zoo."""
        inside(self.name, place.file)
        entry = self.manifest.files.get(place.file)
        if entry is None:
            raise ZooError(self.name, expected=f"a file that {MANIFEST_NAME} lists", found=place.file, do="build the index again")
        if place.offset < 0 or place.length < 1 or place.offset + place.length > entry.size:
            found = f"bytes {place.offset} to {place.offset + place.length} of {place.file}"
            raise ZooError(self.name, expected=f"a place in its {entry.size} bytes", found=found, do="build the index again")

    def _get(self, joined: list[Wanted], deliver: Deliver) -> None:
        """Fetch neighbouring values in one request, check them, keep them, hand them over."""
        _, first = joined[0]
        stop = max(place.offset + place.length for _, place in joined)
        content, _ = retried(lambda: self._request(first.file, self.revision, first.offset, stop), self.where(first))
        for i, place in joined:
            value = memoryview(content)[place.offset - first.offset :][: place.length]
            check_value(value, place.sha256, self.where(place))
            self.cache.put(place.sha256, value)
            deliver(*_one(i, value))

    def _find(self, revision: str) -> str:
        """The commit of a revision, whose nws.json is kept. Offline, the last one that was read."""
        reference = self._commits / "revisions" / quote(revision, safe="")
        if constants.HF_HUB_OFFLINE and reference.is_file():
            return reference.read_text(encoding="utf-8")
        where = f"{self.repo_id}@{revision}/{MANIFEST_NAME}"
        content, commit = retried(lambda: self._request(MANIFEST_NAME, revision), where)
        for path, text in ((self._commits / commit / MANIFEST_NAME, content), (reference, commit.encode())):
            with atomic_write(path) as temporary:
                temporary.write_bytes(text)
        return commit

    def _request(self, file: str, revision: str, start: int = 0, stop: int | None = None) -> tuple[bytes, str]:
        """A file, or its bytes from start to stop, and the commit that it is of.

        Where the Hub sends a request on to is remembered, and asked at once from then on.
        """
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set, and this is not in the cache")
        own, commit = hf_hub_url(self.repo_id, file, repo_type="dataset", revision=revision), revision
        headers = {"Accept-Encoding": "identity"} if stop is None else {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
        for _ in range(MOST_HOPS):
            url = self._addresses.get(file, own)
            login = build_hf_headers(token=self.token if urlsplit(url).netloc == urlsplit(own).netloc else False)
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with get_session().stream("GET", url, headers=login | headers, timeout=timeout, follow_redirects=False) as answer:
                commit = answer.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT, commit)
                if answer.is_redirect:
                    self._addresses[file] = urljoin(url, answer.headers["Location"])
                elif url != own and answer.status_code in REFUSED:  # such addresses expire
                    self._addresses.pop(file, None)
                else:
                    hf_raise_for_status(answer)
                    if answer.status_code == (200 if stop is None else 206):
                        return answer.read(), commit
                    break
        found = f"status {answer.status_code}"
        raise ZooError(f"{self.name}/{file}", expected="its bytes", found=found, do="check the proxy between here and the Hub")


def _one(i: int, value: bytes | memoryview) -> tuple[slice, np.ndarray]:
    """A value as it is delivered."""
    return slice(i, i + 1), np.frombuffer(value, np.uint8)[None]


def _joined(wanted: list[Wanted]) -> Iterator[list[Wanted]]:
    """Values that are fetched together: of one file, with little between them."""
    ordered = sorted(wanted, key=lambda item: item[1])
    group: list[Wanted] = []
    for item in ordered:
        place = item[1]
        if group:
            first, last = group[0][1], group[-1][1]
            gap = place.offset - (last.offset + last.length)
            small = place.offset + place.length - first.offset <= RANGE_BYTES
            if place.file != first.file or gap > GAP * place.length or not small:
                yield group
                group = []
        group.append(item)
    if group:
        yield group
