"""Shared code of the evaluation commands: options, folders of results, and Ctrl-C."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nws_dataset import options
from nws_dataset.console import Interrupted
from nws_dataset.errors import ZooError, one_line, reason
from nws_dataset.evaluation.run import Kept
from nws_dataset.files import beside, check_output_folder, path_type
from nws_dataset.options import Decorator, ray_option, together

if TYPE_CHECKING:
    from nws_dataset.reading.zoo import Zoo

# libraries take 31-bit seeds; folds and repetitions count up from the first
MAX_SEEDS, MAX_SEED = 1000, 10**9
RESULTS = "-results"  # ends the name of a folder of results, which begins with that of the zoo

option = functools.partial(click.option, show_default=True)
out_option = options.out_option("Folder to write results to.", "ZOO-results, next to the zoo")
zoo_argument = together(click.argument("zoo"), options.revision_option)


def seeds_option(words: str) -> Decorator:
    """The option --seeds, with its help."""
    return option("--seeds", default=3, type=click.IntRange(1, MAX_SEEDS), metavar="N", help=words)


def jobs_options(default: str) -> Decorator:
    """The options --jobs, with its default in words, and --ray."""
    words = f"Number of processes.  [default: {default}]"
    return together(
        click.option("--jobs", type=click.IntRange(1), metavar="N", help=words),
        ray_option("Run on all cores of a Ray cluster; every node must have the zoo at the same path."),
    )


def list_option(*names: str, legal: Sequence[str] = (), **settings: Any) -> Decorator:
    """An option that takes names separated by commas; if `legal` is empty, any name is allowed."""

    def split(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
        names = value.split(",") if value else None
        for name in (names or ()) if legal else ():
            if name not in legal:
                flag, expected = parameter.opts[0], f"some of {','.join(legal)}"
                raise ZooError(flag, expected=expected, found=repr(name), do="choose among them")
        return names

    return option(*names, metavar="A,B", callback=split, **settings)


def open_zoo(zoo: str, revision: str | None, ray: str | None) -> Zoo:
    """Open a zoo, by its absolute path if Ray processes in other folders will read it."""
    # Idle OpenMP threads that spin slow down training up to eight times if other programs use the cores.
    # Libraries read this when they are loaded: set it before torch and lightgbm are imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from nws_dataset.reading.zoo import Zoo

    return Zoo(os.path.abspath(zoo) if ray and os.path.isdir(zoo) else zoo, revision=revision)


def begin(zoo: str, revision: str | None, out: Path | None, ray: str | None) -> tuple[Zoo, Path]:
    """Open a zoo and check the folder for its results; raises a ZooError if either cannot be used."""
    opened, folder = open_zoo(zoo, revision, ray), out or beside(zoo, RESULTS)
    check_output_folder(folder)
    return opened, folder


@contextmanager
def keeping(kept: Kept) -> Iterator[None]:
    """Remove kept outcomes when the block ends; after Ctrl-C, say where they are."""
    try:
        yield
    except KeyboardInterrupt as error:
        done = any(kept.folder.glob("*.json"))
        words = f"what is done is kept in {kept.folder}: run the same command to go on"
        raise Interrupted(f"interrupted; {words if done else 'nothing was done yet'}") from error
    if path_type(kept.folder) != "nothing":  # it is missing if nothing could be tested
        try:
            shutil.rmtree(kept.folder)
        except OSError as error:
            expected, do = "a folder that can be removed", "remove it: the results are written"
            raise ZooError(kept.folder, expected=expected, found=reason(error), do=do) from error


def name_of(zoo: str) -> str:
    """A zoo's name in reports, without a local path."""
    return one_line(Path(zoo).resolve().name) if Path(zoo).is_dir() else zoo


def command_line() -> str:
    """The running click command as it was given, without local paths."""
    context = click.get_current_context()
    parent = [context.parent] if context.parent else []
    words = [Path(one.info_name or "").name for one in (*parent, context)]
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE or name == "out":
            continue
        if not isinstance(parameter, click.Option):
            words.append(name_of(str(value)))
            continue
        off = parameter.is_flag and value is False and parameter.secondary_opts
        words.append(parameter.secondary_opts[0] if off else parameter.opts[0])
        if not parameter.is_flag:
            words.append(one_line(",".join(map(str, value)) if isinstance(value, (list, tuple)) else value))
    return shlex.join(words)
