"""
Frames, and errors that become answers and errors again.
"""

from __future__ import annotations

import pytest

from optimizer.bus import wire
from optimizer.bus.wire import Letter, letters, raised, read, told, write
from optimizer.errors import Conflict, Invalid, NotFound, OptimizerError, Permanent, Problem, Rejected, Transient
from optimizer.messages import VERSION, Append, Get, Inspect, Message, Record

PROBLEMS = [Problem("a.b[1]", "is odd", "an even number"), Problem("", "is wrong as a whole")]


def frame_of(*written: tuple[int, Message, bytes]) -> bytearray:
    frame = bytearray()
    for number, message, trace in written:
        write(frame, number, message, trace)
    return frame


def only(frame: bytes | bytearray) -> Letter:
    (letter,) = letters(memoryview(frame))
    return letter


def test_a_frame_keeps_numbers_messages_and_traces_of_its_letters() -> None:
    records = [Record("e1", "s", b"body"), Record("e2", "", b"")]
    written = [(2**64 - 1, Append.of(records), b""), (0, Inspect(), b"00-1-2-01"), (7, Get(keys=["k"]), b"t" * 255)]
    found = letters(memoryview(frame_of(*written)))
    assert [
        (number, read(letter, "a client"), bytes(trace)) for letter in found for _, number, trace, _ in [letter]
    ] == written
    first = read(found[0], "a client")
    assert isinstance(first, Append)
    assert first.records() == records


def test_a_letter_of_another_version_is_refused_by_name() -> None:
    frame = frame_of((7, Inspect(), b""), (8, Inspect(), b""))
    frame[0] = VERSION + 8
    refused, taken = letters(memoryview(frame))
    with pytest.raises(Permanent, match=rf"storage speaks version {VERSION + 8} of the bus, this process {VERSION}"):
        read(refused, "storage")
    assert read(taken, "storage") == Inspect()


def test_a_part_of_a_frame_is_none() -> None:
    frame = frame_of((1, Inspect(), b"trace"), (2, Get(keys=["k"]), b""))
    whole = {0, len(frame_of((1, Inspect(), b"trace"))), len(frame)}
    for size in {0, *range(len(frame))} - (whole - {0}):
        with pytest.raises(Permanent, match=r"no letter|beyond its frame"):
            letters(memoryview(frame)[:size])


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x81\xa4type\xa6Nobody", b"\x81\xa4type\xa6Append"])
def test_what_is_no_message_is_refused(damage: bytes) -> None:
    head = frame_of((1, Inspect(), b""))[:10] + len(damage).to_bytes(4, "big")
    with pytest.raises(Permanent, match="a client sent what is no bus message"):
        read(only(head + damage), "a client")


def test_what_is_too_large_leaves_the_frame_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 1000)
    frame = frame_of((1, Append.of([Record("e1", "", b"x" * 900)]), b""))
    before = bytes(frame)
    with pytest.raises(Invalid, match=r"Append of 10\d\d bytes is larger than a message may be \(1000 bytes\)"):
        write(frame, 2, Append.of([Record("e1", "", b"x" * 1000)]))
    assert frame == before


def test_packed_records_that_are_none_are_invalid() -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        Append(packed=memoryview(b"\x91\x01")).records()


@pytest.mark.parametrize(
    "error",
    [
        Transient("away", 7.0),
        Rejected("no room", 3.5),
        Invalid(PROBLEMS),
        Invalid("as a whole"),
        NotFound(PROBLEMS[:1]),
        Conflict(PROBLEMS[:1]),
        Permanent("for ever"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_as_it_was(error: OptimizerError) -> None:
    back = raised(told(error))
    assert (type(back), str(back)) == (type(error), str(error))
    assert vars(back) == vars(error)
