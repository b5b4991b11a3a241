"""
Linear Thompson sampling with a ceiling on the mean cost of a request.

Each variant has two ridge regressions on the context's features: of quality, whose posterior is sampled, and of cost. The
price of a dollar is solved anew at each publication, so that over the last contexts the mean cost of the chosen variants is
what the ceiling still allows; what was over- or underspent leaks into that allowance.

Sources: Agrawal & Goyal 2013, "Thompson sampling for contextual bandits with linear payoffs" (disjoint models, as in Li et al.
2010); Sherman-Morrison for the inverse; re-solving of the budget's dual: Jasin & Kumar 2012; the setting: Agrawal & Devanur 2016.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from optimizer.decision.features import MAX_FEATURES, Features
from optimizer.decision.policy import Linear, dense

Matrix = NDArray[np.float64]

DIMENSIONS: Final = MAX_FEATURES + 1
SPREAD: Final = 0.05  # standard deviations of the posterior are scaled by it; chosen on the validation table
_RIDGE: Final = 1.0
_PRIOR_MASS: Final = 5.0  # observations that the prior means count as
PRIOR_QUALITY: Final = 0.6
WINDOW: Final = 400  # contexts over which the price is solved
_LEAK: Final = 250.0  # requests over which an over- or underspend is evened out
_CREDIT: Final = 200.0  # requests' worth of underspend that is remembered: a quiet month does not pay for a splurge
_DRAWS: Final = (
    256  # of the posterior, at least, to solve the price: the first contexts are few, and a dear choice counts
)
_STEPS: Final = 40


class _Ridge:
    """
    One ridge regression: `inverse` of X'X + ridge, and X'y.
    """

    def __init__(self, prior: float) -> None:
        self.inverse: Matrix = np.eye(DIMENSIONS) / _RIDGE
        self.inverse[0, 0] = 1 / _PRIOR_MASS
        self.moment: Matrix = np.zeros(DIMENSIONS)
        self.moment[0] = prior * _PRIOR_MASS

    def update(self, x: Matrix, y: float) -> None:
        px = self.inverse @ x
        self.inverse -= np.outer(px, px) / (1 + x @ px)
        self.moment += y * x

    @property
    def mean(self) -> Matrix:
        return self.inverse @ self.moment


class ArmState(msgspec.Struct, frozen=True):
    """
    Both regressions of one variant, binary64 little endian.
    """

    quality_inverse: bytes
    quality_moment: bytes
    cost_inverse: bytes
    cost_moment: bytes


class ContextualState(msgspec.Struct, frozen=True, kw_only=True):
    """
    Everything a Contextual knows, for storage.
    """

    slots: dict[int, int]
    recent: list[Features]
    leak: float
    arms: dict[str, ArmState]


class Contextual:
    """
    The learner of one task with the policy `contextual`. `slots` maps a feature to its dimension, in order of first sight.
    """

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.recent: deque[Features] = deque(maxlen=WINDOW)
        self.leak = 0.0
        self._arms: dict[str, tuple[_Ridge, _Ridge]] = {}

    def retain(self, prior_costs: Mapping[str, float]) -> None:
        """
        Keep exactly these variants; a new one begins at the prior quality and its prior cost in US dollars.
        """
        self._arms = {
            name: self._arms.get(name) or (_Ridge(PRIOR_QUALITY), _Ridge(cost)) for name, cost in prior_costs.items()
        }

    def saw(self, features: Features) -> None:
        """
        A context was answered.
        """
        for key, _ in features:
            if key not in self.slots and len(self.slots) < DIMENSIONS - 1:
                self.slots[key] = len(self.slots) + 1
        self.recent.append(features)

    def learn(self, variant: str, features: Features, quality: float | None, cost_usd: float | None) -> None:
        """
        An outcome of a variant in a context; a variant that is not kept is ignored.
        """
        if variant not in self._arms:
            return
        x = dense(features, self.slots, DIMENSIONS).astype(np.float64)
        by_quality, by_cost = self._arms[variant]
        if quality is not None:
            by_quality.update(x, quality)
        if cost_usd is not None:
            by_cost.update(x, cost_usd)

    def spent(self, cost_usd: float, ceiling_usd: float | None) -> None:
        """
        A request was paid for.
        """
        if ceiling_usd is not None:
            self.leak = max(self.leak + cost_usd - ceiling_usd, -_CREDIT * ceiling_usd)

    def linear(
        self, weight: float, penalties: Mapping[str, float], price: float, ceiling_usd: float | None, seed: int
    ) -> tuple[Linear, dict[str, float]]:
        """
        The posterior to publish, and the shares that its choices have over the recent contexts.

        Args:
            weight: utility of a full quality range; `penalties`: utility off each variant; `price`: utility a dollar that
                the objective asks for; the ceiling may raise it.
        """
        names = list(self._arms)
        mean = np.array([self._arms[name][0].mean for name in names])
        cost = np.array([self._arms[name][1].mean for name in names])
        covariance = np.array([self._arms[name][0].inverse for name in names]) * SPREAD**2
        off = np.array([penalties.get(name, 0.0) for name in names])
        x = np.array([dense(f, self.slots, DIMENSIONS) for f in self.recent or [()]], dtype=np.float64)
        x = np.tile(x, (-(-_DRAWS // len(x)), 1)) if len(x) < _DRAWS else x
        noise = np.random.default_rng(seed).standard_normal((len(x), len(names)))
        spread = np.sqrt(np.maximum(np.einsum("nd,kde,ne->nk", x, covariance, x, optimize=True), 1e-12))
        utility = weight * (x @ mean.T + spread * noise) - off
        costs = np.maximum(x @ cost.T, 0)
        price = solve_price(utility, costs, self._allowance(ceiling_usd), price)
        chosen = np.argmax(utility - price * costs, axis=1)
        shares = np.bincount(chosen, minlength=len(names)) / len(x)
        linear = Linear(
            slots=dict(self.slots),
            dimensions=DIMENSIONS,
            mean=mean.astype("<f4").tobytes(),
            covariance=covariance.astype("<f4").tobytes(),
            cost=cost.astype("<f4").tobytes(),
            penalty=tuple(float(p) for p in off),
            price=price,
            weight=weight,
        )
        return linear, {name: float(share) for name, share in zip(names, shares, strict=True)}

    def _allowance(self, ceiling_usd: float | None) -> float | None:
        if ceiling_usd is None:
            return None
        return float(np.clip(ceiling_usd - self.leak / _LEAK, 0.25 * ceiling_usd, 2 * ceiling_usd))

    def state(self) -> ContextualState:
        """
        For storage.
        """
        arms = {
            name: ArmState(q.inverse.tobytes(), q.moment.tobytes(), c.inverse.tobytes(), c.moment.tobytes())
            for name, (q, c) in self._arms.items()
        }
        return ContextualState(slots=dict(self.slots), recent=list(self.recent), leak=self.leak, arms=arms)

    @classmethod
    def restore(cls, state: ContextualState) -> Contextual:
        """
        From storage.
        """
        learner = cls()
        learner.slots.update(state.slots)
        learner.recent.extend(state.recent)
        learner.leak = state.leak
        learner._arms = {
            name: (_ridge(arm.quality_inverse, arm.quality_moment), _ridge(arm.cost_inverse, arm.cost_moment))
            for name, arm in state.arms.items()
        }
        return learner


def _ridge(inverse: bytes, moment: bytes) -> _Ridge:
    ridge = _Ridge(0.0)
    ridge.inverse = np.frombuffer(inverse).reshape(DIMENSIONS, DIMENSIONS).copy()
    ridge.moment = np.frombuffer(moment).copy()
    return ridge


def solve_price(utility: Matrix, costs: Matrix, allowance: float | None, at_least: float) -> float:
    """
    The smallest price >= `at_least` at which the mean cost of the best choices keeps the allowance.

    Args:
        utility, costs: (n, K), utility before the price, US dollars.

    Returns:
        A price in utility a dollar; 1e12 if even the cheapest choices are over the allowance.
    """

    def spends(price: float) -> float:
        chosen = np.argmax(utility - price * costs, axis=1)
        return float(np.take_along_axis(costs, chosen[:, None], axis=1).mean())

    if allowance is None or spends(at_least) <= allowance:
        return at_least
    low, high = max(-3.0, float(np.log10(max(at_least, 1e-3)))), 12.0
    if spends(10.0**high) > allowance:
        return float(10.0**high)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if spends(10.0**middle) <= allowance:
            high = middle
        else:
            low = middle
    return float(10.0**high)


def seeded(seed: int, version: int) -> int:
    """
    The seed of one publication: the same for equal histories, another for each version.
    """
    return random.Random(f"{seed}/{version}").getrandbits(32)
