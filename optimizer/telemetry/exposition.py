"""
The text of `/metrics`: the files of all slots, merged, and the supervisor's own figures from its Fleet.

Every family of the tables is there, with its help, also while nobody has counted anything in it yet: who writes a dashboard or an
alert sees what there is. The gauges of a slot whose process has ended are left out; its counters stay.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from optimizer.messages import Fleet, ServiceView
from optimizer.telemetry.metrics import SERVICE_METRICS, SUPERVISOR_METRICS, Metric

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_SERVING: Final = ("Running", "Degraded")
_CIRCUIT: Final = ("closed", "open", "half_open")

Samples = list[tuple[tuple[str, ...], float]]  # values of the labels, and of the sample


def render(directory: Path, fleet: Fleet | None, now: float, accept: str) -> tuple[bytes, str]:
    """
    The exposition and its content type: OpenMetrics if `accept` prefers it, else Prometheus text.

    Args:
        directory: of the slots' metric files; `now`: CLOCK_MONOTONIC seconds.
    """
    families = _Families([*_from_files(directory, fleet), *(_from_fleet(fleet, now) if fleet is not None else ())])
    if prefers_openmetrics(accept):
        return generate_openmetrics(families), OPENMETRICS  # type: ignore[no-untyped-call]
    return generate_latest(families), TEXT


class _Families:
    """
    What the encoders ask for.
    """

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Sequence[Family]:
        return self._families


def _empty(metric: Metric) -> Family:
    return Family(
        metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name, metric.help, metric.kind
    )


# --- from files ---


def _from_files(directory: Path, fleet: Fleet | None) -> Iterator[Family]:
    files = [str(path) for path in sorted(directory.glob("*.db")) if _counts(path, fleet)]
    merged = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
    found: Mapping[str, Family] = {family.name: family for family in merged}
    for metric in SERVICE_METRICS:
        family = _empty(metric)
        if family.name in found:
            family.samples = [one for one in found[family.name].samples if not math.isnan(one.value)]
        yield family


def _counts(path: Path, fleet: Fleet | None) -> bool:
    """
    Whether a file is to be read: it is complete, and no gauge of a process that has ended.
    """
    kind, _, rest = path.stem.partition("_")
    if kind == "gauge" and fleet is not None and _ended(rest.partition("_")[2], fleet):
        return False
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:  # of a gauge whose process has ended just now
        return False


def _ended(slot: str, fleet: Fleet) -> bool:
    view = fleet.services.get(slot.rpartition("-")[0])
    if view is None:
        return False
    known = view.slots.get(slot.rstrip(string.ascii_lowercase))  # `rest_api-0b` is another process of `rest_api-0`
    if known is None:
        return view.pid is None
    return known.pid is None and not known.leaving


# --- from the parent ---


def _from_fleet(fleet: Fleet, now: float) -> Iterator[Family]:
    for metric in SUPERVISOR_METRICS:
        family = _empty(metric)
        for labels, value in _figures(metric, fleet, now):
            family.add_sample(metric.name, dict(zip(metric.labels, labels, strict=True)), value)
        yield family


def _figures(metric: Metric, fleet: Fleet, now: float) -> Samples:
    match metric.name:
        case "config_reloads_total":
            return [((result,), float(count)) for result, count in fleet.reloads.items()]
        case "supervisor_loop_lag_seconds":
            return [((), fleet.loop_lag_secs)]
        case _:
            return [
                ((name, *labels), value)
                for name, view in fleet.services.items()
                for labels, value in _figures_of(metric.name, view, now)
            ]


def _figures_of(metric: str, view: ServiceView, now: float) -> Samples:
    match metric:
        case "service_restarts_total":
            return [((reason,), float(count)) for reason, count in view.restarts.items()]
        case "service_transitions_total":
            return [((state,), float(count)) for state, count in view.entered.items()]
        case "service_circuit_state":
            return [((state,), float(view.circuit == state)) for state in _CIRCUIT]
        case _:
            figure = _figure(metric, view, now)
            return [] if figure is None else [((), figure)]


def _figure(metric: str, view: ServiceView, now: float) -> float | None:
    """
    Raises:
        ValueError: it is no figure of a service: the table has a line that nobody fills.
    """
    match metric:
        case "service_status":
            return float(view.state in _SERVING)
        case "service_health":
            return float(view.healthy)
        case "service_uptime_seconds":
            return max(0.0, now - view.ready_at) if view.ready_at is not None else 0.0
        case "service_backoff_seconds":
            return max(0.0, view.next_retry_at - now) if view.next_retry_at is not None else 0.0
        case "service_heartbeat_age_seconds":
            return max(0.0, now - view.heartbeat_at) if view.heartbeat_at is not None else None
        case "service_start_duration_seconds":
            return view.start_secs
        case "service_open_files":
            return view.fds
        case "service_threads":
            return view.threads
        case "memory_usage_bytes":
            return view.memory_bytes
        case "cpu_usage_percent":
            return view.cpu_percent
        case _:
            raise ValueError(f"{metric} is no figure of a service")


# --- the form ---


def prefers_openmetrics(accept: str) -> bool:
    """
    Whether a header `Accept` names OpenMetrics 1.0, and nothing that it likes better.

    Source: RFC 9110, section 12.5.1; without a header, or with one that nobody can read, the answer is text.
    """
    open_metrics, text = 0.0, 0.0
    for one in accept.split(","):
        kind, *rest = (part.strip().lower() for part in one.split(";"))
        known = dict(part.split("=", 1) for part in rest if "=" in part)
        quality = _quality(known.get("q", "1"))
        if kind == "application/openmetrics-text" and known.get("version", "1.0.0") == "1.0.0":
            open_metrics = max(open_metrics, quality)
        elif kind in ("text/plain", "text/*"):
            text = max(text, quality)
    return open_metrics > 0 and open_metrics >= text


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0
