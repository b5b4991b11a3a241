"""
From OpenTelemetry GenAI spans to feedback events. Pure; the mapping is data.

Names: OpenTelemetry GenAI semantic conventions 1.41 to 1.44, the announced next names, and the deprecated ones before them. The
first name present wins; two aliases are never summed. Other dialects are other tables.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from optimizer.model import MAX_NAME, Event
from workers.collector.otlp import STATUS_ERROR, Span

CALLS: Final = frozenset({"chat", "text_completion", "generate_content", "embeddings"})
_FUTURE_S: Final = 3600.0  # a sender's clock may be wrong by this much
_OLDEST: Final = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
_MAX_ATTRIBUTES: Final = 64
_MAX_TEXT: Final = 1000
_MAX_DURATION_MS: Final = 7 * 86_400_000.0

# attribute -> (field of the event, rank: the lowest present wins)
_FIELDS: Final[dict[str, tuple[str, int]]] = {
    "llm_optimizer.task": ("task", 0),
    "gen_ai.agent.name": ("task", 1),
    "llm_optimizer.selection_id": ("selection_id", 0),
    "llm_optimizer.variant": ("variant", 0),
    "gen_ai.provider.name": ("provider", 0),
    "gen_ai.system": ("provider", 1),
    "gen_ai.response.model": ("model", 0),
    "gen_ai.request.model": ("model", 1),
    "gen_ai.usage.input_tokens": ("input_tokens", 0),
    "gen_ai.usage.prompt_tokens": ("input_tokens", 1),
    "gen_ai.usage.output_tokens": ("output_tokens", 0),
    "gen_ai.usage.completion_tokens": ("output_tokens", 1),
    "gen_ai.usage.cache_read.input_tokens": ("cache_read_tokens", 0),
    "gen_ai.usage.cache_read_input_tokens": ("cache_read_tokens", 1),
    "gen_ai.usage.cache_creation.input_tokens": ("cache_write_tokens", 0),
    "gen_ai.usage.cache_write.input_tokens": ("cache_write_tokens", 1),
    "gen_ai.usage.cache_creation_input_tokens": ("cache_write_tokens", 2),
    "gen_ai.usage.reasoning.output_tokens": ("reasoning_tokens", 0),
    "gen_ai.usage.reasoning_tokens": ("reasoning_tokens", 1),
    "llm_optimizer.cost_usd": ("cost_usd", 0),
    "gen_ai.cost.total_cost": ("cost_usd", 1),
    "gen_ai.usage.cost": ("cost_usd", 2),
    "gen_ai.response.time_to_first_chunk": ("time_to_first_token_ms", 0),  # seconds
    "error.type": ("error", 0),
    "gen_ai.response.finish_reasons": ("finish_reason", 0),
    "llm_optimizer.quality": ("quality", 0),
    "gen_ai.conversation.id": ("session", 0),
    "session.id": ("session", 1),
    "user.id": ("user", 0),
    "enduser.id": ("user", 1),
}
_PROVIDERS: Final = {  # values that were renamed
    "az.ai.openai": "azure.ai.openai",
    "az.ai.inference": "azure.ai.inference",
    "gemini": "gcp.gemini",
    "vertex_ai": "gcp.vertex_ai",
    "xai": "x_ai",
}
_CONTENT: Final = (
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.tool.",
    "gen_ai.prompt",
    "gen_ai.completion",
    "input.value",
    "output.value",
    "llm.input_messages",
    "llm.output_messages",
    "llm.prompts",
    "llm.completions",
    "traceloop.entity.input",
    "traceloop.entity.output",
    "exception.",
)
_SAFE: Final = ("gen_ai.prompt.name", "gen_ai.prompt.version")
_CONTEXT: Final = "llm_optimizer.context."
_REQUEST: Final = "gen_ai.request."


class Refused(Exception):
    """
    The span is an LLM call, but cannot be an event; the message says why.
    """


def is_call(span: Span) -> bool:
    """
    Whether the span is one call of a model: by its operation, or by the deprecated `gen_ai.system` where that is absent.
    """
    operation = span.attributes.get("gen_ai.operation.name")
    if operation is not None:
        return operation in CALLS
    return "gen_ai.system" in span.attributes or "llm_optimizer.selection_id" in span.attributes


def event(span: Span, now: float, secret: bytes, keep_content: bool = False) -> Event:
    """
    The event of one call.

    Args:
        now: seconds since 1970; `secret`: keys the hashes of session and user.

    Raises:
        Refused: with the reason.
    """
    ended = span.end / 1e9
    if not _OLDEST <= ended <= now + _FUTURE_S:
        raise Refused(f"endTimeUnixNano {span.end} lies before 2000 or in the future")
    if not any(c != "0" for c in span.trace_id) or not any(c != "0" for c in span.span_id):
        raise Refused("a trace id or span id is empty or zero")
    ranked: dict[str, tuple[int, Any]] = {}
    parameters: dict[str, Any] = {}
    context: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for key, value in span.attributes.items():
        known = _FIELDS.get(key)
        if known is not None:
            if value not in (None, "") and (known[0] not in ranked or known[1] < ranked[known[0]][0]):
                ranked[known[0]] = (known[1], value)
        elif key.startswith(_REQUEST):
            parameters[key[len(_REQUEST) :]] = _bounded(value)
        elif key.startswith(_CONTEXT):
            if isinstance(value, str | bool) or (isinstance(value, int | float) and math.isfinite(value)):
                context[key[len(_CONTEXT) :]] = value[:_MAX_TEXT] if isinstance(value, str) else value
        elif keep_content or key in _SAFE or not key.startswith(_CONTENT):
            rest[key] = _bounded(value)
    found = {name: _READERS[name](name, value) for name, (_, value) in ranked.items()}
    for name in ("session", "user"):
        if name in found:
            found[name] = hashlib.blake2b(found[name].encode(), digest_size=16, key=secret).hexdigest()
    found.setdefault("task", span.name[:MAX_NAME])
    if not found["task"]:
        raise Refused("there is no task: neither llm_optimizer.task nor gen_ai.agent.name nor a span name")
    if not (found.get("model") or found.get("variant") or found.get("selection_id")):
        raise Refused("it names neither a model nor a variant")
    if span.status == STATUS_ERROR:
        found.setdefault("error", "error")
    latency = (span.end - span.start) / 1e6
    if 0 < span.start <= span.end and latency <= _MAX_DURATION_MS:
        found["latency_ms"] = latency
    return Event(
        id=f"{span.trace_id}{span.span_id}",
        time=datetime.fromtimestamp(ended, UTC),
        source="otlp",
        service=_text("service", span.resource.get("service.name", "")),
        parameters=dict(list(parameters.items())[:_MAX_ATTRIBUTES]),
        context=dict(list(context.items())[:_MAX_ATTRIBUTES]),
        attributes=dict(list(rest.items())[:_MAX_ATTRIBUTES]),
        **found,
    )


def _text(name: str, value: Any) -> str:
    return str(value)[:MAX_NAME]


def _ticket(name: str, value: Any) -> str:
    return str(value)


def _provider(name: str, value: Any) -> str:
    text = str(value)[:MAX_NAME].lower()
    return _PROVIDERS.get(text, text)


def _tokens(name: str, value: Any) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"{name} is {str(value)[:40]!r}, not a whole number") from None
    if not 0 <= count <= 2**40:
        raise Refused(f"{name} is {count}, not a count of at least 0")
    return count


def _number(high: float, unit: float = 1.0) -> Callable[[str, Any], float]:
    def read(name: str, value: Any) -> float:
        try:
            number = float(value) * unit
        except (TypeError, ValueError, OverflowError):
            raise Refused(f"{name} is {str(value)[:40]!r}, not a number") from None
        if not 0 <= number <= high:
            raise Refused(f"{name} is {number}, not in 0..{high:g}")
        return number

    return read


def _error(name: str, value: Any) -> str:
    return str(value).rpartition(".")[2][:MAX_NAME]


def _finish(name: str, value: Any) -> str:
    if isinstance(value, str) and value.startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return str(value)[:MAX_NAME]
    if isinstance(value, list):
        value = value[0] if value else ""
    return str(value)[:MAX_NAME]


_READERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    **dict.fromkeys(("task", "variant", "model", "session", "user"), _text),
    **dict.fromkeys(
        ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens"), _tokens
    ),
    "selection_id": _ticket,
    "provider": _provider,
    "cost_usd": _number(1e6),
    "time_to_first_token_ms": _number(_MAX_DURATION_MS, 1000.0),
    "quality": _number(1.0),
    "error": _error,
    "finish_reason": _finish,
}


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | dict):
        text = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        return value if len(text) <= _MAX_TEXT else text[:_MAX_TEXT]
    return value
