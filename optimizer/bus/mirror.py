"""
A part of the state kept in memory: read when joining, then followed; read again whenever something was missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from optimizer.bus.storage import Storage
from optimizer.errors import Transient
from optimizer.messages import Changed, Message, State
from optimizer.telemetry.logs import log

_RETRY_S: Final = 0.2


class Subscribable(Protocol):
    """
    What a Mirror needs of a Bus.
    """

    def subscribe(
        self,
        peer: str,
        topics: Sequence[str],
        on_message: Callable[[str, Message], None],
        on_join: Callable[[], None],
    ) -> None:
        """
        As `Bus.subscribe`.
        """


class Mirror:
    """
    All keys under `prefix`, e.g. `policy/`.

    Args:
        on_change: called with (key, State), or (key, None) when it is gone; in the loop, in order of revisions of a key.

    `run()` must be running (one task of the service's TaskGroup).
    """

    def __init__(
        self, bus: Subscribable, storage: Storage, prefix: str, on_change: Callable[[str, State | None], None]
    ) -> None:
        self.states: dict[str, State] = {}
        self._storage = storage
        self._prefix = prefix
        self._on_change = on_change
        self._joined = asyncio.Event()
        self._stale = asyncio.Event()
        self._reading = False
        self._gone: dict[str, int] = {}  # deleted while reading: the page under way may still have them
        bus.subscribe("storage", [f"state/{prefix}"], self._on_message, self._stale.set)

    async def joined(self) -> None:
        """
        Return once everything has been read for the first time.
        """
        await self._joined.wait()

    async def run(self) -> None:
        """
        Read everything whenever that is needed; never returns.
        """
        while True:
            await self._stale.wait()
            self._stale.clear()
            self._reading = True
            try:
                await self._read()
            except Transient as error:
                log.debug("mirror.waits", prefix=self._prefix, error=str(error))
                self._stale.set()
                await asyncio.sleep(_RETRY_S)
            else:
                self._joined.set()
            finally:
                self._reading = False
                self._gone.clear()

    async def _read(self) -> None:
        seen: set[str] = set()
        after, more, revision = "", True, 0
        while more:
            page = await self._storage.scan(self._prefix, after)
            for key, state in page.states.items():
                self._put(key, state)
            seen.update(page.states)
            after = next(reversed(page.states), "")  # in the order of storage, where long keys end in a digest
            more = page.more
            revision = revision or page.revision
        for key in [key for key, state in self.states.items() if key not in seen and state.revision <= revision]:
            del self.states[key]
            self._on_change(key, None)

    def _on_message(self, topic: str, message: Message) -> None:
        if not isinstance(message, Changed):
            return
        if message.body is not None:
            self._put(message.key, State(message.revision, message.body))
            return
        if self._reading:
            self._gone[message.key] = message.revision
        if message.key in self.states and self.states[message.key].revision < message.revision:
            del self.states[message.key]
            self._on_change(message.key, None)

    def _put(self, key: str, state: State) -> None:
        known = self.states.get(key)
        if (known is None or known.revision < state.revision) and self._gone.get(key, 0) < state.revision:
            self.states[key] = state
            self._on_change(key, state)
