"""
The load: `python -m soak.senders REST_PORT OTLP_PORT FOLDER` sends feedback, spans and selections until its standard input ends.

Each sends a batch again until it is acknowledged, as real senders do, so that at the end all ids are acknowledged; they stand in
the files of the folder, one a line. What happened on the way is counted and printed as JSON.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

TASKS: Final = {"rated": ["a", "b"], "chosen": ["a", "b", "c"]}
SPANS: Final = "traced"  # a task that is known by its spans only
_REST_BATCH: Final = 20
_SPAN_BATCH: Final = 50
_PAUSES_S: Final = {"rated": 0.08, "traced": 0.2, "chosen": 0.03}
_CALL_S: Final = 30.0
_GIVE_UP_S: Final = 60.0  # for the last batch to be acknowledged


class Sender(threading.Thread):
    """
    One connection, kept open where the service keeps it, and what it has sent.
    """

    def __init__(self, name: str, port: int, folder: Path, work: Callable[[Sender, int], None], pause_s: float) -> None:
        super().__init__(name=name)
        self.counts: Counter[str] = Counter()
        self.rng = random.Random(name)
        self.stopped = threading.Event()
        self._link = http.client.HTTPConnection("127.0.0.1", port, timeout=_CALL_S)
        self._ids = (folder / name).open("w")
        self._work, self._pause_s = work, pause_s

    def run(self) -> None:
        number = 0
        while not self.stopped.wait(self._pause_s):
            self._work(self, number)
            number += 1
        self._link.close()
        self._ids.close()

    def acknowledged(self, ids: list[str]) -> None:
        self.counts["events"] += len(ids)
        self._ids.writelines(f"{one}\n" for one in ids)

    def until_taken(self, path: str, body: Any) -> dict[str, Any]:
        """
        Send until it is answered with 200 or 202; the answer.
        """
        data, until = json.dumps(body).encode(), time.monotonic() + _GIVE_UP_S
        while time.monotonic() < until:
            status, answer = self._post(path, data)
            if status in (200, 202):
                self.counts["requests"] += 1
                return answer
            self.counts["sent again"] += 1
            time.sleep(0.02)
        raise AssertionError(f"{self.name}: {path} was not taken within {_GIVE_UP_S:g} s: {dict(self.counts)}")

    def _post(self, path: str, data: bytes) -> tuple[int, dict[str, Any]]:
        try:
            self._link.request("POST", path, data, {"Content-Type": "application/json"})
            answer = self._link.getresponse()
            found: dict[str, Any] = json.loads(answer.read())
        except ConnectionRefusedError:
            self.counts["refused"] += 1
        except (OSError, http.client.HTTPException, ValueError):
            self.counts["cut"] += 1  # in flight when the service was killed
        else:
            if answer.status not in (200, 202, 503):
                raise AssertionError(f"{self.name}: {path} was answered {answer.status}: {found}")
            if answer.status == 503:
                self.counts["told to come again"] += 1
            return answer.status, found
        self._link.close()
        return 0, {}


def rate(sender: Sender, number: int) -> None:
    batch = [
        {
            "id": f"{sender.name}-{number}-{i}",
            "task": "rated",
            "variant": sender.rng.choice(TASKS["rated"]),
            "quality": round(sender.rng.random(), 3),
        }
        for i in range(_REST_BATCH)
    ]
    answer = sender.until_taken("/api/v1/feedback", batch)
    assert answer["accepted"] == len(batch), answer  # duplicates among them: asked again by us, or within the daemon
    sender.acknowledged([str(event["id"]) for event in batch])


def trace(sender: Sender, number: int) -> None:
    ids = [(f"{number + 1:032x}", f"{i + 1:016x}") for i in range(_SPAN_BATCH)]
    now = time.time_ns()
    texts = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o-mini", "llm_optimizer.task": SPANS}
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in texts.items()]
    attributes.append({"key": "gen_ai.usage.input_tokens", "value": {"intValue": str(number % 1000)}})
    spans = [
        {
            "traceId": trace_id,
            "spanId": span_id,
            "name": "chat",
            "startTimeUnixNano": str(now - 50_000_000),
            "endTimeUnixNano": str(now),
            "attributes": attributes,
        }
        for trace_id, span_id in ids
    ]
    answer = sender.until_taken("/v1/traces", {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})
    assert not answer.get("partialSuccess"), answer
    sender.acknowledged([trace_id + span_id for trace_id, span_id in ids])


def choose(sender: Sender, number: int) -> None:
    selection = sender.until_taken("/api/v1/tasks/chosen/select", {"context": {"length": sender.rng.random()}})
    event = {
        "id": f"{sender.name}-{number}",
        "selection_id": selection["selection_id"],
        "quality": round(sender.rng.random(), 3),
    }
    sender.until_taken("/api/v1/feedback", event)
    sender.acknowledged([event["id"]])


def main(rest: int, otlp: int, folder: Path) -> None:
    senders = [
        *(Sender(f"rated-{i}", rest, folder, rate, _PAUSES_S["rated"]) for i in range(2)),
        Sender("traced", otlp, folder, trace, _PAUSES_S["traced"]),
        *(Sender(f"chosen-{i}", rest, folder, choose, _PAUSES_S["chosen"]) for i in range(2)),
    ]
    failed: list[str] = []
    threading.excepthook = lambda error: failed.append(repr(error.exc_value))
    for sender in senders:
        sender.start()
    sys.stdin.read()
    for sender in senders:
        sender.stopped.set()
    for sender in senders:
        sender.join()
    print(json.dumps({"counts": sum((sender.counts for sender in senders), Counter[str]()), "failed": failed}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
