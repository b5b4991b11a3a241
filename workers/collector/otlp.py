"""
OTLP trace requests, protobuf and JSON, as plain spans. Pure.

JSON is walked here instead of by protobuf's json_format: OTLP/JSON writes ids in hex and enums as numbers, which that does not
read (OTLP specification 1.11, "JSON Protobuf Encoding").

Binary requests are opened envelope by envelope (wire.py), and only one span at a time becomes a protobuf message: two bytes are
enough for a span, and a body full of them, parsed at once, would take fifty times its size.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from optimizer.errors import Invalid
from workers.collector.wire import LENGTH, Envelope

MAX_DEPTH: Final = 16  # of nested attribute values; deeper ones are cut off
STATUS_ERROR: Final = 2
MAX_FIELDS: Final = 300_000  # spans and what holds them in one binary request; senders send some thousands
MAX_SPAN_BYTES: Final = 4 * 1024 * 1024  # also of a resource; one with the text of a long conversation has about one
MAX_CONTAINERS: Final = 2_000_000  # JSON objects and lists in one request; 64 MiB of true spans have fewer
_MAX_COMMAS: Final = 3 * MAX_CONTAINERS
_UINT64: Final = 2**64 - 1
_RESOURCE_SPANS, _RESOURCE, _SCOPE_SPANS, _SPANS = 1, 1, 2, 2  # field numbers in trace_service.proto and trace.proto


class Span(NamedTuple):
    """
    What is needed of one span; times are nanoseconds since 1970, ids lower-case hex.
    """

    resource: dict[str, Any]
    trace_id: str
    span_id: str
    name: str
    start: int
    end: int
    attributes: dict[str, Any]
    status: int


class Bad(NamedTuple):
    """
    A span that cannot be read, and why.
    """

    reason: str


def from_protobuf(body: bytes) -> Iterator[Span | Bad]:
    """
    The spans of a binary ExportTraceServiceRequest, one by one.

    Raises:
        Invalid: it is none; perhaps only after some spans.
    """
    envelope = Envelope(body, MAX_FIELDS)
    try:
        for number, kind, start, end in envelope.fields(0, len(body)):
            if (number, kind) == (_RESOURCE_SPANS, LENGTH):
                yield from _resource_spans(envelope, start, end)
    except DecodeError as error:
        raise Invalid(f"the body is no ExportTraceServiceRequest: {error}") from None


def _resource_spans(envelope: Envelope, start: int, end: int) -> Iterator[Span | Bad]:
    fields, body = envelope.fields, envelope.body
    # concatenated messages are merged messages (protobuf encoding, "Last One Wins")
    packed = b"".join(
        body[at:to] for number, kind, at, to in fields(start, end) if (number, kind) == (_RESOURCE, LENGTH)
    )
    if len(packed) > MAX_SPAN_BYTES:
        raise Invalid(f"a resource has {len(packed)} bytes, more than {MAX_SPAN_BYTES}")
    resource = _pb_pairs(Resource.FromString(packed).attributes)
    for number, kind, first, last in fields(start, end):
        if (number, kind) != (_SCOPE_SPANS, LENGTH):
            continue
        for inner, wire, at, to in fields(first, last):
            if (inner, wire) == (_SPANS, LENGTH):
                yield _pb_span(resource, body, at, to)


def _pb_span(resource: dict[str, Any], body: bytes, start: int, end: int) -> Span | Bad:
    if end - start > MAX_SPAN_BYTES:
        return Bad(f"a span has {end - start} bytes, more than {MAX_SPAN_BYTES}")
    span = WireSpan.FromString(body[start:end])
    return Span(
        resource,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.name,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _pb_pairs(span.attributes),
        span.status.code,
    )


def _pb_pairs(pairs: Any) -> dict[str, Any]:
    return {pair.key: _pb_value(pair.value, 0) for pair in pairs}


def _pb_value(value: Any, depth: int) -> Any:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind == "int_value":
        return value.int_value
    if kind is None:
        return None
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    if kind not in ("array_value", "kvlist_value"):
        return getattr(value, kind)
    if depth >= MAX_DEPTH:
        return None
    if kind == "array_value":
        return [_pb_value(one, depth + 1) for one in value.array_value.values]
    return {pair.key: _pb_value(pair.value, depth + 1) for pair in value.kvlist_value.values}


def from_json(body: bytes) -> Iterator[Span | Bad]:
    """
    The spans of a JSON request.

    Raises:
        Invalid: it is none; perhaps only after some spans.
    """
    if body.count(b"{") + body.count(b"[") > MAX_CONTAINERS or body.count(b",") > _MAX_COMMAS:
        raise Invalid(f"the body has more than {MAX_CONTAINERS} objects and lists")
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"the body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise Invalid("the body is no JSON object")
    for resource_spans in _objects(request, "resourceSpans"):
        resource = _pairs(_object(resource_spans, "resource"))
        for scope_spans in _objects(resource_spans, "scopeSpans"):
            for span in _objects(scope_spans, "spans"):
                yield _json_span(resource, span)


def _json_span(resource: dict[str, Any], span: dict[str, Any]) -> Span | Bad:
    try:
        return Span(
            resource,
            _hex(span, "traceId", 32),
            _hex(span, "spanId", 16),
            _string(span.get("name") or "", "name"),
            _integer(span.get("startTimeUnixNano") or 0, "startTimeUnixNano", 0, _UINT64),
            _integer(span.get("endTimeUnixNano") or 0, "endTimeUnixNano", 0, _UINT64),
            _pairs(span),
            _integer(_object(span, "status").get("code") or 0, "status.code", -(2**31), 2**31 - 1),
        )
    except Invalid as error:
        return Bad(str(error))


def _hex(span: dict[str, Any], name: str, length: int) -> str:
    text = _string(span.get(name) or "", name)
    try:
        found = bytes.fromhex(text).hex()
    except ValueError:
        found = ""
    if len(found) != length or len(text) != length:
        raise Invalid(f"{name} is {text[:40]!r}, not {length} hexadecimal digits")
    return found


def _string(found: Any, name: str) -> str:
    if not isinstance(found, str):
        raise Invalid(f"{name} is no string")
    return found


def _integer(found: Any, name: str, low: int, high: int) -> int:
    # 64-bit integers come as strings or as numbers
    digits = isinstance(found, str) and len(found) <= 20 and found.lstrip("-").isdecimal()
    if not digits and (not isinstance(found, int) or isinstance(found, bool)):
        raise Invalid(f"{name} is no integer")
    try:
        number = int(found)
    except ValueError:
        raise Invalid(f"{name} is no integer") from None
    if not low <= number <= high:
        raise Invalid(f"{name} is {number}, out of range")
    return number


def _object(holder: dict[str, Any], name: str) -> dict[str, Any]:
    found = holder.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Invalid(f"{name} is no object")
    return found


def _objects(holder: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = holder.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Invalid(f"{name} is no list of objects")
    return found


def _pairs(holder: dict[str, Any], name: str = "attributes", depth: int = 0) -> dict[str, Any]:
    return {
        _string(pair.get("key") or "", "a key of " + name): _json_value(pair.get("value"), depth)
        for pair in _objects(holder, name)
    }


def _json_value(value: Any, depth: int) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Invalid('the value of an attribute is no object like {"stringValue": …}')
    for kind, found in value.items():
        read = _JSON_VALUES.get(kind)
        if read is not None and found is not None:
            return read(found, kind, depth)
    return None


def _json_bool(found: Any, kind: str, depth: int) -> bool:
    if not isinstance(found, bool):
        raise Invalid(f"{kind} is no boolean")
    return found


def _json_double(found: Any, kind: str, depth: int) -> float:
    try:
        if isinstance(found, bool) or not isinstance(found, int | float | str):
            raise ValueError
        return float(found)  # "NaN" and "Infinity" are texts in ProtoJSON
    except (ValueError, OverflowError):
        raise Invalid(f"{kind} is no number") from None


def _json_list(found: Any, kind: str, depth: int) -> list[Any] | None:
    if depth >= MAX_DEPTH:
        return None
    if not isinstance(found, dict):
        raise Invalid(f"{kind} is no object")
    return [_json_value(one, depth + 1) for one in _objects(found, "values")]


def _json_dict(found: Any, kind: str, depth: int) -> dict[str, Any] | None:
    if depth >= MAX_DEPTH:
        return None
    if not isinstance(found, dict):
        raise Invalid(f"{kind} is no object")
    return _pairs(found, "values", depth + 1)


_JSON_VALUES: Final[dict[str, Any]] = {
    "stringValue": lambda found, kind, depth: _string(found, kind),
    "boolValue": _json_bool,
    "intValue": lambda found, kind, depth: _integer(found, kind, -(2**63), 2**63 - 1),
    "doubleValue": _json_double,
    "bytesValue": lambda found, kind, depth: _string(found, kind),
    "arrayValue": _json_list,
    "kvlistValue": _json_dict,
}
