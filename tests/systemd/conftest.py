"""
What these tests need of the machine, and folders as systemd-analyze wants them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("basic", "multi-user", "network", "shutdown", "sockets", "sysinit")

Analyze = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def analyze() -> Analyze:
    """
    Runs systemd-analyze. Absent at home is a reason to skip, in CI one to fail: Debian's package is called systemd.
    """
    if shutil.which("systemd-analyze") is None:
        sentence = "there is no systemd-analyze: apt-get install systemd"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemd-analyze", *words],
            capture_output=True,
            text=True,
            env=os.environ | {"SYSTEMD_PAGER": ""},
            check=False,
        )

    return run


def with_targets(root: Path) -> Path:
    """
    The tree with the targets that every unit stands on.
    """
    units = root / "lib" / "systemd" / "system"
    units.mkdir(parents=True, exist_ok=True)
    for name in TARGETS:
        (units / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
    return root
