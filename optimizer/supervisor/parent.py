"""
The parent: one thread, one loop. Starts services by their needs, keeps them, shows them, stops them in reverse.

It is in no way of data: what it knows it tells its children over the control channels, never over the bus, so that a broken
bus does not look like dead services. Its own standing still (SIGSTOP, a suspended machine) is noticed by its clock and not
held against the children.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from optimizer.catalog import Service, start_levels
from optimizer.config.limits import Limited
from optimizer.config.tree import Config
from optimizer.health import health_document
from optimizer.messages import Fleet, Message, SystemStored, Tune
from optimizer.supervisor import control, sockets
from optimizer.supervisor.announcer import Announcer
from optimizer.supervisor.child import Birth, be
from optimizer.supervisor.lifecycle import ALIVE, SERVING, Event, State
from optimizer.supervisor.notify import Notifier
from optimizer.supervisor.process import Process
from optimizer.supervisor.resources import OomWatch
from optimizer.supervisor.roster import Roster
from optimizer.supervisor.spawn import fork, reap_strays
from optimizer.supervisor.views import overall, sentence, service_view
from optimizer.supervisor.ward import Ward
from optimizer.telemetry.logs import log, reopen
from optimizer.telemetry.metrics import forget

_TICK_S: Final = 2.0  # longest time between two looks at the deadlines
_TELL_S: Final = 5.0  # how often the fleet is told though nothing changed, and measured
_FROZEN_S: Final = 1.0  # the loop was not late but stopped
_MARGIN_S: Final = 10.0  # beyond the budget of a stop, before the service manager may kill the daemon
_SHARE_S: Final = 0.1  # of a stop's budget, at least, for each level
_LAG_FADES: Final = 0.9  # a tick; what is shown is the worst of the last minute or so


class Supervisor:
    """
    Owns the wards. `run()` is the daemon's life.

    Args:
        listeners: bound sockets by service and listener.
        lifeline: pipe; children watch the read end, only the parent has the write end.
        stopped: services that an operator has stopped for good.
        notifier: of the service manager that has started the daemon.
    """

    def __init__(
        self,
        services: Sequence[Service],
        config: Config,
        secret: bytes,
        listeners: sockets.Bound,
        lifeline: tuple[int, int],
        stopped: Iterable[str] = (),
        notifier: Notifier | None = None,
    ) -> None:
        self.config = config
        self.listeners = listeners
        self.reloads: dict[str, int] = {}
        self.levels_of_log: dict[str, str] = {}
        self._secret = secret
        self._lifeline = lifeline
        self._notifier = notifier or Notifier()
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._changed = asyncio.Event()
        self._turn = asyncio.Event()
        self._stop = asyncio.Event()
        self.announcer = Announcer(config.service.environment, self._now, lambda: self.config.service_manager.critical)
        self._oom = OomWatch()
        self._started = False
        self._news = False  # to be told at the next look
        self._urgent = True  # to be told at once
        self._lag_s = 0.0
        self._told_at = 0.0
        self._measured_at = 0.0
        self._fed_at = 0.0
        self._told_status = ""
        self.on_hangup: Callable[[], None] = lambda: None
        self.roster = Roster(services, self._make)
        for service in services:
            self.resize(service)
        for name in stopped:
            for ward in self.roster.wards.get(name, []):
                ward.unwanted = True

    # --- wards ---

    def time(self) -> float:
        """
        CLOCK_MONOTONIC seconds.
        """
        return self._loop.time()

    def resize(self, service: Service) -> tuple[list[Ward], list[Ward]]:
        """
        As many wards as the configuration wants; see Roster.
        """
        wanted = int(getattr(self.config.section(service.section), "instances", 1))
        fresh, surplus = self.roster.resize(service, wanted)
        if not self.config.enabled(service.section):
            for ward in fresh:
                ward.disable()
        return fresh, surplus

    def _make(self, service: Service, index: int) -> Ward:
        return Ward(service, index, self.config.service_manager, self._born, self, self.announcer)

    def _born(self, ward: Ward, slot: str) -> Process:
        ours, theirs = control.pair()
        birth = Birth(
            service=ward.service,
            slot=slot,
            incarnation=ward.incarnation,
            config=self.config,
            log_level=self.levels_of_log.get(ward.service.name, self.config.observability.log_level),
            secret=self._secret,
            listeners=self.listeners.get(ward.service.name, {}),
            control=theirs,
            lifeline=self._lifeline[0],
            parent_pid=os.getpid(),
        )
        try:
            process, pidfd = fork(slot, partial(be, birth))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return Process(slot, ward.incarnation, process, pidfd, ours, ward.hear, ward.end)

    # --- life ---

    async def run(self) -> None:
        """
        Start everything, keep it until told to stop, stop everything.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.shut_down, signal.Signals(number).name)
        self._loop.add_signal_handler(signal.SIGHUP, lambda: self.on_hangup())
        self._loop.add_signal_handler(signal.SIGUSR1, self._reopen)
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap_strays)
        for ward in self.roster.all():
            if ward.unwanted:
                ward.stop(0, "an operator has stopped it for good")
            else:
                ward.happen(Event.BEGIN, "the daemon starts")
        await self._tend()
        await self._stop_all()

    async def _tend(self) -> None:
        ticked = self._loop.time()
        while not self._stop.is_set():
            self._changed.clear()
            self._start_the_waiting()
            now = self._loop.time()
            quiet_s = now - self._told_at
            if now - self._measured_at >= _TELL_S:
                self._measure(now)
            if self._urgent or quiet_s >= (_TICK_S if self._news else _TELL_S):
                self._tell(now)
            tick = self._tick()
            wake = self._loop.call_later(max(0.0, ticked + tick - now), self._changed.set)
            await self._changed.wait()
            wake.cancel()
            now = self._loop.time()
            if now >= ticked + tick:
                self._look(now, now - ticked - tick, tick)
                ticked = now

    def _tick(self) -> float:
        manager = self.config.service_manager
        liveness = float(manager.health_check_interval) * manager.failure_threshold
        watchdog = self._notifier.watchdog_s or _TICK_S
        return max(0.05, min(_TICK_S, liveness / 4, float(manager.start_timeout) / 4, watchdog / 2))

    def _look(self, now: float, late_s: float, tick_s: float) -> None:
        self._lag_s = max(late_s, self._lag_s * _LAG_FADES)
        if late_s > _FROZEN_S:
            log.warning("daemon.stood_still", seconds=round(late_s, 3))
            for ward in self.roster.all():
                for process in ward.processes():
                    process.forgive(late_s)
        for ward in self.roster.all():
            section = self.config.section(ward.service.section)
            ward.memory_limit_bytes = section.memory_limit if isinstance(section, Limited) else 0
            ward.watch(now)
        self._reap_strays()
        if self._notifier.watchdog_s is not None and now - self._fed_at >= self._notifier.watchdog_s - tick_s:
            self._feed(now)

    def _feed(self, now: float) -> None:
        """
        Tell the service manager that the parent is alive, if what it believes of its children holds together.
        """
        odd = [
            ward.name
            for ward in self.roster.all()
            if (ward.process is not None) is not (ward.state in (*ALIVE, State.STOPPING))
        ]
        if odd:
            log.error("daemon.unsound", wards=odd)
            return
        self._fed_at = now
        self._notifier.watchdog()

    def _measure(self, now: float) -> None:
        self._measured_at = now
        for ward in self.roster.all():
            for process in ward.processes():
                process.measure()

    def _start_the_waiting(self) -> None:
        for ward in self.roster.all():
            if ward.state is State.WAITING and not self.lost_needs(ward.service):
                ward.happen(Event.NEEDS_READY, "all it needs is ready")
        if not self._started and all(ward.settled for ward in self.roster.all()):
            self._started = True
            took = self._loop.time() - self._started_at
            ports = {name: sockets.ports(bound) for name, bound in self.listeners.items() if bound}
            log.info("daemon.ready", after_ms=round(took * 1000), ports=ports)
            self._notifier.ready(sentence(self.fleet()))

    def lost_needs(self, service: Service) -> list[str]:
        """
        What a service needs and does not serve now.
        """
        return self.roster.lost_needs(service)

    def shut_down(self, reason: str) -> None:
        """
        End the daemon in order; a second time: at once.
        """
        if self._stop.is_set():
            log.warning("daemon.killed", reason=f"a second {reason}")
            for ward in self.roster.all():
                ward.kill_all()
            return
        log.info("daemon.stops", reason=reason)
        self._notifier.stopping()
        self._notifier.extend_timeout(int((float(self.config.service_manager.shutdown_timeout) + _MARGIN_S) * 1e6))
        self._stop.set()
        self._changed.set()

    @property
    def stopping(self) -> bool:
        """
        The daemon is on its way to its end.
        """
        return self._stop.is_set()

    async def _stop_all(self) -> None:
        began, health = self._loop.time(), health_document(self.fleet(), self._loop.time())
        until = began + float(self.config.service_manager.shutdown_timeout)
        levels = start_levels(self.roster.services())
        for left, level in zip(range(len(levels), 0, -1), reversed(levels), strict=True):
            share = max(_SHARE_S, (until - self._loop.time()) / left)
            wards = [ward for ward in self.roster.all() if ward.service.name in level]
            for ward in wards:
                ward.stop(share, "the daemon stops")
            await self.until(lambda wards=wards: not any(ward.processes() for ward in wards), share + 1.0)  # type: ignore[misc]
        ended = {ward.name: ward.last_exit for ward in self.roster.all() if ward.last_exit is not None}
        log.info("daemon.stopped", took_ms=round((self._loop.time() - began) * 1000), health=health, ended=ended)

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """
        Wait for something that wards do; False when it has not come within the time.
        """
        deadline = self._loop.time() + timeout_s
        while not condition():
            turn = self._turn
            try:
                async with asyncio.timeout_at(deadline):
                    await turn.wait()
            except TimeoutError:
                return condition()
        return True

    def _reap_strays(self) -> None:
        reap_strays({process.pid for ward in self.roster.all() for process in ward.processes()})

    # --- what is shown ---

    def fleet(self) -> Fleet:
        """
        All services as they are now.
        """
        now = self._loop.time()
        views = {
            name: service_view(
                wards, sockets.ports(self.listeners.get(name, {})), self.lost_needs(self.roster.service(name)), now
            )
            for name, wards in self.roster.wards.items()
        }
        return Fleet(
            status=overall(views, self.config.service_manager.critical),
            started_at=self._started_at,
            services=views,
            started=self._started,
            loop_lag_secs=round(self._lag_s, 6),
            reloads=dict(self.reloads),
        )

    def _tell(self, now: float) -> None:
        self._told_at, self._urgent, self._news = now, False, False
        fleet = self.fleet()
        for ward in self.roster.all():
            ward.send(fleet)
        storage = [ward for ward in self.roster.wards.get("storage", []) if ward.state in SERVING]
        if storage and (unsent := self.announcer.unsent()) is not None:
            storage[0].send(unsent)
        told = sentence(fleet)
        if self._started and told != self._told_status:
            self._told_status = told
            self._notifier.status(told)

    def _now(self) -> None:
        self._urgent = True
        self._changed.set()

    def tune(self, message: Tune, names: Iterable[str]) -> None:
        """
        Change settings in running processes.
        """
        for name in names:
            for ward in self.roster.wards[name]:
                ward.send(message)

    def tell_reloading(self) -> None:
        """
        The service manager waits until `tell_reloaded`.
        """
        self._notifier.reloading(self._loop.time())

    def tell_reloaded(self) -> None:
        """
        A reload is done, whatever became of it.
        """
        self._notifier.ready(sentence(self.fleet()))

    def _reopen(self) -> None:
        reopen()
        self.tune(Tune(reopen=True), self.roster.wards)

    # --- what wards tell (ward.Keeper) ---

    def on_change(self, ward: Ward) -> None:
        """
        Everybody is told at once.
        """
        self._now()
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    def on_news(self, ward: Ward) -> None:
        """
        Everybody is told at the next look.
        """
        self._news = True

    def on_message(self, ward: Ward, message: Message) -> None:
        """
        Storage has taken our events.
        """
        if isinstance(message, SystemStored):
            self.announcer.on_stored(message.number)

    def on_ended(self, slot: str) -> None:
        """
        Gauges that only a living process may report go with it.
        """
        try:
            forget(self.config.runtime_dir / "metrics", slot)
        except OSError as error:
            log.warning("metrics.not_forgotten", slot=slot, error=str(error))  # its successor does it again

    def ran_out_of_memory(self) -> bool:
        """
        The kernel says so in our cgroup.
        """
        return self._oom.killed() > 0
