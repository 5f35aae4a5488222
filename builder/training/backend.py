"""What a device does for a cohort: steps of training and evaluations, of models that share an architecture.

Three things implement `Backend`: `builder.training.cpu.backend.CpuBackend` keeps one model's whole step in a
core's cache; `builder.training.gpu.backend.GpuBackend` takes the steps of all models of a cohort together;
`builder.training.torch_backend.TorchBackend` is plain torch, for devices that neither is made for.

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

# rows start at multiples of so many numbers, so that a kernel sees the same alignment in every slot
ALIGNMENT = 16

# as kernels know them
ACTIVATION_NUMBERS = {name: number for number, name in enumerate(LEGAL_VALUES["activation"])}


@dataclass(frozen=True)
class Segment:
    """The next steps of a model, all within one epoch."""

    model: Model
    images: Images  # its data set, on the device
    # int64: the whole epoch's indices of training images; the same tensor in all its segments
    epoch_order: torch.Tensor
    batch: int  # images in a step
    epoch: int  # which the random numbers and the learning rate belong to
    step: int  # steps that the model has taken before
    start: int = 0  # steps of this epoch among them
    count: int | None = None  # how many steps these are; None: all that are left of the epoch

    @property
    def steps(self) -> int:
        """n, how many steps these are."""
        return len(self.epoch_order) // self.batch - self.start if self.count is None else self.count

    @property
    def order(self) -> torch.Tensor:
        """[n * batch] int64: these steps' indices of training images."""
        return self.epoch_order[self.start * self.batch : (self.start + self.steps) * self.batch]

    @property
    def whole(self) -> Segment:
        """All steps of the epoch."""
        return replace(self, step=self.step - self.start, start=0, count=None)

    def rates(self) -> list[float]:
        """[n], the factor of each step."""
        recipe = self.model.recipe
        rate = update.learning_rate(recipe.learning_rate, recipe.learning_rate_decay, self.epoch)
        return [update.step_size(recipe.optimizer, rate, self.step + i) for i in range(1, self.steps + 1)]


class Backend(Protocol):
    """Trains and evaluates models of one architecture.

    A model's numbers do not depend on what it is trained beside, but for the rounding of plain torch on a
    GPU.
    """

    def train(
        self, state: tuple[torch.Tensor, torch.Tensor, torch.Tensor], segments: Mapping[int, Segment]
    ) -> torch.Tensor:
        """Take the steps of some slots, in place.

        Args:
            state: rows, first and second moments of all slots, [M, P] each; the same tensors at every call.
            segments: slot -> its steps; all of the same batch and number of steps.

        Returns:
            [len(segments)], for each the sum of the steps' mean cross-entropies (each before its step,
            without L2), in the order of `segments`; not finite once one was not.
        """
        ...

    def evaluate(
        self, rows: torch.Tensor, activation: str, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate networks: batch-norm with running statistics, no dropout, every image counted.

        Args:
            rows: [K, P], on the device.
            activation: of these networks.
            images: [B, C, H, W] uint8, the same for all.
            labels: [B] int64.

        Returns:
            Whether each image is classified correctly, [K, B] bool, and its cross-entropy, [K, B]; both may
            be on the host.
        """
        ...


def aligned(numbers: int) -> int:
    """Room for so many numbers, such that what follows is as aligned as they are."""
    return -(-numbers // ALIGNMENT) * ALIGNMENT
