"""
What travels on the bus, and how an error becomes an answer and an error again. No input, no output.

A frame holds letters, one after the other: what a process has to say to another in one round of its loop goes together. A frame
wakes three threads on its way, and crosses two queues and a socket; under load that costs more than all the rest.

A letter is a head (version; number of the request, big-endian, 0 in a publication; length of the trace; length of the message),
the trace (see `telemetry.tracing`; mostly none), and the message as MessagePack. The head is the same in every version of the
bus, so that a peer of another version can be told so.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from optimizer.errors import Conflict, Invalid, NotFound, OptimizerError, Permanent, Problem, Rejected, Transient
from optimizer.messages import VERSION, Failure, Message, decode_bus

Letter = tuple[int, int, memoryview, memoryview]  # version, number, trace, message

MAX_MESSAGE_BYTES: Final = 80 * 1024 * 1024  # an OTLP body of the largest allowed size, decoded, still passes
FRAME_BYTES: Final = 128 * 1024  # a frame is full: the peer begins with one while the next is on its way
MAX_FRAME_BYTES: Final = MAX_MESSAGE_BYTES + FRAME_BYTES
_HEAD: Final = struct.Struct(">BQBI")
_NO_HEAD: Final = bytes(_HEAD.size)
_encoder: Final = msgspec.msgpack.Encoder()


def write(frame: bytearray, number: int, message: Message, trace: bytes = b"") -> None:
    """
    Put a letter at the end of a frame.

    Args:
        trace: of at most 255 bytes.

    Raises:
        Invalid: it is larger than MAX_MESSAGE_BYTES; the receiver would hang up. The frame is as it was.
    """
    begin = len(frame)
    frame += _NO_HEAD + trace
    try:
        body = len(frame)
        _encoder.encode_into(message, frame, body)
        if len(frame) - begin > MAX_MESSAGE_BYTES:
            size = f"{type(message).__name__} of {len(frame) - begin} bytes is larger than a message may be"
            raise Invalid(f"{size} ({MAX_MESSAGE_BYTES} bytes)")
        _HEAD.pack_into(frame, begin, VERSION, number, len(trace), len(frame) - body)
    except BaseException:
        del frame[begin:]
        raise


def letters(frame: memoryview) -> list[Letter]:
    """
    What is in a frame, whatever its versions.

    Raises:
        Permanent: it is no frame.
    """
    found: list[Letter] = []
    at, end = 0, len(frame)
    while at < end or not found:
        if end - at < _HEAD.size:
            raise Permanent(f"{end - at} bytes are no letter")
        version, number, trace_bytes, message_bytes = _HEAD.unpack_from(frame, at)
        trace = at + _HEAD.size
        message = trace + trace_bytes
        at = message + message_bytes
        if at > end:
            raise Permanent(f"a letter ends {at - end} bytes beyond its frame")
        found.append((version, number, frame[trace:message], frame[message:at]))
    return found


def read(letter: Letter, sender: str) -> Message:
    """
    The message in a letter.

    Raises:
        Permanent: `sender` speaks another version, or no sense.
    """
    version, _, _, message = letter
    if version != VERSION:
        raise Permanent(f"{sender} speaks version {version} of the bus, this process {VERSION}")
    try:
        return decode_bus(message)
    except msgspec.DecodeError as error:
        raise Permanent(f"{sender} sent what is no bus message: {error}") from error


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
