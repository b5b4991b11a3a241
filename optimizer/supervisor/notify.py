"""
systemd's side of the daemon: the sd_notify protocol and socket activation, both spoken by hand.

A message is one datagram of `NAME=value` lines. Losing `READY=1` would have the unit killed as never started, and blocking
on it would stop the parent, so what a datagram could not carry now (the queue is full, the socket is away) goes with the
next one: the fields that describe a state are owed, newest value last; a sign of life is not, since a late one would lie.

Source: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3) of systemd 252.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import MutableMapping
from pathlib import PurePosixPath
from typing import Final

from optimizer.errors import Permanent
from optimizer.telemetry.logs import log

FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
UNNAMED: Final = ""  # key of descriptors that were passed without a name

_PATH_BYTES: Final = 107  # of sun_path, less the NUL that ends it
_STATUS_BYTES: Final = 1024  # systemd ignores a datagram beyond 4096 as a whole
_FOREVER_USEC: Final = 2**64 - 1  # USEC_INFINITY: no watchdog


class Notifier:
    """
    Tells the service manager how the daemon is. No call blocks or raises; without a manager each is a no-op.

    Args:
        address: NOTIFY_SOCKET: an absolute path, or `@` and an abstract name; empty: there is no manager.
        watchdog_s: seconds between two signs of life, None where nobody waits for them.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = address
        self._owed: dict[str, str] = {}
        self._failing = False
        self._socket: socket.socket | None = None
        self.watchdog_s = watchdog_s if address else None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        elif address:
            log.warning("notify.unusable", address=address, reason="neither an absolute path nor an abstract name")

    @classmethod
    def from_environment(cls, env: MutableMapping[str, str] | None = None) -> Notifier:
        """
        As the service manager asks for it; its variables are taken out, so that no child speaks for the daemon.

        Args:
            env: os.environ by default.
        """
        env = os.environ if env is None else env
        address = env.pop("NOTIFY_SOCKET", "")
        usec, pid = env.pop("WATCHDOG_USEC", ""), env.pop("WATCHDOG_PID", "")
        wanted = usec.isdecimal() and 0 < int(usec) < _FOREVER_USEC and pid in ("", str(os.getpid()))
        return cls(address, int(usec) / 1e6 / 2 if wanted else None)

    def ready(self, status: str) -> None:
        """
        The start, or a reload, is done.
        """
        self._tell({"READY": "1", "STATUS": _line(status)})

    def status(self, text: str) -> None:
        """
        One line for `systemctl status`.
        """
        self._tell({"STATUS": _line(text)})

    def reloading(self, now_monotonic: float) -> None:
        """
        A reload begins; `ready` ends it. `now_monotonic`: seconds of CLOCK_MONOTONIC, as of the loop's clock.
        """
        self._tell({"RELOADING": "1", "MONOTONIC_USEC": str(int(now_monotonic * 1e6))})

    def stopping(self) -> None:
        """
        The ordered stop begins.
        """
        self._tell({"STOPPING": "1"})

    def watchdog(self) -> None:
        """
        A sign of life, due every `watchdog_s`.
        """
        self._send({"WATCHDOG": "1"})

    def extend_timeout(self, usec: int) -> None:
        """
        The start or stop under way needs this many microseconds from now, more than the unit allows.
        """
        self._send({"EXTEND_TIMEOUT_USEC": str(usec)})

    def close(self) -> None:
        """
        Release the socket; later calls are no-ops.
        """
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, fields: dict[str, str]) -> None:
        if self._socket is None:
            return
        for name, value in fields.items():
            self._owed.pop(name, None)  # to the end: of READY, RELOADING and STOPPING systemd takes the last
            self._owed[name] = value
        self._send({})

    def _send(self, fields: dict[str, str]) -> None:
        if self._socket is None:
            return
        lines = "\n".join(f"{name}={value}" for name, value in (self._owed | fields).items())
        try:
            _send_to(self._socket, lines.encode(errors="replace"), self._address)
        except OSError as error:
            if not self._failing:
                log.warning("notify.unsent", address=self._address, error=str(error))
            self._failing = True
        else:
            self._owed.clear()
            self._failing = False


def _line(text: str) -> str:
    """
    The text on one line, no longer than a datagram should carry.
    """
    return " ".join(text.split()).encode(errors="replace")[:_STATUS_BYTES].decode(errors="ignore")


def _send_to(sender: socket.socket, data: bytes, address: str) -> None:
    if address.startswith("@"):
        sender.sendto(data, b"\0" + os.fsencode(address[1:]))
    elif len(os.fsencode(address)) <= _PATH_BYTES:
        sender.sendto(data, address)
    else:  # the folder's descriptor is a short way to it
        path = PurePosixPath(address)
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sender.sendto(data, f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


def listen_fds(env: MutableMapping[str, str] | None = None) -> dict[str, list[socket.socket]]:
    """
    The sockets that a service manager passed to this process, by name; its variables are taken out.

    Args:
        env: os.environ by default.

    Returns:
        By FileDescriptorName (`rest_api.http`), in the order they were passed, `UNNAMED` where there was none; not
        blocking, and closed on exec. Empty when nothing was passed, or to another process. The caller owns them.

    Raises:
        Permanent: what was passed is not what the variables say: no number, no socket, fewer than said.
    """
    env = os.environ if env is None else env
    pid, count, names = (env.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count:
        return {}
    if not count.isdecimal():
        raise Permanent(f"LISTEN_FDS = {count!r} is no count of descriptors")
    named = names.split(":") if names else []
    found: dict[str, list[socket.socket]] = {}
    for i in range(int(count)):
        name = named[i] if i < len(named) and named[i] != "unknown" else UNNAMED
        found.setdefault(name, []).append(_adopt(FIRST_FD + i, name))
    return found


def _adopt(descriptor: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        adopted = socket.socket(fileno=descriptor)
    except OSError as error:
        what = "is not open" if error.errno == errno.EBADF else f"is no socket: {error.strerror}"
        raise Permanent(f"descriptor {descriptor} ({name or 'unnamed'}), passed by LISTEN_FDS, {what}") from error
    adopted.setblocking(False)
    return adopted
