"""Training steps of Kolmogorov-Arnold networks, compiled by Numba.

One model is trained at a time. Every input x of a layer has features, silu(x) and the B-splines at x, so a
layer is a product of two matrices: features and effective weights (w_b and w_s * c), which are computed once
a step. Images (or pixels) pass through the network in blocks, so that a block's features stay in the core's
cache. The first layer's inputs have few distinct values, so its features come from a table.

Lanes are the units of a layer, or its inputs, padded with zeros to whole vectors; where outputs are compared
with targets, lanes are images. A product sums over images or units one after the other, in the same order
for any vector width.

Axes: M models, B images or pixels, C channels or classes, E edges, P weights; A outer and V inner units of a
layer, which are [inputs, outputs] in the first layer and [outputs, inputs] in the others; F features of an
input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from builder.training import update
from builder.training.backend import Segment
from builder.training.cpu.compiled import drop_stale_kernels
from builder.training.cpu.kernels import change_weights, lanes_of
from builder.training.cpu.products import product, whole_vectors
from builder.training.cpu.vectors import (
    LANES,
    entry,
    exp,
    fill,
    fma,
    jit,
    keep,
    load,
    make_totals,
    maximum,
    raw,
    splines,
    store,
    total,
)
from nws_dataset.networks.kan import Architecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import coordinates

BLOCK = 64  # images that pass through the network together

LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("outer", "inner"),  # numbers of units
            "width",  # inner units, padded
            "taps",  # features of all inputs
            "row",  # start of its weights in the packed row, [A, F + 1, V]: w_b, w_s, then c
            # starts of buffers in `KanArrays.x`
            "weights",  # effective: [A, F, V]
            "slopes",  # the loss's gradient by these
            "turned",  # the effective weights of a hidden layer, transposed: [F, V, A padded]
            "x",  # inputs of a block: [B, V]; later the gradient by them
            "features",  # [B, F, V]; in the first layer [B, A, F]
            "derivatives",  # of the features: [B, F, V]
            "y",  # outputs, later the gradient by them
            *("y_image", "y_unit"),  # strides of y: between images, between units
        )
    ]
)


class KanArrays(NamedTuple):
    """One model; all arrays are flat."""

    # the packed row: each layer's weights, padded so that vectors hold inner units
    row: np.ndarray
    gradient: np.ndarray
    first: np.ndarray  # the optimizer's moments
    second: np.ndarray
    layers: np.ndarray  # records of LAYER
    x: np.ndarray  # all buffers
    scratch: np.ndarray  # for LANES vectors
    table: np.ndarray  # features of each possible value of the network's inputs, [values, F]
    values: np.ndarray  # these values, ascending
    products: int  # start in x of the gradient by a block's features
    features: int  # F
    intervals: tuple[int, ...]  # its length is the number of intervals between knots
    degree: tuple[int, ...]  # its length is the splines' degree
    lowest: float  # the first knot
    per_step: float  # 1 / (distance between knots)


_totals = make_totals(LANES)


@jit
def dots(net: Any, L: Any, count: int) -> None:
    """The last layer's outputs [outputs, B]; lanes are inputs, since outputs are few, summed at the end."""
    x, scratch = raw(net.x), raw(net.scratch)
    for first in range(0, count, LANES):
        for o in range(L.outer):
            w = L.weights + o * L.taps
            for p in range(LANES):
                at, acc = L.features + (first + p) * L.taps, fill(x, 0.0)
                for t in range(0, L.taps, LANES):
                    acc = fma(load(x, at + t), load(x, w + t), acc)
                store(scratch, p * LANES, acc)
            _totals(scratch)
            store(x, L.y + o * L.y_unit + first, load(scratch, 0))


# Weights


@jit
def fold(net: Any) -> None:
    """Compute effective weights from the row."""
    x, row = raw(net.x), raw(net.row)
    for k in range(len(net.layers)):
        L = net.layers[k]
        for a in range(L.outer):
            at, to = L.row + a * (net.features + 1) * L.width, L.weights + a * net.features * L.width
            for v in range(0, L.width, LANES):
                store(x, to + v, load(row, at + v))
                scale = load(row, at + L.width + v)
                for f in range(1, net.features):
                    store(x, to + f * L.width + v, scale * load(row, at + (1 + f) * L.width + v))
        if L.turned >= 0:
            padded = (L.outer + LANES - 1) // LANES * LANES
            for a in range(L.outer):
                for t in range(L.taps):
                    net.x[L.turned + t * padded + a] = net.x[L.weights + a * L.taps + t]


@jit
def unfold(net: Any) -> None:
    """Compute the row's gradient from that of the effective weights."""
    x, row, gradient = raw(net.x), raw(net.row), raw(net.gradient)
    for k in range(len(net.layers)):
        L = net.layers[k]
        for a in range(L.outer):
            at, of = L.row + a * (net.features + 1) * L.width, L.slopes + a * net.features * L.width
            for v in range(0, L.width, LANES):
                store(gradient, at + v, load(x, of + v))
                scale, slope = load(row, at + L.width + v), fill(x, 0.0)
                for f in range(1, net.features):
                    g, c = load(x, of + f * L.width + v), at + (1 + f) * L.width + v
                    slope = fma(load(row, c), g, slope)
                    store(gradient, c, scale * g)
                store(gradient, at + L.width + v, slope)


# Features


@jit
def find_features(net: Any, at: int, to: int, slopes: int, width: int, count: int) -> None:
    """Features of `count` images' inputs, and derivatives (splines' in units of the distance of knots)."""
    x = raw(net.x)
    one, per_step, first = fill(x, 1.0), fill(x, net.per_step), fill(x, -net.lowest * net.per_step)
    for p in range(count):
        for i in range(0, width, LANES):
            v = load(x, at + p * width + i)
            f, d = to + p * width * net.features + i, slopes + p * width * net.features + i
            sigmoid = one / (exp(fill(x, 0.0) - v) + one)
            store(x, f, v * sigmoid)
            store(x, d, sigmoid * fma(v, one - sigmoid, one))
            u = fma(v, per_step, first)  # distance from the first knot, in intervals
            splines(x, u, f + width, d + width, width, net.intervals, net.degree)


@jit
def make_table(net: Any) -> None:
    """Compute the features of all values, a vector at a time."""
    at, size = net.products, net.features * LANES
    for k in range(0, len(net.values), LANES):
        for j in range(LANES):
            net.x[at + j] = net.values[min(k + j, len(net.values) - 1)]
        find_features(net, at, at + LANES, at + LANES + size, LANES, 1)
        for j in range(min(LANES, len(net.values) - k)):
            for f in range(net.features):
                net.table[(k + j) * net.features + f] = net.x[at + LANES + f * LANES + j]


# Forward and backward


@jit
def load_inputs(net: Any, levels: Any, starts: Any, begin: int, count: int) -> None:
    """Load `count` images from `begin` on: the first layer's features, or the only layer's inputs."""
    x, table, F, L = raw(net.x), raw(net.table), net.features, net.layers[0]
    if len(net.layers) == 1:
        for p in range(count):
            for i in range(L.inner):
                net.x[L.x + p * L.width + i] = net.values[levels[starts[begin + p] + i]]
        return
    for p in range(count):
        start, to = starts[begin + p], L.features + p * L.taps
        for i in range(L.outer):
            at = np.int64(entry(levels, start + i)) * F
            for f in range(0, F, LANES):  # the next store overwrites what goes beyond F
                store(x, to + i * F + f, load(table, at + f))


@jit
def forward(net: Any, count: int) -> None:
    """Compute a block's outputs from its inputs."""
    x, last = raw(net.x), len(net.layers) - 1
    for k in range(last + 1):
        L = net.layers[k]
        if k == 0 and last > 0:
            product(
                *(x, L.features, L.taps, 1, L.weights, L.width),
                *(L.y, L.y_image, count, L.width, L.taps, False),
            )
            continue
        find_features(net, L.x, L.features, L.derivatives, L.width, count)
        if k == last:
            dots(net, L, count)
        else:
            product(
                *(x, L.features, L.taps, 1, L.turned, L.y_image),
                *(L.y, L.y_image, count, L.y_image, L.taps, False),
            )


@jit
def backward(net: Any, count: int, adding: bool) -> None:
    """Compute the gradient of a block, given the gradient by its outputs in their place."""
    x, last = raw(net.x), len(net.layers) - 1
    for k in range(last, -1, -1):
        L = net.layers[k]
        if k == 0 and last > 0:
            product(
                *(x, L.features, 1, L.taps, L.y, L.y_image),
                *(L.slopes, L.width, L.taps, L.width, count, adding),
            )
            continue
        product(
            *(x, L.y, L.y_unit, L.y_image, L.features, L.taps),
            *(L.slopes, L.taps, L.outer, L.taps, count, adding),
        )
        if k:
            product(
                *(x, L.y, L.y_image, L.y_unit, L.weights, L.taps),
                *(net.products, L.taps, count, L.taps, L.outer, False),
            )
            input_gradients(net, L, count)


@jit
def input_gradients(net: Any, L: Any, count: int) -> None:
    """Replace a block's inputs by the gradient by them, from that by their features."""
    x, size = raw(net.x), L.width * net.features
    per_step = fill(x, net.per_step)
    for p in range(count):
        for i in range(p * size, p * size + L.width, LANES):
            acc = fill(x, 0.0)
            for t in range(i + L.width, (p + 1) * size, L.width):
                acc = fma(load(x, L.derivatives + t), load(x, net.products + t), acc)
            base = load(x, L.derivatives + i) * load(x, net.products + i)
            store(x, L.x + p * L.width + i - p * size, fma(acc, per_step, base))


# Losses


@jit
def squared_error(net: Any, targets: Any, begin: int, count: int, pixels: int) -> float:
    """The sum over a block of an image; the gradient of the image's mean error replaces the outputs."""
    x, t, L = raw(net.x), raw(targets), net.layers[len(net.layers) - 1]
    scale, acc = fill(x, 2.0 / (pixels * L.outer)), fill(x, 0.0)
    padded = len(targets) // L.outer
    for o in range(L.outer):
        for first in range(0, count, LANES):
            at = L.y + o * L.y_unit + first
            error = load(x, at) - load(t, o * padded + begin + first)
            error = keep(lanes_of(count, first // LANES), error)
            acc = fma(error, error, acc)
            store(x, at, error * scale)
    return float(total(acc))


@jit
def cross_entropy(net: Any, labels: Any, begin: int, count: int, batch: int) -> float:
    """The sum over a block of a batch; the gradient of the batch's mean loss replaces the outputs."""
    x, scratch, L, loss = raw(net.x), raw(net.scratch), net.layers[len(net.layers) - 1], 0.0
    for first in range(0, count, LANES):
        y = L.y + first
        largest = load(x, y)
        for o in range(1, L.outer):
            largest = maximum(load(x, y + o * L.y_unit), largest)
        s = fill(x, 0.0)
        for o in range(L.outer):
            s = s + exp(load(x, y + o * L.y_unit) - largest)
        store(scratch, 0, s)
        store(scratch, LANES, largest)
        for j in range(min(LANES, count - first)):
            at = y + labels[begin + first + j] * L.y_unit + j
            loss += math.log(net.scratch[j]) + net.scratch[LANES + j] - net.x[at]
        mask, share = lanes_of(count, first // LANES), fill(x, 1.0) / (s * fill(x, 1.0 * batch))
        for o in range(L.outer):
            e = exp(load(x, y + o * L.y_unit) - largest)
            store(x, y + o * L.y_unit, keep(mask, e * share))
        for j in range(min(LANES, count - first)):
            net.x[y + labels[begin + first + j] * L.y_unit + j] -= 1.0 / batch
    return loss


# Steps


@jit
def train(
    net: Any,
    levels: Any,
    starts: Any,
    labels: Any,
    targets: Any,
    batch: int,
    rates: Any,
    coefficients: Any,
) -> float:
    """Take steps with one model, until its loss is not finite.

    Args:
        net: the model.
        levels: for each input of all images, the index of its value in `values`.
        starts: [steps * batch] starts of the images in `levels`; [batch] if all steps see the same images.
        labels: [steps * batch] classes; empty for a network that represents an image.
        targets: pixel values for such a network, [C, B padded to whole vectors].
        batch: images per step.
        rates: [steps] step sizes, from `update.step_size`.
        coefficients: of `update.rule`.

    Returns:
        The sum of the steps' mean losses.
    """
    losses, outputs = 0.0, net.layers[len(net.layers) - 1].outer
    for s in range(len(rates)):
        fold(net)
        loss, start = 0.0, s * batch % len(starts)
        for begin in range(0, batch, BLOCK):
            count = min(BLOCK, batch - begin)
            load_inputs(net, levels, starts, start + begin, count)
            forward(net, count)
            if len(labels):
                loss += cross_entropy(net, labels, start + begin, count, batch)
            else:
                loss += squared_error(net, targets, begin, count, batch) / outputs
            backward(net, count, begin > 0)
        losses += loss / batch
        if not math.isfinite(losses):
            break
        unfold(net)
        change_weights(net.row, net.gradient, net.first, net.second, len(net.row), rates[s], coefficients)
    return losses


@jit
def evaluate(net: Any, levels: Any, starts: Any, outputs: Any) -> None:
    """Write the network's outputs into `outputs` [B * outputs]."""
    L = net.layers[len(net.layers) - 1]
    fold(net)
    for begin in range(0, len(starts), BLOCK):
        count = min(BLOCK, len(starts) - begin)
        load_inputs(net, levels, starts, begin, count)
        forward(net, count)
        for p in range(count):
            for o in range(L.outer):
                outputs[(begin + p) * L.outer + o] = net.x[L.y + o * L.y_unit + p]


@jit
def judge(outputs: Any, labels: Any, correct: Any, losses: Any) -> None:
    """Whether images are classified correctly, and their cross-entropies, from logits [B * classes]."""
    classes = len(outputs) // len(labels)
    for i in range(len(labels)):
        z = outputs[i * classes : (i + 1) * classes]
        best, s = 0, 0.0
        for k in range(1, classes):
            if z[k] > z[best]:
                best = k
        for k in range(classes):
            s += math.exp(np.float64(z[k]) - z[best])
        correct[i] = best == labels[i]
        losses[i] = math.log(s) + z[best] - z[labels[i]]


@jit
def add_edge_scores(net: Any, levels: Any, starts: Any) -> None:
    """Write each edge's sum of |phi(x)| over images to the place of w_b in the gradient."""
    x, scores, F = raw(net.x), raw(net.gradient), net.features
    fold(net)
    for i in range(len(net.gradient)):
        net.gradient[i] = 0.0
    for begin in range(0, len(starts), BLOCK):
        count = min(BLOCK, len(starts) - begin)
        load_inputs(net, levels, starts, begin, count)
        forward(net, count)
        for k in range(len(net.layers)):
            L, table = net.layers[k], k == 0 and len(net.layers) > 1
            for a in range(L.outer):
                for v in range(0, L.width, LANES):
                    w, acc = L.weights + a * F * L.width + v, fill(x, 0.0)
                    for p in range(count):
                        phi, at = fill(x, 0.0), L.features + p * L.taps
                        for f in range(F):
                            if table:
                                seen = fill(x, entry(x, at + a * F + f))
                            else:
                                seen = load(x, at + f * L.width + v)
                            phi = fma(load(x, w + f * L.width), seen, phi)
                        acc = acc + maximum(phi, fill(x, 0.0) - phi)
                    to = L.row + a * (F + 1) * L.width + v
                    store(scores, to, load(scores, to) + acc)


class KanBackend:
    """Trains and evaluates KANs on a CPU, one model at a time on one core.

    It is a `builder.training.backend.Backend` for classifiers, and a
    `builder.training.implicit.ImageBackend` for networks that represent an image. A model whose loss is not
    finite keeps the weights from before that step.

    Args:
        architecture: of the models.
        dtype: float32; float64 for tests.
    """

    def __init__(self, architecture: Architecture, dtype: torch.dtype = torch.float32) -> None:
        drop_stale_kernels()
        self.architecture, self.dtype = architecture, dtype
        self.number = torch.zeros(0, dtype=dtype).numpy().dtype.type
        if architecture.reads == "coordinates":
            values, levels = np.unique(coordinates(architecture, dtype).numpy(), return_inverse=True)
            self.pixels = levels.astype(np.uint16).ravel()
        else:
            values = architecture.scale(torch.arange(256, dtype=torch.float64) / 255).to(dtype).numpy()
        self.positions, self.packed, layers, products, size = _arranged(architecture)
        F, order = architecture.num_splines + 1, architecture.spline_order
        per_step = architecture.grid / (architecture.grid_max - architecture.grid_min)
        self._net = KanArrays(
            *(self._zeros(0),) * 4,
            layers=layers,
            x=self._zeros(size),
            scratch=self._zeros(LANES * LANES),
            table=self._zeros(len(values) * F + LANES),
            values=values,
            products=products,
            features=F,
            intervals=(0,) * (architecture.grid + 2 * order),
            degree=(0,) * order,
            lowest=architecture.grid_min - order / per_step,
            per_step=per_step,
        )
        make_table(self._net)

    def train_images(
        self,
        state: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        targets: torch.Tensor,
        rates: list[float],
    ) -> torch.Tensor:
        """See `ImageBackend.train_images`."""
        padded = torch.zeros(targets.shape[2], -(-targets.shape[1] // LANES) * LANES, dtype=self.dtype)
        starts, none, losses = self._starts(), np.zeros(0, np.int64), []
        for m, target in enumerate(targets):
            padded[:, : len(target)] = target.T
            model = [x[m] for x in state]
            pictures = self.pixels, starts, none, padded.view(-1).numpy(), len(target)
            losses.append(self._steps(model, pictures, rates, "adam"))
        return torch.tensor(losses, dtype=torch.float64)

    def evaluate_images(self, rows: torch.Tensor) -> torch.Tensor:
        """See `ImageBackend.evaluate_images`."""
        return self._outputs(rows, self.pixels, self._starts())

    def train(
        self, state: tuple[torch.Tensor, torch.Tensor, torch.Tensor], segments: Mapping[int, Segment]
    ) -> torch.Tensor:
        """See `Backend.train`."""
        losses = []
        for m, segment in segments.items():
            images, order, recipe = segment.images, segment.order, segment.model.recipe
            assert recipe.l2 == recipe.weight_decay == recipe.label_smoothing == 0, "no KAN has these"
            levels, starts = _flat(images.train_images, order)
            labels = images.train_labels[order].numpy()
            pictures = levels, starts, labels, self._zeros(0), segment.batch
            losses.append(self._steps([x[m] for x in state], pictures, segment.rates(), recipe.optimizer))
        return torch.tensor(losses, dtype=torch.float64)

    def evaluate(
        self, rows: torch.Tensor, activation: str, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Backend.evaluate`."""
        logits = self._outputs(rows, *_flat(images, torch.arange(len(images))))
        correct = torch.empty(len(rows), len(labels), dtype=torch.bool)
        losses = torch.empty(len(rows), len(labels), dtype=self.dtype)
        for z, right, loss in zip(logits, correct, losses, strict=True):
            judge(z.view(-1).numpy(), labels.numpy(), right.numpy(), loss.numpy())
        return correct, losses

    def compile(self, rows: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Take a step and evaluate, so that Numba compiles what a classifier needs."""
        state = [rows[0].clone() for _ in range(3)]
        pictures = *_flat(images, torch.arange(len(images))), labels.numpy(), self._zeros(0), len(images)
        self._steps(state, pictures, [0.0], "adam")
        self.evaluate(rows, self.architecture.activations[0], images, labels)
        self.edge_scores(rows, images)

    def edge_scores(self, rows: torch.Tensor, images: torch.Tensor | None = None) -> torch.Tensor:
        """[M, E]: every edge's mean |phi(x)| over inputs, layer by layer in the order [out, in].

        Args:
            rows: [M, P].
            images: [B, C, H, W] uint8, the inputs of classifiers; None for networks that represent an image,
                whose inputs are the coordinates of all pixels.
        """
        if images is None:
            levels, starts = self.pixels, self._starts()
        else:
            levels, starts = _flat(images, torch.arange(len(images)))
        layout = layout_of(self.architecture)
        edges = torch.cat(
            [
                layout.views(torch.from_numpy(self.positions))[f"{layer}.base_weight"].flatten()
                for layer in self.architecture.layers
            ]
        )
        scores = torch.zeros(len(rows), len(edges), dtype=self.dtype)
        for row, found in zip(rows, scores, strict=True):
            net = self._model([row])
            add_edge_scores(net, levels, starts)
            found.copy_(torch.from_numpy(net.gradient)[edges])
        return scores / len(starts)

    def _steps(
        self,
        model: list[torch.Tensor],
        pictures: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int],
        rates: list[float],
        optimizer: str,
    ) -> float:
        net = self._model(model)
        coefficients = tuple(self.number(c) for c in update.COEFFICIENTS[optimizer])
        loss: float = train(net, *pictures, np.array(rates, self.number), coefficients)
        for x, new in zip(model, (net.row, net.first, net.second), strict=True):
            x.copy_(torch.from_numpy(new[self.positions]))
        return loss

    def _outputs(self, rows: torch.Tensor, levels: np.ndarray, starts: np.ndarray) -> torch.Tensor:
        """The networks' outputs [M, B, outputs]."""
        outputs = torch.empty(len(rows), len(starts), self.architecture.num_outputs, dtype=self.dtype)
        for row, found in zip(rows, outputs, strict=True):
            evaluate(self._model([row]), levels, starts, found.view(-1).numpy())
        return outputs

    def _model(self, model: list[torch.Tensor]) -> KanArrays:
        """A model as `KanArrays`: row, or row and moments, packed."""
        own = [self._zeros(self.packed) for _ in range(4)]
        for packed, x in zip((own[0], *own[2:]), model, strict=False):
            packed[self.positions] = x.numpy()
        row, gradient, first, second = own
        return self._net._replace(row=row, gradient=gradient, first=first, second=second)

    def _starts(self) -> np.ndarray:
        """Starts of the pixels' coordinates in `pixels`."""
        return np.arange(0, len(self.pixels), self.architecture.widths[0])

    def _zeros(self, count: int) -> np.ndarray:
        """Zeros, aligned by torch as vectors need it."""
        return torch.zeros(count, dtype=self.dtype).numpy()


def _flat(images: torch.Tensor, order: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """All pixels as one vector, and the starts in it of the images of an order."""
    return images.contiguous().view(-1).numpy(), (order * images[0].numel()).numpy()


def _arranged(architecture: Architecture) -> tuple[np.ndarray, int, np.ndarray, int, int]:
    """How a network is arranged in memory.

    Returns:
        The index [P] of each weight of a row in the packed row, the packed row's length, the layers' records,
        `KanArrays.products`, and the total size of the buffers in `KanArrays.x`.
    """
    F, names, widths = architecture.num_splines + 1, architecture.layers, architecture.widths
    layers = np.zeros(len(names), LAYER)
    layout, packed, size = layout_of(architecture), 0, 0
    positions = np.zeros(layout.num_weights, np.int64)

    def room(numbers: int) -> int:
        nonlocal size
        start, size = size, size + whole_vectors(numbers)
        return start

    for k, (name, inputs, outputs) in enumerate(zip(names, widths, widths[1:], strict=False)):
        L, last, table = layers[k], k == len(names) - 1, k == 0 and len(names) > 1
        L["outer"], L["inner"] = (inputs, outputs) if table else (outputs, inputs)
        L["width"] = width = whole_vectors(int(L["inner"]))
        L["taps"] = taps = F * (inputs if table else width)
        L["row"], effective = packed, int(L["outer"]) * F * width
        L["weights"], L["slopes"] = room(effective), room(effective)
        L["turned"] = -1 if table or last else room(taps * whole_vectors(outputs))
        L["x"] = layers[k - 1]["y"] if k else room(BLOCK * width)
        L["features"] = room(BLOCK * taps + F + LANES)
        L["derivatives"] = 0 if table else room(BLOCK * taps)
        L["y_image"], L["y_unit"] = (1, BLOCK) if last else (whole_vectors(outputs), 1)
        L["y"] = room(BLOCK * (outputs if last else whole_vectors(outputs)))
        edge = np.arange(inputs) * (F + 1) * width + np.arange(outputs)[:, None]
        if not table:
            edge = np.arange(outputs)[:, None] * (F + 1) * width + np.arange(inputs)
        planes = {
            "base_weight": edge,
            "spline_weight": edge + width,
            "coefficients": edge[..., None] + np.arange(2, F + 1) * width,
        }
        for role, at in planes.items():
            spec = layout[f"{name}.{role}"]
            positions[spec.offset : spec.offset + at.size] = packed + at.ravel()
        packed += int(L["outer"]) * (F + 1) * width
    products = room(max([(2 * F + 1) * LANES, *(BLOCK * int(L["taps"]) for L in layers[1:])]))
    return positions, packed, layers, products, size
