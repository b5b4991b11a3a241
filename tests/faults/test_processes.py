"""
What a child can do to its parent, on the real parent with real processes.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.house import House, descendants, state_of

Build = Callable[..., House]

QUICK = 'restart_backoff_base = "20ms"\nrestart_backoff_max = "200ms"\nmax_restart_attempts = 1000\n'


def test_killed_children_come_back_and_leave_nothing_behind(build: Build) -> None:
    house = build("quiet1", "quiet2", "quiet3", manager=QUICK)
    for name in ("quiet1", "quiet2", "quiet3"):
        house.until(name, "Running")
    open_files = Path(f"/proc/{house.process.pid}/fd")
    before = len(list(open_files.iterdir()))
    for i in range(30):
        name = f"quiet{i % 3 + 1}"
        pid = house.until(name, "Running")["pid"]
        os.kill(pid, signal.SIGKILL)
        house.wait(lambda: house.status()[name]["pid"] not in (None, pid), "back")  # noqa: B023 - used at once
    for pid in [one["pid"] for one in house.status().values()]:
        os.kill(pid, signal.SIGKILL)
    house.wait(
        lambda: all(s["state"] == "Running" and s["restarts"] == 11 for s in house.status().values()), "all back"
    )
    # the connection of the last question may be open a moment longer
    house.wait(lambda: len(list(open_files.iterdir())) <= before, "as few open files as before")
    assert [pid for pid in descendants(house.process.pid) if state_of(pid) == "Z"] == []
    assert house.one("quiet1")["restarts_by_reason"] == {"crash": 11}


@pytest.mark.parametrize(
    ("name", "reason", "state"),
    [
        ("broken", "startup", "Failed"),
        ("early", "startup", "Failed"),
        ("soon", "crash", "Failed"),
        ("wrong", "configuration", "Failed"),
        ("away", "temporary", "Failed"),
    ],
)
def test_one_that_always_fails_is_given_up_and_the_others_run(build: Build, name: str, reason: str, state: str) -> None:
    house = build(name, "quiet", manager='max_restart_attempts = 2\nrestart_backoff_base = "10ms"\n')
    found = house.until(name, state)
    assert found["last_exit"].startswith(f"{reason}: ")
    tries = 1 if name == "wrong" else 3  # a configuration that is wrong stays wrong
    assert len(house.lines("service.forked", target=f"{name}-0")) == tries
    assert (found["next_retry_secs"] is None) is (name == "wrong")
    assert found["circuit"] == "open"
    assert house.until("quiet", "Running")["restarts"] == 0
    assert house.ask("status")["status"] == "degraded"


def test_an_open_circuit_is_tried_again_for_ever(build: Build) -> None:
    house = build("early", manager='max_restart_attempts = 0\nrestart_backoff_max = "50ms"\n')
    house.wait(lambda: house.one("early")["incarnation"] > 5, "tried again")
    opened = [one for one in house.one("early")["transitions"] if one["to"] == "Failed"]
    assert len(opened) > 4


def test_a_stopped_child_and_one_that_spins_are_replaced_and_the_dump_names_the_line(build: Build) -> None:
    house = build("quiet", "busy", manager='health_check_interval = "200ms"\nfailure_threshold = 3\n')
    stopped = house.until("quiet", "Running")["pid"]
    spinning = house.until("busy", "Running")["pid"]
    os.kill(stopped, signal.SIGSTOP)
    (house.folder / "run" / "spin").touch()
    for name, pid in (("quiet", stopped), ("busy", spinning)):
        house.wait(lambda: house.status()[name]["pid"] not in (None, pid), f"{name} replaced")  # noqa: B023 - used at once
        assert house.until(name, "Running")["restarts_by_reason"] == {"hang": 1}
    assert "in spin_for_ever" in house.log()


def test_a_parent_that_stood_still_does_not_blame_its_children(build: Build) -> None:
    house = build("quiet1", "quiet2", manager='health_check_interval = "100ms"\nfailure_threshold = 2\n')
    before = {name: house.until(name, "Running")["pid"] for name in ("quiet1", "quiet2")}
    for pid in (house.process.pid, *before.values()):
        os.kill(pid, signal.SIGSTOP)  # a suspended machine
    time.sleep(1.5)  # the length of the suspension is what is tested
    for pid in (house.process.pid, *before.values()):
        os.kill(pid, signal.SIGCONT)
    house.wait(lambda: bool(house.lines("daemon.stood_still")), "aware of it")
    later = time.monotonic() + 1.0
    house.wait(lambda: time.monotonic() > later, "a while later")
    assert {name: house.one(name)["pid"] for name in before} == before


def test_one_that_does_not_obey_is_ended_within_the_budget(build: Build) -> None:
    house = build("stubborn", manager='shutdown_timeout = "2s"\n')
    house.until("stubborn", "Running")
    began = time.monotonic()
    house.process.send_signal(signal.SIGTERM)
    assert house.process.wait(10) == 0
    assert time.monotonic() - began < 3.5
    assert house.lines("service.ended", target="stubborn-0")[0]["ending"] == "commanded: SIGKILL"


def test_a_second_signal_ends_it_at_once(build: Build) -> None:
    house = build("stubborn")
    house.until("stubborn", "Running")
    house.process.send_signal(signal.SIGTERM)
    house.wait(lambda: bool(house.lines("daemon.stops")), "stopping")
    began = time.monotonic()
    house.process.send_signal(signal.SIGTERM)
    assert house.process.wait(10) == 0
    assert time.monotonic() - began < 2


def test_what_a_child_leaves_in_a_session_of_its_own_is_reaped_and_said(build: Build) -> None:
    house = build("brood", manager=QUICK)
    pid = house.until("brood", "Running")["pid"]
    grandchild = int((house.folder / "run" / "grandchild").read_text())
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    house.wait(lambda: house.status()["brood"]["pid"] not in (None, pid), "seen dead though a grandchild lives")
    assert time.monotonic() - began < 5
    os.kill(grandchild, signal.SIGKILL)
    house.wait(lambda: bool(house.lines("stray.reaped", child=grandchild)), "reaped")


def test_nothing_outlives_a_killed_parent(build: Build) -> None:
    house = build("quiet1", "quiet2", "stubborn")
    for name in ("quiet1", "quiet2", "stubborn"):
        house.until(name, "Running")
    children = descendants(house.process.pid)
    assert len(children) == 3
    house.process.kill()
    house.process.wait()
    until = time.monotonic() + 1.0
    while any(state_of(pid) not in ("", "Z") for pid in children):
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_flood_on_stderr_does_not_hold_the_parent(build: Build) -> None:
    reading = subprocess.PIPE  # read slowly
    house = build("noisy", "quiet", stderr=reading)
    assert house.process.stderr is not None
    answers = 0
    read = 0
    while read < 100_000_000:
        assert select.select([house.process.stderr], [], [], 30)[0], f"nothing comes after {read} bytes"
        read += len(os.read(house.process.stderr.fileno(), 1 << 20))
        if read // 10_000_000 > answers:
            answers += 1
            assert house.status()["quiet"]["state"] == "Running"
    house.until("noisy", "Running")
    house.process.stderr.close()


def test_clients_that_never_read_or_never_ask_harm_nobody(build: Build) -> None:
    house = build("quiet")
    house.until("quiet", "Running")
    path = str(house.folder / "run" / "admin.sock")
    dumb = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for link in dumb:
        link.connect(path)
    for link in dumb[:10]:
        link.setblocking(False)
        try:
            for _ in range(200):
                link.send(b'{"command": "status"}\n' * 50)
        except BlockingIOError:
            pass
    assert house.status()["quiet"]["state"] == "Running"
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(path)
        link.sendall(b"x" * 200_000 + b"\n")
        link.settimeout(5)
        assert link.recv(1) == b""
    for link in dumb:
        link.close()
    assert house.status()["quiet"]["state"] == "Running"


def test_an_operators_stop_is_sticky_until_a_start(build: Build) -> None:
    house = build("quiet", "early", manager='max_restart_attempts = 0\nrestart_backoff_max = "50ms"\n')
    house.until("quiet", "Running")
    house.ask("stop", service="all")
    forked = len(house.lines("service.forked"))
    assert house.ask("status")["status"] == "healthy"
    house.process.send_signal(signal.SIGHUP)
    house.wait(lambda: bool(house.lines("config.reloaded")), "reloaded")
    assert {one["state"] for one in house.status().values()} == {"Stopped"}
    assert len(house.lines("service.forked")) == forked
    house.ask("start", service="quiet")
    assert house.one("quiet")["state"] == "Running"


def test_needs_gate_the_start_and_a_stop_ends_dependants_first(build: Build) -> None:
    house = build("slow", "quiet1:slow", "quiet2:quiet1")
    assert house.until("quiet1", "Waiting")["message"] == "waits for slow"
    assert house.status()["quiet2"]["state"] == "Waiting"
    (house.folder / "run" / "go").touch()
    house.until("quiet2", "Running")
    house.process.send_signal(signal.SIGTERM)
    assert house.process.wait(20) == 0
    order = [
        (one["target"], one["now"]) for one in house.lines("service.state") if one["now"] in ("Stopping", "Stopped")
    ]
    slots = ("quiet2-0", "quiet1-0", "slow-0")
    assert order == [(slot, state) for slot in slots for state in ("Stopping", "Stopped")]


def test_a_stop_wins_during_a_start_and_during_a_back_off(build: Build, folder: Path) -> None:
    house = build("late", "early", manager='restart_backoff_base = "30s"\n')
    house.until("early", "Backoff")
    assert house.status()["late"]["state"] == "Starting"
    house.process.send_signal(signal.SIGTERM)
    assert house.process.wait(10) == 0
    assert "service.crashed" in house.log()


def test_a_process_cannot_take_more_than_the_hard_limit(build: Build) -> None:
    house = build("fat", manager=QUICK + '[integrations]\nmemory_limit_hard = "96MiB"\n')
    pid = house.until("fat", "Running")["pid"]
    (house.folder / "run" / "eat").touch()
    house.wait(lambda: house.status()["fat"]["pid"] not in (None, pid), "ended and started again")
    assert "MemoryError" in house.log()
