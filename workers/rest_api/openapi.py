"""
The OpenAPI 3.1 document, made from the table of routes and the types of the operations.

Source: OpenAPI Specification 3.1.1; its schemas are JSON Schema 2020-12, which is what msgspec writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from optimizer import __version__
from optimizer.model import Event, SystemEvent, Task
from workers.rest_api.problems import ProblemDocument
from workers.rest_api.routes import Route, SelectBody
from workers.rest_api.written import add_documents

_REF: Final = "#/components/schemas/{name}"
_ERRORS: Final = {
    "4XX": "The request is wrong; `errors` names every invalid field, and nothing was changed.",
    "5XX": "It cannot be answered now. 503: send the same again after `Retry-After` seconds.",
}


def openapi(routes: Sequence[Route]) -> dict[str, Any]:
    """
    The document for these routes.
    """
    kinds = {kind for route in routes for kind in (SelectBody, *route.answers.values()) if _is_struct(kind)}
    roots = [*sorted(kinds, key=lambda kind: str(kind.__name__)), Event, SystemEvent, Task, ProblemDocument]
    schemas, components = msgspec.json.schema_components(roots, ref_template=_REF)
    _write(components)
    references = dict(zip(roots, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LLM Auto Optimizer",
            "version": __version__,
            "description": "Ask which variant of a task is to serve a request, report how it went, see what was learned.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components},
    }


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _write(components: dict[str, Any]) -> None:
    """
    Add what senders write, and what msgspec cannot say.
    """
    add_documents(components)
    kinds = [{"$ref": _REF.format(name=name)} for name in ("Event", "SystemEvent")]
    components["EventPage"]["properties"]["items"]["items"] = {"anyOf": kinds}


def _operation(route: Route, references: dict[Any, Any]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": references[ProblemDocument]}}
    found: dict[str, Any] = {
        "operationId": f"{route.method.lower()}_{re.sub(r'[^a-z]+', '_', route.path).strip('_')}",
        "summary": route.summary,
        "tags": [route.operation.partition(".")[0]],
        "parameters": _parameters(route),
        "responses": {
            **{str(status): _answer(route, kind, references) for status, kind in route.answers.items()},
            **{status: {"description": told, "content": problem} for status, told in _ERRORS.items()},
        },
    }
    if route.body is not None:
        schema = {"$ref": _REF.format(name=route.body.value)}
        found["requestBody"] = {
            "required": route.body_required,
            "content": {media: {"schema": schema} for media in route.media},
        }
    return found


def _answer(route: Route, kind: Any, references: dict[Any, Any]) -> dict[str, Any]:
    if kind is None:
        return {"description": "Done."}
    schema = references[kind] if _is_struct(kind) else kind
    return {"description": "The answer.", "content": {route.answer_media: {"schema": schema}}}


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = re.findall(r"{(\w+)}", route.path)
    return [
        *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in in_path),
        *({"name": q.name, "in": "query", "description": q.about, "schema": q.schema()} for q in route.query),
        *(
            {"name": name, "in": "header", "description": about, "schema": {"type": "string", "maxLength": 1024}}
            for name, about in route.headers.items()
        ),
    ]
