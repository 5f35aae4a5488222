"""`nws-verify`: the command that re-reads a zoo and says whether it is whole."""

from __future__ import annotations

from pathlib import Path

import click

from nws_dataset.console import Command
from nws_dataset.options import images_option


@click.command(cls=Command)
@click.argument("zoo", type=click.Path(path_type=Path))
@click.option(
    "--reevaluate",
    type=click.IntRange(min=0),
    default=0,
    is_flag=False,
    flag_value=20,
    metavar="[K]",
    help="Evaluate K final networks again (20 without K) and compare.",
)
@click.option(
    "--retrain",
    type=click.IntRange(min=0),
    default=0,
    is_flag=False,
    flag_value=1,
    metavar="[K]",
    help="Train K models again (1 without K), each alone, and compare.",
)
@images_option("where the build found them")
def main(zoo: Path, reevaluate: int, retrain: int, images: Path | None) -> None:
    """Verify a zoo: read all of it again and compare it with its records."""
    from builder.checks import Verifier, checks  # import torch only when there is something to do

    for name, check in checks(Verifier(zoo, images), reevaluate, retrain):
        click.echo(f"{name:<11}{check()}")
    click.echo(f"{zoo} is whole")


if __name__ == "__main__":
    main()
