"""
Opaque cursors of lists: where the next page begins, for us to read only. Pure.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final, TypeVar

import msgspec

from optimizer.errors import Invalid, Problem

P = TypeVar("P", int, str)
_MAX_POSITION: Final = 2**63  # offsets have eight bytes


def encode_cursor(kind: str, position: int | str) -> str:
    """
    The cursor of the page after `position` in a list of that kind.
    """
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((1, kind, position))).decode().rstrip("=")


def decode_cursor(text: str, kind: str, of: type[P], begin: P) -> P:
    """
    The position in a cursor; `begin` for an empty one.

    Raises:
        Invalid: it is none of such a list.
    """
    if not text:
        return begin
    try:
        found: Any = msgspec.msgpack.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        version, told, position = found
    except (binascii.Error, ValueError, TypeError, msgspec.MsgspecError, RecursionError):
        version, told, position = 0, "", None
    right = type(position) is of and (not isinstance(position, int) or 0 <= position < _MAX_POSITION)
    if version != 1 or told != kind or not right:
        raise Invalid([Problem("cursor", "is none of this list", "`next_cursor` of the page before")])
    answer: P = position
    return answer
