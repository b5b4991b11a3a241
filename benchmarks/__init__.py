"""
Performance by ratio against floors, and the demonstration. Each benchmark is a module with `main() -> list[Row]`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """
    One figure beside its floor, both measured in the same run.

    Args:
        name: what was measured, e.g. `bus throughput`.
        unit: of floor and figure, e.g. `messages/s`.
        floor: the same work done with nothing of ours in between; 0 where there is no such thing.
        figure: ours.
        ratio: figure to floor, the larger the better (for times: floor / figure); 0 where there is no floor.
        wanted: what must hold, e.g. `>= 0.6`; empty: for information.
    """

    name: str
    unit: str
    floor: float
    figure: float
    ratio: float
    wanted: str = ""
