"""
`make bench`: run the benchmarks one after another and print one table. `python -m benchmarks bus` runs one.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Final

from benchmarks import Row

NAMES: Final = ("bus", "otlp", "select", "supervision", "restarts", "scrape")


def number(value: float) -> str:
    """
    Three significant digits; a dash for a figure that does not exist (0).
    """
    if value == 0:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """
    The rows as aligned text.
    """
    head = ("benchmark", "unit", "floor", "figure", "ratio", "wanted")
    cells = [head] + [
        (row.name, row.unit, number(row.floor), number(row.figure), number(row.ratio), row.wanted) for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    numeric = {2, 3, 4}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def main(names: Sequence[str]) -> int:
    """
    Run the named benchmarks, or all.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name in names or NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"benchmarks.{name}").main()
    print(table(rows))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends as well
    sys.exit(main(sys.argv[1:]))
