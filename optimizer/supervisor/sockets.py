"""
The public listeners: bound once, by the parent, and inherited, so that a restarting service refuses no connection.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

from optimizer.catalog import Listener, Service
from optimizer.config.tree import Config
from optimizer.errors import Permanent

Bound = dict[str, dict[str, socket.socket]]  # by service and listener

_BACKLOG: Final = 1024  # callers that wait while their service restarts; the kernel caps it at net.core.somaxconn


def bind_all(services: Iterable[Service], config: Config) -> Bound:
    """
    By service and listener, the bound sockets.

    Raises:
        Permanent: an address cannot be bound; the message names the key of the configuration.
    """
    return {
        service.name: {listener.name: _bind(listener, config) for listener in service.listeners} for service in services
    }


def _bind(listener: Listener, config: Config) -> socket.socket:
    host = config.service.host
    port = getattr(config.section(listener.section), listener.field)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.kind == "reserve":
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        key = f"{listener.section}.{listener.field}"
        raise Permanent(f"{key} = {port}: {host}:{port} cannot be bound: {error.strerror}") from error
    if listener.kind == "inherit":
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    return bound


def ports(listeners: dict[str, socket.socket]) -> dict[str, int]:
    """
    The port of each listener, the one chosen where 0 was asked for.
    """
    return {name: bound.getsockname()[1] for name, bound in listeners.items()}
