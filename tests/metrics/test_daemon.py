"""
A daemon that is driven, and what its metrics say of it.
"""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from system.conftest import launch  # noqa: F401 - a fixture
from system.daemon import Daemon, task

from optimizer.catalog import SERVICES
from optimizer.telemetry.metrics import SERVICE_METRICS, SUPERVISOR_METRICS

Launch = Callable[..., Daemon]

RIGHTLY_ZERO = {
    "journal_lag_events": "everything is learned and delivered when it is looked at",
    "service_backoff_seconds": "nothing waits for its next start",
    "config_reloads_total": "nobody reloads",
    "supervisor_loop_lag_seconds": "the loop may never have been late",
}


@pytest.fixture
def receiver() -> Iterator[int]:
    """
    Takes whatever is posted: webhooks and traces.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """
            Not on standard error.
            """

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def scrape(daemon: Daemon) -> str:
    status, body = daemon.get("/metrics", daemon.metrics)
    assert status == 200
    return str(body)


def values(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """
    By family, as the table names it: the samples, by the values of their labels in the order of the labels' names.
    """
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        of = found[name] = {}
        for one in family.samples:
            if not one.name.endswith(("_sum", "_bucket")):
                of[tuple(one.labels.values())] = one.value
    return found


def drive(daemon: Daemon) -> None:
    """
    Everything that a metric speaks of, once.
    """
    for name in ("t", "gone"):
        assert daemon.call("POST", "/api/v1/tasks", task(name, ["a", "b"]))[0] == 201
    chosen = [daemon.call("POST", f"/api/v1/tasks/{name}/select", {})[1] for name in ("t", "gone")]
    outcome = {"id": "once", "selection_id": chosen[0]["selection_id"], "quality": 0.5, "cost_usd": 0.25}
    for _ in range(2):
        assert daemon.call("POST", "/api/v1/feedback", outcome)[0] == 200
    span = {"name": "chat", "attributes": [{"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}}]}
    assert (
        daemon.call("POST", "/v1/traces", {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}, daemon.otlp)[0]
        == 200
    )
    assert daemon.call("DELETE", "/api/v1/tasks/gone")[0] == 204
    late = {"selection_id": chosen[1]["selection_id"], "quality": 1.0}
    assert daemon.call("POST", "/api/v1/feedback", late)[0] == 200
    os.kill(daemon.pids()["grpc_api"], signal.SIGKILL)


def test_every_declared_metric_moves_when_the_daemon_is_driven(launch: Launch, receiver: int) -> None:  # noqa: F811 - the fixture
    daemon = launch(
        f'[observability]\notel_endpoint = "http://127.0.0.1:{receiver}"\n'
        f'[[integrations.webhooks]]\nname = "test"\nurl = "http://127.0.0.1:{receiver}/"\nallow_private = true\n'
    )
    drive(daemon)
    found: dict[str, dict[tuple[str, ...], float]] = {}

    def still() -> set[str]:
        found.update(values(scrape(daemon)))
        return {name for name, of in found.items() if not any(of.values())} - set(RIGHTLY_ZERO)

    try:
        daemon.wait(lambda: not still(), "moving every metric")
    except AssertionError:
        pytest.fail(f"nothing moved {', '.join(sorted(still()))}")
    assert set(found) == {metric.name for metric in (*SERVICE_METRICS, *SUPERVISOR_METRICS)}
    names = {service.name for service in SERVICES}
    for name in ("service_status", "service_uptime_seconds", "memory_usage_bytes", "service_open_files"):
        assert {key[0] for key in found[name]} == names
    _figures(daemon, found)


def _figures(daemon: Daemon, found: dict[str, Any]) -> None:
    assert sum(found["selections_total"].values()) == 2
    assert sum(of for (name, _), of in found["task_cost_usd_total"].items() if name == "t") == 0.25
    assert sum(of for (name, _), of in found["task_quality_ratio"].items() if name == "t") == 0.5
    assert found["events_unlearned_total"]["task_deleted",] == 1
    assert found["events_duplicate_total"][()] == 1
    assert sum(of for (_, service), of in found["service_restarts_total"].items() if service == "grpc_api") == 1
    daemon.wait(lambda: values(scrape(daemon))["journal_lag_events"]["processor",] == 0, "caught up")
    rest = values(daemon.get("/metrics")[1])
    assert set(rest) == set(found)  # rest_api shows the same


def promtool(text: str) -> list[str]:
    """
    What promtool finds fault with.
    """
    tool = shutil.which("promtool")
    if tool is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is missing: apt-get install prometheus")
        pytest.skip("promtool is not installed; apt-get install prometheus has it")
    run = subprocess.run(
        [tool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30, check=False
    )
    assert run.returncode in (0, 3), run.stderr  # 3: it reads, and is found fault with
    return run.stderr.splitlines()


def test_promtool_finds_no_fault(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch()
    drive(daemon)
    daemon.wait(lambda: any(values(scrape(daemon))["task_quality_ratio"].values()), "learned")
    assert promtool(scrape(daemon)) == []
