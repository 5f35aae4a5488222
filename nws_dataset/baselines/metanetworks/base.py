"""Networks on whole rows: standardised inputs, training, and what is common to their predictions.

Axes: N rows, B rows of a batch, P weights of a row, C outputs (classes, or 1), E edges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_array, check_is_fitted

from nws_dataset.baselines.metanetworks.symmetries import symmetries_of
from nws_dataset.baselines.predictors import STANDARDIZER, Standardizer
from nws_dataset.baselines.saving import (
    MAX_INTEGER,
    Allowed,
    SaveMixin,
    array,
    check_allowed,
    check_both,
    classes,
    history,
    integer,
    mean_and_scale,
    module_of,
    numbers,
    tensors_of,
)
from nws_dataset.errors import ValueZooError, ZooError
from nws_dataset.networks import architecture_from_json
from nws_dataset.networks.base import BaseArchitecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.views.gather import check_axes

MODULE = "module_"  # the attribute; its tensors are saved as module_.<name>
CLASS, NUMBER, EDGES = TARGETS = ("class", "number", "edges")
MIN_DEVIATION = 1e-12  # of a weight; one that varies less is only centred
MAX_DEVIATIONS = 10.0  # of standardised weights; those of diverged networks are clipped there
PREDICTED_ROWS = 128  # at a time
WARM_UP = 0.1  # of the steps, in which the learning rate rises
MAX_GRADIENT = 1.0  # its norm


@dataclass(eq=False)
class Metanetwork(SaveMixin, BaseEstimator):
    """Base class of networks that learn from rows of one architecture. Needs torch.

    `save`, `load`, `push_to_hub` and `from_pretrained` as of the other estimators.

    Args:
        architecture: of the rows.
        target: what is predicted: the "class" of a network, a "number" (e.g. its accuracy), or which of its
            "edges" are kept.
        epochs: passes over the training rows.
        batch_size: rows per step.
        learning_rate: the highest of AdamW: it rises for a tenth of the steps, then falls to 0 by a cosine.
        weight_decay: of AdamW.
        permute: give hidden units a random order each time a row is seen.
        flip: give hidden units random signs each time, where they are odd functions (sines).
        label_smoothing: of classes.
        random_state: seed of everything random.
        progress: called after each epoch with the last entry of `history_`.

    Attributes:
        module_: the torch module.
        history_: a dict per epoch: epoch, loss, validation_loss (None without validation rows).
        best_epoch_: the epoch whose weights were kept: the best on validation rows, or the last.
        classes_: [C] the labels, sorted, for the target "class".
    """

    architecture: BaseArchitecture
    target: str = CLASS
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    permute: bool = False
    flip: bool = True
    label_smoothing: float = 0.05
    random_state: Any = None
    progress: Callable[[dict[str, Any]], None] | None = None

    # whether weights that permutations of units exchange are standardised alike
    by_orbit: ClassVar[bool] = True
    targets: ClassVar[tuple[str, ...]] = (CLASS, NUMBER)  # that it can predict
    _allowed: ClassVar[Mapping[str, Allowed]] = {
        "epochs": Allowed(1, MAX_INTEGER, integer=True),
        "batch_size": Allowed(2, MAX_INTEGER, integer=True),  # batch-norm needs two rows
        "learning_rate": Allowed(open_low=True),
        "weight_decay": Allowed(),
        "label_smoothing": Allowed(0, 1, open_high=True),
    }

    def _make_module(self, num_outputs: int, num_features: int = 0) -> Any:
        """The untrained torch module.

        Args:
            num_outputs: C.
            num_features: F, of what it reads besides the row.

        Returns:
            A module from standardised rows [B, P], and features [B, F] if there are any, to [B, C]; for the
            target "edges" to logits [B, E].
        """
        raise NotImplementedError

    def _or_edges(self, num_outputs: int) -> int | None:
        """The module's number of outputs, None for one for each edge."""
        return None if self.target == EDGES else num_outputs

    def _features(self, rows: np.ndarray) -> np.ndarray | None:
        """[N, F] what the module reads of rows besides them."""
        return None

    def fit(self, X: Any, y: Any, X_validation: Any = None, y_validation: Any = None) -> Any:
        """Train on rows.

        Args:
            X: [N, P] finite weights.
            y: [N] labels or numbers; [N, E] bool for the target "edges", in the order of `Zoo.edge_scores`.
            X_validation: rows of other networks, to choose the epoch; None: the last one is kept.
            y_validation: their targets.

        Returns:
            self.

        Raises:
            ZooError: if rows are not of this architecture, a weight or number is not finite, or there are
                fewer than two rows or classes.
            ValueError: if X and y differ in length.
        """
        import torch

        self.check_parameters()
        check_both(X_validation, y_validation)
        random, rows = check_random_state(self.random_state), self._rows(X)
        targets = self._learn(y)
        check_consistent_length(rows, targets)
        if len(rows) < 2:
            raise ZooError("fit", expected="two rows or more", found=str(len(rows)), do="give more")
        self._standardise(rows)
        features = self._features(rows)
        if features is not None:
            self.standardizer_ = Standardizer.fit(features)
        inputs = [rows, *self._scaled(features)]
        held_out = None if X_validation is None else (self._inputs(X_validation), self._encode(y_validation))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random.randint(MAX_INTEGER)))
            self.module_ = self._module(0 if features is None else features.shape[1])
            self._train(inputs, targets, held_out)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The target of each row.

        Args:
            X: [N, P] weights.

        Returns:
            [N] labels or numbers; [N, E] bool for the target "edges".

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ZooError: as `fit`.
        """
        if self.target == NUMBER:
            numbers = self._outputs(X)[:, 0] * self.scale_ + self.mean_
            return numbers.clip(*self.range_)
        found = self.predict_proba(X)
        return found > 0.5 if self.target == EDGES else self.classes_[found.argmax(1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, or that an edge is kept.

        Args:
            X: [N, P] weights.

        Returns:
            [N, C], or [N, E] for the target "edges".

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ZooError: as `fit`.
        """
        import torch

        outputs = torch.from_numpy(self._outputs(X))
        return (outputs.sigmoid() if self.target == EDGES else outputs.softmax(1)).numpy()

    def _module(self, num_features: int) -> Any:
        return self._make_module(len(self.classes_) if self.target == CLASS else 1, num_features)

    # Saving

    def _plain_parameters(self) -> dict[str, Any]:
        return super()._plain_parameters() | {"architecture": self.architecture.to_json()}

    @classmethod
    def _from_plain(cls, recorded: dict[str, Any]) -> Any:
        others = {name: value for name, value in recorded.items() if name != "architecture"}
        made = super()._from_plain({**others, "architecture": None})
        return made.set_params(architecture=architecture_from_json(recorded["architecture"]))

    def _learned(self) -> dict[str, Any]:
        learned = super()._learned()
        standardizer, tensors = learned.pop(STANDARDIZER, None), tensors_of(learned.pop(MODULE), MODULE)
        return learned | tensors | (standardizer.to_learned() if standardizer else {})

    def _restore(self, learned: dict[str, Any]) -> None:
        num_weights = layout_of(self.architecture).num_weights
        self.center_, self.deviation_ = (
            array(learned, name, (num_weights,)) for name in ("center_", "deviation_")
        )
        if not (self.deviation_ > 0).all():
            raise ValueError("deviation_: expected positive numbers")
        if self.target == CLASS:
            self.classes_ = classes(learned)
        elif self.target == NUMBER:
            self.mean_, self.scale_ = mean_and_scale(learned)
            low, high = numbers(learned, "range_", 2)
            self.range_ = low, high
        features = self._features(np.zeros((1, num_weights), np.float32))
        if features is not None:
            self.standardizer_ = Standardizer.of_learned(learned, features.shape[1])
        make = functools.partial(self._module, 0 if features is None else features.shape[1])
        self.module_ = module_of(learned, MODULE, make)
        self.history_, self.best_epoch_ = history(learned), integer(learned, "best_epoch_", 1, MAX_INTEGER)
        unknown = sorted(learned.keys() - self._learned().keys())
        if unknown:
            raise ValueError(f"expected what a {type(self).__name__} learns, found {unknown[0]!r}")

    # Inputs and targets

    def check_parameters(self) -> None:
        """Check that every parameter is legal.

        Raises:
            ZooError: if a parameter is not legal; often a ValueError too.
        """
        check_allowed(self, {**self._allowed, "target": Allowed(choices=self.targets)})
        if self.target == EDGES and not self.architecture.edge_scores():
            found = self.architecture.id
            do = "choose networks of the kind kan that classify"
            raise ZooError("target", expected="networks whose edges have scores", found=found, do=do)

    def _rows(self, X: Any) -> np.ndarray:
        """[N, P] float32, checked."""
        rows = check_array(X, dtype=(np.float32, np.float64))
        check_axes("X", rows, layout_of(self.architecture).num_weights)
        return rows

    def _inputs(self, X: Any) -> list[np.ndarray]:
        """The module's inputs: rows [N, P], and standardised features [N, F] if it reads some."""
        rows = self._rows(X)
        return [rows, *self._scaled(self._features(rows))]

    def _scaled(self, features: np.ndarray | None) -> list[np.ndarray]:
        return [] if features is None else [self.standardizer_(features).astype(np.float32)]

    def _learn(self, y: Any) -> np.ndarray:
        """Learn the classes, or the scale of numbers; returns the module's targets."""
        if self.target == CLASS:
            self.classes_ = np.unique(y)
            if len(self.classes_) < 2:
                found, do = str(self.classes_.tolist()), "give rows of another class too"
                raise ZooError("fit", expected="two classes or more", found=found, do=do)
        elif self.target == NUMBER:
            numbers = np.asarray(y, np.float64)
            self.mean_, self.scale_ = float(numbers.mean()), float(numbers.std()) or 1.0
            self.range_ = float(numbers.min()), float(numbers.max())
        return self._encode(y)

    def _encode(self, y: Any) -> np.ndarray:
        """Targets as the module's: numbers of classes, standardised numbers, or 1 for a kept edge."""
        if self.target == CLASS:
            return np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        numbers = np.asarray(y, np.float32)
        if not np.isfinite(numbers).all():
            raise ValueZooError("y", expected="finite numbers", found="others", do="leave them out")
        return numbers if self.target == EDGES else ((numbers - self.mean_) / self.scale_)[:, None]

    def _standardise(self, rows: np.ndarray) -> None:
        """Learn the mean and deviation of each weight, or of each orbit, over the training rows."""
        mean, square = rows.mean(0, dtype=np.float64), np.square(rows, dtype=np.float64).mean(0)
        if self.by_orbit:
            orbits = symmetries_of(self.architecture).orbits
            counts = np.bincount(orbits)
            mean, square = (np.bincount(orbits, part)[orbits] / counts[orbits] for part in (mean, square))
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        deviation[deviation < MIN_DEVIATION] = 1.0
        self.center_, self.deviation_ = mean, deviation

    @property
    def _flips(self) -> bool:
        return self.flip and self.architecture.odd_units

    def _standardised(self, rows: Any) -> Any:
        """Rows [B, P] in deviations from the mean, clipped."""
        import torch

        center, deviation = (
            torch.from_numpy(part).to(rows.dtype) for part in (self.center_, self.deviation_)
        )
        return ((rows - center) / deviation).clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)

    # Training

    def _train(
        self,
        inputs: list[np.ndarray],
        targets: np.ndarray,
        held_out: tuple[list[np.ndarray], np.ndarray] | None,
    ) -> None:
        """Train for all epochs; keep the weights of the best one on the validation rows."""
        self.history_ = list[dict[str, Any]]()
        self.best_epoch_, best, state = self.epochs, float("inf"), None
        for epoch, loss in enumerate(self._epochs(inputs, targets), 1):
            of_validation = None if held_out is None else self._validation(*held_out)
            self.history_.append({"epoch": epoch, "loss": loss, "validation_loss": of_validation})
            if of_validation is not None and of_validation < best:
                best, self.best_epoch_ = of_validation, epoch
                state = {name: tensor.clone() for name, tensor in self.module_.state_dict().items()}
            if self.progress is not None:
                self.progress(self.history_[-1])
        if state is not None:
            self.module_.load_state_dict(state)
        if not all(bool(tensor.isfinite().all()) for tensor in self.module_.state_dict().values()):
            do = "choose a smaller learning_rate"
            raise ValueZooError(
                "fit", expected="a module of finite weights", found="one that diverged", do=do
            )

    def _epochs(self, inputs: list[np.ndarray], targets: np.ndarray) -> Iterator[float]:
        """Train epoch by epoch; yields each one's mean loss."""
        import torch

        symmetries, (rows, *features) = symmetries_of(self.architecture), inputs
        parameters = list(self.module_.parameters())
        optimizer = torch.optim.AdamW(
            parameters, self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        size = min(self.batch_size, len(rows))
        steps = len(rows) // size  # a partial last batch is left out
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=self.epochs * steps + 1, pct_start=WARM_UP
        )
        for _ in range(self.epochs):
            self.module_.train()
            order, total = torch.randperm(len(rows)).numpy(), 0.0
            for i in range(steps):
                chosen = order[i * size : (i + 1) * size]
                batch, *more = (torch.from_numpy(part[chosen]) for part in (rows, *features))
                batch = symmetries.permuted(batch) if self.permute else batch
                batch = symmetries.flipped(batch) if self._flips else batch
                outputs = self.module_(self._standardised(batch), *more)
                loss = self._loss(outputs, torch.from_numpy(targets[chosen]))
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT)
                optimizer.step()
                schedule.step()
                total += float(loss.detach())
            yield total / steps

    def _loss(self, outputs: Any, targets: Any, *, smoothed: bool = True) -> Any:
        """The mean loss of a batch."""
        from torch.nn import functional

        if self.target == CLASS:
            smoothing = self.label_smoothing if smoothed else 0.0
            return functional.cross_entropy(outputs, targets, label_smoothing=smoothing)
        if self.target == EDGES:
            return functional.binary_cross_entropy_with_logits(outputs, targets)
        return functional.mse_loss(outputs, targets)

    def _validation(self, inputs: list[np.ndarray], targets: np.ndarray) -> float:
        import torch

        outputs = torch.from_numpy(self._of_inputs(inputs))
        return float(self._loss(outputs, torch.from_numpy(targets), smoothed=False))

    def _outputs(self, X: Any) -> np.ndarray:
        """[N, C] or [N, E]: the module's outputs."""
        check_is_fitted(self, "module_")
        return self._of_inputs(self._inputs(X))

    def _of_inputs(self, inputs: list[np.ndarray]) -> np.ndarray:
        """As `_outputs`."""
        import torch

        self.module_.eval()
        parts = []
        with torch.inference_mode():
            for i in range(0, len(inputs[0]), PREDICTED_ROWS):
                rows, *more = (torch.from_numpy(part[i : i + PREDICTED_ROWS]) for part in inputs)
                parts.append(self.module_(self._standardised(rows), *more))
        return torch.cat(parts).numpy()


def check_heads(width: int, heads: int) -> None:
    """Raise a ZooError unless the width can be shared among heads."""
    if width % heads:
        expected, do = f"a multiple of heads, {heads}", "choose another value"
        raise ValueZooError("width", expected=expected, found=repr(width), do=do)
