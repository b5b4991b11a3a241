"""
Our supervisor beside supervisord, circus, gunicorn and uvicorn, in one run: start, kill to ready, stop, idle CPU, memory.

The same six trivial children under each, and then what our daemon really runs. Everything is looked at from outside and in the
same way for all. What each figure means, and who wins where: `docs/performance.md`.
"""

from __future__ import annotations

from benchmarks import Row


def main() -> list[Row]:
    """
    Measure, in about two minutes; prints the whole table and writes it to `build/bench/supervision.json`.
    """
    from benchmarks.supervision import report  # not above: the children of our own supervisor import this package
    from benchmarks.supervision.measure import measure
    from benchmarks.supervision.observe import machine
    from benchmarks.supervision.systems import SYSTEMS

    found = machine()
    figures = measure(SYSTEMS)
    report.write(report.PATH, report.document(figures, found))
    print(report.table(figures), end="\n\n", flush=True)
    return report.rows(figures)
