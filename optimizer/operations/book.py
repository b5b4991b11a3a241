"""
Tasks and policies as an API serves them: followed in memory, ready for choosing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

import msgspec

from optimizer.bus.mirror import Mirror, Subscribable
from optimizer.bus.storage import Storage
from optimizer.decision.policy import Policy, Snapshot, cold
from optimizer.messages import State
from optimizer.model import Task, Variant

TASK: Final = "task/"
POLICY: Final = "policy/"
_SHOWN_S: Final = 1.0  # a publication follows its commit within milliseconds; a lost one is read again after a second

_tasks = msgspec.msgpack.Decoder(Task)
_snapshots = msgspec.msgpack.Decoder(Snapshot)


@dataclass(frozen=True, slots=True)
class Offer:
    """
    What is served for one task now. `stencils`: by variant and propensity, the parts of its ticket and of the encoded
    answer that stay the same.
    """

    task: Task
    policy: Policy
    variants: dict[str, Variant]
    stencils: dict[tuple[str, float], tuple[bytes, bytes]] = field(default_factory=dict)


class Book:
    """
    All tasks and their policies. `run()` must be running; `joined()` returns when everything was read once.
    """

    def __init__(self, subscribable: Subscribable, storage: Storage) -> None:
        self.tasks: dict[str, Task] = {}
        self.offers: dict[str, Offer] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._task_mirror = Mirror(subscribable, storage, TASK, self._on_task)
        self._policy_mirror = Mirror(subscribable, storage, POLICY, self._on_policy)

    async def run(self) -> None:
        """
        Follow; never returns.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._task_mirror.run())
            group.create_task(self._policy_mirror.run())

    async def joined(self) -> None:
        """
        Return once all tasks and policies were read.
        """
        await self._task_mirror.joined()
        await self._policy_mirror.joined()

    def revision(self, name: str) -> int:
        """
        Revision of a task as it is known here; 0 when it is not.
        """
        state = self._task_mirror.states.get(TASK + name)
        return state.revision if state is not None else 0

    async def shown(self, name: str, revision: int) -> None:
        """
        Return when this book shows what the commit `revision` made of a task (0: deleted it), at the latest after
        a second: who was told of a commit finds it in the next request.
        """
        until = asyncio.get_running_loop().time() + _SHOWN_S
        while (self.revision(name) < revision) if revision else self.revision(name):
            left = until - asyncio.get_running_loop().time()
            changed = asyncio.get_running_loop().create_future()
            self._waiting.add(changed)
            try:
                await asyncio.wait_for(changed, max(0.0, left))
            except TimeoutError:
                return
            finally:
                self._waiting.discard(changed)

    def _on_task(self, key: str, state: State | None) -> None:
        name = key.removeprefix(TASK)
        if state is None:
            self.tasks.pop(name, None)
        else:
            self.tasks[name] = _tasks.decode(state.body)
        self._offer(name)
        self._tell()

    def _on_policy(self, key: str, state: State | None) -> None:
        name = key.removeprefix(POLICY)
        if state is None:
            self._snapshots.pop(name, None)
        else:
            self._snapshots[name] = _snapshots.decode(state.body)
        self._offer(name)

    def _tell(self) -> None:
        for changed in self._waiting:
            if not changed.done():
                changed.set_result(None)

    def _offer(self, name: str) -> None:
        task = self.tasks.get(name)
        if task is None or not task.variants:
            self.offers.pop(name, None)
            return
        snapshot = fitting(task, self._snapshots.get(name))
        self.offers[name] = Offer(task, Policy(snapshot), {variant.name: variant for variant in task.variants})


def fitting(task: Task, snapshot: Snapshot | None) -> Snapshot:
    """
    The snapshot if it was made for the task as it is declared now, else the one to begin with.

    A policy that does not learn follows its declaration at once, whoever is away.
    """
    fresh = cold(task)
    if snapshot is None or snapshot.policy != task.policy or set(snapshot.shares) != set(fresh.shares):
        return fresh
    if task.policy in ("fixed", "weighted"):
        return msgspec.structs.replace(fresh, policy_version=snapshot.policy_version)
    return snapshot
