"""
The daemon under what its unit leaves it: read-only folders, no capabilities, listed system calls only.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.daemon import BIN, DEADLINE_S, Daemon, task
from systemd.conftest import Analyze
from systemd.sandbox import USER

from optimizer.ctl.admin import Refused, ask

OTHER = USER + 1
SANDBOX = Path(__file__).with_name("sandbox.py")

PROBE = r"""
import ctypes, mmap, os, pathlib, socket, threading

libc = ctypes.CDLL(None, use_errno=True)

def outcome(act):
    try:
        return "allowed" if act() != -1 else os.strerror(ctypes.get_errno())
    except OSError as error:
        return error.strerror

def thread():
    one = threading.Thread(target=int)
    one.start()
    one.join()

pathlib.Path("mine").touch()
for name, act in {
    "write here": lambda: pathlib.Path("mine").write_text("x"),
    "thread": thread,
    "tcp socket": lambda: socket.socket().close(),
    "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "code that can be written": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "set-uid file": lambda: os.chmod("mine", 0o4755),
    "namespace": lambda: libc.unshare(0x20000),
    "real-time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "personality": lambda: libc.personality(ctypes.c_ulong(0x40000)),
    "write /etc": lambda: pathlib.Path("/etc/mine").touch(),
    "/proc/stat": lambda: os.stat("/proc/stat"),
    "/proc/1": lambda: os.stat("/proc/1/stat"),
    "disk": lambda: os.stat("/dev/sda"),
}.items():
    print(f"{name}: {outcome(act)}")
status = pathlib.Path("/proc/self/status").read_text().split("\n")
print(*[line.replace("\t", " ") for line in status if line.startswith(("Cap", "NoNewPrivs", "Seccomp:", "Uid"))], sep="\n")
print("umask", oct(os.umask(0o77)), "files in /tmp", [one for one in os.listdir("/tmp") if not one.startswith("llmo-")])
"""

ALWAYS = """\
write here: allowed
thread: allowed
tcp socket: allowed
netlink socket: Address family not supported by protocol
packet socket: Address family not supported by protocol
code that can be written: Operation not permitted
set-uid file: Operation not permitted
namespace: Operation not permitted
real-time: Operation not permitted
personality: Operation not permitted
CapInh: 0000000000000000
CapPrm: 0000000000000000
CapEff: 0000000000000000
CapAmb: 0000000000000000
NoNewPrivs: 1
Seccomp: 2
umask 0o77"""
WITH_NAMESPACES = """\
write /etc: Read-only file system
disk: No such file or directory"""
AS_ROOT = """\
/proc/stat: No such file or directory
/proc/1: No such file or directory
CapBnd: 0000000000000000
Uid: 64123 64123 64123 64123"""


@pytest.fixture
def folder(analyze: Analyze) -> Iterator[Path]:
    """
    The daemon's own, below folders that everybody may enter; the filters are made of what systemd-analyze knows.
    """
    with tempfile.TemporaryDirectory(prefix="llmo-") as name:
        made = Path(name)
        made.chmod(0o711)
        (made / "run").mkdir()
        yield made


class Restricted(Daemon):
    """
    A daemon, and the commands of its unit, in the sandbox.
    """

    def _inside(self, *command: str | Path) -> list[str | Path]:
        return [sys.executable, SANDBOX, self.folder, self.folder / "run", *command]

    def start(self) -> Restricted:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._inside(BIN / "llm-optimizer", "--config", self.config), env=self.env, stdout=log, stderr=log
            )
        self.wait(lambda: self.get("/health/ready")[0] == 200, "ready")
        return self

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self._inside(BIN / "optimizerctl", "--socket", self.folder / "run" / "admin.sock", *arguments)
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def daemon(folder: Path) -> Iterator[Restricted]:
    made = Restricted(folder)
    yield made
    for pid in made.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if made.process is not None:
        made.process.wait(10)


def test_the_restrictions_are_there(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, SANDBOX, folder, folder / "run", sys.executable, "-c", PROBE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wanted = ALWAYS
    if "all of it" in done.stderr:
        wanted += "\n" + WITH_NAMESPACES + ("\n" + AS_ROOT if os.getuid() == 0 else "")
    missing = [line for line in wanted.splitlines() if line not in done.stdout]
    assert not missing, done.stdout + done.stderr


def test_a_call_that_is_not_listed_ends_the_process(folder: Path) -> None:
    mount = "import ctypes; ctypes.CDLL(None).mount(b'a', b'/tmp', b'tmpfs', 0, b'')"
    command: list[str | Path] = [sys.executable, SANDBOX, folder, folder / "run", sys.executable, "-c", mount]
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == -signal.SIGSYS


def test_the_daemon_works(daemon: Restricted) -> None:
    daemon.start()
    assert daemon.call("POST", "/api/v1/tasks", task("chat", ["fast", "strong"]))[0] == 201
    status, selection = daemon.call("POST", "/api/v1/tasks/chat/select", {})
    assert status == 200
    body = {"selection_id": selection["selection_id"], "quality": 0.5}
    assert daemon.call("POST", "/api/v1/feedback", body)[0] in (200, 201, 202)
    spans: dict[str, list[object]] = {"resourceSpans": []}
    assert daemon.call("POST", "/v1/traces", spans, daemon.otlp)[0] == 200
    assert "service_status" in daemon.get("/metrics", daemon.metrics)[1]
    with socket.create_connection(("127.0.0.1", daemon.grpc), 10):
        pass
    daemon.wait(lambda: any(one["memory_bytes"] > 0 for one in daemon.services().values()), "measured")
    before = daemon.pids()
    os.kill(before["rest_api"], signal.SIGKILL)
    os.kill(before["storage"], signal.SIGKILL)
    daemon.wait(lambda: daemon.healthy() and daemon.pids()["storage"] != before["storage"], "healthy again")
    daemon.wait(lambda: daemon.get("/api/v1/tasks/chat/stats")[1]["events"] == 1, "counted")
    shown = daemon.ctl("status")
    assert shown.returncode == 0, shown.stderr
    assert daemon.ctl("restart", "all").returncode == 0
    assert daemon.ctl("reload", "--wait").returncode == 0
    assert len(daemon.exported()) == 1
    assert daemon.stop() == 0
    assert not re.search("SIGSYS|not permitted|Permission denied|Read-only file system", daemon.log()), daemon.log()


def test_it_speaks_to_the_service_manager(daemon: Restricted) -> None:
    address = daemon.folder / "notify"
    daemon.env |= {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "400000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        address.chmod(0o666)
        manager.settimeout(DEADLINE_S)
        daemon.start()
        assert daemon.process is not None
        for wanted in ("READY=1", "WATCHDOG=1", "WATCHDOG=1"):
            while wanted not in manager.recv(4096).decode().split("\n"):
                continue
        daemon.process.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in manager.recv(4096).decode().split("\n"):
            continue
    assert daemon.process.wait(DEADLINE_S) == 0


def as_member(daemon: Restricted, groups: list[int]) -> str:
    """
    What the daemon answers to `restart metrics` of a user who is neither root nor its own.
    """
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.setgroups(groups)
        os.setresgid(OTHER, OTHER, OTHER)
        os.setresuid(OTHER, OTHER, OTHER)
        try:
            request = {"command": "restart", "service": "metrics", "timeout_s": DEADLINE_S}
            answer = str(ask(daemon.folder / "run" / "admin.sock", request, DEADLINE_S))
        except Refused as error:
            answer = error.kind
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as answers:
        return answers.read()


def test_members_of_the_group_may_command(daemon: Restricted) -> None:
    daemon.start()
    if "all of it" not in daemon.log():
        pytest.skip("without namespaces there is no group llm-optimizer")
    run = daemon.folder / "run"
    assert stat.S_IMODE(run.stat().st_mode) == 0o750
    assert stat.S_IMODE((run / "admin.sock").stat().st_mode) == 0o660
    assert (run / "admin.sock").stat().st_gid == run.stat().st_gid
    others = [path for path in run.rglob("*") if path.stat().st_mode & 0o077 and path.name != "admin.sock"]
    assert others == [], "only the admin socket is the group's"
    if os.getuid() == 0:
        assert as_member(daemon, [USER]) == "{'services': {'metrics': 'Running'}}"
        assert as_member(daemon, []) == "not_permitted"
    assert daemon.stop() == 0
