"""
Declare tasks, change them, look at them, delete them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from optimizer.errors import Conflict, Invalid, NotFound, Problem
from optimizer.messages import State
from optimizer.model import MAX_NAME, Task
from optimizer.operations import validation
from optimizer.operations.book import POLICY, TASK
from optimizer.operations.checks import did_you_mean, encodable
from optimizer.operations.cursor import decode_cursor, encode_cursor
from optimizer.operations.house import House

_TRIES: Final = 5  # of a replacement that others get in the way of
_decoder = msgspec.msgpack.Decoder(Task)


class ListTasks(msgspec.Struct, frozen=True, kw_only=True):
    """
    `cursor`: from the page before; `limit`: 1 to 1000.
    """

    cursor: str = ""
    limit: int = 100


class TaskPage(msgspec.Struct, frozen=True, kw_only=True):
    """
    Tasks in the order of their names; `next_cursor` is null at the end.
    """

    items: list[Task]
    next_cursor: str | None


class NamedTask(msgspec.Struct, frozen=True, kw_only=True):
    """
    One task, by its name.
    """

    task: str


class WriteTask(msgspec.Struct, frozen=True, kw_only=True):
    """
    A task's document as it was sent; `task`: its name where the address says it.
    """

    document: Any
    task: str = ""


class WrittenTask(msgspec.Struct, frozen=True, kw_only=True):
    """
    The task as it is stored now; `created`: nobody had declared it before.
    """

    task: Task
    created: bool


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    """
    An answer or a request without content.
    """


async def list_tasks(house: House, request: ListTasks) -> TaskPage:
    """
    The tasks that are declared or were observed.
    """
    page = await house.storage.scan(TASK, decode_cursor(request.cursor, "tasks", str, TASK), request.limit)
    last = next(reversed(page.states), "")  # in the order of storage, where long keys end in a digest
    after = encode_cursor("tasks", last) if page.more else None
    return TaskPage(items=[_decoder.decode(state.body) for state in page.states.values()], next_cursor=after)


async def get_task(house: House, request: NamedTask) -> Task:
    """
    One task as it is declared or was observed.

    Raises:
        NotFound: there is none of that name.
    """
    state = await _state(house, request.task)
    if state is None:
        raise missing(house, request.task)
    return _decoder.decode(state.body)


async def create_task(house: House, request: WriteTask) -> WrittenTask:
    """
    Declare a task that is not declared yet; one that was only observed becomes declared.

    Raises:
        Invalid: with every problem. Conflict: it is declared already.
    """
    task: Task = validation.checked(validation.task(request.document))
    return await _write(house, task, replace=False)


async def replace_task(house: House, request: WriteTask) -> WrittenTask:
    """
    Declare a task, whether it was there or not. Of variants that keep their names what was learned is kept.

    Raises:
        Invalid: with every problem. Conflict: others changed it at the same time, again and again.
    """
    task: Task = validation.checked(validation.task(request.document, name=request.task))
    return await _write(house, task, replace=True)


async def delete_task(house: House, request: NamedTask) -> Nothing:
    """
    Forget a task and what was learned of it; its events stay in the journal.

    Raises:
        NotFound: there is none of that name.
    """
    name = request.task
    if await _state(house, name) is None:
        raise missing(house, name)
    await house.storage.commit(deletes=[TASK + name, POLICY + name, "stats/" + name, "learn/" + name])
    await house.book.shown(name, 0)
    return Nothing()


async def declare_tasks(house: House, documents: Sequence[Mapping[str, Any]]) -> None:
    """
    Bring the tasks of the configuration file into the state: each once, and again when its declaration in the file has
    changed, so that a restart does not undo what an operator changed since.

    Raises:
        Invalid: with every problem of all of them; nothing was changed.
    """
    found = [validation.task(document, path=f"tasks[{i}]") for i, document in enumerate(documents)]
    problems = [problem for result in found if isinstance(result, list) for problem in result]
    if problems:
        raise Invalid(validation.cut(problems))
    for task in found:
        if isinstance(task, Task):
            key, body = f"declared/{task.task}", msgspec.msgpack.encode(task)
            known = (await house.storage.get([key])).get(key)
            if known is None or known.body != body:
                await _write(house, task, replace=True)
                await house.storage.commit(puts={key: body})


def missing(house: House, name: str) -> NotFound:
    """
    The error for a name that no task has.
    """
    told = name if len(name) <= MAX_NAME else name[:40] + "…"
    return NotFound([Problem("task", f'there is no task "{told}"{did_you_mean(told, house.book.tasks)}')])


async def _state(house: House, name: str) -> State | None:
    if not name or len(name) > MAX_NAME or not encodable(name):
        return None
    return (await house.storage.get([TASK + name])).get(TASK + name)


async def _write(house: House, task: Task, replace: bool) -> WrittenTask:
    async with house.writing:
        return await _write_alone(house, task, replace)


async def _write_alone(house: House, task: Task, replace: bool) -> WrittenTask:
    at = house.clock.at()
    for _ in range(_TRIES):
        state = await _state(house, task.task)
        known = _decoder.decode(state.body) if state else None
        declared = known is not None and not known.observed
        if known is not None and declared and not replace:
            if known.updated_at == at and _same(known, task):  # our own commit, whose answer was lost
                return WrittenTask(task=known, created=True)
            raise Conflict([Problem("task", f'task "{task.task}" exists already; replace it with PUT')])
        if known is not None and declared and _same(known, task):
            return WrittenTask(task=known, created=known.created_at == at)
        since = known.created_at if known is not None and declared else at
        stored = msgspec.structs.replace(task, created_at=since or at, updated_at=at)
        revision = state.revision if state else 0
        try:
            done = await house.storage.commit(
                puts={TASK + task.task: msgspec.msgpack.encode(stored)}, expect={TASK + task.task: revision}
            )
        except Conflict:
            continue
        await house.book.shown(task.task, done)
        return WrittenTask(task=stored, created=not declared)
    raise Conflict([Problem("task", f'task "{task.task}" is being changed by others; try again')])


def _same(known: Task, task: Task) -> bool:
    return msgspec.structs.replace(known, created_at=None, updated_at=None) == task
