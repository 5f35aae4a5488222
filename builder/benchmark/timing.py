"""Times contenders interleaved, so that other load affects all alike: in this process, or on all cores."""

from __future__ import annotations

import multiprocessing.connection
import resource
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from builder.benchmark.contenders import CONTENDERS
from builder.benchmark.workloads import bank_of_case
from builder.forecasting.pace import Case, Contender
from builder.training.workers import CONTEXT
from nws_dataset.errors import ZooError

CALIBRATION_SHARE = 0.2  # of a timed block: how long a contender must run until its speed is known


@dataclass(frozen=True)
class Measured:
    """The measurements of a case."""

    case: Case
    # where -> contender -> steps per second in each repetition, over all models
    rates: dict[str, dict[str, list[float]]]
    memory: dict[str, int]  # contender -> bytes of GPU memory

    def rate(self, where: str, contender: str) -> float:
        """Median steps per second over all models; "careful" is the best of its variants ("careful x4")."""
        return max(statistics.median(self.rates[where][name]) for name in self._variants(where, contender))

    def has(self, where: str, contender: str) -> bool:
        """Whether the contender was timed there; not every case is in every setup."""
        return bool(self._variants(where, contender))

    def _variants(self, where: str, contender: str) -> list[str]:
        return [name for name in self.rates.get(where, ()) if contender in (name, name.split()[0])]


class Timer(Protocol):
    """Times contenders."""

    def prepare(self, case: Case, contenders: Sequence[str]) -> dict[str, int]:
        """Make contenders for a case, warm them up, and find how many steps fill a timed block.

        Returns the GPU memory that each took.
        """
        ...

    def time(self, contender: str) -> float:
        """Steps per second over all models, in one timed block."""
        ...


def measure(case: Case, timers: Mapping[str, tuple[Timer, Sequence[str]]], repetitions: int) -> Measured:
    """Time the contenders of a case interleaved: one block of each, again and again.

    Args:
        case: what to train.
        timers: where -> the timer for it, and the contenders.
        repetitions: blocks per contender.
    """
    memory: dict[str, int] = {}
    for timer, contenders in timers.values():
        memory |= timer.prepare(case, contenders)
    rates: dict[str, dict[str, list[float]]] = {
        where: {contender: [] for contender in contenders} for where, (_, contenders) in timers.items()
    }
    for _ in range(repetitions):
        for where, (timer, contenders) in timers.items():
            for contender in contenders:
                rates[where][contender].append(timer.time(contender))
    return Measured(case, rates, memory)


class InProcessTimer:
    """Times contenders in this process.

    Args:
        folder: where `write_images` wrote the images.
        device: where to run.
        seconds: length of a timed block, which has at least one step.
    """

    def __init__(self, folder: Path, device: torch.device, seconds: float) -> None:
        self.folder, self.device, self.seconds = folder, device, seconds
        self.contenders: dict[str, tuple[Contender, int]] = {}  # contender, and its steps in a timed block

    def prepare(self, case: Case, contenders: Sequence[str]) -> dict[str, int]:
        self.contenders.clear()
        bank, memory = bank_of_case(case, self.device, self.folder), {}
        on_gpu = self.device.type == "cuda"
        for name in contenders:
            if on_gpu:
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
            contender = CONTENDERS[name](case, bank, self.device)
            self.contenders[name] = contender, self._steps(contender)
            if on_gpu:
                memory[name] = torch.cuda.max_memory_allocated() - before
        return memory

    def time(self, contender: str) -> float:
        made, steps = self.contenders[contender]
        return steps * made.models / self._elapsed(made, steps)

    def _steps(self, contender: Contender) -> int:
        """Steps that fill a timed block, not counting the first step, which may compile."""
        self._elapsed(contender, 1)
        steps = 1
        while (elapsed := self._elapsed(contender, steps)) < CALIBRATION_SHARE * self.seconds:
            steps *= 2
        return max(1, round(steps * self.seconds / elapsed))

    def _elapsed(self, contender: Contender, steps: int) -> float:
        start = time.perf_counter()
        contender.run(steps)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


class AllCoresTimer:
    """Times contenders on all cores: one-thread processes with models of their own, one contender at a time.

    Args:
        folder: where `write_images` wrote the images.
        seconds: length of a timed block.
        workers: how many processes.
    """

    def __init__(self, folder: Path, seconds: float, workers: int) -> None:
        self.barrier = CONTEXT.Barrier(workers)  # kept, as it must live until the workers have received it
        pipes = [CONTEXT.Pipe() for _ in range(workers)]
        self.connections = [ours for ours, _ in pipes]
        self.processes = [
            CONTEXT.Process(target=_work, args=(theirs, self.barrier, folder, seconds), daemon=True)
            for _, theirs in pipes
        ]
        for process, (_, theirs) in zip(self.processes, pipes, strict=True):
            process.start()
            theirs.close()  # so that a worker's end closes its pipe

    def __enter__(self) -> AllCoresTimer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()

    def prepare(self, case: Case, contenders: Sequence[str]) -> dict[str, int]:
        self._ask("prepare", case, contenders)
        return {}

    def time(self, contender: str) -> float:
        return sum(self._ask("time", contender))

    def memory(self) -> list[int]:
        """Each worker's peak memory so far, in bytes."""
        return self._ask("memory")

    def _ask(self, *request: Any) -> list[Any]:
        """Send a request to the workers; return their answers in any order."""
        pending, answers = list(self.connections), []
        try:
            for connection in self.connections:
                connection.send(request)
            while pending:
                ready = multiprocessing.connection.wait(pending)
                answers += [connection.recv() for connection in pending if connection in ready]
                pending = [connection for connection in pending if connection not in ready]
        except (EOFError, ConnectionError) as error:
            raise ZooError(
                "a worker",
                expected="an answer",
                found="it has ended",
                do="see its error above, or free memory",
            ) from error
        return answers


def _work(connection: Connection, barrier: Barrier, folder: Path, seconds: float) -> None:
    """Run a worker: all start each timed block together."""
    # a terminal sends Ctrl-C to all processes; the parent ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    timer = InProcessTimer(folder, torch.device("cpu"), seconds)
    while True:
        match connection.recv():
            case ("prepare", prepared, contenders):
                connection.send(timer.prepare(prepared, contenders))
            case ("time", contender):
                barrier.wait()
                connection.send(timer.time(contender))
            case ("memory",):
                connection.send(peak_memory())


def peak_memory() -> int:
    """This process's peak memory so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
