"""How every program of the project ends: one line on stderr and exit code 2 on a user's mistake, 130 on
Ctrl-C.
"""

from __future__ import annotations

import os
from typing import Any

import click

from nws_dataset.errors import ZooError, one_line, reason


class Mistake(click.ClickException):
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
            raise Mistake(one_line(error.format_message())) from error
        except ZooError as error:  # of an option's callback
            raise Mistake(str(error)) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ZooError as error:
            raise Mistake(str(error)) from error
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error


def _check_folder() -> None:
    """The current folder is there; paths are taken from it."""
    try:
        os.getcwd()
    except OSError as error:
        raise Mistake(
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
        raise Mistake(str(error))
