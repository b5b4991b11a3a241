"""
HTTP on top of aiohttp's low-level server: finds the route, keeps the bounds, turns every error into a problem document,
counts. Routing and middlewares of aiohttp's Application would cost more than a selection does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from optimizer.budget import Budget
from optimizer.errors import OptimizerError
from optimizer.http_server import IDLE_S, LINGER_S, Connection, Server
from optimizer.operations.house import House
from optimizer.telemetry import tracing
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import Metrics
from workers.rest_api.bodies import Limits, complete_json
from workers.rest_api.problems import Refused, problem_response, refusal
from workers.rest_api.routes import Call, Hands, Route
from workers.rest_api.settings import Settings
from workers.rest_api.tally import Tally

_ADDRESSES: Final = 512  # whose routes are remembered
_LARGEST_AT_ONCE: Final = 2  # bodies of the largest size in hand; decoded they take twenty times as much


# aiohttp formats no line of an access log whose logger is off; metrics count requests
_NO_LOG: Final = logging.getLogger("rest_api.access")
_NO_LOG.disabled = True


class Api:
    """
    Answers requests.

    Args:
        routes: the table.
    """

    def __init__(self, house: House, settings: Settings, metrics: Metrics, routes: Sequence[Route]) -> None:
        self._house = house
        self._settings = settings
        self._max_body_bytes = settings.max_body_bytes
        self.tally = Tally(metrics)
        self._find = lru_cache(_ADDRESSES)(partial(_find, _tree(routes)))
        self._hands = Hands(settings.max_concurrency)
        self._budget = Budget(_LARGEST_AT_ONCE * settings.max_body_bytes)
        self.stopping = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """
        The answer to one request; never raises for what the sender did.
        """
        began = time.perf_counter()
        path = request.rel_url.raw_path
        operation = "none"
        response: web.StreamResponse
        try:
            route, name = self._find(request.method, path)
            operation = route.operation
            body = complete_json(request, self._max_body_bytes) if route.at_once is not None else None
            if route.at_once is not None and body is not None:
                response = route.at_once(self._house, name, body, self.tally)
            else:
                response = await self._answer(route, name, request)
        except Refused as refused:
            response = problem_response(refused, path)
        except OptimizerError as error:
            response = problem_response(refusal(error), path)
        except (ConnectionError, asyncio.CancelledError):
            raise  # nobody is there to answer
        except Exception as error:  # noqa: BLE001 - the top: a defect must not leave a caller without an answer
            log.opt(exception=error).error("rest_api.failed", operation=operation, error=repr(error))
            response = problem_response(Refused(500, f"internal error: {type(error).__name__}"), path)
        self.tally.request(operation, response.status, time.perf_counter() - began)
        if self.stopping:
            response.force_close()
        return response

    def template(self, request: web.BaseRequest) -> str:
        """
        The path of a request's route, with its parameters' names in place of their values.
        """
        try:
            return self._find(request.method, request.rel_url.raw_path)[0].path
        except Refused:
            return "none"

    async def _answer(self, route: Route, name: str, request: web.BaseRequest) -> web.StreamResponse:
        seconds = float(self._settings.timeout_secs)
        with self._budget.lease() as lease:
            try:
                async with asyncio.timeout(seconds):
                    limits = Limits(self._max_body_bytes, seconds, lease)
                    return await route.handler(Call(request, self._house, name, limits, self.tally, self._hands))
            except TimeoutError:
                told = f"it took longer than {seconds:g} s (rest_api.timeout_secs)"
                if not request.content.is_eof():
                    raise Refused(408, f"the body did not arrive in time: {told}") from None
                raise Refused(503, f"{told}; send the same request again", headers={"Retry-After": "1"}) from None


def _tree(routes: Sequence[Route]) -> dict[str | None, Any]:
    # segments of addresses as nested dicts; "*" stands for a parameter, None holds the methods
    root: dict[str | None, Any] = {}
    for route in routes:
        node = root
        for segment in route.path[1:].split("/"):
            node = node.setdefault("*" if segment.startswith("{") else segment, {})
        node.setdefault(None, {})[route.method] = route
    return root


def _find(tree: dict[str | None, Any], method: str, path: str) -> tuple[Route, str]:
    node: Any = tree
    name = ""
    for segment in path[1:].split("/"):
        following = node.get(segment)
        if following is None and (following := node.get("*")) is not None:
            name = _name(segment)
        if following is None:
            raise Refused(404, "there is nothing at this address; see /docs")
        node = following
    methods = node.get(None)
    if not methods:
        raise Refused(404, "there is nothing at this address; see /docs")
    route = methods.get("GET" if method == "HEAD" else method)
    if route is None:
        allowed = ", ".join(sorted(methods))
        raise Refused(405, f"{method[:20]} is not possible here, but {allowed}", headers={"Allow": allowed})
    return route, name


def _name(segment: str) -> str:
    try:
        return unquote(segment, errors="strict") if "%" in segment else segment
    except UnicodeDecodeError:
        raise Refused(400, "the address is not UTF-8 under its percent signs") from None


class ApiServer(Server):
    """
    The server of an Api.
    """

    def __init__(self, api: Api, on_connections: Callable[[int], None]) -> None:
        super().__init__(tracing.http(api.handle, api.template), on_connections)
        self._api = api

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=_NO_LOG,
            auto_decompress=False,  # aiohttp would inflate without a bound; bodies.py does it within ours
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
        )

    def unreadable(self, status: int, told: str) -> web.Response:
        """
        The response to what is no request.
        """
        return problem_response(Refused(status, told), "")

    async def stop(self, budget_s: float) -> None:
        """
        Stop accepting, answer what is in flight, close; what takes longer than `budget_s` is cut.
        """
        self._api.stopping = True
        await super().stop(budget_s)
        self._api.tally.flush()
