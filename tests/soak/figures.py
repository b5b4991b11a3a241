"""
What was measured, what it is held against, and the line through a series.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_WIDEST: Final = 100  # of a cell; what is longer is a list of what should not be there


@dataclass(frozen=True, slots=True)
class Figure:
    """
    One line of the table. `wanted`: in words, empty when it is for information; `holds`: whether it is so.
    """

    name: str
    value: str
    wanted: str = ""
    holds: bool = True


def equal(name: str, value: object, wanted: object) -> Figure:
    """
    A figure that must be another one.
    """
    return Figure(name, str(value), str(wanted), value == wanted)


def at_most(name: str, value: float, most: float, unit: str) -> Figure:
    """
    A figure that must not be above a bound.
    """
    return Figure(name, f"{value:.2f} {unit}", f"<= {most:g} {unit}", value <= most)


def quantiles_ms(name: str, seconds: Sequence[float]) -> Figure:
    """
    Median, 99th percentile and worst of some times.
    """
    ordered = sorted(1000 * one for one in seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return Figure(
        name, f"p50 {statistics.median(ordered):.1f}  p99 {p99:.1f}  worst {ordered[-1]:.1f} ms, n {len(ordered)}"
    )


def slope(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """
    Slope of the straight line through some points, and its standard error.

    Source: ordinary least squares.
    """
    line = statistics.linear_regression(xs, ys)
    mean = statistics.fmean(xs)
    spread = sum((x - mean) ** 2 for x in xs)
    rest = sum((y - line.intercept - line.slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    return line.slope, (rest / (len(xs) - 2) / spread) ** 0.5


def table(figures: Sequence[Figure]) -> str:
    """
    The figures as aligned text.
    """
    cells = [(one.name, one.value[:_WIDEST], one.wanted[:_WIDEST], "" if one.holds else "NOT SO") for one in figures]
    cells.insert(0, ("figure", "measured", "wanted", ""))
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )
