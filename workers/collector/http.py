"""
OTLP/HTTP: `POST /v1/traces`, as the OTLP specification 1.11 wants it (sections "OTLP/HTTP" and "Failures").
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from typing import Final

import orjson
from aiohttp import web
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from optimizer.errors import Invalid, Rejected, Transient
from optimizer.model import Event
from optimizer.service import Frame
from optimizer.telemetry.metrics import Metrics
from workers.collector import genai
from workers.collector.door import Door
from workers.collector.otlp import Bad, Span, from_json, from_protobuf
from workers.collector.settings import Settings

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
_INVALID_ARGUMENT, _UNAVAILABLE, _NOT_FOUND, _OUT_OF_RANGE = 3, 14, 5, 11  # google.rpc.Code
_CONCURRENCY: Final = 64  # requests in hand; each may hold a body of the largest size


class Ingress:
    """
    The aiohttp application of port 4318.
    """

    def __init__(self, frame: Frame[Settings], door: Door, metrics: Metrics) -> None:
        self._frame = frame
        self._settings = frame.settings
        self._door = door
        self._metrics = metrics
        self._open = metrics.active_connections.labels("collector")
        self._in_hand = 0
        self.application = web.Application(client_max_size=self._settings.max_body_bytes)
        self.application.router.add_route("*", "/v1/traces", self._traces)
        self.application.router.add_route("*", "/{path:.*}", self._elsewhere)

    async def _elsewhere(self, request: web.Request) -> web.Response:
        kind = JSON if request.content_type == JSON else PROTOBUF
        return _failure(kind, 404, _NOT_FOUND, f"{request.path} is not served here; POST /v1/traces is")

    async def _traces(self, request: web.Request) -> web.Response:
        began = time.perf_counter()
        self._open.inc()
        self._in_hand += 1
        status = 500
        try:
            answer = await self._answer(request)
            status = answer.status
            return answer
        finally:
            self._open.dec()
            self._in_hand -= 1
            self._metrics.requests_total.labels("otlp.traces", str(status)).inc()
            self._metrics.request_duration_seconds.labels("otlp.traces", str(status)).observe(
                time.perf_counter() - began
            )

    async def _answer(self, request: web.Request) -> web.Response:
        if request.method != "POST":
            text = "405 method not allowed, supported: [POST]"
            return web.Response(status=405, text=text, headers={"Allow": "POST"})
        kind = request.content_type
        if kind not in (PROTOBUF, JSON) or "Content-Type" not in request.headers:
            return web.Response(status=415, text=f"415 unsupported media type, supported: [{JSON}, {PROTOBUF}]")
        try:
            if self._in_hand > _CONCURRENCY:
                raise Rejected(f"{_CONCURRENCY} requests are in hand already")
            body = self._plain(await request.read(), request.headers.get("Content-Encoding", ""))
            return await self._take(kind, from_json(body) if kind == JSON else from_protobuf(body))
        except (web.HTTPRequestEntityTooLarge, _TooLarge):
            told = f"the body is larger than {self._settings.max_body_bytes} bytes (collector.max_body_bytes)"
            return _failure(kind, 413, _OUT_OF_RANGE, told)
        except Invalid as error:
            self._door.refuse("otlp", "undecodable")
            return _failure(kind, 400, _INVALID_ARGUMENT, str(error))
        except Transient as error:
            self._door.refuse("otlp", "no_room" if isinstance(error, Rejected) else "storage_away")
            return _failure(kind, 503, _UNAVAILABLE, str(error), retry_after_s=error.retry_after_s)

    def _plain(self, body: bytes, encoding: str) -> bytes:
        if encoding in ("", "identity"):
            return body
        if encoding != "gzip":
            raise Invalid(f"Content-Encoding {encoding} is not understood; gzip and none are")
        limit = self._settings.max_body_bytes
        unpacker = zlib.decompressobj(wbits=31)
        try:
            plain = unpacker.decompress(body, limit + 1)
        except zlib.error as error:
            raise Invalid(f"the body is no gzip: {error}") from error
        if len(plain) > limit:
            raise _TooLarge
        if not unpacker.eof:
            raise Invalid("the body is a gzip that ends too early")
        return plain

    async def _take(self, kind: str, spans: Iterator[Span | Bad]) -> web.Response:
        now = self._frame.clock.at().timestamp()
        events: list[Event] = []
        reasons: list[str] = []
        for span in spans:
            if isinstance(span, Bad):
                reasons.append(span.reason)
            elif genai.is_call(span):
                try:
                    event = genai.event(span, now, self._frame.secret, self._settings.keep_content)
                    if event.selection_id:
                        self._door.attributed(event)
                    events.append(event)
                except (genai.Refused, Invalid) as error:
                    reasons.append(str(error))
        if events:
            await self._door.take("otlp", events)
        if reasons:
            self._door.refuse("otlp", "invalid", len(reasons))
        return _success(kind, reasons)


class _TooLarge(Exception):
    pass


def _success(kind: str, reasons: list[str]) -> web.Response:
    told = "; ".join(dict.fromkeys(reasons))[:1000]
    if kind == JSON:
        found = {"partialSuccess": {"rejectedSpans": str(len(reasons)), "errorMessage": told}} if reasons else {}
        return web.Response(body=orjson.dumps(found), content_type=JSON)
    response = ExportTraceServiceResponse()
    if reasons:
        response.partial_success.rejected_spans = len(reasons)
        response.partial_success.error_message = told
    return web.Response(body=response.SerializeToString(), content_type=PROTOBUF)


def _failure(kind: str, status: int, code: int, told: str, retry_after_s: float | None = None) -> web.Response:
    headers = {} if retry_after_s is None else {"Retry-After": str(max(1, min(5, round(retry_after_s))))}
    status_body = {"code": code, "message": told}
    body = orjson.dumps(status_body) if kind == JSON else Status(**status_body).SerializeToString()
    return web.Response(status=status, body=body, content_type=kind, headers=headers)
