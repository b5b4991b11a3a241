"""
From whatever was given to a log line to values that may be shown: secrets become stars, everything becomes plain data.

A secret is known by its type (`config.fields.Secret`), wherever it is nested; by its value, if the configuration has it, inside
any text; and by where it stands: a password in a URL, `password=`, a bearer token, a field with a telling name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from optimizer.config.fields import Secret

STARS: Final = "********"
_SHORTEST: Final = 4  # characters of a secret that is looked for in texts; a shorter one would star innocent words
_LONGEST: Final = 8192  # characters of a text that are looked at; a line has room for less
_DEEPEST: Final = 6  # containers in each other that are looked into; deeper ones are shown by their repr
_MOST: Final = 64  # items of a container
_TELLING: Final = re.compile(r"(password|passwd|secret|api_?key|authorization)$|^([a-z]+_)?token$", re.IGNORECASE)
_PLACES: Final = (  # what a text must contain (in lower case), the pattern, and what comes in its place
    ("://", re.compile(r"(://[^\s:/@]*:)[^\s/]+@"), rf"\1{STARS}@"),  # scheme://user:password@host
    ("pass", re.compile(r"(?i)(\bpass(?:word|wd)=)('[^']*'|[^\s'\"&]+)"), rf"\1{STARS}"),  # of a connection string
    ("bearer", re.compile(r"(?i)(\bbearer\s+)[a-z0-9._~+/=-]{16,}"), rf"\1{STARS}"),  # of an Authorization header
)


class Redactor:
    """
    Args:
        secrets: values that are never shown, also not as a part of a text.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets for form in _forms(_raw(secret))}
        longest_first = sorted(forms, key=len, reverse=True)
        self._reach = len(longest_first[0]) if longest_first else 0
        self._literal = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def text(self, text: str) -> str:
        """
        The text, or its beginning if it is very long, without secrets.
        """
        if len(text) > _LONGEST:
            text = self._starred(text[:_LONGEST])
            return text[: max(0, len(text) - self._reach)] + "…"  # a secret that the cut went through is not shown
        return self._starred(text)

    def plain(self, value: Any, depth: int = _DEEPEST) -> Any:
        """
        The value as what JSON knows, without secrets; never raises.
        """
        try:
            return self._plain(value, depth)
        except Exception as error:  # noqa: BLE001 - whatever a foreign __str__ raises must not end the one who logs
            return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"

    def _starred(self, text: str) -> str:
        if self._literal is not None:
            text = self._literal.sub(STARS, text)
        lower = text.lower()
        for hint, place, stars in _PLACES:
            if hint in lower:
                text = place.sub(stars, text)
        return text

    def _plain(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Secret):
            return STARS
        if isinstance(value, str):
            return self.text(str(value))
        if isinstance(value, int):
            return int(value) if value.bit_length() < 1024 else f"<int of {value.bit_length()} bits>"
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, bytes | bytearray):
            return self.text(bytes(value[:_LONGEST]).decode("utf-8", "backslashreplace"))
        if depth and not isinstance(value, type):
            if (pairs := _pairs(value)) is not None:
                return {self.text(str(key)): self.field(str(key), one, depth - 1) for key, one in islice(pairs, _MOST)}
            if isinstance(value, list | tuple | set | frozenset):
                more = [f"and {len(value) - _MOST} more"] if len(value) > _MOST else []
                return [self.plain(one, depth - 1) for one in islice(value, _MOST)] + more
        return self.text(repr(value) if isinstance(value, BaseException) else str(value))

    def field(self, name: str, value: Any, depth: int = _DEEPEST) -> Any:
        """
        A named value: a text under a telling name is starred whatever it is.
        """
        if isinstance(value, str | bytes) and value and _TELLING.search(name):
            return STARS
        return self.plain(value, depth)


def secrets_of(settings: Any) -> Iterator[str]:
    """
    The values of all secrets in a configuration, revealed.
    """
    if isinstance(settings, Secret):
        if settings.reveal():
            yield settings.reveal()
    elif isinstance(settings, list | tuple):
        for one in settings:
            yield from secrets_of(one)
    elif not isinstance(settings, type) and (pairs := _pairs(settings)) is not None:
        for _, one in pairs:
            yield from secrets_of(one)


def _pairs(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """
    What a mapping, dataclass or struct consists of; None if it is none.
    """
    # not Mapping: to tell that of a class, Python looks at a thousand others, and a fork pays a megabyte for looking
    if isinstance(value, dict | MappingProxyType):
        return value.items()
    if is_dataclass(value):
        return ((field.name, getattr(value, field.name)) for field in fields(value))
    names = getattr(type(value), "__struct_fields__", None)  # msgspec
    return None if names is None else ((name, getattr(value, name)) for name in names)


def _raw(secret: str) -> str:
    return secret.reveal() if isinstance(secret, Secret) else secret


def _forms(secret: str) -> set[str]:
    """
    How a secret may stand in the texts of others: as it is, percent-encoded, and what is secret in a URL.
    """
    forms = {secret, quote(secret, safe=""), quote(secret)}
    if "://" in secret:
        try:
            parts = urlsplit(secret)
        except ValueError:
            parts = urlsplit("")
        forms |= {parts.password or "", unquote(parts.password or "")}
        forms |= {parts.path, parts.path.lstrip("/")} if len(parts.path) >= 16 else set()  # as of a Slack webhook
    return {form for form in forms if len(form) >= _SHORTEST}
