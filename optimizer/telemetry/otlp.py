"""
From ended spans to an OTLP/HTTP endpoint: a bounded queue, sent in batches by one task of the loop. An endpoint that is away
costs spans, which are counted, and nothing else: no request waits for it, and no memory grows.

opentelemetry-sdk would do the same with a thread in each process and three more packages.

Source: OTLP specification 1.11, sections "OTLP/HTTP Request" and "OTLP/HTTP Response".
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from prometheus_client import Counter

from optimizer.resilience import backoff
from optimizer.telemetry.logs import log
from optimizer.telemetry.tracing import Span

QUEUE: Final = 2048  # spans that wait; what comes beyond is dropped
BATCH: Final = 512
_EVERY_S: Final = 1.0  # at most so late a span arrives
_SLICE: Final = 64  # spans that are encoded between two turns of the loop
_TIMEOUT_S: Final = 10.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_TRIES: Final = 4  # of one batch, over some seconds
_LAST_S: Final = 0.4  # for what is left when the service ends; services keep half a second of their budget for that
_RETRY: Final = frozenset({429, 502, 503, 504})
_ANSWER_BYTES: Final = 65536
_KINDS: Final = {
    "internal": OtlpSpan.SPAN_KIND_INTERNAL,
    "server": OtlpSpan.SPAN_KIND_SERVER,
    "client": OtlpSpan.SPAN_KIND_CLIENT,
}
_CONTENT: Final = "application/x-protobuf"
# a daemon of this kind that gets the request makes no span of it, so spans cannot breed spans
_UNRECORDED: Final = "00-{:032x}-{:016x}-00"


class Exporter:
    """
    An asynchronous context manager; made in the process that uses it.

    Args:
        endpoint: address of a collector; `/v1/traces` is added unless it is there.
        resource: attributes of the process.
        counter: of spans, by outcome: exported, dropped.
    """

    def __init__(self, endpoint: str, resource: Mapping[str, Any], counter: Counter) -> None:
        self._url = endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
        self._resource = Resource(attributes=_attributes(resource))
        self._exported, self._dropped = counter.labels("exported"), counter.labels("dropped")
        self._queue: deque[Span] = deque()
        self._many = asyncio.Event()
        self._ending = False
        self._away = False
        self._lost = 0  # since the endpoint was there last

    def put(self, span: Span) -> None:
        """
        Export the span some time, or drop it.
        """
        if len(self._queue) >= QUEUE:
            self._drop(1)
            return
        self._queue.append(span)
        if len(self._queue) == BATCH:
            self._many.set()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # aiohttp's own context has no certificates here (supervisor/spawn.py)
            connector=aiohttp.TCPConnector(limit=1, ssl=ssl.create_default_context()),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop(len(self._queue))
        await self._session.close()

    async def run(self) -> None:
        """
        Export until `end`, and then what is left, if the endpoint is there.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._many.wait(), _EVERY_S)
            self._many.clear()
            while self._queue and not (self._ending and self._away):
                await self._export(self._taken())
            if self._ending:
                return

    async def end(self, running: asyncio.Task[None]) -> None:
        """
        Let the task of `run` come to its end, for a short while.
        """
        self._ending = True
        self._many.set()
        await asyncio.wait({running}, timeout=_LAST_S)
        running.cancel()

    def _taken(self) -> list[Span]:
        return [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]

    async def _export(self, spans: Sequence[Span]) -> None:
        try:
            await self._sent(spans)
        except asyncio.CancelledError:
            self._drop(len(spans))  # or they have arrived, and nobody said so
            raise

    async def _sent(self, spans: Sequence[Span]) -> None:
        body = await self._encoded(spans)
        for attempt in range(1, _TRIES + 1):
            again, rejected, reason = await self._post(body)
            if not reason:
                self._there(len(spans) - rejected)
                self._drop(rejected)
                return
            self._gone(reason)
            if not again or self._ending:
                break
            if attempt < _TRIES:
                await asyncio.sleep(backoff(attempt, _FIRST_PAUSE_S, _LONGEST_PAUSE_S, 0.2, random.Random()))
        self._drop(len(spans))

    async def _post(self, body: bytes) -> tuple[bool, int, str]:
        """
        One attempt: whether another one may succeed, how many spans were rejected, and what went wrong.
        """
        unrecorded = _UNRECORDED.format(random.getrandbits(127) + 1, random.getrandbits(63) + 1)
        headers = {"Content-Type": _CONTENT, "traceparent": unrecorded}
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                if answer.status // 100 != 2:
                    return answer.status in _RETRY, 0, f"it answered {answer.status}"
                return False, _rejected(await answer.content.read(_ANSWER_BYTES)), ""
        except TimeoutError:
            return True, 0, f"no answer within {_TIMEOUT_S:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return True, 0, f"no connection ({type(error).__name__})"

    async def _encoded(self, spans: Sequence[Span]) -> bytes:
        scope = ScopeSpans(scope=InstrumentationScope(name="llm-auto-optimizer"))
        for i in range(0, len(spans), _SLICE):
            scope.spans.extend(_encoded(span) for span in spans[i : i + _SLICE])
            await asyncio.sleep(0)
        whole = ResourceSpans(resource=self._resource, scope_spans=[scope])
        encoded: bytes = ExportTraceServiceRequest(resource_spans=[whole]).SerializeToString()
        return encoded

    def _there(self, count: int) -> None:
        self._exported.inc(count)
        if self._away:
            log.info("tracing.endpoint_found", dropped=self._lost)
        self._away = False
        self._lost = 0

    def _gone(self, reason: str) -> None:
        if not self._away:
            log.warning("tracing.endpoint_lost", url=self._url, reason=reason)
        self._away = True

    def _drop(self, count: int) -> None:
        if count:
            self._lost += count
            self._dropped.inc(count)


def _rejected(body: bytes) -> int:
    try:
        return int(ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans)
    except DecodeError:
        return 0  # it said 2xx, in a language of its own


def _encoded(span: Span) -> OtlpSpan:
    return OtlpSpan(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_id,
        trace_state=span.state,
        name=span.name,
        kind=_KINDS[span.kind],
        start_time_unix_nano=span.began_ns,
        end_time_unix_nano=span.began_ns + span.took_ns,
        attributes=_attributes(span.attributes),
        status=Status(code=Status.STATUS_CODE_ERROR if span.error else Status.STATUS_CODE_UNSET),
    )


def _attributes(found: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=name, value=_value(value)) for name, value in found.items()]


def _value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(string_value=str(value).encode("utf-8", "replace").decode())
