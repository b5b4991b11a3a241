"""
What the processor tells the metrics of tasks: cost and quality of each variant, as far as they are committed.

The cost counter says what has been committed since the task was declared: after a restart, of this process or of the daemon, it
goes on at the committed sum, so nothing that was learned is missing from it and nothing is in it twice.
"""

from __future__ import annotations

import math
from typing import Any

from optimizer.decision.learner import Learner
from optimizer.telemetry.metrics import MAX_SERIES, Metrics


class Figures:
    """
    Figures of all tasks. Of pairs of task and variant beyond MAX_SERIES nothing is told: their names come from senders.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._cost = metrics.task_cost_usd_total
        self._quality = metrics.task_quality_ratio
        self._told: dict[str, dict[str, float]] = {}
        self._count = 0

    def tell(self, task: str, learner: Learner) -> None:
        """
        The learner's sums are committed.
        """
        told = self._told.setdefault(task, {})
        for variant, (cost, quality) in learner.totals().items():
            if variant not in told:
                if self._count >= MAX_SERIES:
                    continue
                self._count += 1
                # an earlier process of this service has told so much
                told[variant] = min(cost, _value(self._cost.labels(task, variant)))
            self._cost.labels(task, variant).inc(max(0.0, cost - told[variant]))
            told[variant] = cost
            if quality is not None:
                self._quality.labels(task, variant).set(quality)

    def forget(self, task: str) -> None:
        """
        The task was deleted: its qualities are shown no more; a task of the same name begins anew.
        """
        for variant in self._told.get(task, {}):
            self._told[task][variant] = 0.0
            self._quality.labels(task, variant).set(math.nan)


def _value(counter: Any) -> float:
    return float(next(iter(counter.collect())).samples[0].value)
