"""Trains a cohort: models of one architecture and batch size, each in a slot, with its own data, order,
optimizer and end.

A slot holds a row [P] and the optimizer's moments. At every epoch's start the model is validated and its row
exported to a file on disk (memory does not grow with the epochs); when it stops, the snapshots are chosen
among the exports, evaluated and handed out, and the next model of the queue takes the slot.

Axes: M slots, K models of one step, B images, P weights, S snapshots, E exports.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from builder.plan import Model
from builder.progress import Occupancy
from builder.rules import CONVERGED_MARGIN, TRAIN_EVALUATION_IMAGES, chosen_exports, should_stop
from builder.trained import Export, Trained
from builder.training import batches, update
from builder.training.backend import Segment, Step, aligned
from builder.training.bank import Bank, Images
from builder.training.device import make_step, one_thread
from builder.training.initial import initial_row
from nws_dataset.format.layout import layout_of
from nws_dataset.format.recipe import NUM_CLASSES, Architecture
from nws_dataset.format.subsets import Subset


@dataclass
class Slot:
    """A model in training."""

    model: Model
    images: Images
    parts: batches.Parts
    spool: BinaryIO  # the exported rows, one behind the other
    epoch: int = 0
    step: int = 0
    # images of this epoch
    order: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    taken: int = 0  # steps of this epoch
    loss_sum: float = 0.0  # of this epoch; not finite once a loss was not
    exports: list[Export] = field(default_factory=list)
    diverged: bool = False

    @property
    def batch(self) -> int:
        """Images in one step: the batch size, or fewer where an epoch holds fewer."""
        return min(self.model.recipe.batch_size, len(self.order))

    @property
    def steps_left(self) -> int:
        """Steps to the epoch's end; a partial last batch is dropped."""
        return len(self.order) // self.batch - self.taken

    @property
    def accuracies(self) -> list[float]:
        return [
            export.validation_accuracy for export in self.exports if export.validation_accuracy is not None
        ]


class Cohort:
    """Trains models of one architecture and batch size.

    Args:
        subset: gives the rule that chooses snapshots.
        architecture: of all the models.
        bank: image sets by name, on the device.
        slots: how many models train together.
        dtype: float32; float64 for tests.
        spool: folder for the exports; a temporary one if None.
        on_epoch: called whenever a model has trained an epoch.
        step: what trains; None: the device's.
        occupancy: takes note of the slots' use.
    """

    def __init__(
        self,
        subset: Subset,
        architecture: Architecture,
        bank: Bank,
        *,
        device: torch.device,
        slots: int = 1,
        dtype: torch.dtype = torch.float32,
        spool: Path | None = None,
        on_epoch: Callable[[], None] = lambda: None,
        step: Step | None = None,
        occupancy: Occupancy | None = None,
    ) -> None:
        self.subset, self.architecture, self.bank, self.device, self.dtype = (
            subset,
            architecture,
            bank,
            device,
            dtype,
        )
        self.spool, self.on_epoch, self.occupancy = spool, on_epoch, occupancy or Occupancy()
        self.num_weights = layout_of(architecture).num_weights
        buffers = torch.zeros(3, slots, aligned(self.num_weights), dtype=dtype, device=device)
        self.rows, self.first, self.second = buffers[:, :, : self.num_weights]  # [M, P] each
        self.slots: list[Slot | None] = [None] * slots
        self.step = step or make_step(architecture, device, dtype)
        self.stacked = device.type != "cpu"  # whether models take their steps together

    def train(self, models: Iterable[Model]) -> Iterator[Trained]:
        """Train models, as many at a time as there are slots; each is yielded when it stops."""
        queue = iter(models)
        with one_thread(self.device):
            try:
                yield from self._fill(range(len(self.slots)), queue)
                while active := [m for m, slot in enumerate(self.slots) if slot]:
                    for group in self._groups(active):
                        self._train_segment(group)
                    for m in active:
                        yield from self._end_segment(m, queue)
            finally:
                for slot in filter(None, self.slots):
                    slot.spool.close()

    # Slots

    def _fill(self, places: Iterable[int], queue: Iterator[Model]) -> Iterator[Trained]:
        for m in places:
            self.slots[m] = None
            for model in queue:
                self._start_model(m, model)
                trained = self._start_epoch(m)
                if trained is None:
                    break
                yield trained  # no epoch to train: its first export is its last

    def _start_model(self, m: int, model: Model) -> None:
        images = self.bank[model.recipe.dataset]
        parts = batches.split_images(model, images.train_labels)
        self.rows[m] = torch.from_numpy(initial_row(model)).to(self.rows)
        self.first[m] = 0
        self.second[m] = update.SECOND_START[model.recipe.optimizer]
        spool = tempfile.TemporaryFile(dir=self.spool)  # noqa: SIM115 -- closed when the model finishes
        self.slots[m] = Slot(model, images, parts, spool)

    def _groups(self, active: list[int]) -> list[list[int]]:
        """Slots that take their steps together: on a CPU each alone, on a GPU those with equally many images
        in a batch.
        """
        if not self.stacked:
            return [[m] for m in active]
        groups: dict[int, list[int]] = {}
        for m in active:
            groups.setdefault(self._slot(m).batch, []).append(m)
        return list(groups.values())

    def _slot(self, m: int) -> Slot:
        slot = self.slots[m]
        assert slot is not None
        return slot

    # Steps

    def _train_segment(self, group: list[int]) -> None:
        """Steps of a group until the first of its models ends its epoch."""
        steps = min(self._slot(m).steps_left for m in group)
        segments = {m: self._segment(self._slot(m), steps) for m in group}
        losses = self.step.train((self.rows, self.first, self.second), segments)
        self.occupancy.add(len(group) * steps, len(self.slots if self.stacked else group) * steps)
        for m, loss in zip(group, losses.tolist(), strict=True):
            slot = self._slot(m)
            slot.loss_sum += loss
            slot.step += steps
            slot.taken += steps

    @staticmethod
    def _segment(slot: Slot, steps: int) -> Segment:
        return Segment(
            slot.model, slot.images, slot.order, slot.batch, slot.epoch, slot.step, slot.taken, steps
        )

    # Epochs

    def _end_segment(self, m: int, queue: Iterator[Model]) -> Iterator[Trained]:
        slot = self._slot(m)
        if slot.steps_left > 0:
            return
        slot.diverged = not (math.isfinite(slot.loss_sum) and bool(torch.isfinite(self.rows[m]).all()))
        slot.epoch += 1
        self.on_epoch()
        trained = self._finish(m) if slot.diverged else self._start_epoch(m)
        if trained is not None:
            yield trained
            yield from self._fill([m], queue)

    def _start_epoch(self, m: int) -> Trained | None:
        """Export and validate; then either the finished model, or None and the epoch's order is set."""
        slot, recipe = self._slot(m), self._slot(m).model.recipe
        accuracy, loss = self._validate(m)
        if slot.exports and loss is not None and not math.isfinite(loss):
            slot.diverged = True
            return self._finish(m)
        slot.spool.write(self.rows[m].cpu().numpy().tobytes())
        slot.exports.append(Export(slot.epoch, slot.step, accuracy, loss))
        if slot.epoch >= recipe.max_epochs or (recipe.early_stopping and should_stop(slot.accuracies)):
            return self._finish(m)
        slot.order = batches.epoch_order(slot.model, slot.parts, slot.images.train_labels, slot.epoch)
        slot.taken, slot.loss_sum = 0, 0.0
        return None

    def _validate(self, m: int) -> tuple[float | None, float | None]:
        slot = self._slot(m)
        if not len(slot.parts.validation):
            return None, None
        return evaluate_rows(self.step, self.rows[m : m + 1], slot.model, slot.images, slot.parts.validation)[
            0
        ][:2]

    def _finish(self, m: int) -> Trained:
        """Read back the chosen exports and evaluate each once."""
        slot = self._slot(m)
        chosen = chosen_exports(self.subset, slot.model.recipe.max_epochs, len(slot.exports))
        itemsize = self.rows.element_size() * self.num_weights
        rows = {}
        for export in dict.fromkeys(chosen):
            slot.spool.seek(export * itemsize)
            rows[export] = torch.frombuffer(bytearray(slot.spool.read(itemsize)), dtype=self.dtype)
        slot.spool.close()
        columns = evaluate_snapshots(
            self.step, torch.stack(list(rows.values())).to(self.device), slot.model, slot.images, slot.parts
        )
        evaluated = dict(zip(rows, columns, strict=True))
        self.slots[m] = None
        final = evaluated[chosen[-1]]["test_accuracy"]
        flags = {
            "converged": final >= slot.images.majority_rate + CONVERGED_MARGIN,
            "diverged": slot.diverged,
        }
        snapshots = [{**vars(slot.exports[export]), **evaluated[export], **flags} for export in chosen]
        return Trained(
            slot.model, torch.stack([rows[export] for export in chosen]).numpy(), snapshots, slot.epoch
        )


def evaluate_rows(
    step: Step, rows: torch.Tensor, model: Model, images: Images, index: torch.Tensor | None
) -> list[tuple[float, float, list[float | None]]]:
    """The builder's evaluation of rows of a model: accuracy, mean cross-entropy, accuracy of each class.

    Args:
        step: of the model's architecture.
        rows: [K, P], on the images' device.
        model: gives the activation.
        images: of its data set.
        index: places in the training images; None: the test images.

    Returns:
        K times (accuracy, loss, accuracies of the classes; None of a class without images).
    """
    source, labels = (
        (images.test_images, images.test_labels)
        if index is None
        else (images.train_images[index], images.train_labels[index])
    )
    with one_thread(rows.device):
        correct, losses = step.evaluate(rows, model.recipe.activation, source, labels)
        means = losses.double().mean(1).tolist()
    total = torch.bincount(labels, minlength=NUM_CLASSES).tolist()
    evaluated = []
    for k, mean in enumerate(means):
        right = torch.bincount(labels[correct[k]], minlength=NUM_CLASSES).tolist()
        evaluated.append(
            (sum(right) / sum(total), mean, [r / t if t else None for r, t in zip(right, total, strict=True)])
        )
    return evaluated


def evaluate_snapshots(
    step: Step, rows: torch.Tensor, model: Model, images: Images, parts: batches.Parts
) -> list[dict[str, Any]]:
    """Test and training columns of snapshots, rows [S, P] of a model."""
    tested = evaluate_rows(step, rows, model, images, None)
    trained = evaluate_rows(step, rows, model, images, parts.train[:TRAIN_EVALUATION_IMAGES])
    return [
        {
            "test_accuracy": test[0],
            "test_loss": test[1],
            "class_test_accuracy": test[2],
            "train_accuracy": train[0],
            "train_loss": train[1],
        }
        for test, train in zip(tested, trained, strict=True)
    ]
