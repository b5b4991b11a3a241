"""
`optimizerctl tasks`.
"""

from __future__ import annotations

import json
import sys
from typing import IO, Any

import click
import msgspec

from optimizer.ctl import Target, columns, fail
from optimizer.ctl.house import with_house
from optimizer.operations.house import House
from optimizer.operations.registry import OPERATIONS
from optimizer.operations.tasks import ListTasks, NamedTask, WriteTask


@click.group()
def group() -> None:
    """
    List, show, declare and forget tasks.
    """


@group.command("list")
@click.pass_obj
def list_(target: Target) -> None:
    """
    All tasks.
    """

    async def act(house: House) -> list[Any]:
        items: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await OPERATIONS["tasks.list"].run(house, ListTasks(cursor=cursor, limit=1000))
            items += page.items
            cursor = page.next_cursor
        return [msgspec.to_builtins(task) for task in items]

    target.show(with_house(target, act, follow=True), _table)


def _table(tasks: list[dict[str, Any]]) -> str:
    rows = [["TASK", "SERVICE", "POLICY", "VARIANTS"]]
    rows += [
        [
            task["task"],
            task.get("service", "") or "-",
            "(observed)" if task.get("observed") else task.get("policy", "thompson"),
            ",".join(variant["name"] for variant in task.get("variants", [])) or "-",
        ]
        for task in tasks
    ]
    return columns(rows)


@group.command()
@click.argument("task")
@click.pass_obj
def show(target: Target, task: str) -> None:
    """
    One task and what is known of it.
    """

    async def act(house: House) -> Any:
        named = NamedTask(task=task)
        found = await OPERATIONS["tasks.get"].run(house, named)
        stats = await OPERATIONS["tasks.stats"].run(house, named)
        return {"task": msgspec.to_builtins(found), "stats": msgspec.to_builtins(stats)}

    target.show(with_house(target, act, follow=True), lambda found: json.dumps(found, indent=2))


@group.command("set")
@click.argument("file", type=click.File("r"))
@click.pass_obj
def set_(target: Target, file: IO[str]) -> None:
    """
    Declare the task in FILE (JSON; - for standard input), new or changed.
    """
    try:
        document = json.load(file)
    except ValueError as error:
        fail(f"{file.name} is no JSON: {error}")

    async def act(house: House) -> Any:
        written = await OPERATIONS["tasks.replace"].run(house, WriteTask(document=document))
        return msgspec.to_builtins(written)

    target.show(
        with_house(target, act, follow=True),
        lambda w: f"{w['task']['task']}: {'created' if w['created'] else 'changed'}",
    )


@group.command()
@click.argument("task")
@click.pass_obj
def delete(target: Target, task: str) -> None:
    """
    Forget a task and what was learned of it.
    """

    async def act(house: House) -> None:
        await OPERATIONS["tasks.delete"].run(house, NamedTask(task=task))

    with_house(target, act, follow=True)
    click.echo(f"{task}: forgotten", file=sys.stderr)
