"""
One pass of learning: a page of the journal, then one commit of everything that follows from it.

Killed before the commit, the pass never happened; after it, the checkpoint stands behind the page. So nothing is learned twice
and nothing is left out. The commit expects the checkpoint's revision: a second processor, or one that was thought dead, cannot
write over the first.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Set
from typing import Final

import msgspec

from optimizer.bus.storage import Storage
from optimizer.decision.learner import Learner
from optimizer.decision.policy import Snapshot
from optimizer.decision.ticket import Ticket, unseal
from optimizer.errors import Conflict, Invalid, Problem
from optimizer.messages import Entry, State
from optimizer.model import Event, SystemEvent, Task, new_id
from optimizer.service import Frame
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics
from workers.processor.settings import Settings

CHECKPOINT: Final = "consumer/processor"
_PAGE: Final = 2000  # events learned between two commits
_TOLD_SHIFT: Final = 0.1  # total variation between announced and new shares that is worth an announcement

_event = msgspec.msgpack.Decoder(Event)
_pack = msgspec.msgpack.Encoder().encode


class Checkpoint(msgspec.Struct, frozen=True):
    """
    How far the journal is learned, and how many events that were.
    """

    offset: int = 0
    events: int = 0


class Study:
    """
    The learners of all tasks, as far as they are committed plus the pass under way.

    `touched`: tasks that were declared, changed or deleted since the last pass.
    """

    def __init__(self, frame: Frame[Settings], storage: Storage, metrics: Metrics) -> None:
        self._frame = frame
        self._storage = storage
        self._metrics = metrics
        self._learners: dict[str, Learner] = {}
        self._told: dict[str, Snapshot] = {}
        self._counted: dict[tuple[str, str], float] = {}
        self._checkpoint = Checkpoint()
        self._revision = 0
        self._fresh = False
        self._published = 0
        self._unlearned = 0
        self.touched: set[str] = set()

    async def load(self, tasks: Mapping[str, State]) -> None:
        """
        Begin again at what is committed. Raises Transient when storage does not answer.
        """
        found = (await self._storage.get([CHECKPOINT])).get(CHECKPOINT)
        self._revision = found.revision if found else 0
        self._checkpoint = msgspec.msgpack.decode(found.body, type=Checkpoint) if found else Checkpoint()
        self._learners, self._told = {}, {}
        after, more = "", True
        while more:
            page = await self._storage.scan("learn/", after, limit=50)
            for key, state in page.states.items():
                learner = Learner.from_bytes(state.body, self._frame.settings.seed)
                self._learners[learner.task.task] = learner
                after = key
            more = page.more
        for state in (await self._policies()).values():
            snapshot = msgspec.msgpack.decode(state.body, type=Snapshot)
            self._told[snapshot.task] = snapshot
        self.touched.update(key.partition("/")[2] for key in tasks)
        self.touched.update(await self._deleted(self._learners.keys() - self.touched))
        self._count_from_here()
        self._fresh = True

    def doubt(self) -> None:
        """
        What is committed is unknown: the next pass begins by reading.
        """
        self._fresh = False

    async def _deleted(self, names: Set[str]) -> set[str]:
        keys = [f"task/{name}" for name in names]
        found = await self._storage.get(keys) if keys else {}
        return {name for name in names if f"task/{name}" not in found}

    async def _policies(self) -> dict[str, State]:
        found: dict[str, State] = {}
        after, more = "", True
        while more:
            page = await self._storage.scan("policy/", after, limit=200)
            found.update(page.states)
            after, more = max(page.states, default=""), page.more
        return found

    async def advance(self, tasks: Mapping[str, State]) -> bool:
        """
        Learn one page and commit it; True when the journal has more.

        Raises:
            Transient: storage does not answer; the pass must begin by `load`. Conflict: somebody else has written.
        """
        if not self._fresh:
            await self.load(tasks)
        page = await self._storage.read("journal", self._checkpoint.offset, _PAGE)
        dirty = self._follow_tasks(tasks)
        observed: dict[str, Task] = {}
        reports = [(entry, *self._attributed(entry)) for entry in page.entries]
        tasks = await self._complete(tasks, {name for _, _, _, name in reports})
        for entry, event, ticket, name in reports:
            if self._learn(event, ticket, entry.opens, name, tasks, observed):
                dirty.add(name)
        offset = page.entries[-1].offset if page.entries else self._checkpoint.offset
        self._metrics.journal_lag_events.labels("processor").set(page.last_offset - offset)
        if dirty or page.entries:
            self._fresh = False
            await self._commit(dirty, observed, Checkpoint(offset, self._checkpoint.events + len(page.entries)))
            self._fresh = True
        return offset < page.last_offset

    def _follow_tasks(self, tasks: Mapping[str, State]) -> set[str]:
        dirty = set()
        for name in self.touched:
            state = tasks.get(f"task/{name}")
            if state is None:
                if name in self._learners:
                    dirty.add(name)
                    del self._learners[name]
                continue
            task = msgspec.msgpack.decode(state.body, type=Task)
            learner = self._learners.get(name)
            if learner is None:
                self._learners[name] = Learner.create(task, self._frame.settings.seed)
                dirty.add(name)
            elif learner.task != task:
                learner.retask(task)
                dirty.add(name)
        self.touched.clear()
        return dirty

    def _attributed(self, entry: Entry) -> tuple[Event, Ticket | None, str]:
        event = _event.decode(entry.body)
        if not event.selection_id:
            return event, None, event.task
        try:
            ticket = unseal(self._frame.secret, event.selection_id)
        except Invalid:  # checked at the door: the key has changed since
            log.warning("event.ticket_unreadable", event_id=event.id)
            return event, None, event.task
        return event, ticket, ticket.task

    async def _complete(self, tasks: Mapping[str, State], names: Set[str]) -> Mapping[str, State]:
        """
        A task is declared before it is selected on, and selected on before its events come; but the word of the
        declaration may still be on its way here.
        """
        unknown = [f"task/{name}" for name in names - self._learners.keys() if name and f"task/{name}" not in tasks]
        return {**tasks, **await self._storage.get(unknown)} if unknown else tasks

    def _learn(
        self,
        event: Event,
        ticket: Ticket | None,
        opens: bool,
        name: str,
        tasks: Mapping[str, State],
        observed: dict[str, Task],
    ) -> bool:
        learner = self._learners.get(name)
        if learner is None:
            declared = tasks.get(f"task/{name}")
            deleted = ticket is not None and declared is None
            if not name or deleted or len(self._learners) >= self._frame.settings.max_tasks:
                self._unlearned += 1
                self._frame.health.metadata["events_unlearned"] = str(self._unlearned)
                return False
            if declared is not None:
                task = msgspec.msgpack.decode(declared.body, type=Task)
            else:
                task = observed[name] = Task(task=name, service=event.service, observed=True, created_at=event.time)
            learner = self._learners[name] = Learner.create(task, self._frame.settings.seed)
        learner.update(event, opens, ticket)
        return True

    async def _commit(self, dirty: set[str], observed: dict[str, Task], checkpoint: Checkpoint) -> None:
        puts: dict[str, bytes] = {CHECKPOINT: _pack(checkpoint)}
        expect = {CHECKPOINT: self._revision}
        deletes: list[str] = []
        system: list[bytes] = []
        told: dict[str, Snapshot] = {}
        for name in dirty:
            learner = self._learners.get(name)
            if learner is None:
                deletes += [f"policy/{name}", f"stats/{name}", f"learn/{name}"]
                self._told.pop(name, None)
                continue
            snapshot = learner.snapshot()
            if snapshot is not None:
                puts[f"policy/{name}"] = _pack(snapshot)
                self._published += 1
                if self._worth_telling(snapshot):
                    told[name] = snapshot
                    system.append(_pack(self._announcement(snapshot)))
            puts[f"stats/{name}"] = _pack(learner.stats(snapshot))
            puts[f"learn/{name}"] = learner.to_bytes()
        for name, task in observed.items():
            puts[f"task/{name}"] = _pack(task)
            expect[f"task/{name}"] = 0
        try:
            self._revision = await self._storage.commit(puts, deletes, expect, system)
        except Conflict as error:
            raise Conflict([*error.problems, Problem(CHECKPOINT, "was not moved")]) from error
        self._checkpoint = checkpoint
        self._told.update(told)
        self._count(dirty)
        self._frame.health.metadata.update(
            events_processed=str(checkpoint.events),
            tasks=str(len(self._learners)),
            policies_published=str(self._published),
        )

    def _worth_telling(self, snapshot: Snapshot) -> bool:
        last = self._told.get(snapshot.task)
        if last is None or last.policy != snapshot.policy or set(last.shares) != set(snapshot.shares):
            return True
        moved = sum(abs(share - last.shares[name]) for name, share in snapshot.shares.items()) / 2
        return moved > _TOLD_SHIFT

    def _announcement(self, snapshot: Snapshot) -> SystemEvent:
        leader = max(snapshot.shares, key=lambda name: snapshot.shares[name])
        return SystemEvent(
            id=new_id("evt_"),
            type="policy.changed",
            time=self._frame.clock.at(),
            host=socket.gethostname(),
            environment=self._frame.config.service.environment,
            severity="info",
            subject=snapshot.task,
            summary=f"{snapshot.task}: {leader} now gets {snapshot.shares[leader]:.0%} of the selections",
            data={
                "task": snapshot.task,
                "policy": snapshot.policy,
                "policy_version": snapshot.policy_version,
                "shares": snapshot.shares,
            },
        )

    def _count_from_here(self) -> None:
        """
        What was committed earlier is in the counters' files already, or was counted by an earlier daemon.
        """
        for name, learner in self._learners.items():
            for variant, (cost, _) in learner.totals().items():
                self._counted[name, variant] = cost

    def _count(self, dirty: set[str]) -> None:
        for name in dirty & self._learners.keys():
            for variant, (cost, quality) in self._learners[name].totals().items():
                more = cost - self._counted.get((name, variant), 0.0)
                self._counted[name, variant] = cost
                self._metrics.task_cost_usd_total.labels(name, variant).inc(max(0.0, more))
                if quality is not None:
                    self._metrics.task_quality_ratio.labels(name, variant).set(quality)
