"""Pictures of single networks: images that were told wrong, and the edges of one network, kept and pruned."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure  # drawn with Agg when saved; pyplot's global state is not touched
from matplotlib.patches import Patch

from nws_dataset.errors import ZooError
from nws_dataset.evaluation.scores import ALL, Score, edges_of_hex, groups, select
from nws_dataset.evaluation.tasks import EDGES, LABEL
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.pages.tables import words
from nws_dataset.plot_style import BLUE, ORANGE, RED, STYLE
from nws_dataset.views.graph import Layers

if TYPE_CHECKING:
    from nws_dataset.reading.snapshots import Snapshots
    from nws_dataset.reading.zoo import Zoo

COLUMNS = 8  # of images told wrong
MAPS = 8  # of units, side by side
WIDTH = 7.0  # inches of the edges
DPI = 120  # in the page
NONE = -1  # no edge
PRUNED = "#DDDDDD"
# 2 * kept + told kept -> words and colour
EDGE_STATES = (
    ("pruned", PRUNED),
    ("pruned, told kept", ORANGE),
    ("kept, told pruned", RED),
    ("kept", BLUE),
)


@dataclass(frozen=True)
class Picture:
    """A picture that belongs to a section of the page."""

    section: str
    name: str  # of its file
    caption: str
    figure: Figure

    @property
    def url(self) -> str:
        """The picture itself, as the address of an image in a page."""
        file = io.BytesIO()
        self.figure.savefig(file, dpi=DPI, format="png")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def pictures_of(zoo: Zoo, scores: Sequence[Score]) -> list[Picture]:
    """Pictures of networks that the best method of each task was tried on.

    Raises:
        ZooError: if a network that the results name is not in the zoo, or is of another kind.
    """
    return [*_told_wrong(zoo, scores), *_edges(zoo, scores)]


def _best(scores: Sequence[Score], metric: str, field: str, **conditions: str) -> Iterator[Score]:
    """The best score with examples, for each value of a field."""
    for part in groups(select(scores, nets=ALL, metric=metric, **conditions), field).values():
        shown = [score for score in part if score.first.examples]
        if shown:
            yield max(shown, key=lambda score: score.value)


def _networks(zoo: Zoo, score: Score) -> Snapshots:
    """The final snapshots of a score's examples, in their order."""
    ids = [str(name) for name, *_ in score.first.examples or ()]
    found = zoo.filter(model_id=ids, is_final=True)
    at = {name: i for i, name in enumerate(found["model_id"])}
    missing = [name for name in ids if name not in at]
    if missing:
        do = "evaluate this zoo again"
        raise ZooError("results", expected=f"networks of {zoo.name}", found=missing[0], do=do)
    return found[[at[name] for name in ids]]


@matplotlib.rc_context(STYLE)
def _told_wrong(zoo: Zoo, scores: Sequence[Score]) -> Iterator[Picture]:
    """Images of networks whose class was told wrong."""
    for i, score in enumerate(_best(scores, "accuracy", "task", experiment=LABEL)):
        images, examples = zoo.images(_networks(zoo, score)), score.first.examples or []
        rows = -(-len(images) // COLUMNS)
        figure = Figure(figsize=(COLUMNS, 0.1 + 1.2 * rows), layout="constrained")
        grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, pixels, (_, true, told) in zip(grid, images, examples, strict=False):
            axes.imshow(pixels.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"{true}, told {told}", fontsize=8)
        caption = f"Images of some held-out networks that {_method(score)} told wrong."
        yield Picture(LABEL, f"told_wrong{_number(i)}", caption, figure)


@matplotlib.rc_context(STYLE)
def _edges(zoo: Zoo, scores: Sequence[Score]) -> Iterator[Picture]:
    """The edges of one network, layer by layer."""
    colours = ListedColormap([colour for _, colour in EDGE_STATES])
    for i, score in enumerate(_best(scores, "edge_accuracy", "dataset", experiment=EDGES)):
        network = _networks(zoo, score)[0]
        layers = _states(zoo.architecture(network), score.first.examples or [])
        heights = [WIDTH * part.shape[0] / part.shape[1] + 0.4 for _, part in layers]
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained")
        panels = figure.subplots(len(layers), 1, squeeze=False, height_ratios=heights).ravel()
        for axes, (title, part) in zip(panels, layers, strict=True):
            axes.imshow(part, cmap=colours, vmin=-0.5, vmax=len(EDGE_STATES) - 0.5, interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(title, loc="left", fontsize=9)
        patches = [Patch(color=colour, label=state) for state, colour in EDGE_STATES]
        figure.legend(handles=patches, frameon=False, loc="outside lower center", ncols=len(patches))
        caption = f"The edges of a held-out network, {network['model_id']}, as {_method(score)} told them."
        yield Picture(EDGES, f"of_one_network{_number(i)}", caption, figure)


def _states(architecture: BaseArchitecture, examples: Sequence[Any]) -> list[tuple[str, np.ndarray]]:
    """The title of each layer of edges, and the number of each edge's state in EDGE_STATES, in two
    dimensions: units by inputs; a map for each unit, side by side, where inputs are pixels.
    """
    layers = Layers.of(architecture)
    shapes = [edges.indices.shape[:2] for edges in layers.edges]
    kept, told = (edges_of_hex(str(text), sum(map(math.prod, shapes))) for text in examples[0][1:])
    states, parts, first = 2 * kept.astype(np.int64) + told, [], 0
    for edges, shape in zip(layers.edges, shapes, strict=True):
        part = states[first : first + math.prod(shape)].reshape(shape)
        first += part.size
        units = layers.nodes[edges.target].name
        inputs = layers.nodes[edges.source].name
        pixels = architecture.reads == "images" and edges.source == 0
        shown = "a map of pixels for each unit" if pixels else f"{inputs} across, {units} down"
        title = f"{units}: {shown}, {np.mean(part >= 2):.0%} kept"
        parts.append((title, _maps(part, architecture) if pixels else part))
    return parts


def _maps(states: np.ndarray, architecture: BaseArchitecture) -> np.ma.MaskedArray:
    """[units, pixels] as maps side by side, with gaps between them."""
    size, channels = architecture.image_size, architecture.image_channels
    maps = states.reshape(-1, channels, size, size).swapaxes(1, 2).reshape(len(states), size, -1)
    maps = np.pad(maps, ((0, -len(maps) % MAPS), (0, 1), (0, 1)), constant_values=NONE)
    rows, high, wide = len(maps) // MAPS, *maps.shape[1:]
    return np.ma.masked_equal(
        maps.reshape(rows, MAPS, high, wide).swapaxes(1, 2).reshape(rows * high, MAPS * wide), NONE
    )


def _method(score: Score) -> str:
    return f"the best method ({words(score, 'method')}, {words(score, 'input')})"


def _number(i: int) -> str:
    return f"_{i + 1}" if i else ""
