"""A build ends in the same bytes however it came about: at one go, killed at any moment and started again, or
grown.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import safetensors.torch
import torch

from builder import build as build_module
from builder import plan, trained
from builder.build import build
from builder.cli import main
from builder.gallery import stale
from builder.plan import Request
from builder.progress import BuildProgress, Occupancy
from builder.training import device
from builder.training import workers as workers_module
from builder.training.device import resolve_device
from nws_dataset.console import Interrupted
from nws_dataset.errors import ZooError
from nws_dataset.files import sha256_file
from nws_dataset.format.shards import read_index
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo
from testing.forked import Death, living, start_build

ROOT = Path(__file__).parent.parent
MODELS, FEW = 24, 8
DEADLINE = 300.0  # seconds within which a loaded machine must get anywhere
MARK = "NWS_TEST_MARK"  # environment variable that finds a build's processes again


def arguments(out: Path, models: int = MODELS) -> list[str]:
    return [
        "--preset",
        "demo",
        "--models",
        str(models),
        "--epochs",
        "2",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]


def start(*command: str, **kwargs: object) -> tuple[subprocess.Popen[str], str]:
    """A Python program in a session of its own, and the mark that its processes carry."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, MARK: mark, "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, cwd=ROOT, text=True, start_new_session=True, **options
    )  # type: ignore[call-overload]
    return process, mark


def run(*command: str) -> subprocess.CompletedProcess[str]:
    process, _ = start(*command)
    out, err = process.communicate(timeout=DEADLINE)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def run_build(out: Path, models: int = MODELS) -> subprocess.CompletedProcess[str]:
    finished = run("-m", "builder.cli", *arguments(out, models))
    assert finished.returncode == 0, finished.stderr
    return finished


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.005)


def marked(mark: str) -> list[int]:
    """Living processes that carry a mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def staged(out: Path) -> int:
    return len(list(out.glob(".staging/models/*.parquet")))


def write_idx(folder: Path, *, seed: int, images: int = 40) -> Path:
    """The four idx files of a tiny image set of ten classes: random pixels, 28 x 28."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for prefix, count in (("train", images), ("t10k", 20)):
        pixels = random.integers(0, 256, (count, 28, 28), np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">4I", 0x803, count, 28, 28) + pixels.tobytes())
        )
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">2I", 0x801, count) + labels.tobytes())
        )
    return folder


def kill_when(out: Path, condition: Callable[[], bool], what: str) -> None:
    """Start a build and kill its first process at a moment; the others must end of themselves."""
    process, mark = start("-m", "builder.cli", *arguments(out))
    wait_until(lambda: condition() or process.poll() is not None, what)
    process.kill()
    assert process.wait() == -signal.SIGKILL, f"the build ended before {what}"
    process.communicate()
    wait_until(lambda: not marked(mark), "no process is left")


def kill(command: list[str], out: Path, dies: Death) -> None:
    """Run a build that kills itself at a moment (see `start_build`); its workers must end of themselves."""
    told = out.with_name("told")
    process = start_build(command, told, dies)
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGKILL, f"{dies} never came: {told.read_text()}"
    wait_until(lambda: not living(), "no process is left")


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file, but for the plots: the command draws them after `build`, and they carry what they
    were drawn from.
    """
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return {name: sha256_file(folder / name) for name in names if not name.startswith("plots/")}


def values(folder: Path) -> dict[tuple[str, int], str]:
    """(model_id, snapshot) -> sha256 of the value that is in the file."""
    zoo = Zoo(folder, check=True)
    for snapshot in Snapshots(zoo.index):
        zoo.value(snapshot)
    return {
        (snapshot["model_id"], snapshot["snapshot"]): snapshot["sha256"] for snapshot in Snapshots(zoo.index)
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models, built at one go."""
    out = tmp_path_factory.mktemp("undisturbed") / "nws"
    run_build(out)
    return out


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first models, before the zoo grows; not to be changed."""
    out = tmp_path_factory.mktemp("few") / "nws"
    build(Request("demo", FEW, epochs=2), out, device="cpu")
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four models; not to be changed."""
    out = tmp_path_factory.mktemp("small") / "nws"
    build(Request("demo", 4, epochs=2), out, device="cpu")
    return out


# The same bytes


def test_an_undisturbed_build(undisturbed: Path) -> None:
    found = values(undisturbed)
    assert len(found) == MODELS * 3  # two epochs leave three exports
    assert {identifier for identifier, _ in found} == {f"demo-{n:06d}" for n in range(MODELS)}
    others = {
        name
        for name in content(undisturbed)
        if not re.fullmatch(r"(index/demo|snapshots/demo)/.*\.parquet", name)
    }
    assert others == {"README.md", "nws.json", ".local.json"}
    assert stale(undisturbed) == []


@pytest.mark.slow
def test_killed_at_ten_moments(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "nws"
    kill(arguments(out), out, ("nws.json$", "before"))
    kill_when(out, lambda: any(out.glob(".staging/images/demo/*/*.npy")), "images are there for the workers")
    kill_when(out, lambda: staged(out) >= 3, "3 models are staged")
    moments: tuple[Death, ...] = (
        *(5, 6),  # models that have finished meanwhile; others are staged that it has not learned of
        *(("/snapshots/", "after"), ("/snapshots/.*-dense", "before"), ("/index/demo/validation", "before")),
        *(("nws.json$", "before"), ("nws.json$", "after")),
    )
    for moment in moments:
        kill(arguments(out), out, moment)
    run_build(out)
    assert values(out) == values(undisturbed)
    assert content(out) == content(undisturbed)


@pytest.mark.slow
def test_grown(undisturbed: Path, few: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(few, tmp_path / "nws"))
    assert len(values(out)) == FEW * 3
    build(Request("demo", MODELS, epochs=2), out, device="cpu")
    assert values(out) == values(undisturbed)
    assert content(out) == content(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["next/{file}", "commit$", "nws/{file}", "nws/nws.json"])
def test_killed_while_it_grew(undisturbed: Path, few: Path, tmp_path: Path, name: str) -> None:
    """Whenever it is killed, readers see the old state or the new one; the next build goes on from there."""
    out = Path(shutil.copytree(few, tmp_path / "nws"))
    grown = next(
        snapshot
        for snapshot in Zoo(out).filter()
        if "k3s2g1v-avg-convdrop" in snapshot["file"] and snapshot["split"] == "train"
    )
    kill(arguments(out), out, (name.format(file=grown["file"]), "after"))
    zoo = Zoo(out, check=True)
    assert len(zoo.arrays(zoo.filter())) == len(zoo.filter()) and len(set(zoo.filter()["model_id"])) in (
        FEW,
        MODELS,
    )
    again = [opened.row(opened.filter(sha256=grown["sha256"])[0]) for opened in (zoo, Zoo(undisturbed))]
    assert np.array_equal(*again)
    build(Request("demo", MODELS, epochs=2), out, device="cpu")
    assert values(out) == values(undisturbed)
    assert content(out) == content(undisturbed)


def test_a_complete_build_changes_nothing(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in small.rglob("*") if path.is_file()
    }
    monkeypatch.setattr(workers_module, "_train_one", None)  # cannot be called
    build(Request("demo", 4, epochs=2), small, device="cpu")
    build(Request("demo", 2, epochs=2), small, device="cpu")  # fewer models: those that are there stay
    assert {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in small.rglob("*") if path.is_file()
    } == before


@pytest.mark.parametrize("damage", ["lost card", "lost index", "damaged index"])
def test_what_follows_from_the_shards_is_made_again(small: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "nws"
    shutil.copytree(small, out)
    index = out / "index" / "demo" / "train.parquet"
    match damage:
        case "lost card":
            (out / "README.md").unlink()
        case "lost index":
            index.unlink()
        case "damaged index":
            index.write_bytes(index.read_bytes()[:-100] + bytes(100))
    build(Request("demo", 4, epochs=2), out, device="cpu")
    assert content(out) == content(small)


def test_a_zoo_that_does_not_say_which_backend_built_it(small: Path, tmp_path: Path) -> None:
    """As before there was a choice: it goes on by the fast step."""
    out = tmp_path / "nws"
    shutil.copytree(small, out)
    told = (out / "nws.json").read_text()
    (out / "nws.json").write_text(told.replace('        "backend": "fast",\n', ""))
    assert (out / "nws.json").read_text() != told and "backend" not in Zoo(out).manifest.subsets[
        "demo"
    ].options
    with pytest.raises(
        ZooError,
        match=rf"^{out}: expected backend of subset demo torch, found fast in "
        rf"nws.json; use another --out",
    ):
        build(Request("demo", 4, epochs=2, backend="torch"), out, device="cpu")
    build(Request("demo", 4, epochs=2), out, device="cpu")
    assert content(out) == content(small)


def test_threads_and_processes_do_not_matter(small: Path, tmp_path: Path) -> None:
    build(Request("demo", 4, epochs=2), tmp_path / "nws", device="cpu", workers=1)
    assert content(tmp_path / "nws") == content(small)


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds train as on a GPU: cohorts side by side in one process."""
    as_on_gpu = lambda task, todo, workers, occupancy: task.run_cohorts(todo, occupancy)  # noqa: E731
    monkeypatch.setattr(build_module, "run_on_processes", as_on_gpu)


def test_cohorts_side_by_side_make_the_same_zoo(small: Path, tmp_path: Path, side_by_side: None) -> None:
    build(Request("demo", 4, epochs=2), tmp_path / "nws", device="cpu")
    assert content(tmp_path / "nws") == content(small)


def test_interrupted_cohorts_end_at_their_next_epochs(
    tmp_path: Path, side_by_side: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object, result: object) -> None:
        if result is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(build_module._ShardWriter, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(Request("demo", 40, epochs=20), tmp_path / "nws", device="cpu")
    assert not any("run_stream" in thread.name for thread in threading.enumerate())
    assert staged(tmp_path / "nws") < 30


# Interruptions


@pytest.mark.parametrize("models", [0, 3])
def test_ctrl_c(small: Path, tmp_path: Path, models: int) -> None:
    """Ctrl-C reaches all processes of a terminal, also those that are just starting."""
    out = tmp_path / "nws"
    process, mark = start("-m", "builder.cli", *arguments(out, 200))
    # this one, a tracker of resources, a worker
    ready = (lambda: staged(out) >= models) if models else (lambda: len(marked(mark)) > 2)
    wait_until(lambda: ready() or process.poll() is not None, "it is at work")
    os.killpg(process.pid, signal.SIGINT)
    stdout, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == Interrupted.exit_code
    assert stdout == ""
    lines = [line for line in err.splitlines() if not re.match(r"demo: \d+/200 models, ", line)]
    kept = f"finished models are kept in {out}: run the same command to go on"
    assert lines == [f"interrupted; {kept if any(out.rglob('[!.]*.parquet')) else 'no model was finished'}"]
    assert not marked(mark)
    left = {
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if path.is_file() and path.suffix != ".parquet"
    }
    assert left <= {".staging/lock", "README.md", "nws.json", ".local.json"}
    build(Request("demo", 4, epochs=2), out, device="cpu")
    assert {key: value for key, value in values(out).items() if key in values(small)} == values(small)


def test_ctrl_c_while_a_shard_is_written_ends_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = []
    stop = workers_module._stop

    def interrupted(_: object, result: object) -> None:
        if result is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(
        workers_module, "_stop", lambda pool: (pools.append(list(pool._processes.values())), stop(pool))
    )
    monkeypatch.setattr(build_module._ShardWriter, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        build(Request("demo", 40, epochs=2), tmp_path / "nws", device="cpu", workers=1)
    (processes,) = pools  # ended already, though the traceback keeps the generator alive
    assert caught.traceback and not any(process.is_alive() for process in processes)


def test_what_was_declared_in_vain_binds_nobody(tmp_path: Path) -> None:
    out = tmp_path / "nws"
    kill_when(out, lambda: any(out.glob(".staging/images/demo/*/*.npy")), "images are there for the workers")
    assert not staged(out)
    build(Request("demo", 2, epochs=1, seed=5), out, device="cpu", workers=1)
    assert Zoo(out).manifest.subsets["demo"].seed == 5


def test_one_build_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "nws"
    process, mark = start("-m", "builder.cli", *arguments(out, 200))
    try:
        wait_until(lambda: staged(out) > 0, "it is at work")
        with pytest.raises(
            ZooError,
            match=rf"^{out}: expected one build at a time, found another one at "
            rf"work; wait for it, or stop it$",
        ):
            build(Request("demo", 2, epochs=2), out, device="cpu")
        assert process.poll() is None
        assert staged(out) > 0
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=DEADLINE)
    assert process.returncode == Interrupted.exit_code
    assert not marked(mark)


# Selections


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Tiny image sets in place of mnist and fashion_mnist."""
    for seed, name in enumerate(("mnist", "fashion_mnist")):
        write_idx(tmp_path / "images" / name, seed=seed)
    return tmp_path / "images"


def test_datasets_select_and_never_redraw(images: Path, tmp_path: Path) -> None:
    one, both = tmp_path / "one", tmp_path / "both"
    build(Request("fixed", 1, ("mnist",), epochs=1), one, images=images, device="cpu", workers=1)
    (mnist,) = Zoo(one).filter(is_final=True)
    assert mnist["dataset"] == "mnist"
    build(Request("fixed", 1, ("fashion_mnist",), epochs=1), one, images=images, device="cpu", workers=1)
    assert {snapshot["dataset"] for snapshot in Zoo(one).filter(is_final=True)} == {"mnist", "fashion_mnist"}
    build(
        Request("fixed", 6, ("mnist", "fashion_mnist"), epochs=1),
        both,
        images=images,
        device="cpu",
        workers=1,
    )
    assert len(values(both)) == 6 * 2
    assert values(one).items() < values(both).items()
    assert list(Zoo(one).manifest.subsets["fixed"].image_sets) == ["fashion_mnist", "mnist"]
    card = (one / "README.md").read_text()
    assert card.index("| fashion_mnist | idx files") < card.index("| mnist | idx files")
    # The order in which image sets came does not show.
    build(
        Request("fixed", 6, ("fashion_mnist", "mnist"), epochs=1), one, images=images, device="cpu", workers=1
    )
    assert content(one) == content(both)


def test_two_subsets_in_one_folder(images: Path, tmp_path: Path) -> None:
    """Their order does not show, and each has the training images that it was built with."""
    first, second = tmp_path / "first", tmp_path / "second"
    requests = [Request("fixed", 1, ("mnist",), epochs=1, train_images=30), Request("demo", 2, epochs=1)]
    for request in requests:
        build(request, first, images=images, device="cpu", workers=1)
    for request in reversed(requests):
        build(request, second, images=images, device="cpu", workers=1)
    assert content(first) == content(second)
    entries = Zoo(first).manifest.subsets
    assert {name: dict(entry.options) for name, entry in entries.items()} == {
        "demo": {"backend": "fast", "device": "cpu", "epochs": 1, "tf32": False, "train_images": None},
        "fixed": {"backend": "fast", "device": "cpu", "epochs": 1, "tf32": False, "train_images": 30},
    }


def test_caps_are_recorded(tmp_path: Path) -> None:
    out = tmp_path / "nws"
    build(Request("demo", 2, epochs=1, train_images=200), out, device="cpu", workers=1)
    recorded = {"backend": "fast", "device": "cpu", "epochs": 1, "tf32": False, "train_images": 200}
    assert Zoo(out).manifest.subsets["demo"].options == recorded
    card = (out / "README.md").read_text()
    assert "**Departs from the preset: epochs capped at 1.**" in card
    assert "**Departs from the preset: train_images capped at 200.**" in card
    assert set(Snapshots(Zoo(out).index)["max_epochs"]) == {1}


# What a reader finds


def test_stock_libraries_read_it(undisturbed: Path, tmp_path: Path) -> None:
    import datasets

    cache = str(tmp_path / "cache")
    index = datasets.load_dataset(str(undisturbed), cache_dir=cache)
    snapshots = datasets.load_dataset(str(undisturbed), "demo", cache_dir=cache)
    zoo = Zoo(undisturbed)
    assert set(index) == set(snapshots) == {"train", "validation", "test"}
    models = {split: set(part["model_id"]) for split, part in index.items()}
    assert sum(map(len, models.values())) == len(set.union(*models.values())) == MODELS
    assert {split: set(part["model_id"]) for split, part in snapshots.items()} == models
    for split, part in index.items():
        assert set(part["split"]) == {split}
        for snapshot in part:
            assert (snapshot["init_std"] is None) == (
                snapshot["initialization"] not in ("random_normal", "truncated_normal")
            )
            assert (snapshot["validation_accuracy"] is None) == (snapshot["validation_fraction"] == 0)
    for snapshot in list(snapshots["validation"])[:5]:
        (known,) = zoo.filter(model_id=snapshot["model_id"], snapshot=snapshot["snapshot"])
        tensors = safetensors.torch.load(snapshot["weights"])
        expected = zoo.state_dict(known)
        assert tensors.keys() == expected.keys()
        assert all(np.array_equal(tensors[name], expected[name]) for name in tensors)
        assert snapshot["weights"] == bytes(zoo.value(known))


def test_shards_are_sorted_and_the_index_follows_them(undisturbed: Path) -> None:
    for path in (undisturbed / "index" / "demo").glob("*.parquet"):
        snapshots = Snapshots(read_index(path))
        keys = [(snapshot["file"], snapshot["snapshot"], snapshot["model_id"]) for snapshot in snapshots]
        assert keys == sorted(keys)


# Progress


def terminal_output(out: Path) -> Iterator[str]:
    """What a build of four models prints to a terminal, piece by piece."""
    leader, follower = pty.openpty()
    process, _ = start("-m", "builder.cli", *arguments(out, 4), stdout=follower, stderr=follower)
    os.close(follower)
    with contextlib.suppress(OSError):  # how Linux ends a pseudo terminal
        while piece := os.read(leader, 4096):
            yield piece.decode(errors="replace")
    os.close(leader)
    assert process.wait() == 0


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    text = "".join(terminal_output(tmp_path / "nws"))
    assert "━" in text and "4/4" in text and "a minute" in text and "mean test accuracy" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(
        r"\ndemo: 4 models, 4 trained in \d+ s, mean test accuracy 0\.\d{3}, \d+ % "
        r"busy\r\n",
        plain,
    )
    assert plain.rstrip().endswith(f"nws is complete: datasets.load_dataset('{tmp_path / 'nws'}')")


def test_progress_in_a_pipe(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "nws")
    finished = run_build(tmp_path / "nws", 6)
    assert re.fullmatch(
        r"(demo: \d/6 models, .*\n)*demo: 6 models, 2 trained in \d+ s, mean test accuracy 0\.\d{3}, \d+ % "
        r"busy\n",
        finished.stderr,
    )
    assert finished.stdout == f"{tmp_path / 'nws'} is complete: datasets.load_dataset('{tmp_path / 'nws'}')\n"


def test_progress_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    occupancy = Occupancy()
    occupancy.add(active=90, taken=120)
    with BuildProgress("demo", total=10, done=4, first_epochs=20, occupancy=occupancy) as progress:
        now[0] += 15
        progress.advance(None, 10)  # half a model
        for number, accuracy in enumerate((0.5, 0.7), 1):
            now[0] = 30 * number
            progress.advance(trained.Summary("demo-000004", 20, accuracy, accuracy == 0.7, 30.0), 20 * number)
    assert capsys.readouterr().err.splitlines() == [
        "demo: 4/10 models, 2.0 a minute, 0:02:45 left",
        "demo: 5/10 models, 2.0 a minute, 0:02:30 left, mean test accuracy 0.500",
        "demo: 6/10 models, 2.0 a minute, 0:02:00 left, mean test accuracy 0.600, 1 diverged",
        "demo: 6 models, 2 trained in 60 s, mean test accuracy 0.600, 1 diverged, 75 % busy",
    ]


# Where to train, and by what


def test_an_unknown_backend() -> None:
    with pytest.raises(
        ZooError,
        match=r"^--backend: expected one of fast, torch, found jax; choose one of "
        r"them$",
    ):
        Request("demo", backend="jax")


@pytest.mark.parametrize(
    ("gpus", "triton", "asked", "backend", "told"),
    [
        ("", True, "auto", "fast", "cpu"), ("cuda", True, "auto", "fast", "cuda"),
        ("cuda", False, "auto", "fast", "cpu"),
        ("mps", True, "auto", "fast", "cpu"), ("cuda", True, "cpu", "fast", "cpu"),
        ("cuda", True, "cuda", "fast", "cuda"),
        ("", True, "cuda", "fast", "a GPU that torch can use, found none; use --device cpu"),
        ("cuda", False, "cuda", "fast", "Triton, found none; use --device cpu, or --backend torch, which "
            "is slower"),
        ("mps", True, "mps", "fast", "a fast step for it, found none; use --device cpu, or --backend "
            "torch, which is slower"),
        ("", True, "mps", "fast", "a fast step for it, found none; use --device cpu"),
        ("", True, "auto", "torch", "cpu"), ("cuda", False, "auto", "torch", "cuda"),
        ("mps", False, "auto", "torch", "mps"),
        ("cuda", False, "cuda", "torch", "cuda"), ("mps", False, "mps", "torch", "mps"),
        ("cuda", True, "cpu", "torch", "cpu"),
        ("cuda", True, "mps", "torch", "a GPU that torch can use, found none; use --device cpu"),
    ],
)  # fmt: skip
def test_devices(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gpus: str,
    triton: bool,
    asked: str,
    backend: str,
    told: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: gpus == "mps")
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object() if triton else None)
    if told in plan.DEVICES:
        assert resolve_device(asked, backend).type == told
        without_triton = (gpus, triton, asked, backend) == ("cuda", False, "auto", "fast")
        assert ("not the package triton" in capsys.readouterr().err) == without_triton
    else:
        with pytest.raises(ZooError, match=f"^--device {asked}: expected {told}$"):
            resolve_device(asked, backend)


def test_help_says_that_tf32_cuts_and_does_not_round() -> None:
    (option,) = (parameter for parameter in main.params if parameter.name == "tf32")
    assert isinstance(option, click.Option) and option.help is not None
    assert "truncated" in option.help
