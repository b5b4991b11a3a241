"""
Scrapes, as Prometheus and as nobody should make them.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil

import pytest
from metrics.conftest import Running, fleet, view
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from optimizer.telemetry.exposition import OPENMETRICS, TEXT
from optimizer.telemetry.metrics import SERVICE_METRICS, SUPERVISOR_METRICS
from workers.metrics import service

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
NO_HTTP = (
    b"\x16\x03\x01garbage\r\n\r\n",
    b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\n\r\n",
)


async def test_text_and_openmetrics_have_every_family_with_its_help(running: Running) -> None:
    running.frame.fleet = fleet(rest_api=view("rest_api", 7), storage=view("storage", None))
    wanted = {metric.name.removesuffix("_total"): metric.help for metric in (*SERVICE_METRICS, *SUPERVISOR_METRICS)}
    for accept, media, parse in (
        ("", TEXT, parse_text),
        ("*/*", TEXT, parse_text),
        (PROMETHEUS_2, OPENMETRICS, parse_openmetrics),
    ):
        status, body, headers = await running.get(accept=accept)
        assert (status, headers["Content-Type"]) == (200, media)
        families = {family.name: family for family in parse(body)}
        assert {name: family.documentation for name, family in families.items()} == wanted
        status_of = {one.labels["service"]: one.value for one in families["service_status"].samples}
        assert status_of == {"rest_api": 1.0, "storage": 0.0}


async def test_a_scrape_counts_itself(running: Running) -> None:
    await running.get()
    await running.get("/nowhere")
    families = {family.name: family for family in parse_text((await running.get())[1])}
    counted = {(one.labels["operation"], one.labels["status"]): one.value for one in families["requests"].samples}
    assert counted == {("scrape", "200"): 1.0, ("none", "404"): 1.0}
    assert [one.labels["service"] for one in families["active_connections"].samples] == ["metrics"]


async def test_other_methods_and_addresses(running: Running) -> None:
    whole = await running.get()
    status, body, headers = await running.get(method="HEAD")
    assert (status, body, headers["Content-Type"]) == (200, "", TEXT)
    assert abs(int(headers["Content-Length"]) - len(whole[1].encode())) < 2000  # it counts scrapes meanwhile
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        status, _, headers = await running.get(method=method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert (await running.get("/metrics/"))[0] == 404
    assert (await running.get("/"))[0] == 404
    assert (await running.get("/health/live"))[:2] == (200, "ok\n")


async def test_it_works_before_the_parent_has_said_anything_and_without_any_file(running: Running) -> None:
    shutil.rmtree(running.frame.metrics_dir)
    status, body, _ = await running.get()
    assert status == 200
    assert "service_status{" not in body


async def test_a_damaged_file_is_a_500_and_no_end(running: Running) -> None:
    damaged = running.frame.metrics_dir / "counter_rest_api-0.db"
    damaged.write_bytes(b"\xff\x7f\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00" + bytes(5000))
    assert (await running.get())[0] == 500
    damaged.unlink()
    assert (await running.get())[0] == 200


async def test_readers_who_do_not_read_hold_up_nobody_for_long(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SEND_S", 0.3)
    restarts = {f"reason {i}": i for i in range(20_000)}  # an answer that fits into no socket's buffer
    running.frame.fleet = fleet(rest_api=view("rest_api", 7, restarts=restarts))
    slow = [await running.connect(receives=4096) for _ in range(service.SCRAPES)]
    for _, writer in slow:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await writer.drain()
    statuses = []
    async with asyncio.timeout(60):
        while 200 not in statuses:
            statuses.append((await running.get())[0])
    assert set(statuses) <= {200, 503}
    taken = 0  # by the one who was given up for it
    with contextlib.suppress(ConnectionResetError):
        while part := await asyncio.wait_for(slow[0][0].read(1 << 16), 5):
            taken += len(part)
    assert taken < 1_000_000


async def test_connections_are_bounded_and_the_newest_gets_in(running: Running) -> None:
    held = [await running.connect() for _ in range(service.CONNECTIONS + 20)]
    assert (await running.get())[0] == 200
    closed = 0
    for reader, _ in held[:20]:
        closed += await asyncio.wait_for(reader.read(1), 5) == b""
    assert closed == 20


@pytest.mark.parametrize("raw", NO_HTTP)
async def test_what_is_no_http_is_a_400(running: Running, raw: bytes) -> None:
    reader, writer = await running.connect()
    writer.write(raw)
    assert b" 400 " in (await asyncio.wait_for(reader.readline(), 5))
    assert (await running.get())[0] == 200


async def test_a_scrape_in_hand_is_answered_when_it_stops(running: Running) -> None:
    reader, writer = await running.connect()
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    await writer.drain()
    running.frame.stopping.set()
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"# TYPE requests_total counter" in answer
    await asyncio.wait_for(running.ending, 5)
