"""
Quantiles of positive numbers within a relative error, mergeable over windows, variants and processes.

Source: Masson, Rim, Lee 2019, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees".
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

ALPHA: Final = 0.01  # relative error of every quantile
_GAMMA: Final = (1 + ALPHA) / (1 - ALPHA)
_LOG_GAMMA: Final = math.log(_GAMMA)
_SMALLEST: Final = 1e-9  # below it a value counts as zero
MAX_BUCKETS: Final = 2048  # the paper's bound; 1 ms to 1 h needs about 760


class Sketch(msgspec.Struct, kw_only=True):
    """
    Counts of values in buckets (gamma^(i-1), gamma^i]. Values are >= 0.
    """

    zeros: int = 0
    count: int = 0
    buckets: dict[int, int] = {}

    def add(self, value: float) -> None:
        """
        Count one value.

        Raises:
            ValueError: it is negative or not finite.
        """
        if not 0 <= value < math.inf:
            raise ValueError(f"a sketch takes finite values >= 0, not {value}")
        self.count += 1
        if value < _SMALLEST:
            self.zeros += 1
            return
        index = math.ceil(math.log(value) / _LOG_GAMMA)
        self.buckets[index] = self.buckets.get(index, 0) + 1
        self._collapse()

    def merge(self, other: Sketch) -> None:
        """
        Count all of another sketch's values.
        """
        self.count += other.count
        self.zeros += other.zeros
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count
        self._collapse()

    def quantile(self, q: float) -> float | None:
        """
        The value at rank floor(q * (count - 1)), within ALPHA of it; None without values.

        Raises:
            ValueError: q is outside of 0..1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is asked with q in 0..1, not {q}")
        if not self.count:
            return None
        rank = math.floor(q * (self.count - 1))
        seen = self.zeros
        if rank < seen:
            return 0.0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if rank < seen:
                return 2 * _GAMMA**index / (_GAMMA + 1)
        raise AssertionError("buckets hold fewer values than were counted")

    def _collapse(self) -> None:
        while len(self.buckets) > MAX_BUCKETS:
            lowest, second = sorted(self.buckets)[:2]
            self.buckets[second] += self.buckets.pop(lowest)
