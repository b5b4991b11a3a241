"""
Whatever dies or is lost on the way of a commit, what is learned is the same.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processor.conftest import Lab, declared, event, traffic

from optimizer.decision.policy import Snapshot
from optimizer.messages import Changed, Message
from optimizer.model import POLICIES, SystemEvent, Task
from optimizer.telemetry.metrics import Metrics

STEPS = ["ok", "die", "die_after", "lost", "lost_after", "later"]
DECLARED = [declared(policy, policy) for policy in POLICIES]


async def course(folder: Path, metrics: Metrics, seed: int, page: int, plan: list[Any]) -> Lab:
    """
    Traffic that comes while the processor learns, and a plan of what goes wrong.
    """
    lab = Lab(folder, metrics)
    lab.born(page)
    await lab.declare(*DECLARED)
    events = traffic(seed, 40)
    half = len(events) // 2
    await lab.happen(*events[:half])

    async def more() -> None:
        await lab.happen(*events[half:])

    lab.faulty.plan = [*plan[: len(plan) // 2], more, *plan[len(plan) // 2 :]]
    await lab.learn()
    return lab


def versions_of(lab: Lab) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}

    def on_policy(topic: str, message: Message) -> None:
        assert isinstance(message, Changed)
        if message.body is not None:
            snapshot = msgspec.msgpack.decode(message.body, type=Snapshot)
            found.setdefault(snapshot.task, []).append(snapshot.policy_version)

    lab.storage.subscribe("storage", ["state/policy/"], on_policy, lambda: None)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, metrics: Metrics) -> dict[int, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("lab")
    return {seed: asyncio.run(course(folder, metrics, seed, 2000, [])).learned() for seed in range(3)}


@given(seed=st.integers(0, 2), page=st.sampled_from([1, 2, 7, 30]), plan=st.lists(st.sampled_from(STEPS), max_size=60))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_interleaving_of_crashes_learns_the_same(
    undisturbed: dict[int, dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
    metrics: Metrics,
    seed: int,
    page: int,
    plan: list[str],
) -> None:
    lab = asyncio.run(course(tmp_path_factory.getbasetemp(), metrics, seed, page, plan))
    assert lab.learned() == undisturbed[seed]
    journal = lab.storage.logs["journal"]
    assert (lab.checkpoint.offset, lab.checkpoint.events, lab.checkpoint.unlearned) == (len(journal), len(journal), 0)
    assert sum(lab.stats(name).events for name in undisturbed[seed]) == len(journal)


@pytest.mark.parametrize("step", STEPS[1:])
async def test_each_call_of_a_pass_may_be_the_last(tmp_path: Path, metrics: Metrics, step: str) -> None:
    calm = await course(tmp_path, metrics, 5, 9, [])
    calls = 0
    while True:
        lab = await course(tmp_path, metrics, 5, 9, ["ok"] * calls + [step])
        assert lab.learned() == calm.learned()
        calls += 1
        if calls > 60:  # a calm course makes fewer
            return


async def test_versions_rise_and_announcements_are_made_once_whatever_dies(tmp_path: Path, metrics: Metrics) -> None:
    rng = random.Random(3)
    lab = Lab(tmp_path, metrics)
    versions = versions_of(lab)
    lab.born(4)
    await lab.declare(*DECLARED)
    await lab.happen(*traffic(7, 80))
    lab.faulty.plan = [rng.choice(STEPS) for _ in range(200)]
    await lab.learn()
    assert set(versions) == set(POLICIES)
    for name, seen in versions.items():
        assert seen == sorted(set(seen)), name
        assert lab.policy(name).policy_version == seen[-1]
    told = [msgspec.msgpack.decode(entry.body, type=SystemEvent) for entry in lab.storage.logs["system"]]
    count = Counter((one.data["task"], one.data["policy_version"]) for one in told)
    assert max(count.values()) == 1
    assert {name for name, _ in count} == set(POLICIES)


DEEDS = ["delete", "recreate", "declare", "declare w", "variants", "policy", "freeze", "thaw"]


@given(
    seed=st.integers(0, 5),
    page=st.sampled_from([1, 5, 50]),
    plan=st.lists(st.sampled_from([*STEPS, *DEEDS]), min_size=1, max_size=40),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_what_operators_do_meanwhile_is_followed_at_every_instant(
    tmp_path_factory: pytest.TempPathFactory, metrics: Metrics, seed: int, page: int, plan: list[str]
) -> None:
    """
    The task t is deleted, declared anew and changed at any call of a pass, between any crashes, and the processor hears of it
    at once or late; u is left alone, w is declared after it was observed. In the end nothing is there of a task that is not, and
    of one that is exactly the events since then.
    """
    asyncio.run(_meddle(tmp_path_factory.getbasetemp(), metrics, seed, page, plan))


@pytest.mark.parametrize("deed", ["delete", "recreate", "declare w", "variants"])
@pytest.mark.parametrize("unheard", [True, False])
async def test_a_deed_at_each_call_and_a_death_at_each_call_after_it(
    tmp_path: Path, metrics: Metrics, deed: str, unheard: bool
) -> None:
    for before in range(12):
        for after in range(9):
            plan = ["ok"] * before + (["freeze"] if unheard else []) + [deed] + ["ok"] * after + ["die_after"]
            await _meddle(tmp_path, metrics, 1, 25, plan)


async def _meddle(folder: Path, metrics: Metrics, seed: int, page: int, plan: list[str]) -> None:
    lab = Lab(folder, metrics)
    lab.born(page)
    rng = random.Random(seed)
    await lab.declare(declared("t"), declared("u"))
    of = [rng.choice("tuw") for _ in range(60)]
    await lab.happen(*(event(f"e{i}", name, variant=rng.choice("abc"), quality=1.0) for i, name in enumerate(of)))
    since = heard = (
        0  # offsets up to which events of t are forgotten, as storage has it, and as the processor has heard
    )
    number = 0

    def deed(kind: str) -> Any:
        async def do() -> None:
            nonlocal since, heard, number
            number += 1
            there = "task/t" in lab.storage.states
            if kind == "freeze":
                lab.tasks.freeze()
            if kind == "thaw":
                lab.thaw()
            if kind == "declare w":
                await lab.declare(declared("w", service=f"s{number}"))
            if kind in ("delete", "recreate") and there:
                await lab.delete("t")
                since = lab.checkpoint.offset if "consumer/processor" in lab.storage.states else 0
                # the pass under way may learn for a task that is no more; its learner is forgotten with it
                late = page if lab.tasks.frozen is None else len(of)
                heard = max(heard, since + late if kind == "delete" else since)
            if kind == "recreate" or (kind == "declare" and not there):
                await lab.declare(declared("t", service=f"s{number}"))
            if kind == "variants" and there:
                await lab.declare(declared("t", variants=rng.sample("abcd", 2), service=f"s{number}"))
            if kind == "policy" and there:
                await lab.declare(declared("t", rng.choice(POLICIES), service=f"s{number}"))

        return do

    lab.faulty.plan = [deed(step) if step in DEEDS else step for step in plan]
    await lab.learn()
    assert lab.stats("u").events == of.count("u")
    assert lab.stats("w").events == of.count("w")
    assert lab.read("task/w", Task).observed == ("declare w" not in plan)
    if "task/t" not in lab.storage.states:
        assert "t" not in of[heard:]  # or it would have been observed
        assert not {"policy/t", "stats/t", "learn/t"} & set(lab.storage.states)
        return
    task = lab.read("task/t", Task)
    assert of[heard:].count("t") <= lab.stats("t").events <= of[since:].count("t")
    if not task.observed:
        snapshot = lab.policy("t")
        assert (snapshot.policy, set(snapshot.shares)) == (task.policy, {variant.name for variant in task.variants})
