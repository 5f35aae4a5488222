"""`nws-build`: the command that makes a zoo."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builder.plan import BACKENDS, DEVICES
from nws_dataset.console import Command, Interrupted
from nws_dataset.errors import ZooError
from nws_dataset.format.subsets import LAYOUTS, PRESETS, RELEASES

if TYPE_CHECKING:
    from builder.plan import Request
    from builder.publish import Publisher


@click.command(
    cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option("--preset", metavar="|".join(PRESETS), default="demo", show_default=True, help="What to build.")
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
@click.option("--subset", metavar="A,B", help="With --export: export only these subsets.")
@click.option("--partial", is_flag=True, help="With --export: leave out models that the layout cannot hold.")
@click.option(
    "--final-step",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --export small_cnn: label final snapshots as epoch N (many loaders select epoch 86).",
)
@click.option("--models", type=click.IntRange(min=1), help="Train only the first N of the selected models.")
@click.option(
    "--datasets",
    metavar="A,B",
    help="Train only the planned models that use these image sets; their recipes stay the same.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Train for at most N epochs.")
@click.option("--train-images", type=click.IntRange(min=1), help="Use only the first N training images.")
@click.option(
    "--copies",
    type=click.IntRange(min=1),
    help="With networks that represent images: train N per image (default 1).",
)
@click.option(
    "--convention",
    metavar="dws|nfn",
    help="With --preset siren: initialization, learning rate and pixels as in DWSNets or NFN (default dws).",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with idx or Parquet image files; by default images come from the Hub.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random numbers.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("nws"),
    show_default=True,
    help="Folder of the zoo; an existing build is resumed.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", *DEVICES]),
    default="auto",
    show_default=True,
    help="Device to train on.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", *BACKENDS]),
    default="auto",
    show_default=True,
    help="Train with fast kernels, or with plain PyTorch (slower, on any device). auto means fast.",
)
@click.option(
    "--ray",
    metavar="HOST:PORT|auto|local",
    help="Train on every node of a Ray cluster; local starts a cluster on this machine.",
)
@click.option(
    "--tf32",
    is_flag=True,
    help="On a GPU: multiply in TF32 (inputs truncated to 10 bits). Faster, but gives other weights.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print what would be built and how long it would take, then exit."
)
@click.option(
    "--upload", is_flag=True, help="Push the zoo to the Hub, finished parts while others still train."
)
@click.option(
    "--repo-id",
    metavar="ORG/NAME",
    help="With --upload: repository to push to; created if it does not exist.",
)
@click.option("--private", is_flag=True, help="With --upload: create a private repository.")
@click.option(
    "--revision",
    metavar="BRANCH",
    help="With --upload: branch to push to, instead of main; created if it does not exist.",
)
@click.option("--tag", metavar="NAME", help="With --upload: tag for the published state, e.g. v1.0.0.")
@click.pass_context
def main(
    context: click.Context,
    preset: str,
    release: tuple[str, Path] | None,
    exported: tuple[str, str, Path] | None,
    subset: str | None,
    partial: bool,
    final_step: int | None,
    models: int | None,
    datasets: str | None,
    epochs: int | None,
    train_images: int | None,
    copies: int | None,
    convention: str | None,
    images: Path | None,
    seed: int,
    out: Path,
    device: str,
    backend: str,
    ray: str | None,
    tf32: bool,
    dry_run: bool,
    upload: bool,
    repo_id: str | None,
    private: bool,
    revision: str | None,
    tag: str | None,
) -> None:
    """Build a zoo of trained networks, or complete one.

    Brings the folder, and with --upload a repository on the Hub, to the state that the options describe. Run
    the same command again after an interruption, or with more --models, to build what is missing.
    """
    _check_export(context)
    if exported is not None:
        from builder.exporters.exporting import export_zoo

        release_name, zoo, target = exported
        subsets = tuple(name.strip() for name in (subset or "").split(",") if name.strip())
        click.echo(
            export_zoo(release_name, zoo, target, subsets=subsets, partial=partial, final_step=final_step)
        )
        return
    publisher = _publisher(upload, repo_id, private=private, revision=revision, tag=tag)
    if release is not None and dry_run:
        raise ZooError("--dry-run", expected="a preset", found="--import", do="leave one of them out")
    if release is not None and ray is not None:
        raise ZooError("--ray", expected="a preset", found="--import", do="leave one of them out")
    from builder.store import holds_models, lock_folder  # import torch only when there is something to do

    def request() -> Request:
        from builder.plan import Request, datasets_of

        by = "fast" if backend == "auto" else backend
        chosen = datasets_of(datasets)
        return Request(
            preset, models, chosen, epochs, train_images, seed, tf32, by, copies=copies, convention=convention
        )

    if dry_run:
        _forecast(request(), device, ray, publisher)
        return
    try:
        with lock_folder(
            out
        ):  # held until all is done: another build would delete what is being drawn or pushed
            if release is not None:
                _import(*release, out, models, publisher)
            else:
                from builder.build import build

                build(request(), out, images=images, device=device, ray=ray, publisher=publisher)
            from builder.gallery import draw

            draw(out)
            if publisher is not None:
                publisher.push(out)
    except KeyboardInterrupt as error:
        kept = (
            f"finished models are kept in {out}: run the same command to go on"
            if holds_models(out)
            else "no model was finished"
        )
        raise Interrupted(f"interrupted; {kept}") from error
    click.echo(f"{out} is complete: datasets.load_dataset({str(out)!r})")
    if publisher is not None:
        at = f", revision={tag or revision!r}" if tag or revision else ""
        click.echo(f"{publisher.url} is complete: datasets.load_dataset({repo_id!r}{at})")


def _check_export(context: click.Context) -> None:
    """Raise unless --export's options come with it, and no others."""
    names = {option.name: option.opts[0] for option in context.command.params}
    own = {"subset", "partial", "final_step"}
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


def _forecast(request: Request, device: str, ray: str | None, publisher: Publisher | None) -> None:
    """Print what would be built, how long it would take, and where it would go."""
    from builder.build import checked_device, joined_cluster
    from builder.forecasting.calibration import calibrate
    from builder.forecasting.forecast import forecast
    from builder.training.device import resolve_device

    with joined_cluster(ray) as cluster:
        target = (
            resolve_device(device, request.backend) if cluster is None else cluster.resolve_device(device)
        )
        request.check_device(target)
        if cluster is None:
            target = checked_device(target, request, auto=device == "auto")
        measure = calibrate if cluster is None else cluster.calibrate
        text = forecast(
            request, functools.partial(measure, device=target, backend=request.backend, tf32=request.tf32)
        )
    click.echo(text)
    if publisher is not None:
        click.echo(f"Then it would push the folder to: {publisher}.")


def _import(release: str, source: Path, out: Path, models: int | None, publisher: Publisher | None) -> None:
    """Import an original release, after checking that it may be pushed."""
    from builder.importers.importing import import_zoo

    click.echo(import_zoo(release, source, out, models=models))
    if publisher is not None:
        from builder.publish import Content

        publisher.prepare(Content.of(out))


def _publisher(upload: bool, repo_id: str | None, **options: Any) -> Publisher | None:
    """The publisher for --upload and its options; None without --upload."""
    if not upload:
        given = [name for name, value in {"repo-id": repo_id, **options}.items() if value]
        if given:
            raise ZooError(
                f"--{given[0]}",
                expected="--upload beside it",
                found="none",
                do="add --upload, or leave it out",
            )
        return None
    if repo_id is None:
        raise ZooError(
            "--upload", expected="--repo-id ORG/NAME beside it", found="none", do="name the repository"
        )
    from builder.publish import Publisher

    return Publisher(repo_id, **options)


if __name__ == "__main__":
    main()
