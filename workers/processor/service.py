"""
The processor: follows the journal from its checkpoint, learns, and commits state, statistics, policies and checkpoint at once.
"""

from __future__ import annotations

import asyncio
import contextlib

from optimizer.bus.link import Bus
from optimizer.bus.mirror import Mirror, Subscribable
from optimizer.bus.storage import RemoteStorage, Storage
from optimizer.errors import Conflict, Transient
from optimizer.messages import Message
from optimizer.service import Frame
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import open_metrics
from workers.processor.settings import Settings
from workers.processor.study import Study

_POLL_S = 1.0  # when no announcement of the journal came
_RETRY_S = 0.2


async def serve(frame: Frame[Settings]) -> None:
    """
    Learn until stopped; what was learned last is committed before returning.
    """
    frame.assert_owner()
    async with Bus(frame.bus_dir, frame.name) as bus:
        await run(frame, bus, RemoteStorage(bus.client("storage")))


async def run(frame: Frame[Settings], bus: Subscribable, storage: Storage) -> None:
    """
    `serve`, with the bus and storage given.
    """
    study = Study(frame, storage, open_metrics(frame.metrics_dir, frame.slot))
    wake = asyncio.Event()

    def woken(_topic: str, _message: Message) -> None:
        wake.set()

    def on_task(key: str, _state: object) -> None:
        study.touched.add(key.partition("/")[2])
        wake.set()

    bus.subscribe("storage", ["log/journal"], woken, wake.set)
    tasks = Mirror(bus, storage, "task/", on_task)
    async with asyncio.TaskGroup() as group:
        mirror = group.create_task(tasks.run())
        learning = group.create_task(_learn(frame, study, tasks, wake))
        await frame.stopping.wait()
        wake.set()
        await asyncio.wait({learning}, timeout=frame.stop_budget_s / 2)
        learning.cancel()  # it may wait for a storage that is away; what is not committed will be learned again
        mirror.cancel()


async def _learn(frame: Frame[Settings], study: Study, tasks: Mirror, wake: asyncio.Event) -> None:
    while not frame.stopping.is_set():
        try:
            await tasks.joined()
            await study.load(tasks.states)
            break
        except Transient as error:
            frame.health.degrade("storage", f"storage does not answer: {error}")
            await asyncio.sleep(_RETRY_S)
    frame.ready()
    while not frame.stopping.is_set():
        try:
            behind = await study.advance(tasks.states)
            frame.health.clear("storage")
        except Conflict:
            log.warning("processor.reloads", reason="its checkpoint or a task was written by somebody else")
            study.doubt()
            continue
        except Transient as error:
            frame.health.degrade("storage", f"storage does not answer: {error}")
            study.doubt()
            await asyncio.sleep(_RETRY_S)
            continue
        if not behind:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), _POLL_S)
            wake.clear()
            await _pause(frame, frame.settings.publish_interval)


async def _pause(frame: Frame[Settings], seconds: float) -> None:
    """
    Let events gather, so that one commit carries many; a stop ends it.
    """
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(frame.stopping.wait(), seconds)
