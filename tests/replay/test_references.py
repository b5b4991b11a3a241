"""
References against brute force and against the dual of their linear programmes.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.replay.references import Reference, best_fixed, best_fixed_mix, oracle, random_choice, references
from optimizer.replay.table import Grid, Outcome, Request, Weights, grid

NAMES = ("a", "b", "c")
QUALITY = Weights()


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    n = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    step = draw(st.sampled_from([0.0, 0.25]))  # with ties, and without
    quality, cost = rng.random((n, 3)), rng.random((n, 3))
    if step:
        quality, cost = np.round(quality / step) * step, np.round(cost / step) * step
    return Grid(NAMES, quality, cost, quality, np.ones((n, 3), dtype=bool))


ceilings = st.one_of(st.none(), st.floats(0.01, 1))


def dual(points: list[tuple[np.ndarray, np.ndarray]], ceiling: float) -> float:
    """
    The best mean utility under the ceiling by the dual: min over the price of sum of max(u - price c) + price ceiling.
    Convex and piecewise linear, so the minimum is at a price where two points of a group are equal, or at 0.
    """
    prices = {0.0}
    for u, c in points:
        for i, j in itertools.combinations(range(len(u)), 2):
            if c[i] != c[j]:
                prices.add(max(0.0, (u[i] - u[j]) / (c[i] - c[j])))
    return min(float(np.mean([(u - price * c).max() for u, c in points])) + price * ceiling for price in prices)


@given(grids(), st.floats(0.01, 1))
def test_the_mix_and_the_oracle_are_the_optima_of_their_programmes(cells: Grid, ceiling: float) -> None:
    mix, best = best_fixed_mix(cells, ceiling), oracle(cells, ceiling)
    means = [(cells.utility.mean(axis=0), cells.cost.mean(axis=0))]
    if means[0][1].min() > ceiling:
        assert mix is None
    else:
        assert mix is not None
        assert mix.utility == pytest.approx(dual(means, ceiling), abs=1e-6)
    if cells.cost.min(axis=1).mean() > ceiling:
        assert best is None
    else:
        assert best is not None
        assert best.utility == pytest.approx(dual(list(zip(cells.utility, cells.cost, strict=True)), ceiling), abs=1e-6)


@given(grids(), ceilings)
def test_the_oracle_is_at_least_the_best_assignment_and_fixed_ones_are_worse(
    cells: Grid, ceiling: float | None
) -> None:
    limit = np.inf if ceiling is None else ceiling
    rows = np.arange(len(cells.cost))
    plans = [np.array(plan) for plan in itertools.product(range(3), repeat=len(rows))]
    feasible = [float(cells.utility[rows, p].mean()) for p in plans if cells.cost[rows, p].mean() <= limit]
    found = references(cells, ceiling)
    best = found["oracle"]
    assert (best is not None) or not feasible
    if best is not None and feasible:
        assert best.utility >= max(feasible) - 1e-9
        assert best.utility <= max(feasible) + 1 / len(rows) + 1e-9  # at most one request is split
    order = [one.utility for name in ("random", "best_fixed", "best_fixed_mix", "oracle") if (one := found[name])]
    fixed, mix = found["best_fixed"], found["best_fixed_mix"]
    assert (mix is None) == (fixed is None) == (found["random"] is None)
    if fixed and mix and found["random"] and best:
        assert order[0] <= mix.utility + 1e-9
        assert fixed.utility <= mix.utility + 1e-9 <= best.utility + 2e-9


@given(grids(), ceilings)
def test_every_reference_keeps_the_ceiling_and_its_shares_make_one(cells: Grid, ceiling: float | None) -> None:
    for one in references(cells, ceiling).values():
        if one is not None:
            assert sum(one.share.values()) == pytest.approx(1)
            assert min(one.share.values()) >= 0
            assert ceiling is None or one.cost_usd <= ceiling * (1 + 1e-6)


def cells_of(*rows: dict[str, tuple[float | None, float]], weights: Weights = QUALITY) -> Grid:
    requests = [Request("", {}, {name: Outcome(q, c) for name, (q, c) in row.items()}) for row in rows]
    return grid(requests, NAMES, weights)


def shown(one: Reference | None) -> tuple[float, float, dict[str, float]]:
    assert one is not None
    return round(one.quality, 9), round(one.cost_usd, 9), {k: round(v, 6) for k, v in one.share.items()}


def test_known_values() -> None:
    cells = cells_of({"a": (0.2, 1), "b": (0.8, 3), "c": (1, 11)}, {"a": (0.4, 1), "b": (0.6, 3), "c": (1, 11)})
    assert shown(best_fixed(cells, 2)) == (0.3, 1, {"a": 1, "b": 0, "c": 0})
    assert shown(best_fixed_mix(cells, 2)) == (0.5, 2, {"a": 0.5, "b": 0.5, "c": 0})
    half = {"a": round(2 / 3, 6), "b": round(1 / 6, 6), "c": round(1 / 6, 6)}  # uniform costs 5, the cheapest 1
    assert shown(random_choice(cells, 3)) == (round((0.3 + 2 / 3) / 2, 9), 3, half)
    assert shown(random_choice(cells, None)) == (round(2 / 3, 9), 5, {name: round(1 / 3, 6) for name in NAMES})
    assert shown(oracle(cells, 2)) == (0.6, 2, {"a": 0.5, "b": 0.5, "c": 0})
    assert references(cells, 0.5) == dict.fromkeys(["best_fixed", "best_fixed_mix", "random", "oracle"])


def test_a_variant_counts_over_the_requests_it_was_offered_for() -> None:
    cells = cells_of({"a": (0.5, 1)}, {"a": (0.5, 1), "b": (1.0, 1)}, {"b": (None, 1)}, {})
    assert shown(best_fixed(cells, None)) == (1.0, 1, {"a": 0, "b": 1, "c": 0})
    assert shown(oracle(cells, None)) == (0.75, 1, {"a": 0.5, "b": 0.5, "c": 0})


def test_utility_weighs_cost_relative_to_the_dearest_variant() -> None:
    cells = cells_of({"a": (0.5, 1), "b": (0.8, 4)}, weights=Weights(quality=2, cost=1))
    assert cells.utility[0].tolist() == [2 * 0.5 - 0.25, 2 * 0.8 - 1, 0]
    assert shown(best_fixed(cells, None))[2]["a"] == 1
