"""
What a process's lines are, where they go, and what a process suffers for them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from optimizer.config.fields import Secret
from optimizer.config.observability_settings import Settings
from optimizer.errors import Invalid, Permanent
from optimizer.telemetry import logs
from optimizer.telemetry.logs import configure, log

Read = Callable[[], list[str]]


@pytest.fixture
def stderr(capfd: pytest.CaptureFixture[str]) -> Iterator[Read]:
    """
    All lines on standard error so far; and everything is as it was afterwards.
    """
    hooks, root = (sys.excepthook, sys.unraisablehook, threading.excepthook), logging.getLogger()
    level, handlers, heard = root.level, list(root.handlers), []

    def read() -> list[str]:
        heard.append(capfd.readouterr().err)
        return "".join(heard).splitlines()

    yield read
    configure("error", False, "tests")
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    logging.captureWarnings(False)
    root.setLevel(level)
    root.handlers[:] = handlers


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_every_line_names_its_process(stderr: Read) -> None:
    configure("info", True, "rest_api-0", incarnation=3)
    log.info("policy.published", task="chat", version=3)
    (line,) = parsed(stderr())
    assert line.pop("time")[-1] == "Z"
    assert line == {
        "level": "info", "service": "rest_api-0", "pid": os.getpid(), "incarnation": 3, "event": "policy.published",
        "task": "chat", "version": 3,
    }  # fmt: skip


def test_text_without_colours_in_a_file(stderr: Read) -> None:
    configure("info", False, "storage-0")
    log.warning("disk.full", reason="no room", folder="/a/b")
    (line,) = stderr()
    assert line.partition(" ")[2] == f'WARN  storage-0[{os.getpid()}] disk.full reason="no room" folder=/a/b'


def test_fields_of_a_line_are_not_those_of_its_process(stderr: Read) -> None:
    configure("info", False, "supervisor")
    log.info("service.forked", incarnation=2, pid=1)
    (line,) = stderr()
    assert line.endswith(f"supervisor[{os.getpid()}] service.forked incarnation_=2 pid_=1")


def test_levels_one_by_one(stderr: Read) -> None:
    configure("trace", True, "x")
    for level in ("trace", "debug", "info", "warning", "error", "critical"):
        getattr(log, level)(level)
    assert [line["level"] for line in parsed(stderr())] == ["trace", "debug", "info", "warn", "error", "error"]


def test_the_level_changes_at_once_without_a_line_lost_or_said_twice(stderr: Read) -> None:
    configure("info", True, "x")
    going = threading.Event()

    def speak() -> None:
        for number in range(2000):
            log.info("one", number=number)
            log.debug("other", number=number)
            if number == 100:
                going.set()

    speaker = threading.Thread(target=speak)
    speaker.start()
    going.wait(10)
    for level in ("trace", "warn", "debug", "info") * 50:
        if level != "warn":
            logs.set_level(level)
    speaker.join()
    lines = parsed(stderr())
    assert [line["number"] for line in lines if line["event"] == "one"] == list(range(2000))
    others = [line["number"] for line in lines if line["event"] == "other"]
    assert sorted(set(others)) == others
    logs.set_level("error")
    log.warning("unheard")
    assert len(stderr()) == len(lines)
    with pytest.raises(Invalid, match="one of trace, debug, info, warn, error"):
        logs.set_level("loud")


def test_secrets_are_starred(stderr: Read, tmp_path: Path) -> None:
    configure("info", True, "x", ring=tmp_path / "log" / "x.log", secrets=[Secret("by-its-value")])
    try:
        raise ValueError("cannot use by-its-value", {"key": Secret("by-its-type")})
    except ValueError as error:
        log.opt(exception=error).error("failed", error=error, said=str(error), more=[{"k": Secret("by-its-type")}])
    log.info("event by-its-value")
    for text in ("\n".join(stderr()), (tmp_path / "log" / "x.log").read_text()):
        assert "by-its" not in text
        assert text.count("********") >= 6


def test_an_exception_is_one_line(stderr: Read) -> None:
    configure("info", False, "x")
    try:
        try:
            raise KeyError("first\nline")
        except KeyError as error:
            raise RuntimeError("second\nforged: line") from error
    except RuntimeError as error:
        log.opt(exception=error).error("failed")
    (line,) = stderr()
    assert "exception=" in line
    assert "test_logs.py" in line
    assert "KeyError" in line


def test_nothing_that_is_logged_raises(stderr: Read) -> None:
    class Unwilling:
        def __repr__(self) -> str:
            raise ValueError("no")

    configure("info", True, "x")
    log.info("odd", a=Unwilling(), b=float("nan"), c={1: {2}}, d="\ud800", e=b"\xff", **{"a b\n": 1})
    (line,) = parsed(stderr())
    assert line["a_b_"] == 1


def test_the_ring_has_json_whatever_stderr_has(stderr: Read, tmp_path: Path) -> None:
    ring = logs.ring_path(tmp_path, "x-0")
    configure("info", False, "x-0", ring=ring)
    log.info("one", k="v")
    (line,) = parsed(ring.read_text().splitlines())
    assert (line["event"], line["k"]) == ("one", "v")
    assert ring == tmp_path / "log" / "x-0.log"
    assert logs.lost() == {"stderr": 0, "ring": 0}


def test_lines_go_to_a_file_instead_and_follow_it_when_it_is_moved(stderr: Read, tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    configure("info", True, "x", file=path)
    number = logs.crash_descriptor()
    log.info("one")
    path.rename(tmp_path / "moved.log")
    log.info("two")
    logs.reopen()
    log.info("three")
    assert logs.crash_descriptor() == number != 2
    assert [line["event"] for line in parsed((tmp_path / "moved.log").read_text().splitlines())] == ["one", "two"]
    assert [line["event"] for line in parsed(path.read_text().splitlines())] == ["three"]
    assert stderr() == []
    path.unlink()
    path.mkdir()
    logs.reopen()
    assert parsed(stderr() or ["{}"]) == [{}]  # it goes on with the one it has


def test_a_file_that_cannot_be_used_sends_lines_to_stderr(stderr: Read, tmp_path: Path) -> None:
    configure("info", True, "x", file=tmp_path / "no" / "out.log")
    log.info("one")
    told, one = parsed(stderr())
    assert (told["event"], told["reason"]) == ("log.file_unusable", "No such file or directory")
    assert one["event"] == "one"
    assert logs.crash_descriptor() == 2
    with pytest.raises(Permanent, match=r"observability\.log_file: .*/no/out.log cannot be opened: No such file"):
        logs.require_file(tmp_path / "no" / "out.log")
    logs.require_file(tmp_path / "out.log")
    logs.require_file(None)


def test_a_reload_changes_level_form_and_file(stderr: Read, tmp_path: Path) -> None:
    configure("info", False, "x")
    log.info("text")
    logs.live(Settings(log_level="debug", json_logging=True, log_file=str(tmp_path / "out.log")))
    log.debug("file")
    logs.live(Settings(log_level="warn", json_logging=True))
    log.info("unheard")
    log.warning("json")
    text, last = stderr()
    assert text.endswith(" text")
    assert json.loads(last)["event"] == "json"
    assert json.loads((tmp_path / "out.log").read_text())["event"] == "file"


def test_what_others_say_becomes_lines(stderr: Read) -> None:
    logging.getLogger().handlers[:] = []  # pytest's do not bear a text whose arguments do not fit
    configure("info", True, "x")
    logging.getLogger("some.library").info("unheard")
    logging.getLogger("some.library").error("two\nlines %s", "postgres://u:pw@h")
    logging.getLogger("some.library").warning("does not fit %d", "x")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", UserWarning, stacklevel=1)
    thread = threading.Thread(target=lambda: 1 / 0, name="writer")
    thread.start()
    thread.join()
    said, fits, warned, crashed = parsed(stderr())
    assert said["text"] == "two\nlines postgres://u:********@h"
    assert fits["text"] == "does not fit %d"
    assert "careful" in warned["text"]
    assert (crashed["event"], crashed["thread"]) == ("thread.crashed", "writer")
    logs.set_level("trace")
    logging.getLogger("some.library").debug("heard")
    assert parsed(stderr())[-1]["level"] == "debug"


def test_an_asyncio_task_that_nobody_asked_is_one_line(stderr: Read) -> None:
    async def fail() -> None:
        task = asyncio.get_running_loop().create_task(asyncio.sleep(0, 1 / 1))
        await task
        asyncio.get_running_loop().call_exception_handler({"message": "lost", "exception": ValueError("x\ny")})

    configure("info", True, "x")
    asyncio.run(fail())
    (line,) = parsed(stderr())
    assert (line["library"], line["text"]) == ("asyncio", "lost")
    assert "ValueError" in line["exception"]


def run(code: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    head = "import asyncio, json, os, sys\nfrom optimizer.telemetry.logs import configure, log, lost\n"
    return subprocess.Popen([sys.executable, "-c", head + textwrap.dedent(code), *arguments], **options)


def test_a_crash_is_one_line() -> None:
    process = run('configure("info", False, "x")\nint("a\\nb")', stderr=subprocess.PIPE)
    text = process.communicate(timeout=30)[1].decode()
    assert len(text.splitlines()) == 1
    assert "process.crashed" in text
    assert process.returncode == 1


def test_a_closed_stderr_is_nobodys_file(tmp_path: Path) -> None:
    code = """
        configure("info", False, "x")
        file = open(sys.argv[1], "w")
        log.error("one")
        print("two", file=sys.stderr, flush=True)
        file.close()
        print(lost()["stderr"], file.fileno() if not file.closed else "", flush=True)
    """
    process = run(code, str(tmp_path / "data"), stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2))
    assert process.communicate(timeout=30)[0].split() == [b"0"]
    assert (tmp_path / "data").read_bytes() == b""


def test_a_fork_that_is_not_configured_writes_to_stderr_only(tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        configure("info", True, "parent", ring=Path(sys.argv[1]))
        if os.fork() == 0:
            os.closerange(3, 64)
            taken = open(sys.argv[1] + ".other", "w")
            log.info("child")
            os._exit(0)
        os.wait()
        log.info("parent")
    """
    ring = tmp_path / "log" / "p.log"
    process = run(code, str(ring), stderr=subprocess.PIPE)
    lines = parsed(process.communicate(timeout=30)[1].decode().splitlines())
    assert [line["event"] for line in lines] == ["child", "parent"]
    assert lines[0]["pid"] != lines[1]["pid"]
    assert [line["event"] for line in parsed(ring.read_text().splitlines())] == ["parent"]
    assert Path(f"{ring}.other").read_text() == ""


def test_a_hundred_megabytes_into_a_pipe_nobody_reads_do_not_stop_the_heartbeat() -> None:
    code = """
        async def main():
            gaps, loop, text = [], asyncio.get_running_loop(), "x" * 4000
            async def beat():
                last = loop.time()
                while True:
                    await asyncio.sleep(0.01)
                    gaps.append(loop.time() - last)
                    last = loop.time()
            beating = loop.create_task(beat())
            for number in range(25_000):
                log.info("noise", number=number, text=text)
                if number % 10 == 0:
                    await asyncio.sleep(0)
            beating.cancel()
            print(json.dumps({"worst": max(gaps), "beats": len(gaps), "lost": lost()["stderr"]}), flush=True)
            sys.stdin.readline()
            log.info("last")
        configure("info", True, "noisy-0")
        asyncio.run(main())
    """
    process = run(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    found = json.loads(process.stdout.readline())
    assert found["worst"] < 3.0
    assert found["beats"] > 50
    assert found["lost"] > 24_000
    assert process.stderr is not None
    heard = os.read(process.stderr.fileno(), 2**20)  # what the pipe held
    rest = process.communicate(b"\n", timeout=30)[1]
    lines = parsed((heard + rest).decode().splitlines())
    noise = [line["number"] for line in lines if line["event"] == "noise"]
    assert noise == list(range(25_000 - found["lost"]))
    assert sum(line["count"] for line in lines if line["event"] == "log.lines_lost") == found["lost"]
    assert lines[-1]["event"] == "last"


@pytest.mark.parametrize(("value", "expected"), [
    ("", ""), ("out.log", ""), ("/dev/null", "a regular file"), ("/", "a regular file"), ("/no/such/x", "a folder /no/such"),
])  # fmt: skip
def test_a_log_file_is_checked_with_the_configuration(value: str, expected: str, tmp_path: Path) -> None:
    from optimizer.config.loader import load

    path = tmp_path / "c.toml"
    path.write_text(f'[observability]\nlog_file = "{value}"\n')
    if not expected:
        assert load(path, env={}).observability.log_file == value
    else:
        with pytest.raises(Invalid, match=rf"observability\.log_file: .*{expected}"):
            load(path, env={})


@pytest.mark.parametrize(
    "value", ["127.0.0.1:4318", "grpc://x", "http://", "http://a b", "http://a:99999", "http://a:0", "http://[a"]
)
def test_an_endpoint_is_checked_with_the_configuration(value: str, tmp_path: Path) -> None:
    from optimizer.config.loader import load

    path = tmp_path / "c.toml"
    path.write_text(f'[observability]\notel_endpoint = "{value}"\n')
    with pytest.raises(Invalid, match=r"observability\.otel_endpoint"):
        load(path, env={})
