"""
The door: events come in from every ingress, tickets are opened, calls are priced, and batches become durable.

What arrives while batches are on their way to storage goes with the next one, so many small requests share a commit, and a large
one is cut. The count of events in hand is bounded: beyond it everybody is told to slow down, and nothing is dropped. Whoever
waits longer than `DEADLINE_S` is told so; the events may become durable all the same, and are known by their ids when they come
again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextvars import Context, copy_context
from typing import Any, Final

import msgspec

from optimizer.bus.storage import Storage
from optimizer.decision.ticket import unseal
from optimizer.errors import Invalid, OptimizerError, Problem, Rejected, Transient
from optimizer.messages import Record
from optimizer.model import Event
from optimizer.service import Frame
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics
from workers.collector.pricing import catalogue, needs_price, priced
from workers.collector.settings import Settings

DEADLINE_S: Final = 5.0  # from arrival to the answer; senders give a request ten seconds
_TOGETHER: Final = 4  # batches on their way to storage at once
_PROBE_S: Final = 0.5  # between questions to a storage that was away
_pack = msgspec.msgpack.Encoder().encode


class _Parcel:
    """
    Some events of one request, to be stored together; the answer is the positions of duplicates among them.
    """

    __slots__ = ("context", "done", "records")

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.context = copy_context()  # whoever sends the batch, it belongs to the trace of its first request
        self.done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()


class Door:
    """
    Where events become durable.

    Args:
        deadline_s: longest time that `store` takes.
    """

    def __init__(
        self, frame: Frame[Settings], storage: Storage, metrics: Metrics, deadline_s: float = DEADLINE_S
    ) -> None:
        self._frame = frame
        self._storage = storage
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._in_hand = 0
        self._waiting: deque[_Parcel] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = 0
        self._probing = False
        self._roomless = False  # on a nearly full disk some batches succeed: storage says when there is room again
        self._told: dict[str, int] = {}
        for name in ("events_received", "events_rejected", "unpriced"):
            self._tell(name, 0)

    async def take(self, source: str, events: Sequence[Event]) -> list[int]:
        """
        Make events durable; returns the positions of those that were there already.

        Raises:
            Invalid: selection ids are not ours, at `[i].selection_id`, or there are more than may ever be in hand; nothing
                is stored. Others as `store`.
        """
        most = self._frame.settings.buffer_size
        if len(events) > most:
            raise Invalid(f"there are {len(events)} events, more than {most} (collector.buffer_size)")
        self.room(len(events))
        finished, problems = [], []
        for i, event in enumerate(events):
            try:
                finished.append(self.attributed(event))
            except Invalid as error:
                problems += [Problem(f"[{i}].{p.field}", p.reason, p.expected) for p in error.problems]
        if problems:
            self.refuse(source, "invalid", len(events))
            raise Invalid(problems)
        return await self.store(source, finished)

    def attributed(self, event: Event) -> Event:
        """
        The event with the task and the variant that its selection names.

        Raises:
            Invalid: the selection id is not ours.
        """
        if not event.selection_id:
            return event
        ticket = unseal(self._frame.secret, event.selection_id)
        return msgspec.structs.replace(event, task=ticket.task, variant=ticket.variant)

    def room(self, count: int) -> None:
        """
        Raises Rejected when `count` more events would be too many in hand.
        """
        if self._in_hand + count > self._frame.settings.buffer_size:
            raise Rejected(f"{self._in_hand} events wait for storage already, no room for {count} more")

    async def store(self, source: str, events: Sequence[Event]) -> list[int]:
        """
        Price attributed events and make them durable; returns the positions of those that were there already.

        Raises:
            Rejected: no room, here or in storage. Transient: storage did not answer in time.
        """
        if not events:
            return []
        self.room(len(events))
        self._in_hand += len(events)
        parcels: list[_Parcel] = []
        try:
            async with asyncio.timeout(self._deadline_s):
                parcels = self._parcels(await self._priced(events))
                self._waiting += parcels
                self._send()
                answers = [await parcel.done for parcel in parcels]
        except TimeoutError:
            sentence = f"storage did not take the events within {self._deadline_s:g} s"
            self._degrade(sentence)
            raise Transient(sentence) from None
        finally:
            for parcel in parcels:
                parcel.done.cancel()
                if parcel.done.done() and not parcel.done.cancelled():
                    parcel.done.exception()  # seen: the first one was raised
            self._in_hand -= len(events)
        self._metrics.events_received_total.labels(source).inc(len(events))
        self._tell("events_received", len(events))
        size = self._frame.settings.batch_size
        return [size * i + position for i, positions in enumerate(answers) for position in positions]

    def refuse(self, source: str, reason: str, count: int = 1) -> None:
        """
        Count events that were refused.
        """
        self._metrics.events_rejected_total.labels(source, reason).inc(count)
        self._tell("events_rejected", count)

    def ignore(self, count: int) -> None:
        """
        Count spans that are no calls of a model.
        """
        self._tell("spans_ignored", count)

    async def close(self) -> None:
        """
        Wait until what is in hand is durable or refused.
        """
        while self._sending:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _parcels(self, events: Sequence[Event]) -> list[_Parcel]:
        size = self._frame.settings.batch_size
        records = [Record(event.id, event.selection_id, _pack(event)) for event in events]
        return [_Parcel(records[i : i + size]) for i in range(0, len(records), size)]

    async def _priced(self, events: Sequence[Event]) -> list[Event]:
        found = []
        unpriced = 0
        for event in events:
            if needs_price(event):
                if not catalogue().loaded:
                    await asyncio.to_thread(catalogue().load)
                event = priced(event)
                unpriced += event.cost_usd is None
            found.append(event)
        if unpriced:
            self._tell("unpriced", unpriced)
        return found

    def _tell(self, name: str, more: int) -> None:
        self._told[name] = self._told.get(name, 0) + more
        self._frame.health.metadata[name] = str(self._told[name])

    def _send(self) -> None:
        while self._sending < _TOGETHER and (batch := self._next()):
            self._sending += 1
            self._start(self._append(batch), batch[0].context)

    def _next(self) -> list[_Parcel]:
        batch: list[_Parcel] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].records) <= self._frame.settings.batch_size):
            parcel = self._waiting.popleft()
            if not parcel.done.done():  # whose sender waits no more is not sent
                batch.append(parcel)
                size += len(parcel.records)
        return batch

    def _start(self, work: Any, context: Context | None = None) -> None:
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _append(self, batch: list[_Parcel]) -> None:
        try:
            appended = await self._storage.append([record for parcel in batch for record in parcel.records])
        except Exception as error:  # noqa: BLE001 - the top of this work: those who wait are told, whatever it is
            self._failed(batch, error)
            return
        finally:
            self._sending -= 1
            self._send()
        if not self._roomless:
            self._clear()
        start = 0
        for parcel in batch:
            end = start + len(parcel.records)
            if not parcel.done.done():
                parcel.done.set_result([i - start for i in appended.duplicates if start <= i < end])
            start = end

    def _failed(self, batch: list[_Parcel], error: Exception) -> None:
        if isinstance(error, Transient):
            self._roomless = self._roomless or isinstance(error, Rejected)
            away = "has no room" if isinstance(error, Rejected) else "is away"
            self._degrade(f"storage {away}: {error}")
        else:
            log.opt(exception=error).error("batch.failed", error=repr(error))
        for parcel in batch:
            if not parcel.done.done():
                parcel.done.set_exception(error)

    def _degrade(self, sentence: str) -> None:
        if "storage" not in self._frame.health.problems:
            log.warning("storage.lost", reason=sentence)
        self._frame.health.degrade("storage", sentence)
        if not self._probing:
            self._probing = True
            self._start(self._probe())

    def _clear(self) -> None:
        if "storage" in self._frame.health.problems:
            log.info("storage.found")
        self._roomless = False
        self._frame.health.clear("storage")

    async def _probe(self) -> None:
        # nobody may send anything for a while, and the problem is to end all the same
        try:
            while "storage" in self._frame.health.problems:
                await asyncio.sleep(_PROBE_S)
                try:
                    if not (await self._storage.inspect()).full:
                        self._clear()
                except OptimizerError as error:
                    log.debug("storage.still_lost", error=str(error))
        finally:
            self._probing = False
