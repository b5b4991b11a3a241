"""
From the fork to the service: what a child has of its parent, and what each can do to the other.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable

import pytest
from faults.house import House, descendants, open_files, state_of

Build = Callable[..., House]

QUICK = 'restart_backoff_base = "20ms"\nrestart_backoff_max = "200ms"\nmax_restart_attempts = 1000\n'


def gone(pids: list[int], within_s: float) -> bool:
    until = time.monotonic() + within_s
    while any(state_of(pid) not in ("", "Z") for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def test_a_parent_that_is_killed_before_its_child_is_tied_to_it_leaves_nothing(build: Build) -> None:
    house = build("quiet1", "quiet2", manager=QUICK)
    pids = [house.until(name, "Running")["pid"] for name in ("quiet1", "quiet2")]
    (house.run / "hold").touch()
    os.kill(pids[0], signal.SIGKILL)
    held_at = house.run / "held"
    house.wait(lambda: held_at.exists() and held_at.read_text().endswith("\n"), "holding a fresh child")
    held = int(held_at.read_text())
    house.wait(lambda: state_of(held) == "T", "stopped")
    assert os.getsid(held) == os.getsid(house.process.pid)  # it has not begun: setsid comes before prctl
    (house.run / "hold").unlink()
    house.process.kill()
    house.process.wait()
    os.kill(held, signal.SIGCONT)
    assert gone([held, *pids], within_s=1.0)


def test_a_fresh_child_has_its_own_descriptors_and_no_others(build: Build) -> None:
    house = build("quiet1", "quiet2", "quiet3", manager=QUICK)
    first = {name: house.until(name, "Running")["pid"] for name in ("quiet1", "quiet2", "quiet3")}
    os.kill(first["quiet1"], signal.SIGKILL)
    house.wait(lambda: house.status()["quiet1"]["pid"] not in (None, first["quiet1"]), "forked anew, beside the others")
    parents = open_files(house.process.pid)
    for name in first:
        found = open_files(house.until(name, "Running")["pid"])
        standard = [found.pop(number) for number in (0, 1, 2)]
        assert standard == [parents[number] for number in (0, 1, 2)]
        kinds = Counter(target.partition(":[")[0] for target in found.values())
        assert kinds == {
            "socket": 3,  # the control channel, and the pair that wakes its own loop
            "pipe": 1,  # the lifeline
            "anon_inode": 1,  # its own epoll
            f"{house.run}/log/{name}-0.log": 1,
        }
        shared = {target for target in found.values() if target in parents.values()}
        assert [target.partition(":")[0] for target in shared if not target.startswith("anon_inode")] == ["pipe"]
        assert "anon_inode:[eventpoll]" in found.values()


def test_sigterm_to_a_child_ends_it_in_order_and_it_is_started_again(build: Build) -> None:
    house = build("quiet1", "quiet2")
    pid = house.until("quiet1", "Running")["pid"]
    os.kill(pid, signal.SIGTERM)
    house.wait(lambda: house.status()["quiet1"]["pid"] not in (None, pid), "started again")
    found = house.until("quiet1", "Running")
    assert found["last_exit"] == "crash: exit code 0"  # it finished; nobody had wanted that
    assert found["restarts_by_reason"] == {"crash": 1}
    assert house.lines("daemon.stops") == []
    assert house.one("quiet2")["restarts"] == 0


def test_a_child_that_closes_all_it_has_does_not_deafen_its_parent(build: Build) -> None:
    house = build("bare", "quiet", manager=QUICK + 'health_check_interval = "200ms"\n')
    pids = {name: house.until(name, "Running")["pid"] for name in ("bare", "quiet")}
    (house.run / "strip").touch()
    house.wait(lambda: len(open_files(pids["bare"])) == 3, "stripped")
    os.kill(pids["quiet"], signal.SIGKILL)
    for name, reason in (("quiet", "crash"), ("bare", "hang")):
        house.wait(lambda: house.status()[name]["pid"] not in (None, pids[name]), f"{name} replaced")  # noqa: B023 - used at once
        assert house.until(name, "Running")["restarts_by_reason"] == {reason: 1}


def test_what_is_no_message_on_the_control_channel_is_said_and_survived(build: Build) -> None:
    house = build("babble", "quiet")
    house.wait(lambda: len(house.lines("control.garbled", size=1000)) == 100, "aware of it")
    assert {name: one["state"] for name, one in house.status().items()} == {"babble": "Running", "quiet": "Running"}
    assert house.one("babble")["restarts"] == 0


def test_the_admin_socket_dies_with_the_parent_even_if_a_grandchild_lives(build: Build) -> None:
    house = build("brood", "quiet1", "quiet2")
    for name in ("brood", "quiet1", "quiet2"):
        house.until(name, "Running")
    grandchild = int((house.run / "grandchild").read_text())
    children = [pid for pid in descendants(house.process.pid) if pid != grandchild]
    house.process.kill()
    house.process.wait()
    try:
        assert gone(children, within_s=1.0)
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(5)
            with pytest.raises(ConnectionRefusedError):
                link.connect(str(house.run / "admin.sock"))
        assert state_of(grandchild) not in ("", "Z")
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_no_thread_is_there_when_the_parent_forks(build: Build) -> None:
    house = build("quiet1", "quiet2", "quiet3", "soon", manager=QUICK + 'stable_after = "0s"\n')
    for i in range(20):
        name = f"quiet{i % 3 + 1}"
        pid = house.until(name, "Running")["pid"]
        os.kill(pid, signal.SIGKILL)
        house.wait(lambda: house.status()[name]["pid"] not in (None, pid), "back")  # noqa: B023 - used at once
    threads = (house.run / "forks").read_text().split()
    assert len(threads) >= 24
    assert set(threads) == {"1"}
