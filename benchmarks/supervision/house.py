"""
Our supervisor, as `llm-optimizer` runs it, with a catalogue of six trivial services: the work that the peers have.
"""

from __future__ import annotations

from typing import Any

from benchmarks.supervision.trivial import announce
from optimizer import catalog
from optimizer.service import Frame

CHILDREN = 6


class Trivial(catalog.Service):
    """
    A service that needs nothing and does nothing. It borrows a section of the configuration, as every service has one.
    """

    __slots__ = ()

    @property
    def module(self) -> str:
        return __name__


async def serve(frame: Frame[Any]) -> None:
    """
    Be ready until stopped.
    """
    frame.ready()
    announce()
    await frame.stopping.wait()


def main() -> None:
    """
    Be `llm-optimizer` of this catalogue.
    """
    services = tuple(Trivial(f"trivial_{i}", section="observability") for i in range(CHILDREN))
    catalog.SERVICES = services  # type: ignore[misc] # before the parent's modules are imported, for this process only
    from optimizer.cli import main as run

    run()
