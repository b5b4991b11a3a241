"""
Log lines: an event name plus fields, one line each.

    log.info("policy.published", task="chat", version=3)

They go to standard error, or to a file if one is configured, as text or JSON; and always, as JSON, to the slot's ring in the
runtime folder, which `optimizerctl logs` reads. How a line looks is in lines.py, what is never shown in redaction.py, and what
happens when nobody reads or the disk is full in outlets.py.

The sink is synchronous: loguru's queue is a thread, which no process here may have across a fork, and loses its lines to
SIGKILL. `configure` is called once in each process, in a service after the fork.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loguru import logger as log

from optimizer.errors import Invalid, Permanent, Problem
from optimizer.telemetry import foreign
from optimizer.telemetry.lines import LEVELS, fitted, text_line
from optimizer.telemetry.outlets import RING_BYTES, File, Outlet, Stream
from optimizer.telemetry.redaction import Redactor

if TYPE_CHECKING:
    from loguru import Record

    from optimizer.config.observability_settings import Settings

__all__ = ["configure", "crash_descriptor", "live", "log", "lost", "reopen", "require_file", "ring_path", "set_level"]

FILE_MODE: Final = 0o640  # for those who collect logs, by group
_STDERR: Final = 2
_NUMBERS: Final = dict(zip(LEVELS, (5, 10, 20, 30, 40), strict=True))  # loguru's
_FRAMES: Final = 12  # of an exception's trace, the innermost


def ring_path(runtime_dir: Path, slot: str) -> Path:
    """
    The ring of a slot.
    """
    return runtime_dir / "log" / f"{slot}.log"


def configure(
    level: str,
    json: bool,
    service: str,
    *,
    incarnation: int = 0,
    ring: Path | None = None,
    file: Path | None = None,
    secrets: Iterable[str] = (),
) -> None:
    """
    Send lines of `level` (trace, debug, info, warn, error) and above out of this process. Never fails for a file: while that
    cannot be written, its lines go to standard error.

    Args:
        json: one JSON object a line instead of text.
        service: slot that each line names; `incarnation`: of it, 0 for a process that has none.
        ring: where `optimizerctl logs` looks.
        file: takes the lines instead of standard error.
        secrets: values that are starred wherever they appear; `redaction.secrets_of(config)`.
    """
    global _desk
    before, _desk = _desk, _Desk(service, incarnation, json, Redactor(secrets))
    if before is None:
        log.remove()  # loguru's own handler
    else:
        before.close()
        _desk.stream.as_patient_as(before.stream)
    log.configure(extra={}, patcher=None)
    # A forked process keeps its parent's handlers, which write to _desk: loguru takes 4 ms to make one.
    set_level(level)
    _desk.ring = None if ring is None else File(ring, 0o600, _desk.note, RING_BYTES)
    _desk.use_file(file)


def require_file(path: Path | None) -> None:
    """
    Refuse a log file that cannot be written; it is made if it is missing.

    Raises:
        Permanent: with the setting, the path and the cause.
    """
    if path is None:
        return
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE))
    except OSError as error:
        raise Permanent(f"observability.log_file: {path} cannot be opened: {error.strerror}") from error


def set_level(level: str) -> None:
    """
    Change the level at once, without a line lost or said twice.

    Raises:
        Invalid: there is no such level.
    """
    if level not in _NUMBERS:
        raise Invalid([Problem("level", f"is {level[:20]!r}", "one of " + ", ".join(LEVELS))])
    # One handler for each level's own lines: the others stay in place while some are added or removed.
    for name, number in _NUMBERS.items():
        if number >= _NUMBERS[level] and name not in _handlers:
            _handlers[name] = _add(number, _upper(name))
        elif number < _NUMBERS[level] and name in _handlers:
            log.remove(_handlers.pop(name))
    foreign.adopt(level)


def live(settings: Settings) -> None:
    """
    Take over what a reload may change in a running process: level, form, and file.
    """
    desk = _configured()
    desk.json = settings.json_logging
    if settings.log_path != desk.file_path:
        desk.use_file(settings.log_path)
    set_level(settings.log_level)


def reopen() -> None:
    """
    Open the log file and the ring anew (SIGUSR1), after somebody moved them.
    """
    desk = _configured()
    for place in (desk.file, desk.ring):
        if place is not None and not place.reopen():
            log.error("log.not_reopened", path=str(place.path), reason=place.why)


def lost() -> dict[str, int]:
    """
    Lines of this process that found no place, by outlet.
    """
    desk = _configured()
    places: dict[str, Outlet | None] = {"stderr": desk.stream, "file": desk.file, "ring": desk.ring}
    return {name: place.lost_ever for name, place in places.items() if place is not None}


def crash_descriptor() -> int:
    """
    Where faulthandler is to write: the log file if there is one, else standard error. Stays valid over `reopen`.
    """
    file = _configured().file
    return file.descriptor if file is not None and file.descriptor >= 0 else _STDERR


class _Desk:
    """
    Where lines of this process are written.
    """

    def __init__(self, service: str, incarnation: int, json: bool, redactor: Redactor) -> None:
        _hold_standard_descriptors()
        self.json = json
        self.ring: File | None = None
        self.file: File | None = None
        self.file_path: Path | None = None
        self.stream = Stream(_STDERR, self.note)
        self._colours = os.isatty(_STDERR) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._service = service
        self._incarnation = incarnation
        self._redactor = redactor
        self._pid = os.getpid()
        self._lock = threading.RLock()  # of services that have threads; entered again if a finalizer logs meanwhile

    def use_file(self, path: Path | None) -> None:
        """
        Write to another file, or none, from now on.
        """
        with self._lock:
            before, self.file_path = self.file, path
            self.file = None if path is None else File(path, FILE_MODE, self.note)
            if before is not None:
                before.close()
        if self.file is not None and self.file.why:
            log.error("log.file_unusable", path=str(path), reason=self.file.why)

    def take(self, message: Any) -> None:
        """
        Write one record of loguru.
        """
        with self._lock:
            if os.getpid() != self._pid:
                self._forget()
            record: Record = message.record
            fields, line = fitted(
                self._own(record["time"], _level(record["level"].no), record["message"]), self._extra(record)
            )
            if self.ring is not None:
                self.ring.put(line)
            if self.file is None or not self.file.put(line if self.json else _text(fields)):
                self.stream.put(line if self.json else _text(fields, self._colours))

    def note(self, count: int) -> bytes:
        """
        The line that says how many before it were lost.
        """
        fields, line = fitted(self._own(datetime.now(UTC), "warn", "log.lines_lost"), {"count": count})
        return line if self.json else _text(fields)

    def close(self) -> None:
        """
        Give back what this process opened.
        """
        if os.getpid() == self._pid:
            for place in (self.ring, self.file, self.stream):
                if place is not None:
                    place.close()

    def _own(self, at: datetime, level: str, event: str) -> dict[str, Any]:
        return {
            "time": at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": level,
            "service": self._service,
            "pid": self._pid,
            "incarnation": self._incarnation,
            "event": self._redactor.text(event),
        }

    def _extra(self, record: Record) -> dict[str, Any]:
        fields = {name: self._redactor.field(name, value) for name, value in record["extra"].items()}
        error = record["exception"]
        if error is not None and error.value is not None:
            fields["exception"] = self._redactor.text(_trace(error.value, error.traceback))
        return fields

    def _forget(self) -> None:
        # a fork that has not called configure yet: the files are the parent's, and their numbers may be used for others already
        self.ring = self.file = None
        self.stream = Stream(_STDERR, self.note)
        self._pid = os.getpid()


def _hold_standard_descriptors() -> None:
    """
    Nothing else may get the number of a standard stream that was closed: lines would be written into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(_STDERR, "w", closefd=False)  # noqa: SIM115 - it is the process's


def _add(number: int, upper: int) -> int:
    def mine(record: Record) -> bool:
        return bool(record["level"].no < upper)

    def write(message: Any) -> None:
        _configured().take(message)

    return log.add(
        write,
        level=number,
        filter=mine,
        format="{message}",
        enqueue=False,
        catch=False,
        backtrace=False,
        diagnose=False,
    )


def _upper(level: str) -> int:
    above = [number for number in _NUMBERS.values() if number > _NUMBERS[level]]
    return min(above, default=sys.maxsize)


def _level(number: int) -> str:
    return next((name for name in reversed(LEVELS) if _NUMBERS[name] <= number), LEVELS[0])


def _text(fields: dict[str, Any], colours: bool = False) -> bytes:
    return text_line(fields, colours).encode("utf-8", "backslashreplace")


def _trace(error: BaseException, trace: Any) -> str:
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    told = _repr(error) + (" at " if frames else "") + " < ".join(reversed(frames[-_FRAMES:]))
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return told if cause is None else f"{told}, after {_repr(cause)}"


def _repr(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception:  # noqa: BLE001 - a foreign __repr__ must not hide where it happened
        return type(error).__name__


_handlers: dict[str, int] = {}  # loguru's id by the level whose lines it takes
_desk: _Desk | None = None


def _configured() -> _Desk:
    if _desk is None:
        raise RuntimeError("log lines have no place yet: configure comes first")
    return _desk
