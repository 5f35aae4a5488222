"""How every program of the project ends on a user's mistake: one line on stderr and exit code 2."""

from __future__ import annotations

from typing import Any

import click

from nws_dataset.errors import ZooError, one_line


class Mistake(click.ClickException):
    """A mistake on its way to the terminal."""

    exit_code = 2


class Command(click.Command):
    """A click command that prints a mistake as one line, without a traceback: `@click.command(cls=Command)`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
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
