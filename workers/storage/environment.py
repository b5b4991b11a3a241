"""
Opening the LMDB environment. Whatever is wrong with it becomes a sentence, and the right end of the service: `Permanent` where
only an operator can help, `Transient` where time can.

LMDB reads through a memory map, so a file that was cut short kills whoever reads beyond its end. A healthy file may be a few
pages short, too (pages that were allocated and given back in one transaction are never written), so a short one is read through
by another process first; if that one dies or finds an error, the file is damaged.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import lmdb

from optimizer.errors import Permanent, Transient
from optimizer.telemetry.logs import log

DATABASES: Final = ("journal", "system", "ids", "selections", "state", "meta", "system_ids")
DAMAGE: Final = (
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.BadDbiError,
    lmdb.BadTxnError,  # what follows in a transaction that has met damage
    lmdb.IncompatibleError,
)
_LOCK_BYTES: Final = 8192  # of LMDB's table of readers
_CHECK_S: Final = 20.0  # for reading a short file through; a start may take sixty
_PASSING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)


def own(folder: Path) -> int:
    """
    Make the folder, and be the only service that uses it; the descriptor returned is to be kept open as long.

    Raises:
        Permanent: it cannot be a folder of ours. Transient: another service has it, or the disk is full.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _said(folder, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Transient(f"{folder} is used by another daemon: stop it, or set another storage.lmdb_path") from error
    return descriptor


def open_environment(folder: Path, map_bytes: int) -> tuple[lmdb.Environment, dict[str, Any]]:
    """
    The environment in a folder that is owned, and its databases.

    Args:
        map_bytes: the least size of the map.

    Raises:
        Permanent: it is damaged, or nothing of ours. Transient: the disk is full.
    """
    try:
        _reserve(folder / "lock.mdb")
        env = lmdb.open(
            str(folder), map_size=map_bytes, max_dbs=8, metasync=True, sync=True, writemap=False, readahead=False
        )
    except DAMAGE as error:
        raise damaged(folder, error) from error
    except lmdb.ReadonlyError as error:
        raise Permanent(f"{folder} cannot be written by this user: {error}") from error
    except lmdb.Error as error:
        raise Transient(f"{folder} cannot be opened: {error}") from error
    except OSError as error:
        raise _said(folder, error) from error
    try:
        _check_length(folder, env)
        env.set_mapsize(max(map_bytes, env.info()["map_size"]))
        return env, {name: env.open_db(name.encode()) for name in DATABASES}
    except DAMAGE as error:
        raise damaged(folder, error) from error
    except (lmdb.DiskError, lmdb.Error) as error:
        raise Transient(f"{folder} cannot be opened: {error}") from error


def damaged(folder: Path, error: Exception | str) -> Permanent:
    """
    The error for an environment that cannot be read.
    """
    told = f"{folder / 'data.mdb'} is damaged, or no store of this program ({error})"
    return Permanent(f"{told}: put a copy of it back, or move it away to begin with an empty one")


def _said(folder: Path, error: OSError) -> Permanent | Transient:
    told = f"{folder} cannot be used as storage.lmdb_path: {error.strerror or error}"
    return Transient(told) if error.errno in _PASSING else Permanent(told)


def _reserve(table: Path) -> None:
    # LMDB writes to this file through a map: without disk behind it that would be the end of the process
    with table.open("ab") as file:
        if file.tell() < _LOCK_BYTES:
            os.posix_fallocate(file.fileno(), 0, _LOCK_BYTES)


def _check_length(folder: Path, env: lmdb.Environment) -> None:
    file = folder / "data.mdb"
    wanted, found = env.stat()["psize"] * (env.info()["last_pgno"] + 1), file.stat().st_size
    if found >= wanted:
        return
    log.warning("store.short", file=str(file), bytes=found, wanted=wanted)
    try:
        command = [sys.executable, "-m", "workers.storage.environment", str(folder)]
        checked = subprocess.run(command, timeout=_CHECK_S, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
    except subprocess.TimeoutExpired:
        log.warning("store.check_unfinished", file=str(file), seconds=_CHECK_S)
        return
    if checked.returncode != 0:
        told = f"it has {found} bytes instead of {wanted}, and reading it ended with {checked.returncode}"
        raise damaged(folder, told)


def _read_through(folder: str) -> None:
    with lmdb.open(folder, readonly=True, lock=False, max_dbs=8, readahead=True) as env:
        for name in DATABASES:
            with suppress(lmdb.NotFoundError), env.begin() as txn:  # the first start may have ended before it was made
                for key, value in txn.cursor(db=env.open_db(name.encode(), txn=txn, create=False)):
                    len(key + value)


if __name__ == "__main__":
    _read_through(sys.argv[1])
