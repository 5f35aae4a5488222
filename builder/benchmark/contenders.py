"""What is timed: this project's training and evaluation, its peers, and the machine's peak."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable

import torch

from builder.benchmark.pytorch import Careful, CudaGraphs, Plain
from builder.benchmark.stacked import Vmapped, batched
from builder.forecasting.pace import Case, CohortSteps, Contender, ImageSteps
from builder.training.bank import Bank
from builder.training.device import make_backend
from builder.training.initial import initial_row

EVALUATED_IMAGES = 1000
PEAK_ROUNDS = 10_000  # rounds of a tile's multiply-adds in one step of the peak on a CPU
MATRIX_SIZE = 8192  # of the matrix product in one step of the peak on a GPU
GRAPH_MODELS = 1, 4, 8  # models at a time that the careful contender tries on a GPU; the best counts


def ours(case: Case, bank: Bank, device: torch.device) -> Contender:
    """This project's training."""
    of_images = case.model.recipe.architecture.reads == "images"
    return CohortSteps(case, bank, device) if of_images else ImageSteps(case, bank, device)


class Evaluation:
    """The project's evaluation of a row, and its export; a step is one of each."""

    models = 1

    def __init__(self, case: Case, bank: Bank, device: torch.device) -> None:
        images, self.activation = bank[case.model.recipe.dataset], case.model.recipe.activation
        self.pixels, self.labels = (
            images.train_images[:EVALUATED_IMAGES],
            images.train_labels[:EVALUATED_IMAGES],
        )
        self.backend = make_backend(case.model.recipe.architecture, device)
        self.row = torch.from_numpy(initial_row(case.model)).to(device)
        self.spool = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the contender

    def run(self, steps: int) -> None:
        for _ in range(steps):
            correct, losses = self.backend.evaluate(self.row[None], self.activation, self.pixels, self.labels)
            float(losses.double().mean()), correct.sum().item()
            self.spool.seek(0)
            self.spool.write(self.row.cpu().numpy().tobytes())


class Peak:
    """The device's peak rate of float32 multiply-adds: tiles in registers, or a GPU's matrix product."""

    models = 1

    def __init__(self, case: Case, bank: Bank, device: torch.device) -> None:
        self.step: Callable[[], object]
        if device.type == "cuda":
            a, b, out = torch.rand(3, MATRIX_SIZE, MATRIX_SIZE, device=device)
            self.step = functools.partial(torch.mm, a, b, out=out)
        else:
            from builder.training.cpu import kernels  # a GPU needs no Numba

            self.step = functools.partial(
                kernels.multiply_add, torch.zeros(kernels.SCRATCH).numpy(), PEAK_ROUNDS
            )

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()


CONTENDERS: dict[str, Callable[[Case, Bank, torch.device], Contender]] = {
    "plain": Plain,
    "careful": Careful,
    "vmap": Vmapped,
    "batched": batched,
    "ours": ours,
    "evaluation": Evaluation,
    "peak": Peak,
    **{f"careful x{count}": functools.partial(CudaGraphs, models=count) for count in GRAPH_MODELS},
}


def flops_of(contender: str, case: Case, device: torch.device) -> int:
    """FLOPs of one step of one of a contender's models."""
    if contender == "peak":
        if device.type == "cuda":
            return 2 * MATRIX_SIZE**3
        from builder.training.cpu import kernels

        return 2 * kernels.TILE_SUMS * PEAK_ROUNDS
    return EVALUATED_IMAGES * case.forward_flops if contender == "evaluation" else case.step_flops
