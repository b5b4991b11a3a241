"""
From OpenTelemetry GenAI spans to feedback events. Pure; the mapping is data.

Names: OpenTelemetry GenAI semantic conventions 1.41 to 1.44, then the announced next names, then the deprecated ones before
them. The first name present wins; two aliases are never summed. Another dialect is another table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import orjson

from optimizer.model import MAX_NAME, Event
from optimizer.operations.checks import MAX_COST_USD, MAX_DURATION_MS, MAX_TOKENS
from optimizer.operations.validation import is_content, pseudonym
from workers.collector.otlp import STATUS_ERROR, Span

CALLS: Final = frozenset({"chat", "text_completion", "generate_content", "embeddings"})
INCONSISTENT: Final = "llm_optimizer.tokens_inconsistent"  # attribute of events with more cached tokens than input

_FUTURE_S: Final = 300.0  # clocks of senders differ; the same as for events that come over REST
_OLDEST_S: Final = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
_MAX_ATTRIBUTES: Final = 64
_MAX_TEXT: Final = 1000  # characters of one attribute's value
_MAX_CHARS: Final = 16_384  # of all attributes of an event
_MAX_TICKET: Final = 4096

Read = Callable[[str, Any], Any]


class Refused(Exception):
    """
    The span is a call of a model, but cannot be an event; the message says why.
    """


def is_call(span: Span) -> bool:
    """
    Whether the span is one call of a model: by its operation, or where that is absent by the deprecated `gen_ai.system` or a
    selection id.
    """
    operation = span.attributes.get("gen_ai.operation.name")
    if operation is not None:
        return isinstance(operation, str) and operation in CALLS
    return "gen_ai.system" in span.attributes or "llm_optimizer.selection_id" in span.attributes


def event(span: Span, now: float, secret: bytes, keep_content: bool = False) -> Event:
    """
    The event of one call.

    Args:
        now: seconds since 1970.
        secret: keys the pseudonyms of session and user.
        keep_content: keep texts of prompts and completions among the attributes.

    Raises:
        Refused: with the reason.
    """
    found = {field: value for field, row in _FIELDS.items() if (value := _first(span.attributes, row)) is not None}
    for name in ("session", "user"):
        if name in found:
            found[name] = pseudonym(secret, found[name])
    if "task" not in found:
        found["task"] = _title(span.name)
    if span.status == STATUS_ERROR and not found.get("error"):
        found["error"] = "error"
    if not (found.get("model") or found.get("variant") or found.get("selection_id")):
        raise Refused("it names neither a model nor a variant nor a selection")
    parameters, context, rest = _others(span.attributes, keep_content)
    requested = span.attributes.get("gen_ai.request.model")
    if isinstance(requested, str) and requested != found.get("model"):
        parameters["model"] = requested[:MAX_NAME]
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


def _identity(span: Span) -> str:
    if (
        len(span.trace_id) != 32
        or len(span.span_id) != 16
        or not span.trace_id.strip("0")
        or not span.span_id.strip("0")
    ):
        raise Refused(f"traceId {span.trace_id[:40]!r} or spanId {span.span_id[:40]!r} is not valid")
    return span.trace_id + span.span_id


def _ended(span: Span, now: float) -> datetime:
    ended = span.end / 1e9
    if ended < _OLDEST_S:
        raise Refused(f"endTimeUnixNano {span.end} lies before the year 2000")
    if ended > now + _FUTURE_S:
        raise Refused(f"endTimeUnixNano {span.end} lies in the future")
    return datetime.fromtimestamp(ended, UTC)


def _latency_ms(span: Span) -> float | None:
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


# --- values: each reader gets the attribute's name and value ----------------------------------------------


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        value = str(value)
    if len(value) > MAX_NAME:
        raise Refused(f"{name} has {len(value)} characters, more than {MAX_NAME}")
    if not value.isprintable():
        raise Refused(f"{name} has control characters")
    return str(value)


def _ticket(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TICKET:
        raise Refused(f"{name} is no selection id")
    return value


def _person(name: str, value: Any) -> str:
    return str(value)


def _provider(name: str, value: Any) -> str:
    text = _text(name, value).lower()
    return _PROVIDERS.get(text, text)


def _tokens(name: str, value: Any) -> int:
    count = _number(name, value, 0, MAX_TOKENS)
    if not count.is_integer():
        raise Refused(f"{name} is {count:g}, not a whole number")
    return int(count)


def _cost(name: str, value: Any) -> float:
    return _number(name, value, 0, MAX_COST_USD)


def _seconds(name: str, value: Any) -> float:
    return _number(name, value, 0, MAX_DURATION_MS / 1000) * 1000


def _ratio(name: str, value: Any) -> float:
    return _number(name, value, 0, 1)


def _number(name: str, value: Any, low: float, high: float) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)  # some senders write numbers as texts
    except (ValueError, OverflowError):
        raise Refused(f"{name} is {str(value)[:40]!r}, not a number") from None
    if not low <= number <= high:
        raise Refused(f"{name} is {number:g}, not in {low:g}..{high:g}")
    return number


def _error(name: str, value: Any) -> str:
    return str(value).rstrip(".").rpartition(".")[2][:MAX_NAME]


def _finish(name: str, value: Any) -> str:
    if isinstance(value, str) and value.startswith("["):  # LiteLLM sends the list as JSON
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return str(value)[:MAX_NAME]
    if isinstance(value, list):
        value = value[0] if value else ""
    return str(value)[:MAX_NAME]


class _Row(NamedTuple):
    read: Read
    names: tuple[str, ...]


_FIELDS: Final[Mapping[str, _Row]] = {
    "task": _Row(_text, ("llm_optimizer.task", "gen_ai.agent.name")),
    "selection_id": _Row(_ticket, ("llm_optimizer.selection_id",)),
    "variant": _Row(_text, ("llm_optimizer.variant",)),
    "provider": _Row(_provider, ("gen_ai.provider.name", "gen_ai.system")),
    "model": _Row(_text, ("gen_ai.response.model", "gen_ai.request.model")),
    "input_tokens": _Row(_tokens, ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")),
    "output_tokens": _Row(_tokens, ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")),
    "cache_read_tokens": _Row(
        _tokens, ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens")
    ),
    "cache_write_tokens": _Row(
        _tokens,
        (
            "gen_ai.usage.cache_creation.input_tokens",
            "gen_ai.usage.cache_write.input_tokens",
            "gen_ai.usage.cache_creation_input_tokens",
        ),
    ),
    "reasoning_tokens": _Row(_tokens, ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens")),
    "cost_usd": _Row(_cost, ("llm_optimizer.cost_usd", "gen_ai.cost.total_cost", "gen_ai.usage.cost")),
    "time_to_first_token_ms": _Row(_seconds, ("gen_ai.response.time_to_first_chunk",)),
    "error": _Row(_error, ("error.type",)),
    "finish_reason": _Row(_finish, ("gen_ai.response.finish_reasons",)),
    "quality": _Row(_ratio, ("llm_optimizer.quality",)),
    "session": _Row(_person, ("gen_ai.conversation.id", "session.id")),
    "user": _Row(_person, ("user.id", "enduser.id", "gen_ai.user")),
}
_KNOWN: Final = frozenset(name for row in _FIELDS.values() for name in row.names) | {"gen_ai.operation.name"}
_PROVIDERS: Final = {  # values that were renamed
    "az.ai.openai": "azure.ai.openai",
    "az.ai.inference": "azure.ai.inference",
    "gemini": "gcp.gemini",
    "vertex_ai": "gcp.vertex_ai",
    "xai": "x_ai",
}


def _first(attributes: Mapping[str, Any], row: _Row) -> Any:
    for name in row.names:
        value = attributes.get(name)
        if value is not None and value != "":
            return row.read(name, value)
    return None


# --- the rest ----------------------------------------------------------------------------------------------

Place = Literal["known", "parameters", "context", "rest", "content"]

# An attribute with one of these between its dots carries text of a prompt or a completion, or stands so near to one that
# nobody can tell; numbers and booleans of such a name are kept.
_CONTENT_WORDS: Final = frozenset(
    {
        "answer",
        "arguments",
        "body",
        "chunk",
        "completion",
        "completions",
        "content",
        "description",
        "documents",
        "explanation",
        "hidden_params",
        "input",
        "input_messages",
        "instructions",
        "message",
        "messages",
        "output",
        "output_messages",
        "prompt",
        "prompts",
        "query",
        "question",
        "raw_request",
        "response_text",
        "request_text",
        "result",
        "results",
        "stacktrace",
        "system_instructions",
        "text",
        "tools",
    }
)
_NO_CONTENT: Final = frozenset({"gen_ai.output.type", "gen_ai.prompt.name", "gen_ai.prompt.version"})
_CONTEXT: Final = "llm_optimizer.context."
_REQUEST: Final = "gen_ai.request."


@lru_cache(maxsize=4096)
def _place(key: str) -> tuple[Place, str]:
    """
    Where an attribute goes, and under which name.
    """
    if key in _KNOWN:
        return "known", key
    if key.startswith(_CONTEXT) and len(key) > len(_CONTEXT):
        return "context", key[len(_CONTEXT) :]
    if key not in _NO_CONTENT and (is_content(key) or not _CONTENT_WORDS.isdisjoint(key.lower().split("."))):
        return "content", key
    if key.startswith(_REQUEST) and len(key) > len(_REQUEST):
        return "parameters", key[len(_REQUEST) :]
    return "rest", key


def _others(attributes: Mapping[str, Any], keep_content: bool) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """
    What is in no field of its own: parameters of the request, context, the rest; bounded in number and size.
    """
    parameters: dict[str, Any] = {}
    context: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    room = _MAX_CHARS
    for key, value in attributes.items():
        if len(key) > MAX_NAME or value is None:
            continue
        place, name = _place(key)
        if place == "known" or (place == "content" and not keep_content and not isinstance(value, int | float)):
            continue
        kept = _scalar(value) if place == "context" else _bounded(value, keep_content)
        into = context if place == "context" else parameters if place == "parameters" else rest
        size = len(name) + (len(kept) if isinstance(kept, str) else 8)
        if kept is None or len(into) >= _MAX_ATTRIBUTES or size > room:
            continue
        room -= size
        into[name] = kept
    return parameters, context, rest


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    return value if isinstance(value, bool) or (isinstance(value, int | float) and math.isfinite(value)) else None


def _bounded(value: Any, keep_content: bool) -> Any:
    if isinstance(value, list | dict):
        kept = value if keep_content else _without_content(value)
        text = orjson.dumps(kept)
        if len(text) <= _MAX_TEXT and b"null" not in text:
            return kept
        return text[:_MAX_TEXT].decode(errors="ignore")  # in the shape of JSON: bounded, and without NaN
    return _scalar(value)


def _without_content(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_content(one) for one in value]
    if isinstance(value, dict):
        return {
            key: _without_content(one)
            for key, one in value.items()
            if isinstance(one, int | float) or _place(key[:MAX_NAME])[0] != "content"
        }
    return value
