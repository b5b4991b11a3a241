"""
`[processor]`: how the daemon learns.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.config.fields import Duration, option
from optimizer.config.limits import Limited


@dataclass(frozen=True, slots=True)
class Settings(Limited):
    """
    Pace and bounds of learning.
    """

    enabled: bool = option(True, "Run the processor.", reload="restart")
    publish_interval: Duration = option(
        Duration(0.2),
        "Longest time from a new event to the policy and statistics that know it.",
        minimum=0.01,
        maximum=60,
    )
    max_tasks: int = option(
        1000, "Tasks that are learned; events of further undeclared ones are stored and counted only.", minimum=1
    )
    seed: int = option(0, "Seed of every random choice in learning.", minimum=0)
    worker_threads: int = option(
        4, "Threads of stream processing.", unused="learning is one process with one thread", minimum=1
    )
    window_size_secs: int = option(
        60, "Length of a window of event time.", unused="windows come in a later version", minimum=1
    )
