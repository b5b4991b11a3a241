"""
Opaque cursors of lists: where the next page begins, for us to read only. Pure.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar

import msgspec

from optimizer.errors import Invalid, Problem

P = TypeVar("P", int, str)


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
    if version != 1 or told != kind or not isinstance(position, of) or (isinstance(position, int) and position < 0):
        raise Invalid([Problem("cursor", "is none of this list", "`next_cursor` of the page before")])
    return position
