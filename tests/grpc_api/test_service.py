"""
The gRPC interface over a real channel.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_api.conftest import Grpc, running, selection_request, until
from grpc_health.v1 import health_pb2 as standard_pb2
from grpc_health.v1 import health_pb2_grpc as standard_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from rest_api.conftest import fleet

from optimizer.messages import Message
from optimizer.operations.registry import OPERATIONS
from optimizer.pb.v1 import event_pb2
from optimizer.pb.v1.event_pb2 import Feedback
from optimizer.pb.v1.health_pb2 import CheckRequest
from optimizer.pb.v1.selection_pb2 import (
    BatchSelectRequest,
    FeedbackRequest,
    FeedbackStreamRequest,
    SelectRequest,
)
from workers.grpc_api import servicers

Event: Any = event_pb2.Event  # the stubs do not know that a Struct may be given as a dict


async def refused(call: Any) -> tuple[grpc.StatusCode, list[str], Any]:
    """
    Status and the fields named in BadRequest of a call that fails.
    """
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error: Any = caught.value
    status = rpc_status.from_call(error)
    bad = error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        if detail.Is(bad.DESCRIPTOR):
            detail.Unpack(bad)
    return error.code(), [violation.field for violation in bad.field_violations], error


def retry_delays_s(error: Any) -> list[float]:
    """
    The delay of a retry in each of the two trailers.
    """
    inside, bare = error_details_pb2.RetryInfo(), error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    assert status.details[0].Unpack(inside)
    trailers: Any = error.trailing_metadata()
    bare.ParseFromString(dict(trailers)["google.rpc.retryinfo-bin"])
    return [info.retry_delay.ToMilliseconds() / 1000 for info in (inside, bare)]


async def test_a_selection_and_its_feedback(api: Grpc) -> None:
    await api.create()
    chosen = await api.selection.Select(selection_request("t", context={"length": 3, "lang": "en", "urgent": True}))
    assert chosen.variant in ("a", "b")
    assert (chosen.task, chosen.provider, chosen.model) == ("t", "openai", f"m-{chosen.variant}")
    assert dict(chosen.parameters) == {"top_k": 4}
    assert 0 < chosen.propensity <= 1
    assert chosen.policy_version == 0
    assert not chosen.HasField("prompt")
    assert not chosen.HasField("rollout")
    told = Event(selection_id=chosen.selection_id, quality=0.0, feedback=Feedback(thumbs=False), input_tokens=0)
    answer = await api.selection.Feedback(FeedbackRequest(events=[told]))
    assert (answer.accepted, answer.duplicates, len(answer.ids)) == (1, 0, 1)
    (stored,) = api.desk.events
    assert (stored.id, stored.task, stored.variant) == (answer.ids[0], "t", chosen.variant)
    assert (stored.quality, stored.input_tokens, stored.output_tokens) == (0.0, 0, None)
    assert stored.feedback is not None
    assert stored.feedback.thumbs is False


async def test_every_field_of_an_event_arrives(api: Grpc) -> None:
    time = Timestamp(seconds=int(api.frame.clock.at().timestamp()), nanos=5000)
    event = Event(
        id="e1", time=time, service="shop", task="t", variant="a", provider="openai", model="m", input_tokens=2**33,
        output_tokens=2, cache_read_tokens=3, cache_write_tokens=4, reasoning_tokens=5, cost_usd=0.25, latency_ms=1.5,
        time_to_first_token_ms=0.5, error="timeout", finish_reason="stop", parameters={"stop": ["x", {"y": None}]},
        quality=1, scores={"tone": 0.5}, feedback=Feedback(rating=-1, comment="no"), context={"n": 1}, session="s",
        user="u", attributes={"k": "v"},
    )  # fmt: skip
    await api.selection.Feedback(FeedbackRequest(events=[event]))
    (stored,) = api.desk.events
    plain = {name: getattr(stored, name) for name in stored.__struct_fields__}
    for name in ("id", "service", "variant", "input_tokens", "reasoning_tokens", "cost_usd", "error", "quality"):
        assert plain[name] == getattr(event, name), name
    assert stored.time.timestamp() == pytest.approx(time.seconds + 5e-6, abs=1e-6)
    assert stored.parameters == {"stop": ["x", {"y": None}]}
    assert (stored.scores, stored.context, stored.attributes) == ({"tone": 0.5}, {"n": 1}, {"k": "v"})
    assert stored.session not in ("", "s")
    unset = {name for name, value in plain.items() if value in (None, "", {})}
    assert unset == {"source", "selection_id"}  # the collector knows the source


async def test_a_batch_of_selections(api: Grpc) -> None:
    await api.create()
    answer = await api.selection.BatchSelect(BatchSelectRequest(requests=[SelectRequest(task="t")] * 3))
    assert len({one.selection_id for one in answer.responses}) == 3
    mixed = BatchSelectRequest(requests=[SelectRequest(task="t"), selection_request("t", context={"n": math.nan})])
    code, fields, _ = await refused(api.selection.BatchSelect(mixed))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["requests[1].context.n"])


async def test_a_repeated_id_changes_nothing(api: Grpc) -> None:
    event = Event(id="once", task="t", variant="a", quality=1)
    first = await api.selection.Feedback(FeedbackRequest(events=[event]))
    again = await api.selection.Feedback(FeedbackRequest(events=[event]))
    assert [(one.accepted, one.duplicates) for one in (first, again)] == [(1, 0), (1, 1)]
    assert len(api.desk.events) == 1


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        (Event(), ["task"]),
        (Event(task="t", variant="a", quality=math.nan), ["quality"]),
        (Event(task="t", variant="a", cost_usd=-1, latency_ms=math.inf), ["cost_usd", "latency_ms"]),
        (Event(task="t", variant="a", input_tokens=-1), ["input_tokens"]),
        (Event(task="t" * 1_000_000, variant="a"), ["task"]),
        (Event(task="t", variant="a", time=Timestamp(seconds=0)), ["time"]),
        (Event(task="t", variant="a", time=Timestamp(seconds=2**62)), ["time"]),
        (Event(task="t", variant="a", time=Timestamp(seconds=4_000_000_000)), ["time"]),
        (Event(task="t", variant="a", parameters={"x": math.inf}), ["parameters.x"]),
        (Event(task="t", variant="a", context={"x": [1]}), ["context.x"]),
        (Event(task="t", variant="a", scores={"s": math.nan}), ["scores.s"]),
        (Event(selection_id="forged"), ["selection_id"]),
    ],
    ids=lambda case: "" if isinstance(case, event_pb2.Event) else "+".join(case),
)
async def test_bad_events_are_named_and_change_nothing(api: Grpc, event: Any, fields: list[str]) -> None:
    good = Event(id="good", task="t", variant="a")
    code, found, _ = await refused(api.selection.Feedback(FeedbackRequest(events=[good, event])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(found) >= {f"events[1].{field}" for field in fields}
    assert api.desk.events == []


async def test_a_refusal_of_very_much_still_arrives(api: Grpc) -> None:
    bad = Event(task="é" * 300, variant="é" * 300, provider="\x00", quality=7, scores={"é" * 300: math.nan})
    code, fields, error = await refused(api.selection.Feedback(FeedbackRequest(events=[bad] * 200)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields[0] == "events[0].task"
    trailers: Any = error.trailing_metadata()
    assert sum(len(key) + len(value) + 32 for key, value in trailers) < 8192


async def test_bytes_that_are_no_message(api: Grpc) -> None:
    deep = b""
    for _ in range(200):  # a list in a list in a list: deeper than protobuf reads
        inner = b"\x0a" + _length(deep) + deep
        deep = b"\x32" + _length(inner) + inner
    field = b"\x0a\x01k\x12" + _length(deep) + deep
    struct = b"\x0a" + _length(field) + field
    for raw in (b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x12" + _length(struct) + struct):
        channel: Any = api.channel
        code, _, error = await refused(channel.unary_unary("/llm.optimizer.v1.SelectionService/Select")(raw))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "SelectRequest" in str(error.details())


def _length(raw: bytes) -> bytes:
    size, out = len(raw), b""
    while size > 127:
        out, size = out + bytes([size & 127 | 128]), size >> 7
    return out + bytes([size])


async def test_unknown_and_unfit_tasks(api: Grpc) -> None:
    code, fields, _ = await refused(api.selection.Select(SelectRequest(task="nowhere")))
    assert (code, len(fields)) == (grpc.StatusCode.NOT_FOUND, 1)
    code, fields, _ = await refused(api.selection.Feedback(FeedbackRequest()))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_is_stored_in_batches_and_answered_once(api: Grpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicers, "BATCH", 4)
    events = [FeedbackStreamRequest(event=Event(id=f"e{i % 10}", task="t", variant="a")) for i in range(11)]
    answer = await api.selection.FeedbackStream(iter(events))
    assert (answer.accepted, answer.duplicates) == (11, 1)
    assert [event.id for event in api.desk.events] == [f"e{i}" for i in range(10)]


async def test_a_bad_event_ends_a_stream_and_is_named(api: Grpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicers, "BATCH", 4)

    def events() -> Iterator[FeedbackStreamRequest]:
        for i in range(8):
            yield FeedbackStreamRequest(event=Event(id=f"e{i}", task="t", variant="a", quality=2 if i == 5 else 1))

    code, fields, _ = await refused(api.selection.FeedbackStream(events()))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["[5].quality"])
    assert [event.id for event in api.desk.events] == ["e0", "e1", "e2", "e3"]


async def test_a_refusal_for_lack_of_room_says_when_to_retry(api: Grpc) -> None:
    api.desk.away = True
    event = Event(id="kept", task="t", variant="a")
    for call in (
        api.selection.Feedback(FeedbackRequest(events=[event])),
        api.selection.FeedbackStream(iter([FeedbackStreamRequest(event=event)])),
    ):
        code, _, error = await refused(call)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert retry_delays_s(error) == [2.0, 2.0]
    api.desk.away = False
    assert (await api.selection.Feedback(FeedbackRequest(events=[event]))).duplicates == 0


async def test_calls_beyond_the_bound_are_told_to_come_again(tmp_path: Path) -> None:
    async with running(tmp_path, max_concurrency=1) as api:
        api.desk.held = asyncio.Event()
        held = asyncio.ensure_future(
            _awaited(api.selection.Feedback(FeedbackRequest(events=[Event(task="t", variant="a")])))
        )
        await until(lambda: api.desk.waiting)
        code, _, error = await refused(api.selection.Select(SelectRequest(task="t")))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert retry_delays_s(error) == [1.0, 1.0]
        api.desk.held.set()
        assert (await held).accepted == 1


async def _awaited(call: Any) -> Any:
    return await call


async def test_a_call_that_takes_too_long_ends(tmp_path: Path) -> None:
    async with running(tmp_path, timeout_secs=0.1) as api:
        api.desk.held = asyncio.Event()
        code, _, error = await refused(
            api.selection.Feedback(FeedbackRequest(events=[Event(id="e", task="t", variant="a")]))
        )
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "grpc_api.timeout_secs" in str(error.details())
        assert retry_delays_s(error) == [1.0, 1.0]
        api.desk.held.set()


async def test_a_message_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, max_message_bytes=2048) as api:
        code, _, _ = await refused(api.selection.Select(SelectRequest(task="t" * 4096)))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_bug_tells_nothing_of_the_inside(api: Grpc, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> Message:
        raise ZeroDivisionError("of the inside")

    operation = dataclasses.replace(OPERATIONS["select"], run=broken)
    monkeypatch.setitem(OPERATIONS, "select", operation)
    code, _, error = await refused(api.selection.Select(SelectRequest(task="t")))
    assert code is grpc.StatusCode.INTERNAL
    assert "inside" not in str(error.details())


async def test_selections_go_on_while_storage_is_away(api: Grpc) -> None:
    await api.create()
    api.desk.away = True
    await until(lambda: "storage" in api.frame.health.problems)
    assert (await api.selection.Select(SelectRequest(task="t"))).variant
    api.desk.away = False
    await until(lambda: "storage" not in api.frame.health.problems)


async def test_the_health_document(api: Grpc) -> None:
    answer = await api.health.Check(CheckRequest())
    assert answer.status == "healthy"
    assert answer.services["storage"].state == "Running"
    assert answer.services["storage"].healthy
    assert not answer.services["storage"].HasField("message")
    api.frame.fleet = fleet(storage="Failed")
    assert (await api.health.Check(CheckRequest())).status == "degraded"


async def test_the_standard_health_service_follows_the_fleet(api: Grpc) -> None:
    stub: Any = standard_grpc.HealthStub(api.channel)

    async def status(name: str) -> int:
        return int((await stub.Check(standard_pb2.HealthCheckRequest(service=name))).status)

    assert await status("") == standard_pb2.HealthCheckResponse.SERVING
    assert await status("llm.optimizer.v1.SelectionService") == standard_pb2.HealthCheckResponse.SERVING
    watching: AsyncIterator[Any] = stub.Watch(standard_pb2.HealthCheckRequest(service="")).__aiter__()
    assert (await anext(watching)).status == standard_pb2.HealthCheckResponse.SERVING
    assert api.frame.fleet is not None
    api.frame.fleet = type(api.frame.fleet)(status="unhealthy", started_at=0.0, services={})
    assert (await asyncio.wait_for(anext(watching), 5)).status == standard_pb2.HealthCheckResponse.NOT_SERVING
    assert await status("llm.optimizer.v1.SelectionService") == standard_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_and_describes(api: Grpc) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="llm.optimizer.v1.SelectionService"),
    ]
    listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    assert {service.name for service in listed.list_services_response.service} == {
        "llm.optimizer.v1.SelectionService",
        "llm.optimizer.v1.HealthService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    file = descriptor_pb2.FileDescriptorProto.FromString(described.file_descriptor_response.file_descriptor_proto[0])
    assert {method.name for method in file.service[0].method} == {"Select", "BatchSelect", "Feedback", "FeedbackStream"}


async def test_calls_in_flight_are_finished_at_a_stop(api: Grpc) -> None:
    api.desk.held = asyncio.Event()
    call = asyncio.ensure_future(
        _awaited(api.selection.Feedback(FeedbackRequest(events=[Event(task="t", variant="a")])))
    )
    await until(lambda: api.desk.waiting)
    api.frame.stopping.set()
    refusing = asyncio.ensure_future(_until_refused(api))
    await asyncio.wait_for(refusing, 5)
    assert not call.done()
    api.desk.held.set()
    assert (await call).accepted == 1
    await asyncio.wait_for(api.ending, 5)


async def _until_refused(api: Grpc) -> None:
    port = api.frame.listeners["grpc"].getsockname()[1]
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        writer.close()
        await asyncio.sleep(0.01)


async def test_calls_are_counted(api: Grpc) -> None:
    await api.create()
    await refused(api.selection.Select(SelectRequest(task="nowhere")))
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(api.frame.metrics_dir))  # type: ignore[no-untyped-call]

    def figure(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, labels) or 0.0

    assert figure("requests_total", operation="select", status="OK") >= 1
    assert figure("requests_total", operation="select", status="NOT_FOUND") >= 1
    assert figure("request_duration_seconds_count", operation="select", status="OK") >= 1
    assert sum(figure("selections_total", task="t", variant=variant) for variant in "ab") >= 1
