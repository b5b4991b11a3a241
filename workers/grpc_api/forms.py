"""
Protobuf messages as the plain documents that operations read, and back. Pure.

A document carries what the sender wrote, right or wrong (NaN, times out of range): the checks of the operations say what is
wrong with it, the same as for REST. That is why this is not protobuf's own JSON mapping, which raises on such values.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from optimizer.operations.selection import Selection, SelectRequest
from optimizer.pb.v1 import event_pb2, selection_pb2

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def event_document(event: event_pb2.Event) -> dict[str, Any]:
    """
    An event as the document that REST takes; unset fields are absent.
    """
    return {field.name: _plain(field.name, value) for field, value in event.ListFields()}


def select_request(request: selection_pb2.SelectRequest) -> SelectRequest:
    """
    A request for a selection. Its context is checked by the operation.
    """
    return SelectRequest(task=request.task, context=_struct(request.context), session=request.session)


def select_response(found: Selection) -> selection_pb2.SelectResponse:
    """
    A selection as a message.
    """
    answer = selection_pb2.SelectResponse(
        selection_id=found.selection_id,
        task=found.task,
        variant=found.variant,
        provider=found.provider,
        model=found.model,
        propensity=found.propensity,
        policy_version=found.policy_version,
        rollout=found.rollout,
    )
    answer.parameters.update(found.parameters)
    if found.prompt is not None:
        answer.prompt.CopyFrom(selection_pb2.Prompt(name=found.prompt.name, version=found.prompt.version))
    return answer


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Struct):
        return _struct(value)
    if isinstance(value, Timestamp):
        return _moment(value)
    if isinstance(value, event_pb2.Feedback):
        return {field.name: inner for field, inner in value.ListFields()}
    return dict(value) if name == "scores" else value


def _struct(struct: Struct) -> dict[str, Any]:
    return {key: _value(value) for key, value in struct.fields.items()}


def _value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            return value.number_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _struct(value.struct_value)
        case "list_value":
            return [_value(item) for item in value.list_value.values]
        case _:
            return None


def _moment(time: Timestamp) -> datetime | str:
    try:
        return _EPOCH + timedelta(seconds=time.seconds, microseconds=time.nanos // 1000)
    except OverflowError:
        return f"{time.seconds} s after 1970"  # no time of the calendar; the checks refuse it and show this
