"""
A message whose notice was taken by a question is still read.
"""

from __future__ import annotations

import time
from pathlib import Path

import zmq
from bus.conftest import DEADLINE_S, until

from optimizer.bus.pump import Pump
from optimizer.bus.sockets import Sockets


def noticed(pump: Pump) -> bool:
    events = pump.socket.get(zmq.EVENTS)
    assert isinstance(events, int)
    return bool(events & zmq.POLLIN)


async def test_asking_for_room_does_not_lose_the_notice_of_a_message(tmp_path: Path) -> None:
    asked: list[bytes] = []
    answered: list[bytes] = []
    connected: list[bool] = []
    sockets = Sockets(tmp_path)
    try:
        server = sockets.bind(zmq.ROUTER, "server.rpc", lambda address, _: asked.append(address))
        client = sockets.connect(
            zmq.DEALER, "server.rpc", lambda _, data: answered.append(bytes(data)), connected.append
        )
        await until(client.writable, "a connection")
        for round_ in range(20):
            client.send(b"", bytearray(b"question"))
            await until(lambda: len(asked) > round_, "a question")  # noqa: B023 - used at once
            server.send(asked[-1], bytearray(b"answer"))
            give_up = time.monotonic() + DEADLINE_S
            while not noticed(client):  # it takes the descriptor's notice, as any question does
                assert time.monotonic() < give_up
            assert client.writable()
            await until(lambda: len(answered) > round_, "an answer")  # noqa: B023 - used at once
    finally:
        sockets.close()
