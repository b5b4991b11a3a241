"""
The HTTP interface as a service.
"""

from __future__ import annotations

import asyncio
from typing import Final

from optimizer.bus.link import Bus
from optimizer.errors import Invalid, Transient
from optimizer.operations.house import House
from optimizer.operations.tasks import declare_tasks
from optimizer.service import Frame
from optimizer.telemetry import tracing
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import open_metrics
from workers.rest_api.pages import Pages
from workers.rest_api.server import Api, ApiServer
from workers.rest_api.settings import Settings

_WATCH_S: Final = 1.0
_MARGIN_S: Final = 0.5  # of the stop budget, left for closing the bus


async def serve(frame: Frame[Settings]) -> None:
    """
    Answer HTTP until told to stop.
    """
    frame.assert_owner()
    metrics = open_metrics(frame.metrics_dir, frame.slot)
    keep_content = bool(frame.config.section("collector").keep_content)
    async with (
        tracing.running(frame.config, frame.slot, metrics),
        Bus(frame.bus_dir, frame.name) as bus,
        House.open(bus, frame.secret, clock=frame.clock, fleet=lambda: frame.fleet, keep_content=keep_content) as house,
    ):
        api = Api(house, frame.settings, metrics, Pages(frame).routes())
        server = ApiServer(api, metrics.active_connections.labels(frame.name).set)
        if not await frame.unless_stopped(house.book.joined()):
            return
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_watch(frame, house))
            await server.listen(frame.listeners["http"])
            frame.ready()
            await frame.stopping.wait()
            await server.stop(frame.stop_budget_s - _MARGIN_S)
            watching.cancel()


async def _watch(frame: Frame[Settings], house: House) -> None:
    """
    Declare the tasks of the configuration, then say who cannot be reached; selections go on from memory meanwhile.
    """
    declared = not frame.config.tasks
    while True:
        try:
            if not declared:
                declared = await _declare(frame, house)
            await house.storage.inspect()
        except Transient as error:
            frame.health.degrade("storage", f"selections are answered from memory, nothing else: {error}")
        else:
            frame.health.clear("storage")
        view = frame.fleet.services.get("collector") if frame.fleet else None
        if view is not None and view.state not in ("Running", "Degraded"):
            frame.health.degrade("collector", f"feedback waits: the collector is {view.state}")
        else:
            frame.health.clear("collector")
        await asyncio.sleep(_WATCH_S)


async def _declare(frame: Frame[Settings], house: House) -> bool:
    try:
        await declare_tasks(house, frame.config.tasks)
    except Invalid as error:
        log.error("rest_api.tasks_refused", problems=str(error))
        frame.health.degrade("tasks", f"[[tasks]] of the configuration are wrong: {error}")
    return True
