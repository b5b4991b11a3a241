"""
A configuration file: what it says, and on which line each key stands. TOML, or YAML by its suffix.

A message about a file that cannot be read never quotes it: the line may hold a secret.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from optimizer.config.lines import toml_lines
from optimizer.errors import Invalid, Problem

_MAX_BYTES: Final = 1024 * 1024
_MAX_DEPTH: Final = 32  # the deepest setting is on level 5
_MAX_NODES: Final = 50_000  # with YAML's aliases written out; a bomb has billions


@dataclass(frozen=True)
class Source:
    """
    Args:
        tree: tables as dicts. lines: of each dotted key. problems: mistakes that do not hinder reading the rest.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def read(path: Path) -> Source:
    """
    Read a file.

    Raises:
        Invalid: it cannot be read or parsed; the message names the file and, where there is one, the line.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Invalid([Problem("", f"{path} cannot be read: {getattr(error, 'strerror', error)}")]) from error
    if len(raw) > _MAX_BYTES:
        raise Invalid([Problem("", f"{path} is too large", f"at most {_MAX_BYTES} bytes")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Invalid([Problem("", f"{path}, line {line}: is no text in UTF-8")]) from None
    try:
        return _yaml(text) if path.suffix.lower() in (".yaml", ".yml") else _toml(text)
    except _Broken as broken:
        place = f"{path}, line {broken.line}" if broken.line else str(path)
        raise Invalid([Problem("", f"{place}: {broken}")]) from None
    except RecursionError:
        raise Invalid([Problem("", f"{path}: is nested too deeply", f"at most {_MAX_DEPTH} levels")]) from None


class _Broken(Exception):
    """
    The text is not what its suffix says.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def _toml(text: str) -> Source:
    try:
        return Source(tomllib.loads(text), toml_lines(text))
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).partition(" (at ")
        match = re.match(r"line (\d+)", place)
        line = int(match[1]) if match else None
        if line and reason == "Cannot overwrite a value":
            key = text.split("\n")[line - 1].partition("=")[0].strip()
            reason = f"{key} stands twice" if re.fullmatch(r"[\w.\"'-]+", key) else "a key stands twice"
        raise _Broken(reason[:1].lower() + reason[1:], line) from None
    except ValueError:
        raise _Broken("holds a number of too many digits") from None


def _yaml(text: str) -> Source:
    import yaml

    walk = _Walk()
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None:
            walk.visit(root, "", 0)
        tree = loader.construct_document(root) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else None
        raise _Broken(error.problem or "is no YAML", line) from None
    except yaml.reader.ReaderError as error:
        raise _Broken(f"character {error.position + 1} is none of YAML") from None
    except ValueError:
        raise _Broken("holds a date or number that does not exist") from None
    if not isinstance(tree, dict | None):
        raise _Broken("holds no table; sections like `rest_api:` are expected")
    return Source(tree or {}, walk.lines, tuple(walk.problems))


class _Walk:
    """
    Through YAML's nodes: lines, keys that stand twice, and a bound on what aliases blow up.
    """

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self._count = 0

    def visit(self, node: Any, key: str, depth: int) -> None:
        self._count += 1
        line = node.start_mark.line + 1
        if depth > _MAX_DEPTH:
            raise _Broken(f"is nested more than {_MAX_DEPTH} levels deep", line)
        if self._count > _MAX_NODES:
            raise _Broken(f"has more than {_MAX_NODES} values, aliases counted as often as they are used", line)
        if node.id == "mapping":
            self._mapping(node, key, depth)
        elif node.id == "sequence":
            for i, item in enumerate(node.value):
                self.lines.setdefault(f"{key}[{i}]", item.start_mark.line + 1)
                self.visit(item, f"{key}[{i}]", depth + 1)

    def _mapping(self, node: Any, key: str, depth: int) -> None:
        seen: dict[str, int] = {}
        for name, value in node.value:
            line = name.start_mark.line + 1
            if name.id != "scalar":
                raise _Broken("has a key that is no text", line)
            if name.tag == "tag:yaml.org,2002:merge":
                self.visit(value, key, depth + 1)
                continue
            path = f"{key}.{name.value}" if key else name.value
            if name.value in seen:
                told = f"stands twice (lines {seen[name.value]} and {line})"
                self.problems.append(Problem(path, told, "it once"))
            seen[name.value] = line
            self.lines[path] = line
            self.visit(value, path, depth + 1)
