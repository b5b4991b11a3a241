"""
A recorded outcome table: for each request, what every variant would have answered. Plain data and its arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.model import Scalar

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What one variant did with one request: `quality` in 0..1, the rest as in model.Event; None: not recorded.
    """

    quality: float | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    time_to_first_token_ms: float | None = None
    error: str = ""

    @property
    def scored_quality(self) -> float | None:
        """
        The quality that counts: an error without one is worth nothing.
        """
        return 0.0 if self.quality is None and self.error else self.quality


@dataclass(frozen=True, slots=True)
class Request:
    """
    One request: its prompt (may be empty), features of the caller, the outcomes of the variants that were offered.
    """

    prompt: str
    context: Mapping[str, Scalar]
    outcomes: Mapping[str, Outcome]


@dataclass(frozen=True)
class Table:
    """
    Args:
        name: of the file; `variants`: in order of first sight.
    """

    name: str
    variants: tuple[str, ...]
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Weights:
    """
    The objective: weights >= 0 as in model.Objective, and the ceiling on the mean cost of a request in US dollars.
    """

    quality: float = 1.0
    cost: float = 0.0
    latency: float = 0.0
    ceiling_usd: float | None = None


@dataclass(frozen=True)
class Grid:
    """
    A table as arrays (n requests, K variants); cells that were not offered are 0 and not in `offered`.

    `utility` is that of the objective: quality less cost and latency relative to the dearest and the slowest variant.
    """

    variants: tuple[str, ...]
    quality: Floats
    cost: Floats
    utility: Floats
    offered: Mask


def grid(requests: Sequence[Request], variants: tuple[str, ...], weights: Weights) -> Grid:
    """
    The arrays of some requests. A missing cost or latency counts as 0, a missing quality of a cell as not offered.
    """
    shape = (len(requests), len(variants))
    quality, cost, latency = (np.zeros(shape) for _ in range(3))
    offered = np.zeros(shape, dtype=bool)
    for i, request in enumerate(requests):
        for k, name in enumerate(variants):
            outcome = request.outcomes.get(name)
            if outcome is not None and outcome.scored_quality is not None:
                offered[i, k] = True
                quality[i, k] = outcome.scored_quality
                cost[i, k] = outcome.cost_usd or 0.0
                latency[i, k] = outcome.latency_ms or 0.0
    utility = weights.quality * quality
    for weight, measure in ((weights.cost, cost), (weights.latency, latency)):
        if weight:
            utility = utility - weight * measure / (means(measure, offered).max() or 1.0)
    return Grid(variants, quality, cost, np.where(offered, utility, 0.0), offered)


def means(values: Floats, offered: Mask) -> Floats:
    """
    Mean of each column over the cells that were offered; 0 for a column without any.
    """
    counts = offered.sum(axis=0)
    total: Floats = np.where(offered, values, 0.0).sum(axis=0)
    mean: Floats = total / np.maximum(counts, 1)
    return mean
