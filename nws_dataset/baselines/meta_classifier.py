"""The deep meta-classifier: predicts how a network was trained from slices of its weights.

Source: Eilertsen et al. 2020, arXiv 2002.05688. `DeepMetaClassifier` predicts classes (optimizer,
initialization, ...), `DeepMetaRegressor` numbers (learning rate, test accuracy).

Axes: N rows, S slices of a row, B slices of a batch, L weights in a slice, C outputs (classes, or 1).
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import assert_all_finite, check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from nws_dataset.baselines.saving import (
    FACTS,
    MAX_INTEGER,
    MAX_NUMBER,
    Allowed,
    SaveMixin,
    check_both,
    check_numeric,
    check_size,
    classes,
    history,
    integer,
    mean_and_scale,
    module_of,
    strings,
    tensors_of,
)
from nws_dataset.errors import ValueZooError, ZooError, reason
from nws_dataset.networks.layout import MAX_WEIGHTS
from nws_dataset.views.slices import (
    WEIGHT_BYTES,
    ArrayRows,
    SomeRows,
    Source,
    check_device,
    check_finite,
    even_starts,
    on_device,
    prefetched,
)

LONG_SLICE = 40_000  # longer slices get the deeper stack
# Channels of convolutions; "pool": a max-pool of 2; "pool?": one only while the signal is longer than 50.
SHALLOW_STACK = (8, "pool", 16, "pool", 32, 64, "pool", 128, 256, *("pool?", 256) * 6, "pool")
DEEP_STACK = tuple(
    itertools.chain(
        *((c, "pool") for c in (8, 16, 32, 64, *[128] * 5)), (128, 256, "pool"), (256, 256, "pool") * 2
    )
)
DENSE = (1024, 1024, 1024, 1024, 64)
SHORT_SIGNAL = 50
MIN_UNITS = 32  # of a dense layer, however small `width` is: fewer are a bottleneck
DECAY, NUM_DECAYS = 0.95, 50  # the learning rate falls by this factor, so many times per training
# raw weights are clipped to it: larger ones, of diverged networks, overflow in a few layers
MAX_WEIGHT = 1e4
NORM_EPSILON, NORM_MOMENTUM = 1e-5, 0.1
PREDICTED_SLICES, PREDICTED_WEIGHTS = 256, 1 << 22  # slices and their weights at a time, at most
MAX_RATIO = 1e37  # of a weight to linear_below: more has an infinite asinh in float32
MAX_LENGTH, MAX_WIDTH, MAX_SLICES = 1 << 24, 1000.0, 10**4
NETWORK = "network_"  # the attribute; its tensors are saved as network_.<name>
LOSSES = ("absolute_error", "squared_error")  # of a regressor
Positions = Sequence[float] | np.ndarray
MIN_PROBABILITY = 1e-12  # of the true class, in the validation loss


def build_network(slice_length: int, num_outputs: int, width: float = 1.0, dropout: float = 0.5) -> Any:
    """The paper's network on slices.

    Convolutions of width 5 (ReLU, then batch-norm) and max-pools, then dense layers (ReLU, batch-norm,
    dropout).

    Args:
        slice_length: L; above 40,000 the stack is deeper, with 12 pools. Pools that would leave nothing are
            omitted.
        num_outputs: C, classes or 1.
        width: factor on the channels and units; 1 is the paper's.
        dropout: probability that a dense unit is dropped.

    Returns:
        A torch module from [B, L] to logits [B, C]. Needs torch.

    Example:
        >>> import torch
        >>> build_network(5000, 4, width=0.125).eval()(torch.zeros(2, 5000)).shape
        torch.Size([2, 4])
    """
    import torch
    from torch import nn

    # A signal is an image of height 1: in two dimensions it can be channels-last, up to four times as fast on
    # a CPU.
    slice_length = int(slice_length)  # torch refuses numpy's integers
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 1, slice_length))]
    channels, length = 1, slice_length
    for item in DEEP_STACK if slice_length > LONG_SLICE else SHALLOW_STACK:
        if isinstance(item, int):
            units = max(4, round(item * width))
            layers += [
                nn.Conv2d(channels, units, (1, 5), padding=(0, 2)),
                nn.ReLU(),
                nn.BatchNorm2d(units, NORM_EPSILON, NORM_MOMENTUM),
            ]
            channels = units
        elif length > (SHORT_SIGNAL if item == "pool?" else 1):
            layers.append(nn.MaxPool2d((1, 2)))
            length //= 2
    layers.append(nn.Flatten())
    inputs = channels * length
    for item in DENSE:
        units = max(MIN_UNITS, round(item * width))
        layers += [
            nn.Linear(inputs, units),
            nn.ReLU(),
            nn.BatchNorm1d(units, NORM_EPSILON, NORM_MOMENTUM),
            nn.Dropout(dropout),
        ]
        inputs = units
    network = nn.Sequential(*layers, nn.Linear(inputs, num_outputs))
    _initialize(network)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _initialize(network: Any) -> None:
    """Glorot-normal weights, zero biases."""
    from torch import nn

    for module in network:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _positions(positions: Positions) -> np.ndarray:
    """Positions of slices in a row, 0..1, checked."""
    try:
        found = np.asarray(positions, np.float64)
    except (TypeError, ValueError):
        found = np.empty((0, 0))
    if found.ndim != 1 or not len(found) or not ((found >= 0) & (found <= 1)).all():
        do = "give positions in a row: 0 is its beginning, 1 its end"
        raise ValueZooError(
            "positions", expected="one or more numbers from 0 to 1", found=repr(positions), do=do
        )
    return found


def _ragged(X: Any) -> list[np.ndarray] | None:
    """Rows of any lengths, [P_i] float32, from a list, object array or pandas Series; None for a matrix.

    Raises:
        ZooError: if there are no rows, or one is not one-dimensional or not numbers.
    """
    if isinstance(X, np.ndarray) and X.dtype != object:
        return None
    # an object array or Series
    if not isinstance(X, list | tuple) and not (hasattr(X, "dtype") and getattr(X, "ndim", 0) == 1):
        return None
    rows = list(X)
    if not rows:
        raise ZooError("X", expected="rows of weights", found="none", do="give at least one")
    lengths = {len(row) if isinstance(row, list | tuple) else None for row in rows}
    if len(lengths) == 1 and not any(isinstance(row, np.ndarray) for row in rows):
        return None  # a matrix in lists, or not rows at all: scikit-learn checks it
    found: list[np.ndarray] = []
    for i, row in enumerate(rows):
        try:
            given = np.asarray(row)
            found.append(
                np.empty((0, 0), np.float32)
                if given.dtype.kind == "c"
                else given.astype(np.float32, copy=False)
            )
        except (RuntimeError, TypeError, ValueError):  # RuntimeError: tensors that require gradients
            found.append(np.empty((0, 0), np.float32))
        if found[-1].ndim != 1:
            found_type = f"{type(row).__name__} of {getattr(row, 'dtype', 'other things')}"
            raise ZooError(
                f"row {i} of X",
                expected="numbers in one dimension",
                found=found_type,
                do="give each row as [P] float32",
            )
    return found


class DeepMetaEstimator(SaveMixin, BaseEstimator):
    """Base class of the meta-classifier and meta-regressor: everything but the meaning of the outputs.

    Args:
        slice_length: L, weights in a slice.
        epochs: passes over the training rows.
        slices_per_row: slices at random positions of each row in an epoch.
        slices_per_prediction: evenly spread slices of a row, whose outputs a prediction averages.
        width: factor on the network's channels and units.
        dropout: probability that a dense unit is dropped in training.
        batch_size: slices per step.
        learning_rate: of Adam; multiplied by 0.95 fifty times per training.
        validation_fraction: share of the groups that is held out if `fit` gets no validation rows. The
            network of the best epoch on validation rows is kept; without any, the last one.
        linear_below: input asinh(w / linear_below), linear in smaller weights and logarithmic in larger ones:
            in batches of very different scales, batch-norm does not hide small weights. None: raw weights,
            as in the paper.
        loss: of a regressor, "absolute_error" (the paper's) or "squared_error"; a classifier minimises the
            cross-entropy.
        device: torch device. A GPU keeps training rows in its memory if half of what is free is enough.
        random_state: seed of everything random.
        progress: called after each epoch with the last entry of `history_`.
    """

    _allowed: ClassVar[Mapping[str, Allowed]] = {
        "slice_length": Allowed(1, MAX_LENGTH, integer=True),
        "epochs": Allowed(1, MAX_INTEGER, integer=True),
        "slices_per_row": Allowed(1, MAX_INTEGER, integer=True),
        "slices_per_prediction": Allowed(1, MAX_SLICES, integer=True),
        "width": Allowed(0, MAX_WIDTH, open_low=True),
        "dropout": Allowed(0, 1, open_high=True),
        "batch_size": Allowed(2, MAX_INTEGER, integer=True),  # batch-norm needs at least two
        "learning_rate": Allowed(open_low=True),
        "validation_fraction": Allowed(0, 1, open_high=True),
        "linear_below": Allowed(1e-30, 1e20, none=True),
        "loss": Allowed(choices=LOSSES),
    }

    def __init__(
        self,
        *,
        slice_length: int = 5000,
        epochs: int = 50,
        slices_per_row: int = 1,
        slices_per_prediction: int = 8,
        width: float = 1.0,
        dropout: float = 0.5,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.1,
        linear_below: float | None = None,
        loss: str = "absolute_error",
        device: str = "cpu",
        random_state: Any = None,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.slice_length = slice_length
        self.epochs = epochs
        self.slices_per_row = slices_per_row
        self.slices_per_prediction = slices_per_prediction
        self.width = width
        self.dropout = dropout
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.linear_below = linear_below
        self.loss = loss
        self.device = device
        self.random_state = random_state
        self.progress = progress

    def check_parameters(self) -> None:
        """As `SaveMixin.check_parameters`, and check `progress`.

        Raises:
            ValueZooError: if a parameter is not legal; it is a ValueError too.
        """
        super().check_parameters()
        if self.progress is not None and not callable(self.progress):
            raise ValueZooError(
                "progress",
                expected="a function, or None",
                found=repr(self.progress),
                do="choose another value",
            )

    def fit(
        self, X: Any, y: Any, groups: Any = None, X_validation: Any = None, y_validation: Any = None
    ) -> Any:
        """Train on rows.

        Args:
            X: [N, P] array, N one-dimensional arrays of any lengths (e.g. views of files: only slices are
                copied), or `ZooRows`.
            y: [N] labels, or numbers for a regressor.
            groups: [N] the model of each row, if there are several snapshots of a model: a model is used for
                training or validation, never for both. None: each row is a group.
            X_validation: rows of other models, to choose the epoch; None: a part of X is held out.
            y_validation: their labels or numbers.

        Returns:
            self.

        Raises:
            ZooError: if there are fewer than two classes or two training rows, or a weight is not finite.
            ValueError: if X, y and groups differ in length.
        """
        import torch

        self.check_parameters()
        check_both(X_validation, y_validation)
        check_device("device", self.device, "choose one that is there")
        source, random = self._rows(X, fitting=True), check_random_state(self.random_state)
        y = self._targets("y", y)
        groups = np.arange(len(y)) if groups is None else column_or_1d(groups)
        check_consistent_length(source.lengths, y, groups)
        if not (groups == groups).all():
            raise ValueZooError(
                "groups", expected="the model of each row", found="NaN", do="give every row one"
            )
        rows: Source
        held_out: Source
        if X_validation is None:
            training, validation = self._split(groups, random)
            rows, targets = SomeRows(source, training), y[training]
            held_out, truth = SomeRows(source, validation), y[validation]
        else:
            rows, targets, held_out, truth = (
                source,
                y,
                self._rows(X_validation),
                self._targets("y_validation", y_validation),
            )
            check_consistent_length(held_out.lengths, truth)
        encode = self._learn_targets(y)
        cuda = self.device.startswith("cuda")
        with torch.random.fork_rng(devices=[self.device] if cuda else []):
            with torch.device("meta"):  # shapes alone
                state = build_network(
                    self.slice_length, self._num_outputs(), self.width, self.dropout
                ).state_dict()
            check_size("slice_length, width", sum(tensor.numel() for tensor in state.values()), WEIGHT_BYTES)
            torch.manual_seed(int(random.randint(2**31 - 1)))
            self.network_ = build_network(
                self.slice_length, self._num_outputs(), self.width, self.dropout
            ).to(self.device)
            self._train(
                on_device(rows, self.device) if cuda else rows, encode(targets), held_out, truth, random
            )
        self.network_.eval()
        return self

    def _train(
        self,
        rows: Source,
        targets: np.ndarray,
        held_out: Source,
        truth: np.ndarray,
        random: np.random.RandomState,
    ) -> None:
        """Train for all epochs; keep the network of the best one on the validation rows."""
        self.history_: list[dict[str, Any]] = []
        self.best_epoch_, best, state = self.epochs, float("inf"), None
        for epoch, trained in enumerate(self._epochs(rows, targets, random), 1):
            loss, score = self._validation(self._outputs(held_out), truth) if len(truth) else (None, None)
            self.history_.append(
                {
                    "epoch": epoch,
                    "epochs": self.epochs,
                    **trained,
                    "validation_loss": loss,
                    "validation_score": score,
                }
            )
            if loss is not None and loss < best:
                self.best_epoch_, best = epoch, loss
                state = {name: tensor.clone() for name, tensor in self.network_.state_dict().items()}
            if self.progress is not None:
                self.progress(self.history_[-1])
        if state is not None:
            self.network_.load_state_dict(state)
        if not all(bool(tensor.isfinite().all()) for tensor in self.network_.state_dict().values()):
            do = "choose a smaller learning_rate, or linear_below"
            raise ValueZooError(
                "fit", expected="a network of finite weights", found="one that diverged", do=do
            )

    def _epochs(
        self, rows: Source, targets: np.ndarray, random: np.random.RandomState
    ) -> Iterator[dict[str, float]]:
        """Train epoch by epoch; yield its mean loss, its seconds, and its seconds of waiting for slices."""
        import torch

        if len(targets) < 2:
            raise ZooError(
                "fit", expected="two training rows or more", found=str(len(targets)), do="give more rows"
            )
        optimizer = torch.optim.Adam(self.network_.parameters(), self.learning_rate, fused=True)
        batch_size, per_row = int(self.batch_size), int(self.slices_per_row)  # numpy's integers overflow
        steps = max(1, len(targets) * per_row // batch_size)  # a partial last batch is dropped
        for epoch in range(self.epochs):
            self.network_.train()
            order = random.permutation(np.repeat(np.arange(len(targets)), per_row))
            starts = random.randint(0, np.maximum(0, rows.lengths[order] - self.slice_length) + 1)
            parts = [slice(i * batch_size, (i + 1) * batch_size) for i in range(steps)]
            batches = prefetched(functools.partial(self._batch, rows, targets, order, starts), parts)
            total, waited, started = torch.zeros((), device=self.device), 0.0, time.perf_counter()
            for i in range(steps):
                asked = time.perf_counter()
                slices_BL, target = next(batches)
                waited += time.perf_counter() - asked
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * DECAY ** int(
                        NUM_DECAYS * (epoch * steps + i) / (int(self.epochs) * steps)
                    )
                loss = self._loss(self._network(slices_BL), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            yield {"loss": float(total) / steps, "seconds": time.perf_counter() - started, "waited": waited}

    def _outputs(self, X: Any, positions: Positions | None = None) -> np.ndarray:
        """[N, C]: decoded outputs for rows, averaged over their slices."""
        import torch

        source = self._rows(X)
        spread = np.linspace(0, 1, self.slices_per_prediction) if positions is None else _positions(positions)
        starts_NS = even_starts(source.lengths, self.slice_length, spread)
        numbers, starts = np.repeat(np.arange(len(starts_NS)), starts_NS.shape[1]), starts_NS.ravel()
        at_once = max(
            1,
            min(
                PREDICTED_SLICES,
                PREDICTED_WEIGHTS // (int(self.slice_length) * max(1, math.ceil(self.width))),
            ),
        )
        parts = [slice(i, i + at_once) for i in range(0, len(starts), at_once)]
        self.network_.eval()
        outputs = [np.empty((0, self._num_outputs()))]
        with torch.inference_mode():
            for slices_BL in prefetched(lambda part: self._input(source, numbers[part], starts[part]), parts):
                outputs.append(self._decoded(self._network(slices_BL)).double().cpu().numpy())
        return np.concatenate(outputs).reshape(*starts_NS.shape, -1).mean(axis=1)

    def _network(self, slices_BL: Any) -> Any:
        """The network's outputs [B, C] for slices of weights."""
        import torch

        if self.linear_below is None:
            return self.network_(slices_BL.clamp(-MAX_WEIGHT, MAX_WEIGHT))
        return self.network_(torch.asinh((slices_BL / self.linear_below).clamp_(-MAX_RATIO, MAX_RATIO)))

    def _input(self, source: Source, numbers: np.ndarray, starts: np.ndarray) -> Any:
        """Slices [B, L] on the device."""
        import torch

        batch_BL = source.slices(numbers, starts, self.slice_length)
        if isinstance(batch_BL, np.ndarray):
            check_finite(batch_BL, numbers)
            return torch.from_numpy(batch_BL).to(self.device)
        return batch_BL

    def _batch(
        self, rows: Source, targets: np.ndarray, order: np.ndarray, starts: np.ndarray, part: slice
    ) -> tuple[Any, Any]:
        """Slices [B, L] and targets [B] of a part of an epoch, on the device."""
        import torch

        return self._input(rows, order[part], starts[part]), torch.from_numpy(targets[order[part]]).to(
            self.device
        )

    def _rows(self, X: Any, fitting: bool = False) -> Source:
        """A source of slices, with at least one row."""
        # float64 beyond float32 becomes infinite, and such rows are refused by name
        with np.errstate(over="ignore"):
            source = self._source(X, fitting)
        if not len(source.lengths):
            raise ValueZooError("X", expected="rows of weights", found="none", do="give at least one")
        return source

    def _source(self, X: Any, fitting: bool) -> Source:
        if hasattr(X, "slices"):
            return X
        if isinstance(X, Mapping | Iterator | Set | str | bytes) and not hasattr(X, "shape"):
            raise ValueZooError(
                "X",
                expected="rows of weights",
                found=type(X).__name__,
                do="give an array, a list of arrays, or ZooRows",
            )
        ragged = _ragged(X)
        if ragged is not None:
            return ArrayRows(ragged)
        return ArrayRows(validate_data(self, X, reset=fitting, dtype=np.float32, ensure_all_finite=False))

    def _split(self, groups: np.ndarray, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the training and the validation rows."""
        try:
            names = np.unique(groups)
        except TypeError as error:
            raise ValueZooError(
                "groups",
                expected="names of one kind",
                found=reason(error),
                do="make all of them texts, or numbers",
            ) from error
        held_out = np.isin(groups, random.permutation(names)[: round(len(names) * self.validation_fraction)])
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def _learned(self) -> dict[str, Any]:
        learned = super()._learned()
        return learned | tensors_of(learned.pop(NETWORK), NETWORK)

    def _restore(self, learned: dict[str, Any]) -> None:
        check_device("device", self.device, f'set "device" to "cpu" in {FACTS}')
        known = self._restore_targets(learned)
        make = functools.partial(
            build_network, self.slice_length, self._num_outputs(), self.width, self.dropout
        )
        network = module_of(learned, NETWORK, make)
        known |= {f"{NETWORK}.{name}" for name in network.state_dict()}
        self.history_, self.best_epoch_ = history(learned), integer(learned, "best_epoch_", 0, 1 << 31)
        known |= {"history_", "best_epoch_"}
        if "n_features_in_" in learned:
            self.n_features_in_ = integer(learned, "n_features_in_", 1, MAX_WEIGHTS)
        if "feature_names_in_" in learned:
            self.feature_names_in_ = strings(learned, "feature_names_in_", self.n_features_in_)
        unknown = sorted(learned.keys() - known - {"n_features_in_", "feature_names_in_"})
        if unknown:
            raise ValueError(f"expected what a {type(self).__name__} learns, found {unknown[0]!r}")
        self.network_ = network.to(self.device).eval()

    def _restore_targets(self, learned: dict[str, Any]) -> set[str]:
        """Check and set the classes or the scale; returns the names."""
        raise NotImplementedError

    def _targets(self, name: str, y: Any) -> np.ndarray:
        """Targets, checked."""
        y = column_or_1d(y, warn=True)
        if y.dtype.kind == "f":
            assert_all_finite(y, input_name=name)
        return y

    # What differs between classifier and regressor.

    def _learn_targets(self, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Learn the classes or the scale; returns the function from targets to the network's."""
        raise NotImplementedError

    def _num_outputs(self) -> int:
        """C, the number of outputs."""
        raise NotImplementedError

    def _loss(self, outputs_BC: Any, target_B: Any) -> Any:
        """The loss of a batch."""
        raise NotImplementedError

    def _decoded(self, outputs_BC: Any) -> Any:
        """Outputs in the form that is averaged over slices."""
        raise NotImplementedError

    def _validation(self, outputs_NC: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """Loss and score of averaged outputs."""
        raise NotImplementedError


class DeepMetaClassifier(ClassifierMixin, DeepMetaEstimator):
    """A 1-D convolutional network on slices of consecutive weights; predictions average several slices.

    Rows shorter than a slice are padded with zeros at their end. Defaults are the paper's. The same
    `random_state`, device and number of torch threads give the same result. Parameters are those of
    `DeepMetaEstimator`. Needs torch.

    Attributes:
        classes_: [C] the labels, sorted.
        network_: the torch module.
        best_epoch_: the epoch whose network was kept.
        history_: a dict per epoch: epoch, epochs, loss (training, with dropout), seconds of training and
            of waiting for slices, validation_loss and validation_score (accuracy of rows; None without
            validation).

    Example:
        >>> random = np.random.default_rng(0)
        >>> rows = [random.normal(0, scale, (40, 300)) for scale in (0.1, 1)]
        >>> rows = np.concatenate(rows).astype(np.float32)
        >>> labels = np.repeat(["narrow", "wide"], 40)
        >>> classifier = DeepMetaClassifier(
        ...     slice_length=100, epochs=20, width=1 / 16, dropout=0.0, batch_size=16, random_state=0
        ... )
        >>> classifier.fit(rows, labels).score(rows, labels) > 0.9
        True
        >>> classifier.predict(rows[:1]).tolist(), classifier.predict_proba(rows[:1]).shape
        (['narrow'], (1, 2))
    """

    def predict_proba(self, X: Any, positions: Positions | None = None) -> np.ndarray:
        """Probabilities of the classes, averaged over a row's slices.

        Args:
            X: rows, as in `fit`.
            positions: of the slices, 0 at the row's beginning and 1 at its end; None for
                `slices_per_prediction` evenly spread ones.

        Returns:
            [N, C].

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ZooError: if there are no rows, or a weight is not finite.
        """
        check_is_fitted(self)
        return self._outputs(X, positions)

    def predict(self, X: Any, positions: Positions | None = None) -> np.ndarray:
        """The most probable class of each row.

        Args:
            X: rows, as in `fit`.
            positions: as in `predict_proba`.

        Returns:
            [N] labels.

        Raises:
            ZooError: as `predict_proba`.
        """
        best = self.predict_proba(X, positions).argmax(axis=1)
        return self.classes_[best]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # on scikit-learn's test data of two columns, which are not slices of weights
        tags.classifier_tags.poor_score = True
        return tags

    def _learn_targets(self, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        try:
            check_classification_targets(y)
            self.classes_ = np.unique(y)
        except TypeError as error:  # labels of mixed types, which have no order, or bytes
            raise ValueZooError(
                "y", expected="labels that are texts or whole numbers", found=reason(error), do="convert them"
            ) from error
        if not all(isinstance(label, str | int | float) for label in self.classes_.tolist()):
            found = f"labels of {self.classes_.dtype}"
            raise ValueZooError(
                "y", expected="labels that are texts or whole numbers", found=found, do="convert them"
            )
        if len(self.classes_) < 2:
            raise ZooError(
                "fit",
                expected="two classes or more",
                found=str(list(self.classes_)),
                do="give rows of another class too",
            )
        return lambda labels: np.searchsorted(self.classes_, labels)

    def _restore_targets(self, learned: dict[str, Any]) -> set[str]:
        self.classes_ = classes(learned)
        return {"classes_"}

    def _num_outputs(self) -> int:
        return len(self.classes_)

    def _loss(self, outputs_BC: Any, target_B: Any) -> Any:
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs_BC, target_B)

    def _decoded(self, outputs_BC: Any) -> Any:
        return outputs_BC.softmax(1)

    def _validation(self, outputs_NC: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        # 0 for a class that was not in training
        of_truth = np.where(self.classes_ == y[:, None], outputs_NC, 0).sum(axis=1)
        score = np.mean(self.classes_[outputs_NC.argmax(axis=1)] == y)
        return float(-np.log(of_truth + MIN_PROBABILITY).mean()), float(score)


class DeepMetaRegressor(RegressorMixin, DeepMetaEstimator):
    """The meta-classifier's network with one output, for numbers such as learning rate or test accuracy.

    Targets are standardised by the training rows' mean and standard deviation, and their mean absolute error
    is minimised, as in the paper. Pass the logarithm of targets whose ratios matter. Parameters are those of
    `DeepMetaEstimator`. Needs torch.

    Attributes:
        mean_, scale_: of the training targets.
        network_, best_epoch_, history_: as `DeepMetaClassifier`; validation_score is R2 (None without
            validation).

    Example:
        >>> random = np.random.default_rng(0)
        >>> spread = random.uniform(0.1, 1, 120)
        >>> rows = (random.normal(size=(120, 300)) * spread[:, None]).astype(np.float32)
        >>> regressor = DeepMetaRegressor(
        ...     slice_length=100, epochs=60, width=1 / 16, dropout=0.0, batch_size=16, learning_rate=3e-3,
        ...     random_state=0,
        ... )
        >>> regressor.fit(rows, spread).score(rows, spread) > 0.8
        True
    """

    def predict(self, X: Any, positions: Positions | None = None) -> np.ndarray:
        """The predicted number of each row, averaged over its slices.

        Args:
            X: rows, as in `fit`.
            positions: as in `DeepMetaClassifier.predict_proba`.

        Returns:
            [N] float64.

        Raises:
            ZooError: as `DeepMetaClassifier.predict_proba`.
        """
        check_is_fitted(self)
        return self.mean_ + self.scale_ * self._outputs(X, positions)[:, 0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # as the classifier's
        return tags

    def _targets(self, name: str, y: Any) -> np.ndarray:
        check_numeric(name, y)
        y = column_or_1d(y, warn=True)
        try:
            numbers = super()._targets(name, y.astype(np.float64))
        except TypeError as error:
            raise ValueZooError(name, expected="numbers", found=reason(error), do="convert them") from error
        if len(numbers) and np.abs(numbers).max() > MAX_NUMBER:
            expected = f"numbers of at most {MAX_NUMBER}"
            raise ValueZooError(
                name, expected=expected, found=str(np.abs(numbers).max()), do="scale them, or give logarithms"
            )
        return numbers

    def _learn_targets(self, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        self.mean_, self.scale_ = float(y.mean()), float(y.std()) or 1.0
        return lambda numbers: ((np.asarray(numbers, np.float64) - self.mean_) / self.scale_).astype(
            np.float32
        )

    def _restore_targets(self, learned: dict[str, Any]) -> set[str]:
        self.mean_, self.scale_ = mean_and_scale(learned)
        return {"mean_", "scale_"}

    def _num_outputs(self) -> int:
        return 1

    def _loss(self, outputs_BC: Any, target_B: Any) -> Any:
        from torch.nn import functional

        error = functional.l1_loss if self.loss == "absolute_error" else functional.mse_loss
        return error(outputs_BC[:, 0], target_B)

    def _decoded(self, outputs_BC: Any) -> Any:
        return outputs_BC

    def _validation(self, outputs_NC: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        predicted = self.mean_ + self.scale_ * outputs_NC[:, 0]
        error = np.abs(predicted - y) if self.loss == "absolute_error" else (predicted - y) ** 2
        return float(error.mean()), float(r2_score(y, predicted)) if len(y) > 1 else float("nan")
