"""`CpuBackend`: trains and evaluates one model at a time on one core."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from builder import philox
from builder.philox import key_of
from builder.plan import Model
from builder.training import batches, sources, update
from builder.training.backend import ACTIVATION_NUMBERS, Segment
from builder.training.bank import Images
from builder.training.cpu import kernels, offsets, vectors
from builder.training.cpu.offsets import Tables, tables_of
from builder.training.cpu.vectors import LANES
from nws_dataset.files import atomic_write
from nws_dataset.format import network
from nws_dataset.format.layout import layout_of
from nws_dataset.format.recipe import Architecture, Recipe

CACHED_GROUPS = 4  # groups of 16 images whose maps fit into a core's cache


def groups_of(architecture: Architecture, batch: int) -> int:
    """Groups of images that go through the network together: all with batch-norm, else equal parts."""
    groups = -(-batch // LANES)
    if architecture.batch_norm:
        return groups
    return -(-groups // -(-groups // CACHED_GROUPS))


SOURCES = (vectors, offsets, kernels, update, philox, network)  # what the compiled step depends on


@functools.cache
def drop_stale_kernels() -> None:
    """Delete what Numba compiled from other sources: it checks a function's own file, but not the imports."""
    folder = Path(kernels.train.stats.cache_path)
    digest = sources.digest(SOURCES)
    mark = folder / "sources.sha256"
    if not mark.exists() or mark.read_text(encoding="ascii", errors="replace") != digest:
        for compiled in folder.glob("kernels.*.nb[ic]"):
            compiled.unlink(missing_ok=True)
        with atomic_write(mark) as temporary:
            temporary.write_text(digest, encoding="ascii")


class CpuBackend:
    """`builder.training.backend.Backend` on a CPU.

    Args:
        architecture: the models' architecture.
        dtype: float32; float64 for tests.
    """

    def __init__(self, architecture: Architecture, dtype: torch.dtype = torch.float32) -> None:
        drop_stale_kernels()
        self.architecture, self.dtype = architecture, dtype
        self._works: dict[int, kernels.Work] = {}

    def train(
        self, state: tuple[torch.Tensor, torch.Tensor, torch.Tensor], segments: Mapping[int, Segment]
    ) -> torch.Tensor:
        """See `Backend.train`."""
        losses = [self._train([x[m] for x in state], segment) for m, segment in segments.items()]
        return torch.tensor(losses, dtype=torch.float64)

    def _train(self, state: list[torch.Tensor], segment: Segment) -> float:
        recipe = segment.model.recipe
        work = self._work(groups_of(self.architecture, segment.batch))
        # copies have the same alignment, wherever a row comes from
        row, first, second = (x.clone().numpy() for x in state)
        number = row.dtype.type
        loss = kernels.train(
            work,
            self._net(row, recipe.activation, segment),
            self._pictures(segment, work.groups),
            first,
            second,
            np.array(segment.rates(), row.dtype),
            tuple(number(c) for c in update.COEFFICIENTS[recipe.optimizer]),
            number(2 * recipe.l2),
            segment.batch,
        )
        for x, new in zip(state, (row, first, second), strict=True):
            x.copy_(torch.from_numpy(new))
        return loss

    def evaluate(
        self, rows: torch.Tensor, activation: str, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Backend.evaluate`."""
        work = self._work(CACHED_GROUPS)
        index = _filled(torch.arange(len(labels))[None], work.groups * LANES)
        pictures = self._gathered(images, labels, index, torch.empty(0), gray=False)
        correct = torch.empty(len(rows), len(labels), dtype=torch.bool)
        losses = torch.empty(len(rows), len(labels), dtype=self.dtype)
        for k, row in enumerate(rows):
            kernels.evaluate(
                work,
                self._net(row.clone().numpy(), activation),
                pictures,
                correct[k].numpy(),
                losses[k].numpy(),
            )
        return correct, losses

    def _work(self, groups: int) -> kernels.Work:
        if groups not in self._works:
            self._works[groups] = _allocate(tables_of(self.architecture, groups), self.dtype)
        return self._works[groups]

    def _net(self, row: np.ndarray, activation: str, segment: Segment | None = None) -> kernels.Net:
        """A model in training, or in evaluation if there is no segment."""
        recipe, model = (segment.model.recipe, segment.model) if segment else (None, None)
        dropout = recipe.dropout if recipe else 0.0
        return kernels.Net(
            row=row,
            gradient=np.zeros_like(row),
            size=len(row),
            activation=ACTIVATION_NUMBERS[activation],
            pixel_min=float(self.architecture.pixel_min),
            training=segment is not None,
            dropping=dropout > 0,
            dropout_threshold=batches.dropout_threshold(dropout),
            dropout_factor=1 / (1 - dropout),
            key=np.array(key_of(model.seed, model.subset) if model else (0, 0), np.uint32),
            number=model.number if model else 0,
            epoch=segment.epoch if segment else 0,
        )

    def _pictures(self, segment: Segment, groups: int) -> kernels.Pictures:
        model, images = segment.model, segment.images
        index = _filled(segment.order.view(segment.steps, segment.batch), groups * LANES)
        distortions = torch.empty(0, dtype=self.dtype)
        if model.recipe.augmentation:
            distortions = torch.stack(
                batches.distortions(model, index, segment.epoch, images.train_images.shape[-1], self.dtype)
            )
        return self._gathered(images.train_images, images.train_labels, index, distortions, gray=images.gray)

    def _gathered(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        index: torch.Tensor,
        distortions: torch.Tensor,
        *,
        gray: bool,
    ) -> kernels.Pictures:
        return kernels.Pictures(
            images=images.contiguous().view(-1).numpy(),
            starts=(index * images[0].numel()).numpy(),
            labels=labels[index].numpy(),
            indices=index.numpy(),
            distortions=distortions.to(self.dtype).contiguous().view(-1).numpy(),
            quantiles=batches.normal_table(torch.device("cpu")).to(self.dtype).numpy(),
            gray=gray,
            augmented=len(distortions) > 0,
            length=len(index),
        )


def compile_step() -> None:
    """Have Numba compile the step, or load it from its cache, before several processes would do so."""
    architecture = Architecture(image_size=8, width_conv=1)
    recipe = Recipe(architecture, "digits", 0.01, LANES, "sgd", "relu", "glorot_uniform")
    pixels = torch.zeros(
        LANES,
        architecture.image_channels,
        architecture.image_size,
        architecture.image_size,
        dtype=torch.uint8,
    )
    labels = torch.zeros(LANES, dtype=torch.int64)
    model, images = (
        Model("demo", 0, seed=0, recipe=recipe, block=0),
        Images(pixels, labels, pixels, labels, gray=True),
    )
    backend, rows = CpuBackend(architecture), torch.zeros(3, 1, layout_of(architecture).num_weights)
    backend.train((rows[0], rows[1], rows[2]), {0: Segment(model, images, torch.arange(LANES), LANES, 0, 0)})
    backend.evaluate(rows[0], recipe.activation, pixels, labels)


def _filled(index: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad each line to a multiple of `multiple` with its last image, then flatten."""
    missing = -index.shape[1] % multiple
    return torch.cat([index, index[:, -1:].expand(-1, missing)], 1).reshape(-1)


def _allocate(tables: Tables, dtype: torch.dtype) -> kernels.Work:
    """Allocate zeroed buffers (padding stays zero); torch aligns them as vectors need it."""
    return kernels.Work(
        layers=tables.layers,
        classes=tables.classes,
        offsets=tables.offsets,
        x=torch.zeros(tables.workspace, dtype=dtype).numpy(),
        masks=np.zeros(tables.masks, np.uint16),
        scratch=torch.zeros(kernels.SCRATCH, dtype=dtype).numpy(),
        statistics=np.zeros(tables.statistics),
        groups=tables.groups,
    )
