"""
The addresses that tell of the service itself: health, metrics, documentation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from optimizer.health import all_ready, health_document, http_status
from optimizer.service import Frame
from optimizer.telemetry.exposition import render
from workers.rest_api.openapi import openapi
from workers.rest_api.routes import ROUTES, Call, Route
from workers.rest_api.settings import Settings

_TEXT: Final = {"type": "string"}
_OBJECT: Final = {"type": "object"}
_HEALTH: Final = {
    "type": "object",
    "required": ["status", "uptime_secs", "services"],
    "properties": {
        "status": {"enum": ["healthy", "degraded", "unhealthy"]},
        "uptime_secs": {"type": "integer", "minimum": 0},
        "services": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["state", "healthy", "consecutive_failures", "message", "metadata"],
                "properties": {
                    "state": _TEXT,
                    "healthy": {"type": "boolean"},
                    "consecutive_failures": {"type": "integer"},
                    "message": {"type": ["string", "null"]},
                    "metadata": {"type": "object", "additionalProperties": _TEXT},
                },
            },
        },
    },
}
# The page loads nothing but the document: it works offline and lets nothing else in.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_encode = msgspec.json.Encoder().encode


class Pages:
    """
    Handlers that answer from the frame.
    """

    def __init__(self, frame: Frame[Settings]) -> None:
        self._frame = frame
        self._html = Path(__file__).with_name("docs.html").read_bytes()
        self._document = b""

    def routes(self) -> tuple[Route, ...]:
        """
        The whole table of the service.
        """
        return (
            Route("GET", "/health", "health", self._health, {200: _HEALTH}, about="How the daemon is"),
            Route("GET", "/health/live", "health", self._live, {200: _OBJECT}, about="This process answers"),
            Route("GET", "/health/ready", "health", self._ready, {200: _OBJECT}, about="All services serve"),
            Route(
                "GET",
                "/metrics",
                "metrics",
                self._metrics,
                {200: _TEXT},
                answer_media="text/plain",
                about="Metrics for Prometheus",
            ),
            Route("GET", "/openapi.json", "docs", self._openapi, {200: _OBJECT}, about="This document"),
            Route("GET", "/docs", "docs", self._docs, {200: _TEXT}, answer_media="text/html", about="It, for people"),
            *ROUTES,
        )

    async def _health(self, _: Call) -> web.Response:
        document = health_document(self._frame.fleet, self._frame.clock.monotonic())
        return _json(document, http_status(document))

    async def _live(self, _: Call) -> web.Response:
        return _json({"live": True})

    async def _ready(self, _: Call) -> web.Response:
        fleet = self._frame.fleet
        states = {name: view.state for name, view in fleet.services.items()} if fleet else {}
        ready = all_ready(fleet)
        return _json({"ready": ready, "services": states}, 200 if ready else 503)

    async def _metrics(self, call: Call) -> web.Response:
        frame = self._frame
        call.tally.flush()
        accept = call.request.headers.get("Accept", "")
        body, media = render(frame.metrics_dir, frame.fleet, frame.clock.monotonic(), accept)
        return web.Response(body=body, headers={"Content-Type": media})

    async def _openapi(self, _: Call) -> web.Response:
        if not self._document:  # made for the first who asks: it costs more time and memory than the whole start
            self._document = _encode(openapi(self.routes()))
        return web.Response(body=self._document, headers={"Content-Type": "application/json"})

    async def _docs(self, _: Call) -> web.Response:
        headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": _POLICY}
        return web.Response(body=self._html, headers=headers)


def _json(document: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=_encode(document), headers={"Content-Type": "application/json"})
