"""A zoo as one HTML page: its data, the charts' library and the script, all in one file."""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources, util
from typing import TYPE_CHECKING, Any

from nws_dataset.console import Progress
from nws_dataset.explorer import weights as of_weights
from nws_dataset.explorer.contents import Shown, index_of, start_of
from nws_dataset.explorer.packing import to_text
from nws_dataset.plot_style import CYCLE, ORANGE, PURPLE

if TYPE_CHECKING:
    import jinja2

    from nws_dataset.reading.zoo import Zoo

TEMPLATE, SCRIPT = "explorer.html.j2", "explorer.js"  # beside this file
CHARTS = "window.vegaEmbed = vegaEmbed"  # what the page needs of the charts' library
COLOURS = {
    "light": (*CYCLE, "#7B4B2A", "#882255", "#7F7F1A"),
    "dark": ("#4C9BE8", "#E8722A", "#22B58A", PURPLE, ORANGE, "#8FD3FF", "#E6E6E6", "#B98A63", "#C9A6FF", "#B9B94A"),
}  # of categories on the page, told apart by the colour-blind
TORCH = "Images are left out: decoding them needs torch (pip install torch)."


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
        "datasets": sorted(_dataset_names(zoo, shown)),
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
    contents["notes"] = _notes(shown, contents, read_weights)
    contents["start"] = start_of(contents)
    return contents


def _dataset_names(zoo: Zoo, shown: Shown) -> set[str]:
    pairs = {*zip(shown.final["dataset"].tolist(), shown.final["subset"].tolist(), strict=True)}
    return {zoo.manifest.dataset_name(name, [subset]) for name, subset in pairs}


def _of_weights(zoo: Zoo, shown: Shown, contents: dict[str, Any]) -> dict[str, Any]:
    """The part of the contents that is read from weights."""
    read, sampled = of_weights.read_models(zoo, shown), of_weights.sampled_models(shown)
    images = bool((shown.final["psnr"] == shown.final["psnr"]).any()) and util.find_spec("torch") is not None
    edges = bool((shown.final["edge_threshold"] == shown.final["edge_threshold"]).any())
    total = len(read) + len(sampled) * (1 + images) + len(shown) * edges
    with Progress("reading weights", total, unit="networks") as progress:
        found: dict[str, Any] = of_weights.components_of(zoo, shown, read, progress.advance)
        found["histograms"] = of_weights.histograms_of(zoo, shown, sampled, progress.advance)
        if images:
            found["images"] = of_weights.images_of(zoo, shown, sampled, progress.advance)
        if edges:
            fields, found["edges"] = of_weights.edges_of(zoo, shown, sampled, progress.advance)
            found["fields"] = [*contents["fields"], *fields]
    return found


def _notes(shown: Shown, contents: dict[str, Any], read_weights: bool) -> list[str]:
    """What a reader of the page must know: what it leaves out, and what its numbers are computed from."""
    notes = []
    if shown.num_models > len(shown):
        notes.append(
            f"A random sample of {len(shown):,} of the zoo's {shown.num_models:,} models is shown; all counts on "
            "this page are of the sample."
        )
    kept = shown.at.shape[1]
    if shown.most_snapshots > kept:
        notes.append(f"Of up to {shown.most_snapshots} snapshots of a model, {kept} are shown, evenly spaced.")
    notes.append(
        "Numbers are rounded for this page: results to 1/65,535 of their range, recipes to seven digits. "
        "The zoo's index has them in full."
    )
    if not read_weights:
        return [*notes, "No weights were read: there are no principal components and no histograms."]
    statistics = contents["statistics"]
    if statistics is not None:
        notes.append(
            f"PCA of statistics: {statistics['features']} statistics of the final weights of "
            f"{statistics['models']:,} models, of the whole row and of the tensors that all architectures have, "
            f"each standardized and cut at {of_weights.CLIP:g} standard deviations."
        )
    fits = contents["weights"]["architectures"]
    words = f"of each architecture with at least {of_weights.LEAST_MODELS} models"
    if fits:
        most = max(fit["fitted"] for fit in fits)
        notes.append(
            f"PCA of weights: {words}; the axes are computed from at most {most:,} final snapshots, and all "
            "models that were read are projected on them. Hidden units have no order, so weights of independent "
            "initializations rarely form clusters."
        )
    else:
        notes.append(f"PCA of weights is computed {words}; here is none.")
    histograms = sum(found["models"]["shape"][0] for found in contents["histograms"])
    notes.append(
        f"Histograms of weights: of a random sample of {histograms:,} models, at up to "
        f"{of_weights.SAMPLED_SNAPSHOTS} snapshots each."
    )
    if contents["images"]:
        images = sum(found["models"]["shape"][0] for found in contents["images"])
        notes.append(f"Images are decoded for {images:,} models of this sample.")
    elif any(metric["name"] == "psnr" for metric in contents["metrics"]) and not util.find_spec("torch"):
        notes.append(TORCH)
    if contents["edges"]:
        notes.append("Edges, kept and pruned, are shown for the models of this sample.")
    return notes


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
        charts: from `charts_library`; None makes it.
    """
    import markupsafe

    return _template().render(
        name=contents["name"],
        data=to_text(contents),
        script=markupsafe.Markup(_resource(SCRIPT)),
        charts=markupsafe.Markup(charts or charts_library()),
    )


def page_of_zoo(zoo: Zoo, called: str, *, read_weights: bool = True) -> tuple[str, dict[str, Any]]:
    """The page of a zoo, and its contents; the charts' library is made while weights are read."""
    with ThreadPoolExecutor(1) as pool:
        charts: Future[str] = pool.submit(charts_library)
        contents = contents_of(zoo, called, read_weights=read_weights)
        return page_of(contents, charts.result()), contents
