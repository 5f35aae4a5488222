"""A machine's devices: which it has, what trains on them, and how many models at once."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from builder.training.backend import Backend
from nws_dataset.errors import ZooError
from nws_dataset.networks import cnn, kan
from nws_dataset.networks.base import NUM_CLASSES, BaseArchitecture

GPU_SLOTS = 64  # models of a cohort that train together on a GPU
GPU_STREAMS = 8  # cohorts that train side by side there
# of a small cohort: a model that stops early passes its slot on, so few slots wait for the last model
MODELS_PER_SLOT = 2


def missing_requirement(device: str, backend: str) -> str:
    """What this machine lacks to train on a device with a backend; empty if nothing.

    Triton comes only with torch for CUDA on Linux.
    """
    if device == "cpu":
        return ""
    if device == "mps" and backend == "fast":
        return "a fast step for it"
    if not (torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()):
        return "a GPU that torch can use"
    return "Triton" if backend == "fast" and not importlib.util.find_spec("triton") else ""


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Run torch's CPU kernels on one thread: models train in parallel processes, and sums must repeat.

    No effect on a GPU, whose cohorts are threads that share the setting.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_backend(
    architecture: BaseArchitecture,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    name: str = "fast",
    tf32: bool = False,
) -> Backend:
    """Make the backend that an option names, for a device.

    With `tf32` the fast backend on a GPU truncates the factors of products to 10 bits.
    """
    assert architecture.num_outputs == NUM_CLASSES, (
        "only imported networks have more outputs, and those are not trained"
    )
    if name == "fast" and device.type == "cpu" and isinstance(architecture, kan.Architecture):
        from builder.training.cpu.kan import KanBackend

        return KanBackend(architecture, dtype)
    if name == "torch" or not isinstance(architecture, cnn.Architecture):
        from builder.training.torch_backend import TorchBackend

        return TorchBackend(architecture, device, dtype)
    if device.type == "cpu":
        # import only what is needed: compiling takes seconds, Triton needs a GPU
        from builder.training.cpu.backend import CpuBackend

        return CpuBackend(architecture, dtype)
    from builder.training.gpu.backend import GpuBackend

    return GpuBackend(architecture, device, dtype, tf32=tf32)


def slots_of(models: int) -> int:
    """Slots on a GPU for a cohort of `models`."""
    return min(GPU_SLOTS, -(-models // MODELS_PER_SLOT))


def streams_of(backend: str) -> int:
    """Cohorts that run side by side on a GPU; one in plain torch already keeps Python busy with launches."""
    return GPU_STREAMS if backend == "fast" else 1


def cores() -> int:
    """Cores that this process may use."""
    # macOS has no affinity
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device(name: str, backend: str = "fast") -> torch.device:
    """The torch device for a name; "auto" is a GPU on which the backend can train, else the CPU."""
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if not missing_requirement(device, backend))
        if name == "cpu" and missing_requirement("cuda", backend) == "Triton":
            print(
                "training on the CPU: there is a GPU, but not the package triton, which it needs",
                file=sys.stderr,
            )
    elif needed := missing_requirement(name, backend):
        do = (
            "use --device cpu"
            if missing_requirement(name, "torch")
            else ("use --device cpu, or --backend torch, which is slower")
        )
        raise ZooError(f"--device {name}", expected=needed, found="none", do=do)
    return torch.device(name)
