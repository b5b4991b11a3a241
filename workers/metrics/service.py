"""
The metrics service: `GET /metrics` on a port of its own, so that Prometheus sees the daemon whatever the APIs do.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from optimizer.config.observability_settings import Settings
from optimizer.http_server import IDLE_S, LINGER_S, Connection, Server
from optimizer.service import Frame
from optimizer.telemetry.exposition import render
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics, open_metrics

CONNECTIONS: Final = 64  # Prometheus holds one, people a few
SCRAPES: Final = 8  # at once: each holds a whole answer until its reader has taken it
SEND_S: Final = 10.0  # longest time for a reader to take an answer; Prometheus itself gives up after as much
_OPERATIONS: Final = {"/metrics": "scrape", "/health/live": "health"}
_ALLOWED: Final = ("GET", "HEAD")


async def serve(frame: Frame[Settings]) -> None:
    """
    Serve scrapes until stopped.
    """
    frame.assert_owner()
    metrics = open_metrics(frame.metrics_dir, frame.slot)
    server = ScrapeServer(Desk(frame, metrics), metrics)
    await server.listen(frame.listeners["http"])
    frame.ready()
    await frame.stopping.wait()
    await server.stop(frame.stop_budget_s)


class ScrapeServer(Server):
    """
    HTTP for few and patient callers.
    """

    def __init__(self, desk: Desk, metrics: Metrics) -> None:
        super().__init__(desk.handle, metrics.active_connections.labels("metrics").set)
        self.most = min(self.most, CONNECTIONS)

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,
            auto_decompress=False,  # nobody reads a body here
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
        )


class Desk:
    """
    Answers requests.
    """

    def __init__(self, frame: Frame[Settings], metrics: Metrics) -> None:
        self._frame = frame
        self._requests = metrics.requests_total
        self._durations = metrics.request_duration_seconds
        self._in_hand = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """
        The answer to one request, as far as its reader has taken it in time.
        """
        began, operation = time.perf_counter(), _OPERATIONS.get(request.path, "none")
        self._in_hand += 1
        try:
            response = self._answer(request, operation)
            if self._frame.stopping.is_set():
                response.force_close()
            async with asyncio.timeout(SEND_S):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            log.warning("scrape.not_taken", peer=request.remote, within_s=SEND_S)
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._in_hand -= 1
        labels = (operation, str(response.status))
        self._requests.labels(*labels).inc()
        self._durations.labels(*labels).observe(time.perf_counter() - began)
        return response

    def _answer(self, request: web.BaseRequest, operation: str) -> web.Response:
        if operation == "none":
            return web.Response(status=404, text="there is nothing at this address; see /metrics\n")
        if request.method not in _ALLOWED:
            allowed = ", ".join(_ALLOWED)
            return web.Response(status=405, text=f"only {allowed} are possible here\n", headers={"Allow": allowed})
        if operation == "health":
            return web.Response(text="ok\n")
        if self._in_hand > SCRAPES:
            told = f"{SCRAPES} scrapes are in hand already\n"
            return web.Response(status=503, text=told, headers={"Retry-After": "1"})
        frame, accept = self._frame, request.headers.get("Accept", "")
        try:
            body, content_type = render(frame.metrics_dir, frame.fleet, frame.clock.monotonic(), accept)
        except Exception as error:  # noqa: BLE001 - the top of a scrape: the next one may be possible
            log.opt(exception=error).error("scrape.failed", error=repr(error))
            return web.Response(status=500, text="the metrics cannot be read; the log says why\n")
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})
