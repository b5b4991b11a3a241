"""
What every call passes on its way in and out: the bound on calls in hand, the deadline, reading of its message, errors as
statuses, and the metrics.

Messages are read here and not by grpcio, so that bytes that are no message are the caller's INVALID_ARGUMENT instead of
INTERNAL.
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

from optimizer.errors import Invalid, OptimizerError, Problem, Rejected
from optimizer.telemetry import tracing
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics
from workers.grpc_api.refusals import refusal
from workers.grpc_api.settings import Settings

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
        self._in_hand = 0

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
                async with asyncio.timeout(self._settings.timeout_secs):
                    return await act(read(raw, ""))

            return await _traced(method, context, self._passed(operation, context, work))

        async def stream(raws: AsyncIterator[bytes], context: Context) -> bytes:
            return await _traced(method, context, self._passed(operation, context, lambda: act(read.each(raws))))

        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    async def _passed(self, operation: str, context: Context, work: Callable[[], Awaitable[Message]]) -> bytes:
        began, code = time.perf_counter(), grpc.StatusCode.CANCELLED
        self._count(1)
        try:
            if self._in_hand > self._settings.max_concurrency:
                raise Rejected(f"{self._settings.max_concurrency} calls are in hand (grpc_api.max_concurrency)")
            answer = (await work()).SerializeToString()
            code = grpc.StatusCode.OK
            return answer
        except Exception as error:  # the top of a call: whatever it is, it ends as a status
            code, told, trailers = refusal(self._told(operation, error))
            await context.abort(code, told, trailers)
            raise
        finally:
            self._count(-1)
            self._requests.labels(operation, code.name).inc()
            self._durations.labels(operation, code.name).observe(time.perf_counter() - began)

    def _told(self, operation: str, error: Exception) -> Exception:
        if isinstance(error, OptimizerError):
            return error
        if isinstance(error, TimeoutError):
            seconds = f"{float(self._settings.timeout_secs):g} s (grpc_api.timeout_secs)"
            return TimeoutError(f"it took longer than {seconds}; make the same call again")
        log.opt(exception=error).error("grpc_api.call_failed", operation=operation)
        return RuntimeError("internal error; the log of grpc_api says more")

    def _count(self, change: int) -> None:
        self._in_hand += change
        self._open.set(self._in_hand)


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


class _Reader:
    def __init__(self, method: MethodDescriptor) -> None:
        self._kind: Final = message_factory.GetMessageClass(method.input_type)

    def __call__(self, raw: bytes, where: str) -> Message:
        try:
            return self._kind.FromString(raw)
        except DecodeError:
            # protobuf's own text says no more than this
            raise Invalid([Problem(where, "cannot be read", f"a {self._kind.DESCRIPTOR.full_name}")]) from None

    async def each(self, raws: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        number = 0
        async for raw in raws:
            yield self(raw, f"[{number}]")
            number += 1
