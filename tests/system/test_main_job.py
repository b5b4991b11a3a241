"""
The main job from outside: telemetry in, better choices out, through kills.
"""

from __future__ import annotations

import collections
import http.client
import http.server
import json
import os
import random
import signal
import threading
import time
import urllib.error
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from system.daemon import Daemon, task

Launch = Callable[..., Daemon]

FAST_RESTARTS = """
[service_manager]
max_restart_attempts = 1000
restart_backoff_base = "50ms"
restart_backoff_max = "500ms"
"""


def send_spans(daemon: Daemon, count: int, **attributes: Any) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=f"http://127.0.0.1:{daemon.otlp}/v1/traces"))
    )
    tracer = provider.get_tracer("test")
    for i in range(count):
        named = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.usage.input_tokens": 100 + i,
            "gen_ai.usage.output_tokens": 20,
            **attributes,
        }
        with tracer.start_as_current_span("chat gpt-4o-mini", attributes=named):
            pass
    provider.shutdown()


def test_spans_of_a_stock_sdk_become_statistics(launch: Launch) -> None:
    daemon = launch()
    send_spans(daemon, 200, **{"llm_optimizer.task": "chat"})

    def counted() -> bool:
        status, stats = daemon.get("/api/v1/tasks/chat/stats")
        return status == 200 and stats["events"] == 200

    daemon.wait(counted, "showing 200 events")
    stats = daemon.get("/api/v1/tasks/chat/stats")[1]["variants"]["gpt-4o-mini"]
    assert stats["count"] == 200
    assert stats["mean_cost_usd"] == pytest.approx((199.5 * 0.15 + 20 * 0.6) / 1e6)  # list price per million
    status, refused = daemon.call("POST", "/api/v1/tasks/chat/select", {})
    assert 400 <= status < 500
    assert "variant" in json.dumps(refused)


def test_feedback_leads_to_the_better_variant_and_survives_restarts(launch: Launch) -> None:
    daemon = launch()
    assert daemon.call("POST", "/api/v1/tasks", task("answer", ["good", "bad"]))[0] == 201
    rng = random.Random(5)
    before = daemon.call("POST", "/api/v1/tasks/answer/select", {"context": {"length": 0.5}})[1]
    for _ in range(300):
        chosen = daemon.call("POST", "/api/v1/tasks/answer/select", {"context": {"length": rng.random()}})[1]
        quality = float(rng.random() < (0.9 if chosen["variant"] == "good" else 0.5))
        body = {"selection_id": chosen["selection_id"], "quality": quality}
        assert daemon.call("POST", "/api/v1/feedback", body)[0] in (200, 202)

    def learned(events: int) -> bool:
        return bool(daemon.get("/api/v1/tasks/answer/stats")[1]["events"] == events)

    daemon.wait(lambda: learned(300), "learned")
    chosen_100 = [daemon.call("POST", "/api/v1/tasks/answer/select", {})[1]["variant"] for _ in range(100)]
    assert chosen_100.count("good") > 80

    assert daemon.stop() == 0
    daemon.start()
    assert daemon.call("POST", "/api/v1/feedback", {"selection_id": before["selection_id"], "quality": 1})[0] in (
        200,
        202,
    )
    daemon.wait(lambda: learned(301), "attributed feedback to a selection of an earlier life")


def test_acknowledged_events_survive_kills_of_services_exactly_once(launch: Launch) -> None:
    daemon = launch(FAST_RESTARTS)
    daemon.call("POST", "/api/v1/tasks", task("storm", ["a", "b"]))
    acknowledged: list[str] = []
    refused: list[str] = []
    stop = threading.Event()

    def write(writer: int) -> None:
        for i in range(1_000_000):
            if stop.is_set():
                return
            batch = [{"id": f"s{writer}-{i}-{j}", "task": "storm", "variant": "a", "quality": 1.0} for j in range(20)]
            try:
                if daemon.call("POST", "/api/v1/feedback", batch)[0] in (200, 202):
                    acknowledged.extend(str(event["id"]) for event in batch)
            except urllib.error.URLError as error:
                if isinstance(error.reason, ConnectionRefusedError):
                    refused.append(str(error))
            except OSError:
                continue  # cut in flight: not acknowledged

    writers = [threading.Thread(target=write, args=(k,)) for k in range(3)]
    for writer in writers:
        writer.start()
    rng = random.Random(3)
    for victim in ("storage", "collector", "rest_api", "processor", *rng.sample(["storage", "rest_api", "metrics"], 3)):
        os.kill(daemon.pids()[victim], signal.SIGKILL)
        daemon.wait(lambda name=victim: daemon.services()[name]["restarts"] > 0, "restarted")  # type: ignore[misc]
    daemon.wait(daemon.healthy, "healthy again")
    stop.set()
    for writer in writers:
        writer.join()

    exported = collections.Counter(event["id"] for event in daemon.exported())
    assert acknowledged
    assert [i for i in acknowledged if exported[i] != 1] == []
    assert refused == []
    daemon.wait(lambda: daemon.get("/api/v1/tasks/storm/stats")[1]["events"] == len(exported), "learned each once")


def test_nothing_outlives_a_killed_parent(launch: Launch) -> None:
    daemon = launch()
    send_spans(daemon, 10, **{"llm_optimizer.task": "chat"})
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    daemon.wait(lambda: daemon.alive() == [], "without orphans", deadline_s=1.0)
    daemon.start()
    assert len(daemon.exported()) == 10


def test_requests_in_flight_end_well_when_the_daemon_stops(launch: Launch) -> None:
    daemon = launch()
    daemon.call("POST", "/api/v1/tasks", task("t", ["a"]))
    answers: list[int] = []
    cut: list[BaseException] = []

    def ask() -> None:
        try:
            while True:
                answers.append(daemon.call("POST", "/api/v1/tasks/t/select", {})[0])
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError | ConnectionResetError):
                cut.append(error)
        except http.client.RemoteDisconnected as error:
            cut.append(error)
        except ConnectionResetError:
            return  # it waited in the backlog, nobody had taken it

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    daemon.wait(lambda: len(answers) > 50, "answering")
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 25  # inside the budget of 30 s
    for thread in threads:
        thread.join()
    assert set(answers) == {200}
    assert cut == []
    assert daemon.alive() == []


def test_a_webhook_hears_of_a_failure_and_the_recovery(launch: Launch) -> None:
    heard: list[dict[str, Any]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever).start()
    try:
        daemon = launch(
            f'[[integrations.webhooks]]\nname = "test"\nurl = "http://127.0.0.1:{server.server_port}/"\n'
            'kinds = ["service.*"]\nallow_private = true\n'
        )
        os.kill(daemon.pids()["processor"], signal.SIGKILL)
        daemon.wait(lambda: len(heard) >= 2, "heard of it")
        daemon.stop()
    finally:
        server.shutdown()
        server.server_close()
    assert [event["type"] for event in heard[:2]] == ["service.failed", "service.recovered"]
    assert heard[0]["data"]["service"] == "processor"
    assert heard[0]["data"]["signal"] in (9, "SIGKILL")
    assert set(heard[0]["data"]) == {
        "service", "pid", "incarnation", "reason", "exit_code", "signal", "restarts", "next_retry_secs",
    }  # fmt: skip


def test_the_daemon_outlives_open_circuits_and_recovers(launch: Launch) -> None:
    daemon = launch('[service_manager]\nmax_restart_attempts = 1\nrestart_backoff_max = "2s"\n')
    for _ in range(2):
        os.kill(daemon.pids()["collector"], signal.SIGKILL)
        daemon.wait(lambda: daemon.services()["collector"]["state"] in ("Running", "Failed"), "restarted or given up")
    daemon.wait(lambda: daemon.services()["collector"]["restarts"] == 2, "counted")
    daemon.wait(daemon.healthy, "healthy again by a probe")
