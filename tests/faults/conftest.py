from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.house import House


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="llmo-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def build(folder: Path) -> Iterator[Callable[..., House]]:
    """
    Start parents that do not outlive the test.
    """
    houses: list[House] = []

    def start(*words: str, manager: str = "", **popen: Any) -> House:
        houses.append(House(folder, words, manager, **popen))
        return houses[-1].start()

    yield start
    for house in houses:
        house.end()
