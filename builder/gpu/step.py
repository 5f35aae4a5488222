"""The step of a cohort on a GPU: all slots together, captured in a CUDA graph; on a CPU the same kernels run in Triton's interpreter.

Nothing in a step asks the device for an answer: what its models differ in, their orders and their rates lie in tables on the device, and
a counter there says which step it is.

Axes: M slots, K rows, B images, C channels, H W pixels, P weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from builder import batches, philox, update
from builder.gpu import augment, kernels
from builder.gpu.layers import Layers
from builder.gpu.pieces import Slots
from builder.gpu.products import LibraryProducts, Products, TritonProducts
from builder.step import ACTIVATION_NUMBERS, Segment
from nws_dataset.layout import layout_of
from nws_dataset.recipe import Architecture, Recipe

ORDER_IMAGES = 1 << 16  # images of a slot whose places lie on the device at once
EVALUATION_IMAGES = 8192  # images of all networks in one forward pass, about

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_capturing = threading.Lock()  # one capture at a time in a process


class GpuStep:
    """`builder.step.Step` for models of one architecture, by the kernels beside this module.

    Args:
        architecture: of all the models.
        device: where the rows are.
        dtype: of the rows.
        tf32: whether products cut their factors to 10 bits, for speed; what is cut off is lost, not rounded.
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
        self.products: Products = TritonProducts("tf32" if tf32 else "ieee") if convolution == "triton" else LibraryProducts(tf32)
        self._runs: dict[tuple[int, ...], Run] = {}

    def train(self, state: State, segments: Mapping[int, Segment]) -> torch.Tensor:
        """See `builder.step.Step`."""
        batch = next(iter(segments.values())).batch
        key = (batch, *(x.data_ptr() for x in state))
        if key not in self._runs:
            self._runs[key] = Run(self.architecture, self.products, state, batch)
        return self._runs[key].train(segments)

    @torch.no_grad()
    def evaluate(
        self, rows: torch.Tensor, activation: str, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `builder.step.Step`."""
        block = min(len(images), max(1, EVALUATION_IMAGES // len(rows)))
        low, size = self.architecture.pixel_min, self.architecture.image_size
        integers = torch.ones(6, len(rows), dtype=torch.int64, device=self.device)
        slots = Slots.of(integers, torch.ones(len(rows), dtype=self.dtype, device=self.device))
        slots.activation.fill_(ACTIVATION_NUMBERS[activation])
        correct, losses = [], []
        for part, target in zip(images.split(block), labels.split(block), strict=True):
            layers = Layers(self.architecture, self.products, slots, len(part), None)
            x = layers.map(self.architecture.image_channels, size, self.architecture.pad, models=1)
            x[0] = part.to(self.dtype).div_(255).mul_(1 - low).add_(low)
            logits = layers.forward(rows, x.expand(len(rows), -1, -1, -1, -1))
            expected = target.expand(len(rows), -1)
            correct.append(logits.argmax(-1) == expected)
            losses.append(F.cross_entropy(logits.flatten(0, 1), expected.flatten(), reduction="none").view(expected.shape))
        return torch.cat(correct, 1), torch.cat(losses, 1)


class Run:
    """The steps of all slots of a cohort with B images each.

    Args:
        architecture: of all models.
        products: how products are computed.
        state: rows, first and second moments, [M, P] each, changed in place.
        batch: B.
    """

    def __init__(self, architecture: Architecture, products: Products, state: State, batch: int) -> None:
        rows = state[0]
        models, device, dtype = len(rows), rows.device, rows.dtype
        self.architecture, self.state, self.batch = architecture, state, batch
        self.chunk = max(1, ORDER_IMAGES // batch)  # steps whose orders and rates lie on the device at once
        self.integers = torch.zeros(9, models, dtype=torch.int64, device=device)
        self.numbers = torch.zeros(2 + len(update.Coefficients._fields), models, dtype=dtype, device=device)
        self.slots = Slots.of(self.integers[:6], self.numbers[0])
        self.order = torch.zeros(models, self.chunk * batch, dtype=torch.int32, device=device)
        self.rates = torch.zeros(self.chunk, models, dtype=dtype, device=device)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.losses = torch.zeros(models, dtype=dtype, device=device)
        self.gradients = torch.zeros(models, rows.stride(0), dtype=dtype, device=device)[:, : rows.shape[1]]  # as aligned as the rows;
        # stays 0 at the running statistics, which no gradient reaches
        self.labels = torch.zeros(models, batch, dtype=torch.int64, device=device)
        self.index = torch.zeros(models, batch, dtype=torch.int32, device=device)
        self.kernels = _kernels(architecture).to(device, dtype)
        self.layers = Layers(architecture, products, self.slots, batch, self.index)
        self.images = self.layers.map(architecture.image_channels, architecture.image_size, architecture.pad)
        self.graph = _capture(self.step, device)

    @torch.no_grad()
    def step(self) -> None:
        """A step of every active slot."""
        active = self.slots.active
        batch = self.images, self.labels, self.index
        augment.load(self.integers[7:], self.order, self.counter, batch, self.integers[6], self.slots, self.architecture.pixel_min)
        logits = self.layers.forward(self.state[0], self.images)
        kernels.cross_entropy(logits, self.labels, self.layers.dlogits, self.losses, active)
        self.layers.backward(self.state[0], self.images, self.gradients)
        kernels.update(self.state, self.gradients, self.kernels, self.rates, self.counter, self.numbers[1], self.numbers[2:], active)
        self.counter.add_(1)

    def train(self, segments: Mapping[int, Segment]) -> torch.Tensor:
        """See `builder.step.Step`."""
        steps = next(iter(segments.values())).steps
        places = list(segments)
        self._fill(segments)
        orders = torch.stack([segment.order for segment in segments.values()]).int()
        rates = torch.zeros(steps, self.rates.shape[1], dtype=torch.float64)
        rates[:, places] = torch.tensor([segment.rates() for segment in segments.values()], dtype=torch.float64).T
        there = torch.tensor(places, device=self.order.device)
        for start in range(0, steps, self.chunk):
            count = min(self.chunk, steps - start)
            self.order[there, : count * self.batch] = orders[:, start * self.batch : (start + count) * self.batch]
            self.rates[:count].copy_(rates[start : start + count])
            self.counter.zero_()
            for _ in range(count):
                self.step() if self.graph is None else self.graph.replay()
        return self.losses[there]

    def _fill(self, segments: Mapping[int, Segment]) -> None:
        """The tables of a call: put together on the host, and a copy each, since segments can be a few steps short."""
        integers, numbers = (torch.zeros_like(x, device="cpu") for x in (self.integers, self.numbers))
        integers[:, list(segments)] = torch.tensor([_integers(segment) for segment in segments.values()]).T
        numbers[:, list(segments)] = torch.tensor([_numbers(s.model.recipe) for s in segments.values()], dtype=torch.float64).T.to(numbers)
        self.integers.copy_(integers)
        self.numbers.copy_(numbers)
        self.losses.zero_()


def _integers(segment: Segment) -> list[int]:
    """A slot's column of `Run.integers`."""
    model, recipe, images = segment.model, segment.model.recipe, segment.images
    low, high = philox.key_of(model.seed, model.subset)
    key = (high << 32 | low) - (high >> 31 << 64)  # as a signed number
    return [
        *(1, ACTIVATION_NUMBERS[recipe.activation], key, model.number, segment.epoch, batches.dropout_threshold(recipe.dropout)),
        *(int(recipe.augmentation), images.train_images.data_ptr(), images.train_labels.data_ptr()),
    ]


def _numbers(recipe: Recipe) -> list[float]:
    """A slot's column of `Run.numbers`."""
    return [1 / (1 - recipe.dropout), recipe.l2, *update.COEFFICIENTS[recipe.optimizer]]


def _kernels(architecture: Architecture) -> torch.Tensor:
    """[P], 1 at the weights that L2 pulls at."""
    layout = layout_of(architecture)
    kernels = torch.zeros(layout.num_weights)
    for spec in layout.tensors:
        kernels[spec.offset : spec.stop] = float(spec.kind == "weight")
    return kernels


def _capture(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph | None:
    """A CUDA graph of a step; no slot is active yet, so the run before the capture, which compiles the kernels, changes no model."""
    if device.type != "cuda":
        return None
    with _capturing, torch.cuda.device(device):
        own, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        # A lane captures on its own stream: torch's new streams come round after 32, so one could be another lane's. Not by
        # torch.cuda.graph, which waits for all lanes' work.
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
