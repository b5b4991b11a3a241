"""
Which form a scrape has, and what the supervisor's figures say.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from optimizer.messages import Fleet, ServiceView, SlotView
from optimizer.telemetry.exposition import OPENMETRICS, TEXT, prefers_openmetrics, render
from optimizer.telemetry.metrics import open_metrics

OM = "application/openmetrics-text"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        (OM, True),
        (f"{OM};version=1.0.0", True),
        (f"{OM}; version=1.0.0; charset=utf-8", True),
        (f"{OM};version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1", True),
        (f"{OM.upper()};Version=1.0.0", True),
        (f"{OM};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5", False),
        (f"{OM};version=2.0.0", False),
        (f"text/plain,{OM};q=0.5", False),
        (f"{OM};q=0", False),
        (f"{OM};q=nonsense", False),
        (f"{OM};q=nan,text/plain", False),
        (f"{OM};q=7", False),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;q=0.7", False),
        (";;;,,,=;", False),
    ],
)
def test_the_form_is_what_the_header_prefers(tmp_path: Path, accept: str, wanted: bool) -> None:
    assert prefers_openmetrics(accept) == wanted
    body, media = render(tmp_path, None, 0.0, accept)
    assert media == (OPENMETRICS if wanted else TEXT)
    assert body.endswith(b"# EOF\n") == wanted


def view(**more: object) -> ServiceView:
    return ServiceView(**{"state": "Running", "healthy": True, "pid": 7, **more})  # type: ignore[arg-type] # fields of a view


def figures(fleet: Fleet, now: float, folder: Path) -> dict[tuple[str, ...], float]:
    """
    Values by name and the values of the labels in the order of their names.
    """
    text = render(folder, fleet, now, "")[0].decode()
    return {(one.name, *one.labels.values()): one.value for family in parse(text) for one in family.samples}


def test_the_supervisors_figures(tmp_path: Path) -> None:
    fleet = Fleet(
        status="degraded",
        started_at=0.0,
        services={
            "storage": view(
                started_at=90.0, ready_at=90.5, start_secs=0.5, heartbeat_at=99.0, restarts={"crash": 2, "hang": 1},
                entered={"Running": 4}, cpu_percent=1.5, memory_bytes=1000, fds=12, threads=3,
            ),
            "collector": view(
                state="Failed", healthy=False, pid=None, restarts={"crash": 4}, circuit="open", next_retry_at=130.0
            ),
            "integrations": view(state="Disabled", pid=None),
        },
        loop_lag_secs=0.01,
        reloads={"applied": 3, "rejected": 1},
    )  # fmt: skip
    found = figures(fleet, 100.0, tmp_path)
    assert found["service_status", "storage"] == 1
    assert found["service_status", "collector"] == 0
    assert found["service_health", "collector"] == 0
    assert found["service_uptime_seconds", "storage"] == 9.5
    assert found["service_uptime_seconds", "collector"] == 0
    assert found["service_restarts_total", "crash", "storage"] == 2
    assert found["service_restarts_total", "hang", "storage"] == 1
    assert found["service_transitions_total", "storage", "Running"] == 4
    assert found["service_backoff_seconds", "collector"] == 30
    assert found["service_backoff_seconds", "storage"] == 0
    assert found["service_heartbeat_age_seconds", "storage"] == 1
    assert ("service_heartbeat_age_seconds", "collector") not in found  # it has no heart
    assert found["service_start_duration_seconds", "storage"] == 0.5
    assert ("service_start_duration_seconds", "integrations") not in found
    assert [found["service_circuit_state", "collector", state] for state in ("closed", "open", "half_open")] == [
        0,
        1,
        0,
    ]
    assert found["service_open_files", "storage"] == 12
    assert found["service_threads", "storage"] == 3
    assert found["memory_usage_bytes", "storage"] == 1000
    assert found["cpu_usage_percent", "storage"] == 1.5
    assert found["config_reloads_total", "applied"] == 3
    assert found[("supervisor_loop_lag_seconds",)] == 0.01


def test_every_state_of_a_circuit_is_shown(tmp_path: Path) -> None:
    states = get_args(get_type_hints(ServiceView)["circuit"])
    for state in states:
        found = figures(Fleet(status="healthy", started_at=0.0, services={"s": view(circuit=state)}), 1.0, tmp_path)
        shown = {key[2]: value for key, value in found.items() if key[0] == "service_circuit_state"}
        assert shown == {one: float(one == state) for one in states}


@pytest.mark.parametrize(
    ("slot", "service", "shown"),
    [
        ("processor-0", view(slots={"processor-0": SlotView(state="Running", pid=7, incarnation=1)}), True),
        ("processor-0b", view(slots={"processor-0": SlotView(state="Running", pid=7, incarnation=2)}), True),
        (
            "processor-0",
            view(pid=None, slots={"processor-0": SlotView(state="Failed", pid=None, incarnation=1)}),
            False,
        ),
        (
            "processor-0",
            view(slots={"processor-0": SlotView(state="Running", pid=None, incarnation=1, leaving=[9])}),
            True,
        ),
        ("processor-1", view(slots={"processor-0": SlotView(state="Running", pid=7, incarnation=1)}), True),
        ("processor-1", view(pid=None), False),
    ],
)
def test_gauges_of_a_slot_without_a_process_are_left_out_and_its_counters_stay(
    tmp_path: Path, slot: str, service: ServiceView, shown: bool
) -> None:
    known = open_metrics(tmp_path, slot)
    known.journal_lag_events.labels("processor").set(5)
    known.task_cost_usd_total.labels("t", "a").inc(2)
    found = figures(Fleet(status="healthy", started_at=0.0, services={"processor": service}), 1.0, tmp_path)
    assert (("journal_lag_events", "processor") in found) == shown
    assert found["task_cost_usd_total", "t", "a"] == 2


def test_a_gauge_that_is_over_is_left_out(tmp_path: Path) -> None:
    known = open_metrics(tmp_path, "processor-0")
    known.task_quality_ratio.labels("t", "a").set(0.5)
    known.task_quality_ratio.labels("t", "b").set(math.nan)
    found = figures(Fleet(status="healthy", started_at=0.0, services={}), 1.0, tmp_path)
    assert [key for key in found if key[0] == "task_quality_ratio"] == [("task_quality_ratio", "t", "a")]
    assert b"nan" not in render(tmp_path, None, 0.0, "")[0].lower()


def test_strange_names_of_tasks_are_escaped(tmp_path: Path) -> None:
    known = open_metrics(tmp_path, "rest_api-0")
    name = 'a"b\\c\nd é\u2028{}#'
    known.selections_total.labels(name, "").inc()
    for accept in ("", OM):
        text = render(tmp_path, None, 0.0, accept)[0].decode()
        found = [
            one.labels
            for family in parse(text.replace("# EOF\n", ""))
            for one in family.samples
            if "selections" in one.name
        ]
        assert found == [{"task": name, "variant": ""}]
