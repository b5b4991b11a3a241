"""
Log lines: an event name plus fields, one line each, to the inherited stderr.

    log.info("policy.published", task="chat", version=3)

The sink is synchronous: loguru's queue is a thread, which no process here may have across a fork, and loses its lines to
SIGKILL. A line stays under 4096 bytes, which a pipe takes whole, so lines of several processes never mix.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from loguru import logger as log

if TYPE_CHECKING:
    from loguru import Record

__all__ = ["configure", "log"]

_LINE_BYTES: Final = 4095  # PIPE_BUF less the newline
_LEVELS: Final = {"trace": "TRACE", "debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}


class _Sink:
    """
    Where lines go; its name and form may change without loguru making its handler anew.
    """

    level = ""
    json = False
    service = ""

    def __call__(self, message: Any) -> None:
        record = message.record
        line = _json_line(record, self.service) if self.json else _text_line(record, self.service)
        data = line.encode("utf-8", "backslashreplace")
        sys.stderr.buffer.write(data[:_LINE_BYTES] + b"\n")
        sys.stderr.buffer.flush()


_sink: Final = _Sink()


def configure(level: str, json: bool, service: str) -> None:
    """
    Send lines of `level` (trace, debug, info, warn, error) and above to stderr, as text or one JSON object each.

    A forked service goes on with the parent's handler under its own name: a new one would touch, and so copy, a good megabyte
    of what the processes share.
    """
    _sink.json, _sink.service = json, service
    if level == _sink.level:
        return
    log.remove()
    log.configure(extra={}, patcher=None)
    log.add(
        _sink, level=_LEVELS[level], format="{message}", enqueue=False, catch=False, backtrace=False, diagnose=False
    )
    _sink.level = level


def _fields(record: Record, service: str) -> dict[str, Any]:
    fields = {
        "time": record["time"].astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record["level"].name.lower(),
        "service": service,
        "event": record["message"],
        **record["extra"],
    }
    error = record["exception"]
    if error is not None and error.value is not None:
        fields["exception"] = _trace(error)
    return fields


def _trace(error: Any) -> str:
    frames, trace = [], error.traceback
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{error.value!r} at " + " < ".join(reversed(frames[-12:]))


def _json_line(record: Record, service: str) -> str:
    return json.dumps(_fields(record, service), default=str, ensure_ascii=False)


def _text_line(record: Record, service: str) -> str:
    fields = _fields(record, service)
    head = [fields.pop("time"), fields.pop("level").upper().ljust(7), fields.pop("service"), fields.pop("event")]
    return " ".join([*map(str, head), *(f"{key}={_value(value)}" for key, value in fields.items())])


def _value(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text or "\n" in text or not text else text
