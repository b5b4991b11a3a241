"""
What every call passes on its way in and out: the bound on calls in hand, the deadline, reading of its message, errors as
statuses, and the metrics.

Messages are read here and not by grpcio, so that bytes that are no message are the caller's INVALID_ARGUMENT instead of
INTERNAL, and so that large ones are read one after the other: a message takes up to fifty times its size when it is read.

Calls whose client streams have a bound of their own: however many of them are open and silent, the others are answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from optimizer.budget import Budget
from optimizer.errors import Invalid, OptimizerError, Problem, Rejected
from optimizer.telemetry import tracing
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics
from workers.grpc_api.refusals import refusal
from workers.grpc_api.settings import Settings

MAX_STREAMED_BYTES: Final = 1024 * 1024  # of one message of a stream; the largest event that is right has less
_MOST_PARTS: Final = 10_100  # of a message at its top; as many events as may come together
_MOST_WAITING: Final = 16  # large messages
_SILENCE_S: Final = 300.0  # between messages of a stream

Context = grpc.aio.ServicerContext[Any, Any]
Act = Callable[[Any], Awaitable[Message]]

# statuses that are no fault of the caller (OpenTelemetry's conventions for gRPC spans)
_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Gate:
    """
    Turns plain functions of messages into handlers of calls.
    """

    def __init__(self, name: str, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._requests = metrics.requests_total
        self._durations = metrics.request_duration_seconds
        self._open = metrics.active_connections.labels(name)
        self._open.set(0)
        self._budget = Budget(settings.max_message_bytes, most_waiting=_MOST_WAITING)
        self._unary = _Bound(settings.max_concurrency, "calls are in hand (grpc_api.max_concurrency)")
        self._streams = _Bound(settings.max_concurrency, "streams are open (grpc_api.max_concurrency)")

    def handlers(
        self, service: ServiceDescriptor, acts: Mapping[str, tuple[str, Act]]
    ) -> grpc.GenericRpcHandler[Any, Any]:
        """
        The handlers of one service.

        Args:
            acts: method -> (operation, the label of its metrics; the function that answers it: of a message, or of
                an iterator of messages where the client streams).
        """
        return grpc.method_handlers_generic_handler(
            service.full_name, {method.name: self._handler(method, *acts[method.name]) for method in service.methods}
        )

    def _handler(self, method: MethodDescriptor, operation: str, act: Act) -> Any:
        read = _Reader(method)

        async def unary(raw: bytes, context: Context) -> bytes:
            async def work() -> Message:
                nonlocal raw
                given, raw = raw, b""  # an aborted call lives in a cycle until the next collection, without its message
                with self._unary, self._budget.lease() as lease:
                    async with asyncio.timeout(self._settings.timeout_secs):
                        await lease.take(len(given))
                        return await act(read(given, ""))

            return await _traced(method, context, self._passed(operation, context, work))

        async def stream(raws: AsyncIterator[bytes], context: Context) -> bytes:
            async def work() -> Message:
                with self._streams:
                    return await act(read.each(raws))

            return await _traced(method, context, self._passed(operation, context, work))

        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    async def _passed(self, operation: str, context: Context, work: Callable[[], Awaitable[Message]]) -> bytes:
        began, code = time.perf_counter(), grpc.StatusCode.CANCELLED
        self._open.inc()
        try:
            answer = (await work()).SerializeToString()
            code = grpc.StatusCode.OK
            return answer
        except Exception as error:  # noqa: BLE001 - the top of a call: whatever it is, it ends as a status
            refused = refusal(self._told(operation, error))
            code = refused[0]
        finally:
            self._open.dec()
            self._requests.labels(operation, code.name).inc()
            self._durations.labels(operation, code.name).observe(time.perf_counter() - began)
        # out here, so that the abort does not keep the error, and with it all that was in hand
        await context.abort(*refused)
        raise AssertionError("abort raises")

    def _told(self, operation: str, error: Exception) -> Exception:
        if isinstance(error, OptimizerError):
            return error
        if isinstance(error, _Silent):
            return TimeoutError(str(error))
        if isinstance(error, TimeoutError):
            seconds = f"{float(self._settings.timeout_secs):g} s (grpc_api.timeout_secs)"
            return TimeoutError(f"it took longer than {seconds}; make the same call again")
        log.opt(exception=error).error("grpc_api.call_failed", operation=operation)
        return RuntimeError("internal error; the log of grpc_api says more")


async def _traced(method: MethodDescriptor, context: Context, passing: Awaitable[bytes]) -> bytes:
    if not tracing.on():
        return await passing
    service, name = method.containing_service.full_name, method.name
    sent = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    with tracing.request(f"{service}/{name}", sent, rpc__system="grpc", rpc__service=service, rpc__method=name) as span:
        try:
            answer = await passing
        except grpc.aio.AbortError as error:
            aborted, code = error, context.code()
            span.note(rpc__grpc__status_code=code.value[0])
            if code in _FAULTS:
                span.fail(code.name)
        else:
            span.note(rpc__grpc__status_code=grpc.StatusCode.OK.value[0])
            return answer
    raise aborted


class _Silent(Exception):
    """
    A stream was opened, and nothing comes.
    """


class _Bound:
    """
    So many at once, and no more; a context manager.
    """

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._taken = 0

    def __enter__(self) -> None:
        if self._taken >= self._most:
            raise Rejected(f"{self._taken} {self._what}")
        self._taken += 1

    def __exit__(self, *_: object) -> None:
        self._taken -= 1


class _Reader:
    def __init__(self, method: MethodDescriptor) -> None:
        self._kind: Final = message_factory.GetMessageClass(method.input_type)

    def __call__(self, raw: bytes, where: str) -> Message:
        if len(raw) > _MOST_PARTS and more_parts(raw, _MOST_PARTS):
            raise Invalid([Problem(where, f"has more than {_MOST_PARTS} parts", "a smaller message")])
        try:
            return self._kind.FromString(raw)
        except DecodeError:
            # protobuf's own text says no more than this
            raise Invalid([Problem(where, "cannot be read", f"a {self._kind.DESCRIPTOR.full_name}")]) from None

    async def each(self, raws: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        number = 0
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    raw = await anext(raws)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise _Silent(f"the stream was silent for {_SILENCE_S:g} s") from None
            if len(raw) > MAX_STREAMED_BYTES:
                told = f"has {len(raw)} bytes"
                raise Invalid(
                    [Problem(f"[{number}]", told, f"at most {MAX_STREAMED_BYTES} bytes in one message of a stream")]
                )
            yield self(raw, f"[{number}]")
            number += 1


def more_parts(raw: bytes, most: int) -> bool:
    """
    Whether a message has more than `most` fields, those of its parts not counted. Two bytes are enough for a part, and a message
    full of them would take a hundred times its size. Bytes that are no message have what comes before that is seen.

    Source: Protocol Buffers documentation, "Encoding".
    """
    at = count = 0
    while at < len(raw) and count <= most:
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == 2:
            size, at = _varint(raw, at)
            at += size
        elif kind == 0:
            at = _varint(raw, at)[1]
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            break
        count += 1
    return count > most


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            break
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, at
