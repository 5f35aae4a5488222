"""Terminal output of every command: tables, progress, and errors with their exit codes.

A user's mistake ends a command with one line on stderr and exit code 2, Ctrl-C with exit code 130.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nws_dataset.errors import ZooError, one_line, reason

if TYPE_CHECKING:
    from rich.console import Console  # not a dependency of the package without extras

Item = TypeVar("Item")

# least time between lines of progress without a terminal; later a twentieth of the elapsed time
LINE_SECONDS = 10.0
BAR_SECONDS, BAR_WIDTH = 0.1, 24  # between updates of a bar; in columns
UNITS = ("kB", "MB", "GB", "TB", "PB")  # of bytes
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}  # of every command


class UserError(click.ClickException):
    """A user's mistake, as a click exception."""

    exit_code = 2


class Interrupted(click.ClickException):
    """Ctrl-C, as a click exception; its message says what is kept."""

    exit_code = 130  # as shells report SIGINT

    def show(self, file: Any = None) -> None:
        click.echo(one_line(self.message), err=True)


class Command(click.Command):
    """A click command that prints a mistake as one line, without a traceback.

    It has `-h`, and prints no colour where NO_COLOR is set (https://no-color.org), as rich does.

    Usage: `@click.command(cls=Command)`.
    """

    def __init__(self, name: str | None, **options: Any) -> None:
        super().__init__(name, **{"context_settings": SETTINGS, **options})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        _check_folder()
        for arg in args:
            _check_text(arg)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise UserError(one_line(error.format_message())) from error
        except ZooError as error:  # from an option's callback
            raise UserError(str(error)) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ZooError as error:
            raise UserError(str(error)) from error
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error


def _check_folder() -> None:
    """Raise a UserError unless the current folder exists: relative paths start there."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            str(
                ZooError(
                    "the current folder", expected="one that exists", found=reason(error), do="change to one"
                )
            )
        ) from error


def _check_text(arg: str) -> None:
    """Raise a UserError for an argument that cannot name a file: with NUL or a lone surrogate."""
    try:
        legal = b"\0" not in os.fsencode(arg)
    except UnicodeEncodeError:
        legal = False
    if not legal:
        error = ZooError(
            "the command line",
            expected="words without NUL or lone surrogates",
            found=repr(arg),
            do="type them again",
        )
        raise UserError(str(error))


@dataclass(frozen=True)
class Cell:
    """A number in a table, and what a page shows beside it.

    Args:
        text: the number.
        order: value by which its column is sorted; None if it is missing.
        source: where it comes from.
        spread: its standard deviation.
        interval: its 95 % interval.
        share: length of its bar, from 0 to 1.
        best: whether it is the best of those compared.
    """

    text: str = "\N{EN DASH}"
    order: float | None = None
    source: str = ""
    spread: str = ""
    interval: str = ""
    share: float | None = None
    best: bool = False

    def __str__(self) -> str:
        return f"{self.text} ± {self.spread}" if self.spread else self.text


@dataclass(frozen=True)
class Table:
    """A table, printed on a terminal, written as Markdown, or drawn by a template of a page.

    Args:
        title: text above the table.
        columns: their names.
        rows: the names, then the numbers, of each row, as texts or cells.
        num_heads: number of leading columns that hold names.
        groups: a group's name for each column, or "" for none; () for no groups at all.
        ranked: whether the order of the rows is a ranking.
        shaded: whether cells are coloured by their values, as in a matrix.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    num_heads: int = 1
    groups: tuple[str, ...] = ()
    ranked: bool = False
    shaded: bool = False

    @property
    def spans(self) -> list[tuple[str, int]]:
        """Name and width of each run of number columns in the same group."""
        groups = itertools.groupby(self.groups[self.num_heads :])
        return [(group, len(list(columns))) for group, columns in groups]

    @property
    def _full_columns(self) -> list[str]:
        groups = self.groups or ("",) * len(self.columns)
        return [": ".join(filter(None, pair)) for pair in zip(groups, self.columns, strict=True)]

    def markdown(self) -> str:
        rule = ["---"] * self.num_heads + ["---:"] * (len(self.columns) - self.num_heads)
        return "\n".join(
            f"| {' | '.join(map(str, cells))} |" for cells in (self._full_columns, rule, *self.rows)
        )

    def print(self) -> None:
        from rich.console import Console
        from rich.table import Table as RichTable

        table = RichTable(title=self.title, title_justify="left")
        for i, column in enumerate(self._full_columns):
            table.add_column(column, justify="left" if i < self.num_heads else "right")
        for row in self.rows:
            table.add_row(*map(str, row))
        wide = Console(width=1000)
        # a log file may have lines of any width
        Console(width=None if wide.is_terminal else wide.measure(table).maximum).print(table)


class Progress:
    """Progress, speed and time left of a long task: a bar on a terminal, lines elsewhere.

    Args:
        title: name of the task.
        total: how much there is to do.
        done: how much of it was already done.
        unit: what is counted; "B" for bytes, shown as sizes.
        counted: gives the text for how much is done, if what is counted is not shown.
        speed: how much is expected in a second, until something is done.
        transient: whether the bar disappears from a terminal at the end.
        console: where it is shown; None for stderr.

    Example:
        >>> with Progress("", 3, unit="folds") as progress:
        ...     for fold in progress.track(range(3)):
        ...         pass
    """

    def __init__(
        self,
        title: str,
        total: float,
        *,
        done: float = 0,
        unit: str = "",
        counted: Callable[[], str] | None = None,
        speed: float = 0.0,
        transient: bool = False,
        console: Console | None = None,
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self.title, self.total, self.done, self.before, self.unit = title, total, done, done, unit
        self.counted, self.speed = counted, speed
        self.console = console or Console(stderr=True)
        self.start = self._shown = time.monotonic()
        self._on_terminal = self.console.is_terminal
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.fields[state]}", markup=False),
        )
        self._bars = Bars(
            *columns,
            console=self.console,
            transient=transient,
            disable=not (self._on_terminal and total),
        )
        self._bar = self._bars.add_task(title, total=total, state=self.state())
        self._bars.update(self._bar, completed=done)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def advance(self, count: float = 1, note: str = "", *, begun: float = 0.0) -> None:
        """Count more as done.

        Args:
            count: how much more.
            note: text after the numbers.
            begun: how much of unfinished work is done; it counts for speed and time left.
        """
        self.done += count
        now = time.monotonic()
        elapsed = now - self.start
        completed = min(self.done + begun, self.total)
        if self._on_terminal and (now - self._shown >= BAR_SECONDS or math.isclose(self.done, self.total)):
            self._shown = now
            self._bars.update(self._bar, completed=completed, state=self._state(completed, elapsed, note))
        elif not self._on_terminal and now - self._shown >= max(LINE_SECONDS, elapsed / 20):
            self._shown = now
            title = f"{self.title}: " if self.title else ""
            self.print(title + self._state(completed, elapsed, note))

    def track(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items; each counts as done after its use."""
        for item in items:
            yield item
            self.advance()

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def state(self) -> str:
        """What is done before anything more is, and the time left if a speed is expected."""
        return self._state(self.done, 0.0, "") if self.speed else self._counted()

    def _counted(self) -> str:
        if self.counted is not None:
            return self.counted()
        if self.unit == "B":
            return f"{size(self.done)} of {size(self.total)}"
        return f"{self.done}/{self.total} {self.unit}".rstrip()

    def _state(self, completed: float, elapsed: float, note: str) -> str:
        rate = (completed - self.before) / max(elapsed, 1e-9) or self.speed
        speed = f"{size(rate)} a second" if self.unit == "B" else _speed(rate)
        parts = [self._counted(), *([speed] if self.counted is None else [])]
        if rate > 0:
            left = int((self.total - completed) / rate)
            parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
        return ", ".join([*parts, note] if note else parts)


def _speed(rate: float) -> str:
    """A rate as text: per second, minute or hour, whichever reads best."""
    if rate >= 100:
        return f"{rate:,.0f} a second"
    return f"{60 * rate:,.1f} a minute" if rate >= 1 / 60 else f"{3600 * rate:.1f} an hour"


def size(number: float) -> str:
    """A number of bytes as text.

    Example:
        >>> size(1), size(999), size(1234), size(5e9)
        ('1 byte', '999 bytes', '1.2 kB', '5.0 GB')
    """
    if number < 1000:
        return f"{int(number)} byte{'s' * (int(number) != 1)}"
    power = min(int(math.log10(number)) // 3, len(UNITS))
    return f"{number / 1000**power:,.1f} {UNITS[power - 1]}"


@contextmanager
def progress(
    expected: Sequence[float], done: int = 0, at_once: int = 1
) -> Iterator[Callable[[str, float], None]]:
    """Show how many steps are done and how long the others take.

    Args:
        expected: seconds of each step, about: the time left follows from them and the speed so far.
        done: steps that were done before.
        at_once: steps that run at a time.

    Yields:
        A function that counts one more step as done, given its name and its expected seconds.
    """
    total = done + len(expected)
    known = max(expected, default=0.0) > LINE_SECONDS  # else there is little to say, or nothing was measured

    def advance(what: str, seconds: float) -> None:
        nonlocal done
        done += 1
        shown.advance(seconds, note=what)

    with Progress("", sum(expected), counted=lambda: f"{done}/{total}", speed=at_once * known) as shown:
        if known and not shown.console.is_terminal:
            shown.print(shown.state())
        yield advance
