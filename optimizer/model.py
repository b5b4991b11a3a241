"""
The words of the product as types: what is observed (Event), what is configured (Task, Variant, Objective),
what is announced (SystemEvent). Plain data: checking input is `operations/validation.py`.
"""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

Scalar = float | str | bool

PolicyKind = Literal["fixed", "weighted", "epsilon_greedy", "thompson", "contextual"]
POLICIES: Final[tuple[PolicyKind, ...]] = ("fixed", "weighted", "epsilon_greedy", "thompson", "contextual")

MAX_NAME: Final = 200  # characters of a task, service or variant name
MAX_ID: Final = 128  # characters of an event id
MAX_VARIANTS: Final = 64  # per task; a snapshot with all of them still swaps in under a millisecond

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_id(prefix: str) -> str:
    """
    A fresh identifier that sorts by its time of making: prefix, 48 bits of milliseconds, 80 random bits.

    Source: ULID specification (layout and alphabet), without its monotonic counter.
    """
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return prefix + "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


class Feedback(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """
    What a person said of an answer: `rating` in -1..1 (a negative one is a disapproval), `thumbs`, `comment`.
    """

    rating: float | None = None
    thumbs: bool | None = None
    comment: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One observed model call or one piece of feedback (design section 5). Absent values are None or empty.

    `time` is UTC; tokens are counts >= 0, input including what was read from a cache; `cost_usd` >= 0,
    `cost_estimated` says that it comes from the price catalogue; durations are milliseconds >= 0;
    `quality` is in 0..1; `session` and `user` are hashes.
    """

    id: str
    time: datetime
    source: str = ""
    service: str = ""
    task: str = ""
    selection_id: str = ""
    variant: str = ""
    provider: str = ""
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    cost_estimated: bool = False
    latency_ms: float | None = None
    time_to_first_token_ms: float | None = None
    error: str = ""
    finish_reason: str = ""
    parameters: dict[str, Any] = {}
    quality: float | None = None
    scores: dict[str, float] = {}
    feedback: Feedback | None = None
    context: dict[str, Scalar] = {}
    session: str = ""
    user: str = ""
    attributes: dict[str, Any] = {}


class Prompt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """
    Which prompt a variant uses; its text stays in the application.
    """

    name: str
    version: str = ""


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What a variant charges, in US dollars per million tokens, >= 0.
    """

    input_usd_per_million: float
    output_usd_per_million: float


class Variant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """
    One way to serve a task. `weight` >= 0 is read by the `weighted` policy only.
    """

    name: str
    provider: str = ""
    model: str = ""
    parameters: dict[str, Any] = {}
    prompt: Prompt | None = None
    price: Price | None = None
    weight: float = 1.0


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What is wanted: weights >= 0 of quality, cost and latency, and a ceiling on the mean cost of a request.

    Cost and latency weigh relative to the dearest and the slowest variant of the task, so that a weight of
    1.0 on each is a trade of one full quality range against the whole spread of cost or of latency.
    """

    quality: float = 1.0
    cost: float = 0.0
    latency: float = 0.0
    max_cost_per_request_usd: float | None = None


class Task(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """
    One use of a language model in an application. `observed`: seen in telemetry only, nobody declared it.

    `fixed_variant` is read by the policy `fixed` (default: the first variant), `epsilon` in 0..1 by
    `epsilon_greedy`.
    """

    task: str
    service: str = ""
    policy: PolicyKind = "thompson"
    objective: Objective = Objective()
    variants: tuple[Variant, ...] = ()
    fixed_variant: str = ""
    epsilon: float = 0.1
    observed: bool = False
    created_at: datetime | None = None
    updated_at: datetime | None = None


class VariantStats(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is known of one variant of one task; a figure without observations is None.

    `count`: calls seen (several events of one selection are one call); `feedback_count`: events with a
    quality; `quality_low`/`quality_high`: 95 % interval; `share`: part of selections it gets now, 0..1.
    """

    count: int
    feedback_count: int
    mean_quality: float | None
    quality_low: float | None
    quality_high: float | None
    mean_cost_usd: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    error_rate: float | None
    share: float


class TaskStats(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is known of a task: `events` learned from, the version of the policy that is served, its variants.
    """

    task: str
    events: int
    policy_version: int
    variants: dict[str, VariantStats]


class SystemEvent(msgspec.Struct, frozen=True, kw_only=True):
    """
    Something that happened to the daemon itself (design section 8); also the body of a webhook.
    """

    id: str
    type: str
    time: datetime
    host: str
    environment: str
    severity: Literal["info", "warning", "critical"]
    subject: str
    summary: str
    data: dict[str, Any]
