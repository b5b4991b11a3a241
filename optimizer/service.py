"""
What a worker process is, seen from inside: one coroutine `serve(frame)` in its `service.py`.

    async def serve(frame: Frame[Settings]) -> None:
        async with Bus(frame.bus_dir, frame.name) as bus:
            ...open what is needed...
            frame.ready()
            await frame.stopping.wait()
            ...finish what is in flight, within frame.stop_budget_s...

Returning before `stopping` is set is a failure (the parent restarts it). Everything with a thread, a socket or
a file is made inside `serve`, after the fork. The parent fills the Frame (supervisor/child.py); tests fill it by
hand.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from optimizer.clock import Clock, SystemClock
from optimizer.config.tree import Config
from optimizer.messages import Fleet
from optimizer.model import SystemEvent

S = TypeVar("S")


class Health:
    """
    How a service says it is, read at every heartbeat.

    `metadata` values are strings (contract), e.g. {"events_processed": "1000"}. A problem is a cause (short
    key) with a sentence; a service with any problem is `Degraded`, never restarted for it.
    """

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.changed: Callable[[], None] = lambda: None

    def degrade(self, cause: str, sentence: str) -> None:
        """
        Report a problem that lasts until `clear(cause)`.
        """
        if self.problems.get(cause) != sentence:
            self.problems[cause] = sentence
            self.changed()

    def clear(self, cause: str) -> None:
        """
        The problem is over; nothing happens if there was none.
        """
        if self.problems.pop(cause, None) is not None:
            self.changed()


async def _at_once() -> None:
    """
    The probe of a service whose work loop is the event loop itself.
    """


async def _nowhere(_: Sequence[SystemEvent]) -> None:
    """
    System events of the parent reach storage only.
    """


@dataclass(kw_only=True)
class Frame(Generic[S]):
    """
    Everything a service gets from the parent.

    Args:
        name: service, as in the catalogue; `slot`: this instance of it, e.g. `rest_api-0`.
        config: the whole validated configuration; `settings`: the service's own section of it.
        listeners: by the catalogue's listener name; `inherit` ones listen already, a `reserve` one only
            holds the port.
        secret: 32 bytes that are the same in all processes and over restarts of the daemon; keys the
            selection tickets.
        stop_budget_s: seconds left for finishing, valid once `stopping` is set.
        fleet: the parent's newest view of all services; None until the first one arrived.
        probe: awaited before each heartbeat: make it pass through whatever does the service's work (a
            thread), so that a hung one stops the heartbeat.
        store_system_events: set by storage: makes the parent's system events durable.
    """

    name: str
    slot: str
    config: Config
    settings: S
    runtime_dir: Path
    secret: bytes
    listeners: Mapping[str, socket.socket] = field(default_factory=dict)
    incarnation: int = 1
    clock: Clock = field(default_factory=SystemClock)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    stop_budget_s: float = 30.0
    health: Health = field(default_factory=Health)
    fleet: Fleet | None = None
    ready: Callable[[], None] = lambda: None
    probe: Callable[[], Awaitable[None]] = _at_once
    store_system_events: Callable[[Sequence[SystemEvent]], Awaitable[None]] = _nowhere
    owner_pid: int = field(default_factory=os.getpid)

    @property
    def bus_dir(self) -> Path:
        """
        Where the bus has its sockets.
        """
        return self.runtime_dir / "bus"

    @property
    def metrics_dir(self) -> Path:
        """
        Where the slot-named metric files are.
        """
        return self.runtime_dir / "metrics"

    def assert_owner(self) -> None:
        """
        Called by every client factory: nothing with a thread or a socket may cross a fork.
        """
        if os.getpid() != self.owner_pid:
            raise RuntimeError(f"{self.slot}: made in process {self.owner_pid}, used in {os.getpid()}")

    async def unless_stopped(self, waiting: Awaitable[object]) -> bool:
        """
        Wait for something; False if the service is to stop before it has come.
        """
        wanted, stopping = asyncio.ensure_future(waiting), asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait((wanted, stopping), return_when=asyncio.FIRST_COMPLETED)
            return wanted.done()
        finally:
            wanted.cancel()
            stopping.cancel()
