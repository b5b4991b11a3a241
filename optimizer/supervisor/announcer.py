"""
System events of the parent: kept until storage has them, told again until it says so.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Literal

from optimizer.messages import SystemEvents
from optimizer.model import SystemEvent, new_id
from optimizer.telemetry.logs import log

_KEPT: Final = 1000
_SENT_TOGETHER: Final = 50

Severity = Literal["info", "warning", "critical"]


class Announcer:
    """
    Args:
        environment: of the daemon, part of every event. `on_news`: called when there is something to send.
    """

    def __init__(self, environment: str, on_news: Callable[[], None]) -> None:
        self._environment = environment
        self._on_news = on_news
        self._events: deque[SystemEvent] = deque(maxlen=_KEPT)
        self._first_number = 1

    def announce(self, kind: str, severity: Severity, subject: str, summary: str, data: dict[str, Any]) -> None:
        """
        Add an event; the oldest is lost, and that logged, when storage has been away for too many.
        """
        if len(self._events) == _KEPT:
            self._first_number += 1
            log.error("system_events.lost", reason="storage has not taken the oldest", event_id=self._events[0].id)
        self._events.append(
            SystemEvent(
                id=new_id("evt_"),
                type=kind,
                time=datetime.now(UTC),
                host=socket.gethostname(),
                environment=self._environment,
                severity=severity,
                subject=subject,
                summary=summary,
                data=data,
            )
        )
        self._on_news()

    def unsent(self) -> SystemEvents | None:
        """
        What storage is to be told next.
        """
        if not self._events:
            return None
        return SystemEvents(first_number=self._first_number, events=list(self._events)[:_SENT_TOGETHER])

    def on_stored(self, number: int) -> None:
        """
        Storage has all events up to this number.
        """
        while self._events and self._first_number <= number:
            self._events.popleft()
            self._first_number += 1
        if self._events:
            self._on_news()
