"""
Disks that are full and files that are damaged: a clear state, nothing acknowledged lost, no crash.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from optimizer.bus.link import Bus
from optimizer.bus.storage import RemoteStorage
from optimizer.config.loader import load
from optimizer.errors import Permanent, Rejected, Transient
from optimizer.messages import Commit, Record
from optimizer.service import Frame
from workers.storage.lake import Lake
from workers.storage.service import serve
from workers.storage.settings import Settings
from workers.storage.writer import Writer

PAGE = 4096


def record(i: int, size: int = 1000) -> Record:
    return Record(f"e{i}", "", b"x" * size)


def fill(lake: Lake, count: int) -> None:
    for first in range(0, count, 100):
        batch = [record(i) for i in range(first, first + 100)]
        lake.write([lambda txn, batch=batch: lake.append(txn, batch)])  # type: ignore[misc] # a lambda of a loop


NEARLY_FULL = """
    import asyncio, resource, sys
    from pathlib import Path
    from optimizer.errors import Rejected
    from optimizer.messages import Commit, Record
    from workers.storage.lake import Lake
    from workers.storage.writer import Writer

    async def main():
        lake, told = Lake(Path(sys.argv[1])), []
        writer = Writer(lake, told.append)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
        stored = 0
        try:
            while True:
                batch = [Record(f"e{stored + k}", "", b"x" * 1000) for k in range(200)]
                await writer.run(lambda txn: lake.append(txn, batch))
                stored += 200
        except Rejected as error:
            assert "cannot be written" in str(error), error
        assert len(told) == 1 and told[0], told
        for i in range(5):  # what is small still fits, but that is no room for events
            await writer.run(lambda txn: lake.commit(txn, Commit(puts={"k": b"%d" % i})))
            await writer.probe()
        assert len(told) == 1, told
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await writer.probe()
        assert told[1:] == [""], told
        await writer.run(lambda txn: lake.append(txn, batch))
        await writer.close()
        print(lake.read("journal", 0, 10**6, 2**30).last_offset - stored)

    asyncio.run(main())
"""


def test_a_nearly_full_disk_is_one_state_that_ends_by_itself(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NEARLY_FULL), tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (run.returncode, run.stdout.strip()) == (0, "200"), run.stderr


async def test_the_allowed_size_is_a_lasting_state(tmp_path: Path) -> None:
    lake = Lake(tmp_path, max_bytes=500_000)
    told: list[str] = []
    writer = Writer(lake, told.append)
    with suppress(Rejected):
        fill(lake, 2000)
    with pytest.raises(Rejected, match="max_size_bytes"):
        await writer.run(lambda txn: lake.append(txn, [record(1000)]))
    await writer.run(lambda txn: lake.commit(txn, Commit(puts={"learned": b"x"})))  # learning goes on
    await writer.probe()
    await writer.close()
    lake.close()
    assert len(told) == 1
    assert "max_size_bytes" in told[0]


def _target(descriptor: int) -> Path | None:
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return None


def test_a_commit_that_fails_at_its_last_page_is_refused_and_the_store_works_on(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    fill(lake, 200)
    descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    last = max(fd for fd in descriptors if _target(fd) == tmp_path / "data.mdb")  # of the meta pages: opened second
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, last)
    os.close(full)
    with pytest.raises(Rejected, match="cannot be written"):
        lake.write([lambda txn: lake.append(txn, [record(1000)])])
    with pytest.raises(Rejected, match="cannot be written"):  # LMDB takes nothing more: it is opened anew
        lake.write([lambda txn: lake.append(txn, [record(1001)])])
    assert lake.write([lambda txn: lake.append(txn, [record(1002)])])
    assert lake.read("journal", 0, 10**6, 2**30).last_offset == 201
    lake.close()


def _cut(share: float) -> Callable[[Path], None]:
    def cut(file: Path) -> None:
        os.truncate(file, int(file.stat().st_size * share) // PAGE * PAGE)

    return cut


def _overwrite(file: Path, what: bytes, first: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(first)
        opened.write(what * ((file.stat().st_size - first) // len(what)))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "text": lambda file: file.write_bytes(b"hello\n" * 2000),
    "half": _cut(0.5),
    "tail": _cut(0.9),
    "metas only": lambda file: os.truncate(file, 2 * PAGE),
    "zeros": lambda file: _overwrite(file, bytes(PAGE), 2 * PAGE),
    "rubbish": lambda file: _overwrite(file, b"\xa5" * PAGE, 2 * PAGE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_in_a_sentence(tmp_path: Path, damage: str) -> None:
    lake = Lake(tmp_path)
    fill(lake, 2000)
    lake.close()
    DAMAGES[damage](tmp_path / "data.mdb")
    with pytest.raises(Permanent, match=r"data\.mdb is damaged.*put a copy of it back"):
        Lake(tmp_path)


def test_a_file_that_is_short_of_unused_pages_is_sound(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    fill(lake, 100)
    lake.write([lake.take_room, lake.give_room])  # in one transaction: the pages are never written
    assert (tmp_path / "data.mdb").stat().st_size < lake.used_bytes()
    lake.close()
    again = Lake(tmp_path)
    assert again.read("journal", 0, 10**6, 2**30).last_offset == 100
    again.close()


def test_a_store_has_one_owner_and_a_place(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "a")
    with pytest.raises(Transient, match="used by another daemon"):
        Lake(tmp_path / "a")
    lake.close()
    Lake(tmp_path / "a").close()
    (tmp_path / "file").write_text("")
    with pytest.raises(Permanent, match=r"cannot be used as storage\.lmdb_path"):
        Lake(tmp_path / "file")


async def test_damage_found_while_serving_ends_the_service_and_nobody_else(tmp_path: Path) -> None:
    config = load(env={}, overrides={"service.data_dir": str(tmp_path), "service.runtime_dir": str(tmp_path / "run")})
    frame = Frame[Settings](
        name="storage",
        slot="storage-0",
        config=config,
        settings=Settings(),
        runtime_dir=tmp_path / "run",
        secret=b"s" * 32,
    )
    async with Bus(frame.bus_dir, "asker") as bus:
        serving = asyncio.create_task(serve(frame))
        storage = RemoteStorage(bus.client("storage"), timeout_s=1)
        await storage.append([record(i) for i in range(500)])
        _overwrite(tmp_path / "lmdb" / "data.mdb", b"\xa5" * PAGE, 2 * PAGE)
        with pytest.raises(Transient):  # who asks is told to come again; the service says what it is
            await storage.read("journal", 0)
        with pytest.raises(Permanent, match="damaged"):
            await asyncio.wait_for(serving, 5)
