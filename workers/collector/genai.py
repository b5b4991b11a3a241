"""
From spans of GenAI calls to feedback events. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from optimizer.model import MAX_NAME, Event
from optimizer.operations.checks import MAX_DURATION_MS
from optimizer.operations.validation import pseudonym
from workers.collector.otlp import STATUS_ERROR, Span
from workers.collector.traits import OPERATION, Trait, Wrong

CALLS: Final = frozenset({"chat", "text_completion", "generate_content", "embeddings"})
INCONSISTENT: Final = "llm_optimizer.tokens_inconsistent"  # attribute of events with more cached tokens than input

_FUTURE_S: Final = 300.0  # clocks of senders differ; the same as for events that come over REST
_OLDEST_S: Final = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
_MAX_ATTRIBUTES: Final = 64  # in each of parameters, context and the rest
_MAX_CHARS: Final = 16_384  # of all of them together


class Refused(Exception):
    """
    The span is a call of a model, but cannot be an event; the message says why.
    """


def is_call(span: Span[Trait]) -> bool:
    """
    Whether the span is one call of a model: by its operation, or where that is absent by the deprecated `gen_ai.system` or a
    selection id.
    """
    operation = span.attributes.get(OPERATION)
    if operation is not None:
        return operation.value in CALLS
    return "gen_ai.system" in span.attributes or "llm_optimizer.selection_id" in span.attributes


def event(span: Span[Trait], now: float, secret: bytes) -> Event:
    """
    The event of one call.

    Args:
        now: seconds since 1970.
        secret: keys the pseudonyms of session and user.

    Raises:
        Refused: with the reason.
    """
    found, parameters, context, rest = _sorted(span.attributes.values())
    for name in ("session", "user"):
        if name in found:
            found[name] = pseudonym(secret, found[name])
    if "task" not in found:
        found["task"] = _title(span.name)
    if span.status == STATUS_ERROR and not found.get("error"):
        found["error"] = "error"
    if not (found.get("model") or found.get("variant") or found.get("selection_id")):
        raise Refused("it names neither a model nor a variant nor a selection")
    requested = span.attributes.get("gen_ai.request.model")
    if requested is not None and requested.value != found.get("model") and isinstance(requested.value, str):
        parameters["model"] = requested.value
    if (found.get("cache_read_tokens") or 0) + (found.get("cache_write_tokens") or 0) > found.get("input_tokens", 0):
        rest[INCONSISTENT] = True
    return Event(
        id=_identity(span),
        time=_ended(span, now),
        source="otlp",
        service=_service(span.resource.get("service.name")),
        latency_ms=_latency_ms(span),
        parameters=parameters,
        context=context,
        attributes=rest,
        **found,
    )


def _identity(span: Span[Any]) -> str:
    if (
        len(span.trace_id) != 32
        or len(span.span_id) != 16
        or not span.trace_id.strip("0")
        or not span.span_id.strip("0")
    ):
        raise Refused(f"traceId {span.trace_id[:40]!r} or spanId {span.span_id[:40]!r} is not valid")
    return span.trace_id + span.span_id


def _ended(span: Span[Any], now: float) -> datetime:
    ended = span.end / 1e9
    if ended < _OLDEST_S:
        raise Refused(f"endTimeUnixNano {span.end} lies before the year 2000")
    if ended > now + _FUTURE_S:
        raise Refused(f"endTimeUnixNano {span.end} lies in the future")
    return datetime.fromtimestamp(ended, UTC)


def _latency_ms(span: Span[Any]) -> float | None:
    latency = (span.end - span.start) / 1e6
    return latency if span.start > 0 and 0 <= latency <= MAX_DURATION_MS else None


def _title(name: str) -> str:
    title = name[:MAX_NAME]
    if not title:
        raise Refused("there is no task: neither llm_optimizer.task nor gen_ai.agent.name nor a span name")
    return title if title.isprintable() else "".join(c if c.isprintable() else " " for c in title)


def _service(value: Any) -> str:
    text = value[:MAX_NAME] if isinstance(value, str) else ""
    return text if text.isprintable() else ""


def _sorted(
    traits: Iterable[Trait],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """
    Fields, parameters of the request, context, and the rest; all but the fields bounded in number and size.
    """
    found: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    parameters: dict[str, Any] = {}
    context: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    room = _MAX_CHARS
    for place, name, weight, value in traits:
        if place == "field":
            if name not in ranks or weight < ranks[name]:
                ranks[name] = weight
                found[name] = value
        elif place != "none" and weight <= room:
            into = parameters if place == "parameters" else rest if place == "rest" else context
            if len(into) < _MAX_ATTRIBUTES:
                room -= weight
                into[name] = value
    for value in found.values():
        if type(value) is Wrong:
            raise Refused(value.reason)
    return found, parameters, context, rest
