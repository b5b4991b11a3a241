"""
Many calls, many streams, many parts: whoever sends them shuts nobody out.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_api.conftest import Grpc, running, until
from grpc_api.test_service import Event, refused, retry_delays_s
from grpc_health.v1 import health_pb2 as standard_pb2
from grpc_health.v1 import health_pb2_grpc as standard_grpc

from optimizer.pb.v1.selection_pb2 import FeedbackRequest, FeedbackStreamRequest, SelectRequest
from workers.grpc_api.gate import MAX_STREAMED_BYTES, more_parts


async def silent() -> AsyncIterator[FeedbackStreamRequest]:
    yield FeedbackStreamRequest(event=Event(task="t", variant="a"))
    await asyncio.Event().wait()


async def test_open_streams_have_a_bound_of_their_own(tmp_path: Path) -> None:
    async with running(tmp_path, max_concurrency=2) as api:
        await api.create()
        streams = [api.selection.FeedbackStream(silent()) for _ in range(2)]

        async def third() -> Any:
            return await refused(api.selection.FeedbackStream(iter([FeedbackStreamRequest(event=Event())])))

        async with asyncio.timeout(5):
            while (answer := await third())[0] is not grpc.StatusCode.UNAVAILABLE:
                await asyncio.sleep(0.01)
        assert retry_delays_s(answer[2]) == [1.0, 1.0]
        assert (await api.selection.Select(SelectRequest(task="t"))).variant
        for stream in streams:
            stream.cancel()


async def test_a_silent_stream_ends(api: Grpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.grpc_api.gate._SILENCE_S", 0.1)
    code, _, error = await refused(api.selection.FeedbackStream(silent()))
    assert (code, "silent" in str(error.details())) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)


async def test_watchers_are_bounded(api: Grpc, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.create()
    watch = standard_grpc.HealthStub(api.channel).Watch
    watchers = [watch(standard_pb2.HealthCheckRequest()) for _ in range(128)]
    for watcher in watchers:
        assert (await watcher.read()).status == standard_pb2.HealthCheckResponse.SERVING
    code, _, error = await refused(watch(standard_pb2.HealthCheckRequest()).read())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert retry_delays_s(error) == [1.0, 1.0]
    assert (await api.selection.Select(SelectRequest(task="t"))).variant
    for watcher in watchers:
        watcher.cancel()

    async def again() -> bool:
        status = await watch(standard_pb2.HealthCheckRequest()).read()
        return bool(status.status == standard_pb2.HealthCheckResponse.SERVING)

    async with asyncio.timeout(5):
        while True:
            try:
                assert await again()
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)
            else:
                break


async def test_a_message_of_very_many_parts_is_not_read(api: Grpc) -> None:
    method = "/llm.optimizer.v1.SelectionService/Feedback"
    call = api.channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    code, _, error = await refused(call(b"\x0a\x00" * 4_000_000))
    assert (code, "parts" in str(error.details())) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_a_refused_message_is_let_go_at_once(api: Grpc) -> None:
    method = "/llm.optimizer.v1.SelectionService/Feedback"
    call = api.channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    raw = b"\xff" * (2 * 1024 * 1024)
    await refused(call(raw))
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(10):
            await refused(call(raw))
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < 3 * len(raw)


async def test_large_messages_wait_for_each_other(tmp_path: Path) -> None:
    async with running(tmp_path, max_message_bytes=1024 * 1024) as api:
        await api.create()
        api.desk.held = asyncio.Event()
        events = [Event(task="t", variant="a", attributes={"a": "x" * 400}) for _ in range(1500)]
        calls = [asyncio.ensure_future(_answered(api, events)) for _ in range(30)]
        await until(lambda: api.desk.waiting == 1)
        await until(lambda: sum(call.done() for call in calls) == 30 - 17)  # one is in hand, and so many may wait
        assert (await api.selection.Select(SelectRequest(task="t"))).variant
        api.desk.held.set()
        codes = await asyncio.gather(*calls)
        assert codes.count("OK") == 17
        assert codes.count("UNAVAILABLE") == 13


async def _answered(api: Grpc, events: Any) -> str:
    try:
        await api.selection.Feedback(FeedbackRequest(events=events))
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def test_messages_of_a_stream_are_small_and_so_are_batches(api: Grpc) -> None:
    await api.create()
    large = Event(task="t", variant="a", attributes={str(i): "x" * 8000 for i in range(8)})
    answer = await api.selection.FeedbackStream(FeedbackStreamRequest(event=large) for _ in range(100))
    assert answer.accepted == 100
    huge = Event(task="t", variant="a", error="x" * MAX_STREAMED_BYTES)
    code, fields, _ = await refused(
        api.selection.FeedbackStream(iter([FeedbackStreamRequest(event=large), FeedbackStreamRequest(event=huge)]))
    )
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["[1]"])


@pytest.mark.parametrize(
    "raw", [b"", b"\xff" * 30, b"\x0a", b"\x0a\xff\xff\xff\xff\x7f", b"\x0b" * 100, b"\x08\x01" * 5]
)
def test_few_or_broken_parts_are_left_to_protobuf(raw: bytes) -> None:
    assert not more_parts(raw, 5)


def test_parts_are_counted() -> None:
    raw = FeedbackRequest(events=[Event(task="t" * 300, variant="a")] * 6).SerializeToString()
    assert more_parts(raw, 5)
    assert not more_parts(raw, 6)
    assert more_parts(b"\x08\xff\x01" * 6 + b"\x0d1234" + b"\x0912345678", 7)
