"""What a build shows while it compiles and trains: models, models per minute, time left, accuracy so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.status import Status

from nws_dataset.console import Progress

if TYPE_CHECKING:
    from builder.trained import Summary

Item = TypeVar("Item")


def compiling() -> Status:
    """The terminal's message while Numba compiles."""
    return Console(stderr=True).status("Compiling the training step, once on a machine (half a minute) ...")


def checking() -> Status:
    """The terminal's message while a GPU's kernels are compared with the plain network."""
    return Console(stderr=True).status("Checking the GPU's kernels, once for a card and what it runs ...")


def finding_kernels() -> Status:
    """The terminal's message while the kernels that a GPU will launch are collected."""
    return Console(stderr=True).status("Finding out which kernels the GPU needs ...")


def compiling_kernels(compiled: Iterable[Item], total: int) -> Iterator[Item]:
    """Show how many of a GPU's kernels have been compiled."""
    progress = Progress("Compiling kernels", total, transient=True)
    if not progress.console.is_terminal:
        progress.print(
            f"Compiling {total} kernels for the GPU, those that are not there from an earlier build ..."
        )
    with progress:
        yield from progress.track(compiled)


class BuildProgress:
    """Shows how far a build is, and the models' accuracy so far.

    Args:
        name: the subset's name.
        total: models selected.
        done: models that were there before.
        first_epochs: epochs assumed per model until one has finished.
        occupancy: how busy the workers are.
        nodes: says how many nodes of a cluster train now; None: this machine does.
        score: how the models' mean score is written.
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
        score: str = "mean test accuracy {:.3f}",
    ) -> None:
        self.score = score
        self.progress = Progress(name, total, done=done, unit="models")
        self.first_epochs, self.occupancy, self.nodes = first_epochs, occupancy, nodes
        self.trained = self.epochs = self.diverged = 0  # of models that have finished
        self.score_sum = 0.0

    def __enter__(self) -> BuildProgress:
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)
        if kind is None:
            seconds = time.monotonic() - self.progress.start
            parts = [f"{self.progress.done} models, {self.trained} trained in {seconds:.0f} s"]
            parts += self._score()
            if self.trained:
                parts.append(f"{100 * self.occupancy.share:.0f} % busy")
            self.progress.print(f"{self.progress.title}: {', '.join(parts)}")

    def advance(self, result: Summary | None, epochs: int) -> None:
        """Count a finished model, if any, and the epochs that all models have trained since the start."""
        if result is not None:
            self.trained += 1
            self.epochs += result.epochs
            self.score_sum += result.score or 0.0
            self.diverged += result.diverged
        per_model = self.epochs / self.trained if self.trained else self.first_epochs
        begun = max(0, epochs - self.epochs) / per_model
        note = ", ".join([*self._nodes(), *self._score()])
        self.progress.advance(0 if result is None else 1, note, begun=begun)

    def _nodes(self) -> list[str]:
        if self.nodes is None:
            return []
        count = self.nodes()
        return [f"on {count} node{'s' * (count != 1)}"]

    def _score(self) -> list[str]:
        if not self.trained:
            return []
        diverged = [f"{self.diverged} diverged"] if self.diverged else []
        return [self.score.format(self.score_sum / self.trained), *diverged]


class Occupancy:
    """How busy a GPU's slots or a CPU's processes are: the share of them that trained a model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = self._taken = 0.0

    def add(self, active: float, taken: float) -> None:
        """Add time (or steps): `taken` in total, of which `active` trained a model."""
        with self._lock:
            self._active += active
            self._taken += taken

    @property
    def share(self) -> float:
        """The share of what was taken that trained a model; 1 before the first."""
        with self._lock:
            return self._active / self._taken if self._taken else 1.0
