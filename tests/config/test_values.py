from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from config.conftest import Told, Written
from hypothesis import given
from hypothesis import strategies as st

from optimizer.config.fields import Duration, Option, Secret
from optimizer.config.loader import load
from optimizer.config.values import Wrong, convert
from optimizer.config.values import written as duration_text

ANY = Option("")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("1s", 1),
        ("1.5 s", 1.5),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        (" 3s ", 3),
        (7, 7),
        (0.5, 0.5),
        (0, 0),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    found = convert(text, Duration, ANY, {}, False)
    assert (type(found), found) == (Duration, pytest.approx(seconds))


@pytest.mark.parametrize(
    "value",
    [
        "soon",
        "",
        "5",
        "1w",
        "-1s",
        "1 s s",
        "1e3s",
        "٣s",
        "²",
        -1,
        True,
        None,
        [],
        math.nan,
        math.inf,
        -math.inf,
        1e300,
        "9999999d",
        10**400,
    ],
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(Wrong, match="a duration like"):
        convert(value, Duration, ANY, {}, False)


@given(st.floats(0, 3650 * 86400.0) | st.integers(0, 10**8).map(float) | st.integers(0, 10**9).map(lambda n: n / 1000))
def test_a_printed_duration_is_read_as_the_same(seconds: float) -> None:
    found = convert(duration_text(seconds), Duration, ANY, {}, False)
    assert found == seconds


@pytest.mark.parametrize(
    ("value", "kind", "option", "expected"),
    [
        ("1", int, ANY, "a whole number"),
        (1.5, int, ANY, "a whole number"),
        (1.0, int, ANY, "a whole number"),
        (True, int, ANY, "a whole number"),
        (99999, int, Option("", minimum=0, maximum=65535), "a whole number from 0 to 65535"),
        (-1, int, Option("", minimum=0), "a whole number of at least 0"),
        (math.nan, float, ANY, "a number"),
        (math.inf, float, Option("", minimum=0), "a number of at least 0"),
        (10**400, float, ANY, "a number"),
        ("yes", bool, ANY, "true or false"),
        (1, bool, ANY, "true or false"),
        (1, str, ANY, "text"),
        (None, str, ANY, "text"),
        ("a\0b", str, ANY, "text without NUL"),
        ("a", tuple[str, ...], ANY, "a list of texts"),
        ([1], tuple[str, ...], ANY, "text"),
        ("loud", str, Option("", choices=("a", "b")), "one of a, b"),
        (0.001, Duration, Option("", minimum=0.05), "from 50ms to 3650d"),
    ],
)  # fmt: skip
def test_what_is_expected_is_said(value: object, kind: Any, option: Option, expected: str) -> None:
    with pytest.raises(Wrong) as caught:
        convert(value, kind, option, {}, False)
    assert expected in str(caught.value)


@pytest.mark.parametrize("value", ["x", "", "1.5", "1e3", "9" * 5000])
def test_what_is_no_whole_number_as_text(value: str) -> None:
    with pytest.raises(Wrong, match="a whole number"):
        convert(value, int, ANY, {}, True)


def test_a_secret_is_read_from_where_it_says(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("hunter2\n")
    for value, env in (("hunter2", {}), (f"file:{path}", {}), ("env:HIDDEN", {"HIDDEN": "hunter2"})):
        found = convert(value, Secret, ANY, env, False)
        assert found.reveal() == "hunter2"
        assert "hunter2" not in f"{found} {found!r} {found:>20}" + str([found])


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file"), (b"", "empty"), (b" \n", "empty"), (b"\xff\xfe", "no text"), (b"x" * 70000, "too large")],
)
def test_a_secret_that_cannot_be_read_is_named_with_its_file(
    told: Told, tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    said = told(f'[integrations]\ngithub_token = "file:{path}"\n')["integrations.github_token"]
    assert why in said
    assert str(path) in said
    assert "(line 2)" in said


@pytest.mark.parametrize("env", [{}, {"HIDDEN": ""}])
def test_a_secret_of_a_variable_that_is_not_set_is_named(told: Told, env: dict[str, str]) -> None:
    said = told('[integrations]\ngithub_token = "env:HIDDEN"\n', env=env)["integrations.github_token"]
    assert "HIDDEN to be set" in said


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "localhost", "db-1.example.org"])
def test_a_host_is_an_address_or_a_name(written: Written, host: str) -> None:
    config = load(written(f'[service]\nhost = "{host}"\n'), {})
    assert any("open to the network" in warning for warning in config.warnings) == (
        host not in ("127.0.0.1", "::1", "localhost")
    )


@pytest.mark.parametrize("host", ["", "300.1.1.1", "a b", "http://x", "[::1]", "127.0.0.1:8080", "-x"])
def test_what_is_no_host(told: Told, host: str) -> None:
    assert "an address of this machine" in told(f'[service]\nhost = "{host}"\n')["service.host"]
