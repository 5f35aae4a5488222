"""How every program of the project ends: one line on stderr and exit code 2 on a user's mistake, 130 on
Ctrl-C.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable

from nws_dataset.errors import ZooError, one_line, reason


class UserError(click.ClickException):
    """A mistake on its way to the terminal."""

    exit_code = 2


class Interrupted(click.ClickException):
    """Ctrl-C on its way to the terminal; the message says what is kept."""

    exit_code = 130  # the shell's

    def show(self, file: Any = None) -> None:
        click.echo(one_line(self.message), err=True)


class Command(click.Command):
    """A click command that prints a mistake as one line, without a traceback:
    `@click.command(cls=Command)`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _check_folder()
        for arg in args:
            _check_text(arg)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise UserError(one_line(error.format_message())) from error
        except ZooError as error:  # of an option's callback
            raise UserError(str(error)) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ZooError as error:
            raise UserError(str(error)) from error
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error


def _check_folder() -> None:
    """The current folder is there; paths are taken from it."""
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
    """Only what the operating system takes as a name gets as far as an option: no NUL, no half of a
    character.
    """
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
        order: what its column is sorted by; None: it is missing.
        source: where it comes from.
        spread: its standard deviation.
        interval: its 95 % interval.
        share: length of its bar, from 0 to 1.
        best: whether it is the best of its rivals.
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
        title: above it.
        columns: their names.
        rows: names, and then numbers: texts or cells.
        num_heads: columns of names.
        groups: for each column what it has in common with its neighbours, or nothing.
        ranked: whether the order of the rows says who is better.
        shaded: whether cells are coloured by their value, as in a matrix.
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
        """Neighbouring columns of numbers of one group: its name and their number."""
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
        table = RichTable(title=self.title, title_justify="left")
        for i, column in enumerate(self._full_columns):
            table.add_column(column, justify="left" if i < self.num_heads else "right")
        for row in self.rows:
            table.add_row(*map(str, row))
        wide = Console(width=1000)
        # a log file takes any width
        Console(width=None if wide.is_terminal else wide.measure(table).maximum).print(table)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Gives a function that notes one more of `total` steps and says what runs: a bar on a terminal, ten
    plain lines elsewhere.
    """
    console = Console(stderr=True)
    done = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance(what: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, advance=1, description=what)
            if not console.is_terminal and (10 * done) // total > (10 * (done - 1)) // total:
                console.print(f"{done}/{total} {what}", highlight=False)

        yield advance
