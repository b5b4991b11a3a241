"""
One ZeroMQ socket on the loop's descriptor.

The descriptor tells that something happened to the socket, once; whether there is a message must be asked, and asked again
after whatever else was done to the socket, or the loop sleeps over a message that is there. So after every event and every
send the question is asked until the answer is no. It costs 1 µs; to receive and be refused costs 4 µs, for the exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import zmq

from optimizer.telemetry.logs import log

Reader = Callable[[bytes, memoryview], None]

_BURST: Final = 200  # frames taken before other callbacks of the loop get their turn
# plain numbers: arithmetic with the enumerations costs more than a system call
_READABLE: Final = int(zmq.POLLIN)
_WRITABLE: Final = int(zmq.POLLOUT)
_NOW: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


def deaf(address: bytes, data: memoryview) -> None:
    """
    The reader of a socket that only sends.
    """


class Pump:
    """
    Sends at once or not at all, and hands over what arrives.

    Args:
        addressed: before its frame of data a message has one with an address (peer or topic).
        on_message: called with the address (or b"") and each frame of data; a stranger may send more than one.
    """

    def __init__(self, socket: zmq.Socket[bytes], addressed: bool, on_message: Reader) -> None:
        self.socket = socket
        self._addressed = addressed
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._descriptor = socket.fileno()
        self._soon = False
        self.closed = False
        self._loop.add_reader(self._descriptor, self._drain)
        self.look()

    def send(self, address: bytes, frame: bytearray) -> bool:
        """
        Hand a frame to ZeroMQ; False when its queue is full, nobody is connected, or the pump is closed.

        What is addressed to a peer that has gone is dropped: the peer has forgotten what it asked.
        """
        if self.closed:
            return False
        try:
            if self._addressed:
                self.socket.send(address, _MORE)
            self.socket.send(frame, _NOW)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            log.debug("bus.peer_gone")
        finally:
            if self._readable():
                self.look()
        return True

    def writable(self) -> bool:
        """
        Whether somebody is connected and there is room for one more message.
        """
        if self.closed:
            return False
        events = int(self.socket.get(zmq.EVENTS))
        if events & _READABLE:
            self.look()  # the question has taken the descriptor's only notice of it
        return bool(events & _WRITABLE)

    def look(self) -> None:
        """
        Ask the socket for messages in the loop's next round.
        """
        if not self._soon:
            self._soon = True
            self._loop.call_soon(self._drain_again)

    def close(self) -> None:
        """
        Close the socket; what it has not sent is dropped.
        """
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._descriptor)
            self.socket.close(0)

    def _drain_again(self) -> None:
        self._soon = False
        self._drain()

    def _drain(self) -> None:
        taken = 0
        try:
            while not self.closed and self._readable():
                if taken >= _BURST:
                    self.look()
                    return
                taken += self._take()
        except BaseException:
            self.look()  # the rest is to be read all the same
            raise

    def _readable(self) -> bool:
        return bool(self.socket.get(zmq.EVENTS) & _READABLE)  # type: ignore[operator] # EVENTS is an int

    def _take(self) -> int:
        address = self.socket.recv(_NOW) if self._addressed else b""
        frames = [self.socket.recv(_NOW, copy=False)]
        while frames[-1].more:
            frames.append(self.socket.recv(_NOW, copy=False))
        for frame in frames:
            self._on_message(address, frame.buffer)
        return len(frames)
