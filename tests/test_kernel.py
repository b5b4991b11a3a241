from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from optimizer import messages
from optimizer.clock import ManualClock, SystemClock
from optimizer.errors import Invalid, NotFound, Problem, Rejected, Transient
from optimizer.model import Event, SystemEvent, new_id


def test_problems_read_as_sentences() -> None:
    error = Invalid([Problem("quality", "is 2", "a number in 0..1"), Problem("", "is empty")])
    assert str(error) == "quality: is 2; expected a number in 0..1; is empty"
    assert NotFound("no task x").problems == (Problem("", "no task x"),)


def test_rejected_is_worth_a_retry() -> None:
    error = Rejected("the disk is full", retry_after_s=5)
    assert isinstance(error, Transient)
    assert error.retry_after_s == 5


def test_ids_are_unique_and_sort_by_time_of_making() -> None:
    ids = [new_id("evt_") for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(i) == 30 and i.startswith("evt_") for i in ids)
    assert ids[0][:13] <= ids[-1][:13]  # the ten characters of time


def test_a_manual_clock_moves_only_forward() -> None:
    clock = ManualClock()
    now, at = clock.monotonic(), clock.at()
    clock.advance(1.5)
    assert clock.monotonic() - now == 1.5
    assert clock.at() - at == timedelta(seconds=1.5)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)


def test_the_system_clock_is_aware_of_utc() -> None:
    assert SystemClock().at().utcoffset() == timedelta(0)


def test_events_keep_their_fields_over_messagepack() -> None:
    event = Event(id="e1", time=ManualClock().at(), task="t", quality=0.5, context={"n": 1.5, "s": "x", "b": True})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=Event) == event


@pytest.mark.parametrize(
    "message",
    [
        messages.Append.of([messages.Record("e1", "", b"x")]),
        messages.Page(entries=[messages.Entry(1, True, b"x")], last_offset=1),
        messages.Commit(puts={"task/a": b"1"}, expect={"task/a": 0}),
        messages.Changed(sequence=1, key="task/a", revision=2, body=None),
        messages.Failure(kind="conflict", message="m", problems=[("a", "b", "c")]),
    ],
    ids=lambda message: type(message).__name__,
)
def test_bus_messages_survive_the_wire(message: messages.Message) -> None:
    assert messages.decode_bus(messages.encode(message)) == message


def test_control_messages_survive_the_wire_and_are_no_bus_messages() -> None:
    event = SystemEvent(
        id=new_id("evt_"),
        type="service.failed",
        time=ManualClock().at(),
        host="h",
        environment="test",
        severity="critical",
        subject="storage",
        summary="storage was killed",
        data={"service": "storage", "pid": 1},
    )
    sent = messages.SystemEvents(first_number=7, events=[event])
    assert messages.decode_control(messages.encode(sent)) == sent
    with pytest.raises(msgspec.ValidationError):
        messages.decode_bus(messages.encode(sent))
