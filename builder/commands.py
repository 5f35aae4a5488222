"""The commands that make a zoo or pass it on: `nws build`, `nws import`, `nws export`, `nws publish`.

They import torch only when there is something to do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builder.plan import BACKENDS, DEVICES
from nws_dataset.console import Command, Interrupted
from nws_dataset.errors import ZooError
from nws_dataset.format.subsets import LAYOUTS, PRESETS, RELEASES
from nws_dataset.options import (
    FOLDER,
    Decorator,
    images_option,
    out_option,
    ray_option,
    revision_option,
    together,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from builder.plan import Request
    from builder.publish import Publisher


def _option(beside: str, *names: str, help: str, **settings: Any) -> Decorator:
    """An option; `beside` is the flag that it must come with, if any."""
    text = f"With {beside}: {help[0].lower()}{help[1:]}" if beside else help
    return click.option(*names, help=text, **settings)


def export_options(beside: str = "") -> Decorator:
    """The options of an export; `beside` is the flag that they must come with, if any."""
    option = functools.partial(_option, beside)
    return together(
        option("--subsets", "--subset", metavar="A,B", help="Export only these subsets."),
        option("--partial", is_flag=True, help="Leave out models that the layout cannot hold."),
        option(
            "--final-step",
            type=click.IntRange(min=0),
            metavar="N",
            help="In layout small_cnn, label final snapshots as epoch N (many loaders select epoch 86).",
        ),
    )


def repository_options(beside: str = "") -> Decorator:
    """The options that say where to push a zoo; `beside` is the flag that they must come with, if any."""
    option = functools.partial(_option, beside)
    return together(
        option(
            "--repo-id",
            required=not beside,
            metavar="ORG/NAME",
            help="Repository to push to; created if it does not exist.",
        ),
        option("--private", is_flag=True, help="Create a private repository."),
        option(
            "--revision",
            metavar="BRANCH",
            help="Branch to push to, instead of main; created if it does not exist.",
        ),
        option("--tag", metavar="NAME", help="Tag for the published state, e.g. v1.0.0."),
    )


def _presets(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The presets, to complete a word."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in PRESETS if name.startswith(begun)]


zoo_option = out_option("Folder of the zoo; an existing build is resumed.", Path("nws"))
models_option = click.option(
    "--models", type=click.IntRange(min=1), metavar="N", help="Only the first N of the selected models."
)
upload_options = together(
    click.option(
        "--upload",
        is_flag=True,
        help="Push the zoo to the Hub, a build's finished parts while others still train.",
    ),
    repository_options("--upload"),
)
build_options = together(
    click.option(
        "--preset",
        metavar="|".join(PRESETS),
        default="demo",
        show_default=True,
        shell_complete=_presets,
        help="What to build.",
    ),
    models_option,
    click.option(
        "--datasets",
        metavar="A,B",
        help="Train only the planned models that use these image sets; their recipes stay the same.",
    ),
    click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="Train for at most N epochs."),
    click.option(
        "--train-images",
        type=click.IntRange(min=1),
        metavar="N",
        help="Use only the first N training images.",
    ),
    click.option(
        "--copies",
        type=click.IntRange(min=1),
        metavar="N",
        help="With networks that represent images: train N per image (default 1).",
    ),
    click.option(
        "--convention",
        metavar="dws|nfn",
        help="With --preset siren: initialization, learning rate and pixels as in DWSNets or NFN (default "
        "dws).",
    ),
    images_option("from the Hub"),
    click.option(
        "--seed", type=int, default=0, metavar="N", show_default=True, help="Seed of all random numbers."
    ),
    zoo_option,
    click.option(
        "--device",
        type=click.Choice(["auto", *DEVICES]),
        default="auto",
        show_default=True,
        help="Device to train on.",
    ),
    click.option(
        "--backend",
        type=click.Choice(["auto", *BACKENDS]),
        default="auto",
        show_default=True,
        help="Train with fast kernels, or with plain PyTorch (slower, on any device). auto means fast.",
    ),
    ray_option("Train on every node of a Ray cluster; local starts a cluster on this machine."),
    click.option(
        "--tf32",
        is_flag=True,
        help="On a GPU: multiply in TF32 (inputs truncated to 10 bits). Faster, but gives other weights.",
    ),
    click.option(
        "--dry-run", is_flag=True, help="Print what would be built and how long it would take, then exit."
    ),
)


@click.command(cls=Command)
@build_options
@upload_options
def build(
    *,
    datasets: str | None,
    images: Path | None,
    out: Path,
    device: str,
    backend: str,
    ray: str | None,
    dry_run: bool,
    upload: bool,
    repo_id: str | None,
    private: bool,
    revision: str | None,
    tag: str | None,
    **chosen: Any,
) -> None:
    """Build a zoo of trained networks, or complete one.

    Brings the folder, and with --upload a repository on the Hub, to the state that the options describe. Run
    the same command again after an interruption, or with more --models, to build what is missing.
    """
    publisher = _publisher(upload, repo_id, private=private, revision=revision, tag=tag)

    def request() -> Request:
        from builder.plan import Request, datasets_of

        by = "fast" if backend == "auto" else backend
        return Request(datasets=datasets_of(datasets), backend=by, **chosen)

    if dry_run:
        _forecast(request(), device, ray, publisher)
        return
    with _completing(out, publisher):
        from builder.build import build

        build(request(), out, images=images, device=device, ray=ray, publisher=publisher)
    _say_complete(out, publisher)


@click.command("import", cls=Command)
@click.argument("release", type=click.Choice(RELEASES))
@click.argument("path", type=click.Path(path_type=Path))
@models_option
@zoo_option
@upload_options
def import_release(
    *,
    release: str,
    path: Path,
    models: int | None,
    out: Path,
    upload: bool,
    repo_id: str | None,
    private: bool,
    revision: str | None,
    tag: str | None,
) -> None:
    """Import the files of an original release as subsets of a zoo.

    PATH is the folder of the release, or of the part of it that is present; models that the zoo has already
    are kept.
    """
    from builder.importers.importing import import_zoo

    publisher = _publisher(upload, repo_id, private=private, revision=revision, tag=tag)
    with _completing(out, publisher):
        click.echo(import_zoo(release, path, out, models=models))
        if publisher is not None:
            from builder.publish import Content

            publisher.prepare(Content.of(out))
    _say_complete(out, publisher)


@click.command(cls=Command)
@click.argument("layout", type=click.Choice(LAYOUTS))
@click.argument("zoo")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@revision_option
@export_options()
def export(
    layout: str,
    zoo: str,
    folder: Path,
    revision: str | None,
    subsets: str | None,
    partial: bool,
    final_step: int | None,
) -> None:
    """Write a zoo in a published layout, for loaders that were written for it.

    ZOO is a folder, or ORG/NAME on the Hub. DIR is missing, empty, or has an export of the same zoo.
    """
    from builder.exporters.exporting import export_zoo

    names = tuple(name.strip() for name in (subsets or "").split(",") if name.strip())
    chosen: dict[str, Any] = {"subsets": names, "partial": partial, "final_step": final_step}
    click.echo(export_zoo(layout, zoo, folder, revision=revision, **chosen))


@click.command(cls=Command)
@click.argument("zoo", **{**FOLDER, "metavar": "ZOO"})
@repository_options()
def publish(zoo: Path, repo_id: str, private: bool, revision: str | None, tag: str | None) -> None:
    """Push a zoo in a folder to the Hub, without training anything.

    It needs a login that may write (hf auth login, or HF_TOKEN). Plots that are missing or stale are drawn
    first. What the repository has already is not sent: run the same command again after an interruption.
    """
    from builder.publish import Content, Publisher

    publisher = Publisher(repo_id, private=private, revision=revision, tag=tag)
    if not Content.of(zoo).models:  # before the folder is locked, which would make it
        raise ZooError(zoo, expected="a zoo with models", found="none", do="build some first")
    with _completing(zoo, publisher):
        publisher.prepare(Content.of(zoo))
    _say_complete(None, publisher)


@contextmanager
def _completing(out: Path, publisher: Publisher | None) -> Iterator[None]:
    """Lock a folder while the block brings it to its state; then draw its plots, and push it."""
    from builder.gallery import draw
    from builder.store import holds_models, lock_folder

    try:
        with lock_folder(out):  # held until all is done: another build would delete what is drawn or pushed
            yield
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


def _say_complete(out: Path | None, publisher: Publisher | None) -> None:
    """Say how to load what is complete: a folder, a repository."""
    if out is not None:
        click.echo(f"{out} is complete: datasets.load_dataset({str(out)!r})")
    if publisher is not None:
        at = f", revision={publisher.revision!r}" if publisher.revision else ""
        click.echo(f"{publisher.url} is complete: datasets.load_dataset({publisher.repo_id!r}{at})")


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
