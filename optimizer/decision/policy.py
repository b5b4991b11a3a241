"""
What the processor publishes and the APIs serve: a snapshot of a policy, and the choice it makes for one context.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from optimizer.decision.features import Features, encode
from optimizer.model import PolicyKind, Scalar, Task, Variant

# Gauss-Hermite quadrature of the standard normal: propensities within 1e-4 for the spreads that occur, see the tests
_NODES, _WEIGHTS = (array.tolist() for array in np.polynomial.hermite_e.hermegauss(32))
_USUAL_TOKENS: Final = (500, 300)  # input and output of a request whose cost is known from its list price only
_WEIGHT_SUM: Final = math.sqrt(2 * math.pi)


class Linear(msgspec.Struct, frozen=True, kw_only=True):
    """
    A posterior of linear scores: arrays are little-endian binary32, C order, for K variants and d dimensions.

    `slots`: feature key -> dimension, 1 and up (0 is the constant). `mean` (K, d) of the quality, `covariance` (K, d, d) of it,
    `cost` (K, d) in US dollars; `price`: utility a dollar; `weight`: utility of a full quality range; `penalty` (K).
    """

    slots: dict[int, int]
    dimensions: int
    mean: bytes
    covariance: bytes
    cost: bytes
    penalty: tuple[float, ...]
    price: float
    weight: float


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """
    A policy at one version. `shares` sum to 1; for `contextual` they are the means over recent contexts.
    """

    task: str
    policy: PolicyKind
    policy_version: int
    shares: dict[str, float]
    linear: Linear | None = None


class Choice(NamedTuple):
    """
    `propensity`: with which probability this variant was drawn for this context, in (0, 1].
    """

    variant: str
    propensity: float
    features: Features


def cold(task: Task) -> Snapshot:
    """
    What is served before anything is known: version 0, the declared weights or the fixed variant, else equal shares, as
    far as a ceiling allows them by the list prices; the rest goes to the cheapest.

    Raises:
        ValueError: the task has no variants.
    """
    names = [variant.name for variant in task.variants]
    if not names:
        raise ValueError(f"task {task.task} has no variants")
    if task.policy == "fixed":
        shares = [float(name == (task.fixed_variant or names[0])) for name in names]
    elif task.policy == "weighted":
        shares = declared_shares(task)
    else:
        shares = _affordable(task)
    return Snapshot(task=task.task, policy=task.policy, policy_version=0, shares=dict(zip(names, shares, strict=True)))


def list_cost_usd(variant: Variant) -> float | None:
    """
    What a usual request costs by the list price, or None without one.
    """
    if variant.price is None:
        return None
    tokens_in, tokens_out = _USUAL_TOKENS
    return (tokens_in * variant.price.input_usd_per_million + tokens_out * variant.price.output_usd_per_million) / 1e6


def _affordable(task: Task) -> list[float]:
    k, ceiling = len(task.variants), task.objective.max_cost_per_request_usd
    costs = [cost for variant in task.variants if (cost := list_cost_usd(variant)) is not None]
    if ceiling is None or len(costs) < k or sum(costs) / k <= ceiling:
        return [1 / k] * k
    cheapest = costs.index(min(costs))
    spread = max(0.0, ceiling - costs[cheapest]) / (sum(costs) / k - costs[cheapest] or 1.0)
    return [min(1.0, spread) / k + (max(0.0, 1 - spread) if i == cheapest else 0.0) for i in range(k)]


def declared_shares(task: Task) -> list[float]:
    """
    The shares of the `weighted` policy; equal ones if all weights are zero.
    """
    total = sum(variant.weight for variant in task.variants)
    return [variant.weight / total if total else 1 / len(task.variants) for variant in task.variants]


class Policy:
    """
    A snapshot made ready for choosing; immutable.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._names = list(snapshot.shares)
        self._shares = list(snapshot.shares.values())
        if snapshot.linear is not None:
            self._prepare(snapshot.linear)

    def _prepare(self, linear: Linear) -> None:
        k, d = len(self._names), linear.dimensions
        self._mean = np.frombuffer(linear.mean, "<f4").reshape(k, d)
        self._covariance = np.frombuffer(linear.covariance, "<f4").reshape(k, d, d)
        self._cost = np.frombuffer(linear.cost, "<f4").reshape(k, d)

    def choose(self, context: Mapping[str, Scalar], rng: random.Random) -> Choice:
        """
        Draw a variant for one context.
        """
        features = encode(context) if context else ()
        linear = self.snapshot.linear
        if linear is not None:
            return self._choose_linear(linear, features, rng)
        drawn = rng.random()
        for name, share in zip(self._names, self._shares, strict=True):
            drawn -= share
            if drawn < 0 < share:
                return Choice(name, share, features)
        share, name = max(zip(self._shares, self._names, strict=True))  # rounding left a rest
        return Choice(name, share, features)

    def _choose_linear(self, linear: Linear, features: Features, rng: random.Random) -> Choice:
        centre, spread = self.scores(linear, features)
        drawn = [m + s * rng.gauss(0, 1) for m, s in zip(centre, spread, strict=True)]
        best = max(range(len(drawn)), key=drawn.__getitem__)
        return Choice(self._names[best], probability_highest(best, centre, spread), features)

    def scores(self, linear: Linear, features: Features) -> tuple[list[float], list[float]]:
        """
        Mean and standard deviation of each variant's utility in one context.
        """
        x = dense(features, linear.slots, linear.dimensions)
        quality = self._mean @ x
        variance = np.maximum((self._covariance @ x) @ x, 1e-12)
        cost = np.maximum(self._cost @ x, 0)
        centre = linear.weight * quality - linear.price * cost - linear.penalty
        return centre.tolist(), (linear.weight * np.sqrt(variance)).tolist()


def dense(features: Features, slots: Mapping[int, int], dimensions: int) -> NDArray[np.float32]:
    """
    Features as a vector with the constant 1 in front; those without a slot are left out.
    """
    x = np.zeros(dimensions, np.float32)
    x[0] = 1
    for key, value in features:
        slot = slots.get(key)
        if slot is not None:
            x[slot] += value
    return x


def probability_highest(chosen: int, centre: list[float], spread: list[float]) -> float:
    """
    The probability that one of several independent normal variables is the highest, in (0, 1].
    """
    others = [(m, s * math.sqrt(2)) for i, (m, s) in enumerate(zip(centre, spread, strict=True)) if i != chosen]
    m0, s0, total = centre[chosen], spread[chosen], 0.0
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        value = m0 + s0 * node
        for m, s in others:
            weight *= 0.5 * (1 + math.erf((value - m) / s))
        total += weight
    return min(1.0, max(total / _WEIGHT_SUM, 1e-6))
