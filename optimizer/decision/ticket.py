"""
The selection id: a signed ticket that carries what is needed to learn from the answer, so that nothing has to be stored.

Layout before base64url, little endian: version (1 byte), nonce (6), time of selection in seconds (4), policy version (4),
propensity (binary32), length of task and variant (1 byte each unit of UTF-8, 2 bytes), the two names, then 4 bytes for each
feature (key, binary16), and 10 bytes of keyed BLAKE2b (RFC 7693) over all of it. 80 bits are far beyond guessing over a
network; the keyed hash costs a third of HMAC-SHA256, and sealing is a good part of what a selection costs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from typing import Final, NamedTuple

from optimizer.decision.features import Features
from optimizer.errors import Invalid, Problem

_VERSION: Final = 1
_HEAD: Final = struct.Struct("<B6sIIfHH")
_OWN: Final = struct.Struct("<B6sI")  # the two parts of _HEAD
_SAME: Final = struct.Struct("<IfHH")
_FEATURE: Final = struct.Struct("<He")
_MAC_BYTES: Final = 10
MAX_TEXT: Final = 2600  # two names of 200 characters in UTF-8 and all features, in base64


class Ticket(NamedTuple):
    """
    What was selected: `propensity` in (0, 1], `at` in whole seconds since 1970 (UTC).
    """

    task: str
    variant: str
    propensity: float
    policy_version: int
    at: int
    features: Features = ()


def seal(secret: bytes, ticket: Ticket, nonce: bytes) -> str:
    """
    The ticket as a selection id.

    Args:
        secret: the installation's key.
        nonce: 6 bytes, fresh for each selection, so that no two have the same id.
    """
    return fill(secret, blank(ticket), nonce, ticket.at, ticket.features).decode()


def blank(ticket: Ticket) -> bytes:
    """
    The part of a ticket that is the same for all selections of a variant while its policy and propensity stay.
    """
    task, variant = ticket.task.encode(), ticket.variant.encode()
    return _SAME.pack(ticket.policy_version, ticket.propensity, len(task), len(variant)) + task + variant


def fill(secret: bytes, same: bytes, nonce: bytes, at: int, features: Features) -> bytes:
    """
    The selection id, in ASCII, from the part that `blank` made and what differs.
    """
    body = _OWN.pack(_VERSION, nonce, at) + same
    if features:
        body += b"".join([_FEATURE.pack(key, value) for key, value in features])
    return base64.urlsafe_b64encode(body + _mac(secret, body)).rstrip(b"=")


def unseal(secret: bytes, text: str) -> Ticket:
    """
    The ticket in a selection id.

    Raises:
        Invalid: it is none of this installation's; the problem's field is `selection_id`.
    """
    try:
        raw = base64.urlsafe_b64decode(text[:MAX_TEXT] + "=" * (-len(text) % 4))
        body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if not hmac.compare_digest(mac, _mac(secret, body)):
            raise ValueError
        if base64.urlsafe_b64encode(raw).decode().rstrip("=") != text:
            raise ValueError  # other spellings of one ticket would count as other selections
        version, _, at, policy_version, propensity, task_bytes, variant_bytes = _HEAD.unpack_from(body)
        if version != _VERSION:
            raise ValueError
    except (binascii.Error, ValueError, struct.error):
        problem = Problem("selection_id", "was not given out by this installation", "the id that select returned")
        raise Invalid([problem]) from None
    middle, end = _HEAD.size + task_bytes, _HEAD.size + task_bytes + variant_bytes
    return Ticket(
        task=body[_HEAD.size : middle].decode(),
        variant=body[middle:end].decode(),
        propensity=propensity,
        policy_version=policy_version,
        at=at,
        features=tuple(_FEATURE.iter_unpack(body[end:])),
    )


def _mac(secret: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_MAC_BYTES, key=secret).digest()
