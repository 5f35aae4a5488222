"""What the presets launch on a GPU, recorded and compiled without one; for processes without
TRITON_INTERPRET.

Axes: M models.
"""

from __future__ import annotations

import json
import re
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface

from builder.image_sets import IMAGE_SETS
from builder.plan import select
from builder.training.gpu import warmup
from builder.training.gpu.warmup import Variant, Work
from nws_dataset.format.subsets import SUBSETS

IMAGES = {name: (facts.train_images, facts.test_images) for name, facts in IMAGE_SETS.items()}
MODELS = {"small_cnn": 4000}  # of a subset that is long, but has few cohorts


@dataclass
class Recorded:
    """The launches of a subset."""

    variants: list[Variant] = field(default_factory=list)  # each once
    grid: list[int] = field(default_factory=lambda: [1, 1, 1])  # the largest, along each axis
    offset: int = 0  # the largest


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes of a multiprocessor."""

    kernel: str
    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes


def start() -> None:
    """Begin a process."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)


def pretend(capability: int) -> None:
    warmup.pretend(GPUTarget("cuda", capability, 32))


@contextmanager
def launching(launch: Callable[..., Any]) -> Iterator[None]:
    """`launch(kernel, grid, *args, **constants)` in place of every launch."""
    before = KernelInterface.__getitem__
    KernelInterface.__getitem__ = lambda kernel, grid: (
        lambda *args, **constants: launch(kernel, grid, *args, **constants)
    )
    try:
        yield
    finally:
        KernelInterface.__getitem__ = before


def record(subset: str, capability: int) -> Recorded:
    """What the cohorts of a whole subset launch."""
    pretend(capability)
    recorded, variants = Recorded(), dict[Variant, None]()

    def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        recorded.grid = [max(pair) for pair in zip(recorded.grid, (*grid, 1, 1), strict=False)]
        recorded.offset = max(recorded.offset, *(reach(x) for x in args if isinstance(x, torch.Tensor)))
        kernel.run(*args, grid=grid, warmup=False, **constants)

    with launching(launch):
        for work in warmup.work_of(select(SUBSETS[subset], 0, models=MODELS.get(subset)), IMAGES):
            variants.update(dict.fromkeys(warmup.record(work)))
    recorded.variants = list(variants)
    return recorded


def variants(work: Work, capability: int) -> set[Variant]:
    """What some work launches."""
    pretend(capability)
    return set(warmup.record(work))


def reach(x: torch.Tensor) -> int:
    """How far the numbers of a model, or of all where there is no axis M, lie apart: kernels count this in 32
    bits.
    """
    sizes, strides = (x.shape[1:], x.stride()[1:]) if x.ndim > 1 else (x.shape, x.stride())
    return sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def is_fused(variant: Variant) -> bool:
    """Whether multiplications and additions are fused."""
    return json.loads(variant.specialization)["options"]["enable_fp_fusion"]


def compile_for(variant: Variant, capability: int) -> Compiled:
    pretend(capability)
    folder = warmup.compile_variant(variant)
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(folder / f"{variant.kernel}.cubin")]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    shared = json.loads((folder / f"{variant.kernel}.json").read_text())["shared"]
    return Compiled(variant.kernel, int(found[1]), int(found[2]), shared)


def compile_by_launching(work: Work, capability: int) -> tuple[int, int]:
    """How many kernels some work's launches find on disk, and how many they compile."""
    pretend(capability)
    found, kernels = list[bool](), set[Any]()

    def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        kernels.add(kernel)
        kernel.run(*args, grid=grid, warmup=True, **constants)

    with launching(launch), knobs.compilation.scope(), torch.no_grad():
        knobs.compilation.listener = lambda *, cache_hit, **_: found.append(cache_hit)
        warmup.launch(work)
    for kernel in kernels:
        kernel.device_caches.clear()
    return sum(found), len(found) - sum(found)
