"""
The real parent over services of `faults.services`: `python -m faults.house NAME[:NEED…] …`, and its client for tests.

A name may have digits behind it, so that there can be several of a kind; one that begins with `broken` cannot be imported.
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

from optimizer.catalog import Service
from optimizer.config.loader import load
from optimizer.supervisor import spawn
from optimizer.supervisor.admin import Admin
from optimizer.supervisor.commands import READ, Commands
from optimizer.supervisor.parent import Supervisor
from optimizer.supervisor.reloader import Reloader
from optimizer.telemetry.logs import configure

DEADLINE_S = 20.0


class Faulty(Service):
    """
    A service of this folder.
    """

    @property
    def module(self) -> str:
        return "faults.broken" if self.name.startswith("broken") else "faults.services"


def main(words: Sequence[str]) -> None:
    config = load(Path(os.environ["HOUSE_CONFIG"]))
    services = [Faulty(word.split(":")[0], tuple(word.split(":")[1:]), section="integrations") for word in words]
    configure(config.observability.log_level, True, "supervisor")
    (config.runtime_dir / "metrics").mkdir(parents=True, exist_ok=True)
    spawn.adopt_orphans()
    spawn.preload(services)
    lifeline = os.pipe()

    async def run() -> None:
        supervisor = Supervisor(services, config, b"x" * 32, {}, lifeline)
        reloader = Reloader(supervisor, lambda: load(config.path))
        supervisor.on_hangup = reloader.on_hangup
        commands = Commands(supervisor, reloader)
        async with Admin(config.runtime_dir, commands.answer, READ):
            await supervisor.run()

    asyncio.run(run())


class House:
    """
    One running parent.
    """

    def __init__(self, folder: Path, words: Sequence[str], manager: str = "", **popen: Any) -> None:
        self.folder = folder
        config = folder / "config.toml"
        config.write_text(
            f'[service]\ndata_dir = "{folder}"\nruntime_dir = "{folder}/run"\n[service_manager]\n{manager}\n'
        )
        self.env = {**os.environ, "HOUSE_CONFIG": str(config), "PYTHONPATH": os.pathsep.join(sys.path)}
        with (folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "faults.house", *words]
            self.process = subprocess.Popen(command, env=self.env, **{"stdout": log, "stderr": log, **popen})

    def start(self) -> House:
        self.wait(lambda: bool(self.status()), "answering")
        return self

    def ask(self, command: str, **fields: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(DEADLINE_S)
            link.connect(str(self.folder / "run" / "admin.sock"))
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

    def end(self) -> None:
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        if self.process.stderr is not None:
            self.process.stderr.close()


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
