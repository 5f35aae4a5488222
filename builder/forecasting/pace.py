"""The project's own training steps, as something to time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from builder.forecasting.costs import BACKWARD, forward_flops
from builder.plan import Model
from builder.training import update
from builder.training.backend import Backend, Segment, aligned
from builder.training.bank import Bank, Images
from builder.training.batches import epoch_order, split_images
from builder.training.device import make_backend
from builder.training.implicit import STEPS, ImageBackend, make_image_backend, target_of
from builder.training.initial import initial_row


class Contender(Protocol):
    """Something that can be timed."""

    models: int  # models that take each step together

    def run(self, steps: int) -> None:
        """Take some steps, of training or something else; a GPU may still be working afterwards."""
        ...


class CohortSteps:
    """The project's backend, called as a cohort calls it: segments end where an epoch ends.

    Args:
        case: gives the models.
        bank: their image sets.
        device: where to train.
        backend: what trains; None: the fast one.
        apart: steps between the ends of two models' epochs; 0: all end together, and an epoch is one segment.
    """

    def __init__(
        self, case: Case, bank: Bank, device: torch.device, backend: Backend | None = None, *, apart: int = 0
    ) -> None:
        self.cohort, self.models, self.apart = case.models, len(case.models), apart
        self.images = [bank[model.recipe.dataset] for model in self.cohort]
        # [steps, B] each
        self.orders = [
            order_of(model, images) for model, images in zip(self.cohort, self.images, strict=True)
        ]
        self.length = apart * self.models or min(len(order) for order in self.orders)
        rounds = [-(-self.length // len(order)) for order in self.orders]
        self.flat = [
            order.repeat(n, 1)[: self.length].flatten() for n, order in zip(rounds, self.orders, strict=True)
        ]
        self.backend = backend or make_backend(case.model.recipe.architecture, device)
        rows = torch.stack([torch.from_numpy(initial_row(model)) for model in self.cohort])
        buffers = torch.zeros(3, self.models, aligned(rows.shape[1]), device=device)
        self.state = (
            buffers[0, :, : rows.shape[1]],
            buffers[1, :, : rows.shape[1]],
            buffers[2, :, : rows.shape[1]],
        )
        self.state[0].copy_(rows)
        for second, model in zip(self.state[2], self.cohort, strict=True):
            second.fill_(update.SECOND_START[model.recipe.optimizer])
        self.taken = 0

    def run(self, steps: int) -> None:
        while steps:
            count = min(
                steps,
                *(self.length - (self.taken + m * self.apart) % self.length for m in range(self.models)),
            )
            self.backend.train(self.state, {m: self._segment(m, count) for m in range(self.models)})
            steps, self.taken = steps - count, self.taken + count

    def _segment(self, m: int, count: int) -> Segment:
        step = self.taken + m * self.apart
        epoch, start = divmod(step, self.length)
        return Segment(
            self.cohort[m], self.images[m], self.flat[m], self.orders[m].shape[1], epoch, step, start, count
        )


class ImageSteps:
    """The project's backend for networks that represent images, called as a cohort calls it.

    Args:
        case: gives the models.
        bank: their image sets.
        device: where to train.
        backend: what trains; None: the fast one.
    """

    def __init__(
        self, case: Case, bank: Bank, device: torch.device, backend: ImageBackend | None = None
    ) -> None:
        self.recipe, self.models, self.taken = case.model.recipe, len(case.models), 0
        self.backend = backend or make_image_backend(self.recipe.architecture, device)
        rows = torch.stack([torch.from_numpy(initial_row(model)) for model in case.models]).to(device)
        self.state = rows, torch.zeros_like(rows), torch.zeros_like(rows)
        self.targets = targets_of(case.models, bank[self.recipe.dataset])

    def run(self, steps: int) -> None:
        while steps:
            count = min(steps, STEPS)
            self.backend.train_images(self.state, self.targets, [self._rate(step) for step in range(count)])
            steps, self.taken = steps - count, self.taken + count

    def _rate(self, step: int) -> float:
        taken, recipe = self.taken + step, self.recipe
        rate = update.rate_of(recipe, taken % recipe.max_epochs, 1)
        return update.step_size(recipe.optimizer, rate, taken + 1)


@dataclass(frozen=True)
class Case:
    """A model that all contenders train; in a cohort others of its architecture and batch size train too."""

    workload: str
    models: tuple[Model, ...]

    @property
    def model(self) -> Model:
        return self.models[0]

    @property
    def forward_flops(self) -> int:
        """FLOPs of one image's forward pass."""
        return forward_flops(self.model.recipe.architecture)

    @property
    def step_flops(self) -> int:
        """FLOPs of one step of the model, forward and backward."""
        return self.forward_flops * (1 + BACKWARD) * self.model.recipe.batch_size


def order_of(model: Model, images: Images) -> torch.Tensor:
    """The images of the first epoch's whole batches: indices of the training images, [steps, batch] int64."""
    order = epoch_order(model, split_images(model, images.train_labels), images.train_labels, epoch=0)
    batch = min(model.recipe.batch_size, len(order))
    return order[: len(order) // batch * batch].view(-1, batch)


def targets_of(models: Sequence[Model], images: Images, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[M, B, C] what networks that represent images shall give for all pixels.

    Only training images are taken, as many as there are: others may stand in for an image set.
    """
    pixels = images.train_images
    return torch.stack(
        [
            target_of(model.recipe.architecture, pixels[(model.image or 0) % len(pixels)], dtype)
            for model in models
        ]
    )
