"""
The real service on a real port, with a Fleet of the test's making.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from optimizer.config.loader import load
from optimizer.config.observability_settings import Settings
from optimizer.messages import Fleet, ServiceView, SlotView
from optimizer.service import Frame
from workers.metrics.service import serve


@dataclass
class Running:
    """
    A running service: `url` of it, and a client.
    """

    frame: Frame[Settings]
    url: str
    port: int
    session: aiohttp.ClientSession
    ending: asyncio.Task[None]
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def get(
        self, path: str = "/metrics", method: str = "GET", accept: str = ""
    ) -> tuple[int, str, Mapping[str, str]]:
        headers = {"Accept": accept} if accept else {}
        async with self.session.request(method, self.url + path, headers=headers) as answer:
            return answer.status, await answer.text(), answer.headers

    async def connect(self, receives: int = 1 << 16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """
        A connection by hand, with a receive buffer of so many bytes; it is closed when the test ends.
        """
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=receives)
        self.writers.append(writer)
        return reader, writer


def fleet(**services: ServiceView) -> Fleet:
    """
    What the parent would tell.
    """
    return Fleet(status="healthy", started_at=0.0, services=services, reloads={"applied": 2, "rejected": 1})


def view(name: str, pid: int | None, **more: object) -> ServiceView:
    """
    One service with one slot.
    """
    state = "Running" if pid else "Backoff"
    slots = {f"{name}-0": SlotView(state=state, pid=pid, incarnation=1)}
    return ServiceView(**{"state": state, "healthy": bool(pid), "pid": pid, "slots": slots, **more})  # type: ignore[arg-type] # fields of a view


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16
    )  # or the kernel would take megabytes for slow readers
    port: int = listener.getsockname()[1]
    frame: Frame[Settings] = Frame(
        name="metrics",
        slot="metrics-0",
        config=load(env={}),
        settings=Settings(),
        runtime_dir=tmp_path,
        secret=b"s" * 32,
        listeners={"http": listener},
        stop_budget_s=2.0,
    )
    ready = asyncio.Event()
    frame.ready = ready.set
    ending = asyncio.create_task(serve(frame))
    await asyncio.wait_for(ready.wait(), 5)
    async with aiohttp.ClientSession() as session:
        one = Running(frame, f"http://127.0.0.1:{port}", port, session, ending)
        yield one
    for writer in one.writers:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    frame.stopping.set()
    await asyncio.wait_for(ending, 5)
