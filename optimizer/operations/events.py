"""
Look through the logs: what was observed (`journal`), what happened to the daemon (`system`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

import msgspec

from optimizer.messages import Entry, Log
from optimizer.model import Event, SystemEvent
from optimizer.operations.cursor import decode_cursor, encode_cursor
from optimizer.operations.house import House

_PAGE: Final = 1000  # entries asked of storage at once
_SCANNED: Final = 10_000  # entries looked at for one answer; a rare task's page is short and goes on with its cursor
_PAGE_BYTES: Final = 4 * 1024 * 1024  # of events in one answer, about; large ones make short pages
_DECODERS: Final[dict[Log, msgspec.msgpack.Decoder[Any]]] = {
    "journal": msgspec.msgpack.Decoder(Event),
    "system": msgspec.msgpack.Decoder(SystemEvent),
}


class ListEvents(msgspec.Struct, frozen=True, kw_only=True):
    """
    `cursor`: from the page before; `limit`: 1 to 1000; `task`: only its events (in `system`: its subject); `last`: begin
    so many entries before the end instead of at the beginning.
    """

    cursor: str = ""
    limit: int = 100
    task: str = ""
    log: Log = "journal"
    last: int = 0


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """
    Events, oldest first. `next_cursor` is null when the end was reached; `end_cursor` always leads to what comes after
    this page, then or later.
    """

    items: list[Any]
    next_cursor: str | None
    end_cursor: str


async def list_events(house: House, request: ListEvents) -> EventPage:
    """
    One page of a log.
    """
    after = decode_cursor(request.cursor, request.log, int, 0)
    if request.last and not request.cursor:
        report = await house.storage.inspect()
        end = report.journal_offset if request.log == "journal" else report.system_offset
        after = max(0, end - request.last)
    items: list[Any] = []
    scanned, size, more = 0, 0, True
    while more and len(items) < request.limit and scanned < _SCANNED and size < _PAGE_BYTES:
        wanted = _PAGE if request.task else request.limit - len(items)
        page = await house.storage.read(request.log, after, min(wanted, _PAGE))
        for entry in page.entries:
            after, scanned = entry.offset, scanned + 1
            item = decode_entry(request.log, entry)
            if not request.task or request.task == subject(item):
                items.append(item)
                size += len(entry.body)
                if len(items) == request.limit or size >= _PAGE_BYTES:
                    break
        more = bool(page.entries) and after < page.last_offset
    here = encode_cursor(request.log, after)
    return EventPage(items=items, next_cursor=here if more else None, end_cursor=here)


async def export_events(
    house: House, *, log: Log = "journal", task: str = "", since: datetime | None = None, after: int = 0
) -> AsyncIterator[Event | SystemEvent]:
    """
    Every entry of a log up to the end that it had at the beginning, oldest first.

    Args:
        since: only entries with a time at or after it.
    """
    report = await house.storage.inspect()
    end = report.journal_offset if log == "journal" else report.system_offset
    while after < end:
        page = await house.storage.read(log, after, _PAGE)
        if not page.entries:
            return
        for entry in page.entries:
            after = entry.offset
            if after > end:
                return
            item = decode_entry(log, entry)
            if (not task or task == subject(item)) and (since is None or item.time >= since):
                yield item


def decode_entry(log: Log, entry: Entry) -> Event | SystemEvent:
    """
    The event in an entry of a log.
    """
    found: Event | SystemEvent = _DECODERS[log].decode(entry.body)
    return found


def subject(item: Event | SystemEvent) -> str:
    """
    The task of an event; the subject of a system event.
    """
    return item.task if isinstance(item, Event) else item.subject
