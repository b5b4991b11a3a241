"""
JSON Schemas of what senders write. The types of answers are looser than what is taken, and stricter: bounds are checked by hand
(operations/validation.py), and null stands for an absent field. Made from the types, with the bounds of the checks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

from optimizer.model import MAX_ID, MAX_NAME, MAX_VARIANTS
from optimizer.operations.checks import MAX_COST_USD, MAX_DURATION_MS, MAX_TOKENS
from optimizer.operations.feedback import MAX_EVENTS
from optimizer.operations.validation import MAX_COMMENT, MAX_ERROR, MAX_PRICE, MAX_SELECTION

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/{}"
_NAME: Final = {"maxLength": MAX_NAME}
_GIVEN: Final = {"minLength": 1, "maxLength": MAX_NAME}
_RATIO: Final = {"minimum": 0, "maximum": 1}
_WEIGHT: Final = {"minimum": 0, "maximum": 1e9}
_COST: Final = {"minimum": 0, "maximum": MAX_COST_USD}
_TOKENS: Final = {"minimum": 0, "maximum": MAX_TOKENS}
_DURATION: Final = {"minimum": 0, "maximum": MAX_DURATION_MS}
_PRICE: Final = {"minimum": 0, "maximum": MAX_PRICE}
_FEATURES: Final = {"maxProperties": 64, "propertyNames": _GIVEN}
_BOUNDS: Final[Mapping[str, Mapping[str, Schema]]] = {
    "Objective": {"quality": _WEIGHT, "cost": _WEIGHT, "latency": _WEIGHT, "max_cost_per_request_usd": _COST},
    "Prompt": {"name": _GIVEN, "version": _NAME},
    "Price": {"input_usd_per_million": _PRICE, "output_usd_per_million": _PRICE},
    "Variant": {"name": _GIVEN, "provider": _NAME, "model": _NAME, "weight": _WEIGHT},
    "Task": {
        "task": _GIVEN,
        "service": _NAME,
        "variants": {"minItems": 1, "maxItems": MAX_VARIANTS},
        "fixed_variant": _NAME,
        "epsilon": _RATIO,
    },
    "Feedback": {"rating": {"minimum": -1, "maximum": 1}, "comment": {"maxLength": MAX_COMMENT}},
    "Event": {
        "id": {"maxLength": MAX_ID},
        "time": {"format": "date-time"},
        **dict.fromkeys(("service", "task", "variant", "provider", "model", "finish_reason", "session", "user"), _NAME),
        "selection_id": {"maxLength": MAX_SELECTION},
        **dict.fromkeys(
            ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens"), _TOKENS
        ),
        "cost_usd": _COST,
        "latency_ms": _DURATION,
        "time_to_first_token_ms": _DURATION,
        "quality": _RATIO,
        "error": {"maxLength": MAX_ERROR},
        "scores": _FEATURES,
        "context": _FEATURES,
    },
    "SelectBody": {"session": _NAME, "context": _FEATURES},
}
_REQUIRED: Final[Mapping[str, Sequence[str]]] = {
    "Task": ("task", "variants"),
    "Event": (),
}  # where it is not the type's
_OURS: Final = {"Task": ("observed", "created_at", "updated_at"), "Event": ("source", "cost_estimated")}
_ENOUGH: Final = (["selection_id"], ["task", "model"], ["task", "variant"], ["attributes"])


def add_documents(components: dict[str, Schema]) -> None:
    """
    Add the schemas of documents to those of the types; what a type T is written as becomes `TDocument`.
    """
    for name in _BOUNDS:
        components[f"{name}Document"] = _document(name, copy.deepcopy(components[name]))
    del components["SelectBody"]
    components["SelectBodyDocument"]["type"] = ["object", "null"]
    task = components["TaskDocument"]
    task["description"] = "A task as it is declared."
    del task["properties"]["variants"]["default"]
    components["NewTaskDocument"] = {**task, "title": "NewTaskDocument", "required": ["task", "variants"]}
    named = {**task["properties"], "task": {**task["properties"]["task"], "type": ["string", "null"]}}
    told = "A task as it is declared. `task` may be left out, or is the name in the address."
    components["TaskDocument"] = {**task, "properties": named, "required": ["variants"], "description": told}
    event = components["EventDocument"]
    event["description"] = (
        "One outcome. Required: a `selection_id`, or `task` and one of `model` and `variant`, or `attributes` of OpenTelemetry "
        "that say them. Unknown fields are kept under `attributes`; texts of prompts and completions are dropped."
    )
    event |= {"required": [], "additionalProperties": True, "anyOf": [{"required": names} for names in _ENOUGH]}
    one = {"$ref": _REF.format("EventDocument")}
    many = {"type": "array", "items": one, "minItems": 1, "maxItems": MAX_EVENTS}
    components["EventDocuments"] = {"anyOf": [one, many]}


def _document(name: str, schema: Schema) -> Schema:
    schema["title"] = f"{name}Document"
    for ours in _OURS.get(name, ()):
        del schema["properties"][ours]
    for field, kind in schema["properties"].items():
        _refer(kind)
        kind |= _BOUNDS[name].get(field, {})  # bounds mean nothing for null, so they may stand beside alternatives
        if field not in _REQUIRED.get(name, schema.get("required", ())):
            _allow_null(kind)
    return schema


def _refer(schema: Any) -> None:
    # nested documents are documents, too
    if isinstance(schema, dict):
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        if name in _BOUNDS:
            schema["$ref"] = _REF.format(f"{name}Document")
        for inner in schema.values():
            _refer(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _refer(inner)


def _allow_null(schema: Schema) -> None:
    if "type" in schema:
        schema["type"] = [schema["type"], "null"]
    elif "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    elif "$ref" in schema:
        schema["anyOf"] = [{"$ref": schema.pop("$ref")}, {"type": "null"}]
    elif "anyOf" in schema and {"type": "null"} not in schema["anyOf"]:
        schema["anyOf"].append({"type": "null"})
