"""
Daemons for tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from system.daemon import Daemon


@pytest.fixture
def launch() -> Iterator[Callable[..., Daemon]]:
    """
    Start daemons that do not outlive the test, whatever happens.
    """
    daemons: list[Daemon] = []

    def start(config: str = "", **more: Any) -> Daemon:
        daemons.append(Daemon(Path(tempfile.mkdtemp(prefix="llmo-")), config, **more))
        return daemons[-1].start()

    yield start
    for daemon in daemons:
        for pid in daemon.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if daemon.process is not None:
            daemon.process.wait(10)
        shutil.rmtree(daemon.folder)
