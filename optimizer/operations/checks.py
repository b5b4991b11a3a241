"""
Reading a document field by field, collecting every mistake instead of stopping at the first one. Pure.

Rules of the file: `null` is an absent field; a message never repeats more than a few characters of a value, whatever
its size; sizes are tested before anything is walked or copied.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final

from optimizer.errors import Problem
from optimizer.model import MAX_NAME, Scalar

MAX_DEPTH: Final = 8  # of free-form objects; telemetry attributes are flat, parameters nest twice at most
MAX_NODES: Final = 512  # values in one free-form object
MAX_TEXT: Final = 8192  # characters of one string in a free-form object
MAX_TREE_CHARS: Final = 65_536  # of all keys and strings of a free-form object together
MAX_TOKENS: Final = 10**12  # of one call; far above any model, far below an overflow of sums
MAX_COST_USD: Final = 1e6  # of one call
MAX_DURATION_MS: Final = 7 * 24 * 3600 * 1000.0  # a call that took longer than a week is a wrong unit
_FUTURE: Final = timedelta(minutes=5)  # clocks of senders differ; more is a wrong clock or a wrong unit
_RFC_3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)  # before it is a zero or a wrong unit, never a model call
_MAX_UNKNOWN: Final = 100  # fields of one object that are told one by one
_MAX_COMPARED: Final = 80  # characters of a word that is compared with others
_MAX_LENGTHS_APART: Final = 4
_MAX_COMPARISONS: Final = 200
_INTEGERS: Final = (-(2**63), 2**64 - 1)  # what MessagePack can carry


Drop = Callable[[str, Any], bool]  # of a field's name and value


def shown(value: object) -> str:
    """
    A value for a message: at most some 40 characters of it.
    """
    if isinstance(value, str):
        return repr(value[:40]) + ("…" if len(value) > 40 else "")
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and not -(10**30) < value < 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, int | float):
        return repr(value)
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else "a value"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """
    `; did you mean "x"?` for the nearest of `words`, or nothing. Looks at words of about that length only, and not at many:
    senders choose some of them, and comparing is slow.
    """
    if len(word) > _MAX_COMPARED:
        return ""
    alike = (one for one in words if abs(len(one) - len(word)) <= _MAX_LENGTHS_APART)
    near = difflib.get_close_matches(word, list(islice(alike, _MAX_COMPARISONS)), 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def join(path: str, key: str) -> str:
    """
    The dotted path of a field under `path`.
    """
    key = key if len(key) <= 60 else key[:60] + "…"
    return f"{path}.{key}" if path else key


def finite(value: object) -> float | None:
    """
    A number as float, or None if it is not a finite one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


class Reader:
    """
    One object on its way in. Each method takes a field; what is left in `rest` at the end is unknown.

    Args:
        raw: the document. path: of the object in the whole input, e.g. `[3]`; empty at the top.
        problems: where mistakes go.
    """

    def __init__(self, raw: Mapping[str, Any], path: str, problems: list[Problem]) -> None:
        self.rest = dict(raw)
        self.path = path
        self.problems = problems

    def wrong(self, name: str, reason: str, expected: str = "") -> None:
        """
        Note a mistake in a field of this object.
        """
        self.problems.append(Problem(join(self.path, name) if name else self.path, reason, expected))

    def text(self, name: str, maximum: int = MAX_NAME, printable: bool = True) -> str:
        """
        A string of at most `maximum` characters; "" when absent.
        """
        value = self.rest.pop(name, None)
        if value is None:
            return ""
        expected = f"a string of at most {maximum} {'printable ' if printable else ''}characters"
        if not isinstance(value, str):
            self.wrong(name, f"is {shown(value)}", expected)
        elif len(value) > maximum:
            self.wrong(name, f"has {len(value)} characters", expected)
        elif not encodable(value) or (printable and not value.isprintable()):
            self.wrong(name, "has control characters or broken code points", expected)
        else:
            return value
        return ""

    def number(self, name: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        """
        A finite number in low..high; None when absent or wrong.
        """
        value = self.rest.pop(name, None)
        if value is None:
            return None
        number = finite(value)
        if number is None or not low <= number <= high:
            self.wrong(name, f"is {shown(value)}", span(low, high))
            return None
        return number

    def whole(self, name: str, high: int = MAX_TOKENS) -> int | None:
        """
        A count in 0..high; None when absent or wrong.
        """
        value = self.rest.pop(name, None)
        if value is None:
            return None
        number = finite(value)
        if number is None or not number.is_integer() or not 0 <= number <= high:
            self.wrong(name, f"is {shown(value)}", f"a whole number from 0 to {high}")
            return None
        return int(number)

    def flag(self, name: str) -> bool | None:
        """
        true or false; None when absent or wrong.
        """
        value = self.rest.pop(name, None)
        if value is not None and not isinstance(value, bool):
            self.wrong(name, f"is {shown(value)}", "true or false")
            return None
        return value

    def moment(self, name: str, at: datetime) -> datetime | None:
        """
        An RFC 3339 time, not before 2000 and at most five minutes after `at`; None when absent or wrong.
        """
        value = self.rest.pop(name, None)
        if value is None:
            return None
        moment = _moment(value)
        if moment is None:
            self.wrong(name, f"is {shown(value)}", "a time of RFC 3339 with its offset, e.g. 2026-01-31T12:00:00Z")
        elif moment < _EARLIEST:
            self.wrong(name, f"is {moment.isoformat()}, before the year 2000", "the time at which the call ended")
        elif moment > at + _FUTURE:
            self.wrong(name, f"is {moment.isoformat()}, in the future", "the time at which the call ended")
        else:
            return moment
        return None

    def mapping(self, name: str, maximum: int = MAX_NODES) -> dict[str, Any]:
        """
        An object of at most `maximum` fields, not looked into; {} when absent or wrong.
        """
        value = self.rest.pop(name, None)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.wrong(name, f"is {shown(value)}", "an object")
        elif len(value) > maximum:
            self.wrong(name, f"has {len(value)} fields", f"at most {maximum}")
        else:
            return dict(value)
        return {}

    def inner(self, name: str) -> Reader | None:
        """
        The reader of an object in this one; None when it is absent or wrong. An empty object is one.
        """
        given, before = self.rest.get(name) is not None, len(self.problems)
        raw = self.mapping(name)
        return Reader(raw, join(self.path, name), self.problems) if given and len(self.problems) == before else None

    def scalars(self, name: str, maximum: int = 64) -> dict[str, Scalar]:
        """
        An object of finite numbers, strings and bools: features.
        """
        found = self.mapping(name, maximum)
        for key, value in list(found.items()):
            if isinstance(value, bool) or (isinstance(value, str) and len(value) <= 1000 and encodable(value)):
                pass
            elif (number := finite(value)) is not None:
                found[key] = number
            else:
                self.wrong(join(name, key), f"is {shown(value)}", "a finite number, true, false or a short string")
            self._key(name, key)
        return found

    def numbers(self, name: str, maximum: int = 64) -> dict[str, float]:
        """
        An object of finite numbers.
        """
        found = self.mapping(name, maximum)
        for key, value in list(found.items()):
            number = finite(value)
            if number is None:
                self.wrong(join(name, key), f"is {shown(value)}", "a finite number")
            else:
                found[key] = number
            self._key(name, key)
        return found

    def tree(self, name: str, drop: Drop = lambda _name, _value: False) -> dict[str, Any]:
        """
        A free-form object, bounded in depth and size; fields that `drop` names are left out at every depth.
        """
        walker = _Walker(self.problems, drop)
        found = walker.walk(self.mapping(name), join(self.path, name), 1)
        return found if isinstance(found, dict) else {}

    def unknown(self, known: Iterable[str]) -> None:
        """
        Every field that was not taken is a mistake.
        """
        names = list(known)
        for key in islice(self.rest, _MAX_UNKNOWN):
            self.wrong(key, f"is not a known field{did_you_mean(key, names)}")
        if len(self.rest) > _MAX_UNKNOWN:
            self.wrong("", f"has {len(self.rest) - _MAX_UNKNOWN} more fields that are not known")

    def _key(self, name: str, key: str) -> None:
        if not key or len(key) > MAX_NAME or not encodable(key):
            self.wrong(join(name, key), "is not a usable name", f"1 to {MAX_NAME} characters")


def encodable(text: str) -> bool:
    """
    Whether a string can be written as UTF-8: it has no lone surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def span(low: float, high: float) -> str:
    """
    A range in words.
    """
    if math.isinf(high):
        return "a finite number" if math.isinf(low) else f"a finite number >= {low:g}"
    return f"a number from {low:g} to {high:g}"


def _moment(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else None
    if not isinstance(value, str) or len(value) > 40 or not _RFC_3339.fullmatch(value):
        return None
    try:
        moment = datetime.fromisoformat(value.upper())
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


class _Walker:
    def __init__(self, problems: list[Problem], drop: Drop) -> None:
        self._problems = problems
        self._drop = drop
        self._nodes = 0
        self._chars = 0
        self._full = False

    def walk(self, value: Any, path: str, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._overflow(path, f"has more than {MAX_NODES} values")
        if self._full:
            return None
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, int | float):
            return self._number(value, path)
        if depth > MAX_DEPTH:
            return self._wrong(path, f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, Mapping):
            kept = [key for key, field in value.items() if not self._drop(key, field)]
            return {self._text(key, path): self.walk(value[key], join(path, key), depth + 1) for key in kept}
        if isinstance(value, list | tuple):
            return [self.walk(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value[: MAX_NODES + 1])]
        return self._wrong(path, f"is a {type(value).__name__}", "a JSON value")

    def _text(self, text: str, path: str) -> str:
        self._chars += len(text)
        if len(text) > MAX_TEXT:
            self._wrong(path, f"has {len(text)} characters", f"at most {MAX_TEXT}")
        elif self._chars > MAX_TREE_CHARS:
            self._overflow(path, f"is too long: more than {MAX_TREE_CHARS} characters in all")
        elif not encodable(text):
            self._wrong(path, "has broken code points", "valid Unicode")
        return text

    def _number(self, value: float, path: str) -> float | None:
        if isinstance(value, int):
            low, high = _INTEGERS
            return value if low <= value <= high else self._wrong(path, f"is {shown(value)}", "at most 64 bits")
        return value if math.isfinite(value) else self._wrong(path, f"is {value!r}", "a finite number")

    def _overflow(self, path: str, reason: str) -> None:
        if not self._full:
            self._full = True
            self._wrong(path, reason, "a smaller object")

    def _wrong(self, path: str, reason: str, expected: str = "") -> Any:
        self._problems.append(Problem(path, reason, expected))
        return None
