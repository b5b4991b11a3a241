"""
The real service on a real bus, called over a real channel, with storage and the collector answered from memory.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from rest_api.conftest import SECRET, Desk, fleet, until

from optimizer.bus.link import Bus
from optimizer.config.loader import load
from optimizer.model import Task, Variant
from optimizer.pb.v1 import health_pb2_grpc, selection_pb2_grpc
from optimizer.service import Frame
from workers.grpc_api.service import serve
from workers.grpc_api.settings import Settings


@dataclass
class Grpc:
    """
    A running service and a client of it.
    """

    frame: Frame[Settings]
    desk: Desk
    channel: grpc.aio.Channel
    ending: asyncio.Task[None]

    def __post_init__(self) -> None:
        self.selection: Any = selection_pb2_grpc.SelectionServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthServiceStub(self.channel)

    async def create(self, name: str = "t", **more: Any) -> None:
        """
        Declare a task with the variants a and b; it is served when this returns.
        """
        variants = tuple(Variant(name=v, provider="openai", model=f"m-{v}", parameters={"top_k": 4}) for v in "ab")
        task = Task(task=name, variants=variants, **more)
        await self.desk.memory.commit({f"task/{name}": msgspec.msgpack.encode(task)})

        async def served() -> bool:
            try:
                await self.selection.Select(selection_request(name))
            except grpc.aio.AioRpcError:
                return False
            return True

        async with asyncio.timeout(5):
            while not await served():
                await asyncio.sleep(0.01)


def selection_request(name: str, **more: Any) -> Any:
    """
    A request for a selection of a task.
    """
    from optimizer.pb.v1.selection_pb2 import SelectRequest

    return SelectRequest(task=name, **more)


def reserved_port() -> socket.socket:
    """
    A port as the parent holds it: bound, not listening.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    return held


@asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[Grpc]:
    """
    The service, ready.
    """
    runtime = folder / "run"
    frame = Frame[Settings](
        name="grpc_api",
        slot="grpc_api-0",
        config=load(env={}, overrides={"service.data_dir": str(folder), "service.runtime_dir": str(runtime)}),
        settings=Settings(**options),
        runtime_dir=runtime,
        secret=SECRET,
        listeners={"grpc": reserved_port()},
        stop_budget_s=5.0,
        fleet=fleet(storage="Running", grpc_api="Running"),
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
        port = frame.listeners["grpc"].getsockname()[1]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Grpc(frame, desk, channel, ending)
        frame.stopping.set()
        await asyncio.wait_for(ending, 10)
    frame.listeners["grpc"].close()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Grpc]:
    async with running(tmp_path) as one:
        yield one


__all__ = ["Grpc", "running", "selection_request", "until"]
