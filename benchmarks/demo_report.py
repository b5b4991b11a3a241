"""
The demonstration's report as text and as one self-contained page.
"""

from __future__ import annotations

import html as escape
from collections.abc import Sequence
from typing import Any

Figures = dict[str, Any]

_WIDTH, _HEIGHT, _PAD = 720, 260, 46
_WINDOW = 150  # requests of the moving mean

_STYLE = """
:root{color-scheme:light dark;--line:#2563eb;--mix:#d97706;--ink:#111;--soft:#8884}
@media(prefers-color-scheme:dark){:root{--ink:#eee}}
body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:var(--ink)}
table{border-collapse:collapse;width:100%}td,th{padding:.3rem .6rem;border-bottom:1px solid var(--soft);text-align:right}
td:first-child,th:first-child{text-align:left}svg{width:100%;height:auto}text{fill:currentColor;font-size:11px}
"""


def _rows(report: Figures) -> list[list[str]]:
    variants = list(report["daemon"]["share"])
    rows = [["policy", "quality", "$ per request", "regret", *(name.rpartition("/")[2] for name in variants)]]
    for one in [report["daemon"], *report["policies"]]:
        if "share" not in one:
            rows.append([one["name"], "infeasible", *[""] * (len(variants) + 2)])
            continue
        shares = [f"{one['share'].get(name, 0):.0%}" for name in variants]
        figures = [f"{one['mean_quality']:.4f}", f"{one['cost_per_request_usd']:.3e}", f"{one['regret']:+.4f}"]
        rows.append([one["name"], *figures, *shares])
    return rows


def table_text(report: Figures) -> str:
    """
    The table for a terminal.
    """
    rows = _rows(report)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    ratio = report["daemon"]["cost_per_request_usd"] / report["max_cost_per_request_usd"]
    spent = f"ceiling ${report['max_cost_per_request_usd']:.2e} a request, spent {ratio:.3f} of it"
    return "\n".join([f"{report['requests']} requests in {report['seconds']} s, {spent}", "", *lines])


def html(report: Figures, curve: Sequence[tuple[float, float]]) -> str:
    """
    The page; `curve`: quality and cost of each request, in order.
    """
    head, *rows = _rows(report)
    cells = "".join(f"<tr>{''.join(f'<td>{escape.escape(c)}</td>' for c in row)}</tr>" for row in rows)
    mix = next(one for one in report["policies"] if one["name"] == "best_fixed_mix")
    quality = _chart([q for q, _ in curve], mix["mean_quality"], "{:.2f}", "best fixed mix")
    cost = _chart([c for _, c in curve], report["max_cost_per_request_usd"], "{:.1e}", "ceiling")
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>LLM Auto Optimizer: demonstration</title>
<style>{_STYLE}</style><h1>Learning from {report["requests"]} real requests</h1>
<p>Prompts, judged rewards and costs: paretobandit 0.1.1. Ceiling ${report["max_cost_per_request_usd"]:.2e} a request. Half-way,
the processor was killed with SIGKILL.</p>
<table><tr>{"".join(f"<th>{escape.escape(c)}</th>" for c in head)}</tr>{cells}</table>
<h2>Quality, mean of the last {_WINDOW} requests</h2>{quality}<h2>Dollars a request, mean of the last {_WINDOW}</h2>{cost}</html>
"""


def _chart(values: list[float], reference: float, form: str, label: str) -> str:
    means = []
    total = 0.0
    for i, value in enumerate(values):
        total += value - (values[i - _WINDOW] if i >= _WINDOW else 0.0)
        means.append(total / min(i + 1, _WINDOW))
    shown = means[_WINDOW // 3 :]
    low, high = min([*shown, reference]), max([*shown, reference])
    spread = (high - low) or 1.0

    def at(i: float, value: float) -> str:
        x = _PAD + (_WIDTH - 2 * _PAD) * i / max(1, len(shown) - 1)
        return f"{x:.1f},{_HEIGHT - _PAD - (_HEIGHT - 2 * _PAD) * (value - low) / spread:.1f}"

    step = max(1, len(shown) // 600)
    line = " ".join(at(i, shown[i]) for i in range(0, len(shown), step))
    ends = at(0, reference), at(len(shown) - 1, reference)
    marks = "".join(
        f'<text x="2" y="{at(0, value).split(",")[1]}">{form.format(value)}</text>' for value in (low, high, reference)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><polyline points="{" ".join(ends)}" fill="none" '
        f'stroke="var(--mix)" stroke-dasharray="5 4"/><polyline points="{line}" fill="none" stroke="var(--line)" '
        f'stroke-width="1.6"/>{marks}<text x="{_WIDTH - 110}" y="{float(ends[1].split(",")[1]) - 5:.1f}">{label}</text></svg>'
    )
