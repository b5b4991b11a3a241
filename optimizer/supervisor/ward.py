"""
One slot of a service in the parent's care: its state and its processes. Decides by the table, acts by the process.

Usually one process; two while a planned restart makes a successor ready, or while the one that was replaced finishes.
"""

from __future__ import annotations

import asyncio
import random
import string
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal

from optimizer.catalog import Service
from optimizer.config.service_manager_settings import Settings
from optimizer.errors import EXIT_CONFIGURATION, EXIT_TEMPORARY
from optimizer.messages import Heartbeat, Message, Ready
from optimizer.resilience import RestartPolicy
from optimizer.supervisor.keeper import COMMANDED, Ending, Herald, Keeper, Timers, Transition
from optimizer.supervisor.lifecycle import ALIVE, SERVING, SETTLED, TABLE, Effect, Event, State
from optimizer.supervisor.process import Process
from optimizer.telemetry.logs import log

_TRANSITIONS: Final = 200  # kept and shown by `status SERVICE`


class Ward:
    """
    A slot of a service and its processes.

    Args:
        index: of the slot among the service's instances.
        settings: of [service_manager]; `adjust` gives newer ones.
        born: makes a process under a slot's name, which tells the ward what it says and when it ends. Raises OSError.
        loop: gives the time and delays; the running one unless a test has its own.
    """

    def __init__(
        self,
        service: Service,
        index: int,
        settings: Settings,
        born: Callable[[Ward, str], Process],
        keeper: Keeper,
        herald: Herald,
        rng: random.Random | None = None,
        loop: Timers | None = None,
    ) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._fork, self._keeper, self._herald = born, keeper, herald
        self._rng = rng or random.Random()
        self.service, self.index = service, index
        self.state, self.reason = State.INITIALIZING, ""
        self.policy = RestartPolicy(attempts=0, base_s=0, longest_s=0, jitter=0, stable_after_s=0)
        self.process: Process | None = None
        self.successor: Process | None = None
        self.leaving: set[Process] = set()
        self.incarnation = 0
        self.restarts: Counter[str] = Counter()
        self.transitions: deque[Transition] = deque(maxlen=_TRANSITIONS)
        self.entered: Counter[str] = Counter()
        self.last_exit: str | None = None
        self.next_retry_at: float | None = None
        self.start_secs: float | None = None
        self.memory_limit_bytes = 0  # 0: none
        self.unwanted = False  # an operator has stopped it
        self.unreplaced = ""  # why the newest planned restart was not made
        self._budget_s = 30.0
        self._delay_s = 0.0
        self._cause = COMMANDED  # of the next start
        self._again = False
        self._failed = False
        self._timer: asyncio.TimerHandle | None = None
        self.adjust(settings)

    def adjust(self, settings: Settings) -> None:
        """
        Keep it by these settings from now on.
        """
        self.settings = settings
        self.policy.attempts = settings.max_restart_attempts
        self.policy.base_s = float(settings.restart_backoff_base)
        self.policy.longest_s = float(settings.restart_backoff_max)
        self.policy.jitter, self.policy.stable_after_s = settings.restart_jitter, float(settings.stable_after)

    @property
    def name(self) -> str:
        """
        Of the slot, e.g. `rest_api-0`.
        """
        return f"{self.service.name}-{self.index}"

    @property
    def circuit(self) -> Literal["closed", "open", "half_open"]:
        """
        Open: given up but for a try every restart_backoff_max; half_open: in such a try, or soon after.
        """
        if self.state is State.FAILED:
            return "open"
        return "half_open" if self.policy.in_a_row > self.policy.attempts else "closed"

    @property
    def settled(self) -> bool:
        """
        Nothing is under way: it serves, or rests until somebody or a delay calls it.
        """
        return self.state in SETTLED and self.successor is None

    # --- what others want of it ---

    def start(self, reason: str) -> None:
        """
        It is to run, as soon as what it needs is ready; not any more when the daemon stops.
        """
        if self._keeper.stopping:
            return
        self.unwanted = False
        if self.state is State.STOPPING:
            self._again = True
            return
        self._cause = COMMANDED
        self.policy.clear()
        self.happen(Event.BEGIN, reason)

    def stop(self, budget_s: float, reason: str) -> None:
        """
        End it within `budget_s`, by force if need be.
        """
        self._budget_s, self._again = budget_s, False
        for process in self.leaving:
            process.finish(budget_s)
        self.happen(Event.STOP, reason)

    def restart(self, budget_s: float, reason: str, cause: str = COMMANDED) -> None:
        """
        It is wanted anew: without a gap where its service can overlap, else by an end within `budget_s` and a start; not any
        more when the daemon stops.
        """
        if self._keeper.stopping:
            return
        self.unwanted, self.unreplaced = False, ""
        self._budget_s, self._cause = budget_s, cause
        if cause == COMMANDED:
            self.policy.clear()  # the operator vouches for it
        if self.state in SERVING and self.service.overlaps and self.process is not None and not self.process.condemned:
            self.happen(Event.REPLACE, reason)
            return
        self._again = self.state in ALIVE or self.state is State.STOPPING
        self.happen(Event.RESTART, reason)

    def disable(self) -> None:
        """
        The configuration does not want it; it has been stopped.
        """
        self.unwanted = False
        self.happen(Event.DISABLE, "disabled in the configuration")

    def kill_all(self) -> None:
        """
        End all its processes now.
        """
        for process in self.processes():
            process.kill()

    def processes(self) -> list[Process]:
        """
        Those that live.
        """
        return [one for one in (self.process, self.successor, *self.leaving) if one is not None]

    def send(self, message: Message) -> None:
        """
        To all its processes.
        """
        for process in self.processes():
            if not process.send(message):
                log.debug("control.not_sent", target=process.slot, message=type(message).__name__)

    def watch(self, now: float) -> None:
        """
        Look whether a deadline has passed.
        """
        limit = float(self.settings.start_timeout)
        late = f"not ready within {limit:g} s"
        if self.successor is not None and now - self.successor.started_at > limit:
            self.successor.kill(late)
        process = self.process
        if process is None or process.condemned:
            return
        if self.state is State.STARTING and now - process.started_at > limit:
            process.condemned = late
            self.happen(Event.LATE, late)
        elif self.state in SERVING:
            silent = now - process.beat_at
            if silent > float(self.settings.health_check_interval) * self.settings.failure_threshold:
                self.happen(Event.HUNG, f"its work loop has not been heard for {silent:.1f} s")
        if process.ready_at is not None:
            self.policy.survived(now, now - process.ready_at)
            self._weigh(process, now - process.ready_at)

    def _weigh(self, process: Process, ready_for_s: float) -> None:
        used, limit = process.usage.memory_bytes, self.memory_limit_bytes
        if 0 < limit < used and ready_for_s >= self.policy.stable_after_s and self.successor is None:
            reason = f"it uses {used / 2**20:.0f} MiB, more than its memory_limit of {limit / 2**20:.0f} MiB"
            self.restart(float(self.settings.shutdown_timeout), reason, "memory_limit")

    def missed(self, now: float) -> int:
        """
        Heartbeats that its process owes; they belong to the process and end with it.
        """
        if self.process is None or self.state not in SERVING:
            return 0
        return int((now - self.process.beat_at) / float(self.settings.health_check_interval))

    # --- the table ---

    def happen(self, event: Event, reason: str) -> None:
        """
        Look up what an event means now, and do it.
        """
        before, step = self.state, TABLE[self.state, event]
        if step == (before, ()):
            log.trace("service.ignored", target=self.name, state=before, on=event)
            return
        self.state, self.reason = step.state, reason
        self.transitions.append(Transition(datetime.now(UTC), before, step.state, event, reason))
        if step.state is not before:
            self.entered[step.state.value] += 1
        log.info("service.state", target=self.name, was=before, now=step.state, on=event, reason=reason)
        for effect in step.effects:
            self._do(effect)
        self._keeper.on_change(self)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Effect.SPAWN:
                self._spawn()
            case Effect.STOP:
                self._forget()
                if self.process is not None:
                    self.process.finish(self._budget_s)
                if self.successor is not None:
                    self.successor.told = True
                    self.successor.kill()
                    self.leaving.add(self.successor)
                    self.successor = None
            case Effect.KILL if self.process is not None:
                self.process.kill()
            case Effect.ABORT if self.process is not None:
                self.process.abort("hang")
            case Effect.SCHEDULE:
                self.next_retry_at = self._loop.time() + self._delay_s
                self._timer = self._loop.call_later(self._delay_s, self.happen, Event.DUE, "the delay is over")
            case Effect.FORGET:
                self._forget()
            case Effect.SPAWN_SUCCESSOR:
                self._spawn_successor()
            case Effect.SWAP:
                self._swap()
            case Effect.DROP_SUCCESSOR:
                self.successor, self.unreplaced = None, self.reason

    def _forget(self) -> None:
        self.next_retry_at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _born(self) -> Process:
        self.incarnation += 1
        taken = {process.slot for process in self.processes()}
        slot = next(name for letter in ("", *string.ascii_lowercase[1:]) if (name := self.name + letter) not in taken)
        process = self._fork(self, slot)
        log.info("service.forked", target=slot, child=process.pid, child_incarnation=self.incarnation)
        return process

    def _spawn(self) -> None:
        self._forget()
        self._again = False
        first = not self.incarnation
        try:
            self.process = self._born()
        except OSError as error:
            self._unexpected(Ending(reason="startup", why=f"fork: {error.strerror}"), 0, 0.0)
        else:
            if not first:
                self.restarts[self._cause] += 1

    def _spawn_successor(self) -> None:
        if self.successor is not None:
            return
        try:
            self.successor = self._born()
        except OSError as error:
            self.happen(Event.UNREPLACED, f"the successor could not be forked: {error.strerror}")

    def _swap(self) -> None:
        if self.process is not None:
            self.leaving.add(self.process)
            self.process.finish(self._budget_s)
            self.restarts[self._cause] += 1
        self.process, self.successor = self.successor, None

    # --- what its processes say ---

    def hear(self, process: Process, message: Message) -> None:
        """
        One of its processes says something.
        """
        if isinstance(message, Ready):
            self._ready(process)
        elif isinstance(message, Heartbeat):
            self._beat(process, message)
        else:
            self._keeper.on_message(self, message)

    def _ready(self, process: Process) -> None:
        took = (process.ready_at or 0.0) - process.started_at
        told = f"ready {took * 1000:.0f} ms after the fork"
        if process is self.successor and self.state in SERVING:
            self.start_secs = took
            self.happen(Event.SUCCEEDED, f"the successor is {told}")
        elif process is self.process and self.state is State.STARTING:
            self.start_secs = took
            recovered, self._failed = self._failed, False
            self.happen(Event.READY, told)
            if recovered:
                self._herald.recovered(self)

    def _beat(self, process: Process, message: Heartbeat) -> None:
        changed = (message.problems, message.metadata) != (process.problems, process.metadata)
        process.problems, process.metadata = message.problems, message.metadata
        if process is not self.process or process.condemned:
            return
        if process.problems and self.state is State.RUNNING:
            self.happen(Event.TROUBLED, "; ".join(process.problems.values()))
        elif not process.problems and self.state is State.DEGRADED:
            self.happen(Event.CLEARED, "it reports no problem any more")
        elif changed:
            self._keeper.on_news(self)

    def end(self, process: Process) -> None:
        """
        One of its processes has ended.
        """
        ending = self._ending(process)
        self.last_exit = str(ending)
        log.info("service.ended", target=process.slot, child=process.pid, ending=str(ending))
        self._keeper.on_ended(process.slot)
        ready_for = self._loop.time() - process.ready_at if process.ready_at is not None else 0.0
        if process in self.leaving:
            self.leaving.discard(process)
            self._keeper.on_change(self)
        elif process is self.successor:
            if self.state in SERVING:
                self._herald.failed(self, ending, process.pid, None)
            self.successor = None
            self.happen(Event.UNREPLACED, f"the successor did not become ready: {ending}")
        elif self.state is State.STOPPING:
            self.process, again, self._again = None, self._again, False
            self.happen(Event.AGAIN if again else Event.ENDED, "as told")
        else:
            self.process = None
            self._unexpected(ending, process.pid, ready_for)

    def _unexpected(self, ending: Ending, pid: int, ready_for_s: float) -> None:
        self._failed, self._cause = True, ending.reason
        if self.successor is not None:
            self._herald.failed(self, ending, pid, 0.0)
            self.restarts[ending.reason] += 1
            self.happen(Event.INHERITED, str(ending))
            return
        if ending.exit_code == EXIT_CONFIGURATION:
            self._herald.failed(self, ending, pid, None)
            self.happen(Event.REFUSED, str(ending))
            return
        opened = False
        if ending.reason == "dependency":
            self._delay_s = self.policy.base_s  # not its fault, so not counted; its needs have back-offs of their own
        else:
            self._delay_s, opened = self.policy.died(self._loop.time(), ready_for_s, self._rng)
        self._herald.failed(self, ending, pid, self._delay_s)
        self.happen(Event.GAVE_UP if opened else Event.DIED, str(ending))
        if opened and self.policy.in_a_row == self.policy.attempts + 1:
            self._herald.opened(self, self._delay_s)

    def _ending(self, process: Process) -> Ending:
        name, code = process.signal_name, process.exit_code
        if process.told or self.state is State.STOPPING:
            reason = COMMANDED
        elif code == EXIT_CONFIGURATION:
            reason = "configuration"
        elif process.condemned == "hang":
            reason = "hang"
        elif name == "SIGKILL" and not process.condemned and self._keeper.ran_out_of_memory():
            reason = "oom"
        elif process.ready_at is None and self._keeper.lost_needs(self.service):
            reason = "dependency"
        elif code == EXIT_TEMPORARY:
            reason = "temporary"
        elif process.ready_at is None:
            reason = "startup"
        else:
            reason = "crash"
        why = process.condemned if process.condemned != reason else ""
        return Ending(reason=reason, exit_code=None if name else code, signal=name, why=why)
