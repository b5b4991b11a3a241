"""
`[service_manager]`: how the parent keeps services alive (contract: names and defaults).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from optimizer.catalog import SERVICES
from optimizer.config.fields import Duration, option

_KNOWN: Final = frozenset(service.name for service in SERVICES)


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Restart policy and deadlines of the supervisor.
    """

    health_check_interval: Duration = option(
        Duration(30), "Time between two heartbeats of a service.", reload="live", minimum=0.05
    )
    failure_threshold: int = option(
        3, "Missed heartbeats after which a service counts as hung and is replaced.", reload="live", minimum=1
    )
    max_restart_attempts: int = option(
        3,
        "Restarts in a row, without a stable run between them, before the daemon gives up trying fast.",
        reload="live",
        minimum=0,
    )
    restart_backoff_base: Duration = option(
        Duration(1),
        "Delay before the second restart in a row (the first is at once); doubles each time.",
        reload="live",
        minimum=0,
    )
    restart_backoff_max: Duration = option(
        Duration(60),
        "Longest delay before a restart; also the time between two tries of a service that was given up.",
        reload="live",
        minimum=0.05,
    )
    restart_jitter: float = option(
        0.2, "Random part of a delay, 0..1 of it, either way.", reload="live", minimum=0, maximum=1
    )
    stable_after: Duration = option(
        Duration(60), "A ready run of this length clears the count of restarts.", reload="live", minimum=0
    )
    start_timeout: Duration = option(Duration(60), "Longest time from fork to ready.", reload="live", minimum=0.1)
    critical: tuple[str, ...] = option(
        ("storage",),
        "Services without which the daemon is unhealthy; without others it is degraded.",
        reload="live",
        check=lambda names: "" if _KNOWN.issuperset(names) else f"names of services: {', '.join(sorted(_KNOWN))}",
    )
    shutdown_timeout: Duration = option(Duration(30), "Budget of the whole ordered stop.", reload="live", minimum=0.1)
