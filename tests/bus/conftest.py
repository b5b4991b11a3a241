"""
Buses in folders of their own, peers in processes of their own, and peers that speak ZeroMQ but not our language.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from optimizer.bus.link import Bus
from optimizer.bus.wire import write
from optimizer.messages import Message, StorageReport
from optimizer.telemetry.logs import log

DEADLINE_S = 20.0


async def until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """
    Wait for a condition.
    """
    try:
        async with asyncio.timeout(deadline_s):
            while not condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        pytest.fail(f"not within {deadline_s:g} s: {what}")


def report(number: int) -> StorageReport:
    """
    An answer that carries a number.
    """
    return StorageReport(journal_offset=number, system_offset=0, revision=0, used_bytes=0, map_bytes=0)


def letter(number: int, message: Message) -> bytes:
    """
    A frame with one letter.
    """
    frame = bytearray()
    write(frame, number, message)
    return bytes(frame)


class Counter:
    """
    Answers with how often it was asked; while `held` is clear, it waits.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.held = asyncio.Event()
        self.held.set()

    async def answer(self, message: Message) -> Message:
        self.asked += 1
        number = self.asked
        await self.held.wait()
        return report(number)


class Peer:
    """
    A process of `peer.py`; `said` are its lines so far.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said: list[str] = []
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.said.append(line.decode().strip())

    async def hears(self, line: str) -> None:
        """
        Give it a line.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def says(self, line: str) -> None:
        """
        Wait until it has said a line.
        """
        await until(lambda: line in self.said, f"{line!r} from the peer, which said {self.said[-5:]}")

    async def kill(self) -> None:
        """
        SIGKILL, and its last lines.
        """
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._listening


@asynccontextmanager
async def peer(folder: Path, role: str) -> AsyncIterator[Peer]:
    """
    A peer that is ready.
    """
    program = Path(__file__).with_name("peer.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, folder, role, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    one = Peer(process)
    try:
        await one.says("ready")
        yield one
    finally:
        await one.kill()


class Stranger:
    """
    A bare socket that may send anything; sockets are polled, as blocking would stop the loop that the bus runs on.
    """

    def __init__(self, kind: int, address: str, *, binds: bool = False) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(kind)
        if binds:
            self.socket.bind(address)
        else:
            self.socket.connect(address)

    async def receive(self) -> list[bytes]:
        """
        The next message.
        """
        await until(lambda: self.socket.poll(0), "a message for the stranger")
        return self.socket.recv_multipart()

    def close(self) -> None:
        """
        Forget what is unsent.
        """
        self._context.destroy(0)


@pytest.fixture
def strangers() -> Any:
    """
    Makes strangers that are closed in the end.
    """
    made: list[Stranger] = []

    def make(kind: int, address: str, *, binds: bool = False) -> Stranger:
        made.append(Stranger(kind, address, binds=binds))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Bus, Bus]]:
    """
    The bus of a server and the bus of a client.
    """
    async with Bus(tmp_path, "server") as server, Bus(tmp_path, "client") as client:
        yield server, client


@pytest.fixture
def logged() -> Any:
    """
    The log's events, by name, as they happen.
    """
    lines: list[Any] = []
    sink = log.add(lambda line: lines.append(line.record), level="DEBUG", format="{message}")
    yield lambda name: [record for record in lines if record["message"] == name]
    log.remove(sink)
