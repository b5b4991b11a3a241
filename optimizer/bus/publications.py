"""
Publications: what may be lost, and how a subscriber finds out.

The messages of a group (`state/policy`, `log/journal`: the first two parts of a topic) are numbered from 1, and a `Pulse` every
second tells the last number. A gap, a number gone back or an unknown last number means that something was missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import zmq

from optimizer.bus.pump import deaf
from optimizer.bus.sockets import Sockets
from optimizer.bus.wire import Letter, letters, read, write
from optimizer.errors import OptimizerError, Permanent
from optimizer.messages import Changed, Grown, Message, Pulse
from optimizer.telemetry.logs import log

_PULSE_S: Final = 1.0
_UNNUMBERED: Final = 0  # a publication has its number inside, as it answers nobody


class Publisher:
    """
    Numbers and sends. Made by `Bus.bind_publisher`.
    """

    def __init__(self, sockets: Sockets, name: str) -> None:
        self._pump = sockets.bind(zmq.PUB, f"{name}.pub", deaf)
        self._numbers: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_PULSE_S, self._pulse)

    def publish(self, group: str, topic: str, message: Changed | Grown) -> None:
        """
        Send one message of a group; what cannot be sent is a gap that subscribers will see.
        """
        number = self._numbers[group] = self._numbers.get(group, 0) + 1
        try:
            self._send(topic, msgspec.structs.replace(message, sequence=number))
        except OptimizerError as error:  # too large
            log.error("bus.not_published", topic=topic, error=str(error))

    def close(self) -> None:
        """
        Stop the pulse.
        """
        self._timer.cancel()

    def _pulse(self) -> None:
        self._timer = self._loop.call_later(_PULSE_S, self._pulse)
        for group, number in self._numbers.items():
            self._send(f"{group}/", Pulse(sequence=number))

    def _send(self, topic: str, message: Message) -> None:
        frame = bytearray()
        write(frame, _UNNUMBERED, message)
        self._pump.send(topic.encode(), frame)


class Subscription:
    """
    Follows topics of one publisher. Made by `Bus.subscribe`.
    """

    def __init__(
        self,
        sockets: Sockets,
        peer: str,
        topics: Sequence[str],
        on_message: Callable[[str, Message], None],
        on_join: Callable[[], None],
    ) -> None:
        self._peer = peer
        self._on_message = on_message
        self._on_join = on_join
        self._numbers: dict[str, int] = {}
        self._refused = ""
        pump = sockets.connect(zmq.SUB, f"{peer}.pub", self._on_publication, self._on_connection)
        for topic in topics:
            pump.socket.setsockopt(zmq.SUBSCRIBE, topic.encode())

    def _on_connection(self, there: bool) -> None:
        if there:
            self._numbers.clear()
            self._on_join()

    def _on_publication(self, address: bytes, data: memoryview) -> None:
        try:
            topic = address.decode()
            messages = [self._understood(letter) for letter in letters(data)]
        except (OptimizerError, UnicodeDecodeError) as error:
            if self._refused != str(error):  # once: a peer of another version publishes nothing else
                self._refused = str(error)
                log.error("bus.publication_refused", error=self._refused)
            return
        for message in messages:
            self._take(topic, message)

    def _take(self, topic: str, message: Changed | Grown | Pulse) -> None:
        group = "/".join(topic.split("/", 2)[:2])
        last = self._numbers.get(group)
        self._numbers[group] = message.sequence
        if isinstance(message, Pulse):
            missed = last != message.sequence
        else:
            missed = last is None or message.sequence != last + 1
            self._on_message(topic, message)
        if missed:
            self._on_join()

    def _understood(self, letter: Letter) -> Changed | Grown | Pulse:
        message = read(letter, self._peer)
        if not isinstance(message, Changed | Grown | Pulse):
            raise Permanent(f"{self._peer} published {type(message).__name__}, which is no publication")
        return message
