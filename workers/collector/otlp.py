"""
OTLP trace requests, protobuf and JSON, as plain spans. Pure.

JSON is walked here instead of by protobuf's json_format: OTLP/JSON writes ids in hex and enums as numbers, which that does not
read (OTLP specification 1.11, "JSON Protobuf Encoding").

Binary requests are opened envelope by envelope and span by span (wire.py); protobuf itself reads attributes only. Two bytes are
enough for a span, and a body full of them, parsed at once, would take fifty times its size. It is also twice as fast.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from optimizer.errors import Invalid
from workers.collector.wire import FIXED64, LENGTH, Envelope, field

MAX_DEPTH: Final = 16  # of nested attribute values; deeper ones are cut off
STATUS_ERROR: Final = 2
MAX_FIELDS: Final = 300_000  # spans and what holds them in one binary request; senders send some thousands
MAX_SPAN_BYTES: Final = 4 * 1024 * 1024  # also of a resource; one with the text of a long conversation has about one
MAX_CONTAINERS: Final = 2_000_000  # JSON objects and lists in one request; 64 MiB of true spans have fewer
_MAX_COMMAS: Final = 3 * MAX_CONTAINERS
_UINT64: Final = 2**64 - 1
_RESOURCE_SPANS, _RESOURCE, _SCOPE_SPANS, _SPANS = 1, 1, 2, 2  # field numbers in trace_service.proto and trace.proto


_TRACE_ID, _SPAN_ID, _NAME, _ATTRIBUTE, _STATUS = (number << 3 | LENGTH for number in (1, 2, 5, 9, 15))  # keys in Span
_START, _END = (number << 3 | FIXED64 for number in (7, 8))
_MEMO: Final = 16_384  # attributes that are remembered
_MAX_MEMO: Final = 160  # bytes of an attribute that is remembered; long ones are texts, and seldom the same


T = TypeVar("T")
Read = Callable[[str, Any], T]  # what to make of an attribute's name and value


class Span(NamedTuple, Generic[T]):
    """
    What is needed of one span; times are nanoseconds since 1970, ids lower-case hex. Not to be changed: values are shared.
    """

    resource: dict[str, Any]
    trace_id: str
    span_id: str
    name: str
    start: int
    end: int
    attributes: dict[str, T]
    status: int


class Bad(NamedTuple):
    """
    A span that cannot be read, and why.
    """

    reason: str


def from_protobuf(body: bytes, read: Read[T]) -> Iterator[Span[T] | Bad]:
    """
    The spans of a binary ExportTraceServiceRequest, one by one.

    Raises:
        Invalid: it is none; perhaps only after some spans.
    """
    envelope = Envelope(body, MAX_FIELDS)
    memo: _Memo[T] = _memo(read)
    try:
        for number, kind, start, end in envelope.fields(0, len(body)):
            if (number, kind) == (_RESOURCE_SPANS, LENGTH):
                yield from _resource_spans(envelope, start, end, memo)
    except DecodeError as error:
        raise Invalid(f"the body is no ExportTraceServiceRequest: {error}") from None


def _resource_spans(envelope: Envelope, start: int, end: int, memo: _Memo[T]) -> Iterator[Span[T] | Bad]:
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
                yield _pb_span(resource, body, at, to, memo)


def _pb_span(resource: dict[str, Any], body: bytes, start: int, end: int, memo: _Memo[T]) -> Span[T] | Bad:
    """
    One span, read in place: the same attributes come again and again, so those that are known by their bytes are not parsed.
    """
    if end - start > MAX_SPAN_BYTES:
        return Bad(f"a span has {end - start} bytes, more than {MAX_SPAN_BYTES}")
    known = memo.known
    attributes: dict[str, T] = {}
    found: dict[int, bytes] = {}
    status = b""
    at = start
    while at < end:
        key = body[at]
        kind = key & 7 if 7 < key < 128 else 0
        if kind == LENGTH and at + 1 < end and body[at + 1] < 128:  # the usual fields, in short
            first = at + 2
            at = first + body[at + 1]
        elif kind == FIXED64:
            first, at = at + 1, at + 9
        else:
            key, first, at = field(body, at, end)
        if at > end:
            raise DecodeError(f"truncated: the field at byte {first} ends after its span")
        if key == _ATTRIBUTE:
            packed = body[first:at]
            pair = known.get(packed)
            if pair is None:
                pair = memo.learn(packed)
            attributes[pair[0]] = pair[1]
        elif key == _STATUS:
            status += body[first:at]
        else:
            found[key] = body[first:at]
    return Span(
        resource,
        found.get(_TRACE_ID, b"").hex(),
        found.get(_SPAN_ID, b"").hex(),
        _name(found.get(_NAME, b"")),
        int.from_bytes(found.get(_START, b""), "little"),
        int.from_bytes(found.get(_END, b""), "little"),
        attributes,
        _status(status),
    )


class _Memo(Generic[T]):
    """
    What was made of attributes, by their bytes.
    """

    def __init__(self, read: Read[T]) -> None:
        self._read = read
        self.known: dict[bytes, tuple[str, T]] = {}

    def learn(self, packed: bytes) -> tuple[str, T]:
        """
        An attribute that is not known yet.
        """
        pair = KeyValue.FromString(packed)
        made = pair.key, self._read(pair.key, _pb_value(pair.value, 0))
        if len(packed) <= _MAX_MEMO:
            if len(self.known) >= _MEMO:
                self.known.clear()  # the usual ones are learnt again within a span
            self.known[packed] = made
        return made


_memo = lru_cache(maxsize=4)(_Memo)


@lru_cache(maxsize=64)
def _status(packed: bytes) -> int:
    code: int = Status.FromString(packed).code
    return code


def _name(packed: bytes) -> str:
    try:
        return packed.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"the name of a span is not UTF-8: {error}") from None


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


def from_json(body: bytes, read: Read[T]) -> Iterator[Span[T] | Bad]:
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
                yield _json_span(resource, span, read)


def _json_span(resource: dict[str, Any], span: dict[str, Any], read: Read[T]) -> Span[T] | Bad:
    try:
        return Span(
            resource,
            _hex(span, "traceId", 32),
            _hex(span, "spanId", 16),
            _string(span.get("name") or "", "name"),
            _integer(span.get("startTimeUnixNano") or 0, "startTimeUnixNano", 0, _UINT64),
            _integer(span.get("endTimeUnixNano") or 0, "endTimeUnixNano", 0, _UINT64),
            {key: read(key, value) for key, value in _pairs(span).items()},
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
