"""Progress of a build: models done, models a minute, time left, running accuracy; a bar on a terminal, lines
elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, track
from rich.progress import Progress as RichProgress
from rich.status import Status

if TYPE_CHECKING:
    from builder.trained import Summary

# between lines where there is no terminal, at first; later a twentieth of the time so far
LINE_SECONDS = 10.0


def compiling() -> Status:
    """What a terminal shows while Numba compiles."""
    return Console(stderr=True).status("Compiling the training step, once on a machine (half a minute) ...")


def checking() -> Status:
    """What a terminal shows while a GPU's kernels are compared with the plain network."""
    return Console(stderr=True).status("Checking the GPU's kernels, once for a card and what it runs ...")


def finding_kernels() -> Status:
    """What a terminal shows while it is found out what a GPU will launch."""
    return Console(stderr=True).status("Finding out which kernels the GPU needs ...")


def compiling_kernels(compiled: Iterable[Any], total: int) -> Iterable[Any]:
    """Shows how many kernels of a GPU have been compiled: a bar on a terminal, a line elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        text = f"Compiling {total} kernels for the GPU, those that are not there from an earlier build ..."
        console.print(text, highlight=False, soft_wrap=True)
    return track(
        compiled, "Compiling kernels", total, console=console, transient=True, disable=not console.is_terminal
    )


class Progress:
    """Shows how far a build is.

    Args:
        name: of the subset.
        total: models selected.
        done: models that were there before.
        first_epochs: what a model is taken to train until one has finished.
        occupancy: how busy the workers are.
        nodes: says how many nodes of a cluster train now; None: this machine does.
    """

    def __init__(
        self,
        name: str,
        *,
        total: int,
        done: int,
        first_epochs: int,
        occupancy: Occupancy,
        nodes: Callable[[], int] | None = None,
    ) -> None:
        self.name, self.total, self.done, self.before = name, total, done, done
        self.first_epochs, self.epochs, self.rate = first_epochs, 0, 0.0
        self.occupancy, self.nodes = occupancy, nodes
        self.accuracy_sum, self.diverged = 0.0, 0
        self.console = Console(stderr=True)
        self.start = self.line = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("models {task.fields[state]}"),
        )
        self.bar = RichProgress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, total=total, completed=done, state="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if kind is None:
            seconds = time.monotonic() - self.start
            self.console.print(
                f"{self.name}: {self.done} models, {self.done - self.before} trained in {seconds:.0f} "
                f"s{self._accuracy()}{self._busy()}",
                highlight=False,
                soft_wrap=True,
            )

    def advance(self, result: Summary | None, epochs: int) -> None:
        """Count a finished model, if there is one, and the epochs that all models have trained since the
        start.
        """
        if result is not None:
            self.done += 1
            self.epochs += result.epochs
            self.accuracy_sum += result.test_accuracy
            self.diverged += result.diverged
        per_model = self.epochs / (self.done - self.before) if self.done > self.before else self.first_epochs
        begun = max(0, epochs - self.epochs) / per_model
        elapsed = time.monotonic() - self.start
        self.rate = (self.done - self.before + begun) / max(elapsed, 1e-9)
        self.bar.update(self.task, completed=min(self.done + begun, self.total), state=self._state(begun))
        if not self.console.is_terminal and time.monotonic() - self.line >= max(LINE_SECONDS, elapsed / 20):
            self.line = time.monotonic()
            self.console.print(
                f"{self.name}: {self.done}/{self.total} models, {self._state(begun)}",
                highlight=False,
                soft_wrap=True,
            )

    def _state(self, begun: float) -> str:
        left = int(max(0.0, self.total - self.done - begun) / self.rate) if self.rate else None
        time_left = "" if left is None else f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        return f"{60 * self.rate:.1f} a minute{self._nodes()}{time_left}{self._accuracy()}"

    def _nodes(self) -> str:
        count = None if self.nodes is None else self.nodes()
        return "" if count is None else f" on {count} node{'s' * (count != 1)}"

    def _busy(self) -> str:
        return f", {100 * self.occupancy.share:.0f} % busy" * (self.done > self.before)

    def _accuracy(self) -> str:
        trained = self.done - self.before
        if not trained:
            return ""
        return f", mean test accuracy {self.accuracy_sum / trained:.3f}" + (
            f", {self.diverged} diverged"
        ) * bool(self.diverged)


class Occupancy:
    """How busy the slots of a GPU, or the processes of a CPU, are: the share of them that trained a model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = self._taken = 0.0

    def add(self, active: float, taken: float) -> None:
        """So much of their time, or so many steps, was taken, and so much of that trained a model."""
        with self._lock:
            self._active += active
            self._taken += taken

    @property
    def share(self) -> float:
        """What trained a model, of what was taken; 1 before the first."""
        with self._lock:
            return self._active / self._taken if self._taken else 1.0
