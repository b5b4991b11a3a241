"""
HTTP/1.1 on the inherited listener, with bounds on connections and on the time of their first request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from optimizer.http_server import IDLE_S, LINGER_S, Connection, Server

MAX_CONNECTIONS: Final = 1024  # one sender holds one or two
_HEADER_S: Final = 10.0  # for the first request of a connection to arrive

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Connection(Connection):
    __slots__ = ("timer",)

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.timer = self._loop.call_later(_HEADER_S, self._too_slow)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        super().connection_lost(exc)

    def _too_slow(self) -> None:
        if self.fresh:
            self.force_close()


class IngressServer(Server):
    """
    Args:
        handler: answers one request. `largest`: size of a body in bytes.
        on_connections: hears how many connections there are.
    """

    def __init__(self, handler: Handler, largest: int, on_connections: Callable[[int], None]) -> None:
        super().__init__(self._handle, on_connections, request_factory=self._request)
        self._answer = handler
        self._largest = largest

    def __call__(self) -> RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,
            auto_decompress=False,  # aiohttp would inflate without a bound; bodies.py does it within ours
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
        )

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        response = await self._answer(request)
        if self.stopping:
            response.force_close()
        return response

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, protocol._loop, client_max_size=self._largest)
