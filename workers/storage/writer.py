"""
The one thread that writes: what arrives while a transaction is on its way shares the next one, and its fsync.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

from optimizer.errors import Conflict, OptimizerError, Permanent, Rejected
from workers.storage.lake import Lake

_WAITING: Final = 10_000  # steps that wait for the disk; beyond it callers are told to slow down
_TOGETHER: Final = 1_000  # steps in one transaction

Step = Callable[[Any], Any]


class Writer:
    """
    Runs steps of `Lake.write` in the order they came.

    Args:
        on_full: called in the loop with why nothing can be written, or "" when there is room again. Between full and nearly
            full some writes succeed, so that is decided by `probe` only: the state does not flicker.

    `failed` gets the exception of a bug in the thread, or of a damaged lake; the service must await it.
    """

    def __init__(self, lake: Lake, on_full: Callable[[str], None]) -> None:
        self._lake = lake
        self._on_full = on_full
        self._full = ""
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self._steps: queue.Queue[tuple[Step, asyncio.Future[Any]] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="lmdb-writer", daemon=True)
        self._thread.start()

    async def run(self, step: Step) -> Any:
        """
        The result of one step, once it is durable.

        Raises:
            Rejected: the disk is full, or too much waits for it. Whatever the step raises.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        try:
            self._steps.put_nowait((step, future))
        except queue.Full as error:
            raise Rejected(f"{_WAITING} writes wait for the disk already") from error
        return await future

    async def probe(self) -> None:
        """
        Pass through the thread; while nothing can be written, try whether a megabyte can.

        Raises:
            Rejected: too much waits for the disk.
        """
        await self.run(lambda _: None)
        if self._full:
            try:
                await self.run(self._lake.take_room)
                await self.run(self._lake.give_room)
            except Rejected as error:
                self._tell(str(error))
            else:
                self._tell("")

    def _tell(self, full: str) -> None:
        if full != self._full:
            self._full = full
            self._on_full(full)

    def fail(self, error: Exception) -> None:
        """
        The lake cannot be used any more: the service has to end.
        """
        if not self.failed.done():
            self.failed.set_exception(error)

    async def close(self) -> None:
        """
        Finish what waits, then end the thread.
        """
        self._steps.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        try:
            self._write_until_closed()
        except Exception as error:  # noqa: BLE001 - the top of the thread: a bug must end the process, not only the thread
            self._loop.call_soon_threadsafe(self.fail, error)

    def _write_until_closed(self) -> None:
        going = True
        while going:
            batch = [self._steps.get()]
            while len(batch) < _TOGETHER and not self._steps.empty():
                batch.append(self._steps.get_nowait())
            going = None not in batch
            if steps := [item for item in batch if item is not None]:
                self._write(steps)

    def _write(self, batch: list[tuple[Step, asyncio.Future[Any]]]) -> None:
        try:
            results: list[Any] = self._lake.write([step for step, _ in batch])
        except Permanent:
            raise
        except OptimizerError as error:
            if len(batch) > 1:  # one step may be too large, or refuse alone
                for one in batch:
                    self._write([one])
                return
            results = [error]
        full = str(results[0]) if isinstance(results[0], Rejected) else ""
        self._loop.call_soon_threadsafe(self._done, [future for _, future in batch], results, full)

    def _done(self, futures: list[asyncio.Future[Any]], results: list[Any], full: str) -> None:
        if full:
            self._tell(full)
        for future, result in zip(futures, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Conflict | OptimizerError):
                future.set_exception(result)
            else:
                future.set_result(result)
