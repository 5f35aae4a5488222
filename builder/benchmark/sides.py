"""The sides that are timed: this project's step and its evaluation, the peers, and what tells the machine's
peak.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from typing import Protocol

import torch

from builder import update
from builder.bank import Bank
from builder.benchmark.pytorch import Careful, Graphs, Plain, Vmapped
from builder.benchmark.workloads import Case, order_of
from builder.initial import initial_row
from builder.step import Segment, Step, make_step
from builder.train import aligned

EVALUATED_IMAGES = 1000
PEAK_ROUNDS = 10_000  # of a tile's multiply-adds, which are a step of the peak on a CPU
MATRIX_SIZE = 8192  # of the products that are a step of the peak on a GPU
GRAPHS = 1, 4, 8  # models at a time that the careful side tries on a GPU; its best counts


class Side(Protocol):
    """Something that can be timed."""

    models: int  # that take each step together

    def run(self, steps: int) -> None:
        """Take so many steps, of training or of what else the side does; a GPU may still be at work
        afterwards.
        """
        ...


class Ours:
    """The project's step as a cohort calls it: segments end where an epoch ends.

    Args:
        case: gives the models.
        bank: their image sets.
        device: where to train.
        step: what trains; None: the fast step.
        apart: the models' epochs end one after the other, so many steps apart; 0: all at once, and an epoch
            is one segment.
    """

    def __init__(
        self, case: Case, bank: Bank, device: torch.device, step: Step | None = None, *, apart: int = 0
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
        self.step = step or make_step(case.model.recipe.architecture, device)
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
            self.step.train(self.state, {m: self._segment(m, count) for m in range(self.models)})
            steps, self.taken = steps - count, self.taken + count

    def _segment(self, m: int, count: int) -> Segment:
        step = self.taken + m * self.apart
        epoch, start = divmod(step, self.length)
        return Segment(
            self.cohort[m], self.images[m], self.flat[m], self.orders[m].shape[1], epoch, step, start, count
        )


class Evaluation:
    """The project's evaluation of a row, and its export; a step is one of both."""

    models = 1

    def __init__(self, case: Case, bank: Bank, device: torch.device) -> None:
        images, self.activation = bank[case.model.recipe.dataset], case.model.recipe.activation
        self.pixels, self.labels = (
            images.train_images[:EVALUATED_IMAGES],
            images.train_labels[:EVALUATED_IMAGES],
        )
        self.step = make_step(case.model.recipe.architecture, device)
        self.row = torch.from_numpy(initial_row(case.model)).to(device)
        self.spool = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the side

    def run(self, steps: int) -> None:
        for _ in range(steps):
            correct, losses = self.step.evaluate(self.row[None], self.activation, self.pixels, self.labels)
            float(losses.double().mean()), correct.sum().item()
            self.spool.seek(0)
            self.spool.write(self.row.cpu().numpy().tobytes())


class Peak:
    """The largest rate at which the device multiplies and adds in float32: tiles in a core's registers, or a
    GPU's product of matrices.
    """

    models = 1

    def __init__(self, case: Case, bank: Bank, device: torch.device) -> None:
        self.step: Callable[[], object]
        if device.type == "cuda":
            a, b, out = torch.rand(3, MATRIX_SIZE, MATRIX_SIZE, device=device)
            self.step = functools.partial(torch.mm, a, b, out=out)
        else:
            from builder.cpu import kernels  # a GPU needs no Numba

            self.step = functools.partial(
                kernels.multiply_add, torch.zeros(kernels.SCRATCH).numpy(), PEAK_ROUNDS
            )

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()


SIDES: dict[str, Callable[[Case, Bank, torch.device], Side]] = {
    "plain": Plain,
    "careful": Careful,
    "vmap": Vmapped,
    "ours": Ours,
    "evaluation": Evaluation,
    "peak": Peak,
    **{f"careful x{count}": functools.partial(Graphs, models=count) for count in GRAPHS},
}


def flops_of(side: str, case: Case, device: torch.device) -> int:
    """FLOPs of one step of one model of a side."""
    if side == "peak":
        if device.type == "cuda":
            return 2 * MATRIX_SIZE**3
        from builder.cpu import kernels

        return 2 * kernels.TILE_SUMS * PEAK_ROUNDS
    return EVALUATED_IMAGES * case.forward_flops if side == "evaluation" else case.step_flops
