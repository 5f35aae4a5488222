"""All methods of a zoo on one HTML page that opens without a server, from the files that the evaluation
commands wrote.

python scripts/leaderboard.py ZOO
"""

from __future__ import annotations

import functools
import os
import reprlib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nws_dataset.console import Command
from nws_dataset.errors import ZooError, one_line, reason
from nws_dataset.evaluation import commands
from nws_dataset.evaluation.pages import charts
from nws_dataset.evaluation.pages.sections import SECTIONS, sections_of
from nws_dataset.evaluation.results import Results, facts_of
from nws_dataset.evaluation.scores import METRICS, scores_of
from nws_dataset.files import atomic_write, path_type

if TYPE_CHECKING:
    import jinja2

    from nws_dataset.reading.zoo import Zoo

PAGE = "leaderboard.html"
TEMPLATE = f"{PAGE}.j2"  # beside this file


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    text = resources.files(__package__ or "").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(text)


def page_of(facts: dict[str, Any], results: Sequence[Results]) -> str:
    """The HTML of all results of a zoo; experiments that the page does not know are named at its end.

    Raises:
        ZooError: if two files contradict each other.
    """
    records = [record for part in results for record in part.records]
    scores = scores_of(record for record in records if record.experiment in SECTIONS)
    used = {score.first.metric for score in scores}
    splits = {(score.first.trained_on or "", score.first.tested_on or "") for score in scores}
    lines = ("width", "height", "left", "right", "top", "bottom")
    return _template().render(
        facts=facts,
        sections=sections_of(scores),
        measures=[metric for name, metric in METRICS.items() if name in used],
        results=results,
        splits=sorted(splits - {("", "")}),
        seeds=sorted({str(record.seed) for record in records if record.seed is not None}),
        left_out=sorted({record.experiment for record in records} - SECTIONS.keys()),
        chart={name: getattr(charts, name.upper()) for name in lines},
    )


def facts_of_page(zoo: Zoo, called: str) -> dict[str, Any]:
    """What the head of the page says about a zoo."""
    final = zoo.filter(is_final=True)
    splits = final["split"].tolist()
    return {
        **facts_of(zoo, called),
        "num_models": len(final),
        "num_snapshots": len(zoo.filter()),
        "datasets": sorted(set(final["dataset"])),
        "architectures": len(set(final["architecture"])),
        "splits": {split: splits.count(split) for split in dict.fromkeys(splits)},
    }


def check_zoo(facts: dict[str, Any], results: Results) -> None:
    """Raise a ZooError if results belong to another zoo, or to this one before it grew."""
    found = results.contents["zoo"].get("subsets")
    if found != facts["subsets"]:
        expected = f"results of {facts['name']} with {facts['subsets']}"
        do = "evaluate this zoo again, or choose other results (--results)"
        raise ZooError(results.path, expected=expected, found=reprlib.repr(found), do=do)


def _files(paths: Iterable[Path]) -> list[Path]:
    """Files of results, and those in folders; `Results.read` refuses what is no file.

    Raises:
        ZooError: for a folder that cannot be listed.
    """
    found = []
    for path in paths:
        if path_type(path) != "a folder":
            found.append(path)
            continue
        try:
            names = sorted(name for name in os.listdir(path) if name.endswith(".json"))
        except OSError as error:
            expected, do = (
                "a folder that can be listed",
                "permit reading, or choose other results (--results)",
            )
            raise ZooError(path, expected=expected, found=reason(error), do=do) from error
        found += [path / name for name in names if not name.startswith(".")]
    return found


@click.command(cls=Command)
@click.argument("zoo")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
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
    help=f"File to write the page to.  [default: ZOO-results/{PAGE}]",
)
@commands.jobs_options("1")
def main(
    zoo: str,
    results: tuple[Path, ...],
    methods: tuple[str, ...],
    out: Path | None,
    ray: str | None,
    **options: Any,
) -> None:
    """Put all methods of ZOO on one HTML page that opens without a server.

    Reads what nws-evaluate-predictors and nws-evaluate-meta-classifier wrote. A METHOD is one class, tried on
    the zoo's standard tasks: if it inherits scikit-learn's ClassifierMixin, on the properties that are
    classes; else on the test accuracy and on properties that are numbers. Its results are kept beside the
    page, and taken from there until its file changes.
    """
    opened, called = commands.open_zoo(zoo, ray), commands.name_of(zoo)
    folder = commands.results_folder(zoo, None)
    page = out or folder / PAGE
    commands.check_folder(page.parent)
    if path_type(page) not in ("nothing", "a file"):
        do = "choose another page (--out)"
        raise ZooError(page, expected="a file, or none", found=path_type(page), do=do)
    paths = _files(results or (folder,) * (path_type(folder) != "nothing"))
    if methods:
        from nws_dataset.evaluation.candidate import Candidate, results_file

        candidates = [Candidate.load(text) for text in methods]
        names = [candidate.name for candidate in candidates]
        if len(set(names)) < len(names):
            expected, do = "classes of different names", "rename one of them"
            raise ZooError("--method", expected=expected, found=", ".join(names), do=do)
        paths += [results_file(opened, called, one, page.parent, ray=ray, **options) for one in candidates]
    read = [Results.read(Path(path)) for path in dict.fromkeys(map(os.path.realpath, paths))]
    if not read:
        do = f"run nws-evaluate-predictors {zoo} first, or give --results or --method"
        raise ZooError(folder, expected="results of an evaluation", found="none", do=do)
    facts = facts_of_page(opened, called)
    for part in read:
        check_zoo(facts, part)
    html = page_of(facts, read)
    with atomic_write(page) as temporary:
        # results may hold half a character
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")
    click.echo(f"Written: {one_line(page)}")
