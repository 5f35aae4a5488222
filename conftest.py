"""What all tests share, the examples in docstrings among them.

The Hub of every test is one on this machine (testing/loopback_hub.py). huggingface_hub reads its address when
it is imported, so it is set here, before any test module is. A test that does not ask for the fixture `hub`
finds the address closed: it is refused at once.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# libraries read it when they are imported; workers of pytest already share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from testing.loopback_hub import TOKEN, LoopbackHub

HUB = LoopbackHub()
atexit.register(HUB.home.cleanup)
for variable in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_"))]:
    del os.environ[variable]
os.environ.update(HUB.environment())

CACHES = Path(__file__).parent / ".pytest_cache"

# Their tests take longest: they come first, so that at the end no worker waits for another.
LONGEST = (
    *("test_cluster.py", "test_wheel.py", "test_cpu_registers.py", "test_build.py", "test_torture.py"),
    *("test_gpu_startup.py", "test_fuzz.py", "test_gpu_kernels.py", "test_kan_step.py", "test_siren_step.py"),
    *("test_gpu_backend.py", "test_importers.py", "test_run.py", "test_gpu_compile.py", "test_forecast.py"),
)


def when_compiled(folder: Path) -> float:
    """When a cache of Numba was begun for the sources that it is of; 0 if there is none."""
    return max((path.stat().st_mtime for path in folder.glob("*/sources.sha256")), default=0.0)


# Numba's cache suffers when several processes fill it at once: each worker has one, and begins with what
# scripts/test had compiled
worker = os.environ.get("PYTEST_XDIST_WORKER")
if worker is not None:
    shared, own = CACHES / "numba", CACHES / f"numba-{worker}"
    if when_compiled(shared) > when_compiled(own):
        shutil.copytree(shared, own, dirs_exist_ok=True)
    os.environ["NUMBA_CACHE_DIR"] = str(own)

# Triton looks when it decorates a kernel, whichever test module imports it first
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# as in a process that a shell started in the background: children would inherit it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# marks of tests that run only where `-m` names them
ON_REQUEST = ("gpu_compile", "site")
PAUSE_SECONDS = 0.01  # at most, where huggingface_hub waits before it tries again


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests with a mark of ON_REQUEST run only where `-m` names it; the longest files come first."""
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.name) in LONGEST else len(LONGEST))
    unasked = [mark for mark in ON_REQUEST if mark not in config.option.markexpr]
    left_out = [item for item in items if any(map(item.get_closest_marker, unasked))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from more threads, and lose much where other processes compete for the
    cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def workers_that_start_at_once() -> Iterator[None]:
    """What `build` starts in a test's own process is forked from one that has imported all it needs; what a
    command starts imports it for itself, as a user's does.
    """
    from builder.training import workers
    from testing.forked import FORKED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "CONTEXT", FORKED)
        yield


@pytest.fixture(scope="module")  # while it is open, nothing else may run an event loop
def chromium() -> Iterator[Browser]:
    """The installed Chromium; what needs it is skipped where it is missing."""
    from testing import browser

    try:
        with browser.chromium() as found:
            yield found
    except browser.Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's script; what needs it is skipped where it is missing."""
    from testing import browser

    try:
        return browser.axe_source()
    except browser.Missing as reason:
        pytest.skip(str(reason))


class _Impatient:
    """The module `time`, with short pauses."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(min(seconds, PAUSE_SECONDS))


@pytest.fixture(autouse=True, scope="session")
def short_pauses() -> Iterator[None]:
    """huggingface_hub pauses for seconds between attempts; that is not what is tested."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_http, "time", _Impatient())
        patch.setattr(file_download, "time", _Impatient())
        yield


@pytest.fixture(scope="session")
def _running_hub() -> Iterator[LoopbackHub]:
    HUB.start()
    yield HUB
    HUB.stop()


@pytest.fixture
def hub(_running_hub: LoopbackHub) -> LoopbackHub:
    """An empty Hub; HF_TOKEN in the environment may write to its organisation "org"."""
    from huggingface_hub import HfFileSystem, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    _running_hub.reset()
    set_client_factory(default_client_factory)  # a publisher of an earlier test has set its own
    HfFileSystem.clear_instance_cache()  # it remembers what repositories held
    return _running_hub


@pytest.fixture(scope="session")
def _files_of_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from testing.release_factory import write_small_cnn
    from testing.zoo_factory import make_zoo

    folder = tmp_path_factory.mktemp("examples")
    make_zoo(folder / "nws")
    write_small_cnn(folder / "smallcnnzoo" / "mnist", "mnist", models=2)
    return folder


@pytest.fixture(autouse=True)
def place_of_an_example(request: pytest.FixtureRequest) -> None:
    """Examples run in a folder with a zoo, `nws`, and a release, `smallcnnzoo`; their Hub is empty."""
    if isinstance(request.node, pytest.DoctestItem):
        folder: Path = request.getfixturevalue("tmp_path")
        for path in request.getfixturevalue("_files_of_examples").iterdir():
            (folder / path.name).symlink_to(path)
        request.getfixturevalue("hub")
        patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
        patch.chdir(folder)
        patch.setenv("HF_TOKEN", TOKEN)
