"""
How the services of the daemon are.
"""

from __future__ import annotations

import msgspec

from optimizer.errors import Transient
from optimizer.operations.house import House
from optimizer.operations.tasks import Nothing


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """
    One service: `state` as in /health, `restarts` since the daemon's start, `uptime_secs` since it is ready.
    """

    name: str
    state: str
    healthy: bool
    message: str | None
    metadata: dict[str, str]
    pid: int | None
    restarts: int
    uptime_secs: float
    last_exit: str | None
    cpu_percent: float
    memory_bytes: int
    ports: dict[str, int]
    needs: list[str]


class ServiceList(msgspec.Struct, frozen=True, kw_only=True):
    """
    All services, those that are disabled included.
    """

    items: list[ServiceStatus]


async def list_services(house: House, _: Nothing) -> ServiceList:
    """
    The services as the parent process sees them.

    Raises:
        Transient: the parent has not told yet.
    """
    fleet = house.fleet()
    if fleet is None:
        raise Transient("the parent process has not told how the services are yet", 0.2)
    now = house.clock.monotonic()
    return ServiceList(
        items=[
            ServiceStatus(
                name=name,
                state=view.state,
                healthy=view.healthy,
                message=view.message,
                metadata=view.metadata,
                pid=view.pid,
                restarts=sum(view.restarts.values()),
                uptime_secs=0.0 if view.ready_at is None else round(max(0.0, now - view.ready_at), 3),
                last_exit=view.last_exit,
                cpu_percent=view.cpu_percent,
                memory_bytes=view.memory_bytes,
                ports=view.ports,
                needs=list(view.needs),
            )
            for name, view in fleet.services.items()
        ]
    )
