"""
Requests and answers, between processes where one is killed.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from bus.conftest import Counter, peer, report, until

from optimizer.bus import wire
from optimizer.bus.link import Bus
from optimizer.bus.requests import MAX_PENDING
from optimizer.errors import Conflict, Invalid, OptimizerError, Permanent, Problem, Rejected, Transient
from optimizer.messages import Append, Appended, Get, Inspect, Message, Record, State, States, StorageReport

Pair = tuple[Bus, Bus]


async def test_every_request_gets_its_own_answer(pair: Pair) -> None:
    server, client = pair
    waiting: list[tuple[int, asyncio.Future[Message]]] = []

    async def answer(message: Message) -> Message:
        assert isinstance(message, Get)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        waiting.append((int(message.keys[0]), future))
        return await future

    server.serve(answer)
    asked = [asyncio.create_task(client.client("server").request(Get(keys=[str(i)]), 10)) for i in range(300)]
    await until(lambda: len(waiting) >= 300, "all requests in hand")
    for number, future in reversed(waiting):
        future.set_result(report(number))
    answers = await asyncio.gather(*asked)
    assert answers == [report(i) for i in range(300)]


async def test_requests_of_many_sizes_pass(pair: Pair) -> None:
    server, client = pair

    async def answer(message: Message) -> Message:
        assert isinstance(message, Append)
        (record,) = message.records()
        return States(states={record.id: State(1, record.body)}, revision=1)

    server.serve(answer)
    sizes = [0, 1, 30, 8191, 8192, 70_000, 1 << 20, 64 << 20]
    bodies = [bytes([size % 251]) * size for size in sizes]
    answers = await asyncio.gather(
        *(client.client("server").request(Append.of([Record(str(i), "", b)]), 20) for i, b in enumerate(bodies))
    )
    for i, (answer_, body) in enumerate(zip(answers, bodies, strict=True)):
        assert isinstance(answer_, States)
        assert answer_.states[str(i)].body == body


@pytest.mark.parametrize(
    "error",
    [
        Transient("away", 7.0),
        Rejected("no room", 3.5),
        Invalid([Problem("[3].task", "is too long", "at most 200 characters")]),
        Conflict([Problem("k", "is at revision 3", "revision 2")]),
        Permanent("for ever"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_a_handler_raises_is_raised_at_the_client(pair: Pair, error: OptimizerError) -> None:
    async def answer(message: Message) -> Message:
        raise error

    pair[0].serve(answer)
    with pytest.raises(type(error)) as caught:
        await pair[1].client("server").request(Inspect(), 5)
    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)


async def test_a_bug_in_a_handler_is_logged_and_ends_one_request_only(pair: Pair, logged: Any) -> None:
    async def answer(message: Message) -> Message:
        return report(1 // len(message.keys)) if isinstance(message, Get) else report(5)

    pair[0].serve(answer)
    with pytest.raises(Transient, match="internal error: ZeroDivisionError"):
        await pair[1].client("server").request(Get(keys=[]), 5)
    assert await pair[1].client("server").request(Inspect(), 5) == report(5)
    assert len(logged("bus.handler_failed")) == 1


async def test_each_request_has_its_own_deadline(pair: Pair) -> None:
    server, client = pair
    counter = Counter()
    counter.held.clear()
    server.serve(counter.answer)
    ended: list[str] = []

    async def ask(name: str, timeout_s: float) -> None:
        began = time.monotonic()
        with pytest.raises(Transient, match=f"server did not answer Inspect within {timeout_s:g} s"):
            await client.client("server").request(Inspect(), timeout_s)
        assert time.monotonic() - began >= timeout_s - 0.002
        ended.append(name)

    async def wait() -> None:
        await client.client("server").request(Inspect(), 30)
        ended.append("patient")

    async with asyncio.TaskGroup() as group:
        group.create_task(wait())
        for name, timeout_s in (("middle", 0.2), ("short", 0.05), ("middle again", 0.25)):
            group.create_task(ask(name, timeout_s))
        await until(lambda: len(ended) == 3, "three deadlines")
        counter.held.set()
    assert ended == ["short", "middle", "middle again", "patient"]
    assert counter.asked == 4
    assert isinstance(
        await client.client("server").request(Inspect(), 5), StorageReport
    )  # late answers were not for it


async def test_a_request_waits_for_a_peer_that_is_not_there_yet(tmp_path: Path) -> None:
    async with Bus(tmp_path, "client") as client:
        asked = [asyncio.create_task(client.client("server").request(Inspect(), 20)) for _ in range(200)]
        with pytest.raises(Transient):
            await client.client("server").request(Inspect(), 0.05)
        async with Bus(tmp_path, "server") as server:
            counter = Counter()
            server.serve(counter.answer)
            answers = await asyncio.gather(*asked)
    assert len({str(one) for one in answers}) == 200  # each was answered by a call of its own


async def test_what_was_in_hand_when_the_peer_was_killed_is_asked_again(tmp_path: Path) -> None:
    async with Bus(tmp_path, "client") as client, peer(tmp_path, "hold") as first:
        asked = [asyncio.create_task(client.client("server").request(Inspect(), 20)) for _ in range(100)]
        await until(lambda: first.said.count("holds") >= 100, "all requests in the hands of the first")
        await first.kill()
        assert not any(one.done() for one in asked)
        async with peer(tmp_path, "answer") as second:
            answers = await asyncio.gather(*asked)
            await until(lambda: second.said.count("asked Inspect") >= 100, "all requests in the second")
    numbers = {one.journal_offset for one in answers if isinstance(one, StorageReport)}
    assert len(answers) == 100
    assert len(numbers) == 1
    assert numbers != {os.getpid()}


async def test_a_client_survives_many_lives_of_its_peer(tmp_path: Path) -> None:
    async with Bus(tmp_path, "client") as client:
        for _ in range(20):
            async with Bus(tmp_path, "server") as server:
                counter = Counter()
                server.serve(counter.answer)
                answer = await client.client("server").request(Inspect(), 10)
                assert isinstance(answer, StorageReport)
                assert 1 <= answer.journal_offset <= counter.asked <= 2  # a new connection may ask again


async def test_a_client_refuses_more_than_it_may_have_waiting(tmp_path: Path) -> None:
    async with Bus(tmp_path, "client") as client:
        one = client.client("server")
        asked = [asyncio.create_task(one.request(Inspect(), 60)) for _ in range(MAX_PENDING)]
        await asyncio.sleep(0)
        with pytest.raises(Rejected, match=f"server: {MAX_PENDING} requests wait for an answer already"):
            await one.request(Inspect(), 60)
        asked.pop().cancel()
        await asyncio.sleep(0)
        with pytest.raises(Transient, match="did not answer"):  # there was room for it
            await one.request(Inspect(), 0.01)
    for ended in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(ended, Transient)
        assert str(ended) == "the connection to server was closed"


async def test_a_server_refuses_more_than_it_may_have_in_hand(pair: Pair) -> None:
    server, client = pair
    counter = Counter()
    counter.held.clear()
    server.serve(counter.answer, max_in_flight=3)
    one = client.client("server")
    asked = [asyncio.create_task(one.request(Inspect(), 10)) for _ in range(3)]
    await until(lambda: counter.asked == 3, "three in hand")
    with pytest.raises(Rejected, match="3 requests in hand already"):
        await one.request(Inspect(), 10)
    counter.held.set()
    assert len(await asyncio.gather(*asked)) == 3
    assert await one.request(Inspect(), 10) == report(4)


async def test_a_closed_bus_ends_what_waits_and_takes_nothing_more(tmp_path: Path) -> None:
    async with Bus(tmp_path, "client") as client:
        one = client.client("server")
        asked = asyncio.create_task(one.request(Inspect(), 60))
        await asyncio.sleep(0)
    with pytest.raises(Transient, match="the connection to server was closed"):
        await asked
    with pytest.raises(Transient, match="the connection to server was closed"):
        await one.request(Inspect(), 60)


async def test_a_cancelled_request_is_forgotten(pair: Pair) -> None:
    server, client = pair
    counter = Counter()
    counter.held.clear()
    server.serve(counter.answer)
    one = client.client("server")
    asked = asyncio.create_task(one.request(Inspect(), 10))
    await until(lambda: counter.asked, "the request in hand")
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    counter.held.set()
    assert await one.request(Inspect(), 10) == report(2)


async def test_a_server_that_closes_gives_up_what_is_in_hand(tmp_path: Path) -> None:
    gone: list[str] = []

    async def answer(message: Message) -> Message:
        gone.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            gone.append("cancelled")
        return message

    async with Bus(tmp_path, "client") as client:
        async with Bus(tmp_path, "server") as server:
            server.serve(answer)
            asked = asyncio.create_task(client.client("server").request(Inspect(), 0.2))
            await until(lambda: gone, "the request in hand")
        assert gone == ["began", "cancelled"]
        with pytest.raises(Transient, match="did not answer"):
            await asked


async def test_what_is_too_large_is_refused_at_once_and_harms_nobody(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = pair

    async def answer(message: Message) -> Message:
        if isinstance(message, Get):
            return States(states={"k": State(1, b"x" * 2000)}, revision=1)
        return Appended(last_offset=1)

    server.serve(answer)
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 1000)
    one = client.client("server")
    with pytest.raises(Invalid, match=r"Append of 20\d\d bytes is larger"):
        await one.request(Append.of([Record("e", "", b"x" * 2000)]), 5)
    with pytest.raises(Invalid, match=r"States of 20\d\d bytes is larger"):
        await one.request(Get(keys=["k"]), 5)
    assert await one.request(Append.of([Record("e", "", b"x")]), 5) == Appended(last_offset=1)
