"""
The stock SDK as a sender, events of the APIs over the bus, and the way into a real store.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from collector.conftest import CALL, SECRET, Running, request, running, until

from optimizer.bus.link import Bus
from optimizer.bus.storage import RemoteStorage
from optimizer.decision.ticket import Ticket, seal
from optimizer.errors import Invalid, Rejected
from optimizer.model import Event
from optimizer.service import Frame
from workers.storage.service import serve as serve_storage
from workers.storage.settings import Settings as StorageSettings

SENDER = """
import json, sys
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

url, compression, attributes = sys.argv[1], Compression(sys.argv[2]), json.loads(sys.argv[3])
provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, compression=compression)))
tracer = provider.get_tracer("t")
for i in range(200):
    with tracer.start_as_current_span("chat gpt-4o-mini", attributes={**attributes, "gen_ai.usage.input_tokens": 100 + i}):
        pass
provider.shutdown()
"""
GENAI: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
    "gen_ai.usage.output_tokens": 20,
    "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "SECRET"}]}]',
    "llm_optimizer.task": "sdk",
}


def ticket(task: str = "t", variant: str = "v", secret: bytes = SECRET) -> str:
    """
    A selection id.
    """
    return seal(secret, Ticket(task=task, variant=variant, propensity=0.5, policy_version=1, at=0), b"nonce!")


def packed(*events: Event) -> list[bytes]:
    """
    Events as an API sends them.
    """
    return [msgspec.msgpack.encode(event) for event in events]


def event(number: int = 1, **more: Any) -> Event:
    """
    An event as an API makes it.
    """
    return Event(id=f"e{number}", time=datetime(2026, 6, 1, tzinfo=UTC), **more)


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_spans_of_the_stock_sdk(collector: Running, compression: str) -> None:
    sender = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SENDER,
        collector.url + "/v1/traces",
        compression,
        json.dumps(GENAI),
        stderr=subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(sender.communicate(), 30)
    assert (sender.returncode, errors) == (0, b"")
    events = collector.shelf.events
    assert sorted(one.input_tokens or 0 for one in events) == list(range(100, 300))
    assert len({one.id for one in events}) == 200
    for one in events:
        assert (one.task, one.service, one.model, one.output_tokens) == ("sdk", "shop", "gpt-4o-mini-2024-07-18", 20)
        assert one.cost_usd == pytest.approx((one.input_tokens or 0) * 0.15e-6 + 20 * 0.6e-6)
        assert one.cost_estimated
        assert one.latency_ms is not None
    assert not any(b"SECRET" in entry.body for entry in collector.shelf.memory.logs["journal"])
    assert collector.frame.health.metadata == {"events_received": "200", "events_rejected": "0", "unpriced": "0"}


async def test_a_selection_id_on_a_span_names_task_and_variant(collector: Running) -> None:
    code, body, _ = await collector.post(request({**CALL, "llm_optimizer.selection_id": ticket("support", "fast")}))
    assert (code, body) == (200, b"")
    (found,) = collector.shelf.events
    assert (found.task, found.variant) == ("support", "fast")


async def test_an_unknown_model_is_counted(collector: Running) -> None:
    tokens = {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 5}
    body = request({**CALL, **tokens, "gen_ai.provider.name": "nobody", "gen_ai.response.model": "nothing-1"})
    assert (await collector.post(body))[0] == 200
    (found,) = collector.shelf.events
    assert (found.cost_usd, found.cost_estimated) == (None, False)
    assert collector.frame.health.metadata["unpriced"] == "1"


async def test_events_of_an_api_are_attributed_priced_and_stored_once(collector: Running) -> None:
    events = [
        event(1, selection_id=ticket("support", "fast"), quality=1.0),
        event(2, task="t", provider="openai", model="gpt-4o-mini", input_tokens=1000, output_tokens=0),
        event(3, task="t", model="m", cost_usd=0.25),
    ]
    assert (await collector.collector.submit("rest", packed(*events))).duplicates == []
    again = await collector.collector.submit("rest", packed(event(9, task="t", model="m"), *events))
    assert again.duplicates == [1, 2, 3]
    first, second, third, _ = collector.shelf.events
    assert (first.task, first.variant, first.quality) == ("support", "fast", 1.0)
    assert second.cost_usd == pytest.approx(0.00015)
    assert second.cost_estimated
    assert (third.cost_usd, third.cost_estimated) == (0.25, False)


async def test_duplicates_are_told_by_position_over_batches(tmp_path: Path) -> None:
    async with running(tmp_path, batch_size=3) as collector:
        events = [event(i, task="t", model="m") for i in range(10)]
        await collector.collector.submit("rest", packed(*events[::3]))
        assert (await collector.collector.submit("rest", packed(*events))).duplicates == [0, 3, 6, 9]


async def test_a_foreign_ticket_is_named_and_nothing_is_stored(collector: Running) -> None:
    foreign = event(2, selection_id=ticket(secret=b"x" * 32))
    with pytest.raises(Invalid) as caught:
        await collector.collector.submit("rest", packed(event(1, task="t", model="m"), foreign))
    assert [problem.field for problem in caught.value.problems] == ["[1].selection_id"]
    assert collector.shelf.events == []


async def test_more_events_than_can_ever_be_in_hand_are_invalid(tmp_path: Path) -> None:
    async with running(tmp_path, buffer_size=2) as collector:
        with pytest.raises(Invalid, match=r"collector\.buffer_size"):
            await collector.collector.submit("rest", packed(*(event(i, task="t", model="m") for i in range(3))))


async def test_an_api_hears_of_a_full_storage(collector: Running) -> None:
    collector.shelf.full = "the disk is full"
    with pytest.raises(Rejected, match="disk is full"):
        await collector.collector.submit("rest", packed(event(1, task="t", model="m")))


async def test_metrics_count(collector: Running) -> None:
    bad = {**CALL, "llm_optimizer.quality": 7}
    await collector.post(request(CALL, bad))
    await collector.post(b"\xff")
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(collector.frame.metrics_dir))  # type: ignore[no-untyped-call]

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("events_received_total", source="otlp") == 1
    assert value("events_rejected_total", source="otlp", reason="invalid") == 1
    assert value("events_rejected_total", source="otlp", reason="undecodable") == 1
    assert value("requests_total", operation="otlp.traces", status="200") == 1
    assert value("requests_total", operation="otlp.traces", status="400") == 1
    assert value("active_connections", service="collector", pid="collector-0") in (None, 1)


async def test_what_is_acknowledged_is_in_the_real_store(tmp_path: Path) -> None:
    async with running(tmp_path, storage=False) as collector:
        frame = Frame[StorageSettings](
            name="storage",
            slot="storage-0",
            config=collector.frame.config,
            settings=StorageSettings(),
            runtime_dir=tmp_path / "run",
            secret=SECRET,
        )
        sent = asyncio.create_task(collector.post(request(*[CALL] * 30)))  # before storage is there
        storage = asyncio.create_task(serve_storage(frame))
        try:
            assert (await sent)[0] == 200
            async with Bus(frame.bus_dir, "reader") as bus:
                page = await RemoteStorage(bus.client("storage")).read("journal", 0)
            assert len(page.entries) == 30
            await until(lambda: not collector.frame.health.problems, "healthy")
        finally:
            frame.stopping.set()
            await asyncio.wait_for(storage, 10)
