"""
Deliveries to a real receiver: order, retries, crashes, guards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import standardwebhooks
from aiohttp import web
from integrations.conftest import SECRET, Post, Receiver, event, happen, until

from optimizer.clock import ManualClock, SystemClock
from optimizer.errors import Transient
from workers.integrations import delivery as room
from workers.integrations.sender import Sender


async def test_events_arrive_in_order_and_signed(post: Post, receiver: Receiver) -> None:
    await post.start()
    ids = await happen(post.storage, event(), event("policy.changed")) + await happen(post.storage, event())
    await until(lambda: len(receiver.heard) == 3)
    assert receiver.ids == ids
    for headers, body in receiver.heard:
        assert headers["content-type"] == "application/json"
        assert standardwebhooks.Webhook(SECRET).verify(body, headers)["id"] == headers["webhook-id"]
    await until(lambda: post.count("delivered") == 3)
    assert post.health.metadata["delivered"] == "3"


async def test_only_the_wanted_kinds_are_sent(post: Post, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SKIPS_PER_COMMIT", 2)
    await post.start(kinds=("service.*",))
    await happen(post.storage, *(event("policy.changed") for _ in range(5)))
    (wanted,) = await happen(post.storage, event("service.recovered"))
    await until(lambda: receiver.heard)
    assert receiver.ids == [wanted]


async def test_a_new_receiver_begins_now_and_an_old_one_where_it_was(post: Post, receiver: Receiver) -> None:
    await happen(post.storage, event())
    await post.start()
    first = await happen(post.storage, event())
    await until(lambda: post.count("delivered") == 1)
    await post.stop()
    missed = await happen(post.storage, event(), event())
    await post.start()
    await until(lambda: post.count("delivered") == 3)
    assert receiver.ids == first + missed


async def test_a_failing_receiver_gets_the_same_event_again_before_the_next(post: Post, receiver: Receiver) -> None:
    receiver.answers = [web.Response(status=s) for s in (500, 404, 302, 429)]
    told: list[str] = []
    post.health.changed = lambda: told.extend(post.health.problems)
    await post.start()
    first, second = await happen(post.storage, event(), event())
    await until(lambda: post.count("delivered") == 2)
    assert receiver.ids == [first] * 5 + [second]
    assert post.pauses == [1, 2, 3, 4]
    assert told[0] == "webhook/w"
    assert not post.health.problems
    assert post.count("retry") == 4


async def test_a_redirect_is_not_followed(post: Post, receiver: Receiver) -> None:
    receiver.answers = [web.Response(status=307, headers={"Location": receiver.url})]
    await post.start()
    await happen(post.storage, event())
    await until(lambda: post.count("delivered") == 1)
    assert (post.count("retry"), len(receiver.heard)) == (1, 2)


async def test_a_receiver_is_left_alone_for_as_long_as_it_asks(post: Post, receiver: Receiver) -> None:
    receiver.answers = [web.Response(status=503, headers={"Retry-After": "3600"})]
    waits: list[float] = []
    delivery = await post.start()
    plain: Callable[[asyncio.Event, float], Awaitable[None]] = delivery._wait

    async def wait(event: asyncio.Event, timeout_s: float) -> None:
        waits.append(timeout_s)
        await plain(event, min(timeout_s, 0.01))

    delivery._wait = wait  # type: ignore[method-assign]
    await happen(post.storage, event())
    await until(lambda: post.count("delivered") == 1)
    assert 3600 in waits


async def test_an_old_event_is_given_up_and_the_next_one_tried(post: Post, receiver: Receiver) -> None:
    receiver.answers = [web.Response(status=500)]
    post.clock = ManualClock(datetime.now(UTC))
    await post.start(max_age=60)
    old = event(at=post.clock.at() - timedelta(seconds=61))
    older = event(at=post.clock.at() - timedelta(seconds=90))
    first, _, young = await happen(post.storage, old, older, event(at=post.clock.at()))
    await until(lambda: post.count("delivered") == 1)
    assert receiver.ids == [first, young]  # once the receiver failed, what is too old is not even tried
    assert post.count("given_up") == 2


async def test_a_receiver_that_is_gone_gets_nothing_more(post: Post, receiver: Receiver) -> None:
    receiver.answers = [web.Response(status=410)]
    await post.start()
    (first, _) = await happen(post.storage, event(), event())
    await until(lambda: post.running[0][1].done())
    assert receiver.ids == [first]
    assert "410" in post.health.problems["webhook/w"]
    assert post.count("gone") == 1


async def test_a_crash_between_the_answer_and_the_cursor_sends_again(post: Post, receiver: Receiver) -> None:
    await post.start()
    plain = post.storage.commit
    reached = asyncio.Event()

    async def commit(*args: Any, **named: Any) -> int:
        if args and any(key.startswith("consumer/") for key in args[0]):
            reached.set()
            await asyncio.Event().wait()
        return await plain(*args, **named)

    post.storage.commit = commit  # type: ignore[method-assign]
    first, second = await happen(post.storage, event(), event())
    await asyncio.wait_for(reached.wait(), 5)
    await post.kill()
    post.storage.commit = plain  # type: ignore[method-assign]
    await post.start()
    await until(lambda: len(receiver.heard) == 3)
    assert receiver.ids == [first, first, second]


async def test_an_outcome_whose_answer_was_lost_is_not_sent_again(post: Post, receiver: Receiver) -> None:
    await post.start()
    plain = post.storage.commit
    lost: list[int] = []

    async def commit(*args: Any, **named: Any) -> int:
        done = await plain(*args, **named)
        if args and not lost:
            lost.append(done)
            raise Transient("the answer was lost")
        return done

    post.storage.commit = commit  # type: ignore[method-assign]
    ids = await happen(post.storage, event(), event())
    await until(lambda: len(receiver.heard) == 2 and not post.health.problems)
    assert lost
    assert receiver.ids == ids


async def test_a_stop_lets_the_attempt_in_hand_finish(post: Post, receiver: Receiver) -> None:
    answer = asyncio.Event()
    receiver.answers = [answer]
    delivery = await post.start()
    await happen(post.storage, event(), event())
    await until(lambda: receiver.heard)
    delivery.stop()
    answer.set()
    await asyncio.wait_for(post.running[0][1], 5)
    assert len(receiver.heard) == 1
    await post.start()
    await until(lambda: len(receiver.heard) == 2)
    assert len(set(receiver.ids)) == 2


async def test_it_waits_for_storage(post: Post, receiver: Receiver) -> None:
    plain = post.storage.read
    await post.start()

    async def read(*_: Any, **__: Any) -> Any:
        raise Transient("away")

    post.storage.read = read  # type: ignore[method-assign]
    await happen(post.storage, event())
    await until(lambda: "storage" in post.health.problems)
    post.storage.read = plain  # type: ignore[method-assign]
    await until(lambda: receiver.heard)
    assert not post.health.problems


async def test_what_is_no_event_is_passed_over(post: Post, receiver: Receiver) -> None:
    await post.start()
    await post.storage.commit(system=[b"\xc1"])
    ids = await happen(post.storage, event())
    await until(lambda: receiver.heard)
    assert receiver.ids == ids


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433"])
async def test_private_addresses_are_refused(host: str, receiver: Receiver) -> None:
    async with Sender(SystemClock(), allow_private=False) as send:
        reply = await send(receiver.url.replace("127.0.0.1", host), {}, b"{}", 5.0)
    assert reply.status is None
    assert receiver.heard == []


async def test_the_refusal_says_what_would_allow_it(receiver: Receiver) -> None:
    async with Sender(SystemClock(), allow_private=False) as send:
        reply = await send(receiver.url, {}, b"{}", 5.0)
    assert reply.reason == "no connection: 127.0.0.1 is not a public address, and allow_private is not set"


async def test_a_silent_receiver_and_a_closed_port(receiver: Receiver) -> None:
    receiver.answers = [asyncio.Event()]
    async with Sender(SystemClock(), allow_private=True) as send:
        silent = await send(receiver.url, {}, b"{}", 0.05)
        assert (silent.status, silent.reason) == (None, "no answer within 0.05 s")
        closed = await send("http://127.0.0.1:1/secret-path", {}, b"{}", 5.0)
        assert closed.status is None
        assert "secret" not in closed.reason


async def test_an_endless_answer_is_not_read(receiver: Receiver) -> None:
    ended = asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        except ConnectionError:
            ended.set()
        writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    async with server, Sender(SystemClock(), allow_private=True) as send:
        port = server.sockets[0].getsockname()[1]
        assert (await send(f"http://127.0.0.1:{port}/", {}, b"{}", 5.0)).good
        await asyncio.wait_for(ended.wait(), 5)
