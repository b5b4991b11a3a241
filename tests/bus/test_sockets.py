"""
Names, folders, and what is left when a bus is closed.
"""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from bus.conftest import Counter, peer, report, until

from optimizer.bus.link import Bus
from optimizer.errors import Permanent
from optimizer.messages import Changed, Inspect


def changed(key: str = "task/t") -> Changed:
    return Changed(sequence=0, key=key, revision=1, body=b"")


async def test_a_name_has_one_owner(tmp_path: Path) -> None:
    async with Bus(tmp_path, "server") as late, Bus(tmp_path, "client") as client:
        async with peer(tmp_path, "answer"):
            with pytest.raises(Permanent, match=r"server\.rpc is bound already"):
                late.serve(Counter().answer)
            late.bind_publisher()  # another name
            assert await client.client("server").request(Inspect(), 5)  # the owner has lost nothing
        late.serve(Counter().answer)  # it was killed: the lock ended with it, its socket file does not matter
        assert await client.client("server").request(Inspect(), 5) == report(1)


async def test_a_name_is_free_when_its_owner_has_closed(tmp_path: Path) -> None:
    for _ in range(3):
        async with Bus(tmp_path, "server") as one:
            one.serve(Counter().answer)
            one.bind_publisher()
            async with Bus(tmp_path, "server") as two:
                with pytest.raises(Permanent):
                    two.bind_publisher()


async def test_a_folder_may_be_deeper_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    got: list[str] = []
    async with Bus(deep, "server") as server, Bus(deep, "client") as client:
        counter = Counter()
        server.serve(counter.answer)
        server.bind_publisher()
        client.subscribe("server", ["state/task"], lambda topic, _: got.append(topic), lambda: None)
        assert await client.client("server").request(Inspect(), 5) == report(1)

        def heard() -> list[str]:
            server.publish("state/task", "state/task/t", changed())
            return got

        await until(heard, "a publication")
    assert {path.name for path in deep.iterdir()} >= {"server.rpc.lock", "server.pub.lock"}


async def test_a_name_that_no_address_can_hold_is_refused(tmp_path: Path) -> None:
    async with Bus(tmp_path, "n" * 120) as server:
        with pytest.raises(Permanent, match="cannot be bound"):
            server.serve(Counter().answer)


async def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    async with Bus(tmp_path / "a" / "bus", "server"):
        assert stat.S_IMODE((tmp_path / "a" / "bus").stat().st_mode) == 0o700


async def test_who_has_not_bound_a_publisher_cannot_publish(tmp_path: Path) -> None:
    async with Bus(tmp_path, "server") as server:
        with pytest.raises(RuntimeError, match="server publishes, but has not bound its publisher"):
            server.publish("state/task", "state/task/t", changed())


def in_use() -> tuple[int, int]:
    """
    Descriptors and threads of this process; ZeroMQ's threads are not Python's.
    """
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


async def test_nothing_is_left_of_a_closed_bus(tmp_path: Path) -> None:
    async def live() -> None:
        joined: list[bool] = []
        async with Bus(tmp_path, "server") as server, Bus(tmp_path, "client") as client:
            counter = Counter()
            server.serve(counter.answer)
            server.bind_publisher()
            client.subscribe("server", ["state/task"], lambda *_: None, lambda: joined.append(True))
            await client.client("server").request(Inspect(), 5)
            counter.held.clear()
            waiting = [asyncio.create_task(client.client("server").request(Inspect(), 60)) for _ in range(10)]
            absent = asyncio.create_task(client.client("nobody").request(Inspect(), 60))
            await until(lambda: counter.asked == 11 and joined, "requests in hand, and a subscription")
        await asyncio.gather(*waiting, absent, return_exceptions=True)

    await live()
    before = in_use()
    for _ in range(10):
        await live()
    assert in_use() == before
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined] # no timer
