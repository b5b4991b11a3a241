"""
The order of a stop, over any needs and any state: who needs a service has ended before that service is told to end.

The real parent and its wards; processes are played, and time passes at once.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.catalog import Service
from optimizer.config.loader import load
from optimizer.messages import Message, Ready
from optimizer.supervisor.lifecycle import Event, State
from optimizer.supervisor.parent import Supervisor
from optimizer.supervisor.process import NO_USAGE, Process
from optimizer.supervisor.ward import Ward
from optimizer.telemetry.logs import log

BUDGET_S = 10.0
CONFIG = load(None, {"LLM_OPTIMIZER__SERVICE_MANAGER__SHUTDOWN_TIMEOUT": f"{BUDGET_S:g}s"})


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """
    Every step is logged, and there are thousands of them.
    """
    log.disable("optimizer.supervisor")
    yield
    log.enable("optimizer.supervisor")


class AtOnce(selectors.DefaultSelector):
    """
    Where a loop would wait, its clock moves on.
    """

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "the loop waits for ever"
        self.now += max(0.0, timeout)
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = AtOnce()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


class Played:
    """
    A process that ends some time after it was told to, and not later than it is killed.
    """

    def __init__(self, ward: Ward, slot: str, end_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.ward, self.slot, self.pid = ward, slot, id(self) % 100_000
        self.started_at = self.beat_at = self._loop.time()
        self.ready_at: float | None = None
        self.problems: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.usage = NO_USAGE
        self.told, self.condemned = False, ""
        self.exit_code: int | None = None
        self.signal_name: str | None = None
        self.told_at = self.ended_at = float("inf")
        self._end_s = end_s

    def send(self, message: Message) -> bool:
        return self.ended_at == float("inf")

    def finish(self, budget_s: float) -> None:
        self.told = True
        if cast(Process, self) not in self.ward.leaving:  # else another one has taken its place, and serves
            self.told_at = min(self.told_at, self._loop.time())
        self._loop.call_later(min(self._end_s, budget_s), self.end)

    def kill(self, why: str = "") -> None:
        self.told_at = min(self.told_at, self._loop.time())
        self._loop.call_soon(self.end)

    def ready(self) -> None:
        if self.ended_at == float("inf") and self.ready_at is None:
            self.ready_at = self._loop.time()
            self.ward.hear(cast(Process, self), Ready())

    def end(self) -> None:
        if self.ended_at == float("inf"):
            self.ended_at, self.exit_code = self._loop.time(), 0
            self.ward.end(cast(Process, self))


class Parent(Supervisor):
    """
    Its processes are played.
    """

    def __init__(self, services: list[Service], rng: random.Random) -> None:
        super().__init__(services, CONFIG, b"", {}, (-1, -1))
        self.rng, self.born = rng, cast(dict[str, list[Played]], {service.name: [] for service in services})

    def _born(self, ward: Ward, slot: str) -> Process:
        end_s = self.rng.choice([0.0, 0.01, 1.0, BUDGET_S, 1000.0])
        born = Played(ward, slot, end_s)
        self.born[ward.service.name].append(born)
        if self.rng.random() < 0.8:
            self._loop.call_later(self.rng.random(), born.ready)
        if self.rng.random() < 0.3:
            self._loop.call_later(self.rng.random() * 3, born.end)
        return cast(Process, born)

    def on_ended(self, slot: str) -> None:
        assert slot


@st.composite
def tables(draw: st.DrawFn) -> list[Service]:
    """
    Services that need some of those before them; all borrow one section of the configuration.
    """
    names = [f"s{i}" for i in range(draw(st.integers(1, 7)))]
    return [
        Service(
            name,
            tuple(draw(st.sets(st.sampled_from(names[:i]), max_size=3))) if i else (),
            section="integrations",
            overlaps=draw(st.booleans()),
        )
        for i, name in enumerate(names)
    ]


async def stopped(services: list[Service], rng: random.Random) -> tuple[Parent, float, float]:
    """
    A parent that was stopped at some moment of its life; when that began, and when it was done.
    """
    parent = Parent(services, rng)
    for ward in parent.roster.all():
        ward.happen(Event.BEGIN, "test")
    for _ in range(rng.randrange(30)):
        ward = rng.choice(parent.roster.all())
        if rng.random() < 0.2:
            ward.restart(BUDGET_S, "test")
        elif rng.random() < 0.1:
            ward.stop(BUDGET_S, "test")
        parent._start_the_waiting()
        await asyncio.sleep(rng.random() * 0.3)
    parent.shut_down("test")
    began = parent.time()
    await parent._stop_all()
    return parent, began, parent.time()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(services=tables(), seed=st.integers(0, 2**32))
def test_dependants_end_before_what_they_need_is_stopped(services: list[Service], seed: int) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        parent, began, done = runner.run(stopped(services, random.Random(seed)))
    assert done - began <= BUDGET_S + 1.0
    for service in services:
        mine = parent.born[service.name]
        assert all(one.ended_at <= done for one in mine)
        assert {ward.state for ward in parent.roster.wards[service.name]} == {State.STOPPED}
        for need in service.needs:
            # what was stopped before, or died, is no part of this stop
            begins = [one.told_at for one in parent.born[need] if began <= one.told_at < float("inf")]
            ends = [one.ended_at for one in mine if one.ended_at > began]
            assert max(ends, default=0) <= min(begins, default=float("inf"))
