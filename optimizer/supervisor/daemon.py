"""
From a configuration to a running daemon and its exit code.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import secrets
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from optimizer.catalog import SERVICES
from optimizer.config.tree import Config
from optimizer.errors import EXIT_DONE, Permanent, Transient
from optimizer.supervisor import sockets, spawn
from optimizer.supervisor.admin import Admin
from optimizer.supervisor.commands import READ, Commands, stopped_for_good
from optimizer.supervisor.notify import Notifier, listen_fds
from optimizer.supervisor.parent import Supervisor
from optimizer.supervisor.reloader import Reloader
from optimizer.telemetry import tracing
from optimizer.telemetry.logs import configure, log, require_file, ring_path
from optimizer.telemetry.redaction import secrets_of

NAME: Final = "supervisor"  # of the parent, in its log lines
_LEVELS_OF_NEEDS: Final = 3  # services start one level after another, each within start_timeout
_MARGIN_S: Final = 10.0
SECRET_BYTES: Final = 32
KEY_FILE: Final = "selection.key"  # in data_dir


def run(config: Config, read: Callable[[], Config]) -> int:
    """
    Run until stopped; returns the exit code.

    Args:
        read: the configuration as it is when a reload asks; raises Invalid.

    Raises:
        Transient: another daemon has the folder, or an address is taken. Permanent: a folder cannot be made.
    """
    observability = config.observability
    configure(observability.log_level, observability.json_logging, NAME, secrets=secrets_of(config))
    notifier = Notifier.from_environment(os.environ)
    activated = listen_fds(os.environ)
    require_file(observability.log_path)
    try:
        lock = _folders(config)
        configure(
            observability.log_level,
            observability.json_logging,
            NAME,
            ring=ring_path(config.runtime_dir, NAME),
            file=observability.log_path,
            secrets=secrets_of(config),
        )
        secret = _secret(config.data_dir / KEY_FILE)
    except OSError as error:
        raise Permanent(f"{error.filename}: {error.strerror}") from error
    for warning in config.warnings:
        log.warning("config.warning", text=warning)
    start_s = float(config.service_manager.start_timeout) * _LEVELS_OF_NEEDS
    notifier.extend_timeout(int((start_s + _MARGIN_S) * 1e6))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the soft one is for programs that use select(2)
    spawn.adopt_orphans()
    enabled = [service for service in SERVICES if config.enabled(service.section)]
    listeners = sockets.bind_all(enabled, config, activated)
    tracing.preload(config)
    spawn.preload(enabled)
    lifeline = os.pipe()
    supervisor = partial(
        Supervisor,
        SERVICES,
        config,
        secret,
        listeners,
        lifeline,
        stopped=stopped_for_good(config.data_dir),
        notifier=notifier,
    )
    asyncio.run(_run(supervisor, read))
    os.close(lock)
    return EXIT_DONE


async def _run(make: Callable[[], Supervisor], read: Callable[[], Config]) -> None:
    supervisor = make()
    reloader = Reloader(supervisor, read)
    supervisor.on_hangup = reloader.on_hangup
    commands = Commands(supervisor, reloader)
    async with Admin(supervisor.config.runtime_dir, commands.answer, READ):
        await supervisor.run()


def _folders(config: Config) -> int:
    """
    The daemon's folders, made and locked; returns the lock's descriptor.
    """
    for key, folder in (("data_dir", config.data_dir), ("runtime_dir", config.runtime_dir)):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Permanent(f"service.{key} = {folder}: {error.filename}: {error.strerror}") from error
    config.runtime_dir.chmod(0o700)
    for folder in dict.fromkeys((config.runtime_dir, config.data_dir)):
        lock = os.open(folder / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Transient(f"another daemon runs in {folder}") from error
    shutil.rmtree(config.runtime_dir / "metrics", ignore_errors=True)
    (config.runtime_dir / "metrics").mkdir(mode=0o700)
    (config.runtime_dir / "log").mkdir(mode=0o700, exist_ok=True)
    return lock


def _secret(path: Path) -> bytes:
    """
    The installation's key, made at the first start.
    """
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        secret = secrets.token_bytes(SECRET_BYTES)
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    if len(secret) != SECRET_BYTES:
        raise Permanent(f"{path} has {len(secret)} bytes, not {SECRET_BYTES}: it is no key of ours")
    return secret
