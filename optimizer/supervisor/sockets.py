"""
The public listeners: bound once, by the parent, and inherited, so that a restarting service refuses no connection. Or taken
from the service manager, where it has bound them (socket activation).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from optimizer.catalog import Listener, Service
from optimizer.config.tree import Config
from optimizer.errors import Permanent, Transient
from optimizer.telemetry.logs import log

Bound = dict[str, dict[str, socket.socket]]  # by service and listener
Activated = Mapping[str, Sequence[socket.socket]]  # by the name the service manager gave, e.g. rest_api.http

_BACKLOG: Final = 1024  # callers that wait while their service restarts; the kernel caps it at net.core.somaxconn


def bind_all(services: Iterable[Service], config: Config, activated: Activated) -> Bound:
    """
    By service and listener, the bound sockets.

    Raises:
        Transient: an address is in use. Permanent: it cannot be bound at all. The message names the key of the configuration.
    """
    given = {name: list(sockets) for name, sockets in activated.items()}
    bound = {
        service.name: {
            listener.name: _adopted(service, listener, config, given) or bind(listener, config)
            for listener in service.listeners
        }
        for service in services
    }
    for name, sockets in given.items():
        for one in sockets:
            log.warning("socket.unused", name=name, address=str(one.getsockname()))
            one.close()
    return bound


def moves(listener: Listener, old: Config, new: Config) -> bool:
    """
    Whether a configuration puts a listener on another port.
    """
    before, after = (getattr(config.section(listener.section), listener.field) for config in (old, new))
    return bool(before != after)


def bind(listener: Listener, config: Config) -> socket.socket:
    """
    One listener as the configuration wants it.

    Raises:
        Transient, Permanent: see bind_all.
    """
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
        told = f"{listener.section}.{listener.field} = {port}: {host}:{port} cannot be bound: {error.strerror}"
        if error.errno == errno.EADDRINUSE:
            raise Transient(told) from error
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            told = f"service.host = {host} is no address of this machine: {error.strerror}"
        raise Permanent(told) from error
    if listener.kind == "inherit":
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    return bound


def _adopted(
    service: Service, listener: Listener, config: Config, given: dict[str, list[socket.socket]]
) -> socket.socket | None:
    """
    The socket that the service manager has bound for a listener: of its name, else of its port.
    """
    if listener.kind != "inherit":
        return None  # a library binds this one for itself
    port = getattr(config.section(listener.section), listener.field)
    named = given.get(f"{service.name}.{listener.name}", [])
    candidates = [named, *(sockets for name, sockets in given.items() if sockets is not named)]
    for sockets in candidates:
        for one in sockets:
            if sockets is named or (one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockname()[1] == port):
                sockets.remove(one)
                one.setblocking(False)
                return one
    return None


def ports(listeners: Mapping[str, socket.socket]) -> dict[str, int]:
    """
    The port of each listener, the one chosen where 0 was asked for.
    """
    return {name: bound.getsockname()[1] for name, bound in listeners.items() if bound.family != socket.AF_UNIX}
