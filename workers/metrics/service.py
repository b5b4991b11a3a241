"""
The metrics service: `GET /metrics` on a port of its own, so that Prometheus sees the daemon whatever the APIs do.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from optimizer.config.observability_settings import Settings
from optimizer.service import Frame
from optimizer.telemetry.exposition import render

_SCRAPES: Final = 8  # at once; Prometheus makes one, people a few


async def serve(frame: Frame[Settings]) -> None:
    """
    Serve scrapes until stopped.
    """
    frame.assert_owner()
    scrapes = asyncio.Semaphore(_SCRAPES)

    async def metrics(request: web.Request) -> web.Response:
        if scrapes.locked():
            return web.Response(status=503, text="too many scrapes at once\n", headers={"Retry-After": "1"})
        async with scrapes:
            accept = request.headers.get("Accept", "")
            body, content_type = render(frame.metrics_dir, frame.fleet, frame.clock.monotonic(), accept)
            return web.Response(body=body, headers={"Content-Type": content_type})

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    application = web.Application(client_max_size=1024)
    application.router.add_get("/metrics", metrics)
    application.router.add_get("/health/live", live)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    await web.SockSite(runner, frame.listeners["http"]).start()
    frame.ready()
    await frame.stopping.wait()
    await runner.cleanup()
