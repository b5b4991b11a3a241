"""
An admin socket that answers what a test wants, and one real daemon for the tests of this folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from system.daemon import Daemon

from optimizer.ctl import main

Answer = Callable[[dict[str, Any]], dict[str, Any] | None]


def service(state: str = "Running", **fields: Any) -> dict[str, Any]:
    """
    One service in the answer to `status`.
    """
    return {
        "state": state, "healthy": state == "Running", "consecutive_failures": 0, "message": None, "metadata": {},
        "pid": 123, "restarts": 0, "uptime_secs": 3725, "last_exit": None, "next_retry_secs": None, "cpu_percent": 1.5,
        "memory_bytes": 20 * 2**20, "ports": {"http": 8080}, "wanted": True, "slots": {}, **fields,
    }  # fmt: skip


class Admin:
    """
    A fake of the parent's admin socket; `asked` has every request. An answer of None closes the connection.
    """

    def __init__(self, path: Path, answer: Answer) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            link, _ = self._listener.accept()
            with link, link.makefile("rwb") as lines:
                line = lines.readline()
                if not line:
                    return
                self.asked.append(json.loads(line))
                answer = self._answer(self.asked[-1])
                if answer is not None:
                    lines.write(json.dumps(answer).encode() + b"\n")

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(self._listener.getsockname())
        self._thread.join()
        self._listener.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="llmo-") as name:  # a socket's path must be short
        yield Path(name)


@pytest.fixture
def admin(folder: Path) -> Iterator[Callable[[Answer], Admin]]:
    """
    Start the fake at `folder/admin.sock`.
    """
    running: list[Admin] = []

    def start(answer: Answer) -> Admin:
        running.append(Admin(folder / "admin.sock", answer))
        return running[-1]

    yield start
    for one in running:
        one.close()


@pytest.fixture
def ctl(folder: Path) -> Callable[..., Result]:
    """
    `optimizerctl --socket folder/admin.sock …` in this process.
    """

    def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(main, ["--socket", str(folder / "admin.sock"), *arguments], env=env)

    return run


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    one = Daemon(Path(tempfile.mkdtemp(prefix="llmo-")))
    try:
        yield one.start()
    finally:
        for pid in one.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if one.process is not None:
            one.process.wait(10)
        shutil.rmtree(one.folder)
