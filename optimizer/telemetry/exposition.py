"""
The text of `/metrics`: the files of all services, merged, and the supervisor's own figures from its Fleet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector

from optimizer.messages import Fleet, ServiceView
from optimizer.telemetry.metrics import SUPERVISOR_METRICS

_SERVING: Final = ("Running", "Degraded")


class _FleetCollector:
    """
    SUPERVISOR_METRICS of one Fleet.
    """

    def __init__(self, fleet: Fleet, now: float) -> None:
        self._fleet = fleet
        self._now = now

    def collect(self) -> Iterator[Family]:
        for metric in SUPERVISOR_METRICS:
            if metric.kind == "counter":
                counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
                for name, view in self._fleet.services.items():
                    for reason, count in view.restarts.items():
                        counter.add_metric([name, reason], count)
                yield counter
            else:
                gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
                for name, view in self._fleet.services.items():
                    gauge.add_metric([name], self._figure(metric.name, view))
                yield gauge

    def _figure(self, metric: str, view: ServiceView) -> float:
        match metric:
            case "service_status":
                return float(view.state in _SERVING)
            case "service_health":
                return float(view.healthy)
            case "service_uptime_seconds":
                return self._now - view.ready_at if view.ready_at is not None else 0.0
            case "memory_usage_bytes":
                return view.memory_bytes
            case "cpu_usage_percent":
                return view.cpu_percent
            case _:
                raise ValueError(f"{metric} is no figure of a service")


def render(directory: Path, fleet: Fleet | None, now: float, accept: str) -> tuple[bytes, str]:
    """
    The exposition and its content type: OpenMetrics if `accept` asks for it, else Prometheus text.

    Args:
        directory: of the services' metric files; `now`: CLOCK_MONOTONIC seconds.
    """
    registry = CollectorRegistry()
    os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(directory))
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    if fleet is not None:
        registry.register(_FleetCollector(fleet, now))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type
