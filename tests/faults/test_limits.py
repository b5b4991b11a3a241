"""
No room for another process, another descriptor, another byte: the parent waits for room, and what runs runs on.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.disks import fill, small_file_system
from faults.house import House, descendants
from system.conftest import launch  # noqa: F401 - a fixture
from system.daemon import Daemon, task

Build = Callable[..., House]
Launch = Callable[..., Daemon]

WAITING = 'restart_backoff_base = "50ms"\nrestart_backoff_max = "100ms"\nmax_restart_attempts = 2\n'


@contextmanager
def limit(pid: int, name: str, most: int, through: Sequence[str] = ()) -> Iterator[None]:
    """
    A soft limit of a running process, for a while.
    """
    told = [*through, "prlimit", f"--pid={pid}"]
    get = [*told, f"--{name}", "--output=SOFT", "--noheadings"]
    before = subprocess.run(get, check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([*told, f"--{name}={most}:"], check=True)
    yield
    subprocess.run([*told, f"--{name}={before}:"], check=True)


def refused_and_recovered(house: House, name: str, most: int, error: str, through: Sequence[str] = ()) -> None:
    pid, other = (house.until(quiet, "Running")["pid"] for quiet in ("quiet1", "quiet2"))
    files = len(house.open_files())
    with limit(house.process.pid, name, most, through):
        os.kill(pid, signal.SIGKILL)
        house.wait(lambda: house.one("quiet1")["incarnation"] > 8, "trying again and again")
        found = house.until("quiet1", "Failed")
        assert found["circuit"] == "open"
        assert error in "".join(one["reason"] for one in found["transitions"])
        assert house.one("quiet2")["pid"] == other
    found = house.until("quiet1", "Running")
    assert found["last_exit"] == "crash: SIGKILL"
    assert len(descendants(house.process.pid)) == 2
    house.wait(lambda: len(house.open_files()) <= files, "without a descriptor more than before")


def test_a_fork_that_the_kernel_refuses_is_tried_until_there_is_room(build: Build, folder: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("becoming another user takes root")
    user = 61_000 + os.getpid() % 3000  # nobody's: the limit counts all processes of a user
    reading = [f"--{kind}-caps=+dac_override" for kind in ("inh", "ambient")]
    through = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *reading]
    house = build("quiet1", "quiet2", manager=WAITING, through=through)
    assert f"\nUid:\t{user}\t{user}" in Path(f"/proc/{house.process.pid}/status").read_text()
    refused_and_recovered(house, "nproc", 2, "Resource temporarily unavailable", through)


def without_gaps(house: House) -> list[socket.socket]:
    """
    Clients that fill the gaps in the numbers of the parent's descriptors; a limit is one of numbers.
    """
    own = 2 + 1 + 2  # what wakes the loop, who listens, two control channels
    house.wait(lambda: sum(one.startswith("socket:") for one in house.open_files().values()) == own, "left alone")
    clients: list[socket.socket] = []
    while max(numbers := set(house.open_files())) >= len(numbers):
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].connect(str(house.run / "admin.sock"))
        house.wait(lambda: len(house.open_files()) > len(numbers), "accepting")
    return clients


@pytest.mark.parametrize("room", [1, 2])
def test_without_descriptors_the_parent_waits_for_some_and_loses_none(build: Build, room: int) -> None:
    """
    There is room for a client, but not for a control channel, or not for what is opened after it.
    """
    house = build("quiet1", "quiet2", manager=WAITING)
    house.until("quiet2", "Running")
    clients = without_gaps(house)
    try:
        most = len(house.open_files()) + room - 2  # two are given back by the one that is killed
        refused_and_recovered(house, "nofile", most, "Too many open files")
    finally:
        for client in clients:
            client.close()


def test_counters_without_room_do_not_harm_services(launch: Launch, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    with small_file_system(tmp_path, mebibytes=4) as folder:
        daemon = launch('[service_manager]\nhealth_check_interval = "1s"\n', runtime_dir=folder / "run")
        metrics = folder / "run" / "metrics"
        fill(folder)
        before = {path: path.stat().st_blocks for path in metrics.iterdir()}
        pids = daemon.pids()
        for i in range(400):  # each makes series of its own, more than the files have room for
            assert daemon.call("POST", "/api/v1/tasks", task(f"{i:0100d}", ["a"]))[0] == 201
            assert daemon.call("POST", f"/api/v1/tasks/{i:0100d}/select", {})[0] == 200
        assert "metrics.no_room" in daemon.log()
        assert {path: path.stat().st_blocks for path in metrics.iterdir()} == before
        os.kill(pids["rest_api"], signal.SIGKILL)  # the next one finds no room from the beginning
        daemon.wait(lambda: daemon.pids().get("rest_api") not in (None, pids["rest_api"]), "started again")
        assert daemon.call("POST", f"/api/v1/tasks/{0:0100d}/select", {})[0] == 200
        status, exposed = daemon.get("/metrics", port=daemon.metrics)
        assert status == 200
        assert "selections_total{" in exposed
        (folder / "filler").unlink()
        for i in range(400):
            assert daemon.call("POST", f"/api/v1/tasks/{i:0100d}/select", {})[0] == 200
        last = f'selections_total{{task="{399:0100d}",variant="a"}}'
        daemon.wait(lambda: last in daemon.get("/metrics", port=daemon.metrics)[1], "counting again")
        assert {name: pid for name, pid in daemon.pids().items() if name != "rest_api"} == {
            name: pid for name, pid in pids.items() if name != "rest_api"
        }
        assert daemon.stop() == 0
