"""Trains models: on a CPU one process per core, on a GPU one process with several cohorts at a time."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import parent_process, resource_tracker
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from builder import store
from builder.plan import Model
from builder.progress import Occupancy, compiling_kernels, finding_kernels
from builder.trained import Summary, Trained, summary
from builder.training import bank
from builder.training.bank import Images
from builder.training.device import cores, make_backend, slots_of, streams_of
from builder.training.implicit import ImageCohort, make_image_backend
from builder.training.memory import MemoryLimiter, Stopped
from builder.training.streams import HEARTBEAT_SECONDS, run_side_by_side
from builder.training.train import Cohort
from nws_dataset.errors import ZooError
from nws_dataset.format.manifest import STAGING
from nws_dataset.format.subsets import Subset
from nws_dataset.networks import cnn
from nws_dataset.networks.base import BaseArchitecture

if TYPE_CHECKING:
    from builder.training.gpu.warmup import Work

CONTEXT = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
_loading = threading.Lock()  # keeps streams from loading an image set twice


@dataclass(frozen=True)
class Training:
    """Trains a subset's models on a device; subclasses know where images come from and models go."""

    subset: Subset
    device: str
    tf32: bool = False
    backend: str = "fast"
    # loaded by this process
    loaded: dict[tuple[str, int, int], Images] = field(default_factory=dict, compare=False, kw_only=True)

    @property
    def spool(self) -> Path | None:
        """Folder for the exports of models in training; None: a temporary one."""
        return None

    def load(self, dataset: str, architecture: BaseArchitecture, device: torch.device) -> Images:
        """Load an image set for an architecture's input, on the device."""
        raise NotImplementedError

    def deliver(self, trained: Trained, seconds: float) -> Any:
        """Hand on a trained model, `seconds` after its cohort started; `run` yields what is returned."""
        raise NotImplementedError

    def count_epochs(self, number: int) -> None:
        """Count epochs that models trained; a negative number takes back those that were in vain."""

    def run(
        self,
        models: list[Model],
        slots: int = 1,
        *,
        occupancy: Occupancy | None = None,
        limiter: MemoryLimiter | None = None,
    ) -> Generator[Any, None, None]:
        """Train models of one cohort and deliver each.

        Args:
            models: models of one cohort.
            slots: how many train together.
            occupancy: records how busy the slots are.
            limiter: of a GPU's memory; once its `stopped` is set, training ends at a model's next epoch.
        """
        start, stopped = time.monotonic(), None if limiter is None else limiter.stopped
        train = partial(self._train, occupancy=occupancy, stopped=stopped)
        for trained in train(models, slots) if limiter is None else limiter.fit(models, slots, train):
            yield self.deliver(trained, time.monotonic() - start)

    def _train(
        self, models: list[Model], slots: int, *, occupancy: Occupancy | None, stopped: threading.Event | None
    ) -> Iterator[Trained]:
        in_vain = 0  # epochs of models that did not finish

        def on_epoch() -> None:
            nonlocal in_vain
            in_vain += 1
            self.count_epochs(1)
            if stopped is not None and stopped.is_set():
                raise Stopped

        architecture, device = models[0].recipe.architecture, torch.device(self.device)
        if device.type == "cuda" and self.backend == "fast" and isinstance(architecture, cnn.Architecture):
            from builder.training.gpu.startup import require  # needs Triton

            require(models[0], device, tf32=self.tf32)
        images = {
            name: self._loaded(name, architecture, device)
            for name in {model.recipe.dataset for model in models}
        }
        cohort: Cohort | ImageCohort
        given: Any = {"device": device, "slots": slots, "on_epoch": on_epoch, "occupancy": occupancy}
        if self.subset.of_images:
            image_backend = make_image_backend(architecture, device, name=self.backend)
            cohort = ImageCohort(self.subset, architecture, images, backend=image_backend, **given)
        else:
            backend = make_backend(architecture, device, name=self.backend, tf32=self.tf32)
            cohort = Cohort(self.subset, architecture, images, backend=backend, spool=self.spool, **given)
        try:
            for trained in cohort.train(models):
                in_vain -= trained.epochs
                yield trained
        finally:
            self.count_epochs(-in_vain)

    def _loaded(self, dataset: str, architecture: BaseArchitecture, device: torch.device) -> Images:
        """Load an image set once for all cohorts with the same input; on a GPU they share the copy there."""
        key = dataset, architecture.image_channels, architecture.image_size
        with _loading:
            if key not in self.loaded:
                self.loaded[key] = self.load(dataset, architecture, device)
            return self.loaded[key]

    def run_cohorts(self, models: list[Model], occupancy: Occupancy) -> Generator[Any, None, None]:
        """Train models on a GPU, several cohorts at a time."""
        cohorts: dict[Any, list[Model]] = defaultdict(list)
        for model in models:
            cohorts[model.cohort].append(model)
        streams, stopped = min(streams_of(self.backend), len(cohorts)), threading.Event()
        limiter = MemoryLimiter(streams, stopped)
        jobs = [
            partial(self.run, members, slots_of(len(members)), occupancy=occupancy, limiter=limiter)
            # the longest first: at the end it would run alone
            for members in sorted(cohorts.values(), key=len, reverse=True)
        ]
        yield from run_side_by_side(jobs, streams, torch.device(self.device), stopped)

    def compile_kernels(self, models: list[Model]) -> None:
        """Compile what `run_cohorts` will launch on a GPU for these models."""
        from builder.training.gpu import warmup  # needs Triton

        inputs, device = (
            {model.recipe.dataset: model.recipe.architecture for model in models},
            torch.device(self.device),
        )
        images = {name: self._loaded(name, architecture, device) for name, architecture in inputs.items()}
        counts = {name: (len(found.train_labels), len(found.test_labels)) for name, found in images.items()}
        compile_before(warmup.work_of(models, counts, tf32=self.tf32))


@dataclass(frozen=True)
class LocalTraining(Training):
    """Training on this machine: its processes read images from the folder and stage models in it."""

    out: Path = field(kw_only=True)
    # trained so far, by all processes
    epochs: Synchronized[int] = field(default_factory=lambda: CONTEXT.Value("q", 0))
    # not 0 once a process has started
    started: Synchronized[int] = field(default_factory=lambda: CONTEXT.Value("q", 0))

    @property
    def images(self) -> Path:
        return self.out / STAGING / "images" / self.subset.name

    @property
    def spool(self) -> Path:
        return self.out / STAGING

    def load(self, dataset: str, architecture: BaseArchitecture, device: torch.device) -> Images:
        return bank.load(dataset, architecture, device, self.images)

    def deliver(self, trained: Trained, seconds: float) -> Summary:
        store.stage(self.out, trained)
        return summary(trained, seconds)

    def count_epochs(self, number: int) -> None:
        with self.epochs.get_lock():
            self.epochs.value += number


def compile_before(work: Iterable[Work]) -> None:
    """Compile what some work will launch on a GPU, on all cores.

    Launches find it on disk and compile what is missing, so a failure here only costs time; it is reported.
    """
    from builder.training.gpu import warmup  # needs Triton

    with _processes(cores(), warmup.pretend, warmup.target()) as pool:
        try:
            with finding_kernels():
                with _interrupts_held():
                    recorded = [pool.submit(warmup.record, part) for part in work]
                variants = dict.fromkeys(
                    itertools.chain.from_iterable(future.result() for future in recorded)
                )
            with _interrupts_held():
                compiled = [pool.submit(warmup.compile_variant, variant) for variant in variants]
            for future in compiling_kernels(as_completed(compiled), len(compiled)):
                future.result()
        except Exception as error:  # of any kind: Triton's internals differ between versions
            print(
                f"kernels are compiled one by one, as the GPU needs them ({type(error).__name__}: {error})",
                file=sys.stderr,
            )


# Worker processes: on a CPU a model's step stays in one core's cache.

_training: LocalTraining | None = None


def run_on_processes(
    training: LocalTraining, models: list[Model], workers: int | None, occupancy: Occupancy
) -> Generator[Summary | None, None, None]:
    """Train models, one per process; yield summaries as models finish, and None at heartbeats without one."""
    if not models:
        return
    count, before = min(workers or cores(), len(models)), time.monotonic()
    queue, pending = iter(models), set[Future[Summary]]()
    with _processes(count, _set_training, training) as pool:
        try:
            while True:
                with _interrupts_held():  # submit starts processes
                    pending |= {
                        pool.submit(_train_one, model)
                        for model in itertools.islice(queue, 2 * count - len(pending))
                    }
                if not pending:
                    break
                finished, pending = wait(pending, HEARTBEAT_SECONDS, FIRST_COMPLETED)
                if not finished:
                    yield None
                for future in finished:
                    result, now = future.result(), time.monotonic()
                    occupancy.add(result.seconds, count * (now - before))
                    before = now
                    yield result
        except BrokenProcessPool as error:
            raise _worker_ended(training) from error


def _worker_ended(training: LocalTraining) -> ZooError:
    """The error for a worker that died."""
    if not training.started.value:
        do = (
            'in a script, call it below `if __name__ == "__main__":`, since each worker imports the '
            "script that starts it"
        )
        return ZooError("a worker process", expected="to start", found="it ended before that", do=do)
    return ZooError(
        "a worker process",
        expected="to finish its model",
        found="it was killed (out of memory?)",
        do="run again",
    )


def is_script_of_worker() -> bool:
    """Whether this process is a worker that is just importing the script that started it."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends; processes started in the block never receive it.

    A terminal sends it to all processes, but only this one should decide. Children inherit the mask; here
    any thread may receive the signal.
    """
    held: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()  # Ctrl-C interrupts no other thread
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


@contextmanager
def _processes(count: int, prepare: Callable[[Any], None], argument: Any) -> Iterator[ProcessPoolExecutor]:
    """Start processes of one thread each, which begin with `prepare(argument)`.

    They end with the block, whatever they are doing: the next run trains it again. They also end when this
    process does.
    """
    pool = ProcessPoolExecutor(count, CONTEXT, initializer=_start, initargs=(prepare, argument))
    resource_tracker.ensure_running()  # else the first submit starts it, and lets Ctrl-C through
    try:
        yield pool
    finally:
        _stop(pool)


def _stop(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _start(prepare: Callable[[Any], None], argument: Any) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(argument)


def _end_with_parent() -> None:
    """End this process when its parent is gone, as after SIGKILL."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _set_training(training: LocalTraining) -> None:
    global _training
    _training = training
    training.started.value = 1


def _train_one(model: Model) -> Summary:
    assert _training is not None
    (result,) = _training.run([model])
    return result
