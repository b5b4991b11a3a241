"""
The pure part: signatures against the reference implementation, what answers mean, which addresses are public.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import msgspec
import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st
from integrations.conftest import SECRET, event

from optimizer.config.fields import Secret
from optimizer.config.loader import load
from optimizer.errors import Invalid
from workers.integrations.settings import Webhook
from workers.integrations.webhook import (
    Outcome,
    Reply,
    body_of,
    check_url,
    headers_of,
    is_public,
    judge,
    key_of,
    retry_after_s,
    wants,
)

AT = datetime(2026, 5, 1, tzinfo=UTC)


@given(key=st.binary(min_size=1, max_size=64), summary=st.text(), padded=st.booleans())
def test_signatures_are_those_of_the_reference(key: bytes, summary: str, padded: bool) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    secret = secret if padded else secret.rstrip("=")
    one = msgspec.structs.replace(event(), summary=summary)
    body = body_of(one)
    headers = headers_of(key_of(secret), one.id, datetime.now(UTC), body)
    verified = standardwebhooks.Webhook(secret).verify(body, headers)
    assert verified["id"] == headers["webhook-id"] == one.id
    with pytest.raises(Exception, match="No matching signature"):
        standardwebhooks.Webhook(secret).verify(body + b" ", headers)


def test_without_a_secret_there_is_no_signature() -> None:
    assert set(headers_of(key_of(""), "evt_1", AT, b"{}")) == {"content-type", "webhook-id", "webhook-timestamp"}


def test_the_body_is_that_of_the_contract() -> None:
    body: dict[str, Any] = msgspec.json.decode(body_of(event(at=AT)))
    assert list(body) == ["id", "type", "time", "host", "environment", "severity", "subject", "summary", "data"]
    assert body["time"] == "2026-05-01T00:00:00Z"
    assert body["data"]["exit_code"] is None


@pytest.mark.parametrize("secret", ["whsec_", "whsec_!!!!", "pass word", "whsec_QUJDR"])
def test_what_is_no_secret_is_not_shown(secret: str) -> None:
    with pytest.raises(Invalid) as caught:
        key_of(secret)
    assert str(caught.value) == "secret: is not a signing secret; expected whsec_ and base64"


def test_a_webhook_does_not_print_its_secret() -> None:
    assert "MfKQ" not in repr(Webhook(name="w", secret=Secret(SECRET)))


@pytest.mark.parametrize("url", ["", "x.example/h", "ftp://x.example", "http://", "https://[::1", "http://x:99999/"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(Invalid):
        check_url(url)


def test_the_configuration_names_what_is_wrong_with_a_webhook() -> None:
    with pytest.raises(Exception, match="url") as caught:
        load(env={}, overrides={"integrations.webhooks": [{"name": "w", "url": "gopher://x", "secret": "whsec_!"}]})
    assert "secret" in str(caught.value)
    assert "whsec_!" not in str(caught.value)


@pytest.mark.parametrize(
    ("kinds", "kind", "wanted"),
    [
        (("*",), "policy.changed", True),
        (("service.*",), "service.failed", True),
        (("service.*",), "policy.changed", False),
        (("policy.changed", "service.failed"), "service.failed", True),
        ((), "service.failed", False),
        (("SERVICE.*",), "service.failed", False),
    ],
)
def test_globs_choose_kinds(kinds: tuple[str, ...], kind: str, wanted: bool) -> None:
    assert wants(kinds, kind) is wanted


@pytest.mark.parametrize(
    ("status", "age_s", "outcome"),
    [
        (200, 0, Outcome.DELIVERED),
        (299, 99, Outcome.DELIVERED),
        (302, 0, Outcome.RETRY),
        (400, 0, Outcome.RETRY),
        (404, 10, Outcome.GIVEN_UP),
        (410, 99, Outcome.GONE),
        (503, 9.9, Outcome.RETRY),
        (None, 0, Outcome.RETRY),
        (None, 10, Outcome.GIVEN_UP),
    ],
)
def test_what_an_answer_means(status: int | None, age_s: float, outcome: Outcome) -> None:
    assert judge(Reply(status), age_s, 10) is outcome


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0),
        ("7", 7),
        ("-1", 0),
        ("1.5", 0),
        ("soon", 0),
        ("9" * 5000, 3600),
        ("²", 0),
        (format_datetime(AT + timedelta(seconds=30), usegmt=True), 30),
        (format_datetime(AT - timedelta(seconds=30), usegmt=True), 0),
        (format_datetime(AT + timedelta(days=30), usegmt=True), 3600),
    ],
)
def test_how_long_a_receiver_wants_peace(value: str, seconds: float) -> None:
    assert retry_after_s({"Retry-After": value}, AT) == seconds


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public
