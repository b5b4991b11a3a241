"""
The admin socket: one JSON object a line in, one a line out.

Who may do what is told apart by SO_PEERCRED: root, the daemon's user and members of the group `llm-optimizer` may do
everything; whoever else reaches the socket may ask, but not tell. The socket has mode 0660 and, where there is that group and
the daemon may give it away, belongs to the group; its folder has mode 0700, or 0750 with that group.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import socket
import struct
from array import array
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

from optimizer.errors import Conflict, Invalid, NotFound, OptimizerError, Permanent, Rejected, Transient
from optimizer.telemetry.logs import log

Command = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

NAME: Final = "admin.sock"
GROUP: Final = "llm-optimizer"
_KINDS: Final = {
    Invalid: "invalid",
    NotFound: "not_found",
    Conflict: "conflict",
    Rejected: "rejected",
    Transient: "transient",
    Permanent: "permanent",
}
_LINE_BYTES: Final = 64 * 1024
_CLIENTS: Final = 32
_IDLE_S: Final = 30.0  # a client that says nothing, or does not read its answer, is let go
_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h
_GROUPS_BYTES: Final = 1024  # the most that getsockopt gives: 256 groups
_PEER: Final = struct.Struct("3i")


class Admin:
    """
    Serves `command(name, request)` on `runtime_dir/admin.sock`. An asynchronous context manager.

    Args:
        read: names of the commands that change nothing.
    """

    def __init__(self, runtime_dir: Path, command: Command, read: Collection[str]) -> None:
        self._path = runtime_dir / NAME
        self._command = command
        self._read = read
        self._clients = 0
        self._group = _group_id()

    async def __aenter__(self) -> Admin:
        self._path.unlink(missing_ok=True)  # of a daemon that was killed: the lock on the folder says it is gone
        mask = os.umask(0o117)
        try:
            # a path may be longer than a socket's; the folder's descriptor is a short way to it
            folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
            bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            bound.bind(f"/proc/self/fd/{folder}/{NAME}")
            os.close(folder)
            self._share()
        finally:
            os.umask(mask)
        self._server = await asyncio.start_unix_server(self._serve, sock=bound, limit=_LINE_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._path.unlink(missing_ok=True)

    def _share(self) -> None:
        """
        Let the group reach the socket, where there is one and we may.
        """
        if self._group is None:
            return
        try:
            for path in (self._path, self._path.parent):
                if path.stat().st_gid != self._group:  # else a service manager has seen to it, and may forbid the call
                    os.chown(path, -1, self._group)
        except PermissionError:
            log.debug("admin.not_shared", group=GROUP)
        else:
            self._path.parent.chmod(0o750)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.LimitOverrunError, ValueError):
                if self._clients > _CLIENTS:
                    await self._write(writer, _refusal(f"{_CLIENTS} clients are connected already", "rejected"))
                else:
                    await self._talk(reader, writer, self._trusted(writer))
        finally:
            self._clients -= 1
            writer.close()

    def _trusted(self, writer: asyncio.StreamWriter) -> bool:
        peer = writer.get_extra_info("socket")
        _, uid, gid = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid in (0, os.getuid()):
            return True
        return self._group is not None and (gid == self._group or self._group in _groups(peer))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trusted: bool) -> None:
        while line := await asyncio.wait_for(reader.readline(), _IDLE_S):
            await self._write(writer, await self._answer(line, trusted))

    async def _answer(self, line: bytes, trusted: bool) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            return _refusal(f"a request is one JSON object on a line: {error}", "invalid")
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            return _refusal('a request is an object with "command"', "invalid")
        name = request["command"]
        if not trusted and name not in self._read:
            return _refusal(f"{name} takes root, the daemon's user or a member of group {GROUP}", "not_permitted")
        try:
            return {"ok": True, "result": await self._command(name, request)}
        except OptimizerError as error:
            return _refusal(str(error), _KINDS.get(type(error), "failed"))

    @staticmethod
    async def _write(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
        writer.write(json.dumps(answer).encode() + b"\n")
        await asyncio.wait_for(writer.drain(), _IDLE_S)


def _refusal(sentence: str, kind: str) -> dict[str, Any]:
    return {"ok": False, "error": sentence, "kind": kind}


def _group_id() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _groups(peer: Any) -> Sequence[int]:
    """
    Supplementary groups of the other end, as it had them when it connected. /proc would not do: it may be hidden from us.
    """
    try:
        return array("I", peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES))
    except OSError as error:
        log.debug("admin.groups_unknown", error=str(error))  # more than fit, or none at all
        return ()
