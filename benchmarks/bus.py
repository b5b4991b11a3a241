"""
The bus against a bare ZeroMQ pair over ipc, both on the loop's descriptor of one process, in one run.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import zmq

from benchmarks import Row
from optimizer.bus.link import Bus
from optimizer.messages import Append, Appended, Inspect, Message, Record, StorageReport

_ROUNDS = 2000
_BATCHES = 300
_EVENTS = 100  # a batch, as the collector sends


async def _answer(message: Message) -> Message:
    if isinstance(message, Append):
        return Appended(last_offset=len(message.records))
    return StorageReport(journal_offset=0, system_offset=0, revision=0, used_bytes=0, map_bytes=0)


async def _ours(folder: Path) -> tuple[float, float]:
    batch = Append(records=[Record(f"event-{i}", "", b"x" * 300) for i in range(_EVENTS)])
    async with Bus(folder, "server") as serving, Bus(folder, "client") as asking:
        serving.serve(_answer)
        client = asking.client("server")
        await client.request(Inspect(), 5)
        began = time.perf_counter()
        for _ in range(_ROUNDS):
            await client.request(Inspect(), 5)
        rounds = _ROUNDS / (time.perf_counter() - began)
        began = time.perf_counter()
        await asyncio.gather(*(client.request(batch, 30) for _ in range(_BATCHES)))
        return rounds, _BATCHES * _EVENTS / (time.perf_counter() - began)


class _Bare:
    """
    One end of a pair, read on the loop's descriptor.
    """

    def __init__(self, socket: zmq.Socket[bytes], echo: bytes | None) -> None:
        self.socket, self._echo = socket, echo
        self.answers = 0
        self.wanted = 0
        self.done = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(socket.fileno(), self.drain)

    def drain(self) -> None:
        while True:
            try:
                self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if self._echo is not None:
                self.socket.send(self._echo)
            self.answers += 1
            if self.answers == self.wanted:
                self.done.set_result(None)

    async def exchange(self, data: bytes, count: int) -> None:
        self.answers, self.wanted = 0, count
        self.done = asyncio.get_running_loop().create_future()
        for _ in range(count):
            self.socket.send(data)
        self.drain()
        await self.done


async def _bare(folder: Path) -> tuple[float, float]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    loop = asyncio.get_running_loop()
    one, two = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    try:
        one.bind(f"ipc://{folder}/bare")
        two.connect(f"ipc://{folder}/bare")
        server, client = _Bare(one, b"ok"), _Bare(two, None)
        poke = loop.call_later(0, server.drain)
        await client.exchange(b"x", 1)
        began = time.perf_counter()
        for _ in range(_ROUNDS):
            await client.exchange(b"x" * 40, 1)
        rounds = _ROUNDS / (time.perf_counter() - began)
        data = b"x" * (_EVENTS * 315)
        began = time.perf_counter()
        await client.exchange(data, _BATCHES)
        poke.cancel()
        return rounds, _BATCHES * _EVENTS / (time.perf_counter() - began)
    finally:
        for socket in (one, two):
            loop.remove_reader(socket.fileno())
        context.destroy(0)


def main() -> list[Row]:
    """
    Round trips and batched throughput.
    """
    with tempfile.TemporaryDirectory(prefix="llmo-") as folder:
        floor_rounds, floor_events = asyncio.run(asyncio.wait_for(_bare(Path(folder)), 60))
        rounds, events = asyncio.run(asyncio.wait_for(_ours(Path(folder)), 60))
    return [
        Row("bus round trip", "1/s", floor_rounds, rounds, rounds / floor_rounds, ">= 0.6"),
        Row("bus throughput, batches of 100", "events/s", floor_events, events, events / floor_events, ">= 0.6"),
    ]
