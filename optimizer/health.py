"""
The documents about the services: `/health` (contract: the seed's shape) and `optimizerctl status`.
"""

from __future__ import annotations

from typing import Any

from optimizer.messages import Fleet, ServiceView


def health_document(fleet: Fleet | None, now: float) -> dict[str, Any]:
    """
    The body of `/health`.

    Args:
        fleet: the parent's view; None: it has not told yet, which is unhealthy.
        now: CLOCK_MONOTONIC seconds.
    """
    if fleet is None:
        return {"status": "unhealthy", "uptime_secs": 0, "services": {}}
    return {
        "status": fleet.status,
        "uptime_secs": int(now - fleet.started_at),
        "services": {name: _health(view) for name, view in fleet.services.items()},
    }


def status_document(fleet: Fleet, now: float) -> dict[str, Any]:
    """
    `/health` and, per service, what an operator wants to know.
    """
    document = health_document(fleet, now)
    for name, view in fleet.services.items():
        document["services"][name] |= {
            "pid": view.pid,
            "restarts": sum(view.restarts.values()),
            "uptime_secs": int(now - view.ready_at) if view.ready_at is not None else 0,
            "last_exit": view.last_exit,
            "next_retry_secs": None if view.next_retry_at is None else round(max(0.0, view.next_retry_at - now), 3),
            "cpu_percent": view.cpu_percent,
            "memory_bytes": view.memory_bytes,
            "ports": view.ports,
        }
    return document


def http_status(document: dict[str, Any]) -> int:
    """
    503 for an unhealthy daemon, else 200: a degraded one serves.
    """
    return 503 if document["status"] == "unhealthy" else 200


def all_ready(fleet: Fleet | None) -> bool:
    """
    Whether every service that is to run has become ready and is alive.
    """
    return fleet is not None and all(
        view.state in ("Running", "Degraded", "Disabled") for view in fleet.services.values()
    )


def _health(view: ServiceView) -> dict[str, Any]:
    return {
        "state": view.state,
        "healthy": view.healthy,
        "consecutive_failures": view.consecutive_failures,
        "message": view.message,
        "metadata": view.metadata,
    }
