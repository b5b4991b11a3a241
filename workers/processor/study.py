"""
One pass of learning: a page of the journal, then one commit of everything that follows from it.

Killed before the commit, the pass never happened; after it, the checkpoint stands behind the page. So nothing is learned twice
and nothing is left out. The commit expects the checkpoint's revision: a second processor, or one that was thought dead, cannot
write over the first. It also expects each learner's revision: a task that somebody deleted meanwhile is not brought back, nor is
what was learned of it, if one of the same name was declared since.

A pass ends early when it has changed enough: a commit must fit into a message, and a policy takes milliseconds to compute.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

import msgspec

from optimizer.bus.storage import Storage
from optimizer.decision.learner import Learner
from optimizer.decision.policy import Snapshot
from optimizer.errors import Conflict, Invalid, Problem
from optimizer.messages import Entry, State
from optimizer.model import Task
from optimizer.service import Frame
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics
from workers.processor.announcements import Told, announcement, sound, told, worth_telling
from workers.processor.figures import Figures
from workers.processor.lesson import Lesson, lesson
from workers.processor.settings import Settings

CHECKPOINT: Final = "consumer/processor"
PAGE: Final = 2000  # events learned between two commits, at most
_TASKS: Final = 200  # changed by one pass, at most: with all of them Thompson's it takes a quarter of a second
_BYTES: Final = 16 * 1024 * 1024  # of learners in one commit, about; a message of the bus may have five times as much
_BYTES_OF_VARIANT: Final = 2_000  # of a learner's state, as long as its real size is not known
_BYTES_OF_ARM: Final = 52_000  # the same, of a contextual policy
_COMPLAINTS: Final = 5  # of one pass that are logged one by one; all are counted

_pack = msgspec.msgpack.Encoder().encode
_told = msgspec.msgpack.Decoder(Told)


class Checkpoint(msgspec.Struct, frozen=True):
    """
    How far the journal is learned, how many events that were, and from how many of them nothing was learned.
    """

    offset: int = 0
    events: int = 0
    unlearned: int = 0


@dataclass(slots=True)
class _Pass:
    """
    What one pass has come to. `dirty`: tasks in order; `skipped`: reason -> how many; `size`: bytes of the dirty learners, about.
    """

    offset: int
    events: int = 0
    dirty: dict[str, None] = field(default_factory=dict)
    observed: dict[str, Task] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    size: int = 0

    @property
    def full(self) -> bool:
        return len(self.dirty) >= _TASKS or self.size >= _BYTES


@dataclass(slots=True)
class _Changes:
    """
    One commit.
    """

    puts: dict[str, bytes] = field(default_factory=dict)
    deletes: list[str] = field(default_factory=list)
    expect: dict[str, int] = field(default_factory=dict)
    system: list[bytes] = field(default_factory=list)
    told: dict[str, Told] = field(default_factory=dict)


class _Again(Exception):
    """
    The pass has met an event that it cannot learn, after it had changed learners: it begins again without it.
    """


class Study:
    """
    The learners of all tasks, as far as they are committed plus the pass under way.

    Args:
        page: most events of one pass.

    `touched`: tasks that were declared, changed or deleted and not followed yet.
    """

    def __init__(self, frame: Frame[Settings], storage: Storage, metrics: Metrics, page: int = PAGE) -> None:
        self._frame = frame
        self._storage = storage
        self._metrics = metrics
        self._page = self._limit = page
        self._figures = Figures(metrics)
        self._learners: dict[str, Learner] = {}
        self._revisions: dict[str, int] = {}  # of the learners, as committed
        self._sizes: dict[str, int] = {}  # of the learners, in bytes
        self._told: dict[str, Told] = {}
        self._checkpoint = Checkpoint()
        self._revision = 0
        self._fresh = False
        self._published = 0
        self._defects: set[int] = set()  # offsets of events that made learning fail
        self._complaints = 0
        self._broken: set[str] = set()  # tasks whose policy cannot be computed
        self.touched: set[str] = set()

    async def load(self, tasks: Mapping[str, State]) -> bool:
        """
        Begin again at what is committed; True: there may be something to learn. Raises Transient when storage does not answer.
        """
        found = (await self._storage.get([CHECKPOINT])).get(CHECKPOINT)
        self._revision = found.revision if found else 0
        self._checkpoint = msgspec.msgpack.decode(found.body, type=Checkpoint) if found else Checkpoint()
        self._learners, self._revisions, self._sizes = {}, {}, {}
        async for name, state in self._scan("learn/"):
            self._learners[name] = Learner.from_bytes(state.body, self._frame.settings.seed)
            self._revisions[name], self._sizes[name] = state.revision, len(state.body)
            self._figures.tell(name, self._learners[name])
        self._told = {name: _told.decode(state.body) async for name, state in self._scan("policy/")}
        self.touched.update(key.partition("/")[2] for key in tasks)
        self.touched.update(await self._deleted(self._learners.keys() - self.touched))
        self._fresh = True
        return True

    def doubt(self) -> None:
        """
        What is committed is unknown: the next pass begins by reading.
        """
        self._fresh = False

    async def _deleted(self, names: Set[str]) -> set[str]:
        keys = [f"task/{name}" for name in names]
        found = await self._storage.get(keys) if keys else {}
        return {name for name in names if f"task/{name}" not in found}

    async def _scan(self, prefix: str) -> AsyncIterator[tuple[str, State]]:
        after, more = "", True
        while more:
            page = await self._storage.scan(prefix, after)
            for after, state in page.states.items():
                yield after.removeprefix(prefix), state
                await asyncio.sleep(0)  # the heartbeat gets its turn
            more = page.more

    async def advance(self, tasks: Mapping[str, State]) -> bool:
        """
        Learn one page and commit it; True when there is more to learn or to follow.

        Raises:
            Transient: storage does not answer; the pass must begin by `load`. Conflict: somebody else has written.
        """
        if not self._fresh:
            await self.load(tasks)
        page = await self._storage.read("journal", self._checkpoint.offset, self._limit)
        self._fresh = False  # from here on the learners may be ahead of what is committed
        under_way = _Pass(self._checkpoint.offset)
        try:
            self._follow(tasks, under_way)
            await self._learn(page.entries, tasks, under_way)
        except _Again:
            return True
        self._metrics.journal_lag_events.labels("processor").set(page.last_offset - under_way.offset)
        if under_way.dirty or under_way.events:
            await self._commit(under_way)
        self._fresh = True
        # where many tasks fill a pass early, what is read in vain would cost as much as the learning
        self._limit = min(self._page, 1 + 2 * under_way.events) if under_way.full else self._page
        return under_way.offset < page.last_offset or bool(self.touched)

    # --- what follows from tasks and events ---

    def _follow(self, tasks: Mapping[str, State], under_way: _Pass) -> None:
        while self.touched and not under_way.full:
            name = self.touched.pop()
            state = tasks.get(f"task/{name}")
            learner = self._learners.get(name)
            if state is None:
                if learner is not None:
                    del self._learners[name]
                    under_way.dirty[name] = None
                continue
            task = msgspec.msgpack.decode(state.body, type=Task)
            if learner is None:
                learner = self._learners[name] = Learner.create(task, self._frame.settings.seed)
            elif learner.task != task:
                learner.retask(task)
            else:
                continue
            self._soil(name, learner, under_way)

    async def _learn(self, entries: Sequence[Entry], tasks: Mapping[str, State], under_way: _Pass) -> None:
        """
        Raises:
            _Again: an event made learning fail.
        """
        self._complaints = 0
        lessons = {entry.offset: self._lesson(entry) for entry in entries}
        tasks = await self._complete(tasks, {one.task for one in lessons.values() if isinstance(one, Lesson)})
        for entry in entries:
            if under_way.full:
                return
            one = lessons[entry.offset]
            skipped = self._take(one, entry.offset, tasks, under_way) if isinstance(one, Lesson) else one
            if skipped:
                under_way.skipped[skipped] += 1
            under_way.offset = entry.offset
            under_way.events += 1

    def _lesson(self, entry: Entry) -> Lesson | str:
        """
        What can be learned from an entry, or the reason why nothing can.
        """
        if entry.offset in self._defects:
            return "defect"
        try:
            found = lesson(entry, self._frame.secret)
        except Invalid as error:
            self._complain("event.skipped", offset=entry.offset, reason=str(error))
            return "invalid"
        if found.event.selection_id and found.ticket is None:
            self._complain("event.ticket_unreadable", offset=entry.offset, event_id=found.event.id)
        return found

    def _complain(self, event: str, **fields: object) -> None:
        self._complaints += 1
        if self._complaints <= _COMPLAINTS:
            log.warning(event, **fields)

    async def _complete(self, tasks: Mapping[str, State], names: Set[str]) -> Mapping[str, State]:
        """
        A task is declared before it is selected on, and selected on before its events come; but the word of the
        declaration may still be on its way here.
        """
        unknown = [f"task/{name}" for name in names - self._learners.keys() if name and f"task/{name}" not in tasks]
        return {**tasks, **await self._storage.get(unknown)} if unknown else tasks

    def _take(self, one: Lesson, offset: int, tasks: Mapping[str, State], under_way: _Pass) -> str:
        """
        Learn one lesson; returns why it was not learned, or "".

        Raises:
            _Again: it made learning fail.
        """
        learner = self._learners.get(one.task)
        if learner is None:
            found = self._new(one, tasks, under_way)
            if isinstance(found, str):
                return found
            learner = self._learners[one.task] = found
        try:
            learner.update(one.event, one.opens, one.ticket)
        except Exception as error:
            # a defect of ours, which must not stop all learning for ever: this event is left out
            log.opt(exception=error).error("event.not_learned", event_id=one.event.id, task=one.task, offset=offset)
            self._defects.add(offset)
            raise _Again from error
        self._soil(one.task, learner, under_way)
        return ""

    def _new(self, one: Lesson, tasks: Mapping[str, State], under_way: _Pass) -> Learner | str:
        if not one.task:
            return "no_task"
        declared = tasks.get(f"task/{one.task}")
        if declared is not None:
            return Learner.create(msgspec.msgpack.decode(declared.body, type=Task), self._frame.settings.seed)
        if one.ticket is not None:  # who selects on a task has declared it
            return "task_deleted"
        if len(self._learners) >= self._frame.settings.max_tasks:
            return "too_many_tasks"
        at = self._frame.clock.at()  # not the event's time, which is whatever its sender believes
        task = under_way.observed[one.task] = Task(
            task=one.task, service=one.event.service, observed=True, created_at=at
        )
        return Learner.create(task, self._frame.settings.seed)

    def _soil(self, name: str, learner: Learner, under_way: _Pass) -> None:
        if name not in under_way.dirty:
            under_way.dirty[name] = None
            of_one = _BYTES_OF_ARM if learner.task.policy == "contextual" else _BYTES_OF_VARIANT
            under_way.size += max(self._sizes.get(name, 0), of_one * (1 + len(learner.task.variants)))

    # --- the commit ---

    async def _commit(self, under_way: _Pass) -> None:
        before = self._checkpoint
        checkpoint = Checkpoint(
            under_way.offset,
            before.events + under_way.events,
            before.unlearned + under_way.skipped.total(),
        )
        changes = _Changes(puts={CHECKPOINT: _pack(checkpoint)}, expect={CHECKPOINT: self._revision})
        for name in under_way.dirty:
            await asyncio.sleep(0)  # the heartbeat gets its turn
            self._change(name, changes)
        for name, task in under_way.observed.items():
            changes.puts[f"task/{name}"] = _pack(task)
            changes.expect[f"task/{name}"] = 0
        try:
            self._revision = await self._storage.commit(changes.puts, changes.deletes, changes.expect, changes.system)
        except Conflict as error:
            raise Conflict([*error.problems, Problem(CHECKPOINT, "was not moved")]) from error
        self._checkpoint = checkpoint
        self._committed(under_way, changes)

    def _change(self, name: str, changes: _Changes) -> None:
        learner = self._learners.get(name)
        if learner is None:
            changes.deletes += [f"policy/{name}", f"stats/{name}", f"learn/{name}"]
            return
        snapshot = self._snapshot(learner)
        if snapshot is not None:
            changes.puts[f"policy/{name}"] = _pack(snapshot)
            if worth_telling(self._told.get(name), snapshot):
                changes.told[name] = told(snapshot)
                environment = self._frame.config.service.environment
                changes.system.append(_pack(announcement(snapshot, self._frame.clock, environment)))
        changes.puts[f"stats/{name}"] = _pack(learner.stats(snapshot))
        body = changes.puts[f"learn/{name}"] = learner.to_bytes()
        changes.expect[f"learn/{name}"] = self._revisions.get(name, 0)
        self._sizes[name] = len(body)

    def _snapshot(self, learner: Learner) -> Snapshot | None:
        """
        The policy that follows; None for a task without variants, or when none can be computed: the one before is served on.
        """
        name = learner.task.task
        try:
            snapshot = learner.snapshot()
            if snapshot is not None and not sound(snapshot):
                raise ValueError(f"shares are no probabilities: {snapshot.shares}")
        except Exception as error:  # noqa: BLE001 - a defect in one policy must not stop all learning for ever
            if name not in self._broken:
                log.opt(exception=error).error("policy.not_computed", task=name, error=repr(error))
            self._broken.add(name)
            return None
        self._broken.discard(name)
        return snapshot

    def _committed(self, under_way: _Pass, changes: _Changes) -> None:
        for name in under_way.dirty:
            if name in self._learners:
                self._revisions[name] = self._revision
                self._figures.tell(name, self._learners[name])
            else:
                for known in (self._revisions, self._sizes, self._told):
                    known.pop(name, None)
                self._broken.discard(name)
                self._figures.forget(name)
        self._told.update(changes.told)
        self._defects = {offset for offset in self._defects if offset > under_way.offset}
        for reason, count in under_way.skipped.items():
            self._metrics.events_unlearned_total.labels(reason).inc(count)
        self._published += sum(key.startswith("policy/") for key in changes.puts)
        self._frame.health.metadata.update(
            events_processed=str(self._checkpoint.events),
            events_unlearned=str(self._checkpoint.unlearned),
            tasks=str(len(self._learners)),
            policies_published=str(self._published),
        )
