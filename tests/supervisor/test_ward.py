"""
A ward over processes that a test plays, on a clock that a test turns: what holds after any order of events.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.catalog import Service
from optimizer.config.service_manager_settings import Settings
from optimizer.messages import Heartbeat, Message, Ready
from optimizer.supervisor.keeper import Ending
from optimizer.supervisor.lifecycle import ALIVE, SERVING, Event, State
from optimizer.supervisor.process import NO_USAGE, Process
from optimizer.supervisor.ward import Ward

MANAGER = Settings(restart_jitter=0.0)


class Timer:
    def __init__(self, at: float, act: Callable[[], object]) -> None:
        self.at, self.act, self.cancelled = at, act, False

    def cancel(self) -> None:
        self.cancelled = True

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class Loop:
    """
    Time that stands until `pass_(seconds)`.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        timer = Timer(self.now + delay, lambda: callback(*args))
        heapq.heappush(self.timers, timer)
        return cast(asyncio.TimerHandle, timer)

    def pass_(self, seconds: float) -> None:
        until = self.now + seconds
        while self.timers and self.timers[0].at <= until:
            timer = heapq.heappop(self.timers)
            self.now = max(self.now, timer.at)
            if not timer.cancelled:
                timer.act()
        self.now = until


class Played:
    """
    A process of a test: does nothing by itself.
    """

    def __init__(self, ward: Ward, slot: str, now: float) -> None:
        self.ward, self.slot, self.pid = ward, slot, id(self) % 100_000
        self.started_at = self.beat_at = now
        self.ready_at: float | None = None
        self.problems: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.told, self.condemned, self.ended = False, "", False
        self.usage = NO_USAGE
        self.exit_code: int | None = None
        self.signal_name: str | None = None

    def send(self, message: Message) -> bool:
        return not self.ended

    def finish(self, budget_s: float) -> None:
        self.told = True

    def abort(self, why: str) -> None:
        self.condemned = why

    def kill(self, why: str = "") -> None:
        self.condemned = self.condemned or why

    def say(self, message: Message, now: float) -> None:
        if isinstance(message, Ready):
            self.ready_at = self.beat_at = now
        self.ward.hear(cast(Process, self), message)

    def end(self, exit_code: int = 0, signal_name: str | None = None) -> None:
        self.ended, self.exit_code, self.signal_name = True, exit_code, signal_name
        self.ward.end(cast(Process, self))


class World:
    """
    One ward, its clock, its processes, and the keeper that hears of it.
    """

    def __init__(self, manager: Settings = MANAGER, overlaps: bool = False, lost: tuple[str, ...] = ()) -> None:
        self.loop = Loop()
        self.born: list[Played] = []
        self.failures: list[tuple[str, float | None]] = []
        self.openings = 0
        self.recoveries = 0
        self.lost = list(lost)
        self.oom = False
        self.stopping = False
        self.fork_fails = False
        service = Service("rest_api", ("storage",), overlaps=overlaps)
        self.ward = Ward(service, 0, manager, self._bear, self, self, random.Random(1), self.loop)

    def _bear(self, ward: Ward, slot: str) -> Process:
        if self.fork_fails:
            raise OSError(11, "Resource temporarily unavailable")
        assert slot not in [one.slot for one in self.living]
        self.born.append(Played(ward, slot, self.loop.now))
        return cast(Process, self.born[-1])

    @property
    def state(self) -> State:
        return self.ward.state

    @property
    def process(self) -> Played | None:
        return cast(Played | None, self.ward.process)

    @property
    def living(self) -> list[Played]:
        return [one for one in self.born if not one.ended]

    def run(self) -> Played:
        """
        Bring it up.
        """
        self.ward.start("test")
        self.ward.happen(Event.NEEDS_READY, "test")
        self.born[-1].say(Ready(), self.loop.now)
        return self.born[-1]

    def on_change(self, ward: Ward) -> None:
        assert ward is self.ward

    def on_news(self, ward: Ward) -> None:
        assert ward is self.ward

    def on_message(self, ward: Ward, message: Message) -> None:
        raise AssertionError(message)

    def on_ended(self, slot: str) -> None:
        assert slot.startswith("rest_api-0")

    def failed(self, ward: Ward, ending: Ending, pid: int, next_retry_s: float | None) -> None:
        self.failures.append((ending.reason, next_retry_s))

    def opened(self, ward: Ward, next_retry_s: float) -> None:
        self.openings += 1

    def recovered(self, ward: Ward) -> None:
        self.recoveries += 1

    def lost_needs(self, service: Service) -> list[str]:
        return self.lost

    def ran_out_of_memory(self) -> bool:
        return self.oom


def test_crashes_back_off_then_the_circuit_opens_and_a_probe_closes_it() -> None:
    world = World()
    world.run().end(1)
    for _ in range(3):
        world.loop.pass_(10)
        world.born[-1].end(1)
    assert [delay for _, delay in world.failures] == [0, 1, 2, 60]
    assert [reason for reason, _ in world.failures] == ["crash", "startup", "startup", "startup"]
    assert (world.state, world.ward.circuit, world.openings) == (State.FAILED, "open", 1)
    world.loop.pass_(61)
    assert (world.state, world.ward.circuit) == (State.STARTING, "half_open")
    world.born[-1].say(Ready(), world.loop.now)
    assert world.recoveries == 1
    world.loop.pass_(700)
    world.ward.watch(world.loop.now - 100)  # a deadline of silence is not what is looked at here
    assert world.ward.circuit == "closed"


def test_a_restart_by_an_operator_closes_the_circuit_at_once() -> None:
    world = World(replace(MANAGER, max_restart_attempts=0))
    world.run().end(1)
    assert world.ward.circuit == "open"
    world.ward.restart(5, "test")
    assert (world.state, world.ward.circuit) == (State.STARTING, "closed")


def test_a_wrong_configuration_is_not_tried_again() -> None:
    world = World()
    world.run().end(78)
    world.loop.pass_(10_000)
    assert (world.state, len(world.born), world.failures) == (State.FAILED, 1, [("configuration", None)])


@pytest.mark.parametrize(
    ("exit_code", "signal_name", "ready", "oom", "lost", "reason"),
    [
        (1, None, True, False, (), "crash"),
        (-9, "SIGKILL", True, False, (), "crash"),
        (-9, "SIGKILL", True, True, (), "oom"),
        (75, None, True, False, (), "temporary"),
        (75, None, False, False, (), "temporary"),
        (1, None, False, False, (), "startup"),
        (75, None, False, False, ("storage",), "dependency"),
    ],
)
def test_how_an_end_is_classed(
    exit_code: int, signal_name: str | None, ready: bool, oom: bool, lost: tuple[str, ...], reason: str
) -> None:
    world = World(lost=lost)
    world.oom = oom
    world.ward.start("test")
    world.ward.happen(Event.NEEDS_READY, "test")
    if ready:
        world.born[-1].say(Ready(), world.loop.now)
    world.born[-1].end(exit_code, signal_name)
    assert world.failures[0][0] == reason
    assert world.ward.policy.in_a_row == (0 if reason == "dependency" else 1)
    world.loop.pass_(2)
    assert world.ward.restarts == {reason: 1}


def test_silence_is_a_hang_and_counts_belong_to_the_process() -> None:
    world = World()
    first = world.run()
    world.loop.pass_(89)
    world.ward.watch(world.loop.now)
    assert (world.ward.missed(world.loop.now), first.condemned) == (2, "")
    world.loop.pass_(2)
    world.ward.watch(world.loop.now)
    assert (world.state, first.condemned) == (State.DEGRADED, "hang")
    first.say(Heartbeat(), world.loop.now)  # too late
    assert world.state is State.DEGRADED
    first.end(-6, "SIGABRT")
    assert world.failures == [("hang", 0)]
    world.loop.pass_(0)
    world.born[-1].say(Ready(), world.loop.now)
    assert world.ward.missed(world.loop.now) == 0


def test_a_start_that_takes_too_long_is_ended() -> None:
    world = World()
    world.ward.start("test")
    world.ward.happen(Event.NEEDS_READY, "test")
    world.loop.pass_(61)
    world.ward.watch(world.loop.now)
    assert world.born[0].condemned == "not ready within 60 s"
    world.born[0].end(-9, "SIGKILL")
    assert world.failures == [("startup", 0)]
    assert world.ward.last_exit == "startup: not ready within 60 s, SIGKILL"


def test_too_much_memory_is_a_planned_restart_but_not_of_a_young_process() -> None:
    world = World(overlaps=True)
    world.ward.memory_limit_bytes = 1000
    first = world.run()
    first.usage = replace(NO_USAGE, memory_bytes=1001)
    for seconds in (59, 2):
        assert len(world.born) == 1
        world.loop.pass_(seconds)
        first.beat_at = world.loop.now
        world.ward.watch(world.loop.now)
    world.born[1].say(Ready(), world.loop.now)
    assert (first.told, world.state, world.ward.restarts) == (True, State.RUNNING, {"memory_limit": 1})


def test_a_fork_that_fails_is_tried_again() -> None:
    world = World()
    world.fork_fails = True
    world.ward.start("test")
    world.ward.happen(Event.NEEDS_READY, "test")
    waited = world.state
    world.fork_fails = False
    world.loop.pass_(0)
    assert (waited, world.state) == (State.BACKOFF, State.STARTING)


def test_a_planned_restart_has_no_gap() -> None:
    world = World(overlaps=True)
    first = world.run()
    world.ward.restart(5, "test")
    assert (world.state, world.living, first.told) == (State.RUNNING, world.born, False)
    second = world.born[1]
    assert (first.slot, second.slot) == ("rest_api-0", "rest_api-0b")
    second.say(Ready(), world.loop.now)
    assert (first.told, world.process, world.state) == (True, second, State.RUNNING)
    first.end(0)
    assert (world.ward.restarts, world.failures) == ({"commanded": 1}, [])
    assert world.ward.last_exit == "commanded: exit code 0"


def test_nothing_is_begun_while_the_daemon_stops() -> None:
    world = World()
    first = world.run()
    world.stopping = True
    world.ward.stop(5, "the daemon stops")
    world.ward.restart(5, "test")
    world.ward.start("test")
    first.end(0)
    assert (world.state, len(world.born)) == (State.STOPPED, 1)


def test_a_successor_that_fails_leaves_the_first_serving() -> None:
    world = World(overlaps=True)
    first = world.run()
    world.ward.restart(5, "test")
    world.born[1].end(1)
    assert (world.state, world.process, first.told) == (State.RUNNING, first, False)
    assert "startup: exit code 1" in world.ward.unreplaced


def test_a_successor_takes_over_from_one_that_dies() -> None:
    world = World(overlaps=True)
    first = world.run()
    world.ward.restart(5, "test")
    first.end(-9, "SIGKILL")
    assert (world.state, world.process) == (State.STARTING, world.born[1])
    world.born[1].say(Ready(), world.loop.now)
    assert (world.state, len(world.born)) == (State.RUNNING, 2)


ACTS = st.sampled_from(
    ["start", "needs", "stop", "restart", "ready", "trouble", "clear", "die", "refuse", "obey", "time", "watch", "forks", "lost"]
)  # fmt: skip


def act(world: World, name: str, rng: random.Random) -> None:
    some = rng.choice(world.living) if world.living else None
    if name == "start":
        world.ward.start("test")
    elif name == "needs" and world.state is State.WAITING:
        world.ward.happen(Event.NEEDS_READY, "test")
    elif name == "stop":
        world.ward.unwanted = True
        world.ward.stop(5, "test")
    elif name == "restart":
        world.ward.restart(5, "test")
    elif name == "time":
        world.loop.pass_(rng.choice([0, 0.5, 3, 61, 200]))
    elif name == "watch":
        world.ward.watch(world.loop.now)
    elif name == "forks":
        world.fork_fails = not world.fork_fails
    elif name == "lost":
        world.lost = [] if world.lost else ["storage"]
    elif some is not None:
        play(world, some, name)


def play(world: World, some: Played, name: str) -> None:
    if name == "ready" and some.ready_at is None:
        some.say(Ready(), world.loop.now)
    elif name in ("trouble", "clear"):
        some.beat_at = world.loop.now
        some.say(Heartbeat(problems={"a": "b"} if name == "trouble" else {}), world.loop.now)
    elif name == "die":
        some.end(-9, "SIGKILL")
    elif name == "refuse":
        some.end(78)
    elif name == "obey" and (some.told or some.condemned):
        some.end(0)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(overlaps=st.booleans(), names=st.lists(ACTS, max_size=60), seed=st.integers(0, 2**16))
def test_whatever_happens(overlaps: bool, names: list[str], seed: int) -> None:
    world, rng = World(overlaps=overlaps), random.Random(seed)
    world.run()
    for name in names:
        before = len(world.born)
        act(world, name, rng)
        ward = world.ward
        assert (ward.process is not None) is (ward.state in (*ALIVE, State.STOPPING))
        assert ward.successor is None or ward.state in SERVING
        current = [one for one in world.living if not one.told]
        assert len(current) <= (2 if overlaps else 1)  # never two of a slot, but for a successor
        if ward.unwanted and name != "stop":
            assert len(world.born) == before  # never a start after an operator's stop

    world.fork_fails, world.lost = False, []
    for _ in range(10):  # there is a way out of wherever it is
        if world.state in SERVING:
            break
        lead_out(world, rng)
    assert world.state in SERVING


def lead_out(world: World, rng: random.Random) -> None:
    if world.state is State.WAITING:
        act(world, "needs", rng)
    elif world.state in (State.STOPPING, State.STARTING):
        for one in list(world.living):
            if one.told or one.condemned:
                one.end(-9, "SIGKILL")
            elif one.ready_at is None:
                one.say(Ready(), world.loop.now)
    else:
        world.ward.restart(5, "test")
