"""
The six trivial children of every supervisor: say that they are ready, then sleep.

One file for all: a script (supervisord, circus), an application with its configuration (gunicorn), an application (uvicorn), and
a function (ours, in `house.py`). It imports next to nothing, so that what is measured is the supervisor.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # typing would be the dearest import of these processes
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Any

READY = "BENCH_READY"  # environment: path of the pipe


def announce() -> None:
    """
    Tell the benchmark that this process is ready, and when: by the monotonic clock, which all processes share.
    """
    now = time.monotonic_ns()
    pipe = os.open(os.environ[READY], os.O_WRONLY | os.O_NONBLOCK)
    os.write(pipe, b"%d %d\n" % (os.getpid(), now))
    os.close(pipe)


def post_worker_init(_: object) -> None:
    """
    Called by gunicorn in a worker that is about to accept.
    """
    announce()


def wsgi(_: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """
    The application of gunicorn.
    """
    start_response("204 No Content", [])
    return []


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """
    The application of uvicorn: the last step before a worker accepts is the application's start-up.
    """
    if scope["type"] != "lifespan":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    await receive()
    announce()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


if __name__ == "__main__":
    announce()
    while True:
        time.sleep(3600)
