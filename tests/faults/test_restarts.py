"""
When the parent tries again: what counts as a row of failures, whatever the clock on the wall says and whoever calls.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from faults.house import House

Build = Callable[..., House]

FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
HOUR_S = 3600.0


def at(line: dict[str, str]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


def test_an_end_after_twice_the_stable_time_begins_a_new_row(build: Build, folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "lives").write_text("0 0.4 0")
    house = build("mayfly", manager='stable_after = "200ms"\nrestart_backoff_base = "30s"\nmax_restart_attempts = 9\n')
    found = house.until("mayfly", "Backoff")
    # the second end is the first of a new row, so it was started again at once; only the third, the second of that row, waits
    assert (found["incarnation"], found["consecutive_failures"]) == (3, 2)
    assert found["next_retry_secs"] > 20
    lived = [at(line) for line in house.lines("service.ended")]
    assert lived[1] - lived[0] > 0.4


def test_one_that_lives_a_little_longer_than_the_stable_time_does_not_loop_for_ever(build: Build, folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "lives").write_text("0.25 " * 1000)
    timing = 'stable_after = "200ms"\nrestart_backoff_base = "5ms"\nrestart_backoff_max = "30s"\n'
    house = build("mayfly", manager=timing + "max_restart_attempts = 3\n")
    found = house.until("mayfly", "Failed")
    assert 3 < found["incarnation"] <= 2 * 3 + 1  # the window of ten stable times has room for three
    assert (found["circuit"], found["next_retry_secs"] > 20) == ("open", True)
    assert house.lines("service.forked")[-1]["child_incarnation"] == found["incarnation"]


def test_the_clock_on_the_wall_decides_nothing(build: Build, folder: Path) -> None:
    if not FAKETIME:
        assert not os.environ.get("CI"), "libfaketime is to be there"
        pytest.skip("there is no libfaketime")
    clock = folder / "clock"
    clock.write_text("+0")
    faked = {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    timing = (
        'health_check_interval = "300ms"\nfailure_threshold = 3\nrestart_backoff_base = "1s"\nrestart_jitter = 0.0\n'
    )
    house = build("quiet", "early", manager=timing, env=faked)
    pid = house.until("quiet", "Running")["pid"]
    house.until("early", "Backoff")
    began, up_s = time.monotonic(), house.one("quiet")["uptime_secs"]
    for hours, longest_s in ((1, 1.0), (-1, 2.0)):
        tries, left_s = house.forked("early"), house.until("early", "Backoff")["next_retry_secs"]
        assert left_s <= longest_s
        fresh = clock.with_suffix(".new")
        fresh.write_text(f"{hours * HOUR_S:+.0f}")
        fresh.rename(clock)
        took_s = house.wait(lambda: house.forked("early") > tries, "tried again")  # noqa: B023 - used at once
        assert -0.3 < took_s - left_s < 3.0  # neither at once nor in an hour
        shown = at(house.lines("service.forked")[-1]) - time.time()
        assert shown == pytest.approx(hours * HOUR_S, abs=30)  # the clock was moved
    found = house.one("quiet")
    assert found["pid"] == pid  # its liveness deadline of 0.9 s has passed several times
    assert abs(found["uptime_secs"] - up_s - (time.monotonic() - began)) < 1.5


def test_a_storm_of_hangups_during_a_back_off_moves_no_start(build: Build) -> None:
    manager = 'restart_backoff_base = "1500ms"\nrestart_jitter = 0.0\nmax_restart_attempts = '
    house = build("early", "quiet", manager=manager + "10\n")
    pid = house.until("quiet", "Running")["pid"]
    retry_s = house.until("early", "Backoff")["next_retry_secs"]
    until, tries = time.monotonic() + retry_s, house.forked("early")
    for i in range(60):
        house.configure(manager + f"{11 + i}\n")
        house.process.send_signal(signal.SIGHUP)
    house.wait(
        lambda: house.ask("config")["config"]["service_manager"]["max_restart_attempts"] == 70, "at the last file"
    )
    assert (house.status()["early"]["state"], house.forked("early")) == ("Backoff", tries)
    house.wait(lambda: house.forked("early") > tries, "tried again")
    assert -0.3 < time.monotonic() - until < 3.0
    assert (house.one("quiet")["pid"], house.one("quiet")["restarts"]) == (pid, 0)


def test_a_reload_during_a_back_off_starts_what_it_changes_at_once(build: Build) -> None:
    house = build("picky", "quiet", manager='restart_backoff_base = "30s"\n')
    assert house.until("picky", "Backoff")["next_retry_secs"] > 20
    house.configure('restart_backoff_base = "30s"\n[integrations]\nmemory_limit_hard = "1GiB"\n')
    began = time.monotonic()
    assert house.ask("reload")["result"] == "applied"
    assert time.monotonic() - began < 10
    found = house.one("picky")
    assert (found["state"], found["next_retry_secs"], found["circuit"]) == ("Running", None, "closed")
    assert found["restarts_by_reason"] == {"startup": 1, "reload": 1}
    assert house.one("quiet")["restarts_by_reason"] == {"reload": 1}
