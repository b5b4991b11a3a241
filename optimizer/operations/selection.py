"""
Which variant is to serve a request? Answered from memory, in microseconds, whoever else is away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from optimizer.decision.ticket import Ticket, blank, fill, seal
from optimizer.errors import Conflict, Invalid, Problem
from optimizer.model import MAX_NAME, Prompt, Scalar
from optimizer.operations import validation
from optimizer.operations.book import Offer
from optimizer.operations.checks import Reader, join, shown
from optimizer.operations.house import House
from optimizer.operations.tasks import missing

_PLAIN_FIELDS: Final = {"context", "session"}
_encode = msgspec.json.Encoder().encode
MAX_BATCH: Final = 1000  # selections in one request; some 10 ms of work


class SelectRequest(msgspec.Struct, frozen=True, kw_only=True):
    """
    `context`: features of the request (numbers, strings, bools). `session` names the conversation; this version draws
    anew for each request of it. `explain` asks for the reason as well.
    """

    task: str
    context: dict[str, Scalar] = {}
    session: str = ""
    explain: bool = False


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """
    Why: the policy, with which share it gives each variant now, and one sentence.
    """

    policy: str
    shares: dict[str, float]
    summary: str


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """
    The variant to use. Send `selection_id` back with feedback, or as the span attribute `llm_optimizer.selection_id`.

    `propensity`: the chance with which this variant was drawn, in (0, 1]; `policy_version` 0: nothing was learned yet;
    `rollout`: the rollout that decided it, or null.
    """

    selection_id: str
    task: str
    variant: str
    provider: str
    model: str
    parameters: dict[str, Any]
    prompt: Prompt | None
    propensity: float
    policy_version: int
    rollout: str | None = None
    explanation: Explanation | msgspec.UnsetType = msgspec.UNSET


class BatchSelectRequest(msgspec.Struct, frozen=True, kw_only=True):
    """
    1 to 1000 requests; it fails as a whole if one of them is wrong.
    """

    requests: list[SelectRequest]


class BatchSelection(msgspec.Struct, frozen=True, kw_only=True):
    """
    In the order of the requests.
    """

    selections: list[Selection]


def parse_select(task: str, raw: object) -> SelectRequest:
    """
    A request from a document `{context, session, explain}`.

    Raises:
        Invalid: with every problem.
    """
    if raw is None:
        return SelectRequest(task=task)
    if not isinstance(raw, Mapping):
        raise Invalid([Problem("", f"is {shown(raw)}", "an object with `context` and `session`")])
    if _is_plain(raw):
        return SelectRequest(task=task, context=raw.get("context") or {}, session=raw.get("session", ""))
    reader = Reader(raw, "", [])
    reader.rest.pop("task", None)
    found = SelectRequest(
        task=task,
        context=reader.scalars("context"),
        session=reader.text("session", printable=False),
        explain=reader.flag("explain") or False,
    )
    reader.unknown(("context", "session", "explain"))
    validation.checked(reader.problems or found)
    return found


def select(house: House, request: SelectRequest) -> Selection:
    """
    Draw a variant for one request. Does not wait for anybody.

    Raises:
        NotFound: there is no such task. Conflict: it has no variants to choose from.
    """
    offer = house.book.offers.get(request.task)
    if offer is None:
        raise _no_offer(house, request.task)
    snapshot = offer.policy.snapshot
    choice = offer.policy.choose(request.context, house.rng)
    ticket = Ticket(
        task=request.task,
        variant=choice.variant,
        propensity=choice.propensity,
        policy_version=snapshot.policy_version,
        at=int(house.clock.at().timestamp()),
        features=choice.features,
    )
    chosen = _selection(offer, seal(house.secret, ticket, house.rng.randbytes(6)), choice.variant, choice.propensity)
    if request.explain:
        return msgspec.structs.replace(chosen, explanation=_explain(offer, choice.variant, choice.propensity))
    return chosen


def _selection(offer: Offer, selection_id: str, name: str, propensity: float) -> Selection:
    variant = offer.variants[name]
    return Selection(
        selection_id=selection_id,
        task=offer.task.task,
        variant=name,
        provider=variant.provider,
        model=variant.model,
        parameters=variant.parameters,
        prompt=variant.prompt,
        propensity=propensity,
        policy_version=offer.policy.snapshot.policy_version,
    )


def select_document(house: House, task: str, raw: object) -> tuple[str, bytes]:
    """
    `select` for the document of a request: the variant, and the Selection as JSON. Much of an answer stays the same
    while a policy is served, so it is encoded once; that makes the usual request twice as cheap.

    Raises:
        As `parse_select` and `select`.
    """
    offer = house.book.offers.get(task)
    if offer is None or not (raw is None or (isinstance(raw, dict) and _is_plain(raw))):
        chosen = select(house, parse_select(task, raw))
        return chosen.variant, _encode(chosen)
    context: dict[str, Scalar] = (raw and raw.get("context")) or {}
    choice = offer.policy.choose(context, house.rng)
    key = (choice.variant, choice.propensity)
    stencil = offer.stencils.get(key)
    if stencil is None:
        stencil = _stencil(offer, choice.variant, choice.propensity)
        if offer.policy.snapshot.linear is None:  # else each context has a propensity of its own
            offer.stencils[key] = stencil
    same, rest = stencil
    at = int(house.clock.at().timestamp())
    return choice.variant, b'{"selection_id":"' + fill(
        house.secret, same, house.rng.randbytes(6), at, choice.features
    ) + rest


def _stencil(offer: Offer, variant: str, propensity: float) -> tuple[bytes, bytes]:
    ticket = Ticket(offer.task.task, variant, propensity, offer.policy.snapshot.policy_version, 0)
    text = _encode(_selection(offer, "", variant, propensity))
    return blank(ticket), text.removeprefix(b'{"selection_id":"')


async def run_select(house: House, request: SelectRequest) -> Selection:
    """
    Which variant is to serve this request?
    """
    checked = parse_select(request.task, {f: getattr(request, f) for f in ("context", "session", "explain")})
    return select(house, checked)


async def run_batch_select(house: House, request: BatchSelectRequest) -> BatchSelection:
    """
    Which variants are to serve these requests?

    Raises:
        Invalid: with every problem, under `requests[i]`.
    """
    if not 1 <= len(request.requests) <= MAX_BATCH:
        raise Invalid([Problem("requests", f"has {len(request.requests)} entries", f"1 to {MAX_BATCH}")])
    selections: list[Selection] = []
    problems: list[Problem] = []
    first: Invalid | None = None
    for i, one in enumerate(request.requests):
        try:
            selections.append(await run_select(house, one))
        except Invalid as error:
            first = first or error
            problems += [_under(f"requests[{i}]", problem) for problem in error.problems]
    if first is not None:
        raise type(first)(validation.cut(problems))
    return BatchSelection(selections=selections)


def _under(path: str, problem: Problem) -> Problem:
    return Problem(join(path, problem.field) if problem.field else path, problem.reason, problem.expected)


def _is_plain(raw: Mapping[str, Any]) -> bool:
    # the common case, cheaply: few features, all small; anything else takes the way that can tell what is wrong
    if not raw.keys() <= _PLAIN_FIELDS or not _plain(raw.get("context")):
        return False
    session = raw.get("session", "")
    return isinstance(session, str) and len(session) <= MAX_NAME and session.isascii()


def _plain(context: object) -> bool:
    if context is None:
        return True
    if not isinstance(context, dict) or len(context) > 64:
        return False
    for key, value in context.items():
        if not key.isascii() or not 0 < len(key) <= MAX_NAME:
            return False
        if isinstance(value, str):
            if len(value) > 1000 or not value.isascii():
                return False
        elif not isinstance(value, bool) and not (isinstance(value, float) and math.isfinite(value)):
            return False
    return True


def _no_offer(house: House, name: str) -> Invalid:
    if name not in house.book.tasks:
        return missing(house, name)
    reason = f'task "{name}" was only observed in telemetry: it has no variants to choose from'
    return Conflict([Problem("variants", reason, f"declare them: PUT /api/v1/tasks/{name} with `variants`")])


def _explain(offer: Offer, variant: str, propensity: float) -> Explanation:
    snapshot = offer.policy.snapshot
    known = f"version {snapshot.policy_version}" if snapshot.policy_version else "nothing learned yet"
    summary = f'{snapshot.policy} ({known}) drew "{variant}", which had a chance of {propensity:.3g} here'
    return Explanation(policy=snapshot.policy, shares=snapshot.shares, summary=summary)
