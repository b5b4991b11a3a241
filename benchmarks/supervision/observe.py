"""
What the kernel tells of processes from outside, in the same way for every supervisor.
"""

from __future__ import annotations

import os
import platform
import select
import time
from pathlib import Path

MIB = 1024 * 1024


def tree(root: int) -> list[int]:
    """
    A process and all that descend from it.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while the folder was read
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def pss_mib(pid: int) -> float:
    """
    Memory of a process, every shared page divided by those that share it.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / MIB
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no line Pss")


def cpu_s(pid: int) -> float:
    """
    CPU time that a process has used, all its threads, user and system.

    The figure of /proc/PID/stat, but in nanoseconds where that counts in hundredths of a second, which is too coarse for an
    idle parent. The clock's number is made as clock_getcpuclockid(3) makes it.
    """
    return time.clock_gettime((~pid << 3) | 2)


def machine() -> dict[str, str | int | float]:
    """
    What the figures depend on.
    """
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


class Lines:
    """
    Lines from a descriptor, each with the moment at which it was read.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._rest = b""
        self._read: list[tuple[float, bytes]] = []

    def next(self, until: float) -> tuple[float, bytes]:
        """
        The next line and when it came; monotonic seconds.

        Raises:
            TimeoutError: none came until then. EOFError: nobody can write any more.
        """
        while not self._read:
            if not select.select([self._descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            self._take(time.monotonic())
        return self._read.pop(0)

    def _take(self, now: float) -> None:
        data = os.read(self._descriptor, 1 << 20)
        if not data:
            raise EOFError
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._read += [(now, line) for line in lines]
