"""
What all requests in hand may hold together: large ones wait until others are done with, in the order of arrival, and many at once
are refused instead of ending in the machine's memory. The first `FREE_BYTES` of each do not count: whoever sends little does not
wait because others send much, and slowly.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from optimizer.errors import Rejected

FREE_BYTES: Final = 64 * 1024
WAIT_S: Final = 5.0  # for a share of the budget; senders are told to come again after as long at most


class Budget:
    """
    Bytes that the requests in hand hold.

    Args:
        total: most of them at once. wait_s: longest time that a request waits for its share.
        most_waiting: requests that wait at once; beyond it they are refused.
    """

    def __init__(self, total: int, wait_s: float = WAIT_S, most_waiting: int = 1024) -> None:
        self._total = total
        self._most_waiting = most_waiting
        self._left = total
        self._wait_s = wait_s
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._unpacking = asyncio.Lock()

    def lease(self) -> Lease:
        """
        What one request takes; a context manager.
        """
        return Lease(self)

    async def take(self, size: int) -> None:
        """
        Wait until `size` bytes more can be held.

        Raises:
            Rejected: that took too long, or too many wait already.
        """
        if size <= self._left and not self._waiting:
            self._left -= size
            return
        if len(self._waiting) >= self._most_waiting:
            raise Rejected(f"{len(self._waiting)} large requests wait already")
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, mine))
        try:
            async with asyncio.timeout(self._wait_s):
                await mine
        except (TimeoutError, asyncio.CancelledError) as error:
            granted = mine.done() and not mine.cancelled()
            mine.cancel()
            self.give(size if granted else 0)  # it may have stood in front of smaller ones
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Rejected(f"requests in hand hold {self._total - self._left} of {self._total} bytes") from None

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """
        Unpack much: one at a time, since nobody knows beforehand how much it will be, and two half-way would wait for each other.

        Raises:
            Rejected: that took too long.
        """
        try:
            async with asyncio.timeout(self._wait_s):
                await self._unpacking.acquire()
        except TimeoutError:
            raise Rejected("other large bodies are being unpacked") from None
        try:
            yield
        finally:
            self._unpacking.release()

    def give(self, size: int) -> None:
        """
        The bytes are free again.
        """
        self._left += size
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._left):
            wanted, future = self._waiting.popleft()
            if not future.done():
                self._left -= wanted
                future.set_result(None)


class Lease:
    """
    The share of one request, given back at its end.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._free = FREE_BYTES
        self._size = 0

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give(self._size)

    def alone(self) -> AbstractAsyncContextManager[None]:
        """
        As `Budget.alone`.
        """
        return self._budget.alone()

    async def take(self, size: int) -> None:
        """
        Hold `size` bytes more.

        Raises:
            Rejected: they did not become free in time.
        """
        counted = max(0, size - self._free)
        self._free = max(0, self._free - size)
        if counted:
            await self._budget.take(counted)
            self._size += counted
