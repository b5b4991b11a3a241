from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from optimizer.bus.link import Bus
from optimizer.bus.memory import MemoryStorage
from optimizer.bus.storage import RemoteStorage, Storage
from optimizer.errors import Conflict, Permanent, Rejected, Transient
from optimizer.messages import SCAN_BYTES, Commit, Inspect, Message, Record, StorageReport
from workers.storage.lake import Lake
from workers.storage.writer import Writer


def record(i: int, selection: str = "", size: int = 10) -> Record:
    return Record(f"e{i}", selection, b"x" * size)


class LakeStorage(MemoryStorage):
    """
    The lake behind the Protocol, without the bus: the methods under test only.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.lake = Lake(folder, first_map_bytes=1024 * 1024)

    async def append(self, records):  # type: ignore[no-untyped-def] # as in the Protocol
        return self.lake.write([lambda txn: self.lake.append(txn, records)])[0]

    async def read(self, log, after, limit=1000):  # type: ignore[no-untyped-def] # as in the Protocol
        return self.lake.read(log, after, limit, 1 << 22)

    async def commit(self, puts=None, deletes=(), expect=None, system=()):  # type: ignore[no-untyped-def] # as above
        commit = Commit(puts=puts or {}, deletes=list(deletes), expect=expect or {}, system=list(system))
        found = self.lake.write([lambda txn: self.lake.commit(txn, commit)])[0]
        if isinstance(found, Conflict):
            raise found
        return found

    async def get(self, keys):  # type: ignore[no-untyped-def] # as above
        return self.lake.get(keys).states

    async def scan(self, prefix, after="", limit=1000):  # type: ignore[no-untyped-def] # as above
        return self.lake.scan(prefix, after, limit)


@pytest.fixture(params=["memory", "lake"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return MemoryStorage() if request.param == "memory" else LakeStorage(tmp_path)


async def test_an_id_is_stored_once_also_within_a_batch(storage: Storage) -> None:
    first = await storage.append([record(1), record(2), record(1)])
    assert (first.last_offset, first.duplicates) == (2, [2])
    again = await storage.append([record(2), record(3)])
    assert (again.last_offset, again.duplicates) == (3, [0])
    page = await storage.read("journal", 1)
    assert [entry.offset for entry in page.entries] == [2, 3]


async def test_the_first_event_of_a_selection_opens_it(storage: Storage) -> None:
    await storage.append([record(1, "s"), record(2, "s"), record(3), record(4)])
    page = await storage.read("journal", 0)
    assert [entry.opens for entry in page.entries] == [True, False, True, True]


async def test_a_commit_with_another_revision_changes_nothing(storage: Storage) -> None:
    revision = await storage.commit({"a": b"1"}, expect={"a": 0})
    with pytest.raises(Conflict, match="revision"):
        await storage.commit({"a": b"2", "b": b"2"}, expect={"a": 0})
    assert set(await storage.get(["a", "b"])) == {"a"}
    await storage.commit({"a": b"3"}, expect={"a": revision}, system=[b"event"])
    assert (await storage.get(["a"]))["a"].body == b"3"
    assert [entry.body for entry in (await storage.read("system", 0)).entries] == [b"event"]


async def test_keys_are_scanned_in_order_and_pages(storage: Storage) -> None:
    await storage.commit({f"task/{i:02}": b"" for i in range(7)} | {"tasl": b"", "x" * 900: b"long"})
    first = await storage.scan("task/", limit=4)
    assert (list(first.states), first.more) == ([f"task/{i:02}" for i in range(4)], True)
    rest = await storage.scan("task/", after="task/03")
    assert (list(rest.states), rest.more) == (["task/04", "task/05", "task/06"], False)
    assert (await storage.get(["x" * 900]))["x" * 900].body == b"long"


async def test_a_page_of_large_values_ends_early(storage: Storage) -> None:
    for i in range(8):
        await storage.commit({f"learn/{i}": bytes(SCAN_BYTES // 4 + 1)})
    pages, after = [], ""
    while True:
        page = await storage.scan("learn/", after)
        pages.append(list(page.states))
        if not page.more:
            break
        after = pages[-1][-1]
    assert pages == [[f"learn/{i}" for i in range(4)], [f"learn/{i}" for i in range(4, 8)]]


async def test_pages_follow_the_last_key_whatever_its_length(storage: Storage) -> None:
    keys = {"task/" + "語" * 190 + f"{i:02}" for i in range(20)} | {"task/a", "task/語"}
    await storage.commit(dict.fromkeys(keys, b""))
    seen: list[str] = []
    after, more = "", True
    while more:
        page = await storage.scan("task/", after, limit=3)
        seen += page.states
        after, more = next(reversed(page.states)), page.more
    assert sorted(seen) == sorted(keys)


def test_the_map_grows_without_a_loss(tmp_path: Path) -> None:
    lake = Lake(tmp_path, first_map_bytes=256 * 1024)
    for i in range(40):
        batch = [record(100 * i + k, size=1000) for k in range(20)]
        lake.write([lambda txn, batch=batch: lake.append(txn, batch)])  # type: ignore[misc] # a lambda of a loop
    assert lake.read("journal", 0, 1000, 1 << 24).last_offset == 800
    assert lake.inspect("").map_bytes > 256 * 1024
    lake.close()


FULL = """
    import resource, signal, sys
    from pathlib import Path
    from optimizer.errors import Rejected
    from optimizer.messages import Record
    from workers.storage.lake import Lake
    lake = Lake(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
    stored = 0
    try:
        while True:
            batch = [Record(f"e{stored + k}", "", b"x" * 1000) for k in range(50)]
            lake.write([lambda txn: lake.append(txn, batch)])
            stored += 50
    except Rejected:
        pass
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert lake.read("journal", 0, 10**6, 2**30).last_offset == stored > 0
    lake.write([lambda txn: lake.append(txn, [Record("after", "", b"")])])
    print(lake.read("journal", 0, 10**6, 2**30).last_offset - stored)
"""


def test_a_full_disk_refuses_keeps_what_is_there_and_works_again(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), tmp_path], capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stdout.strip()) == (0, "1"), run.stderr


def test_the_allowed_size_is_kept(tmp_path: Path) -> None:
    lake = Lake(tmp_path, max_bytes=200_000)

    def fill() -> None:
        for i in range(1000):
            lake.write([lambda txn, i=i: lake.append(txn, [record(i, size=1000)])])  # type: ignore[misc] # as above

    with pytest.raises(Rejected, match="max_size_bytes"):
        fill()
    assert lake.used_bytes() < 300_000
    lake.close()


class Echo:
    """
    A server that counts.
    """

    def __init__(self) -> None:
        self.asked = 0

    async def answer(self, message: Message) -> Message:
        self.asked += 1
        return StorageReport(journal_offset=self.asked, system_offset=0, revision=0, used_bytes=0, map_bytes=0)


async def test_a_request_waits_for_a_server_that_comes_later_and_again(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)  # longer than a socket's path may be
    echo = Echo()
    async with Bus(deep, "asker") as asking:
        storage = RemoteStorage(asking.client("storage"), timeout_s=10)
        for _ in range(2):
            async with Bus(deep, "storage") as serving:
                serving.serve(echo.answer)
                assert 0 < (await storage.inspect()).journal_offset <= echo.asked  # it may be asked twice
        with pytest.raises(Transient, match="did not answer Inspect"):
            await asking.client("storage").request(Inspect(), 0.05)


async def test_an_endpoint_has_one_owner(tmp_path: Path) -> None:
    async with Bus(tmp_path, "storage") as one, Bus(tmp_path, "storage") as two:
        one.serve(Echo().answer)
        with pytest.raises(Permanent, match="bound already"):
            two.serve(Echo().answer)


@pytest.mark.parametrize("steps", [0, 3])
async def test_a_writer_closes_cleanly_with_and_without_work(tmp_path: Path, steps: int) -> None:
    lake = Lake(tmp_path)
    writer = Writer(lake, lambda _: None)
    done = [await writer.run(lambda txn, i=i: lake.append(txn, [record(i)])) for i in range(steps)]  # type: ignore[misc]
    await writer.close()
    assert [one.last_offset for one in done] == list(range(1, steps + 1))
    assert not writer.failed.done()
    lake.close()
