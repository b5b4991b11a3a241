"""
What storage promises, as one Protocol, and its client over the bus. `bus/memory.py` is the in-memory twin;
one conformance suite runs over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from optimizer.bus.requests import Client
from optimizer.errors import Permanent
from optimizer.messages import (
    Append,
    Appended,
    Commit,
    Committed,
    Get,
    Inspect,
    Log,
    Message,
    Page,
    Read,
    Record,
    Scan,
    State,
    States,
    StorageReport,
)

A = TypeVar("A", bound=Message)


class Storage(Protocol):
    """
    The journal, the system log and the state.

    Every method may wait for its answer, re-sends over a restart of the storage service (all requests are
    idempotent) and raises Transient when the deadline passes, Rejected when there is no room.
    """

    async def append(self, records: Sequence[Record]) -> Appended:
        """
        Make events durable; an id that is there already is left alone and reported as a duplicate.
        """

    async def read(self, log: Log, after: int, limit: int = 1000) -> Page:
        """
        Entries with offset > `after`, in order, none skipped.
        """

    async def commit(
        self,
        puts: Mapping[str, bytes] | None = None,
        deletes: Sequence[str] = (),
        expect: Mapping[str, int] | None = None,
        system: Sequence[bytes] = (),
    ) -> int:
        """
        Change keys and append system events in one durable transaction; returns its revision.

        Raises:
            Conflict: a key in `expect` is at another revision (0: absent). Nothing was changed. A commit that
                is re-sent after its answer was lost also ends here if its own keys are in `expect`: read again.
        """

    async def get(self, keys: Sequence[str]) -> dict[str, State]:
        """
        Values of the keys that exist.
        """

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> States:
        """
        Values of keys under a prefix, in the order of keys, about SCAN_BYTES of them; `more` says whether there are others.
        """

    async def inspect(self) -> StorageReport:
        """
        Sizes, offsets, and why nothing can be written.
        """


class RemoteStorage:
    """
    The storage service, over the bus.

    Args:
        timeout_s: longest time of one call, over restarts of the service.
    """

    def __init__(self, client: Client, timeout_s: float = 10.0) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def append(self, records: Sequence[Record]) -> Appended:
        return await self._ask(Append.of(records), Appended)

    async def read(self, log: Log, after: int, limit: int = 1000) -> Page:
        return await self._ask(Read(log=log, after=after, limit=limit), Page)

    async def commit(
        self,
        puts: Mapping[str, bytes] | None = None,
        deletes: Sequence[str] = (),
        expect: Mapping[str, int] | None = None,
        system: Sequence[bytes] = (),
    ) -> int:
        commit = Commit(puts=dict(puts or {}), deletes=list(deletes), expect=dict(expect or {}), system=list(system))
        return (await self._ask(commit, Committed)).revision

    async def get(self, keys: Sequence[str]) -> dict[str, State]:
        return (await self._ask(Get(keys=list(keys)), States)).states

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> States:
        return await self._ask(Scan(prefix=prefix, after=after, limit=limit), States)

    async def inspect(self) -> StorageReport:
        return await self._ask(Inspect(), StorageReport)

    async def _ask(self, question: Message, kind: type[A]) -> A:
        answer = await self._client.request(question, self._timeout_s)
        if not isinstance(answer, kind):
            raise Permanent(f"storage answered {type(question).__name__} with {type(answer).__name__}")
        return answer
