"""
Where log lines end up: a stream nobody may be reading, or a file on a disk that may be full. `put` never raises and never hangs;
a line that finds no place is counted, and the next one that does is preceded by how many were lost.

A write to a full pipe would hang the process until somebody reads. O_NONBLOCK belongs to the open file, which others share with
us (a shell, other programs), so it is not set there: pipes and terminals are opened once more through /proc, and that open file,
which is our own, takes the place of the inherited one, so that what C libraries write to it does not hang either. Sockets
(journald) cannot be opened, but know a flag for a single send. Who does not read costs us `_SHARE` of our time at most.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Final

RING_BYTES: Final = 1024 * 1024
OLDER: Final = ".1"  # suffix of what a ring held before
_PATIENCE_S: Final = 0.1  # longest wait for a reader: one that is alive empties a pipe faster than that
_SHARE: Final = 0.02  # of all time, for waiting
_TICK_S: Final = 0.001  # what a wait costs at least
_AGAIN_S: Final = 1.0  # before a file that could not be opened is tried again


class Outlet(ABC):
    """
    Args:
        note: the line that says how many were lost.
    """

    def __init__(self, note: Callable[[int], bytes]) -> None:
        self.lost = 0  # since the last note
        self.lost_ever = 0
        self._note = note

    def put(self, line: bytes) -> bool:
        """
        Write a line (without its end); False if it was lost.
        """
        if self.lost and self._write(self._note(self.lost) + b"\n"):
            self.lost = 0
        if self.lost or not self._write(line + b"\n"):
            self.lost += 1
            self.lost_ever += 1
            return False
        return True

    @abstractmethod
    def _write(self, data: bytes) -> bool:
        """
        Whether all of it is written, or will be.
        """

    @abstractmethod
    def close(self) -> None:
        """
        Give the descriptor back; only in the process that opened it.
        """


class Stream(Outlet):
    """
    An inherited descriptor: standard error.
    """

    def __init__(self, descriptor: int, note: Callable[[int], bytes]) -> None:
        super().__init__(note)
        self._rest = b""  # of a line whose beginning is written
        self._patience_s = _PATIENCE_S
        self._since = time.monotonic()
        self._socket: socket.socket | None = None
        self._send = self._sender(descriptor)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def as_patient_as(self, other: Stream) -> None:
        """
        Take over how long another one, of the process that forked this one, would still wait for the same reader.
        """
        self._patience_s, self._since = other._patience_s, other._since

    def _sender(self, descriptor: int) -> Callable[[bytes], int]:
        try:
            mode = os.fstat(descriptor).st_mode
        except OSError:
            return _nowhere
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        if stat.S_ISSOCK(mode):
            own = self._socket = socket.socket(fileno=os.dup(descriptor))
            return lambda data: own.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                opened = os.open(f"/proc/self/fd/{descriptor}", flags)
            except OSError:  # it belongs to another user; then at least ask before each write
                return lambda data: self._asking(descriptor, data)
            os.dup2(opened, descriptor)
            os.close(opened)
        return lambda data: os.write(descriptor, data)

    def _asking(self, descriptor: int, data: bytes) -> int:
        if not self._poll.poll(0):
            raise BlockingIOError
        return os.write(descriptor, data)

    def _write(self, data: bytes) -> bool:
        left = self._rest + data
        while left:
            try:
                left = left[self._send(left) :]
            except BlockingIOError:
                if not self._wait():
                    break
            except OSError:  # nobody will read it any more, or the terminal is gone
                self._rest = b""
                return False
        begun = len(left) < len(data)
        self._rest = left if begun else left[: len(left) - len(data)]
        return begun

    def _wait(self) -> bool:
        now = time.monotonic()
        self._patience_s = min(_PATIENCE_S, self._patience_s + (now - self._since) * _SHARE)
        self._since = now
        if self._patience_s < _TICK_S:
            return False
        ready = self._poll.poll(self._patience_s * 1000)
        self._since = time.monotonic()
        self._patience_s -= max(_TICK_S, self._since - now)
        return bool(ready)


def _nowhere(data: bytes) -> int:
    raise BrokenPipeError


class File(Outlet):
    """
    A file that is appended to, made if it is missing.

    Args:
        mode: permissions of a new file.
        largest: size in bytes at which it is renamed to `<name>.1` and begun anew; None: never.
    """

    def __init__(self, path: Path, mode: int, note: Callable[[int], bytes], largest: int | None = None) -> None:
        super().__init__(note)
        self.path = path
        self.descriptor = -1  # stays the same when the file is opened anew
        self.why = ""  # it could not be opened
        self._mode = mode
        self._largest = largest
        self._size = 0
        self._torn = False  # the last line has no end, the disk was full
        self._try_at = 0.0
        self.reopen()

    def reopen(self) -> bool:
        """
        Open the file that has the name now, e.g. after somebody moved the old one; False if it cannot be, `why` says the cause.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            if self._largest is not None:
                self.path.parent.mkdir(mode=0o700, exist_ok=True)
            opened = os.open(self.path, flags, self._mode)
            self._size = os.fstat(opened).st_size
        except OSError as error:
            self.why = error.strerror or str(error)
            self._try_at = time.monotonic() + _AGAIN_S
            return False
        if self.descriptor < 0:
            self.descriptor = opened
        else:
            os.dup2(opened, self.descriptor, inheritable=False)
            os.close(opened)
        self._torn = self._torn and self._size > 0
        self.why = ""
        return True

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _write(self, data: bytes) -> bool:
        if self.descriptor < 0 and (time.monotonic() < self._try_at or not self.reopen()):
            return False
        if self._largest is not None and self._size + len(data) > self._largest and not self._turn():
            return False
        if self._torn:
            data = b"\n" + data
        try:
            sent = os.write(self.descriptor, data)
        except OSError:
            return False
        self._size += sent
        self._torn = sent < len(data)
        return not self._torn

    def _turn(self) -> bool:
        """
        Begin the file anew; False while that is impossible.
        """
        if self.why and time.monotonic() < self._try_at:
            return False
        try:
            ours, named = os.fstat(self.descriptor), self.path.stat()
            if (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino):  # else an overlapping incarnation did it
                self.path.replace(f"{self.path}{OLDER}")
        except FileNotFoundError:
            pass  # somebody cleaned up; it is made again
        except OSError as error:
            self.why = error.strerror or str(error)
            self._try_at = time.monotonic() + _AGAIN_S
            return False
        return self.reopen()
