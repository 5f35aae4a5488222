"""Line charts: what they show, and where a page draws the lines, bands and ticks of its inline SVG.

Points of a drawing are SVG units from the top left corner.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NUM_STYLES = 7  # colours and dashes of lines
WIDTH, HEIGHT = 280, 164
LEFT, RIGHT, TOP, BOTTOM = 34, 262, 8, 130  # of the axes
MAX_TICKS = 5  # along x
Point = tuple[float, float, float]  # x, y, standard deviation of y


def round_up(value: float) -> float:
    """A number with one digit that is not below a positive value: the top of an axis.

    Example:
        >>> round_up(0.438), round_up(12.0)
        (0.5, 20.0)
    """
    step = 10.0 ** math.floor(math.log10(max(value, sys.float_info.min)))
    return math.ceil(value / step) * step


@dataclass(frozen=True)
class Line:
    """One method's values."""

    name: str
    points: Sequence[Point]  # ascending in x


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes.

    Args:
        title: above it.
        lines: what is drawn.
        x_label: what the horizontal axis is.
        low: bottom of the vertical axis; what lies below is drawn on it.
        high: top of the vertical axis.
        levels: dashed lines across, by what they mean: chance.
        logarithmic: the horizontal axis.
    """

    title: str
    lines: Sequence[Line]
    x_label: str
    low: float
    high: float
    levels: Mapping[str, float] = field(default_factory=dict)
    logarithmic: bool = False

    @property
    def _xs(self) -> list[float]:
        return sorted({point[0] for line in self.lines for point in line.points})

    def x(self, value: float) -> float:
        """Where a value is along the horizontal axis."""
        first, last, value = (
            math.log(v) if self.logarithmic else v for v in (self._xs[0], self._xs[-1], value)
        )
        part = (value - first) / (last - first) if last > first else 0.5
        return round(LEFT + part * (RIGHT - LEFT), 1)

    def y(self, value: float) -> float:
        """Where a value is along the vertical axis."""
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(BOTTOM - part * (BOTTOM - TOP), 1)

    def path(self, line: Line) -> str:
        """The points of a line."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y, _ in line.points)

    def band(self, line: Line) -> str:
        """The corners of the band of one standard deviation about a line."""
        upper = [f"{self.x(x)},{self.y(y + spread)}" for x, y, spread in line.points]
        lower = [f"{self.x(x)},{self.y(y - spread)}" for x, y, spread in line.points]
        return " ".join(upper + lower[::-1])

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Points and words; of many values some, the first and the last among them."""
        xs = self._xs
        count = min(MAX_TICKS, len(xs))
        chosen = sorted({round(i * (len(xs) - 1) / max(1, count - 1)) for i in range(count)})
        return [(self.x(xs[i]), f"{xs[i]:.2g}" if xs[i] < 1 else f"{xs[i]:,.0f}") for i in chosen]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Points and words of the bottom, the middle and the top."""
        values = (self.low, (self.low + self.high) / 2, self.high)
        return [(self.y(value), f"{value:.2g}") for value in values]

    @property
    def words(self) -> str:
        """What the chart shows, for those who do not see it."""
        ends = [
            f"{line.name} from {line.points[0][1]:.2f} to {line.points[-1][1]:.2f}" for line in self.lines
        ]
        return f"{self.title}, over {self.x_label}: {'; '.join(ends)}"


@dataclass(frozen=True)
class Figure:
    """Charts side by side, with one legend."""

    caption: str
    panels: list[Panel]

    @property
    def styles(self) -> dict[str, int]:
        """The number of each line's colour and dash, which are the same in all panels."""
        names = dict.fromkeys(line.name for panel in self.panels for line in panel.lines)
        return {name: i % NUM_STYLES for i, name in enumerate(names)}
