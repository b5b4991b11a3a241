"""
`optimizerctl logs` over rings as processes write them, with and without a daemon, and over their rotations.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

from optimizer.ctl.logs import Reader
from optimizer.telemetry.lines import fitted
from optimizer.telemetry.outlets import File

Ctl = Callable[..., Result]


def ring(folder: Path, slot: str, largest: int = 2**20) -> File:
    return File(folder / "log" / f"{slot}.log", 0o600, lambda count: b"{}", largest)


def say(place: File, second: float, event: str, level: str = "info", **fields: Any) -> None:
    service = place.path.name.removesuffix(".log")
    own = {"time": f"2026-03-01T12:00:{second:09.6f}Z", "level": level, "service": service, "pid": 7, "event": event}
    assert place.put(fitted(own, fields)[1])


@pytest.fixture
def rings(folder: Path) -> dict[str, File]:
    """
    Three slots that spoke in turns.
    """
    made = {slot: ring(folder, slot) for slot in ("supervisor", "rest_api-0", "rest_api-1")}
    say(made["supervisor"], 1, "daemon.starts")
    say(made["rest_api-0"], 2, "one", "debug", n=1)
    say(made["rest_api-1"], 3, "two", "warn", why="a b")
    say(made["rest_api-0"], 4, "three", "error")
    say(made["supervisor"], 5, "daemon.ready")
    return made


def events(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [json.loads(line)["event"] for line in result.stdout.splitlines()]


def test_all_slots_in_the_order_of_time(rings: dict[str, File], ctl: Ctl) -> None:
    found = ctl("logs")
    assert found.exit_code == 0
    assert found.stdout.splitlines() == [
        "2026-03-01T12:00:01.000Z INFO  supervisor[7] daemon.starts",
        "2026-03-01T12:00:02.000Z DEBUG rest_api-0[7] one n=1",
        '2026-03-01T12:00:03.000Z WARN  rest_api-1[7] two why="a b"',
        "2026-03-01T12:00:04.000Z ERROR rest_api-0[7] three",
        "2026-03-01T12:00:05.000Z INFO  supervisor[7] daemon.ready",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rest_api"], ["one", "two", "three"]),
        (["rest_api-1"], ["two"]),
        (["supervisor"], ["daemon.starts", "daemon.ready"]),
        (["storage"], []),
        (["-n", "2"], ["three", "daemon.ready"]),
        (["-n", "1", "rest_api"], ["three"]),
        (["-n", "0"], []),
        (["--level", "warn"], ["two", "three"]),
        (["--level", "error", "-n", "9"], ["three"]),
    ],
)
def test_what_is_chosen(rings: dict[str, File], ctl: Ctl, arguments: list[str], expected: list[str]) -> None:
    assert events(ctl("logs", *arguments, "--output", "json")) == expected


def test_yaml(rings: dict[str, File], ctl: Ctl) -> None:
    documents = list(yaml.safe_load_all(ctl("logs", "rest_api-1", "--output", "yaml").stdout))
    assert [(one["event"], one["why"]) for one in documents] == [("two", "a b")]


def test_the_daemon_says_where_its_folder_is(
    rings: dict[str, File], ctl: Ctl, admin: Callable[..., Any], tmp_path: Path
) -> None:
    say(ring(tmp_path, "storage-0"), 1, "elsewhere")
    admin(lambda _: {"ok": True, "result": {"runtime_dir": str(tmp_path)}})
    assert events(ctl("logs", "--output", "json")) == ["elsewhere"]


def test_what_is_no_line_is_passed_over(rings: dict[str, File], ctl: Ctl) -> None:
    with rings["rest_api-0"].path.open("ab") as file:
        file.write(b'{"time": "torn\n[1]\n\xff\n')
    say(rings["rest_api-0"], 6, "whole")
    assert events(ctl("logs", "rest_api", "--output", "json"))[-1] == "whole"


def test_an_unknown_service(rings: dict[str, File], ctl: Ctl) -> None:
    close, far = ctl("logs", "rest-api"), ctl("logs", "xyz")
    assert (close.exit_code, far.exit_code) == (4, 4)
    assert "there is no service rest-api; did you mean rest_api?" in close.stderr
    assert "rest_api-0" in far.stderr


def test_a_folder_without_lines(folder: Path, ctl: Ctl) -> None:
    found = ctl("logs")
    assert found.exit_code == 3
    assert str(folder / "log") in found.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_another_user_is_refused_with_a_sentence(rings: dict[str, File], folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "log").chmod(0o755)
    code = (
        "import os, sys\nfrom optimizer.ctl import main\nimport optimizer.ctl.logs\nos.setuid(65534)\n"
        f"main(['--socket', {str(folder / 'admin.sock')!r}, 'logs'], prog_name='optimizerctl')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (5, "")
    assert "may be read by the daemon's user only" in found.stderr


def test_a_reader_follows_over_rotations_without_losing_or_repeating_a_line(folder: Path) -> None:
    place = ring(folder, "storage-0", largest=20_000)
    for number in range(300):
        say(place, 1, "n", number=number)
    reader = Reader(folder / "log", None, 0)
    found = [line["number"] for line in reader.last(10**6)]
    assert found[-1] == 299
    done = threading.Event()

    def write() -> None:
        for number in range(300, 3000):
            say(place, 2, "n", number=number)
            if number % 50 == 0:
                seen.wait(10)  # a ring may turn once between two looks, not more often
                seen.clear()
        done.set()

    seen = threading.Event()
    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        found += [line["number"] for line in reader.new()]
        seen.set()
    writer.join()
    found += [line["number"] for line in reader.new()]
    assert found == list(range(found[0], 3000))


def test_a_reader_hears_slots_that_come_later_and_lines_in_two_pieces(folder: Path) -> None:
    (folder / "log").mkdir()
    reader = Reader(folder / "log", "rest_api", 0)
    assert reader.last(5) == []
    place = ring(folder, "rest_api-3")
    os.write(place.descriptor, b'{"event":')
    assert reader.new() == []
    os.write(place.descriptor, b'"late"}\n')
    assert reader.new() == [{"event": "late"}]
    place.path.unlink()
    assert reader.new() == []
    assert place.reopen()
    say(place, 1, "again")
    assert [line["event"] for line in reader.new()] == ["again"]


def test_follow_until_interrupted(rings: dict[str, File], folder: Path) -> None:
    command = [sys.executable, "-c", "from optimizer.ctl import main; main(prog_name='optimizerctl')"]
    arguments = ["--socket", str(folder / "admin.sock"), "--output", "json", "logs", "-f", "-n", "1"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "daemon.ready"
        say(rings["rest_api-0"], 9, "new")
        assert json.loads(process.stdout.readline())["event"] == "new"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
