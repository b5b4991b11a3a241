"""
Bodies of HTTP requests: read and unpacked within bounds, whatever a sender claims about them.

What all of them may hold together is bounded too (budget.py). Beyond the first FREE_BYTES the whole length that a body claims is
taken at once, so that bodies do not wait for each other half-way.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Final

from aiohttp import web

from optimizer.budget import FREE_BYTES, Lease
from optimizer.errors import Invalid

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
