"""
One receiver's way through the system log: read on from its cursor, send what it wants, store the cursor.

An event is sent until it is taken, too old, or unwanted for ever, and only then the next one: receivers get events in
the order of the log. The cursor moves after the answer, so a crash in between sends an event again, with the same
`webhook-id`: at least once. Nothing is kept here that a restart could lose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from optimizer.bus.storage import Storage
from optimizer.clock import Clock
from optimizer.errors import Transient
from optimizer.messages import Entry, Page
from optimizer.model import SystemEvent
from optimizer.service import Health
from optimizer.telemetry import tracing
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics
from workers.integrations.cursor import Cursor
from workers.integrations.sender import Send
from workers.integrations.settings import Webhook
from workers.integrations.webhook import Outcome, Reply, body_of, check_url, headers_of, judge, key_of, wants

T = TypeVar("T")

PAGE: Final = 100  # events read at once; a receiver takes them one by one anyway
SKIPS_PER_COMMIT: Final = 500  # unwanted events passed over before the cursor is stored for their sake
POLL_S: Final = 5.0  # look at the log this often even if nobody says that it grew
FAILURES_TO_DEGRADE: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """
    What every delivery works with.

    Args:
        pause_s: seconds to wait after the nth failure in a row, n >= 1.
        storage_pause_s: seconds to wait before storage is asked again.
    """

    storage: Storage
    clock: Clock
    health: Health
    metrics: Metrics
    pause_s: Callable[[int], float]
    storage_pause_s: float = 1.0


class _Ended(Exception):
    """
    Told to stop, or the receiver wants nothing ever again.
    """


class Delivery:
    """
    Delivers the system log to one receiver.

    Args:
        send: how a request gets to it.

    Raises:
        Invalid: its secret or its address is none.
    """

    def __init__(self, webhook: Webhook, house: House, send: Send) -> None:
        self._webhook = webhook
        self._house = house
        self._send = send
        check_url(webhook.url)
        self._key = key_of(webhook.secret.reveal())
        self._label = f"webhook/{webhook.name}"
        self._cursor = Cursor(house.storage, webhook.name)
        self._seen = 0  # offset of the newest entry that was looked at
        self._failures = 0  # in a row
        self._grown = asyncio.Event()
        self._stopping = asyncio.Event()

    def wake(self) -> None:
        """
        The log may have grown.
        """
        self._grown.set()

    def stop(self) -> None:
        """
        Finish the attempt in hand, store its outcome, and end.
        """
        self._stopping.set()
        self._grown.set()

    async def run(self) -> None:
        """
        Deliver until told to stop, or until the receiver answers that it is gone.
        """
        with suppress(_Ended):
            await self._patiently(self._cursor.open)
            self._seen = self._cursor.offset
            while True:
                await self._turn()

    async def _turn(self) -> None:
        self._grown.clear()
        page = await self._patiently(self._read)
        self._note_lag(page.last_offset)
        for entry in page.entries:
            if self._stopping.is_set():
                raise _Ended
            await self._take(entry)
            self._note_lag(page.last_offset)
        if not page.entries:
            await self._wait(self._grown, POLL_S)
            if self._stopping.is_set():
                raise _Ended

    async def _read(self) -> Page:
        return await self._house.storage.read("system", after=self._seen, limit=PAGE)

    async def _take(self, entry: Entry) -> None:
        event = self._decoded(entry)
        wanted = event is not None and wants(self._webhook.kinds, event.type)
        if event is not None and wanted:
            await self._deliver(event)
        if wanted or entry.offset - self._cursor.offset >= SKIPS_PER_COMMIT:
            await self._patiently(lambda: self._cursor.move(entry.offset))
        self._seen = entry.offset

    async def _deliver(self, event: SystemEvent) -> None:
        body = body_of(event)
        while True:
            if self._failures and self._age_s(event) >= self._webhook.max_age:
                return self._give_up(event, "it became too old while the receiver failed")
            headers = headers_of(self._key, event.id, self._house.clock.at(), body)
            with tracing.span("webhook.deliver", "client", webhook=self._webhook.name, event_id=event.id) as span:
                reply = await self._send(self._webhook.url, headers, body, self._webhook.timeout)
                if reply.status is not None:
                    span.note(http__response__status_code=reply.status)
                if not reply.good:
                    span.fail("no_answer" if reply.status is None else str(reply.status))
            outcome = judge(reply, self._age_s(event), self._webhook.max_age)
            if outcome is Outcome.DELIVERED:
                return self._delivered(event)
            self._failures += 1
            if outcome is Outcome.GIVEN_UP:
                return self._give_up(event, reply.reason)
            if outcome is Outcome.GONE:
                self._gone(event)
            self._failed(event, reply)
            await self._wait(self._stopping, max(self._house.pause_s(self._failures), reply.retry_after_s))
            if self._stopping.is_set():
                raise _Ended

    def _delivered(self, event: SystemEvent) -> None:
        self._failures = 0
        self._count(Outcome.DELIVERED)
        metadata = self._house.health.metadata
        metadata["delivered"] = str(int(metadata.get("delivered", "0")) + 1)
        self._house.health.clear(self._label)
        log.info("webhook.delivered", webhook=self._webhook.name, event_id=event.id, kind=event.type)

    def _failed(self, event: SystemEvent, reply: Reply) -> None:
        self._count(Outcome.RETRY)
        log.warning(
            "webhook.failed",
            webhook=self._webhook.name,
            event_id=event.id,
            kind=event.type,
            failures=self._failures,
            reason=reply.reason,
        )
        if self._failures >= FAILURES_TO_DEGRADE:
            self._house.health.degrade(self._label, f"webhook {self._webhook.name} takes no events: {reply.reason}")

    def _give_up(self, event: SystemEvent, reason: str) -> None:
        self._count(Outcome.GIVEN_UP)
        log.error("webhook.given_up", webhook=self._webhook.name, event_id=event.id, kind=event.type, reason=reason)

    def _gone(self, event: SystemEvent) -> None:
        self._count(Outcome.GONE)
        sentence = f"webhook {self._webhook.name} answered 410 Gone: nothing more is sent until the service restarts"
        self._house.health.degrade(self._label, sentence)
        log.error("webhook.gone", webhook=self._webhook.name, event_id=event.id, kind=event.type)
        raise _Ended

    def _decoded(self, entry: Entry) -> SystemEvent | None:
        try:
            return msgspec.msgpack.decode(entry.body, type=SystemEvent)
        except msgspec.DecodeError as error:
            log.error("webhook.unreadable", webhook=self._webhook.name, offset=entry.offset, reason=str(error))
            return None

    def _age_s(self, event: SystemEvent) -> float:
        return (self._house.clock.at() - event.time).total_seconds()

    def _count(self, outcome: Outcome) -> None:
        self._house.metrics.integration_deliveries_total.labels(integration=self._label, outcome=outcome.value).inc()

    def _note_lag(self, end: int) -> None:
        self._house.metrics.journal_lag_events.labels(consumer=self._label).set(max(0, end - self._seen))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """
        Ask storage until it answers; it is asked once even when told to stop, so that an outcome gets stored.
        """
        while True:
            try:
                result = await call()
            except Transient as error:
                self._house.health.degrade("storage", f"storage does not answer, deliveries wait: {error}")
                await self._wait(self._stopping, self._house.storage_pause_s)
                if self._stopping.is_set():
                    raise _Ended from error
            else:
                self._house.health.clear("storage")
                return result

    async def _wait(self, event: asyncio.Event, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()
