"""`CpuBackend`: trains and evaluates one model at a time on one core."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from builder.philox import key_of
from builder.plan import Model
from builder.training import batches, update
from builder.training.backend import ACTIVATION_NUMBERS, Segment
from builder.training.bank import Images
from builder.training.cpu import kernels
from builder.training.cpu.compiled import drop_stale_kernels
from builder.training.cpu.kan import KanBackend
from builder.training.cpu.offsets import Tables, tables_of
from builder.training.cpu.siren import SirenBackend
from builder.training.cpu.vectors import LANES
from nws_dataset.format.recipe import Recipe
from nws_dataset.networks import kan, siren
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of

CACHED_GROUPS = 4  # groups of 16 images whose maps fit into a core's cache


def groups_of(architecture: Architecture, batch: int) -> int:
    """Groups of images that go through the network together: all with batch-norm, else equal parts."""
    groups = -(-batch // LANES)
    if architecture.batch_norm:
        return groups
    return -(-groups // -(-groups // CACHED_GROUPS))


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

    def _net(self, row: np.ndarray, activation: str, segment: Segment | None = None) -> kernels.CnnArrays:
        """A model in training, or in evaluation if there is no segment."""
        recipe, model = (segment.model.recipe, segment.model) if segment else (None, None)
        dropout = recipe.dropout if recipe else 0.0
        return kernels.CnnArrays(
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


def compile_step(kind: str = Architecture.kind, dtype: torch.dtype = torch.float32) -> None:
    """Have Numba compile the step of a kind of networks, or load it from its cache, so that several processes
    need not do it at once; in float64 only that of the first kind.
    """
    if kind != Architecture.kind:
        _compile_other(kind)
        return
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
    backend = CpuBackend(architecture, dtype)
    rows = torch.zeros(3, 1, layout_of(architecture).num_weights, dtype=dtype)
    backend.train((rows[0], rows[1], rows[2]), {0: Segment(model, images, torch.arange(LANES), LANES, 0, 0)})
    backend.evaluate(rows[0], recipe.activation, pixels, labels)


def _compile_other(kind: str) -> None:
    if kind == siren.Architecture.kind:
        tiny = siren.Architecture(image_size=4, width_hidden=4)
        _compile_image_step(SirenBackend(tiny), layout_of(tiny).num_weights, 16)
    elif kind == kan.Architecture.kind:
        inr = kan.Architecture(image_size=4, width_hidden=4)
        _compile_image_step(KanBackend(inr), layout_of(inr).num_weights, 16)
        classifier = kan.Architecture(reads="images", image_size=4, width_hidden=4)
        backend, rows = KanBackend(classifier), torch.zeros(1, layout_of(classifier).num_weights)
        pixels, labels = torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
        backend.compile(rows, pixels, labels)


def _compile_image_step(backend: SirenBackend | KanBackend, num_weights: int, pixels: int) -> None:
    rows = torch.zeros(3, 1, num_weights)
    backend.train_images((rows[0], rows[1], rows[2]), torch.zeros(1, pixels, 1), [0.0])
    backend.evaluate_images(rows[0])


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
