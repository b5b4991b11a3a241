"""
The configuration from file, environment and command line, checked as a whole: every mistake is found at once.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

from optimizer.catalog import SECTIONS
from optimizer.config.fields import Option, Secret
from optimizer.config.tree import Config
from optimizer.config.values import Wrong, convert
from optimizer.errors import Invalid, Problem

PREFIX: Final = "LLM_OPTIMIZER__"
_MAX_BYTES: Final = 1024 * 1024  # of a configuration file


class _Reading:
    """
    What is found on the way through one configuration.
    """

    def __init__(self, env: Mapping[str, str], lines: Mapping[str, int]) -> None:
        self.env = env
        self.lines = lines
        self.texts: set[str] = set()  # dotted keys whose value came from the environment
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.given: dict[str, Any] = {}

    def wrong(self, key: str, reason: str, expected: str = "") -> None:
        line = self.lines.get(key)
        self.problems.append(Problem(key, f"{reason} (line {line})" if line else reason, expected))


def settings_class(section: str) -> Any:
    """
    The dataclass of a section.
    """
    return importlib.import_module(SECTIONS[section]).Settings


def load(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """
    The whole configuration.

    Args:
        path: TOML, or YAML by its suffix; None: defaults. `overrides`: dotted keys of the command line.

    Raises:
        Invalid: with every problem, each naming its dotted key, and the line where there is one.
    """
    env = os.environ if env is None else env
    tree, lines = _parse(path) if path else ({}, {})
    reading = _Reading(env, lines)
    _from_environment(tree, reading)
    for key, value in (overrides or {}).items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
        reading.texts.discard(key)
    tasks = tree.pop("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        reading.wrong("tasks", "is no array of tables", "[[tasks]]")
        tasks = []
    for name in tree:
        if name not in SECTIONS:
            reading.wrong(name, "is no section", _similar(name, [*SECTIONS, "tasks"]))
    sections = {name: _table(reading, name, settings_class(name), tree.get(name, {})) for name in SECTIONS}
    if not reading.problems:
        _cross_check(reading, sections)
    if reading.problems:
        raise Invalid(reading.problems)
    return _config(reading, sections, tasks, path)


def _config(reading: _Reading, sections: dict[str, Any], tasks: list[Any], path: Path | None) -> Config:
    service = sections["service"]
    if service.host not in ("127.0.0.1", "::1", "localhost"):
        reading.warnings.append(
            f"service.host = {service.host}: the listeners are open to the network, and there is no authentication yet"
        )
    data_dir = Path(service.data_dir).absolute()
    return Config(
        service=service,
        service_manager=sections["service_manager"],
        observability=sections["observability"],
        workers={
            name: value
            for name, value in sections.items()
            if name not in ("service", "service_manager", "observability")
        },
        data_dir=data_dir,
        runtime_dir=_runtime_dir(service.runtime_dir, data_dir, reading.env),
        tasks=tuple(tasks),
        warnings=tuple(reading.warnings),
        path=path,
    )


def _runtime_dir(configured: str, data_dir: Path, env: Mapping[str, str]) -> Path:
    if configured:
        return Path(configured).absolute()
    if env.get("RUNTIME_DIRECTORY"):
        return Path(env["RUNTIME_DIRECTORY"].split(":")[0])
    if env.get("XDG_RUNTIME_DIR"):
        return Path(env["XDG_RUNTIME_DIR"]) / "llm-optimizer"
    return data_dir / "run"


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Invalid([Problem("", f"{path} cannot be read: {error.strerror}")]) from error
    if len(raw) > _MAX_BYTES:
        raise Invalid([Problem("", f"{path} has {len(raw)} bytes", f"at most {_MAX_BYTES}")])
    try:
        text = raw.decode()
        tree = _yaml(text) if path.suffix in (".yaml", ".yml") else tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError) as error:
        raise Invalid([Problem("", f"{path} cannot be parsed: {error}")]) from error
    if not isinstance(tree, dict):
        raise Invalid([Problem("", f"{path} holds no table", "sections like [service]")])
    return tree, _lines(text)


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _lines(text: str) -> dict[str, int]:
    """
    The line of each key, for messages: a light reading of `[section]`, `key =` and of YAML's `section:` and `  key:`.
    """
    found: dict[str, int] = {}
    section, counts = "", {}  # type: ignore[var-annotated] # a dict of str and int
    for number, line in enumerate(text.splitlines(), 1):
        if array := re.match(r"\s*\[\[\s*([\w.-]+)\s*\]\]", line):
            counts[array[1]] = counts.get(array[1], -1) + 1
            section = f"{array[1]}[{counts[array[1]]}]"
            found[section] = number
        elif (table := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line)) or (table := re.match(r"([\w-]+):\s*(#.*)?$", line)):
            section = table[1]
            found[section] = number
        elif key := re.match(r"\s*([\w.-]+)\s*[=:]", line):
            found.setdefault(f"{section}.{key[1]}" if section else key[1], number)
    return found


def _from_environment(tree: dict[str, Any], reading: _Reading) -> None:
    for name, value in reading.env.items():
        if not name.startswith(PREFIX):
            continue
        parts = name[len(PREFIX) :].lower().split("__")
        if len(parts) < 2 or not all(parts) or parts[0] not in SECTIONS:
            expected = f"{PREFIX}SECTION__KEY" + _similar(parts[0], SECTIONS, "; did you mean section {}?")
            reading.problems.append(Problem(name, "names no section", expected))
            continue
        table = tree.setdefault(parts[0], {})
        for part in parts[1:-1]:
            table = table.setdefault(part, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict):
            table[parts[-1]] = value
            reading.texts.add(".".join(parts))


def _table(reading: _Reading, path: str, kind: Any, given: Any) -> Any:
    if not isinstance(given, dict):
        reading.wrong(path, f"is {_shown(given)}", f"a table [{path}]")
        given = {}
    known = {field.name: field for field in fields(kind)}
    hints = get_type_hints(kind)
    made: dict[str, Any] = {}
    for name, value in given.items():
        key = f"{path}.{name}"
        if name not in known:
            reading.wrong(key, "is no known key", _similar(name, known))
            continue
        option: Option = known[name].metadata["option"]
        if option.unused:
            reading.warnings.append(f"{key} has no effect: {option.unused}")
        target = name
        if option.alias_of:
            reading.warnings.append(f"{key} is the older name of {path}.{option.alias_of}")
            target = option.alias_of
            if target in given:
                continue
        made_value = _value(reading, key, hints[name], option, value, known[name])
        made[target] = made_value
        reading.given[key] = made_value
    return kind(**made)


def _value(reading: _Reading, key: str, hint: Any, option: Option, value: Any, field: Field[Any]) -> Any:
    if is_dataclass(hint):
        return _table(reading, key, hint, value)
    if get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]):
        if not isinstance(value, list):
            reading.wrong(key, f"is {_shown(value)}", f"an array of tables [[{key}]]")
            return ()
        return tuple(_table(reading, f"{key}[{i}]", get_args(hint)[0], one) for i, one in enumerate(value))
    try:
        return convert(value, hint, option, reading.env, key in reading.texts)
    except Wrong as error:
        shown = "is not usable" if hint is Secret else f"is {_shown(value)}"
        reading.wrong(key, shown, str(error))
        return field.default if field.default is not MISSING else None


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _similar(name: str, known: Iterable[str], form: str = "{}; did you mean that?") -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.6)
    return form.format(close[0]) if close else ""


def _cross_check(reading: _Reading, sections: dict[str, Any]) -> None:
    ports: dict[int, str] = {}
    for section, name in (
        ("collector", "otlp_http_port"),
        ("rest_api", "port"),
        ("grpc_api", "port"),
        ("observability", "metrics_port"),
    ):
        port = getattr(sections[section], name)
        if port and getattr(sections[section], "enabled", True):
            if port in ports:
                reading.wrong(f"{section}.{name}", f"is {port}, as is {ports[port]}", "a port of its own")
            ports.setdefault(port, f"{section}.{name}")
    names: set[str] = set()
    for i, webhook in enumerate(sections["integrations"].webhooks):
        key = f"integrations.webhooks[{i}]"
        if not webhook.name or webhook.name in names:
            reading.wrong(f"{key}.name", f"is {webhook.name!r}", "a name that no other webhook has")
        names.add(webhook.name)
        if not re.fullmatch(r"https?://[^\s/]+.*", webhook.url):
            reading.wrong(f"{key}.url", f"is {webhook.url!r}", "an http:// or https:// address")
