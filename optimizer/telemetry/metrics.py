"""
Every metric of the product, in one table (contract: design section 7).

prometheus_client's multiprocess mode, with files named after the service's slot instead of its pid: a restarted service goes on
where its predecessor ended, so counters stay monotonic and the number of files does not grow. Two living processes must never
have the same slot; the parent reaps one before it forks the next.

Metric objects are made in the child, by `open_metrics`; importing this module makes none.

Names of tasks and variants come from senders, so the series of a counter are bounded: what is beyond MAX_SERIES is counted
together under OTHER. A gauge that is set to NaN is shown no more (a series cannot be taken out of a file).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.values import MultiProcessValue, MutexValue

from optimizer.telemetry.logs import log
from optimizer.telemetry.slotfile import SlotFile, prepare

Kind = Literal["counter", "gauge", "histogram"]

LATENCY_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MAX_SERIES: Final = 4096  # of one family in one process; a scrape of so many takes a tenth of a second
OTHER: Final = "(other)"


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
    # other than too_many_tasks and task_deleted: a defect, in a sender or here; the log names the events
    Metric("events_unlearned_total", "counter", "Stored events that nothing was learned from, by reason.", ("reason",)),
    # rising steadily: the consumer cannot keep up
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

# What the parent knows of its children, and of itself; rendered from its Fleet by exposition.py.
SUPERVISOR_METRICS: Final = (
    Metric("service_status", "gauge", "1 while the service runs, else 0.", ("service",)),
    Metric("service_health", "gauge", "1 while the service is healthy, else 0.", ("service",)),
    Metric(
        "service_uptime_seconds", "gauge", "Seconds since the service became ready; 0 while it is not.", ("service",)
    ),
    # rising: it crashes; the reason says how
    Metric("service_restarts_total", "counter", "Restarts of the service, by reason.", ("service", "reason")),
    Metric(
        "service_transitions_total", "counter", "Changes of the service's state, by new state.", ("service", "state")
    ),
    # near restart_backoff_max: it has failed often
    Metric("service_backoff_seconds", "gauge", "Seconds until the service is started again, else 0.", ("service",)),
    # above health_check_interval: it hangs; near failure_threshold times as much: it is about to be killed
    Metric("service_heartbeat_age_seconds", "gauge", "Seconds since the last sign of life.", ("service",)),
    Metric("service_start_duration_seconds", "gauge", "Seconds from the newest fork to ready.", ("service",)),
    # open: it has been given up, but for a try now and then
    Metric("service_circuit_state", "gauge", "1 for the state of the service's circuit, else 0.", ("service", "state")),
    Metric("service_open_files", "gauge", "Open file descriptors of the service.", ("service",)),
    Metric("service_threads", "gauge", "Threads of the service.", ("service",)),
    Metric("memory_usage_bytes", "gauge", "Memory of the service's process, in bytes.", ("service",)),
    Metric("cpu_usage_percent", "gauge", "CPU of the service's process, in percent of one core.", ("service",)),
    # rejected, rolled_back: what is configured is not what runs
    Metric("config_reloads_total", "counter", "Reloads of the configuration, by result.", ("result",)),
    # above a tenth: the machine is overloaded, or the parent blocks
    Metric("supervisor_loop_lag_seconds", "gauge", "By how much the parent woke too late, the worst of late."),
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
    events_unlearned_total: Counter
    journal_lag_events: Gauge
    selections_total: Counter
    task_cost_usd_total: Counter
    task_quality_ratio: Gauge
    integration_deliveries_total: Counter
    trace_spans_total: Counter

    def __init__(self, registry: CollectorRegistry) -> None:
        for metric in SERVICE_METRICS:
            setattr(self, metric.name, _make(metric, registry))


class _Counter(Counter):
    """
    A counter whose number of series is bounded.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._known: set[tuple[object, ...]] = set()

    def labels(self, *values: object, **named: object) -> _Counter:
        """
        The series of these labels, or the common one.
        """
        key = values or tuple(sorted(named.items()))
        if key not in self._known:
            if len(self._known) >= MAX_SERIES:
                return super().labels(*(OTHER for _ in key))
            self._known.add(key)
        return super().labels(*values, **named)


def _make(metric: Metric, registry: CollectorRegistry) -> Any:
    if metric.kind == "counter":
        return _Counter(metric.name, metric.help, metric.labels, registry=registry)
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=LATENCY_BUCKETS)
    mode: Any = metric.mode
    return Gauge(metric.name, metric.help, metric.labels, registry=registry, multiprocess_mode=mode)


def open_metrics(directory: Path, slot: str) -> Metrics:
    """
    The metrics of this process, kept in files of `directory` under the name of its slot.

    What only a living process may report (gauges of mode live…) begins anew, the rest goes on. Without room for the files the
    service works all the same, unseen.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        forget(directory, slot)
        for prefix in {_prefix(metric) for metric in SERVICE_METRICS}:
            prepare(directory / f"{prefix}_{slot}.db")
    except OSError as error:
        log.error("metrics.not_kept", directory=str(directory), error=str(error))
        values.ValueClass = MutexValue
    else:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
        values.MmapedDict = SlotFile  # type: ignore[attr-defined] # where prometheus_client looks for it
        values.ValueClass = MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
    return Metrics(CollectorRegistry())


def _prefix(metric: Metric) -> str:
    return f"gauge_{metric.mode}" if metric.kind == "gauge" else metric.kind


def forget(directory: Path, slot: str) -> None:
    """
    Drop what only a living process may report (gauges of mode live…), after the process of a slot has ended.
    """
    for path in directory.glob(f"gauge_live*_{slot}.db"):
        path.unlink(missing_ok=True)
