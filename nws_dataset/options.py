"""Options that several commands have: the same name, form and help wherever they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Any], Any]
FOLDER: dict[str, Any] = {"type": click.Path(path_type=Path), "metavar": "DIR"}


def out_option(words: str, default: str | Path) -> Decorator:
    """The option --out, the folder that a command writes.

    Args:
        words: its help.
        default: a path, or the default in words, for a command that finds it itself if the option is None.
    """
    if isinstance(default, Path):
        return click.option("--out", **FOLDER, default=default, show_default=True, help=words)
    return click.option("--out", **FOLDER, help=f"{words}  [default: {default}]")


def images_option(default: str) -> Decorator:
    """The option --images, the folder of the images that networks learned from; its default in words."""
    words = f"Folder with idx or Parquet image files.  [default: {default}]"
    return click.option("--images", **FOLDER, help=words)


def ray_option(words: str) -> Decorator:
    """The option --ray, the cluster that a command runs on, with its help."""
    return click.option("--ray", metavar="local|auto|HOST:PORT", help=words)


revision_option = click.option(
    "--revision", metavar="NAME", help="Branch, tag or commit of a zoo on the Hub."
)


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator; they keep their order in the help."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
