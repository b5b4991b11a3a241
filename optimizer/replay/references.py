"""
What the table allows: policies in hindsight, on the scored rows, under the ceiling. Pure.

`best_fixed`: the best single variant. `best_fixed_mix`: the best probabilities of the variants, the same for every request: a
linear programme with one constraint, so at most two variants share (the hull of the points of mean cost and mean utility).
`random`: uniform over the variants, as often as the ceiling allows, and the cheapest one otherwise. `oracle`: the best variant
of each request, knowing the outcomes: the linear relaxation of a multiple-choice knapsack, solved by the price of a dollar; at
most one request is split between two variants.

A variant's means are over the requests for which it was offered. A policy that cannot keep the ceiling is None.
Source: Sinha & Zoltners 1979, "The multiple-choice knapsack problem".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from optimizer.replay.table import Floats, Grid, Mask, means

_SLACK: Final = 1 + 1e-9  # a ceiling that is met exactly is met in spite of rounding


@dataclass(frozen=True)
class Reference:
    """
    Figures of a policy per request; `share` of each variant, 0..1.
    """

    name: str
    quality: float
    cost_usd: float
    utility: float
    share: dict[str, float]


def references(grid: Grid, ceiling_usd: float | None) -> dict[str, Reference | None]:
    """
    All references, in the order in which they are shown.
    """
    found = (
        ("best_fixed", best_fixed(grid, ceiling_usd)),
        ("best_fixed_mix", best_fixed_mix(grid, ceiling_usd)),
        ("random", random_choice(grid, ceiling_usd)),
        ("oracle", oracle(grid, ceiling_usd)),
    )
    return dict(found)


def best_fixed(grid: Grid, ceiling_usd: float | None) -> Reference | None:
    """
    The variant with the highest mean utility among those whose mean cost keeps the ceiling.
    """
    cost, utility, usable = _columns(grid)
    usable = usable & (cost <= _limit(ceiling_usd))
    if not usable.any():
        return None
    return _mix("best_fixed", grid, _one(grid, int(np.argmax(np.where(usable, utility, -np.inf)))))


def best_fixed_mix(grid: Grid, ceiling_usd: float | None) -> Reference | None:
    """
    The mix of variants with the highest mean utility whose mean cost keeps the ceiling.
    """
    cost, utility, usable = _columns(grid)
    limit = _limit(ceiling_usd)
    best, weights = -np.inf, None
    for a in np.flatnonzero(usable & (cost <= limit)):
        for b in np.flatnonzero(usable):
            part = 1.0 if cost[b] <= limit else _part(ceiling_usd, float(cost[a]), float(cost[b]))
            value = (1 - part) * utility[a] + part * utility[b]
            if value > best:
                best, weights = value, (1 - part) * _one(grid, int(a)) + part * _one(grid, int(b))
    return None if weights is None else _mix("best_fixed_mix", grid, weights)


def random_choice(grid: Grid, ceiling_usd: float | None) -> Reference | None:
    """
    Uniform choice, as often as the ceiling allows; the variant with the lowest mean cost otherwise.
    """
    cost, _, usable = _columns(grid)
    limit = _limit(ceiling_usd)
    cheapest = int(np.argmin(np.where(usable, cost, np.inf)))
    if cost[cheapest] > limit:
        return None
    uniform = usable / usable.sum()
    dear = float(uniform @ cost)
    part = 1.0 if dear <= limit else _part(ceiling_usd, float(cost[cheapest]), dear)
    return _mix("random", grid, part * uniform + (1 - part) * _one(grid, cheapest))


def oracle(grid: Grid, ceiling_usd: float | None) -> Reference | None:
    """
    The best variant of each request under the ceiling on the mean cost.
    """
    rows = grid.offered.any(axis=1)
    cost = np.where(grid.offered, grid.cost, np.inf)[rows]
    limit = _limit(ceiling_usd)
    if not len(cost) or cost.min(axis=1).mean() > limit:
        return None
    free = _shown(grid, _chosen(grid, 0.0))
    if free.cost_usd <= limit:
        return free
    low, high = 0.0, 1.0
    while _shown(grid, _chosen(grid, high)).cost_usd > limit:
        high *= 4
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if _shown(grid, _chosen(grid, middle)).cost_usd <= limit else (middle, high)
    kept, over = _shown(grid, _chosen(grid, high)), _shown(grid, _chosen(grid, low))
    return _between(kept, over, _part(ceiling_usd, kept.cost_usd, over.cost_usd))


def _part(ceiling_usd: float | None, below: float, above: float) -> float:
    """
    The part of a cost above the ceiling that a mix with one below it may have, 0..1.
    """
    if ceiling_usd is None or above <= below:
        return 0.0
    return min(1.0, max(0.0, (ceiling_usd - below) / (above - below)))


def _limit(ceiling_usd: float | None) -> float:
    return np.inf if ceiling_usd is None else ceiling_usd * _SLACK


def _columns(grid: Grid) -> tuple[Floats, Floats, Mask]:
    usable: Mask = np.asarray(grid.offered.any(axis=0))
    return means(grid.cost, grid.offered), means(grid.utility, grid.offered), usable


def _one(grid: Grid, index: int) -> Floats:
    weights = np.zeros(len(grid.variants))
    weights[index] = 1.0
    return weights


def _mix(name: str, grid: Grid, weights: Floats) -> Reference:
    quality, cost, utility = (float(weights @ means(v, grid.offered)) for v in (grid.quality, grid.cost, grid.utility))
    return Reference(name, quality, cost, utility, _share(grid, weights))


def _chosen(grid: Grid, price: float) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """
    The best variant of each request at a price of a dollar; of equal ones the cheapest; -1 where none was offered.
    """
    value = np.where(grid.offered, grid.utility - price * grid.cost, -np.inf)
    tied = value >= value.max(axis=1, keepdims=True) - 1e-12
    best: np.ndarray[tuple[int], np.dtype[np.intp]] = np.argmin(
        np.where(tied & grid.offered, grid.cost, np.inf), axis=1
    )
    return np.where(grid.offered.any(axis=1), best, -1)


def _shown(grid: Grid, chosen: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Reference:
    rows = np.flatnonzero(chosen >= 0)
    columns = chosen[rows]
    quality, cost, utility = (float(v[rows, columns].mean()) for v in (grid.quality, grid.cost, grid.utility))
    share = np.bincount(columns, minlength=len(grid.variants)) / len(rows)
    return Reference("oracle", quality, cost, utility, _share(grid, share))


def _between(one: Reference, other: Reference, part: float) -> Reference:
    def mixed(a: float, b: float) -> float:
        return (1 - part) * a + part * b

    return Reference(
        one.name,
        mixed(one.quality, other.quality),
        mixed(one.cost_usd, other.cost_usd),
        mixed(one.utility, other.utility),
        {name: mixed(one.share[name], other.share[name]) for name in one.share},
    )


def _share(grid: Grid, weights: Floats) -> dict[str, float]:
    return {name: float(weight) for name, weight in zip(grid.variants, weights, strict=True)}
