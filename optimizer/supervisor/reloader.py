"""
A new configuration in a running daemon: read, checked as a whole, compared, applied; taken back if a service does not come up
with it. A file with a mistake changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from typing import Any, Final

from optimizer.config.plan import Plan, plan
from optimizer.config.tree import Config
from optimizer.errors import Invalid, Permanent, Rejected, Transient
from optimizer.messages import Tune
from optimizer.supervisor import sockets
from optimizer.supervisor.child import beat_interval
from optimizer.supervisor.lifecycle import RESTING, SERVING, State
from optimizer.supervisor.parent import Supervisor
from optimizer.supervisor.spawn import preload
from optimizer.supervisor.ward import Ward
from optimizer.telemetry.logs import live, log

_RESTART_CAUSE: Final = "reload"


class Reloader:
    """
    Args:
        read: the configuration as file, environment and command line say it now. Raises Invalid.

    `last`: what became of the newest reload, for `status`; None before the first.
    """

    def __init__(self, supervisor: Supervisor, read: Callable[[], Config]) -> None:
        self._supervisor = supervisor
        self._read = read
        self._busy: asyncio.Task[dict[str, Any]] | None = None
        self._again = False
        self.last: dict[str, Any] | None = None

    def dry_run(self) -> dict[str, Any]:
        """
        The plan of a reload, and nothing else.

        Raises:
            Invalid: the configuration has mistakes.
        """
        found = plan(self._supervisor.config, self._read())
        return {"result": "dry_run", "changes": found.document()}

    def on_hangup(self) -> None:
        """
        SIGHUP: reload; signals that come during a reload are one more after it.
        """
        if self._busy is not None and not self._busy.done():
            self._again = True
        elif not self._supervisor.stopping:
            self._begin().add_done_callback(self._hung_up)

    async def reload(self, wait: bool = True) -> dict[str, Any]:
        """
        Reload; `wait`: until it is applied or taken back.

        Raises:
            Invalid: the configuration has mistakes; nothing was changed. Rejected: a reload is under way.
        """
        if self._busy is not None and not self._busy.done():
            raise Rejected("a reload is under way already", 1.0)
        task = self._begin()
        if not wait:
            task.add_done_callback(self._hung_up)
            return {"result": "started", "changes": []}
        return await asyncio.shield(task)

    def _begin(self) -> asyncio.Task[dict[str, Any]]:
        self._busy = asyncio.get_running_loop().create_task(self._reload())
        return self._busy

    def _hung_up(self, task: asyncio.Task[dict[str, Any]]) -> None:
        if (
            not task.cancelled()
            and (error := task.exception()) is not None
            and not isinstance(error, Invalid | Permanent | Transient)
        ):
            log.opt(exception=error).error("config.reload_failed", error=repr(error))
        if self._again:
            self._again = False
            self.on_hangup()

    async def _reload(self) -> dict[str, Any]:
        self._supervisor.tell_reloading()
        try:
            return await self._change()
        finally:
            self._supervisor.tell_reloaded()

    async def _change(self) -> dict[str, Any]:
        old = self._supervisor.config
        try:
            found = plan(old, self._read())
            bound = self._bind(old, found.result)
        except (Invalid, Permanent, Transient) as error:
            self._refused(error)
            raise
        for change in found.changes:
            log.info(
                "config.change",
                key=change.key,
                before=change.before,
                after=change.after,
                how=change.how,
            )
        failed = await self._apply(old, found, bound)
        result = "rolled_back" if failed else "applied"
        return self._done(result, found, failed)

    def _refused(self, error: Invalid | Permanent | Transient) -> None:
        problems = (
            [str(one) for one in error.problems] if isinstance(error, Invalid) and error.problems else [str(error)]
        )
        log.error("config.rejected", problems=problems)
        self._note("rejected", problems=problems, changes=[])
        self._supervisor.announcer.announce(
            "config.rejected", "warning", "config", f"a reload was refused: {problems[0]}", {"problems": problems}
        )

    def _done(self, result: str, found: Plan, failed: str) -> dict[str, Any]:
        changes = found.document()
        pending = [change.key for change in found.changes if change.how == "fixed"]
        log.info("config.reloaded", result=result, changes=len(changes), needs_daemon_restart=pending, failed=failed)
        note = self._note(result, changes=changes, needs_daemon_restart=pending, problems=[failed] if failed else [])
        kind = "config.rejected" if failed else "config.reloaded"
        told = (
            f"a reload was taken back: {failed}"
            if failed
            else f"{len(changes)} changes of the configuration are applied"
        )
        self._supervisor.announcer.announce(kind, "warning" if failed else "info", "config", told, {"changes": changes})
        return note

    def _note(self, result: str, **known: Any) -> dict[str, Any]:
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._supervisor.reloads[result] = self._supervisor.reloads.get(result, 0) + 1
        self.last = {"at": at, "result": result, **known}
        return self.last

    # --- applying ---

    def _bind(self, old: Config, new: Config) -> sockets.Bound:
        """
        Listeners whose port has changed, bound before anything else is touched.
        """
        fresh: sockets.Bound = {}
        try:
            for name in self._supervisor.roster.wards:
                service = self._supervisor.roster.service(name)
                if not new.enabled(service.section):
                    continue
                have = self._supervisor.listeners.get(name, {})
                moved = [one for one in service.listeners if one.name not in have or sockets.moves(one, old, new)]
                for listener in moved:
                    fresh.setdefault(name, {})[listener.name] = sockets.bind(listener, new)
        except (Permanent, Transient):
            _close(bound for listeners in fresh.values() for bound in listeners.values())
            raise
        return fresh

    async def _apply(self, old: Config, found: Plan, fresh: sockets.Bound) -> str:
        before = {name: dict(self._supervisor.listeners.get(name, {})) for name in self._supervisor.roster.wards}
        self._set(found.result, fresh)
        failed = await self._restart(found.restarts, found.result)
        replaced = [before[name][one] for name, listeners in fresh.items() for one in listeners if one in before[name]]
        if not failed or self._supervisor.stopping:  # then nothing comes up any more, whatever the configuration
            _close(replaced)
            self._give_back(found.result)
            return ""
        log.error("config.rolled_back", reason=failed)
        self._set(old, {})
        self._supervisor.listeners = before
        again = await self._restart(found.restarts, old)
        _close(bound for listeners in fresh.values() for bound in listeners.values())
        return f"{failed}; {again}" if again else failed

    def _give_back(self, config: Config) -> None:
        """
        The ports of services that are switched off.
        """
        for name in self._supervisor.roster.wards:
            if not config.enabled(self._supervisor.roster.service(name).section):
                _close(self._supervisor.listeners.pop(name, {}).values())

    def _set(self, config: Config, listeners: sockets.Bound) -> None:
        supervisor = self._supervisor
        before = supervisor.config
        supervisor.config = config
        preload(
            service
            for service in map(supervisor.roster.service, supervisor.roster.wards)
            if config.enabled(service.section)
        )
        for name, bound in listeners.items():
            supervisor.listeners[name] = {**supervisor.listeners.get(name, {}), **bound}
        if config.observability != before.observability:
            supervisor.levels_of_log.clear()
            live(config.observability)
            supervisor.tune(_spoken(config), supervisor.roster.wards)
        if config.service_manager != before.service_manager:
            beat_s = beat_interval(float(config.service_manager.health_check_interval))
            supervisor.tune(Tune(beat_s=beat_s), supervisor.roster.wards)
            for ward in supervisor.roster.all():
                ward.adjust(config.service_manager)

    async def _restart(self, names: Collection[str], config: Config) -> str:
        """
        What the plan touches, with the configuration that is set; returns what failed, or "".
        """
        restarted: list[Ward] = []
        stopped: list[Ward] = []
        budget = float(config.service_manager.shutdown_timeout)
        for name, wards in self._supervisor.roster.wards.items():
            service = self._supervisor.roster.service(name)
            fresh, surplus = self._supervisor.resize(service)
            if config.enabled(service.section):
                restarted += self._renew(wards, fresh, name in names, budget)
            else:
                surplus += wards
            for ward in surplus:
                ward.stop(budget, "the configuration does not want it any more")
            stopped += surplus
        limit = max(float(config.service_manager.start_timeout), budget) + 5.0
        await self._supervisor.until(lambda: not any(ward.processes() for ward in stopped), limit)
        for ward in stopped:
            ward.disable()
        await self._supervisor.until(
            lambda: any(w.state in RESTING for w in restarted) or all(w.settled for w in restarted), limit
        )
        ill = [ward for ward in restarted if ward.state not in SERVING or ward.unreplaced]
        return "; ".join(f"{ward.name} is {ward.state}: {ward.unreplaced or ward.reason}" for ward in ill)

    @staticmethod
    def _renew(wards: list[Ward], fresh: list[Ward], touched: bool, budget_s: float) -> list[Ward]:
        begun: list[Ward] = []
        stopped = any(ward.unwanted for ward in wards)
        for ward in wards:
            if ward in fresh and stopped:
                ward.unwanted = True  # an operator's stop is of the service, however many instances it gets
                ward.stop(budget_s, "an operator has stopped the service")
                continue
            if ward in fresh or ward.state is State.DISABLED:
                ward.start("the configuration wants it")
            elif touched and not ward.unwanted:
                ward.restart(budget_s, "its configuration has changed", _RESTART_CAUSE)
            else:
                continue
            begun.append(ward)
        return begun


def _spoken(config: Config) -> Tune:
    observability = config.observability
    return Tune(
        log_level=observability.log_level, json_logging=observability.json_logging, log_file=observability.log_file
    )


def _close(bound: Iterable[Any]) -> None:
    for one in bound:
        with contextlib.suppress(OSError):
            one.close()
