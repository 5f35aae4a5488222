"""A build on a Ray cluster ends in the bytes of one without: nodes come, go and are refused, the driver dies,
rows do not pile up.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ray")

import ray
from ray.cluster_utils import Cluster as Nodes
from ray.exceptions import WorkerCrashedError

from builder import cluster as cluster_module
from builder.build import build
from builder.cli import main
from builder.cluster import NodeTraining, blocks, connected, input_of, versions
from builder.images import load_image_set
from builder.plan import Model, Request
from builder.progress import BuildProgress, Occupancy
from builder.trained import Trained
from builder.training import bank
from nws_dataset.errors import ZooError
from nws_dataset.files import sha256_file
from nws_dataset.format.subsets import PRESETS, SUBSETS
from nws_dataset.reading.zoo import Zoo

ROOT = Path(__file__).parent.parent
CPU, GPU = torch.device("cpu"), torch.device("cuda")
MODELS, FEW = 12, 4
DEADLINE = 180.0  # seconds within which a loaded machine must get anywhere
REQUEST = Request("demo", MODELS, epochs=2)
STORE_BYTES = 100_000_000  # of a node's object store


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster whose head trains nothing; a test adds nodes that do."""
    with pytest.MonkeyPatch.context() as patch:
        # else it depends on whether this machine's user has a token
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setattr(cluster_module, "CONNECTION_SECONDS", DEADLINE)
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        cluster = Nodes(initialize_head=True, head_node_args=head)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def add_node(nodes: Nodes) -> Iterator[Callable[..., Any]]:
    """Adds nodes of one core; they go when the test ends."""
    added = []

    def add(**options: Any) -> Any:
        added.append(nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES, **options))
        return added[-1]

    yield add
    for node in added:
        if node in nodes.worker_nodes:
            nodes.remove_node(node)


@pytest.fixture(scope="module")
def without_ray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("without_ray") / "nws"
    build(REQUEST, out, device="cpu")
    return out


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file, but for the plots: the command draws them after `build`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "plots")
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def first_models(count: int) -> list[Model]:
    ((_, models),) = Request("demo", count, epochs=2).plan()
    return models


def driver(nodes: Nodes, out: Path) -> subprocess.Popen[str]:
    """A build in a process of its own."""
    code = (
        "import sys; from builder.build import *; build(Request('demo', int(sys.argv[1]), epochs=2), "
        "Path(sys.argv[2]), ray=sys.argv[3])"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(MODELS), str(out), nodes.address]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_until_staged(out: Path, models: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + DEADLINE
    while len(list(out.glob(".staging/models/*.parquet"))) < models:
        assert process.poll() is None, f"it ended early: {process.communicate()}"
        assert time.monotonic() < end, f"waited in vain for {models} models"
        time.sleep(0.01)


def refusal(address: str, tmp_path: Path, **options: Any) -> str:
    """The one line that a build ends with."""
    with pytest.raises(ZooError) as refused:
        build(Request("demo", FEW, epochs=1), tmp_path / "nws", ray=address, **options)
    assert not (tmp_path / "nws" / "nws.json").exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


# The same bytes


@pytest.mark.slow
def test_nodes_come_and_go_and_the_driver_dies(
    nodes: Nodes, add_node: Callable[..., Any], without_ray: Path, tmp_path: Path
) -> None:
    out = tmp_path / "nws"
    lost, _ = add_node(), add_node()
    process = driver(nodes, out)
    wait_until_staged(out, 3, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob(".staging/models/*.parquet")}
    process = driver(nodes, out)
    wait_until_staged(out, len(kept) + 3, process)
    nodes.remove_node(lost, allow_graceful=False)  # its raylet and workers are killed
    add_node()
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    # what the first driver had staged was not trained again
    assert f"demo: {MODELS} models, {MODELS - len(kept)} trained in " in err
    assert content(out) == content(without_ray)


@pytest.mark.slow
def test_a_block_that_ends_early_is_trained_again(
    nodes: Nodes,
    add_node: Callable[..., Any],
    without_ray: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few rows may wait; results that a loss brought into another order, so that Ray drops one and gives one
    twice, are made up for.
    """
    add_node()
    take, taken, running = cluster_module._next, list[Any](), list[int]()

    def lossy(stream: Any) -> Any:
        result = take(stream)
        taken.append(result)
        return None if len(taken) == 1 else taken[1] if len(taken) == 3 else result

    def watched(streams: list[Any], **options: Any) -> Any:
        running.append(len(streams))
        return wait(streams, **options)

    wait = ray.wait
    monkeypatch.setattr(cluster_module, "_next", lossy)
    monkeypatch.setattr(ray, "wait", watched)
    all_rows = sum(block.waiting for block in blocks(SUBSETS["demo"], first_models(FEW), CPU, 1))
    monkeypatch.setattr(cluster_module, "MAX_WAITING_BYTES", all_rows - 1)
    build(Request("demo", FEW, epochs=2), tmp_path / "nws", device="cpu", ray=nodes.address)
    assert max(running) == FEW - 1
    assert not ray.is_initialized()
    zoo, whole = Zoo(tmp_path / "nws"), Zoo(without_ray)
    assert len(zoo.filter()) == 3 * FEW
    assert set(zoo.filter()["sha256"]) <= set(whole.filter()["sha256"])


def test_what_a_node_does(without_ray: Path) -> None:
    """Images are those of the object store, which cannot be written; a GPU's cohorts train together."""
    models, images = first_models(FEW), load_image_set("digits")
    arrays = {
        input_of(model): {**bank.prepared(images, model.recipe.architecture), "gray": True}
        for model in models
    }
    for array in (
        array for each in arrays.values() for array in each.values() if isinstance(array, np.ndarray)
    ):
        array.setflags(write=False)
    training, zoo = NodeTraining(SUBSETS["demo"], "cpu", needs=versions("cpu")), Zoo(without_ray)
    expected = {
        model.id: [zoo.row(snapshot) for snapshot in zoo.filter(model_id=model.id)] for model in models
    }
    alone = [
        result.trained
        for model in models
        for result in cluster_module._train(training, [model], list(arrays), *arrays.values())
    ]
    together = [
        trained for trained in replace(training, arrays=arrays).run_cohorts(models, Occupancy()) if trained
    ]
    for found in (alone, together):
        rows: dict[str, Any] = {
            trained.model.id: trained.rows for trained in found if isinstance(trained, Trained)
        }
        assert rows.keys() == expected.keys()
        assert all(np.array_equal(rows[name], expected[name]) for name in rows)


def test_blocks() -> None:
    for subset in (SUBSETS[name] for name in PRESETS["nws"]):
        models = Request("nws", 3000).plan()[0][1] if subset.name == "main" else Request("fixed").plan()[0][1]
        for device, size in ((CPU, 1), (GPU, cluster_module.GPU_STREAMS * cluster_module.GPU_SLOTS)):
            parts = list(blocks(subset, models, device, 2))
            assert sorted(m.number for part in parts for m in part.models.values()) == [
                m.number for m in models
            ]
            assert max(len(part.models) for part in parts) == size
            assert all(part.waiting <= 8 * 35_000_000 for part in parts)
    parts = blocks(SUBSETS["demo"], first_models(MODELS), GPU, 4)
    assert [len(part.models) for part in parts] == [MODELS // 4] * 4


def test_progress_counts_nodes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for count in (3, 1):
        nodes = functools.partial(int, count)
        progress = BuildProgress("demo", total=4, done=0, first_epochs=1, occupancy=Occupancy(), nodes=nodes)
        now[0] += 10
        progress.advance(None, 2)
    assert capsys.readouterr().err.splitlines() == [
        "demo: 0/4 models, 12.0 a minute, 0:00:10 left, on 3 nodes",
        "demo: 0/4 models, 12.0 a minute, 0:00:10 left, on 1 node",
    ]


@pytest.mark.slow
def test_dry_run(
    nodes: Nodes,
    add_node: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_node()
    command = ["--models", "2", "--epochs", "1", "--device", "cpu", "--ray", nodes.address, "--dry-run"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(cluster_module, "CALIBRATION_SECONDS", 0.01)
        main(command)
    expected = (
        "Error: --dry-run --ray: expected nodes with nothing else to do, found 1 of 1 that had not "
        "measured after 0 s; "
    )
    assert (ended.value.code, capsys.readouterr().err[: len(expected)]) == (2, expected)
    add_node()
    with pytest.raises(SystemExit) as ended:
        main(command)
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert " on 2 CPU processes on 2 nodes (trainings of 1 epochs)" in out


# What is refused


def test_addresses_where_no_cluster_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "CONNECTION_SECONDS", 4.0)
    expected = "expected a Ray cluster of this version that this machine is a node of"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        assert refusal(address, tmp_path).startswith(
            f"--ray {address}: {expected}, found no answer within 4 s; "
        )
    assert refusal(address, tmp_path).startswith(
        f"--ray {address}: {expected}, found ConnectionRefusedError: "
    )
    for wrong in ("ray://127.0.0.1:10001", "head", ""):
        assert refusal(wrong, tmp_path).startswith(
            f"--ray: expected local, auto or HOST:PORT, found {wrong}; "
        )


def test_another_version(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cluster_module, "PROBE", f"import ray; ray.__version__ = '2.0.0'\n{cluster_module.PROBE}"
    )
    message = refusal(nodes.address, tmp_path)
    assert (
        f"The cluster was started with: Ray: {ray.__version__} " in message
        and ("was started with: Ray: 2.0.0 ") in message
    )


def test_a_device_that_no_node_has(nodes: Nodes, tmp_path: Path) -> None:
    assert refusal(nodes.address, tmp_path, device="cuda").startswith(
        "--device: expected a node with a GPU, found none; "
    )
    with connected("auto") as cluster:
        assert cluster.resolve_device("auto") == CPU


def test_a_worker_that_is_lost_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(reference: object) -> None:
        raise WorkerCrashedError

    monkeypatch.setattr(ray, "get", lost)
    with pytest.raises(
        ZooError,
        match=r"^a worker on a node: expected to finish its models, found "
        r"WorkerCrashedError: ",
    ):
        cluster_module._fetch(None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a node's GPU might be a real one")
def test_a_node_that_only_claims_to_have_a_gpu(
    nodes: Nodes, add_node: Callable[..., Any], tmp_path: Path
) -> None:
    add_node(num_gpus=1)
    message = refusal(nodes.address, tmp_path)
    assert (
        message.startswith("node ")
        and (": expected a GPU that torch can use, found none; use --device cpu, or ") in message
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected", "found"),
    [
        ("import sys; sys.modules['numba'] = None", "numba {numba}", "numba missing"),
        (
            "import nws_dataset; nws_dataset.__version__ = '0.0.1'",
            "nws-dataset {nws-dataset}",
            "nws-dataset 0.0.1 (",
        ),
        (
            "import sys; sys.modules['builder'] = None",
            "the package nws-dataset[cluster]",
            "No module named 'builder",
        ),
    ],
)
def test_a_node_that_would_train_otherwise(
    nodes: Nodes, add_node: Callable[..., Any], tmp_path: Path, change: str, expected: str, found: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(change)
    add_node(env_vars={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})
    message = refusal(nodes.address, tmp_path)
    assert (
        message.startswith("node ")
        and (f": expected {expected.format(**versions('cpu'))}, found {found}") in message
    )


def test_without_ray(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from builder.cli import main; main()"
    command = [sys.executable, "-c", code, "--ray", "local", "--out", str(tmp_path / "nws")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=DEADLINE)
    assert ended.returncode == 2
    assert ended.stderr == (
        "Error: --ray: expected the package ray, found none; pip install 'nws-dataset[cluster]'\n"
    )
    assert not (tmp_path / "nws").exists()
