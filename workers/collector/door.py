"""
The door: events come in from every ingress, tickets are opened, calls are priced, and batches become durable.

What arrives while a batch is on its way to storage goes with the next one, so many small requests share a commit. The count of
events in hand is bounded: beyond it everybody is told to slow down, and nothing is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from optimizer.bus.storage import Storage
from optimizer.decision.ticket import unseal
from optimizer.errors import Invalid, Problem, Rejected, Transient
from optimizer.messages import Record
from optimizer.model import Event
from optimizer.service import Frame
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics
from workers.collector.pricing import priced
from workers.collector.settings import Settings

_TOGETHER: Final = 4  # batches on their way to storage at once
_pack = msgspec.msgpack.Encoder().encode


class Door:
    """
    Where events become durable. `close()` waits for what is in hand.
    """

    def __init__(self, frame: Frame[Settings], storage: Storage, metrics: Metrics) -> None:
        self._frame = frame
        self._storage = storage
        self._metrics = metrics
        self._in_hand = 0
        self._waiting: list[tuple[list[Record], asyncio.Future[list[int]]]] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._unpriced = self._received = self._rejected = 0

    async def take(self, source: str, events: Sequence[Event]) -> list[int]:
        """
        Make events durable; returns the positions of those that were there already.

        Raises:
            Invalid: a selection id is not ours; nothing is stored. Rejected: no room. Transient: storage is away.
        """
        self.room(len(events))
        finished = self._finished(events)
        records = [Record(event.id, event.selection_id, _pack(event)) for event in finished]
        self._metrics.events_received_total.labels(source).inc(len(records))
        self._received += len(records)
        self._frame.health.metadata["events_received"] = str(self._received)
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._in_hand += len(records)
        self._waiting.append((records, future))
        self._send()
        try:
            return await future
        finally:
            self._in_hand -= len(records)

    def room(self, count: int) -> None:
        """
        Raises Rejected when `count` more events would be too many in hand.
        """
        if self._in_hand + count > self._frame.settings.buffer_size and self._in_hand:
            raise Rejected(
                f"{self._in_hand} events wait for storage already (collector.buffer_size)", retry_after_s=1.0
            )

    def refuse(self, source: str, reason: str, count: int = 1) -> None:
        """
        Count events that were refused.
        """
        self._rejected += count
        self._metrics.events_rejected_total.labels(source, reason).inc(count)
        self._frame.health.metadata["events_rejected"] = str(self._rejected)

    def _finished(self, events: Sequence[Event]) -> list[Event]:
        finished, problems = [], []
        for i, event in enumerate(events):
            if event.selection_id:
                try:
                    event = self.attributed(event)
                except Invalid as error:
                    problems += [Problem(f"[{i}].{p.field}", p.reason, p.expected) for p in error.problems]
                    continue
            finished.append(self._priced(event))
        if problems:
            raise Invalid(problems)
        return finished

    def attributed(self, event: Event) -> Event:
        """
        The event with the task and the variant that its selection names.

        Raises:
            Invalid: the selection id is not ours.
        """
        ticket = unseal(self._frame.secret, event.selection_id)
        return msgspec.structs.replace(event, task=ticket.task, variant=ticket.variant)

    def _priced(self, event: Event) -> Event:
        found = priced(event)
        if found is None:
            self._unpriced += 1
            self._frame.health.metadata["unpriced"] = str(self._unpriced)
            return event
        return found

    def _send(self) -> None:
        while self._waiting and len(self._sending) < _TOGETHER:
            batch: list[tuple[list[Record], asyncio.Future[list[int]]]] = []
            size = 0
            while self._waiting and (not batch or size + len(self._waiting[0][0]) <= self._frame.settings.batch_size):
                batch.append(self._waiting.pop(0))
                size += len(batch[-1][0])
            task = asyncio.get_running_loop().create_task(self._append(batch))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._send()

    async def _append(self, batch: list[tuple[list[Record], asyncio.Future[list[int]]]]) -> None:
        try:
            appended = await self._storage.append([record for records, _ in batch for record in records])
        except Transient as error:
            sentence = f"storage has no room: {error}" if isinstance(error, Rejected) else f"storage is away: {error}"
            self._frame.health.degrade("storage", sentence)
            log.warning("batch.refused", events=sum(len(records) for records, _ in batch), error=str(error))
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        self._frame.health.clear("storage")
        start = 0
        for records, future in batch:
            inside = [i - start for i in appended.duplicates if start <= i < start + len(records)]
            start += len(records)
            if not future.done():
                future.set_result(inside)

    async def close(self) -> None:
        """
        Wait until what is in hand is durable or refused.
        """
        while self._sending:
            await asyncio.wait(self._sending)
