"""
What operations may use, in one value.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from optimizer.bus.collector import Collector, RemoteCollector
from optimizer.bus.link import Bus
from optimizer.bus.storage import RemoteStorage, Storage
from optimizer.clock import Clock, SystemClock
from optimizer.messages import Fleet
from optimizer.operations.book import Book

STORAGE_TIMEOUT_S = 10.0  # a restart of storage fits in several times


@dataclass(kw_only=True)
class House:
    """
    Args:
        secret: the installation's 32 bytes, the same in all processes.
        rng: draws variants and nonces; seeded by the system unless a test wants a replay.
        fleet: the parent's newest view of the services, or None.
        keep_content: whether texts of prompts and completions may pass (`collector.keep_content`).
        writing: held while a task is written, so that requests of one process do not get in each other's way.
    """

    storage: Storage
    collector: Collector
    book: Book
    secret: bytes
    clock: Clock = field(default_factory=SystemClock)
    rng: random.Random = field(default_factory=random.Random)
    fleet: Callable[[], Fleet | None] = lambda: None
    keep_content: bool = False
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @staticmethod
    @asynccontextmanager
    async def open(
        bus: Bus,
        secret: bytes,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        fleet: Callable[[], Fleet | None] = lambda: None,
        keep_content: bool = False,
    ) -> AsyncIterator[House]:
        """
        A house on the bus that follows tasks and policies until the end of the context.

            async with House.open(bus, frame.secret) as house:
                await house.book.joined()
        """
        storage = RemoteStorage(bus.client("storage"), STORAGE_TIMEOUT_S)
        house = House(
            storage=storage,
            collector=RemoteCollector(bus.client("collector")),
            book=Book(bus, storage),
            secret=secret,
            clock=clock or SystemClock(),
            rng=rng or random.Random(),
            fleet=fleet,
            keep_content=keep_content,
        )
        async with asyncio.TaskGroup() as group:
            following = group.create_task(house.book.run())
            try:
                yield house
            finally:
                following.cancel()
