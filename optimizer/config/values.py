"""
From what a file, the environment or the command line says to the type that a setting declares.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Final, Union, get_args, get_origin

from optimizer.config.fields import Duration, Option, Secret

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")
_WORDS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


class Wrong(Exception):
    """
    The value is not what is expected; the message says what is.
    """


def convert(value: Any, kind: Any, option: Option, env: Mapping[str, str], from_text: bool) -> Any:
    """
    The value as its declared type, within its bounds.

    Args:
        env: where `env:NAME` secrets are looked up; `from_text`: it comes from the environment, where all is text.

    Raises:
        Wrong: with what is expected.
    """
    converted = _typed(value, kind, env, from_text)
    if isinstance(converted, int | float) and not isinstance(converted, bool):
        _bounded(converted, option)
    if option.choices and converted not in option.choices:
        raise Wrong("one of " + ", ".join(option.choices))
    if option.check is not None and (expected := option.check(converted)):
        raise Wrong(expected)
    return converted


def _bounded(number: float, option: Option) -> None:
    low, high = option.minimum, option.maximum
    if (low is not None and number < low) or (high is not None and number > high) or number != number:
        if low is not None and high is not None:
            raise Wrong(f"a number in {low:g}..{high:g}")
        raise Wrong(f"a number of at least {low:g}" if low is not None else f"a number of at most {high:g}")


def _typed(value: Any, kind: Any, env: Mapping[str, str], from_text: bool) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is tuple:
        return _tuple(value, get_args(kind)[0], env, from_text)
    if kind is bool:
        return _bool(value, from_text)
    if kind is Duration:
        return _duration(value, from_text)
    if kind is Secret:
        return _secret(value, env)
    if kind in (int, float):
        return _number(value, kind, from_text)
    if not isinstance(value, str):
        raise Wrong("a string")
    return kind(value)


def _tuple(value: Any, item: Any, env: Mapping[str, str], from_text: bool) -> tuple[Any, ...]:
    if is_dataclass(item):
        raise Wrong("an array of tables")
    if from_text and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise Wrong("a list of strings")
    return tuple(_typed(one, item, env, from_text) for one in value)


def _bool(value: Any, from_text: bool) -> bool:
    if isinstance(value, bool):
        return value
    if from_text and isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    raise Wrong("true or false")


def _number(value: Any, kind: type, from_text: bool) -> int | float:
    if from_text and isinstance(value, str):
        try:
            value = kind(value.strip())
        except ValueError:
            raise Wrong(_called(kind)) from None
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and not isinstance(value, int)):
        raise Wrong(_called(kind))
    number: int | float = kind(value)
    return number


def _called(kind: type) -> str:
    return "a whole number" if kind is int else "a number"


def _duration(value: Any, from_text: bool) -> Duration:
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match:
            return Duration(float(match[1]) * _UNITS[match[2]])
        if from_text and value.strip().replace(".", "", 1).isdigit():
            return Duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return Duration(value)
    raise Wrong('a duration like "250ms", "1s", "5m", "2h", or seconds as a number')


def _secret(value: Any, env: Mapping[str, str]) -> Secret:
    if not isinstance(value, str):
        raise Wrong('a string, "file:/path" or "env:NAME"')
    if value.startswith("env:"):
        if value[4:] not in env:
            raise Wrong(f"the environment variable {value[4:]} to be set")
        return Secret(env[value[4:]])
    if value.startswith("file:"):
        try:
            return Secret(Path(value[5:]).read_text().strip())
        except OSError as error:
            raise Wrong(f"a file that can be read ({error.strerror}: {value[5:]})") from None
    return Secret(value)
