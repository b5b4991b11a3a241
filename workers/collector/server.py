"""
HTTP/1.1 on the inherited listener: aiohttp's low-level server with bounds on connections and on the time of their first
request.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

BACKLOG: Final = 1024  # senders who wait while the service restarts
MAX_CONNECTIONS: Final = 1024  # one sender holds one or two
_HEADER_S: Final = 10.0  # for the first request of a connection to arrive
_IDLE_S: Final = 75.0  # exporters send every few seconds
_LINGER_S: Final = 5.0  # for the rest of a body that was refused, so that its sender reads why
_GRACE_S: Final = 0.2  # for the first request of a connection that was accepted just before the end

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Connection(RequestHandler):
    __slots__ = ("fresh", "timer")

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.fresh = True
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


class Server(web.Server):
    """
    Args:
        handler: answers one request; the response is closed after it while `stopping`.
        on_connections: hears how many connections there are.
    """

    def __init__(self, handler: Handler, largest: int, on_connections: Callable[[int], None]) -> None:
        super().__init__(self._handle, request_factory=self._request)
        self._answer = handler
        self._largest = largest
        self._on_connections = on_connections
        self._site: asyncio.Server | None = None
        self._stopping = False

    def __call__(self) -> RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,
            auto_decompress=False,  # aiohttp would inflate without a bound; bodies.py does it within ours
            keepalive_timeout=_IDLE_S,
            lingering_time=_LINGER_S,
        )

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._on_connections(len(self.connections))

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._on_connections(sum(1 for one in self.connections if one is not handler))

    async def listen(self, listener: socket.socket) -> None:
        """
        Accept connections from now on.
        """
        self._site = await asyncio.get_running_loop().create_server(self, sock=listener, backlog=BACKLOG)

    async def stop(self, budget_s: float) -> None:
        """
        Stop accepting, answer what is in flight, close; what takes longer than `budget_s` is cut.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + budget_s
        self._stopping = True
        await asyncio.sleep(0)  # connections that wait in the backlog are accepted first
        if self._site is not None:
            self._site.close()
        grace = min(until, loop.time() + _GRACE_S)
        while loop.time() < grace and any(isinstance(one, _Connection) and one.fresh for one in self.connections):  # noqa: ASYNC110 - aiohttp tells nobody
            await asyncio.sleep(0.005)
        self.pre_shutdown()
        await self.shutdown(max(0.1, until - loop.time()))

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if isinstance(connection, _Connection):
            connection.fresh = False
        response = await self._answer(request)
        if self._stopping:
            response.force_close()
        return response

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, protocol._loop, client_max_size=self._largest)
