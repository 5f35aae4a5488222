"""Methods that read a property off the weights, all behind one interface: the deep meta-classifier, and what
stands beside it.

A reader is fitted and asked by places of snapshots, so that each reads what it needs: slices, parts or
statistics of their weights.

Axes: N snapshots, S slices of a row, L weights of a slice, F features, C classes or 1.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nws_dataset.baselines.meta_classifier import DeepMetaClassifier, DeepMetaRegressor
from nws_dataset.baselines.predictors import Standardizer
from nws_dataset.evaluation.inputs import layer_of
from nws_dataset.evaluation.properties import Task
from nws_dataset.format.layout import Layout
from nws_dataset.views.slices import ArrayRows, RandomUnits, SomeRows, Source, even_starts
from nws_dataset.views.statistics import STATISTICS, whole_vector_statistics, zoo_features

if TYPE_CHECKING:
    from nws_dataset.reading.snapshots import Snapshots
    from nws_dataset.reading.zoo import Zoo

DEEP, SVM, BOOSTING = "deep meta-classifier", "linear SVM", "boosting"
SLICE, UNITS, SLICE_STATISTICS, LAYERS, ROW = (
    "slice",
    "random units",
    "statistics of the slice",
    "layers",
    "row",
)
PARTS = {"convolutional part": True, "dense part": False}  # name -> whether it is the convolutions
SVM_STRENGTHS = (0.01, 0.1, 1.0)  # C, of which the best on the validation models is kept
SVM_SOLVER = {"dual": False, "tol": 1e-2, "max_iter": 10_000}
TREES, PATIENCE = 300, 20  # of boosting: rounds at most, and rounds without a gain on the validation models
BOOSTED = {
    "learning_rate": 0.1,
    "num_leaves": 15,
    "feature_fraction": 0.5,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
SNAPSHOTS = {"final": "final snapshots", "late": "the later half of the snapshots", "all": "all snapshots"}


@dataclass(frozen=True)
class Settings:
    """Of the meta-classifier and its training; the defaults are the paper's."""

    slice_length: int = 5000
    epochs: int = 50
    # where `epochs` have fewer steps in all, there are more epochs, up to the paper's 50
    least_steps: int = 0
    # of training models: "final", "late" or "all"; also those that the other methods are trained on
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
        """[S] places of the slices that a prediction averages over."""
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
    epochs=2,
    least_steps=800,
    snapshots="late",
    slices_per_prediction=4,
    width=1 / 8,
    dropout=0.1,
    batch_size=32,
    learning_rate=2e-3,
    linear_below=0.05,
)


class Reader(Protocol):
    """Reads a task's property off snapshots, which are given by their places."""

    def fit(
        self, training: np.ndarray, y: np.ndarray, validation: np.ndarray, y_validation: np.ndarray
    ) -> Any:
        """Learn from training snapshots; choose by those for validation."""

    def predict(self, places: np.ndarray, positions: Sequence[float] | None = None) -> np.ndarray:
        """Values [N] of snapshots, read at positions of their rows (None: at all that it averages over)."""


@dataclass(frozen=True)
class DeepReader:
    """The deep meta-classifier, or the regressor for a number."""

    source: Source
    estimator: Any
    settings: Settings

    def fit(
        self, training: np.ndarray, y: np.ndarray, validation: np.ndarray, y_validation: np.ndarray
    ) -> DeepReader:
        self.estimator.set_params(epochs=self.settings.epochs_of(len(training)))
        self.estimator.fit(
            SomeRows(self.source, training), y, None, SomeRows(self.source, validation), y_validation
        )
        return self

    def predict(self, places: np.ndarray, positions: Sequence[float] | None = None) -> np.ndarray:
        return self.estimator.predict(SomeRows(self.source, places), positions)


@dataclass
class StatisticsReader:
    """A model on statistics of weights; where several slices of a row were described, their scores are
    averaged.
    """

    features: Callable[[np.ndarray, Sequence[float] | None], np.ndarray]  # places, positions -> [N, S, F]
    model: Any  # LinearSVM or Boosting

    def fit(
        self, training: np.ndarray, y: np.ndarray, validation: np.ndarray, y_validation: np.ndarray
    ) -> StatisticsReader:
        X_NSF, X_validation_NSF = self.features(training, None), self.features(validation, None)
        self.classes = np.unique(y) if self.model.classification else None
        targets, targets_validation = (
            part if self.classes is None else np.searchsorted(self.classes, part)
            for part in (y, y_validation)
        )
        flat = [X.reshape(-1, X.shape[-1]) for X in (X_NSF, X_validation_NSF)]
        self.model.fit(
            flat[0],
            np.repeat(targets, X_NSF.shape[1]),
            flat[1],
            np.repeat(targets_validation, X_NSF.shape[1]),
        )
        return self

    def predict(self, places: np.ndarray, positions: Sequence[float] | None = None) -> np.ndarray:
        X_NSF = self.features(places, positions)
        scores_NSC = self.model.scores(X_NSF.reshape(-1, X_NSF.shape[-1])).reshape(*X_NSF.shape[:2], -1)
        scores_NC = scores_NSC.mean(axis=1)
        return scores_NC[:, 0] if self.classes is None else self.classes[scores_NC.argmax(axis=1)]


class LinearSVM:
    """A linear support vector machine on standardised features; C is chosen by the validation part.

    Args:
        classification: classes 0..C-1, one machine against the rest each; else numbers, with squared loss
            outside a tube.
        seed: unused: the solution is unique.
    """

    def __init__(self, classification: bool, seed: int) -> None:
        self.classification = classification

    def fit(self, X: np.ndarray, y: np.ndarray, X_validation: np.ndarray, y_validation: np.ndarray) -> None:
        from sklearn.svm import LinearSVC, LinearSVR

        self.standardizer = Standardizer.fit(X)
        self.mean, self.scale = (
            (0.0, 1.0) if self.classification else (float(y.mean()), float(y.std()) or 1.0)
        )
        Z, Z_validation = self.standardizer(X), self.standardizer(X_validation)
        candidates = []
        for strength in SVM_STRENGTHS:
            if self.classification:
                machine = LinearSVC(C=strength, **SVM_SOLVER).fit(Z, y)
                score = np.mean(machine.predict(Z_validation) == y_validation)
            else:
                loss = "squared_epsilon_insensitive"
                machine = LinearSVR(C=strength, loss=loss, **SVM_SOLVER).fit(Z, (y - self.mean) / self.scale)
                score = -np.mean(
                    (machine.predict(Z_validation) - (y_validation - self.mean) / self.scale) ** 2
                )
            candidates.append((score, machine))
        self.machine = max(candidates, key=lambda candidate: candidate[0])[1]

    def scores(self, X: np.ndarray) -> np.ndarray:
        """[N, C]: distances from the planes, or numbers."""
        Z = self.standardizer(X)
        if not self.classification:
            return (self.mean + self.scale * self.machine.predict(Z))[:, None]
        distances = self.machine.decision_function(Z)
        return distances if distances.ndim == 2 else np.column_stack([-distances, distances])


class Boosting:
    """LightGBM's boosted trees; the validation part tells when to stop.

    Args:
        classification: classes 0..C-1 by cross-entropy; else numbers by mean absolute error.
        seed: of the features of a tree.
    """

    def __init__(self, classification: bool, seed: int) -> None:
        self.classification, self.seed = classification, seed

    def fit(self, X: np.ndarray, y: np.ndarray, X_validation: np.ndarray, y_validation: np.ndarray) -> None:
        import lightgbm

        goal = (
            {"objective": "multiclass", "num_class": int(y.max()) + 1}
            if self.classification
            else {"objective": "regression_l1"}
        )
        parameters = {**BOOSTED, **goal, "min_data_in_leaf": max(1, min(20, len(X) // 20)), "seed": self.seed}
        training = lightgbm.Dataset(X, y, params=parameters)
        validation = training.create_valid(X_validation, y_validation)
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        self.booster = lightgbm.train(parameters, training, TREES, valid_sets=[validation], callbacks=[stop])

    def scores(self, X: np.ndarray) -> np.ndarray:
        """[N, C]: probabilities, or numbers."""
        scores = np.asarray(self.booster.predict(X))
        return scores if self.classification else scores[:, None]


MODELS = {SVM: LinearSVM, BOOSTING: Boosting}


class Inputs:
    """What readers read of a zoo's snapshots; each kind is made once, when it is first asked for.

    Args:
        zoo: the zoo.
        rows: its snapshots [N]; a place is a place among them.
        settings: length and positions of slices.
    """

    def __init__(self, zoo: Zoo, rows: Snapshots, settings: Settings) -> None:
        self.zoo, self.rows, self.settings = zoo, rows, settings
        self._described: dict[bytes, np.ndarray] = {}

    @functools.cached_property
    def views(self) -> list[np.ndarray]:
        """The rows' weights, views of the files."""
        return self.zoo.arrays(self.rows)

    @functools.cached_property
    def whole(self) -> Source:
        return ArrayRows(self.views)

    def units(self, seed: int) -> Source:
        """Random units of the rows, as many as make a slice."""
        one_of_each = {name: self.zoo.architecture(row) for name, row in self._one_of_each().items()}
        architectures = [one_of_each[name] for name in self.rows["architecture"]]
        return RandomUnits(self.views, architectures, self.settings.slice_length, seed)

    def part(self, convolutions: bool, seed: int = 0) -> Source:
        """The weights of the convolutions (with their batch-norm), or those behind them; the seed is
        unused.
        """
        ends = {name: convolutions_end(self.zoo.layout(row)) for name, row in self._one_of_each().items()}
        places = [ends[name] for name in self.rows["architecture"]]
        return ArrayRows(
            [view[:end] if convolutions else view[end:] for view, end in zip(self.views, places, strict=True)]
        )

    def _one_of_each(self) -> dict[str, Any]:
        """A row of each architecture."""
        names, first = np.unique(self.rows["architecture"].astype(str), return_index=True)
        return {name: self.rows[int(place)] for name, place in zip(names.tolist(), first, strict=True)}

    def slice_statistics(self, places: np.ndarray, positions: Sequence[float] | None = None) -> np.ndarray:
        """[N, S, 7]: STATISTICS of slices at positions."""
        spread = self.settings.positions if positions is None else np.asarray(positions, float)
        key = spread.tobytes()
        if key not in self._described:
            self._described[key] = np.full((len(self.rows), len(spread), len(STATISTICS)), np.nan)
        known = self._described[key]
        unknown = places[np.isnan(known[places, 0, 0])]
        length = self.settings.slice_length
        starts_NS = even_starts(self.whole.lengths[unknown], length, spread)
        for place, starts in zip(unknown.tolist(), starts_NS.tolist(), strict=True):
            row = self.views[place]  # a row that is shorter than a slice is described as it is, without zeros
            known[place] = whole_vector_statistics(
                np.stack([row[start : start + length] for start in starts])
            )[0]
        return known[places]

    @functools.cached_property
    def layers(self) -> tuple[np.ndarray, list[str]]:
        """[N, F] statistics of all tensors, and their names."""
        return zoo_features(self.zoo, self.rows, "layers")

    def layer_statistics(
        self, layer: str | None, places: np.ndarray, positions: Sequence[float] | None = None
    ) -> np.ndarray:
        """[N, 1, F]: statistics of the tensors of a layer, of all layers if it is None."""
        features, names = self.layers
        columns = [i for i, name in enumerate(names) if layer is None or layer_of(name) == layer]
        return features[places][:, None, columns]

    @functools.cached_property
    def layer_names(self) -> list[str]:
        """The layers that the statistics know, from input to output."""
        return list(dict.fromkeys(map(layer_of, self.layers[1])))


def convolutions_end(layout: Layout) -> int:
    """The number of weights of the convolutional part."""
    return max(spec.stop for spec in layout.tensors if spec.layer.startswith("conv"))


@dataclass(frozen=True)
class Method:
    """A reader and what it is asked."""

    name: str
    input: str
    make: Callable[[Task, int], Reader]  # task, seed -> reader
    experiments: frozenset[str]  # of "what", "when", "where", "layers"
    layer: str | None = None


def methods_of(inputs: Inputs, experiments: Sequence[str]) -> list[Method]:
    """The methods that experiments need.

    Args:
        inputs: what they read.
        experiments: of "what" (all is asked of final snapshots), "when" (and by snapshot), "where" (by
            position), "layers" (by part and by layer).

    Returns:
        Methods, each of which is fitted once for all its experiments.
    """
    asked, settings = frozenset(experiments), inputs.settings
    whole = asked - {"where", "layers"}  # what reads all of a row is not asked for a place

    def statistics(model: type, features: Any, task: Task, seed: int) -> Reader:
        return StatisticsReader(features, model(not task.is_number, seed))

    methods = [
        Method(DEEP, SLICE, _deep(settings, lambda seed: inputs.whole), asked - {"layers"}),
        Method(DEEP, UNITS, _deep(settings, inputs.units), whole),
    ]
    for name, model in MODELS.items():
        methods.append(
            Method(
                name,
                SLICE_STATISTICS,
                functools.partial(statistics, model, inputs.slice_statistics),
                asked - {"layers"},
            )
        )
        methods.append(
            Method(
                name,
                LAYERS,
                functools.partial(statistics, model, functools.partial(inputs.layer_statistics, None)),
                whole,
            )
        )
    if "layers" in asked:
        only = frozenset({"layers"})
        for part, convolutions in PARTS.items():
            methods.append(
                Method(DEEP, part, _deep(settings, functools.partial(inputs.part, convolutions)), only, part)
            )
        for layer in inputs.layer_names:
            features = functools.partial(inputs.layer_statistics, layer)
            methods += [
                Method(name, f"layer {layer}", functools.partial(statistics, model, features), only, layer)
                for name, model in MODELS.items()
            ]
    return [method for method in methods if method.experiments]


def row_method(inputs: Inputs, length: int, experiments: Sequence[str]) -> Method:
    """The deep meta-classifier on whole rows of `length` weights."""
    settings = dataclasses.replace(inputs.settings, slice_length=length, slices_per_prediction=1)
    return Method(
        DEEP, ROW, _deep(settings, lambda seed: inputs.whole), frozenset(experiments) - {"where", "layers"}
    )


def _deep(settings: Settings, source: Callable[[int], Source]) -> Callable[[Task, int], Reader]:
    """Makes the deep meta-classifier, or the regressor, for a task and a seed; so does `source` what it
    reads.
    """

    def make(task: Task, seed: int) -> Reader:
        kind = DeepMetaRegressor if task.is_number else DeepMetaClassifier
        return DeepReader(source(seed), kind(**settings.of_estimator(), random_state=seed), settings)

    return make
