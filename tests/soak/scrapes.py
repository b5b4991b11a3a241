"""
Scrapes of the metrics port while everything falls: no counter may ever go back.
"""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from typing import Final

from prometheus_client.parser import text_string_to_metric_families as parse

_EVERY_S: Final = 1.0
_CALL_S: Final = 30.0
_SAMPLES: Final = 200


class Scraper(threading.Thread):
    """
    Looks at all counters once a second until it is stopped.

    `went_back`: series that were once higher. `refused`: connections nobody took.
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self.scrapes = self.refused = self.cut = 0
        self.went_back: list[str] = []
        self.stopped = threading.Event()
        self._port = port
        self._known: dict[tuple[str, ...], float] = {}

    def run(self) -> None:
        while not self.stopped.wait(_EVERY_S):
            try:
                text = scrape(http.client.HTTPConnection("127.0.0.1", self._port, timeout=_CALL_S))
            except ConnectionRefusedError:
                self.refused += 1
            except (OSError, http.client.HTTPException):
                self.cut += 1
            else:
                self.look(text)

    def look(self, text: str) -> None:
        """
        Compare with all that was seen before.
        """
        self.scrapes += 1
        for family in parse(text):
            if family.type not in ("counter", "histogram"):
                continue
            for one in family.samples:
                key = (one.name, *(f"{name}={value}" for name, value in sorted(one.labels.items())))
                if one.value < self._known.get(key, 0.0):
                    self.went_back.append(f"{key}: {self._known[key]:g}, then {one.value:g}")
                self._known[key] = max(one.value, self._known.get(key, 0.0))


def scrape(link: http.client.HTTPConnection) -> str:
    """
    One answer; the connection stays open.
    """
    link.request("GET", "/metrics")
    answer = link.getresponse()
    text = answer.read().decode()
    if answer.status != 200:
        raise http.client.HTTPException(f"answered {answer.status}: {text[:200]}")
    return text


def scrape_ms(port: int) -> float:
    """
    Median time of a scrape over a connection that is kept, in milliseconds.
    """
    link, times = http.client.HTTPConnection("127.0.0.1", port, timeout=_CALL_S), []
    for _ in range(_SAMPLES):
        began = time.perf_counter()
        scrape(link)
        times.append(time.perf_counter() - began)
    link.close()
    return 1000 * statistics.median(times)
