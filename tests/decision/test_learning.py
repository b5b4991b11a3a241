from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.clock import ManualClock
from optimizer.decision.features import encode
from optimizer.decision.learner import Learner, quality_of, wilson
from optimizer.decision.policy import Policy, cold, probability_highest
from optimizer.decision.shares import Arm, greedy, probability_best, under_ceiling
from optimizer.decision.sketch import ALPHA, Sketch
from optimizer.decision.ticket import Ticket, seal, unseal
from optimizer.errors import Invalid
from optimizer.model import Event, Feedback, Objective, Price, Task, Variant

SECRET = bytes(range(32))


def event(i: int, **fields: object) -> Event:
    return Event(id=f"e{i}", time=ManualClock().at(), task="t", **fields)  # type: ignore[arg-type] # fields of an event


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=300), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_sketch_quantiles_are_within_alpha_of_the_exact_ones(values: list[float], q: float) -> None:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    exact = sorted(values)[int(q * (len(values) - 1))]
    found = sketch.quantile(q)
    assert found is not None
    assert abs(found - exact) <= exact * ALPHA * 1.0001


def test_merged_sketches_equal_one_sketch() -> None:
    one, two, both = Sketch(), Sketch(), Sketch()
    for i in range(200):
        (one if i % 3 else two).add(i)
        both.add(i)
    one.merge(two)
    assert (one.count, one.zeros, one.buckets) == (both.count, both.zeros, both.buckets)
    with pytest.raises(ValueError, match="finite"):
        one.add(-1)


@given(
    st.text(max_size=60),
    st.text(max_size=60),
    st.floats(0.01, 1),
    st.dictionaries(st.text(max_size=9), st.floats(-1e9, 1e9)),
)
def test_a_ticket_says_what_was_sealed(task: str, variant: str, propensity: float, context: dict[str, float]) -> None:
    ticket = Ticket(task, variant, propensity, 7, 1_700_000_000, encode(context))
    text = seal(SECRET, ticket, b"nonce!")
    found = unseal(SECRET, text)
    assert (found.task, found.variant, found.policy_version, found.features) == (task, variant, 7, ticket.features)
    assert found.propensity == pytest.approx(propensity, rel=1e-6)


@given(st.integers(0, 70))
def test_a_changed_ticket_is_refused(position: int) -> None:
    text = seal(SECRET, Ticket("task", "variant", 0.5, 1, 1, encode({"a": 1.0, "b": "x"})), b"nonce!")
    place = position % len(text)
    changed = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
    if changed.rstrip("=") != text:
        with pytest.raises(Invalid) as caught:
            unseal(SECRET, changed[: len(text) - 1])
        assert caught.value.problems[0].field == "selection_id"
    with pytest.raises(Invalid):
        unseal(b"another key, of thirty-two bytes", text)


@pytest.mark.parametrize(
    ("arms", "exact"),
    [
        ([Arm(1, 0), Arm(0, 0)], [2 / 3, 1 / 3]),
        ([Arm(0, 0), Arm(0, 0), Arm(0, 0)], [1 / 3] * 3),
        ([Arm(2, 0), Arm(0, 1)], [9 / 10, 1 / 10]),
    ],
)
def test_probability_best_has_the_known_values(arms: list[Arm], exact: list[float]) -> None:
    assert probability_best(arms) == pytest.approx(exact, abs=2e-3)


def test_probability_best_agrees_with_monte_carlo() -> None:
    arms = [Arm(40, 20), Arm(35, 15, penalty=0.05), Arm(300, 160)]
    rng = np.random.default_rng(5)
    drawn = np.stack([rng.beta(a.wins + 1, a.losses + 1, 400_000) - a.penalty for a in arms])
    won = np.bincount(drawn.argmax(axis=0), minlength=3) / drawn.shape[1]
    assert probability_best(arms) == pytest.approx(won.tolist(), abs=4e-3)


def test_a_ceiling_is_kept_at_the_least_loss() -> None:
    arms = [Arm(80, 20, cost_usd=1e-5), Arm(95, 5, cost_usd=1e-3)]
    shares = under_ceiling(arms, lambda price: probability_best(arms, 1.0, price), 4e-4)
    assert shares[0] * 1e-5 + shares[1] * 1e-3 == pytest.approx(4e-4, rel=0.02)
    assert under_ceiling(arms, lambda price: probability_best(arms, 1.0, price), 1e-6) == [1.0, 0.0]


def test_greedy_spreads_epsilon_and_leaves_out_the_unaffordable() -> None:
    arms = [Arm(9, 1, cost_usd=1.0), Arm(5, 5, cost_usd=0.1), Arm(1, 9, cost_usd=0.1)]
    assert greedy(arms, 1.0, 0.3) == pytest.approx([0.8, 0.1, 0.1])
    assert greedy(arms, 1.0, 0.3, ceiling_usd=0.5) == pytest.approx([0.0, 0.85, 0.15])


def test_wilson_has_the_known_values() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998, table I, method 3 for 8/10


def test_propensities_of_normal_scores_agree_with_monte_carlo() -> None:
    centre, spread = [0.5, 0.55, 0.4], [0.05, 0.1, 0.2]
    rng = np.random.default_rng(3)
    drawn = rng.normal(centre, spread, (400_000, 3)).argmax(axis=1)
    exact = [probability_highest(i, centre, spread) for i in range(3)]
    assert exact == pytest.approx((np.bincount(drawn) / len(drawn)).tolist(), abs=4e-3)
    assert sum(exact) == pytest.approx(1, abs=1e-3)


def test_quality_comes_from_the_first_thing_that_tells_it() -> None:
    assert quality_of(event(1, quality=0.3, feedback=Feedback(thumbs=True))) == 0.3
    assert quality_of(event(2, feedback=Feedback(thumbs=False, rating=1))) == 0.0
    assert quality_of(event(3, feedback=Feedback(rating=-0.5))) == 0.0
    assert quality_of(event(4, feedback=Feedback(comment="x"))) is None


def two(policy: str, **fields: object) -> Task:
    variants = (Variant(name="a", model="m-a"), Variant(name="b", model="m-b", weight=3.0))
    return Task(task="t", policy=policy, variants=variants, **fields)  # type: ignore[arg-type] # as above


def test_policies_that_do_not_learn_serve_what_is_declared() -> None:
    assert cold(two("fixed", fixed_variant="b")).shares == {"a": 0.0, "b": 1.0}
    assert cold(two("weighted")).shares == {"a": 0.25, "b": 0.75}
    drawn = [Policy(cold(two("weighted"))).choose({}, random.Random(i)).variant for i in range(2000)]
    assert 1400 < drawn.count("b") < 1600


def test_thompson_learns_the_better_variant_and_survives_storage() -> None:
    learner = Learner.create(two("thompson"))
    rng = random.Random(1)
    for i in range(300):
        name = "a" if i % 2 else "b"
        learner.update(event(i, variant=name, quality=float(rng.random() < (0.9 if name == "a" else 0.5))), True, None)
    snapshot = learner.snapshot()
    assert snapshot is not None
    assert snapshot.shares["a"] > 0.98
    again = Learner.from_bytes(learner.to_bytes())
    assert again.stats(snapshot) == learner.stats(snapshot)
    stats = learner.stats(snapshot)
    assert (stats.events, stats.variants["a"].count, stats.variants["a"].feedback_count) == (300, 150, 150)


def test_contextual_learns_who_is_good_at_what_under_a_ceiling() -> None:
    price = {
        "a": Price(input_usd_per_million=0.1, output_usd_per_million=0.1),
        "b": Price(input_usd_per_million=1, output_usd_per_million=2),
    }
    task = Task(
        task="t",
        policy="contextual",
        objective=Objective(max_cost_per_request_usd=5e-4),
        variants=tuple(Variant(name=name, price=price[name]) for name in "ab"),
    )
    learner, rng = Learner.create(task), random.Random(2)
    policy, spent, right = Policy(cold(task)), 0.0, 0
    for i in range(800):
        hard = rng.random() < 0.5
        choice = policy.choose({"hard": hard}, rng)
        cost = 1e-3 if choice.variant == "b" else 5e-5
        quality = 0.9 if choice.variant == "b" or not hard else 0.3
        ticket = Ticket("t", choice.variant, choice.propensity, 0, 0, choice.features)
        learner.update(event(i, quality=quality, cost_usd=cost), True, ticket)
        if i % 20 == 19:
            snapshot = learner.snapshot()
            assert snapshot is not None
            policy = Policy(snapshot)
            learner = Learner.from_bytes(learner.to_bytes())
        if i >= 400:
            spent += cost
            right += (choice.variant == "b") == hard
    assert spent / 400 <= 5e-4 * 1.05
    assert right / 400 > 0.85
