"""
One process of a service, as the parent holds it: its pidfd, its control channel, its deadlines. It decides nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

from optimizer.messages import Heartbeat, Message, Ready, Stop
from optimizer.supervisor.control import Channel
from optimizer.supervisor.resources import Gauge, Usage
from optimizer.telemetry.logs import log

_KILL_RESERVE_S: Final = 1.0  # of a stop's budget, for ending those that did not obey
_DUMP_S: Final = 2.0  # for faulthandler to write where a hung process stands
NO_USAGE: Final = Usage(cpu_percent=0.0, memory_bytes=0, fds=0, threads=0)


class Process:
    """
    A living process, or one whose end has just been seen.

    Args:
        process: started multiprocess.Process; `pidfd`: of it; `end`: our end of its control channel.
        on_message: hears (this, message); Ready and Heartbeat have been noted before.
        on_end: hears (this) once, after the process was reaped and its group was killed.
    """

    def __init__(
        self,
        slot: str,
        incarnation: int,
        process: Any,
        pidfd: int,
        end: socket.socket,
        on_message: Callable[[Process, Message], None],
        on_end: Callable[[Process], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.slot, self.incarnation = slot, incarnation
        self.pid = int(process.pid)
        self.started_at: float = self._loop.time()
        self.ready_at: float | None = None
        self.beat_at: float = self.started_at
        self.problems: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.usage = NO_USAGE
        self.told = False  # to end
        self.condemned = ""  # why it is being killed by us: late, hang
        self.exit_code: int | None = None
        self._process = process
        self._on_message, self._on_end = on_message, on_end
        self._killer: asyncio.TimerHandle | None = None
        self._gauge = Gauge(self.pid)
        self._pidfd = pidfd
        self._loop.add_reader(self._pidfd, self._ended)
        self._channel = Channel(end, self._hear, lambda: None)

    def send(self, message: Message) -> bool:
        """
        Over the control channel; False when it cannot be taken now.
        """
        return self._channel.send(message)

    def finish(self, budget_s: float) -> None:
        """
        Tell it to end; by force when it has not within the budget.
        """
        self.told = True
        patience = max(0.1, budget_s - min(_KILL_RESERVE_S, budget_s / 2))
        if not self.send(Stop(budget_s=patience)):
            self.signal(signal.SIGTERM)
        self._kill_after(patience)

    def abort(self, why: str) -> None:
        """
        Let faulthandler write where it stands, then kill it.
        """
        self.condemned = why
        self.signal(signal.SIGABRT, group=False)
        self._kill_after(_DUMP_S)

    def kill(self, why: str = "") -> None:
        """
        End it and its group at once.
        """
        self.condemned = self.condemned or why
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals, group: bool = True) -> None:
        """
        Signal it, and its process group.
        """
        try:
            signal.pidfd_send_signal(self._pidfd, number)
            if group:
                os.killpg(self.pid, number)
        except ProcessLookupError:
            return  # it ended meanwhile, or has not made its group yet and got the first signal

    def measure(self) -> None:
        """
        Read what it uses.
        """
        usage = self._gauge.read()
        if usage is not None:
            self.usage = usage

    def forgive(self, seconds: float) -> None:
        """
        The parent itself stood still so long: its children's deadlines move on by as much.
        """
        self.beat_at += seconds
        if self.ready_at is None:
            self.started_at += seconds

    @property
    def signal_name(self) -> str | None:
        """
        Name of the signal that ended it.
        """
        if self.exit_code is None or self.exit_code >= 0:
            return None
        return signal.Signals(-self.exit_code).name

    def _kill_after(self, seconds: float) -> None:
        if self._killer is not None:
            if self._killer.when() <= self._loop.time() + seconds:
                return  # it is to end sooner already
            self._killer.cancel()
        self._killer = self._loop.call_later(seconds, self.kill)

    def _hear(self, message: Message) -> None:
        if isinstance(message, Ready) and self.ready_at is None:
            self.ready_at = self.beat_at = self._loop.time()
        elif isinstance(message, Heartbeat):
            self.beat_at = self._loop.time()
        self._on_message(self, message)

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        try:
            os.killpg(self.pid, signal.SIGKILL)  # what it left behind in its group; before its pid can be another's
        except (ProcessLookupError, PermissionError):
            log.trace("service.left_nothing", child=self.pid)
        self.exit_code = self._process.exitcode
        os.close(self._pidfd)
        self._channel.close()
        if self._killer is not None:
            self._killer.cancel()
        self._process.close()
        self._on_end(self)
