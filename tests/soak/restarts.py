"""
Thousands of restarts of trivial services: what the parent keeps of each.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Final

from faults.house import House
from soak.figures import Figure, equal, quantiles_ms, slope
from soak.parent import Reading, Tail, read, zombies

_SERVICES: Final = 6
_LOOK: Final = 50  # restarts between two readings
_WARM: Final = 2000  # restarts until what is kept of the newest (transitions, system events) has grown full
_MOST_BYTES: Final = 50  # of memory for each restart: less is the allocator settling, a leaked object is more
_MANAGER: Final = 'max_restart_attempts = 1000000\nrestart_backoff_base = "0s"\nstable_after = "1s"\n'


def restarts(folder: Path, count: int, seed: int) -> list[Figure]:
    """
    Kill one after another; the parent does not outlive it.
    """
    house = House(folder, [f"quiet{i}" for i in range(_SERVICES)], _MANAGER).start()
    try:
        for i in range(_SERVICES):
            house.until(f"quiet{i}", "Running")
        return _restarts(house, count, random.Random(seed))
    finally:
        house.end()
        shutil.rmtree(folder / "run")


def _restarts(house: House, count: int, rng: random.Random) -> list[Figure]:
    tail, took = Tail(house.folder / "log"), list[float]()
    pids = {name: one["pid"] for name, one in house.status().items()}
    readings = [read(house.process.pid, 0)]  # the connection that asked may be open still: its files do not count
    began = time.monotonic()
    for done in range(1, count + 1):
        name = rng.choice(sorted(pids))
        at = time.time()
        os.kill(pids[name], signal.SIGKILL)
        took.append(tail.ready({f"{name}-0": at})[f"{name}-0"])
        pids[name] = tail.forked[f"{name}-0"]
        if done % _LOOK == 0:
            readings.append(read(house.process.pid, done))
    tail.close()
    found = house.status()
    threads = (house.run / "forks").read_text().split()
    return [
        Figure("restarts of trivial services", f"{count} in {time.monotonic() - began:.0f} s"),
        quantiles_ms("kill to ready", took),
        equal("restarts the parent counted", sum(one["restarts"] for one in found.values()), count),
        equal("services running", sum(one["state"] == "Running" for one in found.values()), _SERVICES),
        *_growth(readings, count),
        equal("threads at any fork", sorted(set(threads)), ["1"]),
        equal("zombies", zombies(house.process.pid), []),
    ]


def _growth(readings: list[Reading], count: int) -> list[Figure]:
    flat = [
        equal("parent's files open", sorted({one.files for one in readings[1:]}), [readings[1].files]),
        equal("parent's threads", sorted({one.threads for one in readings}), [1]),
        Figure("parent's memory", f"{readings[0].memory_kib} -> {readings[-1].memory_kib} KiB"),
    ]
    if count < 2 * _WARM:
        return [*flat, Figure("memory a restart", f"not fitted below {2 * _WARM} restarts")]
    warm = [one for one in readings if one.restarts >= _WARM]
    per_restart, error = slope([one.restarts for one in warm], [1024.0 * one.memory_kib for one in warm])
    told, holds = f"{per_restart:.0f} +- {error:.0f} B", per_restart - 2 * error <= _MOST_BYTES
    return [*flat, Figure(f"memory a restart, fitted after {_WARM}", told, f"<= {_MOST_BYTES} B", holds)]
