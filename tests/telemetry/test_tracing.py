"""
Spans of the daemon's own requests, up to a receiver that speaks OTLP, and what it costs when that is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from system.daemon import Daemon, free_ports, task
from telemetry.conftest import Receiver

from optimizer.bus.link import Bus
from optimizer.bus.memory import MemoryStorage
from optimizer.config.loader import load
from optimizer.errors import Invalid
from optimizer.messages import Appended, Get, Message, Record, States
from optimizer.model import Event
from optimizer.pb.v1 import selection_pb2 as pb
from optimizer.service import Frame
from optimizer.telemetry import otlp, tracing
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics, open_metrics
from workers.collector.door import Door

Receive = Callable[..., Receiver]
Running = Callable[..., AbstractAsyncContextManager[Metrics]]

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    """
    Trace this process, to an endpoint.
    """
    monkeypatch.setattr(otlp, "_EVERY_S", 0.01)
    monkeypatch.setattr(otlp, "_FIRST_PAUSE_S", 0.01)

    @asynccontextmanager
    async def run(endpoint: str, slot: str = "rest_api-0", **options: str) -> AsyncIterator[Metrics]:
        prefix = "LLM_OPTIMIZER__OBSERVABILITY__OTEL_"
        env = {prefix + "ENDPOINT": endpoint, "LLM_OPTIMIZER__SERVICE__NAME": "shop", **options}
        metrics = open_metrics(tmp_path / "metrics", slot)
        async with tracing.running(load(env=env), slot, metrics):
            yield metrics

    return run


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)


def counted(metrics: Metrics, outcome: str) -> float:
    value: float = metrics.trace_spans_total.labels(outcome)._value.get()
    return value


@contextlib.contextmanager
def listening() -> Iterator[list[Any]]:
    """
    Lines that are logged.
    """
    heard: list[Any] = []
    number = log.add(lambda message: heard.append(message.record), level=0, format="{message}")
    try:
        yield heard
    finally:
        log.remove(number)


# --- spans ---


async def test_spans_arrive_with_their_process_and_their_parents(receive: Receive, running: Running) -> None:
    receiver = receive()
    async with running(receiver.url):
        with (
            tracing.request("POST /x", {"traceparent": SENT, "tracestate": "a=1"}, http__route="/x"),
            tracing.span("storage.append", records=3, share=0.5, first=True, name_="\ud800"),
        ):
            await asyncio.sleep(0.002)
        with tracing.request("GET /y", {}):
            pass
    inner, outer, other = receiver.spans
    path, headers, _ = receiver.requests[0]
    assert (path, headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
    assert (outer["name"], outer["kind"], outer["attributes"]) == ("POST /x", 2, {"http.route": "/x"})
    assert (outer["trace"], outer["parent"], outer["state"]) == (TRACE, SPAN, "a=1")
    assert (inner["trace"], inner["parent"], inner["kind"]) == (TRACE, outer["id"], 1)
    assert inner["attributes"] == {"records": 3, "share": 0.5, "first": True, "name_": "?"}
    assert 2_000_000 <= inner["ns"] <= outer["ns"] < 10**9
    assert abs(outer["began"] - time.time()) < 60
    assert (other["parent"], other["state"]) == ("", "")
    assert other["trace"] not in (TRACE, "0" * 32)
    resource = outer["resource"]
    assert (resource["service.name"], resource["process.pid"]) == ("shop", os.getpid())
    assert resource["service.instance.id"].endswith("/rest_api-0")


async def test_an_exception_and_a_fault_are_errors(receive: Receive, running: Running) -> None:
    receiver = receive()
    async with running(receiver.url):
        with contextlib.suppress(Invalid), tracing.span("one"):
            raise Invalid("no")
        with tracing.span("two") as span:
            span.fail("no_answer")
        with tracing.span("three"):
            pass
    assert [(one["error"], one["attributes"].get("error.type")) for one in receiver.spans] == [
        (True, "Invalid"),
        (True, "no_answer"),
        (False, None),
    ]


async def test_the_callers_decision_not_to_record_is_followed(receive: Receive, running: Running) -> None:
    receiver = receive()
    async with running(receiver.url):
        with tracing.request("a", {"traceparent": f"00-{TRACE}-{SPAN}-00"}), tracing.span("b"):
            assert tracing.carried().decode() == f"00-{TRACE}-{tracing.carried().decode()[36:52]}-00"
    assert receiver.requests == []


@pytest.mark.parametrize(("rate", "few", "many"), [("0", 0, 0), ("0.5", 400, 600)])
async def test_a_share_of_the_traces(receive: Receive, running: Running, rate: str, few: int, many: int) -> None:
    receiver = receive()
    async with running(receiver.url, LLM_OPTIMIZER__OBSERVABILITY__OTEL_SAMPLE_RATE=rate):
        for _ in range(1000):  # within nine standard deviations
            with tracing.request("a", {}), tracing.span("b"):
                pass
        with tracing.request("decided", {"traceparent": SENT}):
            pass
    traces: dict[str, list[str]] = {}
    for span in receiver.spans:
        traces.setdefault(span["trace"], []).append(span["name"])
    assert traces.pop(TRACE) == ["decided"]
    assert few <= len(traces) <= many
    assert all(names == ["b", "a"] for names in traces.values())


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (SENT, True),
        (f" {SENT} ", True),
        (f"00-{TRACE}-{SPAN}-ff", True),
        (f"01-{TRACE}-{SPAN}-01-more", True),
        (f"00-{TRACE}-{SPAN}-01-more", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        (f"00-{TRACE}-{SPAN}", False),
        (f"00-{TRACE}-{SPAN}-01\n", True),
        ("", False),
        ("\u0660" * 55, False),
    ],
)
def test_traceparents(header: str, valid: bool) -> None:
    found = tracing.parent(header)
    assert (found is not None) == valid
    if found is not None:
        assert (found.trace_id.hex(), found.span_id.hex(), found.sampled) == (TRACE, SPAN, True)


@pytest.mark.parametrize(("state", "kept"), [("a=1,b=2", True), ("a" * 513, False), ("a=\n", False), ("ü=1", False)])
def test_a_tracestate_is_passed_on_if_it_is_one(state: str, kept: bool) -> None:
    found = tracing.parent(SENT, state)
    assert found is not None
    assert found.state == (state if kept else "")


def test_nothing_is_paid_for_while_nothing_is_traced() -> None:
    async def handle(_: Any) -> Any:
        return None

    assert not tracing.on()
    assert tracing.http(handle, str) is handle
    assert tracing.carried() == b""
    with tracing.request("a", {"traceparent": SENT}) as one, tracing.span("b") as other:
        one.note(a=1)
        one.fail("x")
        assert one is other
    assert (one.attributes, one.error) == ({}, "")
    code = (
        "import sys\nfrom optimizer.telemetry import tracing\nfrom optimizer.config.loader import load\n"
        "tracing.preload(load(env={}))\nprint([m for m in ('aiohttp', 'google.protobuf') if m in sys.modules])\n"
        "tracing.preload(load(env={'LLM_OPTIMIZER__OBSERVABILITY__OTEL_ENDPOINT': 'http://127.0.0.1:1'}))\n"
        "print('aiohttp' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n") == ["[]", "True", ""]


async def test_lines_name_the_trace_they_belong_to(receive: Receive, running: Running) -> None:
    with listening() as heard:
        async with running(receive().url):
            with tracing.request("a", {"traceparent": SENT}):
                log.info("inside")
            log.info("outside")
    found = {record["message"]: record["extra"].get("trace_id") for record in heard}
    assert found["inside"] == TRACE
    assert found["outside"] is None


async def test_handlers_of_http(receive: Receive, running: Running) -> None:
    async def handle(asked: Any) -> Any:
        return SimpleNamespace(status=asked.answer)

    receiver = receive()
    async with running(receiver.url):
        traced = tracing.http(handle, lambda asked: "/t/{task}")
        for status in (200, 404, 503):
            await traced(SimpleNamespace(method="GET", headers={"traceparent": SENT}, answer=status))
    assert [(one["name"], one["attributes"]["http.response.status_code"], one["error"]) for one in receiver.spans] == [
        ("GET /t/{task}", 200, False),
        ("GET /t/{task}", 404, False),
        ("GET /t/{task}", 503, True),
    ]


async def test_a_trace_goes_over_the_bus(receive: Receive, running: Running, tmp_path: Path) -> None:
    async def answer(_: Message) -> Message:
        with tracing.span("answer", "server"):
            return States(states={}, revision=1)

    receiver = receive()
    async with running(receiver.url), Bus(tmp_path, "storage") as theirs, Bus(tmp_path, "rest_api") as ours:
        theirs.serve(answer)
        client = ours.client("storage")
        with tracing.request("asked", {"traceparent": SENT}):
            await client.request(Get(keys=[]), 5.0)
        await client.request(Get(keys=[]), 5.0)
    (asked,) = [one for one in receiver.spans if one["name"] == "asked"]
    answers = [one for one in receiver.spans if one["name"] == "answer"]  # a request may be sent twice, so two or more
    assert {(one["trace"], one["parent"]) for one in answers if one["trace"] == TRACE} == {(TRACE, asked["id"])}
    assert {one["parent"] for one in answers if one["trace"] != TRACE} == {""}


async def test_a_batch_belongs_to_the_trace_of_its_first_request(
    receive: Receive, running: Running, tmp_path: Path
) -> None:
    numbers: list[int] = []
    held = asyncio.Event()

    class Shelf(MemoryStorage):
        async def append(self, records: Sequence[Record]) -> Appended:
            numbers.append(int(tracing.carried()[3:35], 16))
            await held.wait()
            return await super().append(records)

    config = load(env={})
    frame = Frame(
        name="collector", slot="c", config=config, settings=config.section("collector"), runtime_dir=tmp_path, secret=b""
    )  # fmt: skip
    async with running(receive().url) as metrics, asyncio.TaskGroup() as group:
        door = Door(frame, Shelf(), metrics)

        async def send(number: int) -> None:
            with tracing.request("a", {"traceparent": f"00-{number:032x}-{SPAN}-01"}):
                event = Event(
                    id=str(number), time=datetime.now(UTC), source="rest", service="s", task="t", cost_usd=0.0
                )
                await door.store("rest", [event])

        for number in range(1, 7):
            group.create_task(send(number))
        await until(lambda: len(numbers) == 4, "as many as may be under way")
        held.set()
    assert numbers == [1, 2, 3, 4, 5]  # the sixth request shares the batch of the fifth


# --- the endpoint ---


async def test_an_endpoint_that_is_away_costs_spans_and_nothing_else(receive: Receive, running: Running) -> None:
    (port,) = free_ports(1)
    with listening() as heard:
        async with running(f"http://127.0.0.1:{port}") as metrics:
            began = time.monotonic()
            for _ in range(5000):
                with tracing.request("a", {}):
                    pass
            assert time.monotonic() - began < 5
            assert counted(metrics, "dropped") == 5000 - otlp.QUEUE
            await until(lambda: counted(metrics, "dropped") == 5000, "all given up")
            receiver = receive(port)
            with tracing.request("after", {}):
                pass
            await until(lambda: receiver.spans, "the receiver is found")
            await until(lambda: counted(metrics, "exported") == 1, "counted")
    said = [(record["message"], record["extra"].get("dropped")) for record in heard]
    assert said == [("tracing.endpoint_lost", None), ("tracing.endpoint_found", 5000)]


async def test_an_endpoint_that_never_answers_holds_nobody(
    receive: Receive, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "_LAST_S", 0.1)
    receiver = receive()
    receiver.answers.extend([(200, b"", 1.0)] * 2)
    began = time.monotonic()
    async with running(receiver.url) as metrics:
        with tracing.request("a", {}):
            pass
        await asyncio.sleep(0.05)  # it is on its way
        with tracing.request("b", {}):
            pass
    assert time.monotonic() - began < 0.9
    assert counted(metrics, "dropped") == 2


@pytest.mark.parametrize(
    ("status", "body", "exported", "dropped", "requests"),
    [
        (503, b"", 3, 0, 2),
        (429, b"", 3, 0, 2),
        (400, b"", 0, 3, 1),
        (307, b"", 0, 3, 1),
        (200, b"not protobuf", 3, 0, 1),
        (200, "partial", 1, 2, 1),
    ],
)
async def test_what_an_answer_means(
    receive: Receive, running: Running, status: int, body: Any, exported: int, dropped: int, requests: int
) -> None:
    receiver = receive()
    if body == "partial":
        partial = ExportTraceServiceResponse()
        partial.partial_success.rejected_spans = 2
        body = partial.SerializeToString()
    receiver.answers.append((status, body, 0.0))
    async with running(receiver.url) as metrics:
        for _ in range(3):
            with tracing.request("a", {}):
                pass
        await until(lambda: counted(metrics, "exported") + counted(metrics, "dropped") == 3, "decided")
    assert (counted(metrics, "exported"), counted(metrics, "dropped")) == (exported, dropped)
    assert len(receiver.requests) == requests


async def test_many_spans_go_in_batches(receive: Receive, running: Running) -> None:
    receiver = receive()
    async with running(f"{receiver.url}/v1/traces/") as metrics:
        for number in range(1500):
            with tracing.span("a", number=number):
                pass
    assert [one["attributes"]["number"] for one in receiver.spans] == list(range(1500))
    assert {path for path, _, _ in receiver.requests} == {"/v1/traces"}
    assert max(len(request.resource_spans[0].scope_spans[0].spans) for _, _, request in receiver.requests) <= otlp.BATCH
    assert (counted(metrics, "exported"), counted(metrics, "dropped")) == (1500, 0)


async def test_spans_do_not_breed_spans(receive: Receive, running: Running) -> None:
    receiver = receive()
    async with running(receiver.url):
        with tracing.request("a", {}):
            pass
    headers = receiver.requests[0][1]
    found = tracing.parent(headers["traceparent"])
    assert found is not None
    assert not found.sampled  # a daemon that receives it makes no span of it


@pytest.mark.parametrize(
    ("endpoint", "options", "own"),
    [
        ("http://127.0.0.1:4318", {}, True),
        ("http://localhost:4318/v1/traces", {}, True),
        (f"http://{os.uname().nodename}:4317", {}, True),
        ("http://10.0.0.7:4318", {"LLM_OPTIMIZER__SERVICE__HOST": "10.0.0.7"}, True),
        ("http://10.0.0.7:4318", {}, False),
        ("http://127.0.0.1:9999", {}, False),
        ("http://127.0.0.1:4318", {"LLM_OPTIMIZER__COLLECTOR__ENABLED": "false"}, False),
        ("http://127.0.0.1:4318", {"LLM_OPTIMIZER__COLLECTOR__OTLP_HTTP_PORT": "4999"}, False),
    ],
)
async def test_the_daemon_does_not_send_to_itself(
    running: Running, endpoint: str, options: dict[str, str], own: bool
) -> None:
    for slot, lines in (("collector-0", 1), ("rest_api-0", 0)):
        with listening() as heard:
            async with running(endpoint, slot, **options):
                assert tracing.on() != own
        assert [record["message"] for record in heard] == ["tracing.off"] * (lines if own else 0)


# --- the daemon ---


@pytest.fixture
def launch() -> Iterator[Callable[[str], Daemon]]:
    daemons: list[Daemon] = []

    def start(config: str) -> Daemon:
        daemons.append(Daemon(Path(tempfile.mkdtemp(prefix="llmo-")), config))
        return daemons[-1].start()

    yield start
    for one in daemons:
        for pid in one.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if one.process is not None:
            one.process.wait(10)
        shutil.rmtree(one.folder)


def test_requests_of_a_daemon(receive: Receive, launch: Callable[[str], Daemon]) -> None:
    receiver, hook = receive(), receive(0, json.loads)
    daemon = launch(
        f'[service]\nname = "shop"\n[observability]\notel_endpoint = "{receiver.url}"\n'
        f'[[integrations.webhooks]]\nname = "hook"\nurl = "{hook.url}/"\nallow_private = true\n'
    )
    assert daemon.call("POST", "/api/v1/tasks", task("chat", ["a", "b"]))[0] == 201
    os.kill(daemon.pids()["processor"], signal.SIGKILL)  # a webhook tells of it
    _feedback(daemon)
    _select(daemon, "chat", SENT)
    with pytest.raises(grpc.RpcError):
        _select(daemon, "none", "")
    assert daemon.call("POST", "/v1/traces", b"", port=daemon.otlp)[0] == 400

    def found(name: str) -> list[dict[str, Any]]:
        return [one for one in receiver.spans if one["name"] == name]

    names = [REST, SELECT, "POST /v1/traces", "storage.commit", "storage.append", "webhook.deliver"]
    daemon.wait(lambda: all(found(name) for name in names) and len(found(SELECT)) == 2, "traced")
    (feedback,) = found(REST)
    assert (feedback["trace"], feedback["parent"]) == (TRACE, SPAN)
    (append,) = [span for span in found("storage.append") if span["trace"] == TRACE]
    assert append["parent"] == feedback["id"]
    assert append["resource"]["service.instance.id"].endswith("/storage-0")
    good, bad = found(SELECT)
    assert (good["trace"], good["attributes"]["rpc.grpc.status_code"], good["error"]) == (TRACE, 0, False)
    assert (bad["attributes"]["rpc.grpc.status_code"], bad["error"]) == (5, False)
    assert found("webhook.deliver")[0]["attributes"]["webhook"] == "hook"
    assert {span["resource"]["service.name"] for span in receiver.spans} == {"shop"}
    assert 'trace_spans_total{outcome="exported"}' in daemon.get("/metrics", daemon.metrics)[1]
    assert daemon.stop() == 0


REST, SELECT = "POST /api/v1/feedback", "llm.optimizer.v1.SelectionService/Select"


def _feedback(daemon: Daemon) -> None:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{daemon.rest}/api/v1/feedback",
        data=json.dumps({"task": "chat", "variant": "a", "quality": 1.0}).encode(),
        headers={"Content-Type": "application/json", "traceparent": SENT},
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310 - as above
        assert answer.status // 100 == 2


def _select(daemon: Daemon, name: str, traceparent: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{daemon.grpc}") as channel:
        call = channel.unary_unary(f"/{SELECT}", pb.SelectRequest.SerializeToString, pb.SelectResponse.FromString)
        call(pb.SelectRequest(task=name), metadata=(("traceparent", traceparent),), timeout=10)
