"""
Tasks, selection, feedback, statistics and events, on storage in memory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest
from operations.conftest import SECRET, document

from optimizer.bus.memory import MemoryStorage
from optimizer.decision.features import encode
from optimizer.decision.policy import Snapshot
from optimizer.decision.ticket import Ticket, unseal
from optimizer.errors import Conflict, Invalid, NotFound, Transient
from optimizer.messages import Fleet, Record, ServiceView
from optimizer.model import Event, SystemEvent, Task, TaskStats, VariantStats
from optimizer.operations.events import ListEvents, export_events
from optimizer.operations.feedback import Accepted, FeedbackRequest
from optimizer.operations.house import House
from optimizer.operations.registry import OPERATIONS
from optimizer.operations.selection import BatchSelectRequest, Selection, SelectRequest, select_document
from optimizer.operations.tasks import ListTasks, NamedTask, Nothing, WriteTask, declare_tasks


async def run(house: House, name: str, request: Any) -> Any:
    return await OPERATIONS[name].run(house, request)


async def create(house: House, **more: Any) -> Task:
    written = await run(house, "tasks.create", WriteTask(document=document(**more)))
    assert written.created
    found: Task = written.task
    return found


async def publish(house: House, snapshot: Snapshot) -> None:
    await house.storage.commit(puts={f"policy/{snapshot.task}": msgspec.msgpack.encode(snapshot)})


async def test_a_task_lives_from_creation_to_deletion(house: House) -> None:
    made = await create(house)
    assert made.created_at == made.updated_at == house.clock.at()
    assert await run(house, "tasks.get", NamedTask(task="t")) == made
    with pytest.raises(Conflict):
        await run(house, "tasks.create", WriteTask(document=document(variants=["z"])))
    house.clock.advance(5)  # type: ignore[attr-defined]
    changed = await run(house, "tasks.replace", WriteTask(document=document(variants=["a", "c"]), task="t"))
    assert not changed.created
    assert (changed.task.created_at, changed.task.updated_at) == (made.created_at, house.clock.at())
    await run(house, "tasks.delete", NamedTask(task="t"))
    for name, request in (("tasks.get", NamedTask(task="t")), ("tasks.delete", NamedTask(task="t"))):
        with pytest.raises(NotFound):
            await run(house, name, request)
    assert (await run(house, "tasks.replace", WriteTask(document=document(), task="t"))).created


async def test_replacements_at_once_all_succeed(house: House) -> None:
    writes = [WriteTask(document=document("t", epsilon=i / 100), task="t") for i in range(30)]
    done = await asyncio.gather(*(run(house, "tasks.replace", write) for write in writes))
    assert [one.created for one in done].count(True) == 1
    assert (await run(house, "tasks.get", NamedTask(task="t"))).epsilon == 0.29


async def test_an_unknown_task_is_told_with_a_near_name(house: House) -> None:
    await create(house, name="support-reply")
    with pytest.raises(NotFound, match="support-reply"):
        await run(house, "select", SelectRequest(task="suport-reply"))
    for name in ("", "x" * 1000, "\ud800"):
        with pytest.raises(NotFound):
            await run(house, "tasks.get", NamedTask(task=name))


async def test_tasks_are_listed_by_pages(house: House) -> None:
    for name in "abc":
        await create(house, name=name)
    first = await run(house, "tasks.list", ListTasks(limit=2))
    rest = await run(house, "tasks.list", ListTasks(limit=2, cursor=first.next_cursor))
    assert [task.task for task in first.items + rest.items] == ["a", "b", "c"]
    assert rest.next_cursor is None
    for cursor in ("!", "AAAA", first.next_cursor[:-1]):
        with pytest.raises(Invalid, match="cursor"):
            await run(house, "tasks.list", ListTasks(cursor=cursor))


async def test_declared_tasks_are_not_declared_again_after_a_change_by_hand(house: House) -> None:
    await declare_tasks(house, [document()])
    await run(house, "tasks.replace", WriteTask(document=document(variants=["c"]), task="t"))
    await declare_tasks(house, [document()])
    assert [v.name for v in (await run(house, "tasks.get", NamedTask(task="t"))).variants] == ["c"]
    await declare_tasks(house, [document(variants=["d"])])
    assert [v.name for v in (await run(house, "tasks.get", NamedTask(task="t"))).variants] == ["d"]
    with pytest.raises(Invalid, match=r"tasks\[1\]\.policy"):
        await declare_tasks(house, [document(), document(policy="x")])


async def test_selection_before_anything_is_learned(house: House) -> None:
    await create(house)
    drawn = [await run(house, "select", SelectRequest(task="t", context={"x": 1.0})) for _ in range(400)]
    assert 150 < Counter(one.variant for one in drawn)["a"] < 250
    one: Selection = drawn[0]
    ticket = unseal(SECRET, one.selection_id)
    assert (ticket.task, ticket.variant, ticket.propensity) == ("t", one.variant, 0.5)
    assert (one.provider, one.model, one.policy_version) == ("openai", f"m-{one.variant}", 0)
    assert len({one.selection_id for one in drawn}) == 400


async def test_selection_follows_the_published_policy(house: House) -> None:
    await create(house)
    await publish(house, Snapshot(task="t", policy="thompson", policy_version=7, shares={"a": 0.0, "b": 1.0}))
    chosen = await run(house, "select", SelectRequest(task="t", explain=True))
    assert (chosen.variant, chosen.policy_version, chosen.propensity) == ("b", 7, 1.0)
    assert chosen.explanation.shares == {"a": 0.0, "b": 1.0}


async def test_the_quick_way_answers_as_the_other_one(house: House) -> None:
    await create(house)
    raws: list[Any] = [
        None,
        {},
        {"context": {"x": 1.0, "vip": True, "lang": "de"}, "session": "s"},
        {"context": {"x": 3}},
    ]
    for raw in raws:
        variant, text = select_document(house, "t", raw)
        chosen = msgspec.json.decode(text, type=Selection)
        ticket = unseal(SECRET, chosen.selection_id)
        context = (raw or {}).get("context") or {}
        assert ticket == Ticket("t", variant, 0.5, 0, int(house.clock.at().timestamp()), encode(context))
        assert (chosen.variant, chosen.model) == (variant, f"m-{variant}")
        assert list(msgspec.json.decode(text)) == list(
            msgspec.to_builtins(await run(house, "select", SelectRequest(task="t")))
        )
    await publish(house, Snapshot(task="t", policy="thompson", policy_version=9, shares={"a": 1.0, "b": 0.0}))
    assert msgspec.json.decode(select_document(house, "t", None)[1], type=Selection).policy_version == 9
    assert "explanation" in msgspec.json.decode(select_document(house, "t", {"explain": True})[1])


async def test_another_spelling_of_a_selection_is_refused(house: House) -> None:
    await create(house)
    chosen = await run(house, "select", SelectRequest(task="t"))
    for spelling in (chosen.selection_id + "=", chosen.selection_id[:9] + "!" + chosen.selection_id[9:]):
        with pytest.raises(Invalid, match="selection_id"):
            await run(house, "feedback", FeedbackRequest(events=[{"selection_id": spelling, "quality": 1}]))


async def test_a_policy_of_an_older_declaration_is_not_served(house: House) -> None:
    await create(house)
    await publish(house, Snapshot(task="t", policy="thompson", policy_version=7, shares={"a": 0.0, "b": 1.0}))
    await run(house, "tasks.replace", WriteTask(document=document(variants=["a", "c"]), task="t"))
    chosen = {(await run(house, "select", SelectRequest(task="t"))).variant for _ in range(100)}
    assert chosen == {"a", "c"}


async def test_a_policy_that_does_not_learn_follows_its_declaration_at_once(house: House) -> None:
    await create(house, policy="fixed", fixed_variant="b")
    await publish(house, Snapshot(task="t", policy="fixed", policy_version=3, shares={"a": 1.0, "b": 0.0}))
    chosen = await run(house, "select", SelectRequest(task="t"))
    assert (chosen.variant, chosen.policy_version) == ("b", 3)


async def test_an_observed_task_has_no_variants_until_it_is_declared(house: House) -> None:
    await house.storage.commit(puts={"task/o": msgspec.msgpack.encode(Task(task="o", observed=True))})
    with pytest.raises(Conflict, match="no variants"):
        await run(house, "select", SelectRequest(task="o"))
    stats = await run(house, "tasks.stats", NamedTask(task="o"))
    assert (stats.events, stats.variants) == (0, {})
    await create(house, name="o")
    assert (await run(house, "select", SelectRequest(task="o"))).variant in "ab"


async def test_a_batch_fails_as_a_whole(house: House) -> None:
    await create(house)
    good = SelectRequest(task="t")
    assert len((await run(house, "select.batch", BatchSelectRequest(requests=[good] * 3))).selections) == 3
    bad = SelectRequest(task="t", context={"x": float("nan"), "y": float("inf")})
    with pytest.raises(Invalid) as caught:
        await run(house, "select.batch", BatchSelectRequest(requests=[good, bad]))
    assert [p.field for p in caught.value.problems] == ["requests[1].context.x", "requests[1].context.y"]
    with pytest.raises(Invalid):
        await run(house, "select.batch", BatchSelectRequest(requests=[]))


async def test_feedback_with_only_a_selection_is_attributed(house: House) -> None:
    await create(house)
    chosen = await run(house, "select", SelectRequest(task="t"))
    request = FeedbackRequest(events=[{"selection_id": chosen.selection_id, "quality": 1}])
    accepted: Accepted = await run(house, "feedback", request)
    assert (accepted.accepted, accepted.duplicates) == (1, 0)
    (event,) = (await run(house, "events.list", ListEvents())).items
    assert (event.task, event.variant, event.model) == ("t", chosen.variant, chosen.model)
    assert event.id == accepted.ids[0]


async def test_forged_and_contradicting_selections_are_refused(house: House) -> None:
    await create(house)
    chosen = await run(house, "select", SelectRequest(task="t"))
    events = [
        {"selection_id": chosen.selection_id[:-2] + "AA", "quality": 1},
        {"selection_id": chosen.selection_id, "task": "u", "variant": "z"},
        {"selection_id": "x" * 100_000},
        {"task": "t", "variant": "a", "quality": 1},
    ]
    with pytest.raises(Invalid) as caught:
        await run(house, "feedback", FeedbackRequest(events=events))
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["[0].selection_id", "[1].task", "[1].variant", "[2].selection_id"]
    assert (await house.storage.inspect()).journal_offset == 0


async def test_an_idempotency_key_names_the_events(house: House) -> None:
    event = {"task": "t", "variant": "a"}
    request = FeedbackRequest(events=[event, {**event, "id": "own"}, event], idempotency_key="k1")
    first = await run(house, "feedback", request)
    again = await run(house, "feedback", request)
    assert first.ids == again.ids == ["k1:0", "own", "k1:2"]
    assert (first.duplicates, again.duplicates, again.duplicate_ids) == (0, 3, first.ids)
    long = await run(house, "feedback", FeedbackRequest(events=[event], idempotency_key="k" * 500))
    assert len(long.ids[0]) <= 128
    for key in ("k" * 2000, "ü", "a\nb"):
        with pytest.raises(Invalid, match="Idempotency-Key"):
            await run(house, "feedback", FeedbackRequest(events=[event], idempotency_key=key))


async def test_a_key_is_for_one_request(house: House) -> None:
    event = {"task": "t", "variant": "a"}
    request = FeedbackRequest(events=[event], idempotency_key="k", fingerprint=b"one")
    with pytest.raises(Invalid, match="variant"):  # what is refused for itself takes no key
        await run(house, "feedback", FeedbackRequest(events=[{"task": "t"}], idempotency_key="k", fingerprint=b"two"))
    first, again = await asyncio.gather(run(house, "feedback", request), run(house, "feedback", request))
    assert {first.duplicates, again.duplicates} == {0, 1}
    other = FeedbackRequest(events=[event, event], idempotency_key="k", fingerprint=b"two")
    with pytest.raises(Invalid, match="used for another request"):
        await run(house, "feedback", other)
    assert len((await run(house, "events.list", ListEvents())).items) == 1


async def test_a_large_request_lets_others_have_their_turn(house: House) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await run(
        house, "feedback", FeedbackRequest(events=[{"task": "t", "variant": "a", "attributes": {"a": 1}}] * 10_000)
    )
    task.cancel()
    assert turns > 3


async def test_pages_of_large_events_are_short(house: House) -> None:
    event = {"task": "t", "variant": "a", "attributes": {str(i): "x" * 8000 for i in range(8)}}
    await run(house, "feedback", FeedbackRequest(events=[event] * 100))
    page = await run(house, "events.list", ListEvents(limit=1000))
    assert 50 < len(page.items) < 80
    rest = await run(house, "events.list", ListEvents(limit=1000, cursor=page.next_cursor))
    assert (len(page.items) + len(rest.items), rest.next_cursor) == (100, None)


async def test_an_id_twice_in_one_request_is_a_mistake(house: House) -> None:
    event = {"task": "t", "variant": "a", "id": "x"}
    with pytest.raises(Invalid) as caught:
        await run(house, "feedback", FeedbackRequest(events=[event, event]))
    assert [problem.field for problem in caught.value.problems] == ["[1].id"]


async def test_lists_are_bounded(house: House) -> None:
    bad: tuple[list[object], ...] = ([], [{}] * 10_001)
    for events in bad:
        with pytest.raises(Invalid):
            await run(house, "feedback", FeedbackRequest(events=events))
    with pytest.raises(Invalid) as caught:
        await run(house, "feedback", FeedbackRequest(events=[{}] * 5000))
    assert len(caught.value.problems) <= 1002


async def test_statistics_show_every_variant(house: House) -> None:
    await create(house)
    some = VariantStats(
        count=3,
        feedback_count=2,
        mean_quality=0.5,
        quality_low=0.1,
        quality_high=0.9,
        mean_cost_usd=None,
        p50_latency_ms=None,
        p95_latency_ms=None,
        error_rate=0.0,
        share=0.2,
    )
    stats = TaskStats(task="t", events=3, policy_version=2, variants={"a": some})
    await house.storage.commit(puts={"stats/t": msgspec.msgpack.encode(stats)})
    await publish(house, Snapshot(task="t", policy="thompson", policy_version=2, shares={"a": 0.2, "b": 0.8}))
    found = await run(house, "tasks.stats", NamedTask(task="t"))
    assert (found.events, found.policy_version) == (3, 2)
    assert found.variants["a"] == some
    assert (found.variants["b"].count, found.variants["b"].share) == (0, 0.8)


async def fill(house: House, count: int) -> None:
    at = house.clock.at()
    events = [Event(id=f"e{i}", time=at, task="odd" if i % 2 else "even") for i in range(count)]
    await house.storage.append([Record(e.id, "", msgspec.msgpack.encode(e)) for e in events])


async def test_events_are_listed_by_pages_and_by_task(house: House) -> None:
    await fill(house, 25)
    seen: list[str] = []
    cursor = ""
    while True:
        page = await run(house, "events.list", ListEvents(limit=4, task="odd", cursor=cursor))
        seen += [event.id for event in page.items]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert seen == [f"e{i}" for i in range(25) if i % 2]
    last = await run(house, "events.list", ListEvents(last=3))
    assert [event.id for event in last.items] == ["e22", "e23", "e24"]
    await house.storage.append([Record("n", "", msgspec.msgpack.encode(Event(id="n", time=house.clock.at())))])
    later = await run(house, "events.list", ListEvents(cursor=last.end_cursor))
    assert [event.id for event in later.items] == ["n"]


async def test_system_events_are_a_log_of_their_own(house: House) -> None:
    event = SystemEvent(
        id="evt_1",
        type="policy.changed",
        time=house.clock.at(),
        host="h",
        environment="",
        severity="info",
        subject="t",
        summary="s",
        data={},
    )
    await house.storage.commit(system=[msgspec.msgpack.encode(event)])
    assert (await run(house, "events.list", ListEvents(log="system", task="t"))).items == [event]
    assert (await run(house, "events.list", ListEvents())).items == []


async def test_an_export_ends_where_the_log_ended(house: House) -> None:
    assert isinstance(house.storage, MemoryStorage)
    await fill(house, 2500)
    found = [event async for event in export_events(house, task="even")]
    assert [event.id for event in found] == [f"e{i}" for i in range(0, 2500, 2)]
    assert [event.id async for event in export_events(house, after=2498)] == ["e2498", "e2499"]


async def test_services_are_those_of_the_parent(house: House) -> None:
    with pytest.raises(Transient):
        await run(house, "services.list", Nothing())
    view = ServiceView(state="Running", healthy=True, restarts={"exit": 2, "hang": 1}, ready_at=990.0)
    fleet = Fleet(status="healthy", started_at=0.0, services={"storage": view})
    house.fleet = lambda: fleet
    (status,) = (await run(house, "services.list", Nothing())).items
    assert (status.name, status.restarts, status.uptime_secs) == ("storage", 3, 10.0)
