"""
From an entry of the journal to what can be learned from it. Pure.

The doors check events before they become durable; what is checked here again is what a single wrong value would spoil for ever:
a sum that becomes infinite or not a number, a count of losses below zero. An entry that fails is left out, never the end.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from optimizer.decision.ticket import Ticket, unseal
from optimizer.errors import Invalid, Problem
from optimizer.messages import Entry
from optimizer.model import Event
from optimizer.operations.checks import MAX_COST_USD, MAX_DURATION_MS

_event = msgspec.msgpack.Decoder(Event)
_RANGES: Final = (
    ("cost_usd", 0.0, MAX_COST_USD),
    ("latency_ms", 0.0, MAX_DURATION_MS),
    ("quality", 0.0, 1.0),
)


class Lesson(NamedTuple):
    """
    One event, ready to be learned: `opens` as in Entry, `ticket` of its selection if it has one that can be read, `task` it
    belongs to, or "".
    """

    event: Event
    opens: bool
    ticket: Ticket | None
    task: str


def lesson(entry: Entry, secret: bytes) -> Lesson:
    """
    The lesson of one entry.

    Args:
        secret: the installation's key; a selection id that it does not open names no ticket, and the event's own task counts.

    Raises:
        Invalid: the entry is no event, or a number of it is out of its range.
    """
    try:
        event = _event.decode(entry.body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # what else bytes can do to a decoder
        raise Invalid([Problem("", f"is no event: {error}")]) from error
    problems = [problem for name, low, high in _RANGES if (problem := _outside(event, name, low, high))]
    if event.feedback is not None and event.feedback.rating is not None and not -1 <= event.feedback.rating <= 1:
        problems.append(Problem("feedback.rating", f"is {event.feedback.rating}", "a number from -1 to 1"))
    if problems:
        raise Invalid(problems)
    ticket = _ticket(event.selection_id, secret) if event.selection_id else None
    return Lesson(event, entry.opens, ticket, ticket.task if ticket else event.task)


def _outside(event: Event, name: str, low: float, high: float) -> Problem | None:
    value = getattr(event, name)
    if value is None or low <= value <= high:  # not a number is in no range
        return None
    return Problem(name, f"is {value}", f"a number from {low:g} to {high:g}")


def _ticket(text: str, secret: bytes) -> Ticket | None:
    try:
        return unseal(secret, text)
    except Invalid:  # it was opened at the door: the key has changed since
        return None
