"""
aiohttp's low-level server on an inherited listener, with an end that cuts nobody: what both HTTP services stand on.

aiohttp's own close() makes a connection deaf at once, so a body that is still on its way would never be complete. Here a
connection that has a request in hand hears and answers until it has none, and only then is closed.

Connections are bounded in number, and in the time until their first request. At the bound the least useful one makes room for
the newest: who opens many and says little shuts nobody else out.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from optimizer.telemetry.logs import log

BACKLOG: Final = 1024  # callers who wait while the service restarts
IDLE_S: Final = 75.0  # longer than a usual proxy keeps an idle connection
LINGER_S: Final = 5.0  # for the rest of a body that was refused, so that its sender reads why
MAX_CONNECTIONS: Final = 1024  # a caller holds a few
HEADER_S: Final = 10.0  # for the first request of a connection to arrive
_BURST: Final = 32  # connections accepted in one turn of the loop
_OTHER_FILES: Final = 192  # descriptors that are left for everything else, and for bursts before room is made
_TURNS_TO_CONNECT: Final = 3  # from accept to a connection; asyncio resets who finds its server closed then
_GRACE_S: Final = 1.0  # for the first request of a connection that was accepted just before the end
_LOOK_S: Final = 0.005  # aiohttp tells nobody when a request ends


class Connection(RequestHandler):
    """
    One connection of a `Server`.
    """

    __slots__ = ("_first",)

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._first: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """
        Begin; without a request the connection ends soon.
        """
        super().connection_made(transport)
        self._first = self._loop.call_later(HEADER_S, self._too_slow)

    def connection_lost(self, exc: BaseException | None) -> None:
        """
        End.
        """
        if self._first is not None:
            self._first.cancel()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """
        The answer to what is no HTTP, or has headers beyond the bounds. That is the sender's affair: aiohttp itself would log an
        error, with what was sent, for each.
        """
        if status >= 500 and not isinstance(exc, ConnectionError):  # that one is a sender who went away
            log.opt(exception=exc).error("http.failed", error=repr(exc)[:200])
        else:
            log.debug("http.unreadable", error=repr(exc)[:200])
        told = " ".join((message or str(exc)).split())[:300]  # the parser draws with lines and arrows
        manager = self._manager
        response = manager.unreadable(status, told) if isinstance(manager, Server) else web.Response(status=status)
        response.force_close()
        return response

    def _too_slow(self) -> None:
        if self.fresh:
            self.force_close()

    @property
    def fresh(self) -> bool:
        """
        No request has come yet.
        """
        return self._request_count == 0

    @property
    def busy(self) -> bool:
        """
        A request is in hand, or has been read and comes next.
        """
        return self._current_request is not None or bool(self._messages)

    @property
    def listening(self) -> bool:
        """
        The body of the request in hand is still on its way.
        """
        return self._current_request is not None and not self._current_request.content.is_eof()


class Server(web.Server):
    """
    Args:
        handler: answers one request; closes the connection with its response while `stopping`.
        on_connections: hears how many connections there are.
    """

    def __init__(self, handler: Any, on_connections: Callable[[int], None], **known: Any) -> None:
        super().__init__(handler, **known)
        self.stopping = False
        self._on_connections = on_connections
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.most = MAX_CONNECTIONS if files < 0 else max(8, min(MAX_CONNECTIONS, files - _OTHER_FILES))
        self._site: asyncio.Server | None = None

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > self.most:
            self._victim(handler).force_close()
        self._on_connections(len(self.connections))

    def _victim(self, newest: RequestHandler) -> RequestHandler:
        """
        Who makes room: who has said nothing yet, else who has nothing in hand, else who is slow to say it; of these the oldest.
        """
        others = [
            one
            for one in self.connections
            if isinstance(one, Connection) and one is not newest and one.transport is not None
        ]
        for kind in (lambda one: one.fresh, lambda one: not one.busy, lambda one: one.listening):
            for one in others:
                if kind(one):
                    return one
        return newest

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._on_connections(sum(1 for one in self.connections if one is not handler))

    def unreadable(self, status: int, told: str) -> web.Response:
        """
        The response to what is no request.
        """
        return web.Response(status=status, text=told)

    async def listen(self, listener: socket.socket) -> None:
        """
        Accept connections from now on.
        """
        # asyncio accepts as many in one turn as it lets wait; at the bound of descriptors it logs an error for each of them
        self._site = await asyncio.get_running_loop().create_server(self, sock=listener, backlog=_BURST)
        listener.listen(BACKLOG)

    async def stop(self, budget_s: float) -> None:
        """
        Stop accepting, answer what is in flight, close; what takes longer than `budget_s` is cut.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + budget_s
        self.stopping = True
        for _ in range(BACKLOG // _BURST):
            await asyncio.sleep(0)  # connections that wait in the backlog are accepted first
        if self._site is not None:
            for listener in self._site.sockets:
                loop.remove_reader(listener.fileno())  # others may accept on it, this process does not any more
            for _ in range(_TURNS_TO_CONNECT):
                await asyncio.sleep(0)
            self._site.close()
        grace = min(until, loop.time() + _GRACE_S)
        while loop.time() < until and self._close_idle(loop.time() < grace):  # noqa: ASYNC110 - see _LOOK_S
            await asyncio.sleep(_LOOK_S)
        await self.shutdown(max(0.1, until - loop.time()))

    def _close_idle(self, fresh_too_young: bool) -> bool:
        """
        Close who has nothing in hand; returns whether somebody has.
        """
        waiting = False
        for one in self.connections:
            if isinstance(one, Connection) and (one.busy or (one.fresh and fresh_too_young)):
                waiting = True
            else:
                one.close()
        return waiting
