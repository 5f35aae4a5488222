"""What predictors read: sets of features of the networks of a zoo, all made in one pass over its files.

Axes: N networks, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from nws_dataset.evaluation.paper import FIRST_LAST
from nws_dataset.format.layout import NORM_SUFFIX
from nws_dataset.views.statistics import Features, zoo_features

if TYPE_CHECKING:
    from nws_dataset.reading.snapshots import Snapshots
    from nws_dataset.reading.zoo import Zoo

LAYERS, WHOLE, NORMS, WEIGHTS, RECIPE = "layers", "whole", "norms", "weights", "hyperparameters"
WITH_RECIPE = f"{LAYERS} + {RECIPE}"
LAYER = "layer "  # before a layer's name
WORDS = {
    WEIGHTS: "all weights",
    LAYERS: "statistics of all layers",
    FIRST_LAST: "statistics of the first and last layer",
    WHOLE: "statistics of the whole vector",
    NORMS: "norms of all layers",
    RECIPE: "hyper-parameters",
    WITH_RECIPE: "statistics and hyper-parameters",
}  # for people
MOST_BYTES = 2 << 30  # of all weights in memory as float64


def words_of(name: str) -> str:
    """An input's name for people.

    Example:
        >>> words_of("norms"), words_of("layer conv1")
        ('norms of all layers', 'statistics of conv1')
    """
    return WORDS.get(name) or f"statistics of {name.removeprefix(LAYER)}"


def layer_of(feature: str) -> str:
    """The layer that a feature is of; batch-norm belongs to the layer it follows.

    Example:
        >>> layer_of("dense-1_norm.weight.min")
        'dense-1'
    """
    return feature.partition(".")[0].removesuffix(NORM_SUFFIX)


def read_inputs(zoo: Zoo, rows: Snapshots) -> tuple[dict[str, Features], list[str]]:
    """All inputs that the zoo has.

    Args:
        zoo: the zoo.
        rows: its final rows.

    Returns:
        name of the input -> features [N, F] and their names; and sentences about what was left out.

    Raises:
        ZooError: for a weight that is not finite.
    """
    skipped = []
    num_weights = rows["num_weights"]
    if len(set(rows["architecture"].tolist())) > 1:
        skipped.append("All weights are no input: the zoo has several architectures.")
    elif 8 * int(num_weights.sum()) > MOST_BYTES:
        skipped.append(
            f"All weights are no input: they are {8 * int(num_weights.sum()) >> 30} GiB in memory."
        )
    kinds = [LAYERS, WHOLE, NORMS, RECIPE] + [WEIGHTS] * (not skipped)
    read = zoo_features(zoo, rows, kinds)
    layers = list(dict.fromkeys(map(layer_of, read[LAYERS][1])))
    inputs = {WEIGHTS: read[WEIGHTS]} if not skipped else {}
    inputs |= {LAYERS: read[LAYERS], **{LAYER + name: _of_layers(read[LAYERS], [name]) for name in layers}}
    if len(layers) > 2:
        inputs[FIRST_LAST] = _of_layers(read[LAYERS], (layers[0], layers[-1]))
    inputs |= {name: read[name] for name in (WHOLE, NORMS, RECIPE)}
    return {**inputs, WITH_RECIPE: _joined(read, (LAYERS, RECIPE))}, skipped


def _of_layers(features: Features, layers: Iterable[str]) -> Features:
    """The columns of some layers."""
    X, names = features
    kept = [i for i, name in enumerate(names) if layer_of(name) in set(layers)]
    return X[:, kept], [names[i] for i in kept]


def _joined(read: Mapping[str, Features], names: Iterable[str]) -> Features:
    """Several inputs side by side."""
    parts = [read[name] for name in names]
    return np.column_stack([X for X, _ in parts]), [name for _, own in parts for name in own]
