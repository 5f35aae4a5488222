"""Matrix products of a layer for M models with their own weights: forward, input and weight gradient.

A convolution is an implicit matrix product: its rows are pixels, its columns output channels, and it sums
over taps (an input channel's position under the kernel). A dense layer is a convolution of 1 x 1 maps. The
order of every sum follows from the layer's shape and the batch alone, and nothing is summed across models, so
a model's numbers depend neither on its slot nor on its neighbours.

Axes: M slots, B images, C input channels, O output channels, S height = width, T parts of a sum, P weights.
Maps are [M, B, C, S, S]. Those that a kernel reads through a moving window have a border of zeros, so that
it needs no bounds checks; the others are contiguous in their last three axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import triton
import triton.language as tl

from builder.training.backend import aligned
from builder.training.gpu import epilogues
from builder.training.gpu.pieces import image_row_column, kernel
from builder.training.torch_backend import library_precision
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import OUTPUT, layout_of

MIN_PIXELS, MIN_TAPS = 32, 16  # of a tile, at least
PART_PIXELS = 2048  # pixels that one program of the weight gradient sums over


@dataclass(frozen=True)
class Product:
    """A layer's product. In a row the bias follows the weight."""

    layer: str
    offset: int  # index of the weight in the row
    inputs: int  # C
    size: int  # S of the input
    outputs: int  # O
    kernel: int = 1
    stride: int = 1
    pad: int = 0

    @property
    def out_size(self) -> int:
        return (self.size + 2 * self.pad - self.kernel) // self.stride + 1

    @property
    def gradient_border(self) -> int:
        """How far outside its map the input gradient reads the output's gradient."""
        reach = -(-self.kernel // self.stride)
        return max(
            reach - 1 - self.pad // self.stride,
            (self.size - 1 + self.pad) // self.stride - (self.out_size - 1),
        )

    @property
    def taps(self) -> int:
        """Weights per output channel."""
        return self.inputs * self.kernel**2

    @property
    def weights(self) -> int:
        """The number of weights and biases."""
        return self.outputs * (self.taps + 1)

    def weight(self, rows: torch.Tensor) -> torch.Tensor:
        """The weights in rows [M, P], a view [M, O, taps]."""
        return rows[:, self.offset : self.offset + self.outputs * self.taps].unflatten(
            1, (self.outputs, self.taps)
        )

    def bias(self, rows: torch.Tensor) -> torch.Tensor:
        """The biases in rows [M, P], a view [M, O]."""
        return rows[:, self.offset + self.outputs * self.taps : self.offset + self.weights]


def products_of(architecture: Architecture) -> list[Product]:
    """The products of a network's layers from input to output."""
    layout, products, size = layout_of(architecture), [], architecture.image_size
    for layer in layout.layers:
        spec = layout[f"{layer}.weight"]
        if layer.startswith("conv"):
            products.append(
                Product(
                    layer,
                    spec.offset,
                    spec.shape[1],
                    size,
                    spec.shape[0],
                    spec.shape[2],
                    architecture.stride,
                    architecture.pad,
                )
            )
            size = products[-1].out_size // (2 if architecture.pooled[len(products) - 1] else 1)
        else:
            products.append(Product(layer, spec.offset, spec.shape[1], 1, spec.shape[0]))
    assert products[-1].layer == OUTPUT
    return products


class Tiles(NamedTuple):
    """Sizes of the block that one program computes."""

    pixels: int = 256  # in the weight gradient half as many taps; fewer if the layer has no more
    inner: int = 16  # what is summed over at once: taps; in the weight gradient pixels
    channels: int = 32  # at most; never above the next power of 2 of the layer's channels
    warps: int = 2
    stages: int = 2


DEFAULT_TILES = Tiles()


class Products(Protocol):
    """A way to compute a layer's products; all results go to memory that already exists."""

    bordered: bool  # whether x has a border of `pad` zeros, and dy one of `gradient_border`
    moment_pixels: int  # pixels per part of `forward`'s moments

    def forward(
        self,
        product: Product,
        x: torch.Tensor,
        rows: torch.Tensor,
        y: torch.Tensor,
        moments: torch.Tensor | None,
        active: torch.Tensor,
    ) -> None:
        """x [M, B, C, S, S] -> y [M, B, O, S', S'], with bias; x may have stride 0 over the models.

        If given, `moments` [M, O, T, 2] gets each part's mean and sum of squared distances from it.
        """
        ...

    def input_gradient(
        self, product: Product, dy: torch.Tensor, rows: torch.Tensor, dx: torch.Tensor, active: torch.Tensor
    ) -> None:
        """dy [M, B, O, S', S'] -> dx [M, B, C, S, S]."""
        ...

    def weight_gradient(
        self,
        product: Product,
        x: torch.Tensor,
        dy: torch.Tensor,
        gradients: torch.Tensor,
        active: torch.Tensor,
    ) -> None:
        """Fill the part of gradients [M, P] for weight and bias."""
        ...


# Triton


@kernel(aligned="y x_model x_image y_model y_image", ones="x_channel x_row y_channel out_size")
def forward_kernel(
    x, rows, y, moments, active,
    x_model, x_image, x_channel, x_row, y_model, y_image, y_channel, row_stride, offset,
    num_pixels, num_taps, outputs, out_size,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, MOMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr, TAPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One tile of pixels and output channels of one model; with MOMENTS also mean and squared distances.

    Indices past the last pixel or tap read a valid position; their weight is 0 or their result is dropped.
    """
    m = tl.program_id(2).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    position = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    valid = position < num_pixels
    pixel = tl.minimum(position, num_pixels - 1)
    area = out_size * out_size
    image, at = pixel // area, pixel % area
    corner = image * x_image + (at // out_size * STRIDE - PAD) * x_row + at % out_size * STRIDE - PAD
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    weight = rows + m * row_stride + offset
    sums = tl.zeros((PIXELS, CHANNELS), x.dtype.element_ty)
    for start in range(0, num_taps, TAPS):
        tap = start + tl.arange(0, TAPS)
        b = tl.load(
            weight + channel[None, :] * num_taps + tap[:, None],
            mask=(tap < num_taps)[:, None] & (channel < outputs)[None, :],
            other=0.0,
        )
        tap = tl.where(tap < num_taps, tap, 0)
        under = tap % (KERNEL * KERNEL)
        reach = tap // (KERNEL * KERNEL) * x_channel + under // KERNEL * x_row + under % KERNEL
        # neighbouring threads take neighbouring pixels
        a = tl.load(x + m * x_model + (reach[:, None] + corner[None, :]))
        sums = tl.dot(tl.trans(a), b, sums, input_precision=PRECISION, out_dtype=sums.dtype)
    bias = tl.load(weight + outputs * num_taps + channel, mask=channel < outputs, other=0.0)
    sums += bias[None, :]
    target = y + m * y_model + (image * y_image + at)[:, None] + (channel * y_channel)[None, :]
    tl.store(target, sums, mask=valid[:, None] & (channel < outputs)[None, :])
    if MOMENTS:
        count = tl.minimum(PIXELS, num_pixels - tl.program_id(0) * PIXELS)
        mean = tl.sum(tl.where(valid[:, None], sums, 0.0), 0) / count
        distance = tl.where(valid[:, None], sums - mean[None, :], 0.0)
        part = moments + ((m * outputs + channel) * tl.num_programs(0) + tl.program_id(0)) * 2
        tl.store(part, mean, mask=channel < outputs)
        tl.store(part + 1, tl.sum(distance * distance, 0), mask=channel < outputs)


@kernel(aligned="dx dy_model dy_image dx_model dx_image", ones="dy_channel dy_row dx_channel size")
def input_gradient_kernel(
    dy, rows, dx, active,
    dy_model, dy_image, dy_channel, dy_row, dx_model, dx_image, dx_channel, row_stride, offset,
    images, num_taps, inputs, size, outputs,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, PRECISION: tl.constexpr,
    PIXELS: tl.constexpr, TAPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One tile of input pixels and input channels of one model.

    With a stride only every STRIDE-th tap reaches a pixel, so pixels are grouped by their remainders (down,
    right) modulo STRIDE: those of a class share the taps first + STRIDE * j.
    """
    m = tl.program_id(2).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    REACH: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    side = (size + STRIDE - 1) // STRIDE
    num_pixels = images * side * side
    blocks = tl.cdiv(num_pixels, PIXELS)
    down, right = tl.program_id(0) // blocks // STRIDE, tl.program_id(0) // blocks % STRIDE
    position = tl.program_id(0) % blocks * PIXELS + tl.arange(0, PIXELS)
    pixel = tl.minimum(position, num_pixels - 1)
    image, at = pixel // (side * side), pixel % (side * side)
    row, column = at // side * STRIDE + down, at % side * STRIDE + right
    valid = (position < num_pixels) & (row < size) & (column < size)
    row, column = tl.where(row < size, row, down), tl.where(column < size, column, right)
    first_down, first_right = (down + PAD) % STRIDE, (right + PAD) % STRIDE
    corner = (
        image * dy_image
        + (row + PAD - first_down) // STRIDE * dy_row
        + (column + PAD - first_right) // STRIDE
    )
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    weight = rows + m * row_stride + offset
    sums = tl.zeros((PIXELS, CHANNELS), dy.dtype.element_ty)
    for start in range(0, outputs * REACH * REACH, TAPS):
        tap = start + tl.arange(0, TAPS)
        output, under = tap // (REACH * REACH), tap % (REACH * REACH)
        up, back = under // REACH, under % REACH
        tap_down, tap_right = first_down + up * STRIDE, first_right + back * STRIDE
        exists = (output < outputs) & (tap_down < KERNEL) & (tap_right < KERNEL)
        in_weight = output * num_taps + tap_down * KERNEL + tap_right
        b = tl.load(
            weight + (channel * (KERNEL * KERNEL))[None, :] + in_weight[:, None],
            mask=exists[:, None] & (channel < inputs)[None, :],
            other=0.0,
        )
        reach = tl.where(output < outputs, output, 0) * dy_channel - up * dy_row - back
        a = tl.load(dy + m * dy_model + (reach[:, None] + corner[None, :]))
        sums = tl.dot(tl.trans(a), b, sums, input_precision=PRECISION, out_dtype=sums.dtype)
    target = (
        dx
        + m * dx_model
        + (image * dx_image + row * size + column)[:, None]
        + (channel * dx_channel)[None, :]
    )
    tl.store(target, sums, mask=valid[:, None] & (channel < inputs)[None, :])


@kernel(
    aligned="parts x_model x_image dy_model dy_image part_model part_stride",
    ones="x_channel x_row dy_channel dy_row",
)
def weight_gradient_kernel(
    x, dy, parts, active,
    x_model, x_image, x_channel, x_row, dy_model, dy_image, dy_channel, dy_row, part_model, part_stride,
    num_pixels, num_taps, outputs,
    OUT_SIZE: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr,
    PRECISION: tl.constexpr, PART: tl.constexpr,
    PIXELS: tl.constexpr, TAPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One tile of taps and output channels of a model, summed over PART pixels; the first adds the bias."""
    m = tl.program_id(2).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    blocks = tl.cdiv(num_taps, TAPS)
    tap = tl.program_id(0) % blocks * TAPS + tl.arange(0, TAPS)
    source = tl.where(tap < num_taps, tap, 0)
    under = source % (KERNEL * KERNEL)
    reach = source // (KERNEL * KERNEL) * x_channel + under // KERNEL * x_row + under % KERNEL
    channel = tl.program_id(0) // blocks * CHANNELS + tl.arange(0, CHANNELS)
    found = tl.where(channel < outputs, channel, 0) * dy_channel
    first = tl.program_id(1) * PART
    sums = tl.zeros((TAPS, CHANNELS), x.dtype.element_ty)
    biases = tl.zeros((CHANNELS, PIXELS), x.dtype.element_ty)
    for start in range(first, tl.minimum(first + PART, num_pixels), PIXELS):
        position = start + tl.arange(0, PIXELS)
        image, row, column = image_row_column(tl.minimum(position, num_pixels - 1), OUT_SIZE)
        corner = image * x_image + (row * STRIDE - PAD) * x_row + column * STRIDE - PAD
        a = tl.load(x + m * x_model + (reach[:, None] + corner[None, :]))
        at = image * dy_image + row * dy_row + column
        b = tl.load(
            dy + m * dy_model + (found[:, None] + at[None, :]),
            mask=(position < num_pixels)[None, :],
            other=0.0,
        )
        biases += b
        sums = tl.dot(a, tl.trans(b), sums, input_precision=PRECISION, out_dtype=sums.dtype)
    target = parts + m * part_model + tl.program_id(1) * part_stride
    to = target + channel[None, :] * num_taps + tap[:, None]
    tl.store(to, sums, mask=(tap < num_taps)[:, None] & (channel < outputs)[None, :])
    if tl.program_id(0) % blocks == 0:
        tl.store(target + outputs * num_taps + channel, tl.sum(biases, 1), mask=channel < outputs)


@kernel(aligned="parts part_model part_stride")
def sum_parts_kernel(
    parts,
    gradients,
    active,
    part_model,
    part_stride,
    row_stride,
    offset,
    count,
    num_parts,
    BLOCK: tl.constexpr,
):
    """Add the parts of the weight gradient, one after the other."""
    m = tl.program_id(1).to(tl.int64)
    if tl.load(active + m) == 0:
        return
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), parts.dtype.element_ty)
    for part in range(num_parts):
        # wide, as it is divisible by 16
        total += tl.load(
            parts + m * part_model + part * part_stride + position, mask=position < part_stride, other=0.0
        )
    tl.store(gradients + m * row_stride + offset + position, total, mask=position < count)


class TritonProducts:
    """Products by the kernels above.

    Args:
        precision: "ieee" (float32), "tf32", or "tf32x3" (the precision of float32 from three products of
            tensor cores).
        tiles: block sizes.
    """

    bordered = True

    def __init__(self, precision: str = "ieee", tiles: Tiles = DEFAULT_TILES) -> None:
        self.precision, self.tiles = precision, tiles
        self.moment_pixels = tiles.pixels

    def forward(
        self,
        product: Product,
        x: torch.Tensor,
        rows: torch.Tensor,
        y: torch.Tensor,
        moments: torch.Tensor | None,
        active: torch.Tensor,
    ) -> None:
        pixels = y.shape[1] * product.out_size**2
        blocks = self._blocks(product.outputs, self._rows(pixels))
        grid = (
            triton.cdiv(pixels, blocks["PIXELS"]),
            triton.cdiv(product.outputs, blocks["CHANNELS"]),
            len(y),
        )
        forward_kernel[grid](
            x, rows, y, y if moments is None else moments, active,
            *x.stride()[:4], *y.stride()[:3], rows.stride(0), product.offset, pixels, product.taps,
            product.outputs, product.out_size,
            KERNEL=product.kernel, STRIDE=product.stride, PAD=product.pad, MOMENTS=moments is not None,
            **blocks,
        )  # fmt: skip

    def input_gradient(
        self, product: Product, dy: torch.Tensor, rows: torch.Tensor, dx: torch.Tensor, active: torch.Tensor
    ) -> None:
        images, side = dx.shape[1], triton.cdiv(product.size, product.stride)
        blocks = self._blocks(product.inputs, self._rows(images * side**2))
        pixel_blocks = product.stride**2 * triton.cdiv(images * side**2, blocks["PIXELS"])
        input_gradient_kernel[(pixel_blocks, triton.cdiv(product.inputs, blocks["CHANNELS"]), len(dx))](
            dy, rows, dx, active,
            *dy.stride()[:4], *dx.stride()[:3], rows.stride(0), product.offset,
            images, product.taps, product.inputs, product.size, product.outputs,
            KERNEL=product.kernel, STRIDE=product.stride, PAD=product.pad, **blocks,
        )  # fmt: skip

    def weight_gradient(
        self,
        product: Product,
        x: torch.Tensor,
        dy: torch.Tensor,
        gradients: torch.Tensor,
        active: torch.Tensor,
    ) -> None:
        pixels = dy.shape[1] * product.out_size**2
        num_parts = triton.cdiv(pixels, PART_PIXELS)
        if num_parts == 1:
            parts, stride, offset = gradients[:, None], 0, product.offset
        else:
            parts, stride, offset = (
                gradients.new_empty(len(gradients), num_parts, aligned(product.weights)),
                aligned(product.weights),
                0,
            )
        blocks = self._blocks(product.outputs, self._taps(product.taps), "TAPS", "PIXELS")
        tap_blocks = triton.cdiv(product.taps, blocks["TAPS"]) * triton.cdiv(
            product.outputs, blocks["CHANNELS"]
        )
        weight_gradient_kernel[(tap_blocks, num_parts, len(dy))](
            x, dy, parts[:, :, offset:], active,
            *x.stride()[:4], *dy.stride()[:4], parts.stride(0), stride, pixels, product.taps, product.outputs,
            OUT_SIZE=product.out_size, KERNEL=product.kernel, STRIDE=product.stride, PAD=product.pad,
            PART=PART_PIXELS, **blocks,
        )  # fmt: skip
        if num_parts > 1:
            sum_parts_kernel[(triton.cdiv(product.weights, 1024), len(dy))](
                parts, gradients, active, parts.stride(0), stride, gradients.stride(0), product.offset,
                product.weights, num_parts,
                BLOCK=1024,
            )  # fmt: skip

    def _rows(self, pixels: int) -> int:
        """Pixels of a tile, fewer if there are no more."""
        return min(self.tiles.pixels, max(MIN_PIXELS, triton.next_power_of_2(pixels)))

    def _taps(self, taps: int) -> int:
        """Taps of a weight gradient's tile: fewer if the layer has fewer, or if a quarter less is wasted."""
        most = min(self.tiles.pixels // 2, max(MIN_TAPS, triton.next_power_of_2(taps)))
        half = max(MIN_TAPS, most // 2)
        return half if triton.cdiv(taps, half) * half <= 0.75 * triton.cdiv(taps, most) * most else most

    def _blocks(self, channels: int, count: int, rows: str = "PIXELS", inner: str = "TAPS") -> dict[str, Any]:
        """A tile's sizes for so many rows and channels."""
        width = min(self.tiles.channels, max(8, triton.next_power_of_2(channels)))
        warps = max(1, self.tiles.warps * count // self.tiles.pixels)
        blocks = {rows: count, inner: self.tiles.inner, "CHANNELS": width}
        return {**blocks, "PRECISION": self.precision, "num_warps": warps, "num_stages": self.tiles.stages}


# Libraries


class LibraryProducts:
    """Products by cuDNN's grouped convolutions and cuBLAS's batched products, to measure the kernels against.

    Inactive slots are computed too; nothing reads them.
    """

    bordered = False
    moment_pixels = epilogues.MOMENT_PIXELS

    def __init__(self, tf32: bool = False) -> None:
        self.tf32 = tf32

    def forward(
        self,
        product: Product,
        x: torch.Tensor,
        rows: torch.Tensor,
        y: torch.Tensor,
        moments: torch.Tensor | None,
        active: torch.Tensor,
    ) -> None:
        weight, bias = product.weight(rows), product.bias(rows)
        with library_precision(self.tf32, fastest=True):
            if product.size == 1:
                torch.baddbmm(bias[:, None], x[..., 0, 0], weight.transpose(1, 2), out=y[..., 0, 0])
            else:
                maps = x.transpose(0, 1).flatten(1, 2)
                out = torch.ops.aten.convolution(
                    maps, self._kernels(product, weight), bias.flatten(), *self._geometry(product), len(y)
                )
                y.copy_(out.unflatten(1, (len(y), -1)).transpose(0, 1))
        if moments is not None:
            epilogues.moments(y, moments, active)

    def input_gradient(
        self, product: Product, dy: torch.Tensor, rows: torch.Tensor, dx: torch.Tensor, active: torch.Tensor
    ) -> None:
        weight = product.weight(rows)
        if product.size == 1:
            with library_precision(self.tf32, fastest=True):
                torch.bmm(dy[..., 0, 0], weight, out=dx[..., 0, 0])
            return
        found = self._backward(product, dy, dx, weight, [True, False, False])[0]
        dx.copy_(found.unflatten(1, (len(dy), -1)).transpose(0, 1))

    def weight_gradient(
        self,
        product: Product,
        x: torch.Tensor,
        dy: torch.Tensor,
        gradients: torch.Tensor,
        active: torch.Tensor,
    ) -> None:
        weight, bias = product.weight(gradients), product.bias(gradients)
        if product.size == 1:
            with library_precision(self.tf32, fastest=True):
                weight.copy_(torch.bmm(dy[..., 0, 0].transpose(1, 2), x[..., 0, 0]))
            bias.copy_(dy.sum((1, 3, 4)))
            return
        _, kernels, biases = self._backward(product, dy, x, weight, [False, True, True])
        weight.copy_(kernels.view(weight.shape))
        bias.copy_(biases.view(bias.shape))

    def _backward(
        self, product: Product, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, wanted: list[bool]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        maps, towards = (t.transpose(0, 1).flatten(1, 2) for t in (x, dy))
        kernels = self._kernels(product, weight)
        with library_precision(self.tf32, fastest=True):
            return torch.ops.aten.convolution_backward(
                towards, maps, kernels, [kernels.shape[0]], *self._geometry(product), len(dy), wanted
            )  # fmt: skip

    @staticmethod
    def _kernels(product: Product, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(-1, product.inputs, product.kernel, product.kernel)

    @staticmethod
    def _geometry(product: Product) -> tuple[list[int], list[int], list[int], bool, list[int]]:
        return [product.stride] * 2, [product.pad] * 2, [1, 1], False, [0, 0]
