"""
One running system: started, killed in part, looked at, stopped; each with its time, from outside.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.supervision.observe import pss_mib, tree
from benchmarks.supervision.systems import READY_PIPE, System
from benchmarks.supervision.trivial import READY

_DEADLINE_S: Final = 60.0
_FOREIGN: Final = ("LLM_OPTIMIZER", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "NOTIFY_SOCKET", "LISTEN_", "PYTHON")


class Running:
    """
    A context manager: entered when all children are ready; nothing is left of it afterwards.

    Args:
        start_s: from the start of the first process until the last child was ready.
        victims: the children, as the watch names them.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.start_s = 0.0
        self.victims: list[str] = []

    def __enter__(self) -> Running:
        self.folder = Path(tempfile.mkdtemp(prefix="llmo-"))
        self.watch = self.system.watch(self.folder)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        env = {**clean, READY: str(self.folder / READY_PIPE), **self.system.environment(self.folder)}
        command, log = self.system.command(self.folder), self.watch.output
        began = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            self.start_s = self._all_ready() - began
        except BaseException:
            self.__exit__()
            raise
        return self

    def _all_ready(self) -> float:
        last = 0.0
        while len(self.victims) < self.system.children:
            who, last = self._told(self.watch.ready)
            if who not in self.victims:
                self.victims.append(who)
        return last

    def _told(self, wait: Callable[[float], tuple[str, float]]) -> tuple[str, float]:
        """
        What the watch says next, unless the system has ended or says nothing for too long.
        """
        until = time.monotonic() + _DEADLINE_S
        while self.process.poll() is None and (now := time.monotonic()) < until:
            try:
                return wait(now + 1.0)
            except TimeoutError:
                continue
        raise RuntimeError(
            f"{self.system.name}: no child became ready within {_DEADLINE_S:g} s, exit code {self.process.poll()}; "
            f"its output ends:\n{self.watch.tail()}"
        )

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self._end()
        self.watch.close()
        shutil.rmtree(self.folder)

    def _end(self) -> None:
        """
        By force, after a failure: as a rule it was stopped.
        """
        self.process.send_signal(signal.SIGSTOP)  # it makes no more children
        for pid in reversed(tree(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def kill(self, i: int, meanwhile: Callable[[], None] = lambda: None) -> float:
        """
        SIGKILL the i-th child; `meanwhile` is called at once.

        Returns:
            Seconds until its replacement was ready.
        """
        who = self.victims[i]
        pid = self.watch.pid(who)
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        meanwhile()
        self.victims[i], at = self._told(lambda until: self.watch.again(who, until))
        return at - began

    def storm(self, rng: random.Random) -> list[float]:
        """
        Kill the children by turns, as often and with the pauses that the system has; seconds of each.
        """
        found = []
        for i in range(self.system.kills):
            time.sleep(rng.uniform(*self.system.gap_s))
            found.append(self.kill(i % len(self.victims)))
        return found

    def memory_mib(self) -> tuple[float, float]:
        """
        PSS of the parent, and of the whole tree.
        """
        each = [pss_mib(pid) for pid in tree(self.process.pid)]
        return each[0], sum(each)

    def stop(self) -> float:
        """
        SIGTERM; seconds until the parent has ended.
        """
        waiting = os.pidfd_open(self.process.pid)
        try:
            began = time.monotonic()
            self.process.send_signal(signal.SIGTERM)
            ended, _, _ = select.select([waiting], [], [], _DEADLINE_S)
            took = time.monotonic() - began
        finally:
            os.close(waiting)
        if not ended:
            raise RuntimeError(
                f"{self.system.name}: did not end in {_DEADLINE_S:g} s after SIGTERM:\n{self.watch.tail()}"
            )
        self.process.wait()
        return took
