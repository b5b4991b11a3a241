"""
Operations on storage in memory, with a collector that stores at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from optimizer.bus.memory import MemoryStorage
from optimizer.clock import ManualClock
from optimizer.messages import Record, Submitted
from optimizer.model import Event
from optimizer.operations.book import Book
from optimizer.operations.house import House

SECRET = b"s" * 32


class MemoryCollector:
    """
    Stores what is submitted.
    """

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage

    async def submit(self, source: str, events: Sequence[bytes]) -> Submitted:
        decoded = [msgspec.msgpack.decode(body, type=Event) for body in events]
        records = [Record(e.id, e.selection_id, body) for e, body in zip(decoded, events, strict=True)]
        return Submitted(duplicates=(await self._storage.append(records)).duplicates)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    storage = MemoryStorage()
    one = House(
        storage=storage,
        collector=MemoryCollector(storage),
        book=Book(storage, storage),
        secret=SECRET,
        clock=ManualClock(),
        rng=random.Random(1),
    )
    following = asyncio.create_task(one.book.run())
    await one.book.joined()
    yield one
    following.cancel()


def document(name: str = "t", variants: Sequence[str] = ("a", "b"), **more: Any) -> dict[str, Any]:
    """
    A task's document.
    """
    return {"task": name, "variants": [{"name": v, "provider": "openai", "model": f"m-{v}"} for v in variants], **more}
