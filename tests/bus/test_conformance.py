"""
What storage and the collector promise, kept by the twins in memory and by the services over a real bus.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bus.conftest import until

from optimizer.bus.collector import Collector, RemoteCollector
from optimizer.bus.link import Bus
from optimizer.bus.memory import MemoryCollector, MemoryStorage
from optimizer.bus.mirror import Mirror, Subscribable
from optimizer.bus.storage import RemoteStorage, Storage
from optimizer.config.loader import load
from optimizer.decision.ticket import Ticket, seal
from optimizer.errors import Conflict, Invalid, Problem
from optimizer.messages import SCAN_BYTES, Record, State
from optimizer.model import Event
from optimizer.service import Frame
from workers.collector.service import serve as serve_collector
from workers.collector.settings import Settings as CollectorSettings
from workers.storage.service import serve as serve_storage
from workers.storage.settings import Settings as StorageSettings

SECRET = b"s" * 32
Pair = tuple[Storage, Subscribable]


@asynccontextmanager
async def served(
    serve: Callable[[Any], Awaitable[None]], name: str, settings: Any, folder: Path, **more: Any
) -> AsyncIterator[Frame[Any]]:
    """
    A service, ready.
    """
    overrides = {"service.data_dir": str(folder), "service.runtime_dir": str(folder / "run")}
    config = load(env={}, overrides=overrides)
    frame = Frame[Any](
        name=name, slot=name, config=config, settings=settings, runtime_dir=folder / "run", secret=SECRET, **more
    )
    ready = asyncio.Event()
    frame.ready = ready.set
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(frame))  # type: ignore[arg-type] # both are coroutines
        await asyncio.wait_for(ready.wait(), 10)
        yield frame
        frame.stopping.set()


@asynccontextmanager
async def service_of_storage(folder: Path) -> AsyncIterator[Pair]:
    """
    The service, and a client of it on another bus.
    """
    async with (
        served(serve_storage, "storage", StorageSettings(), folder) as frame,
        Bus(frame.bus_dir, "client") as bus,
    ):
        yield RemoteStorage(bus.client("storage")), bus


@pytest.fixture(params=["memory", "service"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    if request.param == "memory":
        memory = MemoryStorage()
        yield memory, memory
    else:
        async with service_of_storage(tmp_path) as found:
            yield found


@pytest.fixture
def storage(pair: Pair) -> Storage:
    return pair[0]


def record(i: int, selection: str = "", body: bytes = b"body") -> Record:
    return Record(f"e{i}", selection, body)


# --- the journal ---------------------------------------------------------------------------------------


async def test_an_event_is_stored_once(storage: Storage) -> None:
    first = await storage.append([record(1), record(2), record(1)])
    assert (first.last_offset, first.duplicates) == (2, [2])
    again = await storage.append([record(2, body=b"another"), record(3)])
    assert (again.last_offset, again.duplicates) == (3, [0])
    page = await storage.read("journal", 0)
    assert [(entry.offset, entry.body) for entry in page.entries] == [(1, b"body"), (2, b"body"), (3, b"body")]
    assert page.last_offset == 3


async def test_an_event_is_stored_once_whoever_sends_it(storage: Storage) -> None:
    batches = [[record(i) for i in range(first, first + 10)] for first in range(0, 50, 5)]
    answers = await asyncio.gather(*(storage.append(batch) for batch in batches))
    assert sum(len(one.duplicates) for one in answers) == 100 - 55
    page = await storage.read("journal", 0)
    assert [entry.offset for entry in page.entries] == list(range(1, 56))


async def test_nothing_may_be_appended_and_read(storage: Storage) -> None:
    assert (await storage.append([])).last_offset == 0
    page = await storage.read("journal", 0)
    assert (page.entries, page.last_offset) == ([], 0)


async def test_the_first_event_of_a_selection_opens_it(storage: Storage) -> None:
    await storage.append([record(1, "s"), record(2, "s"), record(3), record(4)])
    await storage.append([record(5, "s"), record(6, "other")])
    page = await storage.read("journal", 0)
    assert [entry.opens for entry in page.entries] == [True, False, True, True, False, True]


async def test_a_log_is_read_in_pages(storage: Storage) -> None:
    await storage.append([record(i, body=b"%d" % i) for i in range(25)])
    found: list[bytes] = []
    after = 0
    while entries := (await storage.read("journal", after, limit=10)).entries:
        assert len(entries) <= 10
        found += [entry.body for entry in entries]
        after = entries[-1].offset
    assert found == [b"%d" % i for i in range(25)]
    beyond = await storage.read("journal", 1000)
    assert (beyond.entries, beyond.last_offset) == ([], 25)


# --- the state -----------------------------------------------------------------------------------------


async def test_a_commit_changes_all_its_keys_at_one_revision(storage: Storage) -> None:
    one = await storage.commit({"a": b"1", "b": b"", "ключ/ü": b"k"})
    assert await storage.get(["a", "b", "ключ/ü", "absent"]) == {
        "a": State(one, b"1"),
        "b": State(one, b""),
        "ключ/ü": State(one, b"k"),
    }
    two = await storage.commit({"a": b"2"}, deletes=["b", "absent"])
    assert two > one
    assert await storage.get(["a", "b"]) == {"a": State(two, b"2")}


async def test_a_commit_that_expects_another_revision_changes_nothing(storage: Storage) -> None:
    revision = await storage.commit({"a": b"1"}, expect={"a": 0}, system=[b"one"])
    with pytest.raises(Conflict) as caught:
        await storage.commit({"a": b"2", "b": b"2"}, deletes=["a"], expect={"a": 0, "b": 0, "c": 7}, system=[b"two"])
    assert caught.value.problems == (
        Problem("a", f"is at revision {revision}", "revision 0"),
        Problem("c", "is at revision 0", "revision 7"),
    )
    assert await storage.get(["a", "b"]) == {"a": State(revision, b"1")}
    assert [entry.body for entry in (await storage.read("system", 0)).entries] == [b"one"]
    assert (await storage.inspect()).revision == revision
    assert await storage.commit({"a": b"3"}, expect={"a": revision, "c": 0}) > revision


async def test_a_system_event_alone_is_a_commit(storage: Storage) -> None:
    await storage.commit(system=[b"one", b"two"])
    await storage.commit(system=[b"three"])
    page = await storage.read("system", 1)
    assert [(entry.offset, entry.opens, entry.body) for entry in page.entries] == [
        (2, True, b"two"),
        (3, True, b"three"),
    ]


async def test_keys_are_scanned_in_order_and_pages(storage: Storage) -> None:
    revision = await storage.commit({f"task/{i:02}": b"%d" % i for i in range(7)} | {"tasl": b"", "tas": b""})
    first = await storage.scan("task/", limit=4)
    assert (list(first.states), first.more) == ([f"task/{i:02}" for i in range(4)], True)
    rest = await storage.scan("task/", after="task/03", limit=4)
    assert (list(rest.states), rest.more) == (["task/04", "task/05", "task/06"], False)
    assert rest.revision == revision
    assert rest.states["task/05"] == State(revision, b"5")
    assert (await storage.scan("nothing/")).states == {}
    assert list((await storage.scan("task/", limit=7)).states) == [f"task/{i:02}" for i in range(7)]


async def test_a_scan_ends_after_so_many_bytes(storage: Storage) -> None:
    await storage.commit({f"big/{i}": bytes(SCAN_BYTES // 3) for i in range(8)})
    found: list[str] = []
    after, more = "", True
    while more:
        page = await storage.scan("big/", after)
        assert 1 <= len(page.states) <= 4
        found += page.states
        after, more = found[-1], page.more
    assert found == [f"big/{i}" for i in range(8)]


async def test_a_report_tells_offsets(storage: Storage) -> None:
    before = await storage.inspect()
    assert (before.journal_offset, before.system_offset, before.revision, before.full) == (0, 0, 0, "")
    await storage.append([record(1), record(2)])
    revision = await storage.commit({"a": b"1"}, system=[b"one"])
    after = await storage.inspect()
    assert (after.journal_offset, after.system_offset, after.revision) == (2, 1, revision)
    assert after.used_bytes >= before.used_bytes


# --- mirrors -------------------------------------------------------------------------------------------


@asynccontextmanager
async def mirrored(storage: Storage, bus: Subscribable) -> AsyncIterator[tuple[Mirror, list[tuple[str, bytes | None]]]]:
    """
    A running mirror of tasks, joined, and the changes it tells of.
    """
    told: list[tuple[str, bytes | None]] = []
    mirror = Mirror(bus, storage, "task/", lambda key, state: told.append((key, state.body if state else None)))
    following = asyncio.create_task(mirror.run())
    await asyncio.wait_for(mirror.joined(), 10)
    yield mirror, told
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_mirror_has_what_was_there_and_what_comes(pair: Pair) -> None:
    storage, bus = pair
    await storage.commit({"task/a": b"1", "task/b": b"1", "policy/a": b"1"})
    async with mirrored(storage, bus) as (mirror, told):
        assert told == [("task/a", b"1"), ("task/b", b"1")]
        revision = await storage.commit({"task/c": b"2", "task/a": b"2"}, deletes=["task/b", "task/absent"])
        await until(lambda: len(told) == 5, f"three changes, not {told}")
        assert sorted(told[2:], key=str) == [("task/a", b"2"), ("task/b", None), ("task/c", b"2")]
        assert mirror.states == {"task/a": State(revision, b"2"), "task/c": State(revision, b"2")}
        for i in range(100):
            await storage.commit({"task/a": b"%d" % i})
        await until(lambda: mirror.states["task/a"].body == b"99", "the last change")
        changes = [int(body) for key, body in told[5:] if key == "task/a" and body is not None]
        assert changes == sorted(changes)


async def test_a_mirror_finds_out_what_happened_while_storage_was_away(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with served(serve_storage, "storage", StorageSettings(), tmp_path) as frame:
            bus = await stack.enter_async_context(Bus(frame.bus_dir, "client"))
            storage = RemoteStorage(bus.client("storage"))
            await storage.commit({"task/a": b"1", "task/b": b"1"})
            mirror, _ = await stack.enter_async_context(mirrored(storage, bus))
        async with elsewhere(tmp_path) as there:  # of which the mirror hears nothing
            await there.commit({"task/c": b"2"}, deletes=["task/a"])
        assert set(mirror.states) == {"task/a", "task/b"}
        async with served(serve_storage, "storage", StorageSettings(), tmp_path):
            await until(lambda: set(mirror.states) == {"task/b", "task/c"}, "the mirror's reading again")


@asynccontextmanager
async def elsewhere(folder: Path) -> AsyncIterator[Storage]:
    """
    The store of a folder, served on another bus.
    """
    settings = StorageSettings(lmdb_path=str(folder / "lmdb"))
    async with (
        served(serve_storage, "storage", settings, folder / "elsewhere") as frame,
        Bus(frame.bus_dir, "client") as bus,
    ):
        yield RemoteStorage(bus.client("storage"))


# --- the collector -------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "service"])
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Collector, Storage]]:
    if request.param == "memory":
        memory = MemoryStorage()
        yield MemoryCollector(memory, SECRET), memory
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listeners = {"otlp_http": listener}
        async with (
            service_of_storage(tmp_path) as (storage, _),
            served(serve_collector, "collector", CollectorSettings(), tmp_path, listeners=listeners) as frame,
            Bus(frame.bus_dir, "api") as bus,
        ):
            yield RemoteCollector(bus.client("collector")), storage


def packed(*events: Event) -> list[bytes]:
    return [msgspec.msgpack.encode(event) for event in events]


def event(i: int, **more: Any) -> Event:
    return Event(id=f"e{i}", time=datetime(2026, 6, 1, tzinfo=UTC), **more)


def selection(secret: bytes = SECRET) -> str:
    ticket = Ticket(task="support", variant="fast", propensity=0.5, policy_version=1, at=0)
    return seal(secret, ticket, b"nonce!")


async def stored(storage: Storage) -> Sequence[Event]:
    page = await storage.read("journal", 0)
    return [msgspec.msgpack.decode(entry.body, type=Event) for entry in page.entries]


async def test_submitted_events_are_stored_once(door: tuple[Collector, Storage]) -> None:
    collector, storage = door
    events = packed(event(1, task="t", quality=0.5), event(2, task="t"), event(1, task="t"))
    assert (await collector.submit("rest", events)).duplicates == [2]
    assert (await collector.submit("rest", events)).duplicates == [0, 1, 2]
    assert [(one.id, one.quality) for one in await stored(storage)] == [("e1", 0.5), ("e2", None)]
    assert (await collector.submit("rest", [])).duplicates == []


async def test_a_selection_names_task_and_variant(door: tuple[Collector, Storage]) -> None:
    collector, storage = door
    await collector.submit("rest", packed(event(1, selection_id=selection(), quality=1.0)))
    (found,) = await stored(storage)
    assert (found.task, found.variant, found.quality) == ("support", "fast", 1.0)


async def test_a_forged_selection_is_named_and_nothing_is_stored(door: tuple[Collector, Storage]) -> None:
    collector, storage = door
    events = [event(1, task="t"), event(2, selection_id=selection(b"f" * 32)), event(3, selection_id="nonsense")]
    with pytest.raises(Invalid) as caught:
        await collector.submit("rest", packed(*events))
    assert [problem.field for problem in caught.value.problems] == ["[1].selection_id", "[2].selection_id"]
    assert await stored(storage) == []


async def test_what_is_no_event_is_invalid(door: tuple[Collector, Storage]) -> None:
    collector, storage = door
    with pytest.raises(Invalid, match="an event of Submit is none"):
        await collector.submit("rest", [*packed(event(1, task="t")), b"\xc1"])
    assert await stored(storage) == []
