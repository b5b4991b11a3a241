"""
Lines stay within their bound, valid, and one line, whatever they are given.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.telemetry.lines import LEVELS, LINE_BYTES, fitted, rank, text_line

OWN = {"time": "2026-03-01T12:00:00.123456Z", "level": "info", "service": "rest_api-0", "pid": 7, "event": "a.b"}

_texts = st.text(max_size=60) | st.sampled_from(
    ["\ud800", "\x1b[31m", "a\nb", "\u2028", "\u202e", "…" * 3000, "x" * 9000]
)
_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=12,
)


def one_line(data: bytes) -> bool:
    return len(data.decode("utf-8", "backslashreplace").splitlines()) == 1 and b"\x1b" not in data


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_texts, _plain, max_size=40))
def test_any_fields_make_one_valid_line(extra: dict[str, Any]) -> None:
    fields, line = fitted(OWN, extra)
    assert len(line) <= LINE_BYTES
    assert one_line(line)
    assert {name: json.loads(line)[name] for name in OWN} == OWN
    text = text_line(fields).encode("utf-8", "backslashreplace")
    assert len(text) <= LINE_BYTES
    assert one_line(text)
    assert text.startswith(b"2026-03-01T12:00:00.123Z INFO  rest_api-0[7] a.b")


def test_fields_that_fit_come_back_as_they_went_in() -> None:
    extra = {"n": 1, "none": None, "deep": {"a": [1, 2.5, "b"]}, "text": 'a "quoted" text', "ü": 1}
    read = json.loads(fitted(OWN, extra)[1])
    assert read == {**OWN, "n": 1, "none": None, "deep": {"a": [1, 2.5, "b"]}, "text": 'a "quoted" text', "_": 1}


def test_the_longest_values_are_cut_and_the_others_whole() -> None:
    extra = {"short": "kept as it is", "long": "x" * 9000, "longer": {"list": ["ü" * 3000]}, "last": 12}
    read = json.loads(fitted(OWN, extra)[1])
    assert (read["short"], read["last"]) == ("kept as it is", 12)
    assert read["long"].endswith("x…")
    assert read["longer"].startswith('{"list":["üüü')
    assert 4000 < len(fitted(OWN, extra)[1]) <= LINE_BYTES  # no room is given away


def test_no_field_stands_in_for_what_every_line_has() -> None:
    read = json.loads(fitted(OWN, {"service": "other", "level": "error", "pid": 1})[1])
    assert (read["service"], read["level"], read["pid"]) == ("rest_api-0", "info", 7)
    assert (read["service_"], read["level_"], read["pid_"]) == ("other", "error", 1)


def test_too_many_fields_are_counted() -> None:
    read = json.loads(fitted(OWN, {f"field{i}": "x" * 200 for i in range(50)})[1])
    assert read["fields_cut"] == 18
    assert "field31" in read


def test_text_for_people() -> None:
    fields = {
        "time": "2026-03-01T12:00:00.123456Z", "level": "warn", "service": "storage-0", "pid": 4711, "incarnation": 2,
        "event": "disk.full", "n": 3, "ok": True, "bare": "a-b/c:1", "two": "a b", "empty": "", "eq": "a=b",
        "deep": {"k": [1]}, "like": '{"k":1}', "nasty": "a\nb\x1b[2J\u202e",
    }  # fmt: skip
    assert text_line(fields) == (
        '2026-03-01T12:00:00.123Z WARN  storage-0[4711#2] disk.full n=3 ok=true bare=a-b/c:1 two="a b" empty="" eq="a=b" '
        'deep={"k":[1]} like="{\\"k\\":1}" nasty="a\\nb\\u001b[2J\\u202e"'
    )
    assert text_line({"event": "only"}) == "- -     -[-] only"


def test_colours_change_nothing_else() -> None:
    import click

    fields = {**OWN, "k": "v"}
    coloured = text_line(fields, colours=True)
    assert "\x1b[32m" in coloured
    assert click.unstyle(coloured) == text_line(fields)


@pytest.mark.parametrize("level", [*LEVELS, "strange", None])
def test_ranks(level: str | None) -> None:
    assert rank(level) == {"trace": 0, "debug": 1, "info": 2, "warn": 3, "error": 4}.get(str(level), 4)
