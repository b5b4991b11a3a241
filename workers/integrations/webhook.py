"""
What a webhook request is, and what its answer means. Pure: no I/O, no clock.

Source: Standard Webhooks specification 1.0.0 (headers, symmetric signatures, meaning of answers).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import urlsplit

import msgspec

from optimizer.errors import Invalid, Problem
from optimizer.model import SystemEvent

MAX_RETRY_AFTER_S: Final = 3600.0  # a receiver may ask for patience, not for ever
_PREFIX: Final = "whsec_"
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits


class Outcome(Enum):
    """
    What became of one attempt; its value is the label in `integration_deliveries_total`.
    """

    DELIVERED = "delivered"
    RETRY = "retry"
    GIVEN_UP = "given_up"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Reply:
    """
    The answer to one attempt.

    Args:
        status: HTTP status; None if there was no answer.
        reason: half a sentence on a failure, without secrets.
        retry_after_s: seconds >= 0 for which the receiver wants to be left alone.
    """

    status: int | None
    reason: str = ""
    retry_after_s: float = 0.0

    @property
    def good(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def key_of(secret: str) -> bytes:
    """
    The signing key in a secret.

    Args:
        secret: `whsec_` and base64, padding optional; empty: there is no key.

    Raises:
        Invalid: it is not that. The message does not show it.
    """
    text = secret.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if secret and not key:
        # no `from`: the cause would carry the text
        raise Invalid([Problem("secret", "is not a signing secret", "whsec_ and base64")]) from None
    return key


def check_url(url: str) -> None:
    """
    Accept an address that events can be sent to.

    Raises:
        Invalid: it is not http(s)://host…; the message does not show it, its path may be a secret.
    """
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise Invalid([Problem("url", "is not an address to send to", "http:// or https:// and a host")])


def body_of(event: SystemEvent) -> bytes:
    """
    The body of the request: the event as JSON (design section 8).
    """
    return msgspec.json.encode(event)


def headers_of(key: bytes, event_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """
    Headers of one attempt; without a key there is no signature.

    Args:
        event_id: the same in every attempt, so that the receiver can drop what it has seen.
        at: time of this attempt.

    Source: Standard Webhooks 1.0.0, "Webhook headers" and "Signature scheme".
    """
    timestamp = str(int(at.timestamp()))
    headers = {"content-type": "application/json", "webhook-id": event_id, "webhook-timestamp": timestamp}
    if key:
        signed = hmac.new(key, b".".join((event_id.encode(), timestamp.encode(), body)), hashlib.sha256)
        headers["webhook-signature"] = "v1," + base64.b64encode(signed.digest()).decode()
    return headers


def wants(kinds: Sequence[str], kind: str) -> bool:
    """
    Whether one of the globs in `kinds` matches the kind of an event.
    """
    return any(fnmatchcase(kind, pattern) for pattern in kinds)


def judge(reply: Reply, age_s: float, max_age_s: float) -> Outcome:
    """
    What an answer means for an event of this age in seconds.

    Only 2xx is a delivery; a redirect is none, it is not followed. 410 says: never again. Everything else is
    tried again, client errors too (a receiver is often broken first and mended later), until the event is too old.
    """
    if reply.good:
        return Outcome.DELIVERED
    if reply.status == 410:
        return Outcome.GONE
    return Outcome.GIVEN_UP if age_s >= max_age_s else Outcome.RETRY


def retry_after_s(headers: Mapping[str, str], at: datetime) -> float:
    """
    Seconds for which the receiver wants to be left alone, 0 if it does not say, never above MAX_RETRY_AFTER_S.

    Source: RFC 9110 section 10.2.3 (seconds, or a date).
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), MAX_RETRY_AFTER_S)
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(max(0.0, (until - at).total_seconds()), MAX_RETRY_AFTER_S)


def is_public(address: str) -> bool:
    """
    Whether an IP address is one of the open internet: not of this machine, a private network, a link, or a group.

    An IPv4 address inside an IPv6 one (mapped, 6to4, Teredo, NAT64) is judged too.
    """
    ip = ipaddress.ip_address(address)
    inner = [ip]
    if isinstance(ip, ipaddress.IPv6Address):
        inner += [found for found in (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())) if found is not None]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if ip.ipv4_mapped is not None:
            inner.remove(ip)  # it is nothing but the IPv4 address
    return all(one.is_global and not one.is_multicast for one in inner)
