"""
`optimizerctl events`.
"""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import IO, Any, Final, Literal

import click
import msgspec
import orjson

from optimizer.config.fields import Duration, Option
from optimizer.config.values import Wrong, convert
from optimizer.ctl import Target, fail
from optimizer.ctl.house import with_house
from optimizer.errors import Invalid, Problem
from optimizer.model import Event, SystemEvent
from optimizer.operations.events import ListEvents, export_events
from optimizer.operations.feedback import FeedbackRequest
from optimizer.operations.house import House
from optimizer.operations.registry import OPERATIONS

_BATCH: Final = 500
_POLL_S: Final = 0.5
_COLUMNS: Final = (
    "id", "time", "source", "service", "task", "selection_id", "variant", "provider", "model", "input_tokens",
    "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "cost_usd", "latency_ms",
    "time_to_first_token_ms", "error", "finish_reason", "quality", "session", "user",
)  # fmt: skip
_SYSTEM_COLUMNS: Final = ("id", "type", "time", "host", "environment", "severity", "subject", "summary")
_NUMBERS: Final = frozenset(name for name in _COLUMNS if name.endswith(("_tokens", "_usd", "_ms")) or name == "quality")


@click.group()
def group() -> None:
    """
    Follow, export and import events.
    """


class _Printer:
    """
    Events on standard output, one a line. JSON carries everything, CSV what fits into columns.
    """

    def __init__(self, form: str, names: Sequence[str]) -> None:
        self._names = names
        self._csv = csv.writer(sys.stdout) if form == "csv" else None
        if self._csv is not None:
            self._csv.writerow(names)

    def write(self, item: Event | SystemEvent) -> None:
        found = msgspec.to_builtins(item)
        if self._csv is not None:
            self._csv.writerow([found.get(name, "") for name in self._names])
        else:
            sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        (sys.stdout if self._csv is not None else sys.stdout.buffer).flush()


_FORMAT = click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
_TASK = click.option("--task", default="", help="Only of this task.")
_SINCE = click.option("--since", default="", help="RFC 3339 time, or a duration before now such as 2h.")
_SYSTEM = click.option("--system", is_flag=True, help="What happened to the daemon instead of the events of models.")


@group.command()
@_FORMAT
@_TASK
@_SINCE
@_SYSTEM
@click.option(
    "-n", "count", type=click.IntRange(0), default=10, show_default=True, help="Begin so many before the end."
)
@click.pass_obj
def tail(target: Target, form: str, task: str, since: str, system: bool, count: int) -> None:
    """
    Follow events as they become durable, one a line, until interrupted. With --since, begin there.
    """
    log: Literal["journal", "system"] = "system" if system else "journal"
    begin = _moment(since) if since else None

    async def act(house: House) -> None:
        printer = _Printer(form, _SYSTEM_COLUMNS if system else _COLUMNS)
        request = ListEvents(log=log, task=task, last=0 if since else count, limit=1000)
        if not since and count == 0:
            request = await _at_end(house, log, task)
        while True:
            page = await OPERATIONS["events.list"].run(house, request)
            for item in page.items:
                if begin is None or item.time >= begin:
                    printer.write(item)
            printer.flush()
            request = ListEvents(log=log, task=task, cursor=page.end_cursor, limit=1000)
            if page.next_cursor is None:
                await asyncio.sleep(_POLL_S)

    try:
        with_house(target, act)
    except KeyboardInterrupt:
        sys.exit(0)


async def _at_end(house: House, log: Literal["journal", "system"], task: str) -> ListEvents:
    page = await OPERATIONS["events.list"].run(house, ListEvents(log=log, last=1, limit=1))
    return ListEvents(log=log, task=task, cursor=page.end_cursor, limit=1000)


@group.command()
@_FORMAT
@_TASK
@_SINCE
@_SYSTEM
@click.pass_obj
def export(target: Target, form: str, task: str, since: str, system: bool) -> None:
    """
    Write every stored event, oldest first.
    """
    begin = _moment(since) if since else None

    async def act(house: House) -> None:
        printer = _Printer(form, _SYSTEM_COLUMNS if system else _COLUMNS)
        async for item in export_events(house, log="system" if system else "journal", task=task, since=begin):
            printer.write(item)
        printer.flush()

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
@_FORMAT
@_TASK
@_SINCE
@click.pass_obj
def import_(target: Target, file: IO[bytes], form: str, task: str, since: str) -> None:
    """
    Store the events in FILE, as exported; - for standard input. Known ids are left alone, so that it may be repeated.
    """
    begin = _moment(since) if since else None
    wanted = ((n, e) for n, e in _events(file, form) if _wanted(e, task, begin))

    async def act(house: House) -> tuple[int, int]:
        stored = known = 0
        while batch := list(itertools.islice(wanted, _BATCH)):
            request = FeedbackRequest(events=[event for _, event in batch], source="import")
            try:
                found = await OPERATIONS["feedback"].run(house, request)
            except Invalid as error:
                raise Invalid([_at_line(problem, batch, file.name) for problem in error.problems]) from error
            stored += found.accepted - found.duplicates
            known += found.duplicates
            if sys.stderr.isatty():
                click.echo(f"\r{stored + known} events", nl=False, err=True)
        return stored, known

    stored, known = with_house(target, act, follow=True)
    target.show({"stored": stored, "known": known}, lambda f: f"{f['stored']} stored, {f['known']} known already")


def _events(file: IO[bytes], form: str) -> Iterator[tuple[int, Any]]:
    if form == "csv":
        rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""))
        for row in rows:
            yield rows.line_num, {name: _cell(name, text) for name, text in row.items() if name and text}
        return
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                fail(f"{file.name}, line {number} is no JSON: {error}")


def _cell(name: str, text: str) -> Any:
    if name not in _NUMBERS:
        return text
    try:
        return int(text) if name.endswith("_tokens") else float(text)
    except ValueError:
        return text


def _wanted(event: Any, task: str, begin: datetime | None) -> bool:
    if not isinstance(event, dict):
        return True  # refused with its line
    if task and event.get("task") != task:
        return False
    return begin is None or _parsed(str(event.get("time", ""))) >= begin


def _parsed(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)  # not left out: whether its time is right is checked with the rest
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _at_line(problem: Problem, batch: Sequence[tuple[int, Any]], name: str) -> Problem:
    """
    A problem of `[i].field` as one of a line of the file.
    """
    position, _, field = problem.field.removeprefix("[").partition("]")
    if not position.isdigit() or int(position) >= len(batch):
        return problem
    place = f"{name}, line {batch[int(position)][0]}"
    return Problem(f"{place}, {field.lstrip('.')}" if field else place, problem.reason, problem.expected)
