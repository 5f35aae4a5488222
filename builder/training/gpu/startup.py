"""Checks an architecture before it trains on a GPU: a tiny cohort against the plain network in float64.

The kernels are those of the architecture's first cohort, captured in the same way, on models of all
activations and optimizers, with and without augmentation and dropout. What differs is named. Once per device,
two cohorts capture and train side by side. What passed is kept in a file in the user's cache until the GPU,
its driver, torch, Triton or the sources change.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from triton.errors import TritonError

from builder import philox
from builder.plan import Model
from builder.training import backend, batches, initial, plain, sources, streams, torch_backend, update
from builder.training.backend import Segment
from builder.training.gpu import augment, dense, epilogues, layers, pieces, products, tiny, update_kernels
from builder.training.gpu import backend as gpu_step
from builder.training.gpu.backend import GpuBackend, Run
from builder.training.gpu.tiny import (
    EMPTY,
    EVALUATED_IMAGES,
    MAX_COMPARED_STEPS,
    TinyCohort,
    copy_of,
    noise_images,
    start_of,
    tiny_models,
)
from builder.training.gpu.warmup import Work
from builder.training.initial import initial_row
from builder.training.memory import out_of_memory
from builder.training.streams import run_side_by_side
from nws_dataset import networks
from nws_dataset.errors import ZooError, reason
from nws_dataset.files import atomic_write
from nws_dataset.networks.cnn import Architecture, convolutional

EXTRA_STREAMS = 40  # created before cohorts capture; torch has 32, which it then reuses
CAPTURES = 16  # by each of the two cohorts
TWO_STREAMS = "two streams"  # its name among what passed
# what a check depends on
SOURCES = (
    *(
        augment,
        epilogues,
        dense,
        update_kernels,
        layers,
        pieces,
        products,
        gpu_step,
        tiny,
        sys.modules[__name__],
    ),
    *(backend, batches, streams, initial, networks, philox, plain, torch_backend, update),
)

_locks: dict[str, threading.Lock] = {}  # what this process is checking


def problem(model: Model, device: torch.device, *, tf32: bool = False) -> str | None:
    """What is wrong with training a model's architecture on a device, in a line; None if nothing is.

    An architecture that passed before is not checked again.

    Args:
        model: of the architecture's first cohort.
        device: a GPU.
        tf32: whether products cut their factors.
    """
    name = _name(model, tf32)
    with _locks.setdefault(name, threading.Lock()):
        remembered = PassedChecks(device)
        if name in remembered.passed:
            return None
        found = checked(model, device, tf32=tf32, streams=TWO_STREAMS not in remembered.passed)
        if found is None:
            remembered.add(name, TWO_STREAMS)
        return found


def passed(model: Model, device: torch.device, *, tf32: bool = False) -> bool:
    """Whether a model's architecture has already passed."""
    return _name(model, tf32) in PassedChecks(device).passed


def work_of(model: Model, *, tf32: bool = False) -> Work:
    """What the check of a model's architecture has the device do: what the first cohort has, with fewer
    models.
    """
    architecture, batch = convolutional(model.recipe.architecture), model.recipe.batch_size
    slots, images = (
        len(tiny_models(architecture, batch)) + 1,
        min(EVALUATED_IMAGES, MAX_COMPARED_STEPS * batch),
    )
    return Work(architecture, frozenset({(slots, batch)}), frozenset({(1, images)}), tf32)


def _name(model: Model, tf32: bool) -> str:
    return model.recipe.architecture.id + " tf32" * tf32


def require(model: Model, device: torch.device, *, tf32: bool = False) -> None:
    """Raise a ZooError if there is a problem."""
    found = problem(model, device, tf32=tf32)
    if found is not None:
        raise refusal(device, found)


def refusal(device: torch.device, found: str) -> ZooError:
    """The error for a build that stops because of a problem."""
    do = "use --device cpu or --backend torch in another folder, and report it"
    return ZooError(
        f"--device {device.type}", expected="kernels that agree with the plain network", found=found, do=do
    )


def checked(model: Model, device: torch.device, *, tf32: bool = False, streams: bool = True) -> str | None:
    """The check itself, without memory; `streams`: also that of two cohorts side by side."""
    architecture, batch = convolutional(model.recipe.architecture), model.recipe.batch_size
    try:
        found = TinyCohort(architecture, batch, device, tf32=tf32).difference()
        return found or (streams_difference(architecture, batch, device, tf32=tf32) if streams else None)
    except (
        RuntimeError,
        TritonError,
    ) as error:  # a kernel that does not compile, or that the device refuses
        if out_of_memory(error) is not None:
            raise
        return f"{reason(error)}, with {architecture.id}"


# Two streams


def streams_difference(
    architecture: Architecture, batch: int, device: torch.device, *, tf32: bool = False
) -> str | None:
    """Whether two cohorts that capture and train side by side get the same bits as one alone.

    More CUDA streams than torch has are created before.
    """
    models, images = tiny_models(architecture, batch), noise_images(architecture, 2 * batch, device)
    slots = [m for m in range(len(models) + 1) if m != EMPTY]
    rows = [torch.from_numpy(initial_row(model)) for model in models]
    start, backend = start_of(models, rows, device), GpuBackend(architecture, device, tf32=tf32)
    order = torch.arange(batch, device=device)

    def trained() -> torch.Tensor:
        state = copy_of(start)
        run = Run(architecture, backend.products, state, batch)
        for _ in range(2):
            run.train(
                {
                    m: Segment(model, images, order, batch, 0, 0)
                    for m, model in zip(slots, models, strict=True)
                }
            )
        return state[0]

    alone, meeting = trained(), threading.Barrier(2)

    def stream() -> Iterator[bool]:
        meeting.wait()
        for _ in range(CAPTURES):
            yield bool(torch.equal(trained(), alone))

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        _ = [torch.cuda.Stream(device) for _ in range(EXTRA_STREAMS)]
    if all(found for found in run_side_by_side([stream, stream], 2, device) if found is not None):
        return None
    return f"rows that depend on what another cohort does with {architecture.id}, batch size {batch}"


# What passed


class PassedChecks:
    """What passed on a device, in a file of the user's cache.

    A change of GPU, driver, torch, Triton or sources makes it void.

    If two processes write at once, one result may be lost and is checked again.
    """

    def __init__(self, device: torch.device) -> None:
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        driver = Path("/proc/driver/nvidia/version")
        self.identity = {
            "gpu": gpu,
            "driver": driver.read_text(encoding="utf-8").splitlines()[0] if driver.exists() else "",
            "torch": torch.__version__,
            "triton": triton.__version__,
            "sources": sources.digest(SOURCES),
        }
        self.path = _cache() / f"gpu-check-{re.sub('[^A-Za-z0-9]+', '-', gpu)}.json"

    @property
    def passed(self) -> list[str]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # missing or damaged
            return []
        passed = content.pop("passed", None) if isinstance(content, dict) else None
        return passed if content == self.identity and isinstance(passed, list) else []

    def add(self, *names: str) -> None:
        passed = list(dict.fromkeys(itertools.chain(self.passed, names)))
        try:
            with atomic_write(self.path) as temporary:
                temporary.write_text(
                    json.dumps({**self.identity, "passed": passed}, indent=1) + "\n", encoding="utf-8"
                )
        except ZooError as error:
            print(f"the GPU's check will be made again: {error}", file=sys.stderr)


def _cache() -> Path:
    """The user's cache folder; for a user without a home, one beside other temporary files."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nws"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"nws-{os.getuid()}"
