"""
The demonstration's report as text and as one self-contained page.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Final

from optimizer.replay.report import rows

_WIDTH: Final = 720
_HEIGHT: Final = 260
_LEFT: Final = 62
_PAD: Final = 28
_WINDOW: Final = 150  # requests of the moving mean

_STYLE: Final = """
:root{color-scheme:light dark;--own:#2563eb;--other:#c2410c;--kill:#be123c}
@media(prefers-color-scheme:dark){:root{--own:#7aa7ff;--other:#fb923c;--kill:#fb7185}}
body{font:15px/1.5 system-ui,sans-serif;max-width:54rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .6rem;border-bottom:1px solid #8884;text-align:right}
td:first-child,th:first-child{text-align:left}tr:nth-child(2){font-weight:600}
svg{width:100%;height:auto}svg text{fill:currentColor;font-size:11px}svg line{stroke:#8884}
"""


def text(found: dict[str, Any]) -> str:
    """
    The table for a terminal.
    """
    cells = rows(found)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([f"{found['requests']} requests in {found['seconds']} s, {_spent(found)}", "", *lines])


def _spent(found: dict[str, Any]) -> str:
    ceiling = found["max_cost_per_request_usd"]
    return f"ceiling ${ceiling:.2e} a request, spent {found['daemon']['cost_per_request_usd'] / ceiling:.3f} of it"


def page(found: dict[str, Any], curve: Sequence[tuple[float, float]]) -> str:
    """
    The page; `curve`: quality and cost of each request, in order.
    """
    head, *body = rows(found)
    table = _row("th", head) + "".join(_row("td", row) for row in body)
    policies = {one["name"]: one for one in found["policies"]}
    lines = [
        (policies[name]["mean_quality"], name.replace("_", " ")) for name in ("random", "best_fixed_mix", "oracle")
    ]
    quality = _chart([q for q, _ in curve], [line for line in lines if line[0] is not None], "{:.2f}")
    cost = _chart([c for _, c in curve], [(found["max_cost_per_request_usd"], "ceiling")], "${:.1e}")
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>LLM Auto Optimizer: demonstration</title>
<style>{_STYLE}</style></head><body><h1>Learning from {found["requests"]} real requests</h1>
<p>Prompts, judged quality and costs: paretobandit 0.1.1. The {_spent(found)}. In {found["seconds"]} s, the {found["killed"]}
killed with SIGKILL half-way (vertical line). References are in hindsight and under the same ceiling; regret is the utility of
the best fixed mix less a policy's own, per request.</p>
<table>{table}</table>
<h2>Quality, mean of the last {_WINDOW} requests</h2>{quality}
<h2>Dollars a request, mean of the last {_WINDOW} requests</h2>{cost}</body></html>
"""


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def moving_means(values: Sequence[float], window: int) -> list[float]:
    """
    At each position the mean of the last `window` values, of fewer at the beginning.
    """
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def _chart(values: Sequence[float], references: Sequence[tuple[float, str]], form: str) -> str:
    means = moving_means(values, _WINDOW)
    first = min(_WINDOW // 3, len(means) - 1)  # means of few requests say little
    levels = [level for level, _ in references]
    low, high = min([*means[first:], *levels]), max([*means[first:], *levels])
    n = len(means)

    def x(i: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _PAD) * i / max(1, n - 1), 1)

    def y(value: float) -> float:
        return round(_HEIGHT - _PAD - (_HEIGHT - 2 * _PAD) * (value - low) / ((high - low) or 1.0), 1)

    drawn = [
        f'<line x1="{_LEFT}" y1="{y(level)}" x2="{_WIDTH - _PAD}" y2="{y(level)}"/>'
        f'<text x="2" y="{y(level) + 4}">{form.format(level)}</text>'
        for level in (low + (high - low) * part for part in (0, 0.25, 0.5, 0.75, 1))
    ]
    for level, label in references:
        drawn.append(
            f'<line x1="{_LEFT}" y1="{y(level)}" x2="{_WIDTH - _PAD}" y2="{y(level)}" '
            f'style="stroke:var(--other);stroke-dasharray:6 4"/>'
            f'<text x="{_WIDTH - _PAD}" y="{y(level) - 4}" text-anchor="end">{html.escape(label)}</text>'
        )
    drawn.append(
        f'<line x1="{x(n / 2)}" y1="{_PAD}" x2="{x(n / 2)}" y2="{_HEIGHT - _PAD}" style="stroke:var(--kill)"/>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}">request 1</text>'
        f'<text x="{_WIDTH - _PAD}" y="{_HEIGHT - 8}" text-anchor="end">{n}</text>'
    )
    points = " ".join(f"{x(i)},{y(means[i])}" for i in range(first, n, max(1, n // 600)))
    drawn.append(f'<polyline points="{points}" fill="none" style="stroke:var(--own);stroke-width:2"/>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(drawn)}</svg>'
