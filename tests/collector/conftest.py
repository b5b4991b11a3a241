"""
The real service on a real bus and a real port, with storage answered from memory.
"""

from __future__ import annotations

import asyncio
import io
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from optimizer.bus.collector import RemoteCollector
from optimizer.bus.link import Bus
from optimizer.bus.memory import MemoryStorage
from optimizer.config.loader import load
from optimizer.errors import Rejected
from optimizer.messages import Append, Inspect, Message
from optimizer.model import Event
from optimizer.service import Frame
from workers.collector.service import serve
from workers.collector.settings import Settings

SECRET = b"s" * 32
PROTOBUF = "application/x-protobuf"
JSON = "application/json"
CALL: dict[str, Any] = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o-mini"}
_event = msgspec.msgpack.Decoder(Event)


class Shelf:
    """
    Storage in memory; `full` refuses more than `fits` records at once, `held` lets requests wait.
    """

    def __init__(self) -> None:
        self.memory = MemoryStorage()
        self.full = ""
        self.fits = 0
        self.held: asyncio.Event | None = None
        self.appends = 0

    async def answer(self, message: Message) -> Message:
        if isinstance(message, Inspect):
            return msgspec.structs.replace(await self.memory.inspect(), full=self.full)
        assert isinstance(message, Append), message
        self.appends += 1
        if self.held is not None:
            await self.held.wait()
        if self.full and len(message.records()) > self.fits:
            raise Rejected(self.full, 9.0)
        return await self.memory.append(message.records())

    @property
    def events(self) -> list[Event]:
        return [_event.decode(entry.body) for entry in self.memory.logs["journal"]]


@dataclass
class Running:
    """
    A running collector, and senders of it.
    """

    frame: Frame[Settings]
    shelf: Shelf
    url: str
    session: aiohttp.ClientSession
    collector: RemoteCollector
    storage_bus: Bus | None

    async def post(
        self, body: bytes, kind: str = PROTOBUF, path: str = "/v1/traces", method: str = "POST", **headers: str
    ) -> tuple[int, bytes, Any]:
        given = {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
        async with self.session.request(method, self.url + path, data=io.BytesIO(body), headers=given) as answer:
            return answer.status, await answer.read(), answer.headers


def request(*spans: dict[str, Any], service: str = "shop", **attributes: Any) -> bytes:
    """
    A binary request; each span is a dict of its attributes, plus `_name`, `_trace`, `_span`, `_start`, `_end`, `_status`.
    """
    message = ExportTraceServiceRequest()
    holder = message.resource_spans.add()
    _set(holder.resource.attributes.add(), "service.name", service)
    scope = holder.scope_spans.add()
    for i, given in enumerate(spans):
        given = {**attributes, **given}
        span = scope.spans.add()
        end = given.pop("_end", time.time_ns())
        span.trace_id = given.pop("_trace", bytes([1]) * 16)
        span.span_id = given.pop("_span", (i + 1).to_bytes(8, "big"))
        span.name = given.pop("_name", "chat gpt-4o-mini")
        span.end_time_unix_nano = end
        span.start_time_unix_nano = given.pop("_start", max(0, end - 250_000_000))
        span.status.code = given.pop("_status", 0)
        for key, value in given.items():
            _set(span.attributes.add(), key, value)
    packed: bytes = message.SerializeToString()
    return packed


def _set(pair: Any, key: str, value: Any) -> None:
    pair.key = key
    _fill(pair.value, value)


def _fill(into: Any, value: Any) -> None:
    if isinstance(value, list):
        into.array_value.SetInParent()
        for one in value:
            _fill(into.array_value.values.add(), one)
    elif isinstance(value, dict):
        into.kvlist_value.SetInParent()
        for key, one in value.items():
            _set(into.kvlist_value.values.add(), key, one)
    elif value is not None:
        names: dict[type, str] = {bool: "bool", int: "int", float: "double", str: "string", bytes: "bytes"}
        setattr(into, names[type(value)] + "_value", value)


async def until(condition: Any, what: str, deadline_s: float = 10.0) -> None:
    """
    Wait for a condition.
    """
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(folder: Path, *, storage: bool = True, **options: Any) -> AsyncIterator[Running]:
    """
    The service, ready; with `storage=False` nobody answers for storage.
    """
    runtime = folder / "run"
    config = load(env={}, overrides={"service.data_dir": str(folder), "service.runtime_dir": str(runtime)})
    listener = socket.create_server(("127.0.0.1", 0))
    frame = Frame[Settings](
        name="collector",
        slot="collector-0",
        config=config,
        settings=Settings(**options),
        runtime_dir=runtime,
        secret=SECRET,
        listeners={"otlp_http": listener},
        stop_budget_s=5.0,
    )
    ready = asyncio.Event()
    frame.ready = ready.set
    shelf = Shelf()
    async with Bus(frame.bus_dir, "storage") as one, Bus(frame.bus_dir, "rest_api") as two:
        if storage:
            one.serve(shelf.answer)
        ending = asyncio.create_task(serve(frame))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((ending, waiting), timeout=10, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            ending.result()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            yield Running(frame, shelf, url, session, RemoteCollector(two.client("collector")), one)
        frame.stopping.set()
        await asyncio.wait_for(ending, 10)


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as one:
        yield one
