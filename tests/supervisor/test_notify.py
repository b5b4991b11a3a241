"""
The notify protocol over real datagram sockets, and socket activation of a process that was really exec'd.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from optimizer.errors import Permanent
from optimizer.supervisor.notify import UNNAMED, Notifier, listen_fds
from optimizer.telemetry.logs import log


class Manager:
    """
    The receiving end, as PID 1 has it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(10)
        if address.startswith("@"):
            self._socket.bind("\0" + address[1:])
        else:  # a path of any length
            folder = os.open(Path(address).parent, os.O_PATH)
            self._socket.bind(f"/proc/self/fd/{folder}/{Path(address).name}")
            os.close(folder)

    def heard(self) -> list[str]:
        return self._socket.recv(4096).decode().split("\n")

    def hears_nothing(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(10)
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract", "long path"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    folder = tmp_path
    if request.param == "long path":
        folder = tmp_path / ("d" * 60) / ("e" * 60)
        folder.mkdir(parents=True)
    address = f"@llmo-{secrets.token_hex(8)}" if request.param == "abstract" else str(folder / "notify")
    made = Manager(address)
    yield made
    made.close()


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    records: list[Any] = []
    number = log.add(lambda message: records.append(message.record), level="WARNING", format="{message}")
    yield records
    log.remove(number)


def environment(**variables: str) -> dict[str, str]:
    return {"PATH": "/bin", **variables}


def test_every_message_is_one_datagram_of_the_protocol(manager: Manager) -> None:
    notifier = Notifier.from_environment(environment(NOTIFY_SOCKET=manager.address))
    notifier.status("starting 3 of 7 services")
    assert manager.heard() == ["STATUS=starting 3 of 7 services"]
    notifier.ready("7 services run")
    assert manager.heard() == ["READY=1", "STATUS=7 services run"]
    notifier.reloading(12.3456789)
    assert manager.heard() == ["RELOADING=1", "MONOTONIC_USEC=12345678"]
    notifier.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]
    notifier.extend_timeout(35_000_000)
    assert manager.heard() == ["EXTEND_TIMEOUT_USEC=35000000"]
    notifier.stopping()
    assert manager.heard() == ["STOPPING=1"]
    notifier.close()
    notifier.stopping()
    assert manager.hears_nothing()


def test_a_status_is_one_short_line_of_whole_characters(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.status("collector: down\nREADY=1\n\tfor want of \udcff")
    assert manager.heard() == ["STATUS=collector: down READY=1 for want of ?"]
    notifier.status("ü" * 5000)
    (line,) = manager.heard()
    assert line == "STATUS=" + "ü" * 512
    notifier.close()


def test_the_variables_are_taken_out_and_others_stay() -> None:
    env = environment(NOTIFY_SOCKET="@nobody", WATCHDOG_USEC="1", WATCHDOG_PID="1")
    Notifier.from_environment(env).close()
    assert env == environment()


def test_the_own_environment_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    notifier = Notifier.from_environment()
    assert notifier.watchdog_s == 2.0
    child = subprocess.run(["env"], capture_output=True, text=True, check=True)
    assert "NOTIFY_SOCKET" not in child.stdout
    assert "WATCHDOG" not in child.stdout
    notifier.close()
    manager.close()


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", "", 15.0),
        ("30000000", str(os.getpid()), 15.0),
        ("1500000", "", 0.75),
        ("1", "", 5e-7),
        ("30000000", str(os.getppid()), None),
        ("30000000", "me", None),
        ("0", "", None),
        ("-30000000", "", None),
        ("30s", "", None),
        ("", "", None),
        (str(2**64 - 1), "", None),
    ],
)
def test_the_watchdog_is_fed_at_half_of_what_the_manager_waits(usec: str, pid: str, seconds: float | None) -> None:
    env = environment(NOTIFY_SOCKET="@nobody", WATCHDOG_USEC=usec, **({"WATCHDOG_PID": pid} if pid else {}))
    notifier = Notifier.from_environment(env)
    assert notifier.watchdog_s == seconds
    notifier.close()


def test_without_a_manager_every_call_is_a_no_op(logged: list[Any]) -> None:
    notifier = Notifier.from_environment(environment(WATCHDOG_USEC="30000000"))
    assert notifier.watchdog_s is None
    for call in every_call(notifier):
        call()
    assert logged == []


def every_call(notifier: Notifier) -> list[Callable[[], None]]:
    return [
        lambda: notifier.status("a"),
        lambda: notifier.ready("b"),
        lambda: notifier.reloading(1.0),
        lambda: notifier.watchdog(),
        lambda: notifier.extend_timeout(1),
        lambda: notifier.stopping(),
    ]


def test_an_address_of_another_kind_is_said_once_and_left_alone(logged: list[Any]) -> None:
    notifier = Notifier.from_environment(environment(NOTIFY_SOCKET="vsock:2:1234"))
    for call in every_call(notifier):
        call()
    assert [record["message"] for record in logged] == ["notify.unusable"]


def test_a_vanished_socket_is_logged_once_and_told_the_state_when_it_is_back(tmp_path: Path, logged: list[Any]) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier(address)
    notifier.watchdog()
    notifier.status("first")
    notifier.ready("second")
    assert [record["message"] for record in logged] == ["notify.unsent"]
    manager = Manager(address)
    notifier.watchdog()
    assert manager.heard() == ["READY=1", "STATUS=second", "WATCHDOG=1"]
    notifier.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]
    manager.close()
    notifier.watchdog()
    notifier.watchdog()
    assert [record["message"] for record in logged] == ["notify.unsent"] * 2
    notifier.close()


def test_a_full_queue_neither_blocks_nor_loses_the_state(tmp_path: Path, logged: list[Any]) -> None:
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier(manager.address)
    began = time.monotonic()
    while not logged:
        notifier.watchdog()
        assert time.monotonic() - began < 10, "a queue of datagrams has a bound"
    notifier.reloading(1.0)
    notifier.ready("done")
    notifier.watchdog()
    assert time.monotonic() - began < 10
    while not manager.hears_nothing():
        continue
    notifier.watchdog()
    assert manager.heard() == ["RELOADING=1", "MONOTONIC_USEC=1000000", "READY=1", "STATUS=done", "WATCHDOG=1"]
    notifier.close()
    manager.close()


def test_the_last_state_stands_last(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "notify"))
    notifier.ready("a")
    notifier.reloading(1.0)
    notifier.ready("b")
    notifier.stopping()
    manager = Manager(str(tmp_path / "notify"))
    notifier.status("c")
    states = [line for line in manager.heard() if line.endswith("=1")]
    assert states == ["RELOADING=1", "READY=1", "STOPPING=1"]
    notifier.close()
    manager.close()


# --- socket activation ---

ADOPT = textwrap.dedent(
    """
    import json, os, subprocess, sys
    from optimizer.supervisor.notify import listen_fds

    found = listen_fds()
    shown = {name: [[one.fileno(), one.getsockname()[1], one.get_inheritable(), one.getblocking(), one.family.name]
                    for one in sockets] for name, sockets in found.items()}
    child = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    print(json.dumps({"found": shown, "left": [line for line in child.splitlines() if line.startswith("LISTEN_")]}),
          flush=True)
    if "--answer" in sys.argv:
        one = found["rest_api.http"][0]
        one.setblocking(True)
        link, _ = one.accept()
        link.sendall(b"adopted")
    """
)

# what a service manager does between fork and exec: place the descriptors from 3 on, and say so
ACTIVATE = textwrap.dedent(
    """
    import fcntl, os, sys
    fds, names, pid, script = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
    high = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 100) for one in fds.split(",") if one]
    for i, one in enumerate(high):
        os.dup2(one, 3 + i, inheritable=True)
    os.environ["LISTEN_FDS"] = str(len(high))
    os.environ["LISTEN_PID"] = pid or str(os.getpid())
    if names:
        os.environ["LISTEN_FDNAMES"] = names
    os.execv(sys.executable, [sys.executable, "-c", *script])
    """
)


def activated(passed: list[socket.socket], names: str = "", pid: str = "", *words: str) -> subprocess.Popen[str]:
    numbers = [one.fileno() for one in passed]
    return subprocess.Popen(
        [sys.executable, "-c", ACTIVATE, ",".join(map(str, numbers)), names, pid, ADOPT, *words],
        pass_fds=numbers,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    made = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    yield made
    for one in made:
        one.close()


def port(one: socket.socket) -> int:
    number: int = one.getsockname()[1]
    return number


def test_sockets_arrive_by_name_in_an_execd_process(listeners: list[socket.socket]) -> None:
    told = said(activated(listeners, "rest_api.http:collector.otlp_http:rest_api.http"))
    first, second, third = (port(one) for one in listeners)
    assert told["found"] == {
        "rest_api.http": [[3, first, False, False, "AF_INET"], [5, third, False, False, "AF_INET"]],
        "collector.otlp_http": [[4, second, False, False, "AF_INET"]],
    }
    assert told["left"] == []


def test_sockets_without_a_name_are_kept_for_the_caller_to_match(listeners: list[socket.socket]) -> None:
    told = said(activated(listeners, "unknown:metrics.http"))
    assert {name: [one[1] for one in found] for name, found in told["found"].items()} == {
        UNNAMED: [port(listeners[0]), port(listeners[2])],
        "metrics.http": [port(listeners[1])],
    }
    told = said(activated(listeners))
    assert [one[1] for one in told["found"][UNNAMED]] == [port(one) for one in listeners]


def test_sockets_of_another_process_are_ignored(listeners: list[socket.socket]) -> None:
    told = said(activated(listeners, "a:b:c", str(os.getpid())))
    assert told == {"found": {}, "left": []}


def test_an_adopted_socket_takes_the_connection_that_waited_for_it(listeners: list[socket.socket]) -> None:
    with socket.create_connection(("127.0.0.1", port(listeners[0])), timeout=30) as early:
        process = activated(listeners[:1], "rest_api.http", "", "--answer")
        assert early.recv(100) == b"adopted"
        said(process)


@pytest.mark.parametrize(
    ("count", "sentence"),
    [("many", "LISTEN_FDS = 'many' is no count"), ("-1", "is no count"), ("1", "descriptor 3 (a), passed by")],
)
def test_what_cannot_be_adopted_is_named(count: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()  # neither end is a socket
    monkeypatch.setattr("optimizer.supervisor.notify.FIRST_FD", reader)
    env = environment(LISTEN_PID=str(os.getpid()), LISTEN_FDS=count, LISTEN_FDNAMES="a")
    with pytest.raises(Permanent) as caught:
        listen_fds(env)
    assert sentence.replace("descriptor 3", f"descriptor {reader}") in str(caught.value)
    assert env == environment()
    os.close(reader)
    os.close(writer)


def test_a_descriptor_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    monkeypatch.setattr("optimizer.supervisor.notify.FIRST_FD", writer)
    with pytest.raises(Permanent, match=rf"descriptor {writer} \(unnamed\), passed by LISTEN_FDS, is not open"):
        listen_fds(environment(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1"))
