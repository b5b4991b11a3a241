"""
Storage and collector in memory: the twins of the services for tests and offline replays. The same promises, but durability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from optimizer.decision.ticket import unseal
from optimizer.errors import Conflict, Invalid, Problem
from optimizer.messages import (
    SCAN_BYTES,
    Appended,
    Changed,
    Entry,
    Grown,
    Log,
    Message,
    Page,
    Record,
    State,
    States,
    StorageReport,
    Submitted,
)
from optimizer.model import Event

_event = msgspec.msgpack.Decoder(Event)


class MemoryStorage:
    """
    Implements `bus.storage.Storage`; `subscribe` has the shape of `Bus.subscribe`, so a Mirror can follow it.
    """

    def __init__(self) -> None:
        self.logs: dict[Log, list[Entry]] = {"journal": [], "system": []}
        self.states: dict[str, State] = {}
        self.revision = 0
        self._offsets: dict[str, int] = {}
        self._selections: set[str] = set()
        self._followers: list[tuple[tuple[str, ...], Callable[[str, Message], None]]] = []

    def subscribe(
        self,
        peer: str,
        topics: Sequence[str],
        on_message: Callable[[str, Message], None],
        on_join: Callable[[], None],
    ) -> None:
        """
        Follow what is published; `on_join` is called at once.
        """
        self._followers.append((tuple(topics), on_message))
        on_join()

    async def append(self, records: Sequence[Record]) -> Appended:
        duplicates = []
        journal = self.logs["journal"]
        for position, record in enumerate(records):
            if record.id in self._offsets:
                duplicates.append(position)
                continue
            opens = not record.selection or record.selection not in self._selections
            self._selections.add(record.selection)
            journal.append(Entry(len(journal) + 1, opens, record.body))
            self._offsets[record.id] = len(journal)
        if len(duplicates) < len(records):
            self._publish("log/journal", Grown(sequence=0, log="journal", last_offset=len(journal)))
        return Appended(last_offset=len(journal), duplicates=duplicates)

    async def read(self, log: Log, after: int, limit: int = 1000) -> Page:
        entries = self.logs[log]
        return Page(entries=entries[after : after + limit], last_offset=len(entries))

    async def commit(
        self,
        puts: Mapping[str, bytes] | None = None,
        deletes: Sequence[str] = (),
        expect: Mapping[str, int] | None = None,
        system: Sequence[bytes] = (),
    ) -> int:
        problems = [
            Problem(key, f"is at revision {self._at(key)}", f"revision {wanted}")
            for key, wanted in (expect or {}).items()
            if self._at(key) != wanted
        ]
        if problems:
            raise Conflict(problems)
        self.revision += 1
        for key, body in (puts or {}).items():
            self.states[key] = State(self.revision, body)
        for key in deletes:
            self.states.pop(key, None)
        log = self.logs["system"]
        log.extend([Entry(offset, True, body) for offset, body in enumerate(system, len(log) + 1)])
        for key in (*(puts or {}), *deletes):
            changed = Changed(sequence=0, key=key, revision=self.revision, body=(puts or {}).get(key))
            self._publish(f"state/{key}", changed)
        if system:
            self._publish("log/system", Grown(sequence=0, log="system", last_offset=len(log)))
        return self.revision

    async def get(self, keys: Sequence[str]) -> dict[str, State]:
        return {key: self.states[key] for key in keys if key in self.states}

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> States:
        found: dict[str, State] = {}
        size = 0
        for key in sorted(key for key in self.states if key.startswith(prefix) and key > after):
            if len(found) == limit or size >= SCAN_BYTES:
                return States(states=found, revision=self.revision, more=True)
            found[key] = self.states[key]
            size += len(found[key].body)
        return States(states=found, revision=self.revision)

    async def inspect(self) -> StorageReport:
        return StorageReport(
            journal_offset=len(self.logs["journal"]),
            system_offset=len(self.logs["system"]),
            revision=self.revision,
            used_bytes=sum(len(entry.body) for entries in self.logs.values() for entry in entries),
            map_bytes=0,
        )

    def _at(self, key: str) -> int:
        return self.states[key].revision if key in self.states else 0

    def _publish(self, topic: str, message: Message) -> None:
        for topics, on_message in self._followers:
            if topic.startswith(topics):
                on_message(topic, message)


class MemoryCollector:
    """
    Implements `bus.collector.Collector`: events are attributed and stored at once; nothing is priced.

    Args:
        secret: the installation's key, with which selection ids were sealed.
    """

    def __init__(self, storage: MemoryStorage, secret: bytes) -> None:
        self._storage = storage
        self._secret = secret

    async def submit(self, source: str, events: Sequence[bytes]) -> Submitted:
        records, problems = [], []
        for i, body in enumerate(events):
            try:
                event = self._attributed(_event.decode(body))
            except msgspec.DecodeError as error:
                raise Invalid(f"an event of Submit is none: {error}") from None
            except Invalid as error:
                problems += [Problem(f"[{i}].{p.field}", p.reason, p.expected) for p in error.problems]
                continue
            records.append(Record(event.id, event.selection_id, msgspec.msgpack.encode(event)))
        if problems:
            raise Invalid(problems)
        return Submitted(duplicates=(await self._storage.append(records)).duplicates)

    def _attributed(self, event: Event) -> Event:
        if not event.selection_id:
            return event
        ticket = unseal(self._secret, event.selection_id)
        return msgspec.structs.replace(event, task=ticket.task, variant=ticket.variant)
