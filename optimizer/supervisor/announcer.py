"""
System events of the parent: kept until storage has them, told again until it says so.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, Final, Literal

from optimizer.messages import SystemEvents
from optimizer.model import SystemEvent, new_id
from optimizer.supervisor.keeper import Ending
from optimizer.supervisor.ward import Ward
from optimizer.telemetry.logs import log

_KEPT: Final = 1000
_SENT_TOGETHER: Final = 50

Severity = Literal["info", "warning", "critical"]


class Announcer:
    """
    Also what wards tell (keeper.Herald).

    Args:
        environment: of the daemon, part of every event. `on_news`: called when there is something to send.
        critical: names of the services whose failure is critical.
    """

    def __init__(self, environment: str, on_news: Callable[[], None], critical: Callable[[], Collection[str]]) -> None:
        self._critical = critical
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

    def failed(self, ward: Ward, ending: Ending, pid: int, next_retry_s: float | None) -> None:
        """
        A process ended unexpectedly.
        """
        severity: Severity = "critical" if ward.service.name in self._critical() else "warning"
        summary = f"{ward.name} ended unexpectedly ({ending})"
        self._about(ward, "service.failed", severity, summary, ending.reason, pid, ending, next_retry_s)

    def opened(self, ward: Ward, next_retry_s: float) -> None:
        """
        A ward is tried only now and then from here on.
        """
        summary = f"{ward.name} has ended too often; it is tried again every {next_retry_s:g} s"
        self._about(ward, "service.circuit_opened", "critical", summary, "circuit", None, None, next_retry_s)

    def recovered(self, ward: Ward) -> None:
        """
        A ward serves again.
        """
        pid = ward.process.pid if ward.process is not None else None
        self._about(ward, "service.recovered", "info", f"{ward.name} is ready again", "ready", pid, None, None)

    def _about(
        self,
        ward: Ward,
        kind: str,
        severity: Severity,
        summary: str,
        reason: str,
        pid: int | None,
        ending: Ending | None,
        next_retry_s: float | None,
    ) -> None:
        data = {
            "service": ward.service.name,
            "pid": pid,
            "incarnation": ward.incarnation,
            "reason": reason,
            "exit_code": ending.exit_code if ending is not None else None,
            "signal": ending.signal if ending is not None else None,
            "restarts": ward.restarts.total(),
            "next_retry_secs": None if next_retry_s is None else float(next_retry_s),
        }
        self.announce(kind, severity, ward.service.name, summary, data)
