"""
The table of REST: address and method to operation, body and answer. The OpenAPI document is made from it.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import msgspec
from aiohttp import web

from optimizer.errors import Invalid, Problem, Rejected
from optimizer.model import Task, TaskStats
from optimizer.operations import feedback, selection, services
from optimizer.operations.checks import did_you_mean, shown
from optimizer.operations.documents import document
from optimizer.operations.events import EventPage, ListEvents
from optimizer.operations.house import House
from optimizer.operations.registry import OPERATIONS
from optimizer.operations.tasks import ListTasks, NamedTask, Nothing, TaskPage, WriteTask
from workers.rest_api.bodies import JSON, NDJSON, Limits, parse_json, read_body, read_events, read_json
from workers.rest_api.quick import Quick
from workers.rest_api.tally import Tally

_JSON_HEADERS: Final = {"Content-Type": JSON}
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Call:
    """
    One request: `name` is the `{task}` of its address, or ""; `limits` are those of its body; `tally` counts; `hands` bound
    the operations at once. A request whose body is on its way keeps none of them busy.
    """

    request: web.BaseRequest
    house: House
    name: str
    limits: Limits
    tally: Tally
    hands: Hands


class Hands:
    """
    How many operations are under way.

    Args:
        most: beyond it requests are refused.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def __enter__(self) -> None:
        if self._taken >= self._most:
            raise Rejected(f"{self._taken} requests are in hand already (rest_api.max_concurrency)")
        self._taken += 1

    def __exit__(self, *_: object) -> None:
        self._taken -= 1


class Written(enum.Enum):
    """
    Bodies that are checked by hand, so that every mistake is named; their schemas are in written.py.
    """

    NEW_TASK = "NewTaskDocument"
    TASK = "TaskDocument"
    EVENTS = "EventDocuments"
    SELECT = "SelectBodyDocument"


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Query:
    """
    A query parameter: a whole number in low..high, or one of `choices`, or any text.
    """

    name: str
    about: str
    default: int | str
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()

    def schema(self) -> dict[str, Any]:
        """
        Its JSON Schema.
        """
        if isinstance(self.default, int):
            return {"type": "integer", "minimum": self.low, "maximum": self.high, "default": self.default}
        return {"type": "string", "default": self.default, **({"enum": list(self.choices)} if self.choices else {})}

    def read(self, text: str) -> int | str:
        """
        The value of a parameter.

        Raises:
            Invalid: it is out of its range.
        """
        if isinstance(self.default, int):
            if text.isascii() and text.isdigit() and len(text) < 10 and self.low <= int(text) <= self.high:
                return int(text)
            raise Invalid([Problem(self.name, f"is {shown(text)}", f"a whole number from {self.low} to {self.high}")])
        if self.choices and text not in self.choices:
            raise Invalid([Problem(self.name, f"is {shown(text)}", " or ".join(self.choices))])
        return text


@dataclass(frozen=True, slots=True)
class Route:
    """
    One line of the table.

    Args:
        body: what the request's JSON is, or None for none; `media`: content types of it.
        answers: status to type of the answer (None: no content); the errors are the same for all.
        answer_media: content type of the answer.
        at_once: the same as `handler` for a body that has arrived already: (house, name, body, tally), waits for
            nobody.
    """

    method: str
    path: str
    operation: str
    handler: Handler
    answers: Mapping[int, Any]
    body: Written | None = None
    body_required: bool = True
    media: tuple[str, ...] = (JSON,)
    query: tuple[Query, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    answer_media: str = JSON
    about: str = ""
    at_once: Callable[[House, str, bytes, Tally], web.StreamResponse] | None = None

    @property
    def summary(self) -> str:
        """
        One line for people.
        """
        return self.about or OPERATIONS[self.operation].summary


class SelectBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    `context`: features of the request; `session`: the conversation; `explain`: tell the reason as well.
    """

    context: dict[str, float | str | bool] = {}
    session: str = ""
    explain: bool = False


async def _list_tasks(call: Call) -> web.Response:
    request = ListTasks(**_query(call.request, _PAGING))
    return _reply(await _run("tasks.list", call, request))


async def _create_task(call: Call) -> web.Response:
    document_ = await read_json(call.request, call.limits)
    written = await _run("tasks.create", call, WriteTask(document=document_))
    return _reply(written.task, 201, {"Location": f"/api/v1/tasks/{quote(written.task.task, safe='')}"})


async def _get_task(call: Call) -> web.Response:
    return _reply(await _run("tasks.get", call, NamedTask(task=call.name)))


async def _replace_task(call: Call) -> web.Response:
    document_ = await read_json(call.request, call.limits)
    written = await _run("tasks.replace", call, WriteTask(document=document_, task=call.name))
    return _reply(written.task, 201 if written.created else 200)


async def _delete_task(call: Call) -> web.Response:
    await _run("tasks.delete", call, NamedTask(task=call.name))
    return web.Response(status=204)


async def _stats(call: Call) -> web.Response:
    return _reply(await _run("tasks.stats", call, NamedTask(task=call.name)))


def select_at_once(house: House, name: str, body: bytes, tally: Tally) -> web.StreamResponse:
    """
    The one route that is asked for each request of an application: the operation's parts without its generality.
    """
    variant, document_ = selection.select_document(house, name, parse_json(body))
    tally.selection(name, variant)
    return Quick(document_)


async def _select(call: Call) -> web.StreamResponse:
    body = await read_body(call.request, call.limits) if call.request.body_exists else b""
    return select_at_once(call.house, call.name, body, call.tally)


async def _feedback(call: Call) -> web.Response:
    events, listed, digest = await read_events(call.request, call.limits)
    key = call.request.headers.get("Idempotency-Key", "")
    request = feedback.FeedbackRequest(events=events, idempotency_key=key, fingerprint=digest, listed=listed)
    return _reply(await _run("feedback", call, request))


async def _list_events(call: Call) -> web.Response:
    return _reply(await _run("events.list", call, ListEvents(**_query(call.request, _EVENTS))))


async def _list_services(call: Call) -> web.Response:
    return _reply(await _run("services.list", call, Nothing()))


async def _run(name: str, call: Call, request: Any) -> Any:
    with call.hands:
        return await OPERATIONS[name].run(call.house, request)


def _reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=_encode(document(value)), headers={**_JSON_HEADERS, **(headers or {})})


def _query(request: web.BaseRequest, known: tuple[Query, ...]) -> Any:
    table = {one.name: one for one in known}
    found: dict[str, int | str] = {}
    problems: list[Problem] = []
    for name, text in request.query.items():
        if name not in table:
            problems.append(Problem(name[:60], f"is not a known parameter{did_you_mean(name, table)}"))
        elif name in found:
            problems.append(Problem(name, "stands there twice"))
        else:
            try:
                found[name] = table[name].read(text)
            except Invalid as error:
                problems += error.problems
    if problems:
        raise Invalid(problems)
    return found


_PAGING: Final = (
    Query("cursor", "`next_cursor` of the page before", ""),
    Query("limit", "most items of a page", 100, 1, 1000),
)
_EVENTS: Final = (
    *_PAGING,
    Query("task", "only events of this task", ""),
    Query("log", "what was observed, or what happened to the daemon", "journal", choices=("journal", "system")),
    Query("last", "begin so many entries before the end", 0, 0, 1_000_000),
)
_TASK: Final = "/api/v1/tasks/{task}"

ROUTES: Final = (
    Route("GET", "/api/v1/tasks", "tasks.list", _list_tasks, {200: TaskPage}, query=_PAGING),
    Route("POST", "/api/v1/tasks", "tasks.create", _create_task, {201: Task}, Written.NEW_TASK),
    Route("GET", _TASK, "tasks.get", _get_task, {200: Task}),
    Route("PUT", _TASK, "tasks.replace", _replace_task, {200: Task, 201: Task}, Written.TASK),
    Route("DELETE", _TASK, "tasks.delete", _delete_task, {204: None}),
    Route(
        "POST",
        _TASK + "/select",
        "select",
        _select,
        {200: selection.Selection},
        Written.SELECT,
        body_required=False,
        at_once=select_at_once,
    ),
    Route("GET", _TASK + "/stats", "tasks.stats", _stats, {200: TaskStats}),
    Route(
        "POST",
        "/api/v1/feedback",
        "feedback",
        _feedback,
        {200: feedback.Accepted},
        Written.EVENTS,
        media=(JSON, NDJSON),
        headers={
            "Idempotency-Key": "gives ids to events that have none, so that the request may be sent again; the same key with "
            "another body is refused. At most 1024 printable ASCII characters"
        },
    ),
    Route("GET", "/api/v1/events", "events.list", _list_events, {200: EventPage}, query=_EVENTS),
    Route("GET", "/api/v1/services", "services.list", _list_services, {200: services.ServiceList}),
)
