"""
What is learned, against independent figures; and what must not be learned.
"""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processor.conftest import AT, SECRET, Lab, declared, event, selection

from optimizer.decision.features import MAX_FEATURES
from optimizer.decision.learner import Learner
from optimizer.decision.policy import Policy
from optimizer.decision.sketch import ALPHA
from optimizer.errors import Invalid
from optimizer.messages import Entry, Record
from optimizer.model import POLICIES, Feedback, Objective, Task
from optimizer.telemetry.metrics import Metrics
from workers.processor.lesson import lesson


async def test_figures_agree_with_independent_ones(lab: Lab) -> None:
    rng = np.random.default_rng(11)
    await lab.declare(declared("t"))
    calls = {
        name: {
            "quality": rng.beta(3, 2, 700).tolist(),
            "cost": rng.lognormal(-7, 1, 700).tolist(),
            "latency": rng.lognormal(6, 1.2, 700).tolist(),
            "failed": rng.random(700) < 0.17,
        }
        for name in "ab"
    }
    for i in range(700):
        for number, (name, of) in enumerate(calls.items()):
            chosen = selection("t", name, 2 * i + number)
            call = event(
                f"c{name}{i}", "t", selection_id=chosen, cost_usd=of["cost"][i], latency_ms=of["latency"][i],
                error="timeout" if of["failed"][i] else "",
            )  # fmt: skip
            await lab.happen(call, event(f"f{name}{i}", "t", selection_id=chosen, quality=of["quality"][i]), call)
    await lab.learn()
    stats = lab.stats("t")
    assert stats.events == 4 * 700
    for name, of in calls.items():
        found = stats.variants[name]
        assert (found.count, found.feedback_count) == (700, 700)
        assert found.mean_quality == pytest.approx(np.mean(of["quality"]))
        assert found.mean_cost_usd == pytest.approx(np.mean(of["cost"]))
        assert found.error_rate == pytest.approx(np.mean(of["failed"]))
        for figure, q in ((found.p50_latency_ms, 0.5), (found.p95_latency_ms, 0.95)):
            assert figure == pytest.approx(np.quantile(of["latency"], q, method="lower"), rel=ALPHA * 1.0001)
        assert found.quality_low is not None
        assert found.quality_high is not None
        assert found.quality_low < np.mean(of["quality"]) < found.quality_high
        half_width = 1.96 * math.sqrt(np.mean(of["quality"]) * (1 - np.mean(of["quality"])) / 700)  # of a proportion
        assert (found.quality_high - found.quality_low) / 2 == pytest.approx(half_width, rel=0.02)
    assert stats.policy_version == lab.policy("t").policy_version
    assert sum(one.share for one in stats.variants.values()) == pytest.approx(1)


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_policy_of_each_kind_is_published_and_can_choose(lab: Lab, policy: Any) -> None:
    await lab.declare(declared("t", policy, epsilon=0.2, fixed_variant="b"))
    await lab.learn()
    first = lab.policy("t")
    assert (first.policy, first.policy_version, set(first.shares)) == (policy, 1, {"a", "b"})
    await lab.happen(
        *(
            event(f"e{i}", selection_id=selection("t", "ab"[i % 2], i, {"x": 1.0}), quality=float(i % 2), cost_usd=1e-4)
            for i in range(400)
        )
    )
    await lab.learn()
    second = lab.policy("t")
    assert second.policy_version > 1
    assert sum(second.shares.values()) == pytest.approx(1)
    rng = random.Random(1)
    chosen = [Policy(second).choose({"x": 1.0}, rng) for _ in range(400)]
    share_of_b = sum(choice.variant == "b" for choice in chosen) / 400
    wanted = {"fixed": 1.0, "weighted": 0.5, "epsilon_greedy": 0.9, "thompson": 0.99, "contextual": 0.99}[policy]
    assert share_of_b == pytest.approx(wanted, abs=0.08)
    assert all(choice.propensity == pytest.approx(second.shares[choice.variant], abs=0.03) for choice in chosen)


async def test_events_of_one_selection_are_one_call_in_any_order_and_each_outcome_counts(lab: Lab) -> None:
    await lab.declare(declared("t"))
    one, two = selection("t", "a", 1), selection("t", "a", 2)
    await lab.happen(event("f1", selection_id=one, quality=1.0), event("c2", selection_id=two, latency_ms=10.0))
    await lab.learn()
    await lab.happen(
        event("c1", selection_id=one, latency_ms=20.0, cost_usd=0.5),
        event("f2", selection_id=two, feedback=Feedback(thumbs=False)),
        event("f1", selection_id=one, quality=0.0),  # sent again, by its id
        event("f3", selection_id=one, quality=0.5),  # somebody else's opinion of the same answer
    )
    await lab.learn()
    found = lab.stats("t").variants["a"]
    assert (found.count, found.feedback_count, found.mean_quality, found.mean_cost_usd) == (2, 3, 0.5, 0.5)


async def test_the_senders_clock_does_not_matter(lab: Lab) -> None:
    times = [datetime(1970, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC), AT]
    await lab.happen(*(event(f"e{i}", "seen", model="m", time=time, quality=1.0) for i, time in enumerate(times)))
    await lab.learn()
    assert (lab.stats("seen").events, lab.stats("seen").variants["m"].count) == (3, 3)
    assert lab.read("task/seen", Task).created_at == lab.clock.at()


async def test_events_of_a_changed_task_keep_their_variants(lab: Lab) -> None:
    await lab.declare(declared("t", variants=["a", "b"]))
    old = selection("t", "a", 1)
    await lab.learn()
    await lab.declare(declared("t", variants=["b", "c"]))
    await lab.happen(event("1", selection_id=old, quality=1.0), event("2", "t", model="m-c", quality=0.0))
    await lab.learn()
    assert {name: one.count for name, one in lab.stats("t").variants.items()} == {"a": 1, "b": 0, "c": 1}
    assert set(lab.policy("t").shares) == {"b", "c"}


async def test_late_feedback_does_not_bring_a_deleted_task_back(lab: Lab, metrics: Metrics) -> None:
    counter = metrics.events_unlearned_total.labels("task_deleted")
    before = counter._value.get()
    await lab.declare(declared("t"))
    await lab.learn()
    await lab.delete("t")
    await lab.happen(event("late", selection_id=selection("t", "a", 1), quality=1.0))
    await lab.learn()
    assert not {"task/t", "policy/t", "stats/t", "learn/t"} & set(lab.storage.states)
    assert (lab.checkpoint.events, lab.checkpoint.unlearned, counter._value.get() - before) == (1, 1, 1)


async def test_a_declaration_is_looked_up_when_its_word_is_late(lab: Lab) -> None:
    lab.tasks.freeze()
    await lab.declare(declared("t"))
    await lab.happen(event("1", selection_id=selection("t", "a", 1), quality=1.0))
    assert not await lab.study.advance(lab.tasks)
    assert lab.stats("t").variants["a"].count == 1
    assert not lab.read("task/t", Task).observed


POISON = {
    "not msgpack": b"\xc1\xff\x00garbage",
    "nothing": b"",
    "no event": msgspec.msgpack.encode({"id": 3}),
    "a list": msgspec.msgpack.encode([1, 2]),
    "deep": b"\x91" * 100_000 + b"\xc0",
    "deep attributes": msgspec.msgpack.encode({"id": "x", "time": AT})[:-1] + b"\x91" * 5000,
    "half an event": msgspec.msgpack.encode(event("x", "t", quality=1.0))[:-3],
    "quality not a number": msgspec.msgpack.encode(event("x", "t", variant="a", quality=math.nan)),
    "quality 2": msgspec.msgpack.encode(event("x", "t", variant="a", quality=2.0)),
    "rating": msgspec.msgpack.encode(event("x", "t", variant="a", feedback=Feedback(rating=-math.inf))),
    "cost infinite": msgspec.msgpack.encode(event("x", "t", variant="a", cost_usd=math.inf)),
    "cost negative": msgspec.msgpack.encode(event("x", "t", variant="a", cost_usd=-1e-9)),
    "latency": msgspec.msgpack.encode(event("x", "t", variant="a", latency_ms=-1.0)),
    "latency not a number": msgspec.msgpack.encode(event("x", "t", variant="a", latency_ms=math.nan)),
}


@pytest.mark.parametrize("body", POISON.values(), ids=POISON)
async def test_a_poisoned_record_is_counted_and_left_out(lab: Lab, metrics: Metrics, body: bytes) -> None:
    counter = metrics.events_unlearned_total.labels("invalid")
    before = counter._value.get()
    await lab.declare(declared("t"))
    await lab.happen(event("1", "t", variant="a", quality=1.0))
    await lab.storage.append([Record("poison", "", body)])
    await lab.happen(event("2", "t", variant="a", quality=0.5))
    await lab.learn()
    lab.born()
    await lab.learn()
    found = lab.stats("t").variants["a"]
    assert (found.count, found.mean_quality, lab.stats("t").events) == (2, 0.75, 2)
    assert (lab.checkpoint.offset, lab.checkpoint.events, lab.checkpoint.unlearned) == (3, 3, 1)
    assert counter._value.get() - before == 1


@given(st.binary(max_size=200))
def test_any_bytes_are_a_lesson_or_invalid(body: bytes) -> None:
    try:
        lesson(Entry(1, True, body), SECRET)
    except Invalid:
        return


@pytest.mark.parametrize("page", [1, 3, 100])
async def test_an_event_that_makes_learning_fail_is_left_out_and_the_others_count_once(
    lab: Lab, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    update = Learner.update

    def spoiled(self: Learner, event: Any, opens: bool, ticket: Any) -> str:
        name = update(self, event, opens, ticket)  # it has changed the learner before it fails
        if event.id.startswith("boom"):
            raise ZeroDivisionError
        return name

    monkeypatch.setattr(Learner, "update", spoiled)
    counter = metrics.events_unlearned_total.labels("defect")
    before = counter._value.get()
    lab.born(page)
    await lab.declare(declared("t", "contextual"))
    ids = [f"{'boom' if i in (4, 5, 11) else 'e'}{i}" for i in range(14)]
    await lab.happen(*(event(i, selection_id=selection("t", "a", n), quality=1.0) for n, i in enumerate(ids)))
    await lab.learn()
    assert (lab.stats("t").events, lab.stats("t").variants["a"].count) == (11, 11)
    assert (lab.checkpoint.events, lab.checkpoint.unlearned, counter._value.get() - before) == (14, 3, 3)


async def test_a_policy_that_cannot_be_computed_stops_nobody(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.declare(declared("t"), declared("u"))
    await lab.learn()
    snapshot = Learner.snapshot
    monkeypatch.setattr(Learner, "snapshot", lambda self: 1 / 0 if self.task.task == "t" else snapshot(self))
    await lab.happen(*(event(f"{name}{i}", name, variant="a", quality=1.0) for name in "tu" for i in range(3)))
    await lab.learn()
    assert (lab.stats("t").events, lab.policy("t").policy_version) == (3, 1)  # the one before is served on
    assert (lab.stats("u").events, lab.policy("u").policy_version) == (3, 2)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, where a price is far out of any range
@pytest.mark.parametrize("policy", POLICIES)
async def test_what_is_published_is_probabilities_whatever_senders_claim(lab: Lab, policy: Any) -> None:
    rng = random.Random(9)
    ceiling = Objective(quality=1.0, cost=1.0, latency=1e9, max_cost_per_request_usd=1e-3)
    await lab.declare(declared("t", policy, "a", objective=ceiling), declared("u", policy, "ab", objective=ceiling))
    for i in range(60):
        claims: dict[str, Any] = {
            "cost_usd": rng.choice([0.0, 5e-324, 1e6]),
            "latency_ms": rng.choice([0.0, 6e8]),
            "quality": 1.0,
        }
        name, variant = rng.choice([("t", "a"), ("u", "a"), ("u", "b")])
        await lab.happen(event(f"e{i}", selection_id=selection(name, variant, i, {"x": 1e300}), **claims))
        await lab.learn()
        for name in "tu":
            shares = lab.policy(name).shares.values()
            assert sum(shares) == pytest.approx(1)
            assert min(shares) >= 0
    assert lab.stats("t").events + lab.stats("u").events == 60


async def test_many_tasks_are_followed_in_commits_of_bounded_size(lab: Lab) -> None:
    await lab.declare(*(declared(f"t{i}", "weighted") for i in range(1000)))
    assert await lab.study.advance(lab.tasks)  # there is more to follow, although no event came
    await lab.learn()
    await lab.happen(*(event(f"e{i}", f"t{i}", variant="a", quality=1.0) for i in range(1000)))
    await lab.learn()
    assert all(f"policy/t{i}" in lab.storage.states for i in range(1000))
    assert all(lab.stats(f"t{i}").events == 1 for i in range(1000))
    assert max(sum(key.startswith("learn/") for key in commit) for commit in lab.faulty.commits) <= 200
    lab.born()
    lab.faulty.commits.clear()
    await lab.learn()
    assert lab.faulty.commits == []  # nothing is new after a restart


async def test_large_learners_are_committed_apart(lab: Lab) -> None:
    many = [f"v{i}" for i in range(64)]
    await lab.declare(*(declared(f"t{i}", "contextual", many) for i in range(8)))
    await lab.learn()
    rich = {f"f{n}": n / MAX_FEATURES for n in range(MAX_FEATURES)}
    await lab.happen(*(event(f"e{i}", selection_id=selection(f"t{i}", "v1", i, rich), quality=1.0) for i in range(8)))
    await lab.learn()
    assert all(lab.stats(f"t{i}").events == 1 for i in range(8))
    sizes = [sum(commit.values()) for commit in lab.faulty.commits]
    assert max(sizes) < 24 * 1024 * 1024 < sum(sizes)


async def test_undeclared_tasks_are_bounded_and_declared_ones_are_not(tmp_path: Path, metrics: Metrics) -> None:
    lab = Lab(tmp_path, metrics, max_tasks=2)
    await lab.happen(*(event(f"e{i}", f"seen{i}", model="m") for i in range(5)))
    await lab.learn()
    assert [key for key in lab.storage.states if key.startswith("task/")] == ["task/seen0", "task/seen1"]
    assert (lab.checkpoint.events, lab.checkpoint.unlearned) == (5, 3)
    lab.tasks.freeze()
    await lab.declare(declared("mine"))
    await lab.happen(event("x", selection_id=selection("mine", "a", 1), quality=1.0))
    await lab.learn()
    assert lab.stats("mine").events == 1


def _sample(lab: Lab, name: str, task: str, variant: str) -> float:
    family = next(iter(getattr(lab.metrics, name).labels(task, variant).collect()))
    return float(family.samples[0].value)


async def test_costs_are_counted_as_they_are_committed_whatever_dies(tmp_path: Path, metrics: Metrics) -> None:
    lab = Lab(tmp_path, metrics)
    lab.born(2)
    await lab.declare(declared("costs"))
    await lab.happen(*(event(f"e{i}", "costs", variant="a", cost_usd=0.25, quality=0.5) for i in range(20)))
    rng = random.Random(4)
    lab.faulty.plan = [rng.choice(["ok", "ok", "die_after", "lost_after"]) for _ in range(60)]
    await lab.learn()
    lab.born()
    await lab.learn()
    assert _sample(lab, "task_cost_usd_total", "costs", "a") == 5.0
    assert _sample(lab, "task_quality_ratio", "costs", "a") == 0.5
    await lab.delete("costs")
    await lab.learn()
    assert math.isnan(_sample(lab, "task_quality_ratio", "costs", "a"))
    await lab.declare(declared("costs"))
    await lab.happen(event("new", "costs", variant="a", cost_usd=1.0))
    await lab.learn()
    assert _sample(lab, "task_cost_usd_total", "costs", "a") == 6.0  # it never goes back
