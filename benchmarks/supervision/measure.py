"""
The measurements: first each system by itself, then all at rest side by side.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from benchmarks.supervision.observe import cpu_s, tree
from benchmarks.supervision.running import Running
from benchmarks.supervision.systems import System

_LAPS: Final = 3  # starts and stops of each
_SETTLE_S: Final = 1.0  # from ready to what is measured next: the dust of the start has settled
_PAUSE_S: Final = 0.3  # from ready to the stop in the laps where nothing else is measured
_IDLE_S: Final = 10.0
_SEED: Final = 4


@dataclass(kw_only=True)
class Figures:
    """
    What was measured of one system; seconds, MiB, and CPU as a share of one core in percent.
    """

    system: System
    version: str
    start_s: list[float] = field(default_factory=list)
    kill_s: list[float] = field(default_factory=list)
    stop_s: list[float] = field(default_factory=list)
    parent_mib: float = 0.0
    tree_mib: float = 0.0
    parent_cpu: float = 0.0
    tree_cpu: float = 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """
    The smallest value that is not below `share` of all; the largest where there are too few to tell.
    """
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def alone(system: System) -> Figures:
    """
    Start, memory, kills and stop, with nothing beside it.
    """
    found = Figures(system=system, version=version(system.package))
    for lap in range(_LAPS):
        with Running(system) as running:
            found.start_s.append(running.start_s)
            time.sleep(_PAUSE_S if lap else _SETTLE_S)
            if lap == 0:
                found.parent_mib, found.tree_mib = running.memory_mib()
                found.kill_s = running.storm(random.Random(_SEED))
                time.sleep(_PAUSE_S)
            found.stop_s.append(running.stop())
    return found


def at_rest(figures: Sequence[Figures]) -> None:
    """
    CPU of all systems in the same seconds, with nothing to do.
    """
    with ExitStack() as stack:
        running = [stack.enter_context(Running(one.system)) for one in figures]
        time.sleep(2 * _SETTLE_S)
        trees = [tree(one.process.pid) for one in running]
        before, began = [[cpu_s(pid) for pid in pids] for pids in trees], time.monotonic()
        time.sleep(_IDLE_S)
        after, took = [[cpu_s(pid) for pid in pids] for pids in trees], time.monotonic() - began
        for one, first, last in zip(figures, before, after, strict=True):
            each = [100 * (end - begin) / took for begin, end in zip(first, last, strict=True)]
            one.parent_cpu, one.tree_cpu = each[0], sum(each)
        for system in running:
            system.stop()


def measure(systems: Sequence[System]) -> list[Figures]:
    """
    All figures, in about two minutes.
    """
    found = []
    for system in systems:
        print(f"  {system.name} …", file=sys.stderr, flush=True)
        found.append(alone(system))
    print("  all at rest …", file=sys.stderr, flush=True)
    at_rest(found)
    return found


def median_ms(seconds: Sequence[float]) -> float:
    """
    The median, in milliseconds.
    """
    return 1000 * statistics.median(seconds)
