"""
The service on a real bus.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from integrations.conftest import SECRET, Receiver, event, until

from optimizer.bus.link import Bus
from optimizer.bus.memory import MemoryStorage
from optimizer.config.fields import Secret
from optimizer.config.loader import load
from optimizer.messages import Commit, Committed, Get, Grown, Inspect, Message, Read, States
from optimizer.service import Frame
from workers.integrations.service import serve
from workers.integrations.settings import Settings, Webhook


def frame_of(folder: Path, *webhooks: Webhook) -> Frame[Settings]:
    """
    A frame as the parent makes it.
    """
    runtime = folder / "run"
    return Frame[Settings](
        name="integrations",
        slot="integrations-0",
        config=load(env={}, overrides={"service.data_dir": str(folder), "service.runtime_dir": str(runtime)}),
        settings=Settings(webhooks=webhooks),
        runtime_dir=runtime,
        secret=b"s" * 32,
        stop_budget_s=5.0,
    )


async def running(frame: Frame[Settings]) -> asyncio.Task[None]:
    """
    The service, ready.
    """
    ready = asyncio.Event()
    frame.ready = ready.set
    ending = asyncio.create_task(serve(frame))
    await asyncio.wait_for(ready.wait(), 10)
    return ending


async def test_without_receivers_it_is_idle_and_well(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, Webhook(name="off", url="http://x.example", enabled=False))
    ending = await running(frame)
    assert frame.health.problems == {}
    frame.stopping.set()
    await asyncio.wait_for(ending, 5)


def test_an_idle_service_loads_no_http_client() -> None:
    told = "import sys, workers.integrations.service; print('aiohttp' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


async def test_it_delivers_what_storage_announces(tmp_path: Path, receiver: Receiver) -> None:
    memory = MemoryStorage()

    async def storage(message: Message) -> Message:
        match message:
            case Read():
                return await memory.read(message.log, message.after, message.limit)
            case Commit():
                return Committed(revision=await memory.commit(message.puts, message.deletes, message.expect))
            case Get():
                return States(states=await memory.get(message.keys), revision=memory.revision)
            case Inspect():
                return await memory.inspect()
        raise AssertionError(message)

    right: dict[str, Any] = {"url": receiver.url, "secret": Secret(SECRET), "allow_private": True}
    frame = frame_of(tmp_path, Webhook(name="one", **right), Webhook(name="one", **right), Webhook(name="two", url="x"))
    async with Bus(frame.bus_dir, "storage") as bus:
        bus.serve(storage)
        bus.bind_publisher()

        def relay(topic: str, message: Message) -> None:
            assert isinstance(message, Grown)
            bus.publish(topic, topic, message)

        memory.subscribe("", ["log/system"], relay, lambda: None)
        ending = await running(frame)
        assert set(frame.health.problems) == {"webhook/one", "webhook/two"}
        await until(lambda: "consumer/webhook/one" in memory.states)
        one = event()
        await memory.commit(system=[msgspec.msgpack.encode(one)])
        await until(lambda: receiver.heard)
        assert receiver.ids == [one.id]
        frame.stopping.set()
        await asyncio.wait_for(ending, 5)
