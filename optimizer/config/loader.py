"""
The configuration from file, environment and command line, checked as a whole: every mistake is found at once.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

from optimizer.catalog import SECTIONS, SERVICES
from optimizer.config import source
from optimizer.config.environment import override
from optimizer.config.fields import Option, Secret
from optimizer.config.tree import Config
from optimizer.config.values import Wrong, convert, from_json
from optimizer.errors import Invalid, Problem

CheckTasks = Callable[[Sequence[Any]], Iterable[Problem]]

_LOCAL: Final = ("127.0.0.1", "::1", "localhost")


class _Reading:
    """
    What is found on the way through one configuration.

    Args:
        env: where `env:NAME` secrets are looked up.
        names: of the environment's variables by the dotted key they set; there, all is text.
        spoken: dotted keys of the command line.
    """

    def __init__(
        self, env: Mapping[str, str], lines: Mapping[str, int], names: Mapping[str, str], spoken: Iterable[str]
    ) -> None:
        self.env = env
        self.lines = lines
        self.names = names
        self.spoken = frozenset(spoken)
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.wrong_keys: set[str] = set()

    def wrong(self, key: str, reason: str, expected: str = "") -> None:
        self.wrong_keys.add(key)
        fact, meant, word = reason.partition("; did you mean")
        self.problems.append(Problem(key, f"{fact}{self.where(key)}{meant}{word}", expected))

    def from_text(self, key: str) -> bool:
        return key in self.names and key not in self.spoken

    def where(self, key: str) -> str:
        """
        ` (line 3)`, of the key or of what it stands in; the environment's variable; or nothing.
        """
        below = (name for found, name in self.names.items() if found.startswith((f"{key}.", f"{key}[")))
        if key not in self.lines and (made := next(below, "")):
            return f" ({made})"
        while key:
            if key in self.spoken:
                return " (command line)"
            if key in self.names:
                return f" ({self.names[key]})"
            if key in self.lines:
                return f" (line {self.lines[key]})"
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return ""


def settings_class(section: str) -> Any:
    """
    The dataclass of a section.
    """
    return importlib.import_module(SECTIONS[section]).Settings


def load(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    check_tasks: CheckTasks | None = None,
) -> Config:
    """
    The whole configuration.

    Args:
        path: TOML, or YAML by its suffix; None: defaults. `overrides`: `section.key` of the command line.
        check_tasks: what is wrong with the declared `[[tasks]]`; the problems' fields begin with `tasks[0]`.

    Raises:
        Invalid: with every problem, each naming its dotted key, and the line where there is one.
    """
    env = os.environ if env is None else env
    given = source.read(path) if path else source.Source()
    tree = given.tree
    found = override(tree, env, _known())
    reading = _Reading(env, given.lines, found.names, overrides or ())
    reading.problems += [*given.problems, *found.problems]
    reading.warnings += found.warnings
    for key, value in (overrides or {}).items():
        section, _, name = key.partition(".")
        if isinstance(tree.setdefault(section, {}), dict):
            tree[section][name] = value
    tasks = _tasks(reading, tree.pop("tasks", None), check_tasks)
    for name in tree:
        if name not in SECTIONS:
            reading.wrong(str(name), "is no section", _similar(name, [*SECTIONS, "tasks"]))
    sections = {name: _table(reading, name, settings_class(name), tree.get(name)) for name in SECTIONS}
    _own_ports(reading, sections)
    if reading.problems:
        raise Invalid(sorted(reading.problems, key=_line))
    return _config(reading, sections, tasks, path)


def _known() -> list[str]:
    return [f"{section}.{key}" for section in SECTIONS for key in _keys(settings_class(section))]


def _keys(kind: Any) -> Iterable[str]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from (f"{field.name}.{key}" for key in _keys(hints[field.name]))
        else:
            yield field.name


def _tasks(reading: _Reading, given: Any, check: CheckTasks | None) -> list[Any]:
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(task, dict) for task in given):
        reading.wrong("tasks", "is no array of tables", "[[tasks]]")
        return []
    for problem in check(given) if check is not None else ():
        reading.wrong(problem.field, problem.reason, problem.expected)
    return given


def _config(reading: _Reading, sections: dict[str, Any], tasks: list[Any], path: Path | None) -> Config:
    service = sections["service"]
    if service.host not in _LOCAL:
        reading.warnings.append(
            f"service.host = {service.host}: the listeners are open to the network, and there is no authentication yet"
        )
    if tasks and not sections["rest_api"].enabled:
        reading.warnings.append(f"tasks{reading.where('tasks')} has no effect: rest_api declares them, and is disabled")
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
        path=path.absolute() if path else None,
    )


def _runtime_dir(configured: str, data_dir: Path, env: Mapping[str, str]) -> Path:
    if configured:
        return Path(configured).absolute()
    if env.get("RUNTIME_DIRECTORY"):
        return Path(env["RUNTIME_DIRECTORY"].split(":")[0])
    if env.get("XDG_RUNTIME_DIR"):
        return Path(env["XDG_RUNTIME_DIR"]) / "llm-optimizer"
    return data_dir / "run"


def _table(reading: _Reading, path: str, kind: Any, given: Any) -> Any:
    if given is None:
        given = {}  # YAML's `section:` with nothing below it
    if not isinstance(given, dict):
        reading.wrong(path, f"is {_kind(given)}", f"a table [{path}]")  # the value may be a secret
        given = {}
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}
    hints = get_type_hints(kind)
    made: dict[str, Any] = {}
    for name, value in given.items():
        key = f"{path}.{name}"
        if name not in known:
            reading.wrong(key, "is no known key", _similar_key(path, name, known))
            continue
        option: Option = known[name].metadata["option"]
        if option.unused:
            reading.warnings.append(f"{key}{reading.where(key)} has no effect: {option.unused}")
        target = name
        if option.alias_of:
            reading.warnings.append(f"{key}{reading.where(key)} is the older name of {path}.{option.alias_of}")
            target = option.alias_of
            if target in given:
                continue
        made[target] = _value(reading, key, hints[name], option, value, known[name])
    for name, field in known.items():
        if field.metadata["option"].required and name not in given:
            reading.wrong(f"{path}.{name}", "is missing", f'{name} = "..."')
    return kind(**made)


def _value(reading: _Reading, key: str, hint: Any, option: Option, value: Any, field: Field[Any]) -> Any:
    if is_dataclass(hint):
        return _table(reading, key, hint, value)
    if get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]):
        return _array(reading, key, get_args(hint)[0], value)
    try:
        return convert(value, hint, option, reading.env, reading.from_text(key))
    except Wrong as error:
        secret = option.hidden or hint is Secret or isinstance(value, dict)
        reading.wrong(key, f"is {_kind(value)}" if secret else f"is {_shown(value)}", str(error))
        return field.default if field.default is not MISSING else None


def _array(reading: _Reading, key: str, kind: Any, value: Any) -> tuple[Any, ...]:
    if reading.from_text(key):
        value = from_json(value)
    if not isinstance(value, list):
        reading.wrong(key, f"is {_kind(value)}", f"an array of tables [[{key}]]")
        return ()
    made = tuple(_table(reading, f"{key}[{i}]", kind, one) for i, one in enumerate(value))
    for field in fields(kind):
        if field.metadata["option"].unique:
            _all_differ(reading, key, field.name, [getattr(one, field.name) for one in made])
    return made


def _all_differ(reading: _Reading, key: str, name: str, values: Sequence[Any]) -> None:
    first: dict[Any, int] = {}
    for i, value in enumerate(values):
        if value in first:
            told = f"is {_shown(value)}, as is {key}[{first[value]}].{name}"
            reading.wrong(f"{key}[{i}].{name}", told, f"a {name} of its own")
        elif value:
            first[value] = i
        elif f"{key}[{i}].{name}" not in reading.wrong_keys:
            reading.wrong(f"{key}[{i}].{name}", "is empty", f"a {name} of its own")


def _own_ports(reading: _Reading, sections: Mapping[str, Any]) -> None:
    first: dict[int, str] = {}
    for service in SERVICES:
        for listener in service.listeners:
            settings, key = sections[listener.section], f"{listener.section}.{listener.field}"
            port = getattr(settings, listener.field)
            if not port or not getattr(settings, "enabled", True) or key in reading.wrong_keys:
                continue
            if port in first:
                reading.wrong(key, f"is {port}, as is {first[port]}", "a port of its own")
            first.setdefault(port, key)


def _line(problem: Problem) -> int:
    found = re.search(r"\(lines? (\d+)", problem.reason)
    return int(found[1]) if found else 0


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    # what a value is, where showing it could tell a secret
    if value is None:
        return "empty"
    kinds = {bool: "true or false", dict: "a table", list: "a list", str: "text"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "a date")


def _similar(name: Any, known: Iterable[str], form: str = "{}; did you mean that?") -> str:
    close = difflib.get_close_matches(str(name), list(known), 1, 0.6)
    return form.format(close[0]) if close else ""


def _similar_key(path: str, name: Any, known: Iterable[str]) -> str:
    """
    A key of the same table with nearly this name, else one of another section with just this name.
    """
    elsewhere = (key for key in _known() if key.rpartition(".")[2] == name and not key.startswith(f"{path}."))
    return _similar(name, known) or next((f"{key}; did you mean that?" for key in elsewhere), "")
