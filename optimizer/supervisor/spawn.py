"""
The warm fork: modules are imported once, in a parent with one thread, and services are forked from it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from multiprocess.context import ForkProcess
from multiprocess.popen_fork import Popen

from optimizer.catalog import Service
from optimizer.telemetry.logs import log

_PR_SET_CHILD_SUBREAPER: Final = 36
_MADV_DONTNEED: Final = 4
_MAPPING: Final = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)")


class _Popen(Popen):  # type: ignore[misc] # multiprocess has no types
    """
    A fork without the two pipes of its base: a pidfd tells of the end, and a fork that fails would leave them open.
    """

    def _launch(self, process: Any) -> None:
        self.sentinel = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                process._bootstrap()
            finally:
                os._exit(1)  # a child never comes here: see child.be


class _Forked(ForkProcess):  # type: ignore[misc] # multiprocess has no types
    _Popen = staticmethod(_Popen)


def preload(services: Iterable[Service]) -> None:
    """
    Import the modules of the services that are to run, and freeze what that made: no collection in a child touches it.

    A module that cannot be imported is left to its child, which fails alone.
    """
    missing = [service.module for service in services if service.module not in sys.modules]
    if not missing:
        return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's library would make threads when it is loaded
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    gc.disable()
    with _no_certificates():
        for module in missing:
            try:
                importlib.import_module(module)
            except Exception as error:  # noqa: BLE001 - whatever a module does when it is imported must not end the parent
                log.opt(exception=error).error("preload.failed", module=module, error=repr(error))
    _release_code()
    # No collection before: it would leave holes all over the heap, and a child that fills one copies the page around it
    # (measured: 7 MiB more for the tree of seven services, and 50 ms).
    gc.freeze()
    gc.enable()


def adopt_orphans() -> None:
    """
    Grandchildren whose parent has ended become children of this process (prctl(2), PR_SET_CHILD_SUBREAPER).
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def reap_strays(ours: Collection[int]) -> None:
    """
    Reap ended processes that we adopted; those in `ours` are reaped by who keeps them.
    """
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in ours:
            return  # one of ours hides the others until its keeper has seen it; the next call comes soon
        os.waitpid(found.si_pid, os.WNOHANG)
        log.warning("stray.reaped", child=found.si_pid, status=found.si_status)


@contextlib.contextmanager
def _no_certificates() -> Iterator[None]:
    """
    aiohttp makes a TLS context when it is imported, and reads all certificates of the system for it: 40 ms and 2 MiB. Who
    speaks TLS here makes a context of his own, in the child.
    """
    before = {name: os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")}
    os.environ.update(dict.fromkeys(before, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _release_code() -> None:
    """
    Unmap the code of libraries that ran while they were imported: the parent does not run it again, and a child maps what it
    uses by itself. Mappings into which nothing was written lose nothing: a page that is needed after all is read again.
    """
    libc = ctypes.CDLL(None)
    begin = size = 0
    of_file = False
    with Path("/proc/self/smaps").open("rb") as mappings:
        for line in mappings:
            if found := _MAPPING.match(line):
                begin, size = int(found[1], 16), int(found[2], 16) - int(found[1], 16)
                of_file = found[3] in (b"r--p", b"r-xp") and found[4] != b"0"
            elif line.startswith(b"Anonymous:") and of_file and line.split()[1] == b"0":
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _MADV_DONTNEED)


def threads() -> int:
    """
    Threads of this process, those of C libraries included.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Threads:"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/status has no line Threads")


def fork(name: str, main: Callable[[], None]) -> tuple[Any, int]:
    """
    A started multiprocess.Process that runs `main` with all signals blocked, and its pidfd. `main` unblocks them and never
    returns.

    Raises:
        RuntimeError: this process has more than one thread, so a fork could copy a held lock.
        OSError: the fork failed (no memory, too many processes), or there is no descriptor for the pidfd; nothing is left of it.
    """
    if (count := threads()) != 1:
        raise RuntimeError(f"the parent has {count} threads; a fork now could deadlock the child")
    process = _Forked(target=main, name=name, daemon=False)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        return process, os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.join()
        process.close()
        raise
