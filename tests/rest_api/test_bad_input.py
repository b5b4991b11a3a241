"""
What a bad client sees: a precise 4xx as problem+json, no 5xx, and nothing has changed.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import math
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rest_api.conftest import Rest, running, task

FEEDBACK = "/api/v1/feedback"
TASKS = "/api/v1/tasks"
SELECT = "/api/v1/tasks/t/select"
EVENT: dict[str, Any] = {"task": "t", "variant": "a", "quality": 1}
MIB = 1024 * 1024


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Rest]:
    async with running(tmp_path, max_body_bytes=2 * MIB, timeout_secs=0.3) as one:
        await one.create()
        yield one


async def refused(
    rest: Rest, path: str, body: Any, status: int, headers: dict[str, str] | None = None, method: str = "POST"
) -> list[str]:
    """
    The fields that the answer names; nothing was stored.
    """
    states, events = dict(rest.desk.memory.states), len(rest.desk.events)
    got, document = await rest.call(method, path, body, headers)
    assert got == status, document
    assert document["detail"]
    assert len(json.dumps(document)) < 500_000
    assert (rest.desk.memory.states, len(rest.desk.events)) == (states, events)
    return [error["field"] for error in document["errors"]]


@pytest.mark.parametrize("path", [FEEDBACK, TASKS, SELECT])
async def test_what_is_not_json(small: Rest, path: str) -> None:
    deep = b"[" * 200_000
    for body in (
        b"{",
        b"nope",
        b'{"quality": NaN}',
        b'{"quality": 1e999}',
        b'"\xff"',
        b'"\\ud800"',
        b"{} {}",
        b"9" * 5000,
    ):
        await refused(small, path, body, 400)
    for body in (deep, b'{"a":' * 200_000, deep + b"]" * 200_000):
        await refused(small, path, body, 400)
    for body in (b"5", b'"text"', b"true"):
        await refused(small, path, body, 422)


async def test_lines_that_are_not_json_are_named(small: Rest) -> None:
    body = b'{"task": "t", "variant": "a"}\n{\n\nnope\n' + json.dumps(EVENT).encode()
    assert await refused(small, FEEDBACK, body, 400, {"Content-Type": "application/x-ndjson"}) == ["[1]", "[2]"]


async def test_every_wrong_field_of_every_event_is_named(small: Rest) -> None:
    events = [
        EVENT,
        {**EVENT, "quality": 2, "cost_usd": -1, "input_tokens": "5"},
        {**EVENT, "time": "1970-01-01T00:00:00Z"},
        {**EVENT, "time": "2999-01-01T00:00:00Z"},
        {**EVENT, "id": "same"},
        {**EVENT, "id": "same"},
        7,
    ]
    assert sorted(await refused(small, FEEDBACK, events, 422)) == sorted(
        ["[1].input_tokens", "[1].cost_usd", "[1].quality", "[2].time", "[3].time", "[5].id", "[6]"]
    )
    assert await refused(small, FEEDBACK, {**EVENT, "quality": -1}, 422) == ["quality"]
    for empty, status in (([], 422), (b"", 400)):
        await refused(small, FEEDBACK, empty, status)


async def test_sizes(small: Rest) -> None:
    name = "n" * MIB
    assert await refused(small, TASKS, task(name), 422) == ["task"]
    assert await refused(small, TASKS, {"task": "u", "variants": [{"name": name}]}, 422) == ["variants[0].name"]
    assert await refused(small, TASKS, task("u", [str(i) for i in range(10_000)]), 422) == ["variants"]
    assert await refused(small, FEEDBACK, {**EVENT, "task": name}, 422) == ["task"]
    assert await refused(small, FEEDBACK, {**EVENT, name: 1}, 422) != []
    assert await refused(small, SELECT, {"context": {name: 1}}, 422) != []
    assert await refused(small, FEEDBACK, [{}] * 20_000, 422) == [""]
    await refused(small, FEEDBACK, b" " * (3 * MIB), 413)
    await refused(small, TASKS, task("u", ["a", "a"]), 422)
    await refused(small, TASKS, task("t"), 409)


async def test_contexts(small: Rest) -> None:
    assert await refused(small, SELECT, {"context": {"a": [], "b": {"c": 1}, "d": None}}, 422) == [
        "context.a", "context.b", "context.d",
    ]  # fmt: skip
    assert await refused(small, SELECT, {"context": 5, "sesion": "x", "explain": 1}, 422) == [
        "context", "explain", "sesion",
    ]  # fmt: skip
    assert await refused(small, SELECT, {"context": {"x": 10**400}}, 422) == ["context.x"]
    await refused(small, "/api/v1/tasks/none/select", {}, 404)


async def test_compressed_bodies(small: Rest) -> None:
    packed = gzip.compress(json.dumps([EVENT] * 10).encode())
    gzipped = {"Content-Encoding": "gzip"}
    await refused(small, FEEDBACK, packed[:-10], 400, gzipped)
    await refused(small, FEEDBACK, b"not gzip", 400, gzipped)
    await refused(small, FEEDBACK, packed + b"rubbish", 400, gzipped)
    bomb = gzip.compress(b" " * (200 * MIB), 9)
    assert len(bomb) < MIB
    await refused(small, FEEDBACK, bomb, 413, gzipped)
    await refused(small, FEEDBACK, zlib.compress(b"{}"), 415, {"Content-Encoding": "deflate"})
    await refused(small, FEEDBACK, b"x", 415, {"Content-Encoding": "br"})


async def test_types_methods_and_addresses(small: Rest) -> None:
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        await refused(small, FEEDBACK, json.dumps(EVENT).encode(), 415, {"Content-Type": media})
    await refused(small, TASKS, b"{}", 415, {"Content-Type": "application/x-ndjson"})
    await refused(small, TASKS, None, 405, method="DELETE")
    for path in ("/", "/api", "/api/v1/tasks/", "/api/v1/tasks/t/nope", "/api/v1/tasks/a/b/c", "/health/", "//"):
        await refused(small, path, None, 404, method="GET")
    await refused(small, "/api/v1/tasks/%ff", None, 400, method="GET")
    await refused(small, "/api/v1/tasks/" + "n" * 3000, None, 404, method="GET")
    assert await refused(small, "/api/v1/tasks/t", task("other"), 422, method="PUT") == ["task"]


async def test_queries(small: Rest) -> None:
    query = "/api/v1/events?limit=0&lmit=3&cursor=x&log=other&last=-1"
    assert await refused(small, query, None, 422, method="GET") == ["limit", "lmit", "log", "last"]
    for query in ("limit=1e3", "limit=" + "9" * 100, "limit=1&limit=2", "cursor=%00", "cursor=AAAA", "limit=²"):
        await refused(small, "/api/v1/events?" + query, None, 422, method="GET")


async def test_forged_cursors(small: Rest) -> None:
    forged: list[Any] = [-1, 2**63, 2**64 - 1, True, None, 1.5, "x", [1], {}]
    for position in forged:
        packed = base64.urlsafe_b64encode(msgspec.msgpack.encode((1, "journal", position))).decode().rstrip("=")
        assert await refused(small, f"/api/v1/events?cursor={packed}", None, 422, method="GET") == ["cursor"]


async def test_keys(small: Rest) -> None:
    assert await refused(small, FEEDBACK, EVENT, 422, {"Idempotency-Key": "k" * 2000}) == ["Idempotency-Key"]
    key = {"Idempotency-Key": "mine"}
    answers = [await small.call("POST", FEEDBACK, EVENT, key) for _ in range(2)]
    assert [(status, body["duplicates"]) for status, body in answers] == [(200, 0), (200, 1)]
    assert await refused(small, FEEDBACK, [EVENT], 422, key) == ["Idempotency-Key"]


async def test_not_a_number_is_not_json_even_where_python_writes_it(small: Rest) -> None:
    for value in (math.nan, math.inf, -math.inf):
        bad = {**EVENT, "latency_ms": value, "context": {"a": [1, value]}}
        assert await refused(small, FEEDBACK, bad, 400) == ["latency_ms", "context.a[1]"]
    assert await refused(small, FEEDBACK, b'[{}, {"cost_usd": 1e400}]', 400) == ["[1].cost_usd"]
    lines = b'{"a": 1}\n{"quality": NaN}\n{'
    assert await refused(small, FEEDBACK, lines, 400, {"Content-Type": "application/x-ndjson"}) == [
        "[1].quality",
        "[2]",
    ]
    assert len(await refused(small, FEEDBACK, b'{"a": [' + b"NaN," * 1000 + b"1]}", 400)) == 100
    await refused(small, FEEDBACK, b"[" * 900 + b"NaN" + b"]" * 900, 400)


async def test_bodies_of_many_small_parts(small: Rest) -> None:
    for body in (b"[" + b"[]," * 600_000 + b"1]", b"[" + b"{}," * 600_000 + b"1]", b"{}\n" * 600_000):
        await refused(small, FEEDBACK, body, 413, {"Content-Type": "application/x-ndjson"})


async def test_slow_bodies_keep_nobody_waiting(tmp_path: Path) -> None:
    async with running(tmp_path, max_concurrency=2, max_body_bytes=MIB) as rest:
        await rest.create()
        head = f"POST {FEEDBACK} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {MIB}\r\n\r\n"
        port = int(rest.url.rpartition(":")[2])
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        for _, writer in slow:
            writer.write(head.encode() + b" " * 60_000)
        assert (await rest.call("POST", FEEDBACK, EVENT))[0] == 200
        large = json.dumps([EVENT] * 5000).encode()
        for _, writer in slow[:5]:
            writer.write(b" " * (MIB // 2))
        answers = await asyncio.gather(*(rest.call("POST", FEEDBACK, large) for _ in range(8)))
        assert {status for status, _ in answers} <= {200, 503}
        assert (await rest.call("POST", FEEDBACK, EVENT))[0] == 200
        for _, writer in slow:
            writer.close()
        async with asyncio.timeout(10):
            while (await rest.call("POST", FEEDBACK, large))[0] != 200:  # their bytes are free again
                await asyncio.sleep(0.01)


async def raw(rest: Rest, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(rest.url.rpartition(":")[2]))
    writer.write(data)
    answer = b""
    async with asyncio.timeout(5):
        while b'"errors"' not in answer and b'"accepted"' not in answer:
            chunk = await reader.read(100_000)
            assert chunk, answer
            answer += chunk
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"H%d: x\r\n" % i for i in range(500)) + b"\r\n",
        b"POST /api/v1/feedback HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/v1/feedback HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /api/v1/feedback HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n",
        b"POST /api/v1/feedback HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/v1/feedback HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello",
    ],
)
async def test_what_is_hardly_http(small: Rest, data: bytes) -> None:
    answer = await raw(small, data)
    assert answer[:10] in (b"HTTP/1.0 4", b"HTTP/1.1 4")
    assert b"application/problem+json" in answer
    assert (await small.call("GET", "/health/live"))[0] == 200


async def test_a_body_is_asked_for_when_the_sender_waits_for_that(small: Rest) -> None:
    body = json.dumps(EVENT).encode()
    head = b"POST /api/v1/feedback HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n"
    answer = await raw(small, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert b"HTTP/1.1 200" in answer
    assert len(small.desk.events) == 1


async def test_a_sender_that_leaves_breaks_nothing(small: Rest) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(small.url.rpartition(":")[2]))
    writer.write(b"POST /api/v1/feedback HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await small.call("POST", FEEDBACK, EVENT))[0] == 200
