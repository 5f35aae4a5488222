"""`nws-build`: the command that makes a zoo."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import click

from nws_dataset.command import Command
from nws_dataset.errors import ZooError
from nws_dataset.recipe import PRESETS

INTERRUPTED = 130  # the shell's exit code for Ctrl-C


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--preset", metavar="|".join(PRESETS), default="demo", show_default=True, help="What to build.")
@click.option("--models", type=click.IntRange(min=1), help="Only the first N of the selected models.")
@click.option("--datasets", metavar="A,B", help="Only models of the plan on these image sets; never redraws them.")
@click.option("--epochs", type=click.IntRange(min=1), help="Train no longer than N epochs.")
@click.option("--train-images", type=click.IntRange(min=1), help="Use only the first N training images.")
@click.option("--images", type=click.Path(path_type=Path), metavar="DIR", help="Folder of idx or Parquet image files, in place of the Hub.")
@click.option("--seed", type=int, default=0, show_default=True, help="Every draw follows from it.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("nws"),
    show_default=True,
    help="The zoo's folder; building goes on where it stands.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to train.")
@click.option("--tf32", is_flag=True, help="On a GPU: round the factors of products to 10 bits; faster, and other weights.")
@click.option("--dry-run", is_flag=True, help="Say what would be built and how long it would take, and build nothing.")
@click.option("--upload", is_flag=True, help="Push the zoo to the Hub (not in this version).")
@click.option("--repo-id", metavar="ORG/NAME", help="The Hub repository for --upload.")
def main(
    preset: str,
    models: int | None,
    datasets: str | None,
    epochs: int | None,
    train_images: int | None,
    images: Path | None,
    seed: int,
    out: Path,
    device: str,
    tf32: bool,
    dry_run: bool,
    upload: bool,
    repo_id: str | None,
) -> None:
    """Build a zoo of trained networks, or complete one.

    The folder is brought to the state that the options describe. Run the same command again after an interruption, or with more --models,
    and it does what is missing.
    """
    if upload or repo_id:
        raise ZooError(
            "--upload",
            expected="a version that can push to the Hub",
            found="this one cannot yet",
            do="build without it; the folder is the repository",
        )
    try:
        from builder.build import Request, build, datasets_of, resolve_device  # torch is loaded only when there is something to do

        request = Request(preset, models, datasets_of(datasets), epochs, train_images, seed, tf32)
        if dry_run:
            from builder.calibration import calibrate
            from builder.forecast import forecast

            target = resolve_device(device)
            request.check_device(target)
            click.echo(forecast(request, functools.partial(calibrate, device=target, tf32=tf32)))
            return
        build(request, out, images=images, device=device)
    except KeyboardInterrupt:
        click.echo(f"interrupted; finished models are kept in {out}: run the same command to go on", err=True)
        sys.exit(INTERRUPTED)
    click.echo(f"{out} is complete: datasets.load_dataset({str(out)!r})")


if __name__ == "__main__":
    main()
