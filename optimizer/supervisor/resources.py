"""
What a process uses, and whether the kernel killed one of ours for want of memory. Read from /proc and /sys directly.

Measured for seven idle services (50 MiB resident each): CPU time, resident pages, descriptors and threads cost 62 us a
round (psutil: 300); the proportional set size costs 200 to 330 us a process, because the kernel walks the page tables,
and grows with the process. So PSS is read seldom (every 10 s, and never more than a thousandth of the time), at a moment
of its own for each process, and carried on in between by what the resident size has gained or lost since.

Nothing here needs /proc/stat or other files that `ProcSubset=pid` hides.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PSS_EVERY_S: Final = 10.0
_PSS_SHARE: Final = 0.001  # of the time, at most, goes into reading PSS of one process
_TURNS: Final = 8  # neighbouring pids have different turns
_SHORTEST_S: Final = 0.1  # CPU time comes in ticks of 10 ms: over less than this a percentage means nothing


@dataclass(frozen=True, slots=True)
class Usage:
    """
    What a process uses. `cpu_percent`: of one core, since the reading before. `memory_bytes`: its proportional share
    (PSS), the resident size where that may not be read.
    """

    cpu_percent: float
    memory_bytes: int
    fds: int
    threads: int


class Gauge:
    """
    Reads one process. Holds no descriptor; a later process with the same pid is told apart by its start time.

    Args:
        pid: a process that has not been reaped yet.
        clock: monotonic seconds.
        proc: where the kernel shows processes.
    """

    def __init__(self, pid: int, clock: Callable[[], float] = time.monotonic, proc: Path = Path("/proc")) -> None:
        self._proc = f"{proc}/{pid}/"
        self._clock = clock
        self._at = clock()
        self._percent = 0.0
        self._pss_due = self._at
        self._turn_s: float | None = pid % _TURNS / _TURNS * _PSS_EVERY_S
        self._beyond_bytes = 0  # PSS less the resident size, at the last reading
        found = self._stat()
        self._started, self._cpu_s = (found[0], found[1]) if found else (-1, 0.0)

    def read(self) -> Usage | None:
        """
        As it is now; None when the process has ended.
        """
        found = self._stat()
        if found is not None and self._started < 0:
            self._started, self._cpu_s = (
                found[0],
                found[1],
            )  # it could not be read when this was made: no descriptor was left
        if found is None or found[0] != self._started:
            return None
        _, cpu_s, threads = found
        now = self._clock()
        if now - self._at >= _SHORTEST_S:
            self._percent = (cpu_s - self._cpu_s) / (now - self._at) * 100
            self._at, self._cpu_s = now, cpu_s
        try:
            resident = int(_read(self._proc + "statm").split()[1]) * _PAGE_BYTES
            fds = self._fds()
        except OSError:
            return None  # it ended between two files
        if now >= self._pss_due:
            self._measure_pss(resident, now)
        memory = min(resident, max(0, resident + self._beyond_bytes))
        return Usage(cpu_percent=self._percent, memory_bytes=memory, fds=fds, threads=threads)

    def _stat(self) -> tuple[int, float, int] | None:
        """
        Start time in ticks, CPU seconds and threads; None of a process that is gone or a zombie.
        """
        try:
            fields = _read(self._proc + "stat").rpartition(b")")[2].split()  # a name may hold blanks and brackets
        except OSError:
            return None
        if fields[0] in (b"Z", b"X"):
            return None
        return int(fields[19]), (int(fields[11]) + int(fields[12])) * _TICK_S, int(fields[17])

    def _fds(self) -> int:
        size = os.stat(self._proc + "fd").st_size  # noqa: PTH116 - a Path costs as much as the call
        return size or len(os.listdir(self._proc + "fd"))  # noqa: PTH208 - before Linux 6.2 the size says nothing

    def _measure_pss(self, resident: int, now: float) -> None:
        began = time.perf_counter()
        try:
            rollup = _read(self._proc + "smaps_rollup")
        except OSError:
            self._beyond_bytes = 0  # not permitted, or it is ending: the resident size stands
        else:
            for line in rollup.splitlines():
                if line.startswith(b"Pss:"):
                    self._beyond_bytes = int(line.split()[1]) * 1024 - resident
                    break
        pause_s = max(_PSS_EVERY_S, (time.perf_counter() - began) / _PSS_SHARE)
        self._pss_due = now + pause_s + (self._turn_s or 0.0)
        self._turn_s = None  # out of step with the others once is out of step for good


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


class OomWatch:
    """
    Counts processes of our own control group that the kernel killed for want of memory. Quiet where there is no group.

    The kernel counts before it sends SIGKILL, so who sees a process end this way may ask at once.

    Args:
        proc: folder with the files `cgroup` and `mountinfo` of this process.
    """

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._path = next((path for path in _event_files(proc) if _oom_kills(path) is not None), None)
        self._seen = self._count()

    def killed(self) -> int:
        """
        How many since the last call, or since this was made.
        """
        count = self._count()
        fresh, self._seen = max(0, count - self._seen), count
        return fresh

    def _count(self) -> int:
        return (self._path and _oom_kills(self._path)) or 0


def _oom_kills(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _event_files(proc: Path) -> Iterator[Path]:
    """
    Where the kernel may count for this process: version 2 of control groups first, then 1.

    Source: cgroups(7), proc(5) on /proc/pid/mountinfo.
    """
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return
    for kind, controllers, name in (("cgroup2", "", "memory.events"), ("cgroup", "memory", "memory.oom_control")):
        path = next((path for _, held, path in groups if controllers in held.split(",")), None)
        for mount in mounts:
            end = mount.index("-")
            held = [] if kind == "cgroup2" else [controllers]
            if path is None or mount[end + 1] != kind or not set(held) <= set(mount[end + 3].split(",")):
                continue
            inside = _below(path, _plain(mount[3]))
            if inside is not None:
                yield Path(_plain(mount[4])) / inside / name


def _below(path: str, root: str) -> str | None:
    """
    The part of a group's path below the root of a mount; None when the mount does not show it.
    """
    root = root.rstrip("/")
    if path == root or path.startswith(root + "/"):
        return path[len(root) :].lstrip("/")
    return None


def _plain(text: str) -> str:
    """
    A path of mountinfo, where blanks stand as octal numbers.
    """
    for code in (" ", "\t", "\n", "\\"):
        text = text.replace(f"\\{ord(code):03o}", code)
    return text
