"""
What is learned of one task: statistics per variant, and the policy they lead to. Pure: events in, snapshots and bytes out.

The quality of an event is its `quality`; without one, thumbs give 1 or 0, and a rating gives itself, a negative one 0.
Costs and latencies weigh relative to the dearest and the slowest variant (see model.Objective).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from optimizer.decision.contextual import Contextual, ContextualState, seeded
from optimizer.decision.policy import Snapshot, cold, declared_shares, list_cost_usd
from optimizer.decision.shares import Arm, floored, greedy, probability_best, under_ceiling
from optimizer.decision.sketch import Sketch
from optimizer.decision.ticket import Ticket
from optimizer.model import Event, Task, TaskStats, Variant, VariantStats

MAX_TRACKED: Final = 256  # variants with statistics of their own; further ones are counted as OTHER
OTHER: Final = "(other)"
_Z: Final = 1.959964  # two-sided 95 % of the normal distribution


class Tally(msgspec.Struct, kw_only=True):
    """
    Sums of one variant's events.
    """

    count: int = 0
    errors: int = 0
    feedback_count: int = 0
    quality_sum: float = 0.0
    cost_count: int = 0
    cost_sum: float = 0.0
    latency_sum: float = 0.0
    latency: Sketch = msgspec.field(default_factory=Sketch)


class LearnerState(msgspec.Struct, kw_only=True):
    """
    Everything that is durable of a learner.
    """

    task: Task
    events: int = 0
    version: int = 0
    tallies: dict[str, Tally] = {}
    contextual: ContextualState | None = None


def quality_of(event: Event) -> float | None:
    """
    The quality in 0..1 that an event reports, or None.
    """
    if event.quality is not None:
        return event.quality
    if event.feedback is None:
        return None
    if event.feedback.thumbs is not None:
        return float(event.feedback.thumbs)
    return None if event.feedback.rating is None else max(0.0, event.feedback.rating)


def wilson(total: float, n: int) -> tuple[float, float]:
    """
    95 % interval of the mean of n values in 0..1 with this total; conservative for values strictly between.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    p, z2 = total / n, _Z * _Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(max(0.0, p * (1 - p)) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


class Learner:
    """
    One task's learner. `seed` makes every random choice in learning repeatable.
    """

    def __init__(self, state: LearnerState, seed: int = 0) -> None:
        self._state = state
        self._seed = seed
        self._contextual: Contextual | None = None
        if state.contextual is not None:
            self._contextual = Contextual.restore(state.contextual)
        self.retask(state.task)

    @classmethod
    def create(cls, task: Task, seed: int = 0) -> Learner:
        """
        A learner that knows nothing yet.
        """
        return cls(LearnerState(task=task), seed)

    @classmethod
    def from_bytes(cls, data: bytes, seed: int = 0) -> Learner:
        """
        The learner that `to_bytes` wrote.
        """
        return cls(msgspec.msgpack.decode(data, type=LearnerState), seed)

    def to_bytes(self) -> bytes:
        """
        Everything it knows.
        """
        self._state.contextual = self._contextual.state() if self._contextual else None
        return msgspec.msgpack.encode(self._state)

    @property
    def task(self) -> Task:
        """
        The task as it was last declared or observed.
        """
        return self._state.task

    @property
    def version(self) -> int:
        """
        The version of the last snapshot; 0 before the first.
        """
        return self._state.version

    def retask(self, task: Task) -> None:
        """
        The task was declared anew: what is known of its variants is kept.
        """
        self._state.task = task
        if task.policy != "contextual":
            self._contextual = None
            return
        if self._contextual is None:
            self._contextual = Contextual()
        self._contextual.retain({variant.name: self._cost(variant) for variant in task.variants})

    def update(self, event: Event, opens: bool, ticket: Ticket | None) -> str:
        """
        Learn from one event; returns the variant it was counted for.

        Args:
            opens: it is the first event of its selection, or of none; only these count as calls.
            ticket: what its selection id says.
        """
        name = self._attribute(event, ticket)
        tally = self._state.tallies.get(name)
        if tally is None:
            if len(self._state.tallies) >= MAX_TRACKED:
                name = OTHER
            tally = self._state.tallies.setdefault(name, Tally())
        self._state.events += 1
        tally.count += opens
        tally.errors += bool(event.error)
        quality = quality_of(event)
        if quality is not None:
            tally.feedback_count += 1
            tally.quality_sum += quality
        if event.cost_usd is not None:
            tally.cost_count += 1
            tally.cost_sum += event.cost_usd
        if event.latency_ms is not None:
            tally.latency_sum += event.latency_ms
            tally.latency.add(event.latency_ms)
        if self._contextual is not None and ticket is not None:
            self._learn_context(self._contextual, event, opens, ticket, quality)
        return name

    def _learn_context(
        self, contextual: Contextual, event: Event, opens: bool, ticket: Ticket, quality: float | None
    ) -> None:
        if opens:
            contextual.saw(ticket.features)
        contextual.learn(ticket.variant, ticket.features, quality, event.cost_usd)
        if event.cost_usd is not None:
            contextual.spent(event.cost_usd, self.task.objective.max_cost_per_request_usd)

    def _attribute(self, event: Event, ticket: Ticket | None) -> str:
        if ticket is not None:
            return ticket.variant
        if event.variant:
            return event.variant
        for variant in self.task.variants:
            if variant.model == event.model and event.provider in ("", variant.provider):
                return variant.name
        return event.model or OTHER

    def snapshot(self) -> Snapshot | None:
        """
        The policy that follows from what is known, at a new version; None for a task without variants.
        """
        task = self.task
        if not task.variants:
            return None
        self._state.version += 1
        names = [variant.name for variant in task.variants]
        linear = None
        if self._contextual is not None:
            objective = task.objective
            linear, by_name = self._contextual.linear(
                objective.quality,
                dict(zip(names, self._penalties(latency_only=True), strict=True)),
                objective.cost / max(self._dearest(), 1e-12) if objective.cost else 0.0,
                objective.max_cost_per_request_usd,
                seeded(self._seed, self._state.version),
            )
            shares = [by_name[name] for name in names]
        else:
            shares = self._shares()
        return Snapshot(
            task=task.task,
            policy=task.policy,
            policy_version=self._state.version,
            shares=dict(zip(names, shares, strict=True)),
            linear=linear,
        )

    def _shares(self) -> list[float]:
        task, objective = self.task, self.task.objective
        if task.policy == "fixed":
            return list(cold(task).shares.values())
        if task.policy == "weighted":
            return declared_shares(task)
        arms = [
            Arm(tally.quality_sum, tally.feedback_count - tally.quality_sum, self._cost(variant), penalty)
            for variant, penalty in zip(task.variants, self._penalties(), strict=True)
            for tally in (self._tally(variant),)
        ]
        ceiling = objective.max_cost_per_request_usd
        if task.policy == "epsilon_greedy":
            return greedy(arms, objective.quality, task.epsilon, ceiling)
        if ceiling is None:
            return floored(probability_best(arms, objective.quality))
        return under_ceiling(arms, lambda price: probability_best(arms, objective.quality, price), ceiling)

    def stats(self, snapshot: Snapshot | None) -> TaskStats:
        """
        The figures of all variants that are declared or were seen.
        """
        shares = snapshot.shares if snapshot else {}
        names = dict.fromkeys([*(variant.name for variant in self.task.variants), *self._state.tallies])
        return TaskStats(
            task=self.task.task,
            events=self._state.events,
            policy_version=self._state.version,
            variants={
                name: _figures(self._state.tallies.get(name) or Tally(), shares.get(name, 0.0)) for name in names
            },
        )

    def totals(self) -> dict[str, tuple[float, float | None]]:
        """
        By variant: cost of all calls in US dollars, and mean quality.
        """
        return {
            name: (tally.cost_sum, tally.quality_sum / tally.feedback_count if tally.feedback_count else None)
            for name, tally in self._state.tallies.items()
        }

    def _tally(self, variant: Variant) -> Tally:
        return self._state.tallies.get(variant.name) or Tally()

    def _cost(self, variant: Variant) -> float:
        tally = self._tally(variant)
        if tally.cost_count:
            return tally.cost_sum / tally.cost_count
        return list_cost_usd(variant) or 0.0

    def _dearest(self) -> float:
        return max(self._cost(variant) for variant in self.task.variants)

    def _penalties(self, latency_only: bool = False) -> list[float]:
        objective, variants = self.task.objective, self.task.variants
        costs = [self._cost(variant) for variant in variants]
        latencies = [
            tally.latency_sum / tally.latency.count if (tally := self._tally(v)).latency.count else 0.0
            for v in variants
        ]
        dearest, slowest = max(costs) or 1.0, max(latencies) or 1.0
        cost_weight = 0.0 if latency_only else objective.cost
        return [
            cost_weight * cost / dearest + objective.latency * latency / slowest
            for cost, latency in zip(costs, latencies, strict=True)
        ]


def _figures(tally: Tally, share: float) -> VariantStats:
    low, high = wilson(tally.quality_sum, tally.feedback_count) if tally.feedback_count else (None, None)
    return VariantStats(
        count=tally.count,
        feedback_count=tally.feedback_count,
        mean_quality=tally.quality_sum / tally.feedback_count if tally.feedback_count else None,
        quality_low=low,
        quality_high=high,
        mean_cost_usd=tally.cost_sum / tally.cost_count if tally.cost_count else None,
        p50_latency_ms=tally.latency.quantile(0.5),
        p95_latency_ms=tally.latency.quantile(0.95),
        error_rate=min(1.0, tally.errors / tally.count) if tally.count else None,
        share=share,
    )
