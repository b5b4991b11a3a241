"""
The admin socket: one JSON object a line in, one a line out. The same user, or root, may speak; a folder of mode 0700 keeps
others away, SO_PEERCRED makes sure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from optimizer.errors import OptimizerError
from optimizer.telemetry.logs import log

Command = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

NAME: Final = "admin.sock"
_LINE_BYTES: Final = 64 * 1024
_CLIENTS: Final = 32
_IDLE_S: Final = 30.0  # a client that says nothing, or does not read its answer, is let go
_PEER: Final = struct.Struct("3i")


class Admin:
    """
    Serves `command(name, request)` on `runtime_dir/admin.sock`. An asynchronous context manager.
    """

    def __init__(self, runtime_dir: Path, command: Command) -> None:
        self._path = runtime_dir / NAME
        self._command = command
        self._clients = 0

    async def __aenter__(self) -> Admin:
        self._path.unlink(missing_ok=True)  # of a daemon that was killed: the lock on the folder says it is gone
        mask = os.umask(0o177)
        try:
            # a path may be longer than a socket's; the folder's descriptor is a short way to it
            folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
            bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            bound.bind(f"/proc/self/fd/{folder}/{NAME}")
            os.close(folder)
        finally:
            os.umask(mask)
        self._server = await asyncio.start_unix_server(self._serve, sock=bound, limit=_LINE_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.LimitOverrunError, ValueError):
                if self._clients > _CLIENTS:
                    await self._write(writer, {"ok": False, "error": f"{_CLIENTS} clients are connected already"})
                elif self._allowed(writer):
                    await self._talk(reader, writer)
        finally:
            self._clients -= 1
            writer.close()

    @staticmethod
    def _allowed(writer: asyncio.StreamWriter) -> bool:
        peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        _, uid, _ = _PEER.unpack(peer)
        if uid in (0, os.getuid()):
            return True
        log.warning("admin.refused", uid=uid)
        return False

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await asyncio.wait_for(reader.readline(), _IDLE_S):
            await self._write(writer, await self._answer(line))

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError as error:
            return {"ok": False, "error": f"a request is one JSON object on a line: {error}"}
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            return {"ok": False, "error": 'a request is an object with "command"'}
        try:
            return {"ok": True, "result": await self._command(request["command"], request)}
        except OptimizerError as error:
            return {"ok": False, "error": str(error)}

    @staticmethod
    async def _write(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
        writer.write(json.dumps(answer).encode() + b"\n")
        await asyncio.wait_for(writer.drain(), _IDLE_S)
