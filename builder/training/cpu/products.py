"""Products of matrices in tiles that stay in registers, for layers whose lanes are units.

Each operation adds a scalar times neighbouring vectors. No sum goes over lanes, so the order of its terms is
the same for any vector width.
"""

from __future__ import annotations

from typing import Any

from builder.training.cpu.vectors import LANES, Registers, barrier, jit, make_outer, registers

MAX_ROWS = 8  # of a tile; divides the number of images in a block


def whole_vectors(numbers: int) -> int:
    """Round up to whole vectors."""
    return -(-numbers // LANES) * LANES


def columns_of(those: Registers) -> tuple[int, int, int]:
    """Columns of the widest tile, of the one for the remaining columns, and of the narrowest."""
    if those.lanes == LANES:
        return 3 * LANES, 2 * LANES, LANES
    return max(LANES, 3 * those.lanes), LANES, LANES


def rows_of(those: Registers, columns: int) -> int:
    """Rows of a tile: as many as fit into the registers, besides a row's vectors and a scalar."""
    count = columns // those.lanes
    return min(MAX_ROWS, (those.number - 1 - count) // count)


WIDE, MIDDLE, NARROW = columns_of(registers())


def _make_product(columns: int) -> Any:
    """A function that multiplies in tiles of this many columns."""
    height, lanes = rows_of(registers(), columns), registers().lanes
    starts, zeros, multiply, put, add = make_outer(height, columns // lanes, lanes)

    @jit
    def product(
        x: Any,
        s: int,
        s_row: int,
        s_step: int,
        w: int,
        w_step: int,
        to: int,
        to_row: int,
        rows: int,
        steps: int,
        adding: bool,
    ) -> None:
        for r in range(0, rows, height):
            scalars, outputs = starts(s, r, rows, s_row), starts(to, r, rows, to_row)
            acc = zeros(x)
            for k in range(steps):
                barrier()
                acc = multiply(acc, x, scalars, k * s_step, w + k * w_step)
            if adding:
                add(acc, x, outputs, 0)
            else:
                put(acc, x, outputs, 0)

    return product


_wide, _middle, _narrow = (_make_product(columns) for columns in (WIDE, MIDDLE, NARROW))


@jit
def product(
    x: Any,
    s: int,
    s_row: int,
    s_step: int,
    w: int,
    w_step: int,
    to: int,
    to_row: int,
    rows: int,
    columns: int,
    steps: int,
    adding: bool,
) -> None:
    """Multiply matrices in the buffer x; `columns` is a multiple of LANES.

    x[to + r * to_row + c] = sum over k of x[s + r * s_row + k * s_step] * x[w + k * w_step + c]; with
    `adding`, += instead.
    """
    c = 0
    while c < columns:
        left = columns - c
        if left % WIDE == 0:
            _wide(x, s, s_row, s_step, w + c, w_step, to + c, to_row, rows, steps, adding)
            c += WIDE
        elif left >= MIDDLE:
            _middle(x, s, s_row, s_step, w + c, w_step, to + c, to_row, rows, steps, adding)
            c += MIDDLE
        else:
            _narrow(x, s, s_row, s_step, w + c, w_step, to + c, to_row, rows, steps, adding)
            c += NARROW
