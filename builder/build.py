"""Brings a folder to the state that a preset describes: trains what is missing, over any number of runs."""

from __future__ import annotations

import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from builder import store
from builder.images import ImageSet, load_image_set
from builder.plan import Model, Request
from builder.progress import BuildProgress, Occupancy, checking, compiling
from builder.rules import min_epochs
from builder.store import GENERATOR_VERSION, Store, open_store, remember_images
from builder.trained import Summary
from builder.training import bank, batches
from builder.training.cpu.backend import compile_step
from builder.training.device import resolve_device
from builder.training.implicit import check_whole
from builder.training.memory import out_of_memory
from builder.training.workers import LocalTraining, compile_before, is_script_of_worker, run_on_processes
from nws_dataset.errors import ZooError
from nws_dataset.files import path_type
from nws_dataset.format.manifest import INDEX_PATH, ImageSource, SubsetEntry
from nws_dataset.format.subsets import Subset

if TYPE_CHECKING:
    from builder.cluster import Cluster
    from builder.publish import Content, Publisher

COMMIT_SECONDS = 60.0  # between updates of nws.json with finished shards; one more follows at the end


def build(
    request: Request,
    out: Path,
    *,
    images: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    ray: str | None = None,
    publisher: Publisher | None = None,
) -> None:
    """Train the models that are missing from a folder and write them.

    Args:
        request: what the folder should contain.
        out: the zoo's folder, created if missing.
        images: folder with image files; None: from the Hub, or scikit-learn's digits.
        device: "auto", or one of DEVICES.
        workers: processes on a CPU; None: one per core.
        ray: "local", "auto" or HOST:PORT of a Ray cluster whose nodes train; None: train on this machine,
            without Ray.
        publisher: pushes finished shards to the Hub while others still train; the caller then calls its
            `push`. None: nothing is pushed.

    Raises:
        ZooError: for bad input, a folder or repository with other content, a full disk, or a Hub that does
            not answer.
    """
    if is_script_of_worker():
        sys.exit(1)  # the process that started this one reports why it cannot continue
    with joined_cluster(ray) as cluster:
        _build(request, out, images, device, workers, cluster, publisher)


@contextmanager
def joined_cluster(ray: str | None) -> Iterator[Cluster | None]:
    """Connect to the cluster that `--ray` names until the block ends; None without one."""
    if ray is None:
        yield None
    else:
        from builder.cluster import connected  # Ray is an optional dependency

        with connected(ray) as cluster:
            yield cluster


def _build(
    request: Request,
    out: Path,
    images: Path | None,
    device: str,
    workers: int | None,
    cluster: Cluster | None,
    publisher: Publisher | None,
) -> None:
    target = resolve_device(device, request.backend) if cluster is None else cluster.resolve_device(device)
    request.check_device(target)
    if images is not None and path_type(images) != "a folder":
        raise ZooError(images, expected="a folder", found=path_type(images), do="correct --images")
    plans = request.plan()
    planned = sum(len(models) for _, models in plans)
    if request.models is not None and planned < request.models:
        chosen = f" on {', '.join(request.datasets)}" if request.datasets else ""
        print(
            f"--models {request.models}: preset {request.preset} has {planned} models{chosen}, and all of "
            "them are built",
            file=sys.stderr,
        )
    image_sets = {
        name: load_image_set(name, images)
        for name in sorted({m.recipe.dataset for _, models in plans for m in models})
    }
    for _, models in plans:
        _check_images(models, image_sets, request.train_images)
    if cluster is None:
        target = checked_device(target, request, auto=device == "auto")
    entries = {subset.name: _declaration(request, target, models, image_sets) for subset, models in plans}
    try:
        with _memory_needed(), open_store(out) as folder:
            for name, entry in entries.items():  # refuse before anything is trained or written
                folder.check(name, entry)
            if publisher is not None:
                publisher.prepare(_content(folder, entries, plans))
            for subset, models in plans:
                folder.declare(subset.name, entries[subset.name])
                remember_images(out, images)
                _build_subset(
                    folder, request, subset, models, image_sets, target, workers, cluster, publisher
                )
    except OSError as error:
        raise ZooError(
            error.filename or out,
            expected="a disk that can be written",
            found=str(error),
            do="free space, then run again",
        ) from error


def checked_device(device: torch.device, request: Request, *, auto: bool) -> torch.device:
    """Check a GPU's kernels on the plan's first architecture and return the device.

    If the check fails and the device was chosen automatically, return the CPU.
    """
    if device.type == "cuda" and request.backend == "fast":
        from builder.training.gpu import startup  # needs Triton

        _, (model, *_) = replace(request, models=1).plan()[0]
        if not startup.passed(model, device, tf32=request.tf32):
            compile_before([startup.work_of(model, tf32=request.tf32)])
        with _memory_needed(), checking():
            found = startup.problem(model, device, tf32=request.tf32)
        if found is not None and not auto:
            raise startup.refusal(device, found)
        if found is not None:
            print(f"training on the CPU: the check of the GPU found {found}", file=sys.stderr)
            device = torch.device("cpu")
            request.check_device(device)
    return device


@contextmanager
def _memory_needed() -> Iterator[None]:
    """Raise a ZooError if the GPU runs out of memory in this block."""
    try:
        yield
    except RuntimeError as error:
        short = out_of_memory(error)
        if short is None:
            raise
        found = str(short).splitlines()[0].split(". ")[0]
        do = "free its memory, then run again"
        raise ZooError("--device", expected="a GPU with room for one model", found=found, do=do) from error


def _check_images(models: list[Model], image_sets: Mapping[str, ImageSet], limit: int | None) -> None:
    """Raise a ZooError if a limit leaves too few images for a model; whole image sets are always enough.
    Networks that represent images need whole sets.
    """
    for name in {model.recipe.dataset for model in models if model.image is not None}:
        check_whole(name, len(image_sets[name].train_images), len(image_sets[name].test_images))
    for model in models if limit is not None else ():
        batches.split_images(model, torch.from_numpy(image_sets[model.recipe.dataset].train_labels[:limit]))


def _declaration(
    request: Request, device: torch.device, models: list[Model], image_sets: Mapping[str, ImageSet]
) -> SubsetEntry:
    """A subset's entry in nws.json, before it has models."""
    used = {name: image_sets[name] for name in sorted({model.recipe.dataset for model in models})}
    sources = {name: ImageSource(images.source, images.sha256) for name, images in used.items()}
    return SubsetEntry(request.seed, 0, request.options(device), sources)


def _content(
    folder: Store, entries: Mapping[str, SubsetEntry], plans: list[tuple[Subset, list[Model]]]
) -> Content:
    """What the folder will contain after the build."""
    from builder.publish import Content

    chosen = [model for _, models in plans for model in models]
    models = {model.id for model in chosen} | {
        name for table in folder.tables.values() for name in table["model_id"].to_pylist()
    }
    shards = {store.shard_of(model) for model in chosen} | folder.tables.keys()
    index = {INDEX_PATH.format(subset=model.subset, split=model.split) for model in chosen}
    files = {*folder.manifest.files, *shards, *index}
    return Content(
        GENERATOR_VERSION, {**folder.manifest.subsets, **entries}, frozenset(files), frozenset(models)
    )


def _build_subset(
    folder: Store,
    request: Request,
    subset: Subset,
    models: list[Model],
    image_sets: Mapping[str, ImageSet],
    device: torch.device,
    workers: int | None,
    cluster: Cluster | None,
    publisher: Publisher | None,
) -> None:
    todo = folder.missing(models)
    training = LocalTraining(subset, str(device), request.tf32, request.backend, out=folder.out)
    shards = _ShardWriter(folder, models, todo, publisher)
    occupancy, epochs = Occupancy(), min_epochs(models[0].recipe)
    if cluster is not None:
        trained = cluster.train(training, todo, image_sets, request.train_images, occupancy)
    else:
        trained = _train_here(training, request, todo, image_sets, device, workers, occupancy)
    progress = BuildProgress(
        subset.name,
        total=len(models),
        done=len(models) - len(todo),
        first_epochs=epochs,
        occupancy=occupancy,
        nodes=None if cluster is None else lambda: len(cluster.capacity(device)),
        **({"score": "mean PSNR {:.1f} dB"} if subset.of_images else {}),
    )
    with progress, closing(trained):
        # the first None handles shards whose models were all staged before
        for result in itertools.chain([None], trained):
            progress.advance(result, training.epochs.value)
            shards.advance(result)
    shards.finish()


def _train_here(
    training: LocalTraining,
    request: Request,
    todo: list[Model],
    image_sets: Mapping[str, ImageSet],
    device: torch.device,
    workers: int | None,
    occupancy: Occupancy,
) -> Generator[Summary | None, None, None]:
    """Train models on this machine."""
    for model in todo:
        bank.save(
            image_sets[model.recipe.dataset], model.recipe.architecture, request.train_images, training.images
        )
    if device.type != "cpu":
        if todo and device.type == "cuda" and request.backend == "fast":
            training.compile_kernels(todo)
        return training.run_cohorts(todo, occupancy)
    if todo and request.backend == "fast":
        with compiling():
            compile_step(todo[0].recipe.architecture.kind)
    return run_on_processes(training, todo, workers, occupancy)


class _ShardWriter:
    """Writes and publishes each shard as soon as all its models are there."""

    def __init__(
        self, folder: Store, models: list[Model], todo: list[Model], publisher: Publisher | None
    ) -> None:
        self.folder, self.publisher, self.by_id = folder, publisher, {model.id: model for model in models}
        self.models: dict[str, list[Model]] = defaultdict(list)
        for model in models:
            self.models[store.shard_of(model)].append(model)
        missing = {model.id for model in todo}
        self.waiting = {
            path: {model.id for model in members} & missing for path, members in self.models.items()
        }
        self.committed, self.written = time.monotonic(), list[str]()

    def advance(self, result: Summary | None) -> None:
        """Record a finished model and write the shards that it completes."""
        if result is not None:
            self.waiting[store.shard_of(self.by_id[result.model_id])].discard(result.model_id)
        for path in [path for path, missing in self.waiting.items() if not missing]:
            del self.waiting[path]
            if any(store.staged_path(self.folder.out, model).exists() for model in self.models[path]):
                self.folder.add_models(path, self.models[path])
                self.written.append(path)
        if time.monotonic() - self.committed > COMMIT_SECONDS:
            self.finish()

    def finish(self) -> None:
        self.folder.commit()
        self.committed = time.monotonic()
        while self.written:  # their files are in place now
            path = self.written.pop(0)
            if self.publisher is not None:
                self.publisher.offer(self.folder.out / path, path, self.folder.entries[path])
