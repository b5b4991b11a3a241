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
            "wanted": view.wanted,
            "pid": view.pid,
            "incarnation": view.incarnation,
            "restarts": sum(view.restarts.values()),
            "restarts_by_reason": view.restarts,
            "uptime_secs": int(now - view.ready_at) if view.ready_at is not None else 0,
            "start_secs": view.start_secs,
            "heartbeat_age_secs": None if view.heartbeat_at is None else round(max(0.0, now - view.heartbeat_at), 3),
            "last_exit": view.last_exit,
            "next_retry_secs": None if view.next_retry_at is None else round(max(0.0, view.next_retry_at - now), 3),
            "circuit": view.circuit,
            "cpu_percent": view.cpu_percent,
            "memory_bytes": view.memory_bytes,
            "fds": view.fds,
            "threads": view.threads,
            "ports": view.ports,
            "needs": list(view.needs),
            "slots": {
                slot: {"state": one.state, "pid": one.pid, "incarnation": one.incarnation, "leaving": one.leaving}
                for slot, one in view.slots.items()
            },
        }
    return document


def http_status(document: dict[str, Any]) -> int:
    """
    503 for an unhealthy daemon, else 200: a degraded one serves.
    """
    return 503 if document["status"] == "unhealthy" else 200


def all_ready(fleet: Fleet | None) -> bool:
    """
    Whether the start is over and the daemon can do its work; a service that has failed since does not change that.
    """
    return fleet is not None and fleet.started and fleet.status != "unhealthy"


def _health(view: ServiceView) -> dict[str, Any]:
    return {
        "state": view.state,
        "healthy": view.healthy,
        "consecutive_failures": view.consecutive_failures,
        "message": view.message,
        "metadata": view.metadata,
    }
