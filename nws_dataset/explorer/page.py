"""A zoo as one HTML page: its data, the charts' library and the script, all in one file."""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources, util
from typing import TYPE_CHECKING, Any

import numpy as np

from nws_dataset.console import Progress
from nws_dataset.explorer import weights as of_weights
from nws_dataset.explorer.contents import Shown, category_field, dataset_names, index_of, start_of
from nws_dataset.explorer.notes import notes_of
from nws_dataset.explorer.packing import to_text
from nws_dataset.plot_style import CYCLE, ORANGE, PURPLE

if TYPE_CHECKING:
    import jinja2

    from nws_dataset.reading.zoo import Zoo

TEMPLATE, SCRIPT = "explorer.html.j2", "explorer.js"  # beside this file
CHARTS = "window.vegaEmbed = vegaEmbed"  # what the page needs of the charts' library
COLOURS = {
    "light": (*CYCLE, "#7B4B2A", "#882255", "#7F7F1A"),
    "dark": (
        *("#4C9BE8", "#E8722A", "#22B58A", PURPLE, ORANGE),
        *("#8FD3FF", "#E6E6E6", "#B98A63", "#C9A6FF", "#B9B94A"),
    ),
}  # of categories on the page, told apart by the colour-blind


@functools.cache
def charts_library() -> str:
    """Vega-Embed with Vega-Lite, Vega and its interpreter of expressions, as one script."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle(CHARTS)
    return bundle


def contents_of(zoo: Zoo, called: str, *, read_weights: bool = True) -> dict[str, Any]:
    """All that a page shows of a zoo.

    Args:
        zoo: the zoo.
        called: its name on the page.
        read_weights: whether to show what has to be read from weights: of a zoo on the Hub, they are fetched.

    Returns:
        What `to_text` takes; nws_dataset/explorer/explorer.js reads it.

    Raises:
        ZooError: if the zoo is empty or damaged.
    """
    shown = Shown.of(zoo)
    index = index_of(zoo, shown)
    contents: dict[str, Any] = {
        "name": called,
        "models": shown.num_models,
        "shown": len(shown),
        "snapshots": shown.num_snapshots,
        "most_snapshots": shown.most_snapshots,
        "architectures": len(set(shown.final["architecture"].tolist())),
        "datasets": sorted(set(dataset_names(zoo, shown.final).tolist())),
        **index,
        "statistics": None,
        "weights": {"architectures": []},
        "histograms": [],
        "images": [],
        "edges": [],
        "colours": COLOURS,
    }
    if read_weights:
        contents |= _of_weights(zoo, shown, contents)
    contents["notes"] = notes_of(shown, contents, read_weights=read_weights)
    contents["start"] = start_of(contents)
    return contents


def _of_weights(zoo: Zoo, shown: Shown, contents: dict[str, Any]) -> dict[str, Any]:
    """The part of the contents that is read from weights."""
    read, sampled = of_weights.read_models(zoo, shown), of_weights.sampled_models(shown)
    images = bool(np.isfinite(shown.final["psnr"]).any()) and util.find_spec("torch") is not None
    edges = bool(np.isfinite(shown.final["edge_threshold"]).any())
    total = len(read) + len(sampled) * (1 + images) + len(shown) * edges
    with Progress("reading weights", total, unit="networks") as progress:
        found: dict[str, Any] = of_weights.components_of(zoo, shown, read, progress.advance)
        found["histograms"] = of_weights.histograms_of(zoo, shown, sampled, progress.advance)
        if images:
            found["images"] = of_weights.images_of(zoo, shown, sampled, progress.advance)
        if edges:
            fields, found["edges"] = of_weights.edges_of(zoo, shown, sampled, progress.advance)
            found["fields"] = [*contents["fields"], *fields]
    if len(sampled) < len(shown):
        inside = np.isin(np.arange(len(shown)), sampled)
        field = category_field("in_detail", "whether the page shows the model's weights in detail", inside)
        found["fields"] = [*found.get("fields", contents["fields"]), field]
    return found


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_resource(TEMPLATE))


def _resource(name: str) -> str:
    return resources.files(__package__ or "").joinpath(name).read_text(encoding="utf-8")


def page_of(contents: dict[str, Any], charts: str | None = None) -> str:
    """The page of a zoo.

    Args:
        contents: from `contents_of`.
        charts: from `charts_library`; None: it is made.
    """
    import markupsafe

    charts = charts or charts_library()
    assert not any(mark in charts.lower() for mark in ("</script", "<script", "<!--")), (
        "would end its element"
    )
    return _template().render(
        name=contents["name"],
        data=to_text(contents),
        script=markupsafe.Markup(_resource(SCRIPT)),
        charts=markupsafe.Markup(charts),
    )


def page_of_zoo(zoo: Zoo, called: str, *, read_weights: bool = True) -> tuple[str, dict[str, Any]]:
    """The page of a zoo, and its contents; the charts' library is made while weights are read."""
    with ThreadPoolExecutor(1) as pool:
        charts: Future[str] = pool.submit(charts_library)
        contents = contents_of(zoo, called, read_weights=read_weights)
        return page_of(contents, charts.result()), contents
