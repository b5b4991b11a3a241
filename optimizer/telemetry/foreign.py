"""
What others would write to standard error in their own way, several lines at a time and past the redaction, as lines of ours: the
standard library's logging (asyncio, aiohttp, grpc), warnings, and exceptions that nobody caught.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any, Final

from loguru import logger as log


class _Bridge(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # its arguments do not fit its text
            text = str(record.msg)
        level = (
            "ERROR" if record.levelno >= logging.ERROR else "WARNING" if record.levelno >= logging.WARNING else "DEBUG"
        )
        log.opt(exception=record.exc_info).log(level, "library.said", library=record.name, text=text)


_BRIDGE: Final = _Bridge()


def adopt(level: str) -> None:
    """
    From now on what others say becomes lines.

    Args:
        level: of our own lines; trace lets everything through.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stderr, sys.__stderr__):
            root.removeHandler(handler)
    if _BRIDGE not in root.handlers:
        root.addHandler(_BRIDGE)
    heard = logging.DEBUG if level == "trace" else logging.WARNING  # what libraries find worth telling is not our news
    if root.level != heard:  # setting it goes through all loggers, which a fork would copy
        root.setLevel(heard)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _uncaught_in_thread


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        log.info("process.interrupted")
    else:
        log.opt(exception=(kind, error, trace)).error("process.crashed", error=repr(error))


def _uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
    if found.exc_type is SystemExit:
        return
    name = found.thread.name if found.thread else None
    log.opt(exception=(found.exc_type, found.exc_value, found.exc_traceback)).error("thread.crashed", thread=name)


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    log.opt(exception=(found.exc_type, found.exc_value, found.exc_traceback)).error(
        "exception.ignored", text=found.err_msg or "in a place that cannot raise", where=repr(found.object)[:200]
    )
