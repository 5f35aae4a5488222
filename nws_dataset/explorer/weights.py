"""What a page shows of weights: principal components, histograms, images and edges, most of them of a sample.

Axes: M models, S snapshots of a model, N networks that are read, P weights, F features, T tensors, B bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nws_dataset.explorer.contents import SEED, Shown, number_field
from nws_dataset.explorer.packing import pack, pack_codes, quantize
from nws_dataset.networks.layout import layout_of
from nws_dataset.views.statistics import zoo_features

if TYPE_CHECKING:
    from nws_dataset.reading.zoo import Zoo

LEAST_SOUND = 3  # networks that did not diverge, for components of statistics
LEAST_MODELS = 50  # of an architecture whose weights are projected
FITTED_MODELS = 2000  # whose weights give the principal components, at most
MAX_BYTES = 512 << 20  # of weights that are read for the components, or of scores of edges
MAX_FITTED_BYTES = 256 << 20  # of weights that the components of an architecture are computed from
PART_BYTES = 16 << 20  # of weights that are read at a time
SAMPLED_MODELS = 200  # whose histograms, images and edges are shown, at most
SAMPLED_SNAPSHOTS = 5  # of each of them
BINS = 40
HISTOGRAM_VALUES = 400_000  # on a page
PIXELS = 600_000  # of images on a page
SUBSPACE, ITERATIONS = 20, 30  # of the search for principal axes
CLIP = 5.0  # standard deviations
NOT_DRAWN = ("bias", "norm_weight", "norm_bias", "norm_mean", "norm_variance")  # roles of few numbers
Advance = Callable[[float], None]


def sample(count: int, most: int) -> np.ndarray:
    """`most` of the numbers below `count`, or all, in order; the same whenever it is called."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, most, replace=False))


def by_architecture(shown: Shown, models: np.ndarray) -> Iterator[np.ndarray]:
    """The models of each architecture, in the order of the first."""
    texts = shown.final["architecture_json"][models]
    groups: dict[str, list[int]] = {}
    for model, text in zip(models.tolist(), texts.tolist(), strict=True):
        groups.setdefault(text, []).append(model)
    for group in groups.values():
        yield np.array(group)


def parts(models: np.ndarray, bytes_each: int) -> list[np.ndarray]:
    """Models in parts that are read at once."""
    size = max(1, PART_BYTES // bytes_each)
    return [models[start : start + size] for start in range(0, len(models), size)]


def principal_axes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two principal axes of [N, F] numbers.

    Returns:
        The mean [F], the axes [F, 2], each of length 1, and their shares of the variance [2]. The largest
        entry of each axis is positive.

    Example:
        >>> mean, axes, shares = principal_axes(np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]))
        >>> mean, axes[:, 0], shares
        (array([2., 1.]), array([1., 0.]), array([1., 0.]))
    """
    mean = values.mean(0)
    centred = values - mean
    centred /= max(float(np.abs(centred).max(initial=0)), np.finfo(centred.dtype).tiny)  # squares stay finite
    wide = centred.shape[1] > centred.shape[0]
    found, variances = top_eigenvectors(centred @ centred.T if wide else centred.T @ centred)
    if wide:
        found = centred.T @ found.astype(centred.dtype)
        found /= np.maximum(np.linalg.norm(found, axis=0), np.finfo(found.dtype).tiny)
    axes = np.zeros((centred.shape[1], 2), found.dtype)
    axes[:, : found.shape[1]] = found
    axes *= np.where(axes[np.abs(axes).argmax(0), [0, 1]] < 0, -1, 1)
    shares = np.zeros(2)
    total = float(np.square(centred, dtype=np.float64).sum())
    shares[: len(variances)] = np.maximum(variances, 0) / total if total else 0
    return mean, axes, shares


def top_eigenvectors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvectors [n, 2] of the two largest eigenvalues [2] of a symmetric matrix [n, n] without
    negative ones, by subspace iteration: numpy alone would compute all n, which takes seconds.

    Example:
        >>> vectors, values = top_eigenvectors(np.diag([1.0, 3.0, 2.0]))
        >>> abs(vectors.T).round(6), values.round(6)
        (array([[0., 1., 0.],
               [0., 0., 1.]]), array([3., 2.]))
    """
    matrix = matrix.astype(np.float64)
    size = min(len(matrix), SUBSPACE)
    basis = np.random.default_rng(SEED).standard_normal((len(matrix), size))
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(matrix @ basis)[0]
    values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
    return basis @ vectors[:, ::-1][:, :2], values[::-1][:2]


def components_of(zoo: Zoo, shown: Shown, models: np.ndarray, advance: Advance) -> dict[str, Any]:
    """Principal components of statistics, and of weights, of some models' last snapshots.

    Statistics are those of the whole row and of the tensors that all these architectures have, each less its
    mean and divided by its standard deviation, then cut to +-CLIP. Weights are compared within architectures
    of at least LEAST_MODELS models: the axes are those of at most FITTED_MODELS, on which all are projected.
    Networks that diverged are only projected: a single one would outweigh all others.

    Returns:
        `statistics`: the coordinates [2, M], NaN for models that were not read, `shares` [2] of the variance,
        the numbers of features and of models; None for fewer than LEAST_SOUND sound networks. `weights`: the
        coordinates [2, M], and for each architecture its name, the number of models, of those fitted, and the
        shares.
    """
    features: list[tuple[np.ndarray, np.ndarray, list[str]]] = []
    weights_M2, fits = np.full((len(shown), 2), np.nan), []
    diverged = shown.final["diverged"]
    for group in by_architecture(shown, models):
        architecture = zoo.architecture(shown.final[int(group[0])])
        bytes_each = 4 * layout_of(architecture).num_weights
        sound = group[~diverged[group]]
        fitted = sound[sample(len(sound), min(FITTED_MODELS, MAX_FITTED_BYTES // bytes_each))]
        axes = None
        if len(fitted) >= LEAST_MODELS:
            mean, axes, shares = principal_axes(zoo.weights(shown.final[fitted]))
            fits.append(
                {
                    "architecture": architecture.id,
                    "models": len(group),
                    "fitted": len(fitted),
                    "shares": shares.tolist(),
                }
            )
        for part in parts(group, bytes_each):
            found = zoo_features(zoo, shown.final[part], ("layers", "whole"))
            names = [name for _, of_set in found.values() for name in of_set]
            features.append((part, np.hstack([values for values, _ in found.values()]), names))
            if axes is not None:
                with np.errstate(over="ignore", invalid="ignore"):
                    weights_M2[part] = (zoo.weights(shown.final[part]) - mean) @ axes
            advance(len(part))
        if axes is not None:
            weights_M2[group] = _within(weights_M2[group], ~diverged[group])
    return {
        "statistics": _statistics(features, diverged),
        "weights": {"coordinates": quantize(weights_M2.T), "architectures": fits},
    }


def _statistics(
    features: Sequence[tuple[np.ndarray, np.ndarray, list[str]]], diverged: np.ndarray
) -> dict[str, Any] | None:
    """Principal components of the features that all parts of the models have in common."""
    common = [name for name in features[0][2] if all(name in names for _, _, names in features)]
    values = np.vstack([found[:, [names.index(name) for name in common]] for _, found, names in features])
    models = np.concatenate([part for part, _, _ in features])
    sound = ~diverged[models]
    if sound.sum() < LEAST_SOUND:
        return None
    spread = values[sound].std(0)
    varies = spread > 0
    if not varies.any():
        return None
    values = ((values - values[sound].mean(0))[:, varies] / spread[varies]).clip(-CLIP, CLIP)
    mean, axes, shares = principal_axes(values[sound])
    coordinates = np.full((len(diverged), 2), np.nan)
    coordinates[models] = _within((values - mean) @ axes, sound)
    return {
        "coordinates": quantize(coordinates.T),
        "shares": shares.tolist(),
        "features": values.shape[1],
        "models": len(models),
    }


def _within(coordinates: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Coordinates [N, 2], cut to the range of the sound networks [N]: others far away would hide these."""
    return np.nan_to_num(coordinates).clip(coordinates[sound].min(0), coordinates[sound].max(0))


def read_models(zoo: Zoo, shown: Shown) -> np.ndarray:
    """The models whose last weights are read: all, or a sample of MAX_BYTES."""
    count = len(shown)
    mean_bytes = 4 * float(np.mean(shown.final["num_weights"]))
    return sample(count, max(1, int(MAX_BYTES / mean_bytes)))


def sampled_models(shown: Shown) -> np.ndarray:
    """The models that are shown in detail."""
    num_snapshots = min(SAMPLED_SNAPSHOTS, shown.at.shape[1])
    mean_bytes = 4 * float(np.mean(shown.final["num_weights"])) * num_snapshots
    return sample(len(shown), max(1, min(SAMPLED_MODELS, int(MAX_BYTES / mean_bytes))))


def snapshots_of(shown: Shown, models: np.ndarray) -> np.ndarray:
    """Places on the axis S that are shown of each model [N, K], first and last among them.

    A model with fewer snapshots has its last one several times.
    """
    count = min(SAMPLED_SNAPSHOTS, shown.at.shape[1])
    return np.rint(shown.last[models][:, None] * np.linspace(0, 1, count)).astype(np.int64)


def histograms_of(zoo: Zoo, shown: Shown, models: np.ndarray, advance: Advance) -> list[dict[str, Any]]:
    """Histograms of the tensors of sampled models over training, for each architecture.

    Returns:
        `models` [N], `snapshots` [N, K] on the axis S, `tensors` [T], `ranges` [N, T, 2], and `counts` [N, T,
        K, B], as 255ths of the highest of a tensor.
    """
    found = []
    for group in by_architecture(shown, models):
        layout = layout_of(zoo.architecture(shown.final[int(group[0])]))
        specs = [spec for spec in layout.tensors if spec.role not in NOT_DRAWN and spec.size > 1]
        places = snapshots_of(shown, group)
        num_snapshots = places.shape[1]
        room = HISTOGRAM_VALUES * len(group) // len(models)
        group = group[: max(1, room // max(1, len(specs) * num_snapshots * BINS))]
        places = places[: len(group)]
        ranges = np.zeros((len(group), len(specs), 2), np.float32)
        counts = np.zeros((len(group), len(specs), num_snapshots, BINS), np.uint8)
        done = 0
        for part in parts(group, 4 * layout.num_weights * num_snapshots):
            lines = shown.at[part[:, None], places[done : done + len(part)]]
            rows = zoo.weights(shown.lines[lines.ravel()]).reshape(len(part), num_snapshots, -1)
            for t, spec in enumerate(specs):
                values = rows[:, :, spec.offset : spec.stop]
                for n in range(len(part)):
                    ranges[done + n, t], counts[done + n, t] = histogram(values[n])
            done += len(part)
            advance(len(part))
        found.append(
            {
                "models": pack_codes(group),
                "snapshots": pack_codes(places),
                "tensors": [spec.name for spec in specs],
                "ranges": pack(ranges),
                "counts": pack(counts),
            }
        )
    return found


def histogram(values: np.ndarray) -> tuple[tuple[float, float], np.ndarray]:
    """Histograms of [K, n] finite numbers with common bins.

    Returns:
        The lowest and highest number, and [K, B] counts as 255ths of the highest.

    Example:
        >>> (low, high), counts = histogram(np.array([[0.0, 1.0], [0.0, 0.0]]))
        >>> low, high, counts[:, 0], counts[:, -1]
        (0.0, 1.0, array([128, 255], dtype=uint8), array([128,   0], dtype=uint8))
    """
    low, high = float(values.min()), float(values.max())
    width = (high - low) or 1.0
    bins = np.minimum(((values - low) / width * BINS).astype(np.int64), BINS - 1)
    bins += BINS * np.arange(len(values))[:, None]
    counts = np.bincount(bins.ravel(), minlength=BINS * len(values)).reshape(len(values), BINS)
    return (low, high), np.rint(counts * (255 / counts.max())).astype(np.uint8)


def images_of(zoo: Zoo, shown: Shown, models: np.ndarray, advance: Advance) -> list[dict[str, Any]]:
    """Images of sampled models that represent one, over training; needs torch.

    Returns:
        For each architecture `models` [N], `snapshots` [N, K] on the axis S, and `pixels` [N, K, C, H, W].
    """
    found = []
    for group in by_architecture(shown, models):
        architecture = zoo.architecture(shown.final[int(group[0])])
        places = snapshots_of(shown, group)
        numbers = architecture.image_channels * architecture.image_size**2 * places.shape[1]
        group = group[: PIXELS * len(group) // len(models) // numbers]
        if architecture.reads != "coordinates" or not len(group):
            continue
        places = places[: len(group)]
        pixels = []
        for start in range(0, len(group), 8):
            part = group[start : start + 8]
            lines = shown.at[part[:, None], places[start : start + 8]]
            images = zoo.images(shown.lines[lines.ravel()])
            pixels.append(images.reshape(len(part), places.shape[1], *images.shape[1:]))
            advance(len(part))
        found.append(
            {
                "models": pack_codes(group),
                "snapshots": pack_codes(places),
                "pixels": pack(np.concatenate(pixels)),
            }
        )
    return found


def edges_of(
    zoo: Zoo, shown: Shown, models: np.ndarray, advance: Advance
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Edges of the last snapshots of networks whose edges have scores.

    Returns:
        A field `kept_edges`, the share of a model's edges that are kept, if any has some; and for each
        architecture of the sampled models `models` [N], `layers` (their name, outputs and inputs), `channels`
        and `side` of the images that it reads, and `kept` [N, E / 8], a bit for each edge.
    """
    thresholds = shown.final["edge_threshold"]
    with_edges = np.flatnonzero(np.isfinite(thresholds))
    shares, found = np.full(len(shown), np.nan), []
    for group in by_architecture(shown, with_edges):
        architecture = zoo.architecture(shown.final[int(group[0])])
        specs = architecture.edge_scores()
        if not specs:
            continue
        sampled = np.intersect1d(group, models)
        bytes_each = 4 * specs[-1].stop
        read = np.union1d(sampled, group[sample(len(group), max(1, MAX_BYTES // bytes_each))])
        kept = {}
        for part in parts(read, bytes_each):
            scores = zoo.edge_scores(shown.final[part])
            is_kept = scores >= thresholds[part, None]
            shares[part] = is_kept.mean(1)
            bits = np.packbits(is_kept, axis=1)
            kept.update({model: bits[n] for n, model in enumerate(part.tolist())})
            advance(len(part))
        found.append(
            {
                "models": pack_codes(sampled),
                "layers": [[spec.layer, *spec.shape] for spec in specs],
                "channels": architecture.image_channels,
                "side": architecture.image_size,
                "kept": pack(np.stack([kept[model] for model in sampled.tolist()])),
            }
        )
    if not found:
        return [], []
    about = "share of the edges that are kept: those whose score is at least edge_threshold"
    return [number_field("kept_edges", about, shares)], found
