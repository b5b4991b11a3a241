"""
The first lines of a forked service, in the order that matters, and its life around `serve(frame)`.

The child must not touch the parent's event loop: its epoll is shared, and an edit here would deafen the parent. So inherited
descriptors are closed by number only, and the loop is made anew.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import importlib
import os
import resource
import signal
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from optimizer.catalog import Service
from optimizer.config.limits import Limited
from optimizer.config.tree import Config
from optimizer.errors import EXIT_CONFIGURATION, EXIT_DONE, EXIT_TEMPORARY, Permanent, Transient
from optimizer.messages import Fleet, Heartbeat, Message, Ready, Stop, SystemEvents, SystemStored, Tune
from optimizer.service import Frame
from optimizer.supervisor.control import Channel
from optimizer.telemetry.logs import configure, crash_descriptor, live, log, reopen, ring_path
from optimizer.telemetry.redaction import secrets_of

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_libc: Final = ctypes.CDLL(None, use_errno=True)
_BEAT_S: Final = 5.0  # longest silence of a healthy child; also how late its metadata may be


def beat_interval(health_check_interval_s: float) -> float:
    """
    Seconds between two heartbeats: a child speaks at least twice as often as it is expected to.
    """
    return min(_BEAT_S, health_check_interval_s / 2)


@dataclass(frozen=True, kw_only=True)
class Birth:
    """
    What a child is born with.
    """

    service: Service
    slot: str
    incarnation: int
    config: Config
    log_level: str
    secret: bytes
    listeners: dict[str, socket.socket]
    control: socket.socket
    lifeline: int  # read end of a pipe whose write end only the parent has
    parent_pid: int


def be(birth: Birth) -> NoReturn:
    """
    The rest of this process's life.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN, None):
            signal.signal(number, signal.SIG_DFL)
    os.setsid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != birth.parent_pid:
        os._exit(EXIT_DONE)
    keep = {0, 1, 2, birth.control.fileno(), birth.lifeline, *(bound.fileno() for bound in birth.listeners.values())}
    _close_others(keep)
    asyncio.events._set_running_loop(None)
    asyncio.set_event_loop(None)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until there is a handler
    _title(birth.slot)
    _speak(birth)
    _limit(birth)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os._exit(_live(birth))


def _speak(birth: Birth) -> None:
    observability = birth.config.observability
    configure(
        birth.log_level,
        observability.json_logging,
        birth.slot,
        incarnation=birth.incarnation,
        ring=ring_path(birth.config.runtime_dir, birth.slot),
        file=observability.log_path,
        secrets=secrets_of(birth.config),
    )
    faulthandler.enable(crash_descriptor())


def _limit(birth: Birth) -> None:
    section = birth.config.section(birth.service.section)
    if isinstance(section, Limited) and (most := section.memory_limit_hard):
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _close_others(keep: Iterable[int]) -> None:
    kept = set(keep)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - paths are not needed
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # the descriptor of the listing itself


def _title(slot: str) -> None:
    _libc.prctl(_PR_SET_NAME, slot[:15].encode())


def _live(birth: Birth) -> int:
    try:
        with asyncio.Runner() as runner:
            runner.run(_run(birth))
    except BaseException as error:  # noqa: BLE001 - the top of the process: it ends, and says why
        return _last_words(error)
    return EXIT_DONE


def _last_words(error: BaseException) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Permanent):
        log.error("service.cannot_run", error=str(error))
        return EXIT_CONFIGURATION
    if isinstance(error, Transient):
        log.error("service.cannot_run_now", error=str(error))
        return EXIT_TEMPORARY
    log.opt(exception=error).error("service.crashed", error=repr(error))
    return 1


async def _run(birth: Birth) -> None:
    frame: Frame[Any] = Frame(
        name=birth.service.name,
        slot=birth.slot,
        config=birth.config,
        settings=birth.config.section(birth.service.section),
        runtime_dir=birth.config.runtime_dir,
        secret=birth.secret,
        listeners=birth.listeners,
        incarnation=birth.incarnation,
    )
    life = _Life(frame, birth)
    serve = importlib.import_module(birth.service.module).serve
    async with asyncio.TaskGroup() as group:
        beating = group.create_task(life.beat())
        await serve(frame)
        beating.cancel()
    life.channel.close()
    if not frame.stopping.is_set():
        raise RuntimeError(f"{birth.slot}: serve() returned although nobody stopped it")


class _Life:
    """
    The control channel, seen from the child.
    """

    def __init__(self, frame: Frame[Any], birth: Birth) -> None:
        self._frame = frame
        self._changed = asyncio.Event()
        self._storing: set[asyncio.Task[None]] = set()
        self._observability = replace(birth.config.observability, log_level=birth.log_level)
        self._beat_s = beat_interval(float(birth.config.service_manager.health_check_interval))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, float(birth.config.service_manager.shutdown_timeout))
        loop.add_signal_handler(signal.SIGUSR1, reopen)
        loop.add_reader(birth.lifeline, self._orphaned)
        self.channel = Channel(birth.control, self._on_message, self._orphaned)
        frame.ready = self._ready
        frame.health.changed = self._changed.set

    def _ready(self) -> None:
        self.channel.send(Ready())
        self._changed.set()

    def _stop(self, budget_s: float) -> None:
        self._frame.stop_budget_s = budget_s
        self._frame.stopping.set()

    def _orphaned(self) -> None:
        os._exit(EXIT_TEMPORARY)  # the parent is gone: nobody would restart, stop or read this process

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Stop):
            self._stop(message.budget_s)
        elif isinstance(message, Fleet):
            self._frame.fleet = message
        elif isinstance(message, Tune):
            self._tune(message)
        elif isinstance(message, SystemEvents) and not self._storing:
            task = asyncio.get_running_loop().create_task(self._store(message))
            self._storing.add(task)
            task.add_done_callback(self._storing.discard)

    def _tune(self, message: Tune) -> None:
        if message.beat_s is not None:
            self._beat_s = message.beat_s
            self._changed.set()
        fresh = {
            name: value
            for name in ("log_level", "json_logging", "log_file")
            if (value := getattr(message, name)) is not None
        }
        if fresh:
            self._observability = replace(self._observability, **fresh)
            live(self._observability)
        if message.reopen:
            reopen()
        faulthandler.enable(crash_descriptor())

    async def _store(self, message: SystemEvents) -> None:
        try:
            await self._frame.store_system_events(message.events)
        except Transient as error:
            log.debug("system_events.wait", error=str(error))  # the parent sends them again
        else:
            self.channel.send(SystemStored(number=message.first_number + len(message.events) - 1))

    async def beat(self) -> None:
        """
        Say how the service is, after passing through whatever does its work; never returns.
        """
        health = self._frame.health
        while True:
            self._changed.clear()
            try:
                await self._frame.probe()
            except Transient as error:
                log.debug("heartbeat.skipped", error=str(error))  # the work loop is full, not gone: the next one tells
            else:
                self.channel.send(Heartbeat(problems=dict(health.problems), metadata=dict(health.metadata)))
            try:
                await asyncio.wait_for(self._changed.wait(), self._beat_s)
            except TimeoutError:
                continue
