"""
Bodies of HTTP requests: read and unpacked within bounds, whatever a sender claims about them.

What all requests in hand may hold together is bounded too (`Budget`): a large body waits until others are done with, in the
order of arrival, and many at once end in 503 and not in the machine's memory. The first `FREE_BYTES` of each do not count:
whoever sends little does not wait because others send much, and slowly. Beyond them the whole length that a body claims is taken
at once, so that bodies do not wait for each other half-way.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

from aiohttp import web

from optimizer.errors import Invalid, Rejected

FREE_BYTES: Final = 64 * 1024
WAIT_S: Final = 5.0  # for a share of the budget; senders are told to come again after as long at most
_STEP_BYTES: Final = 1024 * 1024  # unpacked, some milliseconds of work, before others get their turn


class TooLarge(Exception):
    """
    More than one request may carry; the message says of what.
    """


class TooSlow(Exception):
    """
    The body did not arrive in time.
    """


class UnknownEncoding(Exception):
    """
    The body is packed in a way that is not understood.
    """


class UnknownExpectation(Exception):
    """
    The sender expects what is not understood.
    """


class Budget:
    """
    Bytes that the requests in hand hold.

    Args:
        total: most of them at once. wait_s: longest time that a request waits for its share.
    """

    def __init__(self, total: int, wait_s: float = WAIT_S) -> None:
        self._total = total
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
            Rejected: that took too long.
        """
        if size <= self._left and not self._waiting:
            self._left -= size
            return
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


async def read(request: web.BaseRequest, largest: int, lease: Lease, body_s: float) -> bytes:
    """
    The plain body.

    Args:
        largest: bytes, before and after decompression. body_s: time for a whole body to arrive.

    Raises:
        TooLarge. TooSlow. UnknownEncoding. UnknownExpectation. Rejected: no room for it in time.
        Invalid: it is not what its headers say.
    """
    if (request.content_length or 0) > largest:
        raise TooLarge(f"the body has {request.content_length} bytes, more than {largest}")
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise UnknownEncoding(f"Content-Encoding {encoding[:40]!r} is not understood; gzip and none are")
    await _encourage(request)
    try:
        async with asyncio.timeout(body_s):
            body = await _arrive(request, largest, lease)
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {body_s:g} s") from None
    except web.RequestPayloadError as error:
        raise Invalid(f"the body is not well-formed HTTP: {error}") from None
    return body if encoding in ("", "identity") else await gunzip(body, largest, lease)


async def _encourage(request: web.BaseRequest) -> None:
    expected = request.headers.get("Expect")
    if expected is None:
        return
    if expected.lower() != "100-continue":
        raise UnknownExpectation(f"Expect: {expected[:60]} is not understood")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # what was sent is no part of the answer


async def _arrive(request: web.BaseRequest, largest: int, lease: Lease) -> bytes:
    parts: list[bytes] = []
    size = held = 0
    while part := await request.content.readany():
        size += len(part)
        if size > largest:
            raise TooLarge(f"the body has more than {largest} bytes")
        if size > held:
            more = max(size, (request.content_length or 0) if size > FREE_BYTES else 0) - held
            await lease.take(more)
            held += more
        parts.append(part)
    return b"".join(parts)


async def gunzip(body: bytes, largest: int, lease: Lease) -> bytes:
    """
    What a gzip body holds, all of its members (RFC 1952, 2.2).

    Raises:
        TooLarge, Rejected: without having unpacked much more than `largest` bytes. Invalid: it is no gzip, or ends too early.
    """
    parts: list[bytes] = []
    size = 0
    async with AsyncExitStack() as stack:
        for part in _unpacked(body):
            if size < _STEP_BYTES <= size + len(part):
                await stack.enter_async_context(lease.alone())
            size += len(part)
            if size > largest:
                raise TooLarge(f"the body has more than {largest} bytes after decompression")
            await lease.take(len(part))
            parts.append(part)
            if len(part) == _STEP_BYTES:
                await asyncio.sleep(0)
    return b"".join(parts)


def _unpacked(body: bytes) -> Iterator[bytes]:
    empty = True
    while body or empty:
        stream = zlib.decompressobj(wbits=31)
        packed, empty = body, False
        while not stream.eof:
            try:
                part = stream.decompress(packed, _STEP_BYTES)
            except zlib.error as error:
                raise Invalid(f"the body is not gzip: {error}") from None
            packed = stream.unconsumed_tail
            if not (part or packed or stream.eof):
                raise Invalid("the gzip body is truncated")
            yield part
        body = stream.unused_data.lstrip(b"\0")  # padding may follow the last member
