"""
The figures as one table, as JSON, and as rows of `make bench`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import Row
from benchmarks.supervision.measure import Figures, median_ms, percentile
from benchmarks.supervision.systems import CIRCUS, DAEMON, GUNICORN, HOUSE, SUPERVISORD, UVICORN

PATH: Final = Path("build/bench/supervision.json")
_RESOLUTION: Final = (
    "A trivial child reads the monotonic clock itself when it is ready (well under 0.1 ms). Our services count as ready when the "
    "line of the parent's log is read from a pipe: later than the fact by what the parent needs, and a wake-up. Start, kill and "
    "stop begin just before the system call and the stop ends with the notice of a pidfd. CPU time is that of the kernel's "
    "scheduler, in ns."
)
_HEAD: Final = (
    "system", "version", "children", "start s", "kill-ready ms", "p99 ms", "kills", "stop s",
    "parent CPU %", "tree CPU %", "parent PSS MiB", "tree PSS MiB",
)  # fmt: skip


def table(figures: Sequence[Figures]) -> str:
    """
    A line a system, in Markdown.
    """
    lines = [_HEAD, tuple("---" if i == 0 else "---:" for i in range(len(_HEAD)))]
    for one in figures:
        lines.append((
            one.system.name,
            one.version,
            str(one.system.children),
            f"{statistics.median(one.start_s):.2f}",
            f"{median_ms(one.kill_s):.1f}",
            f"{1000 * percentile(one.kill_s, 0.99):.1f}",
            str(len(one.kill_s)),
            f"{statistics.median(one.stop_s):.2f}",
            f"{one.parent_cpu:.2f}",
            f"{one.tree_cpu:.2f}",
            f"{one.parent_mib:.1f}",
            f"{one.tree_mib:.1f}",
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document(figures: Sequence[Figures], machine: Mapping[str, Any]) -> dict[str, Any]:
    """
    Everything that was measured, each kill and each start included.
    """
    return {
        "machine": dict(machine),
        "resolution": _RESOLUTION,
        "systems": [
            {
                "name": one.system.name,
                "package": one.system.package,
                "version": one.version,
                "children": one.system.children,
                "start_s": _spread(one.start_s),
                "kill_to_ready_s": _spread(one.kill_s) | {"p99": round(percentile(one.kill_s, 0.99), 6)},
                "stop_s": _spread(one.stop_s),
                "parent_idle_cpu_percent": round(one.parent_cpu, 4),
                "tree_idle_cpu_percent": round(one.tree_cpu, 4),
                "parent_pss_mib": round(one.parent_mib, 2),
                "tree_pss_mib": round(one.tree_mib, 2),
            }
            for one in figures
        ],
    }


def _spread(seconds: Sequence[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(seconds), 6), "each": [round(one, 6) for one in seconds]}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """
    A file in `build/bench`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def rows(figures: Sequence[Figures]) -> list[Row]:
    """
    Ours beside each peer, with the same children; then the daemon's own services by what is wanted of them.
    """
    by_name = {one.system.name: one for one in figures}
    ours, daemon = by_name[HOUSE.name], by_name[DAEMON.name]
    figure = median_ms(ours.kill_s)
    found = []
    for peer, wanted in ((SUPERVISORD, ">= 10"), (CIRCUS, ">= 3"), (GUNICORN, ""), (UVICORN, "")):
        floor = median_ms(by_name[peer.name].kill_s)
        found.append(Row(f"kill to ready, against {peer.name}", "ms", floor, figure, floor / figure, wanted))
    return [
        *found,
        Row("kill to ready, seven services", "ms", 0, median_ms(daemon.kill_s), 0, "<= 30"),
        Row("start to all ready, seven services", "s", 0, statistics.median(daemon.start_s), 0, "<= 0.8"),
        Row("SIGTERM to exit, seven services", "s", 0, statistics.median(daemon.stop_s), 0, "<= 2"),
        Row("idle CPU of the parent", "%", 0, daemon.parent_cpu, 0, "<= 0.1"),
        Row("PSS of the tree, seven services", "MiB", 0, daemon.tree_mib, 0, "<= 110"),
    ]
