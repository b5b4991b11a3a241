"""
What is seen of a parent from outside: its log, as it is written, and what it uses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from faults.house import descendants, open_files, state_of

DEADLINE_S = 60.0


class Tail:
    """
    Follows a log of JSON lines from where it ends now.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._file.seek(0, 2)
        self._rest = b""
        self.forked: dict[str, int] = {}  # the newest process of each slot that `ready` has seen

    def close(self) -> None:
        self._file.close()

    def lines(self, mark: bytes) -> list[dict[str, Any]]:
        """
        Those with a mark that have come since the last call.
        """
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [json.loads(line) for line in lines if mark in line]

    def ready(self, slots: Mapping[str, float]) -> dict[str, float]:
        """
        Wait until slots are ready again.

        Args:
            slots: when each was killed, as seconds since the epoch.

        Returns:
            Seconds from there to ready, by the log.
        """
        found: dict[str, float] = {}
        until = time.monotonic() + DEADLINE_S
        while len(found) < len(slots):
            if time.monotonic() > until:
                raise AssertionError(f"{sorted(set(slots) - set(found))} not ready again within {DEADLINE_S:g} s")
            for line in self.lines(b'"service.'):
                slot = line["target"]
                if line["event"] == "service.forked":
                    self.forked[slot] = line["child"]
                elif slot in slots and (line.get("was"), line.get("now")) == ("Starting", "Running"):
                    found[slot] = datetime.fromisoformat(line["time"]).timestamp() - slots[slot]
            time.sleep(0.001)
        return found


@dataclass(frozen=True, slots=True)
class Reading:
    """
    What a parent uses at one moment. `memory_kib`: its own, not what it shares with files.
    """

    restarts: int
    memory_kib: int
    files: int
    threads: int


def read(pid: int, restarts: int) -> Reading:
    """
    Of a process, now.
    """
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Reading(
        restarts=restarts,
        memory_kib=int(status["RssAnon"].split()[0]),
        files=len(open_files(pid)),
        threads=int(status["Threads"]),
    )


def zombies(pid: int) -> list[int]:
    """
    Processes below one that have ended and were not reaped.
    """
    return [one for one in descendants(pid) if state_of(one) == "Z"]
