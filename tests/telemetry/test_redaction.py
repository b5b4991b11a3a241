"""
No secret gets into a line: by its type, by its value, by where it stands.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest

from optimizer.config.fields import Secret
from optimizer.config.loader import load
from optimizer.telemetry.redaction import STARS, Redactor, secrets_of

VALUE = "s3cret-v4lue"


@dataclass
class _Held:
    name: str
    key: Secret
    more: list[Any] = field(default_factory=list)


class _Struct(msgspec.Struct):
    key: Any


class _Shade(StrEnum):
    DARK = "dark"


class _Unwilling:
    def __str__(self) -> str:
        raise LookupError("no")


@pytest.mark.parametrize(
    "value",
    [
        Secret(VALUE),
        {"a": {"b": [1, (Secret(VALUE),)]}},
        {Secret(VALUE): 1},
        {Secret(VALUE)},
        _Held("n", Secret(VALUE), [Secret(VALUE)]),
        _Struct({"x": Secret(VALUE)}),
        ValueError("wrong", Secret(VALUE)),
        KeyError(Secret(VALUE)),
        ValueError({"deep": [_Held("n", Secret(VALUE))]}),
        [[[[[[[[Secret(VALUE)]]]]]]]],
        ExceptionGroup("all", [ValueError(Secret(VALUE))]),
    ],
    ids=repr,
)
def test_a_secret_is_known_by_its_type_wherever_it_is(value: Any) -> None:
    shown = json.dumps(Redactor().plain(value))
    assert VALUE not in shown
    assert STARS in shown


@pytest.mark.parametrize(
    "text",
    [
        f"invalid key {VALUE}!",
        f"https://hooks.example/x?key={VALUE}",
        "percent p%40ss%2Fw%C3%B6rd encoded",
        "connection to postgres://app:p@ss/wörd@db:5432/x failed",
        "password authentication failed for 'hunter2!'",
        "redis says hunter2%21",
        "no answer from /services/T000/B000/XXXXXXXX",
    ],
)
def test_a_secret_is_known_by_its_value_in_any_text(text: str) -> None:
    secrets = [VALUE, "p@ss/wörd", "redis://:hunter2%21@cache/0", "https://hooks.example/services/T000/B000/XXXXXXXX"]
    shown = Redactor(secrets).text(text)
    assert STARS in shown
    for part in (VALUE, "p@ss", "p%40ss", "hunter2", "XXXX"):
        assert part not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgres://user:pw@host:5432/db?x=1", f"at postgres://user:{STARS}@host:5432/db?x=1"),
        ("redis://:a@b@host", f"redis://:{STARS}@host"),
        ("host=db password=abc dbname=x", f"host=db password={STARS} dbname=x"),
        ("password='a b' user=x", f"password={STARS} user=x"),
        ("Authorization: Bearer abcdefghijklmnop.qrst", f"Authorization: Bearer {STARS}"),
        ("http://host:8080/a@b and mail@x.org", "http://host:8080/a@b and mail@x.org"),
        ("input_tokens=5 pass=1", "input_tokens=5 pass=1"),
    ],
)
def test_a_secret_is_known_by_where_it_stands(text: str, shown: str) -> None:
    assert Redactor().text(text) == shown


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("password", "x", STARS),
        ("api_key", "x", STARS),
        ("client_secret", b"x", STARS),
        ("access_token", "x", STARS),
        ("token", "", ""),
        ("input_tokens", 5, 5),
        ("max_tokens", "x", "x"),
        ("secret_rotated", "x", "x"),
    ],
)
def test_a_secret_is_known_by_the_name_of_its_field(name: str, value: Any, shown: Any) -> None:
    assert Redactor().field(name, value) == shown
    assert Redactor().plain({name: value}) == {name: shown}


def test_a_secret_that_the_cut_goes_through_is_not_shown() -> None:
    secret = "abcdefghij" * 10
    for start in (8100, 8150, 8191):
        shown = Redactor([secret]).text("x" * start + secret + "y" * 100)
        assert "abc" not in shown
        assert shown.endswith("…")


def test_everything_becomes_plain_data() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    plain = Redactor().plain(
        [float("nan"), float("-inf"), 10**5000, b"\xff\x00", Path("/x"), _Shade.DARK, {1: 2}, range(3), _Held, cycle]
    )
    assert plain[:8] == ["nan", "-inf", "<int of 16610 bits>", "\\xff\x00", "/x", "dark", {"1": 2}, "range(0, 3)"]
    assert "_Held" in plain[8]
    assert json.dumps(plain)


def test_what_cannot_be_shown_harms_nobody() -> None:
    plain = Redactor().plain({"a": _Unwilling(), "b": 1})
    assert plain == {"a": "<_Unwilling that cannot be shown: LookupError>", "b": 1}


def test_long_containers_are_counted() -> None:
    plain = Redactor().plain(list(range(100)))
    assert plain[-2:] == [63, "and 36 more"]


def test_short_secrets_do_not_star_innocent_words() -> None:
    assert Redactor(["", "a", "abc"]).text("abc a") == "abc a"


def test_all_secrets_of_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        '[storage]\npostgres_url = "postgres://app:first-pw@db/x"\n[integrations]\ngithub_token = "env:TOKEN"\n'
        '[[integrations.webhooks]]\nname = "a"\nurl = "https://x.example/"\nsecret = "whsec_c2VjcmV0LWtleS0xMjM0"\n'
    )
    config = load(path, env={"TOKEN": "second-token"})
    found = set(secrets_of(config))
    assert found == {"postgres://app:first-pw@db/x", "second-token", "whsec_c2VjcmV0LWtleS0xMjM0"}
    assert Redactor(found).text("first-pw second-token") == f"{STARS} {STARS}"
