"""
A scrape after a thousand restarts against one before them, in one run: processes are really forked, write under the slots of the
six services, and are killed in the middle of it. No counter may go back meanwhile.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final, NoReturn

from prometheus_client.parser import text_string_to_metric_families as parse

from benchmarks import Row
from optimizer.telemetry.exposition import render
from optimizer.telemetry.metrics import Metrics, open_metrics

_LIVES: Final = 1000
_SERVICES: Final = ("storage", "collector", "integrations", "processor", "rest_api", "grpc_api")
_SCRAPES: Final = 100
_LOOK: Final = 20  # lives between two looks at the counters
_OPERATIONS: Final = {  # and outcomes, that a service usually has
    "storage": [(f"storage.{name}", "ok") for name in ("append", "commit", "read", "get", "scan", "inspect")],
    "collector": [("otlp.traces", "200"), ("otlp.traces", "503")],
    "rest_api": [(name, "200") for name in ("select", "feedback", "tasks.get", "tasks.stats", "health", "metrics")],
    "grpc_api": [(name, "OK") for name in ("select", "select.batch", "feedback", "health")],
}
_TASKS: Final = [(f"task-{i}", variant) for i in range(5) for variant in ("small", "large", "other")]


def _work(service: str, metrics: Metrics) -> None:
    for labels in _OPERATIONS.get(service, ()):
        metrics.requests_total.labels(*labels).inc()
        metrics.request_duration_seconds.labels(*labels).observe(0.004)
    if service in ("collector", "rest_api", "grpc_api"):
        metrics.active_connections.labels(service).set(3)
    if service == "storage":
        metrics.events_stored_total.inc(20)
    if service == "collector":
        metrics.events_received_total.labels("otlp").inc(20)
    if service == "integrations":
        metrics.integration_deliveries_total.labels("webhook/ops", "delivered").inc()
    for pair in _TASKS:
        if service in ("rest_api", "grpc_api"):
            metrics.selections_total.labels(*pair).inc()
        if service == "processor":
            metrics.task_cost_usd_total.labels(*pair).inc(0.01)
            metrics.task_quality_ratio.labels(*pair).set(0.7)


def _live(folder: Path, service: str, ready: int) -> NoReturn:
    metrics = open_metrics(folder, f"{service}-0")
    _work(service, metrics)
    os.write(ready, b".")
    while True:
        _work(service, metrics)


def _restart(folder: Path, service: str, rng: random.Random) -> None:
    """
    One life: it has written everything once, goes on writing, and is killed.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        _live(folder, service, writes)
    os.close(writes)
    os.read(reads, 1)
    os.close(reads)
    time.sleep(rng.random() * 0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _counters(folder: Path) -> dict[tuple[str, ...], float]:
    text = render(folder, None, 0.0, "")[0].decode()
    families = [family for family in parse(text) if family.type in ("counter", "histogram")]
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def _scrape_ms(folder: Path) -> float:
    times = []
    for _ in range(_SCRAPES):
        began = time.perf_counter()
        render(folder, None, 0.0, "")
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def _course(folder: Path) -> tuple[float, float, int, int]:
    """
    Milliseconds of a scrape before and after, files, and counters that went back.
    """
    rng, back = random.Random(1), 0
    for service in _SERVICES:
        _restart(folder, service, rng)
    before = _scrape_ms(folder)
    known = _counters(folder)
    for life in range(_LIVES):
        _restart(folder, _SERVICES[life % len(_SERVICES)], rng)
        if life % _LOOK == _LOOK - 1:
            found = _counters(folder)
            back += sum(found.get(key, -1.0) < value for key, value in known.items())
            known = found
    return before, _scrape_ms(folder), len(list(folder.iterdir())), back


def main() -> list[Row]:
    """
    Scrapes before and after, and what became of the counters.
    """
    shared = Path("/dev/shm")  # noqa: S108 - a tmpfs, as /run is
    with (
        tempfile.TemporaryDirectory(prefix="llmo-", dir=shared if shared.is_dir() else None) as name,
        multiprocessing.get_context("spawn").Pool(1) as pool,  # a process with one thread forks the others
    ):
        before, after, files, back = pool.apply(_course, (Path(name),))
    if back:
        raise AssertionError(f"{back} counters went back over {_LIVES} restarts")
    return [
        Row(f"scrape after {_LIVES:,} restarts", "ms", before, after, before / after, ">= 0.8"),
        Row(f"metric files after {_LIVES:,} restarts", "files", 0, files, 0),
    ]
