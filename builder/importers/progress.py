"""Progress of an import: snapshots written and time left; a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from builder.progress import LINE_SECONDS

UPDATE_SNAPSHOTS = 100  # between two looks at the clock


class Progress:
    """Shows how far an import is.

    Args:
        name: of the subset.
        total: snapshots to write.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("snapshots"),
            TimeRemainingColumn(),
        )
        self.bar = RichProgress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, total=total)
        self.start = self.line = time.monotonic()

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def track(self, values: Iterable[bytes]) -> Iterator[bytes]:
        """The values, counted as they are taken."""
        for value in values:
            yield value
            self.done += 1
            if self.done % UPDATE_SNAPSHOTS == 0 or self.done == self.total:
                self._show()

    def _show(self) -> None:
        self.bar.update(self.task, completed=self.done)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.line >= LINE_SECONDS:
            self.line = now
            left = timedelta(seconds=round((now - self.start) / self.done * (self.total - self.done)))
            self.console.print(
                f"{self.name}: {self.done}/{self.total} snapshots, {left} left",
                highlight=False,
                soft_wrap=True,
            )
