"""Compiles what cohorts will launch before they train; Triton keeps it on disk, where launches find it.

To record the launches, the step's own code runs on tensors without memory, and Triton's hook notes each
kernel instead of compiling it. Neither recording nor compiling needs a GPU, and both are done in processes
that do not train.

Axes: M slots, K rows, B images.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from builder.plan import Model
from builder.rules import TRAIN_EVALUATION_IMAGES, num_snapshots
from builder.training import batches
from builder.training.backend import aligned
from builder.training.device import slots_of
from builder.training.gpu.backend import GpuBackend, Run, evaluation_parts
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.cnn import Architecture, convolutional
from nws_dataset.networks.layout import layout_of

NOWHERE = torch.device("meta")  # tensors there have shapes and strides, but no memory


class Work(NamedTuple):
    """What the cohorts of an architecture run on the device."""

    architecture: Architecture
    steps: frozenset[tuple[int, int]]  # (M, B)
    evaluations: frozenset[tuple[int, int]]  # (K, B)
    tf32: bool = False


class Variant(NamedTuple):
    """A kernel for some types, constants and alignments: the unit that Triton compiles."""

    module: str
    kernel: str
    specialization: str  # as Triton writes it


def work_of(
    models: Iterable[Model], images: Mapping[str, tuple[int, int]], *, tf32: bool = False
) -> list[Work]:
    """What models run on the device when they train in cohorts.

    Args:
        models: models of a subset.
        images: the number of training and test images of each data set.
        tf32: as for `builder.training.gpu.backend.GpuBackend`.
    """
    cohorts: dict[tuple[Architecture, int], list[Model]] = defaultdict(list)
    steps: dict[Architecture, set[tuple[int, int]]] = defaultdict(set)
    evaluations: dict[Architecture, set[tuple[int, int]]] = defaultdict(set)
    for model in models:
        cohorts[convolutional(model.recipe.architecture), model.recipe.batch_size].append(model)
    for (architecture, batch), members in cohorts.items():
        for subset, recipe in {(model.subset, model.recipe) for model in members}:
            drawn, tested = images[recipe.dataset]
            trained, validated = batches.part_sizes(recipe.train_fraction, recipe.validation_fraction, drawn)
            snapshots = num_snapshots(SUBSETS[subset], recipe.max_epochs)
            steps[architecture].add((slots_of(len(members)), min(batch, trained)))
            evaluations[architecture] |= {(1, validated)} if validated else set()
            evaluations[architecture] |= {
                (snapshots, tested),
                (snapshots, min(trained, TRAIN_EVALUATION_IMAGES)),
            }
    return [Work(a, frozenset(steps[a]), frozenset(_in_parts(evaluations[a])), tf32) for a in steps]


def _in_parts(evaluations: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The parts of evaluations; those of one evaluation differ by one image at most."""
    for rows, images in evaluations:
        count = evaluation_parts(rows, images)
        yield rows, images // count
        yield rows, -(-images // count)


class _PretendedDriver:
    """Answers what Triton asks a device's driver."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def target() -> GPUTarget:
    """What Triton compiles for on this machine's device."""
    return driver.active.get_current_target()


def pretend(target: GPUTarget) -> None:
    """Make Triton compile for `target` whatever the device; the process can no longer launch anything."""
    driver.set_active(_PretendedDriver(target))


@torch.no_grad()
def record(work: Work) -> list[Variant]:
    """Record what is launched, each variant once; in a process that called `pretend`."""
    found: dict[Variant, Any] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        found[Variant(fn.module, fn.name, compile["specialization_data"])] = fn.jit_function
        return True  # neither compile nor launch it

    with knobs.runtime.scope():
        knobs.runtime.jit_cache_hook = note
        launch(work)
    for kernel in found.values():
        kernel.device_caches.clear()  # the process may pretend another target next
    return list(found)


def launch(work: Work) -> None:
    """Launch what a cohort does, on tensors without memory."""
    architecture = work.architecture
    weights = layout_of(architecture).num_weights
    backend = GpuBackend(architecture, NOWHERE, tf32=work.tf32)
    for slots, batch in work.steps:
        rows, first, second = torch.empty(3, slots, aligned(weights), device=NOWHERE)[:, :, :weights]
        Run(architecture, backend.products, (rows, first, second), batch).step()
    for count, images in work.evaluations:
        size = architecture.image_size
        pixels = torch.empty(
            images, architecture.image_channels, size, size, dtype=torch.uint8, device=NOWHERE
        )
        labels = torch.empty(images, dtype=torch.int64, device=NOWHERE)
        backend.evaluate(torch.empty(count, weights, device=NOWHERE), "relu", pixels, labels)


def compile_variant(variant: Variant) -> Path:
    """Compile a kernel, or find it on disk, in a process that called `pretend`; return its folder."""
    kernel = getattr(importlib.import_module(variant.module), variant.kernel)
    compiled = kernel.preload(variant.specialization)
    kernel.device_caches.clear()  # else a later `record` would find it there, and launch it
    return Path(next(iter(compiled.metadata_group.values()))).parent
