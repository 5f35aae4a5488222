"""What methods read of a zoo's networks: their weights, slices and parts of them, and features of many kinds.

Axes: N snapshots, M final networks, S slices of a row, F features.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nws_dataset.evaluation.folds import check_models
from nws_dataset.evaluation.tasks import TEST_ACCURACY, SnapshotSeries
from nws_dataset.networks.layout import NORM_SUFFIX, Layout
from nws_dataset.views.slices import ArrayRows, RandomUnits, Source, even_starts
from nws_dataset.views.statistics import STATISTICS, Features, whole_vector_statistics, zoo_features

if TYPE_CHECKING:
    from nws_dataset.reading.snapshots import Snapshots
    from nws_dataset.reading.zoo import Zoo

SLICE, UNITS, SLICE_STATISTICS, ROW = "slice", "random units", "statistics of the slice", "row"
LAYERS, WHOLE, NORMS, WEIGHTS, RECIPE = "layers", "whole", "norms", "weights", "hyperparameters"
WITH_RECIPE, FIRST_LAST = f"{LAYERS} + {RECIPE}", "first + last"
THEN = "accuracy then"  # what an early prediction must beat: the accuracy at that snapshot
LAYER = "layer "  # before a layer's name
# the convolutions with their batch-norm, and what is behind them
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
}  # for people
SNAPSHOTS = {"final": "final snapshots", "late": "the later half of the snapshots", "all": "all snapshots"}
MAX_BYTES = 2 << 30  # of all weights in memory as float64


def words_of(name: str) -> str:
    """An input's name for people.

    Example:
        >>> words_of("norms"), words_of("layer conv1"), words_of("my own features")
        ('norms of all layers', 'statistics of conv1', 'my own features')
    """
    return f"statistics of {name.removeprefix(LAYER)}" if name.startswith(LAYER) else WORDS.get(name, name)


def layer_of(feature: str) -> str:
    """The layer that a feature is of; batch-norm belongs to the layer it follows.

    Example:
        >>> layer_of("dense-1_norm.weight.min")
        'dense-1'
    """
    return feature.partition(".")[0].removesuffix(NORM_SUFFIX)


def digest_of(facts: Any) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True)
class Settings:
    """Of the meta-classifier and its training; the defaults are the paper's."""

    slice_length: int = 5000
    epochs: int = 50
    # where `epochs` have fewer steps in all, there are more epochs, up to the paper's 50
    least_steps: int = 0
    # of training models: one of SNAPSHOTS; also those that the other methods are trained on
    snapshots: str = "final"
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
        """[S] positions in the row of the slices that a prediction averages over."""
        return np.linspace(0, 1, self.slices_per_prediction)

    def of_estimator(self) -> dict[str, Any]:
        """The parameters of `DeepMetaClassifier` among them."""
        own = ("least_steps", "snapshots")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in own}

    def epochs_of(self, num_rows: int) -> int:
        """Epochs of a training on so many rows."""
        wanted = math.ceil(self.least_steps * self.batch_size / (num_rows * self.slices_per_row))
        return max(self.epochs, min(wanted, Settings.epochs))


# A slim network that sees many snapshots of few models: fits two CPU cores and a small zoo.
SMALL_SETTINGS = Settings(
    epochs=2, least_steps=800, snapshots="late", slices_per_prediction=4, width=1 / 8, dropout=0.1,
    batch_size=32, learning_rate=2e-3, linear_below=0.05,
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """A zoo and what methods read of it; each kind is made once a process, when it is first asked for.

    It is pickled as where it comes from: what was read does not travel.

    Args:
        zoo: the zoo.
        digest: of its files; inputs of equal digests and settings are the same.
        settings: length and positions of slices, and which snapshots are trained on.
    """

    zoo: Zoo = field(compare=False)
    digest: str
    settings: Settings

    @classmethod
    def of(cls, zoo: Zoo, settings: Settings = SMALL_SETTINGS) -> Inputs:
        """Of a zoo that has enough models.

        Raises:
            ZooError: if it has not.
        """
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
        """[M] the final ones."""
        return self.zoo.filter(is_final=True)

    @functools.cached_property
    def series(self) -> SnapshotSeries:
        return SnapshotSeries.of(self.snapshots, self.final)

    @functools.cached_property
    def memory(self) -> dict[Any, Any]:
        """What was found or read for one trial, for the others of this process."""
        return {}

    # By snapshots, which are given by their indices

    @functools.cached_property
    def views(self) -> list[np.ndarray]:
        """The rows of all snapshots, views of the files."""
        return self.zoo.arrays(self.snapshots)

    @functools.cached_property
    def rows(self) -> Source:
        """Whole rows."""
        return ArrayRows(self.views)

    def units(self, seed: int) -> Source:
        """Random units of the rows, as many as make a slice."""
        one_of_each = {name: self.zoo.architecture(row) for name, row in self._one_of_each().items()}
        architectures = [one_of_each[name] for name in self.snapshots["architecture"]]
        return RandomUnits(self.views, architectures, self.settings.slice_length, seed)

    def part(self, name: str, seed: int = 0) -> Source:
        """The weights of one of PARTS; the seed is unused."""
        ends = {name: _convolutions_end(self.zoo.layout(row)) for name, row in self._one_of_each().items()}
        stops = [ends[name] for name in self.snapshots["architecture"]]
        pairs = zip(self.views, stops, strict=True)
        return ArrayRows([view[:stop] if name == CONVOLUTIONS else view[stop:] for view, stop in pairs])

    def _one_of_each(self) -> dict[str, Any]:
        """A snapshot of each architecture."""
        names, first = np.unique(self.snapshots["architecture"].astype(str), return_index=True)
        return {name: self.snapshots[int(i)] for name, i in zip(names.tolist(), first, strict=True)}

    def slice_statistics(self, indices: np.ndarray, positions: Sequence[float] | None = None) -> np.ndarray:
        """[N, S, 7]: STATISTICS of slices of some snapshots at positions."""
        along = self.settings.positions if positions is None else np.asarray(positions, float)
        length, key = self.settings.slice_length, (SLICE_STATISTICS, along.tobytes())
        if key not in self.memory:
            self.memory[key] = np.full((len(self.snapshots), len(along), len(STATISTICS)), np.nan)
        known = self.memory[key]
        unknown = indices[np.isnan(known[indices, 0, 0])]
        starts_NS = even_starts(self.rows.lengths[unknown], length, along)
        for i, starts in zip(unknown.tolist(), starts_NS.tolist(), strict=True):
            row = self.views[i]  # one that is shorter than a slice is described as it is, without zeros
            known[i] = whole_vector_statistics(np.stack([row[start : start + length] for start in starts]))[0]
        return known[indices]

    @functools.cached_property
    def layers(self) -> Features:
        """[N, F] statistics of all tensors, and their names."""
        return zoo_features(self.zoo, self.snapshots, LAYERS)

    def layer_statistics(
        self, layer: str | None, indices: np.ndarray, positions: Sequence[float] | None = None
    ) -> np.ndarray:
        """[N, 1, F]: statistics of the tensors of a layer, of all layers if it is None."""
        features, names = self.layers
        columns = [i for i, name in enumerate(names) if layer is None or layer_of(name) == layer]
        return features[indices][:, None, columns]

    @functools.cached_property
    def layer_names(self) -> list[str]:
        """The layers that the statistics know, from input to output."""
        return list(dict.fromkeys(map(layer_of, self.layers[1])))

    # By models, which are given by their indices among the final snapshots

    @functools.cached_property
    def weights(self) -> np.ndarray | list[np.ndarray]:
        """The final rows: an array of one architecture, a list of several."""
        alike = len(set(self.final["architecture"])) == 1
        return self.zoo.weights(self.final) if alike else self.zoo.arrays(self.final)

    @functools.cached_property
    def _features(self) -> tuple[dict[str, Features], list[str]]:
        return read_features(self.zoo, self.final)

    @property
    def features(self) -> dict[str, Features]:
        """Name of the input -> [M, F] features of the final networks, and their names."""
        return self._features[0]

    @property
    def skipped(self) -> list[str]:
        """Sentences about features that are left out."""
        return self._features[1]

    def X(self, name: str) -> np.ndarray:
        """[M, F] features of the final networks."""
        return self.features[name][0]

    def then(self, snapshot: int, models: np.ndarray) -> Snapshots:
        """An earlier snapshot of each of the models."""
        return self.zoo.filter(snapshot=snapshot, model_id=self.final["model_id"][models].tolist())

    def X_then(self, name: str, snapshot: int, models: np.ndarray) -> np.ndarray:
        """[M, F] of the models at an earlier snapshot: LAYERS or THEN; NaN of all other models."""
        key = THEN, snapshot, models.tobytes()
        if key not in self.memory:
            snapshots = self.then(snapshot, models)
            indices = SnapshotSeries.of(snapshots, self.final).model
            accuracies = np.asarray(snapshots[TEST_ACCURACY], np.float64)[:, None]
            read = {LAYERS: zoo_features(self.zoo, snapshots, LAYERS)[0], THEN: accuracies}
            self.memory[key] = {}
            for kind, part in read.items():
                self.memory[key][kind] = np.full((len(self.final), part.shape[1]), np.nan)
                self.memory[key][kind][indices] = part
        return self.memory[key][name]


@functools.lru_cache(maxsize=1)
def _shared(inputs: Inputs) -> Inputs:
    """The first of equal inputs."""
    return inputs


def _in_this_process(zoo: Zoo, digest: str, settings: Settings) -> Inputs:
    return _shared(Inputs(zoo, digest, settings))


def read_features(zoo: Zoo, final: Snapshots) -> tuple[dict[str, Features], list[str]]:
    """All features that the zoo has, made in one pass over its files.

    Args:
        zoo: the zoo.
        final: its final snapshots.

    Returns:
        name of the input -> features [M, F] and their names; and sentences about what was left out.

    Raises:
        ZooError: for a weight that is not finite.
    """
    skipped = []
    num_bytes = 8 * int(final["num_weights"].sum())
    if len(set(final["architecture"].tolist())) > 1:
        skipped.append("All weights are no input: the zoo has several architectures.")
    elif num_bytes > MAX_BYTES:
        skipped.append(f"All weights are no input: they are {num_bytes >> 30} GiB in memory.")
    read = zoo_features(zoo, final, [LAYERS, WHOLE, NORMS, RECIPE] + [WEIGHTS] * (not skipped))
    layers = list(dict.fromkeys(map(layer_of, read[LAYERS][1])))
    features = {WEIGHTS: read[WEIGHTS]} if not skipped else {}
    features |= {LAYERS: read[LAYERS], **{LAYER + name: _of_layers(read[LAYERS], [name]) for name in layers}}
    if len(layers) > 2:
        features[FIRST_LAST] = _of_layers(read[LAYERS], (layers[0], layers[-1]))
    features |= {name: read[name] for name in (WHOLE, NORMS, RECIPE)}
    parts = [read[LAYERS], read[RECIPE]]
    features[WITH_RECIPE] = np.column_stack([X for X, _ in parts]), [name for _, own in parts for name in own]
    return features, skipped


def _of_layers(features: Features, layers: Collection[str]) -> Features:
    """The columns of some layers."""
    X, names = features
    kept = [i for i, name in enumerate(names) if layer_of(name) in layers]
    return X[:, kept], [names[i] for i in kept]


def _convolutions_end(layout: Layout) -> int:
    """The number of weights of the convolutional part."""
    return max(spec.stop for spec in layout.tensors if spec.layer.startswith("conv"))
