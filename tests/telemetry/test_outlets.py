"""
Lines find their place, or are counted; whoever logs is neither ended nor held up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import shutil
import socket
import stat
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.telemetry.outlets import File, Stream

LINE = b"x" * 4000


def note(count: int) -> bytes:
    return b"lost %d" % count


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = set(Path("/proc/self/fd").iterdir())
    yield
    for path in set(Path("/proc/self/fd").iterdir()) - before:
        with contextlib.suppress(OSError):  # the one of the listing itself
            os.close(int(path.name))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for end in (read, write):
        os.close(end)


def drained(read: int) -> bytes:
    os.set_blocking(read, False)
    found = b""
    try:
        while piece := os.read(read, 65536):
            found += piece
    except BlockingIOError:
        pass
    return found


def test_a_pipe_nobody_reads_is_not_waited_for(pipe: tuple[int, int]) -> None:
    read, write = pipe
    shared = os.dup(write)  # as a shell or another process has it
    stream = Stream(write, note)
    began = time.monotonic()
    written = sum(stream.put(LINE) for _ in range(2000))
    took = time.monotonic() - began
    assert 0 < written < 20
    assert stream.lost_ever == 2000 - written
    assert took < 2.0
    assert not fcntl.fcntl(shared, fcntl.F_GETFL) & os.O_NONBLOCK
    os.close(shared)
    lines = drained(read).splitlines()
    assert stream.put(b"after")
    lines += drained(read).splitlines()
    assert lines.count(LINE) == written
    assert lines[-1] == b"after"
    assert sum(int(line.split()[1]) for line in lines if line.startswith(b"lost")) == 2000 - written
    assert (stream.lost, stream.lost_ever) == (0, 2000 - written)


def test_a_pipe_of_another_user_is_asked_before_each_write(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    read, write = pipe
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        stream = Stream(write, note)
    assert not fcntl.fcntl(write, fcntl.F_GETFL) & os.O_NONBLOCK
    written = sum(stream.put(LINE) for _ in range(100))
    assert 0 < written < 20
    assert drained(read).splitlines().count(LINE) == written


def test_a_reader_who_has_gone_ends_nobody(pipe: tuple[int, int]) -> None:
    read, write = os.pipe()
    stream = Stream(write, note)
    os.close(read)
    assert not stream.put(LINE)
    assert not stream.put(LINE)
    assert stream.lost_ever == 2
    os.close(write)


def test_a_descriptor_that_is_closed_takes_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    assert not Stream(write, note).put(LINE)


def test_a_socket_nobody_reads_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = Stream(ours.fileno(), note)
        written = sum(stream.put(LINE) for _ in range(1000))
        assert 0 < written < 1000
        assert ours.getblocking()
        assert drained(theirs.fileno()) == (LINE + b"\n") * written
        assert stream.put(b"after")
        assert drained(theirs.fileno()) == b"lost %d\nafter\n" % (1000 - written)
        stream.close()


def test_a_stopped_terminal_gets_whole_lines_later() -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    stream = Stream(slave, note)
    written = sum(stream.put(b"%04d" % i + LINE) for i in range(100))
    assert 0 < written < 100
    found = drained(master)
    while b"after" not in found:
        stream.put(b"after")
        found += drained(master)
    *lines, last = found.split(b"\n")
    assert lines[:written] == [b"%04d" % i + LINE for i in range(written)]
    assert lines[written] == b"lost %d" % (100 - written)
    assert set(lines[written + 1 :]) == {b"after"}
    assert last == b""
    os.close(master)
    os.close(slave)


def test_a_regular_file_keeps_its_place(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.write(b"before\n")
        file.flush()
        assert Stream(file.fileno(), note).put(b"line")
        file.write(b"after\n")
    assert (tmp_path / "f").read_bytes() == b"before\nline\nafter\n"


def test_a_ring_is_bounded_and_private(tmp_path: Path) -> None:
    path = tmp_path / "log" / "slot.log"
    ring = File(path, 0o600, note, largest=1000)
    for i in range(250):
        assert ring.put(b"line %04d" % i)
    older = Path(f"{path}.1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not os.get_inheritable(ring.descriptor)
    assert path.stat().st_size <= 1000
    assert older.stat().st_size == 1000
    numbers = [int(line.split()[1]) for line in (older.read_bytes() + path.read_bytes()).splitlines()]
    assert numbers == list(range(100, 250))
    assert sorted(path.parent.iterdir()) == [path, older]
    ring.close()
    again = File(path, 0o600, note, largest=1000)
    again.put(b"line 0250")
    assert path.read_bytes().endswith(b"line 0249\nline 0250\n")
    again.close()


def test_two_incarnations_may_share_a_ring(tmp_path: Path) -> None:
    rings = [File(tmp_path / "log" / "slot.log", 0o600, note, largest=1000) for _ in range(2)]
    for i in range(150):
        rings[i % 2].put(b"line %04d" % i)
    found = b"".join(path.read_bytes() for path in (tmp_path / "log").iterdir())
    assert b"line 0149" in found
    assert len(found) <= 3000
    assert sorted(set(found.splitlines())) == sorted(found.splitlines())


def test_a_full_disk_is_counted() -> None:
    full = File(Path("/dev/full"), 0o600, note)
    assert not full.put(LINE)
    assert not full.put(LINE)
    assert full.lost_ever == 2
    full.close()


def test_a_folder_that_has_gone_is_made_again_when_the_ring_turns(tmp_path: Path) -> None:
    path = tmp_path / "log" / "slot.log"
    ring = File(path, 0o600, note, largest=100)
    shutil.rmtree(path.parent)
    for _ in range(20):
        assert ring.put(b"line 4567")
    assert path.exists()


def test_a_ring_that_cannot_turn_drops_lines_instead_of_growing(tmp_path: Path) -> None:
    path = tmp_path / "log" / "slot.log"
    ring = File(path, 0o600, note, largest=100)
    Path(f"{path}.1").mkdir()
    results = [ring.put(b"line 4567") for _ in range(20)]
    assert results == [True] * 10 + [False] * 10
    assert path.stat().st_size == 100


def test_a_file_that_cannot_be_opened_says_why_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File(tmp_path / "missing" / "f", 0o600, note)
    assert file.why == "No such file or directory"
    assert not file.put(b"one")
    (tmp_path / "missing").mkdir()
    later = time.monotonic() + 10
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert file.put(b"two")
    assert (tmp_path / "missing" / "f").read_bytes() == b"lost 1\ntwo\n"


def test_a_moved_file_is_opened_anew_under_the_same_number(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = File(path, 0o640, note)
    number = file.descriptor
    file.put(b"one")
    path.rename(tmp_path / "old")
    file.put(b"two")
    assert file.reopen()
    file.put(b"three")
    assert file.descriptor == number
    assert not os.get_inheritable(number)
    assert (tmp_path / "old").read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n"
    path.unlink()
    path.mkdir()
    assert not file.reopen()  # the old one is kept
    assert file.put(b"four")


def test_a_new_process_has_no_new_patience_with_a_pipe_nobody_reads(pipe: tuple[int, int]) -> None:
    first = Stream(pipe[1], note)
    while first.put(LINE):
        pass
    second = Stream(pipe[1], note)
    second.as_patient_as(first)
    began = time.monotonic()
    assert not second.put(LINE)
    assert time.monotonic() - began < 0.05
