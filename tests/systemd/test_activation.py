"""
With a socket unit a restart of the whole daemon refuses nobody: the service manager holds the port in between.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.daemon import BIN, DEADLINE_S, Daemon

# what a service manager does between fork and exec
PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "rest_api.http", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


class Activated(Daemon):
    """
    A daemon that is passed the listening socket of its REST interface, whatever port the configuration names.
    """

    def __init__(self, folder: Path, listener: socket.socket) -> None:
        super().__init__(folder)
        self.listener = listener
        self.rest = listener.getsockname()[1]

    def start(self) -> Activated:
        number = self.listener.fileno()
        command: list[str | Path] = [
            sys.executable,
            "-c",
            PASS,
            str(number),
            BIN / "llm-optimizer",
            "--config",
            self.config,
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.env, pass_fds=[number], stdout=log, stderr=log)
        self.wait(lambda: self.get("/health/ready")[0] == 200, "ready")
        return self


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Activated]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Activated(tmp_path, listener)
        yield made
        for pid in made.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if made.process is not None:
            made.process.wait(10)


def test_a_caller_waits_while_the_daemon_is_restarted(daemon: Activated) -> None:
    daemon.start()
    assert daemon.services()["rest_api"]["ports"] == {"http": daemon.rest}
    assert daemon.stop() == 0
    with socket.create_connection(("127.0.0.1", daemon.rest), DEADLINE_S) as caller:
        caller.sendall(b"GET /health/live HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        daemon.start()
        assert caller.recv(100).startswith(b"HTTP/1.1 200 ")
    assert daemon.stop() == 0
