"""
Names of OpenTelemetry to fields of events, by what real senders were seen to write.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson
import pytest
from collector.conftest import SECRET, request
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from optimizer.errors import Invalid
from optimizer.model import Event
from workers.collector import genai
from workers.collector.otlp import MAX_DEPTH, Bad, Span, from_json, from_protobuf
from workers.collector.traits import FIELDS, Trait, trait, trait_with_content

END = 1_764_000_000_000_000_000
NOW = END / 1e9 + 1

# opentelemetry-instrumentation-genai-openai 1.3b0, with the text captured
CURRENT: dict[str, Any] = {
    "gen_ai.input.messages": '[{"role":"system","parts":[{"content":"SECRET","type":"text"}]}]',
    "gen_ai.operation.name": "chat",
    "gen_ai.output.messages": '[{"role":"assistant","parts":[{"content":"SECRET","type":"text"}]}]',
    "gen_ai.provider.name": "openai",
    "gen_ai.request.frequency_penalty": 0.1,
    "gen_ai.request.max_tokens": 64,
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.request.presence_penalty": 0.2,
    "gen_ai.request.seed": 7,
    "gen_ai.request.stream": True,
    "gen_ai.request.temperature": 0.3,
    "gen_ai.request.top_p": 0.9,
    "gen_ai.response.finish_reasons": ["stop"],
    "gen_ai.response.id": "chatcmpl-123",
    "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
    "gen_ai.response.time_to_first_chunk": 0.25,
    "gen_ai.usage.cache_read.input_tokens": 8,
    "gen_ai.usage.input_tokens": 20,
    "gen_ai.usage.output_tokens": 12,
    "gen_ai.usage.reasoning.output_tokens": 4,
    "openai.response.service_tier": "default",
    "openai.response.system_fingerprint": "fp_1",
    "server.address": "127.0.0.1",
    "server.port": 14318,
}
# names of OpenLLMetry's and LiteLLM's older releases
DEPRECATED: dict[str, Any] = {
    "gen_ai.system": "OpenAI",
    "gen_ai.prompt.0.content": "SECRET",
    "gen_ai.prompt.0.role": "user",
    "gen_ai.completion.0.content": "SECRET",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.request.temperature": 0.3,
    "gen_ai.response.finish_reasons": '["length"]',
    "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
    "gen_ai.usage.prompt_tokens": "20",
    "gen_ai.usage.completion_tokens": 12.0,
    "gen_ai.usage.cache_read_input_tokens": 8,
    "gen_ai.usage.cache_creation_input_tokens": 2,
    "gen_ai.usage.reasoning_tokens": 4,
    "gen_ai.cost.total_cost": 0.001,
    "gen_ai.user": "user-42",
}


def span(attributes: dict[str, Any], read: Any = trait, **more: Any) -> Span[Trait]:
    """
    A span of a quarter of a second.
    """
    given: dict[str, Any] = {
        "resource": {"service.name": "shop"},
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
        "name": "chat gpt-4o-mini",
        "start": END - 250_000_000,
        "end": END,
        "status": 0,
    }
    return Span(attributes={key: read(key, value) for key, value in attributes.items()}, **{**given, **more})


def mapped(attributes: dict[str, Any], keep_content: bool = False, **more: Any) -> Event:
    """
    The event of a span.
    """
    read = trait_with_content if keep_content else trait
    return genai.event(span(attributes, read, **more), NOW, SECRET)


def test_current_names() -> None:
    assert mapped(CURRENT) == Event(
        id="ab" * 16 + "cd" * 8,
        time=datetime.fromtimestamp(END / 1e9, UTC),
        source="otlp",
        service="shop",
        task="chat gpt-4o-mini",
        provider="openai",
        model="gpt-4o-mini-2024-07-18",
        input_tokens=20,
        output_tokens=12,
        cache_read_tokens=8,
        reasoning_tokens=4,
        latency_ms=250.0,
        time_to_first_token_ms=250.0,
        finish_reason="stop",
        parameters={
            "frequency_penalty": 0.1,
            "max_tokens": 64,
            "presence_penalty": 0.2,
            "seed": 7,
            "stream": True,
            "temperature": 0.3,
            "top_p": 0.9,
            "model": "gpt-4o-mini",
        },
        attributes={
            "gen_ai.response.id": "chatcmpl-123",
            "openai.response.service_tier": "default",
            "openai.response.system_fingerprint": "fp_1",
            "server.address": "127.0.0.1",
            "server.port": 14318,
        },
    )


def test_deprecated_names() -> None:
    event = mapped(DEPRECATED)
    assert (event.provider, event.model) == ("openai", "gpt-4o-mini-2024-07-18")
    assert (event.input_tokens, event.output_tokens, event.cache_read_tokens) == (20, 12, 8)
    assert (event.cache_write_tokens, event.reasoning_tokens, event.cost_usd) == (2, 4, 0.001)
    assert (event.finish_reason, event.cost_estimated) == ("length", False)
    assert len(event.user) == 32
    assert event.attributes == {}


@pytest.mark.parametrize(
    ("field", "first", "second"),
    [(field, row.names[i], row.names[i + 1]) for field, row in FIELDS.items() for i in range(len(row.names) - 1)],
)
def test_the_newer_name_wins_and_aliases_are_not_summed(field: str, first: str, second: str) -> None:
    base = {"gen_ai.operation.name": "chat", "llm_optimizer.variant": "v"}
    old, new = mapped({**base, second: "1"}), mapped({**base, first: "0"})
    both, turned = mapped({**base, second: "1", first: "0"}), mapped({**base, first: "0", second: "1"})
    assert getattr(old, field) != getattr(new, field)
    assert getattr(both, field) == getattr(turned, field) == getattr(new, field)
    assert getattr(mapped({**base, first: "", second: "1"}), field) == getattr(old, field)


def test_our_own_names() -> None:
    event = mapped(
        {
            **CURRENT,
            "llm_optimizer.task": "support",
            "gen_ai.agent.name": "agent",
            "llm_optimizer.variant": "fast",
            "llm_optimizer.quality": 0.75,
            "llm_optimizer.cost_usd": 0.5,
            "llm_optimizer.context.length": 12,
            "llm_optimizer.context.kind": "refund",
            "llm_optimizer.context.vip": True,
            "llm_optimizer.context.list": [1],
            "llm_optimizer.context.nan": float("nan"),
        }
    )
    assert (event.task, event.variant, event.quality, event.cost_usd) == ("support", "fast", 0.75, 0.5)
    assert event.context == {"length": 12, "kind": "refund", "vip": True}
    assert mapped({**CURRENT, "gen_ai.agent.name": "agent"}).task == "agent"


def test_errors_are_named_by_their_last_part() -> None:
    assert mapped({**CURRENT, "error.type": "openai.RateLimitError"}, status=2).error == "RateLimitError"
    assert mapped({**CURRENT, "error.type": "500"}, status=2).error == "500"
    assert mapped(CURRENT, status=2).error == "error"
    assert mapped(CURRENT, status=1).error == ""


@pytest.mark.parametrize(
    ("attributes", "call"),
    [
        ({"gen_ai.operation.name": "chat"}, True),
        ({"gen_ai.operation.name": "embeddings"}, True),
        ({"gen_ai.operation.name": "execute_tool", "gen_ai.system": "openai"}, False),
        ({"gen_ai.operation.name": "invoke_agent"}, False),
        ({"gen_ai.operation.name": ["chat"]}, False),
        ({"gen_ai.operation.name": {"a": 1}}, False),
        ({"gen_ai.system": "openai"}, True),
        ({"llm_optimizer.selection_id": "x"}, True),
        ({"http.request.method": "GET"}, False),
        ({}, False),
    ],
)
def test_which_spans_are_calls(attributes: dict[str, Any], call: bool) -> None:
    assert genai.is_call(span(attributes)) is call


CONTENT = [
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.prompt",
    "gen_ai.completion",
    "gen_ai.prompt.0.content",
    "gen_ai.completion.0.content",
    "gen_ai.completion.0.tool_calls.0.arguments",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result",
    "gen_ai.tool.definitions.0.description",
    "gen_ai.request.messages",
    "gen_ai.request.prompt",
    "input.value",
    "output.value",
    "llm.input_messages.0.message.content",
    "llm.output_messages.0.message.content",
    "llm.prompts",
    "llm.completions",
    "llm.openai.messages",
    "traceloop.entity.input",
    "traceloop.entity.output",
    "exception.message",
    "exception.stacktrace",
    "ai.prompt.messages",
    "ai.response.text",
    "hidden_params",
    "prompt",
]


@pytest.mark.parametrize("name", CONTENT)
def test_content_is_dropped_unless_wanted(name: str) -> None:
    for value in ("SECRET", ["SECRET"], {"content": "SECRET"}):
        assert b"SECRET" not in msgspec.json.encode(mapped({**CURRENT, name: value}))
        assert b"SECRET" in msgspec.json.encode(mapped({**CURRENT, name: value}, keep_content=True))
    assert b"SECRET" not in msgspec.json.encode(
        mapped({**CURRENT, "vendor.blob": [{"message": {"content": "SECRET"}}]})
    )


def test_names_that_only_look_like_content_stay() -> None:
    kept = {"gen_ai.output.type": "json", "gen_ai.prompt.name": "p", "llm.token_count.prompt": 20}
    assert mapped(kept | CURRENT).attributes.items() >= kept.items()


def test_people_are_pseudonyms() -> None:
    event = mapped({**CURRENT, "gen_ai.conversation.id": "s" * 5000, "user.id": "me@example.org"})
    other = mapped({**CURRENT, "gen_ai.conversation.id": "s" * 5000 + "t", "user.id": "me@example.org"})
    assert b"example" not in msgspec.json.encode(event)
    assert event.user == other.user != genai.event(span({**CURRENT, "user.id": "me@example.org"}), NOW, b"x" * 32).user
    assert event.session != other.session


def test_the_rest_is_bounded() -> None:
    many = {f"vendor.{i}": "x" * 100_000 for i in range(1000)} | {"k" * 100_000: 1, "vendor.list": ["y" * 5000]}
    event = mapped(CURRENT | many)
    assert len(event.attributes) <= 64
    assert len(msgspec.msgpack.encode(event)) < 20_000


def test_more_cached_tokens_than_input_are_marked() -> None:
    event = mapped({**CURRENT, "gen_ai.usage.cache_read.input_tokens": 21})
    assert event.attributes[genai.INCONSISTENT] is True
    assert (event.input_tokens, event.cache_read_tokens) == (20, 21)


def test_a_latency_that_cannot_be_is_none() -> None:
    for start in (0, END + 1, 1):
        assert mapped(CURRENT, start=start).latency_ms is None


def test_a_long_span_name_is_cut_and_made_printable() -> None:
    assert mapped(CURRENT, name="a\n" + "b" * 500).task == "a " + "b" * 198
    with pytest.raises(genai.Refused, match="no task"):
        mapped(CURRENT, name="")


# --- both encodings ---------------------------------------------------------------------------------------

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
_spans = st.fixed_dictionaries(
    {
        "_name": st.text(max_size=20),
        "_trace": st.binary(min_size=16, max_size=16),
        "_span": st.binary(min_size=8, max_size=8),
        "_start": st.integers(0, 2**64 - 1),
        "_end": st.integers(0, 2**64 - 1),
        "_status": st.integers(0, 2),
    }
).flatmap(
    lambda fixed: st.dictionaries(
        st.sampled_from([*CURRENT, *DEPRECATED]) | st.text(max_size=8).filter(lambda key: not key.startswith("_")),
        _values,
        max_size=6,
    ).map(lambda attributes: {**attributes, **fixed})
)


def as_json(body: bytes) -> bytes:
    """
    A binary request as OTLP/JSON, written apart from the reader.
    """
    message = ExportTraceServiceRequest.FromString(body)
    groups = []
    for group in message.resource_spans:
        spans = [
            {
                "traceId": one.trace_id.hex().upper(),
                "spanId": one.span_id.hex(),
                "name": one.name,
                "startTimeUnixNano": str(one.start_time_unix_nano),
                "endTimeUnixNano": one.end_time_unix_nano,
                "attributes": [{"key": pair.key, "value": _any(pair.value)} for pair in one.attributes],
                "status": {"code": one.status.code},
            }
            for scope in group.scope_spans
            for one in scope.spans
        ]
        labels = [{"key": pair.key, "value": _any(pair.value)} for pair in group.resource.attributes]
        groups.append({"resource": {"attributes": labels}, "scopeSpans": [{"spans": spans}]})
    return orjson.dumps({"resourceSpans": groups})


def _any(value: Any) -> dict[str, Any]:
    import base64

    kind = value.WhichOneof("value")
    if kind is None:
        return {}
    found = getattr(value, kind)
    match kind:
        case "int_value":
            return {"intValue": str(found)}
        case "double_value":
            special = {float("inf"): "Infinity", float("-inf"): "-Infinity"}
            return {"doubleValue": "NaN" if found != found else special.get(found, found)}
        case "bytes_value":
            return {"bytesValue": base64.b64encode(found).decode()}
        case "array_value":
            return {"arrayValue": {"values": [_any(one) for one in found.values]}}
        case "kvlist_value":
            return {"kvlistValue": {"values": [{"key": one.key, "value": _any(one.value)} for one in found.values]}}
    return {kind.replace("_value", "Value"): found}


def plain(key: str, value: Any) -> Any:
    """
    The value itself.
    """
    return value


def outcomes(spans: Any) -> list[str]:
    """
    Each span's event, or why there is none; as text, in which NaN equals NaN.
    """
    told = []
    for one in spans:
        assert not isinstance(one, Bad)
        try:
            told.append(repr(genai.event(one, NOW, SECRET)) if genai.is_call(one) else f"ignored {one}")
        except genai.Refused as error:
            told.append(f"refused: {error}")
    return told


@settings(max_examples=150, deadline=None)
@given(st.lists(_spans, max_size=3))
def test_json_and_protobuf_give_the_same_events(spans: list[dict[str, Any]]) -> None:
    body = request(*spans)
    text = as_json(body)
    assert repr(list(from_protobuf(body, plain))) == repr(list(from_json(text, plain)))
    assert outcomes(from_protobuf(body, trait)) == outcomes(from_json(text, trait))


@settings(max_examples=300, deadline=None)
@given(st.lists(_spans, max_size=2), st.data())
def test_damaged_requests_are_read_as_protobuf_reads_them(spans: list[dict[str, Any]], data: st.DataObject) -> None:
    body = bytearray(request(*spans) + b"\x12\x01x")  # an unknown field, too
    for _ in range(data.draw(st.integers(0, 2))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))]
    try:
        message = ExportTraceServiceRequest.FromString(bytes(body))
    except DecodeError:
        message = None
    try:
        found = [one for one in from_protobuf(bytes(body), plain) if isinstance(one, Span)]
    except Invalid:
        found = None
    if message is None:
        return  # what is damaged where nobody looks may pass
    assert found is not None or _groups(bytes(body))
    if found is not None:
        ids = [one.span_id.hex() for group in message.resource_spans for s in group.scope_spans for one in s.spans]
        assert [one.span_id for one in found] == ids


def _groups(body: bytes) -> bool:
    # groups, which proto3 has not, are skipped by protobuf and refused by us
    return any(byte & 7 in (3, 4) for byte in body)


def test_nested_values_are_cut_off() -> None:
    deep: Any = "x"
    for _ in range(40):  # protobuf itself refuses a hundred levels of messages
        deep = [deep]
    body = request({"a": deep, "gen_ai.operation.name": "chat", "_end": time.time_ns()})
    (binary,), (text,) = from_protobuf(body, plain), from_json(as_json(body), plain)
    assert binary == text
    assert isinstance(binary, Span)
    assert repr(binary.attributes["a"]).count("[") == MAX_DEPTH
