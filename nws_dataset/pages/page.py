"""All results of a zoo as one HTML page that opens without a server."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from nws_dataset.evaluation.results import Results, facts_of
from nws_dataset.evaluation.scores import METRICS, scores_of
from nws_dataset.pages import charts
from nws_dataset.pages.pictures import pictures_of
from nws_dataset.pages.sections import SECTIONS, sections_of

if TYPE_CHECKING:
    import jinja2

    from nws_dataset.reading.zoo import Zoo

TEMPLATE = "leaderboard.html.j2"  # beside this file


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    text = resources.files(__package__ or "").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(text)


def page_of(facts: dict[str, Any], results: Sequence[Results], zoo: Zoo | None = None) -> str:
    """Render all results of a zoo as HTML; unknown experiments are listed at the end.

    Args:
        facts: from `facts_of_page`.
        results: at least one file.
        zoo: the zoo, for pictures of its networks; None: there are none.

    Raises:
        ZooError: if two files contradict each other, or name a network that the zoo does not have.
    """
    records = [record for part in results for record in part.records]
    scores = scores_of(record for record in records if record.experiment in SECTIONS)
    used = {score.first.metric for score in scores}
    splits = {(score.first.trained_on or "", score.first.tested_on or "") for score in scores}
    lines = ("width", "height", "left", "right", "top", "bottom")
    return _template().render(
        facts=facts,
        sections=sections_of(scores, facts["kinds"]),
        pictures=[] if zoo is None else pictures_of(zoo, scores),
        measures=[metric for name, metric in METRICS.items() if name in used],
        results=results,
        splits=sorted(splits - {("", "")}),
        seeds=sorted({str(record.seed) for record in records if record.seed is not None}),
        left_out=sorted({record.experiment for record in records} - SECTIONS.keys()),
        chart={name: getattr(charts, name.upper()) for name in lines},
    )


def facts_of_page(zoo: Zoo, called: str) -> dict[str, Any]:
    """The facts about a zoo in the head of the page."""
    final = zoo.filter(is_final=True)
    splits, of_data = final["split"].tolist(), {*zip(final["dataset"], final["subset"], strict=True)}
    return {
        **facts_of(zoo, called),
        "num_models": len(final),
        "num_snapshots": len(zoo.filter()),
        "datasets": sorted({zoo.manifest.dataset_name(name, [subset]) for name, subset in of_data}),
        "kinds": sorted(set(final["kind"])),
        "architectures": len(set(final["architecture"])),
        "splits": {split: splits.count(split) for split in dict.fromkeys(splits)},
    }
