"""
Select over HTTP against an empty handler of the same server, one process each for server and load.

Both floors answer the same requests with an empty 200 and do not look at their bodies: an aiohttp application with that
one route, and, for information, a route of our own server that does nothing. Short rounds of all three
alternate; each round gives its own ratio, and the median of those is told, so that a busy machine slows all alike.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks import Row

_CONNECTIONS: Final = 8
_ROUNDS: Final = 21
_ROUND_S: Final = 0.25
_BODY: Final = json.dumps({"context": {"length": 0.5, "language": "en"}, "session": "s-1"}).encode()


class _Asker(asyncio.Protocol):
    """
    One connection that asks again as soon as it is answered.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._got = b""
        self.answers = 0
        self.asking = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(self._got.decode())
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self._got = b""
            self.answers += 1
            if self.asking:
                self.transport.write(self._request)


async def _load(port: int) -> float:
    """
    Answers per second.
    """
    head = f"POST /api/v1/tasks/t/select HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(_BODY)}"
    request = head.encode() + b"\r\n\r\n" + _BODY
    loop = asyncio.get_running_loop()
    askers = [
        (await loop.create_connection(lambda: _Asker(request), "127.0.0.1", port))[1] for _ in range(_CONNECTIONS)
    ]
    await asyncio.sleep(0.05)
    before, began = sum(asker.answers for asker in askers), time.perf_counter()
    await asyncio.sleep(_ROUND_S)
    rate = (sum(asker.answers for asker in askers) - before) / (time.perf_counter() - began)
    for asker in askers:
        asker.asking = False
        asker.transport.close()
    return rate


async def _serve(folder: Path) -> None:
    from aiohttp import web

    from optimizer.bus.memory import MemoryStorage
    from optimizer.operations.book import Book
    from optimizer.operations.house import House
    from optimizer.operations.tasks import WriteTask, create_task
    from optimizer.telemetry.metrics import open_metrics
    from workers.rest_api.routes import ROUTES
    from workers.rest_api.server import Api, ApiServer
    from workers.rest_api.settings import Settings

    storage = MemoryStorage()
    house = House(storage=storage, collector=None, book=Book(storage, storage), secret=b"s" * 32)  # type: ignore[arg-type] # not used here
    following = asyncio.create_task(house.book.run())
    await house.book.joined()
    variants = [{"name": name, "provider": "openai", "model": name} for name in ("small", "medium", "large")]
    await create_task(house, WriteTask(document={"task": "t", "variants": variants}))
    metrics = open_metrics(folder, "bench-0")
    gauge = metrics.active_connections.labels("bench")

    async def empty(_: object) -> web.Response:
        return web.Response()

    async def bare(_: web.BaseRequest) -> web.Response:
        return web.Response()

    nothing = replace(
        next(route for route in ROUTES if route.operation == "select"), handler=empty, at_once=lambda *_: web.Response()
    )
    application = web.Application()
    application.router.add_post("/api/v1/tasks/{task}/select", bare)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    assert runner.server is not None
    servers = (
        runner.server,
        ApiServer(Api(house, Settings(), metrics, [nothing]), gauge.set),
        ApiServer(Api(house, Settings(), metrics, ROUTES), gauge.set),
    )
    loop = asyncio.get_running_loop()
    gc.collect()
    gc.freeze()  # as the parent of the service does before it forks
    listening = [await loop.create_server(server, "127.0.0.1", 0) for server in servers]
    print(json.dumps([one.sockets[0].getsockname()[1] for one in listening]), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until the load is over
    following.cancel()


def main() -> list[Row]:
    """
    Measure, in some 20 seconds.
    """
    command = [sys.executable, "-m", "benchmarks.select", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        ports: list[int] = json.loads(server.stdout.readline())
        rates: list[list[float]] = [[], [], []]
        for _ in range(_ROUNDS):
            for port, found in zip(ports, rates, strict=True):
                found.append(asyncio.run(_load(port)))
    bare, empty, ours = rates
    return [_row("select over HTTP", bare, ours, ">= 0.7"), _row("select over HTTP, own empty route", empty, ours)]


def _row(name: str, floor: list[float], ours: list[float], wanted: str = "") -> Row:
    ratio = statistics.median(mine / least for mine, least in zip(ours, floor, strict=True))
    return Row(name, "requests/s", statistics.median(floor), statistics.median(ours), ratio, wanted)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        with tempfile.TemporaryDirectory() as name:
            asyncio.run(_serve(Path(name)))
    else:
        print(main())
