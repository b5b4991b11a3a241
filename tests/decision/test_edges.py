"""
The borders of the mathematics: extremes, refusals, and what happens when nothing is known or nothing fits.
"""

from __future__ import annotations

import base64
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.clock import ManualClock
from optimizer.decision.contextual import Contextual
from optimizer.decision.features import MAX_FEATURES, encode
from optimizer.decision.learner import MAX_TRACKED, OTHER, Learner
from optimizer.decision.policy import Policy, Snapshot, cold
from optimizer.decision.shares import Arm, probability_best, under_ceiling
from optimizer.decision.sketch import MAX_BUCKETS, Sketch
from optimizer.decision.ticket import Ticket, _mac, seal, unseal
from optimizer.errors import Invalid
from optimizer.model import Event, Task, Variant

SECRET = bytes(range(32))
ARM = st.builds(
    Arm,
    wins=st.floats(0, 1e9),
    losses=st.floats(0, 1e9),
    cost_usd=st.floats(0, 1e4),
    penalty=st.floats(0, 10),
)


@given(st.lists(ARM, min_size=1, max_size=6), st.floats(0, 100), st.sampled_from([0.0, 1.0, 1e3, 1e12]))
def test_shares_are_probabilities_whatever_the_arms(arms: list[Arm], weight: float, price: float) -> None:
    shares = probability_best(arms, weight, price)
    assert all(0 <= share <= 1 for share in shares)
    assert sum(shares) == pytest.approx(1)


@given(st.lists(ARM, min_size=1, max_size=5), st.floats(1e-9, 1e3))
def test_a_ceiling_is_kept_or_the_cheapest_is_chosen(arms: list[Arm], ceiling: float) -> None:
    shares = under_ceiling(arms, lambda price: probability_best(arms, 1.0, price), ceiling)
    cost = sum(share * arm.cost_usd for share, arm in zip(shares, arms, strict=True))
    cheapest = min(arm.cost_usd for arm in arms)
    assert sum(shares) == pytest.approx(1)
    assert cost <= max(ceiling, cheapest) * (1 + 1e-6) + 1e-12


def test_one_dear_arm_under_a_low_ceiling_is_still_chosen() -> None:
    arms = [Arm(3, 1, cost_usd=10_000.0)]
    assert under_ceiling(arms, lambda price: probability_best(arms, 1.0, price), 1e-3) == [1.0]


def test_without_weight_on_quality_the_penalty_decides_and_ties_share() -> None:
    arms = [Arm(9, 0, penalty=0.2), Arm(0, 9, penalty=0.1), Arm(0, 0, penalty=0.1)]
    assert probability_best(arms, weight=0.0) == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("arms", [[], [Arm(-1, 0)], [Arm(1, 1), Arm(0, -0.5)]])
def test_impossible_counts_are_refused(arms: list[Arm]) -> None:
    with pytest.raises(ValueError, match="counts >= 0"):
        probability_best(arms)


def test_a_sketch_without_values_and_outside_of_its_range() -> None:
    sketch = Sketch()
    assert sketch.quantile(0.5) is None
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"0\.\.1"):
            sketch.quantile(q)
    for value in (math.nan, math.inf, -1e-9):
        with pytest.raises(ValueError, match="finite"):
            sketch.add(value)
    sketch.add(0.0)
    assert sketch.quantile(1.0) == 0.0
    with pytest.raises(AssertionError, match="fewer values"):
        Sketch(count=5, buckets={1: 1}).quantile(1.0)


def test_a_sketch_keeps_its_bound_and_its_upper_quantiles() -> None:
    sketch = Sketch()
    values = np.exp(np.random.default_rng(1).uniform(-20, 600, 30_000))
    for value in values:
        sketch.add(float(value))
    assert len(sketch.buckets) <= MAX_BUCKETS
    assert sum(sketch.buckets.values()) + sketch.zeros == 30_000
    exact = float(np.sort(values)[int(0.99 * 29_999)])
    assert sketch.quantile(0.99) == pytest.approx(exact, rel=0.0101)


def test_a_task_without_variants_has_no_policy() -> None:
    with pytest.raises(ValueError, match="no variants"):
        cold(Task(task="t", variants=()))


def test_a_rest_that_rounding_leaves_goes_to_the_largest_share() -> None:
    class Last(random.Random):
        def random(self) -> float:
            return 1.0 - 2**-53

    policy = Policy(Snapshot(task="t", policy="weighted", policy_version=1, shares={"a": 0.3, "b": 0.6}))
    assert policy.choose({}, Last()).variant == "b"


def test_choices_come_as_often_as_their_propensities_say() -> None:
    shares = {"a": 0.05, "b": 0.25, "c": 0.7}
    policy, rng, n = (
        Policy(Snapshot(task="t", policy="weighted", policy_version=1, shares=shares)),
        random.Random(4),
        20_000,
    )
    found = Counter(policy.choose({}, rng).variant for _ in range(n))
    chi2 = sum((found[name] - n * share) ** 2 / (n * share) for name, share in shares.items())
    assert chi2 < 13.8  # the 0.1 % point of two degrees of freedom


def test_the_linear_policy_draws_as_its_propensities_say() -> None:
    task = Task(task="t", policy="contextual", variants=tuple(Variant(name=name) for name in ("a", "b", "c")))
    learner, rng = Learner.create(task, seed=3), random.Random(5)
    for i in range(300):
        context = {"x": rng.random()}
        name = rng.choice(["a", "b", "c"])
        quality = {"a": context["x"], "b": 1 - context["x"], "c": 0.5}[name]
        ticket = Ticket("t", name, 1 / 3, 0, i, encode(context))
        learner.update(event(i, quality=quality), True, ticket)
    snapshot = learner.snapshot()
    assert snapshot is not None
    policy, n = Policy(snapshot), 4000
    drawn = [policy.choose({"x": 0.8}, rng) for _ in range(n)]
    propensity = {choice.variant: choice.propensity for choice in drawn}
    found = Counter(choice.variant for choice in drawn)
    assert found.most_common(1)[0][0] == "a"
    for name, expected in propensity.items():
        assert found[name] / n == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n) + 2e-3)


def event(i: int, **fields: object) -> Event:
    return Event(id=f"e{i}", time=ManualClock().at(), task="t", **fields)  # type: ignore[arg-type] # fields of an event


def test_an_outcome_of_an_unknown_variant_teaches_the_linear_learner_nothing() -> None:
    linear = Contextual()
    linear.retain({"a": 1e-3})
    before = linear.state()
    linear.learn("b", encode({"x": 1.0}), 1.0, 1e-3)
    assert linear.state() == before


def test_variants_beyond_the_bound_are_counted_together() -> None:
    learner = Learner.create(Task(task="t", variants=()))
    for i in range(MAX_TRACKED + 10):
        learner.update(event(i, model=f"m{i}"), True, None)
    stats = learner.stats(None)
    assert stats.events == MAX_TRACKED + 10
    assert stats.variants[OTHER].count == 10


def test_the_versions_of_a_learner_rise() -> None:
    learner = Learner.create(Task(task="t", variants=(Variant(name="a"),)))
    assert learner.version == 0
    snapshot = learner.snapshot()
    assert snapshot is not None
    assert (snapshot.policy_version, learner.version) == (1, 1)


def test_only_so_many_features_are_kept_and_what_is_not_finite_is_not() -> None:
    many = {f"f{i:03}": 1.0 for i in range(3 * MAX_FEATURES)}
    assert len(encode(many)) == MAX_FEATURES
    assert encode({"a": math.nan, "b": math.inf, "c": True}) == encode({"c": 1.0})


def test_a_ticket_of_another_version_is_refused() -> None:
    text = seal(SECRET, Ticket("t", "a", 0.5, 1, 1), b"nonce!")
    raw = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    raw[0] = 9
    body = bytes(raw[:-10])
    forged = base64.urlsafe_b64encode(body + _mac(SECRET, body)).decode().rstrip("=")
    with pytest.raises(Invalid, match="was not given out"):
        unseal(SECRET, forged)
