"""
The sockets of one process, by name: `<folder>/<identity>.rpc` and `<identity>.pub` over ipc, in a folder of mode 0700.

A second bind to an ipc path would silently steal it, so the binder holds a lock on a file beside it. A path may be longer than
a socket's address allows: it is then reached through the descriptor of its folder.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import zmq

from optimizer.bus.pump import Pump, Reader
from optimizer.bus.wire import MAX_FRAME_BYTES
from optimizer.errors import Permanent

_HIGH_WATER: Final = 10_000  # messages in a ZeroMQ queue
_PATH_BYTES: Final = 107  # sun_path of a unix socket, without the final zero
_RECONNECT_MS: Final = 10
_ADDRESSED: Final = (zmq.ROUTER, zmq.PUB, zmq.SUB)
_HEAP_BYTES: Final = 1024 * 1024
_EVENTS: Final = int(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
_EVENT: Final = struct.Struct("=Hi")


class Sockets:
    """
    Makes sockets; must be closed in the process that made it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _keep_heap()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pumps: list[Pump] = []
        self._locks: dict[str, int] = {}
        self._bound: set[str] = set()

    def bind(self, kind: zmq.SocketType, name: str, on_message: Reader) -> Pump:
        """
        A socket under a name of ours.

        Raises:
            Permanent: somebody has bound the name, or it cannot be bound.
        """
        if name in self._bound or not self.hold(name):
            raise Permanent(f"{self._directory / name} is bound already")
        self._bound.add(name)
        socket = self._socket(kind)
        if kind == zmq.ROUTER:
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        pump = self._pumped(socket, kind in _ADDRESSED, on_message)
        try:
            socket.bind(self._endpoint(name))
        except zmq.ZMQError as error:
            raise Permanent(f"{self._directory / name} cannot be bound: {error}") from error
        return pump

    def connect(
        self, kind: zmq.SocketType, name: str, on_message: Reader, on_connection: Callable[[bool], None]
    ) -> Pump:
        """
        A socket to a name of a peer, which need not be there.

        Args:
            on_connection: called with True at each connection, and with False when it is lost. What was sent shortly before
                may belong to the connection that is reported.
        """
        socket = self._socket(kind)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)

        def on_event(event: bytes, _: memoryview) -> None:
            kind_of_event, _value = _EVENT.unpack(event)
            on_connection(kind_of_event == zmq.EVENT_HANDSHAKE_SUCCEEDED)

        watching = self._pumped(socket.get_monitor_socket(_EVENTS), True, on_event)
        pump = self._pumped(socket, kind in _ADDRESSED, on_message)
        socket.connect(self._endpoint(name))
        watching.look()
        return pump

    def close(self) -> None:
        """
        Close all of them; names are free again.
        """
        for pump in self._pumps:
            pump.close()
        self._context.destroy(0)
        for descriptor in (*self._locks.values(), self._folder):
            os.close(descriptor)

    def _socket(self, kind: zmq.SocketType) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        return socket

    def _pumped(self, socket: Any, addressed: bool, on_message: Reader) -> Pump:
        pump = Pump(socket, addressed, on_message)
        self._pumps.append(pump)
        return pump

    def _endpoint(self, name: str) -> str:
        path = str(self._directory / name)
        if len(os.fsencode(path)) > _PATH_BYTES:  # the kernel follows the descriptor to the folder, however deep it is
            path = f"/proc/self/fd/{self._folder}/{name}"
        return f"ipc://{path}"

    def hold(self, name: str) -> bool:
        """
        Take a name, before or without binding it; False while another process has it.
        """
        if name in self._locks:
            return True
        descriptor = os.open(self._directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._locks[name] = descriptor
        return True


def _keep_heap() -> None:
    # glibc returns the free end of its heap to the kernel when that exceeds 128 KiB, and each frame faults its pages
    # in again: 4 µs for 30 KiB. Once it has freed a block of this size it keeps twice as much (mallopt(3), M_TRIM_THRESHOLD).
    bytearray(_HEAP_BYTES)
