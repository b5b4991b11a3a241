"""
Minutes of trouble for a daemon at work, and thousands of restarts for its parent: `make soak`.

First the real daemon takes feedback, spans and selections while its services are killed, restarted and reloaded: nothing that was
acknowledged may be lost or counted twice, and nobody may be refused a connection. Then the parent restarts trivial services
thousands of times: it may not grow. Prints a table; exits 1 if something does not hold.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from soak.figures import Figure, table
from soak.restarts import restarts
from soak.storm import storm


def main() -> int:
    """
    Both parts, one table.
    """
    parser = argparse.ArgumentParser(prog="soak", description="Trouble for a daemon at work; figures of what it did.")
    parser.add_argument("--seconds", type=float, default=220, help="of the storm over the real daemon; 0: none")
    parser.add_argument("--restarts", type=int, default=5000, help="of trivial services; 0: none")
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    figures: list[Figure] = []
    if wanted.seconds:
        print(f"{wanted.seconds:g} s of kills, restarts and reloads under load …", file=sys.stderr, flush=True)
        figures += _in_folder(lambda folder: storm(folder, wanted.seconds, wanted.seed))
    if wanted.restarts:
        print(f"{wanted.restarts} restarts of trivial services …", file=sys.stderr, flush=True)
        figures += _in_folder(lambda folder: restarts(folder, wanted.restarts, wanted.seed))
    print(table(figures))
    return 0 if all(one.holds for one in figures) else 1


def _in_folder(work: Callable[[Path], list[Figure]]) -> list[Figure]:
    """
    The folder stays, for whoever wants to know why, when something does not hold.
    """
    folder = Path(tempfile.mkdtemp(prefix="llmo-"))
    figures: list[Figure] = []
    try:
        figures = work(folder)
    finally:
        if figures and all(one.holds for one in figures):
            shutil.rmtree(folder)
        else:
            print(f"what is left is in {folder}", file=sys.stderr)
    return figures


if __name__ == "__main__":
    sys.exit(main())
