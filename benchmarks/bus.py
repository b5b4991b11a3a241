"""
The bus against a bare ZeroMQ pair over ipc, both on the loop's descriptor, from one process to another, in turns in one run.

The bare pair sends the same bytes and nothing else: no request has a name, a deadline or a type, nothing is encoded or decoded.
Ours makes a request of a list of records, as the collector does; the records arrive packed, as they reach storage. What it costs
to unpack them there is the last row.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import zmq

from benchmarks import Row
from optimizer.bus.link import Bus
from optimizer.bus.storage import RemoteStorage
from optimizer.messages import Append, Appended, Inspect, Message, Record, StorageReport, encode

_TURNS: Final = 5  # the median of so many: one turn may meet a busy machine
_ROUNDS: Final = 1000
_BATCHES: Final = 16_000  # long enough for heaps and queues to settle
_EVENTS: Final = 100  # a batch, as the collector sends
_WINDOW: Final = 32  # batches under way at once
_BATCH: Final = [Record(f"event-{i}", "", b"x" * 300) for i in range(_EVENTS)]


async def _answer(message: Message) -> Message:
    if isinstance(message, Append):
        return Appended(last_offset=_EVENTS)
    return StorageReport(journal_offset=0, system_offset=0, revision=0, used_bytes=0, map_bytes=0)


async def _unpack(message: Message) -> Message:
    assert isinstance(message, Append)
    return Appended(last_offset=len(message.records()))


async def _serve_ours(folder: Path) -> None:
    async with Bus(folder, "server") as bus, Bus(folder, "unpacker") as unpacker:
        bus.serve(_answer)
        unpacker.serve(_unpack)
        await asyncio.Event().wait()


async def _ask_ours(folder: Path) -> tuple[float, ...]:
    async with Bus(folder, "client") as bus:
        storage, unpacker = (RemoteStorage(bus.client(name), 30) for name in ("server", "unpacker"))

        async def rounds() -> None:
            for _ in range(_ROUNDS):
                await storage.inspect()

        async def batches(to: RemoteStorage) -> None:
            await asyncio.gather(*(sender(to) for _ in range(_WINDOW)))

        async def sender(to: RemoteStorage) -> None:
            for _ in range(_BATCHES // _WINDOW):
                await to.append(_BATCH)

        packed, client = Append.of(_BATCH), bus.client("server")

        async def packed_batches() -> None:
            await asyncio.gather(*(packed_sender() for _ in range(_WINDOW)))

        async def packed_sender() -> None:
            for _ in range(_BATCHES // _WINDOW):
                await client.request(packed, 30)

        await asyncio.gather(storage.inspect(), unpacker.append(_BATCH))
        return (
            _ROUNDS / await _timed(rounds),
            _BATCHES * _EVENTS / await _timed(lambda: batches(storage)),
            _BATCHES * _EVENTS / await _timed(lambda: batches(unpacker)),
            _BATCHES * _EVENTS / await _timed(packed_batches),
        )


async def _timed(work: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


class _Bare:
    """
    One end of a pair, read on the loop's descriptor: the server echoes, the client keeps `_WINDOW` messages under way.
    """

    def __init__(self, socket: zmq.Socket[bytes], echo: bytes | None) -> None:
        self._socket, self._echo = socket, echo
        self._data, self._unsent, self._unanswered = b"", 0, 0
        self._done = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(socket.fileno(), self.drain)
        self.drain()

    def drain(self) -> None:
        while True:
            try:
                self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if self._echo is not None:
                self._socket.send(self._echo)
                continue
            if self._unsent:
                self._unsent -= 1
                self._socket.send(self._data)
            self._unanswered -= 1
            if not self._unanswered:
                self._done.set_result(None)

    async def exchange(self, data: bytes, count: int, window: int) -> None:
        self._data, self._unsent, self._unanswered = data, count - window, count
        self._done = asyncio.get_running_loop().create_future()
        for _ in range(window):
            self._socket.send(data)
        self.drain()
        await self._done


async def _serve_bare(folder: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.bind(f"ipc://{folder}/bare")
    _Bare(socket, b"x" * 24)
    await asyncio.Event().wait()


async def _ask_bare(folder: Path) -> tuple[float, ...]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    try:
        socket.connect(f"ipc://{folder}/bare")
        client = _Bare(socket, None)
        await client.exchange(b"x", 1, 1)

        async def rounds() -> None:
            for _ in range(_ROUNDS):
                await client.exchange(encode(Inspect()), 1, 1)

        async def batches() -> None:
            await client.exchange(encode(Append.of(_BATCH)), _BATCHES, _WINDOW)

        return _ROUNDS / await _timed(rounds), _BATCHES * _EVENTS / await _timed(batches)
    finally:
        asyncio.get_running_loop().remove_reader(socket.fileno())
        context.destroy(0)


@contextmanager
def _served(serve: Callable[[Path], Coroutine[Any, Any, None]], folder: Path) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(serve, folder), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _run(serve: Callable[[Path], Coroutine[Any, Any, None]], folder: Path) -> None:
    asyncio.run(serve(folder))


def main() -> list[Row]:
    """
    Round trips and batched throughput.
    """
    floors: list[tuple[float, ...]] = []
    figures: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory(prefix="llmo-") as name:
        folder = Path(name)
        with _served(_serve_bare, folder), _served(_serve_ours, folder):
            for _ in range(_TURNS):
                floors.append(asyncio.run(asyncio.wait_for(_ask_bare(folder), 60)))
                figures.append(asyncio.run(asyncio.wait_for(_ask_ours(folder), 60)))
    floor_rounds, floor_events = (statistics.median(turns) for turns in zip(*floors, strict=True))
    rounds, events, unpacked, packed = (statistics.median(turns) for turns in zip(*figures, strict=True))
    return [
        Row("bus round trip", "1/s", floor_rounds, rounds, rounds / floor_rounds, ">= 0.6"),
        Row("bus throughput, batches of 100", "events/s", floor_events, events, events / floor_events, ">= 0.6"),
        Row("  … packed before, as the pair's", "events/s", floor_events, packed, packed / floor_events),
        Row("  … and unpacked", "events/s", floor_events, unpacked, unpacked / floor_events),
    ]
