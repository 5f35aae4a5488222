"""Forward and backward of M slots' networks on B images each: the kernels in order, and their memory.

Axes: M slots, B images, C channels, S height = width, U units, T parts of a sum, P weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton

from builder.training import batches
from builder.training.backend import aligned
from builder.training.gpu import dense, epilogues, update_kernels
from builder.training.gpu.pieces import Dropout, Slots, draw
from builder.training.gpu.products import Product, Products, products_of
from nws_dataset.networks.cnn import BATCH_NORM_EPSILON, Architecture
from nws_dataset.networks.layout import NORM_SUFFIX, layout_of


@dataclass(frozen=True)
class Gradient:
    """A layer's memory for the backward pass."""

    dy: torch.Tensor  # as y
    # as out: the gradient before activation, at the winners of pooling; dy itself without pooling and
    # batch-norm
    dz: torch.Tensor
    dout: torch.Tensor  # as out, or [M, B, C, 1, 1] before the average over the map
    sums: torch.Tensor  # [M, C, T, 2], for batch-norm
    totals: torch.Tensor  # [M, C, 2]


@dataclass
class Layer:
    """A layer and its memory."""

    product: Product
    is_conv: bool
    pool: bool
    norm: int | None  # index of batch-norm's first number in the row; None: no batch-norm
    y: torch.Tensor  # output of the product
    out: torch.Tensor  # [M, B, C, Q, Q], after activation, pooling, dropout
    top: torch.Tensor  # as out: y at the winners of pooling
    mean: torch.Tensor  # [M, C], of the batch
    deviation: torch.Tensor  # [M, C]: 1 / standard deviation
    dropout: Dropout | None = None
    moments: torch.Tensor | None = None  # [M, C, T, 2], of parts of y
    gradient: Gradient | None = None


class Layers:
    """The networks of a cohort.

    Args:
        architecture: the models' architecture.
        products: how products are computed.
        slots: what the models differ in.
        images: B.
        index: [M, B] int32, the images' indices in the data set, for dropout; None: forward only, batch-norm
            with running statistics, no dropout.
    """

    def __init__(
        self,
        architecture: Architecture,
        products: Products,
        slots: Slots,
        images: int,
        index: torch.Tensor | None,
    ) -> None:
        self.architecture, self.products, self.slots, self.images = architecture, products, slots, images
        self.training = index is not None
        self.layers = [self._layer(i, product) for i, product in enumerate(products_of(architecture))]
        last_map = next(layer.out for layer in reversed(self.layers) if layer.is_conv)
        self.average = self.map(last_map.shape[2], 1) if architecture.head == "average" else None
        if index is not None:
            self._add_training(index)

    def map(self, channels: int, size: int, border: int = 0, models: int | None = None) -> torch.Tensor:
        """Allocate a map [M, B, C, S, S], an image's models side by side, as for grouped convolutions."""
        keep, models = self.slots.keep, models or len(self.slots.keep)
        border = border if self.products.bordered else 0
        side = size + 2 * border
        size_of_map = aligned(channels * side**2) if self.products.bordered else channels * side**2
        whole = (torch.zeros if border else torch.empty)(
            self.images * models * size_of_map, dtype=keep.dtype, device=keep.device
        )
        strides = size_of_map, models * size_of_map, side**2, side, 1
        return whole.as_strided((models, self.images, channels, size, size), strides, border * (side + 1))

    def _layer(self, i: int, product: Product) -> Layer:
        architecture, layout = self.architecture, layout_of(self.architecture)
        is_conv, norm = product.layer.startswith("conv"), f"{product.layer}{NORM_SUFFIX}.weight"
        pool = is_conv and architecture.pooled[i]
        closed = product.layer != layout.layers[-1]
        y = self.map(product.outputs, product.out_size)
        read_under_window = is_conv and i + 1 < architecture.depth_conv
        out = (
            self.map(
                product.outputs, product.out_size // (2 if pool else 1), architecture.pad * read_under_window
            )
            if closed
            else y
        )
        mean, deviation = torch.empty(
            2, len(self.slots.active), product.outputs, dtype=y.dtype, device=y.device
        )
        has_norm = architecture.batch_norm and closed
        return Layer(
            product,
            is_conv,
            pool,
            layout[norm].offset if has_norm else None,
            y,
            out,
            self._map_like(out) if pool else y,
            mean,
            deviation,
        )

    def _map_like(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x.shape[2], x.shape[3])

    def _add_training(self, index: torch.Tensor) -> None:
        """Set up dropout, and memory that only training needs."""
        names = layout_of(self.architecture).layers
        dropped = self.architecture.dropped_layers()
        for layer in self.layers:
            if layer.product.layer in dropped:
                block = names.index(layer.product.layer) * batches.DROPOUT_LAYER_BLOCKS
                layer.dropout = Dropout.of(index, block, math.prod(dropped[layer.product.layer]))
            if layer.is_conv and layer.norm is not None:
                parts = triton.cdiv(self.images * layer.product.out_size**2, self.products.moment_pixels)
                layer.moments = layer.mean.new_empty(*layer.mean.shape, parts, 2)
            layer.gradient = self._gradient(layer)

    def _gradient(self, layer: Layer) -> Gradient:
        averaged = self.average is not None and layer is self._last_conv
        border = layer.product.gradient_border if layer is not self.layers[0] else 0
        dy = self.map(layer.product.outputs, layer.product.out_size, border)
        dout = self.map(layer.product.outputs, 1) if averaged else self._map_like(layer.out)
        apart = layer.pool or (layer.is_conv and layer.norm is not None)
        dz = (self._map_like(layer.out) if averaged else dout) if apart else dy
        sums = layer.mean.new_empty(*layer.mean.shape, epilogues.sum_parts(dz), 2)
        return Gradient(dy, dz, dout, sums, layer.mean.new_empty(*layer.mean.shape, 2))

    # Forward

    def forward(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """x [M, B, C, S, S] -> logits [M, B, 10]; in training the running statistics are updated.

        x may have stride 0 over the models.
        """
        for layer, source in zip(self.layers, self.inputs(x), strict=True):
            if layer.product is self._head and self.average is not None:
                update_kernels.average(self._last_conv.out, self.average, self.slots.active)
            self.products.forward(layer.product, source, rows, layer.y, layer.moments, self.slots.active)
            if layer.dropout is not None:
                draw(layer.dropout, self.slots)
            if layer.is_conv:
                self._conv_epilogue(layer, rows)
            elif layer.out is not layer.y:
                self._dense_epilogue(layer, rows)
        return self.layers[-1].y[..., 0, 0]

    @property
    def _last_conv(self) -> Layer:
        return [layer for layer in self.layers if layer.is_conv][-1]

    @property
    def _head(self) -> Product:
        """The first product after the convolutions."""
        return next(layer.product for layer in self.layers if not layer.is_conv)

    def inputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each product reads."""
        inputs = [x, *(layer.out for layer in self.layers[:-1])]
        head = self.layers.index(next(layer for layer in self.layers if not layer.is_conv))
        inputs[head] = _flat(inputs[head]) if self.average is None else self.average
        return inputs

    def _norm(self, layer: Layer, rows: torch.Tensor) -> epilogues.Norm | None:
        return (
            None if layer.norm is None else epilogues.Norm(layer.mean, layer.deviation, rows[:, layer.norm :])
        )

    def _conv_epilogue(self, layer: Layer, rows: torch.Tensor) -> None:
        if layer.norm is not None:
            self._conv_statistics(layer, rows[:, layer.norm + 2 * layer.product.outputs :])
        epilogues.conv_epilogue_forward(
            layer.y, layer.top, layer.out, self._norm(layer, rows), layer.dropout, self.slots, pool=layer.pool
        )

    def _conv_statistics(self, layer: Layer, running: torch.Tensor) -> None:
        if layer.moments is None:
            channels = layer.product.outputs
            layer.mean.copy_(running[:, :channels])
            torch.rsqrt(running[:, channels : 2 * channels] + BATCH_NORM_EPSILON, out=layer.deviation)
        else:
            pixels = self.images * layer.product.out_size**2
            epilogues.statistics(
                layer.moments,
                pixels,
                self.products.moment_pixels,
                layer.mean,
                layer.deviation,
                running,
                self.slots.active,
            )

    def _dense_epilogue(self, layer: Layer, rows: torch.Tensor) -> None:
        if layer.norm is None:
            epilogues.conv_epilogue_forward(
                layer.y, layer.top, layer.out, None, layer.dropout, self.slots, pool=False
            )
        else:
            dense.dense_epilogue_forward(
                layer.y[..., 0, 0], layer.out[..., 0, 0], layer.mean, layer.deviation, rows[:, layer.norm :],
                layer.dropout, self.slots,
                training=self.training,
            )  # fmt: skip

    # Backward

    def backward(self, rows: torch.Tensor, x: torch.Tensor, gradients: torch.Tensor) -> None:
        """From the gradient in `dlogits` to those of all weights, [M, P]; `x` is what `forward` read."""
        inputs = self.inputs(x)
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            found = layer.gradient
            assert found is not None
            if layer.out is not layer.y:
                self._backward_epilogue(layer, found, rows, gradients)
            self.products.weight_gradient(layer.product, inputs[i], found.dy, gradients, self.slots.active)
            if i > 0:
                self.products.input_gradient(
                    layer.product, found.dy, rows, self._towards(i), self.slots.active
                )

    def _towards(self, i: int) -> torch.Tensor:
        """Where the gradient of layer i's input goes."""
        before = self.layers[i - 1].gradient
        assert before is not None
        return _flat(before.dout) if self.layers[i].product is self._head else before.dout

    def _backward_epilogue(
        self, layer: Layer, found: Gradient, rows: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        """From the gradient of a layer's output to that of its product's output."""
        norm, active = self._norm(layer, rows), self.slots.active
        if norm is not None and not layer.is_conv:
            dense.dense_epilogue_backward(
                found.dout[..., 0, 0],
                layer.y[..., 0, 0],
                found.dy[..., 0, 0],
                *norm,
                gradients[:, layer.norm :],
                layer.dropout,
                self.slots,
            )
            return
        average = found.dout.shape != found.dz.shape
        epilogues.conv_epilogue_backward(
            found.dout, layer.top, found.dz, found.sums, norm, layer.dropout, self.slots, average=average
        )
        if norm is not None:
            epilogues.norm_gradient(found.sums, found.totals, gradients[:, layer.norm :], active)
        if found.dz is not found.dy:
            epilogues.scatter_to_windows(
                found.dz, layer.y, found.dy, found.totals, norm, active, pool=layer.pool
            )

    @property
    def dlogits(self) -> torch.Tensor:
        """Where the backward pass starts, [M, B, 10]."""
        found = self.layers[-1].gradient
        assert found is not None
        return found.dy[..., 0, 0]


def _flat(x: torch.Tensor) -> torch.Tensor:
    """[M, B, C, S, S] -> [M, B, C S S, 1, 1], a view."""
    return x.flatten(2)[..., None, None]
