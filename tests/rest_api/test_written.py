"""
What the OpenAPI document says of a request and what the checks say of it agree, as far as a schema can say it.
"""

from __future__ import annotations

import importlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from rest_api.conftest import Rest, task

from optimizer.errors import Invalid
from optimizer.operations import validation
from optimizer.operations.selection import parse_select

jsonschema: Any = importlib.import_module("jsonschema")  # comes with openapi-spec-validator, without types

EVENT: dict[str, Any] = {"task": "t", "model": "m"}
VARIANT: dict[str, Any] = {"name": "a"}


def taken(schema: str, document: Any) -> bool:
    try:
        match schema:
            case "EventDocument":
                found: Any = validation.event(document, at=datetime.now(UTC), secret=b"s", event_id="e")
            case "TaskDocument":
                found = validation.task(document, name="t")
            case "NewTaskDocument":
                found = validation.task(document)
            case _:
                found = parse_select("t", document)
    except Invalid:
        return False
    return not isinstance(found, list)


def cases() -> list[tuple[str, Any, bool]]:
    events: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        (dict.fromkeys(("quality", "time", "service", "parameters", "scores", "feedback", "id", "attributes")), True),
        ({"quality": 0}, True),
        ({"quality": 1.1}, False),
        ({"quality": "1"}, False),
        ({"cost_usd": -1}, False),
        ({"input_tokens": 1.5}, False),
        ({"input_tokens": -1}, False),
        ({"id": "x" * 129}, False),
        ({"service": "x" * 201}, False),
        ({"feedback": {"rating": -2}}, False),
        ({"feedback": {"stars": 2}}, False),
        ({"feedback": {}}, True),
        ({"context": {"a": 1, "b": "x", "c": True}}, True),
        ({"context": {"a": []}}, False),
        ({"context": {"": 1}}, False),
        ({"scores": {"a": "x"}}, False),
        ({"anything": {"goes": []}}, True),
        ({"task": None, "model": None, "selection_id": "x"}, True),
    ]
    variants: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"name": ""}, False),
        ({"name": None}, False),
        ({"price": {}}, False),
        ({"price": {"input_usd_per_million": 1, "output_usd_per_million": 2}}, True),
        ({"price": {"input_usd_per_million": 1, "output_usd_per_million": -2}}, False),
        ({"prompt": {"version": "1"}}, False),
        ({"prompt": None, "price": None, "weight": None, "parameters": None, "model": None}, True),
        ({"weight": -1}, False),
        ({"colour": "red"}, False),
    ]
    tasks: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"task": None}, False),
        ({"task": ""}, False),
        ({"task": "t" * 201}, False),
        ({"variants": None}, False),
        ({"variants": []}, False),
        ({"variants": [{"name": str(i)} for i in range(65)]}, False),
        ({"policy": None, "objective": None, "service": None, "epsilon": None, "fixed_variant": None}, True),
        ({"policy": "best"}, False),
        ({"epsilon": 2}, False),
        ({"objective": {"cost": -1}}, False),
        ({"objective": {"max_cost_per_request_usd": None, "cost": None}}, True),
        ({"objective": {"speed": 1}}, False),
        ({"created_by": "me"}, False),
        *(({"variants": [{**VARIANT, **variant}]}, right) for variant, right in variants),
    ]
    selects: list[tuple[Any, bool]] = [
        (None, True),
        ({}, True),
        ({"context": None, "session": None, "explain": None}, True),
        ({"session": "s" * 201}, False),
        ({"explain": 1}, False),
        ({"contxt": {}}, False),
        ([], False),
    ]
    return [
        *(("EventDocument", {**EVENT, **event}, right) for event, right in events),
        ("EventDocument", {"task": "t"}, False),
        ("EventDocument", {}, False),
        ("EventDocument", {"selection_id": "x"}, True),
        *(("NewTaskDocument", {**task("t"), **document}, right) for document, right in tasks),
        ("NewTaskDocument", {"variants": [VARIANT]}, False),
        ("TaskDocument", {"variants": [VARIANT]}, True),
        ("TaskDocument", {"task": None, "variants": [VARIANT]}, True),
        *(("SelectBodyDocument", select, right) for select, right in selects),
    ]


@pytest.fixture
async def components(rest: Rest) -> dict[str, Any]:
    return dict((await rest.call("GET", "/openapi.json"))[1]["components"])


async def test_schemas_and_checks_agree(components: dict[str, Any]) -> None:
    for schema, document, right in cases():
        root = {"$ref": f"#/components/schemas/{schema}", "components": components}
        valid = jsonschema.Draft202012Validator(root).is_valid(document)
        said = (schema, json.dumps(document)[:200])
        assert (*said, valid) == (*said, right)
        # a document that names a selection is checked further, against the selection
        assert (*said, taken(schema, document)) == (*said, right)
