"""
What the sections of all services have in common.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.config.fields import Size, option


@dataclass(frozen=True, slots=True)
class Limited:
    """
    How much memory a service may take.
    """

    memory_limit: Size = option(
        Size(0),
        "Memory (PSS) beyond which the service is restarted in order, once it has run for stable_after; 0: no limit.",
        reload="live",
    )
    memory_limit_hard: Size = option(
        Size(0), "Data a process of it may allocate at all (RLIMIT_DATA); 0: no limit.", reload="restart"
    )
