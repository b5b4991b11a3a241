"""
Any settings mean the same in TOML, in YAML, in the environment, and after they were printed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import tomlkit
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.catalog import SECTIONS, SERVICES
from optimizer.config.fields import Duration, Option, Secret, Size
from optimizer.config.loader import load, settings_class
from optimizer.config.printer import shown
from optimizer.config.tree import Config
from optimizer.config.values import written

_LONG = 3650 * 86400.0
_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
_secret = _text.filter(lambda text: not text.startswith(("env:", "file:")))


def _one(hint: Any, option: Option) -> st.SearchStrategy[Any] | None:
    low, high = option.minimum, option.maximum
    if option.choices:
        return st.sampled_from(option.choices)
    if option.check is not None:
        return None  # what is right is the check's business; its default will do
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(int(low or 0), int(high if high is not None else 10**12))
    if hint is Size:
        return st.one_of(st.integers(0, 2**50), st.sampled_from(["512MiB", "1.5GB", "10kB", "7", "0 B"]))
    if hint is Duration:
        return st.floats(low or 0, high or _LONG).map(lambda s: s if s % 0.25 else written(s))
    if hint is float:
        return st.floats(low or 0, high or 1)
    if hint is Secret:
        return _secret
    if hint is str:
        return _text
    return st.lists(_text, max_size=3) if get_args(hint)[0] is str else None


def _table(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    hints = get_type_hints(kind)
    known: dict[str, st.SearchStrategy[Any]] = {}
    for field in fields(kind):
        option: Option = field.metadata["option"]
        hint = hints[field.name]
        found = _table(hint) if is_dataclass(hint) else _one(hint, option)
        if found is not None and not option.alias_of:
            known[field.name] = found
    return st.fixed_dictionaries({}, optional=known)


@st.composite
def _trees(draw: st.DrawFn) -> dict[str, Any]:
    tree = {section: draw(_table(settings_class(section))) for section in SECTIONS}
    ports = [(listener.section, listener.field) for service in SERVICES for listener in service.listeners]
    numbers = draw(st.lists(st.integers(1, 65535), min_size=len(ports), max_size=len(ports), unique=True))
    for (section, key), number in zip(ports, numbers, strict=True):
        tree[section][key] = number
    names = draw(st.lists(_text.filter(bool), max_size=2, unique=True))
    tree["integrations"]["webhooks"] = [{"name": name, "url": "https://a.example"} for name in names]
    return tree


def _variables(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _variables(one, f"{name}__{key.upper()}")
    elif isinstance(value, str):
        yield name, value
    else:
        yield name, json.dumps(value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("languages")


def _loaded(path: Path, text: str) -> Config:
    path.write_bytes(text.encode())
    return load(path, {})


def _sections(config: Config) -> dict[str, Any]:
    return {section: config.section(section) for section in SECTIONS}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tree=_trees())
def test_any_settings_mean_the_same_in_every_language(folder: Path, tree: dict[str, Any]) -> None:
    from_toml = _loaded(folder / "c.toml", tomlkit.dumps(tree))
    from_yaml = _loaded(folder / "c.yaml", yaml.safe_dump(tree))
    variables = {
        name: value
        for section, one in tree.items()
        for name, value in _variables(one, f"LLM_OPTIMIZER__{section.upper()}")
    }
    from_environment = load(None, variables)
    assert _sections(from_toml) == _sections(from_yaml) == _sections(from_environment)
    for section, settings_ in _sections(from_toml).items():
        for key, value in tree[section].items():
            assert _plain(getattr(settings_, key), value)


def _plain(found: Any, given_: Any) -> bool:
    if isinstance(found, Secret):
        return bool(found.reveal() == given_)
    if isinstance(found, Size):
        return isinstance(given_, str) or found == given_
    if isinstance(found, Duration):
        return isinstance(given_, str) or float(found) == float(given_)
    if isinstance(found, tuple):
        return len(found) == len(given_)
    return is_dataclass(found) or bool(found == given_)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tree=_trees())
def test_printed_settings_are_read_as_the_same(folder: Path, tree: dict[str, Any]) -> None:
    for section in tree.values():  # secrets are printed as stars
        for key in [key for key, value in section.items() if isinstance(value, dict)]:
            del section[key]
    config = _loaded(folder / "a.toml", tomlkit.dumps(tree))
    for print_ in (tomlkit.dumps, yaml.safe_dump):
        printed = json.loads(json.dumps(shown(config)))
        again = _loaded(folder / ("b.toml" if print_ is tomlkit.dumps else "b.yaml"), print_(printed))
        for section, found in _sections(again).items():
            for field in fields(found):
                value = getattr(found, field.name)
                if not isinstance(value, Secret):
                    assert value == getattr(config.section(section), field.name)
