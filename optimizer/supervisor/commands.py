"""
The commands of the admin socket: what an operator asks and tells the parent.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final

from optimizer.catalog import start_levels
from optimizer.config.printer import shown
from optimizer.errors import Invalid, NotFound, Transient
from optimizer.health import status_document
from optimizer.messages import Tune
from optimizer.supervisor.lifecycle import SERVING, State
from optimizer.supervisor.parent import Supervisor
from optimizer.supervisor.reloader import Reloader
from optimizer.supervisor.ward import Ward
from optimizer.telemetry.lines import LEVELS
from optimizer.telemetry.logs import log, set_level

READ: Final = frozenset({"status", "config"})  # verbs that change nothing
_BEGIN: Final = frozenset({"start", "restart", "reload"})  # verbs that make processes
STOPPED_FILE: Final = "stopped.json"  # in data_dir: services that an operator has stopped for good
_TIMEOUT_S: Final = 60.0
_LONGEST_S: Final = 3600.0

Request = dict[str, Any]


def stopped_for_good(data_dir: Path) -> list[str]:
    """
    Services that `stop --keep` has stopped.
    """
    try:
        found = json.loads((data_dir / STOPPED_FILE).read_bytes())
    except FileNotFoundError:
        return []
    except ValueError:
        log.warning("stopped.unreadable", path=str(data_dir / STOPPED_FILE))
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


class Commands:
    """
    Args:
        reloader: applies configurations.
    """

    def __init__(self, supervisor: Supervisor, reloader: Reloader) -> None:
        self._supervisor = supervisor
        self._reloader = reloader
        self._verbs: dict[str, Callable[[Request], Awaitable[Request]]] = {
            "status": self._status,
            "config": self._config,
            "start": self._start,
            "stop": self._stop,
            "restart": self._restart,
            "reload": self._reload,
            "shutdown": self._shutdown,
            "log_level": self._log_level,
        }

    async def answer(self, name: str, request: Request) -> Request:
        """
        Answer one command.

        Raises:
            Invalid, NotFound: there is no such command or service. Transient: the outcome is not known in time, or the daemon
                is on its way to its end.
        """
        verb = self._verbs.get(name)
        if verb is None:
            raise Invalid(f"{name!r} is no command; there are {', '.join(self._verbs)}")
        if self._supervisor.stopping and name in _BEGIN:
            raise Transient("the daemon stops; nothing is started any more")
        return await verb(request)

    # --- reading ---

    async def _status(self, request: Request) -> Request:
        loop_time = self._supervisor.time()
        document = status_document(self._supervisor.fleet(), loop_time)
        config = self._supervisor.config
        document |= {
            "pid": os.getpid(),
            "data_dir": str(config.data_dir),
            "runtime_dir": str(config.runtime_dir),
            "config_path": str(config.path) if config.path is not None else None,
            "reload": self._reloader.last,
        }
        wanted = request.get("service")
        if wanted is not None:
            name = self._name(wanted)
            document["services"] = {name: document["services"][name]}
            document["services"][name]["transitions"] = [
                {
                    "at": one.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                    "slot": ward.name,
                    "from": one.was.value,
                    "to": one.now.value,
                    "event": one.event.value,
                    "reason": one.reason,
                }
                for ward in self._supervisor.roster.wards[name]
                for one in ward.transitions
            ]
        return document

    async def _config(self, _: Request) -> Request:
        return {"config": shown(self._supervisor.config), "warnings": list(self._supervisor.config.warnings)}

    # --- telling ---

    async def _start(self, request: Request) -> Request:
        names, timeout_s = self._names(request), _timeout(request)
        for name in names:
            for ward in self._supervisor.roster.wards[name]:
                ward.start("an operator starts it")
        self._keep(start=names)
        return await self._outcome(request, names, timeout_s)

    async def _stop(self, request: Request) -> Request:
        names, timeout_s = self._names(request), _timeout(request)
        wards = self._wards(names)
        for ward in wards:
            ward.unwanted = True
        if request.get("keep"):
            self._keep(stop=names)
        for level in reversed(self._levels(names)):
            for ward in self._wards(level):
                ward.stop(min(timeout_s, self._stop_budget()), "an operator stops it")
            if not request.get("no_wait"):
                await self._supervisor.until(
                    lambda level=level: not any(ward.processes() for ward in self._wards(level)),  # type: ignore[misc]
                    timeout_s + 1.0,
                )
        return {"services": {name: self._state(name) for name in names}}

    async def _restart(self, request: Request) -> Request:
        names, timeout_s = self._names(request), _timeout(request)
        self._keep(start=names)
        for level in self._levels(names):  # needs first, so that what follows finds them
            for ward in self._wards(level):
                ward.restart(min(timeout_s / 2, self._stop_budget()), "an operator restarts it")
            await self._outcome(request, level, timeout_s)
        return {"services": {name: self._state(name) for name in names}}

    async def _reload(self, request: Request) -> Request:
        if request.get("dry_run"):
            return self._reloader.dry_run()
        return await self._reloader.reload(wait=not request.get("no_wait"))

    async def _shutdown(self, _: Request) -> Request:
        self._supervisor.shut_down("shutdown")
        return {"stopping": True}

    async def _log_level(self, request: Request) -> Request:
        level = request.get("level")
        if level not in LEVELS:
            raise Invalid(f"{level!r} is no level; there are {', '.join(LEVELS)}")
        wanted = request.get("service")
        names = [self._name(wanted)] if wanted not in (None, "all") else list(self._supervisor.roster.wards)
        for name in names:
            self._supervisor.levels_of_log[name] = level
        if wanted in (None, "all"):
            set_level(level)
        self._supervisor.tune(Tune(log_level=level), names)
        log.info("log_level.changed", to=level, services=names)
        return {"level": level, "services": names}

    # --- what several need ---

    def _names(self, request: Request) -> list[str]:
        wanted = request.get("service")
        if wanted == "all":
            return [n for n, wards in self._supervisor.roster.wards.items() if wards[0].state is not State.DISABLED]
        name = self._name(wanted)
        if self._supervisor.roster.wards[name][0].state is State.DISABLED:
            raise Invalid(f"{name} is disabled in the configuration")
        return [name]

    def _name(self, wanted: object) -> str:
        names = list(self._supervisor.roster.wards)
        if isinstance(wanted, str) and wanted in names:
            return wanted
        close = difflib.get_close_matches(str(wanted), names, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)} and all"
        raise NotFound(f"there is no service {wanted}{hint}")

    def _wards(self, names: Iterable[str]) -> list[Ward]:
        return [ward for name in names for ward in self._supervisor.roster.wards[name]]

    def _levels(self, names: Iterable[str]) -> list[list[str]]:
        return start_levels([self._supervisor.roster.service(name) for name in names])

    def _state(self, name: str) -> str:
        return self._supervisor.fleet().services[name].state

    def _stop_budget(self) -> float:
        return float(self._supervisor.config.service_manager.shutdown_timeout)

    async def _outcome(self, request: Request, names: list[str], timeout_s: float) -> Request:
        wards = self._wards(names)
        if not request.get("no_wait"):
            await self._supervisor.until(lambda: all(_over(ward) for ward in wards), timeout_s)
            if late := [ward for ward in wards if ward.state not in SERVING or ward.successor is not None]:
                why = late[0].reason
                if lost := self._supervisor.roster.lost_needs(late[0].service):
                    why = f"it needs {' and '.join(lost)}"
                raise Transient(f"{late[0].name} is {late[0].state} after at most {timeout_s:g} s: {why}")
            if kept := [ward for ward in wards if ward.unreplaced]:
                raise Transient(f"{kept[0].name} could not be replaced and serves on: {kept[0].unreplaced}")
        return {"services": {name: self._state(name) for name in names}}

    def _keep(self, start: Iterable[str] = (), stop: Iterable[str] = ()) -> None:
        path = self._supervisor.config.data_dir / STOPPED_FILE
        before = set(stopped_for_good(path.parent))
        after = (before | set(stop)) - set(start)
        if after == before:
            return
        fresh = path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(sorted(after)))
            fresh.rename(path)
        except OSError as error:
            raise Transient(f"{path} cannot be written: {error.strerror}") from error


def _over(ward: Ward) -> bool:
    return ward.settled or ward.state is State.BACKOFF


def _timeout(request: Request) -> float:
    wanted = request.get("timeout_s")
    if wanted is None:
        return _TIMEOUT_S
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 < wanted <= _LONGEST_S:
        raise Invalid(f"timeout_s is {wanted!r}, not a number of seconds in 0..{_LONGEST_S:g}")
    return float(wanted)
