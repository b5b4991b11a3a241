"""
Every metric of the product, in one table (contract: design section 7).

prometheus_client's multiprocess mode, with files named after the service's slot instead of its pid: a restarted service goes on
where its predecessor ended, so counters stay monotonic and the number of files does not grow. Two living processes must never
have the same slot; the parent reaps one before it forks the next.

Metric objects are made in the child, by `open_metrics`; importing this module makes none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.values import MultiProcessValue

Kind = Literal["counter", "gauge", "histogram"]

LATENCY_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """
    One row of the table. `mode`: how values of several slots become one (prometheus_client's multiprocess modes).
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    mode: str = "mostrecent"


# What a service knows of itself. The comment says what a high value means.
SERVICE_METRICS: Final = (
    # many: busy; many with a status other than ok or 2xx: look at the label
    Metric("requests_total", "counter", "Requests answered, by operation and outcome.", ("operation", "status")),
    # high: slow disk (storage.append), slow peer, or too much load
    Metric("request_duration_seconds", "histogram", "Time to answer a request, in seconds.", ("operation", "status")),
    # near the bound of the listener: senders are about to get 503
    Metric("active_connections", "gauge", "Connections or calls open now.", ("service",), "livesum"),
    # falls to zero: senders are silent
    Metric("events_received_total", "counter", "Events that came in, by source.", ("source",)),
    # rising: a sender is misconfigured, or there is no room
    Metric("events_rejected_total", "counter", "Events refused, by source and reason.", ("source", "reason")),
    Metric("events_stored_total", "counter", "Events made durable.", ()),
    # rising: senders send again, usually after a lost acknowledgement
    Metric("events_duplicate_total", "counter", "Events that were stored already, by id.", ()),
    # rising steadily: the consumer cannot keep up, or is down
    Metric("journal_lag_events", "gauge", "Events stored but not yet handled by a consumer.", ("consumer",)),
    Metric("selections_total", "counter", "Selections answered.", ("task", "variant")),
    Metric("task_cost_usd_total", "counter", "Cost of the observed calls, in US dollars.", ("task", "variant")),
    # low: the variant answers badly
    Metric("task_quality_ratio", "gauge", "Mean quality of the answers, 0 to 1.", ("task", "variant")),
    # outcome other than delivered: the receiver is away or refuses
    Metric("integration_deliveries_total", "counter", "Attempts to deliver, by outcome.", ("integration", "outcome")),
    # outcome dropped: the endpoint of the daemon's own traces is away, or too slow
    Metric("trace_spans_total", "counter", "Spans of the daemon's own requests, by outcome.", ("outcome",)),
)

# What the parent knows of its children; rendered from its Fleet by exposition.py.
SUPERVISOR_METRICS: Final = (
    Metric("service_status", "gauge", "1 while the service runs, else 0.", ("service",)),
    Metric("service_health", "gauge", "1 while the service is healthy, else 0.", ("service",)),
    Metric(
        "service_uptime_seconds", "gauge", "Seconds since the service became ready; 0 while it is not.", ("service",)
    ),
    # rising: it crashes; the reason says how
    Metric("service_restarts_total", "counter", "Restarts of the service, by reason.", ("service", "reason")),
    Metric("memory_usage_bytes", "gauge", "Memory of the service's process, in bytes.", ("service",)),
    Metric("cpu_usage_percent", "gauge", "CPU of the service's process, in percent of one core.", ("service",)),
)


class Metrics:
    """
    The metrics of one process, as attributes of their names: `metrics.requests_total.labels("select", "ok").inc()`.
    """

    requests_total: Counter
    request_duration_seconds: Histogram
    active_connections: Gauge
    events_received_total: Counter
    events_rejected_total: Counter
    events_stored_total: Counter
    events_duplicate_total: Counter
    journal_lag_events: Gauge
    selections_total: Counter
    task_cost_usd_total: Counter
    task_quality_ratio: Gauge
    integration_deliveries_total: Counter
    trace_spans_total: Counter

    def __init__(self, registry: CollectorRegistry) -> None:
        for metric in SERVICE_METRICS:
            setattr(self, metric.name, _make(metric, registry))


def _make(metric: Metric, registry: CollectorRegistry) -> Any:
    if metric.kind == "counter":
        return Counter(metric.name, metric.help, metric.labels, registry=registry)
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=LATENCY_BUCKETS)
    mode: Any = metric.mode
    return Gauge(metric.name, metric.help, metric.labels, registry=registry, multiprocess_mode=mode)


def open_metrics(directory: Path, slot: str) -> Metrics:
    """
    The metrics of this process, kept in files of `directory` under the name of its slot.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    values.ValueClass = MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
    return Metrics(CollectorRegistry())


def forget(directory: Path, slot: str) -> None:
    """
    Drop what only a living process may report (gauges of mode live…), after the process of a slot has ended.
    """
    for path in directory.glob(f"gauge_live*_{slot}.db"):
        path.unlink(missing_ok=True)
