"""
The parent: one thread, one loop. Starts services by their needs, keeps them, shows them, stops them in reverse.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal

from optimizer.catalog import Service, start_levels
from optimizer.config.tree import Config
from optimizer.errors import Invalid, NotFound, Transient
from optimizer.health import health_document, status_document
from optimizer.messages import Fleet, SystemEvents
from optimizer.model import SystemEvent, new_id
from optimizer.resilience import RestartPolicy
from optimizer.supervisor import control, sockets
from optimizer.supervisor.child import Birth, be
from optimizer.supervisor.lifecycle import ALIVE, SERVING, Event, State
from optimizer.supervisor.spawn import fork
from optimizer.supervisor.ward import Ending, Ward
from optimizer.telemetry.logs import log

CRITICAL: Final = frozenset({"storage"})  # without it nothing can be acknowledged: the daemon is unhealthy
_TICK_S: Final = 2.0  # how often the fleet is told though nothing changed, and measured
_EVENTS: Final = 1000  # of the parent, kept until storage has them
_SENT_TOGETHER: Final = 50


class Supervisor:
    """
    Owns the wards. `run()` is the daemon's life.

    Args:
        listeners: bound sockets by service and listener.
        lifeline: pipe; children watch the read end, only the parent has the write end.
    """

    def __init__(
        self,
        services: Sequence[Service],
        config: Config,
        secret: bytes,
        listeners: sockets.Bound,
        lifeline: tuple[int, int],
    ) -> None:
        self._config = config
        self._secret = secret
        self._listeners = listeners
        self._lifeline = lifeline
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._events: deque[SystemEvent] = deque(maxlen=_EVENTS)
        self._first_number = 1
        self._told = False
        self._wards = {service.name: self._ward(service) for service in services}
        enabled = [service for service in services if config.enabled(service.section)]
        self._levels = start_levels(enabled)
        for name, ward in self._wards.items():
            if not any(name in level for level in self._levels):
                ward.state = State.DISABLED

    def _ward(self, service: Service) -> Ward:
        manager = self._config.service_manager
        policy = RestartPolicy(
            attempts=manager.max_restart_attempts,
            base_s=float(manager.restart_backoff_base),
            longest_s=float(manager.restart_backoff_max),
            jitter=manager.restart_jitter,
            stable_after_s=float(manager.stable_after),
        )
        return Ward(
            service=service,
            policy=policy,
            start_timeout_s=manager.start_timeout,
            heartbeat_s=manager.health_check_interval,
            failure_threshold=manager.failure_threshold,
            fork=self._fork,
            on_change=self._on_change,
            on_failed=self._on_failed,
            on_recovered=self._on_recovered,
            on_stored=self._on_stored,
            ports=sockets.ports(self._listeners.get(service.name, {})),
        )

    def _fork(self, ward: Ward) -> tuple[Any, socket.socket]:
        ours, theirs = control.pair()
        birth = Birth(
            service=ward.service,
            slot=f"{ward.service.name}-0",
            incarnation=ward.incarnation,
            config=self._config,
            secret=self._secret,
            listeners=self._listeners.get(ward.service.name, {}),
            control=theirs,
            lifeline=self._lifeline[0],
            parent_pid=os.getpid(),
        )
        try:
            process = fork(birth.slot, partial(be, birth))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return process, ours

    # --- life ---

    async def run(self) -> None:
        """
        Start everything, keep it until told to stop, stop everything.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap_strays)
        for level in self._levels:
            for name in level:
                self._wards[name].happen(Event.BEGIN, "the daemon starts")
        await self._tend()
        await self._stop_all()

    async def _tend(self) -> None:
        while not self._stop.is_set():
            self._changed.clear()
            self._start_the_waiting()
            self._tell()
            try:
                await asyncio.wait_for(self._changed.wait(), _TICK_S)
            except TimeoutError:
                for ward in self._wards.values():
                    ward.measure()

    def _start_the_waiting(self) -> None:
        for ward in self._wards.values():
            if ward.state is State.WAITING and all(self._serves(need) for need in ward.service.needs):
                ward.happen(Event.NEEDS_READY, "all it needs is ready")
        if not self._told and all(ward.state in (*SERVING, State.DISABLED) for ward in self._wards.values()):
            self._told = True
            took = self._loop.time() - self._started_at
            log.info("daemon.ready", after_ms=round(took * 1000), ports=self._ports())

    def _ports(self) -> dict[str, dict[str, int]]:
        return {name: ward.ports for name, ward in self._wards.items() if ward.ports}

    def _serves(self, name: str) -> bool:
        return self._wards[name].state in (*SERVING, State.DISABLED)

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            log.warning("daemon.killed", reason=f"a second {signal.Signals(number).name}")
            for ward in self._wards.values():
                ward.kill(signal.SIGKILL)
            return
        log.info("daemon.stops", reason=signal.Signals(number).name)
        self._stop.set()
        self._changed.set()

    async def _stop_all(self) -> None:
        budget = float(self._config.service_manager.shutdown_timeout)
        until = self._loop.time() + budget
        for left, level in zip(range(len(self._levels), 0, -1), reversed(self._levels), strict=True):
            share = max(0.5, (until - self._loop.time()) / left if left > 1 else until - self._loop.time())
            for name in level:
                self._wards[name].stop(share, again=False, reason="the daemon stops")
            await self._settled(level, share + 1.0)
        log.info("daemon.stopped", health=health_document(self.fleet(), self._loop.time()))

    async def _settled(self, names: Sequence[str], deadline_s: float) -> None:
        """
        Return when none of the services is under way any more, or after the deadline.
        """
        until = self._loop.time() + deadline_s
        while any(self._wards[name].state in (State.STOPPING, State.STARTING) for name in names):
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), until - self._loop.time())
            except TimeoutError:
                return

    def _reap_strays(self) -> None:
        """
        Grandchildren that were orphaned become ours (child subreaper); ours are reaped by their own wards.
        """
        ours = {ward.pid for ward in self._wards.values()}
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, os.WNOHANG)
            log.warning("stray.reaped", child=found.si_pid, status=found.si_status)

    # --- what is shown ---

    def _on_change(self, ward: Ward) -> None:
        self._changed.set()

    def fleet(self) -> Fleet:
        """
        All services as they are now.
        """
        now = self._loop.time()
        views = {name: ward.view(self._serves, now) for name, ward in self._wards.items()}
        status: Literal["healthy", "degraded", "unhealthy"] = "healthy"
        if not all(view.healthy for view in views.values()):
            status = "degraded"
        if any(name in views and views[name].state not in ("Running", "Degraded") for name in CRITICAL):
            status = "unhealthy"
        return Fleet(status=status, started_at=self._started_at, services=views)

    def _tell(self) -> None:
        fleet = self.fleet()
        for ward in self._wards.values():
            if ward.state in ALIVE:
                ward.send(fleet)
        storage = self._wards.get("storage")
        if self._events and storage is not None and storage.state in SERVING:
            storage.send(SystemEvents(first_number=self._first_number, events=list(self._events)[:_SENT_TOGETHER]))

    def _on_failed(self, ward: Ward, ending: Ending, next_retry_s: float | None) -> None:
        name = ward.service.name
        self._announce(
            "service.failed",
            "critical" if name in CRITICAL else "warning",
            ward,
            f"{name} ended unexpectedly ({ending})",
            reason=ending.reason,
            exit_code=ending.exit_code,
            signal=ending.signal,
            next_retry_secs=None if next_retry_s is None else float(next_retry_s),
        )

    def _on_recovered(self, ward: Ward) -> None:
        self._announce("service.recovered", "info", ward, f"{ward.service.name} is ready again", reason="ready")

    def _announce(
        self, kind: str, severity: Literal["info", "warning", "critical"], ward: Ward, summary: str, **data: Any
    ) -> None:
        known = {"reason": None, "exit_code": None, "signal": None, "next_retry_secs": None, **data}
        if len(self._events) == _EVENTS:
            self._first_number += 1  # the oldest is pushed out
            log.error("system_events.lost", reason="storage has not taken the oldest")
        self._events.append(
            SystemEvent(
                id=new_id("evt_"),
                type=kind,
                time=datetime.now(UTC),
                host=socket.gethostname(),
                environment=self._config.service.environment,
                severity=severity,
                subject=ward.service.name,
                summary=summary,
                data={
                    "service": ward.service.name,
                    "pid": ward.pid or ward.ended_pid,
                    "incarnation": ward.incarnation,
                    "restarts": sum(ward.restarts.values()),
                    **known,
                },
            )
        )
        self._changed.set()

    def _on_stored(self, number: int) -> None:
        while self._events and self._first_number <= number:
            self._events.popleft()
            self._first_number += 1
        if self._events:
            self._changed.set()

    # --- commands of the admin socket ---

    async def command(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """
        Answer one command.

        Raises:
            Invalid, NotFound: there is no such command or service. Transient: the outcome is not known in time.
        """
        if name == "status":
            document = status_document(self.fleet(), self._loop.time())
            return {**document, "pid": os.getpid(), "data_dir": str(self._config.data_dir)}
        if name == "restart":
            return await self._restart(request.get("service"), request.get("timeout_s"))
        raise Invalid(f"{name!r} is no command; there are status and restart")

    async def _restart(self, wanted: object, timeout_s: object) -> dict[str, Any]:
        names = (
            [n for n, w in self._wards.items() if w.state is not State.DISABLED] if wanted == "all" else [str(wanted)]
        )
        if unknown := [name for name in names if name not in self._wards]:
            raise NotFound(f"there is no service {unknown[0]}; there are {', '.join(self._wards)} and all")
        if disabled := [name for name in names if self._wards[name].state is State.DISABLED]:
            raise Invalid(f"{disabled[0]} is disabled in the configuration")
        deadline_s = float(timeout_s) if isinstance(timeout_s, int | float) and 0 < timeout_s <= 3600 else 60.0
        for name in names:
            self._wards[name].stop(deadline_s / 2, again=True, reason="an operator restarts it")
        await self._settled(names, deadline_s)
        if late := [name for name in names if self._wards[name].state not in SERVING]:
            raise Transient(
                f"{late[0]} is {self._wards[late[0]].state} after {deadline_s:g} s: {self._wards[late[0]].reason}"
            )
        return {"services": {name: self._wards[name].state.value for name in names}}
