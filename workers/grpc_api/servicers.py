"""
The calls: messages to operations, results and errors back to messages and statuses.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from optimizer.errors import Conflict, Invalid, NotFound, OptimizerError, Transient
from optimizer.health import health_document
from optimizer.operations.feedback import FeedbackRequest
from optimizer.operations.house import House
from optimizer.operations.registry import OPERATIONS
from optimizer.operations.selection import BatchSelectRequest, Selection, SelectRequest
from optimizer.pb.v1 import event_pb2, health_pb2, health_pb2_grpc, selection_pb2, selection_pb2_grpc
from optimizer.service import Frame
from optimizer.telemetry.metrics import Metrics
from workers.grpc_api.settings import Settings

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

_BATCH: Final = 500  # events of a stream that are made durable together


def event_document(event: event_pb2.Event) -> dict[str, Any]:
    """
    The event as the document that REST takes.
    """
    document: dict[str, Any] = MessageToDict(event, preserving_proto_field_name=True)
    for field in event.DESCRIPTOR.fields:
        if field.name in document and field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
            document[field.name] = int(document[field.name])  # JSON of protobuf writes 64-bit numbers as text
    return document


class _Calls:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._open = metrics.active_connections.labels("grpc_api")

    async def _call(self, operation: str, context: Context, work: Callable[[], Awaitable[T]]) -> T:
        began, code = time.perf_counter(), "OK"
        self._open.inc()
        try:
            return await work()
        except OptimizerError as error:
            code = _code(error).name
            await _abort(context, error)
            raise
        finally:
            self._open.dec()
            self._metrics.requests_total.labels(operation, code).inc()
            self._metrics.request_duration_seconds.labels(operation, code).observe(time.perf_counter() - began)


class Selections(_Calls, selection_pb2_grpc.SelectionServiceServicer):
    """
    SelectionService.
    """

    def __init__(self, house: House, metrics: Metrics) -> None:
        super().__init__(metrics)
        self._house = house

    async def Select(  # noqa: N802 - the name is protobuf's
        self, request: selection_pb2.SelectRequest, context: Context
    ) -> selection_pb2.SelectResponse:
        async def work() -> selection_pb2.SelectResponse:
            return self._shown(await OPERATIONS["select"].run(self._house, _select(request)))

        return await self._call("select", context, work)

    async def BatchSelect(  # noqa: N802 - as above
        self, request: selection_pb2.BatchSelectRequest, context: Context
    ) -> selection_pb2.BatchSelectResponse:
        async def work() -> selection_pb2.BatchSelectResponse:
            batch = BatchSelectRequest(requests=[_select(one) for one in request.requests])
            found = await OPERATIONS["select.batch"].run(self._house, batch)
            return selection_pb2.BatchSelectResponse(responses=[self._shown(one) for one in found.selections])

        return await self._call("select.batch", context, work)

    async def Feedback(  # noqa: N802 - as above
        self, request: selection_pb2.FeedbackRequest, context: Context
    ) -> selection_pb2.FeedbackResponse:
        async def work() -> selection_pb2.FeedbackResponse:
            found = await self._store([event_document(event) for event in request.events])
            return selection_pb2.FeedbackResponse(accepted=found.accepted, duplicates=found.duplicates, ids=found.ids)

        return await self._call("feedback", context, work)

    async def FeedbackStream(  # noqa: N802 - as above
        self, request_iterator: AsyncIterator[selection_pb2.FeedbackStreamRequest], context: Context
    ) -> selection_pb2.FeedbackStreamResponse:
        async def work() -> selection_pb2.FeedbackStreamResponse:
            answer = selection_pb2.FeedbackStreamResponse()
            batch: list[dict[str, Any]] = []
            async for one in request_iterator:
                batch.append(event_document(one.event))
                if len(batch) == _BATCH:
                    await self._add(answer, batch)
                    batch = []
            if batch:
                await self._add(answer, batch)
            return answer

        return await self._call("feedback.stream", context, work)

    async def _add(self, answer: selection_pb2.FeedbackStreamResponse, batch: list[dict[str, Any]]) -> None:
        found = await self._store(batch)
        answer.accepted += found.accepted
        answer.duplicates += found.duplicates

    async def _store(self, documents: list[dict[str, Any]]) -> Any:
        return await OPERATIONS["feedback"].run(self._house, FeedbackRequest(events=documents, source="grpc"))

    def _shown(self, found: Selection) -> selection_pb2.SelectResponse:
        self._metrics.selections_total.labels(found.task, found.variant).inc()
        parameters = Struct()
        parameters.update(found.parameters)
        answer = selection_pb2.SelectResponse(
            selection_id=found.selection_id,
            task=found.task,
            variant=found.variant,
            provider=found.provider,
            model=found.model,
            parameters=parameters,
            propensity=found.propensity,
            policy_version=found.policy_version,
        )
        if found.prompt is not None:
            answer.prompt.CopyFrom(selection_pb2.Prompt(name=found.prompt.name, version=found.prompt.version))
        return answer


class Health(health_pb2_grpc.HealthServiceServicer):
    """
    HealthService: the document of GET /health.
    """

    def __init__(self, frame: Frame[Settings]) -> None:
        self._frame = frame

    async def Check(  # noqa: N802 - the name is protobuf's
        self, request: health_pb2.CheckRequest, context: Context
    ) -> health_pb2.CheckResponse:
        document = health_document(self._frame.fleet, self._frame.clock.monotonic())
        return health_pb2.CheckResponse(
            status=document["status"],
            uptime_secs=document["uptime_secs"],
            services={name: health_pb2.ServiceHealth(**one) for name, one in document["services"].items()},
        )


def _select(request: selection_pb2.SelectRequest) -> SelectRequest:
    return SelectRequest(task=request.task, context=MessageToDict(request.context), session=request.session)


def _code(error: OptimizerError) -> grpc.StatusCode:
    match error:
        case NotFound():
            return grpc.StatusCode.NOT_FOUND
        case Conflict():
            return grpc.StatusCode.FAILED_PRECONDITION
        case Invalid():
            return grpc.StatusCode.INVALID_ARGUMENT
        case Transient():
            return grpc.StatusCode.UNAVAILABLE
        case _:
            return grpc.StatusCode.INTERNAL


async def _abort(context: Context, error: OptimizerError) -> None:
    """
    End the call with the status of an error, its details in the trailers.
    """
    code, told = _code(error), str(error)[:4000]
    status = Status(code=code.value[0], message=told)
    trailers: list[tuple[str, bytes]] = []
    if isinstance(error, Invalid):
        bad = error_details_pb2.BadRequest()
        for problem in error.problems[:50]:
            violation = bad.field_violations.add()
            violation.field = problem.field[:200]
            violation.description = f"{problem.reason}; expected {problem.expected}"[:400]
        status.details.add().Pack(bad)
    elif isinstance(error, Transient):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after_s * 1000))
        status.details.add().Pack(retry)
        trailers.append(("google.rpc.retryinfo-bin", retry.SerializeToString()))
    trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    await context.abort(code, told, tuple(trailers))
