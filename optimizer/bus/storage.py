"""
What storage promises, as one Protocol, and its client over the bus. `bus/memory.py` is the in-memory twin;
one conformance suite runs over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from optimizer.messages import Appended, Log, Page, Record, State, States, StorageReport


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
        Values of keys under a prefix, in the order of keys.
        """

    async def inspect(self) -> StorageReport:
        """
        Sizes, offsets, and why nothing can be written.
        """
