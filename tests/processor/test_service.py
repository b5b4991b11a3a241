"""
The service as it runs: over a real bus, beside the real storage service and its lake.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import numpy as np
import pytest
from processor.conftest import SECRET, declared, event, selection

from optimizer.bus.link import Bus
from optimizer.bus.mirror import Mirror
from optimizer.bus.storage import RemoteStorage
from optimizer.config.loader import load
from optimizer.decision.policy import Snapshot
from optimizer.decision.sketch import ALPHA
from optimizer.messages import Record, State
from optimizer.model import Event, TaskStats
from optimizer.service import Frame
from workers.processor.service import run
from workers.processor.service import serve as serve_processor
from workers.storage.service import serve as serve_storage

T = TypeVar("T")


def frame_of(name: str, folder: Path) -> Frame[Any]:
    """
    What the parent would give to a service.
    """
    pace = {"processor.publish_interval": "10ms"}
    config = load(env={}, overrides={"service.data_dir": str(folder), "service.runtime_dir": str(folder), **pace})
    return Frame(
        name=name,
        slot=f"{name}-0",
        config=config,
        settings=config.section(name),
        runtime_dir=folder,
        secret=SECRET,
        stop_budget_s=10.0,
    )


@dataclass
class Served:
    """
    A service that runs in this process.
    """

    frame: Frame[Any]
    ready: asyncio.Event
    ending: asyncio.Task[None]

    async def stop(self) -> None:
        self.frame.stopping.set()
        await asyncio.wait_for(self.ending, 10)


def served(serve: Callable[[Frame[Any]], Awaitable[None]], name: str, folder: Path) -> Served:
    frame, ready = frame_of(name, folder), asyncio.Event()
    frame.ready = ready.set
    return Served(frame, ready, asyncio.ensure_future(serve(frame)))


async def until(condition: Callable[[], Awaitable[object]], deadline_s: float = 10.0) -> None:
    """
    Return when the condition holds.
    """
    async with asyncio.timeout(deadline_s):
        while not await condition():
            await asyncio.sleep(0.01)


@dataclass
class World:
    """
    Storage that runs, and what is asked of it. `versions` and `shares`: of the published policies of each task.
    """

    folder: Path
    storage: RemoteStorage
    service: Served
    versions: dict[str, list[int]] = field(default_factory=dict)

    def on_policy(self, key: str, state: State | None) -> None:
        if state is not None:
            version = msgspec.msgpack.decode(state.body, type=Snapshot).policy_version
            self.versions.setdefault(key.partition("/")[2], []).append(version)

    async def append(self, events: Sequence[Event]) -> None:
        await self.storage.append([Record(e.id, e.selection_id, msgspec.msgpack.encode(e)) for e in events])

    async def stats(self, name: str) -> TaskStats | None:
        found = (await self.storage.get([f"stats/{name}"])).get(f"stats/{name}")
        return msgspec.msgpack.decode(found.body, type=TaskStats) if found else None

    async def has_learned(self, name: str, events: int) -> bool:
        found = await self.stats(name)
        return found is not None and found.events == events


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    service = served(serve_storage, "storage", folder)
    await asyncio.wait_for(service.ready.wait(), 10)
    async with Bus(folder / "bus", "test") as bus:
        one = World(folder, RemoteStorage(bus.client("storage"), 5.0), service)
        mirror = asyncio.create_task(Mirror(bus, one.storage, "policy/", one.on_policy).run())
        yield one
        mirror.cancel()
        await one.service.stop()


async def test_it_learns_from_a_real_storage_and_commits_the_rest_when_it_stops(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    latency, quality = rng.lognormal(5, 1, 300).tolist(), rng.random(300).tolist()
    async with world(tmp_path) as one:
        await one.storage.commit({"task/t": msgspec.msgpack.encode(declared("t"))})
        processor = served(serve_processor, "processor", tmp_path)
        await asyncio.wait_for(processor.ready.wait(), 10)
        events = [
            event(f"e{i}", selection_id=selection("t", "a", i), quality=quality[i], latency_ms=latency[i])
            for i in range(300)
        ]
        await one.append(events[:100])
        await until(lambda: one.has_learned("t", 100))
        await until(lambda: asyncio.sleep(0, len(one.versions.get("t", [])) >= 2))
        await one.append(events[100:])
        await processor.stop()
        found = await one.stats("t")
        if found is None or found.events < 300:  # it was between two looks at the journal: what is durable is not lost
            processor = served(serve_processor, "processor", tmp_path)
            await until(lambda: one.has_learned("t", 300))
            await processor.stop()
            found = await one.stats("t")
        assert found is not None
        a = found.variants["a"]
        assert (a.count, a.feedback_count) == (300, 300)
        assert a.mean_quality == pytest.approx(np.mean(quality))
        assert a.p95_latency_ms == pytest.approx(np.quantile(latency, 0.95, method="lower"), rel=ALPHA * 1.0001)
        assert one.versions["t"] == sorted(set(one.versions["t"]))


async def impatient(frame: Frame[Any]) -> None:
    """
    The service, with shorter deadlines.
    """
    async with Bus(frame.bus_dir, frame.name) as bus:
        await run(frame, bus, RemoteStorage(bus.client("storage"), 0.2))


async def test_a_storage_that_goes_away_makes_it_degraded_until_it_is_back(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        processor = served(impatient, "processor", tmp_path)
        await asyncio.wait_for(processor.ready.wait(), 10)
        health = processor.frame.health
        await one.append([event(f"e{i}", "seen", model="m") for i in range(10)])
        await until(lambda: one.has_learned("seen", 10))
        await one.service.stop()
        await until(lambda: asyncio.sleep(0, "storage" in health.problems), 30)
        one.service = served(serve_storage, "storage", tmp_path)
        await until(lambda: asyncio.sleep(0, not health.problems), 30)
        await one.append([event(f"f{i}", "seen", model="m") for i in range(10)])
        await until(lambda: one.has_learned("seen", 20))
        await processor.stop()


async def test_without_storage_it_says_so_and_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.processor.service._PATIENCE_S", 0.05)
    processor = served(serve_processor, "processor", tmp_path)
    await asyncio.wait_for(processor.ready.wait(), 5)  # degraded, not dead
    assert "storage" in processor.frame.health.problems
    async with asyncio.timeout(2):
        await processor.stop()


NURSERY = """
    import asyncio, os, sys
    from pathlib import Path
    from processor.test_service import frame_of
    from workers.processor.service import serve

    for line in sys.stdin:
        child = os.fork()
        if not child:
            frame = frame_of("processor", Path(sys.argv[1]))
            frame.ready = lambda: os.write(1, b"ready\\n")
            asyncio.run(serve(frame))
            os._exit(0)
        os.write(1, b"%d\\n" % child)
        os.waitpid(child, 0)
        os.write(1, b"gone\\n")
"""


class Nursery:
    """
    Forks processors in a process of its own, as the parent does; each is killed by the test.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin: IO[bytes] = process.stdin
        self._stdout: IO[bytes] = process.stdout
        self.pid = 0

    async def born(self) -> None:
        self._stdin.write(b"\n")
        self._stdin.flush()
        self.pid = int(await self.line())

    async def line(self) -> bytes:
        return (await asyncio.wait_for(asyncio.to_thread(self._stdout.readline), 20)).strip()


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(NURSERY), tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=Path(__file__).parents[2],
    )
    with process:
        one = Nursery(process)
        yield one
        os.kill(one.pid, signal.SIGKILL)


async def test_killed_at_any_instant_it_neither_loses_nor_counts_twice(tmp_path: Path, nursery: Nursery) -> None:
    rng = random.Random(8)
    kills, batch = 25, 40
    async with world(tmp_path) as one:
        await one.storage.commit({"task/t": msgspec.msgpack.encode(declared("t", "contextual"))})
        qualities: list[float] = []
        for life in range(kills):
            await nursery.born()
            assert await nursery.line() == b"ready"
            for _ in range(3):
                drawn = [rng.random() for _ in range(batch)]
                first = len(qualities)
                qualities += drawn
                events = [
                    event(f"e{first + i}", selection_id=selection("t", "a", first + i, {"x": q}), quality=q, cost_usd=q)
                    for i, q in enumerate(drawn)
                ]
                await one.append([*events, events[0]])
            await asyncio.sleep(rng.random() * 0.06)  # to some instant of a pass: nothing is waited for
            if life < kills - 1:
                os.kill(nursery.pid, signal.SIGKILL)
                assert await nursery.line() == b"gone"
        await until(lambda: one.has_learned("t", len(qualities)), 30)
        found = await one.stats("t")
        assert found is not None
        a = found.variants["a"]
        assert (a.count, a.feedback_count) == (len(qualities), len(qualities))
        assert a.mean_quality == pytest.approx(sum(qualities) / len(qualities))
        assert a.mean_cost_usd == pytest.approx(sum(qualities) / len(qualities))
        assert one.versions["t"] == sorted(set(one.versions["t"]))
