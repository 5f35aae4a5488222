"""Where everything is in memory during a step: one workspace, and tables of offsets into it.

Every buffer is [group][channel][y][x][lane]: a group is 16 images, one per lane. A dense layer is a
convolution of size 1 over its flattened input. Kernels read all offsets from tables that are made once per
architecture, so one compilation serves every architecture.

Axes: G groups, C channels, H W pixels, L lanes, T taps (weights of one output channel), P pixels of a
register tile.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from builder.training.backend import aligned
from builder.training.batches import DROPOUT_LAYER_BLOCKS
from builder.training.cpu.vectors import LANES
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import NORM_SUFFIX, OUTPUT, Layout, layout_of

TILES = (6, 4, 2, 1)  # pixels of a register tile; 6 pixels x 4 channels fill the registers of AVX-512
POOL_TILE = 4  # the tile of one pooling window
GRADIENT_TAPS = 5  # taps of the widest tile of the weight gradient
TILE_COST = 1.5  # overhead of a tile, in pixels
FEW_PIXELS = 6  # maps with fewer pixels than this fill a tile from several groups
# pixels whose weight gradient is summed in registers at a time, as many as have their inputs in the cache
BLOCK_PIXELS = 1024
NONE = -1

NO_NORM, NORM_BEFORE, NORM_AFTER = 0, 1, 2  # where batch-norm is, relative to the activation

LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            # shape
            *("units", "inputs", "taps", "kernel", "size", "pixels", "pooled"),
            # what follows the linear part
            *("hidden", "norm", "pool", "average", "drops"),
            # offsets in the row
            *("weight", "bias", "gamma", "beta", "mean", "variance"),
            # buffers: input x, batch-norm's input z, gradient d of the linear output, output y; each with the
            # strides of a group and a channel
            *(
                "x",
                "x_group",
                "x_channel",
                "z",
                "z_group",
                "z_channel",
                "d",
                "d_group",
                "d_channel",
                "y",
                "y_group",
                "y_channel",
            ),
            *("slope", "slope_group"),  # gradient of the average
            *("input_at",),  # of the network's pixels in x, in the order of the images
            *("chosen", "chosen_group", "chosen_channel"),  # masks of max-pooling
            # masks of dropout, and its first block of random numbers
            *("kept", "kept_group", "kept_channel", "kept_block"),
            *("statistics",),  # batch-norm's mean and 1 / standard deviation of the batch
            # forward tiles: rounds, pixels per tile, tiled pixels, tables of inputs, outputs, pooling masks,
            # dropout masks
            *("rounds", "tile", "tiled", "tile_x", "tile_out", "tile_chosen", "tile_kept"),
            # taps come in runs (of an input channel); a tile sees those from first to stop of each run, and
            # only padding in the others
            *("runs", "run", "tile_first", "tile_stop"),
            # a group's pixels, one by one: in z, d, y and the masks
            *("pixel_z", "pixel_d", "pixel_y", "pixel_chosen", "pixel_kept"),
            # a weight's offset in the input, relative to its pixel; the pixels that it sees
            *("tap_x", "tap_first", "tap_stop"),
            # weight gradient: groups per block, pixels, tables of inputs and gradients
            *("block", "summed", "sum_x", "sum_d", "sum_rounds"),
            # input gradient: the first of its classes, and their number
            *("first_class", "classes", "d_row", "to_d", "to_x", "to_chosen", "to_kept"),
        )
    ],
    align=True,
)
CLASS = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("tap_d", "tap_weight", "runs", "run", "tile_first", "tile_stop"),
            *("rounds", "tile", "tiled", "tile_d", "tile_to", "tile_x", "tile_chosen", "tile_kept"),
        )
    ],
    align=True,
)


@dataclass(frozen=True)
class Tables:
    """What kernels need to know about an architecture and a number of groups."""

    layers: np.ndarray  # [layers] of LAYER
    classes: np.ndarray  # [classes] of CLASS
    offsets: np.ndarray  # int32; the records above point into it
    groups: int
    workspace: int  # numbers
    masks: int  # 16-bit numbers
    statistics: int  # numbers


@dataclass
class _Shape:
    """A layer's geometry and buffers while the tables are made."""

    name: str
    units: int
    inputs: int  # input channels, or features of a dense layer
    kernel: int  # k of k x k
    stride: int
    pad: int
    size: int  # of the input map
    flat: tuple[int, int] | None  # channels and size of the map that a dense layer flattens
    pool: bool = False
    average: bool = False
    norm: int = NO_NORM

    @property
    def padded(self) -> int:
        return self.size + 2 * self.pad

    @property
    def full(self) -> int:
        """Size of the linear output."""
        return (self.padded - self.kernel) // self.stride + 1

    @property
    def out(self) -> int:
        """Size of the output map; max-pooling drops an odd last row and column."""
        return self.full // 2 if self.pool else self.full

    @property
    def map(self) -> int:
        """Size of the linear output that is used; batch-norm's statistics include an odd row and column."""
        return 2 * self.out if self.pool and not self.norm else self.full

    @property
    def halo(self) -> int:
        """Rows of zeros that the input gradient needs before the linear output's gradient."""
        return max(0, -(-(self.kernel - 1 - self.pad) // self.stride))

    @property
    def d_size(self) -> int:
        after = max(0, (self.size - 1 + self.pad) // self.stride - (self.map - 1))
        return self.map + self.halo + after

    @property
    def x_channel(self) -> int:
        return (self.padded**2 if self.flat is None else 1) * LANES


def _shapes(architecture: Architecture) -> list[_Shape]:
    a, width = architecture, architecture.image_channels
    shapes: list[_Shape] = []
    for i, (units, pool) in enumerate(zip(a.conv_widths, a.pooled, strict=True)):
        shape = _Shape(f"conv{i + 1}", units, width, a.filter_size, a.stride, a.pad, a.image_size, None, pool)
        if shapes:
            shape.size = shapes[-1].out
        shape.norm = NORM_BEFORE if a.batch_norm else NO_NORM
        shapes.append(shape)
        width = units
    shapes[-1].average = a.head == "average"
    flat = (width, 1 if a.head == "average" else shapes[-1].out)
    for name, units in [
        *((f"dense{i + 1}", u) for i, u in enumerate(a.dense_widths)),
        (OUTPUT, layout_of(a)[f"{OUTPUT}.bias"].size),
    ]:
        norm = NORM_AFTER if a.batch_norm and name != OUTPUT else NO_NORM
        shapes.append(_Shape(name, units, flat[0] * flat[1] ** 2, 1, 1, 0, 1, flat, norm=norm))
        flat = (units, 1)
    return shapes


class _Maker:
    """Allocates the workspace and collects the tables."""

    def __init__(self, architecture: Architecture, groups: int) -> None:
        self.groups, self.layout = groups, layout_of(architecture)
        self.shapes = _shapes(architecture)
        self.dropped = architecture.dropped_layers()
        self.layers = np.zeros(len(self.shapes), LAYER)
        self.classes: list[np.ndarray] = []
        self.offsets: list[np.ndarray] = []
        self.length = self.workspace = self.masks = self.statistics = 0

    def make(self) -> Tables:
        for i in range(len(self.shapes)):
            self._shape(i)
        for i in range(len(self.shapes)):
            self._buffers(i)
        for i in range(len(self.shapes)):
            self._forward(i)
            self._weight_gradient(i)
            if i:
                self._input_gradient(i)
        self._input(self.shapes[0], self.layers[0])
        classes = np.array(self.classes, CLASS) if self.classes else np.zeros(1, CLASS)
        return Tables(
            self.layers,
            classes,
            np.concatenate(self.offsets),
            self.groups,
            self.workspace,
            max(1, self.masks),
            max(1, self.statistics),
        )

    # Workspace

    def _allocate(self, count: int) -> int:
        start = self.workspace
        self.workspace += aligned(count)
        return start

    def _allocate_masks(self, per_group: int) -> int:
        start = self.masks
        self.masks += self.groups * per_group
        return start

    def _table(self, values: np.ndarray) -> int:
        start, values = self.length, np.asarray(values).ravel()
        assert values.max(initial=0) < 2**31
        self.offsets.append(values.astype(np.int32))
        self.length += self.offsets[-1].size
        return start

    # A layer's record

    def _shape(self, i: int) -> None:
        shape, record = self.shapes[i], self.layers[i]
        record["units"], record["inputs"], record["kernel"] = shape.units, shape.inputs, shape.kernel**2
        record["taps"] = shape.inputs * shape.kernel**2
        record["size"], record["pixels"] = shape.size, shape.map**2
        record["pooled"] = 4 * shape.out**2 if shape.pool else shape.map**2
        record["hidden"] = shape.name != OUTPUT
        record["norm"], record["pool"], record["average"] = shape.norm, shape.pool, shape.average
        _record_offsets(record, self.layout, shape)

    def _buffers(self, i: int) -> None:
        shape, record, per_map = self.shapes[i], self.layers[i], self.shapes[i].map ** 2 * LANES
        channels = shape.inputs if shape.flat is None else shape.flat[0] * shape.flat[1] ** 2
        record["x_channel"], record["x_group"] = shape.x_channel, channels * shape.x_channel
        record["x"] = self._allocate(self.groups * int(record["x_group"]))
        record["d_channel"], record["d_group"] = (
            shape.d_size**2 * LANES,
            shape.units * shape.d_size**2 * LANES,
        )
        record["d"] = self._allocate(self.groups * int(record["d_group"]))
        record["d_row"] = shape.d_size * LANES
        record["z_channel"], record["z_group"] = per_map, shape.units * per_map
        record["z"] = self._allocate(self.groups * int(record["z_group"])) if shape.norm else NONE
        if shape.norm:
            record["statistics"] = self.statistics
            self.statistics += 2 * shape.units
        record["slope_group"] = shape.units * LANES
        record["slope"] = self._allocate(self.groups * shape.units * LANES) if shape.average else NONE
        if shape.pool:
            record["chosen_channel"], record["chosen_group"] = (
                4 * shape.out**2,
                4 * shape.units * shape.out**2,
            )
            record["chosen"] = self._allocate_masks(int(record["chosen_group"]))
        if shape.name in self.dropped:
            record["drops"] = 1
            record["kept_channel"], record["kept_group"] = (
                shape.out**2,
                -(-shape.units * shape.out**2 // 8) * 8,
            )
            record["kept"] = self._allocate_masks(int(record["kept_group"]))
            record["kept_block"] = self.layout.layers.index(shape.name) * DROPOUT_LAYER_BLOCKS
        if shape.average or i == len(self.shapes) - 1:  # not directly the next layer's input
            record["y_channel"], record["y_group"] = shape.out**2 * LANES, shape.units * shape.out**2 * LANES
            record["y"] = self._allocate(self.groups * int(record["y_group"]))

    # Pixels

    def _pixels(self, shape: _Shape) -> tuple[np.ndarray, np.ndarray]:
        """y and x of the linear output's pixels: the four of each pooling window, then those in none."""
        y, x = (v.ravel() for v in np.mgrid[: shape.map, : shape.map])
        if shape.pool:
            outside = (y >= 2 * shape.out) | (x >= 2 * shape.out)
            order = np.lexsort((x % 2, y % 2, x // 2, y // 2, outside))
            y, x = y[order], x[order]
        return y, x

    def _output(self, i: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Offsets of the output map's pixels in a group's output."""
        shape, record = self.shapes[i], self.layers[i]
        if shape.average or i == len(self.shapes) - 1:
            return (y * shape.out + x) * LANES
        after, following = self.shapes[i + 1], self.layers[i + 1]
        record["y"], record["y_group"] = following["x"], following["x_group"]
        if after.flat is not None:
            record["y_channel"] = shape.out**2 * LANES
            return (y * shape.out + x) * LANES
        record["y_channel"] = after.x_channel
        return ((y + after.pad) * after.padded + x + after.pad) * LANES

    def _repeat_over_groups(self, offsets: np.ndarray, stride: int) -> np.ndarray:
        """Offsets in one group -> in all groups."""
        return (np.arange(self.groups)[:, None] * stride + offsets).ravel()

    def _forward(self, i: int) -> None:
        shape, record = self.shapes[i], self.layers[i]
        y, x = self._pixels(shape)
        half = 2 if shape.pool else 1
        inputs = (y * shape.stride * shape.padded + x * shape.stride) * LANES
        z, out = (y * shape.map + x) * LANES, self._output(i, y // half, x // half)
        d = ((y + shape.halo) * shape.d_size + x + shape.halo) * LANES
        kept = (y // half) * shape.out + x // half
        chosen = 4 * kept
        for name, values in (
            ("pixel_z", z),
            ("pixel_d", d),
            ("pixel_y", out),
            ("pixel_chosen", chosen),
            ("pixel_kept", kept),
        ):
            record[name] = self._table(values)
        linear = (z, record["z_group"]) if shape.norm else (out, record["y_group"])
        strides = (record["x_group"], linear[1], record["chosen_group"], record["kept_group"])
        fused = POOL_TILE if shape.pool and not shape.norm else None
        names = ("tile_x", "tile_out", "tile_chosen", "tile_kept")
        lines = np.arange(shape.kernel)
        seen = self._seen(y[:, None] * shape.stride + lines - shape.pad, shape.size) * shape.kernel
        self._tiles(
            record,
            names,
            (inputs, linear[0], chosen, kept),
            strides,
            fused,
            (shape.inputs, shape.kernel**2, seen),
        )

    def _input(self, shape: _Shape, record: np.ndarray) -> None:
        channel, y, x = (v.ravel() for v in np.mgrid[: shape.inputs, : shape.size, : shape.size])
        record["input_at"] = self._table(
            channel * shape.x_channel + ((y + shape.pad) * shape.padded + x + shape.pad) * LANES
        )

    @staticmethod
    def _seen(lines: np.ndarray, size: int) -> np.ndarray:
        """For each pixel [P, k lines of the kernel]: first line in the map, one past the last: [2, P]."""
        inside = (lines >= 0) & (lines < size)
        first = inside.argmax(1) if inside.shape[1] else np.zeros(len(inside), np.int64)
        return np.stack([first, first + inside.sum(1)])

    def _tiles(
        self,
        record: np.ndarray,
        names: Sequence[str],
        tables: Sequence[np.ndarray],
        strides: Sequence[Any],
        tile: int | None,
        taps: tuple[int, int, np.ndarray],
    ) -> None:
        """Tables of pixels in whole tiles, padded with the last; small maps fill a tile from several groups.

        `taps`: the runs of taps, the length of a run, and the part of it that each pixel sees [2, P].
        """
        runs, run, seen = taps
        record["rounds"] = self.groups
        if len(tables[0]) < FEW_PIXELS and tile is None:
            tables, record["rounds"] = (
                [self._repeat_over_groups(t, int(s)) for t, s in zip(tables, strides, strict=True)],
                1,
            )
            seen = np.tile(seen, self.groups)
        if run == 1:  # a dense layer: one long run
            runs, run, seen = 1, runs, np.stack([0 * seen[0], 0 * seen[0] + runs])
        elif run == 0:  # pixels between the strides of a small kernel see nothing
            runs, run = 0, 1
        choices = [_in_tiles(count, seen) for count in ((tile,) if tile else TILES)]
        count, first, stop = min(
            choices, key=lambda choice: (choice[0] + TILE_COST) * (choice[2] - choice[1]).sum()
        )
        record["tile"], record["tiled"], record["runs"], record["run"] = count, len(first) * count, runs, run
        record["tile_first"], record["tile_stop"] = self._table(first), self._table(stop)
        for name, table in zip(names, tables, strict=True):
            record[name] = self._table(
                np.concatenate([table, np.repeat(table[-1:], len(first) * count - len(table))])
            )

    # Gradients

    def _weight_gradient(self, i: int) -> None:
        """Tables of the sum over pixels, line by line; small maps take all groups at once."""
        shape, record = self.shapes[i], self.layers[i]
        y, x = (v.ravel() for v in np.mgrid[: shape.map, : shape.map])
        inputs = (y * shape.stride * shape.padded + x * shape.stride) * LANES
        d = ((y + shape.halo) * shape.d_size + x + shape.halo) * LANES
        channel, ky, kx = (v.ravel() for v in np.mgrid[: shape.inputs, : shape.kernel, : shape.kernel])
        lines = np.arange(shape.map) * shape.stride + np.arange(shape.kernel)[:, None] - shape.pad
        seen = self._seen(lines, shape.size)[:, ky] * shape.map
        record["sum_rounds"], record["block"] = self.groups, max(1, BLOCK_PIXELS // shape.map**2)
        if len(inputs) < FEW_PIXELS:
            inputs, d = (
                self._repeat_over_groups(inputs, int(record["x_group"])),
                self._repeat_over_groups(d, int(record["d_group"])),
            )
            record["sum_rounds"], seen = 1, np.stack([0 * seen[0], 0 * seen[0] + len(inputs)])
        record["sum_x"], record["sum_d"], record["summed"] = self._table(inputs), self._table(d), len(inputs)
        taps = channel * shape.x_channel + (ky * shape.padded + kx) * LANES
        more = np.zeros(GRADIENT_TAPS, np.int64)  # the last tile may extend past the end
        record["tap_x"] = self._table(np.concatenate([taps, more]))
        record["tap_first"], record["tap_stop"] = (
            self._table(np.concatenate([v, more + v[-1]])) for v in seen
        )

    def _input_gradient(self, i: int) -> None:
        """One class per residue of the input's position modulo the stride: its pixels see the same taps."""
        shape, before, record = self.shapes[i], self.shapes[i - 1], self.layers[i]
        self._targets(i)
        record["first_class"] = len(self.classes)
        residues = range(min(shape.stride, shape.size))
        for ry in residues:
            for rx in residues:
                self.classes.append(self._class(shape, before, record, self.layers[i - 1], ry, rx))
        record["classes"] = len(self.classes) - int(record["first_class"])

    def _targets(self, i: int) -> None:
        """Where each input channel's (or feature's) gradient goes: in the previous layer's d, x and masks."""
        shape, before, record, previous = (
            self.shapes[i],
            self.shapes[i - 1],
            self.layers[i],
            self.layers[i - 1],
        )
        channels, size = shape.flat or (shape.inputs, 1)
        channel, y, x = (v.ravel() for v in np.mgrid[:channels, :size, :size])
        if before.average:
            record["to_d"] = self._table(channel * LANES)
        else:
            half = 2 if before.pool else 1
            record["to_d"] = self._table(
                channel * int(previous["d_channel"]) + half * (y * before.d_size + x) * LANES
            )
        record["to_x"] = self._table(np.arange(shape.inputs) * shape.x_channel)
        record["to_chosen"] = self._table(
            channel * int(previous["chosen_channel"]) + 4 * (y * before.out + x)
        )
        record["to_kept"] = self._table(channel * int(previous["kept_channel"]) + y * before.out + x)

    def _class(
        self, shape: _Shape, before: _Shape, record: np.ndarray, previous: np.ndarray, ry: int, rx: int
    ) -> np.ndarray:
        out, k, s, p = np.zeros((), CLASS), shape.kernel, shape.stride, shape.pad
        unit, ky, kx = (v.ravel() for v in np.mgrid[: shape.units, :k, :k])
        matching = ((ry + p - ky) % s == 0) & ((rx + p - kx) % s == 0)
        unit, ky, kx = unit[matching], ky[matching], kx[matching]
        dy, dx = (ry + p - ky) // s + shape.halo, (rx + p - kx) // s + shape.halo
        out["tap_d"] = self._table((unit * shape.d_size**2 + dy * shape.d_size + dx) * LANES)
        out["tap_weight"] = self._table((unit * shape.inputs * k + ky) * k + kx)
        y, x = (
            v.ravel()
            for v in np.meshgrid(np.arange(ry, shape.size, s), np.arange(rx, shape.size, s), indexing="ij")
        )
        gradient = (y // s * shape.d_size + x // s) * LANES
        kept = y * before.out + x
        inputs = ((y + p) * shape.padded + x + p) * LANES if shape.flat is None else np.zeros(1, np.int64)
        if before.average:
            to, to_group = np.zeros(1, np.int64), previous["slope_group"]
        else:
            half = 2 if before.pool else 1
            to, to_group = (
                ((half * y + before.halo) * before.d_size + half * x + before.halo) * LANES,
                previous["d_group"],
            )
        strides = (
            record["d_group"],
            to_group,
            record["x_group"],
            previous["chosen_group"],
            previous["kept_group"],
        )
        names = ("tile_d", "tile_to", "tile_x", "tile_chosen", "tile_kept")
        lines = np.unique(ky)
        width = len(np.unique(kx))
        seen = self._seen((y[:, None] + p - lines) // s, shape.map) * width
        self._tiles(
            out,
            names,
            (gradient, to, inputs, 4 * kept, kept),
            strides,
            None,
            (shape.units, len(lines) * width, seen),
        )
        return out


def _in_tiles(count: int, seen: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """For tiles of `count` pixels, the part of a run that any of their pixels sees: count, first, stop."""
    missing = -seen.shape[1] % count
    first, stop = np.concatenate([seen, np.repeat(seen[:, -1:], missing, 1)], 1).reshape(2, -1, count)
    return count, first.min(1), stop.max(1)


def _record_offsets(record: np.ndarray, layout: Layout, shape: _Shape) -> None:
    """Offsets of the layer's tensors in the row."""
    record["weight"], record["bias"] = (
        layout[f"{shape.name}.weight"].offset,
        layout[f"{shape.name}.bias"].offset,
    )
    if shape.norm:
        fields = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
        for name, tensor in fields.items():
            record[name] = layout[f"{shape.name}{NORM_SUFFIX}.{tensor}"].offset


@functools.lru_cache(maxsize=8)
def tables_of(architecture: Architecture, groups: int) -> Tables:
    """The tables of an architecture for `groups` groups of images at once."""
    return _Maker(architecture, groups).make()
