"""
Take outcomes: check them all, then hand them to the collector, and answer when they are durable.

A request is taken or refused as a whole: if one event is wrong, all problems are told and nothing is stored. An id that
stands twice in one request is such a problem; one that was stored by an earlier request is a duplicate: counted, told, and
otherwise without effect, so that a request may be sent again. An `Idempotency-Key` gives ids to the events that have none; the
same key with another request is a mistake, which would otherwise pass for a repetition and lose events.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from optimizer.decision.ticket import unseal
from optimizer.errors import Conflict, Invalid, Problem
from optimizer.model import MAX_ID, Event, new_id
from optimizer.operations import validation
from optimizer.operations.checks import join
from optimizer.operations.house import House

MAX_EVENTS: Final = 10_000  # in one request
_MAX_KEY: Final = 1024
_SLICE_S: Final = 0.02  # of checking before others get their turn


class FeedbackRequest(msgspec.Struct, frozen=True, kw_only=True):
    """
    Events as they were sent. `listed`: they came in a list, so that paths of problems begin with `[i]`. `fingerprint`: a
    digest of what was sent, compared where there is a key.
    """

    events: list[Any]
    idempotency_key: str = ""
    fingerprint: bytes = b""
    source: str = "rest"
    listed: bool = True


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """
    `accepted`: events that are durable now, `duplicates` among them (known already, without effect); `ids` of all of
    them, in order; `duplicate_ids`: which were known.
    """

    accepted: int
    duplicates: int
    ids: list[str]
    duplicate_ids: list[str] = []


async def submit_feedback(house: House, request: FeedbackRequest) -> Accepted:
    """
    Make events durable.

    Raises:
        Invalid: with every problem of every event; nothing was stored. Transient: not known whether they were stored,
            send the same again. Rejected: no room.
    """
    events, problems = await check_events(house, request)
    if problems or not events:
        raise Invalid(validation.cut(problems) or "there is no event in it")
    if request.idempotency_key and request.fingerprint:
        await _claim(house, request.idempotency_key, request.fingerprint)
    return await store_events(house, events, request.source, request.listed)


async def check_events(house: House, request: FeedbackRequest) -> tuple[list[Event], list[Problem]]:
    """
    The right events of a request, ready for `store_events`, and every problem of the others. Lets others have their turn.

    A problem's field begins with `[i]`, the position of its event, if `listed`.
    """
    if len(request.events) > MAX_EVENTS:
        return [], [Problem("", f"has {len(request.events)} events", f"at most {MAX_EVENTS} in one request")]
    key, at = _key(request.idempotency_key), house.clock.at()
    events: list[Event] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    since = time.monotonic()
    for i, raw in enumerate(request.events):
        if time.monotonic() - since > _SLICE_S:
            await asyncio.sleep(0)
            since = time.monotonic()
        path = f"[{i}]" if request.listed else ""
        event_id = f"{key}:{i}" if key else new_id("fb_")
        found = validation.event(
            raw, at=at, secret=house.secret, path=path, event_id=event_id, keep_content=house.keep_content
        )
        if isinstance(found, Event):
            found = _attributed(house, found, path)
        if isinstance(found, Event) and seen.setdefault(found.id, i) != i:
            told = f"is that of [{seen[found.id]}] as well"
            found = [Problem(join(path, "id"), told, "an id of its own, or none")]
        if isinstance(found, Event):
            events.append(found)
        elif len(problems) <= validation.MAX_PROBLEMS:
            problems += found
    return events, problems


async def store_events(house: House, events: Sequence[Event], source: str, listed: bool = True) -> Accepted:
    """
    Make checked events durable.

    Raises:
        As `submit_feedback`.
    """
    answer = await house.collector.submit(source, [msgspec.msgpack.encode(event) for event in events])
    ids = [event.id for event in events]
    known = [ids[i] for i in answer.duplicates]
    return Accepted(accepted=len(ids), duplicates=len(known), ids=ids, duplicate_ids=known)


async def _claim(house: House, key: str, fingerprint: bytes) -> None:
    """
    Keep what a key was used for, before anything is stored under it.

    Raises:
        Invalid: it was used for something else.
    """
    name = "idempotency/" + hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    known = (await house.storage.get([name])).get(name)
    if known is None:
        try:
            await house.storage.commit(puts={name: fingerprint}, expect={name: 0})
        except Conflict:  # our own commit, whose answer was lost, or the same key at the same time
            known = (await house.storage.get([name])).get(name)
    if known is not None and known.body != fingerprint:
        told = "was used for another request already; nothing was stored"
        raise Invalid([Problem("Idempotency-Key", told, "the same request, or another key")])


def _key(raw: str) -> str:
    if not raw:
        return ""
    if len(raw) > _MAX_KEY or not raw.isprintable() or not raw.isascii():
        told = f"has {len(raw)} characters" if len(raw) > _MAX_KEY else "has characters that are not printable ASCII"
        raise Invalid([Problem("Idempotency-Key", told, f"1 to {_MAX_KEY} printable ASCII characters")])
    if len(raw) + len(f":{MAX_EVENTS}") > MAX_ID:
        return hashlib.blake2b(raw.encode(), digest_size=32).hexdigest()
    return raw


def _attributed(house: House, event: Event, path: str) -> Event | list[Problem]:
    if not event.selection_id:
        return event
    try:
        ticket = unseal(house.secret, event.selection_id)
    except Invalid as error:
        return [Problem(join(path, problem.field), problem.reason, problem.expected) for problem in error.problems]
    wrong = [
        Problem(join(path, name), f'is "{given}"', f'"{drawn}", as in the selection')
        for name, given, drawn in (("task", event.task, ticket.task), ("variant", event.variant, ticket.variant))
        if given and given != drawn
    ]
    if wrong:
        return wrong
    offer = house.book.offers.get(ticket.task)
    variant = offer.variants.get(ticket.variant) if offer else None
    return msgspec.structs.replace(
        event,
        task=ticket.task,
        variant=ticket.variant,
        provider=event.provider or (variant.provider if variant and not event.model else ""),
        model=event.model or (variant.model if variant else ""),
    )
