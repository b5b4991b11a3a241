"""
From documents of senders to Events and Tasks, or to the list of everything that is wrong with them. Pure.

Prompt and completion texts are dropped here, at the door: fields and attributes that carry them never get further.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from optimizer.errors import Invalid, Problem
from optimizer.model import (
    MAX_ID,
    MAX_NAME,
    MAX_VARIANTS,
    POLICIES,
    Event,
    Feedback,
    Objective,
    Price,
    Prompt,
    Scalar,
    Task,
    Variant,
)
from optimizer.operations.checks import (
    MAX_COST_USD,
    MAX_DURATION_MS,
    Drop,
    Reader,
    did_you_mean,
    join,
    shown,
    span,
)
from optimizer.operations.content import is_content

MAX_PROBLEMS: Final = 1000  # listed in one answer; the rest is counted
MAX_ERROR: Final = 1000  # characters of an error; a stack trace belongs into a log
MAX_COMMENT: Final = 4000
MAX_SELECTION: Final = 4096  # characters; a ticket carries the features of its request
MAX_PRICE: Final = 1e6  # US dollars per million tokens

# What a task, a model and so on are called in attributes of OpenTelemetry, newest name first.
_MAPPED: Final[Mapping[str, tuple[str, ...]]] = {
    "task": ("llm_optimizer.task", "gen_ai.agent.name"),
    "selection_id": ("llm_optimizer.selection_id",),
    "variant": ("llm_optimizer.variant",),
    "provider": ("gen_ai.provider.name", "gen_ai.system"),
    "model": ("gen_ai.response.model", "gen_ai.request.model"),
    "service": ("service.name",),
}
_TASK_FIELDS: Final = ("task", "service", "policy", "objective", "variants", "fixed_variant", "epsilon")
_SERVER_FIELDS: Final = ("observed", "created_at", "updated_at")  # shown by us, so a sender may return them
_VARIANT_FIELDS: Final = ("name", "provider", "model", "parameters", "prompt", "price", "weight")


def pseudonym(secret: bytes, text: str) -> str:
    """
    A stable stand-in for the name of a session or user, of no use without the installation's secret; "" for "".

    Source: RFC 7693 (BLAKE2b, keyed), 128 bits.
    """
    return hashlib.blake2b(text.encode(), key=secret[:64], digest_size=16).hexdigest() if text else ""


def event(
    raw: object, *, at: datetime, secret: bytes, path: str = "", event_id: str = "", keep_content: bool = False
) -> Event | list[Problem]:
    """
    One event as the sender wrote it, checked; or all that is wrong with it.

    Args:
        at: the time of receipt, taken when the event has none.
        secret: keys the pseudonyms of session and user.
        path: of this event in the whole input, e.g. `[3]`.
        event_id: taken when the event has no id; the caller mints it.
    """
    if not isinstance(raw, Mapping):
        return [Problem(path, f"is {shown(raw)}", "an object")]
    problems: list[Problem] = []
    reader = Reader(raw, path, problems)
    drop = _nothing if keep_content else is_content
    extra = reader.tree("attributes", drop)
    names = _names(reader, extra)
    found = Event(
        id=reader.text("id", MAX_ID) or event_id,
        time=reader.moment("time", at) or at,
        selection_id=_mapped(reader, extra, "selection_id", MAX_SELECTION),
        **names,
        **_figures(reader),
        error=reader.text("error", MAX_ERROR, printable=False),
        finish_reason=reader.text("finish_reason"),
        parameters=reader.tree("parameters", drop),
        scores=reader.numbers("scores"),
        feedback=_feedback(reader),
        context={name: value for name, value in reader.scalars("context").items() if not drop(name, value)},
        session=pseudonym(secret, reader.text("session", printable=False)),
        user=pseudonym(secret, reader.text("user", printable=False)),
        attributes=_attributes(reader, extra, drop),
    )
    reader.rest = {}
    _require(reader, found)
    return problems or found


def _names(reader: Reader, extra: dict[str, Any]) -> dict[str, Any]:
    return {name: _mapped(reader, extra, name) for name in ("service", "task", "variant", "provider", "model")}


def _mapped(reader: Reader, extra: dict[str, Any], name: str, maximum: int = MAX_NAME) -> str:
    if reader.rest.get(name) is None:
        for attribute in _MAPPED[name]:
            if isinstance(extra.get(attribute), str):
                reader.rest[name] = extra.pop(attribute)
                break
    return reader.text(name, maximum)


def _figures(reader: Reader) -> dict[str, Any]:
    tokens = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
    return {
        **{name: reader.whole(name) for name in tokens},
        "cost_usd": reader.number("cost_usd", 0, MAX_COST_USD),
        "latency_ms": reader.number("latency_ms", 0, MAX_DURATION_MS),
        "time_to_first_token_ms": reader.number("time_to_first_token_ms", 0, MAX_DURATION_MS),
        "quality": reader.number("quality", 0, 1),
    }


def _feedback(reader: Reader) -> Feedback | None:
    raw = reader.mapping("feedback")
    if not raw:
        return None
    inner = Reader(raw, join(reader.path, "feedback"), reader.problems)
    found = Feedback(
        rating=inner.number("rating", -1, 1),
        thumbs=inner.flag("thumbs"),
        comment=inner.text("comment", MAX_COMMENT, printable=False),
    )
    inner.unknown(("rating", "thumbs", "comment"))
    return found


def _nothing(_name: str, _value: object) -> bool:
    return False


def _attributes(reader: Reader, extra: dict[str, Any], drop: Drop) -> dict[str, Any]:
    for mine in ("source", "cost_estimated"):  # of our own making; an exported event may come back with them
        reader.rest.pop(mine, None)
    unknown = {key: value for key, value in reader.rest.items() if value is not None and not drop(key, value)}
    inner = Reader({"": unknown}, reader.path, reader.problems)
    return {**inner.tree(""), **extra} if unknown else extra


def _require(reader: Reader, found: Event) -> None:
    wrong = {problem.field for problem in reader.problems}
    if found.selection_id or join(reader.path, "selection_id") in wrong:
        return
    if not found.task and join(reader.path, "task") not in wrong:
        reader.wrong("task", "is missing", "the name of the task, or a selection_id")
    named = {join(reader.path, "model"), join(reader.path, "variant")}
    if not (found.model or found.variant or named & wrong):
        reader.wrong("model", "is missing", "model or variant, or a selection_id")


def context(raw: Mapping[str, Any]) -> dict[str, Scalar]:
    """
    The features of a request, under `context` of the document `raw`.

    Raises:
        Invalid: with every problem.
    """
    reader = Reader(raw, "", [])
    found = reader.scalars("context")
    if reader.problems:
        raise Invalid(reader.problems)
    return found


def task(raw: object, *, name: str = "", path: str = "") -> Task | list[Problem]:
    """
    One task as an operator wrote it, checked; or all that is wrong with it.

    Args:
        name: from the address, where there is one; the document may leave it out, or must say the same.
    """
    if not isinstance(raw, Mapping):
        return [Problem(path, f"is {shown(raw)}", "an object")]
    problems: list[Problem] = []
    reader = Reader(raw, path, problems)
    for key in _SERVER_FIELDS:
        reader.rest.pop(key, None)
    title = _title(reader, name)
    epsilon = reader.number("epsilon", 0, 1)
    found = Task(
        task=title,
        service=reader.text("service"),
        policy=_policy(reader),
        objective=_objective(reader),
        variants=tuple(_variants(reader)),
        fixed_variant=reader.text("fixed_variant"),
        epsilon=Task(task="").epsilon if epsilon is None else epsilon,
    )
    _agree(reader, found)
    reader.unknown(_TASK_FIELDS)
    return problems or found


def _title(reader: Reader, name: str) -> str:
    if name and reader.rest.get("task") is None:
        reader.rest["task"] = name
    before = len(reader.problems)
    title = reader.text("task")
    if not title and len(reader.problems) == before:
        reader.wrong("task", "is missing", "the name of the task")
    elif name and title and title != name:
        reader.wrong("task", f"is {shown(title)}", f"{shown(name)}, as in the address")
    elif title in (".", ".."):
        reader.wrong("task", f"is {shown(title)}", "a name that can stand in an address")
    return title


def _agree(reader: Reader, found: Task) -> None:
    names = [variant.name for variant in found.variants]
    if found.fixed_variant and found.fixed_variant not in names:
        near = did_you_mean(found.fixed_variant, names)
        reader.wrong("fixed_variant", f"is {shown(found.fixed_variant)}, which is no variant of the task{near}")
    if found.policy == "weighted" and names and not any(variant.weight for variant in found.variants):
        reader.wrong("variants", "all have the weight 0", "at least one weight > 0")


def _policy(reader: Reader) -> Any:
    raw = reader.rest.pop("policy", None)
    if raw is None:
        return "thompson"
    if raw not in POLICIES if isinstance(raw, str) else True:
        near = did_you_mean(raw, POLICIES) if isinstance(raw, str) else ""
        reader.wrong("policy", f"is {shown(raw)}{near}", "one of " + ", ".join(POLICIES))
        return "thompson"
    return raw


def _objective(reader: Reader) -> Objective:
    raw = reader.mapping("objective")
    inner = Reader(raw, join(reader.path, "objective"), reader.problems)
    weights = {name: inner.number(name, 0, 1e9) for name in ("quality", "cost", "latency")}
    ceiling = inner.number("max_cost_per_request_usd", 0, MAX_COST_USD)
    inner.unknown(Objective.__struct_fields__)
    given = {name: weight for name, weight in weights.items() if weight is not None}
    found = Objective(**given, max_cost_per_request_usd=ceiling)
    if found.quality == found.cost == found.latency == 0:
        inner.wrong("", "has no weight above 0", "quality, cost or latency > 0")
    return found


def _variants(reader: Reader) -> list[Variant]:
    raw = reader.rest.pop("variants", None)
    if not isinstance(raw, Sequence) or isinstance(raw, str | bytes):
        given = "is missing" if raw is None else f"is {shown(raw)}"
        reader.wrong("variants", given, f"a list of 1 to {MAX_VARIANTS} variants")
        return []
    if not 1 <= len(raw) <= MAX_VARIANTS:
        reader.wrong("variants", f"has {len(raw)} entries", f"1 to {MAX_VARIANTS}")
        return []
    found: list[Variant] = []
    for i, one in enumerate(raw):
        variant = _variant(one, join(reader.path, f"variants[{i}]"), reader.problems)
        if variant.name and any(variant.name == other.name for other in found):
            reader.wrong(f"variants[{i}].name", f"is {shown(variant.name)} once more", "a name of its own")
        found.append(variant)
    return found


def _variant(raw: object, path: str, problems: list[Problem]) -> Variant:
    if not isinstance(raw, Mapping):
        problems.append(Problem(path, f"is {shown(raw)}", "an object"))
        return Variant(name="")
    reader = Reader(raw, path, problems)
    before = len(problems)
    name = reader.text("name")
    if not name and len(problems) == before:
        reader.wrong("name", "is missing", "the name of the variant")
    weight = reader.number("weight", 0, 1e9)
    found = Variant(
        name=name,
        provider=reader.text("provider"),
        model=reader.text("model"),
        parameters=reader.tree("parameters"),
        prompt=_prompt(reader),
        price=_price(reader),
        weight=1.0 if weight is None else weight,
    )
    reader.unknown(_VARIANT_FIELDS)
    return found


def _prompt(reader: Reader) -> Prompt | None:
    inner = reader.inner("prompt")
    if inner is None:
        return None
    found = Prompt(name=inner.text("name"), version=inner.text("version"))
    if not found.name:
        inner.wrong("name", "is missing", "the name of the prompt")
    inner.unknown(Prompt.__struct_fields__)
    return found


def _price(reader: Reader) -> Price | None:
    inner = reader.inner("price")
    if inner is None:
        return None
    for name in Price.__struct_fields__:
        if inner.rest.get(name) is None:
            inner.wrong(name, "is missing", span(0, MAX_PRICE))
    found = {name: inner.number(name, 0, MAX_PRICE) or 0.0 for name in Price.__struct_fields__}
    inner.unknown(Price.__struct_fields__)
    return Price(**found)


def checked(result: Any) -> Any:
    """
    The result of `task` or `event` when it is one.

    Raises:
        Invalid: it is a list of problems; the first thousand are listed.
    """
    if isinstance(result, list):
        raise Invalid(cut(result))
    return result


def cut(problems: list[Problem]) -> list[Problem]:
    """
    At most a thousand problems; a last one counts the others.
    """
    if len(problems) <= MAX_PROBLEMS:
        return problems
    return [*problems[:MAX_PROBLEMS], Problem("", f"{len(problems) - MAX_PROBLEMS} more problems are not listed")]
