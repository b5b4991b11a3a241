"""
What a message looks like on the wire, and how an error becomes an answer and an error again. No input, no output.

A message is one frame: a head of ten bytes (version; the number of the request, big-endian, 0 in a publication; length of the
trace), the trace (see `telemetry.tracing`; mostly none), and the struct as MessagePack. The head is the same in every version
of the bus, so that a peer of another version can be told so.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from optimizer.errors import Conflict, Invalid, NotFound, OptimizerError, Permanent, Problem, Rejected, Transient
from optimizer.messages import VERSION, Failure, Message, decode_bus

Head = tuple[int, int, int]  # version, number, length of the trace

MAX_MESSAGE_BYTES: Final = 80 * 1024 * 1024  # an OTLP body of the largest allowed size, decoded, still passes
_HEAD: Final = struct.Struct(">BQB")
_encoder: Final = msgspec.msgpack.Encoder()


def pack(number: int, message: Message, trace: bytes = b"") -> bytearray:
    """
    The frame of a message.

    Args:
        trace: of at most 255 bytes.

    Raises:
        Invalid: the frame would be larger than MAX_MESSAGE_BYTES; the receiver would hang up.
    """
    frame = bytearray(_HEAD.pack(VERSION, number, len(trace)) + trace)
    _encoder.encode_into(message, frame, len(frame))
    if len(frame) > MAX_MESSAGE_BYTES:
        kind = type(message).__name__
        raise Invalid(f"{kind} of {len(frame)} bytes is larger than a message may be ({MAX_MESSAGE_BYTES} bytes)")
    return frame


def head_of(frame: memoryview) -> Head | None:
    """
    The head of a frame, whatever its version; None when it has none.
    """
    return _HEAD.unpack_from(frame) if len(frame) >= _HEAD.size else None


def message_of(head: Head, frame: memoryview, sender: str) -> Message:
    """
    The message in a frame.

    Raises:
        Permanent: `sender` speaks another version, or no sense.
    """
    version, _, trace_bytes = head
    if version != VERSION:
        raise Permanent(f"{sender} speaks version {version} of the bus, this process {VERSION}")
    try:
        return decode_bus(frame[_HEAD.size + trace_bytes :])
    except msgspec.DecodeError as error:
        raise Permanent(f"{sender} sent what is no bus message: {error}") from error


def trace_of(head: Head, frame: memoryview) -> bytes:
    """
    The trace in a frame, or nothing.
    """
    _, _, trace_bytes = head
    return bytes(frame[_HEAD.size : _HEAD.size + trace_bytes]) if trace_bytes else b""


_KINDS: Final[dict[str, type[Invalid]]] = {"invalid": Invalid, "not_found": NotFound, "conflict": Conflict}


def raised(failure: Failure) -> OptimizerError:
    """
    The error that a Failure tells of.
    """
    if failure.kind == "transient":
        return Transient(failure.message, failure.retry_after_s)
    if failure.kind == "rejected":
        return Rejected(failure.message, failure.retry_after_s)
    if failure.kind == "permanent":
        return Permanent(failure.message)
    return _KINDS[failure.kind]([Problem(*problem) for problem in failure.problems] or failure.message)


def told(error: OptimizerError) -> Failure:
    """
    The Failure that tells of an error.
    """
    text = str(error)
    match error:
        case Rejected():
            return Failure(kind="rejected", message=text, retry_after_s=error.retry_after_s)
        case Transient():
            return Failure(kind="transient", message=text, retry_after_s=error.retry_after_s)
        case Conflict():
            return Failure(kind="conflict", message=text, problems=_problems(error))
        case NotFound():
            return Failure(kind="not_found", message=text, problems=_problems(error))
        case Invalid():
            return Failure(kind="invalid", message=text, problems=_problems(error))
        case _:
            return Failure(kind="permanent", message=text)


def _problems(error: Invalid) -> list[tuple[str, str, str]]:
    return [(problem.field, problem.reason, problem.expected) for problem in error.problems]
