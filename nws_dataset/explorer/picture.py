"""A still picture of a zoo's page, for where no page can be shown: the card on the Hub, a paper, a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # drawn with Agg when saved; pyplot's global state is not touched
from matplotlib.lines import Line2D

from nws_dataset.explorer.packing import unpack
from nws_dataset.files import atomic_write
from nws_dataset.plot_style import CYCLE, GREY, STYLE

WIDTH, HEIGHT, DPI = 8.0, 3.9, 150  # inches; the Hub shows about 800 pixels
SMALL, LARGE = 3.0, 16.0  # areas of a point
MANY = 2000  # models whose points are small
EDGE = 0.3  # half the width of a category's strip


def write_picture(contents: dict[str, Any], path: Path) -> None:
    """Draw a picture and write it as PNG; the same contents give the same bytes.

    Args:
        contents: what the page shows, from `nws_dataset.explorer.page.contents_of`.
        path: the file to write.

    Raises:
        ZooError: if it cannot be written.
    """
    with matplotlib.rc_context(STYLE), atomic_write(path) as temporary:
        picture_of(contents).savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def picture_of(contents: dict[str, Any]) -> Figure:
    """The plot that the page begins with, and beside it the principal components of statistics, if others."""
    start, statistics = contents["start"], contents["statistics"]
    pairs = [(start["x"], start["y"])]
    if statistics is not None and start["x"] != "statistics 1":
        pairs.append(("statistics 1", "statistics 2"))
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    colours, handles = _colours(contents)
    for axes, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        _scatter(axes, contents, x, y, colours)
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False,
            title=_escaped(start["colour"]),
        )  # fmt: skip
    figure.suptitle(
        f"{contents['shown']:,} of {contents['models']:,} models"
        if contents["shown"] < contents["models"]
        else f"{contents['models']:,} models",
        fontsize=STYLE["axes.titlesize"],
    )
    return figure


def _scatter(axes: Axes, contents: dict[str, Any], x: str, y: str, colours: np.ndarray) -> None:
    (across, log_x), (up, log_y) = _values(contents, x), _values(contents, y)
    order = np.random.default_rng(0).permutation(len(colours))  # no colour hides another
    area = SMALL if len(colours) > MANY else LARGE
    axes.scatter(across[order], up[order], area, colours[order], alpha=0.7, linewidths=0, rasterized=True)
    axes.set(xlabel=_escaped(_label(contents, x)), ylabel=_escaped(_label(contents, y)))
    axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    axes.grid(color="#E6E6E6")


def _label(contents: dict[str, Any], name: str) -> str:
    if not name.startswith("statistics "):
        return name
    number = int(name.removeprefix("statistics "))
    return f"statistics, PC {number} ({100 * contents['statistics']['shares'][number - 1]:.0f} %)"


def _values(contents: dict[str, Any], name: str) -> tuple[np.ndarray, bool]:
    """What stands on an axis [M], and whether it is logarithmic."""
    if name.startswith("statistics "):
        number = int(name.removeprefix("statistics "))
        return unpack(contents["statistics"]["coordinates"])[number - 1], False
    last = unpack(contents["last"]).astype(int)
    for metric in contents["metrics"]:
        if metric["name"] == name:
            values = unpack(metric["codes"])
            return values[np.arange(len(values)), last], metric["codes"]["scale"] == "log"
    for time in contents["times"]:
        if time["name"] == name:
            values = np.broadcast_to(unpack(time["values"]), (len(last), time["values"]["shape"][1]))
            return values[np.arange(len(values)), last], False
    (field,) = (field for field in contents["fields"] if field["name"] == name)
    if "numbers" in field:
        return unpack(field["numbers"]), field["log"]
    codes = unpack(field["codes"]).astype(float)
    return codes + np.random.default_rng(0).uniform(-EDGE, EDGE, len(codes)), False


def _colours(contents: dict[str, Any]) -> tuple[np.ndarray, list[Line2D]]:
    """The colour of each model, and the legend."""
    found = [field for field in contents["fields"] if field["name"] == contents["start"]["colour"]]
    if not found:
        return np.full(contents["shown"], CYCLE[0]), []
    (field,) = found
    if "numbers" in field:
        numbers = unpack(field["numbers"])
        low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
        shares = np.nan_to_num((numbers - low) / ((high - low) or 1))
        ramp = matplotlib.colormaps["viridis"]
        handles = [_dot(f"{value:.3g}", ramp(share)) for value, share in ((low, 0.0), (high, 1.0))]
        return ramp(shares), handles
    palette = (*contents["colours"]["light"], GREY)
    codes = np.minimum(unpack(field["codes"]), len(palette) - 1)
    named = list(zip(field["values"], palette, strict=False))
    handles = [_dot(_escaped(str(value)), colour) for value, colour in named]
    return np.array(palette)[codes], handles


def _dot(words: str, colour: Any) -> Line2D:
    return Line2D([], [], linestyle="", marker="o", color=colour, label=words)


def _escaped(text: str) -> str:
    """A text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$").lstrip("_")
