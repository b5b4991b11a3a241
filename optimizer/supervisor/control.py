"""
The channel between the parent and one child: a socketpair that keeps messages apart and in order, without waiting.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import msgspec

from optimizer.messages import Message, decode_control, encode
from optimizer.telemetry.logs import log

_BUFFER_BYTES = 1024 * 1024  # the largest message must fit; the kernel may give less


def pair() -> tuple[socket.socket, socket.socket]:
    """
    The parent's end and the child's.
    """
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return ends


class Channel:
    """
    One end, on the running loop. `on_close` is called once when the other side is gone.
    """

    def __init__(self, end: socket.socket, on_message: Callable[[Message], None], on_close: Callable[[], None]) -> None:
        self._end = end
        self._on_message = on_message
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end.fileno(), self._read)
        self._open = True

    def send(self, message: Message) -> bool:
        """
        False when the other side is gone, or does not read.
        """
        if not self._open:
            return False
        try:
            self._end.send(encode(message))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """
        Idempotent.
        """
        if self._open:
            self._open = False
            self._loop.remove_reader(self._end.fileno())
            self._end.close()

    def _read(self) -> None:
        try:
            data = self._end.recv(_BUFFER_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._on_close()
            return
        try:
            message = decode_control(data)
        except msgspec.DecodeError as error:  # something else than our code writes on its descriptors
            log.error("control.garbled", size=len(data), error=str(error))
        else:
            self._on_message(message)
