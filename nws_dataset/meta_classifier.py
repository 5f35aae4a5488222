"""The deep meta-classifier: reads a property of a training off a slice of the weights (Eilertsen et al. 2020, arXiv 2002.05688).

Axes: N rows, L weights in a slice, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from nws_dataset.errors import ZooError

LONG_SLICE = 40_000  # longer slices go through the deeper stack
# Channels of the convolutions, "pool" for a max-pool of 2, "pool?" for one that only happens while the signal is longer than 50.
SHALLOW_STACK = (8, "pool", 16, "pool", 32, 64, "pool", 128, 256, *("pool?", 256) * 6, "pool")
DEEP_STACK = tuple(itertools.chain(*((c, "pool") for c in (8, 16, 32, 64, *[128] * 5)), (128, 256, "pool"), (256, 256, "pool") * 2))
DENSE = (1024, 1024, 1024, 1024, 64)
SHORT_SIGNAL = 50
FEWEST_UNITS = 32  # of a dense layer, however slim the network: less is a bottleneck
DECAY, NUM_DECAYS = 0.95, 50  # the learning rate falls by this factor, so many times over the training
LARGEST = 1e4  # raw weights are clipped to this size: the larger ones of diverged nets would overflow in a few layers
NORM_EPSILON, NORM_MOMENTUM = 1e-5, 0.1
Slice = tuple[int, int]  # (place of the row, place of the slice's first weight in it)


def build_network(slice_length: int, num_classes: int, width: float = 1.0, dropout: float = 0.5) -> Any:
    """The paper's network on slices.

    Convolutions of width 5 (ReLU, then batch-norm) and max-pools, then dense layers (ReLU, batch-norm, dropout).

    Args:
        slice_length: L; beyond 40,000 the deeper stack with 12 pools is taken. A pool that would leave nothing is left out.
        num_classes: C.
        width: factor on the channels and units; 1 is the paper's.
        dropout: probability that a dense unit is dropped.

    Returns:
        a torch module from [B, L] to logits [B, C]. Needs torch.

    Example:
        >>> import torch
        >>> build_network(5000, 4, width=0.125).eval()(torch.zeros(2, 5000)).shape
        torch.Size([2, 4])
    """
    from torch import nn

    layers: list[nn.Module] = [nn.Unflatten(1, (1, slice_length))]
    channels, length = 1, slice_length
    for item in DEEP_STACK if slice_length > LONG_SLICE else SHALLOW_STACK:
        if isinstance(item, int):
            units = max(4, round(item * width))
            layers += [nn.Conv1d(channels, units, 5, padding=2), nn.ReLU(), nn.BatchNorm1d(units, NORM_EPSILON, NORM_MOMENTUM)]
            channels = units
        elif length > (SHORT_SIGNAL if item == "pool?" else 1):
            layers.append(nn.MaxPool1d(2))
            length //= 2
    layers.append(nn.Flatten())
    inputs = channels * length
    for item in DENSE:
        units = max(FEWEST_UNITS, round(item * width))
        layers += [nn.Linear(inputs, units), nn.ReLU(), nn.BatchNorm1d(units, NORM_EPSILON, NORM_MOMENTUM), nn.Dropout(dropout)]
        inputs = units
    network = nn.Sequential(*layers, nn.Linear(inputs, num_classes))
    _initialize(network)
    return network


def _initialize(network: Any) -> None:
    """Glorot-normal weights, zero biases."""
    from torch import nn

    for module in network:
        if isinstance(module, (nn.Conv1d, nn.Linear)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class DeepMetaClassifier(ClassifierMixin, BaseEstimator):
    """A 1-D convolutional network on slices of consecutive weights; a row's prediction averages over several slices.

    Rows shorter than a slice are filled with zeros at their end, so that every weight keeps its place.
    Defaults are the paper's. The result is the same for the same `random_state`, device and number of
    torch threads. Needs torch.

    Args:
        slice_length: L, weights in a slice.
        epochs: passes over the training rows.
        slices_per_row: slices at random places that an epoch takes from each row.
        slices_per_prediction: slices, evenly spread over the row, that a prediction averages over.
        width: factor on the network's channels and units.
        dropout: probability that a dense unit is dropped in training.
        batch_size: slices a step.
        learning_rate: of Adam; multiplied by 0.95 fifty times over the training.
        validation_fraction: part of the groups that is held out, to watch the training in `history_`; nothing is chosen by it.
        linear_below: give the network asinh(w / linear_below), linear in smaller weights and logarithmic in larger ones, so that where
            nets of very different scales meet in a batch, batch-norm does not hide the small ones. None: raw weights, as in the paper.
        device: torch device.
        random_state: seed of everything random.
        progress: called after each epoch with the newest entry of `history_`.

    Attributes:
        classes_: [C] the labels, sorted.
        network_: the torch module.
        history_: a dict an epoch: epoch, epochs, loss (training, dropout on), validation_accuracy (of rows; None without validation).

    Example:
        >>> random = np.random.default_rng(0)
        >>> rows = np.concatenate([random.normal(0, 0.1, (40, 300)), random.normal(0, 1, (40, 300))]).astype(np.float32)
        >>> labels = np.repeat(["narrow", "wide"], 40)
        >>> classifier = DeepMetaClassifier(slice_length=100, epochs=20, width=1 / 16, dropout=0.0, batch_size=16, random_state=0)
        >>> classifier.fit(rows, labels).score(rows, labels) > 0.9
        True
    """

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
        self.device = device
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Sequence[np.ndarray] | np.ndarray, y: Any, groups: Any = None) -> DeepMetaClassifier:
        """Train on rows.

        Args:
            X: [N, P] array, or N one-dimensional arrays of any lengths (views of files: only slices of them are copied).
            y: [N] labels.
            groups: [N] the model of each row, when several snapshots of one are given: a model is in training or in validation,
                never in both. None: every row by itself.

        Returns:
            self.

        Raises:
            ZooError: if X, y and groups differ in length, there are fewer than two classes, or a weight is not finite.
        """
        import torch

        y, groups = np.asarray(y), np.arange(len(X)) if groups is None else np.asarray(groups)
        if not len(X) == len(y) == len(groups):
            raise ZooError(
                "fit", expected="one label and one group a row", found=f"{len(X)}, {len(y)}, {len(groups)}", do="give as many of each"
            )
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ZooError("fit", expected="two classes or more", found=str(list(self.classes_)), do="give rows of another class too")
        random = check_random_state(self.random_state)
        training, validation = self._split(groups, random)
        with torch.random.fork_rng(devices=[self.device] if self.device.startswith("cuda") else []):
            torch.manual_seed(int(random.randint(2**31 - 1)))
            self.network_ = build_network(self.slice_length, len(self.classes_), self.width, self.dropout).to(self.device)
            self.history_: list[dict[str, Any]] = []
            for epoch, loss in enumerate(self._train(X, labels, training, random), 1):
                accuracy = float(np.mean(self.predict([X[i] for i in validation]) == y[validation])) if len(validation) else None
                self.history_.append({"epoch": epoch, "epochs": self.epochs, "loss": loss, "validation_accuracy": accuracy})
                if self.progress is not None:
                    self.progress(self.history_[-1])
        self.network_.eval()
        return self

    def predict_proba(self, X: Sequence[np.ndarray] | np.ndarray, positions: Sequence[float] | None = None) -> np.ndarray:
        """Probabilities of the classes, the mean over a row's slices.

        Args:
            X: rows, as in `fit`.
            positions: places of the slices, 0 at the row's beginning and 1 at its end; None: `slices_per_prediction` evenly spread ones.

        Returns:
            [N, C].
        """
        check_is_fitted(self, "network_")
        import torch

        spread = np.linspace(0, 1, self.slices_per_prediction).tolist() if positions is None else positions
        places = [sorted({round(p * max(0, len(row) - self.slice_length)) for p in spread}) for row in X]
        slices = [(i, start) for i, starts in enumerate(places) for start in starts]
        total = np.zeros((len(X), len(self.classes_)))
        self.network_.eval()
        with torch.inference_mode():
            for batch in _batches(slices, 256):
                probabilities = self.network_(self._tensor(X, batch)).softmax(1).double().cpu().numpy()
                np.add.at(total, [i for i, _ in batch], probabilities)
        return total / np.array([len(starts) for starts in places]).reshape(-1, 1)

    def predict(self, X: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Labels [N] of rows."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _split(self, groups: np.ndarray, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Places of the training and the validation rows."""
        names = np.unique(groups)
        held_out = np.isin(groups, random.permutation(names)[: round(len(names) * self.validation_fraction)])
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def _train(
        self, X: Sequence[np.ndarray] | np.ndarray, labels: np.ndarray, training: np.ndarray, random: np.random.RandomState
    ) -> Iterator[float]:
        """Train an epoch at a time; yields its mean loss."""
        import torch
        from torch.nn.functional import cross_entropy

        optimizer = torch.optim.Adam(self.network_.parameters(), self.learning_rate)
        num_slices = len(training) * self.slices_per_row
        steps = max(1, num_slices // self.batch_size)  # a partial last batch is dropped
        for epoch in range(self.epochs):
            losses = []
            self.network_.train()
            order = random.permutation(np.repeat(training, self.slices_per_row))
            for i, rows in enumerate(_batches(order, self.batch_size)[:steps]):
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * DECAY ** int(NUM_DECAYS * (epoch * steps + i) / (self.epochs * steps))
                slices = [(int(row), int(random.randint(max(0, len(X[row]) - self.slice_length) + 1))) for row in rows]
                target = torch.from_numpy(labels[rows]).to(self.device)
                loss = cross_entropy(self.network_(self._tensor(X, slices)), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            yield float(np.mean(losses))

    def _tensor(self, X: Sequence[np.ndarray] | np.ndarray, slices: Sequence[Slice]) -> Any:
        """The network's input [B, L]: copies of slices, filled with zeros at their end."""
        import torch

        batch = np.zeros((len(slices), self.slice_length), np.float32)
        for weights, (row, start) in zip(batch, slices, strict=True):
            part = X[row][start : start + self.slice_length]
            weights[: len(part)] = part
        if not np.isfinite(batch).all():
            row = slices[int(np.flatnonzero(~np.isfinite(batch).all(axis=1))[0])][0]
            raise ZooError(f"row {row}", expected="finite weights", found="NaN or infinity", do="leave it out or rebuild it")
        if self.linear_below is None:
            batch.clip(-LARGEST, LARGEST, out=batch)
        else:
            np.arcsinh(np.divide(batch, self.linear_below, out=batch), out=batch)
        return torch.from_numpy(batch).to(self.device)


def _batches(items: Sequence[Any] | np.ndarray, size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]
