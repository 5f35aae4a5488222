"""Trains models: on a CPU each core trains models of its own, in a process of its own; on a GPU one process trains cohort after cohort."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import parent_process, resource_tracker
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch

from builder import bank, store
from builder.plan import Model
from builder.store import STAGING
from builder.train import Cohort, Trained
from nws_dataset.errors import ZooError
from nws_dataset.recipe import Subset

CONTEXT = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
GPU_SLOTS = 64  # models that train together on a GPU
HEARTBEAT_SECONDS = 1.0  # between looks at how far the models in training are


@dataclass(frozen=True)
class Summary:
    """What a trained model reports besides its staged file."""

    model_id: str
    epochs: int
    test_accuracy: float
    diverged: bool


@dataclass(frozen=True)
class Task:
    """What a worker needs to know to train any model of a subset; it reads images from, and stages models in, the folder."""

    out: Path
    subset: Subset
    device: str
    epochs: Synchronized[int] = field(default_factory=lambda: CONTEXT.Value("q", 0))  # trained so far, by all processes

    @property
    def images(self) -> Path:
        return self.out / STAGING / "images" / self.subset.name

    def run(self, models: list[Model], slots: int = 1) -> Generator[Summary, None, None]:
        """Train models of one cohort and stage each."""
        architecture, device = models[0].recipe.architecture, torch.device(self.device)
        images = {name: bank.load(name, architecture, device, self.images) for name in {model.recipe.dataset for model in models}}
        spool = self.out / STAGING
        cohort = Cohort(self.subset, architecture, images, device=device, slots=slots, spool=spool, on_epoch=self._count_epoch)
        for trained in cohort.train(models):
            store.stage(self.out, trained)
            yield summary(trained)

    def _count_epoch(self) -> None:
        with self.epochs.get_lock():
            self.epochs.value += 1

    def run_cohorts(self, models: list[Model]) -> Generator[Summary, None, None]:
        """Train models on a GPU, a cohort at a time."""
        cohorts: dict[Any, list[Model]] = defaultdict(list)
        for model in models:
            cohorts[model.cohort].append(model)
        for cohort in cohorts.values():
            yield from self.run(cohort, min(GPU_SLOTS, len(cohort)))


def summary(trained: Trained) -> Summary:
    final = trained.snapshots[-1]
    return Summary(trained.model.id, trained.epochs, final["test_accuracy"], final["diverged"])


# Worker processes: on a CPU a model's step stays in one core's cache.

_task: Task | None = None


def run_on_processes(task: Task, models: list[Model], workers: int | None) -> Generator[Summary | None, None, None]:
    """Train models one a process; summaries come as models finish, and None at every heartbeat without one."""
    if not models:
        return
    count = min(workers or _cores(), len(models))
    pool = ProcessPoolExecutor(count, CONTEXT, initializer=_start_worker, initargs=(task,))
    queue, pending = iter(models), set[Future[Summary]]()
    resource_tracker.ensure_running()  # else the first submit starts it, and that lets Ctrl-C through
    try:
        while True:
            with _interrupts_held():  # submit starts processes
                pending |= {pool.submit(_train_one, model) for model in itertools.islice(queue, 2 * count - len(pending))}
            if not pending:
                break
            finished, pending = wait(pending, HEARTBEAT_SECONDS, FIRST_COMPLETED)
            if not finished:
                yield None
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise ZooError("a worker process", expected="to finish its model", found="it was ended (out of memory?)", do="run again") from error
    finally:
        _stop(pool)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no affinity


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block ends, and processes that are started in it never take it.

    It reaches all processes of a terminal, and this one decides. The mask is what children inherit; here any thread may take the signal.
    """
    held: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()  # elsewhere Ctrl-C interrupts nothing
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number)) if in_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers now: what they were at is trained again by the next run."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _start_worker(task: Task) -> None:
    global _task
    _task = task
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is gone, as after SIGKILL."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _train_one(model: Model) -> Summary:
    assert _task is not None
    (result,) = _task.run([model])
    return result
