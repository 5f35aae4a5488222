"""Inputs of the methods: weights, slices and parts of them, and features.

Axes: N snapshots, M final networks, S slices of a row, F features.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nws_dataset.evaluation.folds import check_models
from nws_dataset.evaluation.tasks import TEST_ACCURACY, SnapshotSeries
from nws_dataset.networks.layout import NORM_SUFFIX
from nws_dataset.views.graph import Graph
from nws_dataset.views.slices import ArrayRows, RandomUnits, Source, even_starts
from nws_dataset.views.statistics import STATISTICS, Features, whole_vector_statistics, zoo_features

if TYPE_CHECKING:
    from nws_dataset.networks.base import BaseArchitecture
    from nws_dataset.reading.snapshots import Snapshots
    from nws_dataset.reading.zoo import Zoo

SLICE, UNITS, SLICE_STATISTICS, ROW = "slice", "random units", "statistics of the slice", "row"
LAYERS, WHOLE, NORMS, WEIGHTS, RECIPE = "layers", "whole", "norms", "weights", "hyperparameters"
WITH_RECIPE, FIRST_LAST = f"{LAYERS} + {RECIPE}", "first + last"
GRAPH, WEIGHT_SET, EDGE_SET, EDGE = "graph", "set of weights", "set of edges", "edge"
GRAPH_STATISTICS = f"{GRAPH} + {LAYERS}"
THEN = "accuracy then"  # at the snapshot of an early prediction: its baseline
LAYER = "layer "  # prefix of a layer's name
# the convolutions with their batch-norm, and the layers after them
CONVOLUTIONS, DENSE = PARTS = ("convolutional part", "dense part")
WORDS = {
    SLICE: "slices",
    SLICE_STATISTICS: "statistics of slices",
    ROW: "whole rows",
    WEIGHTS: "all weights",
    LAYERS: "statistics of all layers",
    FIRST_LAST: "statistics of the first and last layer",
    WHOLE: "statistics of the whole vector",
    NORMS: "norms of all layers",
    RECIPE: "hyper-parameters",
    WITH_RECIPE: "statistics and hyper-parameters",
    GRAPH: "the graph",
    GRAPH_STATISTICS: "the graph and statistics",
    WEIGHT_SET: "the set of weights",
    EDGE_SET: "the set of edges",
    EDGE: "one edge at a time",
}  # names in tables and plots
SNAPSHOTS = {"final": "final snapshots", "late": "the later half of the snapshots", "all": "all snapshots"}
MAX_BYTES = 2 << 30  # of all weights in memory as float64


def words_of(name: str) -> str:
    """An input's name in tables and plots.

    Example:
        >>> words_of("norms"), words_of("layer conv1"), words_of("my own features")
        ('norms of all layers', 'statistics of conv1', 'my own features')
    """
    return f"statistics of {name.removeprefix(LAYER)}" if name.startswith(LAYER) else WORDS.get(name, name)


def layer_of(feature: str) -> str:
    """The layer of a feature; batch-norm belongs to the layer it follows.

    Example:
        >>> layer_of("dense-1_norm.weight.min")
        'dense-1'
    """
    return feature.partition(".")[0].removesuffix(NORM_SUFFIX)


def digest_of(facts: Any) -> str:
    """SHA-256 of a JSON-serializable value."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True)
class Settings:
    """Settings of the meta-classifier and its training; the defaults are the paper's."""

    slice_length: int = 5000
    epochs: int = 50
    least_steps: int = 0  # if `epochs` make fewer steps, train for more epochs, up to the paper's 50
    snapshots: str = "final"  # a key of SNAPSHOTS: what all methods are trained on
    slices_per_row: int = 1
    slices_per_prediction: int = 8
    width: float = 1.0
    dropout: float = 0.5
    batch_size: int = 64
    learning_rate: float = 1e-3
    linear_below: float | None = None
    device: str = "cpu"

    @property
    def positions(self) -> np.ndarray:
        """[S] positions of the slices that a prediction averages over."""
        return np.linspace(0, 1, self.slices_per_prediction)

    def of_estimator(self) -> dict[str, Any]:
        """The settings that are parameters of `DeepMetaClassifier`."""
        own = ("least_steps", "snapshots")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in own}

    def epochs_of(self, num_rows: int) -> int:
        """Number of epochs for training on this many rows."""
        wanted = math.ceil(self.least_steps * self.batch_size / (num_rows * self.slices_per_row))
        return max(self.epochs, min(wanted, Settings.epochs))


# For a small zoo and two CPU cores: a narrow network, trained on many snapshots of few models.
SMALL_SETTINGS = Settings(
    epochs=2, least_steps=800, snapshots="late", slices_per_prediction=4, width=1 / 8, dropout=0.1,
    batch_size=32, learning_rate=2e-3, linear_below=0.05,
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """A zoo and the inputs that methods read from it.

    Data is read on first use, once per process, and is not pickled.
    """

    zoo: Zoo = field(compare=False)
    digest: str  # of the zoo's files; inputs with equal digests and settings are equal
    settings: Settings

    @classmethod
    def of(cls, zoo: Zoo, settings: Settings = SMALL_SETTINGS) -> Inputs:
        """The inputs from a zoo; raises a ZooError if it has too few models."""
        inputs = cls(zoo, digest_of({path: e.sha256 for path, e in zoo.manifest.files.items()}), settings)
        check_models(zoo.name, inputs.final["split"])
        return inputs

    def __reduce__(self) -> tuple[Any, ...]:
        return _in_this_process, (self.zoo, self.digest, self.settings)

    @functools.cached_property
    def snapshots(self) -> Snapshots:
        """[N] all snapshots of the zoo."""
        return self.zoo.filter()

    @functools.cached_property
    def final(self) -> Snapshots:
        """[M] the final snapshots."""
        return self.zoo.filter(is_final=True)

    @functools.cached_property
    def datasets(self) -> np.ndarray:
        """[M] the data set of each final network, by the name that results on it have."""
        pairs = list(zip(self.final["dataset"], self.final["subset"], strict=True))
        names = {pair: self.zoo.manifest.dataset_name(pair[0], [pair[1]]) for pair in {*pairs}}
        return np.array([names[pair] for pair in pairs])

    def values(self, column: str) -> np.ndarray:
        """[M] the values of a column of the final networks; data sets as in `datasets`."""
        return self.datasets if column == "dataset" else np.asarray(self.final[column])

    @functools.cached_property
    def series(self) -> SnapshotSeries:
        return SnapshotSeries.of(self.snapshots, self.final)

    @functools.cached_property
    def memory(self) -> dict[Any, Any]:
        """Cache that the trials in this process share."""
        return {}

    # Indexed by snapshot

    @functools.cached_property
    def views(self) -> list[np.ndarray]:
        """The rows of all snapshots, as views of the files."""
        return self.zoo.arrays(self.snapshots)

    @functools.cached_property
    def rows(self) -> Source:
        """Whole rows."""
        return ArrayRows(self.views)

    def units(self, seed: int) -> Source:
        """Random units of the rows, as many as fill a slice."""
        architectures = self._of_architectures(self.zoo.architecture)
        return RandomUnits(self.views, architectures, self.settings.slice_length, seed)

    def part(self, name: str, seed: int = 0) -> Source:
        """The weights of one of PARTS; the seed is unused."""

        def end(snapshot: Any) -> int:
            tensors = self.zoo.layout(snapshot).tensors
            return max(tensor.stop for tensor in tensors if tensor.layer.startswith("conv"))

        pairs = zip(self.views, self._of_architectures(end), strict=True)
        return ArrayRows([view[:stop] if name == CONVOLUTIONS else view[stop:] for view, stop in pairs])

    def _of_architectures(self, fact: Callable[[Any], Any]) -> list[Any]:
        """[N] the value of `fact` for each snapshot, computed once per architecture."""
        names, first = np.unique(self.snapshots["architecture"].astype(str), return_index=True)
        facts = dict(zip(names.tolist(), (fact(self.snapshots[i]) for i in first.tolist()), strict=True))
        return [facts[name] for name in self.snapshots["architecture"]]

    def slice_statistics(self, indices: np.ndarray, positions: Sequence[float] | None = None) -> np.ndarray:
        """[N, S, 7] STATISTICS of slices of some snapshots at positions from 0 to 1."""
        along = self.settings.positions if positions is None else np.asarray(positions, float)
        length, key = self.settings.slice_length, (SLICE_STATISTICS, along.tobytes())
        if key not in self.memory:
            self.memory[key] = np.full((len(self.snapshots), len(along), len(STATISTICS)), np.nan)
        known = self.memory[key]
        unknown = indices[np.isnan(known[indices, 0, 0])]
        starts_NS = even_starts(self.rows.lengths[unknown], length, along)
        for i, starts in zip(unknown.tolist(), starts_NS.tolist(), strict=True):
            row = self.views[i]  # shorter than a slice: not padded with zeros here
            known[i] = whole_vector_statistics(np.stack([row[start : start + length] for start in starts]))[0]
        return known[indices]

    @functools.cached_property
    def layers(self) -> Features:
        """[N, F] statistics of all tensors, and their names."""
        return zoo_features(self.zoo, self.snapshots, LAYERS)

    def layer_statistics(
        self, layer: str | None, indices: np.ndarray, positions: Sequence[float] | None = None
    ) -> np.ndarray:
        """[N, 1, F] statistics of the tensors of a layer, or of all layers if None."""
        features, names = self.layers
        columns = [i for i, name in enumerate(names) if layer is None or layer_of(name) == layer]
        return features[indices][:, None, columns]

    @functools.cached_property
    def layer_names(self) -> list[str]:
        """The layers of the statistics, from input to output."""
        return list(dict.fromkeys(map(layer_of, self.layers[1])))

    # Indexed by model, among the final snapshots

    @functools.cached_property
    def alike(self) -> bool:
        """Whether all networks have the same architecture."""
        return len(set(self.final["architecture"])) == 1

    @property
    def architecture(self) -> BaseArchitecture:
        """That of all networks, if they are alike."""
        return self.zoo.architecture(self.final[0])

    @functools.cached_property
    def weights(self) -> np.ndarray | list[np.ndarray]:
        """The final rows: an array for one architecture, a list for several."""
        return self.zoo.weights(self.final) if self.alike else self.zoo.arrays(self.final)

    @functools.cached_property
    def graphs(self) -> list[Graph]:
        """The graph of each final network."""
        architectures = map(self.zoo.architecture, self.final)
        return [Graph.from_rows(*pair) for pair in zip(architectures, self.weights, strict=True)]

    @functools.cached_property
    def skipped(self) -> list[str]:
        """Notes on features that are left out, as sentences."""
        num_bytes = 8 * int(self.final["num_weights"].sum())
        if not self.alike:
            return ["All weights and single layers are no inputs: the zoo has several architectures."]
        if num_bytes > MAX_BYTES:
            return [f"All weights are no input: they are {num_bytes >> 30} GiB in memory."]
        return []

    @functools.cached_property
    def features(self) -> dict[str, Features]:
        """Name of the input -> [M, F] features of the final networks, and the features' names.

        Raises:
            ZooError: if a weight is not finite.
        """
        all_weights = [] if self.skipped else [WEIGHTS]
        read = zoo_features(self.zoo, self.final, [LAYERS, WHOLE, NORMS, RECIPE, *all_weights])
        layers = list(dict.fromkeys(map(layer_of, read[LAYERS][1])))
        features = {name: read[name] for name in (*all_weights, LAYERS)}
        if self.alike:
            features |= {LAYER + name: _of_layers(read[LAYERS], [name]) for name in layers}
        if len(layers) > 2:
            features[FIRST_LAST] = _of_layers(read[LAYERS], (layers[0], layers[-1]))
        features |= {name: read[name] for name in (WHOLE, NORMS, RECIPE)}
        (X, names), (of_recipe, more) = read[LAYERS], read[RECIPE]
        features[WITH_RECIPE] = np.column_stack([X, of_recipe]), names + more
        return features

    def _then(self, snapshot: int, models: np.ndarray) -> Snapshots:
        """The earlier snapshot with this number of some models."""
        return self.zoo.filter(snapshot=snapshot, model_id=self.final["model_id"][models].tolist())

    def epoch(self, snapshot: int, models: np.ndarray) -> int:
        """The epoch of an earlier snapshot of some models."""
        return int(self._then(snapshot, models)[0]["epoch"])

    def X_then(self, name: str, snapshot: int, models: np.ndarray) -> np.ndarray:
        """[M, F] LAYERS or THEN of some models at an earlier snapshot; NaN for other models."""
        key = name, snapshot, models.tobytes()
        if key not in self.memory:
            snapshots = self._then(snapshot, models)
            accuracies = np.asarray(snapshots[TEST_ACCURACY], np.float64)[:, None]
            part = accuracies if name == THEN else zoo_features(self.zoo, snapshots, LAYERS)[0]
            self.memory[key] = np.full((len(self.final), part.shape[1]), np.nan)
            self.memory[key][SnapshotSeries.of(snapshots, self.final).model] = part
        return self.memory[key]


@functools.lru_cache(maxsize=1)
def _shared(inputs: Inputs) -> Inputs:
    """The first of equal inputs, so that a process reads them once."""
    return inputs


def _in_this_process(zoo: Zoo, digest: str, settings: Settings) -> Inputs:
    return _shared(Inputs(zoo, digest, settings))


def _of_layers(features: Features, layers: Collection[str]) -> Features:
    """The columns of some layers."""
    X, names = features
    kept = [i for i, name in enumerate(names) if layer_of(name) in layers]
    return X[:, kept], [names[i] for i in kept]
