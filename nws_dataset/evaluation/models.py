"""Models of the methods: the deep meta-classifier, learners on statistics, and accuracy predictors.

Axes: N snapshots, M final networks, S slices of a row, F features, C classes or 1.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from sklearn.base import clone

from nws_dataset.baselines.learners import Boosting, LinearSVM
from nws_dataset.baselines.meta_classifier import DeepMetaClassifier, DeepMetaRegressor
from nws_dataset.baselines.predictors import DenseNet, GradientBoosting, LogitLinear
from nws_dataset.evaluation import inputs as kinds
from nws_dataset.evaluation.folds import Fold
from nws_dataset.evaluation.inputs import SMALL_SETTINGS, Inputs, Settings
from nws_dataset.evaluation.run import Answers, Method, Outcome, Question, Trial
from nws_dataset.evaluation.scores import ALL, Record
from nws_dataset.evaluation.tasks import Labelled, Task
from nws_dataset.views.graph import Layers
from nws_dataset.views.slices import SomeRows, Source

DEEP, SVM, BOOSTING = "deep meta-classifier", "linear SVM", "boosting"
LEARNERS: dict[str, type[LinearSVM | Boosting]] = {SVM: LinearSVM, BOOSTING: Boosting}
# Accuracy predictor -> its settings; one is chosen on validation models, the first if there are none
PREDICTORS: dict[str, list[Any]] = {
    "linear": [LogitLinear(), LogitLinear(l2=1e-3), LogitLinear(l2=1e-7, max_iter=2000)],
    BOOSTING: [
        GradientBoosting(),
        GradientBoosting(max_depth=4),
        GradientBoosting(max_depth=8, min_rows_in_leaf=5),
    ],
    "dense net": [DenseNet(), DenseNet(num_units=512, dropout=0.2), DenseNet(num_layers=5, dropout=0.0)],
}
FEW_STEPS = 100  # of training: their time is not worth measuring
MAX_EDGES = 100_000  # that boosting learns from
WIDE = 1000  # features; with more, settings are not compared
WIDE_BOOSTING = {"feature_fraction": 0.05, "learning_rate": 0.1}
META, META_EPOCHS = "meta-regressor", 30
TYPICAL_EPOCHS, STEPS_OF_FIT = 60, 8  # of a dense net: until it stops; of which its seconds are measured
Positions = Sequence[float] | None  # in rows, from 0 to 1; None: the average over several


def expected_seconds(
    inputs: Inputs,
    key: Any,
    steps: int,
    estimator: Any,
    shape: tuple[int, int],
    y: Any = None,
    measured: int = 1,
) -> float:
    """Expected seconds of training on one core, from those of a few steps; 1 if there are few.

    Args:
        inputs: their memory keeps the seconds of these steps.
        key: under which.
        steps: of the training.
        estimator: makes `measured` steps when it is fitted to rows of this shape.
        shape: of random rows.
        y: their targets; None: two classes.
        measured: see `estimator`.
    """
    import torch

    if steps < FEW_STEPS:
        return 1.0
    if key not in inputs.memory:
        X = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for _ in range(2):  # the first is not measured
                started = time.perf_counter()
                estimator.fit(X, np.arange(len(X)) % 2 if y is None else y)
                inputs.memory[key] = time.perf_counter() - started
        finally:
            torch.set_num_threads(threads)
    return steps / measured * inputs.memory[key]


class Reader(Protocol):
    """Predicts a property of snapshots, given by their indices."""

    def fit(self, training: Labelled, validation: Labelled) -> Any:
        """Learn from training snapshots; choose settings on validation snapshots."""

    def predict(self, indices: np.ndarray, positions: Positions = None) -> np.ndarray:
        """Predict the values [N] of snapshots from positions of their rows."""


@dataclass(frozen=True)
class SnapshotModel:
    """Applies a reader to networks: it learns from some snapshots of each, and predicts from one."""

    inputs: Inputs
    reader: Reader

    def fit(self, training: Labelled, validation: Labelled) -> SnapshotModel:
        self.reader.fit(self._snapshots(training), self._snapshots(validation))
        return self

    def predict(self, networks: np.ndarray, question: Question) -> np.ndarray:
        assert question.snapshot is not None
        indices = self.inputs.series.at(networks, question.snapshot)
        return self.reader.predict(indices, None if question.position is None else [question.position])

    def _snapshots(self, networks: Labelled) -> Labelled:
        """The snapshots of some networks that the reader is trained on."""
        series = self.inputs.series
        truth = dict(zip(networks.indices.tolist(), networks.y, strict=True))
        indices = series.indices(networks.indices, self.inputs.settings.snapshots)
        values = [truth[model] for model in series.model[indices].tolist()]
        return Labelled(indices, np.array(values, dtype=networks.y.dtype))


@dataclass(frozen=True)
class DeepReader:
    """The deep meta-classifier, or the regressor if the target is a number."""

    source: Source
    estimator: Any
    settings: Settings

    def fit(self, training: Labelled, validation: Labelled) -> DeepReader:
        self.estimator.set_params(epochs=self.settings.epochs_of(len(training.indices)))
        rows, held_out = (SomeRows(self.source, part.indices) for part in (training, validation))
        self.estimator.fit(rows, training.y, None, held_out, validation.y)
        return self

    def predict(self, indices: np.ndarray, positions: Positions = None) -> np.ndarray:
        return self.estimator.predict(SomeRows(self.source, indices), positions)


@dataclass
class StatisticsReader:
    """A learner on statistics of weights; its scores are averaged over the slices of a row."""

    features: Callable[[np.ndarray, Positions], np.ndarray]  # indices, positions -> [N, S, F]
    learner: LinearSVM | Boosting

    def fit(self, training: Labelled, validation: Labelled) -> StatisticsReader:
        self.classes = np.unique(training.y) if self.learner.classification else None
        parts: list[np.ndarray] = []
        for indices, y in (training, validation):
            X_NSF = self.features(indices, None)
            target = y if self.classes is None else np.searchsorted(self.classes, y)
            parts += [X_NSF.reshape(-1, X_NSF.shape[-1]), np.repeat(target, X_NSF.shape[1])]
        self.learner.fit(*parts)
        return self

    def predict(self, indices: np.ndarray, positions: Positions = None) -> np.ndarray:
        X_NSF = self.features(indices, positions)
        scores_NSC = self.learner.scores(X_NSF.reshape(-1, X_NSF.shape[-1])).reshape(*X_NSF.shape[:2], -1)
        scores_NC = scores_NSC.mean(axis=1)
        return scores_NC[:, 0] if self.classes is None else self.classes[scores_NC.argmax(axis=1)]


def property_methods(inputs: Inputs, by_layer: bool) -> list[Method]:
    """All methods that predict properties; with `by_layer`, also from single parts and layers."""
    deep = functools.partial(_deep, inputs, inputs.settings)
    seconds = functools.partial(_deep_seconds, inputs)
    methods = [Method(DEEP, kinds.SLICE, deep(lambda seed: inputs.rows), seconds=seconds)]
    methods.append(Method(DEEP, kinds.UNITS, deep(inputs.units), seconds=seconds))
    of_all = functools.partial(inputs.layer_statistics, None)
    for name in LEARNERS:
        methods.append(Method(name, kinds.SLICE_STATISTICS, _learned(inputs, name, inputs.slice_statistics)))
        methods.append(Method(name, kinds.LAYERS, _learned(inputs, name, of_all)))
    if by_layer:
        for part in kinds.PARTS:
            source = functools.partial(inputs.part, part)
            methods.append(Method(DEEP, part, deep(source), part, seconds))
        for layer in inputs.layer_names:
            features = functools.partial(inputs.layer_statistics, layer)
            own = {name: _learned(inputs, name, features) for name in LEARNERS}
            methods += [Method(name, kinds.LAYER + layer, make, layer) for name, make in own.items()]
    return methods


def row_method(inputs: Inputs, length: int) -> Method:
    """The deep meta-classifier on whole rows of `length` weights."""
    settings = dataclasses.replace(inputs.settings, slice_length=length, slices_per_prediction=1)
    return Method(DEEP, kinds.ROW, _deep(inputs, settings, lambda seed: inputs.rows))


def _deep(inputs: Inputs, settings: Settings, source: Callable[[int], Source]) -> Callable[[Task, int], Any]:
    """Factory of the deep meta-classifier or regressor, which reads `source(seed)`."""

    def make(task: Task, seed: int) -> SnapshotModel:
        kind = DeepMetaRegressor if task.is_number else DeepMetaClassifier
        estimator = kind(**settings.of_estimator(), random_state=seed)
        return SnapshotModel(inputs, DeepReader(source(seed), estimator, settings))

    return make


def _deep_seconds(inputs: Inputs, task: Task) -> float:
    """See `expected_seconds`; 1 on a GPU."""
    settings = inputs.settings
    training = task.models[task.folds[0].training]
    rows = len(inputs.series.indices(training, settings.snapshots))
    steps = settings.epochs_of(rows) * max(1, rows * settings.slices_per_row // settings.batch_size)
    if settings.device != "cpu":
        return 1.0
    estimator = DeepMetaClassifier(**settings.of_estimator(), random_state=0, validation_fraction=0.0)
    estimator.set_params(epochs=1, slices_per_row=1)
    return expected_seconds(inputs, DEEP, steps, estimator, (settings.batch_size, settings.slice_length))


def _learned(inputs: Inputs, name: str, features: Any) -> Callable[[Task, int], Any]:
    """Factory of one of LEARNERS on features."""
    return lambda task, seed: SnapshotModel(
        inputs, StatisticsReader(features, LEARNERS[name](not task.is_number, seed))
    )


@dataclass(frozen=True)
class FeatureModel:
    """A regressor on features; early stopping uses the validation part, or a part of training if empty."""

    X: np.ndarray  # [M, F] of all final networks
    estimator: Any
    setting: str = ""

    def fit(self, training: Labelled, validation: Labelled) -> FeatureModel:
        held_out = {"X_validation": self.X[validation.indices], "y_validation": validation.y}
        held_out = held_out if len(validation.indices) else {}
        self.estimator.fit(self.X[training.indices], training.y, **held_out)
        return self

    def predict(self, networks: np.ndarray, question: Question) -> np.ndarray:
        return self.estimator.predict(self.X[networks])


@dataclass
class EdgeModel:
    """Boosting on the weights and the layer of one edge at a time: what is kept, without the network."""

    inputs: Inputs
    seed: int

    def fit(self, training: Labelled, validation: Labelled) -> EdgeModel:
        random = np.random.default_rng(self.seed)
        held_out = validation if len(validation.indices) else training
        parts = [self._some(part, random) for part in (training, held_out)]
        self.learner = Boosting(classification=True, seed=self.seed)
        self.learner.fit(*parts[0], *parts[1])
        return self

    def predict(self, networks: np.ndarray, question: Question) -> np.ndarray:
        return np.stack([self.learner.scores(self._edges(network))[:, 1] for network in networks.tolist()])

    def _some(self, networks: Labelled, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """At most MAX_EDGES edges of some networks, at random."""
        count, each = len(networks.indices), networks.y.shape[1]
        some = np.sort(random.choice(count * each, min(MAX_EDGES, count * each), replace=False))
        X, y = [], []
        for i, edges in itertools.groupby(some.tolist(), lambda edge: edge // each):
            chosen = [edge % each for edge in edges]
            X.append(self._edges(int(networks.indices[i]))[chosen])
            y.append(networks.y[i, chosen])
        return np.concatenate(X), np.concatenate(y).astype(np.int64)

    def _edges(self, network: int) -> np.ndarray:
        """[E, F + 1]: the weights of each edge, and the number of its layer."""
        row = np.asarray(self.inputs.weights)[network]
        layers = [row[edges.indices].reshape(-1, edges.indices.shape[2]) for edges in self._layers.edges]
        numbers = np.repeat(np.arange(len(layers)), [len(part) for part in layers])
        return np.column_stack([np.concatenate(layers), numbers])

    @functools.cached_property
    def _layers(self) -> Layers:
        return Layers.of(self.inputs.architecture)


def edge_boosting(inputs: Inputs) -> Method:
    """Boosting that decides on one edge at a time."""
    return Method(BOOSTING, kinds.EDGE, lambda task, seed: EdgeModel(inputs, seed))


@dataclass(frozen=True)
class TunedPredictor:
    """Factory of one of PREDICTORS, or META, with its best setting on a task's validation models."""

    inputs: Inputs  # their memory keeps the setting
    name: str
    task: Task
    features: str
    snapshot: int | None  # of the features; None: the final one
    setting: Any = None  # if it is known beforehand

    @property
    def X(self) -> np.ndarray:
        """[M, F] features of the final networks."""
        if self.snapshot is None:
            return self.inputs.features[self.features][0]
        return self.inputs.X_then(self.features, self.snapshot, self.task.models)

    @property
    def num_features(self) -> int:
        """F, of earlier snapshots without reading them."""
        return 1 if self.features == kinds.THEN else self.inputs.features[self.features][0].shape[1]

    @property
    def key(self) -> tuple[Any, ...]:
        """What the setting depends on."""
        return self.name, self.task.words, self.features, self.snapshot

    def __call__(self, task: Task, seed: int) -> FeatureModel:
        known, setting = self.inputs.memory, self.setting
        if setting is None and self.key not in known:
            known[self.key] = self.best([trial.run(lambda words, seconds: None) for trial in self.trials()])
        setting = known[self.key] if setting is None else setting
        return FeatureModel(self.X, clone(setting).set_params(random_state=seed), repr(setting))

    def settings(self) -> list[Any]:
        """The settings to choose from; one if none are compared, as without validation models."""
        settings, wide = PREDICTORS.get(self.name, []), self.num_features > WIDE
        if self.name == META:
            return [meta_regressor(self.num_features)]
        if wide:  # to save time: one setting, and fewer trees on few of the features
            quick = WIDE_BOOSTING if isinstance(settings[0], GradientBoosting) else {}
            return [clone(settings[0]).set_params(**quick)]
        return list(settings) if len(self.task.folds[0].validation) else settings[:1]

    def trials(self) -> list[Trial]:
        """A trial of each setting if there are several, tested on the validation models."""
        settings, fold = self.settings(), self.task.folds[0]
        if len(settings) == 1:
            return []
        task = dataclasses.replace(self.task, folds=[Fold(fold.training, fold.validation, fold.validation)])
        about: dict[str, Any] = {
            "experiment": "setting",
            "target": task.target,
            "method": self.name,
            "seed": 0,
        }
        about |= {"input": self.features, "snapshot": self.snapshot, "num_train": len(fold.training)}
        makers = [dataclasses.replace(self, setting=setting) for setting in settings]
        return [
            Trial(task, make.method, 0, _squared_error, about | {"setting": repr(make.setting)})
            for make in makers
        ]

    def best(self, outcomes: Sequence[Outcome]) -> Any:
        """The setting with the smallest error in the outcomes of `trials`."""
        errors = np.array([outcome.records[0].value for outcome in outcomes], float)
        return self.settings()[int(errors.argmin()) if len(errors) else 0]

    @property
    def method(self) -> Method:
        return Method(self.name, self.features, self, seconds=self.seconds)

    def seconds(self, task: Task) -> float:
        """See `expected_seconds`; of all but dense nets a second."""
        if not isinstance(PREDICTORS.get(self.name, [None])[0], DenseNet):
            return 1.0
        known = self.setting or self.inputs.memory.get(self.key) or self.settings()[0]
        one_epoch = clone(known).set_params(max_epochs=1, random_state=0)
        shape = STEPS_OF_FIT * one_epoch.batch_size, self.num_features
        steps = TYPICAL_EPOCHS * math.ceil(len(task.folds[0].training) / one_epoch.batch_size)
        key = repr(one_epoch), shape
        return expected_seconds(self.inputs, key, steps, one_epoch, shape, measured=STEPS_OF_FIT)


def _squared_error(trial: Trial, answers: Answers) -> Outcome:
    """The mean squared error of a setting."""
    tested = trial.task.tested
    errors = np.square(answers.predicted[Question()][tested] - trial.task.truth[tested])
    labels = {**trial.labels, "nets": ALL, "metric": "mse", "num_test": len(tested)}
    return Outcome([Record(**labels, value=float(errors.mean()))])


def predictor(
    inputs: Inputs, name: str, task: Task, features: str = kinds.LAYERS, snapshot: int | None = None
) -> Method:
    """A method that predicts from features, with the best setting for a task."""
    return TunedPredictor(inputs, name, task, features, snapshot).method


def meta_regressor(num_weights: int) -> DeepMetaRegressor:
    """The deep meta-classifier as a regressor on whole rows or long slices, narrow enough for a CPU."""
    length = min(SMALL_SETTINGS.slice_length, num_weights)
    settings = dataclasses.replace(SMALL_SETTINGS, slice_length=length, epochs=META_EPOCHS)
    return DeepMetaRegressor(**settings.of_estimator(), loss="squared_error")
