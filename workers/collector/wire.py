"""
The protobuf wire format, as far as envelopes need it: where the fields of a message lie. Pure.

Source: Protocol Buffers documentation, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError

from optimizer.errors import Invalid

FIXED64: Final = 1  # wire types
LENGTH: Final = 2  # texts, bytes and messages


class Envelope:
    """
    The fields of a message and of messages in it, without a copy.

    Args:
        body: the outermost message.
        most: fields that may be looked at in all; one needs as little as two bytes.
    """

    def __init__(self, body: bytes, most: int) -> None:
        self.body = body
        self._most = self._left = most

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """
        The fields of the message in `body[start:end]`: number, wire type, and where the content begins and ends.

        Raises:
            DecodeError: there is no message. Invalid: there are too many fields.
        """
        at = start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise Invalid(f"the body has more than {self._most} spans and other fields")
            key, first, at = field(self.body, at, end)
            yield key >> 3, key & 7, first, at


def field(body: bytes, at: int, end: int) -> tuple[int, int, int]:
    """
    The field that begins at `at`: its key (number << 3 | wire type), and where its content begins and ends.

    Raises:
        DecodeError: there is none, or it ends after `end`.
    """
    key, at = _varint(body, at, end)
    kind = key & 7
    if not 0 < key >> 3 < 2**29:
        raise DecodeError(f"field number {key >> 3} at byte {at}")
    if kind == LENGTH:
        size, at = _varint(body, at, end)
    elif kind == 0:
        size = _varint(body, at, end)[1] - at
    elif kind in (FIXED64, 5):
        size = 8 if kind == FIXED64 else 4
    else:
        raise DecodeError(f"wire type {kind} at byte {at}")
    if at + size > end:
        raise DecodeError(f"truncated: the field at byte {at} wants {size} bytes")
    return key, at, at + size


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = body[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise DecodeError(f"a broken number at byte {at}")
