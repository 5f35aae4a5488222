"""`nws`: one command for all that is done with a zoo; each of its commands is loaded when it is called."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from nws_dataset import __version__
from nws_dataset.console import Command, UserError
from nws_dataset.errors import ZooError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

OURS = ("nws_dataset", "builder", "cards")
EPILOG = """\b
Completion with Tab, for this shell or in its start-up file:
  bash  eval "$(_NWS_COMPLETE=bash_source nws)"
  zsh   eval "$(_NWS_COMPLETE=zsh_source nws)"
  fish  _NWS_COMPLETE=fish_source nws | source

NO_COLOR=1 turns colours off.
"""


@dataclass(frozen=True)
class Entry:
    """A command of `nws`.

    Args:
        target: where it is, "module:attribute".
        extra: the extra of the package that it needs; "" for none.
        help: the first sentence of its own help.
    """

    target: str
    extra: str
    help: str

    def load(self) -> click.Command:
        """Import the command.

        Raises:
            ModuleNotFoundError: if it needs a package that is not installed.
        """
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


# name -> where it is: imported by name, as researchers' code never imports the builder
COMMANDS = {
    "build": Entry("builder.commands:build", "builder", "Build a zoo of trained networks, or complete one."),
    "import": Entry(
        "builder.commands:import_release",
        "builder",
        "Import the files of an original release as subsets of a zoo.",
    ),
    "export": Entry(
        "builder.commands:export",
        "builder",
        "Write a zoo in a published layout, for loaders that were written for it.",
    ),
    "publish": Entry(
        "builder.commands:publish", "builder", "Push a zoo in a folder to the Hub, without training anything."
    ),
    "verify": Entry(
        "builder.verify:main",
        "builder",
        "Verify a zoo: read all of it again and compare it with its records.",
    ),
    "evaluate": Entry(
        "nws_dataset.experiments.evaluate:main",
        "baselines",
        "Ask all that can be asked of the networks of ZOO, by every method.",
    ),
    "leaderboard": Entry(
        "nws_dataset.experiments.leaderboard:main",
        "baselines",
        "Compare all methods of ZOO on one HTML page that needs no server.",
    ),
    "explore": Entry(
        "nws_dataset.explorer.command:main", "explore", "Write ZOO as one HTML page to look into."
    ),
    "info": Entry("nws_dataset.info:main", "", "Say on one screen what a zoo holds."),
}


class Group(Command, click.Group):
    """The group `nws`: it lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return COMMANDS[cmd_name].load() if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        options = click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(name, help=entry.help)
            for name, entry in COMMANDS.items()
            if name.startswith(incomplete)
        ] + options

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = ctx.invoked_subcommand = args[0]
        if name not in COMMANDS and not ctx.resilient_parsing:
            close = difflib.get_close_matches(name, COMMANDS, 1)
            do = f"did you mean {close[0]}?" if close else "see nws --help"
            raise ZooError("nws", expected=f"one of {', '.join(COMMANDS)}", found=repr(name), do=do)
        try:
            return super().resolve_command(ctx, args)
        except ModuleNotFoundError:
            if not ctx.resilient_parsing:
                raise
            return None, None, []  # nothing to complete

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:  # a command imports much of what it needs when it runs
            name, package = ctx.invoked_subcommand or "", (error.name or "").partition(".")[0]
            extra = COMMANDS[name].extra if name in COMMANDS else ""
            if not extra or package in ("", *OURS):
                raise
            do = f"pip install 'nws-dataset[{extra}]'"
            told = ZooError(f"nws {name}", expected=f"the package {package}", found="none", do=do)
            raise UserError(str(told)) from error


@click.group(cls=Group, invoke_without_command=True, epilog=EPILOG)
@click.version_option(__version__, prog_name="nws", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Make zoos of trained neural networks, and learn from their weights.

    `nws COMMAND --help` says more about a command.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


if __name__ == "__main__":
    main()
