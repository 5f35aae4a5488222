"""Features -> test accuracy: the predictors of Unterthiner et al. 2020 as scikit-learn regressors.

All three (arXiv 2002.11448) minimise the squared error, stop early on held-out networks, and predict within
`target_range`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import assert_all_finite, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from nws_dataset.baselines.boosting import boost
from nws_dataset.baselines.saving import (
    MAX_INTEGER,
    MAX_NUMBER,
    Allowed,
    SaveMixin,
    array,
    check_both,
    check_numeric,
    check_size,
    integer,
    numbers,
    strings,
    tensors_of,
)
from nws_dataset.baselines.trees import Trees
from nws_dataset.errors import ValueZooError

MAX_FEATURES, MAX_LAYERS = 10**7, 1000
MAX_TREES, MAX_DEPTH, MAX_THREADS = 10**6, 64, 1024
STANDARDIZER = "standardizer_"  # the attribute; its arrays are saved as standardizer_.<name>
MAX_FEATURE_VALUE = 1e150  # larger values are clipped, so that differences and ratios stay finite
MIN_SAMPLES_TO_SPLIT = 20  # with fewer training samples none are held out for early stopping


@dataclass(frozen=True)
class Standardizer:
    """Scales F features for linear and dense models; fitted on the training samples.

    Statistics of weights have long tails (a diverged network's are 1e30), beside which all others look alike.
    So a feature is first squashed, asinh((x - median) / spread), and clipped at its 1 % and 99 % quantiles;
    then it gets mean 0 and standard deviation 1.
    """

    median: np.ndarray  # [F], also replaces NaN
    spread: np.ndarray  # [F], interquartile range
    low: np.ndarray  # [F]
    high: np.ndarray  # [F]
    mean: np.ndarray  # [F]
    scale: np.ndarray  # [F]

    @classmethod
    def fit(cls, X: np.ndarray) -> Standardizer:
        X = X.clip(-MAX_FEATURE_VALUE, MAX_FEATURE_VALUE)
        X[:, np.isnan(X).all(axis=0)] = 0.0  # features that no training sample has
        median = np.nanmedian(X, axis=0)
        X = np.where(np.isnan(X), median, X)
        spread = np.subtract(*np.quantile(X, (0.75, 0.25), axis=0))
        # a feature of mostly one value, e.g. a one-hot one, has no spread
        varies = spread > np.maximum(1e-12 * np.abs(median), 1 / MAX_FEATURE_VALUE)
        spread = np.where(varies, spread, 1.0)
        Z = np.arcsinh((X - median) / spread)
        low, high = np.quantile(Z, (0.01, 0.99), axis=0)
        Z = Z.clip(low, high)
        scale = Z.std(axis=0)
        return cls(median, spread, low, high, Z.mean(axis=0), np.where(scale > 1e-12, scale, 1.0))

    def __call__(self, X: np.ndarray) -> np.ndarray:
        X = X.clip(-MAX_FEATURE_VALUE, MAX_FEATURE_VALUE)
        Z = np.arcsinh((np.where(np.isnan(X), self.median, X) - self.median) / self.spread)
        return (Z.clip(self.low, self.high) - self.mean) / self.scale

    def to_learned(self) -> dict[str, np.ndarray]:
        """Its arrays by the names that they are saved by."""
        return {f"{STANDARDIZER}.{name}": value for name, value in asdict(self).items()}

    @classmethod
    def of_learned(cls, learned: Mapping[str, Any], num_features: int) -> Standardizer:
        """What `to_learned` returned; raises a ValueError if an array is missing or of another form."""
        names = [field.name for field in fields(cls)]
        found = cls(*(array(learned, f"{STANDARDIZER}.{name}", (num_features,)) for name in names))
        if not (found.spread * found.scale).all():
            raise ValueError(f"{STANDARDIZER}: expected a spread and a scale that are not 0")
        return found


class Predictor(SaveMixin, RegressorMixin, BaseEstimator):
    """Base class of the three predictors: checks, the target's range, the split for early stopping.

    Internally the target is scaled from `target_range` to 0..1.
    """

    target_range: tuple[float, float] | None
    validation_fraction: float
    random_state: Any
    _standardized = True  # whether it fits a Standardizer
    _allowed: ClassVar[Mapping[str, Allowed]] = {"validation_fraction": Allowed(0, 1, open_high=True)}

    def fit(self, X: Any, y: Any, X_validation: Any = None, y_validation: Any = None) -> Any:
        """Fit to features and targets.

        Args:
            X: [N, F] features; NaN where a network lacks the tensor.
            y: [N] targets in `target_range`.
            X_validation: [V, F] features of other networks, for early stopping; None: a part of X, chosen by
                random_state, is held out.
            y_validation: [V] their targets.

        Returns:
            self.

        Raises:
            ValueError: if a parameter is not legal, X and y differ in length, or a target is outside
                `target_range`.
        """
        self.check_parameters()
        check_both(X_validation, y_validation)
        for name, targets in {"y": y, "y_validation": y_validation}.items():
            check_numeric(name, targets)
        X, y = validate_data(self, X, y, y_numeric=True, dtype=np.float64, ensure_all_finite="allow-nan")
        held_out = X_validation is not None
        if held_out:
            X_validation, y_validation = validate_data(
                self,
                X_validation,
                y_validation,
                reset=False,
                y_numeric=True,
                dtype=np.float64,
                ensure_all_finite="allow-nan",
            )
        for name, targets in {"y": y, "y_validation": y_validation}.items():
            if targets is not None:
                assert_all_finite(targets, input_name=name)  # only now None among objects is NaN
        self.target_range_ = self._range(np.concatenate([y, y_validation]) if held_out else y)
        low, high = self.target_range_
        random = check_random_state(self.random_state)
        if held_out:
            parts = X, (y - low) / (high - low), X_validation, (y_validation - low) / (high - low)
        else:
            training, validation = self._split(len(X), random)
            parts = (
                X[training],
                (y[training] - low) / (high - low),
                X[validation],
                (y[validation] - low) / (high - low),
            )
        self._fit(*parts, seed=int(random.randint(2**31 - 1)))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict the targets of networks.

        Args:
            X: [N, F] features; NaN where a network lacks the tensor.

        Returns:
            [N] float64, within `target_range`.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ValueError: if X does not have the number of features of `fit`.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64, ensure_all_finite="allow-nan")
        low, high = self.target_range_
        return low + (high - low) * self._predict(X).clip(0.0, 1.0)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def check_parameters(self) -> None:
        """As `SaveMixin.check_parameters`, and check the target's range.

        Raises:
            ValueZooError: if a parameter is not legal; it is a ValueError too.
        """
        super().check_parameters()
        if self.target_range is not None:
            pair = (
                self.target_range
                if isinstance(self.target_range, tuple | list) and len(self.target_range) == 2
                else (0, 0)
            )
            if not all(Allowed(-MAX_NUMBER).allows(end) for end in pair) or not pair[0] < pair[1]:
                expected, do = "None, or two numbers, the larger one last", "choose another value"
                raise ValueZooError("target_range", expected=expected, found=repr(self.target_range), do=do)

    def _range(self, y: np.ndarray) -> tuple[float, float]:
        low, high = (-MAX_NUMBER, MAX_NUMBER) if self.target_range is None else map(float, self.target_range)
        if y.min() < low or y.max() > high:
            found = f"{y.min():.6g} .. {y.max():.6g}"
            raise ValueZooError(
                "y", expected=f"targets in {low} .. {high}", found=found, do="scale them, or set target_range"
            )
        if self.target_range is None:
            low, high = float(y.min()), float(y.max())
            return low, high if high > low else low + max(1.0, 1e-6 * abs(low))
        return low, high

    def _split(self, num_samples: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the training and validation samples; both are all of them if there are too few."""
        everything = np.arange(num_samples)
        if num_samples < MIN_SAMPLES_TO_SPLIT or self.validation_fraction == 0:
            return everything, everything
        count = min(num_samples - 1, max(1, round(num_samples * self.validation_fraction)))
        validation = np.sort(random.permutation(num_samples)[:count])
        return np.setdiff1d(everything, validation), validation

    def _learned(self) -> dict[str, Any]:
        learned = super()._learned()
        standardizer = learned.pop(STANDARDIZER, None)
        return learned | (standardizer.to_learned() if standardizer else {})

    def _restore(self, learned: dict[str, Any]) -> None:
        num_features = integer(learned, "n_features_in_", 1, MAX_FEATURES)
        if "feature_names_in_" in learned:
            strings(learned, "feature_names_in_", num_features)
        low, high = numbers(learned, "target_range_", 2)
        if not low <= high:
            raise ValueError(f"target_range_: expected a range, found {low} to {high}")
        if self._standardized:
            self.standardizer_ = Standardizer.of_learned(learned, num_features)
        own = self._restore_own(learned, num_features)
        known = {
            "n_features_in_",
            "feature_names_in_",
            "target_range_",
            *(f"{STANDARDIZER}.{field.name}" for field in fields(Standardizer)),
        }
        unknown = sorted(learned.keys() - known - own)
        if unknown:
            raise ValueError(f"expected what a {type(self).__name__} learns, found {unknown[0]!r}")
        self.n_features_in_, self.target_range_ = num_features, (low, high)
        if "feature_names_in_" in learned:
            self.feature_names_in_ = learned["feature_names_in_"]

    def _restore_own(self, learned: dict[str, Any], num_features: int) -> set[str]:
        """Check and set what only this class learns; returns the names."""
        raise NotImplementedError

    def _fit(
        self, X: np.ndarray, y: np.ndarray, X_validation: np.ndarray, y_validation: np.ndarray, seed: int
    ) -> None:
        raise NotImplementedError

    def _predict(self, X: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class LogitLinear(Predictor):
    """One sigmoid unit on standardised features, fitted by L-BFGS to the squared error.

    Args:
        l2: weight of the squared coefficients in the loss.
        max_iter: iterations at most; the best one on the validation samples is kept.
        validation_fraction: part of the samples that is held out when `fit` is given no validation samples.
        target_range: legal targets, which bound predictions; None: that of the targets seen in `fit`.
        random_state: seed of the split.

    Example:
        >>> X = np.linspace(-1, 1, 100).reshape(-1, 1)
        >>> y = 1 / (1 + np.exp(-3 * X[:, 0]))
        >>> predictor = LogitLinear(random_state=0).fit(X, y)
        >>> round(predictor.score(X, y), 2), predictor.predict(X[:2]).shape
        (1.0, (2,))
    """

    _allowed: ClassVar[Mapping[str, Allowed]] = {
        **Predictor._allowed,
        "l2": Allowed(),
        "max_iter": Allowed(1, MAX_INTEGER, integer=True),
    }

    def __init__(
        self,
        *,
        l2: float = 1e-5,
        max_iter: int = 500,
        validation_fraction: float = 0.1,
        target_range: tuple[float, float] | None = (0.0, 1.0),
        random_state: Any = None,
    ) -> None:
        self.l2 = l2
        self.max_iter = max_iter
        self.validation_fraction = validation_fraction
        self.target_range = target_range
        self.random_state = random_state

    def _fit(
        self, X: np.ndarray, y: np.ndarray, X_validation: np.ndarray, y_validation: np.ndarray, seed: int
    ) -> None:
        self.standardizer_ = Standardizer.fit(X)
        X, X_validation = self.standardizer_(X), self.standardizer_(X_validation)

        def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            w, p = parameters[:-1], expit(X @ parameters[:-1] + parameters[-1])
            slope = 2 * (p - y) * p * (1 - p) / len(y)
            return float(np.mean((p - y) ** 2) + self.l2 * w @ w), np.append(
                X.T @ slope + 2 * self.l2 * w, slope.sum()
            )

        start = np.append(np.zeros(X.shape[1]), logit(y.mean().clip(1e-3, 1 - 1e-3)))
        steps = [start]

        def keep(parameters: np.ndarray) -> None:
            steps.append(parameters.copy())

        minimize(loss, start, jac=True, method="L-BFGS-B", callback=keep, options={"maxiter": self.max_iter})
        errors = [np.mean((expit(X_validation @ s[:-1] + s[-1]) - y_validation) ** 2) for s in steps]
        best = int(np.argmin(errors))
        self.coef_, self.intercept_ = steps[best][:-1], float(steps[best][-1])
        self.n_iter_ = max(1, best)

    def _predict(self, X: np.ndarray) -> np.ndarray:
        return expit(self.standardizer_(X) @ self.coef_ + self.intercept_)

    def _restore_own(self, learned: dict[str, Any], num_features: int) -> set[str]:
        self.coef_ = array(learned, "coef_", (num_features,))
        (self.intercept_,) = numbers({"intercept_": [learned.get("intercept_")]}, "intercept_", 1)
        self.n_iter_ = integer(learned, "n_iter_", 1, 1 << 31)
        return {"coef_", "intercept_", "n_iter_"}


MIN_BAGGED = 10  # samples that a tree sees, at least


class GradientBoosting(Predictor):
    """LightGBM's boosted trees; NaN are allowed. Needs the package lightgbm to fit, not to predict.

    Learns `trees_`; after `fit` there is also LightGBM's own `booster_`, which is not saved.

    Args:
        num_trees: trees at most; `fit` stops `patience` trees after the best on the validation samples.
        max_depth: of a tree.
        learning_rate: shrinkage of a tree.
        min_rows_in_leaf: samples of a leaf at least, or a tenth of the training samples if that is less.
        feature_fraction: share of the features that a tree may use.
        row_fraction: share of the training samples that a tree sees.
        patience: see num_trees.
        num_threads: threads; 0 is one per core. The same number gives the same result.
        validation_fraction: part of the samples that is held out when `fit` is given no validation samples.
        target_range: legal targets, which bound predictions; None: that of the targets seen in `fit`.
        random_state: seed of the split and of the features of a tree.

    Example:
        >>> X = np.linspace(-1, 1, 200).reshape(-1, 1)
        >>> y = X[:, 0] ** 2
        >>> predictor = GradientBoosting(num_trees=100, learning_rate=0.1, num_threads=1, random_state=0)
        >>> predictor.fit(X, y).score(X, y) > 0.9, predictor.predict(X[:2]).shape
        (True, (2,))
    """

    _standardized = False
    _allowed: ClassVar[Mapping[str, Allowed]] = {
        **Predictor._allowed,
        "num_trees": Allowed(1, MAX_TREES, integer=True),
        "max_depth": Allowed(1, MAX_DEPTH, integer=True),
        "learning_rate": Allowed(open_low=True),
        "min_rows_in_leaf": Allowed(1, MAX_INTEGER, integer=True),
        "feature_fraction": Allowed(0, 1, open_low=True),
        "row_fraction": Allowed(0, 1, open_low=True),
        "patience": Allowed(1, MAX_INTEGER, integer=True),
        "num_threads": Allowed(0, MAX_THREADS, integer=True),
    }

    def __init__(
        self,
        *,
        num_trees: int = 2000,
        max_depth: int = 6,
        learning_rate: float = 0.05,
        min_rows_in_leaf: int = 10,
        feature_fraction: float = 0.3,
        row_fraction: float = 0.7,
        patience: int = 50,
        num_threads: int = 0,
        validation_fraction: float = 0.1,
        target_range: tuple[float, float] | None = (0.0, 1.0),
        random_state: Any = None,
    ) -> None:
        self.num_trees = num_trees
        self.max_depth = max_depth
        self.learning_rate = learning_rate
        self.min_rows_in_leaf = min_rows_in_leaf
        self.feature_fraction = feature_fraction
        self.row_fraction = row_fraction
        self.patience = patience
        self.num_threads = num_threads
        self.validation_fraction = validation_fraction
        self.target_range = target_range
        self.random_state = random_state

    def _fit(
        self, X: np.ndarray, y: np.ndarray, X_validation: np.ndarray, y_validation: np.ndarray, seed: int
    ) -> None:
        self.booster_ = boost(
            X,
            y,
            X_validation,
            y_validation,
            num_trees=self.num_trees,
            patience=int(self.patience),
            seed=seed,
            where="GradientBoosting",
            objective="regression",
            metric="l2",
            learning_rate=self.learning_rate,
            max_depth=self.max_depth,
            num_leaves=min(31, 2 ** int(self.max_depth)),
            min_data_in_leaf=max(1, min(self.min_rows_in_leaf, len(X) // 10)),
            feature_fraction=self.feature_fraction,
            bagging_fraction=min(1.0, max(self.row_fraction, MIN_BAGGED / len(X))),
            bagging_freq=1,
            num_threads=self.num_threads,
        )
        self.trees_ = Trees.of(self.booster_)

    def _predict(self, X: np.ndarray) -> np.ndarray:
        return self.trees_.predict(X)

    def _learned(self) -> dict[str, Any]:
        learned = super()._learned()
        learned.pop("booster_", None)
        return learned | {f"trees_.{name}": value for name, value in asdict(learned.pop("trees_")).items()}

    def _restore_own(self, learned: dict[str, Any], num_features: int) -> set[str]:
        names = {field.name: f"trees_.{field.name}" for field in fields(Trees)}
        trees = Trees(**{name: learned[key] for name, key in names.items()})
        trees.check(num_features)
        self.trees_ = trees
        return set(names.values())


class DenseNet(Predictor):
    """Dense layers with ReLU and one sigmoid output, on standardised features. Needs torch.

    Args:
        num_layers: hidden layers.
        num_units: units of each.
        dropout: probability that a unit is dropped.
        l2: Adam's decoupled weight decay.
        learning_rate: of Adam.
        batch_size: samples per step.
        max_epochs: epochs at most; training stops `patience` epochs after the best on the validation samples,
            whose weights are kept.
        patience: see max_epochs.
        validation_fraction: part of the samples that is held out when `fit` is given no validation samples.
        target_range: legal targets, which bound predictions; None: that of the targets seen in `fit`.
        random_state: seed of the split, the initial weights, the order of samples and dropout.

    Example:
        >>> X = np.linspace(-1, 1, 200).reshape(-1, 1)
        >>> y = X[:, 0] ** 2
        >>> predictor = DenseNet(num_layers=2, num_units=32, dropout=0, learning_rate=0.01, random_state=0)
        >>> predictor.fit(X, y).score(X, y) > 0.9, predictor.predict(X[:2]).shape
        (True, (2,))
    """

    _allowed: ClassVar[Mapping[str, Allowed]] = {
        **Predictor._allowed,
        "num_layers": Allowed(0, MAX_LAYERS, integer=True),
        "num_units": Allowed(1, MAX_FEATURES, integer=True),
        "dropout": Allowed(0, 1, open_high=True),
        "l2": Allowed(),
        "learning_rate": Allowed(open_low=True),
        "batch_size": Allowed(1, MAX_INTEGER, integer=True),
        "max_epochs": Allowed(1, MAX_INTEGER, integer=True),
        "patience": Allowed(1, MAX_INTEGER, integer=True),
    }

    def __init__(
        self,
        *,
        num_layers: int = 3,
        num_units: int = 256,
        dropout: float = 0.1,
        l2: float = 1e-2,
        learning_rate: float = 1e-3,
        batch_size: int = 128,
        max_epochs: int = 300,
        patience: int = 20,
        validation_fraction: float = 0.1,
        target_range: tuple[float, float] | None = (0.0, 1.0),
        random_state: Any = None,
    ) -> None:
        self.num_layers = num_layers
        self.num_units = num_units
        self.dropout = dropout
        self.l2 = l2
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.target_range = target_range
        self.random_state = random_state

    def _fit(
        self, X: np.ndarray, y: np.ndarray, X_validation: np.ndarray, y_validation: np.ndarray, seed: int
    ) -> None:
        import torch

        shapes = self._shapes(X.shape[1]).values()
        check_size("num_units, num_layers", sum(map(math.prod, shapes)), 8)
        self.standardizer_ = Standardizer.fit(X)
        held_out = (
            torch.from_numpy(self.standardizer_(X_validation)).float(),
            torch.from_numpy(y_validation).float(),
        )
        training = torch.from_numpy(self.standardizer_(X)).float(), torch.from_numpy(y).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network_ = self._network(X.shape[1])
            best, since, state = float("inf"), 0, None
            for error in self._epochs(*training, *held_out):
                if error < best:
                    best, since, state = (
                        error,
                        0,
                        {name: tensor.clone() for name, tensor in self.network_.state_dict().items()},
                    )
                since += 1
                if since > self.patience:
                    break
        if state is None:
            do = "choose a smaller learning_rate"
            raise ValueZooError(
                "fit", expected="a finite error on the validation samples", found="none in any epoch", do=do
            )
        self.network_.load_state_dict(state)
        self.network_.double().eval()  # in float64 a prediction does not depend on other samples of the batch

    def _shapes(self, num_features: int) -> dict[str, tuple[int, ...]]:
        """Name of a saved tensor -> its shape."""
        widths = [num_features, *[int(self.num_units)] * int(self.num_layers), 1]
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (before, after) in enumerate(itertools.pairwise(widths)):  # a layer, ReLU and dropout
            shapes |= {f"network_.{3 * i}.weight": (after, before), f"network_.{3 * i}.bias": (after,)}
        return shapes

    def _network(self, num_features: int) -> Any:
        from torch import nn

        from nws_dataset.baselines.dropout import Dropout

        layers: list[nn.Module] = []
        for i in range(self.num_layers):
            layers += [
                nn.Linear(self.num_units if i else num_features, self.num_units),
                nn.ReLU(),
                Dropout(self.dropout),
            ]
        return nn.Sequential(
            *layers, nn.Linear(self.num_units if layers else num_features, 1), nn.Sigmoid(), nn.Flatten(0)
        )

    def _epochs(self, X: Any, y: Any, X_validation: Any, y_validation: Any) -> Iterator[float]:
        """Train an epoch at a time; yields the mean squared error on the validation samples."""
        import torch

        optimizer = torch.optim.AdamW(
            self.network_.parameters(), self.learning_rate, weight_decay=self.l2, fused=True
        )
        for _ in range(self.max_epochs):
            self.network_.train()
            for batch in torch.randperm(len(X)).split(int(self.batch_size)):
                optimizer.zero_grad()
                torch.mean((self.network_(X[batch]) - y[batch]) ** 2).backward()
                optimizer.step()
            self.network_.eval()
            with torch.no_grad():
                yield float(torch.mean((self.network_(X_validation) - y_validation) ** 2))

    def _predict(self, X: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self.network_(torch.from_numpy(self.standardizer_(X))).numpy()

    def _learned(self) -> dict[str, Any]:
        learned = super()._learned()
        return learned | tensors_of(learned.pop("network_"), "network_")

    def _restore_own(self, learned: dict[str, Any], num_features: int) -> set[str]:
        import torch

        shapes = self._shapes(num_features)
        # before any layer is made
        state = {name: torch.from_numpy(array(learned, name, shape)) for name, shape in shapes.items()}
        self.network_ = self._network(num_features).double().eval()
        self.network_.load_state_dict(
            {name.removeprefix("network_."): tensor for name, tensor in state.items()}
        )
        return set(shapes)
