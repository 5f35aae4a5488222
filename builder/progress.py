"""Progress of a build: models done, models a minute, time left, running accuracy; a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from builder.build import Summary

LINE_SECONDS = 10.0  # between lines where there is no terminal


class Progress:
    """Shows how far a build is.

    Args:
        name: of the subset.
        total: models selected.
        done: models that were there before.
    """

    def __init__(self, name: str, *, total: int, done: int) -> None:
        self.name, self.total, self.done, self.before = name, total, done, done
        self.accuracy_sum, self.diverged = 0.0, 0
        self.console = Console(stderr=True)
        self.start = self.line = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("models {task.fields[state]}"))
        self.bar = RichProgress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, total=total, completed=done, state="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
        if kind is None:
            seconds = time.monotonic() - self.start
            self.console.print(
                f"{self.name}: {self.done} models, {self.done - self.before} trained in {seconds:.0f} s{self._accuracy()}",
                highlight=False,
                soft_wrap=True,
            )

    def advance(self, result: Summary) -> None:
        """Count a finished model."""
        self.done += 1
        self.accuracy_sum += result.test_accuracy
        self.diverged += result.diverged
        self.bar.update(self.task, completed=self.done, state=self._state())
        if not self.console.is_terminal and time.monotonic() - self.line >= LINE_SECONDS:
            self.line = time.monotonic()
            self.console.print(f"{self.name}: {self.done}/{self.total} models, {self._state()}", highlight=False, soft_wrap=True)

    def _state(self) -> str:
        rate = (self.done - self.before) / max(time.monotonic() - self.start, 1e-9)
        left = int((self.total - self.done) / rate) if rate else 0
        return f"{60 * rate:.1f} a minute, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left{self._accuracy()}"

    def _accuracy(self) -> str:
        trained = self.done - self.before
        if not trained:
            return ""
        return f", mean test accuracy {self.accuracy_sum / trained:.3f}" + f", {self.diverged} diverged" * bool(self.diverged)
