"""
What processes use, read from real ones; kills for want of memory, read from trees as kernels lay them out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from optimizer.supervisor.resources import Gauge, OomWatch, Usage

MIB = 2**20


class Child:
    """
    A process that does what it is told, line by line, and says when it is done.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import sys\nfor line in sys.stdin: exec(line); print('done', flush=True)"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.do("import os, threading, time")

    def do(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", line

    def end(self) -> None:
        """
        Let it become a zombie; `reap` takes it away.
        """
        self.process.kill()
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def reap(self) -> None:
        self.process.communicate()


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.process.kill()
    made.reap()


class Clock:
    """
    A monotonic clock that is set by hand.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def used(gauge: Gauge) -> Usage:
    found = gauge.read()
    assert found is not None
    return found


def test_threads_and_descriptors_are_counted(child: Child) -> None:
    gauge = Gauge(child.process.pid)
    before = used(gauge)
    assert before.fds == psutil.Process(child.process.pid).num_fds()
    child.do("held = [os.open('/dev/null', os.O_RDONLY) for _ in range(25)]")
    child.do("threads = [threading.Thread(target=time.sleep, args=(60,), daemon=True) for _ in range(3)]")
    child.do("[thread.start() for thread in threads]")
    after = used(gauge)
    assert after.fds == before.fds + 25
    assert after.threads == before.threads + 3


def test_cpu_is_a_share_of_one_core_since_the_reading_before(child: Child) -> None:
    clock = Clock()
    gauge = Gauge(child.process.pid, clock)
    child.do("until = time.process_time() + 0.5")
    child.do("while time.process_time() < until: pass")
    clock.now += 2.0
    assert used(gauge).cpu_percent == pytest.approx(25, abs=3)
    clock.now += 0.05
    assert used(gauge).cpu_percent == pytest.approx(25, abs=3), "too short a time to say anything new"
    clock.now += 1.95
    assert used(gauge).cpu_percent < 3


def test_memory_is_the_proportional_share(child: Child) -> None:
    clock = Clock()
    gauge = Gauge(child.process.pid, clock)
    process = psutil.Process(child.process.pid)
    assert used(gauge).memory_bytes == pytest.approx(process.memory_full_info().pss, abs=MIB)
    child.do("kept = b'x' * (64 << 20)")
    grown = used(gauge).memory_bytes
    assert grown == pytest.approx(process.memory_full_info().pss, abs=MIB), "carried on by the resident size"
    clock.now += 30.0
    assert used(gauge).memory_bytes == pytest.approx(grown, abs=MIB)
    child.do("del kept")
    assert used(gauge).memory_bytes == pytest.approx(grown - 64 * MIB, abs=MIB)


def test_shared_pages_are_seen_as_shared_at_the_next_full_reading(child: Child) -> None:
    clock = Clock()
    gauge = Gauge(child.process.pid, clock)
    child.do("kept = bytearray(b'x' * (64 << 20))")
    alone = used(gauge).memory_bytes
    child.do("pid = os.fork() or time.sleep(60)")
    assert used(gauge).memory_bytes == pytest.approx(alone, abs=MIB), "not looked at yet"
    clock.now += 30.0
    assert used(gauge).memory_bytes < alone - 30 * MIB
    child.do("os.kill(pid, 9), os.waitpid(pid, 0)")


def test_a_zombie_and_a_process_that_is_gone_read_as_nothing(child: Child) -> None:
    gauge = Gauge(child.process.pid)
    assert gauge.read() is not None
    child.end()
    assert gauge.read() is None
    child.reap()
    assert gauge.read() is None
    assert Gauge(child.process.pid).read() is None


def test_a_process_that_dies_at_any_moment_never_raises() -> None:
    for _ in range(20):
        process = subprocess.Popen(["/bin/true"])
        gauge = Gauge(process.pid)
        until = time.monotonic() + 10
        while gauge.read() is not None:
            assert time.monotonic() < until
        process.wait()


def test_a_name_with_brackets_does_not_confuse(child: Child) -> None:
    child.do("import pathlib; _ = pathlib.Path('/proc/self/comm').write_text(') Z 1 (2')")
    assert used(Gauge(child.process.pid)).threads == 1


def test_a_later_process_with_the_same_pid_is_another() -> None:
    last = Path("/proc/sys/kernel/ns_last_pid")
    first = subprocess.Popen(["sleep", "60"])
    gauge = Gauge(first.pid)
    assert gauge.read() is not None
    first.kill()
    first.wait()
    time.sleep(2 / os.sysconf("SC_CLK_TCK"))  # start times are told in these ticks
    for _ in range(100):
        try:
            last.write_text(str(first.pid - 1))
        except PermissionError:
            pytest.skip("only root may choose the next pid, by ns_last_pid")
        second = subprocess.Popen(["sleep", "60"])
        try:
            if second.pid == first.pid:
                assert gauge.read() is None
                assert Gauge(second.pid).read() is not None
                return
        finally:
            second.kill()
            second.wait()
    raise AssertionError("the pid was taken by others a hundred times")


def tree(folder: Path, started: int = 7, descriptors: int = 4, rollup: str | None = None) -> None:
    """
    /proc/1234 as kernels before 6.2 show it: the size of `fd` tells nothing of its entries on every file system.
    """
    process = folder / "1234"
    (process / "fd").mkdir(parents=True, exist_ok=True)
    for i in range(descriptors):
        (process / "fd" / str(i)).touch()
    numbers = ["0"] * 50
    numbers[10], numbers[11], numbers[16], numbers[18] = "100", "50", "3", str(started)
    (process / "stat").write_text(f"1234 (a name) S {' '.join(numbers)}\n")
    (process / "statm").write_text("5000 1000 0 0 0 0 0\n")
    if rollup is not None:
        (process / "smaps_rollup").write_text(rollup)


def test_the_resident_size_stands_where_pss_may_not_be_read(tmp_path: Path) -> None:
    tree(tmp_path)
    page = os.sysconf("SC_PAGE_SIZE")
    gauge = Gauge(1234, proc=tmp_path)
    assert used(gauge).memory_bytes == 1000 * page
    assert used(gauge).threads == 3
    tree(tmp_path, rollup="00400000-7ffe [rollup]\nRss: 4000 kB\nPss:                1500 kB\nPss_Dirty: 7 kB\n")
    assert used(Gauge(1234, proc=tmp_path)).memory_bytes == 1500 * 1024


def test_another_start_time_is_another_process(tmp_path: Path) -> None:
    tree(tmp_path)
    gauge = Gauge(1234, proc=tmp_path)
    assert gauge.read() is not None
    tree(tmp_path, started=8)
    assert gauge.read() is None


def test_pss_is_read_seldom_and_at_different_moments(tmp_path: Path) -> None:
    clocks, gauges, read_at = [Clock() for _ in range(8)], [], [[] for _ in range(8)]  # type: ignore[var-annotated] # filled below
    for i in range(8):
        tree(tmp_path)
        (tmp_path / "1234").rename(tmp_path / str(1000 + i))
        gauges.append(Gauge(1000 + i, clocks[i], proc=tmp_path))
    for second in range(40):
        for i, (clock, gauge) in enumerate(zip(clocks, gauges, strict=True)):
            (tmp_path / str(1000 + i) / "smaps_rollup").write_text(f"Pss: {1000 + second} kB\n")
            clock.now = 1000.0 + second
            if used(gauge).memory_bytes == (1000 + second) * 1024:
                read_at[i].append(second)
    assert all(3 <= len(moments) <= 4 for moments in read_at)
    later = [moment for moments in read_at for moment in moments[1:]]
    assert max(later.count(moment) for moment in later) <= 2


# --- kills for want of memory ---


def group_tree(folder: Path, cgroup: str, *mounts: str) -> Path:
    """
    The two files of /proc/self that name a process's groups and where they are mounted.
    """
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text("".join(f"{line}\n" for line in mounts))
    return proc


def count(file: Path, kills: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.name == "memory.events":
        file.write_text(f"low 0\nhigh 9\nmax 9\noom 9\noom_kill {kills}\noom_group_kill 9\n")
    else:
        file.write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")


V2_MOUNT = "30 23 0:26 / {} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"
V1_MOUNT = "36 25 0:31 {} {} rw,nosuid shared:15 master:2 - cgroup cgroup rw,memory"
UNIT = "system.slice/llm-optimizer.service"


def test_kills_are_counted_since_the_last_call(tmp_path: Path) -> None:
    events = tmp_path / "cgroup" / UNIT / "memory.events"
    count(events, 3)
    watch = OomWatch(group_tree(tmp_path, f"0::/{UNIT}\n", V2_MOUNT.format(tmp_path / "cgroup")))
    assert watch.killed() == 0
    count(events, 5)
    assert watch.killed() == 2
    assert watch.killed() == 0
    count(events, 0)
    assert watch.killed() == 0
    count(events, 1)
    assert watch.killed() == 1


def test_version_1_counts_in_another_file(tmp_path: Path) -> None:
    mounted = tmp_path / "memory"
    count(mounted / UNIT / "memory.oom_control", 0)
    proc = group_tree(
        tmp_path,
        f"9:name=systemd:/{UNIT}\n5:cpu,memory:/{UNIT}\n0::/\n",
        f"35 25 0:30 / {tmp_path / 'cpu'} rw - cgroup cgroup rw,cpu",
        V1_MOUNT.format("/", mounted),
        V2_MOUNT.format(tmp_path / "unified"),
    )
    watch = OomWatch(proc)
    count(mounted / UNIT / "memory.oom_control", 1)
    assert watch.killed() == 1


def test_a_container_sees_a_part_of_the_tree(tmp_path: Path) -> None:
    mounted = tmp_path / "with blank"
    count(mounted / "inner" / "memory.oom_control", 0)
    shown = str(mounted).replace(" ", "\\040")
    watch = OomWatch(group_tree(tmp_path, "4:memory:/docker/abc/inner\n", V1_MOUNT.format("/docker/abc", shown)))
    count(mounted / "inner" / "memory.oom_control", 2)
    assert watch.killed() == 2


@pytest.mark.parametrize(
    ("cgroup", "mount"),
    [
        ("0::/\n", V2_MOUNT),  # the root group has no file
        ("0::/../other\n", V2_MOUNT),
        ("4:memory:/docker/abc2\n", V1_MOUNT.format("/docker/abc", "{}")),
        ("", V2_MOUNT),
        (f"0::/{UNIT}\n", "22 1 8:1 / / rw - ext4 /dev/sda1 rw"),
    ],
)
def test_without_a_group_of_its_own_it_is_quiet(cgroup: str, mount: str, tmp_path: Path) -> None:
    watch = OomWatch(group_tree(tmp_path, cgroup, mount.format(tmp_path / "cgroup")))
    assert watch.killed() == 0


def test_without_proc_it_is_quiet(tmp_path: Path) -> None:
    assert OomWatch(tmp_path / "nothing").killed() == 0


def test_a_group_that_was_removed_is_quiet(tmp_path: Path) -> None:
    events = tmp_path / "cgroup" / UNIT / "memory.events"
    count(events, 3)
    watch = OomWatch(group_tree(tmp_path, f"0::/{UNIT}\n", V2_MOUNT.format(tmp_path / "cgroup")))
    events.unlink()
    assert watch.killed() == 0
