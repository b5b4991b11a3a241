from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.config.loader import CheckTasks, load
from optimizer.errors import Invalid

Written = Callable[..., Path]
Told = Callable[..., dict[str, str]]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """
    A file with this content.
    """

    def write(text: str | bytes, name: str = "config.toml") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.fixture
def told(written: Written) -> Told:
    """
    By dotted key, what is said to be wrong with a configuration; empty when nothing is.
    """

    def tell(
        text: str | bytes = "",
        name: str = "config.toml",
        env: dict[str, str] | None = None,
        check_tasks: CheckTasks | None = None,
        **overrides: object,
    ) -> dict[str, str]:
        spoken = {key.replace("__", "."): value for key, value in overrides.items()}
        try:
            load(written(text, name), env or {}, spoken, check_tasks)
        except Invalid as error:
            return {problem.field: str(problem) for problem in error.problems}
        return {}

    return tell
