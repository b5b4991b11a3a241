"""
OTLP/HTTP as the specification has it, on a real port.
"""

from __future__ import annotations

import asyncio
import gzip
import resource
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from collector.conftest import CALL, JSON, PROTOBUF, Running, request, running, until
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

DAY_NS = 86_400 * 10**9


def status(kind: str, body: bytes) -> tuple[int, str]:
    """
    Code and message of a google.rpc.Status.
    """
    if kind == JSON:
        document = orjson.loads(body)
        assert set(document) == {"code", "message"}
        return document["code"], document["message"]
    message = Status.FromString(body)
    return message.code, message.message


async def test_full_success_is_an_empty_message(collector: Running) -> None:
    code, body, headers = await collector.post(request(CALL, {"http.request.method": "GET"}))
    assert (code, body, headers["Content-Type"]) == (200, b"", PROTOBUF)
    code, body, headers = await collector.post(orjson.dumps(document(CALL)), JSON + "; charset=utf-8")
    assert (code, body, headers["Content-Type"]) == (200, b"{}", JSON)
    assert len(collector.shelf.events) == 2
    assert collector.frame.health.metadata["spans_ignored"] == "1"


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
async def test_empty_requests_succeed(collector: Running, kind: str) -> None:
    bodies = [b"", request()] if kind == PROTOBUF else [b"{}", b'{"resourceSpans":[]}', b'{"resourceSpans":[{}],"x":1}']
    for body in bodies:
        assert (await collector.post(body, kind))[0] == 200
    assert collector.shelf.appends == 0


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "identity", None])
async def test_content_encodings(collector: Running, kind: str, encoding: str | None) -> None:
    plain = request(CALL) if kind == PROTOBUF else orjson.dumps(document(CALL))
    packed = gzip.compress(plain) if encoding and "zip" in encoding.lower() else plain
    headers = {} if encoding is None else {"Content_Encoding": encoding}
    assert (await collector.post(packed, kind, **headers))[0] == 200
    assert len(collector.shelf.events) == 1


async def test_all_members_of_a_gzip_count(collector: Running) -> None:
    body = request(CALL)
    other = request({**CALL, "_span": b"abcdefgh"})
    packed = gzip.compress(body) + gzip.compress(other) + b"\0\0"
    assert (await collector.post(packed, Content_Encoding="gzip"))[0] == 200
    assert len(collector.shelf.events) == 2


async def test_wrong_methods_types_and_paths(collector: Running) -> None:
    for kind in (PROTOBUF, JSON):
        code, body, headers = await collector.post(b"", kind, method="PUT")
        assert (code, headers["Content-Type"], headers["Allow"], status(kind, body)[0]) == (405, kind, "POST", 12)
    for kind in ("text/plain", "", "application/octet-stream"):
        code, body, headers = await collector.post(request(CALL), kind)
        assert (code, headers["Content-Type"], status(JSON, body)[0]) == (415, JSON, 3)
    for kind in (PROTOBUF, JSON):
        for path in ("/v1/logs", "/v1/metrics", "/", "/v1/traces/"):
            code, body, headers = await collector.post(b"", kind, path)
            assert (code, headers["Content-Type"], status(kind, body)[0]) == (404, kind, 5)


UNDECODABLE = {
    PROTOBUF: [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"hello", b"\x0a\x04\x12\x02\x12\x05", request(CALL)[:-3]],
    JSON: [
        b"",
        b"{",
        b"[]",
        b"null",
        b"NaN",
        b'{"resourceSpans":NaN}',
        b'{"resourceSpans":{}}',
        b'{"resourceSpans":[1]}',
        b'{"resourceSpans":[{"scopeSpans":"x"}]}',
        b'{"resourceSpans":[{"resource":{"attributes":[{"key":"a","value":{"intValue":"x"}}]}}]}',
        b'{"resourceSpans":[{"resource":[]}]}',
        b'{"resourceSpans":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"resourceSpans":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        b'{"a":"\xff"}',
        b"\x1f\x8b",
    ],
}


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
async def test_undecodable_bodies_are_400_with_a_status(collector: Running, kind: str) -> None:
    for bad in UNDECODABLE[kind]:
        code, body, headers = await collector.post(bad, kind)
        assert (code, headers["Content-Type"]) == (400, kind), bad[:80]
        number, message = status(kind, body)
        assert number == 3
        assert message
        assert len(message) <= 1000
    assert collector.shelf.appends == 0


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
async def test_bad_gzip_is_400(collector: Running, kind: str) -> None:
    whole = gzip.compress(request(CALL) if kind == PROTOBUF else orjson.dumps(document(CALL)))
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # its checksum
    for bad in (whole[:-1], whole[: len(whole) // 2], whole[:5], b"", b"plain", whole + b"x", bytes(flipped)):
        code, body, headers = await collector.post(bad, kind, Content_Encoding="gzip")
        assert (code, headers["Content-Type"], status(kind, body)[0]) == (400, kind, 3), bad
    code, body, _ = await collector.post(b"", kind, Content_Encoding="br")
    assert (code, status(kind, body)[0]) == (400, 3)
    assert collector.shelf.appends == 0


async def test_larger_than_allowed_is_413_before_and_after_unpacking(tmp_path: Path) -> None:
    async with running(tmp_path, max_body_bytes=100_000) as collector:
        for kind in (PROTOBUF, JSON):
            code, body, headers = await collector.post(b"\0" * 100_001, kind)
            assert (code, headers["Content-Type"]) == (413, kind)
            assert "100000" in status(kind, body)[1]
            code, _, _ = await collector.post(gzip.compress(b"\0" * 100_001), kind, Content_Encoding="gzip")
            assert code == 413

            async def chunks() -> Any:
                for _ in range(20):
                    yield b"\0" * 10_000

            headers = {"Content-Type": kind}
            async with collector.session.post(collector.url + "/v1/traces", data=chunks(), headers=headers) as answer:
                assert answer.status == 413
        exact = request(CALL, note="x" * 50_000)
        assert (await collector.post(gzip.compress(exact), Content_Encoding="gzip"))[0] == 200


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of the test's own client
async def test_bombs_do_not_take_memory(collector: Running) -> None:
    zeros = gzip.compress(bytes(2**24)) * 80  # 1.3 GB in 80 members
    spans = gzip.compress(_nested(b"\x12\x00" * 2**22)) * 7  # 29 million empty spans, two bytes each
    scopes = gzip.compress(_field(1, b"\x12\x00" * 2**22)) * 7
    labels = gzip.compress(_field(1, _field(1, b"\x0a\x00" * 2**24)))
    objects = gzip.compress(b'{"a":[') + gzip.compress(b"{}," * 2**22) * 5
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for packed, kind in (
        (zeros, PROTOBUF),
        (zeros, JSON),
        (spans, PROTOBUF),
        (scopes, PROTOBUF),
        (labels, PROTOBUF),
        (objects, JSON),
    ):
        assert len(packed) < 2_000_000
        code, _, _ = await collector.post(packed, kind, Content_Encoding="gzip")
        assert code in (400, 413)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300 * 1024  # KiB: the largest body, a few times
    assert collector.shelf.appends == 0


def _nested(spans: bytes) -> bytes:
    return _field(1, _field(2, spans))


def _field(number: int, content: bytes) -> bytes:
    size, out = len(content), bytearray([number << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes(out) + bytes([size]) + content


BAD_SPANS: list[tuple[dict[str, Any], str]] = [
    ({"_end": 0}, "before the year 2000"),
    ({"_end": 10**15}, "before the year 2000"),
    ({"_end": time.time_ns() + 2 * DAY_NS}, "in the future"),
    ({"_end": 2**64 - 1}, "in the future"),
    ({"_trace": b""}, "traceId"),
    ({"_trace": bytes(16)}, "traceId"),
    ({"_span": b"abc"}, "spanId"),
    ({"gen_ai.usage.input_tokens": -1}, "gen_ai.usage.input_tokens"),
    ({"gen_ai.usage.input_tokens": float("nan")}, "gen_ai.usage.input_tokens"),
    ({"gen_ai.usage.output_tokens": float("inf")}, "gen_ai.usage.output_tokens"),
    ({"gen_ai.usage.prompt_tokens": "many"}, "gen_ai.usage.prompt_tokens"),
    ({"gen_ai.usage.input_tokens": 1.5}, "not a whole number"),
    ({"gen_ai.usage.input_tokens": 2**62}, "gen_ai.usage.input_tokens"),
    ({"gen_ai.usage.input_tokens": [1]}, "gen_ai.usage.input_tokens"),
    ({"llm_optimizer.cost_usd": -0.5}, "llm_optimizer.cost_usd"),
    ({"llm_optimizer.quality": 1.5}, "llm_optimizer.quality"),
    ({"gen_ai.response.time_to_first_chunk": float("-inf")}, "time_to_first_chunk"),
    ({"llm_optimizer.task": "x" * 1_000_000}, "1000000 characters"),
    ({"llm_optimizer.task": "a\nb"}, "control characters"),
    ({"gen_ai.request.model": "m" * 300}, "300 characters"),
    ({"gen_ai.request.model": ""}, "neither a model"),
    ({"llm_optimizer.selection_id": "forged"}, "selection_id"),
    ({"llm_optimizer.selection_id": "x" * 1_000_000}, "selection"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_SPANS, ids=[str(i) for i in range(len(BAD_SPANS))])
async def test_a_bad_span_is_refused_alone_with_its_reason(
    collector: Running, bad: dict[str, Any], reason: str
) -> None:
    good = {**CALL, "_span": b"goodgood"}
    code, body, _ = await collector.post(request({**CALL, **bad}, good))
    partial = ExportTraceServiceResponse.FromString(body).partial_success
    assert (code, partial.rejected_spans) == (200, 1)
    assert reason in partial.error_message
    assert [event.id[32:] for event in collector.shelf.events] == [b"goodgood".hex()]
    assert collector.frame.health.metadata["events_rejected"] == "1"


@pytest.mark.parametrize(
    "bad",
    [
        {"traceId": "AQEBAQEBAQEBAQEBAQEBAQ=="},
        {"traceId": 7},
        {"spanId": "zz"},
        {"endTimeUnixNano": "1" + "0" * 400},
        {"endTimeUnixNano": 1e300},
        {"endTimeUnixNano": -1},
        {"endTimeUnixNano": True},
        {"endTimeUnixNano": {}},
        {"name": 3},
        {"status": {"code": "STATUS_CODE_ERROR"}},
        {"status": 2},
        {"attributes": {}},
        {"attributes": [{"key": 5, "value": {"stringValue": "x"}}]},
        {"attributes": [{"key": "a", "value": "x"}]},
        {"attributes": [{"key": "a", "value": {"intValue": "1" * 5000}}]},
        {"attributes": [{"key": "a", "value": {"intValue": 1.5}}]},
        {"attributes": [{"key": "a", "value": {"boolValue": "true"}}]},
        {"attributes": [{"key": "a", "value": {"doubleValue": "x"}}]},
        {"attributes": [{"key": "a", "value": {"stringValue": 5}}]},
        {"attributes": [{"key": "a", "value": {"arrayValue": 5}}]},
        {"attributes": [{"key": "a", "value": {"arrayValue": {"values": [5]}}}]},
        {"attributes": [{"key": "a", "value": {"kvlistValue": {"values": 5}}}]},
    ],
    ids=str,
)
async def test_a_bad_json_span_is_refused_alone(collector: Running, bad: dict[str, Any]) -> None:
    given = document(CALL, {**CALL, "_": 2})
    given["resourceSpans"][0]["scopeSpans"][0]["spans"][0] |= bad
    code, body, _ = await collector.post(orjson.dumps(given), JSON)
    partial = orjson.loads(body)["partialSuccess"]
    assert (code, partial["rejectedSpans"]) == (200, "1")
    assert partial["errorMessage"]
    assert len(collector.shelf.events) == 1


async def test_many_reasons_make_a_short_message(collector: Running) -> None:
    spans = [{**CALL, "gen_ai.usage.input_tokens": -i - 1} for i in range(3000)]
    code, body, _ = await collector.post(request(*spans))
    partial = ExportTraceServiceResponse.FromString(body).partial_success
    assert (code, partial.rejected_spans) == (200, 3000)
    assert len(partial.error_message) <= 1000


async def test_sent_again_is_stored_once(collector: Running) -> None:
    body = request(CALL, {**CALL, "x": 1}, CALL)
    for _ in range(3):
        assert (await collector.post(body))[0] == 200
    assert len(collector.shelf.events) == 3


async def test_a_full_storage_is_503_and_the_problem_ends_by_itself(collector: Running) -> None:
    collector.shelf.full = "the disk is full"
    for kind in (PROTOBUF, JSON):
        body = request(CALL) if kind == PROTOBUF else orjson.dumps(document(CALL))
        code, answer, headers = await collector.post(body, kind)
        assert (code, headers["Content-Type"]) == (503, kind)
        assert 1 <= int(headers["Retry-After"]) <= 5
        number, message = status(kind, answer)
        assert (number, "disk is full" in message) == (14, True)
    assert "disk is full" in collector.frame.health.problems["storage"]
    collector.shelf.full = ""
    await until(lambda: not collector.frame.health.problems, "healthy without traffic")
    assert (await collector.post(request(CALL)))[0] == 200


async def test_a_nearly_full_storage_is_one_problem_until_there_is_room(collector: Running) -> None:
    collector.shelf.full, collector.shelf.fits = "the disk is full", 1
    told: list[bool] = []
    collector.frame.health.changed = lambda: told.append("storage" in collector.frame.health.problems)
    for _ in range(3):
        assert (await collector.post(request(CALL, CALL)))[0] == 503
        assert (await collector.post(request(CALL)))[0] == 200
    assert told == [True]
    collector.shelf.full = ""
    await until(lambda: not collector.frame.health.problems, "healthy without traffic")
    assert told == [True, False]


async def test_storage_away_is_503_after_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.collector.service.DEADLINE_S", 0.3)
    monkeypatch.setattr("workers.collector.door.Door.__init__.__defaults__", (0.3,))
    async with running(tmp_path, storage=False) as collector:
        # more than are on their way at once: those behind them wait no longer than the others
        answers = await asyncio.gather(
            *(collector.post(request({**CALL, "_span": bytes([i + 1]) * 8})) for i in range(8))
        )
        for code, answer, headers in answers:
            assert (code, status(PROTOBUF, answer)[0]) == (503, 14)
            assert 1 <= int(headers["Retry-After"]) <= 5
        assert "storage" in collector.frame.health.problems
        assert collector.storage_bus is not None
        collector.storage_bus.serve(collector.shelf.answer)
        await until(lambda: not collector.frame.health.problems, "healthy again")
        assert (await collector.post(request(CALL)))[0] == 200
        assert (await collector.post(request({**CALL, "_span": b"\1" * 8})))[0] == 200


async def test_beyond_the_buffer_is_503_and_too_much_at_once_413(tmp_path: Path) -> None:
    async with running(tmp_path, buffer_size=10) as collector:
        collector.shelf.held = asyncio.Event()
        first = asyncio.create_task(collector.post(request(*[CALL] * 10)))
        await until(lambda: collector.shelf.appends >= 1, "the first is on its way")
        code, body, headers = await collector.post(request({**CALL, "_span": b"12345678"}))
        assert (code, status(PROTOBUF, body)[0], headers["Retry-After"]) == (503, 14, "1")
        collector.shelf.held.set()
        assert (await first)[0] == 200
        code, body, _ = await collector.post(request(*[CALL] * 11))
        assert code == 413
        assert "collector.buffer_size" in status(PROTOBUF, body)[1]
        assert len(collector.shelf.events) == 10


async def test_small_requests_share_batches_and_large_ones_are_cut(tmp_path: Path) -> None:
    async with running(tmp_path, batch_size=10) as collector:
        collector.shelf.held = asyncio.Event()
        bodies = [request({**CALL, "_span": (i + 1).to_bytes(8, "big")}) for i in range(60)]
        posts = [asyncio.create_task(collector.post(body)) for body in bodies]
        await until(lambda: collector.shelf.appends == 4, "four batches are on their way")
        await asyncio.sleep(0.2)  # the others arrive meanwhile
        collector.shelf.held.set()
        assert [answer[0] for answer in await asyncio.gather(*posts)] == [200] * 60
        assert collector.shelf.appends < 20
        before = collector.shelf.appends
        assert (await collector.post(request(*[{**CALL, "_trace": b"t" * 16}] * 95)))[0] == 200
        assert collector.shelf.appends - before == 10
        assert len(collector.shelf.events) == 155


async def test_a_defect_in_storage_is_an_answer_too(collector: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(message: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(collector.shelf.memory, "append", broken)
    code, body, _ = await collector.post(request(CALL))
    assert (code, status(PROTOBUF, body)[0]) == (503, 14)


async def test_what_is_in_flight_at_the_end_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as collector:
        collector.shelf.held = asyncio.Event()
        post = asyncio.create_task(collector.post(request(CALL)))
        await until(lambda: collector.shelf.appends >= 1, "on its way")
        collector.frame.stopping.set()
        await asyncio.sleep(0.05)
        collector.shelf.held.set()
        assert (await post)[0] == 200


async def test_slow_senders_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.http_server.HEADER_S", 0.2)
    monkeypatch.setattr("workers.collector.http._BODY_S", 0.2)
    async with running(tmp_path) as collector:
        host, port = collector.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/traces HTTP/1.1\r\nHost:")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: 9\r\n\r\n{{"
        writer.write(head.encode())
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 408")
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
        b"POST http://[::1/v1/traces HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello",
    ],
)
async def test_what_is_hardly_http_is_answered_and_not_logged(
    collector: Running, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = collector.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
    writer.close()
    assert head[8:13] == b" 400 "
    assert status(JSON, body)[0] == 3
    assert caplog.records == []  # aiohttp would log an error


async def test_a_sender_may_ask_before_it_sends(collector: Running) -> None:
    body = request(CALL)
    async with collector.session.post(
        collector.url + "/v1/traces", data=body, headers={"Content-Type": PROTOBUF}, expect100=True
    ) as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_slow_senders_shut_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.http_server.MAX_CONNECTIONS", 20)
    monkeypatch.setattr("workers.collector.http._CONCURRENCY", 5)
    head = f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: 9\r\n\r\n{{"
    async with running(tmp_path) as collector:
        host, port = collector.url.removeprefix("http://").split(":")
        slow = [await asyncio.open_connection(host, int(port)) for _ in range(30)]
        for _, writer in slow:
            writer.write(head.encode())
        assert (await collector.post(request(CALL)))[0] == 200
        for _, writer in slow:
            writer.close()


def document(*spans: dict[str, Any]) -> dict[str, Any]:
    """
    An OTLP/JSON request with plain attributes of strings and whole numbers.
    """
    made = []
    for i, given in enumerate(spans):
        pairs = [
            {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
            for key, value in given.items()
        ]
        end = time.time_ns()
        made.append(
            {
                "traceId": "0A" * 16,
                "spanId": f"{i + 1:016x}",
                "name": "chat",
                "startTimeUnixNano": str(end - 1000),
                "endTimeUnixNano": end,
                "attributes": pairs,
                "unknown": {"a": []},
            }
        )
    return {"resourceSpans": [{"scopeSpans": [{"spans": made}]}]}
