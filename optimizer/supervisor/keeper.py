"""
What a ward is given and asked for: the vocabulary between one slot and the parent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from optimizer.catalog import Service
from optimizer.messages import Message
from optimizer.supervisor.lifecycle import Event, State

if TYPE_CHECKING:
    from optimizer.supervisor.ward import Ward

COMMANDED: Final = "commanded"  # why a process ended, or began: somebody said so


@dataclass(frozen=True, kw_only=True)
class Ending:
    """
    How a process ended. `reason`: configuration, temporary, startup, crash, hang, oom, dependency or commanded.
    """

    reason: str
    exit_code: int | None = None
    signal: str | None = None
    why: str = ""

    def __str__(self) -> str:
        code = None if self.exit_code is None else f"exit code {self.exit_code}"
        return f"{self.reason}: " + ", ".join(part for part in (self.why, self.signal or code) if part)


@dataclass(frozen=True, slots=True)
class Transition:
    """
    One step of a slot's life; `at` is UTC.
    """

    at: datetime
    was: State
    now: State
    event: Event
    reason: str


class Timers(Protocol):
    """
    What is needed of an event loop.
    """

    def time(self) -> float:
        """
        Monotonic seconds.
        """

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """
        Call after so many seconds.
        """


class Keeper(Protocol):
    """
    What a ward asks of, and tells, the parent. None of it waits or raises.
    """

    @property
    def stopping(self) -> bool:
        """
        The daemon is on its way to its end.
        """

    def on_change(self, ward: Ward) -> None:
        """
        Its state changed.
        """

    def on_news(self, ward: Ward) -> None:
        """
        Its problems or metadata changed.
        """

    def on_message(self, ward: Ward, message: Message) -> None:
        """
        Its process said something else than how it is.
        """

    def on_ended(self, slot: str) -> None:
        """
        A process has ended, whatever the reason.
        """

    def lost_needs(self, service: Service) -> list[str]:
        """
        What a service needs and does not serve now.
        """

    def ran_out_of_memory(self) -> bool:
        """
        Whether the kernel has killed a process of ours for memory since the last call.
        """


class Herald(Protocol):
    """
    Tells the world what befell a ward. None of it waits or raises.
    """

    def failed(self, ward: Ward, ending: Ending, pid: int, next_retry_s: float | None) -> None:
        """
        A process of it ended unexpectedly.
        """

    def opened(self, ward: Ward, next_retry_s: float) -> None:
        """
        Its circuit is open.
        """

    def recovered(self, ward: Ward) -> None:
        """
        It is ready for the first time after a failure.
        """
