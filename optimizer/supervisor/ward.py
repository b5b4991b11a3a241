"""
One service in the parent's care: its state, its process, and what is known of it. Decides by the table, acts by the parent.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import psutil

from optimizer.catalog import Service
from optimizer.errors import EXIT_CONFIGURATION
from optimizer.messages import Heartbeat, Message, Ready, ServiceView, Stop, SystemStored
from optimizer.resilience import RestartPolicy
from optimizer.supervisor.control import Channel
from optimizer.supervisor.lifecycle import ALIVE, SERVING, TABLE, Effect, Event, State
from optimizer.telemetry.logs import log

_KILL_RESERVE_S: Final = 1.0  # of a stop's budget, for ending those that did not obey


@dataclass(frozen=True, kw_only=True)
class Ending:
    """
    How a process ended. `reason`: crash, killed, startup, configuration, late or commanded.
    """

    reason: str
    exit_code: int | None
    signal: str | None

    def __str__(self) -> str:
        return f"{self.reason}: " + (self.signal or f"exit code {self.exit_code}")


@dataclass(eq=False)
class Ward:
    """
    A service and its one process.

    Args:
        fork: makes a started process and the parent's end of its control channel.
        on_change: called after every transition and every heartbeat that says something new.
        on_failed, on_recovered: an unexpected end, and the first readiness after it.
    """

    service: Service
    policy: RestartPolicy
    start_timeout_s: float
    heartbeat_s: float
    failure_threshold: int
    fork: Callable[[Ward], tuple[Any, Any]]
    on_change: Callable[[Ward], None]
    on_failed: Callable[[Ward, Ending, float | None], None]
    on_recovered: Callable[[Ward], None]
    on_stored: Callable[[int], None]
    rng: random.Random = field(default_factory=random.Random)
    state: State = State.INITIALIZING
    incarnation: int = 0
    restarts: dict[str, int] = field(default_factory=dict)
    last_exit: str | None = None
    problems: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    pid: int | None = None
    ended_pid: int | None = None
    started_at: float | None = None
    ready_at: float | None = None
    beat_at: float = 0.0
    next_retry_at: float | None = None
    ports: dict[str, int] = field(default_factory=dict)
    usage: tuple[float, int] = (0.0, 0)
    budget_s: float = 30.0
    reason: str = ""
    _delay_s: float = 0.0
    _again: bool = False
    _failed: bool = False
    _late: bool = False
    _process: Any = None
    _pidfd: int = -1
    _channel: Channel | None = None
    _timer: asyncio.TimerHandle | None = None
    _killer: asyncio.TimerHandle | None = None
    _gauge: psutil.Process | None = None

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def happen(self, event: Event, reason: str) -> None:
        """
        Look up what an event means now, and do it.
        """
        before, step = self.state, TABLE[self.state, event]
        self.state, self.reason = step.state, reason
        if step.state is not before:
            log.info("service.state", target=self.service.name, was=before, now=step.state, on=event, reason=reason)
        for effect in step.effects:
            self._do(effect)
        self.on_change(self)

    def stop(self, budget_s: float, again: bool, reason: str) -> None:
        """
        End it within `budget_s`, by force if need be; `again`: and start it anew.
        """
        self.budget_s = budget_s
        if again and self.state in (State.BACKOFF, State.FAILED):
            self.policy.clear()
        self._again = again if self.state in ALIVE or self.state is State.STOPPING else False
        self.happen(Event.RESTART if again else Event.STOP, reason)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Effect.SPAWN:
                self._spawn()
            case Effect.STOP:
                self._stop()
            case Effect.KILL:
                self._late = True
                self.kill(signal.SIGKILL)
            case Effect.SCHEDULE:
                self.next_retry_at = self._loop.time() + self._delay_s
                self._timer = self._loop.call_later(self._delay_s, self.happen, Event.DUE, "the delay is over")
            case Effect.FORGET:
                self._forget()

    def _forget(self) -> None:
        self.next_retry_at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _spawn(self) -> None:
        self._forget()
        self.incarnation += 1
        self.started_at, self.ready_at, self.beat_at = self._loop.time(), None, self._loop.time()
        self.problems, self._late, self._again = {}, False, False
        try:
            self._process, end = self.fork(self)
        except OSError as error:
            self._unexpected(Ending(reason=f"fork: {error.strerror}", exit_code=None, signal=None), 0.0)
            return
        self.pid = pid = int(self._process.pid)
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._ended)
        self._channel = Channel(end, self._on_message, lambda: None)
        self._timer = self._loop.call_later(
            self.start_timeout_s, self.happen, Event.LATE, f"not ready within {self.start_timeout_s:g} s"
        )
        log.info("service.forked", target=self.service.name, child=self.pid, incarnation=self.incarnation)

    def _stop(self) -> None:
        self._forget()
        patience = max(0.1, self.budget_s - min(_KILL_RESERVE_S, self.budget_s / 2))
        if not (self._channel and self._channel.send(Stop(budget_s=patience))):
            self.kill(signal.SIGTERM)
        self._killer = self._loop.call_later(patience, self.kill, signal.SIGKILL)

    def kill(self, number: signal.Signals) -> None:
        """
        Signal the child's process group, if it lives.
        """
        if self.pid is None:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return  # it ended meanwhile, or has not made its group yet and got the first signal

    def send(self, message: Message) -> bool:
        """
        Over the control channel; False when it cannot be taken now.
        """
        return self._channel is not None and self._channel.send(message)

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Ready):
            self._ready()
        elif isinstance(message, Heartbeat):
            self.beat_at = self._loop.time()
            changed = (message.problems, message.metadata) != (self.problems, self.metadata)
            self.problems, self.metadata = message.problems, message.metadata
            if self.problems and self.state is State.RUNNING:
                self.happen(Event.TROUBLED, "; ".join(self.problems.values()))
            elif not self.problems and self.state is State.DEGRADED:
                self.happen(Event.CLEARED, "it reports no problem any more")
            elif changed:
                self.on_change(self)
        elif isinstance(message, SystemStored):
            self.on_stored(message.number)

    def _ready(self) -> None:
        if self.state is not State.STARTING:
            return
        self._forget()
        self.ready_at = self._loop.time()
        recovered, self._failed = self._failed, False
        self.happen(Event.READY, f"ready {(self.ready_at - (self.started_at or 0)) * 1000:.0f} ms after the fork")
        if recovered:
            self.on_recovered(self)

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._process.exitcode
        self.kill_group()
        if self._channel is not None:
            self._channel.close()
        for timer in (self._timer, self._killer):
            if timer is not None:
                timer.cancel()
        self._process.close()
        ready_for = self._loop.time() - self.ready_at if self.ready_at is not None else 0.0
        ending = self._ending(code)
        self.last_exit, self._channel, self._gauge, self.usage = str(ending), None, None, (0.0, 0)
        log.info("service.ended", target=self.service.name, child=self.pid, ending=str(ending))
        self.ended_pid, self.pid, self.ready_at = self.pid, None, None
        if self.state is State.STOPPING:
            if self._again:
                self.restarts["commanded"] = self.restarts.get("commanded", 0) + 1
            self.happen(Event.AGAIN if self._again else Event.ENDED, "as told")
        else:
            self._unexpected(ending, ready_for)

    def _unexpected(self, ending: Ending, ready_for_s: float) -> None:
        self._failed = True
        self._delay_s, open_circuit = self.policy.died(self._loop.time(), ready_for_s, self.rng)
        self.restarts[ending.reason] = self.restarts.get(ending.reason, 0) + 1
        refused = ending.exit_code == EXIT_CONFIGURATION
        self.on_failed(self, ending, None if refused else self._delay_s)
        event = Event.REFUSED if refused else Event.GAVE_UP if open_circuit else Event.DIED
        self.happen(event, str(ending))

    def _ending(self, code: int | None) -> Ending:
        name = None
        if code is not None and code < 0:
            name = signal.Signals(-code).name
        if self.state is State.STOPPING:
            reason = "commanded"
        elif code == EXIT_CONFIGURATION:
            reason = "configuration"
        elif self._late:
            reason = "late"
        elif self.ready_at is None:
            reason = "startup"
        else:
            reason = "killed" if name else "crash"
        return Ending(reason=reason, exit_code=None if name else code, signal=name)

    def kill_group(self) -> None:
        """
        End what the child left behind in its group.
        """
        if self.pid is not None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return

    def measure(self) -> None:
        """
        Read the process's CPU and memory.
        """
        if self.pid is None:
            return
        try:
            if self._gauge is None:
                self._gauge = psutil.Process(self.pid)
            self.usage = (round(self._gauge.cpu_percent(None), 1), self._gauge.memory_info().rss)
        except psutil.Error as error:
            log.debug("service.not_measured", target=self.service.name, error=str(error))

    def view(self, serving: Callable[[str], bool], now: float) -> ServiceView:
        """
        As the world is shown it; `serving(name)`: whether another service serves.
        """
        state, message = self.state, None
        missed = int((now - self.beat_at) / self.heartbeat_s) if self.state in SERVING else 0
        lost = [need for need in self.service.needs if not serving(need)]
        if state is State.DEGRADED:
            message = "; ".join(self.problems.values())
        elif state is State.RUNNING and lost:
            state, message = State.DEGRADED, f"needs {' and '.join(lost)}, which cannot serve now"
        elif state not in (State.RUNNING, State.DISABLED):
            message = self.reason
        return ServiceView(
            state=state.value,
            healthy=state in (State.RUNNING, State.DISABLED) and missed < self.failure_threshold,
            consecutive_failures=max(missed, self.policy.in_a_row if self.state not in SERVING else 0),
            message=message,
            metadata=self.metadata,
            pid=self.pid,
            incarnation=self.incarnation,
            restarts=dict(self.restarts),
            started_at=self.started_at,
            ready_at=self.ready_at,
            last_exit=self.last_exit,
            next_retry_at=self.next_retry_at if self.state in (State.BACKOFF, State.FAILED) else None,
            cpu_percent=self.usage[0],
            memory_bytes=self.usage[1],
            ports=self.ports,
            needs=self.service.needs,
        )
