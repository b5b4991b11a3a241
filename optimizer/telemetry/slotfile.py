"""
The file of a slot's metrics, with its room reserved before it is used.

prometheus_client maps sparse files. On a full disk a write to a hole of a mapped file is a SIGBUS: the service would die of its
metrics, and again after each restart. Here a new entry that finds no room lives in this process's memory until there is some.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Final

from prometheus_client.mmap_dict import MmapedDict

from optimizer.telemetry.logs import log

FIRST_BYTES: Final = 1 << 16  # as prometheus_client makes them: some 400 series
MAX_BYTES: Final = 1 << 23  # of one file: a scrape reads them all
_HEAD_BYTES: Final = 8  # how much is used, and padding
_ENTRY_BYTES: Final = 4 + 8 + 16  # of an entry beside its key: length, padding, value and time


def prepare(path: Path) -> None:
    """
    Make the file, or reserve the holes of the one that is there; one that is damaged is begun anew.

    Raises:
        OSError: there is no room for it.
    """
    if path.exists() and not _readable(path):
        log.error("metrics.file_damaged", path=str(path))
        path.unlink()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, max(FIRST_BYTES, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)


def _readable(path: Path) -> bool:
    size = path.stat().st_size
    if size == 0:  # made by a process that was killed a moment later
        return True
    try:
        with path.open("rb") as file:
            used = int.from_bytes(file.read(4), sys.byteorder, signed=True)
        for _ in MmapedDict.read_all_values_from_file(path):  # type: ignore[no-untyped-call]
            continue
    except (RuntimeError, ValueError, struct.error):
        return False
    return 0 <= used <= size and (used == 0 or used >= _HEAD_BYTES)


class SlotFile(MmapedDict):
    """
    Values by key; takes the place of prometheus_client's own class.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        self._homeless: dict[str, tuple[float, float]] = {}
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def read_value(self, key: str) -> tuple[float, float]:
        """
        Value and time of a key; a new key is made.
        """
        if self._has_room(key):
            found: tuple[float, float] = super().read_value(key)  # type: ignore[no-untyped-call]
            return found
        return self._homeless.get(key, (0.0, 0.0))

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """
        Set a key's value, in the file if there is room for it.
        """
        if self._has_room(key):
            self._homeless.pop(key, None)
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]
        else:
            self._homeless[key] = (value, timestamp)

    def _has_room(self, key: str) -> bool:
        return key in self._positions or self._grown_for(len(key.encode()) + _ENTRY_BYTES)

    def _grown_for(self, size: int) -> bool:
        capacity = self._capacity
        while self._used + size > capacity:
            capacity *= 2
        if capacity == self._capacity:
            return True
        if capacity > MAX_BYTES:
            return False
        try:
            os.posix_fallocate(self._f.fileno(), 0, capacity)
        except OSError as error:
            if not self._homeless:
                log.warning("metrics.no_room", path=self._fname, error=str(error))
            return False
        return True
