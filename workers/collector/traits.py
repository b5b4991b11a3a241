"""
What one attribute of an OpenTelemetry GenAI span says. Pure; the mapping is data.

Names: OpenTelemetry GenAI semantic conventions 1.41 to 1.44, then the announced next names, then the deprecated ones before
them. The first name present wins; two aliases are never summed. Another dialect is another table.

The same attributes come with every span, so whoever reads them remembers their traits (otlp.py): a trait depends on nothing
but the attribute, is bounded in size, and holds no text of a prompt or a completion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

import orjson

from optimizer.model import MAX_NAME
from optimizer.operations.checks import MAX_COST_USD, MAX_DURATION_MS, MAX_TOKENS
from optimizer.operations.content import is_content

OPERATION: Final = "gen_ai.operation.name"
_MAX_TEXT: Final = 1000  # characters of one attribute's value
_MAX_TICKET: Final = 4096

Read = Callable[[str, Any], Any]
Place = Literal["field", "parameters", "context", "rest", "none"]


class Trait(NamedTuple):
    """
    Where the value of an attribute goes, and under which name.

    Args:
        weight: of a field its rank, the lowest present wins; of others the size in characters.
        value: or `Wrong`.
    """

    place: Place
    name: str
    weight: int
    value: Any


class Wrong(NamedTuple):
    """
    In the place of a value: why there is none.
    """

    reason: str


NOTHING: Final = Trait("none", "", 0, None)


def trait(key: str, value: Any) -> Trait:
    """
    What an attribute says, without content.
    """
    return _trait(key, value, False)


def trait_with_content(key: str, value: Any) -> Trait:
    """
    What an attribute says; texts of prompts and completions are kept, cut to the bound of one value.
    """
    return _trait(key, value, True)


def _trait(key: str, value: Any, keep_content: bool) -> Trait:
    if value is None or value == "" or len(key) > MAX_NAME:
        return NOTHING
    known = _KNOWN.get(key)
    if known is not None:
        field, rank, read = known
        try:
            return Trait("field", field, rank, read(key, value))
        except ValueError as error:
            return Trait("field", field, rank, Wrong(str(error)))
    if key == OPERATION:
        return Trait("none", key, 0, value if isinstance(value, str) and len(value) <= MAX_NAME else "")
    if not keep_content and is_content(key, value):
        return NOTHING
    if key.startswith(_CONTEXT):
        return _other(
            "context", key.removeprefix(_CONTEXT), None if isinstance(value, list | dict) else _kept(value, True)
        )
    place: Place = "parameters" if key.startswith(_REQUEST) else "rest"
    return _other(place, key.removeprefix(_REQUEST), _kept(value, keep_content))


def _other(place: Place, name: str, kept: Any) -> Trait:
    if kept is None or not name:
        return NOTHING
    return Trait(place, name, len(name) + (len(kept) if isinstance(kept, str) else 8), kept)


# --- values: each reader gets the attribute's name and value; ValueError says why there is none ----------


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        value = str(value)[: MAX_NAME + 1]
    if len(value) > MAX_NAME:
        raise ValueError(f"{name} has {len(value)} characters, more than {MAX_NAME}")
    if not value.isprintable():
        raise ValueError(f"{name} has control characters")
    return str(value)


def _ticket(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TICKET:
        raise ValueError(f"{name} is no selection id")
    return value


def _person(name: str, value: Any) -> str:
    return str(value)  # of any length: it is hashed


def _provider(name: str, value: Any) -> str:
    text = _text(name, value).lower()
    return _PROVIDERS.get(text, text)


def _tokens(name: str, value: Any) -> int:
    if type(value) is int and 0 <= value <= MAX_TOKENS:
        return value
    count = _number(name, value, 0, MAX_TOKENS)
    if not count.is_integer():
        raise ValueError(f"{name} is {count:g}, not a whole number")
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
        raise ValueError(f"{name} is {str(value)[:40]!r}, not a number") from None
    if not low <= number <= high:
        raise ValueError(f"{name} is {number:g}, not in {low:g}..{high:g}")
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


class Row(NamedTuple):
    """
    Which attributes become a field, the best first, and how.
    """

    read: Read
    names: tuple[str, ...]


FIELDS: Final[Mapping[str, Row]] = {
    "task": Row(_text, ("llm_optimizer.task", "gen_ai.agent.name")),
    "selection_id": Row(_ticket, ("llm_optimizer.selection_id",)),
    "variant": Row(_text, ("llm_optimizer.variant",)),
    "provider": Row(_provider, ("gen_ai.provider.name", "gen_ai.system")),
    "model": Row(_text, ("gen_ai.response.model", "gen_ai.request.model")),
    "input_tokens": Row(_tokens, ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")),
    "output_tokens": Row(_tokens, ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")),
    "cache_read_tokens": Row(_tokens, ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens")),
    "cache_write_tokens": Row(
        _tokens,
        (
            "gen_ai.usage.cache_creation.input_tokens",
            "gen_ai.usage.cache_write.input_tokens",
            "gen_ai.usage.cache_creation_input_tokens",
        ),
    ),
    "reasoning_tokens": Row(_tokens, ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens")),
    "cost_usd": Row(_cost, ("llm_optimizer.cost_usd", "gen_ai.cost.total_cost", "gen_ai.usage.cost")),
    "time_to_first_token_ms": Row(_seconds, ("gen_ai.response.time_to_first_chunk",)),
    "error": Row(_error, ("error.type",)),
    "finish_reason": Row(_finish, ("gen_ai.response.finish_reasons",)),
    "quality": Row(_ratio, ("llm_optimizer.quality",)),
    "session": Row(_person, ("gen_ai.conversation.id", "session.id")),
    "user": Row(_person, ("user.id", "enduser.id", "gen_ai.user")),
}
_KNOWN: Final[Mapping[str, tuple[str, int, Read]]] = {
    name: (field, rank, row.read) for field, row in FIELDS.items() for rank, name in enumerate(row.names)
}
_PROVIDERS: Final = {  # values that were renamed
    "az.ai.openai": "azure.ai.openai",
    "az.ai.inference": "azure.ai.inference",
    "gemini": "gcp.gemini",
    "vertex_ai": "gcp.vertex_ai",
    "xai": "x_ai",
}


# --- the rest ----------------------------------------------------------------------------------------------

_CONTEXT: Final = "llm_optimizer.context."
_REQUEST: Final = "gen_ai.request."


def _kept(value: Any, keep_content: bool) -> Any:
    """
    The value within bounds; None if it is not kept.
    """
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if isinstance(value, int | float):
        return value if math.isfinite(value) else None
    kept = value if keep_content else _without_content(value)
    text = orjson.dumps(kept)
    if len(text) <= _MAX_TEXT and b"null" not in text:
        return kept
    return text[:_MAX_TEXT].decode(errors="ignore")  # in the shape of JSON: bounded, and without NaN


def _without_content(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_content(one) for one in value]
    if isinstance(value, dict):
        return {key: _without_content(one) for key, one in value.items() if not is_content(key, one)}
    return value
