"""
Bodies of OTLP/HTTP requests: read and unpacked within bounds, whatever a sender claims about them.

What all requests in hand may hold together is bounded too (`Budget`), so that many large ones at once end in 503 and not in
the machine's memory.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

from aiohttp import web

from optimizer.errors import Invalid, Rejected

_BODY_S: Final = 20.0  # for a whole body to arrive; senders give up after ten seconds
_AT_ONCE: Final = 2  # bodies of the largest size, packed or plain, in hand at once


class TooLarge(Exception):
    """
    More than one request may carry; the message says of what.
    """


class TooSlow(Exception):
    """
    The body did not arrive in time.
    """


class Budget:
    """
    Bytes that the requests in hand hold.

    Args:
        largest: bytes of the largest body.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self._left = _AT_ONCE * largest

    def lease(self) -> Lease:
        """
        What one request takes; a context manager.
        """
        return Lease(self)

    def take(self, size: int) -> None:
        """
        Raises Rejected when `size` bytes more are too many.
        """
        if size > self._left:
            raise Rejected(f"requests in hand hold {_AT_ONCE * self.largest - self._left} bytes already")
        self._left -= size

    def give(self, size: int) -> None:
        """
        The bytes are free again.
        """
        self._left += size


class Lease:
    """
    The share of one request, given back at its end.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = 0

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give(self._size)

    def take(self, size: int) -> None:
        """
        Raises Rejected when `size` bytes more are too many.
        """
        self._budget.take(size)
        self._size += size


async def read(request: web.BaseRequest, largest: int, lease: Lease) -> bytes:
    """
    The plain body.

    Raises:
        TooLarge: more than `largest` bytes, before or after decompression. TooSlow. Rejected: no room for it now.
        Invalid: it is not what its headers say.
    """
    if (request.content_length or 0) > largest:
        raise TooLarge(f"the body has {request.content_length} bytes, more than {largest}")
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise Invalid(f"Content-Encoding {encoding[:40]!r} is not understood; gzip and none are")
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # what was sent is no part of the answer
    try:
        async with asyncio.timeout(_BODY_S):
            body = await _arrive(request, largest, lease)
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {_BODY_S:g} s") from None
    except web.RequestPayloadError as error:
        raise Invalid(f"the body is not well-formed HTTP: {error}") from None
    return body if encoding in ("", "identity") else gunzip(body, largest, lease)


async def _arrive(request: web.BaseRequest, largest: int, lease: Lease) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await request.content.readany():
        size += len(part)
        if size > largest:
            raise TooLarge(f"the body has more than {largest} bytes")
        lease.take(len(part))
        parts.append(part)
    return b"".join(parts)


def gunzip(body: bytes, largest: int, lease: Lease) -> bytes:
    """
    What a gzip body holds, all of its members (RFC 1952, 2.2).

    Raises:
        TooLarge, Rejected: without having unpacked more than `largest` bytes. Invalid: it is no gzip, or ends too early.
    """
    parts: list[bytes] = []
    size = 0
    while body or not parts:
        stream = zlib.decompressobj(wbits=31)
        try:
            part = stream.decompress(body, largest - size + 1)
        except zlib.error as error:
            raise Invalid(f"the body is not gzip: {error}") from None
        size += len(part)
        if size > largest:
            raise TooLarge(f"the body has more than {largest} bytes after decompression")
        if not stream.eof:
            raise Invalid("the gzip body is truncated")
        lease.take(len(part))
        parts.append(part)
        body = stream.unused_data.lstrip(b"\0")  # padding may follow the last member
    return b"".join(parts)
