"""Memory is short on a GPU: cohorts side by side, then slots are halved, said, and the rows are the same; a
stand-in for the memory counts slots.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from builder import build as build_module
from builder import plan, store
from builder.images import load_image_set
from builder.plan import Model
from builder.progress import Occupancy
from builder.trained import Trained
from builder.training import bank, workers
from builder.training.backend import Segment
from builder.training.cpu.backend import CpuBackend
from builder.training.memory import MemoryLimiter, Stopped, out_of_memory
from builder.training.streams import run_side_by_side
from builder.training.workers import LocalTraining
from nws_dataset.errors import ZooError
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.cnn import Architecture
from training_cases import CPU, SMALL_CNN, make_model

DEMO = SUBSETS["demo"]
BATCHES = 10, 12, 14, 16  # a cohort of each


def models_of(batch: int) -> list[Model]:
    return [
        make_model(SMALL_CNN, 10 * batch + n, batch_size=batch, max_epochs=1 + n % 2, early_stopping=False)
        for n in range(8)
    ]


ALL = [model for batch in BATCHES for model in models_of(batch)]


class Memory:
    """Has room for so many slots of all cohorts together, and notes what was started."""

    def __init__(self, slots: int) -> None:
        self.slots, self.steps = slots, weakref.WeakSet[SlotBackend]()
        self.lock, self.begun = threading.Lock(), Counter[int]()

    def take(self, step: SlotBackend, slots: int) -> None:
        with self.lock:
            step.slots = slots
            self.steps.add(step)
            used = sum(other.slots for other in self.steps)
        if used > self.slots:
            raise torch.cuda.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2 MiB. GPU 0 has 80 GiB."
            )


class SlotBackend(CpuBackend):
    """Needs the memory as long as it is there."""

    def __init__(self, memory: Memory, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.memory, self.slots = memory, 0

    def train(
        self, state: tuple[torch.Tensor, torch.Tensor, torch.Tensor], segments: Mapping[int, Segment]
    ) -> torch.Tensor:
        with self.memory.lock:
            self.memory.begun.update(s.model.number for s in segments.values() if s.step == 0)
        self.memory.take(self, len(state[0]))
        return super().train(state, segments)


@pytest.fixture
def build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], tuple[Memory, dict[str, bytes], LocalTraining]]:
    """Trains ALL in streams with a memory for so many slots; the memory, what was staged, and the task."""

    def run(slots: int) -> tuple[Memory, dict[str, bytes], LocalTraining]:
        memory, out = Memory(slots), tmp_path / str(slots)
        monkeypatch.setattr(
            workers, "make_backend", lambda architecture, device, **options: SlotBackend(memory, architecture)
        )
        task = LocalTraining(DEMO, "cpu", out=out)
        bank.save(load_image_set("digits"), SMALL_CNN, 60, task.images)
        found = [summary.model_id for summary in task.run_cohorts(ALL, Occupancy()) if summary is not None]
        assert sorted(found) == sorted(model.id for model in ALL)
        return memory, {model.id: store.staged_path(out, model).read_bytes() for model in ALL}, task

    return run


def test_streams_then_slots_are_halved_and_the_rows_are_the_same(
    build: Callable[[int], tuple[Memory, dict[str, bytes], LocalTraining]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Four cohorts of four slots: memory for all, for two of them, for one, and for two slots or one of
    it.
    """
    _, plenty, task = build(16)
    epochs = task.epochs.value
    assert epochs == sum(model.recipe.max_epochs for model in ALL)
    assert capsys.readouterr().err == ""
    streams = "the GPU's memory is short: {} cohorts train at a time, not {}\n"
    slots = f"the GPU's memory is short: {{}} models of {SMALL_CNN.id} train at a time, not {{}}\n"
    for limiter in (8, 4, 2, 1):
        memory, found, task = build(limiter)
        assert found == plenty
        assert task.epochs.value == epochs  # those of models that began again do not count twice
        told = capsys.readouterr().err
        assert told.startswith(tuple(streams.format(running // 2, running) for running in (4, 3, 2)))
        assert told.count("cohorts train at a time") <= 3
        for now, before in ((2, 4), (1, 2)):
            assert (slots.format(now, before) in told) == (limiter < before)
        begun = max(memory.begun.values())
        # a failure trains those again that it interrupted, and no others
        assert begun <= 2 + told.count("\n")


def test_a_model_that_fits_nowhere_ends_the_build(
    build: Callable[[int], tuple[Memory, dict[str, bytes], LocalTraining]],
) -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        build(0)


def test_a_build_says_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_step(*given: object, **options: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB. GPU 0 has 80 GiB.")

    monkeypatch.setattr(workers, "make_backend", no_step)
    monkeypatch.setattr(
        build_module,
        "run_on_processes",
        lambda task, todo, workers, occupancy: task.run_cohorts(todo, occupancy),
    )
    with pytest.raises(
        ZooError,
        match=r"^--device: expected a GPU with room for one model, found CUDA out "
        r"of memory",
    ):
        build_module.build(plan.Request("demo", 1, epochs=1), tmp_path / "nws", device="cpu")


def cohort_of(*numbers: int) -> list[Model]:
    return [make_model(SMALL_CNN, number) for number in numbers]


def trained(model: Model) -> Trained:
    return Trained(model, torch.zeros(1, 1).numpy(), [], 1)


def test_finished_models_are_not_trained_again() -> None:
    calls = []

    def train(models: list[Model], slots: int) -> Iterator[Trained]:
        calls.append(([model.number for model in models], slots))
        yield trained(models[-1])
        if slots > 1:
            raise RuntimeError(
                "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
            )
        yield from map(trained, models[:-1])

    limiter = MemoryLimiter(8, threading.Event())
    assert [t.model.number for t in limiter.fit(cohort_of(0, 1, 2, 3), 4, train)] == [3, 2, 1, 0]
    assert calls == [([0, 1, 2, 3], 4), ([0, 1, 2], 2), ([0, 1], 1)]
    assert limiter.streams == 8 and limiter.running == 0


def test_failures_at_once_halve_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Four cohorts meet and fail together; then two at a time train, and never more."""
    meeting, limiter = threading.Barrier(4, timeout=60), MemoryLimiter(4, threading.Event())
    lock, tried, at_work, most = threading.Lock(), set[int](), set[int](), list[int]()

    def train(models: list[Model], slots: int) -> Iterator[Trained]:
        number = models[0].number
        if number not in tried:
            tried.add(number)
            meeting.wait()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        with lock:
            at_work.add(number)
            most.append(len(at_work))
        yield trained(models[0])
        with lock:
            at_work.remove(number)

    jobs = [lambda n=n: limiter.fit(cohort_of(n), 1, train) for n in range(4)]
    assert sorted(t.model.number for t in run_side_by_side(jobs, 4, CPU) if t is not None) == [0, 1, 2, 3]
    assert limiter.streams == 2 and max(most) <= 2
    assert capsys.readouterr().err == "the GPU's memory is short: 2 cohorts train at a time, not 4\n"


def test_other_errors_pass() -> None:
    def train(models: list[Model], slots: int) -> Iterator[Trained]:
        yield trained(models[0])
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(MemoryLimiter(2, threading.Event()).fit(cohort_of(0, 1), 2, train))


def test_who_waits_to_begin_ends_with_the_others() -> None:
    stopped = threading.Event()
    limiter = MemoryLimiter(1, stopped)
    first = limiter.fit(cohort_of(0, 1), 1, lambda models, slots: map(trained, models))
    next(first)
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            list(limiter.fit(cohort_of(2), 1, lambda models, slots: map(trained, models)))
        except Stopped as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    stopped.set()
    first.close()  # type: ignore[attr-defined] -- a generator
    thread.join(timeout=60)
    assert len(failed) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_what_says_that_memory_is_short(error: RuntimeError) -> None:
    assert out_of_memory(error) is error
    after = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    after.__context__ = error
    assert out_of_memory(after) is error
    assert out_of_memory(RuntimeError("CUDA error: unspecified launch failure")) is None
    assert out_of_memory(MemoryError("out of memory")) is None  # the host's
