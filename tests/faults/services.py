"""
Services that do one thing wrong each, by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from optimizer.errors import Permanent, Transient
from optimizer.service import Frame


async def serve(frame: Frame[Any]) -> None:
    """
    What the service of this name does.
    """
    await _DEEDS[frame.name.rstrip("0123456789")](frame)


async def quiet(frame: Frame[Any]) -> None:
    frame.ready()
    await frame.stopping.wait()


async def slow(frame: Frame[Any]) -> None:
    """
    Ready after the file `go` is there; ends 0.3 s after it was told to.
    """
    while not (frame.runtime_dir / "go").exists():
        await asyncio.sleep(0.005)
    await quiet(frame)
    await asyncio.sleep(0.3)


async def stubborn(frame: Frame[Any]) -> None:
    """
    Hears of the end, and does not end.
    """
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    frame.ready()
    await asyncio.Event().wait()


async def busy(frame: Frame[Any]) -> None:
    """
    Holds the interpreter from the moment the file `spin` is there.
    """
    frame.ready()
    while not (frame.runtime_dir / "spin").exists():
        await asyncio.sleep(0.005)
    (frame.runtime_dir / "spin").unlink()
    spin_for_ever()


def spin_for_ever() -> None:
    while True:
        pass


async def brood(frame: Frame[Any]) -> None:
    """
    Leaves a process in a session of its own.
    """
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)  # noqa: ASYNC220 - as short as a fork
    (frame.runtime_dir / "grandchild").write_text(str(child.pid))
    await quiet(frame)


async def noisy(frame: Frame[Any]) -> None:
    """
    Writes 100 MB to stderr.
    """
    await asyncio.to_thread(_flood)
    await quiet(frame)


def _flood() -> None:
    for _ in range(25_000):
        rest = b"x" * 4000 + b"\n"
        while rest:
            try:
                rest = rest[os.write(2, rest) :]
            except BlockingIOError:  # configuring the logs made the pipe one that does not wait
                select.select([], [2], [])


async def early(frame: Frame[Any]) -> None:
    raise ValueError("before it is ready")


async def soon(frame: Frame[Any]) -> None:
    frame.ready()
    await asyncio.sleep(0.01)
    raise ValueError("just after it was ready")


async def wrong(frame: Frame[Any]) -> None:
    raise Permanent("a setting is wrong")


async def away(frame: Frame[Any]) -> None:
    raise Transient("a peer is away")


async def late(frame: Frame[Any]) -> None:
    await frame.stopping.wait()


async def fat(frame: Frame[Any]) -> None:
    """
    Takes 64 MB when the file `eat` is there.
    """
    frame.ready()
    while not (frame.runtime_dir / "eat").exists():
        await asyncio.sleep(0.005)
    (frame.runtime_dir / "eat").unlink()
    eaten = bytearray(os.urandom(64 * 1024 * 1024))
    await frame.stopping.wait()
    del eaten


async def mayfly(frame: Frame[Any]) -> None:
    """
    Its n-th incarnation crashes so long after it was ready as the n-th number in the file `lives` says; the rest live on.
    """
    lives = (frame.runtime_dir / "lives").read_text().split()
    frame.ready()
    if frame.incarnation <= len(lives):
        await asyncio.sleep(float(lives[frame.incarnation - 1]))
        raise ValueError("its time is over")
    await frame.stopping.wait()


async def bare(frame: Frame[Any]) -> None:
    """
    Closes all descriptors but the standard ones when the file `strip` is there, and lives on.
    """
    frame.ready()
    while not (frame.runtime_dir / "strip").exists():
        await asyncio.sleep(0.005)
    (frame.runtime_dir / "strip").unlink()
    os.closerange(3, 4096)
    while True:
        time.sleep(60)  # noqa: ASYNC251 - its loop has no descriptors any more


async def babble(frame: Frame[Any]) -> None:
    """
    Says to the parent what is no message.
    """
    frame.ready()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - paths are not needed
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as found:
            if found.type & 0xF == socket.SOCK_SEQPACKET:
                for i in range(100):
                    found.send(bytes([i]) * 1000)
    await frame.stopping.wait()


async def picky(frame: Frame[Any]) -> None:
    """
    Wants a hard limit of memory.
    """
    if not frame.settings.memory_limit_hard:
        raise ValueError("there is no limit")
    await quiet(frame)


_DEEDS: dict[str, Callable[[Frame[Any]], Awaitable[None]]] = {
    deed.__name__: deed
    for deed in (
        *(quiet, slow, stubborn, busy, brood, noisy, early, soon),
        *(wrong, away, late, fat, mayfly, bare, babble, picky),
    )
}
