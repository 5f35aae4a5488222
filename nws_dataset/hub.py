"""A zoo's files in a repository on the Hub: the index whole, of the weights only the ranges that are asked for.

Neighbouring values are one request. What comes is checked against its SHA-256, and kept in a cache on disk.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, httpx, tqdm, validate_repo_id

from nws_dataset.cache import Cache
from nws_dataset.errors import ZooError, reason
from nws_dataset.files import MAX_JSON_BYTES, atomic_write, inside, parse_json, read_json, what_is_at
from nws_dataset.http import COMMIT, FAILURES, MOST, OFFLINE, REFUSED, TRIES, BadAnswer, Result, ask, told
from nws_dataset.index import Columns, open_index
from nws_dataset.manifest import MANIFEST_NAME, Manifest
from nws_dataset.places import Deliver, Place
from nws_dataset.shards import check_value

MAX_NAME = 200  # letters of a revision or a file's name
PARALLEL = 8  # requests at a time
GAP = 0.05  # values are fetched together if what lies between them is at most this part of the next one
VALUE_BYTES = 1 << 30  # of one value or index file
RANGE_BYTES = 32 << 20  # of one request, unless one value is larger
CACHE_BYTES = 20 * 10**9  # kept on disk, unless told otherwise
SHOWN_BYTES = 32 << 20  # a fetch of more shows a progress bar

Wanted = tuple[int, Place]  # a place, and its number among those that were asked for


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
        revision = revision or constants.DEFAULT_REVISION
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            do = "check the name; a folder must hold nws.json"
            raise ZooError(repo_id, expected="ORG/NAME of a repository on the Hub", found=reason(error), do=do) from None
        if not revision.isprintable() or len(revision) > MAX_NAME:
            do = "check the revision"
            raise ZooError(repo_id, expected="a branch, tag or commit", found=repr(revision), do=do)
        self.repo_id, self.token = repo_id, token
        self.cache_dir, self.cache_bytes = cache_dir, cache_bytes
        home = Path(cache_dir or constants.HF_HOME) / "nws"
        self.cache = Cache(home / "values", cache_bytes)
        self._commits = home / "repositories" / _file_name(repo_id)  # their nws.json
        self._addresses: dict[str, str] = {}  # file -> where the Hub sent its last request
        self.revision, self.manifest = self._find(revision)  # the commit: all that is read is of one and the same

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
            value = self.cache.get(place.sha256, place.length)
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
        if place.length > VALUE_BYTES:
            do = "do not trust this repository, or fetch the file whole and read it from a folder"
            raise ZooError(self.where(place), expected=f"at most {VALUE_BYTES} bytes", found=f"{place.length} bytes", do=do)

    def _get(self, joined: list[Wanted], deliver: Deliver) -> None:
        """Fetch neighbouring values in one request, check them, keep them, hand them over."""
        _, first = joined[0]
        stop = max(place.offset + place.length for _, place in joined)

        def checked(content: bytes) -> list[memoryview]:
            values = [memoryview(content)[place.offset - first.offset :][: place.length] for _, place in joined]
            for value, (_, place) in zip(values, joined, strict=True):
                check_value(value, place.sha256, self.where(place))
            return values

        values, _ = self._fetch(first.file, self.revision, self.where(first), checked, range(first.offset, stop))
        for value, (i, place) in zip(values, joined, strict=True):
            self.cache.put(place.sha256, value)
            deliver(*_one(i, value))

    def _find(self, revision: str) -> tuple[str, Manifest]:
        """The commit of a revision and its nws.json, both kept. Offline, the last one that was read."""
        where = f"{self.repo_id}@{revision}/{MANIFEST_NAME}"
        reference = self._commits / "revisions" / _file_name(revision)
        if constants.HF_HUB_OFFLINE:
            path = self._commits / (_kept_commit(reference) or revision) / MANIFEST_NAME
            if COMMIT.fullmatch(path.parent.name) and what_is_at(path) == "a file":
                return path.parent.name, Manifest.from_json(read_json(path, "the manifest of a zoo"), path)
        content, commit = self._fetch(MANIFEST_NAME, revision, where, lambda content: (content, _manifest(content, where)))
        for path, kept in ((self._commits / commit / MANIFEST_NAME, content[0]), (reference, commit.encode())):
            with contextlib.suppress(ZooError, ValueError), atomic_write(path) as temporary:  # a cache only saves time
                temporary.write_bytes(kept)
        return commit, content[1]

    def _fetch(
        self, file: str, revision: str, where: str, check: Callable[[bytes], Result], part: range | None = None
    ) -> tuple[Result, str]:
        """What a check makes of a file or a part of it, and the commit that it is of. An answer that is no good is asked for again.

        Raises:
            ZooError: if the Hub cannot be reached or refuses; or as the check does.
        """
        for left in reversed(range(TRIES)):
            try:
                content, commit = self._request(file, revision, part)
                return check(content), commit
            except (BadAnswer, ZooError) as error:
                self._addresses.pop(file, None)
                if not left:
                    raise (error if isinstance(error, ZooError) else told(where, error, self.token)) from None
            except FAILURES as error:
                raise told(where, error, self.token) from None
        raise AssertionError

    def _request(self, file: str, revision: str, part: range | None) -> tuple[bytes, str]:
        """A file or a part of it, and the commit that it is of.

        Where the Hub sends a request on to is remembered, and asked at once from then on.
        """
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled(OFFLINE)
        own = hf_hub_url(self.repo_id, file, repo_type="dataset", revision=revision)
        for url in dict.fromkeys((self._addresses.get(file, own), own)):
            answer = self._ask(url, own, part)
            if url == own or answer.status_code not in REFUSED:
                break
            self._addresses.pop(file, None)  # such addresses expire
        hf_raise_for_status(answer)
        if answer.status_code != (200 if part is None else 206):
            raise BadAnswer(f"status {answer.status_code}, of a proxy between here and the Hub")
        if part is not None:
            found, expected = answer.headers.get("Content-Range", ""), f"bytes {part.start}-{part.start + len(answer.content) - 1}/"
            if not found.startswith(expected):
                raise BadAnswer(f"{len(answer.content)} bytes as {found[:MAX_NAME]!r}, not as {expected!r}")
        if answer.history:
            self._addresses[file] = str(answer.request.url)
        named = [step.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT) for step in (*answer.history, answer)]
        commit = next(filter(None, named), revision)
        if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
            raise BadAnswer(f"commit {commit[:MAX_NAME]!r}, not {revision} or another of 40 hexadecimal digits")
        return answer.content, commit

    def _ask(self, url: str, own: str, part: range | None) -> httpx.Response:
        """The answer to a request for a file or a part of it."""
        client = get_session()
        headers = build_hf_headers(token=self.token) | ({} if part is None else {"Range": f"bytes={part.start}-{part.stop - 1}"})
        extensions = {MOST: MAX_JSON_BYTES if part is None else len(part)}
        request = client.build_request("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, extensions=extensions)
        return ask(functools.partial(client.send, stream=True, follow_redirects=False), request, own)


def _file_name(text: str) -> str:
    """A text from outside as the name of a file or folder: never one that leads elsewhere, never too long."""
    name = quote(text, safe="")
    return name if len(name) <= MAX_NAME and name.strip(".") else hashlib.sha256(text.encode()).hexdigest()


def _kept_commit(reference: Path) -> str | None:
    """The commit that a file of the cache names; None if it does not."""
    try:
        found = reference.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return found if COMMIT.fullmatch(found) else None


def _manifest(content: bytes, where: str) -> Manifest:
    return Manifest.from_json(parse_json(content, where, "the manifest of a zoo"), where)


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
