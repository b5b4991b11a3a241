"""
What both kinds of replay share: the task that stands for a table, the context of a request, the event of an outcome.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from optimizer.model import Event, Objective, PolicyKind, Price, Scalar, Task, Variant
from optimizer.replay.features import describe
from optimizer.replay.table import Outcome, Request, Table, Weights


@dataclass(frozen=True)
class Course:
    """
    How to go through a table.

    Args:
        prices: list prices of variants, where they are known; what an operator would declare.
        features: also send features of the prompt, beside those that the table has.
        delay: requests after which an outcome is reported.
        train: requests that come first and are not scored.
    """

    table: Table
    weights: Weights = Weights()
    policy: PolicyKind = "contextual"
    prices: Mapping[str, Price] = field(default_factory=dict)
    features: bool = True
    delay: int = 20
    train: Sequence[Request] = ()

    def task(self, name: str) -> Task:
        """
        The task that stands for the table.
        """
        return Task(
            task=name,
            service="replay",
            policy=self.policy,
            objective=Objective(
                quality=self.weights.quality,
                cost=self.weights.cost,
                latency=self.weights.latency,
                max_cost_per_request_usd=self.weights.ceiling_usd,
            ),
            variants=tuple(
                Variant(name=variant, model=variant, price=self.prices.get(variant)) for variant in self.table.variants
            ),
        )

    @property
    def rows(self) -> tuple[Request, ...]:
        """
        All requests: the training ones, then those of the table.
        """
        return (*self.train, *self.table.requests)

    def order(self, seed: int) -> list[int]:
        """
        Positions in `rows` in the order of one seed: the training ones, then the scored ones, each shuffled.
        """
        rng = random.Random(seed)
        parts = list(range(len(self.train))), list(range(len(self.train), len(self.rows)))
        for part in parts:
            rng.shuffle(part)
        return [*parts[0], *parts[1]]

    def scored(self, seed: int, chosen: Sequence[str]) -> list[tuple[int, str]]:
        """
        Of the variants chosen along `order(seed)` those that count: (row of the table, variant), in order.
        """
        first = len(self.train)
        return [(row - first, name) for row, name in zip(self.order(seed), chosen, strict=True) if row >= first]

    def context(self, request: Request) -> dict[str, Scalar]:
        """
        What select is told of a request.
        """
        return {**(describe(request.prompt) if self.features else {}), **request.context}


def outcome_event(event_id: str, at: datetime, task: str, variant: str, selection_id: str, outcome: Outcome) -> Event:
    """
    The report of an outcome.
    """
    return Event(
        id=event_id,
        time=at,
        task=task,
        variant=variant,
        selection_id=selection_id,
        quality=outcome.scored_quality,
        cost_usd=outcome.cost_usd,
        latency_ms=outcome.latency_ms,
        time_to_first_token_ms=outcome.time_to_first_token_ms,
        error=outcome.error,
    )
