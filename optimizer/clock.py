"""
Time as a parameter: monotonic seconds are called `now`, wall-clock datetimes (UTC) are called `at`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """
    Where a service reads the time. Neither method blocks.
    """

    def monotonic(self) -> float:
        """
        Seconds that never go back, comparable between the processes of one machine (CLOCK_MONOTONIC).
        """

    def at(self) -> datetime:
        """
        The wall clock, in UTC and aware of it.
        """


class SystemClock:
    """
    The machine's own clocks.
    """

    def monotonic(self) -> float:
        return time.monotonic()

    def at(self) -> datetime:
        return datetime.now(UTC)


class ManualClock:
    """
    A clock that moves only when told to, for tests and replays.
    """

    def __init__(self, at: datetime = datetime(2026, 1, 1, tzinfo=UTC), now: float = 1000.0) -> None:
        self._at = at
        self._now = now

    def monotonic(self) -> float:
        return self._now

    def at(self) -> datetime:
        return self._at

    def advance(self, seconds: float) -> None:
        """
        Move both clocks on by `seconds` >= 0.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self._now += seconds
        self._at += timedelta(seconds=seconds)
