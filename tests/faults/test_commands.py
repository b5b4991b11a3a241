"""
Orders that come at a bad moment: while services start, while they fail, while others are being carried out.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from faults.house import House, descendants, state_of

Build = Callable[..., House]

QUICK = 'restart_backoff_base = "20ms"\nrestart_backoff_max = "200ms"\nmax_restart_attempts = 1000\n'


class Asking(threading.Thread):
    """
    A client that waits for the answer to one command.
    """

    def __init__(self, house: House, command: str, **fields: Any) -> None:
        super().__init__()
        self.refusal: str | None = None
        self._house, self._command, self._fields = house, command, fields
        self.start()

    def run(self) -> None:
        with suppress(OSError, ValueError):  # the parent ended before it answered
            self.refusal = self._house.answer(self._command, **self._fields)


def test_a_stop_of_all_while_they_start(build: Build) -> None:
    house = build("late", "slow", "quiet1:slow", "quiet2", manager='shutdown_timeout = "2s"\n')
    house.until("quiet2", "Running")
    assert [house.one(name)["state"] for name in ("late", "slow", "quiet1")] == ["Starting", "Starting", "Waiting"]
    began = time.monotonic()
    house.ask("stop", service="all", timeout_s=2)
    assert time.monotonic() - began < 5
    assert {one["state"] for one in house.status().values()} == {"Stopped"}
    assert descendants(house.process.pid) == []
    assert house.forked("quiet1") == 0
    (house.run / "go").touch()
    house.ask("start", service="all", timeout_s=0.1, no_wait=True)
    house.until("quiet1", "Running")
    assert [house.forked(name) for name in ("slow", "quiet1", "quiet2")] == [2, 1, 2]


def test_restarts_of_all_while_they_are_killed(build: Build) -> None:
    names = ("quiet1", "quiet2:quiet1", "quiet3:quiet2", "quiet4")
    house = build(*names, manager=QUICK)
    house.until("quiet3", "Running")
    done = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        rng = random.Random(11)
        while not done.wait(0.02):
            with suppress(OSError, IndexError, ProcessLookupError):
                killed.append(rng.choice(descendants(house.process.pid)))
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        refusals: list[str] = []
        until = time.monotonic() + 30
        while len(killed) < 40 or len(refusals) < 6:
            assert time.monotonic() < until
            refusals.append(house.answer("restart", service="all", timeout_s=10))
    finally:
        done.set()
        killer.join()
    assert [one for one in refusals if one and "quiet" not in one] == []  # a refusal names who is not up
    house.wait(lambda: all(one["state"] == "Running" for one in house.status().values()), "up again")
    shown = {one["pid"] for one in house.status().values()}
    house.wait(lambda: set(descendants(house.process.pid)) == shown, "without a process too many")
    assert house.answer("restart", service="all") == ""
    house.process.send_signal(signal.SIGTERM)
    assert house.process.wait(10) == 0


def test_a_stop_wins_over_a_reload_and_what_is_asked_meanwhile(build: Build) -> None:
    house = build("slow", "quiet1:slow", "quiet2:quiet1", "stubborn", manager='shutdown_timeout = "3s"\n')
    (house.run / "go").touch()
    for name in ("quiet2", "stubborn"):
        house.until(name, "Running")
    (house.run / "go").unlink()
    house.configure('shutdown_timeout = "3s"\n[integrations]\nmemory_limit_hard = "1GiB"\n')
    reload = Asking(house, "reload")
    house.until("slow", "Starting")  # and stays there: the reload waits for it
    restart = Asking(house, "restart", service="all")
    began = time.monotonic()
    house.process.send_signal(signal.SIGTERM)
    house.wait(lambda: bool(house.lines("daemon.stops")), "stopping")
    pids = descendants(house.process.pid)
    for service in ("quiet2", "slow", "all"):
        for command in ("start", "restart"):
            with suppress(OSError, ValueError):
                assert "stops" in house.answer(command, service=service)
    assert house.process.wait(10) == 0
    assert time.monotonic() - began < 6
    for client in (reload, restart):
        client.join(10)
    log = house.log()
    assert '"service.forked"' not in log[log.index('"daemon.stops"') :]
    assert [pid for pid in pids if state_of(pid) not in ("", "Z")] == []
    assert house.lines("daemon.stopped")[0]["took_ms"] < 4000
