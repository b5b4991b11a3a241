"""
Where each key of a TOML text stands. tomllib says what a text means, but not where; messages need both.

The text is valid TOML (tomllib has read it), so this reads on tokens and checks nothing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Final

_TOKEN: Final = re.compile(
    r"""
      (?P<skip> [ \t\r]+ | \#[^\n]* )
    | (?P<newline> \n )
    | (?P<text> \"{3} (?: \"{0,2} (?: \\. | [^\"\\] ) )* \"{3,5} | '{3} (?: '{0,2} [^'] )* '{3,5}
              | \"  (?: \\. | [^\"\\\n] )* \"              | '   [^'\n]* ' )
    | (?P<mark> [\[\]{}=,.] )
    | (?P<word> [^\s\[\]{}=,.\"'\#]+ )
    """,
    re.VERBOSE | re.DOTALL,
)


def toml_lines(text: str) -> dict[str, int]:
    """
    By dotted key with indices, e.g. `integrations.webhooks[1].url`, the line where it is first written, from 1.

    Args:
        text: valid TOML; line ends as they are in the file.
    """
    return _Scan(text).lines


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind, found = str(match.lastgroup), match[0]
        if kind != "skip":
            yield kind, found, line
        line += found.count("\n")
    yield "end", "", line


class _Scan:
    """
    One way through the tokens.
    """

    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {}
        self._last: dict[str, int] = {}  # index of the last table of an array of tables
        self._tokens = list(_tokens(text))
        self._at = 0
        table = ""
        while self._kind() != "end":
            if self._kind() == "newline":
                self._at += 1
            elif self._is("["):
                table = self._header()
            else:
                self._pair(table)

    def _kind(self) -> str:
        return self._tokens[self._at][0]

    def _is(self, mark: str) -> bool:
        return self._tokens[self._at][1] == mark and self._kind() == "mark"

    def _note(self, key: str) -> str:
        self.lines.setdefault(key, self._tokens[self._at][2])
        return key

    def _header(self) -> str:
        self._at += 1
        array = self._is("[")
        self._at += array
        key = self._path("", array)
        self._at += 1 + array
        return key

    def _path(self, table: str, array: bool = False) -> str:
        # `a . "b" . c`, with the indices of the arrays of tables on the way
        key = table
        while True:
            kind, name, _ = self._tokens[self._at]
            name = str(tomllib.loads(f"x = {name}")["x"]) if kind == "text" else name
            key = f"{key}.{name}" if key else name
            following = self._tokens[self._at + 1][:2] == ("mark", ".")
            if array and not following:
                self._last[key] = self._last.get(key, -1) + 1
                self._note(key)
            if key in self._last:
                key = f"{key}[{self._last[key]}]"
            self._note(key)
            self._at += 1
            if not following:
                return key
            self._at += 1

    def _pair(self, table: str) -> None:
        key = self._path(table)
        self._at += 1  # the "="
        self._value(key)

    def _value(self, key: str) -> None:
        if self._is("["):
            self._items(key)
        elif self._is("{"):
            self._inline(key)
        else:  # text, number, truth or time; the last ones may have dots
            self._at += 1
            while self._kind() in ("word", "text") or self._is("."):
                self._at += 1

    def _items(self, key: str) -> None:
        self._at += 1
        count = 0
        while not self._is("]"):
            if self._kind() == "newline" or self._is(","):
                self._at += 1
            else:
                self._value(self._note(f"{key}[{count}]"))
                count += 1
        self._at += 1

    def _inline(self, key: str) -> None:
        self._at += 1
        while not self._is("}"):
            if self._kind() == "newline" or self._is(","):
                self._at += 1
            else:
                self._pair(key)
        self._at += 1
