"""A cohort's step on a GPU: all slots together in a CUDA graph; on a CPU, Triton's interpreter.

A step never waits for the device: what its models differ in, and their epochs' orders and rates, are on the
device, and counters there say which step it is. A call that continues an epoch costs the host only three
operations besides the steps.

Axes: M slots, K rows, B images, C channels, H W pixels, P weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from builder import philox
from builder.training import batches, update
from builder.training.backend import ACTIVATION_NUMBERS, Segment, State
from builder.training.gpu import augment, update_kernels
from builder.training.gpu.layers import Layers
from builder.training.gpu.pieces import Slots
from builder.training.gpu.products import LibraryProducts, Products, TritonProducts
from nws_dataset.format.recipe import Recipe
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of

EVALUATION_IMAGES = 8192  # images of all networks in one forward pass, roughly


_capturing = threading.Lock()  # only one capture at a time in a process


class GpuBackend:
    """A `builder.training.backend.Backend` that uses the kernels beside this module.

    Args:
        architecture: the models' architecture.
        device: where the rows are.
        dtype: type of the rows.
        tf32: whether products truncate (not round) their factors to 10 bits, for speed.
        convolution: "triton", or "grouped" for the libraries' products.
    """

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        tf32: bool = False,
        convolution: str = "triton",
    ) -> None:
        self.architecture, self.device, self.dtype = architecture, device, dtype
        self.products: Products = (
            TritonProducts("tf32" if tf32 else "ieee") if convolution == "triton" else LibraryProducts(tf32)
        )
        self._runs: dict[tuple[int, ...], Run] = {}

    def train(self, state: State, segments: Mapping[int, Segment]) -> torch.Tensor:
        """See `builder.training.backend.Backend`."""
        batch = next(iter(segments.values())).batch
        key = (batch, *(x.data_ptr() for x in state))
        if key not in self._runs:
            self._runs[key] = Run(self.architecture, self.products, state, batch)
        return self._runs[key].train(segments)

    @torch.no_grad()
    def evaluate(
        self, rows: torch.Tensor, activation: str, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `builder.training.backend.Backend`."""
        low, size = self.architecture.pixel_min, self.architecture.image_size
        integers = torch.ones(6, len(rows), dtype=torch.int64, device=self.device)
        slots = Slots.of(integers, torch.ones(len(rows), dtype=self.dtype, device=self.device))
        slots.activation.fill_(ACTIVATION_NUMBERS[activation])
        correct, losses = [], []
        count = evaluation_parts(len(rows), len(images))
        for part, target in zip(images.tensor_split(count), labels.tensor_split(count), strict=True):
            layers = Layers(self.architecture, self.products, slots, len(part), None)
            x = layers.map(self.architecture.image_channels, size, self.architecture.pad, models=1)
            x[0] = part.to(self.dtype).div_(255).mul_(1 - low).add_(low)
            logits = layers.forward(rows, x.expand(len(rows), -1, -1, -1, -1))
            expected = target.expand(len(rows), -1)
            correct.append(logits.argmax(-1) == expected)
            losses.append(
                F.cross_entropy(logits.flatten(0, 1), expected.flatten(), reduction="none").view(
                    expected.shape
                )
            )
        return torch.cat(correct, 1), torch.cat(losses, 1)


def evaluation_parts(rows: int, images: int) -> int:
    """In how many parts to evaluate: of nearly the same size, as a smaller one would need its own kernels."""
    return -(-images // max(1, EVALUATION_IMAGES // rows))


class Run:
    """The steps of all slots of a cohort with B images each.

    Args:
        architecture: the models' architecture.
        products: how products are computed.
        state: rows, first and second moments, [M, P] each, changed in place.
        batch: B.
    """

    def __init__(self, architecture: Architecture, products: Products, state: State, batch: int) -> None:
        rows = state[0]
        models, device, dtype = len(rows), rows.device, rows.dtype
        self.architecture, self.state, self.batch = architecture, state, batch
        self.integers = torch.zeros(12, models, dtype=torch.int64, device=device)
        self.numbers = torch.zeros(2 + len(update.Coefficients._fields), models, dtype=dtype, device=device)
        # as last filled
        self.host_tables = [torch.zeros_like(table, device="cpu") for table in (self.integers, self.numbers)]
        self.slots = Slots.of(self.integers[:6], self.numbers[0])
        self.augmented, self.sources, self.rates = self.integers[6], self.integers[7:10], self.integers[10]
        self.taken = self.integers[11]  # each slot's steps in its epoch; a step increments it
        self.epochs: dict[int, _Epoch] = {}  # the slots' epochs
        self.active_slots: list[int] = []
        self.active_index = torch.zeros(0, dtype=torch.int64, device=device)  # active_slots as a tensor
        self.losses = torch.zeros(models, dtype=dtype, device=device)
        # aligned as the rows; stays 0 at the running statistics, which have no gradient
        self.gradients = torch.zeros(models, rows.stride(0), dtype=dtype, device=device)[:, : rows.shape[1]]
        self.labels = torch.zeros(models, batch, dtype=torch.int64, device=device)
        self.index = torch.zeros(models, batch, dtype=torch.int32, device=device)
        self.kernels = _kernels(architecture).to(device, dtype)
        self.layers = Layers(architecture, products, self.slots, batch, self.index)
        self.images = self.layers.map(architecture.image_channels, architecture.image_size, architecture.pad)
        self.graph = _capture(self.step, device)

    @torch.no_grad()
    def step(self) -> None:
        """Take a step of every active slot."""
        active = self.slots.active
        batch = self.images, self.labels, self.index
        augment.load(self.sources, self.taken, batch, self.augmented, self.slots, self.architecture.pixel_min)
        logits = self.layers.forward(self.state[0], self.images)
        update_kernels.cross_entropy(logits, self.labels, self.layers.dlogits, self.losses, active)
        self.layers.backward(self.state[0], self.images, self.gradients)
        update_kernels.update(
            self.state,
            self.gradients,
            self.kernels,
            self.rates,
            self.taken,
            self.numbers[1],
            self.numbers[2:],
            active,
        )
        self.taken.add_(active)

    def train(self, segments: Mapping[int, Segment]) -> torch.Tensor:
        """See `builder.training.backend.Backend`."""
        starting = [
            m
            for m, segment in segments.items()
            if m not in self.epochs or not self.epochs[m].goes_on(segment)
        ]
        if starting or list(segments) != self.active_slots:
            self._fill(segments, starting)
        self.losses.zero_()
        steps = next(iter(segments.values())).steps
        for _ in range(steps):
            self.step() if self.graph is None else self.graph.replay()
        for m in segments:
            self.epochs[m].taken += steps
        return self.losses[self.active_index]

    def _fill(self, segments: Mapping[int, Segment], starting: list[int]) -> None:
        """Update the tables for these segments; all entries of the starting slots are new.

        Filled on the host and copied at once, since segments can be just a few steps.
        """
        self.active_slots = list(segments)
        self.active_index = torch.tensor(self.active_slots, device=self.integers.device)
        integers, numbers = (table.numpy() for table in self.host_tables)
        for m in starting:
            epoch = self.epochs[m] = _Epoch(segments[m], self.numbers)
            integers[1:11, m], numbers[:, m] = epoch.integers(), _numbers(segments[m].model.recipe)
        integers[0] = 0
        for m, segment in segments.items():
            integers[0, m], integers[11, m] = 1, segment.start
        self.integers.copy_(self.host_tables[0])
        self.numbers.copy_(self.host_tables[1])


class _Epoch:
    """An epoch of a slot's model; its order and rates are on the device while the slot is in it.

    Args:
        segment: the first of its steps that are taken here.
        like: a tensor of the rows' dtype on their device.
    """

    def __init__(self, segment: Segment, like: torch.Tensor) -> None:
        self.segment, self.taken = segment, segment.start
        self.order = segment.epoch_order.contiguous()
        self.rates = like.new_tensor(segment.whole.rates())

    def goes_on(self, segment: Segment) -> bool:
        """Whether a segment's steps are the next ones of this epoch."""
        own = self.segment
        same = (
            segment.model is own.model
            and segment.images is own.images
            and segment.epoch_order is own.epoch_order
        )
        return same and (segment.epoch, segment.start) == (own.epoch, self.taken)

    def integers(self) -> list[int]:
        """A slot's column of `Run.integers`, except whether it is active and how many steps it has taken."""
        segment, recipe = self.segment, self.segment.model.recipe
        low, high = philox.key_of(segment.model.seed, segment.model.subset)
        key = (high << 32 | low) - (high >> 31 << 64)  # as a signed number
        addressed = segment.images.train_images, segment.images.train_labels, self.order, self.rates
        return [
            *(
                ACTIVATION_NUMBERS[recipe.activation],
                key,
                segment.model.number,
                segment.epoch,
                batches.dropout_threshold(recipe.dropout),
            ),
            *(int(recipe.augmentation), *(x.data_ptr() for x in addressed)),
        ]


def _numbers(recipe: Recipe) -> list[float]:
    """A slot's column of `Run.numbers`."""
    return [1 / (1 - recipe.dropout), recipe.l2, *update.COEFFICIENTS[recipe.optimizer]]


def _kernels(architecture: Architecture) -> torch.Tensor:
    """[P], 1 at the weights that L2 applies to."""
    layout = layout_of(architecture)
    kernels = torch.zeros(layout.num_weights)
    for spec in layout.tensors:
        kernels[spec.offset : spec.stop] = float(spec.role == "weight")
    return kernels


def _capture(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph | None:
    """Capture a step in a CUDA graph.

    The run before it, which compiles the kernels, changes no model, as no slot is active yet.
    """
    if device.type != "cuda":
        return None
    with _capturing, torch.cuda.device(device):
        own, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        # A cohort captures on its own stream: torch reuses its streams after 32, so a new one could be
        # another cohort's. Not with torch.cuda.graph, which waits for the work of all streams.
        stream = torch.cuda.Stream() if own == torch.cuda.default_stream() else own
        stream.wait_stream(own)
        with torch.cuda.stream(stream):
            step()
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                step()
            finally:
                graph.capture_end()
        own.wait_stream(stream)
        return graph
