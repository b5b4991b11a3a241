"""
What is compared: how each is started, with six trivial children or with our own services, and who says when one is ready.

Every system keeps its defaults, an admin socket included, but for three things. circus looks after its children once a second
instead of every five. Ours takes a service for stable after 1 s instead of 60 (supervisord's `startsecs` has that default),
so that every kill meets the first restart after a stable run, and has no limit of restarts in a row.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.supervision import trivial
from benchmarks.supervision.observe import Lines
from optimizer.ctl.admin import ask

_BIN: Final = Path(sys.executable).parent
_TRIVIAL: Final = Path(trivial.__file__)
_HOUSE: Final = "from benchmarks.supervision.house import main; main()"
_RUN: Final = "run"  # our runtime_dir
READY_PIPE: Final = "ready"
SERVICES: Final = ("storage", "collector", "integrations", "processor", "rest_api", "grpc_api", "metrics")


class Watch(Protocol):
    """
    Who is ready, and since when. A child is named by its process id, a service by its name.
    """

    output: int  # descriptor for what the system writes

    def ready(self, until: float) -> tuple[str, float]:
        """
        The next that became ready, and at what monotonic second.

        Raises:
            TimeoutError: none did until then.
        """

    def again(self, who: str, until: float) -> tuple[str, float]:
        """
        As `ready`, for the one that takes the place of `who`.
        """

    def pid(self, who: str) -> int:
        """
        The process to kill.
        """

    def tail(self) -> str:
        """
        The end of what the system wrote.
        """

    def close(self) -> None:
        """
        Close all descriptors.
        """


class Pipe:
    """
    Trivial children tell by themselves, with their own clock.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        self.output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.mkfifo(folder / READY_PIPE)
        self._pipe = os.open(folder / READY_PIPE, os.O_RDWR)  # never at its end, whoever writes
        self._lines = Lines(self._pipe)

    def ready(self, until: float) -> tuple[str, float]:
        pid, _, nanoseconds = self._lines.next(until)[1].partition(b" ")
        return pid.decode(), int(nanoseconds) / 1e9

    def again(self, _: str, until: float) -> tuple[str, float]:
        return self.ready(until)

    def pid(self, who: str) -> int:
        return int(who)

    def tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def close(self) -> None:
        os.close(self.output)
        os.close(self._pipe)


class Log:
    """
    Our own services are ready when the parent says so in its log, a little later than the child: the line is read from a pipe.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pipe, self.output = os.pipe()
        self._lines = Lines(self._pipe)
        self._tail: deque[bytes] = deque(maxlen=30)

    def ready(self, until: float) -> tuple[str, float]:
        while True:
            at, line = self._lines.next(until)
            self._tail.append(line)
            if b'"service.state"' in line:
                told = json.loads(line)
                if (told["was"], told["now"]) == ("Starting", "Running"):
                    return told["target"].partition("-")[0], at  # the slot is the service's name and a number

    def again(self, who: str, until: float) -> tuple[str, float]:
        while True:
            name, at = self.ready(until)
            if name == who:
                return name, at

    def pid(self, who: str) -> int:
        pid: int = services(self._folder)[who]["pid"]
        return pid

    def tail(self) -> str:
        return b"\n".join(self._tail).decode(errors="replace")

    def close(self) -> None:
        os.close(self.output)
        os.close(self._pipe)


def services(folder: Path) -> dict[str, Any]:
    """
    As `optimizerctl status` shows those of the daemon that has its files in a folder.
    """
    found: dict[str, Any] = ask(folder / _RUN / "admin.sock", {"command": "status"}, 10)["services"]
    return found


@dataclass(frozen=True, kw_only=True)
class System:
    """
    One row of the table.

    Args:
        package: the distribution that it comes from.
        command: makes what is to be executed; may write a configuration into the given folder.
        kills: how many; fewer for those that take a second each.
        gap_s: between a replacement's readiness and the next kill, drawn from this range; as wide as the interval at which the
            system polls, where it does, so that kills meet every phase of it.
        watch: made of the folder.
        children: who become ready.
    """

    name: str
    package: str
    command: Callable[[Path], list[str | Path]]
    kills: int
    gap_s: tuple[float, float]
    environment: Callable[[Path], Mapping[str, str]] = field(default=lambda _: {})
    watch: type[Pipe] | type[Log] = Pipe
    children: int = 6


def _supervisord(folder: Path) -> list[str | Path]:
    path = folder / "supervisord.conf"
    path.write_text(f"""\
[unix_http_server]
file={folder}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}
[program:trivial]
command={sys.executable} -I -S {_TRIVIAL}
process_name=%(program_name)s_%(process_num)d
numprocs=6
""")
    return [_BIN / "supervisord", "-c", path]


def _circusd(folder: Path) -> list[str | Path]:
    path = folder / "circus.ini"
    path.write_text(f"""\
[circus]
check_delay = 1
endpoint = ipc://{folder}/endpoint
pubsub_endpoint = ipc://{folder}/pubsub
[watcher:trivial]
cmd = {sys.executable}
args = -I -S {_TRIVIAL}
numprocesses = 6
copy_env = True
""")
    return [_BIN / "circusd", path]


def _gunicorn(folder: Path) -> list[str | Path]:
    control = folder / "gunicorn.ctl"
    options = ["-c", "python:trivial", "--workers", "6", "--bind", "127.0.0.1:0"]
    return [_BIN / "gunicorn", *options, "--control-socket", control, "trivial:wsgi"]


def _uvicorn(_: Path) -> list[str | Path]:
    return [_BIN / "uvicorn", "--workers", "6", "--port", "0", "--log-level", "warning", "trivial:asgi"]


def _application(_: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(_TRIVIAL.parent)}


def daemon_environment(folder: Path) -> dict[str, str]:
    """
    Our daemon with free ports and all files in a folder; see the head of this file for the rest.
    """
    values = {
        "SERVICE__DATA_DIR": str(folder / "data"),
        "SERVICE__RUNTIME_DIR": str(folder / _RUN),
        "SERVICE_MANAGER__STABLE_AFTER": "1s",
        "SERVICE_MANAGER__MAX_RESTART_ATTEMPTS": "1000",
        "REST_API__PORT": "0",
        "GRPC_API__PORT": "0",
        "COLLECTOR__OTLP_HTTP_PORT": "0",
        "OBSERVABILITY__METRICS_PORT": "0",
    }
    return {f"LLM_OPTIMIZER__{name}": value for name, value in values.items()} | {
        "PYTHONPATH": str(_TRIVIAL.parents[2])
    }


SUPERVISORD: Final = System(name="supervisord", package="supervisor", command=_supervisord, kills=6, gap_s=(0.1, 1.1))
CIRCUS: Final = System(name="circus", package="circus", command=_circusd, kills=12, gap_s=(0.05, 1.05))
GUNICORN: Final = System(
    name="gunicorn, sync workers",
    package="gunicorn",
    command=_gunicorn,
    kills=36,
    gap_s=(0.2, 0.3),
    environment=_application,
)
UVICORN: Final = System(
    name="uvicorn, workers", package="uvicorn", command=_uvicorn, kills=10, gap_s=(0.05, 0.55), environment=_application
)
HOUSE: Final = System(
    name="ours",
    package="llm-auto-optimizer",
    command=lambda _: [sys.executable, "-c", _HOUSE, "--json-logs"],
    kills=36,
    gap_s=(0.2, 0.3),
    environment=daemon_environment,
)
DAEMON: Final = System(
    name="ours, its seven services",
    package="llm-auto-optimizer",
    command=lambda _: [_BIN / "llm-optimizer", "--json-logs"],
    kills=35,
    gap_s=(0.2, 0.3),
    environment=daemon_environment,
    watch=Log,
    children=len(SERVICES),
)
SYSTEMS: Final = (SUPERVISORD, CIRCUS, GUNICORN, UVICORN, HOUSE, DAEMON)
