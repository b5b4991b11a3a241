"""
The one place that speaks HTTP to receivers. Guarded: it connects to public addresses only (unless told otherwise),
follows no redirect, uses no proxy of the environment, keeps no cookie, and does not read what it is answered.
"""

from __future__ import annotations

import errno
import functools
import socket
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp

from optimizer.clock import Clock
from workers.integrations.webhook import Reply, is_public, retry_after_s


class Send(Protocol):
    """
    How a request leaves the house.
    """

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Reply:
        """
        One attempt. Whatever goes wrong on the way is a Reply without status; nothing is raised for it.
        """


class Sender:
    """
    Sends requests to one receiver.

    Args:
        allow_private: connect to private networks and this machine, too.
    """

    def __init__(self, clock: Clock, allow_private: bool) -> None:
        self._clock = clock
        # The socket factory sees the very address that is connected to: a name that resolves to another one the
        # second time, or an address written as a number, does not get around it.
        connector = aiohttp.TCPConnector(
            limit=1, ssl=_trust(), socket_factory=None if allow_private else _public_socket
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "llm-auto-optimizer"},
            trust_env=False,
            auto_decompress=False,
        )

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Reply:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.post(
                url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                wait_s = retry_after_s(response.headers, self._clock.at())
                return Reply(response.status, f"it answered {response.status}", wait_s)
        except TimeoutError:
            return Reply(None, f"no answer within {timeout_s:g} s")
        except aiohttp.ClientConnectorError as error:
            return Reply(None, f"no connection: {error.strerror or error.os_error}")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # the texts of these carry the address, whose path may be a secret
            return Reply(None, f"no answer ({type(error).__name__})")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()


@functools.cache
def _trust() -> ssl.SSLContext:
    """
    Whom we trust, read when this process begins to deliver: aiohttp's own is as old as the daemon.
    """
    return ssl.create_default_context()


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise OSError(errno.EACCES, f"{address[0]} is not a public address, and allow_private is not set")
    return socket.socket(family, kind, protocol)
