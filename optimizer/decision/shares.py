"""
Share vectors of the context-free policies: how often each variant is to be chosen, as exact propensities.

Thompson sampling chooses each arm with the probability that it is the best under the posteriors. Between two publications
those do not change, so that probability is computed here once, by integration over a grid, instead of being sampled.

Source: Chapelle & Li 2011, "An empirical evaluation of Thompson sampling" (algorithm 2; batch updates, section 5); probability
matching as a share vector: Scott 2010, "A modern Bayesian look at the multi-armed bandit", section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

FLOOR: Final = 0.005  # least share of an arm where no ceiling forbids it: off-policy estimates and rediscovery need it
_CELLS: Final = 1024  # of the grid; shares are then within 1e-3 of the exact integral, see the tests
_WIDTH: Final = 8.0  # standard deviations of each posterior that the grid covers
_STEPS: Final = 60  # of a bisection


@dataclass(frozen=True, slots=True)
class Arm:
    """
    What is believed of one variant.

    Args:
        wins, losses: sums of quality and of 1 - quality over the feedback, >= 0; the Beta(1, 1) prior is added here.
        cost_usd: mean cost of a request; `penalty`: what cost and latency take off its utility.
    """

    wins: float
    losses: float
    cost_usd: float = 0.0
    penalty: float = 0.0

    @property
    def mean(self) -> float:
        """
        Posterior mean of the quality, in (0, 1).
        """
        return (self.wins + 1) / (self.wins + self.losses + 2)


def probability_best(arms: Sequence[Arm], weight: float = 1.0, price: float = 0.0) -> list[float]:
    """
    The probability that each arm has the highest utility `weight * quality - penalty - price * cost_usd`.

    Returns:
        One probability an arm; they sum to 1.

    Raises:
        ValueError: a count is negative, or there is no arm.
    """
    if not arms or any(arm.wins < 0 or arm.losses < 0 for arm in arms):
        raise ValueError("arms need counts >= 0, and there must be one")
    a = np.array([arm.wins + 1 for arm in arms])
    b = np.array([arm.losses + 1 for arm in arms])
    shift = np.array([-arm.penalty - price * arm.cost_usd for arm in arms])
    shift -= shift.max()  # only differences count; at a high price the sums alone would leave no digit for the quality
    if weight <= 0:
        best = shift == shift.max()
        return [float(share) for share in best / best.sum()]
    mean = a / (a + b)
    spread = np.sqrt(mean * (1 - mean) / (a + b + 1))
    low = (weight * np.maximum(0, mean - _WIDTH * spread) + shift).max()  # below it some arm is surely better
    high = (weight * np.minimum(1, mean + _WIDTH * spread) + shift).max()
    edges = np.linspace(low, max(high, low + 1e-9 * max(1.0, abs(low))), _CELLS + 1)
    mass, below = _discretise(a, b, weight, shift, edges)
    middle = below + mass / 2  # an equal cell counts half
    log_middle = np.log(np.maximum(middle, 1e-300))
    others = np.exp(log_middle.sum(axis=0) - log_middle)
    won = (mass * others).sum(axis=1)
    return [float(share) for share in won / won.sum()]


def _discretise(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    weight: float,
    shift: NDArray[np.float64],
    edges: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Mass of each arm's utility in each cell, and below each cell.
    """
    mean = a / (a + b)
    spread = np.sqrt(mean * (1 - mean) / (a + b + 1))
    start = np.maximum(0, mean - _WIDTH * spread)
    stop = np.minimum(1, mean + _WIDTH * spread)
    steps = (np.arange(_CELLS * 2) + 0.5) / (_CELLS * 2)
    quality = start[:, None] + (stop - start)[:, None] * steps  # a grid of its own for each arm: exact when sharp
    log_density = (a - 1)[:, None] * np.log(quality) + (b - 1)[:, None] * np.log1p(-quality)
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    cumulated = np.cumsum(density, axis=1)
    cumulated /= cumulated[:, -1:]
    right = start[:, None] + (stop - start)[:, None] * (steps + 0.5 / (_CELLS * 2))
    at_edges = np.empty((len(a), len(edges)))
    for i in range(len(a)):
        at_edges[i] = np.interp(edges, weight * right[i] + shift[i], cumulated[i], left=0.0, right=1.0)
    return np.diff(at_edges, axis=1), at_edges[:, :-1]


def greedy(arms: Sequence[Arm], weight: float, epsilon: float, ceiling_usd: float | None = None) -> list[float]:
    """
    Epsilon-greedy: `epsilon` spread evenly, the rest on the best posterior mean; ties share. Arms dearer than the ceiling
    get nothing unless all are.

    Source: Sutton & Barto 2018, section 2.2.
    """
    allowed = [ceiling_usd is None or arm.cost_usd <= ceiling_usd for arm in arms]
    if not any(allowed):
        allowed = [arm.cost_usd == min(other.cost_usd for other in arms) for arm in arms]
    value = [weight * arm.mean - arm.penalty if ok else -np.inf for arm, ok in zip(arms, allowed, strict=True)]
    top = [v == max(value) for v in value]
    return [
        (epsilon / sum(allowed) if ok else 0.0) + ((1 - epsilon) / sum(top) if best else 0.0)
        for ok, best in zip(allowed, top, strict=True)
    ]


def under_ceiling(arms: Sequence[Arm], shares_at: Callable[[float], list[float]], ceiling_usd: float) -> list[float]:
    """
    The shares at the smallest price of a dollar whose mean cost keeps the ceiling; if none does, the cheapest arm.

    Args:
        shares_at: shares for a price (utility a dollar) >= 0; their mean cost must not rise with it.

    Source: Lagrangian of the constrained bandit, e.g. Agrawal & Devanur 2014, "Bandits with concave rewards and convex
    knapsacks"; the price is found by bisection on its logarithm.
    """

    def cost(shares: Sequence[float]) -> float:
        return sum(share * arm.cost_usd for share, arm in zip(shares, arms, strict=True))

    shares = shares_at(0.0)
    if cost(shares) <= ceiling_usd:
        return shares
    low, high = -6.0, 12.0  # powers of ten of utility a dollar: calls cost between 1e-9 and 1e3 dollars
    shares = shares_at(10.0**high)
    if cost(shares) > ceiling_usd:
        cheapest = min(arm.cost_usd for arm in arms)
        even = sum(arm.cost_usd == cheapest for arm in arms)
        return [1 / even if arm.cost_usd == cheapest else 0.0 for arm in arms]
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tried = shares_at(10.0**middle)
        if cost(tried) <= ceiling_usd:
            high, shares = middle, tried
        else:
            low = middle
    return shares


def floored(shares: Sequence[float], floor: float = FLOOR) -> list[float]:
    """
    The shares with at least `floor` for everyone, still summing to 1.
    """
    rest = 1 - floor * len(shares)
    return [floor + rest * share for share in shares] if rest > 0 else list(shares)
