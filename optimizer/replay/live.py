"""
Replay through a running daemon: real selections, real feedback, by the operations that REST offers.

Each run has a task of its own, forgotten at the end; its events stay in the journal. Outcomes are sent in batches; the next
requests wait until the daemon has learned from them, so that a replay is not decided by how fast it is pushed through.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Final

import msgspec

from optimizer.errors import Transient
from optimizer.operations.feedback import FeedbackRequest
from optimizer.operations.house import House
from optimizer.operations.registry import OPERATIONS
from optimizer.operations.selection import Selection, SelectRequest
from optimizer.operations.tasks import NamedTask, WriteTask
from optimizer.replay.course import Course, outcome_event
from optimizer.replay.offline import MAX_DRAWS
from optimizer.replay.table import Request

_LEARNED_S: Final = 60.0  # a restart of the processor fits in many times
_POLL_S: Final = 0.02


async def replay(house: House, course: Course, seed: int, tick: Callable[[], None] = lambda: None) -> list[str]:
    """
    The variants that the daemon chose for the requests in `course.order(seed)`.

    Args:
        tick: called after each request.

    Raises:
        Transient: the daemon did not answer, or did not learn, in time.
    """
    name = f"replay-{course.table.name[:100]}-{os.getpid()}-{seed}"
    document = msgspec.to_builtins(course.task(name))
    await OPERATIONS["tasks.create"].run(house, WriteTask(document=document))
    try:
        return await _run(house, course, seed, name, tick)
    finally:
        await OPERATIONS["tasks.delete"].run(house, NamedTask(task=name))


async def _run(house: House, course: Course, seed: int, name: str, tick: Callable[[], None]) -> list[str]:
    rows = course.rows
    chosen: list[str] = []
    waiting: list[Any] = []
    told = 0
    await _learned(house, name, 0)  # a task is declared before its traffic begins
    for i, row in enumerate(course.order(seed)):
        request = rows[row]
        selection, variant = await _select(house, name, course, request)
        chosen.append(variant)
        drawn = selection.selection_id if variant == selection.variant else ""
        event = outcome_event(f"{name}-{i}", house.clock.at(), name, variant, drawn, request.outcomes[variant])
        waiting.append(msgspec.to_builtins(event))
        if len(waiting) >= max(1, course.delay):
            await OPERATIONS["feedback"].run(house, FeedbackRequest(events=waiting, source="replay"))
            told += len(waiting)
            waiting = []
            await _learned(house, name, told)
        tick()
    if waiting:
        await OPERATIONS["feedback"].run(house, FeedbackRequest(events=waiting, source="replay"))
        await _learned(house, name, told + len(waiting))  # an outcome after the task's end would make it observed
    return chosen


async def _select(house: House, name: str, course: Course, request: Request) -> tuple[Selection, str]:
    asked = SelectRequest(task=name, context=course.context(request))
    for _ in range(MAX_DRAWS):
        selection: Selection = await OPERATIONS["select"].run(house, asked)
        if selection.variant in request.outcomes:
            return selection, selection.variant
    return selection, house.rng.choice(list(request.outcomes))


async def _learned(house: House, name: str, events: int) -> None:
    until = house.clock.monotonic() + _LEARNED_S
    while True:
        stats = await OPERATIONS["tasks.stats"].run(house, NamedTask(task=name))
        offer = house.book.offers.get(name)
        served = offer.policy.snapshot.policy_version if offer else 0
        if stats.events >= events and served >= max(1, stats.policy_version):
            return
        if house.clock.monotonic() > until:
            raise Transient(f"the daemon learned {stats.events} of {events} events within {_LEARNED_S:g} s")
        await asyncio.sleep(_POLL_S)
