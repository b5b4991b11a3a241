"""
The collector: OTLP/HTTP on the inherited listener, checked events of the APIs over the bus, one door for both.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from aiohttp import web

from optimizer.bus.link import Bus
from optimizer.bus.storage import RemoteStorage
from optimizer.errors import Invalid
from optimizer.messages import Message, Submit, Submitted
from optimizer.model import Event
from optimizer.service import Frame
from optimizer.telemetry.metrics import open_metrics
from workers.collector.door import Door
from workers.collector.http import Ingress
from workers.collector.settings import Settings

_STORAGE_S: Final = 5.0  # longest wait for storage; senders give a request ten seconds
_events = msgspec.msgpack.Decoder(Event)


async def serve(frame: Frame[Settings]) -> None:
    """
    Take events in until stopped; what was accepted is durable or refused before returning.
    """
    frame.assert_owner()
    metrics = open_metrics(frame.metrics_dir, frame.slot)
    async with Bus(frame.bus_dir, frame.name) as bus:
        door = Door(frame, RemoteStorage(bus.client("storage"), _STORAGE_S), metrics)

        async def answer(message: Message) -> Message:
            if not isinstance(message, Submit):
                raise Invalid(f"{type(message).__name__} is no request for the collector")
            return Submitted(duplicates=await door.take(message.source, [_events.decode(e) for e in message.events]))

        bus.serve(answer)
        # shutdown_timeout: how long a request in hand may still take
        ingress = Ingress(frame, door, metrics)
        runner = web.AppRunner(ingress.application, access_log=None, shutdown_timeout=5.0, auto_decompress=False)
        await runner.setup()
        await web.SockSite(runner, frame.listeners["otlp_http"]).start()
        frame.ready()
        await frame.stopping.wait()
        await asyncio.wait_for(runner.cleanup(), frame.stop_budget_s)
        await door.close()
