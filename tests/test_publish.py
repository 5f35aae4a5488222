"""Publishing: what is on the Hub is what is in the folder, whenever it is looked at and whatever goes wrong
on the way.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from huggingface_hub import set_client_factory
from huggingface_hub.utils import httpx
from huggingface_hub.utils._http import default_client_factory

from builder import publish
from builder.build import build
from builder.cli import main
from builder.plan import Request
from builder.publish import Content, Publisher
from nws_dataset import http
from nws_dataset.errors import ZooError
from nws_dataset.format.manifest import Manifest
from nws_dataset.http import retry_after
from testing.loopback_hub import READ_TOKEN, TOKEN, Fault, File, LoopbackHub, Tree, every_second
from testing.zoo_factory import make_zoo

REPO = "org/nws"
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short pauses, and huggingface_hub's own client for the tests that follow."""
    monkeypatch.setattr(http, "PAUSES", (0.01, 0.02, 0.04, 0.08))
    monkeypatch.setattr(publish, "EARLY_SECONDS", 0.0)
    yield
    set_client_factory(default_client_factory)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    return make_zoo(tmp_path / "zoo")


class Witness:
    """Looks at every commit: each value that an index names is there with its sha256, and each file as
    nws.json says.
    """

    def __init__(self) -> None:
        self.commits, self.values, self.wrong = 0, 0, list[str]()
        self.seen: set[tuple[str, str, int]] = set()

    def __call__(self, repo_id: str, tree: Tree) -> None:
        self.commits += 1
        for path, file in tree.items():
            if path.startswith("index/"):
                columns = pq.read_table(
                    io.BytesIO(file.content), columns=["file", "offset", "length", "sha256"]
                ).to_pylist()
                self.wrong += [
                    f"{path}: {snapshot['file']} at {snapshot['offset']}"
                    for snapshot in columns
                    if not self.there(snapshot, tree)
                ]
        if "nws.json" in tree:
            for path, entry in json.loads(tree["nws.json"].content)["files"].items():
                if path not in tree or tree[path].sha256 != entry["sha256"]:
                    self.wrong.append(f"nws.json: {path}")

    def there(self, snapshot: dict[str, Any], tree: Tree) -> bool:
        self.values += 1
        content = tree[snapshot["file"]].content if snapshot["file"] in tree else b""
        return (
            hashlib.sha256(content[snapshot["offset"] :][: snapshot["length"]]).hexdigest()
            == snapshot["sha256"]
        )


@pytest.fixture
def witness(hub: LoopbackHub) -> Iterator[Witness]:
    hub.on_commit = witness = Witness()
    yield witness
    assert witness.wrong == []


def push(folder: Path, **options: Any) -> Publisher:
    publisher = Publisher(REPO, **options)
    publisher.prepare(Content.of(folder))
    publisher.push(folder)
    return publisher


def published(folder: Path) -> dict[str, bytes]:
    """What of a folder belongs on the Hub."""
    plots = [f"plots/{path.name}" for path in folder.glob("plots/[!.]*.*") if path.suffix != ".txt"]
    names = [*Manifest.read(folder).files, "nws.json", "README.md", *plots]
    return {name: (folder / name).read_bytes() for name in names}


def on_the_hub(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    commit = hub.repos[REPO].at(revision)
    assert commit is not None
    return {path: file.content for path, file in commit.tree.items() if path != ".gitattributes"}


def sent(hub: LoopbackHub) -> list[str]:
    """The requests that send files or change the repository."""
    reading = ("GET", "HEAD")
    return [f"{request.method} {request.path}" for request in hub.requests if request.method not in reading]


# What arrives


def test_a_folder(hub: LoopbackHub, witness: Witness, tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", subsets=("demo", "other"))
    for name in (
        ".local.json",
        ".staging/models/demo-000001.parquet",
        "snapshots/demo/.x.parquet.1.tmp",
        "plots/a.png",
        "plots/a.html",
        "plots/a.txt",
        "plots/.b.png",
    ):
        (zoo / name).parent.mkdir(parents=True, exist_ok=True)
        (zoo / name).write_bytes(b"local")
    publisher = push(zoo)
    assert on_the_hub(hub) == published(zoo)
    assert {"plots/a.png", "plots/a.html"} <= on_the_hub(hub).keys()
    assert publisher.url == f"{hub.url}/datasets/{REPO}"
    assert witness.commits == 2 and witness.values > 0  # the shards, and the rest
    hub.clear()
    push(zoo)
    assert sent(hub) == []


def stock_reads_the_same(folder: Path, tmp_path: Path) -> None:
    """The stock library gives the same snapshots from the Hub alone as from the folder, streamed too."""
    here = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "here"))
    weights = datasets.load_dataset(str(folder), "demo", cache_dir=str(tmp_path / "here"))
    folder.rename(tmp_path / "away")
    there = datasets.load_dataset(REPO, cache_dir=str(tmp_path / "there"))
    streamed = datasets.load_dataset(REPO, "demo", streaming=True, cache_dir=str(tmp_path / "there"))
    assert set(there) == set(here) and set(streamed) == set(weights) == set(here)
    for split in here:
        assert list(there[split]) == list(here[split])
        assert list(streamed[split]) == list(weights[split])


def test_stock_datasets_read_it(hub: LoopbackHub, zoo: Path, tmp_path: Path) -> None:
    push(zoo)
    stock_reads_the_same(zoo, tmp_path)


def test_a_grown_zoo(hub: LoopbackHub, witness: Witness, zoo: Path, tmp_path: Path) -> None:
    push(zoo)
    before = hub.repos[REPO].branches["main"]
    grown = make_zoo(tmp_path / "grown", models=12)
    replaced = [
        path
        for path in published(zoo)
        if path.startswith("snapshots/") and published(zoo)[path] != published(grown)[path]
    ]
    assert replaced
    hub.clear()
    push(grown)
    assert on_the_hub(hub) == published(grown)
    assert on_the_hub(hub, before) == published(zoo)
    untouched = [path for path in published(zoo) if published(zoo)[path] == published(grown)[path]]
    digests = {hashlib.sha256(published(grown)[path]).hexdigest() for path in untouched}
    assert untouched and not any(request.endswith(digest) for request in sent(hub) for digest in digests)


def test_branch_tag_and_private(hub: LoopbackHub, zoo: Path) -> None:
    publisher = push(zoo, private=True, revision="work", tag="v1.0.0")
    repo = hub.repos[REPO]
    assert repo.private and repo.tags == {"v1.0.0": repo.branches["work"]}
    assert on_the_hub(hub, "v1.0.0") == published(zoo) and on_the_hub(hub, "main") == {}
    assert publisher.url == f"{hub.url}/datasets/{REPO}/tree/v1.0.0"
    hub.clear()
    push(zoo, private=True, revision="work", tag="v1.0.0")  # the same tag at the same commit
    assert [request for request in sent(hub) if "/branch/" not in request and "/tag/" not in request] == []


def test_a_card_that_was_written_on_the_hub_is_replaced(hub: LoopbackHub, zoo: Path) -> None:
    hub.put(REPO, {"README.md": b"Soon here."})
    push(zoo)
    assert on_the_hub(hub) == published(zoo)


# While it is built


def offer(publisher: Publisher, zoo: Path, count: int | None = None) -> list[str]:
    """Offer some shards, or all; returns their paths."""
    shards = [
        (path, entry) for path, entry in Manifest.read(zoo).files.items() if path.startswith("snapshots/")
    ][:count]
    for path, entry in shards:
        publisher.offer(zoo / path, path, entry)
        if publisher._thread is not None:
            publisher._thread.join()
    return [path for path, _ in shards]


def test_finished_shards_go_first(hub: LoopbackHub, witness: Witness, zoo: Path) -> None:
    publisher = Publisher(REPO)
    publisher.prepare(Content.of(zoo))
    shards = offer(publisher, zoo)
    assert sorted(on_the_hub(hub)) == sorted(shards)
    hub.clear()
    publisher.push(zoo)
    assert on_the_hub(hub) == published(zoo)
    assert sum("/commit/" in request for request in sent(hub)) == 1


def test_what_fails_in_the_background_is_tried_again_at_the_end(
    hub: LoopbackHub, witness: Witness, zoo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    publisher = Publisher(REPO)
    publisher.prepare(Content.of(zoo))
    hub.faults = lambda number, method, path: 503 if "/commit/" in path else None
    offer(publisher, zoo)
    assert on_the_hub(hub) == {}
    assert "not pushed yet, will be tried again: the Hub" in capfd.readouterr().err
    hub.faults = None
    publisher.push(zoo)
    assert on_the_hub(hub) == published(zoo)


# What goes wrong


@pytest.mark.parametrize(
    "faults",
    [
        (503, 429),
        ("drop",),
        ("drop after",),
        ("cut",),
        ("stall", 503),
        (500, "drop", 429, "drop after", "stall", 503, "cut"),
    ],
    ids=lambda faults: "+".join(map(str, faults)),
)
@pytest.mark.parametrize("first", [0, 1], ids=["even", "odd"])
def test_faults_in_every_second_request(
    hub: LoopbackHub,
    witness: Witness,
    zoo: Path,
    monkeypatch: pytest.MonkeyPatch,
    faults: tuple[Fault, ...],
    first: int,
) -> None:
    monkeypatch.setattr(publish, "TIMEOUT_SECONDS", 0.2)
    hub.stall_seconds = 0.3
    meet = every_second(*faults)
    hub.faults = lambda number, method, path: meet(number + first, method, path)
    publisher = Publisher(REPO, tag="v1", revision="work")
    publisher.prepare(Content.of(zoo))
    offer(publisher, zoo, 1)
    publisher.push(zoo)
    assert on_the_hub(hub, "v1") == published(zoo)
    assert len({request.status for request in hub.requests if request.number > 2}) > 1
    hub.faults = None
    hub.clear()
    push(zoo, tag="v1", revision="work")
    assert not any("/commit/" in request or request.startswith("PUT") for request in sent(hub))


CHILD = """
import os, sys, time
from pathlib import Path
from builder import publish
from builder.build import Request, build
from nws_dataset.format.manifest import Manifest

publish.EARLY_SECONDS = 0
for line in sys.stdin:  # a folder and a repository: push one to the other, in a process of its own
    folder, repo_id = line.split()
    child = os.fork()
    if child:
        print(child, flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)
        continue
    publisher = publish.Publisher(repo_id, tag="v1")
    publisher.prepare(publish.Content.of(Path(folder)))
    for path, entry in Manifest.read(folder).files.items():
        if path.startswith("snapshots/"):
            publisher.offer(Path(folder, path), path, entry)
            while publisher._thread is not None:  # the same requests every time
                time.sleep(0.001)
    publisher.push(Path(folder))
    os._exit(0)
"""


@pytest.mark.slow
def test_killed_at_ten_moments(hub: LoopbackHub, witness: Witness, zoo: Path) -> None:
    environment = {**os.environ, **hub.environment(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdin is not None and driver.stdout is not None
        children: queue.Queue[int] = queue.Queue()

        def run(repo_id: str) -> None:
            assert driver.stdin is not None and driver.stdout is not None
            hub.clear()
            driver.stdin.write(f"{zoo} {repo_id}\n")
            driver.stdin.flush()
            children.put(int(driver.stdout.readline()))
            assert driver.stdout.readline() == "ended\n"
            children.get()

        run(REPO)
        moments = [round(1 + i * (len(hub.requests) - 1) / 9) for i in range(10)]
        assert on_the_hub(hub, "v1") == published(zoo)
        for moment in moments:

            def kill(number: int, method: str, path: str, moment: int = moment) -> Fault | None:
                if number != moment:
                    return None
                child = children.get()
                children.put(child)
                os.kill(child, signal.SIGKILL)
                return ("drop", "drop after")[moment % 2]

            hub.repos.clear()
            hub.storage.clear()
            hub.faults = kill
            run(REPO)
            assert max(request.number for request in hub.requests) >= moment
            hub.faults = None
            run(REPO)
            assert on_the_hub(hub, "v1") == published(zoo)
        driver.stdin.close()
    assert len(set(moments)) == 10 and witness.commits > 20


def test_someone_else_commits_at_the_same_time(hub: LoopbackHub, witness: Witness, zoo: Path) -> None:
    def meddle(number: int, method: str, path: str) -> None:
        if "/commit/" in path and "notes.txt" not in on_the_hub(hub):
            hub.put(REPO, {"notes.txt": b"hello", "README.md": b"theirs"})

    publisher = Publisher(REPO)
    publisher.prepare(Content.of(zoo))
    hub.put(
        REPO,
        {
            "nws.json": (zoo / "nws.json").read_bytes(),
            **{p: b for p, b in published(zoo).items() if "/" in p},
        },
    )
    hub.faults = meddle
    publisher.push(zoo)
    assert on_the_hub(hub) == {**published(zoo), "notes.txt": b"hello"}


def test_the_hub_holds_another_file_than_was_sent(hub: LoopbackHub, zoo: Path) -> None:
    shard = next(path for path in Manifest.read(zoo).files if path.startswith("snapshots/"))

    def spoil(repo_id: str, tree: Tree) -> None:
        if shard in tree:
            tree[shard] = File(b"x" * len(tree[shard].content), True)  # type: ignore[index]

    hub.on_commit = spoil
    with pytest.raises(
        ZooError,
        match=f"^{REPO}/{shard} on the Hub: expected the file that was sent, found another; run the same",
    ):
        push(zoo)


def test_a_shard_that_was_damaged_here(hub: LoopbackHub, zoo: Path) -> None:
    shard = next(path for path in Manifest.read(zoo).files if path.startswith("snapshots/"))
    content = bytearray((zoo / shard).read_bytes())
    content[1000] ^= 1
    (zoo / shard).write_bytes(content)
    with pytest.raises(ZooError, match=f"{shard}: expected sha256 "):
        push(zoo)
    assert on_the_hub(hub) == {}


def test_a_hub_that_never_answers(hub: LoopbackHub, zoo: Path) -> None:
    publisher = Publisher(REPO)
    publisher.prepare(Content.of(zoo))
    for fault, found in ((503, "503: "), ("drop", "RemoteProtocolError: ")):
        hub.faults = lambda number, method, path, fault=fault: fault if method == "PUT" else None  # type: ignore[misc]
        with pytest.raises(
            ZooError, match=f"expected an answer, found {found}.*; run the same command again"
        ):
            publisher.push(zoo)


def test_the_hub_asks_to_wait(hub: LoopbackHub, zoo: Path) -> None:
    hub.retry_after = 1
    hub.faults = lambda number, method, path: 429 if number == 1 else None
    start = time.monotonic()
    push(zoo)
    assert time.monotonic() - start > 1
    answer = httpx.Response(429, headers={"RateLimit": '"api";r=0;t=55', "Retry-After": "7"})
    assert retry_after(answer) == 55


# Refusals


def change(zoo: Path, **fields: Any) -> None:
    """Change nws.json; `subset` fields go to subset demo."""
    data = json.loads((zoo / "nws.json").read_text())
    data["subsets"]["demo"].update(fields.pop("subset", {}))
    (zoo / "nws.json").write_text(json.dumps({**data, **fields}))


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({"generator_version": "1"}, "expected generator version test, found 1;"),
        (
            {"format_version": 1},
            "expected nws.json of this version's format, found another, or a damaged one;",
        ),
        ({"subset": {"seed": 8}}, "expected seed of subset demo 7, found 8;"),
        ({"subset": {"options": {"epochs": 3}}}, "expected epochs of subset demo None, found 3;"),
        (
            {"subset": {"image_sets": {"mnist": {"source": "files", "sha256": "0" * 64}}}},
            "expected image set mnist of subset demo random e3b0c44298fc, found files 000000000000;",
        ),
    ],
)
def test_a_zoo_that_was_made_otherwise(
    hub: LoopbackHub, zoo: Path, tmp_path: Path, there: dict[str, Any], told: str
) -> None:
    theirs = make_zoo(tmp_path / "theirs")
    change(theirs, **there)
    refused(hub, theirs, zoo, told)


def refused(hub: LoopbackHub, there: Path | dict[str, bytes], zoo: Path, told: str, **options: Any) -> None:
    """A push on top of something else is refused before anything is sent."""
    hub.put(REPO, there)
    before = hub.repos[REPO].branches["main"]
    with pytest.raises(ZooError) as error:
        push(zoo, **options)
    assert told in str(error.value) and REPO in str(error.value)
    assert sent(hub) == [] and hub.repos[REPO].branches["main"] == before


def test_models_that_are_not_here(hub: LoopbackHub, zoo: Path, tmp_path: Path) -> None:
    theirs = make_zoo(tmp_path / "theirs", models=12)
    refused(
        hub,
        theirs,
        zoo,
        "expected models that are in the folder too, found a model demo-000010 that "
        "is not; use another --repo-id",
    )


def test_a_subset_that_is_not_here(hub: LoopbackHub, zoo: Path, tmp_path: Path) -> None:
    theirs = make_zoo(tmp_path / "theirs", subsets=("demo", "other"))
    refused(
        hub, theirs, zoo, "expected subsets that are in the folder too, found a subset other that is not;"
    )


def test_files_that_are_not_here(hub: LoopbackHub, zoo: Path, tmp_path: Path) -> None:
    hub.put(REPO, zoo)
    refused(
        hub,
        {"snapshots/demo/train-x.parquet": b""},
        zoo,
        "expected files that are in the folder too, found a file snapshots/demo/train-x",
    )


def test_a_repository_of_something_else(hub: LoopbackHub, zoo: Path) -> None:
    refused(
        hub,
        {"cats.csv": b"1"},
        zoo,
        "expected an empty repository or a zoo, found a file cats.csv and no nws.json;",
    )


def test_a_damaged_index(hub: LoopbackHub, zoo: Path) -> None:
    hub.put(REPO, zoo)
    refused(
        hub,
        {"index/demo/train.parquet": b"PAR1"},
        zoo,
        "expected an index that can be read, found ArrowInvalid: ",
    )


def test_a_public_repository(hub: LoopbackHub, zoo: Path) -> None:
    refused(hub, zoo, zoo, "expected a private repository, found a public one;", private=True)


@pytest.mark.parametrize("models", [10, 5])
def test_a_tag_elsewhere(hub: LoopbackHub, zoo: Path, tmp_path: Path, models: int) -> None:
    """At an older commit; or at the last one, where another will follow."""
    sha = hub.put(REPO, make_zoo(tmp_path / "theirs", models=models))
    hub.repos[REPO].tags["v1"] = sha
    told = "expected no tag v1 yet" if models == 5 else "expected tag v1 at commit "
    refused(
        hub,
        {"README.md" if models == 10 else "notes.txt": (zoo / "README.md").read_bytes()},
        zoo,
        told,
        tag="v1",
    )


def test_a_tag_of_a_folder_that_changed(hub: LoopbackHub, zoo: Path) -> None:
    """That is known only when the folder is complete; nothing is sent then."""
    push(zoo, tag="v1")
    (zoo / "README.md").write_text((zoo / "README.md").read_text() + "More.\n")
    hub.clear()
    with pytest.raises(
        ZooError,
        match=rf"{REPO} on the Hub: expected no tag v1 yet, found it at commit "
        rf"\w+; choose another --tag",
    ):
        push(zoo, tag="v1")
    assert sent(hub) == []


@pytest.mark.parametrize(
    ("token", "told"),
    [
        (
            None,
            "Error: org/nws: expected a login that may write, found no token; log in (hf auth login), or set "
            "HF_TOKEN",
        ),
        (
            "hf_notAToken",
            "Error: org/nws: expected a repository that you may write to, found 401: Invalid user token. ",
        ),
        (
            READ_TOKEN,
            "Error: org/nws: expected a repository that you may write to, found 403: You don't have the "
            "rights to write to org/nws; ",
        ),
        ("hf_é", "Error: the Hub"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_who_may_not_write(
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    token: str | None,
    told: str,
    there: bool,
) -> None:
    if there:
        hub.put(REPO, {"README.md": b""})
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(SystemExit) as ended:
        main.main(
            ["--models", "2", "--epochs", "1", "--out", str(tmp_path / "nws"), "--upload", "--repo-id", REPO]
        )
    out, err = capfd.readouterr()
    assert (ended.value.code, out, len(err.splitlines())) == (2, "", 1) and told in err
    assert not (tmp_path / "nws").exists()
    assert token is None or token not in err
    assert TOKEN not in err


def test_a_stored_login(hub: LoopbackHub, zoo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    push(zoo)
    assert on_the_hub(hub) == published(zoo)


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ZooError,
        match=r"^HF_HUB_OFFLINE: expected a Hub that may be asked, found offline "
        r"mode; unset it",
    ):
        Publisher(REPO).prepare(Content("test", {}, frozenset(), frozenset()))


def test_an_unreachable_hub(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    idle = LoopbackHub()
    publisher = Publisher(REPO)
    publisher.api.endpoint = idle.url
    with pytest.raises(
        ZooError,
        match=rf"^the Hub \({idle.url}\): expected an answer, found ConnectError: "
        rf".*; run the same command again",
    ):
        publisher.prepare(Content("test", {}, frozenset(), frozenset()))
    idle.server.server_close()
    idle.home.cleanup()


# The builder


@pytest.mark.slow
def test_a_build_that_grows(hub: LoopbackHub, witness: Witness, tmp_path: Path) -> None:
    def grow(folder: str, models: int) -> None:
        publisher = Publisher(REPO)
        build(
            Request("demo", models, epochs=1), tmp_path / folder, device="cpu", workers=1, publisher=publisher
        )
        publisher.push(tmp_path / folder)

    for models in (3, 4):
        grow("nws", models)
        assert on_the_hub(hub) == published(tmp_path / "nws")
    hub.clear()
    with pytest.raises(
        ZooError,
        match=r"expected (models|files) that are in the folder too, found a .* "
        r"that is not;",
    ):
        grow("fewer", 2)
    assert sent(hub) == [] and not (tmp_path / "fewer").exists()


# The command


@pytest.mark.slow
def test_the_command(hub: LoopbackHub, witness: Witness, tmp_path: Path) -> None:
    arguments = [
        "--preset",
        "demo",
        "--models",
        "4",
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "nws"),
    ]
    options = ["--upload", "--repo-id", REPO, "--private", "--tag", "v1.0.0"]
    command = [sys.executable, "-m", "builder.cli", *arguments, *options]
    environment = {**os.environ, **hub.environment(), "PYTHONPATH": str(ROOT)}
    for number in range(2):
        hub.clear()
        finished = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr
        assert (
            f"{hub.url}/datasets/{REPO}/tree/v1.0.0 is complete: datasets.load_dataset('{REPO}', "
            "revision='v1.0.0')"
        ) in finished.stdout
        assert TOKEN not in finished.stdout + finished.stderr
        assert bool([request for request in sent(hub) if "/tag/" not in request]) == (number == 0)
    assert on_the_hub(hub, "v1.0.0") == published(tmp_path / "nws")
    assert hub.repos[REPO].private
    stock_reads_the_same(tmp_path / "nws", tmp_path)


def test_dry_run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It asks nobody: here is no Hub."""
    monkeypatch.setattr("builder.forecasting.forecast.forecast", lambda request, calibrate: "A forecast.")
    options = ["--upload", "--repo-id", REPO, "--private", "--revision", "work", "--tag", "v1.0.0"]
    main.main(["--dry-run", *options], standalone_mode=False)
    told = (
        f"A forecast.\nThen it would push the folder to: private data set {REPO} on the Hub, branch "
        "work, and tag it v1.0.0.\n"
    )
    assert capfd.readouterr().out == told
