"""
HTTP/1.1 on the inherited listener.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from optimizer.http_server import IDLE_S, LINGER_S, Connection, Server

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class IngressServer(Server):
    """
    Args:
        handler: answers one request. `largest`: size of a body in bytes.
        on_connections: hears how many connections there are. unreadable: the response to what is no request: status, reason.
    """

    def __init__(
        self,
        handler: Handler,
        largest: int,
        on_connections: Callable[[int], None],
        unreadable: Callable[[int, str], web.Response],
    ) -> None:
        super().__init__(self._handle, on_connections, request_factory=self._request)
        self._answer = handler
        self._largest = largest
        self._unreadable = unreadable

    def unreadable(self, status: int, told: str) -> web.Response:
        """
        The response to what is no request.
        """
        return self._unreadable(status, told)

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,
            auto_decompress=False,  # aiohttp would inflate without a bound; bodies.py does it within ours
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        response = await self._answer(request)
        if self.stopping:
            response.force_close()
        return response

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, protocol._loop, client_max_size=self._largest)
