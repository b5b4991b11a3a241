"""
Kill to ready of each of our services, at rest and while three writers post feedback as fast as they are answered.

Every service that listens is also called at the instant of its death: the connection must not be refused (the parent holds the
socket) and the time to the answer is told. gRPC is called by nobody here: its port is bound by the service itself.
"""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import Row
from benchmarks.supervision.measure import median_ms, percentile
from benchmarks.supervision.observe import machine
from benchmarks.supervision.report import write
from benchmarks.supervision.running import Running
from benchmarks.supervision.systems import DAEMON, SERVICES, services

_PATH: Final = Path("build/bench/restarts.json")
_ROUNDS: Final = 6  # kills of each service, at rest and under load
_GAP_S: Final = (
    0.2,
    0.26,
)  # between two kills: a service has been ready for more than a second when its turn comes again
_WRITERS: Final = 3
_BATCH: Final = 20
_CALL_S: Final = 20.0
_CALLS: Final = {  # services that answer over HTTP while they are down, by the parent's socket
    "collector": ("POST", "/v1/traces", "application/x-protobuf"),
    "rest_api": ("GET", "/health/live", "application/json"),
    "metrics": ("GET", "/health/live", "text/plain"),
}


@dataclass
class Deaths:
    """
    Of one service: seconds from kill to ready, and from kill to the answer of who called at once.
    """

    ready_s: list[float] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)


def _call(name: str, port: int) -> float:
    """
    Seconds until a new connection is answered.

    Raises:
        ConnectionRefusedError: nobody listened.
    """
    method, path, kind = _CALLS[name]
    began = time.monotonic()
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=_CALL_S)
    try:
        link.request(method, path, b"" if method == "POST" else None, {"Content-Type": kind})
        answer = link.getresponse()
        answer.read()
    finally:
        link.close()
    if answer.status != 200:
        raise RuntimeError(f"{name}: {method} {path} was answered {answer.status}")
    return time.monotonic() - began


def _storm(running: Running, ports: dict[str, int], rng: random.Random, pool: ThreadPoolExecutor) -> dict[str, Deaths]:
    found = {name: Deaths() for name in SERVICES}
    for _ in range(_ROUNDS):
        for i, name in enumerate(running.victims):
            time.sleep(rng.uniform(*_GAP_S))
            calls: list[Future[float]] = []

            def call(name: str = name, calls: list[Future[float]] = calls) -> None:
                if name in _CALLS:
                    calls.append(pool.submit(_call, name, ports[name]))

            found[name].ready_s.append(running.kill(i, call))
            found[name].answer_s += [one.result() for one in calls]
    return found


@contextmanager
def _load(port: int, told: Counter[str]) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.restarts", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writers:
        assert writers.stdin is not None
        assert writers.stdout is not None
        writers.stdout.readline()  # each has been answered once
        try:
            yield
        finally:
            writers.stdin.close()
        told.update(json.loads(writers.stdout.read()))


def _write(writer: int, port: int, stop: threading.Event, first: threading.Event, counts: Counter[str]) -> None:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=_CALL_S)
    number = 0
    while not stop.is_set():
        batch = [
            {"id": f"w{writer}-{number}-{i}", "task": "bench", "model": "m", "quality": 1.0} for i in range(_BATCH)
        ]
        number += 1
        try:
            link.request("POST", "/api/v1/feedback", json.dumps(batch), {"Content-Type": "application/json"})
            answer = link.getresponse()
            answer.read()
        except ConnectionRefusedError:
            counts["refused"] += 1
        except (OSError, http.client.HTTPException):
            counts["cut"] += 1  # in flight when the API was killed; the next request makes a new connection
            link.close()
        else:
            counts["acknowledged" if answer.status in (200, 202) else f"answered {answer.status}"] += 1
            first.set()
            if answer.status == 503:
                stop.wait(0.1)  # storage is away and the buffer full: told to come again
    link.close()


def _writers(port: int) -> None:
    stop = threading.Event()
    counts: list[Counter[str]] = [Counter() for _ in range(_WRITERS)]
    firsts = [threading.Event() for _ in range(_WRITERS)]
    threads = [threading.Thread(target=_write, args=(i, port, stop, firsts[i], counts[i])) for i in range(_WRITERS)]
    for thread in threads:
        thread.start()
    for first in firsts:
        first.wait(_CALL_S)
    print("ready", flush=True)
    sys.stdin.read()  # until the kills are over
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(sum(counts, Counter())))


def _table(idle: dict[str, Deaths], loaded: dict[str, Deaths]) -> str:
    head = ("service", "at rest: median ms", "worst", "answer", "under load: median ms", "worst", "answer")
    lines = [head, ("---", *["---:"] * (len(head) - 1))]
    for name in SERVICES:
        cells = [name]
        for deaths in (idle[name], loaded[name]):
            cells += [f"{median_ms(deaths.ready_s):.1f}", f"{1000 * max(deaths.ready_s):.1f}"]
            cells.append(f"{median_ms(deaths.answer_s):.1f}" if deaths.answer_s else "-")
        lines.append(tuple(cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _document(deaths: dict[str, Deaths]) -> dict[str, Any]:
    return {
        name: {
            "kill_to_ready_s": [round(one, 6) for one in found.ready_s],
            "kill_to_answer_s": [round(one, 6) for one in found.answer_s],
        }
        for name, found in deaths.items()
    }


def main() -> list[Row]:
    """
    Measure, in about half a minute; prints a table and writes `build/bench/restarts.json`.
    """
    rng, told, around = random.Random(3), Counter[str](), machine()
    with Running(DAEMON) as running, ThreadPoolExecutor(1) as pool:
        ports = {name: port for name, one in services(running.folder).items() for port in one["ports"].values()}
        time.sleep(1.0)
        idle = _storm(running, ports, rng, pool)
        with _load(ports["rest_api"], told):
            loaded = _storm(running, ports, rng, pool)
        running.stop()
    write(
        _PATH, {"machine": around, "at_rest": _document(idle), "under_load": _document(loaded), "writers": dict(told)}
    )
    print(_table(idle, loaded))
    print(f"\nwriters under load: {dict(told)} requests of {_BATCH} events\n", flush=True)
    if told["refused"]:
        raise RuntimeError(f"{told['refused']} connections were refused while services were killed")
    return [*_rows("at rest", idle), *_rows("under load", loaded)]


def _rows(when: str, deaths: dict[str, Deaths]) -> list[Row]:
    every = [one for found in deaths.values() for one in found.ready_s]
    return [
        Row(f"kill to ready {when}, median", "ms", 0, median_ms(every), 0, "<= 30" if when == "at rest" else ""),
        Row(f"kill to ready {when}, p99", "ms", 0, 1000 * percentile(every, 0.99), 0),
        Row(f"kill of rest_api to answer {when}", "ms", 0, median_ms(deaths["rest_api"].answer_s), 0, "<= 120"),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _writers(int(sys.argv[1]))
    else:
        print(main())
