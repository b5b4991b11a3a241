"""
What a built package has in it, seen from the declarations; a wheel that lacks a file works in the checkout only.
"""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = [ROOT / name for name in ("optimizer", "workers")]


def test_every_file_beside_the_code_is_package_data() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    beside = [
        path
        for folder in FOLDERS
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert beside
    assert not [path for path in beside if not any(fnmatch(path.name, pattern) for pattern in patterns)]


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for folder in FOLDERS for path in folder.rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


@pytest.mark.parametrize("script", PROJECT["project"]["scripts"])
def test_every_script_names_a_callable(script: str) -> None:
    module, _, name = PROJECT["project"]["scripts"][script].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_this_python_is_one_of_those_that_are_named() -> None:
    low, high = re.findall(r"3\.(\d+)", PROJECT["project"]["requires-python"])
    assert int(low) <= sys.version_info.minor < int(high)
