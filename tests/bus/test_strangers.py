"""
Peers that speak another version, or nonsense: each is told so if it can be, and nobody else notices.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import zmq
from bus.conftest import Counter, Stranger, letter, report, until

from optimizer.bus import sockets
from optimizer.bus.link import Bus
from optimizer.bus.wire import letters, read
from optimizer.errors import Permanent
from optimizer.messages import VERSION, Appended, Failure, Inspect, Message, StorageReport

GARBAGE: list[list[bytes]] = [
    [b""],
    [b"\x01"],
    [b"123456789"],
    [b"key", b"\x01data", b"trace"],
    [letter(1, Inspect())[:14] + b"\xc1" * 9],
    [b"", b"", b"", b""],
    [letter(1, Inspect())[:14]],
    [letter(1, Inspect()) + b"more"],
    [letter(1, Appended(last_offset=1)), b"\xff" * 40],
]


def heard(frame: bytes) -> list[tuple[int, int, Message]]:
    """
    Version, number and message of each letter.
    """
    return [(found[0], found[1], read(found, "the server")) for found in letters(memoryview(frame))]


async def sane(stranger: Stranger) -> None:
    """
    Read answers until one of number 5 is a report.
    """
    found: list[tuple[int, int, Message]] = []
    while not any(number == 5 and isinstance(message, StorageReport) for _, number, message in found):
        (frame,) = await stranger.receive()
        found = heard(frame)


async def test_a_client_of_another_version_is_told_so(tmp_path: Path, strangers: Any) -> None:
    async with Bus(tmp_path, "server") as server:
        server.serve(Counter().answer)
        stranger = strangers(zmq.DEALER, f"ipc://{tmp_path}/server.rpc")
        stranger.socket.send(b"\x09" + letter(77, Inspect())[1:])
        (answer,) = await stranger.receive()
    sentence = f"a client speaks version 9 of the bus, this process {VERSION}"
    assert heard(answer) == [(VERSION, 77, Failure(kind="permanent", message=sentence))]


async def test_a_server_of_another_version_is_named(tmp_path: Path, strangers: Any) -> None:
    stranger = strangers(zmq.ROUTER, f"ipc://{tmp_path}/server.rpc", binds=True)
    async with Bus(tmp_path, "client") as client:
        asked = asyncio.create_task(client.client("server").request(Inspect(), 10))
        peer, request = await stranger.receive()
        stranger.socket.send_multipart([peer, b"\x09" + request[1:9] + bytes([0, 0, 0, 0, 8]) + b"whatever"])
        with pytest.raises(Permanent, match=f"server speaks version 9 of the bus, this process {VERSION}"):
            await asked


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_from_a_client_harms_nobody(tmp_path: Path, strangers: Any, garbage: list[bytes]) -> None:
    async with Bus(tmp_path, "server") as server, Bus(tmp_path, "client") as client:
        server.serve(Counter().answer)
        stranger = strangers(zmq.DEALER, f"ipc://{tmp_path}/server.rpc")
        stranger.socket.send_multipart(garbage)
        stranger.socket.send(letter(5, Inspect()))  # the same peer may come to its senses
        await sane(stranger)
        assert isinstance(await client.client("server").request(Inspect(), 5), Message)


async def test_random_bytes_harm_nobody(tmp_path: Path, strangers: Any, logged: Any) -> None:
    rng = random.Random(20)
    async with Bus(tmp_path, "server") as server, Bus(tmp_path, "client") as client:
        server.serve(Counter().answer)
        stranger = strangers(zmq.DEALER, f"ipc://{tmp_path}/server.rpc")
        for _ in range(500):
            stranger.socket.send_multipart([rng.randbytes(rng.randrange(40)) for _ in range(rng.randrange(1, 5))])
        stranger.socket.send(letter(5, Inspect()))
        await sane(stranger)
        assert isinstance(await client.client("server").request(Inspect(), 5), Message)
    assert logged("bus.garbage")
    assert not logged("bus.handler_failed")


async def test_garbage_from_a_server_harms_nobody(tmp_path: Path, strangers: Any) -> None:
    stranger = strangers(zmq.ROUTER, f"ipc://{tmp_path}/server.rpc", binds=True)
    async with Bus(tmp_path, "client") as client:
        asked = asyncio.create_task(client.client("server").request(Inspect(), 10))
        peer, request = await stranger.receive()
        number = int.from_bytes(request[1:9], "big")
        for garbage in ([b""], [b"\x01"], [b"", b"x" * 300], [letter(number + 1, report(1))]):
            stranger.socket.send_multipart([peer, *garbage])
        stranger.socket.send_multipart([peer, letter(number, report(8)), letter(number, report(9))])
        assert await asked == report(8)
        again = asyncio.create_task(client.client("server").request(Inspect(), 10))
        peer, request = await stranger.receive()
        stranger.socket.send_multipart([peer, request[:10] + bytes([0, 0, 0, 1]) + b"\xc1"])
        with pytest.raises(Permanent, match="server sent what is no bus message"):
            await again


async def test_who_sends_too_much_is_hung_up_on(
    tmp_path: Path, strangers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "MAX_FRAME_BYTES", 10_000)
    async with Bus(tmp_path, "server") as server, Bus(tmp_path, "client") as client:
        counter = Counter()
        server.serve(counter.answer)
        stranger = strangers(zmq.DEALER, f"ipc://{tmp_path}/server.rpc")
        seen = stranger.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        stranger.socket.send(letter(1, Inspect()) + b"x" * 20_000)
        await until(lambda: seen.poll(0), "the end of the stranger's connection")
        assert counter.asked == 0
        assert await client.client("server").request(Inspect(), 5) == report(1)


async def test_a_publisher_of_another_version_is_logged_once(tmp_path: Path, strangers: Any, logged: Any) -> None:
    stranger = strangers(zmq.PUB, f"ipc://{tmp_path}/server.pub", binds=True)
    got: list[str] = []
    async with Bus(tmp_path, "client") as client:
        client.subscribe("server", ["state/task"], lambda topic, message: got.append(topic), lambda: None)

        def refused() -> bool:  # a subscription takes its time to arrive; what is sent before is lost
            for frames in (
                [b"\x09" + letter(0, Inspect())[1:]],
                [b"\x01"],
                [b"\x01"],
                [],
                [letter(0, Inspect())],
            ):
                stranger.socket.send_multipart([b"state/task/x", *frames] if frames else [b"state/task\xff", b""])
            return len(logged("bus.publication_refused")) >= 3

        await until(refused, "all kinds of refusal")
        told = {record["extra"]["error"] for record in logged("bus.publication_refused")}
    assert f"server speaks version 9 of the bus, this process {VERSION}" in told
    assert "server published Inspect, which is no publication" in told
    assert got == []
