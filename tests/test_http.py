"""
What both HTTP services stand on, with a handler that does nothing: bounds on connections, on bodies, and on all of them together.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import resource
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from optimizer.budget import FREE_BYTES, Budget
from optimizer.errors import Invalid, Rejected
from optimizer.http_bodies import TooLarge, gunzip
from optimizer.http_server import Connection, Server
from optimizer.telemetry.logs import log

MIB = 1024 * 1024
Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Server(Server):
    def __call__(self) -> Connection:
        return Connection(self, loop=asyncio.get_running_loop(), access_log=None)


@asynccontextmanager
async def serving(most: int) -> AsyncIterator[tuple[_Server, int]]:
    async def handle(request: web.BaseRequest) -> web.Response:
        return web.Response(body=await request.read())

    server = _Server(handle, lambda _: None)
    server.most = most
    listener = socket.create_server(("127.0.0.1", 0))
    await server.listen(listener)
    yield server, listener.getsockname()[1]
    await server.stop(1.0)


async def ask(port: int, text: str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n") -> Peer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode())
    return reader, writer


async def status(peer: Peer) -> bytes:
    return (await asyncio.wait_for(peer[0].readuntil(b"\r\n\r\n"), 5))[:12]


async def ended(peer: Peer) -> bool:
    try:
        return await asyncio.wait_for(peer[0].read(), 5) == b""
    except ConnectionError:
        return True


async def close(*peers: Peer) -> None:
    for _, writer in peers:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for _, writer in peers), return_exceptions=True)


async def test_who_says_nothing_makes_room_for_the_newest() -> None:
    async with serving(most=3) as (_, port):
        polite = await ask(port)
        assert await status(polite) == b"HTTP/1.1 200"
        silent = [await ask(port, "GET / HT") for _ in range(10)]
        newest = await ask(port)
        assert await status(newest) == b"HTTP/1.1 200"
        assert await ended(silent[0])
        polite[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await status(polite) == b"HTTP/1.1 200"
        await close(polite, newest, *silent)


async def test_who_is_idle_or_slow_makes_room_and_who_is_answered_does_not() -> None:
    async with serving(most=3) as (server, port):
        idle = await ask(port)
        assert await status(idle) == b"HTTP/1.1 200"
        slow = [await ask(port, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab") for _ in range(2)]
        async with asyncio.timeout(5):
            while sum(isinstance(one, Connection) and one.listening for one in server.connections) < 2:
                await asyncio.sleep(0.01)
        one, two = await ask(port), await ask(port)
        assert [await status(one), await status(two)] == [b"HTTP/1.1 200"] * 2
        assert await ended(idle)
        await close(idle, *slow, one, two)


async def test_a_connection_without_a_request_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.http_server.HEADER_S", 0.1)
    async with serving(most=3) as (_, port):
        peer = await ask(port, "GET / HTTP/1.1\r\nHost:")
        assert await ended(peer)
        await close(peer)


FLOOD = """
    import asyncio, resource, socket, sys
    from aiohttp import web
    from optimizer.http_server import Connection, Server
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))

    class Ours(Server):
        def __call__(self):
            return Connection(self, loop=asyncio.get_running_loop(), access_log=None)

    async def main():
        async def handle(request):
            return web.Response(text="served")
        listener = socket.create_server(("127.0.0.1", 0))
        await Ours(handle, lambda _: None).listen(listener)
        print(listener.getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    asyncio.run(main())
"""


async def test_a_flood_of_connections_meets_no_bound_of_the_system() -> None:
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(FLOOD), stdin=pipe, stdout=pipe, stderr=pipe
    )
    assert server.stdout is not None
    port = int(await asyncio.wait_for(server.stdout.readline(), 20))
    assert server.pid
    os.kill(server.pid, signal.SIGSTOP)  # so that they come all at once
    silent = await asyncio.gather(*(ask(port, "GET") for _ in range(600)))
    os.kill(server.pid, signal.SIGCONT)
    newest = await ask(port)
    assert await status(newest) == b"HTTP/1.1 200"
    await close(newest, *silent)
    server.kill()
    assert (await asyncio.wait_for(server.communicate(), 20))[1] == b""


async def test_a_sender_who_goes_away_is_no_error() -> None:
    lines: list[str] = []
    sink = log.add(lines.append, level="WARNING")
    async with serving(most=3) as (server, port):
        peer = await ask(port, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        async with asyncio.timeout(5):
            while not any(isinstance(one, Connection) and one.listening for one in server.connections):
                await asyncio.sleep(0.01)
        await close(peer)
        async with asyncio.timeout(5):
            while server.connections:
                await asyncio.sleep(0.01)
    log.remove(sink)
    assert lines == []


async def test_connections_leave_descriptors_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (500, 500))
    assert _Server(None, lambda _: None).most < 500 - 100


@pytest.mark.parametrize("data", [b"", b"x", b"a" * (5 * MIB), os.urandom(2 * MIB)], ids=len)
async def test_what_was_packed_is_unpacked(data: bytes) -> None:
    budget = Budget(20 * MIB)
    for packed, plain in (
        (gzip.compress(data), data),
        (gzip.compress(data) + gzip.compress(b"more") + b"\0" * 9, data + b"more"),
    ):
        with budget.lease() as lease:
            assert await gunzip(packed, 10 * MIB, lease) == plain
        with budget.lease() as lease, pytest.raises(Invalid):
            await gunzip(packed + b"rubbish", 10 * MIB, lease)
    for cut in range(1, 12):
        with budget.lease() as lease, pytest.raises(Invalid, match="truncated"):
            await gunzip(gzip.compress(data)[:-cut], 10 * MIB, lease)
    await asyncio.wait_for(budget.take(20 * MIB), 0.1)  # all of it was given back


@pytest.mark.parametrize("size", [1, MIB - 1, MIB, MIB + 1, 3 * MIB])
async def test_the_bound_of_what_is_unpacked_is_exact(size: int) -> None:
    packed = gzip.compress(b"z" * size)
    with Budget(20 * MIB).lease() as lease:
        assert len(await gunzip(packed, size, lease)) == size
        with pytest.raises(TooLarge):
            await gunzip(packed, size - 1, lease)


async def test_a_budget_is_shared_and_little_is_free() -> None:
    budget = Budget(MIB, wait_s=0.05)
    with budget.lease() as one:
        await one.take(MIB + FREE_BYTES)
        with budget.lease() as two, pytest.raises(Rejected, match="in hand hold"):
            await two.take(2 * FREE_BYTES)
        with budget.lease() as three:
            await three.take(FREE_BYTES)
    with budget.lease() as four:
        await four.take(MIB + FREE_BYTES)


async def test_large_bodies_wait_in_order() -> None:
    budget = Budget(MIB)
    order: list[int] = []

    async def hold(number: int, size: int) -> None:
        with budget.lease() as lease:
            await lease.take(size + FREE_BYTES)
            order.append(number)
            await asyncio.sleep(0.001)

    sizes = [MIB, MIB // 2, MIB // 2 + 1, 1, MIB]
    await asyncio.gather(*(hold(number, size) for number, size in enumerate(sizes)))
    assert order == [0, 1, 2, 3, 4]
    await asyncio.wait_for(budget.take(MIB), 0.1)


async def test_not_any_number_waits() -> None:
    budget = Budget(1, most_waiting=1)
    await budget.take(1)
    waiting = asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    with pytest.raises(Rejected, match="wait already"):
        await budget.take(1)
    budget.give(1)
    await waiting


@pytest.mark.parametrize("granted", [True, False])
async def test_who_waits_no_more_takes_nothing(granted: bool) -> None:
    budget = Budget(MIB)
    await budget.take(MIB)
    first = asyncio.create_task(budget.take(MIB))
    small = asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    if granted:
        budget.give(MIB)
    first.cancel()
    await asyncio.wait({first})
    assert first.cancelled()
    if not granted:
        budget.give(MIB)
    await asyncio.wait_for(small, 0.1)
    await asyncio.wait_for(budget.take(MIB - 1), 0.1)


async def test_bombs_do_not_wait_for_each_other() -> None:
    budget = Budget(20 * MIB, wait_s=1)
    bomb = gzip.compress(b" " * (30 * MIB))

    async def unpack() -> None:
        with budget.lease() as lease:
            await gunzip(bomb, 10 * MIB, lease)

    ended = await asyncio.gather(*(unpack() for _ in range(20)), return_exceptions=True)
    assert {type(error) for error in ended} == {TooLarge}
