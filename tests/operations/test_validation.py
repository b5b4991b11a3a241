"""
Every mistake is named; nothing else is.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import Problem
from optimizer.model import Event, Task
from optimizer.operations.checks import did_you_mean
from optimizer.operations.validation import event, pseudonym, task

AT = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = b"k" * 32
GOOD = {"task": "t", "model": "m"}


def check(raw: object, **options: Any) -> Event | list[Problem]:
    return event(raw, at=AT, secret=SECRET, event_id="minted", **options)


def right(raw: object, **options: Any) -> Event:
    found = check(raw, **options)
    assert isinstance(found, Event), found
    return found


def wrong(raw: object, **options: Any) -> list[str]:
    found = check(raw, **options)
    assert isinstance(found, list), found
    for problem in found:
        assert problem.reason
        assert len(str(problem)) < 600
    return [problem.field for problem in found]


def test_a_full_event_is_taken_as_it_is() -> None:
    raw = {
        "id": "e1",
        "time": "2025-12-31T23:59:58.5+01:00",
        "service": "shop",
        "task": "t",
        "variant": "fast",
        "provider": "openai",
        "model": "gpt",
        "input_tokens": 10,
        "output_tokens": 5.0,
        "cost_usd": 0,
        "latency_ms": 12.5,
        "error": "timeout",
        "finish_reason": "stop",
        "parameters": {"temperature": 0.2, "stop": ["a"]},
        "quality": 1,
        "scores": {"tone": 3},
        "feedback": {"rating": -0.5, "thumbs": False, "comment": "no\nwell"},
        "context": {"length": 3, "vip": True, "lang": "de"},
        "attributes": {"k": {"deep": [1, None]}},
    }
    found = right(raw)
    assert found.time == datetime(2025, 12, 31, 22, 59, 58, 500000, tzinfo=UTC)
    assert (found.output_tokens, found.quality, found.scores) == (5, 1.0, {"tone": 3.0})
    assert found.context == {"length": 3.0, "vip": True, "lang": "de"}
    assert found.attributes == {"k": {"deep": [1, None]}}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Event) == found


def test_what_is_absent_is_filled_or_stays_absent() -> None:
    found = right({**GOOD, "quality": None, "attributes": None})
    assert (found.id, found.time, found.quality, found.attributes) == ("minted", AT, None, {})


def test_unknown_fields_are_kept_and_content_is_dropped() -> None:
    raw = {
        **GOOD,
        "region": "eu",
        "prompt": "secret",
        "messages": [{"content": "secret"}],
        "userQuestion": "secret",
        "system_prompt": "secret",
        "blob": '[{"role": "user", "content": "secret"}]',
        "prompt_tokens": 7,
        "context": {"question": "secret", "question_kind": "short"},
        "attributes": {"gen_ai.input.messages": "secret", "a": {"completion": "secret", "b": 1}},
        "parameters": {"input": "secret", "top_p": 1},
    }
    found = right(raw)
    assert found.attributes == {"region": "eu", "prompt_tokens": 7, "a": {"b": 1}}
    assert found.parameters == {"top_p": 1}
    assert found.context == {"question_kind": "short"}
    assert "secret" not in repr(found)
    assert right(raw, keep_content=True).attributes["prompt"] == "secret"


def test_sessions_and_users_are_hashed_with_the_secret() -> None:
    found = right({**GOOD, "session": "s1", "user": "ann@example.org"})
    assert found.session == pseudonym(SECRET, "s1") != pseudonym(b"other", "s1")
    assert len(found.user) == 32
    assert "ann" not in repr(found)


def test_attributes_of_opentelemetry_stand_for_fields() -> None:
    found = right({"attributes": {"llm_optimizer.task": "t", "gen_ai.response.model": "m", "gen_ai.system": "p"}})
    assert (found.task, found.model, found.provider, found.attributes) == ("t", "m", "p", {})


@pytest.mark.parametrize(
    ("raw", "fields"),
    [
        ({}, ["task", "model"]),
        ({"task": "t"}, ["model"]),
        ({"model": "m"}, ["task"]),
        ({**GOOD, "task": 5}, ["task"]),
        ({**GOOD, "task": "x" * 1_000_000}, ["task"]),
        ({**GOOD, "task": "a\x00b"}, ["task"]),
        ({**GOOD, "task": "\ud800"}, ["task"]),
        ({**GOOD, "id": "i" * 129}, ["id"]),
        ({**GOOD, "quality": math.nan}, ["quality"]),
        ({**GOOD, "quality": 1.01}, ["quality"]),
        ({**GOOD, "quality": True}, ["quality"]),
        ({**GOOD, "quality": "1"}, ["quality"]),
        ({**GOOD, "cost_usd": -0.01}, ["cost_usd"]),
        ({**GOOD, "cost_usd": math.inf}, ["cost_usd"]),
        ({**GOOD, "cost_usd": 10**400}, ["cost_usd"]),
        ({**GOOD, "input_tokens": -1}, ["input_tokens"]),
        ({**GOOD, "input_tokens": 1.5}, ["input_tokens"]),
        ({**GOOD, "input_tokens": 2**70}, ["input_tokens"]),
        ({**GOOD, "time": "1970-01-01T00:00:00Z"}, ["time"]),
        ({**GOOD, "time": "2026-01-01T00:06:00Z"}, ["time"]),
        ({**GOOD, "time": "2025-12-31T00:00:00"}, ["time"]),
        ({**GOOD, "time": "0001-01-01T00:00:00+23:59"}, ["time"]),
        ({**GOOD, "time": "2025-13-31T00:00:00Z"}, ["time"]),
        ({**GOOD, "time": 1700000000}, ["time"]),
        ({**GOOD, "feedback": {"rating": 5, "stars": 1}}, ["feedback.rating", "feedback.stars"]),
        ({**GOOD, "feedback": "good"}, ["feedback"]),
        ({**GOOD, "scores": {"tone": math.nan, "x": "y"}}, ["scores.tone", "scores.x"]),
        ({**GOOD, "context": {"a": [1], "b": None}}, ["context.a", "context.b"]),
        ({**GOOD, "context": {str(i): i for i in range(65)}}, ["context"]),
        ({**GOOD, "attributes": {"n": math.inf, "big": 2**64}}, ["attributes.n", "attributes.big"]),
        ({**GOOD, "attributes": {str(i): i for i in range(600)}}, ["attributes"]),
        ({**GOOD, "attributes": {"x": "y" * 9000}}, ["attributes.x"]),
        ({**GOOD, "unknown": math.nan}, ["unknown"]),
        ("event", [""]),
        ([], [""]),
        (None, [""]),
    ],
)
def test_mistakes_are_named(raw: Any, fields: list[str]) -> None:
    assert wrong(raw) == fields


def test_deep_and_wide_objects_are_refused_without_being_walked() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = {"a": deep}
    assert len(wrong({**GOOD, "attributes": deep})) == 1
    assert len(wrong({**GOOD, "parameters": {"a": [[0] * 1000] * 1000}})) == 1
    assert len(wrong({**GOOD, "attributes": {str(i): "z" * 8000 for i in range(20)}})) == 1


def test_paths_begin_with_the_position() -> None:
    assert wrong({"quality": 2}, path="[3]") == ["[3].quality", "[3].task", "[3].model"]


BAD_VALUES = {
    "task": st.sampled_from([1, "x" * 201, "\n", [], {}]),
    "model": st.sampled_from([1.5, "m" * 201, "\x07"]),
    "id": st.sampled_from([7, "i" * 129]),
    "time": st.sampled_from(["now", "1969-01-01T00:00:00Z", "2027-01-01T00:00:00Z", 3]),
    "quality": st.sampled_from([-0.1, 1.1, math.nan, "high", True]),
    "cost_usd": st.sampled_from([-1, math.inf, "1$", 1e9]),
    "latency_ms": st.sampled_from([-1, math.nan, [], 1e12]),
    "output_tokens": st.sampled_from([-1, 0.5, "5", False]),
    "context": st.sampled_from([5, [], {str(i): 1 for i in range(100)}]),
    "session": st.sampled_from([1, "s" * 201]),
}


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional=BAD_VALUES))
def test_exactly_the_wrong_fields_are_named(bad: dict[str, Any]) -> None:
    found = check({**GOOD, **bad})
    if bad:
        assert isinstance(found, list)
        assert {problem.field for problem in found} == set(bad)
    else:
        assert isinstance(found, Event)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.sampled_from([*Event.__struct_fields__, *Task.__struct_fields__, "else"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, JSON, max_size=6))
def test_whatever_comes_is_stored_or_refused(raw: dict[str, Any]) -> None:
    for found in (check(raw), task(raw)):
        if isinstance(found, list):
            assert found
        else:
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=type(found)) == found
            msgspec.json.encode(found)


TASK: dict[str, Any] = {"task": "t", "variants": [{"name": "a"}, {"name": "b"}]}


def refused(raw: object, **options: Any) -> list[Problem]:
    found = task(raw, **options)
    assert isinstance(found, list), found
    return found


def test_a_task_is_read() -> None:
    found = task(
        {
            "task": "support-reply",
            "service": "shop",
            "policy": "contextual",
            "objective": {"quality": 1.0, "cost": 0.5, "latency": 0.0, "max_cost_per_request_usd": None},
            "variants": [
                {
                    "name": "fast",
                    "provider": "openai",
                    "model": "gpt-4o-mini",
                    "parameters": {"temperature": 0},
                    "prompt": {"name": "p", "version": "3"},
                    "price": {"input_usd_per_million": 0.15, "output_usd_per_million": 0.6},
                    "weight": 2,
                },
                {"name": "strong"},
            ],
            "created_at": "2026-01-01T00:00:00Z",
            "observed": False,
        }
    )
    assert isinstance(found, Task)
    assert (found.policy, found.objective.cost, found.epsilon, found.created_at) == ("contextual", 0.5, 0.1, None)
    assert found.variants[0].weight == 2.0
    assert found.variants[0].prompt is not None


@pytest.mark.parametrize(
    ("raw", "fields"),
    [
        ({}, ["task", "variants"]),
        ("x", [""]),
        ({**TASK, "task": ""}, ["task"]),
        ({**TASK, "task": "n" * 1_000_000}, ["task"]),
        ({**TASK, "task": ".."}, ["task"]),
        ({**TASK, "policy": "thomson"}, ["policy"]),
        ({**TASK, "policy": 3}, ["policy"]),
        ({**TASK, "polcy": "fixed"}, ["polcy"]),
        ({**TASK, "epsilon": 1.5}, ["epsilon"]),
        ({**TASK, "fixed_variant": "c"}, ["fixed_variant"]),
        ({**TASK, "objective": {"cost": -1, "speed": 2}}, ["objective.cost", "objective.speed"]),
        ({**TASK, "objective": {"quality": 0}}, ["objective"]),
        ({**TASK, "objective": {"max_cost_per_request_usd": math.nan}}, ["objective.max_cost_per_request_usd"]),
        ({**TASK, "variants": []}, ["variants"]),
        ({**TASK, "variants": "a"}, ["variants"]),
        ({**TASK, "variants": [{"name": str(i)} for i in range(10_000)]}, ["variants"]),
        ({**TASK, "variants": [{"name": "a"}, {"name": "a"}]}, ["variants[1].name"]),
        ({**TASK, "variants": [{"name": "a"}, {}, 5]}, ["variants[1].name", "variants[2]"]),
        ({**TASK, "variants": [{"name": "a", "weight": -1, "mdel": "x"}]}, ["variants[0].weight", "variants[0].mdel"]),
        ({**TASK, "policy": "weighted", "variants": [{"name": "a", "weight": 0}]}, ["variants"]),
        (
            {**TASK, "variants": [{"name": "a", "price": {"input_usd_per_million": -1}, "prompt": {"version": "1"}}]},
            ["variants[0].prompt.name", "variants[0].price.output_usd_per_million", "variants[0].price.input_usd_per_million"],
        ),
    ],
)  # fmt: skip
def test_mistakes_of_a_task_are_named(raw: Any, fields: list[str]) -> None:
    assert [problem.field for problem in refused(raw)] == fields


def test_unknown_fields_are_told_up_to_a_bound() -> None:
    found = task({**{f"x{i}": 1 for i in range(100_000)}, "task": "t", "variants": [{"name": "a", "nam": 1}]})
    assert isinstance(found, list)
    assert len(found) == 102
    assert str(found[0]) == 'variants[0].nam: is not a known field; did you mean "name"?'
    assert str(found[-1]) == "has 99900 more fields that are not known"


def test_a_near_name_is_not_looked_for_among_any_number() -> None:
    asked = 0

    class Name(str):
        __slots__ = ()

        def __len__(self) -> int:
            nonlocal asked
            asked += 1
            return super().__len__()

    assert did_you_mean("n" * 50, (Name("m" * 50) for _ in range(100_000))) == ""
    assert asked < 5000
    assert did_you_mean("n" * 100_000, ["n" * 100_000]) == ""


def test_an_empty_price_or_prompt_is_no_absent_one() -> None:
    found = task({"task": "t", "variants": [{"name": "a", "price": {}, "prompt": {}}, {"name": "b", "price": None}]})
    assert [problem.field for problem in found] == [  # type: ignore[union-attr] # a list
        "variants[0].prompt.name",
        "variants[0].price.input_usd_per_million",
        "variants[0].price.output_usd_per_million",
    ]


def test_near_misses_are_suggested() -> None:
    assert "thompson" in str(refused({**TASK, "policy": "thomson"})[0])
    assert "policy" in refused({**TASK, "polcy": "fixed"})[0].reason


def test_the_address_names_the_task() -> None:
    found = task({"variants": [{"name": "a"}]}, name="t")
    assert isinstance(found, Task)
    assert found.task == "t"
    assert [problem.field for problem in refused(TASK, name="other")] == ["task"]


@pytest.mark.parametrize(
    "time",
    [
        "2026-W01-1T00:00:00Z",
        "2026-01-01T00:00:00+0100",
        "2026-01-01T00:00:00",
        "20260101T000000.0000Z",
        "２026-01-01T00:00:00Z",
    ],
)
def test_times_are_those_of_rfc_3339(time: str) -> None:
    assert [problem.field for problem in event({**GOOD, "time": time}, at=AT, secret=SECRET)] == ["time"]  # type: ignore[union-attr] # a list


def test_clocks_may_differ_a_little() -> None:
    assert right({**GOOD, "time": (AT + timedelta(minutes=4)).isoformat()}).time > AT
