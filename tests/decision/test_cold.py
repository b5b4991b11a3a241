"""
What is served before anything is known.
"""

from __future__ import annotations

import pytest

from optimizer.decision.policy import cold, list_cost_usd
from optimizer.model import Objective, Price, Task, Variant


def task(ceiling: float | None, *prices: float | None) -> Task:
    variants = tuple(
        Variant(
            name=f"v{i}",
            price=None if price is None else Price(input_usd_per_million=price, output_usd_per_million=price),
        )
        for i, price in enumerate(prices)
    )
    return Task(task="t", policy="contextual", objective=Objective(max_cost_per_request_usd=ceiling), variants=variants)


@pytest.mark.parametrize("ceiling", [1e-5, 8e-5, 1e-4, 5e-4, 1.0])
def test_the_first_shares_keep_a_ceiling_by_list_prices_if_any_can(ceiling: float) -> None:
    declared = task(ceiling, 10.0, 0.1, 1.0)
    shares = cold(declared).shares
    costs = [list_cost_usd(variant) or 0.0 for variant in declared.variants]
    assert sum(shares.values()) == pytest.approx(1)
    mean = sum(share * cost for share, cost in zip(shares.values(), costs, strict=True))
    assert mean <= max(ceiling, min(costs)) * (1 + 1e-9)
    assert (shares["v0"] > 0) == (ceiling > min(costs))


@pytest.mark.parametrize("declared", [task(None, 10.0, 0.1), task(1e-9, None, 0.1), task(1.0, 10.0, 0.1)])
def test_without_a_ceiling_or_prices_they_are_equal(declared: Task) -> None:
    assert set(cold(declared).shares.values()) == {0.5}
