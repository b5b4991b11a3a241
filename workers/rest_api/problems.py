"""
Errors as application/problem+json, every one of them.

Source: RFC 9457; RFC 9110 for the status codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from optimizer.errors import Conflict, Invalid, NotFound, OptimizerError, Problem, Transient

_MAX_INSTANCE: Final = 500  # characters of the address that is repeated in an answer
_encoder = msgspec.json.Encoder()


class FieldProblem(msgspec.Struct, frozen=True):
    """
    One mistake: `field` is a path such as `variants[2].name` or `[3].quality`, empty for the whole input.
    """

    field: str
    reason: str
    expected: str


class ProblemDocument(msgspec.Struct, frozen=True, kw_only=True):
    """
    What went wrong (RFC 9457). `errors` names every invalid field.
    """

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldProblem]


class Refused(Exception):
    """
    This request is answered with that status.
    """

    def __init__(
        self, status: int, detail: str, problems: Iterable[Problem] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.problems = tuple(problems)
        self.headers = headers or {}


def refusal(error: OptimizerError) -> Refused:
    """
    The answer that an error of an operation becomes.
    """
    if isinstance(error, Transient):
        wait = str(min(5, max(1, math.ceil(error.retry_after_s))))
        return Refused(503, f"{error}; send the same request again", headers={"Retry-After": wait})
    if isinstance(error, Invalid):
        status = 404 if isinstance(error, NotFound) else 409 if isinstance(error, Conflict) else 422
        count = len(error.problems)
        detail = str(error.problems[0]) if count == 1 else f"{count} fields are wrong; nothing was changed"
        return Refused(status, detail, error.problems)
    return Refused(500, str(error))


def problem_response(refused: Refused, instance: str) -> web.Response:
    """
    The response for a refused request to the address `instance`.
    """
    document = ProblemDocument(
        title=HTTPStatus(refused.status).phrase,
        status=refused.status,
        detail=refused.detail,
        instance=instance[:_MAX_INSTANCE],
        errors=[FieldProblem(problem.field, problem.reason, problem.expected) for problem in refused.problems],
    )
    return web.Response(
        status=refused.status,
        body=_encoder.encode(document),
        headers={"Content-Type": "application/problem+json", **refused.headers},
    )
