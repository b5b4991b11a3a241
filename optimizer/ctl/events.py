"""
`optimizerctl events`.
"""

from __future__ import annotations

import asyncio
import csv
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import IO, Any, Final, Literal

import click
import msgspec
import orjson

from optimizer.config.fields import Duration, Option
from optimizer.config.values import Wrong, convert
from optimizer.ctl import Target, fail
from optimizer.ctl.house import with_house
from optimizer.errors import Invalid
from optimizer.model import Event, SystemEvent
from optimizer.operations.events import ListEvents, export_events
from optimizer.operations.feedback import FeedbackRequest
from optimizer.operations.house import House
from optimizer.operations.registry import OPERATIONS

_BATCH: Final = 500
_POLL_S: Final = 0.5
_COLUMNS: Final = (
    "id", "time", "source", "service", "task", "selection_id", "variant", "provider", "model", "input_tokens",
    "output_tokens", "cost_usd", "latency_ms", "error", "finish_reason", "quality",
)  # fmt: skip


@click.group()
def group() -> None:
    """
    Follow, export and import events.
    """


def _line(item: Event | SystemEvent) -> bytes:
    return orjson.dumps(msgspec.to_builtins(item), option=orjson.OPT_APPEND_NEWLINE)


@group.command()
@click.option("--task", default="", help="Only of this task.")
@click.option("--system", is_flag=True, help="What happened to the daemon instead.")
@click.option("-n", "count", default=10, help="Begin so many before the end.")
@click.pass_obj
def tail(target: Target, task: str, system: bool, count: int) -> None:
    """
    Follow events as they become durable, one JSON object a line, until interrupted.
    """
    log: Literal["journal", "system"] = "system" if system else "journal"

    async def act(house: House) -> None:
        request = ListEvents(log=log, task=task, last=count, limit=1000)
        while True:
            page = await OPERATIONS["events.list"].run(house, request)
            for item in page.items:
                sys.stdout.buffer.write(_line(item))
            sys.stdout.buffer.flush()
            request = ListEvents(log=log, task=task, cursor=page.end_cursor, limit=1000)
            if page.next_cursor is None:
                await asyncio.sleep(_POLL_S)

    try:
        with_house(target, act)
    except KeyboardInterrupt:
        sys.exit(0)


@group.command()
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl")
@click.option("--task", default="", help="Only of this task.")
@click.option("--since", default="", help="RFC 3339 time, or a duration before now such as 2h.")
@click.pass_obj
def export(target: Target, form: str, task: str, since: str) -> None:
    """
    Write every stored event, oldest first.
    """
    begin = _moment(since) if since else None

    async def act(house: House) -> None:
        write = csv.writer(sys.stdout)
        if form == "csv":
            write.writerow(_COLUMNS)
        async for item in export_events(house, task=task, since=begin):
            if form == "csv":
                found = msgspec.to_builtins(item)
                write.writerow([found.get(name, "") for name in _COLUMNS])
            else:
                sys.stdout.buffer.write(_line(item))
        sys.stdout.flush()

    with_house(target, act)


def _moment(text: str) -> datetime:
    try:
        return datetime.now(UTC) - timedelta(seconds=convert(text, Duration, Option(""), {}, from_text=False))
    except Wrong:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            fail(f"--since {text}: expected a time such as 2026-01-31T12:00:00Z or a duration such as 2h")
        return at if at.tzinfo else at.replace(tzinfo=UTC)


@group.command("import")
@click.argument("file", type=click.File("rb"))
@click.pass_obj
def import_(target: Target, file: IO[bytes]) -> None:
    """
    Store the events in FILE (JSON lines, as exported; - for standard input). Known ids are left alone.
    """

    async def act(house: House) -> tuple[int, int]:
        stored = known = 0
        for first, batch in _batches(file):
            try:
                found = await OPERATIONS["feedback"].run(house, FeedbackRequest(events=batch, source="import"))
            except Invalid as error:
                raise Invalid(f"{file.name}, lines {first} to {first + len(batch) - 1}: {error}") from error
            stored += found.accepted - found.duplicates
            known += found.duplicates
            if sys.stderr.isatty():
                click.echo(f"\r{stored + known} events", nl=False, err=True)
        return stored, known

    stored, known = with_house(target, act, follow=True)
    target.show({"stored": stored, "known": known}, lambda f: f"{f['stored']} stored, {f['known']} known already")


def _batches(file: IO[bytes]) -> Iterator[tuple[int, list[Any]]]:
    batch: list[Any] = []
    number = 0
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            batch.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            fail(f"{file.name}, line {number} is no JSON: {error}")
        if len(batch) == _BATCH:
            yield number - len(batch) + 1, batch
            batch = []
    if batch:
        yield number - len(batch) + 1, batch
