"""
OTLP trace requests, protobuf and JSON, as plain spans. Pure.

JSON is walked here instead of by protobuf's json_format: OTLP/JSON writes ids in hex and enums as numbers, which that does not
read (OTLP specification 1.11, "JSON Protobuf Encoding"). Attributes stay lazy pairs until somebody asks for their values.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from optimizer.errors import Invalid

MAX_DEPTH: Final = 16  # of nested attribute values; deeper ones are cut off
STATUS_ERROR: Final = 2


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
    The spans of a binary request.

    Raises:
        Invalid: it is none.
    """
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise Invalid(f"the body is no ExportTraceServiceRequest: {error}") from error
    for resource_spans in request.resource_spans:
        resource = {pair.key: _value(pair.value) for pair in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield Span(
                    resource,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.name,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    {pair.key: _value(pair.value) for pair in span.attributes},
                    span.status.code,
                )


def _value(value: Any, depth: int = 0) -> Any:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind is None or depth >= MAX_DEPTH:
        return None
    if kind == "array_value":
        return [_value(one, depth + 1) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _value(pair.value, depth + 1) for pair in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind)


def from_json(body: bytes) -> Iterator[Span | Bad]:
    """
    The spans of a JSON request.

    Raises:
        Invalid: it is none.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"the body is no JSON: {error}") from error
    for resource_spans in _items(request, "resourceSpans"):
        resource = _pairs(_object(resource_spans.get("resource", {}), "resource").get("attributes", []))
        for scope_spans in _items(resource_spans, "scopeSpans"):
            for span in _items(scope_spans, "spans"):
                yield _json_span(resource, span)


def _json_span(resource: dict[str, Any], span: dict[str, Any]) -> Span | Bad:
    try:
        return Span(
            resource,
            _hex(span.get("traceId", ""), 16, "traceId"),
            _hex(span.get("spanId", ""), 8, "spanId"),
            str(span.get("name", "")),
            int(span.get("startTimeUnixNano", 0)),
            int(span.get("endTimeUnixNano", 0)),
            _pairs(span.get("attributes", [])),
            int(_object(span.get("status", {}), "status").get("code", 0)),
        )
    except (TypeError, ValueError, Invalid) as error:
        return Bad(str(error))


def _hex(text: Any, length: int, name: str) -> str:
    try:
        raw = binascii.unhexlify(text)
    except (binascii.Error, ValueError, TypeError):
        raise Invalid(f"{name} is no hexadecimal text") from None
    if len(raw) != length:
        raise Invalid(f"{name} has {len(raw)} bytes, not {length}")
    return raw.hex()


def _object(found: Any, name: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Invalid(f"{name} is no object")
    return found


def _items(holder: Any, name: str) -> list[dict[str, Any]]:
    found = _object(holder, "the holder of " + name).get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Invalid(f"{name} is no list of objects")
    return found


def _pairs(found: Any) -> dict[str, Any]:
    if not isinstance(found, list):
        raise Invalid("attributes is no list")
    return {
        str(pair["key"]): _json_value(pair.get("value"), 0)
        for pair in found
        if isinstance(pair, dict) and "key" in pair
    }


def _json_value(value: Any, depth: int) -> Any:
    if not isinstance(value, dict) or depth >= MAX_DEPTH:
        return None
    for kind, found in value.items():
        if kind == "intValue":
            return int(found)
        if kind == "doubleValue":
            return float(found)
        if kind in ("stringValue", "boolValue", "bytesValue"):
            return found
        if kind == "arrayValue" and isinstance(found, dict):
            return [_json_value(one, depth + 1) for one in found.get("values", [])]
        if kind == "kvlistValue" and isinstance(found, dict):
            return {str(pair.get("key")): _json_value(pair.get("value"), depth + 1) for pair in found.get("values", [])}
    return None
