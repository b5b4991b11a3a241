"""
What a replay reached, beside the references, in the shape of the contract (design section 6).

`regret` is the utility of the best fixed mix less the policy's own, per request. Standard errors are over the seeds; with one
seed, over its requests; those of the references are 0, because they are exact for the scored rows. A figure that does not exist
is null.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.replay.references import Reference, references
from optimizer.replay.table import Grid, Table, Weights, grid

Choices = Sequence[tuple[int, str]]  # (row of the table, variant chosen for it), in order
Figures = dict[str, Any]


@dataclass(frozen=True)
class Reached:
    """
    What choices reached: means per request, and the standard errors of the mean quality and cost.
    """

    figures: Reference
    quality_se: float
    cost_usd_se: float


def report(table: Table, weights: Weights, runs: Sequence[Choices]) -> dict[str, Any]:
    """
    The report of some runs (one a seed) over a table.
    """
    cells = grid(table.requests, table.variants, weights)
    known = references(cells, weights.ceiling_usd)
    mix = known["best_fixed_mix"]
    return {
        "table": table.name,
        "requests": len(table.requests),
        "seeds": len(runs),
        "max_cost_per_request_usd": weights.ceiling_usd,
        "policies": [
            figures(name, Reached(found, 0.0, 0.0) if found else None, mix, table.variants)
            for name, found in known.items()
        ],
        "daemon": figures("daemon", reached(cells, runs), mix, table.variants),
    }


def reached(cells: Grid, runs: Sequence[Choices]) -> Reached:
    """
    What the choices of the runs reached; a cell without a recorded quality is left out.
    """
    means = [_run(cells, run) for run in runs]
    if len(runs) > 1:
        errors = [
            float(np.std([getattr(one.figures, name) for one in means], ddof=1) / math.sqrt(len(runs)))
            for name in ("quality", "cost_usd")
        ]
    else:
        errors = [means[0].quality_se, means[0].cost_usd_se]
    quality, cost, utility = (
        float(np.mean([getattr(one.figures, name) for one in means])) for name in ("quality", "cost_usd", "utility")
    )
    share = {name: float(np.mean([one.figures.share[name] for one in means])) for name in cells.variants}
    return Reached(Reference("daemon", quality, cost, utility, share), errors[0], errors[1])


def _run(cells: Grid, run: Choices) -> Reached:
    index = {name: k for k, name in enumerate(cells.variants)}
    rows = np.array([row for row, _ in run])
    columns = np.array([index[name] for _, name in run])
    share = np.bincount(columns, minlength=len(index)) / len(run)
    known = cells.offered[rows, columns]
    rows, columns = rows[known], columns[known]
    quality, cost, utility = (v[rows, columns] for v in (cells.quality, cells.cost, cells.utility))
    found = Reference(
        "daemon",
        float(quality.mean()),
        float(cost.mean()),
        float(utility.mean()),
        {name: float(share[k]) for name, k in index.items()},
    )
    root = math.sqrt(len(rows))
    return Reached(found, float(quality.std(ddof=1) / root), float(cost.std(ddof=1) / root))


def figures(name: str, found: Reached | None, mix: Reference | None, variants: Sequence[str]) -> Figures:
    """
    One policy in the shape of the contract; None: it cannot keep the ceiling.
    """
    if found is None:
        nothing = ("mean_quality", "cost_per_request_usd", "regret", "utility")
        empty: Figures = dict.fromkeys((*nothing, "mean_quality_se", "cost_per_request_usd_se"))
        return {"name": name, **empty, "share": dict.fromkeys(variants)}
    one = found.figures
    return {
        "name": name,
        "mean_quality": one.quality,
        "cost_per_request_usd": one.cost_usd,
        "regret": None if mix is None else mix.utility - one.utility,
        "share": one.share,
        "utility": one.utility,
        "mean_quality_se": found.quality_se,
        "cost_per_request_usd_se": found.cost_usd_se,
    }


def rows(report: dict[str, Any]) -> list[list[str]]:
    """
    The policies as rows of a table for people; the first is the head, the second the daemon.
    """
    variants = list(report["daemon"]["share"])
    head = ["policy", "quality", "$ per request", "regret", *(name.rpartition("/")[2] for name in variants)]
    return [head, *(_row(one, variants) for one in [report["daemon"], *report["policies"]])]


def _row(one: Figures, variants: Sequence[str]) -> list[str]:
    if one["mean_quality"] is None:
        return [one["name"], "-", "over the ceiling", "-", *["-"] * len(variants)]
    regret = "-" if one["regret"] is None else f"{one['regret'] + 0.0:+.4f}"
    shares = [f"{one['share'][name]:.1%}" for name in variants]
    return [one["name"], f"{one['mean_quality']:.4f}", f"{one['cost_per_request_usd']:.3e}", regret, *shares]
