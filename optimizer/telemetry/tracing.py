"""
Spans of the daemon's own requests, when `observability.otel_endpoint` is set.

    async with tracing.running(config, slot, metrics):  # in a service, around its work
        with tracing.request("POST /api/v1/feedback", headers) as span:  # where a request comes in
            with tracing.span("storage.append", records=3):  # where it is worked on

A caller's W3C `traceparent` is continued, its decision not to record included; the bus carries it from service to service. While
nothing is traced, `request` and `span` cost next to nothing, and what exports (otlp.py) is not even imported.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from optimizer.telemetry.logs import log

if TYPE_CHECKING:
    from loguru import Record

    from optimizer.config.tree import Config
    from optimizer.telemetry.metrics import Metrics

Kind = Literal["internal", "server", "client"]

_PARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE: Final = 512  # characters of a tracestate that everybody must pass on
_HERE: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104 - names of this machine, nothing is bound


class _Sink(Protocol):
    """
    Takes spans that have ended, at once, whatever becomes of them.
    """

    def put(self, span: Span) -> None: ...


class Span:
    """
    One request, or one step of it; a context manager.

    Args:
        kind: how it stands to its parent: asked by another process, asking one, or neither.
        attributes: what is known of it, by names of OpenTelemetry's semantic conventions where there are some.

    Source: W3C Trace Context, level 1, sections 3.2 and 3.3.
    """

    __slots__ = (
        "_token", "attributes", "began_ns", "error", "kind", "name", "parent_id", "sampled", "span_id", "state", "took_ns",
        "trace_id",
    )  # fmt: skip
    trace_id: bytes
    state: str
    sampled: bool

    def __init__(self, name: str, kind: Kind, parent: Span | None, attributes: dict[str, Any]) -> None:
        self.name = name
        self.kind = kind
        self.attributes = attributes
        self.error = ""
        self.span_id = os.urandom(8)
        self.parent_id = b"" if parent is None else parent.span_id
        self.trace_id = os.urandom(16) if parent is None else parent.trace_id
        self.state = "" if parent is None else parent.state
        self.sampled = _rate >= 1.0 or _chance.random() < _rate if parent is None else parent.sampled
        self.began_ns = self.took_ns = 0
        self._token: Token[Span | None] | None = None

    @property
    def traceparent(self) -> str:
        """
        The header by which others continue this trace.
        """
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{'01' if self.sampled else '00'}"

    def note(self, **attributes: Any) -> None:
        """
        Tell more of it; two underscores in a name stand for a dot.
        """
        for name, value in attributes.items():
            self.attributes[name.replace("__", ".")] = value

    def fail(self, reason: str) -> None:
        """
        It went wrong; `reason` is a class of errors, not a sentence.
        """
        self.error = reason
        self.attributes["error.type"] = reason

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        self.began_ns, self.took_ns = time.time_ns(), -time.perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.took_ns += time.perf_counter_ns()
        if self._token is not None:
            _current.reset(self._token)
        if kind is not None and not self.error:
            self.fail(kind.__name__)
        if self.sampled and _sink is not None:
            _sink.put(self)


class _Nothing(Span):
    """
    What stands for a span while nothing is traced.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("", "internal", None, {})

    def note(self, **attributes: Any) -> None:
        """
        Nobody will read it.
        """

    def fail(self, reason: str) -> None:
        """
        Nobody will read it.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        Nothing ends.
        """


def on() -> bool:
    """
    Whether this process traces.
    """
    return _sink is not None


def request(name: str, headers: Mapping[str, str], **attributes: Any) -> Span:
    """
    The span of a request that comes in, as a part of its sender's trace if it names one.

    Args:
        headers: names in lower case, or found whatever their case is.
        attributes: two underscores in a name stand for a dot.
    """
    if _sink is None:
        return _NOTHING
    return _noted(
        Span(name, "server", parent(headers.get("traceparent", ""), headers.get("tracestate", "")), {}), attributes
    )


def span(name: str, kind: Kind = "internal", **attributes: Any) -> Span:
    """
    The span of a step of what is going on.
    """
    return _NOTHING if _sink is None else _noted(Span(name, kind, _current.get(), {}), attributes)


def parent(traceparent: str, state: str = "") -> Span | None:
    """
    The sender's span by its header; None if that is no valid one.
    """
    found = _PARENT.fullmatch(traceparent.strip())
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    sender = Span("", "client", None, {})
    sender.trace_id, sender.span_id = bytes.fromhex(found[2]), bytes.fromhex(found[3])
    sender.sampled = bool(int(found[4], 16) & 1)
    sender.state = state if len(state) <= _STATE and state.isascii() and state.isprintable() else ""
    return sender


def carried() -> bytes:
    """
    What a message on the bus carries of the trace it belongs to; nothing if there is none.
    """
    current = None if _sink is None else _current.get()
    return b"" if current is None else current.traceparent.encode()


def arrived(carried: bytes) -> None:
    """
    The task that runs now works for the trace that a message carried.
    """
    if _sink is not None:
        _current.set(parent(carried.decode("ascii", "replace")))


R = TypeVar("R")
A = TypeVar("A")


def http(handle: Callable[[R], Awaitable[A]], route: Callable[[R], str]) -> Callable[[R], Awaitable[A]]:
    """
    A handler of HTTP requests with a span around it; the handler itself while nothing is traced.

    Args:
        route: template of a request's path, of which there must be few.
    """
    if _sink is None:
        return handle

    @functools.wraps(handle)
    async def traced(asked: R) -> A:
        incoming: Any = asked
        where = route(asked)
        with request(
            f"{incoming.method} {where}", incoming.headers, http__request__method=incoming.method, http__route=where
        ) as one:
            answer: A = await handle(asked)
            status: int = answer.status  # type: ignore[attr-defined] # of aiohttp's responses
            one.note(http__response__status_code=status)
            if status >= 500:
                one.fail(str(status))
            return answer

    return traced


@asynccontextmanager
async def running(config: Config, slot: str, metrics: Metrics) -> AsyncIterator[None]:
    """
    Trace this process's requests, if the configuration wants that, until the end of the block; then send what is left.
    """
    global _sink, _rate
    settings = config.observability
    if not settings.otel_endpoint or _is_own(config):
        if settings.otel_endpoint and slot.startswith("collector"):
            reason = "observability.otel_endpoint is this daemon's own port, which keeps calls of models only: nothing is traced"
            log.warning("tracing.off", reason=reason, endpoint=settings.otel_endpoint)
        yield
        return
    from optimizer.telemetry.otlp import Exporter  # an HTTP client and protobuf

    exporter = Exporter(settings.otel_endpoint, _resource(config, slot), metrics.trace_spans_total)
    async with exporter, asyncio.TaskGroup() as group:
        exporting = group.create_task(exporter.run())
        _sink, _rate = exporter, settings.otel_sample_rate
        log.configure(patcher=_mark)
        try:
            yield
        finally:
            _sink = None
            log.configure(patcher=None)
            await exporter.end(exporting)


def preload(config: Config) -> None:
    """
    Import what `running` will need, before the fork.
    """
    if config.observability.otel_endpoint:
        import optimizer.telemetry.otlp  # noqa: F401 - see above


def _is_own(config: Config) -> bool:
    address = urlsplit(config.observability.otel_endpoint)
    collector = config.section("collector")
    ports = {collector.otlp_http_port, collector.otlp_grpc_port} - {0}
    here = {*_HERE, config.service.host, os.uname().nodename}
    return bool(collector.enabled and address.port in ports and address.hostname in here)


def _resource(config: Config, slot: str) -> dict[str, Any]:
    from optimizer import __version__

    return {
        "service.name": config.service.name,
        "service.version": __version__,
        "service.instance.id": f"{os.uname().nodename}/{slot}",
        "deployment.environment.name": config.service.environment,
        "host.name": os.uname().nodename,
        "process.pid": os.getpid(),
    }


def _noted(span: Span, attributes: dict[str, Any]) -> Span:
    span.note(**attributes)
    return span


def _mark(record: Record) -> None:
    current = _current.get()
    if current is not None and current.sampled:
        record["extra"].setdefault("trace_id", current.trace_id.hex())


_current: ContextVar[Span | None] = ContextVar("span", default=None)
_sink: _Sink | None = None
_rate = 1.0
_chance = random.SystemRandom()  # an ordinary generator would be the same in all forks
_NOTHING: Final = _Nothing()
