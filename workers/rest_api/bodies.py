"""
Request bodies: read within bounds, decompressed within bounds, decoded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgspec
from aiohttp import web

from optimizer.budget import Lease
from optimizer.errors import Invalid, Problem
from optimizer.http_bodies import TooLarge, TooSlow, UnknownEncoding, UnknownExpectation, read
from optimizer.operations.checks import join
from workers.rest_api.problems import Refused

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
_MAX_LINES: Final = 10_001  # one more than the most events, so that the operation can say how many are allowed

_MAX_CONTAINERS: Final = 500_000  # objects and lists in one body; the most events have a tenth of it
_MAX_COMMAS: Final = 2_000_000
_EXPLAINED_BYTES: Final = 1024 * 1024  # of a body that is no JSON, looked at again to say where
_MAX_TOLD: Final = 100  # numbers that are none

_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Limits:
    """
    What the body of one request may take.
    """

    max_bytes: int
    body_s: float
    lease: Lease


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


async def read_body(request: web.BaseRequest, limits: Limits) -> bytes:
    """
    A JSON body as it was sent.

    Raises:
        Refused: 400 truncated, 408 too slow, 413 too large, 415 of another type. Rejected: no room for it now.
    """
    _media(request, (JSON,))
    return await _read(request, limits)


def parse_json(body: bytes) -> Any:
    """
    A body as plain values; None when it is empty.

    Raises:
        Refused: 400 not JSON or nested too deep.
    """
    return _json(body, "the body") if body else None


async def read_json(request: web.BaseRequest, limits: Limits) -> Any:
    """
    The body as plain values; None when it is empty.

    Raises:
        As `read_body` and `parse_json`.
    """
    return parse_json(await read_body(request, limits))


async def read_events(request: web.BaseRequest, limits: Limits) -> tuple[list[Any], bool, bytes]:
    """
    The events in a body, whether it was a list of them (a JSON list or NDJSON) rather than a single one, and a digest of it.

    Raises:
        Refused: as `read_json`; for NDJSON it names every line that is not JSON.
    """
    media = _media(request, (JSON, NDJSON))
    body = await _read(request, limits)
    digest = hashlib.blake2b(body, digest_size=16).digest()
    if media == NDJSON:
        return _lines(body), True, digest
    if not body:
        raise Refused(400, "the body is empty; send one event, a list of events, or NDJSON")
    found = _json(body, "the body")
    return (found, True, digest) if isinstance(found, list) else ([found], False, digest)


def _media(request: web.BaseRequest, known: tuple[str, ...]) -> str:
    given = request.headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
    if given not in known:
        raise Refused(
            415, f"the body is of type {given[:60]!r}; send {' or '.join(known)}", headers={"Accept": known[0]}
        )
    return given


async def _read(request: web.BaseRequest, limits: Limits) -> bytes:
    try:
        body = await read(request, limits.max_bytes, limits.lease, limits.body_s)
    except TooLarge as error:
        raise Refused(413, f"{error} (rest_api.max_body_bytes)") from None
    except TooSlow as error:
        raise Refused(408, str(error)) from None
    except UnknownEncoding as error:
        raise Refused(415, str(error), headers={"Accept-Encoding": "gzip"}) from None
    except UnknownExpectation as error:
        raise Refused(417, str(error)) from None
    except Invalid as error:
        raise Refused(400, str(error)) from None
    if body.count(b"{") + body.count(b"[") > _MAX_CONTAINERS or body.count(b",") > _MAX_COMMAS:
        raise Refused(413, f"the body has more than {_MAX_CONTAINERS} objects and lists, or {_MAX_COMMAS} values")
    return body


def _json(text: bytes, what: str, path: str = "") -> Any:
    try:
        return _decode(text)
    except RecursionError:
        raise Refused(400, f"{what} is nested too deep") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(400, f"{what} is not JSON: {error}", _not_numbers(text, path)) from None


def _not_numbers(text: bytes, path: str) -> list[Problem]:
    """
    Where NaN, infinities and numbers beyond all bounds stand, if that is all that is wrong: Python's own reader takes them.
    """
    if len(text) > _EXPLAINED_BYTES:
        return []
    try:
        wrong = ((field, value) for field, value in _numbers(json.loads(text), path) if not math.isfinite(value))
        return [Problem(field, f"is {value}", "a finite number") for field, value in islice(wrong, _MAX_TOLD)]
    except (ValueError, RecursionError):
        return []


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for key, field in value.items():
            yield from _numbers(field, join(path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _numbers(item, f"{path}[{i}]")


def _lines(body: bytes) -> list[Any]:
    events: list[Any] = []
    wrong: list[Problem] = []
    bad = 0
    for number, line in enumerate(body.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            events.append(_json(line, f"line {number}", f"[{len(events) + bad}]"))
        except Refused as refused:
            here = f"[{len(events) + bad}]"
            bad += 1
            wrong += refused.problems or [Problem(here, refused.detail, "one JSON object on each line")]
        if len(events) + bad >= _MAX_LINES or len(wrong) >= 1000:
            break
    if wrong:
        raise Refused(400, f"{bad} lines are not JSON; nothing was stored", wrong)
    return events
