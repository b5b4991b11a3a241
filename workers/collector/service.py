"""
The collector: OTLP/HTTP on the inherited listener, checked events of the APIs over the bus, one door for both.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Final

import msgspec

from optimizer.bus.link import Bus
from optimizer.bus.storage import RemoteStorage
from optimizer.errors import Invalid
from optimizer.messages import Message, Submit, Submitted
from optimizer.model import Event
from optimizer.service import Frame
from optimizer.telemetry import tracing
from optimizer.telemetry.metrics import open_metrics
from workers.collector.door import DEADLINE_S, Door
from workers.collector.http import Ingress, route, unreadable
from workers.collector.server import IngressServer
from workers.collector.settings import Settings

_FLIGHT_S: Final = DEADLINE_S + 1.0  # longest time that a request in hand may take to end
_events = msgspec.msgpack.Decoder(Event)


async def serve(frame: Frame[Settings]) -> None:
    """
    Take events in until stopped; what was accepted is durable or refused before returning.
    """
    frame.assert_owner()
    gc.set_threshold(
        50_000, 20, 50
    )  # events have no cycles; the usual threshold spends a tenth of the time on looking for some
    metrics = open_metrics(frame.metrics_dir, frame.slot)
    async with tracing.running(frame.config, frame.slot, metrics), Bus(frame.bus_dir, frame.name) as bus:
        door = Door(frame, RemoteStorage(bus.client("storage"), DEADLINE_S), metrics)

        async def answer(message: Message) -> Message:
            if not isinstance(message, Submit):
                raise Invalid(f"{type(message).__name__} is no request for the collector")
            try:
                events = [_events.decode(event) for event in message.events]
            except msgspec.DecodeError as error:
                raise Invalid(f"an event of Submit is none: {error}") from None
            return Submitted(duplicates=await door.take(message.source, events))

        server = IngressServer(
            tracing.http(Ingress(frame, door, metrics).handle, route),
            frame.settings.max_body_bytes,
            metrics.active_connections.labels("collector").set,
            unreadable,
        )
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(bus.serve_in_turn(answer))
            await asyncio.sleep(0)  # without a predecessor it serves now
            await server.listen(frame.listeners["otlp_http"])
            frame.ready()
            await frame.stopping.wait()
            await server.stop(min(_FLIGHT_S, frame.stop_budget_s))
            serving.cancel()
        await door.close()
