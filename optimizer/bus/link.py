"""
ZeroMQ over ipc between the services: one process's place on the bus. Only files of this folder import zmq.

No broker: each service binds its own endpoints, `<identity>.rpc` (ROUTER) and `<identity>.pub` (PUB), in a folder of
mode 0700; others connect, and reconnect by themselves every 10 ms. The rules of the house:

- Raw sockets on the loop's descriptor (`pump.py`); zmq.asyncio costs an order of magnitude of throughput. What one round of the
  loop has to say to a peer goes as one frame (`wire.py`).
- Nothing that matters is sent without an answer. A client keeps each request until its answer or its deadline, and sends it
  again when the connection it went over was lost; so every request must be idempotent. IMMEDIATE keeps requests out of a queue
  to a peer that is away, where they would be lost with it (`requests.py`).
- A publication may be lost. Its group is numbered, and a `Pulse` every second tells the last number, so a subscriber that
  missed something hears `on_join` and reads the state anew (`publications.py`).
- Every queue is bounded; full is answered with `rejected`.
- A name has one owner (`sockets.py`), a message one version and a largest size (`wire.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from optimizer.bus.publications import Publisher, Subscription
from optimizer.bus.requests import Client, Handler, Server
from optimizer.bus.sockets import Sockets
from optimizer.messages import Changed, Grown, Message

_TURN_S: Final = 0.01  # between two looks whether a predecessor is gone


class Bus:
    """
    One process's place on the bus. An asynchronous context manager; made after the fork, in the process that uses it.

    Args:
        directory: folder of the sockets; made with mode 0700. May be longer than a socket path allows.
        identity: under which this process binds.
    """

    def __init__(self, directory: Path, identity: str) -> None:
        self._directory = directory
        self._identity = identity
        self._clients: dict[str, Client] = {}
        self._server: Server | None = None
        self._publisher: Publisher | None = None

    async def __aenter__(self) -> Bus:
        self._sockets = Sockets(self._directory)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.close()
        if self._publisher is not None:
            self._publisher.close()
        for client in self._clients.values():
            client.close()
        self._sockets.close()

    def client(self, peer: str) -> Client:
        """
        The one client of this process for a peer; it need not be there yet.
        """
        if peer not in self._clients:
            self._clients[peer] = Client(self._sockets, peer)
        return self._clients[peer]

    def serve(self, handler: Handler, max_in_flight: int = 1024) -> None:
        """
        Bind `<identity>.rpc` and answer requests; what the handler raises becomes a Failure.

        Raises:
            Permanent: it is bound already.
        """
        self._server = Server(self._sockets, self._identity, handler, max_in_flight)

    async def serve_in_turn(self, handler: Handler, max_in_flight: int = 1024) -> None:
        """
        As `serve`, once the process that has the name lets go of it; returns at once where nobody has it. Requests that the
        predecessor leaves unanswered are sent again to this one.
        """
        while not self._sockets.hold(f"{self._identity}.rpc"):  # noqa: ASYNC110 - a lock on a file tells nobody when it is free
            await asyncio.sleep(_TURN_S)
        self.serve(handler, max_in_flight)

    def publish(self, group: str, topic: str, message: Changed | Grown) -> None:
        """
        Publish under a topic that begins with `<group>/` or is the group; `bind_publisher` comes first.
        """
        if self._publisher is None:
            raise RuntimeError(f"{self._identity} publishes, but has not bound its publisher")
        self._publisher.publish(group, topic, message)

    def bind_publisher(self) -> None:
        """
        Bind `<identity>.pub`, so that subscribers can join before there is anything to publish.

        Raises:
            Permanent: it is bound already.
        """
        self._publisher = Publisher(self._sockets, self._identity)

    def subscribe(
        self,
        peer: str,
        topics: Sequence[str],
        on_message: Callable[[str, Message], None],
        on_join: Callable[[], None],
    ) -> None:
        """
        Follow topics (prefixes). `on_join`: connected, or something was missed; read the state anew.
        """
        Subscription(self._sockets, peer, topics, on_message, on_join)
