"""
A bound on the streams of the standard services (`grpc.health.v1.Health.Watch`, reflection): they stay open for as long as their
clients like, and as many as these like must not shut out the calls that are the purpose of the server.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from optimizer.errors import Rejected
from workers.grpc_api.refusals import refusal

MOST_WATCHERS: Final = 128


class Crowd(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in its stub only
    """
    Refuses streams of answers beyond the bound, with the delay of a retry.
    """

    def __init__(self, most: int = MOST_WATCHERS) -> None:
        self._most = most
        self._open = 0

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """
        The handler of a call, counted if it answers with a stream.
        """
        handler = await continuation(details)
        if handler is None or not handler.response_streaming:
            return handler
        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        act = handler.stream_stream if handler.request_streaming else handler.unary_stream
        return make(self._counted(act), handler.request_deserializer, handler.response_serializer)

    def _counted(self, act: Any) -> Any:
        async def counted(asked: Any, context: Any) -> None:
            if self._open >= self._most:
                await context.abort(*refusal(Rejected(f"{self._open} streams of the standard services are open")))
            self._open += 1
            try:
                if inspect.isasyncgenfunction(act):
                    async for answer in act(asked, context):
                        await context.write(answer)
                else:
                    await act(asked, context)
            finally:
                self._open -= 1

        return counted
