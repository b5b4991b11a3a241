"""
What processes say to each other: every message is a typed struct, encoded as MessagePack with its type's name
as tag. `VERSION` travels in front of each message on the bus; a peer of another version is refused by name.

Four groups: storage (requests, answers, publications), collector (requests, answers), failure, control (the
socketpair between the parent and a child; not on the bus).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from optimizer.errors import Invalid
from optimizer.model import SystemEvent

VERSION: Final = 1
SCAN_BYTES: Final = 4 * 1024 * 1024  # of values in one answer to Scan, about; one more value is there in any case

Log = Literal["journal", "system"]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """
    Root of everything that is sent.
    """


# --- storage -------------------------------------------------------------------------------------------


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    One event on its way into the journal: its id (the key of idempotence), the selection it belongs to (or
    ""), and the event itself as MessagePack, which storage does not look into.
    """

    id: str
    selection: str
    body: bytes


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    One event read from a log. `opens`: it is the first one of its selection, or belongs to none; counting
    only these counts calls, not reports of calls.
    """

    offset: int
    opens: bool
    body: bytes


class State(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    One value of the state with the revision (> 0) of the commit that wrote it.
    """

    revision: int
    body: bytes


class Append(Message, frozen=True):
    """
    Make events durable. Answer: Appended, after the disk has them.

    `packed`: a list of Records as MessagePack. It travels as one piece, and is unpacked once, by whoever stores it.
    """

    packed: memoryview

    @classmethod
    def of(cls, records: Sequence[Record]) -> Append:
        """
        The request for some records.
        """
        return cls(packed=memoryview(_encoder.encode(records)))

    def records(self) -> list[Record]:
        """
        The records, unpacked.

        Raises:
            Invalid: there are none.
        """
        try:
            return _records.decode(self.packed)
        except msgspec.DecodeError as error:
            raise Invalid(f"the packed records cannot be read: {error}") from error


class Appended(Message, frozen=True):
    """
    `last_offset` of the journal now; `duplicates`: positions in the request of events already there.
    """

    last_offset: int
    duplicates: list[int] = []


class Read(Message, frozen=True):
    """
    Read a log onward from `after` (exclusive; 0 is the beginning; offsets begin at 1). Answer: Page.
    """

    log: Log
    after: int
    limit: int = 1000
    max_bytes: int = 4 * 1024 * 1024


class Page(Message, frozen=True):
    """
    `entries` in order, at least one if there is any; `last_offset`: the log's end when it was read.
    """

    entries: list[Entry]
    last_offset: int


class Commit(Message, frozen=True):
    """
    Change the state and append system events in one durable transaction. Answer: Committed, or a Failure
    "conflict" with nothing changed when a key in `expect` has another revision (0: must be absent).

    `system`: SystemEvents as MessagePack.
    """

    puts: dict[str, bytes] = {}
    deletes: list[str] = []
    expect: dict[str, int] = {}
    system: list[bytes] = []


class Committed(Message, frozen=True):
    """
    The commit is durable; its revision is that of every key it put.
    """

    revision: int


class Get(Message, frozen=True):
    """
    Values of keys. Answer: States, without the absent ones.
    """

    keys: list[str]


class Scan(Message, frozen=True):
    """
    Values of all keys that begin with `prefix` and sort after `after`, in order, about SCAN_BYTES of them. Answer: States.
    """

    prefix: str
    after: str = ""
    limit: int = 1000


class States(Message, frozen=True):
    """
    `revision`: the newest commit of the whole state when it was read; `more`: a scan stopped before the end.
    """

    states: dict[str, State]
    revision: int
    more: bool = False


class Inspect(Message, frozen=True):
    """
    Ask how storage is. Answer: StorageReport.
    """


class StorageReport(Message, frozen=True):
    """
    Offsets are those of the newest entries; sizes are bytes; `full` says why nothing can be written, or "".
    """

    journal_offset: int
    system_offset: int
    revision: int
    used_bytes: int
    map_bytes: int
    full: str = ""


class Changed(Message, frozen=True):
    """
    Published by storage under the topic `state/<key>` after a commit; `body` None: deleted.

    `sequence` counts this publisher's messages from 1: a gap, or a smaller number, means that something was
    missed and the subscriber reads the state again.
    """

    sequence: int
    key: str
    revision: int
    body: bytes | None


class Grown(Message, frozen=True):
    """
    Published by storage under the topic `log/<log>` after a commit that appended to it.
    """

    sequence: int
    log: Log
    last_offset: int


class Pulse(Message, frozen=True):
    """
    Published every second for each group: the number of its last message, so that a loss is seen at the latest then.
    """

    sequence: int


# --- collector -----------------------------------------------------------------------------------------


class Submit(Message, frozen=True):
    """
    Events that an API has checked (MessagePack of model.Event). Answer: Submitted, when they are durable.
    """

    source: str
    events: list[bytes]


class Submitted(Message, frozen=True):
    """
    `duplicates`: positions in the request of events that were known already.
    """

    duplicates: list[int] = []


# --- failure -------------------------------------------------------------------------------------------


class Failure(Message, frozen=True):
    """
    The answer of a server that could not: the branch of the tree of errors, and what it carries.

    `problems`: (field, reason, expected) of each.
    """

    kind: Literal["transient", "rejected", "invalid", "not_found", "conflict", "permanent"]
    message: str
    problems: list[tuple[str, str, str]] = []
    retry_after_s: float = 1.0


# --- control: child to parent --------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """
    The service serves now.
    """

    ports: dict[str, int] = {}


class Heartbeat(Message, frozen=True):
    """
    The service's work loop went round. `problems`: why it is degraded, by cause; empty is healthy.
    """

    problems: dict[str, str] = {}
    metadata: dict[str, str] = {}


class SystemStored(Message, frozen=True):
    """
    Storage has the parent's system events up to this number durably.
    """

    number: int


# --- control: parent to child --------------------------------------------------------------------------


class Stop(Message, frozen=True):
    """
    Finish what is in flight and return within `budget_s` seconds.
    """

    budget_s: float


class Tune(Message, frozen=True):
    """
    Settings that change in the running process. None: as it is. `reopen`: the log file has been moved.
    """

    log_level: str | None = None
    json_logging: bool | None = None
    log_file: str | None = None
    beat_s: float | None = None
    reopen: bool = False


class SlotView(msgspec.Struct, frozen=True, kw_only=True):
    """
    One instance of a service. `leaving`: pids that a successor has replaced and that finish what they have in hand.
    """

    state: str
    pid: int | None
    incarnation: int
    leaving: list[int] = []


class ServiceView(msgspec.Struct, frozen=True, kw_only=True):
    """
    A service as the parent sees it. Times are CLOCK_MONOTONIC seconds, the same in every process.

    Args:
        wanted: neither disabled nor stopped by an operator.
        restarts: since the daemon's start, by the reason of the end before. `entered`: transitions by their new state.
        start_secs: from the newest fork to ready. `heartbeat_at`: the newest sign of life of the work loop.
        circuit: closed; open: given up, but for a try now and then; half_open: in such a try.
        memory_bytes: PSS where it can be read, else RSS, of all its processes.
        slots: its instances by name.
    """

    state: str
    healthy: bool
    wanted: bool = True
    consecutive_failures: int = 0
    message: str | None = None
    metadata: dict[str, str] = {}
    pid: int | None = None
    incarnation: int = 0
    restarts: dict[str, int] = {}
    entered: dict[str, int] = {}
    started_at: float | None = None
    ready_at: float | None = None
    start_secs: float | None = None
    heartbeat_at: float | None = None
    last_exit: str | None = None
    next_retry_at: float | None = None
    circuit: Literal["closed", "open", "half_open"] = "closed"
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    fds: int = 0
    threads: int = 0
    ports: dict[str, int] = {}
    needs: tuple[str, ...] = ()
    slots: dict[str, SlotView] = {}


class Fleet(Message, frozen=True):
    """
    All services as the parent sees them: the source of /health, `status` and the supervisor's metrics.

    Sent on every change and every few seconds.

    Args:
        started: every wanted service has been started, or given up, once; stays so.
        started_at: CLOCK_MONOTONIC of the daemon's start.
        loop_lag_secs: by how much the parent's loop woke too late, the worst of late.
        reloads: by result: applied, rejected, rolled_back.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    started_at: float
    services: dict[str, ServiceView]
    started: bool = True
    loop_lag_secs: float = 0.0
    reloads: dict[str, int] = {}


class SystemEvents(Message, frozen=True):
    """
    For storage: numbered system events of the parent, repeated until SystemStored names their number.
    """

    first_number: int
    events: list[SystemEvent]


Control = Ready | Heartbeat | SystemStored | Stop | Tune | Fleet | SystemEvents
Bus = (
    Append | Appended | Read | Page | Commit | Committed | Get | Scan | States | Inspect | StorageReport
    | Changed | Grown | Pulse | Submit | Submitted | Failure
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_records = msgspec.msgpack.Decoder(list[Record])
_bus: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Bus)
_control: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Control)


def encode(message: Message) -> bytes:
    """
    One message as MessagePack.
    """
    return _encoder.encode(message)


def decode_bus(data: bytes | memoryview) -> Message:
    """
    The bus message in `data`.

    Raises:
        msgspec.DecodeError: it is none.
    """
    message: Message = _bus.decode(data)
    return message


def decode_control(data: bytes) -> Message:
    """
    The control message in `data`.

    Raises:
        msgspec.DecodeError: it is none.
    """
    message: Message = _control.decode(data)
    return message
