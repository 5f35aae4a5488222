"""What a device does for a cohort: training steps and evaluations of models that share an architecture.

`builder.training.cpu.backend.CpuBackend` and `cpu.kan.KanBackend` keep a model's step in a core's cache;
`gpu.backend.GpuBackend` takes the steps of all models of a cohort together; `torch_backend.TorchBackend` is
plain torch, for other devices and kinds of networks. `implicit` has the same for networks that represent an
image.

Axes: M slots, K rows, B images, C channels, H W pixels, P weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from builder.plan import Model
from builder.training import update
from builder.training.bank import Images
from nws_dataset.format.recipe import LEGAL_VALUES

# rows start at multiples of this, so that a kernel sees the same alignment in every slot
ALIGNMENT = 16

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows, first and second moments, [M, P] each

# activations as numbers, for kernels
ACTIVATION_NUMBERS = {name: number for number, name in enumerate(LEGAL_VALUES["activation"])}


@dataclass(frozen=True)
class Segment:
    """The next steps of a model, all within one epoch."""

    model: Model
    images: Images  # its data set, on the device
    # int64: the training images of the whole epoch; the same tensor in all its segments
    epoch_order: torch.Tensor
    batch: int  # images per step
    epoch: int  # for random numbers and the learning rate
    step: int  # steps that the model took before
    start: int = 0  # of those, steps in this epoch
    count: int | None = None  # number of steps; None: all that are left of the epoch

    @property
    def steps(self) -> int:
        """n, the number of steps."""
        return len(self.epoch_order) // self.batch - self.start if self.count is None else self.count

    @property
    def order(self) -> torch.Tensor:
        """[n * batch] int64: the indices of these steps' training images."""
        return self.epoch_order[self.start * self.batch : (self.start + self.steps) * self.batch]

    @property
    def whole(self) -> Segment:
        """All steps of the epoch."""
        return replace(self, step=self.step - self.start, start=0, count=None)

    def rates(self) -> list[float]:
        """[n], the factor of each step."""
        recipe, rates = self.model.recipe, self.learning_rates()
        return [update.step_size(recipe.optimizer, rate, self.step + i) for i, rate in enumerate(rates, 1)]

    def learning_rates(self) -> list[float]:
        """[n], the learning rate of each step."""
        recipe, per_epoch = self.model.recipe, len(self.epoch_order) // self.batch
        steps = range(self.epoch * per_epoch + self.start, self.epoch * per_epoch + self.start + self.steps)
        return [update.rate_of(recipe, step, per_epoch) for step in steps]


class Backend(Protocol):
    """Trains and evaluates models of one architecture.

    A model's numbers do not depend on the models beside it, except for rounding in plain torch on a GPU.
    """

    def train(self, state: State, segments: Mapping[int, Segment]) -> torch.Tensor:
        """Take the steps of some slots, in place.

        Args:
            state: of all slots; the same tensors at every call.
            segments: slot -> its steps; all with the same batch and number of steps.

        Returns:
            [len(segments)], for each the sum of its steps' mean cross-entropies (each before its step,
            without L2), in the order of `segments`; not finite if one of them was not.
        """
        ...

    def evaluate(
        self, rows: torch.Tensor, activation: str, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate networks: batch-norm with running statistics, no dropout, on every image.

        Args:
            rows: [K, P], on the device.
            activation: the networks' activation.
            images: [B, C, H, W] uint8, the same for all.
            labels: [B] int64.

        Returns:
            Whether each image is classified correctly, [K, B] bool, and its cross-entropy, [K, B]; both may
            be on the CPU.
        """
        ...


def aligned(numbers: int) -> int:
    """Round a length up to a multiple of ALIGNMENT, so that what follows is aligned."""
    return -(-numbers // ALIGNMENT) * ALIGNMENT
