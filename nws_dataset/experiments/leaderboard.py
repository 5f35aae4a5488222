"""Compare all methods of a zoo on one HTML page, from the files that the evaluation commands wrote.

python scripts/leaderboard.py ZOO
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from nws_dataset.console import Command
from nws_dataset.errors import ZooError, one_line, reason
from nws_dataset.evaluation.results import Results
from nws_dataset.experiments import commands
from nws_dataset.files import atomic_write, beside, check_output_file, path_type
from nws_dataset.pages.page import facts_of_page, page_of

PAGE = "leaderboard.html"


def check_zoo(facts: dict[str, Any], results: Results) -> None:
    """Raise a ZooError if results belong to another zoo, or to this one before it grew."""
    given = {"weights": facts["weights"], **results.contents["zoo"]}  # older files do not name them
    do = "evaluate this zoo again, or choose other results (--results)"
    for name in ("subsets", "weights"):
        found = given.get(name)
        if found != facts[name]:
            expected = f"results of {facts['name']} with {name} {facts[name]}"
            raise ZooError(results.path, expected=expected, found=reprlib.repr(found), do=do)


def _files(paths: Iterable[Path]) -> list[Path]:
    """List files of results, given directly or in folders; `Results.read` refuses anything but files.

    Raises:
        ZooError: if a folder cannot be listed.
    """
    found = []
    for path in paths:
        if path_type(path) != "a folder":
            found.append(path)
            continue
        try:
            names = sorted(name for name in os.listdir(path) if name.endswith(".json"))
        except OSError as error:
            expected, do = "a folder that can be listed", "permit reading, or give other results (--results)"
            raise ZooError(path, expected=expected, found=reason(error), do=do) from error
        found += [path / name for name in names if not name.startswith(".")]
    return found


@click.command(cls=Command)
@commands.zoo_argument
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    multiple=True,
    help="Folder with results, or one results file.  [default: ZOO-results]",
)
@click.option(
    *("--method", "methods"),
    metavar="FILE.py:Class",
    multiple=True,
    help="Also evaluate this class, which has fit(rows, y) and predict(rows).",
)
@commands.seeds_option("Number of seeds for a method.")
@click.option("--again", is_flag=True, help="Evaluate methods again even if their results exist.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help=f"File to write the page to.  [default: ZOO-results/{PAGE}]",
)
@commands.jobs_options("1")
def main(
    zoo: str,
    revision: str | None,
    results: tuple[Path, ...],
    methods: tuple[str, ...],
    out: Path | None,
    ray: str | None,
    **options: Any,
) -> None:
    """Compare all methods of ZOO on one HTML page that needs no server.

    Reads the results of `nws evaluate`, nws-evaluate-predictors and nws-evaluate-meta-classifier. A METHOD is
    one class, evaluated on the zoo's standard tasks: if it inherits scikit-learn's ClassifierMixin, on
    properties that are classes; otherwise on the test accuracy and on properties that are numbers. Its
    results are stored next to the page, and reused until its file changes.
    """
    opened, called = commands.open_zoo(zoo, revision, ray), commands.name_of(zoo)
    folder = beside(zoo, commands.RESULTS)
    page = out or folder / PAGE
    check_output_file(page)
    paths = _files(results or (folder,) * (path_type(folder) != "nothing"))
    if methods:
        from nws_dataset.experiments.candidate import Candidate, results_file

        candidates = [Candidate.load(text) for text in methods]
        names = [candidate.name for candidate in candidates]
        if len(set(names)) < len(names):
            expected, do = "classes of different names", "rename one of them"
            raise ZooError("--method", expected=expected, found=", ".join(names), do=do)
        paths += [results_file(opened, called, one, page.parent, ray=ray, **options) for one in candidates]
    read = [Results.read(Path(path)) for path in dict.fromkeys(map(os.path.realpath, paths))]
    if not read:
        do = f"run nws evaluate {zoo} first, or give --results or --method"
        raise ZooError(folder, expected="results of an evaluation", found="none", do=do)
    facts = facts_of_page(opened, called)
    for part in read:
        check_zoo(facts, part)
    html = page_of(facts, read, opened)
    with atomic_write(page) as temporary:
        # results may contain lone surrogates
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")
    click.echo(f"Written: {one_line(page)}")
