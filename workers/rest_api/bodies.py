"""
Request bodies: read within bounds, decompressed within bounds, decoded.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import msgspec
from aiohttp import web

from optimizer.errors import Problem
from workers.rest_api.problems import Refused

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
_MAX_LINES: Final = 10_001  # one more than the most events, so that the operation can say how many are allowed

_decode = msgspec.json.Decoder().decode


def complete_json(request: web.BaseRequest, max_bytes: int) -> bytes | None:
    """
    A plain JSON body that has arrived already, without waiting; None for every other case, which `read_body` knows.
    """
    content = request.content
    if not content.is_eof() or content.total_bytes > max_bytes or content.exception() is not None:
        return None
    headers = request.headers
    if headers.get("Content-Type", JSON) != JSON or "Content-Encoding" in headers:
        return None
    return content.read_nowait()


async def read_body(request: web.BaseRequest, max_bytes: int) -> bytes:
    """
    A JSON body as it was sent.

    Raises:
        Refused: 400 truncated, 413 too large, 415 of another type.
    """
    _media(request, (JSON,))
    return await _read(request, max_bytes)


def parse_json(body: bytes) -> Any:
    """
    A body as plain values; None when it is empty.

    Raises:
        Refused: 400 not JSON or nested too deep.
    """
    return _json(body, "the body") if body else None


async def read_json(request: web.BaseRequest, max_bytes: int) -> Any:
    """
    The body as plain values; None when it is empty.

    Raises:
        Refused: 400 not JSON or nested too deep, 413 too large, 415 of another type.
    """
    return parse_json(await read_body(request, max_bytes))


async def read_events(request: web.BaseRequest, max_bytes: int) -> tuple[list[Any], bool]:
    """
    The events in a body, and whether it was a list of them (a JSON list or NDJSON) rather than a single one.

    Raises:
        Refused: as `read_json`; for NDJSON it names every line that is not JSON.
    """
    media = _media(request, (JSON, NDJSON))
    body = await _read(request, max_bytes)
    if media == NDJSON:
        return _lines(body), True
    if not body:
        raise Refused(400, "the body is empty; send one event, a list of events, or NDJSON")
    found = _json(body, "the body")
    return (found, True) if isinstance(found, list) else ([found], False)


def _media(request: web.BaseRequest, known: tuple[str, ...]) -> str:
    given = request.headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
    if given not in known:
        raise Refused(
            415, f"the body is of type {given[:60]!r}; send {' or '.join(known)}", headers={"Accept": known[0]}
        )
    return given


async def _read(request: web.BaseRequest, max_bytes: int) -> bytes:
    length = request.content_length
    if length is not None and length > max_bytes:
        raise _too_large(max_bytes)
    expect = request.headers.get("Expect")
    if expect is not None:
        await _continue(request, expect)
    body = await _collect(request, max_bytes)
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding in ("identity", ""):
        return body
    if coding not in ("gzip", "x-gzip"):
        raise Refused(415, f"the body is encoded as {coding[:60]!r}", headers={"Accept-Encoding": "gzip"})
    return _gunzip(body, max_bytes)


async def _collect(request: web.BaseRequest, max_bytes: int) -> bytes:
    body = bytearray()
    try:
        while chunk := await request.content.readany():
            body += chunk
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
    except web.RequestPayloadError as error:
        raise Refused(400, f"the body is not well-formed HTTP: {error}") from None
    return bytes(body)


async def _continue(request: web.BaseRequest, expect: str) -> None:
    if expect.lower() != "100-continue":
        raise Refused(417, f"Expect: {expect[:60]} is not supported")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # what was sent is no part of the answer


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    room = max_bytes
    while body:
        stream = zlib.decompressobj(wbits=31)
        try:
            part = stream.decompress(body, room + 1)
        except zlib.error as error:
            raise Refused(400, f"the body is not gzip: {error}") from None
        room -= len(part)
        if room < 0:
            raise _too_large(max_bytes)
        if not stream.eof:
            raise Refused(400, "the gzip body is truncated")
        parts.append(part)
        body = stream.unused_data.lstrip(b"\0")  # further members may follow (RFC 1952, 2.2), or padding
    return b"".join(parts)


def _too_large(max_bytes: int) -> Refused:
    return Refused(413, f"the body has more than {max_bytes} bytes (rest_api.max_body_bytes)")


def _json(text: bytes, what: str) -> Any:
    try:
        return _decode(text)
    except RecursionError:
        raise Refused(400, f"{what} is nested too deep") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(400, f"{what} is not JSON: {error}") from None


def _lines(body: bytes) -> list[Any]:
    events: list[Any] = []
    wrong: list[Problem] = []
    for number, line in enumerate(body.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            events.append(_json(line, f"line {number}"))
        except Refused as refused:
            wrong.append(Problem(f"[{len(events) + len(wrong)}]", refused.detail, "one JSON object on each line"))
        if len(events) + len(wrong) >= _MAX_LINES or len(wrong) >= 1000:
            break
    if wrong:
        raise Refused(400, f"{len(wrong)} lines are not JSON; nothing was stored", wrong)
    return events
