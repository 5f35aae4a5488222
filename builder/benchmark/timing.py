"""Times sides in turns, so that what else the machine does meets all of them alike: in this process, and on
all cores together.
"""

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

from builder.benchmark.contenders import SIDES
from builder.benchmark.workloads import bank_of_case
from builder.forecasting.pace import Case, Side
from builder.training.workers import CONTEXT
from nws_dataset.errors import ZooError

CALIBRATION_SHARE = 0.2  # of a timed block: how long a side must run before its speed is known well enough


@dataclass(frozen=True)
class Measured:
    """What was measured on a case."""

    case: Case
    # where -> side -> steps a second, all models counted, of each repetition
    rates: dict[str, dict[str, list[float]]]
    memory: dict[str, int]  # side -> bytes that it took on a GPU

    def rate(self, where: str, side: str) -> float:
        """Median steps a second, all models counted; "careful" is the best of its variants ("careful x4")."""
        return max(statistics.median(self.rates[where][name]) for name in self._variants(where, side))

    def has(self, where: str, side: str) -> bool:
        """Whether the side was timed there."""
        return bool(self._variants(where, side))

    def _variants(self, where: str, side: str) -> list[str]:
        return [name for name in self.rates[where] if side in (name, name.split()[0])]


class Team(Protocol):
    """What sides are timed by."""

    def prepare(self, case: Case, sides: Sequence[str]) -> dict[str, int]:
        """Make sides for a case, warm them up, and find how many steps fill a timed block; returns the GPU
        memory that each took.
        """
        ...

    def time(self, side: str) -> float:
        """Steps a second, all models counted, of one timed block."""
        ...


def measure(case: Case, teams: Mapping[str, tuple[Team, Sequence[str]]], repetitions: int) -> Measured:
    """Time the sides of a case in turns.

    Args:
        case: what to train.
        teams: where -> who times there, and which sides.
        repetitions: how often each side has its turn.
    """
    memory: dict[str, int] = {}
    for team, sides in teams.values():
        memory |= team.prepare(case, sides)
    rates: dict[str, dict[str, list[float]]] = {
        where: {side: [] for side in sides} for where, (_, sides) in teams.items()
    }
    for _ in range(repetitions):
        for where, (team, sides) in teams.items():
            for side in sides:
                rates[where][side].append(team.time(side))
    return Measured(case, rates, memory)


class Here:
    """Times sides in this process.

    Args:
        folder: with the images that `write_images` wrote.
        device: to run on.
        seconds: length of a timed block; one step is the least.
    """

    def __init__(self, folder: Path, device: torch.device, seconds: float) -> None:
        self.folder, self.device, self.seconds = folder, device, seconds
        self.sides: dict[str, tuple[Side, int]] = {}  # side, and its steps in a timed block

    def prepare(self, case: Case, sides: Sequence[str]) -> dict[str, int]:
        self.sides.clear()
        bank, memory = bank_of_case(case, self.device, self.folder), {}
        on_gpu = self.device.type == "cuda"
        for name in sides:
            if on_gpu:
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
            side = SIDES[name](case, bank, self.device)
            self.sides[name] = side, self._steps(side)
            if on_gpu:
                memory[name] = torch.cuda.max_memory_allocated() - before
        return memory

    def time(self, side: str) -> float:
        made, steps = self.sides[side]
        return steps * made.models / self._elapsed(made, steps)

    def _steps(self, side: Side) -> int:
        """Steps that fill a timed block; what a side does at its first step (it may compile) is not
        counted.
        """
        self._elapsed(side, 1)
        steps = 1
        while (elapsed := self._elapsed(side, steps)) < CALIBRATION_SHARE * self.seconds:
            steps *= 2
        return max(1, round(steps * self.seconds / elapsed))

    def _elapsed(self, side: Side, steps: int) -> float:
        start = time.perf_counter()
        side.run(steps)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


class Crew:
    """Times sides on all cores: processes of one thread, each with models of its own, all at work on the same
    side at a time.

    Args:
        folder: with the images that `write_images` wrote.
        seconds: length of a timed block.
        workers: how many processes.
    """

    def __init__(self, folder: Path, seconds: float, workers: int) -> None:
        self.barrier = CONTEXT.Barrier(workers)  # kept: it must live until the workers have taken it
        pipes = [CONTEXT.Pipe() for _ in range(workers)]
        self.connections = [ours for ours, _ in pipes]
        self.processes = [
            CONTEXT.Process(target=_work, args=(theirs, self.barrier, folder, seconds), daemon=True)
            for _, theirs in pipes
        ]
        for process, (_, theirs) in zip(self.processes, pipes, strict=True):
            process.start()
            theirs.close()  # so that the end of a worker is the end of its pipe

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()

    def prepare(self, case: Case, sides: Sequence[str]) -> dict[str, int]:
        self._ask("prepare", case, sides)
        return {}

    def time(self, side: str) -> float:
        return sum(self._ask("time", side))

    def memory(self) -> list[int]:
        """The most bytes that each worker held so far."""
        return self._ask("memory")

    def _ask(self, *request: Any) -> list[Any]:
        """The workers' answers, in any order."""
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
    """What a worker does: all start each timed block together."""
    # Ctrl-C reaches all processes of a terminal; the parent ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    here = Here(folder, torch.device("cpu"), seconds)
    while True:
        match connection.recv():
            case ("prepare", prepared, sides):
                connection.send(here.prepare(prepared, sides))
            case ("time", side):
                barrier.wait()
                connection.send(here.time(side))
            case ("memory",):
                connection.send(peak_memory())


def peak_memory() -> int:
    """The most bytes that this process held so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # in which ru_maxrss counts
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
