"""
The real service on a real bus, with storage and the collector answered from memory.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from optimizer.bus.link import Bus
from optimizer.bus.memory import MemoryStorage
from optimizer.config.loader import load
from optimizer.errors import Rejected
from optimizer.messages import (
    Append,
    Appended,
    Changed,
    Commit,
    Committed,
    Fleet,
    Get,
    Grown,
    Inspect,
    Message,
    Read,
    Record,
    Scan,
    ServiceView,
    States,
    Submit,
    Submitted,
)
from optimizer.model import Event
from optimizer.service import Frame
from workers.rest_api.service import serve
from workers.rest_api.settings import Settings

SECRET = b"s" * 32
_event = msgspec.msgpack.Decoder(Event)


class Desk:
    """
    Storage and collector, in memory; `away` refuses what is asked.
    """

    def __init__(self, storage_bus: Bus, collector_bus: Bus) -> None:
        self.memory = MemoryStorage()
        self.away = False
        self.held: asyncio.Event | None = None
        self.waiting = 0
        self._bus = storage_bus
        storage_bus.serve(self.storage)
        storage_bus.bind_publisher()
        collector_bus.serve(self.collector)
        self.memory.subscribe("", ["state/task/", "state/policy/"], self._relay, lambda: None)

    def _relay(self, topic: str, message: Message) -> None:
        assert isinstance(message, Changed | Grown)
        self._bus.publish("/".join(topic.split("/")[:2]), topic, message)

    async def storage(self, message: Message) -> Message:
        if self.away:
            raise Rejected("storage is away", 2.0)
        match message:
            case Append():
                appended: Appended = await self.memory.append(message.records())
                return appended
            case Read():
                return await self.memory.read(message.log, message.after, message.limit)
            case Commit():
                done = await self.memory.commit(message.puts, message.deletes, message.expect, message.system)
                return Committed(revision=done)
            case Get():
                return States(states=await self.memory.get(message.keys), revision=self.memory.revision)
            case Scan():
                return await self.memory.scan(message.prefix, message.after, message.limit)
            case Inspect():
                return await self.memory.inspect()
        raise AssertionError(message)

    async def collector(self, message: Message) -> Message:
        assert isinstance(message, Submit)
        if self.held is not None:
            self.waiting += 1
            await self.held.wait()
        if self.away:
            raise Rejected("no room", 2.0)
        events = [_event.decode(body) for body in message.events]
        records = [Record(e.id, e.selection_id, body) for e, body in zip(events, message.events, strict=True)]
        return Submitted(duplicates=(await self.memory.append(records)).duplicates)

    @property
    def events(self) -> list[Event]:
        return [_event.decode(entry.body) for entry in self.memory.logs["journal"]]


@dataclass
class Rest:
    """
    A running service and a client of it.
    """

    frame: Frame[Settings]
    desk: Desk
    url: str
    session: aiohttp.ClientSession
    ending: asyncio.Task[None]
    statuses: list[int] = field(default_factory=list)

    async def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        data = None if body is None else io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        headers = {"Content-Type": "application/json", **(headers or {})} if data is not None else headers
        async with self.session.request(method, self.url + path, data=data, headers=headers) as answer:
            raw = await answer.read()
            if answer.status >= 400 and not path.startswith("/health"):
                assert answer.headers["Content-Type"] == "application/problem+json", raw
                document = json.loads(raw)
                assert set(document) == {"type", "title", "status", "detail", "instance", "errors"}
                assert document["status"] == answer.status
            return answer.status, json.loads(raw) if raw else None

    async def create(self, name: str = "t", variants: Sequence[str] = ("a", "b"), **more: Any) -> Any:
        status, answer = await self.call("POST", "/api/v1/tasks", task(name, variants, **more))
        assert status == 201, answer
        return answer


def task(name: str, variants: Sequence[str] = ("a", "b"), **more: Any) -> dict[str, Any]:
    """
    A task's document.
    """
    return {"task": name, "variants": [{"name": v, "provider": "openai", "model": f"m-{v}"} for v in variants], **more}


def fleet(**states: str) -> Fleet:
    """
    The parent's view.
    """
    services = {
        name: ServiceView(state=state, healthy=state == "Running", pid=1 if state == "Running" else None)
        for name, state in states.items()
    }
    healthy = all(view.healthy for view in services.values())
    return Fleet(status="healthy" if healthy else "degraded", started_at=0.0, services=services)


@asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[Rest]:
    """
    The service, ready.
    """
    tasks = options.pop("tasks", ())
    runtime = folder / "run"
    config = load(env={}, overrides={"service.data_dir": str(folder), "service.runtime_dir": str(runtime)})
    config = dataclasses.replace(config, tasks=tuple(tasks))
    listener = socket.create_server(("127.0.0.1", 0))
    frame = Frame[Settings](
        name="rest_api",
        slot="rest_api-0",
        config=config,
        settings=Settings(**options),
        runtime_dir=runtime,
        secret=SECRET,
        listeners={"http": listener},
        stop_budget_s=5.0,
        fleet=fleet(storage="Running", rest_api="Running"),
    )
    ready = asyncio.Event()
    frame.ready = ready.set
    async with Bus(frame.bus_dir, "storage") as one, Bus(frame.bus_dir, "collector") as two:
        desk = Desk(one, two)
        ending = asyncio.create_task(serve(frame))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((ending, waiting), timeout=10, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            ending.result()
        async with aiohttp.ClientSession() as session:
            yield Rest(frame, desk, f"http://127.0.0.1:{listener.getsockname()[1]}", session, ending)
        frame.stopping.set()
        await asyncio.wait_for(ending, 10)


async def until(condition: Callable[[], object], deadline_s: float = 5.0) -> None:
    """
    Return when the condition holds.
    """
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def rest(tmp_path: Path) -> AsyncIterator[Rest]:
    async with running(tmp_path) as one:
        yield one
