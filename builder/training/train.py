"""Trains a cohort: models of one architecture and batch size, each in a slot, otherwise independent.

A slot holds a row [P] and the optimizer's moments. At the start of every epoch the model is validated and its
row exported to a file on disk (memory does not grow with the epochs). When it stops, snapshots are chosen
among the exports, evaluated and returned, and the next model of the queue takes the slot.

Axes: M slots, K models of one step, B images, P weights, S snapshots, E exports.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from builder.plan import Model
from builder.progress import Occupancy
from builder.rules import (
    CONVERGED_MARGIN,
    SCORED_IMAGES,
    TRAIN_EVALUATION_IMAGES,
    chosen_exports,
    should_stop,
)
from builder.trained import Export, Trained
from builder.training import batches, update
from builder.training.backend import Backend, Segment, aligned
from builder.training.bank import Bank, Images
from builder.training.device import make_backend, one_thread
from builder.training.initial import initial_row
from nws_dataset.format.subsets import Subset
from nws_dataset.networks.base import NUM_CLASSES, BaseArchitecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network


class Slot:
    """A model in training, at one index of a cohort's tensors.

    Call `start_epoch`, then `take` for its steps, until no epoch is left; then `finish`.

    Args:
        model: the model to train.
        images: its data set, on the device.
        state: row, first and second moments, [1, P] each: views of the cohort's tensors.
        backend: evaluates the model.
        spool: folder for the file of exports; None: a temporary one.
    """

    def __init__(
        self,
        model: Model,
        images: Images,
        state: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        backend: Backend,
        spool: Path | None,
    ) -> None:
        images = batches.with_label_noise(model, images)
        self.model, self.images, self.backend = model, images, backend
        self.parts = batches.split_images(model, images.train_labels)
        self.row, first, second = state
        self.row[0] = torch.from_numpy(initial_row(model)).to(self.row)
        first[:] = 0
        second[:] = update.SECOND_START[model.recipe.optimizer]
        self.epoch = self.step = 0
        self.order = torch.empty(0, dtype=torch.int64)  # this epoch's images
        self.taken = 0  # steps in this epoch
        self.loss_sum = 0.0  # in this epoch; not finite once a loss was not
        self.exports: list[Export] = []
        self.diverged = False
        # the exported rows, one after the other
        self.spool: BinaryIO = tempfile.TemporaryFile(dir=spool)  # noqa: SIM115 -- `close` closes it

    @property
    def batch(self) -> int:
        """Images per step: the batch size, or fewer if an epoch has fewer."""
        return min(self.model.recipe.batch_size, len(self.order))

    @property
    def steps_left(self) -> int:
        """Steps until the epoch ends; a partial last batch is dropped."""
        return len(self.order) // self.batch - self.taken

    def start_epoch(self) -> bool:
        """Validate and export the row, and order the epoch's images.

        Returns False if the training has ended: the rules stop it, or the model has diverged.
        """
        if self.diverged:
            return False
        accuracy, loss = self._validate()
        if self.exports and loss is not None and not math.isfinite(loss):
            self.diverged = True
            return False
        self.spool.write(self.row.cpu().numpy().tobytes())
        self.exports.append(Export(self.epoch, self.step, accuracy, loss))
        if self._has_ended():
            return False
        self.order = batches.epoch_order(self.model, self.parts, self.images.train_labels, self.epoch)
        self.taken, self.loss_sum = 0, 0.0
        return True

    def segment(self, steps: int) -> Segment:
        """The next steps."""
        return Segment(
            self.model, self.images, self.order, self.batch, self.epoch, self.step, self.taken, steps
        )

    def take(self, steps: int, loss: float) -> None:
        """Count steps taken and the sum of their losses; the epoch's last step ends it."""
        self.step += steps
        self.taken += steps
        self.loss_sum += loss
        if not self.steps_left:
            self.epoch += 1
            self.diverged = not (math.isfinite(self.loss_sum) and bool(torch.isfinite(self.row).all()))

    def finish(self, subset: Subset) -> Trained:
        """Read back the exports that become snapshots, and evaluate each once."""
        chosen = chosen_exports(subset, self.model.recipe.max_epochs, len(self.exports))
        rows = {export: self._exported(export) for export in dict.fromkeys(chosen)}
        self.close()
        stacked = torch.stack(list(rows.values())).to(self.row.device)
        columns = evaluate_snapshots(self.backend, stacked, self.model, self.images, self.parts)
        evaluated = dict(zip(rows, columns, strict=True))
        final = evaluated[chosen[-1]]["test_accuracy"]
        flags = {
            "converged": final >= self.images.majority_rate + CONVERGED_MARGIN,
            "diverged": self.diverged,
        }
        snapshots = [{**vars(self.exports[export]), **evaluated[export], **flags} for export in chosen]
        scores = edge_scores_of(self.backend, self.model, stacked, self.images)
        at = {export: i for i, export in enumerate(rows)}
        return Trained(
            self.model,
            torch.stack([rows[export] for export in chosen]).numpy(),
            snapshots,
            self.epoch,
            None if scores is None else scores[[at[export] for export in chosen]].float().cpu().numpy(),
        )

    def close(self) -> None:
        """Remove the exports."""
        self.spool.close()

    def _validate(self) -> tuple[float | None, float | None]:
        if not len(self.parts.validation):
            return None, None
        ((accuracy, loss, _),) = evaluate_rows(
            self.backend, self.row, self.model, self.images, self.parts.validation
        )
        return accuracy, loss

    def _has_ended(self) -> bool:
        recipe, accuracies = self.model.recipe, [export.validation_accuracy for export in self.exports]
        return self.epoch >= recipe.max_epochs or (
            recipe.early_stopping and should_stop([a for a in accuracies if a is not None])
        )

    def _exported(self, export: int) -> torch.Tensor:
        """An exported row [P]."""
        size = self.row.nbytes
        self.spool.seek(export * size)
        return torch.frombuffer(bytearray(self.spool.read(size)), dtype=self.row.dtype)


class Cohort:
    """Trains models of one architecture and batch size.

    Args:
        subset: gives the rule that chooses snapshots.
        architecture: the models' architecture.
        bank: image sets by name, on the device.
        slots: how many models train together.
        dtype: float32; float64 for tests.
        spool: folder for the exports; None: a temporary one.
        on_epoch: called whenever a model has trained an epoch.
        backend: what trains; None: the device's fast backend.
        occupancy: records how busy the slots are.
    """

    def __init__(
        self,
        subset: Subset,
        architecture: BaseArchitecture,
        bank: Bank,
        *,
        device: torch.device,
        slots: int = 1,
        dtype: torch.dtype = torch.float32,
        spool: Path | None = None,
        on_epoch: Callable[[], None] = lambda: None,
        backend: Backend | None = None,
        occupancy: Occupancy | None = None,
    ) -> None:
        self.subset, self.bank, self.device = subset, bank, device
        self.spool, self.on_epoch, self.occupancy = spool, on_epoch, occupancy or Occupancy()
        num_weights = layout_of(architecture).num_weights
        buffers = torch.zeros(3, slots, aligned(num_weights), dtype=dtype, device=device)
        rows, first, second = buffers[:, :, :num_weights]
        self.state = rows, first, second  # [M, P] each
        self.slots: list[Slot | None] = [None] * slots
        self.backend = backend or make_backend(architecture, device, dtype)
        self.stacked = device.type != "cpu"  # whether models take their steps together

    def train(self, models: Iterable[Model]) -> Iterator[Trained]:
        """Train models, as many at a time as there are slots; yield each when it stops."""
        queue = iter(models)
        with one_thread(self.device):
            try:
                for m in range(len(self.slots)):
                    yield from self._fill(m, queue)
                while active := {m: slot for m, slot in enumerate(self.slots) if slot}:
                    for group in self._groups(active):
                        self._take_steps(group)
                    for m, slot in active.items():
                        if not slot.steps_left:
                            self.on_epoch()
                            if not slot.start_epoch():
                                yield self._finish(m, slot)
                                yield from self._fill(m, queue)
            finally:
                for slot in filter(None, self.slots):
                    slot.close()

    def _fill(self, m: int, queue: Iterator[Model]) -> Iterator[Trained]:
        """Start the next model with an epoch to train; those without one finish with their first export."""
        for model in queue:
            row, first, second = (part[m : m + 1] for part in self.state)
            slot = Slot(
                model, self.bank[model.recipe.dataset], (row, first, second), self.backend, self.spool
            )
            self.slots[m] = slot
            if slot.start_epoch():
                return
            yield self._finish(m, slot)

    def _finish(self, m: int, slot: Slot) -> Trained:
        trained = slot.finish(self.subset)
        self.slots[m] = None
        return trained

    def _groups(self, active: dict[int, Slot]) -> Iterable[dict[int, Slot]]:
        """Group slots that take their steps together: one each on a CPU, all with equal batches on a GPU."""
        groups: dict[int, dict[int, Slot]] = {}
        for m, slot in active.items():
            groups.setdefault(slot.batch if self.stacked else m, {})[m] = slot
        return groups.values()

    def _take_steps(self, group: dict[int, Slot]) -> None:
        """Take steps of a group until one of its models ends its epoch."""
        steps = min(slot.steps_left for slot in group.values())
        losses = self.backend.train(self.state, {m: slot.segment(steps) for m, slot in group.items()})
        self.occupancy.add(len(group) * steps, len(self.slots if self.stacked else group) * steps)
        for slot, loss in zip(group.values(), losses.tolist(), strict=True):
            slot.take(steps, loss)


def evaluate_rows(
    backend: Backend, rows: torch.Tensor, model: Model, images: Images, index: torch.Tensor | None
) -> list[tuple[float, float, list[float | None]]]:
    """The builder's evaluation of a model's rows: accuracy, mean cross-entropy, accuracy of each class.

    Args:
        backend: for the model's architecture.
        rows: [K, P], on the images' device.
        model: gives the activation.
        images: the model's data set.
        index: indices of training images; None: the test images.

    Returns:
        K times (accuracy, loss, accuracies of the classes; None for a class without images).
    """
    source, labels = (
        (images.test_images, images.test_labels)
        if index is None
        else (images.train_images[index], images.train_labels[index])
    )
    with one_thread(rows.device):
        correct, losses = backend.evaluate(rows, model.recipe.activation, source, labels)
        means = losses.double().mean(1).tolist()
    total = torch.bincount(labels, minlength=NUM_CLASSES).tolist()
    evaluated = []
    for k, mean in enumerate(means):
        right = torch.bincount(labels[correct[k]], minlength=NUM_CLASSES).tolist()
        evaluated.append(
            (sum(right) / sum(total), mean, [r / t if t else None for r, t in zip(right, total, strict=True)])
        )
    return evaluated


def edge_scores_of(backend: Backend, model: Model, rows: torch.Tensor, images: Images) -> torch.Tensor | None:
    """The scores [K, E] of the edges of a model's rows [K, P], over its first training images; None of an
    architecture without.
    """
    architecture = model.recipe.architecture
    if not architecture.edge_scores():
        return None
    seen = images.train_images[:SCORED_IMAGES]
    with one_thread(rows.device), torch.no_grad():
        if hasattr(backend, "edge_scores"):
            found: torch.Tensor = backend.edge_scores(rows, seen)
            return found
        network = Network(architecture, model.recipe.activation).to(rows)
        x = architecture.scale(seen.to(rows) / 255)
        return torch.stack([architecture.scores_of(network.load_row(row), x) for row in rows])


def evaluate_snapshots(
    backend: Backend, rows: torch.Tensor, model: Model, images: Images, parts: batches.Parts
) -> list[dict[str, Any]]:
    """The test and training columns of a model's snapshots, rows [S, P]."""
    tested = evaluate_rows(backend, rows, model, images, None)
    trained = evaluate_rows(backend, rows, model, images, parts.train[:TRAIN_EVALUATION_IMAGES])
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
