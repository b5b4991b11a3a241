"""
The LMDB environment: journal, state and system log in one file, one transaction for any mix of them.

Layout (names of databases): `journal` and `system`: 8-byte offset -> record; `ids` and `selections`: 16-byte digest of an id
-> offset of its first event; `state`: digest-safe key -> revision and body; `meta`: the newest revision. Offsets begin at 1.

Only the writer thread writes; it also grows the map, while nobody reads. LMDB without WRITEMAP writes with pwrite: a full disk
is an error of the transaction, never a signal, and what was committed stays.

What cannot be decoded, or has lost its pages, is damage: `Permanent`, which must end the service and reach no client.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import lmdb
import msgspec

from optimizer.errors import Conflict, Problem, Rejected
from optimizer.messages import SCAN_BYTES, Appended, Commit, Entry, Log, Page, Record, State, States, StorageReport
from workers.storage.environment import DAMAGE, damaged, open_environment, own

T = TypeVar("T")

FIRST_MAP_BYTES: Final = 64 * 1024 * 1024
_KEY_BYTES: Final = 480  # LMDB takes 511; longer keys end in a digest
_ROOM_PAGES: Final = 256  # a megabyte: with so much, the batches of the usual senders fit
_NO_SPACE_BYTES: Final = (
    1024 * 1024
)  # LMDB calls a write that was cut short an error of the device; this tells them apart
_STATE: Final = msgspec.msgpack.Decoder(tuple[str, int, bytes])
_ENTRY: Final = msgspec.msgpack.Decoder(tuple[bool, bytes])
_pack = msgspec.msgpack.Encoder().encode


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _state_key(key: str) -> bytes:
    raw = key.encode()
    return raw if len(raw) <= _KEY_BYTES else raw[: _KEY_BYTES - 16] + _digest(key)


def _number(offset: int) -> bytes:
    return offset.to_bytes(8, "big")


class Lake:
    """
    One environment, opened in the process that uses it.

    Args:
        folder: where it lies; made with mode 0700.
        max_bytes: events are refused beyond this size; 0: no limit but the disk.

    Raises:
        Permanent: it cannot be used, or is damaged. Transient: another process has it, or there is no room to open it.
    """

    def __init__(self, folder: Path, max_bytes: int = 0, first_map_bytes: int = FIRST_MAP_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._readers = 0
        self._gate = threading.Condition()
        self._owner = own(folder)
        self._env, self._db = open_environment(folder, first_map_bytes)
        self.inspect("")  # damage at the ends of the logs is told before anybody waits for an answer

    def close(self) -> None:
        """
        Close the environment; no other method may be called afterwards.
        """
        self._env.close()
        os.close(self._owner)

    # --- writing: the writer thread only ---

    def write(self, steps: Sequence[Callable[[Any], T]]) -> list[T | Conflict]:
        """
        Run the steps in one durable transaction; a step that raises Conflict changes nothing and does not stop the others.

        Raises:
            Rejected: the disk, or the allowed size, is full; nothing was changed. Permanent: the environment is damaged.
        """
        while True:
            try:
                with self._honest():
                    return self._attempt(steps)
            except lmdb.MapFullError:
                self._grow()
            except lmdb.PanicError as error:  # the page that ends a commit could not be written
                self._reopen()
                raise self._refused(error) from error
            except (lmdb.Error, OSError) as error:
                if type(error) not in (lmdb.DiskError, lmdb.Error, OSError):  # EFBIG and EIO have no class of their own
                    raise
                raise self._refused(error) from error

    def _refused(self, error: Exception) -> Rejected:
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < _NO_SPACE_BYTES:
            return Rejected(f"the disk of {self._folder} is full", retry_after_s=2.0)
        return Rejected(f"{self._folder} cannot be written: {error}", retry_after_s=2.0)

    @contextmanager
    def _honest(self) -> Iterator[None]:
        try:
            yield
        except (*DAMAGE, msgspec.DecodeError) as error:
            raise damaged(self._folder, error) from error

    def _attempt(self, steps: Sequence[Callable[[Any], T]]) -> list[T | Conflict]:
        results: list[T | Conflict] = []
        with self._env.begin(write=True) as txn:
            for step in steps:
                try:
                    results.append(step(txn))
                except Conflict as error:  # raised before the step's first put
                    results.append(error)
        return results

    def _grow(self) -> None:
        with self._gate:
            self._gate.wait_for(lambda: self._readers == 0)
            self._env.set_mapsize(self._env.info()["map_size"] * 2)

    def _reopen(self) -> None:
        with self._gate:
            self._gate.wait_for(lambda: self._readers == 0)
            size = self._env.info()["map_size"]
            self._env.close()
            self._env, self._db = open_environment(self._folder, size)

    def take_room(self, txn: Any) -> None:
        """
        Use up a megabyte, as a test of whether there is one. `give_room` comes next. A step of `write`.

        Raises:
            Rejected: the allowed size is full.
        """
        self._check_size()
        for i in range(_ROOM_PAGES):
            txn.put(
                b"room/%d" % i, bytes(3000), db=self._db["meta"]
            )  # more than half a page: each takes one of its own

    def give_room(self, txn: Any) -> None:
        """
        Give back what `take_room` took. A step of `write`.
        """
        for i in range(_ROOM_PAGES):
            txn.delete(b"room/%d" % i, db=self._db["meta"])

    def _check_size(self) -> None:
        if self._max_bytes and self.used_bytes() > self._max_bytes:
            told = f"the store has reached storage.max_size_bytes = {self._max_bytes}"
            raise Rejected(told, retry_after_s=5.0)

    def append(self, txn: Any, records: Sequence[Record]) -> Appended:
        """
        The events that are not there yet, at the journal's end. A step of `write`.
        """
        self._check_size()
        offset, duplicates = self._last(txn, "journal"), []
        for position, record in enumerate(records):
            if not txn.put(_digest(record.id), _number(offset + 1), overwrite=False, db=self._db["ids"]):
                duplicates.append(position)
                continue
            offset += 1
            opens = not record.selection or txn.put(
                _digest(record.selection), _number(offset), overwrite=False, db=self._db["selections"]
            )
            txn.put(_number(offset), _pack((opens, record.body)), append=True, db=self._db["journal"])
        return Appended(last_offset=offset, duplicates=duplicates)

    def commit(self, txn: Any, commit: Commit) -> int:
        """
        Change the state, append system events; returns the revision. A step of `write`.

        Raises:
            Conflict: an expected revision is another one.
        """
        problems = []
        for key, wanted in commit.expect.items():
            state = self._get(txn, key)
            found = state.revision if state else 0
            if found != wanted:
                problems.append(Problem(key, f"is at revision {found}", f"revision {wanted}"))
        if problems:
            raise Conflict(problems)
        revision = self._revision(txn) + 1
        txn.put(b"revision", _number(revision), db=self._db["meta"])
        for key, body in commit.puts.items():
            txn.put(_state_key(key), _pack((key, revision, body)), db=self._db["state"])
        for key in commit.deletes:
            txn.delete(_state_key(key), db=self._db["state"])
        self._announce(txn, commit.system)
        return revision

    def announce(self, txn: Any, events: Sequence[tuple[str, bytes]]) -> int:
        """
        System events that are not there yet, by their id; returns how many were new. A step of `write`.
        """
        new = [body for key, body in events if txn.put(_digest(key), b"", overwrite=False, db=self._db["system_ids"])]
        self._announce(txn, new)
        return len(new)

    def _announce(self, txn: Any, bodies: Sequence[bytes]) -> None:
        offset = self._last(txn, "system")
        for i, body in enumerate(bodies, offset + 1):
            txn.put(_number(i), _pack((True, body)), append=True, db=self._db["system"])

    # --- reading: any thread ---

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        with self._gate:
            self._readers += 1
        try:
            with self._honest(), self._env.begin(buffers=False) as txn:
                yield txn
        finally:
            with self._gate:
                self._readers -= 1
                self._gate.notify_all()

    def read(self, log: Log, after: int, limit: int, max_bytes: int) -> Page:
        """
        Entries of a log after an offset.
        """
        entries: list[Entry] = []
        with self._reading() as txn:
            cursor = txn.cursor(db=self._db[log])
            size = 0
            found = cursor.set_range(_number(after + 1))
            while found and len(entries) < limit and (size < max_bytes or not entries):
                opens, body = _ENTRY.decode(cursor.value())
                entries.append(Entry(int.from_bytes(cursor.key(), "big"), opens, body))
                size += len(body)
                found = cursor.next()
            return Page(entries=entries, last_offset=self._last(txn, log))

    def get(self, keys: Sequence[str]) -> States:
        """
        Values of keys.
        """
        with self._reading() as txn:
            found = {key: state for key in keys if (state := self._get(txn, key)) is not None}
            return States(states=found, revision=self._revision(txn))

    def scan(self, prefix: str, after: str, limit: int) -> States:
        """
        Values under a prefix, in the order of keys.
        """
        states: dict[str, State] = {}
        size = 0
        with self._reading() as txn:
            cursor = txn.cursor(db=self._db["state"])
            start = max(_state_key(prefix), _state_key(after))
            found, more = cursor.set_range(start), False
            while found and cursor.key().startswith(_state_key(prefix)):
                key, revision, body = _STATE.decode(cursor.value())
                if key != after:
                    if len(states) == limit or size >= SCAN_BYTES:
                        more = True
                        break
                    states[key] = State(revision, body)
                    size += len(body)
                found = cursor.next()
            return States(states=states, revision=self._revision(txn), more=more)

    def inspect(self, full: str) -> StorageReport:
        """
        Offsets and sizes.
        """
        with self._reading() as txn:
            return StorageReport(
                journal_offset=self._last(txn, "journal"),
                system_offset=self._last(txn, "system"),
                revision=self._revision(txn),
                used_bytes=self.used_bytes(),
                map_bytes=self._env.info()["map_size"],
                full=full,
            )

    def used_bytes(self) -> int:
        """
        Size of what is written, in bytes.
        """
        page: int = self._env.stat()["psize"]
        return page * (int(self._env.info()["last_pgno"]) + 1)

    def _get(self, txn: Any, key: str) -> State | None:
        raw = txn.get(_state_key(key), db=self._db["state"])
        if raw is None:
            return None
        _, revision, body = _STATE.decode(raw)
        return State(revision, body)

    def _revision(self, txn: Any) -> int:
        return int.from_bytes(txn.get(b"revision", b"", db=self._db["meta"]), "big")

    def _last(self, txn: Any, log: str) -> int:
        cursor = txn.cursor(db=self._db[log])
        return int.from_bytes(cursor.key(), "big") if cursor.last() else 0
