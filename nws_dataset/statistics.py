"""Rows -> features: seven numbers a tensor, which say much about how well a network works (Unterthiner et al. 2020, arXiv 2002.11448).

Axes: N networks, P weights, F features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from nws_dataset.errors import ZooError
from nws_dataset.layout import OUTPUT, Layout
from nws_dataset.recipe import LEGAL_VALUES, Architecture, Recipe

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
# The paper says variance, its code takes the standard deviation: so do we.
STATISTICS = ("min", "q25", "median", "q75", "max", "mean", "std")
BLOCK = 256  # rows that are sorted at a time, and that are in memory at a time
KINDS = ("layers", "whole", "hyperparameters")
# Numbers of a recipe that act by their ratio. Zero has no logarithm and means that the thing is absent: NaN.
LOGARITHMIC = ("learning_rate", "batch_size", "init_std", "l2", "train_fraction", "width_conv", "width_fc")


def statistics(rows: np.ndarray, layout: Layout, *, layers: Collection[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Minimum, quartiles, maximum, mean and standard deviation of every tensor.

    Args:
        rows: [N, P] weights of one architecture, finite.
        layout: that architecture's layout.
        layers: names of the layers to describe, as `layout.layers` has them; None for all.

    Returns:
        features [N, F] in float64, and their F names, `<tensor>.<statistic>` in network order. Quantiles are numpy's (linear).

    Raises:
        ZooError: for a layer that the layout does not have, or a weight that is not finite.

    Example:
        >>> from nws_dataset.layout import layout_of
        >>> layout = layout_of(Architecture(batch_norm=False))
        >>> features, names = statistics(np.ones((2, layout.num_weights), np.float32), layout, layers=["output"])
        >>> features.shape, names[0], names[-1]
        ((2, 14), 'output.weight.min', 'output.bias.std')
    """
    missing = sorted(set(layers or ()) - set(layout.layers))
    if missing:
        raise ZooError(
            "layers", expected="layers of " + ", ".join(layout.layers), found=", ".join(missing), do="name layers of this architecture"
        )
    specs = [spec for spec in layout.tensors if layers is None or spec.layer in layers]
    names = [f"{spec.name}.{statistic}" for spec in specs for statistic in STATISTICS]
    if rows.ndim != 2 or rows.shape[1] != layout.num_weights:
        raise ZooError(
            "rows", expected=f"[N, {layout.num_weights}]", found=str(list(rows.shape)), do="give rows of this layout's architecture"
        )
    features = np.empty((len(rows), len(specs), len(STATISTICS)))
    for start in range(0, len(rows), BLOCK):
        for i, spec in enumerate(specs):
            features[start : start + BLOCK, i] = _describe(rows[start : start + BLOCK, spec.offset : spec.stop], spec.name)
    return features.reshape(len(rows), -1), names


def whole_vector_statistics(rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The same seven numbers of the whole row.

    Args:
        rows: [N, P] weights of one architecture, finite.

    Returns:
        features [N, 7] in float64, and their names.

    Raises:
        ZooError: for a weight that is not finite.

    Example:
        >>> features, names = whole_vector_statistics(np.array([[0.0, 1.0, 2.0, 3.0, 4.0]]))
        >>> dict(zip(names, features[0].round(2).tolist()))
        {'row.min': 0.0, 'row.q25': 1.0, 'row.median': 2.0, 'row.q75': 3.0, 'row.max': 4.0, 'row.mean': 2.0, 'row.std': 1.41}
    """
    blocks = [_describe(rows[start : start + BLOCK], "row") for start in range(0, len(rows), BLOCK)]
    return np.concatenate([np.empty((0, len(STATISTICS))), *blocks]), [f"row.{statistic}" for statistic in STATISTICS]


def _describe(values: np.ndarray, name: str) -> np.ndarray:
    """STATISTICS of [N, n] values along the last axis, [N, 7]; one sort gives all quantiles."""
    ordered = np.sort(values, axis=1)
    ends = ordered[:, [0, -1]]  # infinities sort to the ends, NaN to the right one
    if not np.isfinite(ends).all():
        bad = int(np.flatnonzero(~np.isfinite(ends).all(axis=1))[0])
        raise ZooError(
            f"{name}, row {bad} of its block", expected="finite weights", found="NaN or infinity", do="leave the network out or rebuild it"
        )
    position = np.array(QUANTILES) * (ordered.shape[1] - 1)
    below = np.floor(position).astype(np.intp)
    above = np.minimum(below + 1, ordered.shape[1] - 1)
    low, high = ordered[:, below].astype(np.float64), ordered[:, above].astype(np.float64)
    quantiles = low + (high - low) * (position - below)
    mean = values.mean(axis=1, dtype=np.float64)
    centered = values - mean[:, None].astype(values.dtype)
    std = np.sqrt(np.einsum("np,np->n", centered, centered, dtype=np.float64) / values.shape[1])  # as values.std, in half its memory
    return np.column_stack([quantiles, mean, std])


def zoo_features(zoo: Any, rows: Any, kind: str) -> tuple[np.ndarray, list[str]]:
    """One matrix of features for rows of any mixture of architectures.

    Tensors are aligned by what they do: convolutions are counted from the input (`conv1`), hidden dense layers back from the output
    (`dense-1` is the last one), and what an architecture does not have is NaN.

    Args:
        zoo: a `Zoo`.
        rows: rows of its index (`zoo.filter(...)`).
        kind: "layers", the statistics of every tensor; "whole", those of the whole row; "hyperparameters", the recipe (reads no weights).

    Returns:
        features [N, F] in float64, in the order of rows, and their F names. At most 256 networks' weights are in memory at a time.

    Raises:
        ZooError: for another kind, or a weight that is not finite.
    """
    if kind not in KINDS:
        raise ZooError("kind", expected=" or ".join(KINDS), found=repr(kind), do="choose one of them")
    if kind == "hyperparameters":
        return hyperparameters(rows)
    columns: dict[str, np.ndarray] = {}
    architectures = np.asarray(rows["architecture"])
    for architecture in sorted(set(architectures)):
        places = np.flatnonzero(architectures == architecture)
        stack = rows.filter(architecture=architecture)
        layout = zoo.layout(stack[0])
        for start in range(0, len(stack), BLOCK):
            weights = zoo.weights(stack[start : start + BLOCK])
            features, names = statistics(weights, layout) if kind == "layers" else whole_vector_statistics(weights)
            for name, feature in zip(_aligned(names, layout), features.T, strict=True):
                columns.setdefault(name, np.full(len(rows), np.nan))[places[start : start + BLOCK]] = feature
    names = sorted(columns, key=_network_order)
    return np.column_stack([np.empty((len(rows), 0)), *(columns[name] for name in names)]), names


def hyperparameters(rows: Any) -> tuple[np.ndarray, list[str]]:
    """The recipe as features: fields with legal values one-hot, numbers that act by their ratio as log10, the others as they are.

    Args:
        rows: rows of a zoo's index, or any mapping from a column's name to its values.

    Returns:
        features [N, F] in float64 and their F names; null is NaN. The names do not depend on the rows, so that zoos can be compared.

    Example:
        >>> from nws_dataset.recipe import Recipe
        >>> columns = Recipe(Architecture(), "mnist", 0.001, 32, "adam", "relu", "constant").columns()
        >>> features, names = hyperparameters({name: np.array([value]) for name, value in columns.items()})
        >>> features[0, names.index("optimizer=adam")].item(), features[0, names.index("log10(learning_rate)")].item()
        (1.0, -3.0)
    """
    columns: dict[str, np.ndarray] = {}
    for name in _recipe_fields():
        values = np.asarray(rows[name])
        if name in LEGAL_VALUES:
            columns.update({f"{name}={legal}": (values == legal).astype(np.float64) for legal in LEGAL_VALUES[name]})
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
    fields = (*dataclasses.fields(Recipe), *dataclasses.fields(Architecture))
    return [field.name for field in fields if field.name != "architecture"]


def _aligned(names: Iterable[str], layout: Layout) -> list[str]:
    """Names of a layout's features with dense layers counted back from the output: of three, dense3 is dense-1."""
    dense = [layer for layer in layout.layers if layer.startswith("dense")]
    aligned = {layer: f"dense-{len(dense) - i}" for i, layer in enumerate(dense)}

    def rename(name: str) -> str:
        module, rest = name.split(".", 1)
        layer, norm, _ = module.partition("_norm")
        return f"{aligned.get(layer, layer)}{norm}.{rest}"

    return [rename(name) for name in names]


def _network_order(name: str) -> tuple[int, int]:
    """Sorts the layers of aligned names from input to output."""
    layer = name.split(".", 1)[0].removesuffix("_norm")
    if layer.startswith("conv"):
        return 0, int(layer.removeprefix("conv"))
    if layer.startswith("dense"):
        return 1, int(layer.removeprefix("dense"))
    return (2 if layer == OUTPUT else 3), 0
