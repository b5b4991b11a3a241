"""
Errors as gRPC statuses: the code, a sentence, and details that a client can act on.

Details travel twice: in `grpc-status-details-bin` (google.rpc.Status), and the delay of a retry also bare in
`google.rpc.retryinfo-bin`, which some OpenTelemetry SDKs read instead. All trailers together stay well under 8 KiB, the least
that clients accept by default: a longer refusal would reach them as an error of the transport that says nothing.
"""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from optimizer.errors import Conflict, Invalid, NotFound, Problem, Transient

MAX_TOLD: Final = 500  # characters of the sentence, which travels twice
MAX_VIOLATIONS_BYTES: Final = 3000

Trailers = tuple[tuple[str, bytes], ...]


def code_of(error: Exception) -> grpc.StatusCode:
    """
    The status of an error; a bug is INTERNAL.
    """
    match error:
        case NotFound():
            return grpc.StatusCode.NOT_FOUND
        case Conflict():
            return grpc.StatusCode.FAILED_PRECONDITION
        case Invalid():
            return grpc.StatusCode.INVALID_ARGUMENT
        case Transient():
            return grpc.StatusCode.UNAVAILABLE
        case TimeoutError():
            return grpc.StatusCode.DEADLINE_EXCEEDED
        case _:
            return grpc.StatusCode.INTERNAL


def refusal(error: Exception) -> tuple[grpc.StatusCode, str, Trailers]:
    """
    Status, sentence and trailers of an error, as `ServicerContext.abort` takes them.
    """
    code, told = code_of(error), _cut(str(error), MAX_TOLD)
    status = Status(code=code.value[0], message=told)
    trailers: list[tuple[str, bytes]] = []
    if isinstance(error, Invalid):
        _add(status, _bad_request(error.problems))
    elif isinstance(error, Transient | TimeoutError):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(getattr(error, "retry_after_s", 1.0) * 1000))
        _add(status, retry)
        trailers.append(("google.rpc.retryinfo-bin", retry.SerializeToString()))
    return code, told, (*trailers, ("grpc-status-details-bin", status.SerializeToString()))


def _bad_request(problems: tuple[Problem, ...]) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for problem in problems:
        told = f"{problem.reason}; expected {problem.expected}" if problem.expected else problem.reason
        violation = bad.field_violations.add(field=_cut(problem.field, 200), description=_cut(told, 300))
        if bad.ByteSize() > MAX_VIOLATIONS_BYTES:
            bad.field_violations.remove(violation)
            break
    return bad


def _add(status: Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
