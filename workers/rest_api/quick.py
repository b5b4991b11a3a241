"""
A JSON answer that is written in one piece. aiohttp's way of putting headers together costs as much as a selection.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

_CLOSE: Final = b"Connection: close\r\n"


class Quick(web.StreamResponse):
    """
    Status 200 with `body`, which is JSON already. Has no headers to change; for small bodies.
    """

    _status = 200
    _date = (0, b"")  # the second, and the beginning of all answers in it

    def __init__(self, body: bytes) -> None:
        # the base class would prepare headers, which are not used here
        self._state = {}
        self._json = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """
        Write everything.
        """
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive and request.version == HttpVersion11
        second, head = Quick._date
        now = int(time.time())
        if now != second:
            head = (
                f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: {formatdate(now, usegmt=True)}\r\n"
            ).encode()
            Quick._date = (now, head)
        close = b"" if self._keep_alive else _CLOSE
        await request.writer.write(b"%b%bContent-Length: %d\r\n\r\n%b" % (head, close, len(self._json), self._json))
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:
        """
        Everything is written.
        """
