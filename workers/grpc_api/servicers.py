"""
What the calls do: messages to operations, results back to messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from optimizer.errors import Invalid, Problem
from optimizer.health import health_document
from optimizer.operations.feedback import Accepted, FeedbackRequest
from optimizer.operations.house import House
from optimizer.operations.registry import OPERATIONS
from optimizer.operations.selection import BatchSelectRequest, Selection
from optimizer.pb.v1 import health_pb2, selection_pb2
from optimizer.service import Frame
from optimizer.telemetry.metrics import Metrics
from workers.grpc_api.forms import event_document, select_request, select_response
from workers.grpc_api.gate import Act
from workers.grpc_api.settings import Settings

BATCH: Final = 500  # events of a stream that are made durable together
_BATCH_BYTES: Final = 512 * 1024  # of them, about
_STEP: Final = 100  # events between two turns of others


class Selections:
    """
    SelectionService.
    """

    def __init__(self, house: House, metrics: Metrics) -> None:
        self._house = house
        self._selected = metrics.selections_total
        self.acts: dict[str, tuple[str, Act]] = {
            "Select": ("select", self.select),
            "BatchSelect": ("select.batch", self.batch_select),
            "Feedback": ("feedback", self.feedback),
            "FeedbackStream": ("feedback.stream", self.feedback_stream),
        }

    async def select(self, request: selection_pb2.SelectRequest) -> selection_pb2.SelectResponse:
        """
        One selection.
        """
        return self._shown(await OPERATIONS["select"].run(self._house, select_request(request)))

    async def batch_select(self, request: selection_pb2.BatchSelectRequest) -> selection_pb2.BatchSelectResponse:
        """
        Many selections.
        """
        batch = BatchSelectRequest(requests=[select_request(one) for one in request.requests])
        found = await OPERATIONS["select.batch"].run(self._house, batch)
        return selection_pb2.BatchSelectResponse(responses=[self._shown(one) for one in found.selections])

    async def feedback(self, request: selection_pb2.FeedbackRequest) -> selection_pb2.FeedbackResponse:
        """
        Outcomes in one message.
        """
        documents: list[dict[str, Any]] = []
        for event in request.events:
            documents.append(event_document(event))
            if len(documents) % _STEP == 0:
                await asyncio.sleep(0)  # others get their turn
        found = await self._store(documents, "events")
        return selection_pb2.FeedbackResponse(accepted=found.accepted, duplicates=found.duplicates, ids=found.ids)

    async def feedback_stream(
        self, requests: AsyncIterator[selection_pb2.FeedbackStreamRequest]
    ) -> selection_pb2.FeedbackStreamResponse:
        """
        Outcomes as they come. While a batch is made durable nothing is read, so a fast client waits.
        """
        answer = selection_pb2.FeedbackStreamResponse()
        batch: list[dict[str, Any]] = []
        number = size = 0
        async for request in requests:
            batch.append(event_document(request.event))
            size += request.ByteSize()
            if len(batch) == BATCH or size >= _BATCH_BYTES:
                self._add(answer, await self._store(batch, "", number))
                number += len(batch)
                batch, size = [], 0
        if batch:
            self._add(answer, await self._store(batch, "", number))
        return answer

    def _add(self, answer: selection_pb2.FeedbackStreamResponse, found: Accepted) -> None:
        answer.accepted += found.accepted
        answer.duplicates += found.duplicates

    async def _store(self, documents: list[dict[str, Any]], path: str, first: int = 0) -> Accepted:
        """
        Raises:
            Invalid: problems carry the field's path in the call: `path` and the event's number, from `first` on.
        """
        try:
            request = FeedbackRequest(events=documents, source="grpc")
            found: Accepted = await OPERATIONS["feedback"].run(self._house, request)
        except Invalid as error:
            moved = (Problem(_moved(p.field, path, first), p.reason, p.expected) for p in error.problems)
            raise type(error)(moved) from error
        return found

    def _shown(self, found: Selection) -> selection_pb2.SelectResponse:
        self._selected.labels(found.task, found.variant).inc()
        return select_response(found)


class Health:
    """
    HealthService: the document of GET /health.
    """

    def __init__(self, frame: Frame[Settings]) -> None:
        self._frame = frame
        self.acts: dict[str, tuple[str, Act]] = {"Check": ("health", self.check)}

    async def check(self, _: health_pb2.CheckRequest) -> health_pb2.CheckResponse:
        """
        How the daemon is.
        """
        document = health_document(self._frame.fleet, self._frame.clock.monotonic())
        return health_pb2.CheckResponse(
            status=document["status"],
            uptime_secs=document["uptime_secs"],
            services={name: health_pb2.ServiceHealth(**one) for name, one in document["services"].items()},
        )


def _moved(field: str, path: str, first: int) -> str:
    if not field.startswith("["):
        return field or path
    number, _, rest = field[1:].partition("]")
    return f"{path}[{int(number) + first}]{rest}"
