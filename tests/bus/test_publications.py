"""
Publications: in order, and whoever missed something finds out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from bus.conftest import letter, peer, until

from optimizer.bus import publications, sockets, wire
from optimizer.bus.link import Bus
from optimizer.messages import Changed, Grown, Message, Pulse


class Follower:
    """
    What a subscriber hears: keys of changes, and "join".
    """

    def __init__(self, bus: Bus, *topics: str) -> None:
        self.heard: list[str] = []
        bus.subscribe("server", topics, self._message, lambda: self.heard.append("join"))

    def _message(self, topic: str, message: Message) -> None:
        self.heard.append(message.key if isinstance(message, Changed) else topic)

    @property
    def joins(self) -> int:
        return self.heard.count("join")


def publisher(bus: Bus) -> Callable[[str], None]:
    """
    Publishes a change of a key.
    """
    bus.bind_publisher()

    def publish(key: str, body: bytes = b"") -> None:
        group = "state/" + key.split("/")[0]
        bus.publish(group, f"state/{key}", Changed(sequence=0, key=key, revision=1, body=body))

    return publish


async def ready(follower: Follower, publish: Callable[[str], None], key: str = "task/first") -> None:
    """
    A subscription takes its time to arrive at the publisher.
    """

    def heard() -> bool:
        publish(key)
        return key in follower.heard

    await until(heard, "the first publication")
    publish(key + "/last")
    await until(lambda: follower.heard[-1] == key + "/last", "the last of them")
    follower.heard.clear()


async def test_publications_arrive_in_order_by_topic(pair: tuple[Bus, Bus]) -> None:
    publish = publisher(pair[0])
    follower = Follower(pair[1], "state/task", "log/")
    await ready(follower, publish)
    for i in range(1000):
        publish(f"task/{i}")
        publish(f"policy/{i}")
    pair[0].publish("log/journal", "log/journal", Grown(sequence=0, log="journal", last_offset=1))
    await until(lambda: "log/journal" in follower.heard, "the last publication")
    # the group of the log is new to the follower: what was published in it before is not known to it
    assert follower.heard == [*(f"task/{i}" for i in range(1000)), "log/journal", "join"]


async def test_a_late_subscriber_is_told_to_read(pair: tuple[Bus, Bus], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publications, "_PULSE_S", 0.05)
    publish = publisher(pair[0])
    for i in range(5):
        publish(f"task/{i}")
    follower = Follower(pair[1], "state/task")
    await until(lambda: follower.joins == 2, "the connection, and a pulse that tells of five")
    await asyncio.sleep(0.15)  # further pulses tell nothing new
    assert follower.heard == ["join", "join"]
    publish("task/5")
    await until(lambda: follower.heard[-1] == "task/5", "the next publication")
    assert follower.joins == 2


SEQUENCES = [
    ([1, 2, 3], [], 1),  # the first is unknown
    ([1, 2, 4, 5], [], 2),
    ([5, 6, 1, 2], [], 2),
    ([5, 5], [], 2),
    ([1, 2], [2, 2], 1),
    ([1, 2], [3, 3], 2),
    ([], [3], 1),
]


@pytest.mark.parametrize(("sequences", "pulses", "joins"), SEQUENCES)
async def test_a_gap_is_a_reason_to_read(
    tmp_path: Path, strangers: Any, sequences: list[int], pulses: list[int], joins: int
) -> None:
    stranger = strangers(zmq.XPUB, f"ipc://{tmp_path}/server.pub", binds=True)
    async with Bus(tmp_path, "client") as client:
        follower = Follower(client, "state/task")
        await stranger.receive()  # the subscription has arrived
        await until(lambda: follower.joins == 1, "the connection")
        for number in sequences:
            change = Changed(sequence=number, key=f"task/{number}", revision=1, body=None)
            stranger.socket.send_multipart([b"state/task/t", letter(0, change)])
        for number in pulses:
            stranger.socket.send_multipart([b"state/task/", letter(0, Pulse(sequence=number))])
        last = Changed(sequence=(pulses or sequences)[-1] + 1, key="task/last", revision=1, body=None)
        stranger.socket.send_multipart([b"state/task/t", letter(0, last)])
        await until(lambda: "task/last" in follower.heard, "the last publication")
    assert [key for key in follower.heard if key != "join"] == [*(f"task/{n}" for n in sequences), "task/last"]
    assert follower.joins == 1 + joins


async def test_what_is_too_large_to_publish_is_a_gap(
    pair: tuple[Bus, Bus], monkeypatch: pytest.MonkeyPatch, logged: Any
) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 1000)
    publish: Any = publisher(pair[0])
    follower = Follower(pair[1], "state/task")
    await ready(follower, publish)
    publish("task/small")
    publish("task/large", b"x" * 2000)
    publish("task/next")
    await until(lambda: "join" in follower.heard, "the gap")
    assert follower.heard == ["task/small", "task/next", "join"]
    assert len(logged("bus.not_published")) == 1


async def test_a_publisher_that_was_killed_and_comes_back_is_a_reason_to_read(tmp_path: Path) -> None:
    async with Bus(tmp_path, "client") as client:
        follower = Follower(client, "state/task")
        for life in ("one", "two"):
            async with peer(tmp_path, "publish") as one:
                await until(lambda: follower.joins, "the connection")

                async def heard(one: Any = one, life: str = life) -> None:
                    while f"task/{life}" not in follower.heard:
                        await one.hears(life)
                        await asyncio.sleep(0.005)

                await asyncio.wait_for(heard(), 10)
            follower.heard.clear()


async def test_a_slow_subscriber_holds_up_nobody_and_finds_out(pair: tuple[Bus, Bus]) -> None:
    publish = publisher(pair[0])
    follower = Follower(pair[1], "state/task")
    await ready(follower, publish)
    for i in range(4 * sockets._HIGH_WATER):  # the follower lives in this loop, which does not turn meanwhile
        publish(f"task/{i}")

    def heard_again() -> bool:
        publish("task/again")
        return "task/again" in follower.heard

    await until(heard_again, "what was published after the flood")
    assert follower.joins == 1  # one gap
    assert len(follower.heard) < 3 * sockets._HIGH_WATER  # both queues, and what a socket holds


async def test_a_bug_of_a_subscriber_does_not_deafen_it(pair: tuple[Bus, Bus]) -> None:
    publish = publisher(pair[0])
    bugs: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(repr(context.get("exception"))))
    heard: list[str] = []

    def on_message(topic: str, message: Message) -> None:
        heard.append(topic)
        if topic.endswith("bad"):
            raise ValueError(topic)

    pair[1].subscribe("server", ["state/task"], on_message, lambda: None)

    def first() -> list[str]:
        publish("task/first")
        return heard

    await until(first, "the first publication")
    for i in range(10):
        publish(f"task/{i}/bad")
    publish("task/end")
    await until(lambda: heard[-1] == "state/task/end", "the end")
    assert bugs == [f"ValueError('state/task/{i}/bad')" for i in range(10)]
