"""
The real daemon from outside: two in one place, a start over what a killed one left, and what its users see of failures.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from system.conftest import launch  # noqa: F401 - a fixture
from system.daemon import BIN, Daemon, task

Launch = Callable[..., Daemon]

SHARP = '[service_manager]\nhealth_check_interval = "1s"\nrestart_backoff_base = "50ms"\n'


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """
    One for the tests that leave it healthy.
    """
    one = Daemon(Path(tempfile.mkdtemp(prefix="llmo-")), SHARP)
    try:
        yield one.start()
    finally:
        for pid in one.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if one.process is not None:
            one.process.wait(10)
        shutil.rmtree(one.folder)


def status(daemon: Daemon, service: str) -> dict[str, Any]:
    found: dict[str, Any] = daemon.services()[service]
    return found


def second(daemon: Daemon, **folders: Path) -> subprocess.CompletedProcess[str]:
    """
    What becomes of another daemon with folders of the first.
    """
    elsewhere = {f"LLM_OPTIMIZER__SERVICE__{name.upper()}": str(path) for name, path in folders.items()}
    command = [str(BIN / "llm-optimizer"), "--config", str(daemon.config)]
    env = {**daemon.env, **elsewhere}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)


def test_a_second_daemon_in_the_same_place_refuses_with_a_sentence(daemon: Daemon, tmp_path: Path) -> None:
    before = daemon.pids()
    for theirs in ({"data_dir": tmp_path / "data"}, {"runtime_dir": tmp_path / "run"}):
        done = second(daemon, **theirs)
        taken = daemon.runtime_dir if "data_dir" in theirs else daemon.folder / "data"
        assert (done.returncode, done.stdout) == (75, "")
        assert done.stderr.splitlines()[-1] == f"error: another daemon runs in {taken}"
    assert daemon.pids() == before
    assert daemon.ctl("status").returncode == 0


def test_each_service_listens_where_it_should_and_nowhere_else(daemon: Daemon) -> None:
    def listening(pid: int) -> set[int]:
        links = psutil.Process(pid).net_connections("tcp")
        return {link.laddr.port for link in links if link.status == psutil.CONN_LISTEN}

    for service in daemon.services().values():
        assert listening(service["pid"]) == set(service["ports"].values())


def test_a_killed_api_answers_who_asks_at_once_and_refuses_nobody(daemon: Daemon) -> None:
    assert daemon.call("POST", "/api/v1/tasks", task("asked", ["a", "b"]))[0] == 201
    took: list[float] = []
    for _ in range(10):
        before = daemon.pids()["rest_api"]
        os.kill(before, signal.SIGKILL)
        began = time.monotonic()
        assert daemon.call("POST", "/api/v1/tasks/asked/select", {})[0] == 200  # raises if it is refused
        took.append(time.monotonic() - began)
        assert daemon.pids()["rest_api"] != before
        daemon.wait(daemon.healthy, "healthy")
        daemon.ctl("restart", "rest_api")  # an operator vouches for it, so the next kill is the first of a row
    assert max(took) < 5, took
    assert statistics.median(took) < 2, took


def test_one_that_is_killed_whenever_it_appears_is_given_up_until_an_operator_says_so(daemon: Daemon) -> None:
    until, killed = time.monotonic() + 60, set[int]()
    while (found := status(daemon, "integrations"))["state"] != "Failed":
        assert time.monotonic() < until
        if found["pid"] is not None and found["pid"] not in killed:
            killed.add(found["pid"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(found["pid"], signal.SIGKILL)
    assert len(killed) == 4  # the first, and three attempts
    assert found["next_retry_secs"] > 30
    code, health = daemon.get("/health")
    assert (code, health["status"], health["services"]["integrations"]["state"]) == (200, "degraded", "Failed")
    assert daemon.ctl("status").returncode == 1
    done = daemon.ctl("restart", "integrations")
    assert done.returncode == 0, done.stderr
    found = status(daemon, "integrations")
    assert (found["state"], found["circuit"], found["consecutive_failures"]) == ("Running", "closed", 0)
    assert daemon.ctl("status").returncode == 0
    daemon.wait(daemon.healthy, "healthy")


def test_a_frozen_collector_is_replaced(daemon: Daemon) -> None:
    pid = daemon.pids()["collector"]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    daemon.wait(lambda: daemon.pids().get("collector") not in (None, pid), "replaced")
    assert time.monotonic() - began < 25
    daemon.wait(daemon.healthy, "healthy")
    assert status(daemon, "collector")["last_exit"].startswith("hang: ")


def test_a_start_over_what_a_killed_daemon_left_works_at_once(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch(SHARP)
    assert daemon.call("POST", "/api/v1/tasks", task("kept", ["a"]))[0] == 201
    assert daemon.process is not None
    pids = [daemon.process.pid, *daemon.pids().values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # nobody cleans up behind another
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    daemon.process.wait()
    daemon.wait(lambda: daemon.alive() == [], "gone")
    left = {path.name for path in daemon.runtime_dir.rglob("*")}
    assert {"admin.sock", "daemon.lock", "storage.rpc"} <= left
    done = daemon.ctl("status", "--output", "json")
    assert done.returncode == 3, done.stderr
    started = time.monotonic()
    daemon.start()
    assert time.monotonic() - started < 15
    daemon.wait(daemon.healthy, "healthy")
    assert daemon.get("/api/v1/tasks/kept")[0] == 200
    assert json.loads(daemon.ctl("status", "--output", "json").stdout)["services"]["storage"]["restarts"] == 0
    assert daemon.stop() == 0
