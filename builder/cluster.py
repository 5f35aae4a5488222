"""Trains on the nodes of a Ray cluster: a core takes one model at a time, a GPU a block of models.

The process that builds is Ray's driver. It puts the images into Ray's object store, from which each node
fetches them once. Trained models come back the same way, and the driver stages them. Nodes need no access to
the driver's folder and may come and go: Ray gives the work of a lost node to another one.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import logging
import math
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import builder
import nws_dataset
from builder import store
from builder.forecasting.calibration import Calibration, calibrate, combined
from builder.images import ImageSet
from builder.plan import Model
from builder.progress import Occupancy
from builder.rules import num_snapshots
from builder.trained import Summary, Trained, summary
from builder.training import bank, sources
from builder.training.bank import Images
from builder.training.device import GPU_SLOTS, GPU_STREAMS, cores, missing_requirement
from builder.training.streams import HEARTBEAT_SECONDS
from builder.training.workers import LocalTraining, Training
from nws_dataset.errors import ZooError, reason
from nws_dataset.format.subsets import Subset
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import layout_of

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as missing:
    raise ZooError(
        "--ray", expected="the package ray", found="none", do="pip install 'nws-dataset[cluster]'"
    ) from missing

CONNECTION_SECONDS = 20.0  # for a cluster to answer
CALIBRATION_SECONDS = 300.0  # for nodes to become free, compile and measure
# of weights that may wait for the driver; more only if a core or GPU would otherwise be without a model
MAX_WAITING_BYTES = 2_000_000_000
MAX_WAITING_MODELS = 8  # of a block that may wait; then its GPU pauses until the driver takes one
ATTEMPTS = 20  # retries of a block whose worker is lost
INSTALL = "install there what is installed here"

Input = tuple[str, int, int]  # image set, channels, size

PROBE = """
import logging, sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""  # in its own process: Ray waits for minutes when nothing answers


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Connect to a cluster until the block ends.

    Args:
        address: "local" starts Ray on this machine; "auto" joins the cluster that this machine is a node of;
            HOST:PORT joins the cluster with this head node.

    Raises:
        ZooError: if there is no such cluster, it does not answer, or its Ray or Python is another version.
    """
    if ray.is_initialized():
        raise ZooError(
            "--ray",
            expected="a process without a connection to Ray",
            found="one",
            do="call ray.shutdown() before",
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": cores()} if address == "local" else {}
    if address != "local":
        _probe(address)
    with redirect_stdout(sys.stderr):  # Ray prints what happens to nodes
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise _no_cluster(address, reason(error)) from error
        try:
            yield Cluster()
        finally:
            ray.shutdown()


def _probe(address: str) -> None:
    """Raise a ZooError if no cluster of this version answers at an address."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not re.fullmatch(r"[^\s/:]+:\d{1,5}", address):
            raise ZooError(
                "--ray",
                expected="local, auto or HOST:PORT",
                found=address,
                do="give the address that `ray start` printed",
            )
        try:
            socket.create_connection((host, int(port)), CONNECTION_SECONDS).close()
        except OSError as error:  # unknown host, or connection refused
            raise _no_cluster(address, reason(error)) from error
    command = [sys.executable, "-c", PROBE, address]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=CONNECTION_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise _no_cluster(address, f"no answer within {CONNECTION_SECONDS:.0f} s") from error
    if ended.returncode:
        raise _no_cluster(address, ended.stderr.strip())


def _no_cluster(address: str, found: str) -> ZooError:
    if address == "local":
        return ZooError(
            "--ray local",
            expected="a machine where Ray starts",
            found=found,
            do="mend that, or leave --ray out",
        )
    expected = "a Ray cluster of this version that this machine is a node of"
    return ZooError(
        f"--ray {address}",
        expected=expected,
        found=found,
        do="use its Ray, Python and RAY_AUTH_MODE, and run `ray start` here too",
    )


# The driver


class Cluster:
    """The cluster that this process is connected to. Use `connected`."""

    def __init__(self) -> None:
        self._images: dict[Input, ray.ObjectRef] = {}
        self._nodes, self._looked = list[dict[str, Any]](), -math.inf

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are there now, up to a heartbeat ago, as `ray.nodes` describes them."""
        if time.monotonic() - self._looked > HEARTBEAT_SECONDS:
            self._nodes, self._looked = [node for node in ray.nodes() if node["Alive"]], time.monotonic()
        return self._nodes

    def capacity(self, device: torch.device) -> dict[str, int]:
        """The number of cores, or GPUs, of each node that has any."""
        resource = "CPU" if device.type == "cpu" else "GPU"
        return {
            node["NodeID"]: capacity
            for node in self.nodes()
            if (capacity := int(node["Resources"].get(resource, 0)))
        }

    def resolve_device(self, name: str) -> torch.device:
        """The nodes' torch device for "auto", "cpu" or "cuda"; "auto" is a GPU if there is one."""
        on_gpu = bool(self.capacity(torch.device("cuda")))
        if name not in ("auto", "cpu", "cuda"):
            raise ZooError(
                "--device", expected="cpu or cuda beside --ray", found=name, do="choose one of them"
            )
        if name == "cuda" and not on_gpu:
            raise ZooError(
                "--device", expected="a node with a GPU", found="none", do="start one, or use --device cpu"
            )
        return torch.device("cpu" if name == "cpu" or not on_gpu else "cuda")

    def train(
        self,
        local: LocalTraining,
        models: Sequence[Model],
        image_sets: Mapping[str, ImageSet],
        train_images: int | None,
        occupancy: Occupancy,
    ) -> Generator[Summary | None, None, None]:
        """Train models on the nodes and stage each of them here.

        Args:
            local: what to train, and the folder where models are staged.
            models: models of its subset.
            image_sets: image sets by name.
            train_images: the value of `--train-images`.
            occupancy: records how busy cores or GPUs are.

        Yields:
            A summary of each finished model, and None at every heartbeat without one.
        """
        device, before, waiting = torch.device(local.device), time.monotonic(), 0
        queue = deque(blocks(local.subset, models, device, sum(self.capacity(device).values())))
        running: dict[Any, Block] = {}  # by the stream of its results
        training = ray.put(
            NodeTraining(
                local.subset,
                local.device,
                local.tf32,
                local.backend,
                needs=versions(local.device, local.backend),
            )
        )
        remote = ray.remote(_train).options(
            num_cpus=1 if device.type == "cpu" else 0,
            num_gpus=0 if device.type == "cpu" else 1,
            num_returns="streaming",
            max_retries=ATTEMPTS,
            _generator_backpressure_num_objects=MAX_WAITING_MODELS,
        )
        try:
            while queue or running:
                while queue and (
                    waiting + queue[0].waiting <= MAX_WAITING_BYTES
                    or len(running) < sum(self.capacity(device).values())
                ):
                    block = queue.popleft()
                    members = list(block.models.values())
                    inputs = {
                        input_of(model): self._image_ref(model, image_sets, train_images) for model in members
                    }
                    stream = remote.remote(training, members, list(inputs), *inputs.values())
                    running[stream] = block
                    waiting += block.waiting
                ready, _ = ray.wait(list(running), num_returns=1, timeout=HEARTBEAT_SECONDS)
                if ready:  # take whatever else is ready
                    ready, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
                if not ready:
                    yield None
                for stream in ready:
                    block, result = running[stream], _next(stream)
                    if result is not None and block.models.pop(result.trained.model.id, None) is not None:
                        store.stage(local.out, result.trained)
                        now = time.monotonic()
                        occupancy.add(
                            result.seconds, max(1, sum(self.capacity(device).values())) * (now - before)
                        )
                        before = now
                        yield summary(result.trained, result.seconds)
                    if result is None or not block.models:
                        del running[stream]
                        waiting -= block.waiting
                        # Ray numbers results: after a loss they may come in another order, or twice
                        if block.models:
                            queue.appendleft(block)
        finally:
            for stream in running:  # else Ray may warn about each
                ray.cancel(stream)

    def calibrate(
        self,
        models: Sequence[Model],
        train_images: int | None,
        device: torch.device,
        *,
        backend: str = "fast",
        tf32: bool = False,
    ) -> Calibration:
        """Run `builder.forecasting.calibration.calibrate` on all nodes, with all cores or one GPU each."""
        needs, measured = versions(device.type, backend), []
        for node, capacity in self.capacity(device).items():
            remote = ray.remote(_calibrate).options(
                num_cpus=capacity if device.type == "cpu" else 0,
                num_gpus=0 if device.type == "cpu" else 1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            measured.append(remote.remote(needs, capacity, models, train_images, device.type, backend, tf32))
        if not measured:
            raise ZooError(
                "--ray",
                expected="nodes with cores or GPUs to train on",
                found="none",
                do="start some by `ray start`",
            )
        _, late = ray.wait(measured, num_returns=len(measured), timeout=CALIBRATION_SECONDS)
        if late:
            found = f"{len(late)} of {len(measured)} that had not measured after {CALIBRATION_SECONDS:.0f} s"
            raise ZooError(
                "--dry-run --ray",
                expected="nodes with nothing else to do",
                found=found,
                do="wait until they are free",
            )
        return combined([_fetch(reference) for reference in measured])

    def _image_ref(
        self, model: Model, image_sets: Mapping[str, ImageSet], train_images: int | None
    ) -> ray.ObjectRef:
        """The reference to a model's images in the object store."""
        key = input_of(model)
        if key not in self._images:
            images = image_sets[model.recipe.dataset]
            arrays = bank.prepared(images, model.recipe.architecture, train_images)
            self._images[key] = ray.put({**arrays, "gray": images.train_images.shape[1] == 1})
        return self._images[key]


@dataclass
class Block:
    """The models that a core or a GPU takes at a time."""

    models: dict[str, Model]  # by id; models whose weights have not come back
    waiting: int  # bytes of weights that may wait for the driver


def blocks(subset: Subset, models: Sequence[Model], device: torch.device, capacity: int) -> Iterator[Block]:
    """Split models into blocks: one model for a CPU; for a GPU as many as fill its streams.

    Cohorts stay whole as far as possible, but every GPU gets work.
    """
    size = 1
    if device.type != "cpu":
        size = min(GPU_STREAMS * GPU_SLOTS, math.ceil(len(models) / max(1, capacity)))
        order = {
            cohort: position
            for position, cohort in enumerate(dict.fromkeys(model.cohort for model in models))
        }
        models = sorted(models, key=lambda model: order[model.cohort])
    for start in range(0, len(models), size):
        members = models[start : start + size]
        largest = max(
            num_snapshots(subset, m.recipe.max_epochs) * 4 * layout_of(m.recipe.architecture).num_weights
            for m in members
        )
        yield Block({model.id: model for model in members}, min(len(members), MAX_WAITING_MODELS) * largest)


def input_of(model: Model) -> Input:
    """What a model's prepared images depend on."""
    architecture = model.recipe.architecture
    return model.recipe.dataset, architecture.image_channels, architecture.image_size


def _next(stream: Any) -> Result | None:
    """Take the next result of a block that has one; None at the end."""
    reference = next(stream, None)
    return None if reference is None else _fetch(reference)


def _fetch(reference: Any) -> Any:
    """Return what a task returned, or raise what it raised."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # a task could not start there
        if missing := re.search(r"No module named '[^']+'", str(error.cause)):
            node = re.search(r"ip=([^),\s]+)", str(error))
            where = f"node {node[1]}" if node else "a node"
            raise ZooError(
                where, expected="the package nws-dataset[cluster]", found=missing[0], do=INSTALL
            ) from error
        raise error.cause from error
    except RayError as error:
        do = "look into the logs of its node, then run again"
        raise ZooError(
            "a worker on a node", expected="to finish its models", found=reason(error), do=do
        ) from error


# A node


@dataclass(frozen=True)
class Result:
    """A trained model on its way to the driver."""

    trained: Trained
    seconds: float  # since its worker started, or finished the model before


@dataclass(frozen=True)
class NodeTraining(Training):
    """Training on a node: images come from the object store, and trained models go back through it."""

    needs: Mapping[str, str] = field(kw_only=True)  # the driver's `versions`
    arrays: Mapping[Input, Mapping[str, np.ndarray]] = field(default_factory=dict, kw_only=True)

    def load(self, dataset: str, architecture: BaseArchitecture, device: torch.device) -> Images:
        arrays = self.arrays[dataset, architecture.image_channels, architecture.image_size]
        with warnings.catch_warnings():  # nothing here writes
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            return Images.on(device, {key: arrays[key] for key in bank.ARRAYS}, gray=bool(arrays["gray"]))

    def deliver(self, trained: Trained, seconds: float) -> Trained:
        return trained


def _train(
    training: NodeTraining, models: list[Model], inputs: list[Input], *arrays: Mapping[str, Any]
) -> Iterator[Result]:
    """Train a block on the node that this runs on.

    Args:
        training: what to train, without images.
        models: the block's models.
        inputs: the input of each model.
        arrays: the images of each input.
    """
    _prepare(training.device, training.backend, tuple(training.needs.items()))
    training, before = replace(training, arrays=dict(zip(inputs, arrays, strict=True))), time.monotonic()
    try:
        for trained in (
            training.run(models) if training.device == "cpu" else training.run_cohorts(models, Occupancy())
        ):
            if trained is not None:
                now = time.monotonic()
                yield Result(trained, now - before)
                before = time.monotonic()
    except ZooError as error:
        raise error.adding(found=f"on {_this_node()}") from error
    except OSError as error:
        do = "free space there, then run again"
        raise ZooError(
            _this_node(), expected="a disk for temporary files", found=reason(error), do=do
        ) from error


def _calibrate(
    needs: Mapping[str, str],
    capacity: int,
    models: Sequence[Model],
    train_images: int | None,
    device: str,
    backend: str,
    tf32: bool,
) -> Calibration:
    """Calibrate this node, with the given number of the cluster's cores or GPUs."""
    _prepare(device, backend, tuple(needs.items()))
    found = calibrate(
        models, train_images, torch.device(device), backend=backend, tf32=tf32, processes=capacity
    )
    return found if device == "cpu" else replace(found, workers=capacity * found.workers)


@functools.cache
def _prepare(device: str, backend: str, needs: tuple[tuple[str, str], ...]) -> None:
    """Check that this node would train the same weights as the driver, and compile Numba's functions.

    One process per node does this at a time.
    """
    found = versions(device, backend)
    differing = [name for name, version in needs if found[name] != version]
    if differing:
        here, there = (", ".join(f"{name} {of[name]}" for name in differing) for of in (found, dict(needs)))
        raise ZooError(_this_node(), expected=there, found=here, do=INSTALL)
    if needed := missing_requirement(device, backend):
        raise ZooError(
            _this_node(),
            expected=needed,
            found="none",
            do="use --device cpu, or --backend torch, or stop that node",
        )
    if "numba" in found:
        from builder.training.cpu.backend import compile_step

        path = Path(tempfile.gettempdir()) / f"nws-compile-{os.getuid()}.lock"
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            compile_step()


def versions(device: str, backend: str = "fast") -> dict[str, str]:
    """What weights depend on besides the plan: versions of this package and its libraries, sources."""
    found = {"nws-dataset": f"{nws_dataset.__version__} ({_sources()[:12]})"}
    for name in ("numpy", "torch", "numba") if (device, backend) == ("cpu", "fast") else ("numpy", "torch"):
        try:
            found[name] = importlib.import_module(name).__version__.partition("+")[0]
        except ImportError:
            found[name] = "missing"
    return found


@functools.cache
def _sources() -> str:
    """A digest of all our modules."""
    return sources.digest((builder, nws_dataset))


def _this_node() -> str:
    return f"node {platform.node()}"
