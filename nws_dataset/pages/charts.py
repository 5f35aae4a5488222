"""Line charts: their data, and the coordinates of lines, bands and ticks in a page's inline SVG.

Coordinates are SVG units from the top left corner.
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
    """Round a positive value up to one significant digit.

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
    """Lines over one pair of axes."""

    title: str
    lines: Sequence[Line]
    x_label: str
    low: float  # ends of the vertical axis; values beyond are drawn on them
    high: float
    levels: Mapping[str, float] = field(default_factory=dict)  # dashed lines across, by name
    logarithmic: bool = False  # the horizontal axis

    @property
    def _xs(self) -> list[float]:
        return sorted({point[0] for line in self.lines for point in line.points})

    def x(self, value: float) -> float:
        """The horizontal coordinate of a value."""
        first, last, value = (
            math.log(v) if self.logarithmic else v for v in (self._xs[0], self._xs[-1], value)
        )
        part = (value - first) / (last - first) if last > first else 0.5
        return round(LEFT + part * (RIGHT - LEFT), 1)

    def y(self, value: float) -> float:
        """The vertical coordinate of a value."""
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(BOTTOM - part * (BOTTOM - TOP), 1)

    def path(self, line: Line) -> str:
        """The points of a line."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y, _ in line.points)

    def band(self, line: Line) -> str:
        """The corners of the band of one standard deviation around a line."""
        upper = [f"{self.x(x)},{self.y(y + spread)}" for x, y, spread in line.points]
        lower = [f"{self.x(x)},{self.y(y - spread)}" for x, y, spread in line.points]
        return " ".join(upper + lower[::-1])

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Coordinates and labels of at most MAX_TICKS values, including the first and the last."""
        xs = self._xs
        count = min(MAX_TICKS, len(xs))
        chosen = sorted({round(i * (len(xs) - 1) / max(1, count - 1)) for i in range(count)})
        return [(self.x(xs[i]), f"{xs[i]:.2g}" if xs[i] < 1 else f"{xs[i]:,.0f}") for i in chosen]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Coordinates and labels of the bottom, middle and top."""
        values = (self.low, (self.low + self.high) / 2, self.high)
        return [(self.y(value), f"{value:.2g}") for value in values]

    @property
    def words(self) -> str:
        """Description of the chart for screen readers."""
        ends = [(line.name, line.points[0][1], line.points[-1][1]) for line in self.lines]
        words = "; ".join(f"{name} from {first:.2f} to {last:.2f}" for name, first, last in ends)
        return f"{self.title}, over {self.x_label}: {words}"


@dataclass(frozen=True)
class Figure:
    """Charts side by side, with one legend."""

    caption: str
    panels: list[Panel]

    @property
    def styles(self) -> dict[str, int]:
        """Name of a line -> index of its colour and dash, the same in all panels."""
        names = dict.fromkeys(line.name for panel in self.panels for line in panel.lines)
        return {name: i % NUM_STYLES for i, name in enumerate(names)}
