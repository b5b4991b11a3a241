"""
`optimizerctl doctor`: looks at what a daemon depends on, and says what to do.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

import click

from optimizer import __version__
from optimizer.catalog import SERVICES
from optimizer.config.loader import load
from optimizer.config.tree import Config
from optimizer.ctl.admin import NotRunning, Refused, ask
from optimizer.ctl.target import EXIT_FAILED, Target, columns
from optimizer.errors import Invalid

_LEAST_FREE_BYTES: Final = 1024**3
_BACKLOG: Final = 1024  # what the listeners ask for
_LEAST_FILES: Final = 4096
_PACKAGES: Final = ("aiohttp", "grpcio", "lmdb", "msgspec", "prometheus-client", "pyzmq")


@dataclass(frozen=True)
class Finding:
    """
    One thing looked at. `advice`: what to do about it, or "".
    """

    check: str
    outcome: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""


@click.command()
@click.pass_obj
def command(target: Target) -> None:
    """
    Check configuration, folders, disk, ports, limits and the running daemon. Exit code 1 if something is wrong.
    """
    findings = list(_examine(target))
    target.show([asdict(one) for one in findings], _table)
    sys.exit(EXIT_FAILED if any(one.outcome == "problem" for one in findings) else 0)


def _table(found: list[dict[str, Any]]) -> str:
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    rows = [
        [one["check"], click.style(one["outcome"], fg=colours[one["outcome"]]), one["found"], one["advice"]]
        for one in found
    ]
    return columns([["CHECK", "OUTCOME", "FOUND", "WHAT TO DO"], *rows])


def _examine(target: Target) -> Iterator[Finding]:
    status = _daemon(target)
    path = target.config
    if path is None and isinstance(status, dict) and status.get("config_path"):
        path = Path(status["config_path"])
    try:
        config = load(path)
    except Invalid as error:
        for problem in error.problems:
            yield Finding(
                "configuration", "problem", str(problem), "correct it; `optimizerctl config validate` checks again"
            )
        return
    yield Finding("configuration", "ok", str(path) if path is not None else "defaults and environment")
    for warning in config.warnings:
        yield Finding("configuration", "warning", warning)
    yield from _versions()
    yield from _running(status)
    yield from _folders(config)
    yield from _ports(config, isinstance(status, dict))
    yield from _limits()


def _daemon(target: Target) -> dict[str, Any] | str:
    try:
        found: dict[str, Any] = ask(target.socket, {"command": "status"}, 5.0)
    except (NotRunning, Refused, TimeoutError) as error:
        return str(error) or f"{target.socket} does not answer"
    return found


def _versions() -> Iterator[Finding]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding("packages", "problem", f"{name} is not installed", "install llm-auto-optimizer anew")
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("versions", "ok", ", ".join([f"llm-auto-optimizer {__version__}", f"Python {python}", *found]))


def _running(status: dict[str, Any] | str) -> Iterator[Finding]:
    if isinstance(status, str):
        yield Finding("daemon", "warning", status, "start llm-optimizer, or name its socket with --socket")
        return
    ill = {name: one for name, one in status["services"].items() if one["wanted"] and not one["healthy"]}
    if not ill:
        yield Finding("daemon", "ok", f"pid {status['pid']}, {status['status']}")
    for name, one in ill.items():
        told = f"{name} is {one['state']}: {one['message'] or one['last_exit']}"
        yield Finding("daemon", "problem", told, f"optimizerctl status {name}; optimizerctl logs {name}")


def _folders(config: Config) -> Iterator[Finding]:
    for name, folder in (("data_dir", config.data_dir), ("runtime_dir", config.runtime_dir)):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield Finding(
                name, "problem", f"{folder} cannot be written by this user", f"check {there} and who runs the daemon"
            )
            continue
        if folder.exists() and folder.stat().st_mode & 0o007:
            yield Finding(name, "warning", f"{folder} is open to everybody", f"chmod o-rwx {folder}")
        free = shutil.disk_usage(there).free
        told = f"{folder}, {free / 2**30:.1f} GiB free"
        little = name == "data_dir" and free < _LEAST_FREE_BYTES
        yield Finding(
            name, "warning" if little else "ok", told, "make room: a full disk refuses events" if little else ""
        )


def _ports(config: Config, running: bool) -> Iterator[Finding]:
    for service in SERVICES:
        for listener in service.listeners:
            if not config.enabled(service.section):
                continue
            port = getattr(config.section(listener.section), listener.field)
            key = f"{listener.section}.{listener.field}"
            if running or port == 0:
                yield Finding("ports", "ok", f"{key} = {port or 'any'}" + (", in use by the daemon" if port else ""))
                continue
            with socket.socket(socket.AF_INET6 if ":" in config.service.host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((config.service.host, port))
                except OSError as error:
                    yield Finding("ports", "problem", f"{key} = {port}: {error.strerror}", f"free it, or set {key}")
                else:
                    yield Finding("ports", "ok", f"{key} = {port} is free")


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = hard != resource.RLIM_INFINITY and hard < _LEAST_FILES
    yield Finding("open files", "warning" if few else "ok", f"{soft} of {hard}", "raise LimitNOFILE" if few else "")
    backlog = _number(Path("/proc/sys/net/core/somaxconn"), int)
    if backlog is not None:
        short = backlog < _BACKLOG
        told = "sysctl net.core.somaxconn=1024: callers wait there while a service restarts" if short else ""
        yield Finding("backlog", "warning" if short else "ok", str(backlog), told)


def _number(path: Path, kind: Callable[[str], int]) -> int | None:
    try:
        return kind(path.read_text())
    except (OSError, ValueError):
        return None
