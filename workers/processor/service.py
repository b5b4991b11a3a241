"""
The processor: follows the journal from its checkpoint, learns, and commits state, statistics, policies and checkpoint at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Final

from optimizer.bus.link import Bus
from optimizer.bus.mirror import Mirror, Subscribable
from optimizer.bus.storage import RemoteStorage, Storage
from optimizer.errors import Conflict, Rejected, Transient
from optimizer.messages import Message
from optimizer.service import Frame
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import open_metrics
from workers.processor.settings import Settings
from workers.processor.study import Study

_POLL_S: Final = 1.0  # when no announcement of the journal came
_FIRST_RETRY_S: Final = 0.1
_LONGEST_RETRY_S: Final = 5.0  # each retry reads everything that is committed
_PATIENCE_S: Final = 5.0  # with a storage that does not let the processor begin, before that is said


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
        if "storage" not in frame.health.problems:
            await asyncio.wait({learning}, timeout=frame.stop_budget_s / 2)
        learning.cancel()  # what is not committed will be learned again
        mirror.cancel()


async def _learn(frame: Frame[Settings], study: Study, tasks: Mirror, wake: asyncio.Event) -> None:
    await _unless_stopped(frame, _joined(frame, tasks))
    failures, begun = 0, False
    while not frame.stopping.is_set():
        try:
            behind = await study.advance(tasks.states) if begun else await study.load(tasks.states)
        except (Conflict, Transient) as error:
            study.doubt()
            _tell(frame, error)
            pause_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2 ** min(failures, 10))
            failures += 1
            await _unless_stopped(frame, asyncio.sleep(pause_s))
            continue
        failures = 0
        frame.health.clear("storage")
        if not begun:
            begun = True
            frame.ready()
        elif not behind:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), _POLL_S)
            wake.clear()
            # events gather, so that one commit carries many
            await _unless_stopped(frame, asyncio.sleep(frame.settings.publish_interval))


async def _joined(frame: Frame[Settings], tasks: Mirror) -> None:
    """
    Return once all tasks are known; a storage that is away for long makes the processor degraded, not dead.
    """
    try:
        await asyncio.wait_for(tasks.joined(), _PATIENCE_S)
    except TimeoutError:
        frame.health.degrade("storage", "storage does not answer: nothing is learned until it does")
        frame.ready()  # the APIs need not wait: they say themselves what they know
        await tasks.joined()


def _tell(frame: Frame[Settings], error: Conflict | Transient) -> None:
    if isinstance(error, Conflict):
        log.info("processor.reloads", reason=str(error))
        return
    sentence = f"storage has no room: {error}" if isinstance(error, Rejected) else f"storage does not answer: {error}"
    if "storage" not in frame.health.problems:
        log.warning("storage.lost", reason=sentence)
    frame.health.degrade("storage", sentence)


async def _unless_stopped(frame: Frame[Settings], waiting: Awaitable[None]) -> None:
    """
    Wait for something, or for the stop.
    """
    work = asyncio.ensure_future(waiting)
    stop = asyncio.ensure_future(frame.stopping.wait())
    try:
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        work.cancel()
        stop.cancel()
