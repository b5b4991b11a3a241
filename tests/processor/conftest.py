"""
A processor whose storage fails, and whose process dies, wherever the test says.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from optimizer.bus.memory import MemoryStorage
from optimizer.clock import ManualClock
from optimizer.config.loader import load
from optimizer.decision.features import encode
from optimizer.decision.learner import LearnerState
from optimizer.decision.policy import Snapshot
from optimizer.decision.ticket import Ticket, seal
from optimizer.errors import Conflict, Transient
from optimizer.messages import Appended, Log, Page, Record, State, States, StorageReport
from optimizer.model import POLICIES, Event, PolicyKind, Price, Task, TaskStats, Variant
from optimizer.service import Frame
from optimizer.telemetry.metrics import Metrics, open_metrics
from workers.processor.settings import Settings
from workers.processor.study import CHECKPOINT, Checkpoint, Study

T = TypeVar("T")
SECRET = b"s" * 32
AT = ManualClock().at()
CONFIG = load(env={})
ROUNDS = 2000  # of one course, at most; the longest takes some hundred


class Killed(BaseException):
    """
    The process is gone: nothing after this instant happens.
    """


@dataclass
class Faulty:
    """
    A storage that does, at each call, what the next step of the plan says:

    `ok` · `die`, `die_after`: the process is killed before or after storage acted · `lost`, `lost_after`: no answer, before or
    after storage acted · `later`: no answer, and storage acts only after some more calls · a function: somebody else does
    something to storage first.
    """

    storage: MemoryStorage
    plan: list[Any] = field(default_factory=list)
    waiting: list[Callable[[], Awaitable[Any]]] = field(default_factory=list)
    commits: list[dict[str, int]] = field(default_factory=list)  # sizes of what each one put
    _calls: int = 0

    async def _do(self, act: Callable[[], Awaitable[T]]) -> T:
        self._calls += 1
        if self.waiting and self._calls % 3 == 0:
            with contextlib.suppress(Conflict):  # nobody hears of it
                await self.waiting.pop(0)()
        step = self.plan.pop(0) if self.plan else "ok"
        if callable(step):
            await step()
        if step == "die":
            raise Killed
        if step == "later":
            self.waiting.append(act)
        if step in ("lost", "later"):
            raise Transient("storage did not answer")
        answer = await act()
        if step == "die_after":
            raise Killed
        if step == "lost_after":
            raise Transient("storage did not answer")
        return answer

    async def append(self, records: Sequence[Record]) -> Appended:
        return await self._do(lambda: self.storage.append(records))

    async def read(self, log: Log, after: int, limit: int = 1000) -> Page:
        return await self._do(lambda: self.storage.read(log, after, limit))

    async def commit(
        self,
        puts: Mapping[str, bytes] | None = None,
        deletes: Sequence[str] = (),
        expect: Mapping[str, int] | None = None,
        system: Sequence[bytes] = (),
    ) -> int:
        self.commits.append({key: len(body) for key, body in (puts or {}).items()})
        return await self._do(lambda: self.storage.commit(puts, deletes, expect, system))

    async def get(self, keys: Sequence[str]) -> dict[str, State]:
        return await self._do(lambda: self.storage.get(keys))

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> States:
        return await self._do(lambda: self.storage.scan(prefix, after, limit))

    async def inspect(self) -> StorageReport:
        return await self._do(self.storage.inspect)


class Tasks(Mapping[str, State]):
    """
    The declarations as the processor's mirror has them: those of storage, or of the moment when it was frozen.
    """

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self.frozen: dict[str, State] | None = None

    def freeze(self) -> None:
        """
        The word of changes does not come for a while.
        """
        self.frozen = dict(self.items())

    def __getitem__(self, key: str) -> State:
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(key for key in list(self._known) if key.startswith("task/"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def _known(self) -> Mapping[str, State]:
        return self._storage.states if self.frozen is None else self.frozen


class Lab:
    """
    One storage, and processors of it, one after another.
    """

    def __init__(self, folder: Path, metrics: Metrics, **options: Any) -> None:
        self.storage = MemoryStorage()
        self.faulty = Faulty(self.storage)
        self.metrics = metrics
        self.clock = ManualClock()
        self.tasks = Tasks(self.storage)
        self.frame: Frame[Settings] = Frame(
            name="processor",
            slot="processor-0",
            config=CONFIG,
            settings=Settings(**options),
            runtime_dir=folder,
            secret=SECRET,
            clock=self.clock,
        )
        self._page = 2000
        self._changed: set[str] = set()
        self.study = self.born()
        self.storage.subscribe("storage", ["state/task/"], self._on_task, lambda: None)

    def born(self, page: int = 2000) -> Study:
        """
        A new process of the processor, which reads all declarations.
        """
        self.tasks.frozen = None
        self._changed.clear()
        self._page = page
        self.study = Study(self.frame, self.faulty, self.metrics, page)
        return self.study

    def _on_task(self, topic: str, _: object) -> None:
        self._changed.add(topic.removeprefix("state/task/"))
        if self.tasks.frozen is None:
            self.thaw()

    def thaw(self) -> None:
        """
        The word of all changes has come.
        """
        self.tasks.frozen = None
        self.study.touched |= self._changed
        self._changed.clear()

    async def learn(self) -> None:
        """
        Until nothing is left to learn and the plan is at its end, whatever dies meanwhile.
        """
        for _ in range(ROUNDS):
            try:
                if not await self.study.advance(self.tasks) and not self.faulty.plan:
                    if self.tasks.frozen is None:
                        return
                    self.thaw()
            except Killed:
                self.born(self._page)
            except (Transient, Conflict):
                self.study.doubt()
        raise AssertionError(f"still not learned after {ROUNDS} passes")

    async def declare(self, *tasks: Task) -> None:
        """
        As an operator does.
        """
        await self.storage.commit({f"task/{task.task}": msgspec.msgpack.encode(task) for task in tasks})

    async def delete(self, name: str) -> None:
        """
        As an operator does.
        """
        await self.storage.commit(deletes=[f"{kind}/{name}" for kind in ("task", "policy", "stats", "learn")])

    async def happen(self, *events: Event) -> None:
        """
        Make events durable.
        """
        await self.storage.append([Record(e.id, e.selection_id, msgspec.msgpack.encode(e)) for e in events])

    def read(self, key: str, kind: type[T]) -> T:
        """
        A value of the state.
        """
        return msgspec.msgpack.decode(self.storage.states[key].body, type=kind)

    def stats(self, name: str) -> TaskStats:
        return self.read(f"stats/{name}", TaskStats)

    def policy(self, name: str) -> Snapshot:
        return self.read(f"policy/{name}", Snapshot)

    @property
    def checkpoint(self) -> Checkpoint:
        return self.read(CHECKPOINT, Checkpoint)

    def learned(self) -> dict[str, bytes]:
        """
        Everything that is learned, by task; versions count commits, of which there may be more or fewer.
        """
        found = {}
        for key in self.storage.states:
            if key.startswith("learn/"):
                state = self.read(key, LearnerState)
                state.version = 0
                state.task = msgspec.structs.replace(state.task, created_at=None)
                found[key.removeprefix("learn/")] = msgspec.msgpack.encode(state)
        return found


@pytest.fixture(scope="session")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    return open_metrics(tmp_path_factory.mktemp("metrics"), "processor-0")


@pytest.fixture
def lab(tmp_path: Path, metrics: Metrics) -> Lab:
    return Lab(tmp_path, metrics)


def declared(name: str, policy: PolicyKind = "thompson", variants: Sequence[str] = ("a", "b"), **more: Any) -> Task:
    """
    A task; its variants cost more in their order.
    """
    prices = (Price(input_usd_per_million=0.1 * 4**i, output_usd_per_million=0.4 * 4**i) for i in range(99))
    return Task(
        task=name,
        policy=policy,
        variants=tuple(Variant(name=v, model=f"m-{v}", price=p) for v, p in zip(variants, prices, strict=False)),
        created_at=AT,
        **more,
    )


def selection(task: str, variant: str, number: int, context: Mapping[str, float] | None = None) -> str:
    """
    The id that a selection got.
    """
    return seal(SECRET, Ticket(task, variant, 0.5, 1, 1, encode(context or {})), number.to_bytes(6, "big"))


def event(id: str, task: str = "", **fields: Any) -> Event:  # noqa: A002 - the field's name
    return Event(**{"id": id, "time": AT, "task": task, **fields})


def traffic(seed: int, count: int) -> list[Event]:
    """
    Calls and feedback of a task of each policy and of one that nobody declared: some of the same selection in either order,
    some sent twice, some without a selection.
    """
    rng = random.Random(seed)
    events: list[Event] = []
    for i in range(count):
        name, variant = rng.choice([*POLICIES, "seen"]), rng.choice("ab")
        call: dict[str, Any] = {
            "cost_usd": rng.random() / 100,
            "latency_ms": rng.random() * 1000,
            "error": rng.choice(["", "", "x"]),
        }
        outcome: dict[str, Any] = {"quality": rng.random()}
        if name == "seen":
            events.append(event(f"o{i}", name, model=f"m-{variant}", **call, **rng.choice([{}, outcome])))
            continue
        if rng.random() < 0.2:
            events.append(event(f"u{i}", name, variant=variant, **call, **outcome))
            continue
        of: dict[str, Any] = {
            "task": name,
            "selection_id": selection(name, variant, i, {"x": rng.random(), "y": rng.random()}),
        }
        both = [event(f"c{i}", **of, **call), event(f"f{i}", **of, **outcome)]
        rng.shuffle(both)
        events += both
        if rng.random() < 0.2:
            events.append(rng.choice(both))
    return events
