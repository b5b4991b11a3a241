"""
When to try again. Pure: the clock and the random numbers are the caller's.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field


def backoff(attempt: int, base_s: float, longest_s: float, jitter: float, rng: random.Random) -> float:
    """
    Seconds to wait before the attempt-th delayed try: min(longest, base * 2^(attempt-1)), spread by ± jitter of itself.

    Args:
        attempt: >= 1. `jitter`: 0..1.

    Returns:
        At most `longest_s`.

    Raises:
        ValueError: `attempt` is below 1.
    """
    if attempt < 1:
        raise ValueError(f"attempts count from 1, not {attempt}")
    delay = min(longest_s, base_s * 2.0 ** min(attempt - 1, 64))
    return min(longest_s, delay * (1 + jitter * rng.uniform(-1, 1)))


@dataclass(slots=True)
class RestartPolicy:
    """
    Decides after each unexpected end of a service: again after how long, and whether that still counts as trying.

    The first restart after a stable run is at once, the next ones back off; past `attempts` in a row the answer is to give up
    and probe every `longest_s`. A ready run of `stable_after_s` clears the row, unless more than `attempts` deaths lie within
    ten such spans: a service that always lives a little longer than the threshold must not loop for ever.

    Source: Erlang/OTP supervisor intensity and period; s6's death tally.
    """

    attempts: int
    base_s: float
    longest_s: float
    jitter: float
    stable_after_s: float
    in_a_row: int = 0
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=4096))  # those of the last ten spans

    def died(self, now: float, ready_for_s: float, rng: random.Random) -> tuple[float, bool]:
        """
        The service has ended unexpectedly.

        Args:
            now: monotonic seconds; `ready_for_s`: how long it had been ready, 0 if never.

        Returns:
            Seconds until the next start, and whether the circuit is open (attempts used up).
        """
        self.deaths.append(now)
        while now - self.deaths[0] > 10 * self.stable_after_s:
            self.deaths.popleft()
        self.survived(now, ready_for_s)
        self.in_a_row += 1
        if self.in_a_row > self.attempts:
            return self.longest_s, True
        if self.in_a_row == 1:
            return 0.0, False
        return backoff(self.in_a_row - 1, self.base_s, self.longest_s, self.jitter, rng), False

    def survived(self, now: float, ready_for_s: float) -> None:
        """
        The service has been ready for so long without an end: a stable run clears the row, unless deaths are too many lately.
        """
        if self.in_a_row and ready_for_s >= self.stable_after_s:
            recent = sum(now - at <= 10 * self.stable_after_s for at in self.deaths)
            if recent <= self.attempts:
                self.in_a_row = 0

    def clear(self) -> None:
        """
        An operator vouches for the service.
        """
        self.in_a_row = 0
        self.deaths.clear()
