"""
OTLP/HTTP: `POST /v1/traces`, as the OTLP specification 1.11 wants it (sections "OTLP/HTTP" and "Failures").

Refusals for lack of room are always 503, never a partial success, which a sender must not repeat. So is an error of ours: the
events were not stored.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any, Final

import orjson
from aiohttp import web
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from optimizer.budget import Budget, Lease
from optimizer.errors import Invalid, Rejected, Transient
from optimizer.http_bodies import TooLarge, TooSlow, UnknownEncoding, UnknownExpectation, read
from optimizer.model import Event
from optimizer.service import Frame
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics
from workers.collector import genai
from workers.collector.door import Door
from workers.collector.otlp import Bad, from_json, from_protobuf
from workers.collector.settings import Settings
from workers.collector.traits import trait, trait_with_content

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
SOURCE: Final = "otlp"
_INVALID_ARGUMENT, _DEADLINE_EXCEEDED, _NOT_FOUND, _OUT_OF_RANGE, _UNIMPLEMENTED, _UNAVAILABLE = (
    3,
    4,
    5,
    11,
    12,
    14,
)  # google.rpc.Code
_CONCURRENCY: Final = 256  # requests in hand, those whose bodies are on their way not among them
_LARGEST_AT_ONCE: Final = 2  # bodies of the largest size, packed or plain, in hand
_BODY_S: Final = 20.0  # for a whole body to arrive; senders give up after ten seconds
_SLICE_S: Final = 0.02  # of work on one body before others get their turn
_MAX_TOLD: Final = 1000  # characters of an error message


class Ingress:
    """
    Answers requests of port 4318.
    """

    def __init__(self, frame: Frame[Settings], door: Door, metrics: Metrics) -> None:
        self._frame = frame
        self._settings = frame.settings
        self._door = door
        self._metrics = metrics
        self._budget = Budget(_LARGEST_AT_ONCE * frame.settings.max_body_bytes)
        self._decoding = asyncio.Lock()  # one body at a time: decoded ones are several times as large
        self._in_hand = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """
        The answer to one request; never raises for what the sender did.
        """
        began = time.perf_counter()
        response = await self._answer(request)
        labels = ("otlp.traces" if request.path == "/v1/traces" else "none", str(response.status))
        self._metrics.requests_total.labels(*labels).inc()
        self._metrics.request_duration_seconds.labels(*labels).observe(time.perf_counter() - began)
        return response

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        answered = kind if kind in (PROTOBUF, JSON) else JSON  # who asks without a type, or of another, can read that
        if request.path != "/v1/traces":
            return _failure(answered, 404, _NOT_FOUND, f"{request.path[:100]} is not served here; POST /v1/traces is")
        if request.method != "POST":
            response = _failure(answered, 405, _UNIMPLEMENTED, f"{request.method[:20]} is not possible here, but POST")
            response.headers["Allow"] = "POST"
            return response
        if kind not in (PROTOBUF, JSON):
            told = f"the body is of type {kind[:60]!r}; send {PROTOBUF} or {JSON}"
            return _failure(answered, 415, _INVALID_ARGUMENT, told)
        try:
            with self._budget.lease() as lease:
                return await self._export(request, kind, lease)
        except TooLarge as error:
            return self._refused(kind, 413, _OUT_OF_RANGE, "too_large", str(error))
        except TooSlow as error:
            return self._refused(kind, 408, _DEADLINE_EXCEEDED, "too_slow", str(error))
        except UnknownExpectation as error:
            return self._refused(kind, 417, _INVALID_ARGUMENT, "undecodable", str(error))
        except (Invalid, UnknownEncoding) as error:
            return self._refused(kind, 400, _INVALID_ARGUMENT, "undecodable", str(error))
        except Transient as error:
            reason = "no_room" if isinstance(error, Rejected) else "storage_away"
            return self._refused(kind, 503, _UNAVAILABLE, reason, str(error), error.retry_after_s)
        except (ConnectionError, asyncio.CancelledError):
            raise  # nobody is there to answer
        except Exception as error:  # noqa: BLE001 - the top: a defect must not leave a sender without an answer
            log.opt(exception=error).error("otlp.failed", error=repr(error))
            told = f"internal error: {type(error).__name__}"
            return self._refused(kind, 503, _UNAVAILABLE, "internal", told, 5.0)

    async def _export(self, request: web.BaseRequest, kind: str, lease: Lease) -> web.Response:
        self._door.room(1)
        body = await read(request, self._settings.max_body_bytes, lease, _BODY_S)
        if self._in_hand >= _CONCURRENCY:
            raise Rejected(f"{_CONCURRENCY} requests are in hand already")
        self._in_hand += 1
        try:
            async with self._decoding:
                events, reasons = await self._decoded(kind, body)
            del body
            await self._door.store(SOURCE, events)
        finally:
            self._in_hand -= 1
        if reasons:
            self._door.refuse(SOURCE, "invalid", reasons.total())
        return _success(kind, reasons)

    async def _decoded(self, kind: str, body: bytes) -> tuple[list[Event], Counter[str]]:
        now = self._frame.clock.at().timestamp()
        secret, most = self._frame.secret, self._settings.buffer_size
        reading = trait_with_content if self._settings.keep_content else trait
        events: list[Event] = []
        reasons: Counter[str] = Counter()
        ignored = 0
        since = time.monotonic()
        for span in from_json(body, reading) if kind == JSON else from_protobuf(body, reading):
            if time.monotonic() - since > _SLICE_S:
                await asyncio.sleep(0)
                since = time.monotonic()
            if isinstance(span, Bad):
                reasons[_short(reasons, span.reason)] += 1
            elif not genai.is_call(span):
                ignored += 1
            else:
                try:
                    events.append(self._door.attributed(genai.event(span, now, secret)))
                except (genai.Refused, Invalid) as error:
                    reasons[_short(reasons, f"span {span.span_id}: {error}")] += 1
            if len(events) > most:
                raise TooLarge(f"the request has more than {most} calls (collector.buffer_size)")
        if ignored:
            self._door.ignore(ignored)
        return events, reasons

    def _refused(
        self, kind: str, status: int, code: int, reason: str, told: str, retry_after_s: float | None = None
    ) -> web.Response:
        self._door.refuse(SOURCE, reason)
        return _failure(kind, status, code, told, retry_after_s)


def route(request: web.BaseRequest) -> str:
    """
    The path of a request, if something is served there.
    """
    return request.path if request.path == "/v1/traces" else "none"


def unreadable(status: int, told: str) -> web.Response:
    """
    The response to what is no request.
    """
    return _failure(JSON, status, _INVALID_ARGUMENT, told)


def _short(reasons: Counter[str], told: str) -> str:
    # the message has room for some reasons only; the others are counted
    return told if len(reasons) < 20 else "and others"


def _success(kind: str, reasons: Counter[str]) -> web.Response:
    told = "; ".join(reasons)[:_MAX_TOLD]
    if kind == JSON:
        partial: dict[str, Any] = {"rejectedSpans": str(reasons.total()), "errorMessage": told}
        return web.Response(body=orjson.dumps({"partialSuccess": partial} if reasons else {}), content_type=JSON)
    response = ExportTraceServiceResponse()
    if reasons:
        response.partial_success.rejected_spans = reasons.total()
        response.partial_success.error_message = told
    return web.Response(body=response.SerializeToString(), content_type=PROTOBUF)


def _failure(kind: str, status: int, code: int, told: str, retry_after_s: float | None = None) -> web.Response:
    # senders give a request ten seconds, retries included, so a longer pause would lose the batch
    headers = {} if retry_after_s is None else {"Retry-After": str(max(1, min(5, round(retry_after_s))))}
    told = told[:_MAX_TOLD]
    body = orjson.dumps({"code": code, "message": told}) if kind == JSON else _status(code, told)
    return web.Response(status=status, body=body, content_type=kind, headers=headers)


def _status(code: int, told: str) -> bytes:
    packed: bytes = Status(code=code, message=told).SerializeToString()
    return packed
