"""
How a log line looks: one JSON object, or text for people. Pure; `optimizerctl logs` renders with it what others have written.

    2026-03-01T12:00:00.123Z INFO  rest_api-0[4711#2] rest_api.ready after_ms=12 note="two words"

`4711#2` is the process id and which incarnation of the service it is. A line has at most `LINE_BYTES`, because a pipe takes that
whole, so that the lines of several processes never mix: the longest values are cut, and it stays valid. No value can begin a
new line or steer a terminal: control characters are shown as their escapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

LINE_BYTES: Final = 4095  # PIPE_BUF less the newline
LEVELS: Final = ("trace", "debug", "info", "warn", "error")
_FIELDS: Final = 32  # of one line besides those that every line has
_NAME: Final = 64  # characters of a field's name
_CUT: Final = "…"
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]")
# what JSON leaves as it is although it ends a line somewhere, steers a terminal, or turns the direction of reading
_ODD: Final = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_ESCAPE: Final = re.compile(rb"\\(u[0-9a-f]{0,3})?$")  # of JSON, the beginning of one
_ESCAPE_BYTES: Final = 5
_BARE: Final = re.compile(r"[^\s\"'=\\{\[\x00-\x1f][^\s\"=\\\x00-\x1f]*")
_COLOURS: Final = {"trace": "2", "debug": "36", "info": "32", "warn": "33", "error": "31"}


def fitted(own: Mapping[str, Any], extra: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """
    The fields of a line within its bound, and the line as JSON.

    Args:
        own: what every line has; `extra`: fields of this one, plain data. Neither can stand in for the other.
    """
    fields = dict(own)
    for name, value in list(extra.items())[:_FIELDS]:
        name = _NO_NAME.sub("_", name)[:_NAME]
        fields[f"{name}_" if name in own else name] = value
    if len(extra) > _FIELDS:
        fields["fields_cut"] = len(extra) - _FIELDS
    line = _bytes(fields)
    if len(line) > LINE_BYTES:
        fields = _shortened(fields)
        line = _bytes(fields)
    return fields, line


def text_line(fields: Mapping[str, Any], colours: bool = False) -> str:
    """
    The line for people. Fields that every line has may be missing.
    """
    rest = dict(fields)
    time, level = str(rest.pop("time", "-")), str(rest.pop("level", "-"))
    time = f"{time[:23]}Z" if len(time) > 23 else time
    process = f"{rest.pop('service', '-')}[{rest.pop('pid', '-')}"
    process += f"#{rest.pop('incarnation')}]" if rest.get("incarnation") else "]"
    rest.pop("incarnation", None)
    event = str(rest.pop("event", "-"))
    head = [_safe(time), _safe(level).upper().ljust(5), _safe(process), _safe(event)]
    values = [(_safe(str(name)), _value(value)) for name, value in rest.items()]
    if not colours:
        return " ".join([*head, *(f"{name}={value}" for name, value in values)])
    colour = _COLOURS.get(level, "0")
    head = [_paint("2", head[0]), _paint(colour, head[1]), _paint("2", head[2]), _paint("1", head[3])]
    return " ".join([*head, *(f"{_paint('2', f'{name}=')}{value}" for name, value in values)])


def rank(level: Any) -> int:
    """
    0 for trace to 4 for error; what is no level ranks as error, so that it is never hidden.
    """
    return LEVELS.index(level) if level in LEVELS else len(LEVELS) - 1


def _shortened(fields: Mapping[str, Any]) -> dict[str, Any]:
    names = 1 + sum(len(_bytes(name)) + 2 for name in fields)  # with braces, colons and commas
    sizes = {name: len(_bytes(value)) for name, value in fields.items()}
    longest = _fair(sizes.values(), LINE_BYTES - names)
    return {name: value if sizes[name] <= longest else _cut(value, longest) for name, value in fields.items()}


def _fair(sizes: Iterable[int], room: int) -> int:
    """
    The largest bound for each size under which all together are within `room`.
    """
    left = sorted(sizes)
    while left and left[0] <= room // len(left):
        room -= left.pop(0)
    return room // len(left) if left else room


def _cut(value: Any, size: int) -> str:
    """
    The beginning of a value as a text whose JSON has at most `size` bytes.
    """
    text = value if isinstance(value, str) else _json(value)
    kept = _bytes(text[:size])[1 : max(1, size - len(_CUT.encode()) - 1)]
    if (torn := _ESCAPE.search(kept[-_ESCAPE_BYTES:])) is not None:
        before = kept[: len(kept) - len(torn[0])]
        if (
            len(before) - len(before.rstrip(b"\\"))
        ) % 2 == 0:  # else that backslash is the second half of an escaped one
            kept = before
    found: str = json.loads(b'"' + kept.decode("utf-8", "ignore").encode() + b'"')
    return found + _CUT


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text if text.isascii() and "\x7f" not in text else _ODD.sub(_escape, text)


def _bytes(value: Any) -> bytes:
    return _json(value).encode("utf-8", "backslashreplace")  # a lone surrogate becomes the escape that JSON has for it


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _value(value: Any) -> str:
    if isinstance(value, str) and _BARE.fullmatch(value):
        return _ODD.sub(_escape, value)
    return _json(value)


def _safe(text: str) -> str:
    return _json(text)[1:-1]


def _paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m"
