"""`nws-build`: one command with flags for what `nws build`, `nws import` and `nws export` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from builder import commands
from nws_dataset.console import Command
from nws_dataset.errors import ZooError
from nws_dataset.format.subsets import LAYOUTS, RELEASES


@click.command(cls=Command)
@commands.build_options
@click.option(
    "--import",
    "release",
    type=(click.Choice(RELEASES), click.Path(path_type=Path)),
    metavar=f"{'|'.join(RELEASES)} PATH",
    help="Import the files of an original release instead of training a preset.",
)
@click.option(
    "--export",
    "exported",
    type=(click.Choice(LAYOUTS), str, click.Path(path_type=Path)),
    metavar=f"{'|'.join(LAYOUTS)} ZOO DIR",
    help="Write a zoo (a folder, or ORG/NAME on the Hub) in a published layout.",
)
@commands.export_options("--export")
@commands.upload_options
@click.pass_context
def main(
    context: click.Context,
    release: tuple[str, Path] | None,
    exported: tuple[str, str, Path] | None,
    subsets: str | None,
    partial: bool,
    final_step: int | None,
    **options: Any,
) -> None:
    """Build a zoo of trained networks, or complete one.

    Brings the folder, and with --upload a repository on the Hub, to the state that the options describe. Run
    the same command again after an interruption, or with more --models, to build what is missing.
    """
    _check_export(context)
    if exported is not None:
        layout, zoo, folder = exported
        own: dict[str, Any] = {"subsets": subsets, "partial": partial, "final_step": final_step}
        context.invoke(commands.export, layout=layout, zoo=zoo, folder=folder, **own)
    elif release is not None:
        for name in ("dry_run", "ray"):
            if options[name]:
                option = f"--{name.replace('_', '-')}"
                raise ZooError(option, expected="a preset", found="--import", do="leave one of them out")
        taken = {parameter.name for parameter in commands.import_release.params}
        own = {name: value for name, value in options.items() if name in taken}
        context.invoke(commands.import_release, release=release[0], path=release[1], **own)
    else:
        context.invoke(commands.build, **options)


def _check_export(context: click.Context) -> None:
    """Raise unless --export's options come with it, and no others."""
    names = {option.name: option.opts[0] for option in context.command.params}
    own = {"subsets", "partial", "final_step"}
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    }
    wrong = sorted(given - own - {"exported"} if "exported" in given else given & own)
    if wrong:
        expected, do = "--export beside it", "add --export, or leave it out"
        if "exported" in given:
            expected, do = "no --export beside it", "leave one of them out"
        raise ZooError(names[wrong[0]], expected=expected, found="none" if own >= {*wrong} else "one", do=do)


if __name__ == "__main__":
    main()
