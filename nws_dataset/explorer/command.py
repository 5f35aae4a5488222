"""Look into a zoo: write it as one HTML file that a browser opens without a server."""

from __future__ import annotations

from pathlib import Path

import click

from nws_dataset.console import Command
from nws_dataset.errors import ZooError, one_line
from nws_dataset.explorer import missing_libraries
from nws_dataset.files import atomic_write, beside, check_output_file
from nws_dataset.options import revision_option


def check_extra() -> None:
    """Raise a ZooError unless what the page is made with is installed."""
    missing = missing_libraries()
    if missing:
        do = "pip install 'nws-dataset[explore]'"
        raise ZooError("explore", expected="its libraries", found=f"no {', '.join(missing)}", do=do)


@click.command(cls=Command)
@click.argument("zoo")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write the page to.  [default: ZOO-explorer.html, next to the zoo]",
)
@revision_option
@click.option(
    "--weights/--no-weights",
    default=True,
    show_default=True,
    help="Whether to read weights, for principal components, histograms, images and edges. Of a zoo on the "
    "Hub they are fetched, up to a gigabyte.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Also write a still picture of the page's first plot.",
)
def main(zoo: str, out: Path | None, revision: str | None, weights: bool, picture: Path | None) -> None:
    """Write ZOO as one HTML page to look into.

    Every model is a point: choose the axes and the colour, filter by the recipe, and see the training curves,
    weights and recipes of the models that you choose. The page needs no server and loads nothing.
    """
    check_extra()
    page = out or beside(zoo, "-explorer.html")
    check_output_file(page)
    if picture is not None:
        check_output_file(picture, "--picture")
    from nws_dataset.explorer.page import page_of_zoo
    from nws_dataset.reading.zoo import Zoo

    called = one_line(Path(zoo).resolve().name) if Path(zoo).is_dir() else one_line(zoo)
    html, contents = page_of_zoo(Zoo(zoo, revision=revision), called, read_weights=weights)
    with atomic_write(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    click.echo(f"Written: {one_line(page)} ({len(html) / 1e6:.1f} MB)")
    if picture is not None:
        from nws_dataset.explorer.picture import write_picture

        write_picture(contents, picture)
        click.echo(f"Written: {one_line(picture)}")
