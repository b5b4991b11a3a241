"""
How far a receiver is in the system log, kept in storage: the log and this number together are the outbox.
"""

from __future__ import annotations

from typing import Final

import msgspec

from optimizer.bus.storage import Storage
from optimizer.errors import Conflict

PREFIX: Final = "consumer/webhook/"


class Position(msgspec.Struct, frozen=True):
    """
    The stored value: everything up to this offset is done with.
    """

    offset: int


class Cursor:
    """
    The cursor of one receiver. Its methods raise Transient while storage is away; call them again.

    Args:
        name: receiver; its place is kept under the name, whatever else of it is changed.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self.offset = 0
        self._storage = storage
        self._key = PREFIX + name
        self._revision = 0

    async def open(self) -> None:
        """
        Take up the stored place. A receiver seen for the first time begins at the log's end of now, and that is
        stored at once, so that nothing of what follows is missed.
        """
        if not await self._load():
            end = (await self._storage.inspect()).system_offset
            await self._store(end)

    async def move(self, offset: int) -> None:
        """
        Store that everything up to `offset` is done with. Another one's further place is never taken back.
        """
        if offset > self.offset:
            await self._store(offset)

    async def _store(self, offset: int) -> None:
        body = msgspec.msgpack.encode(Position(offset))
        while True:
            try:
                self._revision = await self._storage.commit({self._key: body}, expect={self._key: self._revision})
            except Conflict:
                # our own commit whose answer was lost, or the last words of an earlier incarnation
                if await self._load() and self.offset >= offset:
                    return
            else:
                self.offset = offset
                return

    async def _load(self) -> bool:
        state = (await self._storage.get([self._key])).get(self._key)
        self._revision = state.revision if state else 0
        if state is not None:
            self.offset = msgspec.msgpack.decode(state.body, type=Position).offset
        return state is not None
