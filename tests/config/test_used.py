"""
Configuration that nothing reads is a defect: every declared setting is read by some code, or says why it is not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from optimizer.catalog import SECTIONS, SERVICES
from optimizer.config.fields import Option
from optimizer.config.limits import Limited
from optimizer.config.loader import settings_class

ROOT = Path(__file__).parents[2]
OWN = ("service", "service_manager", "observability")
# What the settings of a section are called where they are read; services of the catalogue are called `service` as well.
CALLED = {section: {section, "settings", "_settings", "self"} for section in SECTIONS}
CALLED["service"] = {"config.service"}
CALLED["service_manager"] |= {"manager", "_manager"}
CALLED["integrations"] |= {"webhook", "_webhook", "one"}


@cache
def reads(path: Path) -> frozenset[tuple[str, str]]:
    """
    By name of the object, attributes that a file reads: `a.b.c` gives (b, c), `x.section("s").c` gives (s, c).
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add((_name(node.value), node.attr))
    return frozenset(found)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        ours = node.attr == "service" and _name(node.value) in ("config", "_config")
        return "config.service" if ours else node.attr
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        return str(node.args[0].value)
    return ""


def readers(section: str) -> Iterator[Path]:
    """
    Files that may read a section by a short name: the whole product for the daemon's own, its worker's for another.
    """
    if section in OWN:
        yield from (path for path in ROOT.glob("optimizer/**/*.py") if "config" not in path.relative_to(ROOT).parts)
        yield ROOT / f"optimizer/config/{section}_settings.py"
        yield from ROOT.glob("workers/**/*.py")
    else:
        yield from ROOT.glob(f"workers/{section}/**/*.py")


def settings_of(kind: Any, path: str) -> Iterator[tuple[str, Option]]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint, option = hints[field.name], field.metadata["option"]
        inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
        if is_dataclass(inner):
            yield from settings_of(inner, f"{path}.{field.name}")
        if not is_dataclass(hint):
            yield f"{path}.{field.name}", option


DECLARED = {key: option for section in SECTIONS for key, option in settings_of(settings_class(section), section)}
RESOLVED = {"service.data_dir", "service.runtime_dir"}  # by the loader, to Config.data_dir and Config.runtime_dir
LISTENERS = {f"{listener.section}.{listener.field}" for service in SERVICES for listener in service.listeners}


def is_read(key: str) -> bool:
    section, _, name = key.rpartition(".")
    section = section.partition(".")[0]
    at_home = any((called, name) in reads(path) for path in readers(section) for called in CALLED[section])
    return at_home or any((section, name) in reads(path) for path in ROOT.glob("workers/**/*.py"))


@pytest.mark.parametrize("key", DECLARED)
def test_a_setting_is_read_or_says_why_not(key: str) -> None:
    option = DECLARED[key]
    if option.unused or option.alias_of:
        return
    if key.endswith(".enabled") and key.count(".") == 1:
        assert key.partition(".")[0] in {service.section for service in SERVICES}  # by Config.enabled
    elif key.endswith((".memory_limit", ".memory_limit_hard")):
        assert isinstance(settings_class(key.partition(".")[0])(), Limited)  # of any section: parent.py, child.py
    elif key.endswith(".instances"):
        assert any(service.overlaps for service in SERVICES if service.section == key.partition(".")[0])
    else:
        assert key in LISTENERS or key in RESOLVED or is_read(key)


def test_an_alias_names_a_setting() -> None:
    for key, option in DECLARED.items():
        if option.alias_of:
            assert f"{key.rpartition('.')[0]}.{option.alias_of}" in DECLARED


def test_services_that_restart_with_a_setting_exist() -> None:
    names = {service.name for service in SERVICES}
    assert all(names.issuperset(option.also) for option in DECLARED.values())


def test_an_unread_setting_is_found() -> None:
    assert is_read("rest_api.timeout_secs")
    assert not is_read("rest_api.no_such_key")
    assert not is_read("service.port")
    assert not is_read("collector.seed")
