"""
The storage service: answers requests of the bus from the lake, publishes what changed after it is durable.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from optimizer.bus.link import Bus
from optimizer.errors import Invalid, OptimizerError, Permanent, Transient
from optimizer.messages import (
    Append,
    Appended,
    Changed,
    Commit,
    Committed,
    Get,
    Grown,
    Inspect,
    Log,
    Message,
    Read,
    Scan,
)
from optimizer.model import SystemEvent
from optimizer.service import Frame
from optimizer.telemetry import tracing
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics, open_metrics
from workers.storage.lake import Lake
from workers.storage.settings import Settings
from workers.storage.writer import Writer

PUBLISHED = ("task/", "policy/")  # keys that others follow; the rest is read by its owner only


async def serve(frame: Frame[Settings]) -> None:
    """
    Serve until stopped; everything acknowledged is durable.
    """
    frame.assert_owner()
    folder = Path(frame.settings.lmdb_path) if frame.settings.lmdb_path else frame.config.data_dir / "lmdb"
    lake = Lake(folder, frame.settings.max_size_bytes)
    metrics = open_metrics(frame.metrics_dir, frame.slot)
    async with tracing.running(frame.config, frame.slot, metrics), Bus(frame.bus_dir, frame.name) as bus:
        desk = Desk(frame, bus, lake, metrics)
        frame.probe = desk.probe
        frame.store_system_events = desk.announce
        bus.bind_publisher()
        bus.serve(desk.answer)
        frame.ready()
        desk.writer.failed.add_done_callback(lambda _: frame.stopping.set())
        await frame.stopping.wait()
        if desk.writer.failed.done():
            desk.writer.failed.result()
        await desk.writer.close()
    lake.close()


class Desk:
    """
    Where requests arrive.
    """

    def __init__(self, frame: Frame[Settings], bus: Bus, lake: Lake, metrics: Metrics) -> None:
        self._frame = frame
        self._bus = bus
        self._lake = lake
        self._metrics = metrics
        self._full = ""
        self._stored = 0
        self.writer = Writer(lake, self._on_full)

    async def probe(self) -> None:
        """
        Pass through the writer thread, without a write unless the disk was full.
        """
        await self.writer.probe()
        report = self._lake.inspect(self._full)
        self._frame.health.metadata.update(
            events_stored=str(self._stored),
            journal_offset=str(report.journal_offset),
            used_bytes=str(report.used_bytes),
            map_bytes=str(report.map_bytes),
        )

    async def answer(self, message: Message) -> Message:
        """
        One request of the bus.

        Raises:
            Conflict, Rejected: see `bus.storage.Storage`. Invalid: not a request for storage. Transient: the store is damaged
                and the service ends; it is no fault of who asks, so it must not end, too.
        """
        began, operation, status = time.perf_counter(), f"storage.{type(message).__name__.lower()}", "ok"
        try:
            return await self._do(message)
        except Permanent as error:
            status = "permanent"
            self.writer.fail(error)
            raise Transient(str(error)) from error
        except OptimizerError as error:
            status = type(error).__name__.lower()
            raise
        finally:
            self._metrics.requests_total.labels(operation, status).inc()
            self._metrics.request_duration_seconds.labels(operation, status).observe(time.perf_counter() - began)

    async def _do(self, message: Message) -> Message:
        match message:
            case Append():
                return await self._append(message)
            case Commit():
                return await self._commit(message)
            case Read():
                return self._lake.read(message.log, message.after, message.limit, message.max_bytes)
            case Get():
                return self._lake.get(message.keys)
            case Scan():
                return self._lake.scan(message.prefix, message.after, message.limit)
            case Inspect():
                return self._lake.inspect(self._full)
            case _:
                raise Invalid(f"{type(message).__name__} is no request for storage")

    async def _append(self, message: Append) -> Appended:
        records = message.records()
        with tracing.span("storage.append", "server", records=len(records)):
            appended: Appended = await self.writer.run(lambda txn: self._lake.append(txn, records))
        new = len(records) - len(appended.duplicates)
        self._stored += new
        self._metrics.events_stored_total.inc(new)
        self._metrics.events_duplicate_total.inc(len(appended.duplicates))
        if new:
            self._grown("journal", appended.last_offset)
        return appended

    async def _commit(self, message: Commit) -> Committed:
        with tracing.span("storage.commit", "server", puts=len(message.puts), deletes=len(message.deletes)):
            revision: int = await self.writer.run(lambda txn: self._lake.commit(txn, message))
        for key in (*message.puts, *message.deletes):
            if key.startswith(PUBLISHED):
                group = "state/" + key.partition("/")[0]
                changed = Changed(sequence=0, key=key, revision=revision, body=message.puts.get(key))
                self._bus.publish(group, f"state/{key}", changed)
        if message.system:
            self._grown("system", 0)
        return Committed(revision=revision)

    async def announce(self, events: Sequence[SystemEvent]) -> None:
        """
        Make the parent's system events durable; those that are there already are left alone.
        """
        bodies = [(event.id, msgspec.msgpack.encode(event)) for event in events]
        if await self.writer.run(lambda txn: self._lake.announce(txn, bodies)):
            self._grown("system", 0)

    def _grown(self, which: Log, last_offset: int) -> None:
        self._bus.publish(f"log/{which}", f"log/{which}", Grown(sequence=0, log=which, last_offset=last_offset))

    def _on_full(self, why: str) -> None:
        self._full = why
        if why:
            log.error("storage.full", reason=why)
            self._frame.health.degrade("disk", why)
        else:
            log.info("storage.writes_again")
            self._frame.health.clear("disk")
