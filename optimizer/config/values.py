"""
From what a file, the environment or the command line says to the type that a setting declares.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Union, get_args, get_origin

from optimizer.config.fields import Duration, Option, Secret, Size

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)\s*")
_SECONDS: Final = re.compile(r"\s*[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?\s*")
_LONGEST_S: Final = 3650 * 86400.0  # more is a wrong unit, and no timer takes it
_SECRET_BYTES: Final = 64 * 1024
_SIZES: Final = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40
}  # fmt: skip
_SIZE: Final = re.compile(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)?\s*")
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
    converted = _typed(value, kind, option, env, from_text)
    if isinstance(converted, int | float) and not isinstance(converted, bool):
        _bounded(converted, kind, option)
    if option.choices and converted not in option.choices:
        raise Wrong("one of " + ", ".join(option.choices))
    if option.check is not None and (expected := option.check(converted)):
        raise Wrong(expected)
    return converted


def from_json(value: Any) -> Any:
    """
    A list or table that a variable of the environment holds as JSON; anything else as it is.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def written(seconds: float) -> str:
    """
    A duration as it is written in a configuration; reading it gives the same number of seconds.
    """
    for unit, size, least in (("d", 86400, 86400), ("h", 3600, 3600), ("m", 60, 120)):
        if seconds >= least and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    if seconds == int(seconds) and seconds >= 1:
        return f"{seconds:.0f}s"
    if _seconds(text := f"{seconds * 1000:.0f}ms") == seconds:
        return text
    from decimal import Decimal  # no default is of this kind

    return f"{Decimal(repr(float(seconds))):f}s"


def _seconds(text: str) -> float | None:
    match = _DURATION.fullmatch(text)
    return float(match[1]) * _UNITS[match[2]] if match else None


def _bounded(number: float, kind: Any, option: Option) -> None:
    low, high = option.minimum, option.maximum
    if kind is Duration:
        high = min(_LONGEST_S, math.inf if high is None else high)
    if not math.isfinite(number) or (low is not None and number < low) or (high is not None and number > high):
        raise Wrong(_called(kind, option))


def _called(kind: Any, option: Option) -> str:
    """
    What is expected of a number, with its bounds.
    """
    low, high = option.minimum, option.maximum
    if kind is Duration:
        example = 'a duration like "250ms", "1s", "5m", "2h", or seconds as a number'
        between = f" from {written(low or 0)} to {written(high or _LONGEST_S)}"
        return example + (between if low or high else "")
    name = "a whole number" if kind is int else "a number"
    if low is not None and high is not None:
        return f"{name} from {low:.15g} to {high:.15g}"
    return f"{name} of at least {low:.15g}" if low is not None else name


def _typed(value: Any, kind: Any, option: Option, env: Mapping[str, str], from_text: bool) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is tuple:
        return _tuple(value, get_args(kind)[0], option, env, from_text)
    if kind is bool:
        return _bool(value, from_text)
    if kind is Duration:
        return _duration(value, option, from_text)
    if kind is Size:
        return _size(value)
    if kind is Secret:
        return _secret(value, env)
    if kind in (int, float):
        return _number(value, kind, option, from_text)
    if not isinstance(value, str) or "\0" in value:
        raise Wrong("text" if not isinstance(value, str) else "text without NUL")
    return kind(value)


def _tuple(value: Any, item: Any, option: Option, env: Mapping[str, str], from_text: bool) -> tuple[Any, ...]:
    if from_text:
        value = from_json(value)
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise Wrong("a list of texts" + (", as JSON or with commas" if from_text else ""))
    return tuple(_typed(one, item, option, env, from_text) for one in value)


def _size(value: Any) -> Size:
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        number = int(found[1]) if found[1].isdecimal() else float(found[1])
        return Size(number * _SIZES[found[2] or "B"])
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Wrong('a size such as "512MiB" or "2GB"')
    return Size(value)


def _bool(value: Any, from_text: bool) -> bool:
    if isinstance(value, bool):
        return value
    if from_text and isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    raise Wrong("true or false")


def _number(value: Any, kind: type, option: Option, from_text: bool) -> int | float:
    if from_text and isinstance(value, str):
        try:
            value = kind(value.strip())
        except ValueError:
            raise Wrong(_called(kind, option)) from None
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and not isinstance(value, int)):
        raise Wrong(_called(kind, option))
    try:
        number: int | float = kind(value)
    except OverflowError:
        raise Wrong(_called(kind, option)) from None
    return number


def _duration(value: Any, option: Option, from_text: bool) -> Duration:
    if isinstance(value, str):
        if (seconds := _seconds(value)) is not None:
            return Duration(seconds)
        if from_text and _SECONDS.fullmatch(value):
            return Duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LONGEST_S:
        return Duration(value)
    raise Wrong(_called(Duration, option))


def _secret(value: Any, env: Mapping[str, str]) -> Secret:
    if not isinstance(value, str):
        raise Wrong('text, "file:/path" or "env:NAME"')
    if value.startswith("env:"):
        if not env.get(value[4:]):
            raise Wrong(f"the environment variable {value[4:]} to be set, and not empty")
        return Secret(env[value[4:]])
    if value.startswith("file:"):
        return Secret(_file(value[5:]))
    return Secret(value)


def _file(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            text = file.read(_SECRET_BYTES + 1).decode().strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise Wrong(f"a file that can be read ({why}: {path})") from None
    if not text or len(text) > _SECRET_BYTES:
        raise Wrong(f"a file with a secret in it ({'empty' if not text else 'too large'}: {path})")
    return text
