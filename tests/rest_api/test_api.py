"""
What a good client sees.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
from pathlib import Path

import aiohttp
import msgspec
import pytest
from openapi_spec_validator import validate
from rest_api.conftest import Rest, fleet, running, task, until

from optimizer.operations.registry import OPERATIONS
from workers.rest_api.pages import Pages
from workers.rest_api.routes import ROUTES

FEEDBACK = "/api/v1/feedback"
EVENT = {"task": "t", "variant": "a", "quality": 1}


async def test_a_task_is_created_changed_listed_and_deleted(rest: Rest) -> None:
    made = await rest.create("support/réply", ["a", "b"])
    assert made["policy"] == "thompson"
    assert made["objective"] == {"quality": 1.0, "cost": 0.0, "latency": 0.0, "max_cost_per_request_usd": None}
    address = "/api/v1/tasks/support%2Fr%C3%A9ply"
    assert await rest.call("GET", address) == (200, made)
    assert (await rest.call("POST", "/api/v1/tasks", task("support/réply")))[0] == 409
    assert (await rest.call("GET", "/api/v1/tasks"))[1] == {"items": [made], "next_cursor": None}
    assert (await rest.call("PUT", address, {"variants": [{"name": "c"}]}))[0] == 200
    assert (await rest.call("PUT", address, made))[0] == 200  # what was got can be sent back
    assert await rest.call("DELETE", address) == (204, None)
    assert (await rest.call("GET", address))[0] == 404
    assert (await rest.call("PUT", address, made))[0] == 201


async def test_select_feedback_events_and_statistics(rest: Rest) -> None:
    await rest.create()
    status, chosen = await rest.call(
        "POST", "/api/v1/tasks/t/select", {"context": {"x": 1, "lang": "de"}, "session": "s"}
    )
    assert status == 200
    assert list(chosen) == [
        "selection_id", "task", "variant", "provider", "model", "parameters", "prompt", "propensity",
        "policy_version", "rollout",
    ]  # fmt: skip
    assert (await rest.call("POST", "/api/v1/tasks/t/select"))[0] == 200  # a body is not needed
    status, taken = await rest.call("POST", FEEDBACK, {"selection_id": chosen["selection_id"], "quality": 1})
    assert (status, taken["accepted"], taken["duplicates"]) == (200, 1, 0)
    (stored,) = (await rest.call("GET", "/api/v1/events?task=t&limit=5"))[1]["items"]
    assert (stored["id"], stored["variant"]) == (taken["ids"][0], chosen["variant"])
    status, stats = await rest.call("GET", "/api/v1/tasks/t/stats")
    assert set(stats) == {"task", "events", "policy_version", "variants"}
    assert set(stats["variants"]["a"]) == {
        "count", "feedback_count", "mean_quality", "quality_low", "quality_high", "mean_cost_usd", "p50_latency_ms",
        "p95_latency_ms", "error_rate", "share",
    }  # fmt: skip


async def test_feedback_as_list_ndjson_and_gzip(rest: Rest) -> None:
    assert (await rest.call("POST", FEEDBACK, [EVENT, EVENT]))[1]["accepted"] == 2
    lines = b"\n".join([json.dumps(EVENT).encode()] * 3) + b"\n\n"
    ndjson = {"Content-Type": "application/x-ndjson; charset=utf-8"}
    assert (await rest.call("POST", FEEDBACK, lines, ndjson))[1]["accepted"] == 3
    packed = {**ndjson, "Content-Encoding": "gzip"}
    assert (await rest.call("POST", FEEDBACK, gzip.compress(lines) + gzip.compress(lines), packed))[1]["accepted"] == 6
    assert len(rest.desk.events) == 11


async def test_a_request_with_a_key_may_be_sent_again(rest: Rest) -> None:
    key = {"Idempotency-Key": "order-17"}
    first = await rest.call("POST", FEEDBACK, [EVENT, EVENT], key)
    again = await rest.call("POST", FEEDBACK, [EVENT, EVENT], key)
    assert first[1]["ids"] == again[1]["ids"] == ["order-17:0", "order-17:1"]
    assert (first[1]["duplicates"], again[1]["duplicates"]) == (0, 2)
    assert len(rest.desk.events) == 2


async def test_health_is_what_the_parent_says(rest: Rest) -> None:
    status, document = await rest.call("GET", "/health")
    assert (status, document["status"]) == (200, "healthy")
    assert set(document) == {"status", "uptime_secs", "services"}
    assert set(document["services"]["storage"]) == {
        "state", "healthy", "consecutive_failures", "message", "metadata",
    }  # fmt: skip
    assert (await rest.call("GET", "/health/ready"))[0] == 200
    rest.frame.fleet = fleet(storage="Running", integrations="Backoff")
    assert (await rest.call("GET", "/health/ready"))[0] == 200
    assert (await rest.call("GET", "/health"))[1]["status"] == "degraded"
    rest.frame.fleet = msgspec.structs.replace(fleet(storage="Backoff"), status="unhealthy")
    assert (await rest.call("GET", "/health/ready"))[0] == 503
    assert (await rest.call("GET", "/health"))[0] == 503
    rest.frame.fleet = msgspec.structs.replace(fleet(storage="Starting"), started=False)
    assert (await rest.call("GET", "/health/ready"))[0] == 503
    rest.frame.fleet = None
    assert (await rest.call("GET", "/health"))[0] == 503
    assert (await rest.call("GET", "/health/live"))[0] == 200


async def test_metrics_count_requests_and_selections(rest: Rest) -> None:
    await rest.create()
    await rest.call("POST", "/api/v1/tasks/t/select")
    await rest.call("GET", "/nowhere")
    async with rest.session.get(rest.url + "/metrics") as answer:
        text = await answer.text()
    assert re.search(r'^requests_total\{operation="select",status="200"\} 1\.0$', text, re.M)
    assert re.search(r'^requests_total\{operation="none",status="404"\} 1\.0$', text, re.M)
    assert re.search(r'^selections_total\{task="t",variant="[ab]"\} 1\.0$', text, re.M)
    assert re.search(r'^request_duration_seconds_count\{operation="select",status="200"\} 1\.0$', text, re.M)
    assert re.search(r'^active_connections\{service="rest_api"\} 1\.0$', text, re.M)


async def test_the_document_is_valid_and_names_every_route(rest: Rest) -> None:
    document = (await rest.call("GET", "/openapi.json"))[1]
    validate(document)
    named = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert named == {(route.method, route.path) for route in Pages(rest.frame).routes()}
    assert {route.operation for route in ROUTES} == set(OPERATIONS) - {"select.batch"}  # that one is gRPC's
    for method, path in named:
        status, _ = await status_of(rest, method, path.replace("{task}", "x"))
        assert status not in (405, 500), (method, path)


async def status_of(rest: Rest, method: str, path: str) -> tuple[int, bytes]:
    async with rest.session.request(method, rest.url + path) as answer:
        return answer.status, await answer.read()


async def test_the_documentation_needs_nothing_from_elsewhere(rest: Rest) -> None:
    async with rest.session.get(rest.url + "/docs") as answer:
        text = await answer.text()
        assert answer.content_type == "text/html"
    assert "http://" not in text
    assert "https://" not in text
    assert (await status_of(rest, "HEAD", "/docs")) == (200, b"")


async def test_selections_go_on_while_storage_is_away(rest: Rest) -> None:
    await rest.create()
    rest.desk.away = True
    assert (await rest.call("POST", "/api/v1/tasks/t/select", {}))[0] == 200
    async with rest.session.post(rest.url + FEEDBACK, json=EVENT) as answer:
        assert answer.status == 503
        assert 1 <= int(answer.headers["Retry-After"]) <= 5
    assert (await rest.call("GET", "/api/v1/tasks/t/stats"))[0] == 503
    await until(lambda: "storage" in rest.frame.health.problems)
    rest.desk.away = False
    assert (await rest.call("POST", FEEDBACK, EVENT))[0] == 200
    await until(lambda: not rest.frame.health.problems)


async def test_what_is_in_flight_is_answered_before_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as rest:
        rest.desk.held = asyncio.Event()
        asking = asyncio.create_task(rest.call("POST", FEEDBACK, EVENT))
        fresh = socket.create_connection(("127.0.0.1", int(rest.url.rpartition(":")[2])))
        fresh.setblocking(False)
        await until(lambda: rest.desk.waiting)
        rest.frame.stopping.set()
        await asyncio.get_running_loop().sock_sendall(fresh, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        got = await asyncio.get_running_loop().sock_recv(fresh, 1000)
        assert got.startswith(b"HTTP/1.1 200")
        assert b"Connection: close" in got
        assert not asking.done()
        rest.desk.held.set()
        assert (await asking)[0] == 200
        await asyncio.wait_for(asyncio.shield(rest.ending), 5)
        with pytest.raises(aiohttp.ClientConnectorError):
            await rest.call("GET", "/health/live")
        fresh.close()


async def test_more_requests_than_allowed_are_told_to_come_back(tmp_path: Path) -> None:
    async with running(tmp_path, max_concurrency=2) as rest:
        rest.desk.held = asyncio.Event()
        asking = [asyncio.create_task(rest.call("POST", FEEDBACK, EVENT)) for _ in range(6)]
        await until(lambda: sum(one.done() for one in asking) >= 4)
        assert (await rest.call("GET", "/health/live"))[0] == 200
        rest.desk.held.set()
        statuses = sorted([(await one)[0] for one in asking])
        assert statuses == [200, 200, 503, 503, 503, 503]


async def test_tasks_of_the_configuration_are_declared(tmp_path: Path) -> None:
    async with running(tmp_path, tasks=[task("declared")]) as rest:
        await until(lambda: "task/declared" in rest.desk.memory.states)
        assert (await rest.call("GET", "/api/v1/tasks/declared"))[1]["variants"][1]["name"] == "b"


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        (b"HTTP/1.0\r\nHost: x\r\n", True),
        (b"HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n", True),
        (b"HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", True),
        (b"HTTP/1.1\r\nHost: x\r\n", False),
    ],
)
async def test_selections_are_well_formed_for_every_version(rest: Rest, head: bytes, closes: bool) -> None:
    await rest.create()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(rest.url.rpartition(":")[2]))
    request = b"POST /api/v1/tasks/t/select " + head + b"Content-Length: 2\r\n\r\n{}"
    writer.write(request if closes else request * 3)  # pipelined
    for _ in range(1 if closes else 3):
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert answer.startswith("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: ")
        assert ("Connection: close" in answer) is closes
        body = json.loads(await reader.readexactly(int(answer.split("Content-Length: ")[1].split("\r\n")[0])))
        assert body["variant"] in "ab"
    if closes:
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
