"""
A disk that is full, where that can be had.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_file_system(folder: Path, mebibytes: int) -> Iterator[Path]:
    """
    A folder of so many MiB, on a file system of its own; skips the test where mounting is not to be had.
    """
    if os.getuid() != 0:
        pytest.skip("mounting a small file system takes root")
    mounted = folder / "small"
    mounted.mkdir()
    size = f"size={mebibytes}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(mounted)], check=False).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill(folder: Path) -> None:
    """
    Take all the room there is with a file `filler`.
    """
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
