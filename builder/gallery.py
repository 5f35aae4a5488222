"""A zoo's plots, `plots/*.png`: accuracies, from its index, and how weights move in training, from a sample;
and the page to look into it, `plots/explorer.html`.

Each contains the digest of what it was drawn from: drawing again writes nothing, and stale ones are found.

Letters of axes: M models, S snapshots of a model, E epochs, P weights.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure  # draws with Agg; pyplot's global state is not touched
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from builder.card import COLOURED_BY, EXPLORER_PAGE, EXPLORER_PICTURE, PLOTS, plots_of, varying
from builder.images import PILLOW_ERRORS, load_image_set, prepare
from builder.store import remembered_images
from nws_dataset.errors import ZooError, reason
from nws_dataset.explorer import missing_libraries
from nws_dataset.explorer.page import contents_of, page_of
from nws_dataset.explorer.picture import picture_of
from nws_dataset.files import atomic_write, path_type, read_file
from nws_dataset.format.manifest import Manifest
from nws_dataset.format.recipe import LEGAL_VALUES
from nws_dataset.plot_style import CYCLE, GREY, MARKERS, STYLE, TICKS
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo

Item = TypeVar("Item")
VERSION = "3"  # changes whenever the same zoo would give different plots
DIGEST = "nws-digest"  # the PNG's text chunk for the digest, and the word before it in a page's last line
MAX_PAGE_BYTES = 64 << 20
DPI = 150
WIDTH = 8.0  # inches; the card shows about 800 pixels
BINS = [number / 40 for number in range(41)]  # edges of accuracy
ACCURACY_COLUMNS = [
    *("model_id", "subset", "snapshot", "is_final", "epoch", "dataset", "test_accuracy", "converged"),
]
CURVE_POINTS = 200  # epochs at which a mean is taken, at most
SHOWN_IMAGES = 8  # networks of the plot of images
OVERVIEW_HEIGHT = 3.1  # inches
CURVES = 400  # networks whose training the overview shows, at most
MOSAIC_ROWS, MOSAIC_COLUMNS = 5, 15  # snapshots and networks of the overview's images, at most
EDGE_MAPS = (2, 4)  # lines and columns of networks whose edges the overview shows
EDGE_NETWORKS = 200  # networks whose edges are counted, at most
SAMPLED_SNAPSHOTS = 400  # rows of weights that a plot reads, at most (or one model)
LAYERS = ("first convolution", "last convolution", "output layer")  # that every network has
COLOURS = (*CYCLE, "#7B4B2A")  # as many as the property with the most values has


def draw(folder: Path) -> list[Path]:
    """Draw the plots of a zoo that are missing or stale, and write its page.

    The same index and weights give the same bytes (with one version of matplotlib and vl-convert). A zoo
    without models has none of them. Where the extra `explore` is not installed, no page is written, and a
    stale one is removed.

    Args:
        folder: the folder of a complete zoo; its nws.json says what the plots are drawn from.

    Returns:
        The files written.

    Raises:
        ZooError: if the zoo is damaged, or a plot cannot be written.
    """
    names = stale(folder)
    if EXPLORER_PAGE in names and missing_libraries():
        path = Path(folder) / EXPLORER_PAGE
        try:
            path.unlink()
        except OSError as error:
            raise ZooError(path, expected="a page", found=reason(error), do="remove it") from error
        names.remove(EXPLORER_PAGE)
    if not names:
        return []
    zoo = Zoo(os.path.join(os.curdir, folder))  # always a folder, whatever its name
    digest = _digest(zoo.manifest)
    with matplotlib.rc_context(STYLE):
        # all, before one is written
        figures = {name: FIGURES[name](zoo) for name in names if name in FIGURES}
        page = ""
        if EXPLORER_PAGE in names or EXPLORER_PICTURE in names:
            contents = contents_of(zoo, called=", ".join(zoo.manifest.subsets))
            page = _signed(page_of(contents), digest) if EXPLORER_PAGE in names else ""
            if EXPLORER_PICTURE in names:
                figures[EXPLORER_PICTURE] = picture_of(contents)
        for name in names:
            with atomic_write(Path(folder) / name) as temporary:
                if name == EXPLORER_PAGE:
                    temporary.write_text(page, encoding="utf-8")
                else:
                    metadata = {"Software": None, DIGEST: digest}  # leave out matplotlib's version
                    figures[name].savefig(temporary, format="png", dpi=DPI, metadata=metadata)
    return [Path(folder) / name for name in names]


def stale(folder: Path) -> list[str]:
    """Find the plots of a zoo that are missing, damaged or stale; paths are relative to the folder.

    A page that cannot be written here, as libraries are missing, is none of them, unless there is one.

    Raises:
        ZooError: if the folder is not a zoo.
    """
    manifest = Manifest.read(folder)
    if not manifest.index_files():
        return []
    has_page = not missing_libraries() or os.path.lexists(Path(folder) / EXPLORER_PAGE)
    wanted = [*plots_of(manifest), *([EXPLORER_PAGE] if has_page else [])]
    return [name for name in wanted if _drawn_from(Path(folder) / name) != _digest(manifest)]


def _digest(manifest: Manifest) -> str:
    """The digest of what the plots depend on: names of data sets that are not the index's, and the index
    files, which contain the sha256 of all weights.
    """
    copies = (f"{name} {entry.copies}" for name, entry in sorted(manifest.subsets.items()) if entry.copies)
    index = (f"{path} {manifest.files[path].sha256}" for path in manifest.index_files())
    sources = [VERSION, *copies, *index]
    return _sha256("\n".join(sources).encode())


def _drawn_from(path: Path) -> str | None:
    """The digest in a plot or a page; None if it is missing or damaged."""
    if path_type(path) != "a file":  # reading a pipe would block
        return None
    if path.suffix == ".html":
        try:
            content = read_file(path, "a page", MAX_PAGE_BYTES)
        except ZooError:  # it is written anew
            return None
        page, _, line = content.removesuffix(b"\n").rpartition(b"\n")
        found = re.fullmatch(_signature("([0-9a-f]{64})", _sha256(page)), line.decode(errors="replace"))
        return found[1] if found else None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            digest = image.info.get(DIGEST)
            image.verify()
    except PILLOW_ERRORS:
        return None
    return digest


def _signed(page: str, digest: str) -> str:
    """A page with a last line that says what it was written from, and what it was when written."""
    return f"{page}\n{_signature(digest, _sha256(page.encode()))}\n"


def _signature(digest: str, content: str) -> str:
    return f"<!-- {DIGEST} {digest} {content} -->"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# Overview


def _overview(zoo: Zoo) -> Figure:
    """The zoo in one picture, by what most of its networks are: images, edges, or curves of training."""
    final = zoo.index.filter(pc.field("is_final"))
    counts = {
        _mosaic: len(final) - final["image"].null_count,
        _edges: len(final) - final["edge_scores_offset"].null_count,
    }
    most = max(counts, key=counts.__getitem__)
    return most(zoo) if counts[most] > len(final) / 2 else _curves(zoo)


def _curves(zoo: Zoo) -> Figure:
    """The accuracy of every network over training, beside where all of them end."""
    classifiers = Snapshots(zoo.index.filter(pc.is_valid(zoo.index["test_accuracy"])))
    final = classifiers.filter(is_final=True)
    column = varying(final.table, COLOURED_BY) or "dataset"
    names = _present(final.table, column)
    figure = Figure(figsize=(WIDTH, OVERVIEW_HEIGHT), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.4, 1))
    models = _by_model(zoo, _evenly_spaced(sorted(final["model_id"]), CURVES))
    for snapshots in models.values():
        look: Any = {"color": _colour(column, snapshots[0][column]), "linewidth": 0.8, "alpha": 0.45}
        left.plot(snapshots["epoch"], snapshots["test_accuracy"], **look)
    parts = [final.filter(**{column: name})["test_accuracy"] for name in names]
    colours = [_colour(column, name) for name in names]
    right.hist(parts, BINS, stacked=True, orientation="horizontal", color=colours, label=names)
    left.set(xlabel="epochs of training", ylabel="test accuracy", ylim=(0, 1.02))
    left.set_xlim(0, max(final["epoch"]) or 1)
    left.set_yticks(TICKS, _percent(TICKS))
    left.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    left.grid(color="#E6E6E6")
    left.set_title(f"{_some(models, final)} while they train", loc="left")
    right.set(xlabel="networks")
    right.set_title("At the end", loc="left")
    right.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    legend: Any = {"title": column, "frameon": False, "loc": "outside right center"}
    figure.legend(*right.get_legend_handles_labels(), **legend)
    return figure


def _some(shown: Sized, final: Snapshots) -> str:
    """How many networks are shown, and of how many."""
    return f"{len(shown):,} networks" + (f" of {len(final):,}" if len(shown) < len(final) else "")


def _mosaic(zoo: Zoo) -> Figure:
    """Images decoded from networks: a network in each column, a snapshot in each line."""
    of_images = Snapshots(zoo.index.filter(pc.is_valid(zoo.index["image"])))
    final = of_images.filter(is_final=True)
    models = _by_model(zoo, _evenly_spaced(sorted(final["model_id"]), MOSAIC_COLUMNS))
    numbers = np.linspace(0, max(map(len, models.values())) - 1, MOSAIC_ROWS).round().astype(int)
    tile, lines = 0.9 * WIDTH / MOSAIC_COLUMNS, len(np.unique(numbers))
    figure = Figure(figsize=(WIDTH, 0.35 + tile * lines), layout="constrained")
    axes, epochs = figure.subplots(), dict[int, int]()
    for column, snapshots in enumerate(models.values()):
        chosen = [snapshots[int(number)] for number in np.unique(numbers) if number < len(snapshots)]
        for line, (snapshot, pixels) in enumerate(zip(chosen, zoo.images(chosen), strict=True)):
            epochs.setdefault(line, snapshot["epoch"])
            extent = (column + 0.03, column + 0.97, line + 0.97, line + 0.03)
            axes.imshow(pixels.transpose(1, 2, 0).squeeze(), "gray", vmin=0, vmax=255, extent=extent)
    axes.set(xlim=(0, len(models)), ylim=(len(epochs), 0), xticks=[])
    axes.set_yticks([line + 0.5 for line in epochs], [f"step {epoch:,}" for epoch in epochs.values()])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{_some(models, final)}, decoded while they train: a network in each column", loc="left")
    return figure


def _edges(zoo: Zoo) -> Figure:
    """Which pixels networks keep edges from, and how many edges they keep."""
    scored = Snapshots(zoo.index.filter(pc.is_valid(zoo.index["edge_scores_offset"])))
    final = scored.filter(is_final=True)
    final = final.filter(architecture=Counter(final["architecture"]).most_common(1)[0][0])
    by_noise = final.table.sort_by([("label_noise", "ascending"), ("model_id", "ascending")])
    shown = _evenly_spaced(by_noise["model_id"].to_pylist(), EDGE_NETWORKS)
    networks = Snapshots(by_noise.filter(pc.is_in(by_noise["model_id"], pa.array(shown))))
    kept_ME = zoo.edge_scores(networks) >= networks["edge_threshold"].astype(np.float32)[:, None]
    architecture = zoo.architecture(networks[0])
    first = architecture.edge_scores()[0]  # [units, pixels of all channels]
    size = architecture.image_size
    maps = kept_ME[:, : first.stop].reshape(len(networks), -1, size, size).mean(1)  # of units and channels
    figure = Figure(figsize=(WIDTH, OVERVIEW_HEIGHT), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.5, 1))[0]
    grid: np.ndarray = left.subplots(*EDGE_MAPS, squeeze=False).ravel()
    for axes, i in zip(grid, _evenly_spaced(range(len(networks)), len(grid)), strict=False):
        axes.imshow(maps[i], "magma", vmin=0, vmax=maps.max())
        axes.set_title(f"{100 * networks[i]['test_accuracy']:.0f} %", fontsize=STYLE["font.size"])
    for axes in grid:
        axes.set_axis_off()
    left.suptitle("Edges kept from each pixel (black: none), and accuracy", fontsize=STYLE["axes.titlesize"])
    scatter: Axes = right.subplots()
    noise, accuracy = networks["label_noise"], networks["test_accuracy"]
    points = scatter.scatter(noise, kept_ME.mean(1), 14, accuracy, cmap="viridis", linewidths=0)
    scatter.set(xlabel="labels replaced in training", ylabel="edges kept")
    for axis in (scatter.xaxis, scatter.yaxis):
        axis.set_major_formatter(PercentFormatter(1, 0, " %"))
    scatter.grid(color="#E6E6E6")
    right.colorbar(points, label="test accuracy", format=PercentFormatter(1, 0, " %"))
    right.suptitle(_some(shown, final), fontsize=STYLE["axes.titlesize"])
    return figure


# Accuracy


def _accuracy(zoo: Zoo) -> Figure:
    """Final test accuracies of each data set, and how they came about."""
    if zoo.index["test_accuracy"].null_count == len(zoo.index):
        return _fidelity(zoo)
    classifiers = zoo.index.filter(pc.is_valid(zoo.index["test_accuracy"]))
    names, snapshots = _present(classifiers, "dataset"), Snapshots(classifiers.select(ACCURACY_COLUMNS))
    figure = Figure(figsize=(WIDTH, 1.5 + 0.8 * max(3, len(names))), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.15))[0]
    panels = left.subplots(len(names), 1, sharex=True, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=True):
        own, colour = snapshots.filter(dataset=name, is_final=True), _colour("dataset", name)
        _distribution(axes, own, _dataset_name(zoo, own, name), colour)
    panels[-1].set_xlabel("test accuracy of the final network")
    left.supylabel("networks", fontsize=STYLE["font.size"])
    left.suptitle("Final networks (grey: not converged)", fontsize=STYLE["axes.titlesize"])
    axes = right.subplots()
    for name in names:
        own, colour = snapshots.filter(dataset=name), _colour("dataset", name)
        _curve(axes, own, _dataset_name(zoo, own, name), colour)
    axes.set(xlabel="epochs of training", ylabel="mean test accuracy", ylim=(0, 1.02), xlim=(0, None))
    axes.set_yticks(TICKS, _percent(TICKS))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(color="#E6E6E6")
    right.suptitle("Mean over training", fontsize=STYLE["axes.titlesize"])
    right.legend(
        *axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=min(3, len(names))
    )
    return figure


def _fidelity(zoo: Zoo) -> Figure:
    """How well the final networks give their images, and how that came about."""
    snapshots, names = zoo.filter(), _present(zoo.index, "dataset")
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in names:
        own, colour = snapshots.filter(dataset=name), _colour("dataset", name)
        called = _dataset_name(zoo, own, name)
        final = own.filter(is_final=True)["psnr"].astype(np.float64)
        median = np.nanmedian(final) if len(final) else np.nan
        label = f"{called}: median {median:.1f} dB"
        left.hist(final[np.isfinite(final)], 40, color=colour, alpha=0.7, label=label)
        epochs = np.unique(own["epoch"])
        means = [np.nanmean(own.filter(epoch=int(e))["psnr"].astype(np.float64)) for e in epochs]
        right.plot(epochs + 1, means, color=colour, marker="o", label=called)
    left.set(xlabel="PSNR of the final network, dB", ylabel="networks")
    left.legend(frameon=False, fontsize="small")
    right.set(xlabel="steps of training + 1", ylabel="mean PSNR, dB", xscale="log")
    right.grid(color="#E6E6E6")
    return figure


def _images(zoo: Zoo) -> Figure:
    """Images as networks give them, from snapshot to snapshot, and what they represent."""
    of_images = zoo.index.filter(pc.is_valid(zoo.index["image"]))
    final = Snapshots(of_images).filter(is_final=True)
    chosen = _by_model(zoo, _evenly_spaced(sorted(final["model_id"]), SHOWN_IMAGES))
    originals = _originals(zoo)
    columns = max(len(snapshots) for snapshots in chosen.values())
    figure = Figure(figsize=(1.1 * (columns + 1), 1.15 * len(chosen) + 0.4), layout="constrained")
    grid = figure.subplots(len(chosen), columns + 1, squeeze=False)
    for line, snapshots in zip(grid, chosen.values(), strict=True):
        shown = [*zoo.images(snapshots), originals(snapshots[0])]
        titles = [f"{s['epoch']}: {_decibel(s['psnr'])}" for s in snapshots] + ["image"]
        for axes in line:
            axes.set_axis_off()
        for axes, pixels, title in zip(line, shown, titles, strict=False):
            if pixels is not None:
                axes.imshow(pixels.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
                axes.set_title(title, fontsize=7)
    figure.suptitle("Steps and PSNR, then the image itself", fontsize=STYLE["axes.titlesize"])
    return figure


def _decibel(psnr: float | None) -> str:
    return "perfect" if psnr is None else f"{psnr:.1f} dB"


def _originals(zoo: Zoo) -> Callable[[Mapping[str, Any]], np.ndarray | None]:
    """Gives the image of a snapshot, [C, H, W] uint8; None where the image set is not at hand."""
    sets: dict[str, np.ndarray | None] = {}

    def original(snapshot: Mapping[str, Any]) -> np.ndarray | None:
        name = snapshot["dataset"]
        if name not in sets:
            try:
                found = load_image_set(name, remembered_images(Path(zoo.name)))
                sets[name] = np.concatenate([found.train_images, found.test_images])
            except ZooError:  # drawn on another machine than it was built on
                sets[name] = None
        images = sets[name]
        if images is None:
            return None
        if not 0 <= snapshot["image"] < len(images):
            expected, number = f"an image of {name}, 0 to {len(images) - 1}", str(snapshot["image"])
            raise ZooError(snapshot["model_id"], expected=expected, found=number, do="build it again")
        one = images[snapshot["image"]][None]
        pixels: np.ndarray = prepare(one, snapshot["image_channels"], snapshot["image_size"])[0]
        return pixels

    return original


def _distribution(axes: Axes, final: Snapshots, name: str, colour: str) -> None:
    """Draw a histogram of the networks that converged, stacked on those that did not."""
    accuracy_M, converged_M = final["test_accuracy"], final["converged"]
    parts = [accuracy_M[~converged_M], accuracy_M[converged_M]]
    axes.hist(parts, BINS, stacked=True, color=[GREY, colour])
    axes.set_title(
        f"{name}: {converged_M.sum()} of {len(final)} converged", loc="left", fontsize=STYLE["font.size"]
    )
    axes.set(xlim=(0, 1))
    axes.set_xticks(TICKS, _percent(TICKS))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))


def _curve(axes: Axes, snapshots: Snapshots, name: str, colour: str) -> None:
    """Draw mean accuracy over epochs, linear between snapshots; a stopped network keeps its last accuracy."""
    order = [("model_id", "ascending"), ("snapshot", "ascending")]
    ordered = Snapshots(snapshots.table.sort_by(order))
    starts = np.flatnonzero(ordered["snapshot"] == 1)
    epochs, accuracies = (np.split(ordered[column], starts[1:]) for column in ("epoch", "test_accuracy"))
    first, last = ordered["epoch"].min(), ordered["epoch"].max()
    epochs_E = np.unique(np.linspace(first, last, CURVE_POINTS).round())
    curves_ME = np.array(
        [
            np.interp(epochs_E, epoch_S, accuracy_S)
            for epoch_S, accuracy_S in zip(epochs, accuracies, strict=True)
        ]
    )
    axes.plot(epochs_E, curves_ME.mean(0), color=colour, linewidth=2, label=name)


# Weights


def _weights(zoo: Zoo) -> Figure:
    """Draw the size of three layers' weights after training against before, by initialization."""
    final = _finite(zoo)
    names = _present(final.table, "initialization")
    # two snapshots per network, shared equally among initializations
    share = max(1, SAMPLED_SNAPSHOTS // 2 // len(names))
    chosen = [
        identifier
        for name in names
        for identifier in _evenly_spaced(sorted(final.filter(initialization=name)["model_id"]), share)
    ]
    models = _by_model(zoo, chosen)
    # [M, 2, 3]
    sizes = {
        name: _ends(
            zoo, [snapshots for snapshots in models.values() if snapshots[0]["initialization"] == name]
        )
        for name in names
    }
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    grid = figure.subplots(1, len(LAYERS), sharex=True, sharey=True)
    limits = _decades(np.concatenate(list(sizes.values())))
    for layer, (axes, title) in enumerate(zip(grid, _titles(zoo), strict=True)):
        for name, sizes_M23 in sizes.items():
            index = _index("initialization", name)
            look: Any = {"color": COLOURS[index], "marker": MARKERS[index % len(MARKERS)], "label": name}
            axes.scatter(
                *np.clip(sizes_M23[:, :, layer], *limits).T, 22, alpha=0.7, linewidths=0, zorder=2, **look
            )
        axes.plot(limits, limits, color=GREY, linewidth=1, zorder=1)
        axes.set(title=title, xscale="log", yscale="log", xlim=limits, ylim=limits, xlabel="before training")
        axes.grid(color="#EEEEEE")
    grid[0].set_ylabel("after training")
    columns = len(names) if len(names) <= 4 else -(-len(names) // 2)
    figure.legend(
        *grid[0].get_legend_handles_labels(),
        frameon=False,
        loc="outside lower center",
        ncols=columns,
        handletextpad=0.2,
    )
    figure.suptitle(
        f"Root mean square of a layer's weights (networks shown: {len(models)}; line: unchanged; on the "
        "edge: beyond it)",
        fontsize=STYLE["axes.titlesize"],
    )
    return figure


def _trajectories(zoo: Zoo) -> Figure:
    """Draw the distance of three layers' weights from their start, by epoch and final accuracy."""
    final = _finite(zoo)
    score = "psnr" if final.table["test_accuracy"].null_count else "test_accuracy"
    ranked = final.table.sort_by([(score, "ascending"), ("model_id", "ascending")])["model_id"].to_pylist()
    low, high = (0.0, 1.0) if score == "test_accuracy" else _range(final[score])
    models = _by_model(
        zoo, _evenly_spaced(ranked, max(1, SAMPLED_SNAPSHOTS // int(final["num_snapshots"].max())))
    )
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    grid = figure.subplots(1, len(LAYERS), sharex=True, sharey=True)
    shades = ScalarMappable(Normalize(low, high), "viridis")
    for snapshots in models.values():
        distances_S3 = np.array(list(_distances(zoo, snapshots)))
        for axes, distance_S in zip(grid, distances_S3.T, strict=True):
            axes.plot(
                snapshots["epoch"],
                distance_S,
                color=shades.to_rgba(np.array(snapshots[-1][score] or high)),
                linewidth=1.2,
                alpha=0.85,
            )
    for axes, title in zip(grid, _titles(zoo), strict=True):
        unit = "steps" if score == "psnr" else "epochs"  # an epoch of one image is a step
        axes.set(title=title, yscale="log", xlabel=f"{unit} of training", xlim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.grid(color="#E6E6E6")
    grid[0].set_ylabel("distance from the start / norm at the start")
    label = "final test accuracy" if score == "test_accuracy" else "final PSNR, dB"
    bar = figure.colorbar(shades, ax=grid, label=label, pad=0.02)
    if score == "test_accuracy":
        bar.set_ticks(TICKS, labels=_percent(TICKS))
    figure.suptitle(
        f"How far a layer's weights move (networks shown: {len(models)})", fontsize=STYLE["axes.titlesize"]
    )
    return figure


def _finite(zoo: Zoo) -> Snapshots:
    """The final networks without the diverged ones (unless all diverged), which would stretch every axis."""
    return zoo.filter(is_final=True, diverged=False) or zoo.filter(is_final=True)


def _kernels(zoo: Zoo, snapshot: Mapping[str, Any]) -> list[np.ndarray]:
    """A network's weights in each of LAYERS, flattened."""
    weights_P = zoo.row(snapshot).astype(np.float64)
    kernels = [spec for spec in zoo.layout(snapshot).tensors if len(spec.units) > 1]
    convolutions = [spec for spec in kernels if len(spec.shape) == 4] or kernels[:-1]
    return [weights_P[spec.offset : spec.stop] for spec in (convolutions[0], convolutions[-1], kernels[-1])]


def _titles(zoo: Zoo) -> tuple[str, ...]:
    """What the three layers of LAYERS are called."""
    convolutional = {"cnn", "resnet"} >= set(zoo.index["kind"].unique().to_pylist())
    return LAYERS if convolutional else ("first tensor", "last hidden tensor", "output layer")


def _range(values: np.ndarray) -> tuple[float, float]:
    finite = values.astype(np.float64)
    finite = finite[np.isfinite(finite)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def _ends(zoo: Zoo, models: Sequence[Snapshots]) -> np.ndarray:
    """[M, 2, 3] the size of the weights of LAYERS before and after training."""
    return np.array(
        [
            [[_size(kernel) for kernel in _kernels(zoo, snapshots[end])] for end in (0, -1)]
            for snapshots in models
        ]
    )


def _decades(values: np.ndarray) -> tuple[float, float]:
    """Limits of a logarithmic axis around the values, without zeros and the few outliers."""
    positive = values[values > 0] if values.any() else np.ones(1)
    usual = np.quantile(positive, [0.01, 0.99]) * [0.1, 10.0]
    low, high = np.log10([max(positive.min(), usual[0]), min(positive.max(), usual[1])])
    half = max(high - low + 0.4, 2.1) / 2  # at least two decades: two labelled ticks
    return float(10 ** ((low + high) / 2 - half)), float(10 ** ((low + high) / 2 + half))


def _size(weights: np.ndarray) -> float:
    return float(np.sqrt(np.mean(weights**2)))


def _distances(zoo: Zoo, snapshots: Snapshots) -> Iterator[list[float]]:
    """For each snapshot, the distance of each of LAYERS from its start, relative to its norm there.

    nan for zero: the axis is logarithmic.
    """
    start = _kernels(zoo, snapshots[0])
    for snapshot in snapshots:
        pairs = zip(_kernels(zoo, snapshot), start, strict=True)
        yield [_size(now - first) / (_size(first) or np.nan) or np.nan for now, first in pairs]


# Shared by the figures


def _present(table: pa.Table, column: str) -> list[str]:
    """The values of a property that occur, in the order of LEGAL_VALUES."""
    found = set(pc.unique(table[column]).to_pylist())
    return [value for value in LEGAL_VALUES[column] if value in found]


def _dataset_name(zoo: Zoo, snapshots: Snapshots, dataset: str) -> str:
    """The name of these snapshots' data set."""
    return zoo.manifest.dataset_name(dataset, set(snapshots["subset"]))


def _colour(column: str, value: str) -> str:
    """The colour of a property's value: the same in every zoo."""
    return COLOURS[_index(column, value)]


def _index(column: str, value: str) -> int:
    """The index of a property's colour: values of one kind of networks have different ones."""
    return LEGAL_VALUES[column].index(value) % len(COLOURS)


def _evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """`count` evenly spaced items, or all if there are fewer."""
    indices = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in indices]


def _by_model(zoo: Zoo, identifiers: list[str]) -> dict[str, Snapshots]:
    """Each model's snapshots in order; the models in the order given."""
    snapshots = Snapshots(zoo.filter(model_id=identifiers).table.sort_by("snapshot"))
    return {identifier: snapshots.filter(model_id=identifier) for identifier in identifiers}


def _percent(ticks: Sequence[float]) -> list[str]:
    return [f"{100 * tick:.0f} %" for tick in ticks]


FIGURES: dict[str, Callable[[Zoo], Figure]] = dict(
    zip(
        (path for path in PLOTS if path != EXPLORER_PICTURE),  # which shows what is in a page
        (_overview, _accuracy, _weights, _trajectories, _images),
        strict=True,
    )
)
