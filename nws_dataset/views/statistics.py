"""Rows -> features: seven numbers per tensor that predict well how accurate a network is.

Source: Unterthiner et al. 2020, arXiv 2002.11448.

Axes: N networks, P weights, F features.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, overload

import numpy as np

from nws_dataset.errors import ValueZooError, ZooError, reason
from nws_dataset.format.recipe import LEGAL_VALUES, Recipe
from nws_dataset.networks import architecture_from_json, columns_of_architectures
from nws_dataset.networks.layout import OUTPUT, Layout, layout_of

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
# The paper says variance; its code uses the standard deviation, as we do.
STATISTICS = ("min", "q25", "median", "q75", "max", "mean", "std")
NORMS = ("l1", "l2", "spectral")  # the last for weights only
BLOCK = 128  # rows at a time
SORTED = 512  # up to so many numbers numpy sorts within registers, many times faster
# a run's quantile is searched within so many standard deviations of the whole's; misses are sorted plainly
WINDOW_DEVIATIONS = 4.5
SQUARED = (1e-15, 1e18)  # differences whose squares fit into float32
# Numbers of a recipe whose ratios matter: taken as logarithms. Zero means absent, and becomes NaN.
LOGARITHMIC = ("learning_rate", "batch_size", "init_std", "l2", "train_fraction", "width_conv", "width_fc")
Features = tuple[np.ndarray, list[str]]  # [N, F], and the F names


def statistics(
    rows: np.ndarray, layout: Layout, *, layers: Collection[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Minimum, quartiles, maximum, mean and standard deviation of every tensor.

    Args:
        rows: [N, P] weights of one architecture, finite.
        layout: that architecture's layout.
        layers: names of the layers to describe, from `layout.layers`; None for all.

    Returns:
        features [N, F] in float64, and their F names, `<tensor>.<statistic>` in network order. Quantiles are
        interpolated linearly, as numpy's.

    Raises:
        ZooError: for a layer that the layout does not have, or a weight that is not finite.

    Example:
        >>> from nws_dataset import Architecture
        >>> from nws_dataset.networks.layout import layout_of
        >>> layout = layout_of(Architecture(batch_norm=False))
        >>> rows = np.ones((2, layout.num_weights), np.float32)
        >>> features, names = statistics(rows, layout, layers=["output"])
        >>> features.shape, names[0], names[-1]
        ((2, 14), 'output.weight.min', 'output.bias.std')
    """
    missing = sorted(set(layers or ()) - set(layout.layers))
    if missing:
        raise ZooError(
            "layers",
            expected="layers of " + ", ".join(layout.layers),
            found=", ".join(missing),
            do="name layers of this architecture",
        )
    specs = [spec for spec in layout.tensors if layers is None or spec.layer in layers]
    rows = _checked(rows, layout)
    features = np.empty((len(rows), len(specs), len(STATISTICS)))
    for start in range(0, len(rows), BLOCK):
        for i, spec in enumerate(specs):
            features[start : start + BLOCK, i] = _describe(
                rows[start : start + BLOCK, spec.offset : spec.stop], spec.name
            )
    return features.reshape(len(rows), len(specs) * len(STATISTICS)), [
        f"{spec.name}.{statistic}" for spec in specs for statistic in STATISTICS
    ]


def whole_vector_statistics(rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The same seven statistics of the whole row.

    Args:
        rows: [N, P] weights of one architecture, finite.

    Returns:
        features [N, 7] in float64, and their names.

    Raises:
        ZooError: for a weight that is not finite.

    Example:
        >>> features, names = whole_vector_statistics(np.array([[0.0, 1.0, 2.0, 3.0, 4.0]]))
        >>> dict(zip(names, features[0].round(2).tolist()))
        {'row.min': 0.0, 'row.q25': 1.0, 'row.median': 2.0, 'row.q75': 3.0, 'row.max': 4.0, 'row.mean': 2.0,
        'row.std': 1.41}
    """
    rows = _checked(rows)
    blocks = [_describe(rows[start : start + BLOCK], "row") for start in range(0, len(rows), BLOCK)]
    return np.concatenate([np.empty((0, len(STATISTICS))), *blocks]), [
        f"row.{statistic}" for statistic in STATISTICS
    ]


def norms(rows: np.ndarray, layout: Layout) -> Features:
    """L1 and L2 (Frobenius) norms of every tensor, and the spectral norm of every weight [out, the rest].

    Args:
        rows: [N, P] weights of one architecture, finite.
        layout: that architecture's layout.

    Returns:
        features [N, F] in float64, and their F names, `<tensor>.<norm>` in network order.

    Raises:
        ZooError: for a weight that is not finite.

    Example:
        >>> from nws_dataset import Architecture
        >>> from nws_dataset.networks.layout import layout_of
        >>> layout = layout_of(Architecture(batch_norm=False))
        >>> features, names = norms(np.ones((1, layout.num_weights), np.float32), layout)
        >>> dict(zip(names, features[0].round(2).tolist()))["output.weight.spectral"]  # sqrt(640)
        25.3
    """
    rows = _checked(rows, layout)
    columns: dict[str, np.ndarray] = {}
    for spec in layout.tensors:
        values = rows[:, spec.offset : spec.stop].astype(np.float64)
        _check_finite(values, spec.name)
        columns[f"{spec.name}.l1"] = np.abs(values).sum(axis=1)
        columns[f"{spec.name}.l2"] = np.sqrt(np.einsum("np,np->n", values, values))
        if spec.role == "weight":
            columns[f"{spec.name}.spectral"] = _spectral(
                values.reshape(len(rows), spec.shape[0], spec.size // spec.shape[0])
            )
    return np.column_stack(list(columns.values())), list(columns)


def _spectral(matrices: np.ndarray) -> np.ndarray:
    """The largest singular values [N] of matrices [N, out, in], from Gram matrices, faster than an SVD."""
    shorter = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.swapaxes(1, 2)
    return np.sqrt(np.linalg.eigvalsh(shorter @ shorter.swapaxes(1, 2))[:, -1].clip(0))


def _describe(values: np.ndarray, name: str) -> np.ndarray:
    """STATISTICS [N, 7] of [N, n] values along the last axis."""
    position = np.array(QUANTILES) * (values.shape[1] - 1)
    below = np.floor(position).astype(np.intp)
    low, high = _neighbours(values, below.tolist())
    # sorting puts infinities at the ends, NaN last
    _check_finite(np.stack([low[:, 0], high[:, -1]], axis=1), name)
    quantiles = low + (high - low) * (position - below)
    mean = values.mean(axis=1, dtype=np.float64)
    spread = high[:, -1] - low[:, 0]
    if not SQUARED[0] < spread.min() <= spread.max() < SQUARED[1]:
        values = values.astype(np.float64)
    centered = values - mean[:, None].astype(values.dtype)
    np.square(centered, out=centered)
    return np.column_stack([quantiles, mean, np.sqrt(centered.mean(axis=1, dtype=np.float64))])


def _neighbours(values: np.ndarray, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Order statistics: the numbers at `indices` of each sorted line of [N, n] values, and the next ones.

    Each is [N, indices]; the last number is its own next one. A long line is dealt into R runs, which are
    sorted. A number at an index of the whole line is then near the same relative index of every run, so only
    these windows are sorted together. If a window is too narrow, the whole line is sorted.
    """
    num_values = values.shape[1]
    if num_values <= SORTED:
        ordered = np.sort(values, axis=1)
        return tuple(
            ordered[:, at].astype(np.float64)
            for at in (indices, np.minimum(np.add(indices, 1), num_values - 1))
        )  # type: ignore[return-value]
    # odd, so that runs are not columns of a tensor with even sides
    num_runs = -(-num_values // SORTED) | 1
    length, rest = divmod(num_values, num_runs)
    dealt = values[:, : num_values - rest].reshape(len(values), length, num_runs)
    runs = np.ascontiguousarray(dealt.swapaxes(1, 2))  # [N, R, length]
    runs.sort(axis=2)
    rest_of_line = values[:, num_values - rest :]
    found = np.empty((2, len(values), len(indices)))
    for i, index in enumerate(indices):
        part = index / (num_values - 1)
        half = math.ceil(WINDOW_DEVIATIONS * math.sqrt(length * part * (1 - part))) + 1
        start, stop = max(0, int(part * length) - half), min(length, int(part * length) + half + 1)
        window = np.concatenate([runs[:, :, start:stop].reshape(len(values), -1), rest_of_line], axis=1)
        pair = np.concatenate(_neighbours(window, [index - start * num_runs]), axis=1)
        narrow = np.zeros(len(values), bool)
        if start:
            narrow |= runs[:, :, start - 1].max(axis=1) > pair[:, 0]
        if stop < length:
            narrow |= runs[:, :, stop].min(axis=1) < pair[:, 1]
        if narrow.any():
            pair[narrow] = np.sort(values[narrow], axis=1)[:, [index, min(index + 1, num_values - 1)]]
        found[:, :, i] = pair.T
    return found[0], found[1]


def _checked(rows: Any, layout: Layout | None = None) -> np.ndarray:
    """Rows of a layout (None: of any) as an array [N, P] of real numbers, checked."""
    try:
        found = np.asarray(rows)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU
        raise ValueZooError(
            "rows", expected="an array [N, P] of numbers", found=reason(error), do="give one as numpy has it"
        ) from error
    if (
        found.dtype.kind not in "fiu"
        or found.ndim != 2
        or found.shape[1] != (layout.num_weights if layout else max(1, found.shape[1]))
    ):
        expected, shown = (
            f"numbers [N, {layout.num_weights if layout else 'P'}]",
            (f"{list(found.shape)} of {found.dtype}"),
        )
        raise ValueZooError(
            "rows", expected=expected, found=shown, do="give rows of this layout's architecture"
        )
    return found


def _check_finite(values: np.ndarray, name: str) -> None:
    """Raise a ZooError that names the first row of [N, n] values with one that is not finite."""
    finite = np.isfinite(values)
    if not finite.all():
        where = f"{name}, row {int(np.flatnonzero(~finite.all(axis=1))[0])} of its block"
        raise ZooError(
            where,
            expected="finite weights",
            found="NaN or infinity",
            do="leave the network out or rebuild it",
        )


@overload
def zoo_features(zoo: Any, snapshots: Any, feature_set: str, *, threads: int | None = None) -> Features: ...
@overload
def zoo_features(
    zoo: Any, snapshots: Any, feature_set: Sequence[str], *, threads: int | None = None
) -> dict[str, Features]: ...
def zoo_features(
    zoo: Any, snapshots: Any, feature_set: str | Sequence[str], *, threads: int | None = None
) -> Features | dict[str, Features]:
    """Features of snapshots of any architectures, in one pass over the files.

    Tensors are aligned by their role: convolutions are counted from the input (`conv1`), hidden dense layers
    from the output (`dense-1` is the last one). Features that an architecture lacks are NaN.

    Args:
        zoo: a `Zoo`.
        snapshots: lines of its index (`zoo.filter(...)`).
        feature_set: one or several of "layers" (statistics of every tensor), "whole" (of the whole row),
            "norms" (of every tensor), "weights" (the rows, of one layout only) and "hyperparameters" (the
            recipe; reads no weights).
        threads: to compute features; None is one per core. The result does not depend on it.

    Returns:
        features [N, F] in float64 (weights: float32), in the order of snapshots, and their F names; for
        several sets a dict from each to these. Only a few stacks of rows (2 MiB each) are in memory at once.

    Raises:
        ZooError: for another feature set, a weight that is not finite, or weights of several layouts.

    Example:
        >>> from nws_dataset import Zoo
        >>> zoo = Zoo("nws")
        >>> features, names = zoo_features(zoo, zoo.filter(is_final=True), "layers")
        >>> features.shape, names[:2]
        ((10, 224), ['conv1.weight.min', 'conv1.weight.q25'])
    """
    feature_sets = [feature_set] if isinstance(feature_set, str) else list(feature_set)
    for name in feature_sets:
        if name not in FEATURE_SETS:
            raise ZooError(
                "feature_set", expected=" or ".join(FEATURE_SETS), found=repr(name), do="choose one of them"
            )
    features = {name: hyperparameters(snapshots) for name in feature_sets if name == "hyperparameters"}
    features |= _read_features(
        zoo,
        snapshots,
        [name for name in feature_sets if name != "hyperparameters"],
        threads or os.cpu_count() or 1,
    )
    return features[feature_set] if isinstance(feature_set, str) else features


def _read_features(
    zoo: Any, snapshots: Any, feature_sets: Sequence[str], threads: int
) -> dict[str, Features]:
    """Features of the feature sets that need weights."""
    texts = np.asarray(snapshots["architecture_json"])
    layouts = {text: layout_of(architecture_from_json(text)) for text in dict.fromkeys(texts.tolist())}
    if "weights" in feature_sets and len(set(layouts.values())) > 1:
        found = f"{len(set(layouts.values()))} layouts"
        raise ZooError(
            "snapshots",
            expected="networks of one layout",
            found=found,
            do="filter by architecture, or choose another feature set",
        )
    matrices = {
        feature_set: _FeatureMatrix.of(feature_set, layouts, len(snapshots)) for feature_set in feature_sets
    }
    indices = {text: np.flatnonzero(texts == text) for text in layouts}

    def describe(text: str, chosen: np.ndarray, weights: np.ndarray) -> None:
        for feature_set, matrix in matrices.items():
            matrix.values[np.ix_(chosen, matrix.columns[text])] = DESCRIBE[feature_set](
                weights, layouts[text]
            )[0]

    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[None]] = deque()
        for stack, weights in zoo.stacks(snapshots) if feature_sets else ():
            text = stack[0]["architecture_json"]
            chosen, indices[text] = np.split(indices[text], [len(weights)])
            running.append(pool.submit(describe, text, chosen, weights))
            if len(running) > 2 * threads:  # rows that are read stay in memory: do not read too far ahead
                running.popleft().result()
        for future in running:
            future.result()
    return {feature_set: (matrix.values, matrix.names) for feature_set, matrix in matrices.items()}


@dataclasses.dataclass(frozen=True)
class _FeatureMatrix:
    """A matrix of features while it is filled."""

    names: list[str]  # [F], aligned
    columns: dict[str, np.ndarray]  # architecture -> the indices of its features among names
    values: np.ndarray  # [N, F]

    @classmethod
    def of(cls, feature_set: str, layouts: dict[str, Layout], num_snapshots: int) -> _FeatureMatrix:
        own = {}
        for text, layout in layouts.items():
            zeros = np.zeros((1, layout.num_weights), np.float32)
            own[text] = _aligned(DESCRIBE[feature_set](zeros, layout)[1], layout)
        names = sorted(dict.fromkeys(name for text in own for name in own[text]), key=_network_order)
        index = {name: i for i, name in enumerate(names)}
        columns = {text: np.array([index[name] for name in own[text]], np.intp) for text in own}
        return cls(
            names,
            columns,
            np.full(
                (num_snapshots, len(names)), np.nan, np.float32 if feature_set == "weights" else np.float64
            ),
        )


def _weights(rows: np.ndarray, layout: Layout) -> Features:
    """The rows themselves."""
    return rows, _weight_names(layout)


@functools.cache
def _weight_names(layout: Layout) -> list[str]:
    return [f"{spec.name}.{i}" for spec in layout.tensors for i in range(spec.size)]


DESCRIBE: dict[str, Callable[[np.ndarray, Layout], Features]] = {
    "layers": statistics,
    "whole": lambda rows, layout: whole_vector_statistics(rows),
    "norms": norms,
    "weights": _weights,
}  # the feature sets that need weights
FEATURE_SETS = (*DESCRIBE, "hyperparameters")


def hyperparameters(snapshots: Any) -> tuple[np.ndarray, list[str]]:
    """The recipe as features: fields with legal values one-hot, numbers plain, or as log10 if LOGARITHMIC.

    Args:
        snapshots: lines of a zoo's index, or any mapping from a column's name to its values.

    Returns:
        features [N, F] in float64 and their F names; null is NaN. Names do not depend on the snapshots, so
        zoos can be compared.

    Example:
        >>> from nws_dataset import Architecture
        >>> from nws_dataset.format.recipe import Recipe
        >>> columns = Recipe(Architecture(), "mnist", 0.001, 32, "adam", "relu", "constant").columns()
        >>> features, names = hyperparameters({name: np.array([value]) for name, value in columns.items()})
        >>> [features[0, names.index(name)].item() for name in ("optimizer=adam", "log10(learning_rate)")]
        [1.0, -3.0]
    """
    columns: dict[str, np.ndarray] = {}
    for name in _recipe_fields():
        values = np.asarray(snapshots[name])
        if name in LEGAL_VALUES:
            columns.update(
                {f"{name}={legal}": (values == legal).astype(np.float64) for legal in LEGAL_VALUES[name]}
            )
        elif name in LOGARITHMIC:
            numbers = _numbers(values)
            columns[f"log10({name})"] = np.log10(numbers, out=np.full(len(values), np.nan), where=numbers > 0)
        else:
            columns[name] = _numbers(values)
    return np.column_stack(list(columns.values())), list(columns)


def _numbers(values: np.ndarray) -> np.ndarray:
    """Numbers, booleans or None as float64, None as NaN."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _recipe_fields() -> list[str]:
    recipe = [field.name for field in dataclasses.fields(Recipe) if field.name != "architecture"]
    return [*recipe, *columns_of_architectures()]


def _aligned(names: Iterable[str], layout: Layout) -> list[str]:
    """Names of features with dense layers counted from the output: the last of three, dense3, is dense-1."""
    dense = [layer for layer in layout.layers if layer.startswith("dense")]
    aligned = {layer: f"dense-{len(dense) - i}" for i, layer in enumerate(dense)}

    def rename(name: str) -> str:
        module, rest = name.split(".", 1)
        layer, norm, _ = module.partition("_norm")
        return f"{aligned.get(layer, layer)}{norm}.{rest}"

    return [rename(name) for name in names]


def _network_order(name: str) -> tuple[int, int]:
    """A key that sorts aligned names by layer, from input to output."""
    layer = name.split(".", 1)[0].removesuffix("_norm")
    if layer.startswith("conv"):
        return 0, int(layer.removeprefix("conv"))
    if layer.startswith("dense"):
        return 1, int(layer.removeprefix("dense"))
    return (2 if layer == OUTPUT else 3), 0
