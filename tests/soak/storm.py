"""
The real daemon at work while its services are killed, restarted and reloaded at random.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from soak.figures import Figure, at_most, equal, quantiles_ms
from soak.parent import DEADLINE_S, Reading, Tail, read, zombies
from soak.scrapes import Scraper, scrape_ms
from soak.senders import SPANS, TASKS
from system.daemon import BIN, Daemon, task

from optimizer.ctl.admin import ask

_KILLS_PER_S: Final = 200 / 180  # at least
_GAP_S: Final = (0.05, 0.7)  # between two blows
_MANAGER: Final = """
[service_manager]
max_restart_attempts = 1000000
restart_backoff_base = "0s"
stable_after = "1s"
restart_jitter = {jitter}
[observability]
json_logging = true
[collector]
kafka_topic = "{topic}"
"""
_SCRAPE_MS: Final = 5.0


@dataclass
class Blows:
    """
    What was done to the daemon, and how long it took to be ready again.
    """

    kills: int = 0
    planned: int = 0
    reloads: int = 0
    ready_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Storm:
    """
    One daemon, and what falls on it.
    """

    def __init__(self, daemon: Daemon, rng: random.Random) -> None:
        self._daemon, self._rng = daemon, rng
        self._tail = Tail(daemon.folder / "log")
        self.blows = Blows()

    def ask(self, command: str, **fields: Any) -> Any:
        return ask(self._daemon.runtime_dir / "admin.sock", {"command": command, **fields}, DEADLINE_S)

    def blow(self) -> None:
        """
        One at random: mostly the kill of one service.
        """
        kind = self._rng.random()
        if kind < 0.78:
            self._kill(1)
        elif kind < 0.86:
            self._kill(self._rng.randint(2, 7))
        elif kind < 0.93:
            self.ask("restart", service=self._rng.choice(list(self._pids())))
            self.blows.planned += 1
        else:
            self._reload()

    def _pids(self) -> dict[str, int]:
        return {name: one["pid"] for name, one in self.ask("status")["services"].items()}

    def _kill(self, count: int) -> None:
        pids = self._pids()
        victims = self._rng.sample(sorted(pids), count)
        killed: dict[str, float] = {}
        for name in victims:
            killed[f"{name}-0"] = time.time()
            os.kill(pids[name], signal.SIGKILL)
        took = self._tail.ready(killed)
        self.blows.kills += count
        for slot, seconds in took.items():
            self.blows.ready_s[slot if count == 1 else "several at once"].append(seconds)

    def _reload(self) -> None:
        self.blows.reloads += 1
        number = self.blows.reloads
        configure(self._daemon, jitter=number % 10 / 10, topic=f"topic-{number}" if number % 2 else None)
        if number % 3:
            assert self.ask("reload")["result"] == "applied"
            return
        assert self._daemon.process is not None
        before = self.ask("status")["reload"]
        self._daemon.process.send_signal(signal.SIGHUP)
        self._daemon.wait(lambda: bool(self.ask("status")["reload"] != before), "reloaded", DEADLINE_S)


def configure(daemon: Daemon, jitter: float = 0.2, topic: str | None = None) -> None:
    """
    Write the configuration; the jitter of delays is changed live, the topic takes a restart of the collector.
    """
    daemon.config.write_text(_MANAGER.format(jitter=jitter, topic=topic or "llm-feedback"))


@contextmanager
def load(daemon: Daemon) -> Iterator[dict[str, Any]]:
    """
    The senders, in a process of their own; afterwards what they counted is in the dictionary.
    """
    told: dict[str, Any] = {}
    folder = daemon.folder / "sent"
    folder.mkdir()
    command = [sys.executable, "-m", "soak.senders", str(daemon.rest), str(daemon.otlp), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as senders:
        assert senders.stdin is not None
        assert senders.stdout is not None
        yield told
        senders.stdin.close()
        told.update(json.loads(senders.stdout.read()))


def storm(folder: Path, seconds: float, seed: int) -> list[Figure]:
    """
    All of it; the daemon does not outlive it.
    """
    daemon = Daemon(folder)
    configure(daemon)
    try:
        return _storm(daemon.start(), seconds, random.Random(seed))
    finally:
        for pid in daemon.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _storm(daemon: Daemon, seconds: float, rng: random.Random) -> list[Figure]:
    assert daemon.process is not None
    for name, variants in TASKS.items():
        assert daemon.call("POST", "/api/v1/tasks", task(name, variants))[0] == 201
    falling, scraper = Storm(daemon, rng), Scraper(daemon.metrics)
    first = read(daemon.process.pid, 0)
    scraper.start()
    try:
        with load(daemon) as told:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(rng.uniform(*_GAP_S))
                falling.blow()
            daemon.wait(daemon.healthy, "healthy again", DEADLINE_S)
    finally:
        scraper.stopped.set()
        scraper.join()
    figures = [*_blows(falling.blows, seconds), *_events(daemon, told, scraper), *_rest(daemon, scraper, first)]
    return [*figures, equal("exit code of the daemon", daemon.stop(), 0)]


def _blows(blows: Blows, seconds: float) -> list[Figure]:
    wanted = int(seconds * _KILLS_PER_S)
    single = [one for slot, times in blows.ready_s.items() if slot != "several at once" for one in times]
    return [
        Figure("kill -9 of services", str(blows.kills), f">= {wanted}", blows.kills >= wanted),
        Figure("planned restarts, reloads", f"{blows.planned}, {blows.reloads}"),
        quantiles_ms("kill to ready under load", single),
        *(quantiles_ms(f"  {slot}", times) for slot, times in sorted(blows.ready_s.items())),
    ]


def _events(daemon: Daemon, told: dict[str, Any], scraper: Scraper) -> list[Figure]:
    """
    Every acknowledged event once in the journal, and once in what was learned.
    """
    sent = [one for path in (daemon.folder / "sent").iterdir() for one in path.read_text().split()]
    exported = daemon.folder / "events.jsonl"
    with exported.open("wb") as file:
        command = [str(BIN / "optimizerctl"), "--socket", str(daemon.runtime_dir / "admin.sock")]
        subprocess.run([*command, "events", "export", "--format", "jsonl"], env=daemon.env, stdout=file, check=True)
    stored: Counter[str] = Counter()
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with exported.open() as lines:
        for line in lines:
            event = json.loads(line)
            stored[event["id"]] += 1
            by_task[event["task"]].append(event)
    counts = Counter(told["counts"])
    return [
        equal("senders that gave up", told["failed"], []),
        Figure("requests", f"{counts['requests']}, sent again {counts['sent again']}, cut {counts['cut']}"),
        equal("connections refused", counts["refused"] + scraper.refused, 0),
        Figure("events acknowledged", str(len(sent)), "> 0", bool(sent)),
        equal("acknowledged, not stored", len(set(sent) - set(stored)), 0),
        equal("stored twice", sum(count > 1 for count in stored.values()), 0),
        equal("stored, never acknowledged", len(set(stored) - set(sent)), 0),
        *(_learned(daemon, name, by_task[name]) for name in (*TASKS, SPANS)),
    ]


def _learned(daemon: Daemon, name: str, events: list[dict[str, Any]]) -> Figure:
    """
    Events and mean quality of each variant, as learned and as stored.
    """

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = daemon.get(f"/api/v1/tasks/{name}/stats")[1]
        return found

    with suppress(AssertionError):  # the figure tells
        daemon.wait(lambda: bool(shown()["events"] >= len(events)), "learned", DEADLINE_S)
    groups: dict[str, list[float]] = defaultdict(list)
    for event in events:
        groups[event.get("variant") or event["model"]].append(event.get("quality", 0.0))
    learned = shown()
    found = {
        variant: (one["count"], round(one["mean_quality"] or 0.0, 6)) for variant, one in learned["variants"].items()
    }
    wanted = {variant: (len(all_), round(statistics.fmean(all_), 6)) for variant, all_ in groups.items()}
    matches = learned["events"] == len(events) and found == wanted
    told = f"{learned['events']}" if matches else f"{learned['events']} {found}"
    return Figure(f"learned of {name}", told, str(len(events)) if matches else f"{len(events)} {wanted}", matches)


def _rest(daemon: Daemon, scraper: Scraper, first: Reading) -> list[Figure]:
    assert daemon.process is not None
    daemon.wait(lambda: read(daemon.process.pid, 0).files <= first.files, "as few files open as at first", 10)  # type: ignore[union-attr] # it runs
    last = read(daemon.process.pid, 0)
    return [
        equal(f"counters that went back in {scraper.scrapes} scrapes", scraper.went_back, []),
        at_most("scrape afterwards, median", scrape_ms(daemon.metrics), _SCRAPE_MS, "ms"),
        equal("parent's files open", last.files, first.files),
        equal("parent's threads", last.threads, first.threads),
        Figure("parent's memory", f"{first.memory_kib} -> {last.memory_kib} KiB"),
        equal("zombies", zombies(daemon.process.pid), []),
    ]
