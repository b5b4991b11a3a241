"""
The table of metrics, and the files that keep it over the deaths of services.
"""

from __future__ import annotations

import ast
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from optimizer.telemetry import metrics as table
from optimizer.telemetry.exposition import render
from optimizer.telemetry.metrics import MAX_SERIES, OTHER, SERVICE_METRICS, SUPERVISOR_METRICS, Metrics, open_metrics

HOUSE = Path(__file__).parents[2]
CONTRACT = {  # design section 7, without what belongs to features that do not exist yet
    "service_status": ("service",),
    "service_health": ("service",),
    "service_uptime_seconds": ("service",),
    "service_restarts_total": ("service", "reason"),
    "requests_total": ("operation", "status"),
    "request_duration_seconds": ("operation", "status"),
    "active_connections": ("service",),
    "memory_usage_bytes": ("service",),
    "cpu_usage_percent": ("service",),
    "events_received_total": ("source",),
    "events_rejected_total": ("source", "reason"),
    "events_stored_total": (),
    "events_duplicate_total": (),
    "journal_lag_events": ("consumer",),
    "selections_total": ("task", "variant"),
    "task_cost_usd_total": ("task", "variant"),
    "task_quality_ratio": ("task", "variant"),
    "integration_deliveries_total": ("integration", "outcome"),
}
LATER = {"optimizations_total", "rollout_stage"}


def samples(folder: Path) -> dict[tuple[str, tuple[str, ...]], float]:
    """
    Values by name, and the values of the labels in the order of their names.
    """
    text = render(folder, None, 0.0, "")[0].decode()
    return {
        (one.name, tuple(one.labels.values())): one.value for family in parse(text) for one in family.samples
    }  # fmt: skip


def test_the_contract_is_in_the_table_and_nothing_of_later_features() -> None:
    known = {metric.name: metric.labels for metric in (*SERVICE_METRICS, *SUPERVISOR_METRICS)}
    assert {name: known.get(name) for name in CONTRACT} == CONTRACT
    assert not LATER & set(known)
    assert all(metric.help.endswith(".") for metric in (*SERVICE_METRICS, *SUPERVISOR_METRICS))


def test_every_metric_of_the_table_is_typed_and_used_outside_of_it() -> None:
    used: set[str] = set()
    for path in (*(HOUSE / "workers").rglob("*.py"), *(HOUSE / "optimizer").rglob("*.py")):
        if path != Path(table.__file__):
            tree = ast.parse(path.read_text())
            used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = {metric.name for metric in SERVICE_METRICS}
    assert names - used == set()
    assert set(Metrics.__annotations__) == names


def test_names_from_senders_make_a_bounded_number_of_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_SERIES", 50)
    known = open_metrics(tmp_path, "rest_api-0")
    for i in range(200):
        known.selections_total.labels(f"task {i}", "a").inc()
        known.selections_total.labels(f"task {i}", "a").inc()
    found = {labels: value for (name, labels), value in samples(tmp_path).items() if name == "selections_total"}
    assert len(found) == 51
    assert found[OTHER, OTHER] == 2 * 150
    assert sum(found.values()) == 400
    assert MAX_SERIES >= 1000


def test_a_slot_goes_on_where_its_predecessor_ended_but_for_what_only_the_living_report(tmp_path: Path) -> None:
    one = open_metrics(tmp_path, "rest_api-0")
    one.selections_total.labels("t", "a").inc(3)
    one.active_connections.labels("rest_api").set(7)
    one.task_quality_ratio.labels("t", "a").set(0.5)
    two = open_metrics(tmp_path, "rest_api-0")
    two.selections_total.labels("t", "a").inc(2)
    found = samples(tmp_path)
    assert found["selections_total", ("t", "a")] == 5
    assert found["task_quality_ratio", ("t", "a")] == 0.5
    assert ("active_connections", ("rest_api",)) not in found


def test_slots_are_summed_and_the_newest_gauge_counts(tmp_path: Path) -> None:
    for number, slot in enumerate(["rest_api-0", "rest_api-0b", "grpc_api-0"]):
        one = open_metrics(tmp_path, slot)
        one.selections_total.labels("t", "a").inc(10)
        one.active_connections.labels(slot.partition("-")[0]).set(2)
        one.task_quality_ratio.labels("t", "a").set(0.1 * number)
        one.request_duration_seconds.labels("select", "200").observe(0.003)
    found = samples(tmp_path)
    assert found["selections_total", ("t", "a")] == 30
    assert found["active_connections", ("rest_api",)] == 4
    assert found["task_quality_ratio", ("t", "a")] == pytest.approx(0.2)
    assert found["request_duration_seconds_count", ("select", "200")] == 3
    assert found["request_duration_seconds_bucket", ("0.005", "select", "200")] == 3
    assert found["request_duration_seconds_bucket", ("0.002", "select", "200")] == 0


COUNTS_FOR_EVER = """
    import sys
    from pathlib import Path
    from optimizer.telemetry.metrics import open_metrics
    known = open_metrics(Path(sys.argv[1]), "rest_api-0")
    print("counts", flush=True)
    i = 0
    while True:
        i += 1
        known.selections_total.labels(f"t{i % 700}", "a").inc()
        known.request_duration_seconds.labels("select", str(i % 50)).observe(0.01)
        known.active_connections.labels("rest_api").set(i)
"""


def test_a_counter_never_goes_back_when_its_process_is_killed_in_the_middle_of_a_write(tmp_path: Path) -> None:
    rng = random.Random(6)
    before: dict[Any, float] = {}
    for _ in range(4):
        command = [sys.executable, "-c", textwrap.dedent(COUNTS_FOR_EVER), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=HOUSE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"counts\n"
            until = time.monotonic() + rng.random() * 0.1
            while time.monotonic() < until:
                now = samples(tmp_path)  # also while it writes
                assert [key for key, value in before.items() if now.get(key, -1) < value] == []
                before = {key: value for key, value in now.items() if "active" not in key[0]}
            process.send_signal(signal.SIGKILL)
    assert before


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 5000, b"\x40\x00\x00\x00" + b"\x01" * 60])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "counter_storage-0.db").write_bytes(content)
    known = open_metrics(tmp_path, "storage-0")
    known.events_stored_total.inc(4)
    assert samples(tmp_path)["events_stored_total", ()] == 4


NO_ROOM = """
    import os, resource, sys
    from pathlib import Path
    from optimizer.telemetry.metrics import open_metrics

    def room(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    folder, before = Path(sys.argv[1]), int(sys.argv[2])
    room(before)
    known = open_metrics(folder, "rest_api-0")
    for i in range(2000):  # far more than fits into the file at first
        known.selections_total.labels(f"t{i}", "a").inc()
    room(resource.RLIM_INFINITY)
    for i in range(2000):
        known.selections_total.labels(f"t{i}", "a").inc()
"""


@pytest.mark.parametrize(("bytes_at_first", "counted"), [(1 << 16, 4000), (1 << 10, 0)])
def test_without_room_for_files_the_service_works_and_what_it_counted_comes_later(
    tmp_path: Path, bytes_at_first: int, counted: int
) -> None:
    """
    A file may grow no more: once after it was opened, once before.
    """
    command = [sys.executable, "-c", textwrap.dedent(NO_ROOM), str(tmp_path), str(bytes_at_first)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=HOUSE, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert sum(v for (name, _), v in samples(tmp_path).items() if name == "selections_total") == counted


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_file_system_kills_nobody(tmp_path: Path) -> None:
    """
    A write to a hole of a mapped file on a full file system is a SIGBUS: there are no holes.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", folder], check=False, timeout=10)
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount a file system")
    try:
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(NO_ROOM), folder, str(1 << 30)],
            capture_output=True,
            text=True,
            cwd=HOUSE,
            timeout=60,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert "metrics.no_room" in run.stderr
        assert any(value == 2 for (name, _), value in samples(folder).items() if name == "selections_total")
    finally:
        subprocess.run(["umount", folder], check=True, timeout=10)
