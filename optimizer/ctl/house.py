"""
Commands that run the same operations as REST, over the bus, without the parent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from optimizer.bus.link import Bus
from optimizer.ctl import Target, fail
from optimizer.errors import OptimizerError
from optimizer.operations.house import House
from optimizer.telemetry.logs import configure

T = TypeVar("T")

KEY_FILE: Final = "selection.key"
_JOIN_S: Final = 10.0


def with_house(target: Target, act: Callable[[House], Awaitable[T]], follow: bool = False) -> T:
    """
    The result of `act(house)`; ends the program with a sentence when it fails.

    Args:
        follow: wait until tasks and policies are known, for operations that answer from memory.
    """
    data_dir = Path(target.ask({"command": "status"})["data_dir"])
    configure("warn", json=False, service="optimizerctl")
    try:
        secret = (data_dir / KEY_FILE).read_bytes()
    except OSError as error:
        fail(f"{data_dir / KEY_FILE}: {error.strerror}; the daemon's user can read it")
    try:
        result: T = asyncio.run(_run(target.socket.parent / "bus", secret, act, follow))
        return result
    except* OptimizerError as group:
        error_: BaseException = group
        while isinstance(error_, BaseExceptionGroup):
            error_ = error_.exceptions[0]
        fail(str(error_))
    except* BrokenPipeError:
        os._exit(0)  # the reader has seen enough
    raise AssertionError("fail() returned")


async def _run(bus_dir: Path, secret: bytes, act: Callable[[House], Awaitable[Any]], follow: bool) -> Any:
    async with Bus(bus_dir, f"ctl-{os.getpid()}") as bus, House.open(bus, secret) as house:
        if follow:
            await asyncio.wait_for(house.book.joined(), _JOIN_S)
        return await act(house)
