"""
Replays without a daemon: exact for a seed, and better than what does not look.
"""

from __future__ import annotations

import math
import random

import pytest

from optimizer.model import Price, Scalar
from optimizer.replay.course import Course
from optimizer.replay.features import describe
from optimizer.replay.offline import replay
from optimizer.replay.report import report, rows
from optimizer.replay.table import Outcome, Request, Table, Weights

CHEAP, DEAR = "cheap", "dear"


def table(n: int = 600, seed: int = 1) -> Table:
    """
    Short questions are answered well by both, long ones by the dear variant only.
    """
    rng = random.Random(seed)
    requests = []
    for _ in range(n):
        long = rng.random() < 0.5
        context: dict[str, Scalar] = {"long": long}
        outcomes = {
            CHEAP: Outcome(float(rng.random() < (0.2 if long else 0.9)), 1e-4),
            DEAR: Outcome(float(rng.random() < 0.9), 1e-3),
        }
        requests.append(Request("why? " * (40 if long else 2), context, outcomes))
    return Table("made", (CHEAP, DEAR), tuple(requests))


def test_it_is_exact_for_a_seed_and_another_for_another() -> None:
    course = Course(table(200), Weights(ceiling_usd=5e-4))
    assert replay(course, 3) == replay(course, 3)
    assert course.order(3) != course.order(4)
    assert sorted(course.order(3)) == list(range(200))


def test_it_learns_who_is_good_at_what_and_reports_it() -> None:
    made = table()
    prices = {CHEAP: Price(input_usd_per_million=0.1, output_usd_per_million=0.1)}
    course = Course(made, Weights(ceiling_usd=6e-4), prices=prices)
    found = report(made, course.weights, [course.scored(seed, replay(course, seed)) for seed in range(2)])
    policies = {one["name"]: one for one in found["policies"]}
    daemon = found["daemon"]
    assert (found["table"], found["requests"], found["seeds"]) == ("made", 600, 2)
    assert list(policies) == ["best_fixed", "best_fixed_mix", "random", "oracle"]
    assert policies["random"]["mean_quality"] < policies["best_fixed_mix"]["mean_quality"] < daemon["mean_quality"]
    assert daemon["mean_quality"] < policies["oracle"]["mean_quality"]
    assert daemon["cost_per_request_usd"] <= 6e-4 * 1.05
    assert daemon["regret"] == pytest.approx(policies["best_fixed_mix"]["utility"] - daemon["utility"])
    assert daemon["mean_quality_se"] > 0 == policies["oracle"]["mean_quality_se"]
    assert set(daemon) == set(policies["oracle"])
    assert rows(found)[1][0] == "daemon"


def test_training_rows_come_first_and_do_not_count() -> None:
    course = Course(table(50), train=table(30, seed=2).requests)
    order = course.order(0)
    assert max(order[:30]) < 30 <= min(order[30:])
    scored = course.scored(0, replay(course, 0))
    assert sorted(row for row, _ in scored) == list(range(50))


def test_only_offered_variants_are_chosen() -> None:
    made = Table("one", (CHEAP, DEAR), tuple(Request("", {}, {DEAR: Outcome(1.0, 1.0)}) for _ in range(30)))
    assert set(replay(Course(made, policy="fixed"), 0)) == {DEAR}


def test_an_infeasible_reference_is_null() -> None:
    made = table(20)
    found = report(made, Weights(ceiling_usd=1e-9), [[(i, CHEAP) for i in range(20)]])
    assert all(one["mean_quality"] is one["regret"] is None for one in found["policies"])
    assert found["daemon"]["regret"] is None
    assert found["daemon"]["mean_quality_se"] > 0
    assert rows(found)[2][2] == "over the ceiling"


@pytest.mark.parametrize(
    "prompt", ["x", "?", "[Heading of it]\nWhich? A. one\nB. two", "é" * 30_000, "0" * 50, "\n\n", "   "]
)
def test_features_are_bounded(prompt: str) -> None:
    found = describe(prompt)
    assert all(isinstance(value, float) and math.isfinite(value) and 0 <= value <= 2 for value in found.values())
    assert len(found) < 40  # a ticket has room for 48


def test_no_prompt_has_no_features() -> None:
    assert describe("") == {}
