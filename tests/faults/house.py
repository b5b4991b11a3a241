"""
The real parent over services of `faults.services`: `python -m faults.house NAME[:NEED…] …`, and its client for tests.

A name may have digits behind it, so that there can be several of a kind; one that begins with `broken` cannot be imported.
The run folder shows every fork: a line with the parent's number of threads in `forks`; while there is a file `hold`, a fresh
child writes its pid to `held` and stops before it does anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optimizer import catalog

DEADLINE_S = 20.0


class Faulty(catalog.Service):
    """
    A service of this folder.
    """

    @property
    def module(self) -> str:
        return "faults.broken" if self.name.startswith("broken") else "faults.services"


def main(words: Sequence[str]) -> None:
    services = [Faulty(word.split(":")[0], tuple(word.split(":")[1:]), section="integrations") for word in words]
    catalog.SERVICES = tuple(services)  # type: ignore[misc] # before the parent's modules are imported, for this process only
    from optimizer.config.loader import load
    from optimizer.supervisor import spawn
    from optimizer.supervisor.admin import Admin
    from optimizer.supervisor.commands import READ, Commands
    from optimizer.supervisor.parent import Supervisor
    from optimizer.supervisor.reloader import Reloader
    from optimizer.telemetry.logs import configure

    config = load(Path(os.environ["HOUSE_CONFIG"]))
    configure(config.observability.log_level, True, "supervisor")
    (config.runtime_dir / "metrics").mkdir(parents=True, exist_ok=True)
    spawn.adopt_orphans()
    spawn.preload(services)
    show_forks(config.runtime_dir, spawn.threads)
    lifeline = os.pipe()

    async def run() -> None:
        supervisor = Supervisor(services, config, b"x" * 32, {}, lifeline)
        reloader = Reloader(supervisor, lambda: load(config.path))
        supervisor.on_hangup = reloader.on_hangup
        commands = Commands(supervisor, reloader)
        async with Admin(config.runtime_dir, commands.answer, READ):
            await supervisor.run()

    asyncio.run(run())


def show_forks(folder: Path, threads: Callable[[], int]) -> None:
    forks = os.open(folder / "forks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def hold() -> None:
        if (folder / "hold").exists():
            (folder / "held").write_text(f"{os.getpid()}\n")
            os.kill(os.getpid(), signal.SIGSTOP)

    os.register_at_fork(before=lambda: os.write(forks, b"%d\n" % threads()), after_in_child=hold)


class House:
    """
    One running parent.
    """

    def __init__(
        self, folder: Path, words: Sequence[str], manager: str = "", through: Sequence[str] = (), **popen: Any
    ) -> None:
        """
        Args:
            through: a command that executes another one.
        """
        self.folder, self.run = folder, folder / "run"
        self.configure(manager)
        own = {"HOUSE_CONFIG": str(folder / "config.toml"), "PYTHONPATH": os.pathsep.join(sys.path)}
        self.env = {**os.environ, **own, **popen.pop("env", {})}
        with (folder / "log").open("ab") as log:
            command = [*through, sys.executable, "-m", "faults.house", *words]
            self.process = subprocess.Popen(command, env=self.env, **{"stdout": log, "stderr": log, **popen})

    def start(self) -> House:
        self.wait(lambda: bool(self.status()), "answering")
        return self

    def configure(self, manager: str) -> None:
        """
        Write the configuration: what is in `[service_manager]`, and whatever sections follow.
        """
        (self.folder / "config.toml").write_text(
            f'[service]\ndata_dir = "{self.folder}"\nruntime_dir = "{self.run}"\n[service_manager]\n{manager}\n'
        )

    def ask(self, command: str, **fields: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(DEADLINE_S)
            link.connect(str(self.run / "admin.sock"))
            link.sendall(json.dumps({"command": command, **fields}).encode() + b"\n")
            with link.makefile() as lines:
                answer = json.loads(lines.readline())
        if not answer["ok"]:
            raise AssertionError(answer["error"])
        return answer["result"]

    def status(self) -> dict[str, Any]:
        services: dict[str, Any] = self.ask("status")["services"]
        return services

    def one(self, name: str) -> dict[str, Any]:
        service: dict[str, Any] = self.ask("status", service=name)["services"][name]
        return service

    def wait(self, condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> float:
        began = time.monotonic()
        while time.monotonic() < began + deadline_s:
            with contextlib.suppress(OSError):
                if condition():
                    return time.monotonic() - began
            if self.process.poll() is not None:
                break
            time.sleep(0.005)
        raise AssertionError(f"not {what} within {deadline_s} s; the log ends:\n{self.log()[-3000:]}")

    def until(self, name: str, *states: str) -> dict[str, Any]:
        self.wait(lambda: self.status()[name]["state"] in states, f"{name} {' or '.join(states)}")
        return self.one(name)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def lines(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """
        Log lines of one event with these fields.
        """
        found = []
        for line in self.log().splitlines():
            with contextlib.suppress(ValueError):
                one = json.loads(line)
                if one.get("event") == event and fields.items() <= one.items():
                    found.append(one)
        return found

    def answer(self, command: str, **fields: Any) -> str:
        """
        What the parent refuses a command with; empty when it does not.
        """
        try:
            self.ask(command, **fields)
        except AssertionError as refusal:
            return str(refusal)
        return ""

    def forked(self, name: str) -> int:
        """
        How many processes a service has had.
        """
        return len(self.lines("service.forked", target=f"{name}-0"))

    def open_files(self) -> dict[int, str]:
        """
        What the parent has open, by descriptor.
        """
        return open_files(self.process.pid)

    def end(self) -> None:
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        if self.process.stderr is not None:
            self.process.stderr.close()


def open_files(pid: int) -> dict[int, str]:
    """
    What a process has open, by descriptor.
    """
    found: dict[int, str] = {}
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed a moment ago
            found[int(one.name)] = str(one.readlink())
    return found


def descendants(pid: int) -> list[int]:
    """
    All processes below one.
    """
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, known = [], {pid}
    while fresh := [one for one, above in parents.items() if above in known and one not in known]:
        found += fresh
        known |= set(fresh)
    return found


def state_of(pid: int) -> str:
    """
    The kernel's letter; empty of a process that is gone.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


if __name__ == "__main__":
    main(sys.argv[1:])
